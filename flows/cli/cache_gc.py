"""``maskmill cache gc``: remove what the kept runs do not reach; listed first, asked about unless ``--yes``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from artifacts.records import DataError
from flows.cli.cache_tables import print_json, size
from flows.cli.terminal import terminal

KEEP_RUNS = 10
SHOWN_RUNS = 10
WORDS = {
    "run": "runs' folders (log, manifest, report)",
    "images": "segments with results of images",
    "fit": "fits",
    "old publications": "fits' superseded publications and abandoned checkpoints",
    "file": "damaged or left-over files, lists that no run names",
}
UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


def gc(
    *,
    cache: Annotated[Path, Parameter(name="--cache", help="folder of the mask cache")] = Path("maskmill-cache"),
    keep_runs: Annotated[
        int | None, Parameter(help=f"newest runs to keep, of each flow and data set; default {KEEP_RUNS}")
    ] = None,
    keep_days: Annotated[float | None, Parameter(help="keep runs of so many days, and the newest in any case")] = None,
    max_size: Annotated[
        str, Parameter(help="remove no more than it takes to get below, the oldest first: 20GB, 500MB")
    ] = "",
    drop_runs: Annotated[
        bool,
        Parameter(help="where --max-size needs it, let the oldest kept runs go, too, but the newest", negative=()),
    ] = False,
    dry_run: Annotated[bool, Parameter(help="only list what would be removed", negative=())] = False,
    yes: Annotated[bool, Parameter(help="do not ask", negative=())] = False,
    json: Annotated[bool, Parameter(name="--json", help="print JSON", negative=())] = False,
) -> int:
    """Remove what no kept run reaches: old runs, images' results, fits, damaged files. Safe beside a running flow.

    Exit code 1 if something is kept because it is in use, cannot be read, or is needed above --max-size.
    """
    from artifacts.cache import gc as tools
    from artifacts.cache.store import MaskStore

    rules: dict[str, Any] = {
        "keep_runs": _runs(keep_runs, keep_days),
        "keep_days": keep_days,
        "max_bytes": parse_size(max_size) if max_size else None,
        "drop_runs": drop_runs,
    }
    if drop_runs and not max_size:
        raise DataError("--drop-runs says what may go for --max-size: give that, too")
    if not cache.is_dir():
        raise DataError(f"--cache {cache}: no such folder; a run makes it, e.g. `maskmill cfs --data demo`")
    console = terminal(highlight=False, soft_wrap=True)
    store = MaskStore(cache)
    if dry_run or not yes:
        found = tools.find(store, **rules)
        if json and dry_run:
            print_json(_plain(found))
        else:
            _say(found, "would remove", console)
        if dry_run:
            return 1 if found.over else 0
        if not found.items:
            return 1 if found.over else 0
        _ask(console)

    def on_wait(holder: str) -> None:
        terminal(stderr=True).print(f"waits for a run that begins, or a script that uses this cache ({escape(holder)})")

    with tools.alone(cache, on_wait):
        done = tools.clean(store, tools.find(store, **rules))
    if json:
        print_json(
            _plain(done.garbage) | {"bytes_after": done.bytes_after, "busy": done.busy, "problems": done.problems}
        )
    else:
        _say(done.garbage, "removed", console)
        console.print(f"the cache has {size(done.bytes_after)} now, {size(done.garbage.bytes_before)} before")
        for name in done.busy:
            console.print(f"[yellow]{escape(name)} is kept[/]: somebody uses it")
        for problem in done.problems:
            console.print(f"[red]{escape(str(problem.segment))}[/] is kept: {escape(problem.what)}")
    return 1 if done.busy or done.problems or done.garbage.over else 0


def _runs(keep_runs: int | None, keep_days: float | None) -> int:
    if keep_runs is not None and keep_runs < 1:
        raise DataError(f"--keep-runs {keep_runs}: at least 1; to remove a whole cache, remove its folder")
    if keep_days is not None and keep_days < 0:
        raise DataError(f"--keep-days {keep_days:g}: a number of days, 0 or more")
    return keep_runs or (KEEP_RUNS if keep_days is None else 1)


def parse_size(text: str) -> int:
    """``20GB``, ``1.5 TB``, ``500kB``, ``1000`` as bytes; units of 1000. Raises :class:`DataError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if found is None:
        raise DataError(f"--max-size {text}: a number and kB, MB, GB or TB, such as 20GB")
    return int(float(found[1]) * UNITS[found[2]])


def _plain(found: Any) -> dict[str, Any]:
    names = ("kept", "live", "items", "spared", "bytes_before", "bytes", "over")
    return {name: getattr(found, name) for name in names}


def _say(found: Any, done: str, console: Console) -> None:
    from artifacts.cache.gc import by_kind

    for kind, (count, images, taken) in by_kind(found.items).items():
        what = f" ({images:,} images)" if images else ""
        console.print(f"{done} {count:,} {WORDS[kind]}{what}: {size(taken)}")
    gone = [item.name for item in found.items if item.kind == "run"]
    if gone:
        more = f" and {len(gone) - SHOWN_RUNS} more" if len(gone) > SHOWN_RUNS else ""
        console.print(f"runs: {', '.join(map(escape, gone[:SHOWN_RUNS]))}{more}")
    if not found.items:
        console.print("nothing to remove: all that is there is reached by the runs that are kept")
    spared = f"; {size(sum(item.bytes for item in found.spared))} of it unreached" if found.spared else ""
    console.print(f"runs kept: {len(found.kept)}{spared}; about {size(found.bytes)} of {size(found.bytes_before)} go")
    if found.live:
        console.print(f"running now, all of its plan is kept: {', '.join(map(escape, found.live))}")
    if found.over:
        console.print(
            f"[yellow]{size(found.over)} above --max-size stay[/]: the kept runs reach them; fewer --keep-runs,"
            " or --drop-runs"
        )


def _ask(console: Console) -> None:
    """Raise :class:`DataError` unless somebody at the terminal says yes."""
    if not sys.stdin.isatty():
        raise DataError("nothing was removed: give --yes")
    if console.input("Remove all that is listed? \\[y/N] ").strip().lower() not in ("y", "yes"):
        raise DataError("nothing was removed")
