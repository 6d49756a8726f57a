"""What is shown while a run works: a bar per stage, or plain lines where there is no terminal."""

from __future__ import annotations

import logging
import os
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger("maskmill")


class Reporter(Protocol):
    """Receives progress from the Runner; calls may come from any thread."""

    def stage(self, label: str, total: int, cached: int, unit: str) -> None:
        """A stage begins: ``total`` images or iterations, ``cached`` of them done already."""

    def total(self, label: str, total: int) -> None:
        """The stage's total has become known."""

    def advance(self, label: str, completed: int, note: str = "") -> None:
        """``completed`` of the stage's total are done."""

    def done(self, label: str, note: str = "") -> None:
        """The stage has ended."""

    def close(self) -> None:
        """No more calls."""


class Silent:
    """Shows nothing."""

    def stage(self, label: str, total: int, cached: int, unit: str) -> None:
        """Nothing."""

    def total(self, label: str, total: int) -> None:
        """Nothing."""

    def advance(self, label: str, completed: int, note: str = "") -> None:
        """Nothing."""

    def done(self, label: str, note: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """One log line when a stage begins and ends, and every ``every_s`` seconds between: for nightly logs."""

    def __init__(self, every_s: float = 30.0) -> None:
        self._every_s = every_s
        if not log.isEnabledFor(logging.INFO) and "MASKMILL_LOG" not in os.environ:
            log.setLevel(logging.INFO)  # without a terminal these lines are the only sign of progress
        self._last: dict[str, float] = {}
        self._totals: dict[str, tuple[int, str]] = {}

    def stage(self, label: str, total: int, cached: int, unit: str) -> None:
        """Log the beginning."""
        self._totals[label] = (total, unit)
        self._last[label] = time.monotonic()
        if total:
            log.info("%s: %d of %d %s cached, %d to do", label, cached, total, unit, total - cached)
        else:
            log.info("%s: begins", label)

    def total(self, label: str, total: int) -> None:
        """Remember it."""
        self._totals[label] = (total, self._totals.get(label, (0, ""))[1])

    def advance(self, label: str, completed: int, note: str = "") -> None:
        """Log now and then."""
        now = time.monotonic()
        if now - self._last.get(label, 0.0) >= self._every_s:
            self._last[label] = now
            total, unit = self._totals.get(label, (0, ""))
            log.info("%s: %d of %d %s %s", label, completed, total, unit, note)

    def done(self, label: str, note: str = "") -> None:
        """Log the end."""
        log.info("%s: done %s", label, note)

    def close(self) -> None:
        """Nothing to close."""


class Bars:
    """A rich bar per stage."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console or Console(emoji=False, stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stage(self, label: str, total: int, cached: int, unit: str) -> None:
        """Add the stage's bar."""
        note = f"{cached} cached" if cached else ""
        self._tasks[label] = self._progress.add_task(label, total=total or None, completed=cached, unit=unit, note=note)

    def total(self, label: str, total: int) -> None:
        """Give the bar its length."""
        if label in self._tasks:
            self._progress.update(self._tasks[label], total=total)

    def advance(self, label: str, completed: int, note: str = "") -> None:
        """Move the bar."""
        if label in self._tasks:
            self._progress.update(self._tasks[label], completed=completed)
            self._note(label, note)

    def done(self, label: str, note: str = "") -> None:
        """Fill the bar and stop its clock."""
        if (task := self._tasks.get(label)) is not None:
            self._note(label, note)
            self._progress.stop_task(task)

    def _note(self, label: str, note: str) -> None:
        if note:
            self._progress.update(self._tasks[label], note=note)

    def close(self) -> None:
        """Leave the bars as they are and release the terminal."""
        self._progress.stop()
