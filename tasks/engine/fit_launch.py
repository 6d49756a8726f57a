"""The Runner's side of a fit: is it published, may an older one stand in, and if not, launch it.

A fit is a process of its own (``python -m tasks.training.fit_process SPEC.json``), so that a CUDA crash or the OOM
killer ends the fit and not the run; ``launch="inline"`` runs it here (tests, scripts).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts import keys
from artifacts.cache.fit_store import Difference, FitStore, Publication
from artifacts.records import Kind, RecordSet, Skip
from tasks.engine.children import KEEP_MEMORY, ROOT, Stopped, Supervisor
from tasks.engine.fit_spec import FitSpec, plain_params
from tasks.engine.image_task import ImageTask, stated_size
from tasks.engine.options import RunParams
from tasks.engine.pending import FitMembers, Sources, weights_digests
from tasks.engine.progress import Reporter
from tasks.engine.refit import Refit, made_with, pin_text
from tasks.stage import FitHandle, FitStage, Handle, fits_above, resolve

log = logging.getLogger("maskmill")


FIT_PROCESS = "tasks.training.fit_process"
"""By name, not imported: training builds on the engine, not the other way round."""
LOG_EVERY_S = 10.0
MONITOR_READS: tuple[Kind, ...] = ("image", "truth")


class FitFailed(RuntimeError):
    """A fit ended without a publication; the message holds the end of its output."""


@dataclass(frozen=True)
class FitPlan:
    """What is known of a fit before it runs; after it, with its publication."""

    stamp: str | None
    """``None`` while an upstream result is only planned; of the older fit, if that is pinned."""
    own_stamp: str | None = None
    """What this fit is published under if it is done."""
    lineage: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """role -> path of an input file or of an upstream checkpoint."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    publication: Publication | None = None
    pinned: str = ""
    """What is said of the older fit that stands in (:func:`tasks.engine.refit.pin_text`)."""
    newest: int = 0
    """Number of the newest publication under the own stamp, whole or not."""
    newer_than: int = 0
    """Publications up to this number do not count: damaged, or to be done again."""
    note: str = ""
    """What was decided, for the log."""
    surprising: bool = False
    """``note`` differs from what ``refit`` requests."""

    @property
    def digest(self) -> str | None:
        """Digest of the published tensors."""
        return None if self.publication is None else self.publication.digest

    @property
    def path(self) -> str:
        """The published weights file."""
        return "" if self.publication is None else str(self.publication.weights)

    def again(self) -> FitPlan:
        """The same fit, to be done though it is published."""
        return replace(
            self,
            stamp=self.own_stamp,
            publication=None,
            pinned="",
            newer_than=self.newest,
            note="fitted again (rerun)",
            surprising=False,
        )

    def log_decision(self, label: str) -> None:
        """Log what was decided."""
        if self.note:
            log.log(logging.WARNING if self.surprising else logging.INFO, "%s: %s", label, self.note)

    def skips(self, members: Sequence[tuple[str, str]], label: str) -> list[Skip]:
        """Images of ``members`` that the published fit was done without; reported by each run that uses it."""
        if self.publication is None:
            return []
        current = dict(members)
        seen = {key for key, digest in self.publication.members if current.get(key) == digest}  # not mended since
        listed = [Skip(*entry) for entry in self.publication.info.get("skips", ())]
        return [replace(skip, stage=label) for skip in listed if skip.key in seen]


def plan(
    cache: Path,
    stage: FitStage,
    address: str,
    records: RecordSet,
    usable: FitMembers,
    upstream: Mapping[str, Handle],
    sources: Sources,
    options: RunParams,
    val: RecordSet | None = None,
) -> FitPlan:
    """Stamp, lineage and (perhaps pinned) publication of a fit over ``usable.members``.

    ``val``: the evaluation images. A fit that saw one of them, when it was a training image, is not pinned.

    A plan of a dry run knows no stamp where upstream arrays are not made yet; whether it is pinned, it knows all the
    same, unless that depends on them.

    A lineage is (address, data set, split, what these were made with, seed, digests of initial weights and inputs):
    only within one can an older fit stand in for a new one (``refit``). So fits are decided one by one, in page order:
    where one is done again, those that build on it are, too; where it is pinned, they see the same weights as before.
    """
    weights = weights_digests(stage, upstream, sources)
    fits = {role: handle for role, handle in upstream.items() if isinstance(handle, FitHandle)}
    inputs = {role: os.path.abspath(path) for role, path in stage.inputs.items()} | {
        role: h.path for role, h in fits.items()
    }
    prefixes = {role: handle.prefix for role, handle in fits.items() if handle.prefix}
    if weights is None:
        return FitPlan(None, inputs=inputs, prefixes=prefixes)
    init = weights.pop("init", None)
    of_data = [records.dataset, records.split, *made_with(upstream, sources)]
    lineage = keys.digest([address, of_data, stage.seed, init, weights])
    members = usable.members
    if usable.unknown:
        found = FitPlan(None, inputs=inputs, prefixes=prefixes)
    else:
        stamp = keys.fit_stamp(members=members, inputs=weights, init=init, seed=stage.seed)
        store = FitStore(cache)
        published = store.published(address, stamp, accept=sources.sound)
        newest = store.newest_number(address, stamp)
        newer_than = newest if published is None else 0
        found = FitPlan(stamp, stamp, lineage, inputs, prefixes, published, newest=newest, newer_than=newer_than)
    if found.publication is not None or options.refit == "changed":
        return found
    above = max((math.inf if fit.digest is None else fit.published for fit in fits_above(upstream)), default=0.0)
    return _pinned(found, cache, address, lineage, above, members, usable.unknown, sources, options, val)


