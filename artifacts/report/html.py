"""The report page: one ``index.html`` that holds all it shows, and links to the files beside it.

Light or dark as the reader's system is; readable without colour, mouse or script (which
sorts and filters the pictures). The layout is in ``report.html.j2``;
jinja escapes every text from data.
"""

from __future__ import annotations

import datetime
import functools
import json
import logging
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import write_bytes_atomic, write_text_atomic
from artifacts.report.contact_sheet import sheet_pages
from artifacts.report.pictures import SIDE, Beside, Card, ReportPicture, card, data_uri, inline
from artifacts.report.score_lines import DASH, number_of, percent, summary_lines

log = logging.getLogger("maskmill")


@dataclass(frozen=True)
class ReportPictures:
    """The pictures that the page shows."""

    shown: Iterable[ReportPicture] = ()
    """Taken one by one: of many, not all are in memory at once."""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Set of masks -> its class table."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Set of masks -> how many pictures it has."""


@dataclass(frozen=True)
class Confusion:
    """What became of the pixels of each class."""

    classes: Sequence[str]
    matrix: Sequence[Sequence[int]]
    """(K + 1) rows of truth, background first; K + 2 columns, undecided last."""

    @property
    def names(self) -> list[str]:
        """Of the rows; the last column is ``undecided``."""
        return ["background", *self.classes]

    @property
    def shares(self) -> list[tuple[str, list[float]]]:
        """``(true class, share of its pixels in each column)`` of the classes that there are."""
        rows = zip(self.names, self.matrix, strict=True)
        return [(name, [value / sum(row) for value in row]) for name, row in rows if sum(row)]

    @property
    def worst(self) -> list[tuple[str, str, float]]:
        """The largest confusions: ``(true class, called, share of the true class)``."""
        columns = [*self.names, "undecided"]
        found = [(a, b, share) for a, row in self.shares for b, share in zip(columns, row, strict=True) if a != b]
        return sorted((one for one in found if one[2] > 0), key=lambda one: -one[2])[:WORST_CONFUSIONS]


INDEX = "index.html"
BESIDE = "report-pictures"
TEMPLATE = "report.html.j2"
SHOWN_SKIPS = 500
WORST_CONFUSIONS = 12
FIRST_CARDS = 12
"""Pictures that are seen before one asks for more."""
LARGE_BYTES = 8_000_000
"""Once the pictures of a page take as many, further ones are smaller: the page stays below 20 MB."""
SMALL_SIDE = 240
EMBEDDED = 24
"""Pictures of a set of masks that are in the page itself; further ones lie beside it."""
MATRIX_CLASSES = 24
"""Larger class tables are shown by their largest confusions alone."""


def html_report(
    folder: Path,
    *,
    title: str,
    manifest: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, str],
    curves: Mapping[str, Path] | None = None,
    skips: Sequence[Mapping[str, Any]] = (),
    pictures: ReportPictures = ReportPictures(),
    matrices: Mapping[str, Confusion] | None = None,
    before: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/index.html`` and return its path.

    Args:
        folder: where the page goes. Curves from elsewhere are copied into ``folder/curves``.
        title: heading.
        manifest: the run's manifest (``run``, ``flow``, ``stages``, ``recipe``, ...); missing keys are left out.
        scores: name of a set of masks -> its scores.
        files: name -> path of what else the run left, linked; ``"contact sheet"`` is shown, too.
        curves: label of a fit -> its curve PNG.
        skips: ``{"path", "reason", "stage", "key"}`` of images left out.
        pictures: shown in the page itself, as small ones; one that cannot be drawn is left out.
        matrices: name of a set of masks -> its confusion matrix.
        before: the manifest of the run to compare with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [summary_lines(one) for one in scores.values()]
    sheet, started = files.get("contact sheet"), manifest.get("started")
    text = render(
        TEMPLATE,
        folder,
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
        **shown_pictures(pictures, folder / BESIDE),
        matrices=matrices or {},
        matrix_classes=MATRIX_CLASSES,
        defaults=manifest.get("defaults") or {},
        unread=manifest.get("unread") or (),
        before=before or {},
        changes=changes(before, manifest) if before else [],
    )
    write_text_atomic(folder / INDEX, text, durable=False)
    return folder / INDEX


def render(template: str, folder: Path, **values: Any) -> str:
    """A template of this package as the text of a page that lies in ``folder``. Texts among ``values`` are escaped."""
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
        points=points,
        duration=duration,
        json=functools.partial(json.dumps, ensure_ascii=False, default=str),
        link=lambda path: _link(folder, Path(path)),
        inline=lambda path: inline(Path(path)),
    )
    return page.get_template(template).render(**values)


def shown_pictures(
    pictures: ReportPictures, beside: Path, doubt: str = "suspicion", doubt_order: str = "suspicious"
) -> dict[str, Any]:
    """What ``pictures.html.j2`` needs.

    Of each set of masks the first :data:`EMBEDDED` pictures are in the page, the others in files in ``beside``.
    ``doubt``: what a picture's ``suspicion`` is called on this page.
    """
    found: list[Card] = []
    outside = Beside(beside)
    embedded: Counter[str] = Counter()
    spent = 0
    for picture in pictures.shown:
        embedded[picture.of] += 1
        inside = embedded[picture.of] <= EMBEDDED
        side = SIDE if spent < LARGE_BYTES or not inside else SMALL_SIDE
        try:
            one = card(picture, pictures.classes.get(picture.of, ()), side, data_uri if inside else outside)
        except ValueError as error:  # the page comes last in a long run, and must not fail it
            log.warning("report: %s", error)
            continue
        found.append(replace(one, picture=one.picture.without_pixels()))
        spent += len(one.photo) + sum(len(layer["uri"]) for layer in one.layers)
    return {
        "cards": found,
        "picture_counts": pictures.counts,
        "first_cards": FIRST_CARDS,
        "doubt": doubt,
        "doubt_order": doubt_order,
    }


def points(value: Any, other: Any) -> str:
    """The difference of two shares in points, with its sign: ``+1.2``."""
    now, then = number_of(value), number_of(other)
    return DASH if now is None or then is None else f"{100 * (now - then):+.1f}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """``(dotted name, then, now)`` of the recipe's values that differ between two runs."""
    then, here = (_flat("", manifest.get("recipe") or {}) for manifest in (before, now))
    names = sorted({*then, *here})
    return [(name, then.get(name), here.get(name)) for name in names if then.get(name) != here.get(name)]


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: json.loads(json.dumps(value, default=str))}  # a manifest that was read holds lists for tuples
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(f"{name}.{key}" if name else str(key), item)
    return found


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
