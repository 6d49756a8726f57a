"""What goes on in a cache: runs that work, runs that were killed, the last good one, the disk. For `maskmill status`.

Nothing is written and no lock is held: it may be called at any time. A run lives if a process holds its lock; whoever
was killed holds none.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.cache import locks
from artifacts.cache.gc import usage
from artifacts.cache.run_history import RunFacts, facts
from artifacts.cache.runs import IN_USE, RunFolder, all_runs, last_good

LOOKED_AT = 200
"""Runs that are looked at for killed ones."""


@dataclass(frozen=True)
class Working:
    """A run that works now."""

    facts: RunFacts
    phase: str
    """``reads the data``, ``plans``, ``works`` (then ``stage`` says at what), ``ends`` (scores, pictures, exports)."""
    stage: str
    done: int
    total: int
    unit: str
    note: str
    """What it waits for, or the loss."""
    stages: tuple[int, int]
    """How many of its stages are done, of how many."""
    eta_s: float | None
    """Seconds to its end; ``None``: not known."""
    unknown: tuple[str, ...]
    """Stages to come whose time nobody knows: ``eta_s`` is without them."""
    silent_s: float
    """Since it last said how far it is."""


@dataclass(frozen=True)
class Status:
    """See the module's text."""

    cache: str
    working: tuple[Working, ...]
    killed: tuple[RunFacts, ...]
    """Killed since the last run that came to an end; the same command goes on."""
    fits: tuple[str, ...]
    """Fits (``address/stamp``) that some process does now."""
    cleaning: bool
    """A clean-up is under way: runs that begin wait for it."""
    last: RunFacts | None
    """The newest run that is over."""
    good: RunFacts | None
    """The newest that came to a good end."""
    bytes: Mapping[str, int]
    """What lies in the cache -> bytes."""
    free: int
    """Bytes on its disk."""
    disk: int


def status(cache: Path) -> Status:
    """All of it. Raises ``OSError`` where there is no such folder."""
    disk = shutil.disk_usage(cache)
    runs = all_runs(cache)
    live = [run for run in runs if run.live]
    over = [run for run in runs if run not in live]
    killed: list[RunFacts] = []
    last: RunFacts | None = None
    for run in reversed(over[-LOOKED_AT:]):
        found = facts(run)
        last = last or found
        if found.outcome != "killed":
            break
        killed.append(found)
    good = last_good(over)
    return Status(
        str(cache),
        tuple(working(run) for run in live),
        tuple(killed),
        tuple(sorted(f"{p.parent.parent.name}/{p.parent.name}" for p in cache.glob("fits/*/*/lock") if locks.held(p))),
        locks.held(cache / IN_USE),
        last,
        None if good is None else facts(good),
        usage(cache),
        disk.free,
        disk.total,
    )


def working(run: RunFolder, now: float | None = None) -> Working:
    """How far a run is, by its ``progress.json``. ``now``: seconds since the epoch."""
    now = time.time() if now is None else now
    progress = run.progress()
    stages: Mapping[str, Mapping[str, Any]] = progress.get("stages", {})
    plan: Sequence[Mapping[str, Any]] = progress.get("plan", ())
    label = str(progress.get("stage", ""))
    one = stages.get(label, {})
    ended = [name for name, stage in stages.items() if stage.get("ended") is not None]
    phase = str(progress.get("phase", "begins"))
    if phase == "works" and not label and len(ended) >= len(plan):
        phase = "ends"
    left, unknown = _left(plan, stages, label, now)
    return Working(
        facts(run),
        phase,
        label,
        int(one.get("done", 0)),
        int(one.get("total", 0)),
        str(one.get("unit", "")),
        str(one.get("note", "")),
        (len(ended), max(len(plan), len(stages))),
        left if plan else None,
        tuple(unknown),
        max(0.0, now - float(progress.get("updated", now))),
    )


def _left(
    plan: Sequence[Mapping[str, Any]], stages: Mapping[str, Mapping[str, Any]], label: str, now: float
) -> tuple[float | None, list[str]]:
    """Seconds to the end of all stages, and those of which nobody knows; ``None`` if the present one is among them."""
    seconds, unknown = 0.0, []
    for planned in plan:
        name, estimate = str(planned["label"]), planned.get("estimate_s")
        stage = stages.get(name)
        if stage is not None and stage.get("ended") is not None:
            continue
        if stage is not None and (by_pace := _by_pace(stage, now)) is not None:
            seconds += by_pace
        elif not planned.get("to_do"):
            continue
        elif estimate is None:
            unknown.append(name)
        else:
            begun = now - float(stage["began"]) if stage is not None else 0.0
            seconds += max(0.0, float(estimate) - begun)
    return (None if label in unknown or (unknown and not seconds) else seconds), unknown


def _by_pace(stage: Mapping[str, Any], now: float) -> float | None:
    """Seconds that the rest of a stage takes at the pace since its first result; ``None`` before there is one."""
    first, done, total = stage.get("first"), int(stage.get("done", 0)), int(stage.get("total", 0))
    if not first or done <= first[1] or not total:
        return None
    return max(0.0, (now - float(first[0])) / (done - int(first[1])) * (total - done))
