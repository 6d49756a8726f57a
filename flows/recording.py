"""What every run of a flow leaves, however it ends: a folder with log, configuration, progress and manifest.

:func:`recorded` is around the whole run, reading the data included. A configuration that is refused has no run yet:
:func:`recorded_if_it_fails`. Both add a note to the error, with the place of the log and the command that goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from artifacts.cache import locks
from artifacts.cache.atomic import check_writable, write_text_atomic
from artifacts.cache.locks import LockAborted
from artifacts.cache.reach import texts
from artifacts.cache.run_history import CONFIG
from artifacts.cache.runs import IN_USE, RunFolder, library_versions
from artifacts.records import DataError
from artifacts.report.score_lines import percent
from flows.config import as_yaml
from tasks.engine.children import Stopped
from tasks.engine.options import RunParams
from tasks.engine.progress import Reporter
from tasks.engine.run_log import RunLog
from tasks.engine.stage_report import StageReport, skip_line
from tasks.evaluate.finish import Result

log = logging.getLogger("maskmill")
SHOWN_SKIPS = 50


@dataclass
class Recording:
    """The run's folder and its log, for the one who runs it."""

    flow: str
    folder: RunFolder
    log: RunLog
    command: str
    """Goes on where the run ends."""
    _planning: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)
    started: float = field(default_factory=time.time)

    def planned(self, stages: list[StageReport], estimates_s: Mapping[str, float], said: Mapping[str, str]) -> None:
        """The plan is known: from here on no clean-up takes away what it reaches."""
        for name, line in said.items():
            self.log.say(f"{name}: {line}")
        self.log.planned(stages, estimates_s)
        self._planning.close()

    def finished(self, result: Result) -> None:
        """The last words of a run that came to its end."""
        for name, one in result.scores.items():
            self.log.say(f"score: {name}: mIoU {percent(one['miou'])}, {one['images']} images")
        for name, path in result.files.items():
            self.log.say(f"{name}: {path}")
        for stage in result.manifest.get("stages", ()):
            if stage.get("pinned"):
                self.log.say(f"{stage['label']}: {stage['pinned']}")
        skips = result.manifest.get("skips", ())
        for skip in skips[:SHOWN_SKIPS]:
            self.log.say(f"skipped: {skip_line(skip['path'] or skip['key'], skip['reason'])}")
        if len(skips) > SHOWN_SKIPS:
            self.log.say(f"... and {len(skips) - SHOWN_SKIPS} more are in the manifest")
        for failure in result.failures:
            self.log.say(f"failed: {failure}")
        how = "with failures" if result.failures else f"with {len(skips)} skipped" if skips else ""
        self.log.say(f"done {how}".rstrip() + f", after {time.time() - self.started:,.1f} s")
        self.log.phase("ended")

    def first_manifest(self, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Of a run that has no stage yet."""
        return {
            "run": self.folder.run_id,
            "flow": self.flow,
            "status": "running",
            "error": "",
            "started": self.started,
            "seconds": 0.0,
            "recipe": recipe,
            "folder": os.getcwd(),
            "options": options,
            "stages": [],
            "skips": [],
            "libraries": library_versions(),
            "classes": {},
            "command": self.command,
        }

    def failed(self, error: BaseException, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Enter the error into log and manifest, and a note into the error."""
        stopped = isinstance(error, (Stopped, LockAborted)) or not isinstance(error, Exception)
        status = "interrupted" if stopped else "failed"
        stage = self.log.stage_now
        if not stopped:
            self.log.failed(error)
        what = str(error) or type(error).__name__
        self.log.say(f"{status}{f' in {stage}' if stage else ''}: {what}")
        next_step = f"{go_on(stopped or bool(stage))}: {self.command}"
        if rerun := options.get("rerun"):
            next_step += f"; --rerun {' --rerun '.join(rerun)} begins anew: leave out what was done"
        self.log.say(next_step)
        self.log.phase("ended")
        begun = self.first_manifest(recipe, options)
        with contextlib.suppress(DataError):
            begun = self.folder.manifest()
        seconds = round(time.time() - self.started, 3)
        now = {"status": status, "error": what, "stage": stage, "seconds": seconds, "command": self.command}
        self.folder.write_manifest(begun | now)
        error.add_note(f"log: {os.path.abspath(self.folder.log)}; {next_step}")


def go_on(begun: bool) -> str:
    """What a command is for, behind an error: the same command fails again where the error came before any work."""
    return "to go on" if begun else "when that is mended"


@contextlib.contextmanager
def recorded(
    flow: str, data: Any, params: Any, options: RunParams, *, reporter: Reporter | None = None, command: str = ""
) -> Iterator[Recording]:
    """Around a run. ``command`` goes on with it; default: the flow with the configuration that the run leaves.

    The run's lock is held within, so that `maskmill status` knows that it lives. Raises :class:`DataError` where the
    cache cannot be written.
    """
    cache = Path(options.cache)
    with contextlib.ExitStack() as stack:
        planning = stack.enter_context(contextlib.ExitStack())
        _hold(planning, cache / IN_USE, shared=True)
        with _begun(flow, cache, reporter, command) as recording:
            _hold(stack, recording.folder.lock)
            recording._planning = planning
            recording.log.source = getattr(data, "source", "")
            recording.log.named = sorted({*texts([asdict(data), asdict(params)])})
            sections = {"data": data, "params": params, "options": options}
            # Params of a flow of one's own may hold what YAML cannot: then the command that was given has to do.
            with contextlib.suppress(OSError, TypeError, ValueError):
                write_text_atomic(recording.folder.path / CONFIG, as_yaml(flow, sections), durable=False)
                # From the first moment on: a run that is killed in its first stage says how to go on, too.
                first = recording.first_manifest({"data": asdict(data), "params": asdict(params)}, asdict(options))
                recording.folder.write_manifest(first)
            recording.log.say(f"data: {getattr(data, 'source', '')}; cache: {options.cache}; out: {options.out or '-'}")
            try:
                yield recording
            except BaseException as error:
                _fail(recording, error, {"data": asdict(data), "params": asdict(params)}, asdict(options))
                raise


@contextlib.contextmanager
def recorded_if_it_fails(flow: str, cache: Path | None, command: str) -> Iterator[None]:
    """Around what comes before a run: leaves one, failed, if an error ends it. ``cache=None``: no place is known."""
    try:
        yield
    except (DataError, OSError) as error:
        if cache is not None:
            with contextlib.suppress(DataError, OSError):
                check_writable("cache", cache)
                with _begun(flow, cache, None, command) as recording:
                    _fail(recording, error, {}, {})
        raise


@contextlib.contextmanager
def _begun(flow: str, cache: Path, reporter: Reporter | None, command: str) -> Iterator[Recording]:
    folder = RunFolder.create(cache, flow)
    config = os.path.abspath(folder.path / CONFIG)
    again = f"cd {shlex.quote(os.getcwd())} && maskmill {flow} --config {shlex.quote(config)}"
    with RunLog(folder, reporter) as run_log:
        run_log.say(f"maskmill {library_versions().get('maskmill', '')} {flow}: run {folder.run_id}")
        run_log.say(f"in {os.getcwd()}: {command or again}; pid {os.getpid()} on {os.uname().nodename}")
        yield Recording(flow, folder, run_log, command or again)


def _fail(recording: Recording, error: BaseException, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    try:
        recording.failed(error, recipe, options)
    except (OSError, DataError) as second:  # the first error is the one to report
        log.warning("no manifest was written: %s", second)


def _hold(stack: contextlib.ExitStack, path: Path, *, shared: bool = False) -> None:
    """Hold a lock, where the file system has locks: without, only `status` and `cache gc` know less."""

    def on_wait(holder: str) -> None:
        log.warning("waits until `maskmill cache gc` has ended (%s)", holder)

    try:
        stack.enter_context(locks.hold(path, shared=shared, on_wait=on_wait))
    except OSError as error:
        log.warning("%s cannot be locked (%s): keep `maskmill cache gc` away while this runs", path, error.strerror)
