"""``maskmill cache ls | show | verify | compact | rm``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from artifacts.cache.fit_listing import FitInfo, FitsRemoved
from artifacts.cache.store import MaskStore, StoreError
from artifacts.records import DataError
from flows.cli.terminal import terminal

T = TypeVar("T")
app = App(name="cache", help="List, inspect, check and clean up the mask cache.")
Root = Annotated[Path, Parameter(name="--cache", help="folder of the mask cache")]
NAMES = "addresses, fits (address/stamp), stage labels, or beginnings of addresses"
Names = Annotated[str, Parameter(help=f"{NAMES}; default: all")]
DEFAULT = Path("maskmill-cache")
SHOWN_KEYS = 20


@app.command
def ls(*, cache: Root = DEFAULT) -> int:
    """List every map stage's address with its images, bytes and age; then the fits and the runs."""
    from artifacts.cache import listing as tools
    from artifacts.cache.runs import list_runs
    from artifacts.report.html import duration

    store = _store(cache)
    table = Table(box=box.SIMPLE_HEAVY)
    for name in ("stage", "address", "images", "skipped", "segments", "size", "age"):
        table.add_column(name, justify="left" if name in ("stage", "address") else "right", overflow="fold")
    for info in tools.list_addresses(store):
        damaged = f" [red]({info.corrupt} damaged, put aside)[/]" if info.corrupt else ""
        table.add_row(
            escape(info.label or info.stage) + damaged,
            info.address,
            str(info.images),
            str(info.skipped),
            str(info.segments),
            size(info.bytes),
            duration(info.age_s),
        )
    console = terminal()
    console.print(table)
    if fits := tools.list_fits(cache):
        console.print(_fits_table(fits))
    for run in list_runs(cache)[-10:]:
        manifest = run.manifest()
        console.print(f"run {run.run_id}: {manifest['status']}, {duration(manifest['seconds'])}", highlight=False)
    return 0


def _fits_table(fits: Sequence[FitInfo]) -> Table:
    """A fit that is listed as unfinished resumes from its checkpoint when a run needs it."""
    from artifacts.report.html import duration

    table = Table(box=box.SIMPLE_HEAVY)
    for name in ("fit", "address/stamp", "published", "unfinished", "size", "age"):
        table.add_column(name, justify="left" if name in ("fit", "address/stamp") else "right", overflow="fold")
    for fit in fits:
        unfinished = size(fit.work_bytes) + (", stale" if fit.stale_work else "") if fit.work_bytes else ""
        published = str(len(fit.publications))
        table.add_row(escape(fit.label), fit.name, published, unfinished, size(fit.bytes), duration(fit.age_s))
    return table


@app.command
def show(
    name: Annotated[str, Parameter(help="an address, its beginning, or a stage's label")],
    /,
    *,
    cache: Root = DEFAULT,
    key: Annotated[str | None, Parameter(help="with --out: the image, DATASET/IMAGE_ID")] = None,
    out: Annotated[Path | None, Parameter(help="write the image's mask here, as a PNG with a palette")] = None,
) -> int:
    """Show one stage's arrays, keys and runs; or write one image's mask as a picture."""
    from artifacts.cache import listing as tools
    from artifacts.datasets.voc_writer import voc_palette

    if (key is None) != (out is None):
        raise DataError("--key and --out go together: the image, and the file that shows its mask")
    store = _store(cache)
    console = terminal(highlight=False)
    for address in _known(tools.resolve, store, [name]):
        if key is not None and out is not None:
            array = tools.save_picture(store, address, key, out, voc_palette().tolist())
            console.print(f"{escape(key)} ({array}) -> {escape(str(out))}", soft_wrap=True)
            continue
        detail = tools.show(store, address)
        console.print(f"[bold]{address}[/]  {size(detail.info.bytes)}, {detail.info.segments} segments, {detail.codec}")
        for array, what in detail.arrays.items():
            console.print(f"  {array}: {what}")
        for entry in detail.entries[:SHOWN_KEYS]:
            result = f"skipped: {entry.reason}" if entry.output is None else entry.output[:12]
            console.print(f"  {escape(entry.key)}  stamp {entry.stamp[:12]}  {escape(result)}", soft_wrap=True)
        if len(detail.entries) > SHOWN_KEYS:
            console.print(f"  ... and {len(detail.entries) - SHOWN_KEYS} more")
        console.print(f"  used by {', '.join(detail.runs) or 'no run'}", soft_wrap=True)
    return 0


