"""A paper's claims as rows to run and orderings to check; what came out, beside the paper's numbers.

Rules: an ordering "holds" only if the mean of the paired differences (seed by seed) exceeds their standard deviation;
with one seed it stays undecided. All of it counts only if the fully supervised row reaches 60 mIoU: below that the
setting cannot show how good masks are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from artifacts.report.comparison import Values, markdown, paired, spread, spread_dict
from artifacts.report.score_lines import DASH
from flows.run_flow import Page
from tasks.deeplab.stages import DeepLabParams

What = Literal["masks", "student"]
CEILING_AT_LEAST = 0.60
"""mIoU that the fully supervised row has to reach."""
Scores = Mapping[str, Mapping[What, Values]]
"""Row -> masks and student -> seed -> mIoU (0..1)."""


@dataclass(frozen=True)
class Row:
    """One configuration: what it sets in the flow's params."""

    name: str
    sets: tuple[str, ...] = ()
    main: bool = False
    """Main rows have all seeds, the others one unless there is a GPU."""
    paper: float | None = None
    """The student's mIoU in the paper, per cent."""
    page: Page[Any] | None = field(default=None, repr=False)
    """Another page than the flow's, with the flow's params: the fully supervised row."""


@dataclass(frozen=True)
class Ordering:
    """``lower < higher``, said by the paper of masks or of students."""

    lower: str
    higher: str
    what: What
    source: str
    """Where the paper says so."""
    aim: float | None = None
    """mIoU (0..1) that we want between them; reported, no part of the verdict."""


@dataclass(frozen=True)
class Claims:
    """All that one flow's table needs."""

    flow: str
    config: str
    rows: tuple[Row, ...]
    orderings: tuple[Ordering, ...]
    supervised: str
    """Name of the row that is the ceiling."""
    backbone: DeepLabParams | None = None
    """What learns the backbone that all students of the shipped setting start from (:mod:`benchmarks.pretrained`)."""
    prior_s: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds of one image or fit on two busy cores: the estimate as long as nothing was timed."""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        asked = [self.supervised, *(name for one in self.orderings for name in (one.lower, one.higher))]
        if missing := set(asked) - set(names):
            raise ValueError(f"no row is called {', '.join(sorted(missing))}; there are {', '.join(names)}")


def why_not_valid(claims: Claims, scores: Scores) -> str:
    """Why the table says nothing; "" if it counts."""
    values = scores.get(claims.supervised, {}).get("student", {})
    if not values:
        return f"the row {claims.supervised!r} is not there"
    found = spread(list(values.values())).mean
    if found < CEILING_AT_LEAST:
        return f"the row {claims.supervised!r} reaches {100 * found:.1f} mIoU, less than {100 * CEILING_AT_LEAST:.0f}"
    return ""


def evaluate(claims: Claims, scores: Scores) -> dict[str, Any]:
    """Rows and orderings as plain data; nothing holds in a table that is not valid."""
    invalid = why_not_valid(claims, scores)
    papers = {row.name: row.paper for row in claims.rows}
    rows = []
    for row in claims.rows:
        found = scores.get(row.name, {})
        own = {what: spread_dict(values) for what, values in found.items() if values}
        rows.append({"name": row.name, "sets": list(row.sets), "main": row.main, "paper": row.paper, "miou": own})
    orderings = []
    for one in claims.orderings:
        result = paired(
            scores.get(one.lower, {}).get(one.what, {}),
            scores.get(one.higher, {}).get(one.what, {}),
        )
        both = (papers[one.lower], papers[one.higher]) if one.what == "student" else (None, None)
        orderings.append(
            {
                "lower": one.lower,
                "higher": one.higher,
                "what": one.what,
                "source": one.source,
                "difference": None if result.difference is None else asdict(result.difference),
                "verdict": "undecided" if invalid else result.verdict,
                "why": "table not valid" if invalid else result.why,
                "paper": None if None in both else round(both[1] - both[0], 1),  # type: ignore[operator]
                "aim": one.aim,
            }
        )
    return {"valid": not invalid, "not_valid": invalid, "rows": rows, "orderings": orderings}


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Both tables for people. The paper's numbers are of other data and another network: compare the signs."""
    parts = [] if figures["valid"] else [f"**Not valid: {figures['not_valid']}.**\n"]
    head = ["row", "sets", "seeds", "masks (train)", "student (val)", "paper"]
    parts += [markdown([head, *map(_row_cells, figures["rows"])])]
    head = ["claim", "of", "difference", "verdict", "paper", "where"]
    parts += [markdown([head, *map(_ordering_cells, figures["orderings"])])]
    return "\n".join(parts)


def _row_cells(row: Mapping[str, Any]) -> list[str]:
    seeds = max((len(found["seeds"]) for found in row["miou"].values()), default=0)
    cells = [_mean(row["miou"].get(what)) for what in ("masks", "student")]
    sets = " ".join(f"`{one}`" for one in row["sets"])
    return [row["name"], sets, str(seeds), *cells, DASH if row["paper"] is None else f"{row['paper']:.1f}"]


def _mean(found: Mapping[str, Any] | None) -> str:
    return DASH if found is None else spread(list(found["seeds"].values())).shown()


def _ordering_cells(one: Mapping[str, Any]) -> list[str]:
    found = one["difference"]
    difference = DASH
    if found is not None:
        std = "" if found["std"] is None else f" ± {100 * found['std']:.1f}"
        difference = f"{100 * found['mean']:+.1f}{std}"
    verdict = one["verdict"] + (f" ({one['why']})" if one["why"] else "")
    if one["aim"] is not None and found is not None:
        verdict += f"; aim {100 * one['aim']:+.1f} {'reached' if found['mean'] >= one['aim'] else 'missed'}"
    paper = DASH if one["paper"] is None else f"{one['paper']:+.1f}"
    return [f"{one['lower']} < {one['higher']}", one["what"], difference, verdict, paper, one["source"]]


def columns(train: str, val: str) -> dict[What, str]:
    """The columns of :mod:`artifacts.report.comparison` that masks and students are scored in."""
    return {"masks": f"masks ({train}) mIoU", "student": f"student ({val}) mIoU"}


def scores_of(names: Sequence[str], found: Mapping[str, Mapping[str, Values]], train: str, val: str) -> Scores:
    """Row -> masks and student -> seed -> mIoU, out of what a comparison has scored (row -> column -> seed -> mIoU)."""
    wanted = columns(train, val)
    return {name: {what: found[name].get(column, {}) for what, column in wanted.items()} for name in names}
