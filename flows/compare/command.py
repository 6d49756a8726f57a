"""``maskmill compare``: several configurations of one flow on one data set, in one table and one picture."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from artifacts import report
from artifacts.cache.atomic import check_writable, write_text_atomic
from artifacts.cache.runs import RunFolder, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.images import read_image_rgb
from artifacts.records import DataError, Kind, MaskHW, Record, Sets
from artifacts.report.comparison import comparison_table, markdown_table, spread_dict
from artifacts.report.contact_sheet import Panel, SheetRow
from artifacts.report.html import duration
from flows.cli.terminal import terminal
from flows.compare.trials import Attempt, History, Trial, as_lines, forecast, make_trials, run_trials, weak_kinds
from flows.compare.variants import Variant, build_variants, parse_budget, parse_seeds, parse_variant, read_variants
from flows.config import ConfigError
from flows.configure import Job, configure
from flows.registry import FLOWS
from flows.run_flow import read_sets
from tasks.engine.progress import Bars, Lines, Reporter
from tasks.evaluate.finish import shown_label, shown_records
from tasks.evaluate.score import image_miou
from tasks.stage import MASKS

log = logging.getLogger("maskmill")


def compare(
    flow: Annotated[str, Parameter(help=f"the flow: {', '.join(FLOWS)}")],
    /,
    *,
    variant: Annotated[
        tuple[str, ...], Parameter(help='"NAME: KEY=VALUE ..." over the flow\'s params; repeatable', negative=())
    ] = (),
    variants: Annotated[Path | None, Parameter(help="a YAML file of variants, NAME: {KEY: VALUE}")] = None,
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
    dry_run: Annotated[bool, Parameter(help="show what would be done and the estimated time", negative=())] = False,
    quiet: Annotated[bool, Parameter(help="no progress bars", negative=())] = False,
) -> int:
    """Compare variants of one flow; stages that they share are computed once.

    Leaves compare.md, compare.json and compare.png in OUT, each run's own report in OUT/runs. The same command resumes
    where it was stopped.
    """
    options = {
        "out": str(out),
        "cache": None if cache is None else str(cache),
        "workers": workers,
        "device": device,
        "progress": False if quiet else None,
    }
    if flow not in FLOWS:
        raise ConfigError(f"no flow {flow!r}; there are {', '.join(FLOWS)}")
    for option, folder in (("out", out), ("cache", cache)):
        check_writable(option, None if dry_run else folder)
    budget_s = None if budget is None else parse_budget(budget)
    job = configure(flow, data, config, set_, options)
    given = [*(parse_variant(text) for text in variant), *(read_variants(variants) if variants else ())]
    built = build_variants(flow, given, parse_seeds(seeds), data=data, config=config, sets=set_, options=options)
    sets = read_sets(job.data, job.options)
    trials = make_trials(built, sets, job.options)
    console = terminal()
    history = History(Path(job.options.cache), [flow])
    forecast_table(trials, sets, job, history, console)
    if dry_run:
        return 0

    def after(attempts: list[Attempt]) -> None:
        save(out, job, built, attempts)

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
    files = save(out, job, built, attempts, left)
    files |= draw(out / "compare.png", built, attempts, sets, job)
    show(built, attempts, files, left, console)
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
    seen: set[str] = set()
    total, unknown = 0.0, False
    for trial in trials:
        found = forecast(trial, sets, job.options, history, seen)
        work = ", ".join(f"{s.label} {n}" for s in found.stages if (n := s.to_compute + s.unknown))
        table.add_row(escape(trial.variant.name), str(trial.seed), escape(work or "nothing"), found.shown())
        total += found.seconds
        unknown = unknown or bool(found.unknown)
    console.print(table)
    known = f"{'at least ' if unknown else 'about '}{duration(total)}" if total else "not known: nothing was timed yet"
    console.print(f"{len(trials)} runs; time: {known}")


# -- after -----------------------------------------------------------------------------------------------------------


def save(
    out: Path, job: Job, variants: Sequence[Variant], attempts: Sequence[Attempt], left: str = ""
) -> dict[str, str]:
    """Write ``compare.json`` and ``compare.md`` of what is done so far; returns their places."""
    planned = sum(len(variant.seeds) for variant in variants)
    lines = {line.name: line for line in as_lines(variants, attempts)}
    summary: dict[str, Any] = {
        "flow": job.flow,
        "data": asdict(job.data),
        "complete": sum(attempt.status == "done" for attempt in attempts) == planned,
        "left": left,
        "variants": [
            {
                "name": variant.name,
                "sets": list(variant.settings),
                "seeds": list(variant.seeds),
                "scores": {name: spread_dict(values) for name, values in lines[variant.name].scores.items()},
                "runs": [asdict(attempt) for attempt in attempts if attempt.variant == variant.name],
            }
            for variant in variants
        ],
    }
    report.write_scores_json(out / "compare.json", summary)
    write_text_atomic(out / "compare.md", as_markdown(job, variants, attempts, left))
    return {"table": str(out / "compare.md"), "numbers": str(out / "compare.json")}


def as_markdown(job: Job, variants: Sequence[Variant], attempts: Sequence[Attempt], left: str) -> str:
    """The table with what each variant sets, and what was not done."""
    parts = [
        f"# {job.flow} on {job.data.source}, compared\n",
        "Per cent; mean ± sample standard deviation over the seeds of all fits.\n",
        markdown_table(as_lines(variants, attempts)),
        *(f"- **{v.name}**: {' '.join(f'`{one}`' for one in v.settings) or 'as configured'}" for v in variants),
    ]
    failed = [f"- {a.variant}, seed {a.seed}: {' '.join(a.error.split())}" for a in attempts if a.status == "failed"]
    if failed:
        parts += ["\n## Failed\n", *failed]
    if left:
        parts += ["\n## Not done\n", left]
    return "\n".join(parts) + "\n"


def show(
    variants: Sequence[Variant], attempts: Sequence[Attempt], files: Mapping[str, str], left: str, console: Console
) -> None:
    """The table, paths of the outputs, and the errors."""
    console.print(comparison_table(as_lines(variants, attempts)))
    for name, path in files.items():
        console.print(f"{name}: {escape(path)}", soft_wrap=True)
    for attempt in attempts:
        if attempt.status == "failed":
            console.print(
                f"[red]failed:[/] {escape(f'{attempt.variant}, seed {attempt.seed}: {attempt.error}')}", soft_wrap=True
            )
        elif attempt.skipped:
            where = f"{attempt.variant}, seed {attempt.seed}"
            console.print(f"[yellow]{attempt.skipped} skipped:[/] {escape(f'{where}: {attempt.report}')}")
    if left:
        console.print(f"[yellow]stopped:[/] {escape(left)}; the same command resumes", soft_wrap=True)


# -- the picture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of the picture: where its masks lie."""

    panel: str
    address: str
    stamps: str
    array: str = "mask_hw"


