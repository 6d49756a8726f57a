"""COCO instances: ``coco:IMAGES,JSON``.

*Splits.* If the data source holds ``{split}`` (``coco:/d/{split}2017,/d/annotations/instances_{split}2017.json``)
each split is a file of its own and every image in it belongs to it. Otherwise both come from the one file: by lists
``train.txt`` and ``val.txt`` beside the JSON if they are there, else by a stable hash of the file name
(``data.val_share``, a fifth).

*Ids.* An image is known in the cache by the stem of its file name if no other image of the file has it, else by its
relative path without suffix. Never by the number in the JSON, which tools like to renumber. With a file per split each
is read by itself: equal file names in train and val give two images one id. Rename them where ids must differ.

*Classes* are the file's categories in order of their ids, 1..K. *Tags* are the categories present, crowds included.
*Boxes* are ``x, y, x + width, y + height``, clipped to the image; ``Box.id`` is the annotation's index within its
image in file order, whatever was dropped before it. An image without annotations has ``boxes == ()``.

*Truth.* Crowds and annotations of unknown category are 255; larger objects are painted first, smaller on top. An image
has truth if each of its annotations has a segmentation. Nothing is decoded before it is needed, and then only its
own bytes of the file are read.

A missing image file is found by listing the folders once while reading (no 100,000 stat calls) and is a recorded skip.
Where annotations fit no image of the file, an image without any has unknown labels: it may be the one they belong to.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.datasets.coco_fields import OTHER_CLASS
from artifacts.datasets.coco_json import MOST_JSON_BYTES, NO_CATEGORY, CocoTable, annotation_name, read_table
from artifacts.datasets.coco_masks import MaskBool, decode_segmentation, paint
from artifacts.datasets.coco_writer import CocoImage, CocoObject, write_coco
from artifacts.datasets.find import Folder, Names
from artifacts.datasets.paths import Notes, check_relative, dataset_name, image_ids, read_skip, require_some
from artifacts.datasets.splits import EVERYTHING, NO_LISTS, SplitRule, select
from artifacts.images import image_size_hw
from artifacts.inputs import open_input
from artifacts.records import Box, DataError, LazyRecords, MaskHW, MaskRef, Record, RecordSet, Skip

__all__ = ["CocoImage", "CocoObject", "load_truth", "load_truth_objects", "read", "read_coco", "write_coco"]


def read(spec: str, split: str, data: Any) -> RecordSet:
    """Read ``split`` of the source ``IMAGES,JSON`` (either may hold ``{split}``) with the knobs of ``DataParams``."""
    images, comma, annotations = spec.removeprefix("coco:").rpartition(",")
    if not comma or not images or not annotations:
        raise DataError(f"coco source {spec!r}: expected coco:IMAGES,JSON, the image folder and the annotation file")
    own_file = "{split}" in annotations
    return read_coco(
        Path(images.replace("{split}", split)).expanduser(),
        Path(annotations.replace("{split}", split)).expanduser(),
        dataset=getattr(data, "name", "") or dataset_name(images),
        split=split,
        rule=None if own_file else SplitRule.of(data),
        include_crowd=bool(getattr(data, "include_crowd", False)),
        classes=tuple(getattr(data, "classes", ())),
        root=os.path.abspath(os.path.expanduser(images)),
    )


def read_coco(
    images: Path,
    annotations: Path,
    *,
    dataset: str,
    split: str = "train",
    rule: SplitRule | None = None,
    include_crowd: bool = False,
    classes: tuple[str, ...] = (),
    root: str = "",
) -> RecordSet:
    """Read the COCO instances file ``annotations`` of the pictures in ``images``.

    Args:
        images: folder that the file names are relative to.
        annotations: the JSON file.
        dataset: name of the data set in the cache.
        split: name of the split that is wanted.
        rule: how the file is divided; ``None``: every image in it belongs to ``split``.
        include_crowd: give boxes of crowd regions too (flagged ``crowd``). They are tags and truth 255 either way.
        classes: class table to use instead of the file's; categories that it leaves out are background.
        root: what the set is remembered by; the image folder by default.

    Raises:
        DataError: the file cannot be used at all, or not one image of it can.
        OSError: the file cannot be read.
    """
    if not images.is_dir():
        raise DataError(f"{images} is not a folder; expected coco:IMAGES,JSON with the folder of the images first")
    if not annotations.is_file():
        raise DataError(f"{annotations} is not a file; expected coco:IMAGES,JSON with an instances file (JSON) second")
    notes = Notes()
    table = read_table(annotations, notes, classes)
    folder = Folder(Path(os.path.abspath(images)), None)
    usable = _usable_images(table, folder, dataset, notes)
    names = Names([table.file_names[row] for row in usable.rows], str(annotations))
    chosen = select(
        names,
        split if rule else EVERYTHING[0],
        rule or SplitRule(),
        annotations.parent if rule else None,
    )
    notes.add_all(f"image in {split}.txt that {annotations.name} does not list", chosen.unmatched)
    notes.add_all(NO_LISTS, chosen.hashed)
    names.say_respelled(notes)
    rows = [usable.rows[i] for i in chosen.rows]
    skips = [usable.missing[row] for row in rows if row in usable.missing]
    rows = [row for row in rows if row not in usable.missing]
    rows, unsized = _fill_sizes(table, rows, usable.ids, images, dataset)
    boxes_xyxy, has_box = _boxes(table, notes)
    if not include_crowd:
        has_box &= ~table.crowd
    if table.orphans and (bare := int((np.diff(table.starts) == 0).sum())):
        notes.add(
            "images without annotations may be those of unlisted ones: their labels are unknown", f"{bare} images"
        )
    records = CocoRecords(
        table, boxes_xyxy, has_box, np.array(rows, np.int64), usable.ids, str(Path(os.path.abspath(images)))
    )
    found = RecordSet(
        dataset=dataset,
        split=split,
        classes=table.classes,
        records=records,
        skips=(*usable.skips, *skips, *unsized),
        format="coco",
        root=root or os.path.abspath(images),
        warnings=notes.lines(),
        counts=notes.counts(len(chosen.rows) + len(usable.skips) + len(chosen.unmatched)),
        origin=_origin(table, rows, usable.ids),
    )
    return require_some(found, len(chosen.rows), f"{annotations} with images in {images}")


def _origin(table: CocoTable, rows: list[int], ids: dict[int, str]) -> dict[str, Any]:
    """What a COCO export gives back: categories, licences, and each image's own id and licence."""
    own = {ids[row]: table.image_ids[row] for row in rows}
    licences = {ids[row]: table.licences[row] for row in rows if row in table.licences}
    return {**table.origin, "image_ids": own, "image_licenses": licences}


