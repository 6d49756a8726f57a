"""``maskmill status``: what runs now and how far it is, the last good run, the disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from artifacts.records import DataError
from artifacts.report.html import duration
from flows.cli.cache_tables import print_json, size
from flows.cli.runs_tables import again, ended_at, outcome_line, scores_line
from flows.cli.terminal import terminal

SILENT_S = 600.0
"""From so many seconds without progress on, it is said."""
LITTLE_FREE = 0.05
"""Share of the disk below which free space is a warning."""


def status(
    *,
    cache: Annotated[Path, Parameter(name="--cache", help="folder of the mask cache")] = Path("maskmill-cache"),
    json: Annotated[bool, Parameter(name="--json", help="print JSON", negative=())] = False,
) -> int:
    """Say what runs now, at which stage, how far and how long; the last good run; disk use. Changes nothing.

    Exit code 1 if the newest run that is over failed or was killed.
    """
    from artifacts.cache.run_status import status as look

    if not cache.is_dir():
        raise DataError(f"--cache {cache}: no such folder; a run makes it, e.g. `maskmill cfs --data demo`")
    found = look(cache)
    code = 0 if found.last is None or found.last.good or found.last.outcome == "interrupted" else 1
    if json:
        print_json(found)
        return code
    console = terminal(highlight=False, soft_wrap=True)
    for one in found.working:
        _working(one, console)
    if not found.working:
        console.print("nothing runs now")
    if found.cleaning:
        console.print("`maskmill cache gc` is at work: a run that begins waits for it")
    own = {f"{stage['address']}" for one in found.working for stage in _plan(cache, one)}
    for name in found.fits:
        if name.partition("/")[0] not in own:
            console.print(f"a fit of no run that works here is under way: {escape(name)}")
    for dead in found.killed:
        where = f", in {dead.stage}" if dead.stage else ""
        rest = f"To go on: {again(dead)}" if dead.command else f"Its log: {dead.log}"
        console.print(
            f"[yellow]{escape(dead.run)} was killed[/] ({escape(dead.process or 'process unknown')}, last sign of life"
            f" {ended_at(dead)}{escape(where)}); its lock is free. {escape(rest)}"
        )
    if found.last is not None and found.last.outcome != "killed":
        console.print(f"last run: {escape(outcome_line(found.last))}")
    if found.good is None:
        console.print("last good run: none yet")
    else:
        good = found.good
        what = scores_line(good.scores)
        age = duration(max(0.0, time.time() - good.started - good.seconds))
        console.print(
            f"last good run: {escape(good.run)}, ended {ended_at(good)} ({age} ago){f', {what}' if what else ''}"
        )
    _disk(found, console)
    return code


def _plan(cache: Path, one: Any) -> Any:
    from artifacts.cache.runs import RunFolder

    return RunFolder(cache, one.facts.run).progress().get("plan", ())


def _working(one: Any, console: Console) -> None:
    done, total = one.stages
    where = (
        f"{one.phase}" if one.phase != "works" else f"{one.stage or 'between stages'} ({done + 1} of {total} stages)"
    )
    if one.phase == "ends":
        where = "scores, pictures, exports"
    parts = [f"[bold]{escape(one.facts.run)} runs[/], {duration(one.facts.seconds)}: {escape(where)}"]
    if one.total:
        parts.append(f"{one.done:,} of {one.total:,} {one.unit}")
    if one.note:
        parts.append(escape(one.note))
    if one.eta_s is not None:
        at = time.strftime("%H:%M", time.localtime(time.time() + one.eta_s))
        parts.append(f"about {duration(one.eta_s)} to go (until {at})")
    if one.unknown:
        parts.append(f"not timed yet: {escape(', '.join(one.unknown))}")
    if one.silent_s > SILENT_S:
        parts.append(f"[yellow]no progress for {duration(one.silent_s)}[/]")
    console.print(", ".join(parts))
    console.print(f"  {escape(one.facts.process)}; log: {escape(one.facts.log)}")


def _disk(found: Any, console: Console) -> None:
    most = sorted(found.bytes.items(), key=lambda item: -item[1])[:4]
    shown = ", ".join(f"{escape(name)} {size(count)}" for name, count in most)
    console.print(f"cache {escape(found.cache)}: {size(sum(found.bytes.values()))} ({shown})")
    low = found.free < LITTLE_FREE * found.disk
    text = f"disk: {size(found.free)} of {size(found.disk)} free"
    console.print(f"[yellow]{text}: `maskmill cache gc`, `maskmill cache compact`[/]" if low else text)
