"""The Runner's side of a map stage: its pending images go to workers as units, their results are recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from artifacts.cache.store import MaskStore
from artifacts.records import RecordSet
from tasks.engine.cluster_pool import ClusterPool
from tasks.engine.options import RunParams
from tasks.engine.pending import PendingImages, in_order, remembered
from tasks.engine.progress import Reporter
from tasks.engine.skin import Skin
from tasks.engine.work_unit import WorkUnit, cut
from tasks.engine.workers import Workers
from tasks.stage import FitHandle, Handle, MapStage, Produced


@dataclass(frozen=True)
class MapWork:
    """What a map stage needs of the run that it belongs to."""

    store: MaskStore
    options: RunParams
    reporter: Reporter
    skin: Skin
    workers: Workers

    def run(
        self,
        stage: MapStage,
        address: str,
        label: str,
        records: RecordSet,
        upstream: Mapping[str, Handle],
        images: PendingImages,
    ) -> int:
        """Work on the pending images of ``images`` and enter their results into it; how many have one now."""
        pending, produced, skips = images.pending, images.produced, images.skips
        self.reporter.stage(label, len(records), len(produced), "images")
        if not pending:
            self.skin.cached(label, len(records))
            self.reporter.done(label, "cached")
            return 0
        fits = {role: handle for role, handle in upstream.items() if isinstance(handle, FitHandle)}
        prefixes = {role: handle.prefix for role, handle in fits.items() if handle.prefix}
        nets = {role: handle.path for role, handle in fits.items()}
        nets |= {role: os.path.abspath(path) for role, path in stage.inputs.items()}
        counted = _Counter(self.reporter, label, len(produced))
        with (
            self.workers.pool(self.options, uses_torch=stage.uses_torch, on_wait=counted.wait) as (pool, device),
            pool.reporting(label, counted),
        ):
            parts = cut(pending, pool.workers if isinstance(pool, ClusterPool) else max(1, self.options.worker_count))
            cache = str(self.store.root)
            units = [
                WorkUnit(cache, label, address, stage, records.classes, part, nets, prefixes, device) for part in parts
            ]
            submit = pool.queue(units) if isinstance(pool, ClusterPool) else pool.submit
            results = self.skin.units(label, units, submit)
        paths = {task.key: (task.stamp, task.record.image) for task in pending}
        for result in results:
            self.store.adopt(address, result.entries)
            for entry in result.entries:
                produced[entry.key] = remembered(entry, entry.stamp)
            for skip in result.skips:
                skips.append(skip)
                produced.setdefault(skip.key, Produced(paths[skip.key][0], None, skip.reason))
        in_order(records, produced, skips)
        self.reporter.advance(label, len(records))
        self.reporter.done(label, f"{len(skips)} skipped" if skips else "")
        return sum(produced[task.key].output is not None for task in pending)


@dataclass
class _Counter:
    """Counts reported images into the stage's bar."""

    reporter: Reporter
    label: str
    count: int

    def __call__(self, done: int) -> None:
        self.reporter.advance(self.label, self.count + done)

    def wait(self, holder: str) -> None:
        """The stage waits for the GPU that ``holder`` has."""
        self.reporter.advance(self.label, self.count, f"waits for {holder}")
