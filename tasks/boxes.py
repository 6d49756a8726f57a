"""Boxes as pixels: which pixels a box means, which boxes count, and in which order objects are painted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from artifacts.objects import OBJECT_ARRAYS, Object, Window, pack_objects, paint_label_map, unpack_objects
from artifacts.records import Box, MaskHW, Record
from tasks.stage import Arrays, SkipImage

INSIDE_SHARE = 0.8
"""A box is inside another if at least this share of it is."""
INSIDE_AREA = 0.5
"""... and if it is not larger than this share of the other."""


def pixel_window(box_xyxy: Sequence[float], size_hw: tuple[int, int]) -> Window:
    """The pixels whose centres lie in the box and in the image, as a half-open window; at least one pixel.

    A box thinner than a pixel means the pixel that holds its centre. A box that does not meet the image gives a
    window without area at the image's nearest edge. Raises ``ValueError`` for an inverted or non-finite box.
    """
    x0, y0, x1, y1 = box_xyxy
    if not all(map(math.isfinite, box_xyxy)) or x1 < x0 or y1 < y0:
        raise ValueError(f"box {tuple(box_xyxy)} must be finite pixel edges x0 <= x1, y0 <= y1")
    left, right = _pixels(x0, x1, size_hw[1])
    top, bottom = _pixels(y0, y1, size_hw[0])
    if left == right or top == bottom:
        return left, top, left, top
    return left, top, right, bottom


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """``low..high`` as whole pixels ``first..end`` of ``0..size``: those with ``low <= i + 0.5 < high``."""
    if high <= 0 or low >= size:
        nearest = 0 if high <= 0 else size
        return nearest, nearest
    first, end = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if first >= end:
        first = math.floor((low + high) / 2)
        end = first + 1
    first, end = max(first, 0), min(end, size)
    if first >= end:  # its only pixel centre lies outside the image, a part of the box inside
        first = 0 if end <= 0 else size - 1
        end = first + 1
    return first, end


def usable_boxes(record: Record, *, difficult: bool) -> list[Box]:
    """The boxes that get a mask: no crowds, difficult ones by ``difficult``.

    Raises :class:`SkipImage` where the record does not state its boxes (``()`` means none).
    """
    if record.boxes is None:
        raise SkipImage(f"{record.image_id}: no boxes are known for this image")
    return [box for box in record.boxes if not box.crowd and (difficult or not box.difficult)]


def lies_inside(inner: Box, outer: Box) -> bool:
    """Whether a smaller box lies in a larger one: :data:`INSIDE_SHARE` of it, at most :data:`INSIDE_AREA` as large."""
    width = min(inner.x1, outer.x1) - max(inner.x0, outer.x0)
    height = min(inner.y1, outer.y1) - max(inner.y0, outer.y0)
    if width <= 0 or height <= 0 or inner.area > INSIDE_AREA * outer.area:
        return False
    return width * height >= INSIDE_SHARE * inner.area


LABEL_OUTPUTS = ("mask_hw", "object_classes_n", *OBJECT_ARRAYS)
"""What :func:`label_arrays` gives: label map, and per object its class number and its mask before painting."""


def label_arrays(
    boxes: Sequence[Box], windows_xyxy: Sequence[Window], masks: Sequence[NDArray[np.bool_]], size_hw: tuple[int, int]
) -> Arrays:
    """``mask_hw`` (larger boxes first, smaller on top) and the packed objects, for ``masks[i]`` of ``boxes[i]``."""
    arrays = pack_objects([box.id for box in boxes], windows_xyxy, masks)
    classes_n = np.array([box.class_id for box in boxes], np.uint8)
    return {"mask_hw": paint(unpack_objects(arrays), boxes, size_hw), "object_classes_n": classes_n, **arrays}


def paint(objects: Sequence[Object], boxes: Iterable[Box], size_hw: tuple[int, int]) -> MaskHW:
    """``(H, W) uint8`` label map: larger BOXES first, smaller on top (CFS, section 3.2); equal boxes by id."""
    class_of_id: Mapping[int, int] = {box.id: box.class_id for box in boxes}
    area_of_id: Mapping[int, float] = {box.id: box.area for box in boxes}
    return paint_label_map(objects, class_of_id, size_hw, area_of_id=area_of_id)
