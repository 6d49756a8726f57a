"""A paper's claims as rows to run and orderings to check; the results, beside the paper's numbers.

Rules: an ordering "holds" only if the mean of the paired differences (seed by seed) exceeds their standard deviation;
with one seed it stays undecided. All of it counts only if the fully supervised row reaches 60 mIoU: below that the
setting cannot show how good masks are. Which numbers of a run are compared (of masks, students, edges, ...) is in the
claims: :attr:`Claims.columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from artifacts.report.comparison import Values, markdown, paired, spread, spread_dict
from artifacts.report.score_lines import DASH
from flows.run_flow import Page
from tasks.deeplab.stages import DeepLabParams

CEILING_AT_LEAST = 0.60
"""mIoU that the fully supervised row has to reach."""
SUPERVISED = "fully supervised"
"""Name of the row that is the ceiling of every table (:func:`benchmarks.claim_rows.supervised_row`)."""
Scores = Mapping[str, Mapping[str, Values]]
"""Row -> column -> seed -> number (0..1)."""


@dataclass(frozen=True)
class Row:
    """One configuration: what it sets in the flow's params."""

    name: str
    sets: tuple[str, ...] = ()
    main: bool = False
    """Main rows have all seeds, the others one unless there is a GPU."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Column -> its number in the paper, per cent."""
    page: Page[Any] | None = field(default=None, repr=False)
    """Another page than the flow's, with the flow's params: :mod:`benchmarks.claim_rows` makes the usual ones."""


@dataclass(frozen=True)
class Ordering:
    """``lower < higher``, claimed by the paper for one column."""

    lower: str
    higher: str
    what: str
    """The column."""
    source: str
    """Where the paper claims it."""
    aim: float | None = None
    """Difference (0..1) that we want between them; reported, no part of the verdict."""


@dataclass(frozen=True)
class Backbone:
    """Initial weights of the shipped setting's networks: a DeepLab's backbone, see :mod:`benchmarks.pretrained`."""

    learner: DeepLabParams
    takes: tuple[str, ...]
    """Where the flow's params name a file of weights: ``deeplab.weights``. All of them get the backbone's."""
    alike: tuple[str, ...] = ("network", "width", "output_stride")
    """What has to be as the learner's in the params around each of them, or the file does not fit."""


