"""The page of ``maskmill compare``: one HTML file with the scores of all variants, and their masks side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.cache.atomic import write_text_atomic
from artifacts.report.comparison import ScoreTable
from artifacts.report.html import ReportPictures, render, shown_pictures

TEMPLATE = "compare.html.j2"


@dataclass(frozen=True)
class ShownVariant:
    """One variant: what it sets, and ``"seed 0"`` -> path of the report of each of its runs."""

    name: str
    settings: Sequence[str] = ()
    reports: Mapping[str, str] = field(default_factory=dict)


def comparison_page(
    path: Path,
    *,
    title: str,
    subtitle: str,
    tables: Sequence[ScoreTable],
    variants: Sequence[ShownVariant],
    notes: Sequence[str] = (),
    problems: Sequence[str] = (),
    pictures: ReportPictures = ReportPictures(),
) -> Path:
    """Write the page and return its path.

    Args:
        path: the file; links to reports are relative to its folder.
        title: heading.
        subtitle: what was compared.
        tables: scores.
        variants: all, in the tables' order.
        notes: what the numbers mean, below the tables.
        problems: failed runs, and what was left.
        pictures: ``suspicion`` of one is the difference between the variants, ``worst`` each variant's own mIoU.
    """
    text = render(
        TEMPLATE,
        path.parent,
        title=title,
        subtitle=subtitle,
        tables=tables,
        variants=variants,
        notes=notes,
        problems=problems,
        **shown_pictures(pictures, path.parent / "compare-pictures", "difference", "different"),
    )
    write_text_atomic(path, text, durable=False)
    return path
