"""A paper's orderings against ours: `python -m benchmarks.claims cfs [--budget 30m]` (make claims-cfs).

Every row is an ordinary cached run of the flow, so that the same command goes on where it was stopped. Main rows have
three seeds, the others one unless there is a GPU; iterations are fixed, the last checkpoint counts, nothing is chosen
on the images that are scored. The estimate is printed first. Leaves claims.md, compare.json and the main rows'
contact sheet in --out; figures go to benchmarks/results/claims_<flow>.json, with commit, machine and time.

Exit status 1 if a run failed; an ordering that does not hold is a result.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from artifacts.atomic import write_text_atomic
from benchmarks import results
from benchmarks.claim_table import Claims, Row, as_markdown, evaluate, scores_of
from flows.command import Job, configure
from flows.compare import draw, forecast_table, reporter_of, save
from flows.page import read_sets
from flows.trials import Attempt, History, Trial, as_lines, make_trials, run_trials
from flows.variants import Variant, build_variants, parse_budget, parse_seeds
from tasks.gpus import has_gpu

FLOWS = {"cfs": "benchmarks.claims_cfs"}


def main(given: Sequence[str] | None = None) -> int:
    """Plan, say how long it may take, run, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow", choices=[*FLOWS])
    parser.add_argument("--config", help="default: the flow's own for claims")
    parser.add_argument("--data", help="other data than the configuration's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one value for all rows")
    parser.add_argument("--out", type=Path, help="default: runs/claims-<flow>")
    parser.add_argument("--seeds", default="0,1,2", help="of the main rows; default 0,1,2")
    parser.add_argument("--secondary-seeds", help="of the other rows; default: 0, all of --seeds with a GPU")
    parser.add_argument("--main-only", action="store_true", help="leave the other rows out")
    parser.add_argument("--budget", help="stop before a run that would not end in this time: 30m, 2h")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and how long it may take")
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/results as it is")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    asked = parser.parse_args(given)
    claims: Claims = importlib.import_module(FLOWS[asked.flow]).CLAIMS
    out = asked.out or Path("runs") / f"claims-{asked.flow}"
    options = {"out": str(out), "device": asked.device, "workers": asked.workers}
    options |= {"progress": False} if asked.quiet else {}
    shared: dict[str, Any] = {"data": asked.data, "config": asked.config or claims.config, "sets": asked.set}
    job = configure(claims.flow, shared["data"], shared["config"], shared["sets"], options)
    gpu = asked.device != "cpu" and has_gpu()
    seeds = parse_seeds(asked.seeds)
    others = parse_seeds(asked.secondary_seeds) if asked.secondary_seeds else seeds if gpu else seeds[:1]
    rows = [row for row in claims.rows if row.main or not asked.main_only]
    variants = {row.name: variant_of(row, claims, seeds if row.main else others, shared, options) for row in rows}
    return run(claims, job, rows, variants, shared, asked, out)


def variant_of(row: Row, claims: Claims, seeds: tuple[int, ...], shared: dict[str, Any], options: Any) -> Variant:
    """The row as a variant; one with a page of its own is called by it in manifests."""
    (variant,) = build_variants(claims.flow, [(row.name, row.sets)], seeds, **shared, options=options)
    if row.page is None:
        return variant
    flow = f"{claims.flow}-{row.page.__name__.removesuffix('_page')}"  # type: ignore[attr-defined]
    return Variant(row.name, flow, row.page, variant.params, seeds, variant.says)


def run(
    claims: Claims,
    job: Job,
    rows: Sequence[Row],
    variants: dict[str, Variant],
    shared: dict[str, Any],
    asked: argparse.Namespace,
    out: Path,
) -> int:
    """All trials, main rows first; what is done is evaluated even if the rest is left."""
    console = Console()
    sets = read_sets(job.data, job.options)
    trials: list[Trial] = []
    for main_rows in (True, False):
        if part := [variants[row.name] for row in rows if row.main == main_rows]:
            trials += make_trials(part, sets, job.options)
    prior = claims.prior_s if shared["config"] == claims.config and not shared["sets"] else {}
    history = History(Path(job.options.cache), {variant.flow for variant in variants.values()}, prior)
    forecast_table(trials, sets, job, history, console)
    if asked.dry_run:
        return 0
    every = list(variants.values())

    def after(attempts: list[Attempt]) -> None:
        save(out, job, every, attempts)

    attempts, left = run_trials(
        trials,
        job.data,
        sets,
        job.options,
        history,
        budget_s=parse_budget(asked.budget) if asked.budget else None,
        reporter=lambda: reporter_of(job),
        say=lambda text: console.print(escape(text), soft_wrap=True, highlight=False),
        after=after,
    )
    save(out, job, every, attempts, left)
    draw(out / "compare.png", [variants[row.name] for row in rows if row.main], attempts, sets, job)
    figures = figures_of(claims, job, every, attempts, left, shared)
    text = as_markdown(figures)
    write_text_atomic(out / "claims.md", text)
    console.print(text, markup=False, soft_wrap=True)
    if left:
        console.print(f"stopped: {left}; the same command goes on", markup=False, soft_wrap=True)
    if attempts and not asked.no_results:
        console.print(f"figures: {results.save(f'claims_{claims.flow}', figures)}", markup=False, soft_wrap=True)
    return int(any(attempt.status == "failed" for attempt in attempts))


def figures_of(
    claims: Claims,
    job: Job,
    variants: Sequence[Variant],
    attempts: Sequence[Attempt],
    left: str,
    shared: dict[str, Any],
) -> dict[str, Any]:
    """What was set, how much of it is done, rows and verdicts."""
    lines = as_lines(variants, attempts)
    found = {line.name: line.scores for line in lines}
    scores = scores_of(list(found), found, job.data.train, job.data.val)
    return {
        "setting": {"config": shared["config"], "data": job.data.source, "set": list(shared["sets"])},
        "seeds": {variant.name: list(variant.seeds) for variant in variants},
        "complete": all(line.done == line.planned for line in lines),
        "left": left,
        "failed": [
            {"row": attempt.variant, "seed": attempt.seed, "error": attempt.error}
            for attempt in attempts
            if attempt.status == "failed"
        ],
        "seconds": round(sum(attempt.seconds for attempt in attempts), 1),
        **evaluate(claims, scores),
    }


if __name__ == "__main__":
    sys.exit(main())
