"""``maskmill compare``: configurations of one flow, or several flows, on one data set: a table, a picture, a page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from artifacts import report
from artifacts.cache.atomic import check_writable, write_text_atomic
from artifacts.records import Sets
from artifacts.report.compare_page import ShownVariant, comparison_page
from artifacts.report.comparison import score_table, spread_dict
from artifacts.report.html import duration
from flows.cli.terminal import terminal
from flows.compare.methods import Methods, build_methods, parse_minutes, read_methods
from flows.compare.pictures import compared_pictures, draw
from flows.compare.trials import Attempt, History, Planned, Trial, as_lines, forecast, make_trials, run_trials
from flows.compare.variants import Variant, build_variants, parse_budget, parse_seeds, parse_variant, read_variants
from flows.config import ConfigError
from flows.configure import Job, configure
from flows.registry import FLOWS
from flows.run_flow import read_sets
from tasks.engine.progress import Bars, Lines, Reporter


def compare(
    flow: Annotated[
        str | None, Parameter(help=f"the flow: {', '.join(FLOWS)}; without one, each variant of the file names its own")
    ] = None,
    /,
    *,
    variant: Annotated[
        tuple[str, ...], Parameter(help='"NAME: KEY=VALUE ..." over the flow\'s params; repeatable', negative=())
    ] = (),
    variants: Annotated[
        Path | None,
        Parameter(help="a YAML file of variants, NAME: {KEY: VALUE}; of flows, NAME: {flow, config, params, data}"),
    ] = None,
    seeds: Annotated[str, Parameter(help="seeds of all fits; each variant is run with each seed: 0,1,2")] = "0",
    out: Annotated[Path, Parameter(help="folder for table, picture, reports (and the cache, unless named)")] = Path(
        "maskmill-compare"
    ),
    data: Annotated[str | None, Parameter(help="voc:PATH, coco:IMAGES,JSON, folder:PATH, yolo:PATH, demo")] = None,
    config: Annotated[str | None, Parameter(help="shared YAML file, or name of a shipped configuration")] = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", help="one shared value", negative=())] = (),
    cache: Annotated[Path | None, Parameter(help="folder of the mask cache; default OUT/cache")] = None,
    workers: Annotated[int | None, Parameter(help="worker processes; -1: one per core, 0: none")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, Parameter(help="where networks run; default auto")] = None,
    budget: Annotated[
        str | None,
        Parameter(help="stop before a run that would exceed this time: 30m, 1h30m; the same command resumes"),
    ] = None,
    minutes: Annotated[
        str, Parameter(help="flows: what labelling a picture takes you, in minutes: tags=0.3,boxes=0.6,masks=4")
    ] = "",
    dry_run: Annotated[bool, Parameter(help="show what would be done and the estimated time", negative=())] = False,
    quiet: Annotated[bool, Parameter(help="no progress bars", negative=())] = False,
) -> int:
    """Compare variants of one flow, or different flows, on one data set; stages that they share are computed once.

    Leaves compare.html, compare.md, compare.json and compare.png in OUT, each run's own report in OUT/runs. The same
    command resumes where it was stopped.
    """
    options = {
        "out": str(out),
        "cache": None if cache is None else str(cache),
        "workers": workers,
        "device": device,
        "progress": False if quiet else None,
    }
    if flow is not None and flow not in FLOWS:
        raise ConfigError(f"no flow {flow!r}; there are {', '.join(FLOWS)}")
    for option, folder in (("out", out), ("cache", cache)):
        check_writable(option, None if dry_run else folder)
    budget_s = None if budget is None else parse_budget(budget)
    each_min = parse_minutes(minutes)
    wanted = parse_seeds(seeds)
    methods = None
    if flow is None:
        if variants is None or variant or config:
            raise ConfigError(
                "to compare flows give --variants FILE.yaml, NAME: {flow: FLOW, config: CONFIG} for each, and neither"
                " --variant nor --config; to compare configurations of one flow, name it: maskmill compare cfs ..."
            )
        built, job = build_methods(read_methods(variants), wanted, data=data, sets=set_, options=options)
        sets = built[0].sets or read_sets(job.data, job.options)
        methods = Methods.of(built, sets, job.options, each_min)
    else:
        job = configure(flow, data, config, set_, options)
        given = [*(parse_variant(text) for text in variant), *(read_variants(variants) if variants else ())]
        built = build_variants(flow, given, wanted, data=data, config=config, sets=set_, options=options)
        sets = read_sets(job.data, job.options)
    trials = make_trials(built, sets, job.options)
    console = terminal()
    history = History(Path(job.options.cache), {one.flow for one in built})
    forecast_table(trials, sets, job, history, console)
    if dry_run:
        return 0

    def after(attempts: list[Attempt]) -> None:
        save(out, job, built, attempts, methods=methods)

    attempts, left = run_trials(
        trials,
        job.data,
        sets,
        job.options,
        history,
        budget_s=budget_s,
        reporter=lambda: reporter_of(job),
        write_line=lambda text: console.print(escape(text), soft_wrap=True, highlight=False),
        after=after,
    )
    files = save(out, job, built, attempts, left, methods=methods)
    files |= draw(out / "compare.png", built, attempts, sets, job)
    files["page"] = str(page(out / "compare.html", job, built, attempts, left, sets, methods))
    show(built, attempts, files, left, console, methods)
    if any(attempt.status == "failed" for attempt in attempts):
        return 1
    return 3 if any(attempt.skipped for attempt in attempts) else 0


def reporter_of(job: Job) -> Reporter | None:
    """A new progress reporter, if the job wants one."""
    if not job.options.progress:
        return None
    return Bars() if sys.stderr.isatty() else Lines()


# -- before ----------------------------------------------------------------------------------------------------------


def forecast_table(trials: Sequence[Trial], sets: Sets, job: Job, history: History, console: Console) -> None:
    """Print what is to be done, a row for each trial; work that an earlier row does is not counted again."""
    table = Table(title="what is to be done", box=box.SIMPLE_HEAVY, title_justify="left")
    for name in ("variant", "seed", "to compute", "est."):
        table.add_column(name, justify="right" if name in ("seed", "est.") else "left")
    seen, planned = set[str](), Planned()
    total, unknown = 0.0, False
    for trial in trials:
        found = forecast(trial, sets, job.options, history, seen, planned)
        work = ", ".join(f"{s.label} {n}" for s in found.stages if (n := s.to_compute + s.unknown))
        table.add_row(escape(trial.variant.name), str(trial.seed), escape(work or "nothing"), found.shown())
        total += found.seconds
        unknown = unknown or bool(found.unknown)
    console.print(table)
    known = f"{'at least ' if unknown else 'about '}{duration(total)}" if total else "not known: nothing was timed yet"
    console.print(f"{len(trials)} runs; time: {known}")


# -- after -----------------------------------------------------------------------------------------------------------


def save(
    out: Path,
    job: Job,
    variants: Sequence[Variant],
    attempts: Sequence[Attempt],
    left: str = "",
    *,
    methods: Methods | None = None,
) -> dict[str, str]:
    """Write ``compare.json`` and ``compare.md`` of what is done so far; returns their places."""
    planned = sum(len(variant.seeds) for variant in variants)
    lines = {line.name: line for line in as_lines(variants, attempts)}
    summary: dict[str, Any] = {
        "flow": job.flow if methods is None else "",
        "data": asdict(job.data),
        "complete": sum(attempt.status == "done" for attempt in attempts) == planned,
        "left": left,
        "variants": [
            {
                "name": variant.name,
                "flow": variant.flow,
                "sets": list(variant.settings),
                "seeds": list(variant.seeds),
                "scores": {name: spread_dict(values) for name, values in lines[variant.name].scores.items()},
                "runs": [asdict(attempt) for attempt in attempts if attempt.variant == variant.name],
            }
            for variant in variants
        ],
    }
    report.write_scores_json(out / "compare.json", summary)
    write_text_atomic(out / "compare.md", as_markdown(job, variants, attempts, left, methods))
    return {"table": str(out / "compare.md"), "numbers": str(out / "compare.json")}


def title_of(job: Job, methods: Methods | None) -> str:
    """Heading of the table and the page."""
    return f"{job.flow if methods is None else 'Flows'} on {job.data.source}, compared"


def failures(attempts: Sequence[Attempt]) -> list[str]:
    """A line for each run that failed."""
    return [f"{a.variant}, seed {a.seed}: {' '.join(a.error.split())}" for a in attempts if a.status == "failed"]


def as_markdown(
    job: Job, variants: Sequence[Variant], attempts: Sequence[Attempt], left: str, methods: Methods | None = None
) -> str:
    """The tables with what each variant sets, and what was not done."""
    parts = [
        f"# {title_of(job, methods)}\n",
        "Per cent; mean ± sample standard deviation over the seeds of all fits.\n",
    ]
    if methods is not None:
        parts += [methods.table(variants, attempts).markdown(), *(f"- {note}" for note in methods.notes), ""]
    parts += [
        score_table(as_lines(variants, attempts)).markdown(),
        *(f"- **{v.name}**: {' '.join(f'`{one}`' for one in v.settings) or 'as configured'}" for v in variants),
    ]
    if failed := failures(attempts):
        parts += ["\n## Failed\n", *(f"- {line}" for line in failed)]
    if left:
        parts += ["\n## Not done\n", left]
    return "\n".join(parts) + "\n"


def page(
    path: Path,
    job: Job,
    variants: Sequence[Variant],
    attempts: Sequence[Attempt],
    left: str,
    sets: Sets,
    methods: Methods | None = None,
) -> Path:
    """Write ``compare.html``: tables, and every variant's masks of the pictures on which they differ most."""
    done = [attempt for attempt in attempts if attempt.report]
    tables = [score_table(as_lines(variants, attempts))]
    return comparison_page(
        path,
        title=title_of(job, methods),
        subtitle=f"{len(variants)} variants; mean ± sample standard deviation over the seeds of all fits",
        tables=tables if methods is None else [methods.table(variants, attempts), *tables],
        variants=[
            ShownVariant(v.name, v.settings, {f"seed {a.seed}": a.report for a in done if a.variant == v.name})
            for v in variants
        ],
        notes=() if methods is None else methods.notes,
        problems=[*failures(attempts), *([left] if left else [])],
        pictures=compared_pictures(variants, attempts, sets, job),
    )


def show(
    variants: Sequence[Variant],
    attempts: Sequence[Attempt],
    files: Mapping[str, str],
    left: str,
    console: Console,
    methods: Methods | None = None,
) -> None:
    """The table, paths of the outputs, and the errors."""
    table = score_table(as_lines(variants, attempts)) if methods is None else methods.table(variants, attempts)
    console.print(table.for_terminal())
    for name, path in files.items():
        console.print(f"{name}: {escape(path)}", soft_wrap=True)
    for line in failures(attempts):
        console.print(f"[red]failed:[/] {escape(line)}", soft_wrap=True)
    for attempt in attempts:
        if attempt.status == "done" and attempt.skipped:
            where = f"{attempt.variant}, seed {attempt.seed}"
            console.print(f"[yellow]{attempt.skipped} skipped:[/] {escape(f'{where}: {attempt.report}')}")
    if left:
        console.print(f"[yellow]stopped:[/] {escape(left)}; the same command resumes", soft_wrap=True)
