"""A paper's orderings against ours: `python -m benchmarks.claims cfs [--budget 30m]` (make claims-cfs).

Every row is an ordinary cached run of the flow, so that the same command resumes where it was stopped. Main rows have
three seeds, the others one unless there is a GPU; iterations are fixed, the last checkpoint counts, nothing is chosen
on the images that are scored. The estimate is printed first. Leaves claims.md, compare.json and the main rows'
contact sheet in --out; with --name, figures go to benchmarks/results, with commit, machine and time. Rows and seeds
that are there already, of the same setting and the same stages, are kept beside them: a table can be filled in parts,
also by several machines.

Exit status 1 if a run failed; an ordering that does not hold is a result.
"""

from __future__ import annotations

import argparse
import importlib
import operator
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from artifacts import keys
from artifacts.cache.atomic import write_text_atomic
from artifacts.records import DataError, Sets
from artifacts.report.html import duration
from benchmarks import pretrained, results
from benchmarks.claim_table import Backbone, Claims, Row, as_markdown, evaluate
from flows.compare.command import forecast_table, reporter_of, save
from flows.compare.pictures import draw
from flows.compare.trials import Attempt, History, Trial, addresses, as_lines, make_trials, run_trials
from flows.compare.variants import Variant, build_variants, parse_budget, parse_seeds
from flows.configure import Job, configure
from flows.registry import FLOWS
from flows.run_flow import read_sets
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.gpus import has_gpu
from tasks.engine.options import RunParams


