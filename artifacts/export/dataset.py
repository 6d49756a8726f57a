"""Stored masks -> a dataset in a folder: VOC tree, VOC server tree, COCO JSON, YOLO, HDF5, files for annotation tools.

An export is made aside and renamed into place whole, with a ``maskmill-export.json`` that says what it was made
from (params, seeds, versions, addresses, counts, skips) and lists every file with its digest. Repeated, it gives the
same bytes. A folder that holds anything that no export wrote, or that was changed since, is never overwritten.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import keys
from artifacts.cache.atomic import (
    fsync_folder,
    fsync_tree,
    kill_point,
    naming,
    publish_folder,
    sweep_temporaries,
    temporary_beside,
    write_text_atomic,
)
from artifacts.cache.runs import read_origin, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.export.coco import write_coco_export
from artifacts.export.cvat import write_cvat
from artifacts.export.datacard import describe, write_card
from artifacts.export.hdf5 import write_hdf5_export
from artifacts.export.items import Doubts, ExportImage, Source
from artifacts.export.label_studio import write_label_studio
from artifacts.export.labelme import write_labelme
from artifacts.export.passing import FOLDER, Counted, WithConfidence
from artifacts.export.val import WITH_VAL, val_source
from artifacts.export.voc import write_trainval, write_voc_export, write_voc_server_export
from artifacts.export.yolo_seg import write_data_yaml, write_yolo_seg
from artifacts.images import ImageDigests
from artifacts.objects import Object, unpack_objects
from artifacts.records import DataError, RecordSet

MANIFEST = "maskmill-export.json"
FORMAT_VERSION = 1
WRITERS: Mapping[str, Callable[[Path, Source], Mapping[str, int]]] = {
    "voc": write_voc_export,
    "voc-server": write_voc_server_export,
    "coco": write_coco_export,
    "hdf5": write_hdf5_export,
    "label-studio": write_label_studio,
    "label-studio-polygons": partial(write_label_studio, polygons=True),
    "cvat": write_cvat,
    "cvat-polygons": partial(write_cvat, polygons=True),
    "labelme": write_labelme,
    "labelme-polygons": partial(write_labelme, polygons=True),
    "yolo-seg": write_yolo_seg,
}
"""format -> ``write(folder, source)``, which returns its counts."""
FINISHERS: Mapping[str, Callable[[Path, Source, Source], None]] = {"voc": write_trainval, "yolo-seg": write_data_yaml}
"""format -> what is written once both splits are there."""
OPTIONAL = ("only", "confidence")
"""What an export's manifest holds only where it was asked for."""
OF_TRAINERS = re.compile(r"labels/.+\.cache")
"""Files that a trainer leaves in an export (Ultralytics, beside its labels): they may go with it."""


