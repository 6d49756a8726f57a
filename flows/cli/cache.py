"""``maskmill cache ls | show | verify | compact | rm | gc``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from artifacts.cache.compact import Progress as Moved
from artifacts.cache.fit_listing import FitInfo, FitsRemoved
from artifacts.cache.store import MaskStore, StoreError
from artifacts.records import DataError
from flows.cli.terminal import terminal

app = App(name="cache", help="List, inspect, check and clean up the mask cache.")
app.command("flows.cli.cache_gc:gc", name="gc", help="Remove what no kept run reaches.")
Root = Annotated[Path, Parameter(name="--cache", help="folder of the mask cache")]
Json = Annotated[bool, Parameter(name="--json", help="print JSON", negative=())]
NAMES = "addresses, fits (address/stamp), stage labels, or beginnings of addresses"
Names = Annotated[str, Parameter(help=f"{NAMES}; default: all")]
DEFAULT = Path("maskmill-cache")
SHOWN_KEYS = 20
SHOWN_RUNS = 10


@app.command
def ls(*, cache: Root = DEFAULT, json: Json = False) -> int:
    """List every map stage's address with its images, bytes, age and runs; then the fits and the newest runs.

    On a narrow terminal the beginnings of addresses are shown, each long enough to name its address.
    """
    from artifacts.cache import listing as tools
    from artifacts.cache.run_history import facts
    from artifacts.cache.runs import all_runs, users
    from flows.cli import cache_tables as show
    from flows.cli.runs_tables import outcome_line

    store = _store(cache)
    stages, fits, runs = tools.list_addresses(store), tools.list_fits(cache), all_runs(cache)
    used = users(cache)
    if json:
        of_stages = [{**show.plain(info), "used_by": used.get(info.address, [])} for info in stages]
        of_fits = [{**_fit_as_plain(fit), "used_by": used.get(fit.name, [])} for fit in fits]
        show.print_json({"stages": of_stages, "fits": of_fits, "runs": list(map(facts, runs))})
        return 0
    console = terminal(width=None if sys.stdout.isatty() else show.UNFOLDED)
    console.print(show.stages_table(stages, used, console))
    if fits:
        console.print(show.fits_table(fits, used, console))
    for run in runs[-SHOWN_RUNS:]:
        console.print(escape(f"run {outcome_line(facts(run))}"), highlight=False, soft_wrap=True)
    return 0


@app.command
def show(
    name: Annotated[str, Parameter(help="an address, its beginning, a fit (address/stamp), or a stage's label")],
    /,
    *,
    cache: Root = DEFAULT,
    key: Annotated[str | None, Parameter(help="with --out: the image, DATASET/IMAGE_ID")] = None,
    out: Annotated[Path | None, Parameter(help="write the image's mask here, as a PNG with a palette")] = None,
    json: Json = False,
) -> int:
    """Show a stage's arrays, keys and runs, or a fit's publications; or write one image's mask as a picture."""
    from artifacts.cache import listing as tools
    from artifacts.cache.atomic import check_file_writable
    from artifacts.cache.runs import users
    from artifacts.datasets.voc_writer import voc_palette
    from flows.cli.cache_tables import print_json

    if (key is None) != (out is None):
        raise DataError("--key and --out go together: the image, and the file that shows its mask")
    check_file_writable("out", out)
    store = _store(cache)
    console = terminal(highlight=False)
    addresses, fits = _known(store, [name])
    if key is not None and out is not None:
        if len(addresses) != 1:
            there = f": {', '.join(addresses)}" if addresses else ""
            raise DataError(f"{name}: means {len(addresses)} stages with masks, --out takes one{there}")
        array = tools.save_picture(store, addresses[0], key, out, voc_palette().tolist())
        console.print(f"{escape(key)} ({array}) -> {escape(str(out))}", soft_wrap=True)
        return 0
    details = [tools.show(store, address) for address in addresses]
    if json:
        print_json({"stages": details, "fits": [_fit_as_plain(fit) for fit in fits]})
        return 0
    for detail in details:
        _print_stage(detail, console)
    used = users(cache)
    for fit in fits:
        _print_fit(fit, used.get(fit.name, ()), console)
    return 0