def main(given: Sequence[str] | None = None) -> int:
    """Plan, print the estimated time, run, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow", choices=[name for name, entry in FLOWS.items() if entry.claims])
    tables = sorted({table for entry in FLOWS.values() for table in entry.claims})
    parser.add_argument("--table", choices=tables, help="default: the flow's first (drawn pictures)")
    parser.add_argument("--config", help="default: the table's own")
    parser.add_argument("--data", help="other data than the configuration's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one value for all rows")
    parser.add_argument("--out", type=Path, help="default: runs/claims-<flow>, with the table's name behind")
    parser.add_argument("--seeds", default="0,1,2", help="of the main rows; default 0,1,2")
    parser.add_argument("--secondary-seeds", help="of the other rows; default: 0, all of --seeds with a GPU")
    parser.add_argument("--main-only", action="store_true", help="leave the other rows out")
    parser.add_argument("--rows", nargs="+", default=[], metavar="TEXT", help="only rows whose names hold one of these")
    parser.add_argument("--budget", help="stop before a run that would exceed this time: 30m, 2h")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--dry-run", action="store_true", help="show what would be done and the estimated time")
    parser.add_argument("--name", default="", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--replace", action="store_true", help="replace kept figures even if they are more complete")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(given)
    try:
        table = prepare(args)
        sets = read_sets(table.job.data, table.job.options)
        trials = trials_of(table, sets)
    except DataError as error:
        print(f"claims: {error}", file=sys.stderr)
        return 2
    console = Console()
    history = History(Path(table.options.cache), {variant.flow for variant in table.variants}, table.prior_s)
    forecast_table(trials, sets, table.job, history, console)
    if table.to_learn is not None:
        seconds = table.claims.prior_s.get("pretrained", 0.0)
        console.print(f"before them: a backbone on drawn pictures of other classes, about {duration(seconds)}")
    if args.dry_run:
        return 0
    started = time.monotonic()
    if table.to_learn is not None:
        pretrained.make_backbone(table.to_learn, table.options, reporter_of(table.job))
        table = prepare(args)
        trials = trials_of(table, sets)
    if table.budget_s is not None:
        table.budget_s -= time.monotonic() - started
    attempts = run(table, trials, sets, history, console)
    if attempts and args.name:
        table.figures["stages"] = stages_of(table, sets)
        console.print(keep_figures(args.name, table.figures, table.claims, args.replace), markup=False, soft_wrap=True)
    return int(any(attempt.status == "failed" for attempt in attempts))


@dataclass
class Table:
    """What one command is to fill."""

    claims: Claims
    job: Job
    config: str
    sets: tuple[str, ...]
    backbone: str
    """The initial weights, for readers; "" for those of the configuration."""
    to_learn: DeepLabParams | None
    """The backbone that has to be trained before the rows can be run."""
    main: list[Variant]
    others: list[Variant]
    every: list[Variant]
    """Of all rows, whether they are asked for or not."""
    out: Path
    budget_s: float | None
    gpu: bool
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def variants(self) -> list[Variant]:
        """All rows, main ones first."""
        return [*self.main, *self.others]

    @property
    def options(self) -> RunParams:
        """How all are run."""
        return self.job.options

    @property
    def prior_s(self) -> Mapping[str, float]:
        """The times that are assumed at first are of one setting, whatever the data."""
        ours = all(one.startswith("data.") for one in self.sets) and not self.gpu
        ours = ours and self.config == self.claims.config
        return self.claims.prior_s if ours else {}


def prepare(args: argparse.Namespace) -> Table:
    """The rows as variants. Raises :class:`DataError` for any fault of the command."""
    tables = FLOWS[args.flow].claims
    if args.table is not None and args.table not in tables:
        raise DataError(f"flow {args.flow!r} has no table {args.table!r}; there are {', '.join(tables)}")
    claims: Claims = importlib.import_module(tables[args.table or next(iter(tables))]).CLAIMS
    out = args.out or Path("runs") / "-".join(filter(None, ("claims", args.flow, args.table)))
    options = {"out": str(out), "device": args.device, "workers": args.workers}
    options |= {"progress": False} if args.quiet else {}
    config = args.config or claims.config
    shared = {"data": args.data, "config": config, "sets": tuple(args.set), "options": options}
    job = configure(claims.flow, args.data, config, args.set, options)
    backbone, to_learn = "", None
    if claims.backbone is not None and takes_backbone(args, config, claims.config, claims.backbone, job):
        learner = claims.backbone.learner
        backbone = said_of(learner)
        if (file := pretrained.find_backbone(learner, job.options)) is None:
            to_learn = learner
        else:
            shared["sets"] = (*(f"params.{place}={file}" for place in claims.backbone.takes), *args.set)
    rows = chosen_rows(claims, args.rows, args.main_only)
    seeds = parse_seeds(args.seeds)
    gpu = args.device != "cpu" and has_gpu()
    others = parse_seeds(args.secondary_seeds) if args.secondary_seeds else seeds if gpu else seeds[:1]
    return Table(
        claims,
        job,
        config,
        tuple(args.set),
        backbone,
        to_learn,
        [variant_of(row, claims.flow, seeds, shared) for row in rows if row.main],
        [variant_of(row, claims.flow, others, shared) for row in rows if not row.main],
        [variant_of(row, claims.flow, seeds, shared) for row in claims.rows],
        out,
        parse_budget(args.budget) if args.budget else None,
        gpu,
    )


def chosen_rows(claims: Claims, texts: Sequence[str], main_only: bool) -> list[Row]:
    """The rows that are asked for. Raises :class:`DataError` that lists what there is, if none is."""
    there = [row for row in claims.rows if row.main or not main_only]
    found = [row for row in there if not texts or any(text.lower() in row.name.lower() for text in texts)]
    if not found:
        names = ", ".join(f"'{row.name}'" for row in there)
        raise DataError(f"--rows {' '.join(texts)}: no row's name holds that; there are {names}")
    return found


def trials_of(table: Table, sets: Sets) -> list[Trial]:
    """All trials, those of main rows first. Raises :class:`DataError` for what cannot be run."""
    parts = (part for part in (table.main, table.others) if part)
    return [trial for part in parts for trial in make_trials(part, sets, table.options)]


def takes_backbone(args: argparse.Namespace, config: str, shipped: str, backbone: Backbone, job: Job) -> bool:
    """Whether the setting is the shipped one as far as the backbone goes: its file fits one network and demo data."""
    if config != shipped or args.data is not None:
        return False
    for place in backbone.takes:
        if any(given.startswith(f"params.{place}=") for given in args.set):
            return False
        ours = operator.attrgetter(place.rpartition(".")[0])(job.params)
        if any(getattr(ours, name) != getattr(backbone.learner, name) for name in backbone.alike):
            return False
    return True


def said_of(params: DeepLabParams) -> str:
    """The initial weights, for readers."""
    return f"{params.network}, learnt from the masks of {pretrained.SOURCE} in {params.iterations} iterations"


def variant_of(row: Row, flow: str, seeds: tuple[int, ...], shared: Mapping[str, Any]) -> Variant:
    """The row as a variant; one with a page of its own is called by it in manifests."""
    (variant,) = build_variants(flow, [(row.name, row.sets)], seeds, **shared)
    if row.page is None:
        return variant
    own = f"{flow}-{row.page.__name__.removesuffix('_page')}"
    return replace(variant, flow=own, page=row.page)


def run(table: Table, trials: Sequence[Trial], sets: Sets, history: History, console: Console) -> list[Attempt]:
    """All trials; what is done is evaluated even if the rest is left."""

    def after(attempts: list[Attempt]) -> None:
        save(table.out, table.job, table.variants, attempts)

    attempts, left = run_trials(
        trials,
        table.job.data,
        sets,
        table.options,
        history,
        budget_s=table.budget_s,
        reporter=lambda: reporter_of(table.job),
        write_line=lambda text: console.print(escape(text), soft_wrap=True, highlight=False),
        after=after,
    )
    save(table.out, table.job, table.variants, attempts, left)
    draw(table.out / "compare.png", table.main or table.others, attempts, sets, table.job)
    table.figures = figures_of(table, attempts, left)
    text = as_markdown(table.figures)
    write_text_atomic(table.out / "claims.md", text)
    console.print(text, markup=False, soft_wrap=True)
    if left:
        console.print(f"stopped: {left}; the same command resumes", markup=False, soft_wrap=True)
    return attempts


def figures_of(table: Table, attempts: Sequence[Attempt], left: str) -> dict[str, Any]:
    """What was set, how much of it is done, rows and verdicts."""
    lines = as_lines(table.variants, attempts)
    found = {line.name: line.scores for line in lines}
    data = table.job.data
    return {
        "setting": {"config": table.config, "data": data.source, "backbone": table.backbone, "set": list(table.sets)},
        "seeds": {variant.name: list(variant.seeds) for variant in table.variants},
        "complete": all(line.done == line.planned for line in lines),
        "left": left,
        "failed": [
            {"row": attempt.variant, "seed": attempt.seed, "error": attempt.error}
            for attempt in attempts
            if attempt.status == "failed"
        ],
        "seconds_this_time": round(sum(attempt.seconds for attempt in attempts), 1),
        **evaluate(table.claims, table.claims.scores_of(list(found), found, train=data.train, val=data.val)),
    }


def stages_of(table: Table, sets: Sets) -> dict[str, str]:
    """Row -> digest of its stages' addresses: while it is the same, code and parameters give the same scores."""
    return {name: keys.digest(found)[:16] for name, found in addresses(table.every, sets, table.options).items()}


