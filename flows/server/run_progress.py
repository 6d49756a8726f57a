"""How far a flow run is, for the server: a progress artifact for each stage that lasts, and every log line."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

from tasks.engine.progress import Reporter

log = logging.getLogger("maskmill")
EVERY_S = 5.0
"""Seconds between two looks at what has changed: a stage that takes less leaves no artifact."""


@dataclass
class _Stage:
    """What is known of one stage."""

    total: int
    completed: int
    unit: str
    began: float = 0.0
    first: int | None = None
    """Completed at the first call, at ``began``: a fit that resumes does not begin at 0."""
    note: str = ""
    ended: bool = False
    artifact: UUID | None = None
    shown: str = ""

    @property
    def percent(self) -> float:
        """0 to 100."""
        if self.ended:
            return 100.0
        return min(100.0, 100.0 * self.completed / self.total) if self.total else 0.0

    def line(self, label: str) -> str:
        """``deeplab: 300 of 20,000 iterations, about 41 min left, loss 0.310``."""
        words = [f"{self.completed:,} of {self.total:,} {self.unit}" if self.total else "begins"]
        done = 0 if self.first is None else self.completed - self.first
        if self.ended:
            words.append("done")
        elif done > 0 and self.total:
            left_s = (time.monotonic() - self.began) * (self.total - self.completed) / done
            words.append(f"about {left_s / 60:.0f} min left" if left_s >= 90 else f"about {left_s:.0f} s left")
        return f"{label}: {', '.join([*words, *filter(None, [self.note])])}"


class ServerProgress:
    """A reporter that also keeps one progress artifact a stage. Make it inside a flow run.

    Calls only take notes; a thread of its own tells the server, every ``every_s`` seconds at most. A server that does
    not answer costs one warning, never the run.
    """

    def __init__(self, inner: Reporter, flow: str, every_s: float = EVERY_S) -> None:
        self._inner = inner
        self._flow = flow
        self._every_s = every_s
        self._stages: dict[str, _Stage] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        # The thread needs the flow run's context: artifacts belong to a run by it.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._tell), name="progress", daemon=True)
        self._thread.start()

    def stage(self, label: str, total: int, cached: int, unit: str) -> None:
        """A stage begins."""
        self._inner.stage(label, total, cached, unit)
        if not total or cached < total:
            with self._lock:
                self._stages[label] = _Stage(total, cached, unit)

    def total(self, label: str, total: int) -> None:
        """Its total is known."""
        self._inner.total(label, total)
        self._note(label, total=total)

    def advance(self, label: str, completed: int, note: str = "") -> None:
        """So many are done."""
        self._inner.advance(label, completed, note)
        self._note(label, completed=completed, note=note)

    def done(self, label: str, note: str = "") -> None:
        """It has ended."""
        self._inner.done(label, note)
        self._note(label, ended=True, note=note)

    def close(self) -> None:
        """Show the last of it."""
        self._inner.close()
        self._end.set()
        self._thread.join(self._every_s)

    def _note(self, label: str, **values: Any) -> None:
        with self._lock:
            if (stage := self._stages.get(label)) is not None:
                for name, value in values.items():
                    setattr(stage, name, value)
                if stage.first is None and "completed" in values:
                    stage.first, stage.began = stage.completed, time.monotonic()

    def _tell(self) -> None:
        """The thread: create or update what has changed, until the end."""
        warned = False
        while True:
            last = self._end.wait(self._every_s)
            with self._lock:
                changed = [(label, stage, stage.percent, stage.line(label)) for label, stage in self._stages.items()]
            for label, stage, percent, line in changed:
                if line == stage.shown or (stage.artifact is None and (stage.ended or last)):
                    continue
                try:
                    if stage.artifact is None:
                        key = re.sub("[^a-z0-9]+", "-", f"maskmill-{self._flow}-{label}".lower()).strip("-")
                        stage.artifact = cast("UUID", create_progress_artifact(percent, key=key, description=line))
                    else:
                        update_progress_artifact(stage.artifact, percent, description=line)
                    stage.shown = line
                except Exception as error:
                    if not warned:
                        log.warning("progress could not be shown in Prefect: %s: %s", type(error).__name__, error)
                    warned = True
            if last:
                return


@contextmanager
def all_lines() -> Iterator[None]:
    """Within a flow run: lines that other threads log are this run's, too.

    Prefect knows a line's run by the thread's context. The thread that reads a fit's progress has none, so that the
    server's log stopped at "begins".
    """
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None

    def belongs(record: logging.LogRecord) -> bool:
        if run is not None and FlowRunContext.get() is None and TaskRunContext.get() is None:
            record.flow_run_id = str(run.id)
        return True

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(calm_cancel)  # once: the last line comes after the flow's body
    log.addFilter(belongs)
    try:
        yield
    finally:
        log.removeFilter(belongs)


def calm_cancel(record: logging.LogRecord) -> bool:
    """What Prefect logs of a cancelled run, without its alarm: a filter for Prefect's two loggers of runs.

    It calls a task run that was cancelled an ERROR, and ends a cancelled flow run with "Finished in state Running()".
    """
    message = record.getMessage()
    if record.levelno == logging.ERROR and message.startswith("Finished in state Cancelled"):
        record.levelno, record.levelname = logging.INFO, "INFO"
    return message != "Finished in state Running()"
