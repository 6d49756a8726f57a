"""Several runs side by side: means over seeds, paired differences, and the table of both.

Pure numbers and text. Scores are shares (0..1), as in ``scores.json``; tables show per cent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from artifacts.report.score_lines import DASH, number_of

if TYPE_CHECKING:
    from rich.table import Table

Verdict = Literal["holds", "reversed", "undecided"]
Values = Mapping[int, float]
"""Seed -> number."""


@dataclass(frozen=True)
class Spread:
    """Mean of some numbers and their sample standard deviation."""

    mean: float
    std: float | None
    """Divided by n - 1; ``None`` with a single number, which has no spread."""
    n: int

    def shown(self) -> str:
        """In per cent: ``71.3 ± 0.4``, ``71.3`` with one number."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation. Raises ``ValueError`` for no number at all."""
    if not values:
        raise ValueError("no number to take the mean of")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Paired:
    """``higher - lower`` seed by seed, and whether ``lower < higher`` is borne out."""

    difference: Spread | None
    """``None``: no seed has both numbers."""
    verdict: Verdict
    why: str = ""
    """What keeps the ordering undecided."""


def paired(lower: Values, higher: Values) -> Paired:
    """Does ``lower < higher`` hold over the seeds that both have?

    It holds if the mean difference exceeds the standard deviation of the differences, is reversed if it lies as far
    below zero, and is undecided otherwise; also with one seed alone, where there is no deviation to exceed.
    """
    both = sorted(lower.keys() & higher.keys())
    if not both:
        return Paired(None, "undecided", "not run")
    found = spread([higher[seed] - lower[seed] for seed in both])
    if found.std is None:
        return Paired(found, "undecided", "one seed")
    if abs(found.mean) <= found.std:
        return Paired(found, "undecided", "within the spread" if found.mean else "no difference")
    return Paired(found, "holds" if found.mean > 0 else "reversed")


BY_SIZE = "object IoU, "


def flat_scores(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``{"masks (train)": {...}}`` as ``{"masks (train) mIoU": .., "masks (train) object IoU": ..}``.

    A number that a set has not (object IoU of a student, say) is left out. Objects by size are ``".. object IoU,
    small"``; tables of variants do not show them.
    """
    found = {}
    for name, one in scores.items():
        for key, label in (("miou", "mIoU"), ("object_iou", "object IoU")):
            value = number_of(one.get(key))
            if value is not None:
                found[f"{name} {label}"] = value
        for size, of_size in (one.get("by_size") or {}).items():
            value = number_of(of_size)
            if value is not None:
                found[f"{name} {BY_SIZE}{size}"] = value
    return found


@dataclass(frozen=True)
class Line:
    """One configuration of the table: its scores (column -> seed -> number), and the state of its runs."""

    name: str
    scores: Mapping[str, Values]
    done: int
    planned: int
    failed: int = 0
    shown: tuple[str, ...] = ("masks",)
    """Names whose scores are columns: the flow's masks and predictions. All others are in the JSON alone."""

    def cell(self, column: str) -> str:
        """``71.3 ± 0.4``, or a dash."""
        values = list(self.scores.get(column, {}).values())
        return spread(values).shown() if values else DASH

    @property
    def state(self) -> str:
        """How many runs stand behind the numbers."""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done} of {self.planned}{failed}" if self.done < self.planned else str(self.done)


def shown_columns(lines: Sequence[Line]) -> list[str]:
    """Columns that any line has, name by name, each without and with a CRF."""
    columns = list(dict.fromkeys(column for line in lines for column in line.scores if BY_SIZE not in column))
    names = dict.fromkeys(name for line in lines for name in line.shown)
    return list(dict.fromkeys(one for name in names for one in columns if one.startswith((f"{name} (", f"{name} + "))))


@dataclass(frozen=True)
class ScoreTable:
    """Cells as they are shown; the first column names the variant."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ("variant",)
    """The columns that hold words, not numbers."""

    def markdown(self) -> str:
        """As Markdown, without the caption."""
        return markdown([self.head, *self.rows])

    def for_terminal(self) -> Table:
        """For rich's console."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAVY)
        for column in self.head:
            table.add_column(escape(column), overflow="fold", justify="left" if column in self.words else "right")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table


def score_table(lines: Sequence[Line]) -> ScoreTable:
    """Every column that any line has; per cent, mean ± standard deviation over seeds."""
    columns = shown_columns(lines)
    rows = [[line.name, *(line.cell(column) for column in columns), line.state] for line in lines]
    return ScoreTable("All scores, per cent", ["variant", *columns, "runs"], rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table, the first row its head; all columns but the first to the right."""
    clean = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    head, *body = clean
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *body]) + "\n"


def spread_dict(values: Values) -> dict[str, Any]:
    """Numbers of one column for a JSON file, seed by seed."""
    found = spread(list(values.values()))
    if not math.isfinite(found.mean):
        raise ValueError(f"not a number among {dict(values)}")
    return {"mean": found.mean, "std": found.std, "seeds": {str(seed): value for seed, value in values.items()}}
