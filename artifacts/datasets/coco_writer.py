"""Writing COCO instances files: compressed run-length codes, the same bytes for the same content."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.atomic import write_atomic
from artifacts.datasets.coco_masks import encode_mask
from artifacts.records import UNDECIDED, DataError, MaskHW

SPOOL_BYTES = 64 * 2**20
"""Annotations wait in memory up to here and in an unnamed temporary file beyond."""


@dataclass(frozen=True)
class CocoObject:
    """One annotation. Give a mask, a box, or both; the box is then written as it is, not as the mask's outline."""

    class_id: int
    mask_hw: NDArray[Any] | None = None
    """``(H, W)`` at the image's size, non-zero = object."""
    box_xyxy: tuple[float, float, float, float] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class CocoImage:
    """One image of the file. ``objects=None``: only the class mask is known."""

    file_name: str
    size_hw: tuple[int, int]
    objects: Sequence[CocoObject] | None = None
    mask_hw: MaskHW | None = None
    """``(H, W) uint8`` class mask, used where ``objects`` is ``None``: one annotation for each class present."""
    id: int | str | None = None
    """Its id in the file, a number or text; the running number from 1 by default. All images have one, or none."""
    licence: int | None = None
    """Number of its licence."""


@dataclass
class CocoCounts:
    """What :func:`write_coco` wrote."""

    images: int = 0
    annotations: int = 0
    per_class_images: int = 0
    """Images whose annotations are one per class, since no objects were known."""
    empty_objects: int = 0
    """Objects whose mask held not one pixel, and that had no box: left out."""
    ids: set[int | str] = field(default_factory=set, repr=False)


def write_coco(
    path: Path,
    images: Iterable[CocoImage],
    classes: Sequence[str],
    *,
    info: Mapping[str, Any] | None = None,
    categories: Sequence[Mapping[str, Any]] = (),
    licenses: Sequence[Mapping[str, Any]] = (),
) -> CocoCounts:
    """Write an instances file, image by image, atomically.

    Categories are numbered 1..K unless ``categories`` gives the entries of ``classes``, one each (``id``, ``name``,
    ``supercategory``, ...); annotations get running numbers. Undecided
    pixels (255) belong to no object. ``info["annotations"]`` says what one annotation stands for. Equal arguments give
    equal bytes: no time, no path, no machine enters the file.

    Raises :class:`DataError` for a mask of the wrong size, a class number outside 1..K, image ids that repeat.
    """
    entries = [dict(one) for one in categories] or [{"id": n, "name": name} for n, name in enumerate(classes, 1)]
    numbers = [entry["id"] for entry in entries]
    if [entry["name"] for entry in entries] != list(classes) or len(set(numbers)) != len(numbers):
        raise DataError(f"categories must be {', '.join(classes)}, with different ids, got {entries}")
    counts = CocoCounts()
    image_entries: list[bytes] = []
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        for image in images:
            image_id = _image_id(image, counts)
            height, width = image.size_hw
            entry = {"id": image_id, "file_name": image.file_name, "height": int(height), "width": int(width)}
            if image.licence is not None:
                entry["license"] = image.licence
            image_entries.append(_json(entry))
            for item in _objects(image, len(classes), counts):
                annotation = _annotation(item, image, counts.annotations + 1, image_id, numbers)
                if annotation is None:
                    counts.empty_objects += 1
                    continue
                spool.write(b",\n" if counts.annotations else b"\n")
                spool.write(_json(annotation))
                counts.annotations += 1
        spool.seek(0)
        head = {
            "info": {**(info or {}), "annotations": _meaning(counts)},
            "licenses": list(licenses),
            "categories": entries,
        }

        def write(file: BinaryIO) -> None:
            file.write(_json(head)[:-1] + b',\n"images":[\n' + b",\n".join(image_entries) + b'\n],\n"annotations":[')
            shutil.copyfileobj(spool, file)
            file.write(b"\n]}\n")

        write_atomic(path, write)
    return counts


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _image_id(image: CocoImage, counts: CocoCounts) -> int | str:
    image_id = counts.images + 1 if image.id is None else image.id
    if image_id in counts.ids:
        raise DataError(f"{image.file_name}: image id {image_id} is already taken; number all images or none")
    counts.ids.add(image_id)
    counts.images += 1
    return image_id


def _objects(image: CocoImage, n_classes: int, counts: CocoCounts) -> list[CocoObject]:
    objects = image.objects
    if objects is None:
        if image.mask_hw is None:
            raise DataError(f"{image.file_name}: neither objects nor a class mask")
        counts.per_class_images += 1
        present = [int(c) for c in np.unique(image.mask_hw) if c not in (0, UNDECIDED)]
        objects = [CocoObject(class_id, image.mask_hw == class_id) for class_id in present]
    for item in objects:
        if not 1 <= item.class_id <= n_classes:
            raise DataError(f"{image.file_name}: class number {item.class_id}, but the table has 1..{n_classes}")
        if item.mask_hw is not None and item.mask_hw.shape != tuple(image.size_hw):
            raise DataError(
                f"{image.file_name}: mask of {item.mask_hw.shape} for an image of {tuple(image.size_hw)} (H, W)"
            )
    return list(objects)


def _annotation(
    item: CocoObject, image: CocoImage, number: int, image_id: int | str, category_ids: Sequence[int]
) -> dict[str, Any] | None:
    """The entry of one object; ``None`` if it has neither a pixel nor a box."""
    segmentation: Any = []
    area: float = 0
    bbox: Sequence[float] | None = None
    if item.mask_hw is not None and item.mask_hw.any():
        counts, area, bbox = encode_mask(item.mask_hw)
        segmentation = {"size": [int(side) for side in image.size_hw], "counts": counts}
    if item.box_xyxy is not None:
        x0, y0, x1, y1 = (float(v) for v in item.box_xyxy)
        bbox = (x0, y0, x1 - x0, y1 - y0)
        area = area or (x1 - x0) * (y1 - y0)
    if bbox is None:
        return None
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_ids[item.class_id - 1],
        "segmentation": segmentation,
        "area": area,
        "bbox": list(bbox),
        "iscrowd": int(item.crowd),
    }


def _meaning(counts: CocoCounts) -> str:
    if counts.per_class_images == 0:
        return "one per object"
    if counts.per_class_images == counts.images:
        return "one per class and image: no objects were known"
    return f"one per object; one per class and image in the {counts.per_class_images} images without known objects"