@app.command
def verify(
    *names: Names,
    cache: Root = DEFAULT,
    repair: Annotated[bool, Parameter(help="put aside what is damaged, keep its sound images", negative=())] = False,
) -> int:
    """Read every array, every fit's weights and every record against their checksums; exit code 1 if one is damaged."""
    from artifacts.cache import listing as tools

    store = _store(cache)
    addresses, fits = _wanted(store, names)
    with _bar() as progress:
        report = tools.verify(store, addresses, repair=repair, progress=progress)
        sound, damaged = tools.verify_fits(fits)
    records, unsealed, aside = (0, [], []) if names else tools.verify_records(cache, repair=repair)
    console = terminal(highlight=False)
    for problem in [*report.problems, *damaged, *unsealed]:
        console.print(
            f"[red]{escape(str(problem.segment))}[/] {escape(problem.key or '')}: {escape(problem.what)}",
            soft_wrap=True,
        )
    for path in report.busy:
        console.print(
            f"{escape(str(path))}: busy, another program has it open for writing; its arrays are as written",
            soft_wrap=True,
        )
    problems = len(report.problems) + len(damaged) + len(unsealed)
    console.print(
        f"{report.segments} segments, {report.images} images as written, {sound} fits as published,"
        f" {records} records as written, {problems} problems",
        soft_wrap=True,
    )
    if damaged:
        console.print("damaged fits are never used: the next run that needs one fits again")
    for path in report.quarantined:
        console.print(f"put aside: {escape(str(path))}; the next run computes its damaged images again", soft_wrap=True)
    for path in aside:
        console.print(f"put aside: {escape(str(path))}", soft_wrap=True)
    if (report.problems or unsealed) and not repair:
        console.print(
            f"`maskmill cache verify --repair --cache {escape(shlex.quote(str(cache)))}` puts what is damaged aside,"
            " so that the next run makes it again",
            soft_wrap=True,
        )
    return 0 if report.ok and not damaged and len(aside) == len(unsealed) else 1


@app.command
def compact(*names: Names, cache: Root = DEFAULT) -> int:
    """Merge small segments, keeping every image of every stamp; remove superseded publications and abandoned fits."""
    from artifacts.cache import listing as tools

    store = _store(cache)
    addresses, fits = _wanted(store, names)
    with _bar() as progress:
        report = tools.compact(store, addresses, progress=progress)
    gone = tools.compact_fits(cache, fits)
    before, after = size(report.bytes_before), size(report.bytes_after)
    console = terminal(highlight=False)
    console.print(
        f"fits: {gone.publications} superseded publications and {gone.works} abandoned checkpoints removed,"
        f" {size(gone.bytes)}"
    )
    _say_busy(gone, console)
    console.print(
        f"{report.segments_before} segments, {before} -> {report.segments_after}, {after};"
        f" {report.entries} entries kept, {len(report.problems)} segments unchanged because they cannot be read"
    )
    return 1 if report.problems else 0


@app.command
def rm(
    names: Annotated[list[str], Parameter(help=NAMES, negative=())],
    /,
    *,
    cache: Root = DEFAULT,
    dry_run: Annotated[bool, Parameter(help="only list what would be removed", negative=())] = False,
) -> int:
    """Remove whole stages or fits; a run that needs them computes them again."""
    from artifacts.cache import listing as tools

    store = _store(cache)
    addresses, fits = _known(tools.resolve_all, store, names)
    gone = tools.remove_fits(cache, fits, dry_run=dry_run)
    report = tools.remove(store, addresses, dry_run=dry_run)
    console = terminal(highlight=False)
    done = "would remove" if dry_run else "removed"
    for info in report.addresses:
        console.print(f"{done} {info.address}: {info.images} images, {size(info.bytes)}", soft_wrap=True)
    for fit in gone.fits:
        what = f"{len(fit.publications)} publications" + (", an unfinished fit" if fit.work_bytes else "")
        console.print(f"{done} {fit.name}: {what}, {size(fit.bytes)}", soft_wrap=True)
    _say_busy(gone, console)
    if runs := sorted({*report.runs, *gone.runs}):
        console.print(f"used by {', '.join(runs)}: export or compare them before, or run them again", soft_wrap=True)
    return 1 if gone.busy else 0


def _say_busy(gone: FitsRemoved, console: Console) -> None:
    for name in gone.busy:
        console.print(f"[yellow]{name} is kept[/]: a run is using it", soft_wrap=True)


def size(count: float) -> str:
    """A byte count in readable units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _store(cache: Path) -> MaskStore:
    if not cache.is_dir():
        raise DataError(
            f"--cache {cache}: no such folder; a run makes it, e.g. `maskmill cfs --data demo --cache {cache}`"
        )
    return MaskStore(cache)


def _known(find: Callable[[MaskStore, Iterable[str]], T], store: MaskStore, names: Iterable[str]) -> T:
    """Resolve ``names``; an unknown name is wrong usage."""
    try:
        return find(store, names)
    except StoreError as error:
        raise DataError(str(error)) from error


def _wanted(store: MaskStore, names: Sequence[str]) -> tuple[list[str] | None, list[FitInfo]]:
    """Addresses (``None``: all) and fits."""
    from artifacts.cache import listing as tools

    return _known(tools.resolve_all, store, names) if names else (None, tools.list_fits(store.root))


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    with Progress(console=terminal(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def moved(address: str, done: int, total: int) -> None:
            progress.update(task, description=address, completed=done, total=total)

        yield moved