@dataclass(frozen=True)
class StageSource:
    """One map stage of one run, image by image: memory does not grow with their number."""

    cache: Path
    address: str
    split: str
    classes: tuple[str, ...]
    stamps: Mapping[str, tuple[str | None, str]]
    with_images: bool = True
    array: str = "mask_hw"
    """Which of the stage's masks; objects go with ``mask_hw`` alone, which they were painted to."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    only: Sequence[str] | None = None
    """Keys of the pictures that are wanted, in their order; ``None``: all, by key."""

    def __iter__(self) -> Iterator[ExportImage]:
        store = MaskStore(self.cache, readonly=True)
        for key in sorted(self.stamps) if self.only is None else self.only:
            stamp, image = self.stamps[key]
            if stamp is None:
                continue
            arrays = store.read(self.address, key, stamp)
            if self.array not in arrays:
                raise DataError(
                    f"{self.address} keeps {sorted(arrays)} and no {self.array}: export a stage that gives such masks"
                )
            objects = None
            if self.array == "mask_hw" and "objects_flat" in arrays and "object_classes_n" in arrays:
                classes = arrays["object_classes_n"].tolist()
                objects = list(zip(map(_as_mask, unpack_objects(arrays)), classes, strict=True))
            yield ExportImage(key.partition("/")[2], Path(image), np.asarray(arrays[self.array]), objects)

    @property
    def absent(self) -> list[str]:
        """Image ids that the stage has no mask for."""
        return sorted(key.partition("/")[2] for key, (stamp, _) in self.stamps.items() if stamp is None)


def _as_mask(item: Object) -> Object:
    """The object with a mask where a stage keeps probabilities: no format has a place for those."""
    return replace(item, values_hw=item.mask_hw.astype(np.uint8)) if item.values_hw.dtype.kind == "f" else item


def export_run(
    cache: Path,
    manifest: Mapping[str, Any],
    label: str,
    kind: str,
    out: Path,
    *,
    with_images: bool = True,
    array: str = "mask_hw",
    only: Sequence[str] | None = None,
    val: RecordSet | None = None,
    doubts: Doubts = Doubts(),
    confidence: bool = False,
    undecided_below: int = 0,
) -> Path:
    """Export stage ``label`` of the run that ``manifest`` describes to the folder ``out``; returns ``out``.

    Args:
        cache: the cache folder.
        manifest: a run's manifest (``runs/<id>/manifest.json``).
        label: a map stage that gives ``array``.
        kind: a key of :data:`WRITERS`.
        out: the folder to make; if it is there, it must be an unchanged export.
        with_images: copy the images too, where the format has a place for them.
        array: which of the stage's masks.
        only: keys of the pictures to export, in this order; ``None``: all.
        val: the run's evaluation pictures. With masks of the training images, formats that trainers read hold them, too
            (:mod:`artifacts.export.val`).
        doubts: what the run knows of how right its masks are: for the data card, and for the next two.
        confidence: write ``confidence/<image id>.png`` beside every mask of the stage.
        undecided_below: pixels of its masks that have less confidence become 255.

    Raises:
        DataError: unknown stage or format, or ``out`` holds what no export wrote.
    """
    if kind not in WRITERS:
        raise DataError(f"export format {kind!r}: expected one of {', '.join(WRITERS)}")
    if (confidence or undecided_below) and (doubts.confidence is None or not 0 <= undecided_below <= 255):
        raise DataError(f"confidence of pixels below {undecided_below}: expected 0 to 255, and a stage that has one")
    stage = _stage(manifest, label)
    previous = _previous(out)
    source = StageSource(
        cache,
        stage["address"],
        stage["split"],
        tuple(manifest["classes"][stage["dataset"]]),
        read_stamps(cache, stage["stamps"]),
        with_images,
        array,
        read_origin(cache, manifest, stage.get("set", "")),
        only,
    )
    origin = _made_from(cache, manifest, stage, kind, source)
    if confidence or undecided_below:
        origin["confidence"] = {
            "maps": confidence,
            "undecided_below": undecided_below,
            "made_from": doubts.confidence_from,
        }
    second = None
    if kind in WITH_VAL and only is None and stage.get("set") == "train":
        split, classes = source.split, source.classes
        second = val_source(cache, manifest, val, source.stamps, split, classes, with_images=with_images)
        origin["val"] = None if second is None else second.made_from()
    before = json.loads(previous) if previous else {}
    if before.items() >= origin.items() and all(before.get(name) == origin.get(name) for name in OPTIONAL):
        return out  # made from the same, and no file in it was touched since
    temporary = temporary_beside(out)
    try:
        with naming(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(out.parent)
            temporary.mkdir()
            given: Source = source
            if doubts.confidence is not None and "confidence" in origin:
                maps = temporary / FOLDER if confidence else None
                given = WithConfidence(source, doubts.confidence, maps, undecided_below)
            counted = [Counted(given)]
            counts: dict[str, Any] = dict(WRITERS[kind](temporary, counted[0]))
            kill_point("export.mid_export")
            if second is not None:
                counted.append(Counted(second))
                counts["val"] = {**WRITERS[kind](temporary, counted[1]), "masks": second.counts}
                if kind in FINISHERS:
                    FINISHERS[kind](temporary, source, second)
            summary = None if doubts.suspicion is None else doubts.suspicion()
            write_card(temporary, describe(origin, counts, counted, manifest, summary))
            _write_manifest(temporary, origin, counts)
            _replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def check_target(out: Path) -> None:
    """Raises :class:`DataError` if an export to ``out`` would be refused; called before a long run.

    Of the files there, only those written later than the export are read again; the export itself reads all.
    """
    _previous(out, all_bytes=False)


def _stage(manifest: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    stages: list[Mapping[str, Any]] = [stage for stage in manifest["stages"] if stage["kind"] == "map"]
    for stage in stages:
        if stage["label"] == label:
            return stage
    raise DataError(
        f"run {manifest.get('run')}: no map stage {label!r}; it has {', '.join(s['label'] for s in stages)}"
    )


def _made_from(
    cache: Path, manifest: Mapping[str, Any], stage: Mapping[str, Any], kind: str, source: StageSource
) -> dict[str, Any]:
    """All that decides an export's bytes. No time, no run id, no place: equal content, equal bytes.

    The masks are known by the digests of their arrays, images that go with them by the digest of their bytes.
    """
    entries = MaskStore(cache, readonly=True).entries(stage["address"])
    pairs = {key: (key, stamp) for key, (stamp, _) in source.stamps.items() if stamp is not None}
    origin = {
        "maskmill_export": FORMAT_VERSION,
        "format": kind,
        "flow": manifest["flow"],
        "stage": stage["label"],
        "split": stage["split"],
        "array": source.array,
        "addresses": {one["label"]: one["address"] for one in manifest["stages"]},
        "masks": keys.digest({key: entries[pair].output for key, pair in pairs.items() if pair in entries}),
        "images": _image_digests(cache, source) if source.with_images else None,
        "origin": keys.digest(dict(source.origin)) if kind == "coco" else None,
        "fits": {one["label"]: one["output"] for one in manifest["stages"] if one["kind"] == "fit"},
        "recipe": manifest["recipe"],
        "libraries": manifest["libraries"],
        "classes": list(source.classes),
        "scores": _scores(manifest, stage),
        "warnings": list(manifest.get("warnings", [])),
        "corrected": keys.digest(manifest.get("corrected", [])),
        "without_mask": source.absent,
        "skips": [{"key": s["key"], "stage": s["stage"], "reason": s["reason"]} for s in manifest["skips"]],
    }
    if source.only is not None:
        origin["only"] = list(source.only)
    plain: dict[str, Any] = json.loads(json.dumps(origin))
    return plain


def _scores(manifest: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """Of the exported stage, and of predictions with it where it is the run's masks: mIoU and number of pictures."""
    found: Mapping[str, Mapping[str, Any]] = manifest.get("scores") or {}
    own = stage["label"] == manifest.get("masks")
    wanted = {"masks", *manifest.get("predictions", {})} if own else {stage["label"]}
    of = {name: name.rpartition(" (")[0].removesuffix(" + CRF") for name in found}
    return {name: {key: found[name].get(key) for key in ("miou", "images")} for name in found if of[name] in wanted}