@dataclass(frozen=True)
class Claims:
    """All that one flow's table needs."""

    flow: str
    config: str
    columns: Mapping[str, str]
    """Name -> which score of a run it is, as :func:`artifacts.report.comparison.flat_scores` calls it, the split as
    ``{train}`` or ``{val}``: ``"masks": "masks ({train}) mIoU"``; or a fit's last number, as
    :func:`flows.compare.trials.curve_ends` does. In the order of the table."""
    rows: tuple[Row, ...]
    orderings: tuple[Ordering, ...]
    ceiling: str
    """The column in which the fully supervised row has to reach :data:`CEILING_AT_LEAST`."""
    backbone: Backbone | None = None
    prior_s: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds of one image or fit on two busy cores: the estimate as long as nothing was timed."""

    def __post_init__(self) -> None:
        rows = [SUPERVISED, *(name for one in self.orderings for name in (one.lower, one.higher))]
        columns = [self.ceiling, *(one.what for one in self.orderings)]
        columns += [name for row in self.rows for name in row.paper]
        for what, used, known in (("row", rows, [row.name for row in self.rows]), ("column", columns, [*self.columns])):
            if missing := set(used) - set(known):
                raise ValueError(f"no {what} is called {', '.join(sorted(missing))}; there are {', '.join(known)}")

    def scores_of(self, names: Sequence[str], found: Mapping[str, Mapping[str, Values]], **splits: str) -> Scores:
        """Row -> column -> seed -> number, out of what a comparison has scored (row -> score -> seed -> number).

        Args:
            names: the rows.
            found: as :func:`flows.compare.trials.as_lines` gives the scores.
            splits: name of the split of each set: ``train="trainaug", val="val"``.
        """
        wanted = {column: score.format_map(splits) for column, score in self.columns.items()}
        return {name: {column: found[name].get(score, {}) for column, score in wanted.items()} for name in names}


def why_not_valid(claims: Claims, scores: Scores) -> str:
    """Why the table is not valid; "" if it counts."""
    values = scores.get(SUPERVISED, {}).get(claims.ceiling, {})
    if not values:
        return f"the row {SUPERVISED!r} is missing"
    found = spread(list(values.values())).mean
    if found < CEILING_AT_LEAST:
        return f"the row {SUPERVISED!r} reaches {100 * found:.1f} mIoU, less than {100 * CEILING_AT_LEAST:.0f}"
    return ""


def evaluate(claims: Claims, scores: Scores) -> dict[str, Any]:
    """Rows and orderings as plain data; nothing holds in a table that is not valid."""
    invalid = why_not_valid(claims, scores)
    papers = {row.name: row.paper for row in claims.rows}
    rows = []
    for row in claims.rows:
        found = scores.get(row.name, {})
        own = {what: spread_dict(values) for what, values in found.items() if values}
        paper = dict(row.paper)
        one = {"name": row.name, "sets": list(row.sets), "main": row.main, "paper": paper, "scores": own}
        rows.append({**one, "share": share_of_ceiling(claims, scores, row.name)})
    orderings = []
    for one in claims.orderings:
        result = paired(
            scores.get(one.lower, {}).get(one.what, {}),
            scores.get(one.higher, {}).get(one.what, {}),
        )
        lower, higher = (papers[name].get(one.what) for name in (one.lower, one.higher))
        orderings.append(
            {
                "lower": one.lower,
                "higher": one.higher,
                "what": one.what,
                "source": one.source,
                "difference": None if result.difference is None else asdict(result.difference),
                "verdict": "undecided" if invalid else result.verdict,
                "why": "table not valid" if invalid else result.why,
                "paper": None if lower is None or higher is None else round(higher - lower, 1),
                "aim": one.aim,
            }
        )
    columns = list(claims.columns)
    return {"valid": not invalid, "not_valid": invalid, "columns": columns, "rows": rows, "orderings": orderings}


def share_of_ceiling(claims: Claims, scores: Scores, name: str) -> float | None:
    """Weak over full supervision: a row's mean mIoU over the fully supervised row's, of the seeds that both have."""
    own, full = (scores.get(row, {}).get(claims.ceiling, {}) for row in (name, SUPERVISED))
    if not (seeds := own.keys() & full.keys()) or name == SUPERVISED:
        return None
    return sum(own[seed] for seed in seeds) / sum(full[seed] for seed in seeds)


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Both tables as text. The paper's numbers are of other data and another network: compare the signs."""
    parts = [] if figures["valid"] else [f"**Not valid: {figures['not_valid']}.**\n"]
    columns = figures["columns"]
    printed = [column for column in columns if any(column in row["paper"] for row in figures["rows"])]
    head = ["row", "sets", "seeds", *columns, "weak / full", *(f"paper: {column}" for column in printed)]
    parts += [markdown([head, *(_row_cells(row, columns, printed) for row in figures["rows"])])]
    head = ["claim", "of", "difference", "verdict", "paper", "where"]
    parts += [markdown([head, *map(_ordering_cells, figures["orderings"])])]
    return "\n".join(parts)


def _row_cells(row: Mapping[str, Any], columns: Sequence[str], printed: Sequence[str]) -> list[str]:
    seeds = max((len(found["seeds"]) for found in row["scores"].values()), default=0)
    sets = " ".join(f"`{one}`" for one in row["sets"])
    papers = [f"{row['paper'][column]:.1f}" if column in row["paper"] else DASH for column in printed]
    share = DASH if row.get("share") is None else f"{row['share']:.2f}"
    return [row["name"], sets, str(seeds), *(_mean(row["scores"].get(column)) for column in columns), share, *papers]


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