def _pinned(
    own: FitPlan,
    cache: Path,
    address: str,
    lineage: str,
    above: float,
    members: Sequence[tuple[str, str]],
    unknown: Sequence[str],
    sources: Sources,
    options: RunParams,
    val: RecordSet | None,
) -> FitPlan:
    """The plan ``own`` with the last fit in its place, if ``refit`` says so; else with a note why it is fitted.

    ``above``: when the youngest network was published with which the data were made. One that is younger than the last
    fit makes all of them other data. ``unknown``: keys of further members, which have no digest yet (a dry run).
    """
    refit, store = Refit.parse(options.refit), FitStore(cache)
    last = store.last_of_lineage(address, lineage)
    if last is None:
        note = f"refit={options.refit}, but there is no earlier fit to pin (same stage, data set, split, seed and"
        note += " upstream networks): it is fitted"
        return replace(own, note=note, surprising=refit.kind == "never")
    sound = None if isinstance(last, Path) else store.published(address, last.stamp, accept=sources.sound)
    if sound is None:
        where = last if isinstance(last, Path) else last.path
        note = f"refit={options.refit}, but the fit to pin is damaged ({where}): it is fitted"
        return replace(own, note=note, surprising=True)
    before = dict(sound.members)
    difference = Difference.between(sound, [*members, *((key, before.get(key, "")) for key in unknown)])
    doubtful = len(before.keys() & set(unknown))
    due = refit.due(difference, time.time() - sound.published, doubtful)
    text = pin_text(sound.published, difference, doubtful)
    scored = () if val is None else sources.keys_of(val)
    if seen := before.keys() & set(scored) - {key for key, _ in members} - set(unknown):
        note = f"refit={options.refit}, but the last fit learned from {len(seen):,} of what are evaluation images now,"
        note += f" e.g. {min(seen)}; scores on them would say nothing: it is fitted again"
        return replace(own, note=note, surprising=True)
    if above > sound.published:
        return replace(own, note=f"refit={options.refit}: fitted again, like a network that its data are made with")
    if due is None:
        return own
    if due:
        return replace(own, note=f"refit={options.refit}: fitted again, no longer {text}")
    return replace(own, publication=sound, pinned=text, stamp=sound.stamp, note=text)


@dataclass(frozen=True)
class OfRun:
    """What a fit needs of the run that it belongs to."""

    cache: Path
    options: RunParams
    reporter: Reporter
    stop: threading.Event
    supervisor: Callable[[], Supervisor]
    """Starts it on the first call."""
    folder: Callable[[], Path]
    """The run's folder, made on the first call."""


