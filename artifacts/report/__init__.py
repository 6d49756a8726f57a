"""Scores as text: the score table, ``scores.json``, and the doors to pictures and the HTML page.

Everything here draws numbers that it is given (``Scores.as_dict`` of ``tasks/evaluate/score.py``, as plain data);
nothing is computed. Missing keys are left out, a value of ``None`` is a dash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.cache.atomic import write_text_atomic
from artifacts.report.contact_sheet import Panel, SheetRow, contact_sheet, sheet_pages
from artifacts.report.curve import curve_png
from artifacts.report.html import Confusion, ReportPictures, html_report
from artifacts.report.picture_list import PICTURES, write_picture_list
from artifacts.report.score_lines import number_of, percent, summary_lines

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "PICTURES",
    "Confusion",
    "Panel",
    "ReportPictures",
    "SheetRow",
    "contact_sheet",
    "curve_png",
    "html_report",
    "score_table",
    "sheet_pages",
    "write_picture_list",
    "write_scores_json",
]

CLASSES_PER_COLUMN = 12
SHOWN_ABSENT = 12
MOST_COLUMNS = 3
"""More would not fit a terminal of 80 characters."""


def score_table(scores: Mapping[str, Any], *, title: str = "") -> Table:
    """One set's scores as a table: IoU of each class, then the means; in per cent."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    per_class = list((scores.get("per_class") or {}).items())
    columns = min(MOST_COLUMNS, max(1, math.ceil(len(per_class) / CLASSES_PER_COLUMN)))
    table = Table(title=escape(title) or None, box=box.SIMPLE_HEAVY, title_justify="left", title_style="bold")
    for _ in range(columns):
        table.add_column("class", no_wrap=True)
        table.add_column("IoU", justify="right", no_wrap=True)
    height = math.ceil(len(per_class) / columns)
    for place in range(height):
        cells: list[str] = []
        for name, value in per_class[place::height] if height else []:
            cells += [escape(str(name)), percent(number_of(value))]
        table.add_row(*cells, end_section=place == height - 1)
    for place, (label, value, _) in enumerate(summary_lines(scores)):
        cells = [f"[bold]{escape(label)}[/]", f"[bold]{escape(value)}[/]"] if place == 0 else [escape(label), value]
        table.add_row(*cells)
    if absent := scores.get("absent"):
        more = f" and {len(absent) - SHOWN_ABSENT} more" if len(absent) > SHOWN_ABSENT else ""
        named = f"{', '.join(map(str, absent[:SHOWN_ABSENT]))}{more}"
        table.caption = escape(f"in neither truth nor prediction, so in no mean: {named}")
        table.caption_justify = "left"
    return table


def write_scores_json(path: Path, scores: Mapping[str, Any]) -> None:
    """Write scores as JSON: keys sorted, equal scores equal bytes, ``null`` for what is not a number."""
    text = json.dumps(plain(scores), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def plain(value: Any) -> Any:
    """``value`` as JSON's own types. Raises ``TypeError`` for what is none (an array is too long for this file)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"scores hold {type(value).__name__} {value!r}; numbers, texts, lists and mappings are allowed")