@dataclass(frozen=True)
class _Usable:
    rows: list[int]
    """Rows of the table whose file name can be used, in file order."""
    ids: dict[int, str]
    missing: dict[int, Skip]
    skips: list[Skip]


def _usable_images(table: CocoTable, folder: Folder, dataset: str, notes: Notes) -> _Usable:
    """Rows whose file name means one file, or may do so; writes the names as they are on disk into the table."""
    skips = [read_skip(dataset, place, table.path, reason) for place, reason in table.bad_images]
    spelled: dict[str, dict[str, int]] = {}
    """File on disk -> the names that mean it, with their first rows."""
    missing: dict[int, str] = {}
    for row, name in enumerate(table.file_names):
        relative = folder.find(name)
        if relative is None:
            try:
                relative = check_relative(name)
            except DataError as error:
                skips.append(read_skip(dataset, f"images[{row}]", table.path, f"{table.path}: {error}"))
                continue
            missing[row] = folder.tried(name)
        same, plain = spelled.setdefault(relative, {}), os.path.normpath(name.replace("\\", "/"))
        if plain in same:
            reason = f"{table.path}: {name!r} is listed twice; the first entry counts"
            skips.append(read_skip(dataset, relative, f"{folder.where}/{relative}", reason))
            continue
        same[plain] = row
    rows, names = [], []
    for relative, same in spelled.items():
        exact = same.get(relative)
        if len(same) > 1 and exact is None:
            reason = f"{table.path}: {', '.join(map(repr, list(same)[:3]))} would all be this file; correct the names"
            skips.append(read_skip(dataset, relative, f"{folder.where}/{relative}", reason))
            continue
        for name, row in same.items():
            if len(same) > 1 and row != exact:
                reason = f"{table.path}: {name!r} is not there, and {relative!r} is another entry's"
                skips.append(read_skip(dataset, name, f"{folder.where}/{relative}", reason))
            else:
                rows.append(row)
                names.append(relative)
                if row not in missing and name != relative:
                    notes.add("image found under another spelling of its name", f"{name!r}: {relative}")
    order = sorted(range(len(rows)), key=rows.__getitem__)
    rows, names = [rows[i] for i in order], [names[i] for i in order]
    ids = dict(zip(rows, image_ids(names, prefer_stem=True), strict=True))
    gone = {
        row: read_skip(
            dataset,
            ids[row],
            f"{folder.where}/{name}",
            f"image file {folder.where}/{missing[row]} is missing",
            permanent=False,
        )
        for row, name in zip(rows, names, strict=True)
        if row in missing
    }
    for row, name in zip(rows, names, strict=True):
        table.file_names[row] = name
    return _Usable(rows, ids, gone, skips)