def _print_stage(detail: Any, console: Console) -> None:
    from flows.cli.cache_tables import size

    info = detail.info
    console.print(f"[bold]{info.address}[/]  {size(info.bytes)}, {info.segments} segments, {detail.codec}")
    for array, what in detail.arrays.items():
        console.print(f"  {array}: {what}")
    for entry in detail.entries[:SHOWN_KEYS]:
        result = f"skipped: {entry.reason}" if entry.output is None else entry.output[:12]
        console.print(f"  {escape(entry.key)}  stamp {entry.stamp[:12]}  {escape(result)}", soft_wrap=True)
    if len(detail.entries) > SHOWN_KEYS:
        console.print(f"  ... and {len(detail.entries) - SHOWN_KEYS} more")
    console.print(f"  used by {', '.join(detail.runs) or 'no run'}", soft_wrap=True)


def _print_fit(fit: FitInfo, runs: Sequence[str], console: Console) -> None:
    from flows.cli.cache_tables import size

    console.print(f"[bold]{fit.name}[/]  {size(fit.bytes)}{f', {escape(fit.label)}' if fit.label else ''}")
    for one in fit.publications:
        facts = {"images": len(one.members), **{name: one.info.get(name) for name in ("iterations", "seed", "device")}}
        about = ", ".join(f"{value} {name}" for name, value in facts.items() if value is not None)
        console.print(f"  {escape(str(one.weights))}: {escape(about)}", soft_wrap=True)
    if fit.work_bytes:
        console.print(f"  unfinished: {size(fit.work_bytes)} of checkpoints")
    console.print(f"  used by {', '.join(runs) or 'no run'}", soft_wrap=True)


def _fit_as_plain(fit: FitInfo) -> dict[str, Any]:
    return {
        "name": fit.name,
        "label": fit.label,
        "bytes": fit.bytes,
        "work_bytes": fit.work_bytes,
        "age_s": fit.age_s,
        "publications": [{"weights": p.weights, "images": len(p.members), "info": p.info} for p in fit.publications],
    }


@app.command
def verify(
    *names: Names,
    cache: Root = DEFAULT,
    repair: Annotated[bool, Parameter(help="put aside what is damaged, keep its sound images", negative=())] = False,
    json: Json = False,
) -> int:
    """Read every array, every fit's weights and every record against their checksums; exit code 1 if one is damaged."""
    from artifacts.cache import listing as tools
    from flows.cli.cache_tables import print_json

    store = _store(cache)
    addresses, fits = _wanted(store, names)
    with _bar() as progress:
        report = tools.verify(store, addresses, repair=repair, progress=progress)
        sound, damaged = tools.verify_fits(fits)
    records, unsealed, aside = (0, [], []) if names else tools.verify_records(cache, repair=repair)
    found = [*report.problems, *damaged, *unsealed]
    code = 0 if report.ok and not damaged and len(aside) == len(unsealed) else 1
    if json:
        sound_ones = {"segments": report.segments, "images": report.images, "fits": sound, "records": records}
        faults = {"problems": found, "put_aside": [*report.quarantined, *aside], "busy": report.busy}
        faults["resealed"] = report.resealed
        print_json({"ok": not code, **sound_ones, **faults})
        return code
    console = terminal(highlight=False, soft_wrap=True)
    for problem in found:
        console.print(f"[red]{escape(str(problem.segment))}[/] {escape(problem.key or '')}: {escape(problem.what)}")
    for path in report.busy:
        console.print(f"{escape(str(path))}: busy, another program has it open for writing; its arrays are as written")
    console.print(
        f"{report.segments} segments, {report.images} images as written, {sound} fits as published,"
        f" {records} records as written, {len(found)} problems"
    )
    if damaged:
        console.print("damaged fits are never used: the next run that needs one fits again")
    for path in report.resealed:
        console.print(f"sealed again: {escape(str(path))}; another program had cut its footer off, nothing else")
    for path in report.quarantined:
        console.print(f"put aside: {escape(str(path))}; the next run computes its damaged images again")
    for path in aside:
        console.print(f"put aside: {escape(str(path))}")
    if (report.problems or unsealed) and not repair:
        console.print(
            f"`maskmill cache verify --repair --cache {escape(shlex.quote(str(cache)))}` puts what is damaged aside,"
            " so that the next run makes it again"
        )
    return code


@app.command
def compact(*names: Names, cache: Root = DEFAULT, json: Json = False) -> int:
    """Merge small segments, keeping every image of every stamp; remove superseded publications and abandoned fits."""
    from artifacts.cache import listing as tools
    from flows.cli.cache_tables import print_json, size

    store = _store(cache)
    addresses, fits = _wanted(store, names)
    with _bar() as progress:
        report = tools.compact(store, addresses, progress=progress)
    gone = tools.compact_fits(cache, fits)
    code = 1 if report.problems else 0
    if json:
        print_json({"segments": report, "fits": _gone_as_plain(gone)})
        return code
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
    return code


