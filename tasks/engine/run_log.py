"""What a run leaves while it works: ``run.log`` for people, ``progress.json`` for `maskmill status`.

A reporter that passes everything on to another one. It costs a look at the clock a call; a file is written every few
seconds at most, by whichever thread reports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from artifacts.cache.runs import RunFolder
from tasks.engine.progress import Reporter, Silent
from tasks.engine.stage_report import StageReport

log = logging.getLogger("maskmill")


@dataclass
class _Stage:
    """One stage, as far as it is."""

    unit: str
    total: int
    cached: int
    began: float = field(default_factory=time.time)
    ended: float | None = None
    done: int = 0
    note: str = ""
    first: tuple[float, int] | None = None
    """When the first work was reported, and how much was done by then (a fit that resumes begins in the middle)."""
    written: float = field(default_factory=time.monotonic)


class _Handler(logging.Handler):
    """Warnings and errors of the run. (Lines of progress are in its log already.)"""

    def __init__(self, run_log: RunLog) -> None:
        super().__init__(logging.INFO)
        self._run_log = run_log

    def emit(self, record: logging.LogRecord) -> None:
        if record.module != "progress":
            self._run_log.say(f"{record.levelname.lower()}: {record.getMessage()}")


class RunLog:
    """Use as a context manager around the whole run; see the module's text. Warnings of the run go to its log, too."""

    def __init__(
        self, folder: RunFolder, inner: Reporter | None = None, *, progress_s: float = 2.0, line_s: float = 30.0
    ) -> None:
        """``progress_s``, ``line_s``: seconds between two writes of ``progress.json``, and two lines of a stage."""
        self.folder = folder
        self._warnings = _Handler(self)
        self._inner: Reporter = inner or Silent()
        self._progress_s, self._line_s = progress_s, line_s
        self._started = time.time()
        self._stages: dict[str, _Stage] = {}
        self._plan: list[dict[str, Any]] = []
        self.source = ""
        """The data set, as ``--data`` takes it."""
        self.named: Sequence[str] = ()
        """All texts of the configuration: what they name in the cache, no clean-up takes away."""
        self._phase = "begins"
        self._written = 0.0
        self._guard = threading.RLock()

    # -- the run -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> RunLog:
        log.addHandler(self._warnings)
        self.phase("reads the data")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log.removeHandler(self._warnings)

    def say(self, text: str) -> None:
        """A line of the log. A failure costs the line, not the run."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with (
            self._guard,
            contextlib.suppress(OSError),
            open(self.folder.log, "a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write("".join(f"{stamp}  {line}\n" for line in text.splitlines() or [""]))

    def failed(self, error: BaseException) -> None:
        """The traceback, for whoever mends it."""
        self.say("".join(traceback.format_exception(error)).rstrip())

    def phase(self, text: str) -> None:
        """What the run does outside of stages."""
        with self._guard:
            self._phase = text
            self._write()

    def planned(self, stages: Sequence[StageReport], estimates_s: Mapping[str, float]) -> None:
        """What the run is going to do: for its log, for estimates, and so that no clean-up takes it away."""
        with self._guard:
            self._plan = [
                {
                    "label": stage.label,
                    "kind": stage.kind,
                    "address": stage.address,
                    "total": stage.total,
                    "to_do": stage.to_compute + stage.unknown,
                    "estimate_s": estimates_s.get(stage.label),
                }
                for stage in stages
            ]
            self.phase("works")
        for one in self._plan:
            known = "" if one["estimate_s"] is None else f", about {one['estimate_s']:,.0f} s"
            self.say(f"plan: {one['label']} ({one['kind']}): {one['to_do']:,} of {one['total']:,} to do{known}")

    @property
    def stage_now(self) -> str:
        """Label of the stage that is under way, or empty."""
        with self._guard:
            return next((label for label, one in reversed(self._stages.items()) if one.ended is None), "")

    # -- the reporter ------------------------------------------------------------------------------------------------

    def stage(self, label: str, total: int, cached: int, unit: str) -> None:
        """A stage begins."""
        self._inner.stage(label, total, cached, unit)
        with self._guard:
            self._stages[label] = _Stage(unit, total, cached, done=cached)
            self.say(f"{label}: {cached:,} of {total:,} {unit} cached" if total else f"{label}: begins")
            self._write()

    def total(self, label: str, total: int) -> None:
        """Its total has become known."""
        self._inner.total(label, total)
        if (one := self._stages.get(label)) is not None:
            one.total = total

    def advance(self, label: str, completed: int, note: str = "") -> None:
        """Some of it is done."""
        self._inner.advance(label, completed, note)
        if (one := self._stages.get(label)) is None:
            return
        now = time.monotonic()
        with self._guard:
            if one.first is None and completed > one.cached:
                one.first = (time.time(), completed)
            one.done, one.note = completed, note
            if now - one.written >= self._line_s:
                one.written = now
                self.say(f"{label}: {completed:,} of {one.total:,} {one.unit} {note}".rstrip())
            if now - self._written >= self._progress_s:
                self._write()

    def done(self, label: str, note: str = "") -> None:
        """The stage has ended."""
        self._inner.done(label, note)
        with self._guard:
            if (one := self._stages.get(label)) is not None:
                one.ended, one.note = time.time(), note
                self.say(f"{label}: done in {one.ended - one.began:,.1f} s {note}".rstrip())
            self._write()

    def close(self) -> None:
        """The terminal is released."""
        self._inner.close()

    def _write(self) -> None:
        self._written = time.monotonic()
        stages = {
            label: {name: value for name, value in vars(one).items() if name != "written"}
            for label, one in self._stages.items()
        }
        self.folder.write_progress(
            {
                "process": f"pid {os.getpid()} on {os.uname().nodename}",
                "started": self._started,
                "updated": time.time(),
                "phase": self._phase,
                "stage": self.stage_now,
                "source": self.source,
                "named": list(self.named),
                "folder": os.getcwd(),
                "plan": self._plan,
                "stages": stages,
            }
        )