@dataclass
class FitRun:
    """One fit that has to be done."""

    of_run: OfRun
    plan: FitPlan
    stage: FitStage
    address: str
    label: str
    train: RecordSet
    monitor: RecordSet | None
    members: list[ImageTask]
    told: float = field(default=0.0, init=False)
    """When the last line of progress was written to the fit's log."""

    def run(self) -> FitPlan:
        """Fit (or wait for another process that does), and return the plan with its publication."""
        run = self.of_run
        assert self.plan.stamp is not None
        if not self.members:
            raise FitFailed(f"{self.label}: no training images: none of the {len(self.train)} can be used")
        spec = self._spec()
        run.reporter.stage(self.label, 0, 0, "iterations")
        where = f"{self.address}/{self.plan.stamp}"
        self._say(f"begins: {len(self.members):,} images, device {run.options.device}, {run.options.launch}; {where}")
        if run.options.launch == "inline":
            resolve(f"{FIT_PROCESS}:run_spec")(spec, self._event, stop=run.stop)
        else:
            self._launch(spec)
        publication = FitStore(run.cache).published(self.address, self.plan.stamp, newer_than=self.plan.newer_than)
        if publication is None:
            raise FitFailed(f"{self.label}: the fit ended, but {self.address}/{self.plan.stamp} holds no publication")
        run.reporter.done(self.label, str(publication.info.get("device", "")))
        self._say(f"published: {publication.weights}")
        return replace(self.plan, publication=publication)

    def _spec(self) -> FitSpec:
        options = self.of_run.options
        params_type, params = plain_params(self.stage.params)
        inputs = dict(self.plan.inputs)
        init = inputs.pop("init", "")
        assert self.plan.stamp is not None
        return FitSpec(
            cache=str(self.of_run.cache.resolve()),
            label=self.label,
            address=self.address,
            stamp=self.plan.stamp,
            function=self.stage.function,
            params_type=params_type,
            params=params,
            train=tuple(self.members),
            classes=self.train.classes,
            reads=self.stage.reads,
            seed=self.stage.seed,
            monitor=self._monitored(),
            monitor_reads=MONITOR_READS,
            inputs=inputs,
            prefixes=self.plan.prefixes,
            init=init,
            lineage=self.plan.lineage,
            newer_than=self.plan.newer_than,
            info={"dataset": self.train.dataset, "split": self.train.split},
            device=options.device,
            devices=options.devices,
            threads=options.thread_count,
            loader_workers=options.loader_workers,
            checkpoint_every_s=options.checkpoint_every_s,
        )

    def _monitored(self) -> tuple[ImageTask, ...]:
        """The records for monitoring, never for training."""
        if self.monitor is None:
            return ()
        return tuple(
            ImageTask(
                self.monitor.key(record),
                "",
                record.view(MONITOR_READS),
                stated_hw=stated_size(record, MONITOR_READS),
            )
            for record in self.monitor
            if record.truth is not None
        )

    def _launch(self, spec: FitSpec) -> None:
        """A process of its own, started by the run's supervisor; its events are the bar and the log."""
        run = self.of_run
        path = run.folder() / f"{self.label}.spec.json"
        spec.write(path)
        last: dict[str, Any] = {}

        def on_line(line: str) -> None:
            try:
                event = json.loads(line)
            except ValueError:
                log.debug("%s: %s", self.label, line)
                return
            last.update(event)
            self._event(event)

        child = run.supervisor().start_lines(
            # The folder in which the run was started is not on its path (-P): it may hold a "tasks" of its own.
            [sys.executable, "-P", "-m", FIT_PROCESS, str(path)],
            on_line=on_line,
            log_file=self._log_file,
            # Threads that spin while they wait for each other are 20 times slower on cores that others use too.
            env={"OMP_WAIT_POLICY": "PASSIVE", **KEEP_MEMORY, **os.environ, "PYTHONPATH": _module_path()},
        )
        try:
            code = child.wait(stop=run.stop)
        except KeyboardInterrupt:
            log.warning("%s", self._stopped())
            raise
        if code != 0 and run.stop.is_set():
            raise Stopped(self._stopped())
        if code != 0:
            message = last.get("message") if last.get("event") == "error" else child.error_tail[-2000:]
            raise FitFailed(
                f"{self.label}: the fit ended with exit code {code}: {message or 'no message'}; all that it said:"
                f" {self._log_file}"
            )

    def _stopped(self) -> str:
        """What is kept of a fit that was stopped."""
        assert self.plan.stamp is not None
        steps = sorted((FitStore(self.of_run.cache).folder(self.address, self.plan.stamp) / "work").glob("step-*.ckpt"))
        if steps:
            done = int(steps[-1].stem.removeprefix("step-"))
            return f"{self.label} was stopped; the next run resumes from its checkpoint of iteration {done:,}"
        every = self.of_run.options.checkpoint_every_s
        return (
            f"{self.label} was stopped before its first checkpoint (one every {every:g} s,"
            " options.checkpoint_every_s): the next run begins this fit anew"
        )

    def _event(self, event: Mapping[str, Any]) -> None:
        """One line of the fit's report."""
        reporter, kind = self.of_run.reporter, event.get("event")
        self._log_event(event)
        if kind == "progress":
            note = f"loss {event['loss']:.3f}" if isinstance(event.get("loss"), float) else ""
            reporter.total(self.label, int(event.get("total", 0)))
            reporter.advance(self.label, int(event.get("step", 0)), note)
        elif kind == "waiting":
            reporter.advance(self.label, 0, f"waits for {event.get('for')}")
        elif kind == "warning":
            log.warning("%s: %s", self.label, event.get("message"))

    @property
    def _log_file(self) -> Path:
        """What the fit says, events and stderr; ``maskmill runs log --stage`` shows it."""
        return self.of_run.folder() / f"{self.label}.log"

    def _log_event(self, event: Mapping[str, Any]) -> None:
        """An event as a line of the fit's log; of progress one every few seconds, the first and the last."""
        values = {name: value for name, value in event.items() if name not in ("event", "step", "total", "message")}
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, float))
        step, total = int(event.get("step", 0)), int(event.get("total", 0))
        now = time.monotonic()
        match event.get("event"):
            case "progress" if now - self.told >= LOG_EVERY_S or step >= total:
                self.told = now
                self._say(f"{step:,} of {total:,} iterations {numbers}".rstrip())
            case "waiting":
                self._say(f"waits for {event.get('for')}")
            case "warning" | "error" as kind:
                self._say(f"{kind}: {event.get('message')}")
            case "skip":
                self._say(f"skipped: {event.get('key')}: {event.get('reason')}")

    def _say(self, text: str) -> None:
        """A line of the fit's log. A full disk costs the line, not the fit."""
        with contextlib.suppress(OSError), open(self._log_file, "a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")


def _module_path() -> str:
    """This project first, then where this process finds modules (a user's own stages, say), as the pool's workers."""
    return os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, sys.path)]))