def _fill_sizes(
    table: CocoTable, rows: list[int], ids: dict[int, str], images: Path, dataset: str
) -> tuple[list[int], list[Skip]]:
    """Take sizes that the file does not give from the image headers; an image without either is skipped."""
    kept: list[int] = []
    skips: list[Skip] = []
    for row in rows:
        if table.sizes_hw[row, 0] < 0 or table.sizes_hw[row, 1] < 0:
            path = images / table.file_names[row]
            try:
                table.sizes_hw[row] = image_size_hw(path)
            except (DataError, OSError) as error:
                permanent = isinstance(error, DataError)
                skips.append(read_skip(dataset, ids[row], path, str(error), permanent=permanent))
                continue
        kept.append(row)
    return kept, skips


def _boxes(table: CocoTable, notes: Notes) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Clipped ``(m, 4)`` corners, and which of them are boxes with area; complaints about the others."""
    x0, y0, width, height = table.boxes_xywh.T
    image_row = np.repeat(np.arange(len(table.starts) - 1), np.diff(table.starts))
    size_hw = table.sizes_hw[image_row].astype(np.float64)
    size_hw[size_hw < 0] = np.inf
    with np.errstate(invalid="ignore"):
        corners = np.stack([x0, y0, x0 + width, y0 + height], axis=1)
        limits = size_hw[:, [1, 0, 1, 0]]
        boxes_xyxy = np.clip(corners, 0, limits)
        sticks_out = np.abs(corners - boxes_xyxy).max(axis=1, initial=0) > 1
        known = table.class_ids > NO_CATEGORY
        has_area = (boxes_xyxy[:, 2] > boxes_xyxy[:, 0]) & (boxes_xyxy[:, 3] > boxes_xyxy[:, 1])
        has_area &= np.isfinite(corners).all(axis=1)
    lost = "box without area inside the image, or not finite, dropped (x, y, width, height)"
    for i in np.flatnonzero(known & ~has_area):
        name = annotation_name(int(table.annotation_ids[i]))
        notes.lose(lost, f"{name}: {table.boxes_xywh[i].tolist()}", of="boxes")
    for i in np.flatnonzero(known & has_area & sticks_out):
        name = annotation_name(int(table.annotation_ids[i]))
        kind = "box that sticks out of the image by more than a pixel, clipped"
        notes.add(kind, f"{name}: {table.boxes_xywh[i].tolist()}")
    return boxes_xyxy, has_area & known


class CocoRecords(LazyRecords):
    """Records built on access, from the columns of a :class:`CocoTable`."""

    def __init__(
        self,
        table: CocoTable,
        boxes_xyxy: NDArray[np.float64],
        has_box: NDArray[np.bool_],
        rows: NDArray[np.int64],
        ids: dict[int, str],
        images: str,
    ) -> None:
        self._table = table
        self._boxes_xyxy = boxes_xyxy
        self._has_box = has_box
        self._rows = rows
        self._ids = [ids[row] for row in rows.tolist()]
        self._images = images
        self._any_segmentation = bool((table.lengths > 0).any())

    def __len__(self) -> int:
        return len(self._rows)

    def _record(self, index: int) -> Record:
        table, row = self._table, int(self._rows[index])
        height, width = table.sizes_hw[row].tolist()
        path = f"{self._images}/{table.file_names[row]}"
        own = slice(*table.starts[row : row + 2].tolist())
        class_ids = table.class_ids[own].tolist()
        if not table.labelled or (table.orphans and not class_ids):
            return Record(image_id=self._ids[index], image=path, size_hw=(height, width))
        detail = self._truth_detail(own, class_ids, (height, width), path)
        known = [number for number in class_ids if number != NO_CATEGORY]
        return Record(
            image_id=self._ids[index],
            image=path,
            size_hw=(height, width),
            tags=tuple(sorted(set(known) - {OTHER_CLASS})) if known or not class_ids else None,
            boxes=self._boxes(own, class_ids),
            truth=MaskRef("artifacts.datasets.coco:load_truth", table.path, detail) if detail else None,
            truth_objects=MaskRef("artifacts.datasets.coco:load_truth_objects", table.path, detail) if detail else None,
        )

    def _boxes(self, own: slice, class_ids: list[int]) -> tuple[Box, ...] | None:
        """The boxes; ``None`` if there are objects, but no box of any: the picture would become background."""
        columns = (self._has_box, self._boxes_xyxy, self._table.crowd)
        rows = list(zip(class_ids, *(column[own].tolist() for column in columns), strict=True))
        found = tuple(
            Box(box_id, class_id, x0, y0, x1, y1, crowd=crowd)
            for box_id, (class_id, kept, (x0, y0, x1, y1), crowd) in enumerate(rows)
            if kept
        )
        damaged = any(not kept and not crowd and class_id != OTHER_CLASS for class_id, kept, _, crowd in rows)
        return None if damaged and not found else found

    def _truth_detail(self, own: slice, class_ids: list[int], size_hw: tuple[int, int], image: str) -> str:
        """Everything that decoding needs, as JSON; empty if the image has no truth."""
        table = self._table
        columns = (table.offsets, table.lengths, table.crowd, table.annotation_ids)
        rows = zip(*(column[own].tolist() for column in columns), class_ids, strict=True)
        objects = [
            [offset, length, NO_CATEGORY if crowd else class_id, box_id, annotation_id]
            for box_id, (offset, length, crowd, annotation_id, class_id) in enumerate(rows)
            if class_id != OTHER_CLASS
        ]
        if not self._any_segmentation or not all(length for _, length, *_ in objects):
            return ""
        file = [table.file_size, table.file_mtime_ns]
        return json.dumps({"hw": size_hw, "image": image, "file": file, "objects": objects}, separators=(",", ":"))


def load_truth(reference: MaskRef) -> MaskHW:
    """The image's ``(H, W) uint8`` class mask; crowds and unknown categories 255, smaller objects on top."""
    size_hw, objects = _load(reference)
    return paint(
        [(mask, class_id) for mask, class_id, _ in objects if class_id != NO_CATEGORY],
        size_hw,
        [mask for mask, class_id, _ in objects if class_id == NO_CATEGORY],
    )