def _image_digests(cache: Path, source: StageSource) -> str:
    """One digest of all images that have a mask. One that cannot be read is reported by the writer."""
    digests = ImageDigests(cache)
    found: dict[str, str | None] = {}
    for key, (stamp, image) in source.stamps.items():
        if stamp is not None:
            try:
                found[key] = digests.digest(Path(image))
            except OSError:
                found[key] = None
    return keys.digest(found)


def _write_manifest(folder: Path, origin: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """What the export was made from, and every file in it."""
    files = {
        path.relative_to(folder).as_posix(): keys.digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    whole = {**origin, "counts": dict(counts), "files": files}
    write_text_atomic(folder / MANIFEST, json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _previous(out: Path, *, all_bytes: bool = True) -> str | None:
    """The manifest of the export at ``out``, ``None`` if there is nothing; an error if anything else is there."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise DataError(f"{out} is a file; name a folder to export to")
    if not any(out.iterdir()):
        return ""
    fix = "name another folder, or move this one away"
    try:
        text = (out / MANIFEST).read_text()
        files: dict[str, str] = json.loads(text)["files"]
        written_ns = (out / MANIFEST).stat().st_mtime_ns
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out} is not empty and no export of Maskmill (no {MANIFEST}); {fix}") from error
    for name, entry in _files_below(out):
        if name == MANIFEST or (name not in files and OF_TRAINERS.fullmatch(name)):
            continue
        if name not in files:
            raise DataError(f"{entry.path} was not written by the export that is there; {fix}")
        newer = entry.stat().st_mtime_ns > written_ns
        if (all_bytes or newer) and keys.digest_file(entry.path) != files[name]:
            raise DataError(f"{entry.path} was changed since it was exported; {fix}")
    return text


def _files_below(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """``(name relative to the folder, entry)`` of everything but folders, in a fixed order. No ``Path`` for each."""
    waiting = [("", str(folder))]
    while waiting:
        prefix, place = waiting.pop()
        with os.scandir(place) as listed:
            for entry in sorted(listed, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    yield f"{prefix}{entry.name}", entry


def _replace(temporary: Path, out: Path) -> None:
    """Put the new export in place of the old one; at no instant is a half-made one visible."""
    if not out.exists():
        publish_folder(temporary, out)
        return
    # Synced before the old one goes: that takes minutes for many files, and it may fail.
    fsync_tree(temporary)
    old = temporary_beside(out)
    os.rename(out, old)
    try:
        os.rename(temporary, out)
    except OSError:
        os.rename(old, out)
        raise
    shutil.rmtree(old)
    fsync_folder(out.parent)