def keep_figures(name: str, figures: Mapping[str, Any], claims: Claims, anyway: bool = False) -> str:
    """Save them beside what is kept of the same setting and stages, and return where; ``anyway``: instead of it.

    Where stages have changed since, figures of more finished trials are kept: a run with a small budget, or of the main
    rows alone, would else put hours of work out of sight.
    """
    kept = results.load(name)
    known = kept.get("figures", {})
    if anyway or known.get("setting") != figures["setting"]:
        return f"figures: {results.save(name, figures)}"
    there, here = finished_trials(known), finished_trials(figures)
    if known.get("stages") == figures["stages"]:
        found = beside(kept, figures, claims)
        return (
            f"figures: {results.save(name, found)}: {here} finished trials, {finished_trials(found)} with those before"
        )
    if there > here:
        return (
            f"figures: {results.path_of(name)} is kept: its {there} finished trials of this setting (commit"
            f" {kept['commit']}, {kept['time']}) are more than these {here}; --replace overwrites them"
        )
    return f"figures: {results.save(name, figures)}"


def beside(kept: Mapping[str, Any], figures: Mapping[str, Any], claims: Claims) -> dict[str, Any]:
    """``figures`` and, where they have no such row or seed, the ones of the record ``kept``; verdicts are of all."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for row in (*kept["figures"]["rows"], *figures["rows"]):
        for column, found in row["scores"].items():
            values = scores.setdefault(row["name"], {}).setdefault(column, {})
            values |= {int(seed): value for seed, value in found["seeds"].items()}
    before = kept["figures"]
    seeds = {
        row: sorted({*before["seeds"].get(row, ()), *figures["seeds"].get(row, ())})
        for row in (*before["seeds"], *figures["seeds"])
    }
    earlier = [*before.get("earlier", ()), {name: kept[name] for name in ("commit", "time", "machine")}]
    complete = before["complete"] and figures["complete"]
    return {**figures, "seeds": seeds, "complete": complete, "earlier": earlier, **evaluate(claims, scores)}


def finished_trials(figures: Mapping[str, Any]) -> int:
    """Rows times seeds that have a score."""
    return sum(len({seed for found in row["scores"].values() for seed in found["seeds"]}) for row in figures["rows"])


if __name__ == "__main__":
    sys.exit(main())