def load_truth_objects(reference: MaskRef) -> tuple[MaskBool, NDArray[np.int64]]:
    """``(N, H, W) bool`` masks as annotated (they may overlap) and ``(N,) int64`` ids as in ``Box.id``; no crowds."""
    size_hw, objects = _load(reference)
    known = [(mask, box_id) for mask, class_id, box_id in objects if class_id != NO_CATEGORY]
    masks_nhw = np.zeros((len(known), *size_hw), np.bool_)
    for i, (mask, _) in enumerate(known):
        masks_nhw[i] = mask
    return masks_nhw, np.array([box_id for _, box_id in known], np.int64)


def _load(reference: MaskRef) -> tuple[tuple[int, int], list[tuple[MaskBool, int, int]]]:
    """Image size, and (mask, class number or 0, box id) of each annotation, reading only their bytes."""
    detail = json.loads(reference.detail)
    height, width = detail["hw"]
    try:
        real_hw = image_size_hw(Path(detail["image"]))
    except (DataError, OSError):
        real_hw = (height, width)  # whoever needs the picture reports it; the stated size is bounded
    if real_hw != (height, width):
        raise DataError(
            f"{detail['image']}: {reference.path} states {width} x {height}, the picture is {real_hw[1]} x {real_hw[0]}"
            " (EXIF rotation applied): its masks are in another frame"
        )
    objects = []
    with open_input(reference.path, MOST_JSON_BYTES) as file:
        status = os.fstat(file.fileno())
        if [status.st_size, status.st_mtime_ns] != detail["file"]:
            raise DataError(f"{reference.path} has changed since its labels were read; start the run again")
        for offset, length, class_id, box_id, annotation_id in detail["objects"]:
            raw = os.pread(file.fileno(), length, offset)
            try:
                objects.append((decode_segmentation(raw, (height, width)), class_id, box_id))
            except DataError as error:
                raise DataError(f"{reference.path}: {annotation_name(annotation_id)}: {error}") from error
    return (height, width), objects