@app.command
def rm(
    names: Annotated[list[str], Parameter(help=NAMES, negative=())],
    /,
    *,
    cache: Root = DEFAULT,
    dry_run: Annotated[bool, Parameter(help="only list what would be removed", negative=())] = False,
    yes: Annotated[bool, Parameter(help="do not ask", negative=())] = False,
    json: Json = False,
) -> int:
    """Remove whole stages or fits; a run that needs them computes them again.

    What a name stands for that is a beginning, or means several things, is listed, and asked about before it goes.
    """
    from artifacts.cache import listing as tools
    from flows.cli.cache_tables import print_json

    store = _store(cache)
    addresses, fits = _known(store, names)
    console = terminal(highlight=False, soft_wrap=True)
    vague = tools.vague(store, names)
    planned = tools.remove(store, addresses, dry_run=True), tools.remove_fits(cache, fits, dry_run=True)
    if dry_run or (vague and not yes):
        if json and dry_run:
            print_json({"stages": planned[0], "fits": _gone_as_plain(planned[1])})
        else:
            _say_removed(*planned, "would remove", console)
        if dry_run:
            return 0
        _ask(vague, len(addresses) + len(fits), console)
    gone = tools.remove_fits(cache, fits)
    report = tools.remove(store, addresses)
    if json:
        print_json({"stages": report, "fits": _gone_as_plain(gone)})
    else:
        _say_removed(report, gone, "removed", console)
    return 1 if gone.busy else 0


def _ask(vague: Sequence[str], count: int, console: Console) -> None:
    """Raise :class:`DataError` unless somebody at the terminal says yes."""
    means = f"{', '.join(map(repr, vague))}: not the whole name of one thing, but the beginning or the label of {count}"
    if not sys.stdin.isatty():
        raise DataError(f"{means}; nothing was removed: give whole names, or --yes")
    if console.input(f"{escape(means)}. Remove all that is listed? \\[y/N] ").strip().lower() not in ("y", "yes"):
        raise DataError("nothing was removed")


def _say_removed(report: Any, gone: FitsRemoved, done: str, console: Console) -> None:
    from flows.cli.cache_tables import size

    for info in report.addresses:
        console.print(f"{done} {info.address}: {info.images} images, {size(info.bytes)}")
    for fit in gone.fits:
        what = f"{len(fit.publications)} publications" + (", an unfinished fit" if fit.work_bytes else "")
        console.print(f"{done} {fit.name}: {what}, {size(fit.bytes)}")
    _say_busy(gone, console)
    if runs := sorted({*report.runs, *gone.runs}):
        console.print(f"used by {', '.join(runs)}: export or compare them before, or run them again")


def _gone_as_plain(gone: FitsRemoved) -> dict[str, Any]:
    return {
        "fits": [fit.name for fit in gone.fits],
        "runs": gone.runs,
        "publications": gone.publications,
        "works": gone.works,
        "bytes": gone.bytes,
        "busy": gone.busy,
    }


def _say_busy(gone: FitsRemoved, console: Console) -> None:
    for name in gone.busy:
        console.print(f"[yellow]{name} is kept[/]: a run is using it", soft_wrap=True)


def _store(cache: Path) -> MaskStore:
    if not cache.is_dir():
        raise DataError(
            f"--cache {cache}: no such folder; a run makes it, e.g. `maskmill cfs --data demo --cache {cache}`"
        )
    return MaskStore(cache)


def _known(store: MaskStore, names: Sequence[str]) -> tuple[list[str], list[FitInfo]]:
    """Addresses and fits; an unknown name is wrong usage."""
    from artifacts.cache import listing as tools

    try:
        return tools.resolve_all(store, names)
    except StoreError as error:
        raise DataError(str(error)) from error


def _wanted(store: MaskStore, names: Sequence[str]) -> tuple[list[str] | None, list[FitInfo]]:
    """Addresses (``None``: all) and fits."""
    from artifacts.cache import listing as tools

    return _known(store, names) if names else (None, tools.list_fits(store.root))


@contextmanager
def _bar() -> Iterator[Moved]:
    with Progress(console=terminal(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def moved(address: str, done: int, total: int) -> None:
            progress.update(task, description=address, completed=done, total=total)

        yield moved
