"""A class is appended to the table: results whose class numbers come from the labels alone are taken over.

The class table is part of an address, and another table may number classes otherwise. One that continues a shorter one
gives its classes the same numbers: equal stamps there and here, equal arrays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from artifacts.cache.store import CorruptSegment, MaskStore, MissingEntry
from artifacts.records import RecordSet
from tasks.engine.image_task import ImageTask
from tasks.engine.pending import PendingImages, in_order, remembered
from tasks.engine.work_unit import SEGMENT_IMAGES
from tasks.stage import Arrays, Handle, MapStage, stage_address

log = logging.getLogger("maskmill")


def take_over(
    store: MaskStore,
    stage: MapStage,
    address: str,
    label: str,
    records: RecordSet,
    upstream: Mapping[str, Handle],
    images: PendingImages,
    *,
    planning: bool,
) -> None:
    """Move images from pending to known whose results a shorter class table has; copy these, unless ``planning``.

    Skips are no results: a longer table may allow what a shorter one refused.
    """
    if not stage.numbers_of_labels or upstream or not images.pending:
        return
    classes = records.classes
    for count in range(len(classes) - 1, 0, -1):
        if not images.pending:
            break
        shorter = stage_address(stage, classes[:count], upstream)
        entries = store.entries(shorter)
        there = [task for task in images.pending if (e := entries.get((task.key, task.stamp))) and e.output is not None]
        known = {(task.key, task.stamp): remembered(entries[task.key, task.stamp], task.stamp) for task in there}
        if there and not planning:
            meta = {"stage": stage.name, "version": str(stage.version), "label": label}
            copied = _copy(store, there, shorter, address, meta)
            known = {pair: produced for pair, produced in known.items() if pair in copied}
            log.info("%s: %d results are those of the table without %s", label, len(known), ", ".join(classes[count:]))
        images.produced |= {key: produced for (key, _), produced in known.items()}
        images.pending = [task for task in images.pending if (task.key, task.stamp) not in known]
    in_order(records, images.produced, images.skips)


def _copy(
    store: MaskStore, tasks: Sequence[ImageTask], source: str, target: str, meta: Mapping[str, str]
) -> set[tuple[str, str]]:
    """Write the arrays of ``tasks`` at ``source`` also at ``target``; which could be."""
    done: set[tuple[str, str]] = set()
    for start in range(0, len(tasks), SEGMENT_IMAGES):
        items: list[tuple[str, str, Arrays]] = []
        for task in tasks[start : start + SEGMENT_IMAGES]:
            try:
                items.append((task.key, task.stamp, store.read(source, task.key, task.stamp)))
            except CorruptSegment as error:
                store.quarantine(error.segment)
            except MissingEntry:
                continue  # removed since
        store.write_segment(target, items, meta=meta)
        done.update((key, stamp) for key, stamp, _ in items)
    return done
