"""The Runner: runs stages over records, and skips work that is cached. Plain Python.

    with Runner(RunParams(cache="cache")) as run:
        coarse = run.map(grabcut.propose(GrabCutParams()), train)
        student = run.fit(deeplab.fit(DeepLabParams()), train, target=coarse)

``map`` and ``fit`` return handles (addresses and digests), never arrays. A planning runner
(``planning=True``) does the same book-keeping and no work: labels, addresses and pending counts come from it.
A *skin* (``tasks/engine/skin.py``) decides how the pending units are waited for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from artifacts.cache.fit_store import digest_of, part_digests
from artifacts.cache.locks import LockAborted, hold
from artifacts.cache.runs import IN_USE, RunFolder, library_versions, write_pictures, write_stamps
from artifacts.cache.store import MaskStore
from artifacts.images import ImageDigests
from artifacts.records import DataError, Record, RecordSet, Sets, Skip
from tasks.engine import effort, fit_launch
from tasks.engine.children import Stopped, Supervisor
from tasks.engine.cluster_pool import check_engine
from tasks.engine.gpus import check_device
from tasks.engine.map_work import MapWork
from tasks.engine.options import RunParams
from tasks.engine.pending import Sources, fit_members, pending_images, stamps_of
from tasks.engine.progress import Reporter, Silent
from tasks.engine.shorter_tables import take_over
from tasks.engine.skin import PlainSkin, Skin
from tasks.engine.stage_report import StageReport, plain_skip, skip_line, unique_skips
from tasks.engine.workers import Workers
from tasks.stage import FitHandle, FitStage, Handle, MapHandle, MapStage, stage_address

log = logging.getLogger("maskmill")


class StageFailed(RuntimeError):
    """A stage without any result: every image was skipped, or its fit failed."""


class UntilReached(Exception):
    """The stage that ``until`` names is done: raised through the flow page, which ends here."""


class Runner:
    """Runs stages; see the module's text. Use as a context manager: leaving it ends every child."""

    def __init__(
        self,
        options: RunParams,
        *,
        flow: str = "script",
        skin: Skin | None = None,
        reporter: Reporter | None = None,
        planning: bool = False,
        recipe: Mapping[str, Any] | None = None,
        sets: Sets | None = None,
        sources: Sources | None = None,
        workers: Workers | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        """``recipe``: the flow's data and params as plain data, for the manifest, which is then kept up to date.

        ``sets``: the flow's. ``sources``: a planning run's. ``workers``: closed by the caller; this run's own by
        default. ``folder``: the run's, where it has one already; by default made on first use.
        """
        check_device(options.device)
        check_engine(options)
        self.options = options
        self.flow = flow
        self.planning = planning
        # Absolute: workers of a cluster, and fits that are started by hand, have folders of their own.
        self.cache = Path(os.path.abspath(options.cache))
        self.reports: list[StageReport] = []
        self.handles: list[Handle] = []
        self.skips: list[Skip] = []
        self._workers = workers or Workers()
        self._workers_are_lent = workers is not None
        self.stop = self._workers.stop
        self.recipe = dict(recipe or {})
        self.facts: dict[str, Any] = {}
        """Fields that every manifest of this run has from now on."""
        self.ending = False
        """Whether the page has come to its end, which ``until`` does not cut."""
        self._sets = sets
        self._status = ""
        self._classes: dict[str, list[str]] = {}
        self.reporter: Reporter = reporter or Silent()
        self._skin: Skin = skin or PlainSkin()
        self._uses: dict[str, int] = {}
        self._sources = sources or Sources(
            ImageDigests(self.cache, verify=options.verify_inputs), MaskStore(self.cache)
        )
        self._folder = folder
        self._in_use = contextlib.ExitStack()
        self.started = time.time()
        """Seconds since the epoch; of a whole run, reading and planning included, the page's caller says it."""

    def __enter__(self) -> Runner:
        if not self.planning and not self.recipe:  # a script: no plan says what it is going to rely on
            with contextlib.suppress(OSError):
                self._in_use.enter_context(hold(self.cache / IN_USE, shared=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop.set()
        self.close()
        if error is not None and not self.planning and self.reports:
            stopped = isinstance(error, (Stopped, LockAborted)) or not isinstance(error, Exception)
            status = "interrupted" if stopped else "failed"
            try:
                self.write_manifest(status, str(error))
            except (OSError, DataError) as second:  # the first error is the one to report
                log.warning("no manifest was written: %s", second)
        elif self._status == "running":
            self.write_manifest("finished")

    def close(self) -> None:
        """End every child (idle workers that are lent and undamaged live on) and release the terminal."""
        if self.stop.is_set() or not self._workers_are_lent:
            self._workers.close()
        self.reporter.close()
        self._in_use.close()
        if self.cache.is_dir():
            try:
                self._sources.digests.save()
            except OSError as error:  # only a cache of file times: the next run reads the images again
                log.warning("%s: image digests could not be kept: %s", self.cache, error)

    @property
    def folder(self) -> RunFolder:
        """The run's folder, made on first use."""
        if self._folder is None:
            self._folder = RunFolder.create(self.cache, self.flow)
        return self._folder

    def _note_pictures(self) -> None:
        """Enter what the sets' pictures were made of, for the comparison of two runs; once."""
        if self._sets is None or "pictures" in self.facts:
            return
        try:
            listed = {
                self._sets.name_of(one): write_pictures(self.cache, self._sources.pictures(one)) for one in self._sets
            }
        except OSError as error:  # a full disk: only the comparison is lost
            log.warning("the list of pictures was not written: %s", error)
        else:
            self.facts["pictures"] = listed

    @property
    def val(self) -> RecordSet | None:
        """The flow's evaluation images, if it said so."""
        return None if self._sets is None else self._sets.val

    @property
    def sources(self) -> Sources:
        """Digests of images and labels computed so far: a run reuses those of its plan."""
        return self._sources

    @property
    def store(self) -> MaskStore:
        """The cache that this run works on."""
        return self._sources.store

    # -- map ---------------------------------------------------------------------------------------------------------

    def map(self, stage: MapStage, records: RecordSet, *, label: str | None = None, **upstream: Handle) -> MapHandle:
        """Arrays of ``stage`` for every record; only pending images are worked on."""
        label = self._label(label or stage.name)
        address = stage_address(stage, records.classes, upstream)
        started = time.monotonic()
        rerun = self._wants(label)
        images = pending_images(stage, address, label, records, upstream, self._sources, rerun=rerun)
        if not rerun:
            take_over(self.store, stage, address, label, records, upstream, images, planning=self.planning)
        report = StageReport(label, "map", address, len(records), images.cached, unknown=images.unknown)
        report.like, report.amount = effort.of_map(stage, self.options, len(records), records.dataset)
        report.outputs = stage.outputs
        self._begin(report, records)
        if not self.planning:
            if images.unknown:
                raise StageFailed(
                    f"{label}: {images.unknown} images have no upstream result; this is a fault of the flow page"
                )
            work = MapWork(self.store, self.options, self.reporter, self._skin, self._workers)
            report.computed = work.run(stage, address, label, records, upstream, images)
            report.seconds = time.monotonic() - started
            report.stamps = write_stamps(self.cache, stamps_of(records, images.produced))
            self.skips.extend(images.skips)
            report.skipped = sum(produced.output is None for produced in images.produced.values())
            if len(records) and report.skipped == len(records):
                first = images.skips[0] if images.skips else None
                reason = f"; the first: {skip_line(first.path, first.reason)}" if first else ""
                raise StageFailed(f"{label}: all {len(records)} images were skipped{reason}")
        handle = MapHandle(label, stage, address, records, images.produced, tuple(images.skips), upstream)
        self._end(handle)
        return handle

    @property
    def supervisor(self) -> Supervisor:
        """The one thread that starts children, itself started on first use."""
        return self._workers.supervisor

    # -- fit ---------------------------------------------------------------------------------------------------------

    def fit(
        self,
        stage: FitStage,
        train: RecordSet,
        *,
        monitor: RecordSet | None = None,
        init: FitHandle | None = None,
        label: str | None = None,
        **upstream: Handle,
    ) -> FitHandle:
        """A published checkpoint of ``stage`` trained on ``train``; an existing one is used as it is."""
        label = self._label(label or stage.name)
        above: dict[str, Handle] = {**upstream, **({"init": init} if init else {})}
        address = stage_address(stage, train.classes, above)
        usable = fit_members(stage, address, label, train, upstream, self._sources)
        report = StageReport(label, "fit", address, 1)
        report.like, report.amount = effort.of_fit(stage, self.options, len(usable.members) or len(train))
        self._begin(report, train)
        plan = fit_launch.plan(self.cache, stage, address, train, usable, above, self._sources, self.options, self.val)
        if self._wants(label):
            plan = plan.again()
        report.stamps, report.pinned = plan.stamp or "", plan.pinned
        if plan.publication is not None:
            report.cached = 1
        elif plan.stamp is None:
            report.unknown = 1
        if not self.planning:
            plan.log_decision(label)
            self.skips.extend(usable.skips)
            started = time.monotonic()
            if plan.publication is None:
                run = fit_launch.OfRun(
                    self.cache,
                    self.options,
                    self.reporter,
                    self.stop,
                    supervisor=lambda: self.supervisor,
                    folder=lambda: self.folder.path,
                )
                work = fit_launch.FitRun(run, plan, stage, address, label, train, monitor, usable.tasks())
                plan = self._skin.fit(label, work.run)
                report.computed = 1
            else:
                self._skin.cached(label, 1)
                self.reporter.stage(label, 1, 1, "fit")
                self.reporter.done(label, "pinned" if plan.pinned else "cached")
            self.skips.extend(plan.skips(usable.members, label))
            report.seconds = time.monotonic() - started
            report.output = plan.digest or ""
            if report.computed and plan.publication is not None:
                # Resumed, it took the time of earlier runs, too: a later estimate is of the whole fit.
                report.seconds = max(report.seconds, float(plan.publication.info.get("seconds", 0.0)))
        parts, published = ({}, 0.0) if (made := plan.publication) is None else (made.part_digests, made.published)
        pinned = bool(plan.pinned)
        handle = FitHandle(
            label, stage, address, plan.stamp, plan.digest, plan.path, "", pinned, parts, train, published
        )
        self._end(handle)
        return handle

    def load(self, path: str | Path) -> FitHandle:
        """The networks in a safetensors file, for use as a fit's handle: identified by its tensors, not by its name.

        No stage of this run, so it has no label, no report and no skips. Raises :class:`DataError` if the file cannot
        be read or is something else.
        """
        file = Path(os.path.abspath(Path(path).expanduser()))
        tensors = self._sources.tensors(file)
        stage = FitStage("file", 1, None, reads=(), function="")
        digest = digest_of(tensors)
        self.facts.setdefault("loaded", []).append({"path": str(file), "digest": digest})
        return FitHandle(str(file), stage, "file", digest, digest, str(file), part_digests=part_digests(tensors))

    def image_digest(self, record: Record) -> str:
        """Digest of the image's bytes, as stamps have it. Raises ``OSError`` where it cannot be read."""
        return self._sources.digests.digest(Path(record.image))

    # -- book-keeping ------------------------------------------------------------------------------------------------

    def _label(self, wanted: str) -> str:
        """``wanted``, or ``wanted@2``, ``wanted@3`` on further uses, in page order."""
        self._uses[wanted] = self._uses.get(wanted, 0) + 1
        return wanted if self._uses[wanted] == 1 else f"{wanted}@{self._uses[wanted]}"

    def _begin(self, report: StageReport, records: RecordSet) -> None:
        """Enter a stage over ``records`` into the run's books."""
        report.dataset, report.split = records.dataset, records.split
        report.set = self._sets.name_of(records) if self._sets is not None else ""
        self._classes[records.dataset] = list(records.classes)
        self.reports.append(report)

    def _end(self, handle: Handle) -> None:
        """Enter a stage's result, also into the manifest: it can then be used, however the run ends.

        Raises :class:`UntilReached` after the stage that ``until`` names.
        """
        self.handles.append(handle)
        if self.recipe and not self.planning:
            self.write_manifest("running")
        if handle.label == self.options.until and not self.ending:
            raise UntilReached(handle.label)

    def _wants(self, label: str) -> bool:
        """Whether ``rerun`` names this stage instance, or all its rounds."""
        return label in self.options.rerun or label.partition("@")[0] in self.options.rerun

    def check_rerun(self) -> None:
        """After planning: every label in ``rerun`` exists. Raises :class:`DataError` that lists the labels."""
        known = {report.label for report in self.reports} | {report.label.partition("@")[0] for report in self.reports}
        if unknown := [label for label in self.options.rerun if label not in known]:
            raise DataError(f"--rerun {', '.join(unknown)}: no such stage; this flow has {', '.join(sorted(known))}")

    def check_until(self) -> None:
        """After planning: the stage that ``until`` names exists. Raises :class:`DataError` that lists the labels."""
        labels = [report.label for report in self.reports]
        if self.options.until and self.options.until not in labels:
            raise DataError(f"--until {self.options.until}: no such stage; this flow has {', '.join(labels)}")

    def write_manifest(self, status: str, error: str = "", **results: Any) -> dict[str, Any]:
        """Write ``runs/<id>/manifest.json`` and return it. ``status``: running, finished, failed or interrupted."""
        self._status = status
        if status != "running" and self.recipe:
            self._note_pictures()
        manifest = {
            "run": self.folder.run_id,
            "flow": self.flow,
            "status": status,
            "error": error,
            "started": self.started,
            "seconds": round(time.time() - self.started, 3),
            "recipe": self.recipe,
            "folder": os.getcwd(),
            "options": asdict(self.options),
            "stages": [vars(report) for report in self.reports],
            "skips": [plain_skip(skip) for skip in unique_skips(self.skips)],
            "libraries": library_versions(),
            "threads": self.options.thread_count,
            "classes": self._classes,
            **self.facts,
            **results,
        }
        self.folder.write_manifest(manifest)
        return manifest
