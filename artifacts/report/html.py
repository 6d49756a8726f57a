"""The report page: one ``index.html`` with no outside resource, beside the pictures it shows.

Light or dark as the reader's system is; readable without colour, mouse or script. The layout is in ``report.html.j2``;
jinja escapes every text from data.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import write_bytes_atomic, write_text_atomic
from artifacts.report.contact_sheet import sheet_pages
from artifacts.report.score_lines import DASH, number_of, percent, summary_lines

INDEX = "index.html"
TEMPLATE = "report.html.j2"
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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters.update(
        number=number_of,
        percent=lambda value: percent(number_of(value)),
        duration=duration,
        json=functools.partial(json.dumps, ensure_ascii=False, default=str),
        link=lambda path: _link(folder, Path(path)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    lines = [summary_lines(one) for one in scores.values()]
    sheet, started = files.get("contact sheet"), manifest.get("started")
    text = page.get_template(TEMPLATE).render(
        title=title,
        manifest=manifest,
        started=datetime.datetime.fromtimestamp(int(started), datetime.UTC) if started else None,
        scores=scores,
        means=[{label: value for label, value, _ in one} for one in lines],
        meanings={label: meaning for one in lines for label, _, meaning in one},
        classes=list(dict.fromkeys(c for one in scores.values() for c in one.get("per_class") or {})),
        sheets=sheet_pages(Path(sheet)) if sheet else [],
        curves={label: _into(folder, path, label) for label, path in (curves or {}).items() if path.exists()},
        skips=skips,
        shown_skips=SHOWN_SKIPS,
        files=files,
        dash=DASH,
    )
    write_text_atomic(folder / INDEX, text, durable=False)
    return folder / INDEX


def duration(seconds: float) -> str:
    """``seconds`` as readable text."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _into(folder: Path, path: Path, label: str) -> Path:
    """``path``, or a copy of it below ``folder``: the folder can be moved or sent as a whole."""
    if path.resolve().is_relative_to(folder.resolve()):
        return path
    name = re.sub(r"[^A-Za-z0-9@._-]+", "-", label).strip(".-") or "fit"
    copy = folder / "curves" / f"{name}.png"
    write_bytes_atomic(copy, path.read_bytes(), durable=False)
    return copy


def _link(folder: Path, path: Path) -> str:
    """A relative address of ``path``."""
    relative = os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/")
    return urllib.parse.quote(relative)
