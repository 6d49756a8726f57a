"""The report page: one ``index.html`` with no outside resource, beside the pictures it shows.

Light or dark as the reader's system is; readable without colour, mouse or script; every text from data is escaped.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import write_bytes_atomic, write_text_atomic
from artifacts.report.contact_sheet import sheet_pages
from artifacts.report.score_lines import DASH, number_of, percent, summary_lines

INDEX = "index.html"
SHOWN_SKIPS = 500


def html_report(
    folder: Path,
    *,
    title: str,
    manifest: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, str],
    curves: Mapping[str, Path] | None = None,
    skips: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write ``folder/index.html`` and return its path.

    Args:
        folder: where the page goes. Curves from elsewhere are copied into ``folder/curves``.
        title: heading.
        manifest: the run's manifest (``run``, ``flow``, ``stages``, ``recipe``, ...); missing keys are left out.
        scores: name of a set of masks -> its scores.
        files: name -> path of what else the run left; ``"contact sheet"`` is shown, the rest linked.
        curves: label of a fit -> its curve PNG.
        skips: ``{"path", "reason", "stage", "key"}`` of images left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        _headline(scores),
        _warnings(manifest.get("warnings") or ()),
        _scores(scores),
        _sheet(folder, files.get("contact sheet")),
        _stages(manifest.get("stages") or ()),
        _curves(folder, curves or {}),
        _skips(skips, folder, files.get("manifest")),
        _params(manifest),
        _files(folder, files),
    ]
    path = folder / INDEX
    write_text_atomic(path, _page(title, _subtitle(manifest), "\n".join(part for part in parts if part)), durable=False)
    return path


def _page(title: str, subtitle: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{subtitle}
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _subtitle(manifest: Mapping[str, Any]) -> str:
    facts = []
    if manifest.get("run"):
        facts.append(f"run <code>{escape(str(manifest['run']))}</code>")
    if manifest.get("status"):
        facts.append(escape(str(manifest["status"])))
    if isinstance(manifest.get("started"), (int, float)):
        started = datetime.datetime.fromtimestamp(manifest["started"], datetime.UTC)
        facts.append(f'<time datetime="{started.isoformat(timespec="seconds")}">{started:%Y-%m-%d %H:%M} UTC</time>')
    if isinstance(manifest.get("seconds"), (int, float)):
        facts.append(duration(manifest["seconds"]))
    return f"<p>{' · '.join(facts)}</p>" if facts else ""


def duration(seconds: float) -> str:
    """``seconds`` for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _section(name: str, body: str) -> str:
    anchor = re.sub(r"[^a-z]+", "-", name.lower())
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(name)}</h2>\n{body}\n</section>'


# -- numbers ---------------------------------------------------------------------------------------------------------


def _headline(scores: Mapping[str, Mapping[str, Any]]) -> str:
    cards = [
        f'<div class="card"><dt>{escape(name)}</dt>'
        f"<dd>{percent(number_of(one.get('miou')))}<small> mIoU</small></dd></div>"
        for name, one in scores.items()
    ]
    return f'<dl class="cards">{"".join(cards)}</dl>' if cards else ""


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    if not scores:
        return ""
    names = list(scores)
    classes = list(dict.fromkeys(c for one in scores.values() for c in one.get("per_class") or {}))
    body = [[_th(c), *(_bar((one.get("per_class") or {}).get(c)) for one in scores.values())] for c in classes]
    per_class = _table(["class", *names], body, "IoU of each class over the whole set, per cent", numbers=names)
    means = [{label: value for label, value, _ in summary_lines(one)} for one in scores.values()]
    meaning = {label: text for one in scores.values() for label, _, text in summary_lines(one)}
    rows = [
        [
            f'<th scope="row">{escape(label)}<small>{escape(text)}</small></th>',
            *(_td(m.get(label, DASH)) for m in means),
        ]
        for label, text in meaning.items()
    ]
    absent = [
        f"<p>In neither truth nor prediction of {escape(name)}, so in no mean: "
        f"{escape(', '.join(map(str, one['absent'])))}.</p>"
        for name, one in scores.items()
        if one.get("absent")
    ]
    return _section(
        "Scores", "\n".join([_table(["", *names], rows, "Means, per cent", numbers=names), per_class, *absent])
    )


