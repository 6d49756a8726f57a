"""The evaluation pictures of an export: their truth, or what the student predicts where there is none.

A trainer wants both splits. Truth goes out as the data set has it: it is what a network will be measured on, and no
stage has learnt from it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import keys
from artifacts.cache.runs import read_origin, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.export.items import ExportImage
from artifacts.images import ImageDigests
from artifacts.objects import Object
from artifacts.records import DataError, MaskHW, Record, RecordSet

log = logging.getLogger("maskmill")
WITH_VAL = frozenset({"voc", "coco", "yolo-seg", "hdf5"})
"""Formats that trainers read. ``voc-server`` takes one split's predictions, and from annotation tools masks come back
to be learnt from: truth has no place in them.
"""


@dataclass(frozen=True)
class ValSource:
    """Pictures of the evaluation split, one at a time, by id."""

    cache: Path
    records: RecordSet
    classes: tuple[str, ...]
    with_images: bool
    address: str
    """Of the stage that predicts; empty: none."""
    stamps: Mapping[str, tuple[str | None, str]]
    origin: Mapping[str, Any]
    without: frozenset[str] = frozenset()
    """Keys that the training split has, too."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("truth", "student", "no_mask"), 0))

    @property
    def split(self) -> str:
        """Its name."""
        return self.records.split

    @property
    def chosen(self) -> list[tuple[str, Record]]:
        """(key, record), in the order of their keys."""
        found = {self.records.key(record): record for record in self.records}
        return sorted((key, record) for key, record in found.items() if key not in self.without)

    def __iter__(self) -> Iterator[ExportImage]:
        self.counts.update(dict.fromkeys(self.counts, 0))
        store = MaskStore(self.cache, readonly=True)
        for key, record in self.chosen:
            stamp = self.stamps.get(key, (None, ""))[0]
            found = _truth(record)
            if found is not None:
                self.counts["truth"] += 1
                yield ExportImage(record.image_id, Path(record.image), *found)
            elif stamp is not None:
                self.counts["student"] += 1
                mask_hw = np.asarray(store.read(self.address, key, stamp, ["mask_hw"])["mask_hw"])
                yield ExportImage(record.image_id, Path(record.image), mask_hw, None)
            else:
                self.counts["no_mask"] += 1
        if self.counts["student"]:
            log.warning(
                "export: %d of the %d pictures of %s have no truth; their masks are the student's",
                self.counts["student"],
                sum(self.counts.values()),
                self.split,
            )

    def made_from(self) -> str:
        """Digest of all that decides its bytes."""
        digests = ImageDigests(self.cache)
        entries = MaskStore(self.cache, readonly=True).entries(self.address) if self.address else {}
        parts = []
        for key, record in self.chosen:
            stamp = self.stamps.get(key, (None, ""))[0]
            files = [ref for ref in (record.truth, record.truth_objects) if ref is not None]
            entry = entries.get((key, stamp)) if stamp is not None else None
            parts.append(
                [
                    key,
                    _digest(digests, record.image) if self.with_images else None,
                    [[ref.loader, _digest(digests, ref.path), ref.detail] for ref in files],
                    [[box.id, box.class_id, *box.xyxy] for box in record.boxes or ()],
                    None if entry is None else entry.output,
                ]
            )
        return keys.digest([self.split, list(self.classes), parts])


def _digest(digests: ImageDigests, path: str) -> str | None:
    try:
        return digests.digest(Path(path))
    except OSError:
        return None  # the writer says so


def _truth(record: Record) -> tuple[MaskHW, list[tuple[Object, int]] | None] | None:
    """Class mask, and objects where they are known; ``None`` without a truth that can be read."""
    if record.truth is None:
        return None
    try:
        mask_hw = record.truth.load()
        if record.truth_objects is None or record.boxes is None:
            return mask_hw, None
        masks, ids = record.truth_objects.load()
    except (DataError, OSError) as error:
        log.warning("export: the truth of %s is left out: %s", record.image_id, error)
        return None
    class_of = {box.id: box.class_id for box in record.boxes}
    window = (0, 0, mask_hw.shape[1], mask_hw.shape[0])
    return mask_hw, [
        (Object(int(number), window, mask.astype(np.uint8)), class_of[int(number)])
        for mask, number in zip(masks, ids, strict=True)
        if int(number) in class_of
    ]


def val_source(
    cache: Path,
    manifest: Mapping[str, Any],
    records: RecordSet | None,
    train_keys: Collection[str],
    train_split: str,
    classes: tuple[str, ...],
    *,
    with_images: bool,
) -> ValSource | None:
    """The evaluation pictures of a run, if there are any that are not the training split's."""
    if records is None or records.split == train_split or records.classes != classes:
        return None
    labels = list(manifest.get("predictions", {}).values())
    stages = [s for s in manifest["stages"] if s["label"] in labels and s["stamps"] and "mask_hw" in s["outputs"]]
    stage = stages[0] if stages else {"address": "", "stamps": ""}
    stamps = read_stamps(cache, stage["stamps"]) if stages else {}
    origin = read_origin(cache, manifest, "val")
    found = ValSource(cache, records, classes, with_images, stage["address"], stamps, origin, frozenset(train_keys))
    return found if found.chosen else None