def draw(path: Path, variants: Sequence[Variant], attempts: Sequence[Attempt], sets: Sets, job: Job) -> dict[str, str]:
    """One row an image, one column a variant: its masks, right of the truth its predictions; by its first seed.

    Masks that several variants share are one column. A variant whose first seed is not done is left out.
    """
    cache = Path(job.options.cache)
    first = {(a.variant, a.seed): a for a in attempts if a.status == "done"}
    done = [(v, first[v.name, v.seeds[0]]) for v in variants if (v.name, v.seeds[0]) in first]
    if not done:
        return {}
    store = MaskStore(cache, readonly=True)
    manifests = {variant.name: RunFolder(cache, attempt.run).manifest() for variant, attempt in done}
    masks, students = _mask_columns(manifests), _prediction_columns(manifests)
    kinds: set[Kind] = set()
    for variant, _ in done:
        kinds |= weak_kinds(variant, sets, job.options)
    stamps = {column.stamps: read_stamps(cache, column.stamps) for column in (*masks, *students)}
    train, rows = sets.train, []
    for record in shown_records(train):
        key = train.key(record)
        panels = [(column, stamps[column.stamps].get(key, (None, ""))[0]) for column in (*masks, *students)]
        found = [(c, store.read(c.address, key, s, (c.array,))[c.array]) for c, s in panels if s is not None]
        try:
            rows.append(_row(record, [(c.panel, mask) for c, mask in found], kinds, len(train.classes)))
        except (DataError, OSError) as error:  # a broken image: its stages have skipped it, and its run has reported it
            log.warning("%s: %s left out: %s", path.name, record.image_id, error)
    if not rows:
        return {}
    pages = report.contact_sheet(rows, train.classes, path, last=[column.panel for column in students])
    return {"picture": ", ".join(str(page) for page in pages)}


def _mask_columns(manifests: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The flow's masks; equal ones once, under the first name and the number of the others."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, manifest in manifests.items():
        stage = next((stage for stage in manifest["stages"] if stage["label"] == manifest.get("masks")), None)
        if stage is None:
            continue
        names.setdefault((stage["address"], stage["stamps"]), []).append(name)
    panels = [f"masks: {first}{f' (+{len(others)})' if others else ''}" for first, *others in names.values()]
    return [Column(panel, *place) for panel, place in zip(panels, names, strict=True)]


def _prediction_columns(manifests: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The predictions for the shown images, without and (where there is one) with a CRF; pages may have none."""
    return [
        Column(f"{prediction}{ending}: {name}", stage["address"], stage["stamps"], array)
        for name, manifest in manifests.items()
        for prediction, label in manifest.get("predictions", {}).items()
        for stage in manifest["stages"]
        if stage["label"] == shown_label(label)
        for array, ending in MASKS.items()
        if array in stage["outputs"]
    ]


def _row(record: Record, masks: Sequence[tuple[str, MaskHW]], kinds: set[Kind], k: int) -> SheetRow:
    truth_hw = record.truth.load() if record.truth is not None else None
    seen = record.view(kinds)
    return SheetRow(
        title=record.image_id,
        image_rgb=read_image_rgb(Path(record.image)),
        panels=[Panel(n, mask, None if truth_hw is None else image_miou(mask, truth_hw, k)) for n, mask in masks],
        truth=truth_hw,
        boxes=seen.boxes or (),
        scribbles=seen.strokes,
        tags=seen.tags or (),
    )