def _th(text: Any) -> str:
    return f'<th scope="row">{escape(str(text))}</th>'


def _td(text: Any, kind: str = "n") -> str:
    return f'<td class="{kind}">{escape(str(text))}</td>'


def _bar(value: Any) -> str:
    number = number_of(value)
    if number is None:
        return _td(DASH)
    share = min(max(100 * number, 0), 100)
    bar = f'<span class="bar" aria-hidden="true"><i style="width:{share:.1f}%"></i></span>'
    return f'<td class="n">{percent(number)}{bar}</td>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, numbers: Collection[str] = ()) -> str:
    """``rows`` are finished cells; ``head`` and ``caption`` are texts; columns named in ``numbers`` stand right."""
    cells = "".join(f'<th scope="col"{" class=n" if h in numbers else ""}>{escape(h)}</th>' for h in head)
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>"
    )


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    if not stages:
        return ""
    rows = []
    for stage in stages:
        seconds = number_of(stage.get("seconds"))
        counts = [_td(stage.get(key, DASH)) for key in ("total", "cached", "computed", "skipped")]
        note = " (pinned)" if stage.get("pinned") else ""
        kind = {"map": "per image", "fit": "fit"}.get(str(stage.get("kind", "")), str(stage.get("kind", "")))
        time = _td(DASH if seconds is None else duration(seconds))
        name = _th(f"{stage.get('label', '')}{note}")
        rows.append([name, _td(kind, "t"), *counts, time, _td(stage.get("address", ""), "code")])
    head = ["stage", "kind", "total", "cached", "computed", "skipped", "time", "address"]
    return _section("Stages", _table(head, rows, "What each stage did in this run", numbers=head[2:7]))


# -- pictures --------------------------------------------------------------------------------------------------------


def _sheet(folder: Path, path: str | None) -> str:
    pages = sheet_pages(Path(path)) if path else []
    if not pages:
        return ""
    figures = []
    for number, page in enumerate(pages, 1):
        link = _link(folder, page)
        words = "Contact sheet: images with weak labels, each stage's mask, truth, prediction"
        alt = words if len(pages) == 1 else f"{words}; page {number} of {len(pages)}"
        figures.append(f'<figure class="sheet"><a href="{link}"><img src="{link}" alt="{escape(alt)}"></a></figure>')
    return _section("Pictures", "\n".join(figures))


def _curves(folder: Path, curves: Mapping[str, Path]) -> str:
    figures = []
    for label, path in curves.items():
        own = _into(folder, Path(path), label)
        if own is None:
            continue
        link = _link(folder, own)
        alt = f"Loss, learning rate and scores of {label} over its steps"
        figures.append(
            f'<figure><figcaption>{escape(label)}</figcaption><a href="{link}"><img src="{link}" alt="{escape(alt)}">'
            "</a></figure>"
        )
    return _section("Training", "\n".join(figures)) if figures else ""


def _into(folder: Path, path: Path, label: str) -> Path | None:
    """``path``, or a copy of it below ``folder``: the folder can be moved or sent as a whole."""
    if not path.exists():
        return None
    if path.resolve().is_relative_to(folder.resolve()):
        return path
    name = re.sub(r"[^A-Za-z0-9@._-]+", "-", label).strip(".-") or "fit"
    copy = folder / "curves" / f"{name}.png"
    write_bytes_atomic(copy, path.read_bytes(), durable=False)
    return copy


def _link(folder: Path, path: Path) -> str:
    """A relative address of ``path``, escaped for an attribute."""
    relative = os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/")
    return escape(urllib.parse.quote(relative))


# -- lists -----------------------------------------------------------------------------------------------------------


def _warnings(warnings: Sequence[Any]) -> str:
    if not warnings:
        return ""
    lines = "".join(f"<li>{escape(str(text))}</li>" for text in warnings)
    return _section("Warnings", f'<ul class="warn">{lines}</ul>')


def _skips(skips: Sequence[Mapping[str, Any]], folder: Path, manifest: str | None) -> str:
    if not skips:
        return _section("Skipped images", "<p>None.</p>")
    rows = []
    for skip in skips[:SHOWN_SKIPS]:
        where, reason = skip.get("path") or skip.get("key") or "", skip.get("reason", "")
        rows.append([_td(where, "code"), _td(reason, "t"), _td(skip.get("stage") or DASH, "t")])
    more = ""
    if len(skips) > SHOWN_SKIPS:
        link = f'<a href="{_link(folder, Path(manifest))}">the manifest</a>' if manifest else "the manifest"
        more = f"<p>And {len(skips) - SHOWN_SKIPS:,} more, all in {link}.</p>"
    return _section(
        "Skipped images",
        _table(["file", "reason", "stage"], rows, f"{len(skips):,} image{'s' if len(skips) > 1 else ''} left out")
        + more,
    )


def _params(manifest: Mapping[str, Any]) -> str:
    trees = [(name, manifest[name]) for name in ("recipe", "options", "libraries") if manifest.get(name)]
    if not trees:
        return ""
    return _section("Parameters", "\n".join(_tree(name, value, is_open=name == "recipe") for name, value in trees))


def _tree(name: str, value: Any, *, is_open: bool = False) -> str:
    """Nested params: a foldable part for each mapping, a line for each value."""
    if isinstance(value, Mapping) and value:
        inner = "\n".join(_tree(str(key), item, is_open=is_open) for key, item in value.items())
        return f"<details{' open' if is_open else ''}><summary>{escape(name)}</summary><div>\n{inner}\n</div></details>"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    return f"<p><span>{escape(name)}</span> <code>{escape(text)}</code></p>"


def _files(folder: Path, files: Mapping[str, str]) -> str:
    lines = [
        f'<li><a href="{_link(folder, Path(path))}">{escape(name)}</a> <code>{escape(str(path))}</code></li>'
        for name, path in files.items()
    ]
    return _section("Files", f"<ul>{''.join(lines)}</ul>") if lines else ""


STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --page: #f5f6f8; --ink: #1c202c; --muted: #586173; --line: #dfe3ea;
  --accent: #2a5db0; --bar: #5477b5; --warn: #8a5200; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1b1f27; --page: #12151b; --ink: #e8ebf1; --muted: #a3adbd; --line: #323947;
    --accent: #8fb6ff; --bar: #7d9fdb; --warn: #ffc46b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
header p { color: var(--muted); margin: .4rem 0 0; }
h2 { font-size: 1.15rem; margin: 0 0 .8rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem;
  margin: 1.25rem 0; }
a { color: var(--accent); }
a:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
code { font: .86em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.25rem 0; }
.card { flex: 1 1 14rem; background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem 1.25rem; }
.card dt { color: var(--muted); overflow-wrap: anywhere; }
.card dd { margin: 0; font-size: 2.4rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card small { font-size: 1rem; font-weight: 400; color: var(--muted); }
.wide { overflow-x: auto; }
.wide + .wide { margin-top: 1.25rem; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; }
tbody th small { display: block; font-weight: 400; color: var(--muted); }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th.n { white-space: normal; }
td.code { font: .82em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.bar { display: block; height: 5px; width: 7rem; margin: 3px 0 0 auto; border-radius: 3px; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--bar); }
figure { margin: 0 0 1rem; }
figure:last-child { margin-bottom: 0; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
img { max-width: 100%; height: auto; border-radius: 8px; background: #ffffff; display: block; }
.warn { color: var(--warn); }
ul { margin: 0; padding-left: 1.2rem; }
li + li { margin-top: .3rem; }
summary { cursor: pointer; font-weight: 600; padding: .15rem 0; }
details > div { border-left: 2px solid var(--line); margin-left: .3rem; padding-left: 1rem; }
td.code { padding-left: .8rem; }
td.code:first-child { padding-left: 0; }
details p { margin: .15rem 0; }
details p span { color: var(--muted); }
@media print { section, .card { break-inside: avoid; } body { background: #ffffff; } }
""".strip()
