"""IoU object by object: masks BEFORE painting against truth objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.objects import unpack_objects
from artifacts.records import UNDECIDED, Box, DataError, MaskHW

SMALL_AREA = 32**2
"""An object of fewer pixels is "small" (COCO's threshold)."""
LARGE_AREA = 96**2
"""An object of more than this many pixels is "large" (COCO's threshold)."""
SIZES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True)
class ObjectIoU:
    """One object's mask against its truth."""

    object_id: int
    class_id: int
    area: int
    """Pixels of the truth object, scored or not: decides its size class."""
    iou: float

    @property
    def size(self) -> str:
        """``small`` (< 32 x 32 pixels), ``medium`` or ``large`` (> 96 x 96)."""
        return "small" if self.area < SMALL_AREA else "large" if self.area > LARGE_AREA else "medium"


def window_iou(
    mask_hw: NDArray[np.bool_],
    window_xyxy: Sequence[int],
    truth_object_hw: NDArray[np.bool_],
    scored_hw: NDArray[np.bool_],
) -> float | None:
    """IoU over the whole image of a mask that lies in a window (which may stick out) with a truth object.

    Args:
        mask_hw: (h, w) bool, the object's mask in the frame of its window.
        window_xyxy: integer window in the image's frame, half-open, of ``mask_hw``'s size.
        truth_object_hw: (H, W) bool.
        scored_hw: (H, W) bool, False where the class truth is 255: such pixels count nowhere.

    Returns ``None`` if the truth object has no scored pixel. Raises ``DataError`` for sizes that disagree.
    """
    x0, y0, x1, y1 = (int(value) for value in window_xyxy)
    if mask_hw.shape != (y1 - y0, x1 - x0):
        raise DataError(
            f"wrong mask size: {mask_hw.shape} for the window {(x0, y0, x1, y1)}, expected {(y1 - y0, x1 - x0)}"
        )
    if truth_object_hw.shape != scored_hw.shape:
        raise DataError(f"wrong mask size: the truth object is {truth_object_hw.shape}, the image {scored_hw.shape}")
    truth = int(np.count_nonzero(truth_object_hw & scored_hw))
    if not truth:
        return None
    height, width = scored_hw.shape
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left >= right or top >= bottom:
        return 0.0
    inside = mask_hw[top - y0 : bottom - y0, left - x0 : right - x0] & scored_hw[top:bottom, left:right]
    hit = int(np.count_nonzero(inside & truth_object_hw[top:bottom, left:right]))
    return hit / (int(np.count_nonzero(inside)) + truth - hit)


Window = tuple[tuple[int, int, int, int], NDArray[np.bool_]]
"""An object's window in the image's frame, and its mask in the window's."""


def windows(arrays: Mapping[str, NDArray[Any]]) -> dict[int, Window]:
    """Object id -> window and mask before painting; empty for an image (or a stage) without objects.

    Of probabilities, those above .5 are the mask.
    """
    if "objects_flat" not in arrays:
        return {}
    return {item.id: (item.window_xyxy, item.mask_hw) for item in unpack_objects(arrays)}


def object_ious(
    windows: Mapping[int, Window],
    boxes: Iterable[Box],
    truth_objects: tuple[NDArray[np.bool_], NDArray[np.int64]],
    truth_hw: MaskHW,
) -> list[ObjectIoU]:
    """IoU of every object's mask BEFORE painting with its truth object.

    Args:
        windows: object id -> window and mask; an object that is missing scores 0.
        boxes: the image's boxes; crowds and difficult objects are not scored.
        truth_objects: (object_masks_nhw bool, object_ids_n), as ``Record.truth_objects`` loads.
        truth_hw: class truth; where it is 255 nothing is scored.
    """
    masks_nhw, ids_n = truth_objects
    row = {int(object_id): index for index, object_id in enumerate(ids_n)}
    scored_hw = truth_hw != UNDECIDED
    empty: Window = ((0, 0, 0, 0), np.zeros((0, 0), dtype=bool))
    found = []
    for box in boxes:
        if box.crowd or box.difficult or box.id not in row:
            continue
        truth_object_hw = masks_nhw[row[box.id]]
        window_xyxy, mask_hw = windows.get(box.id, empty)
        iou = window_iou(mask_hw, window_xyxy, truth_object_hw, scored_hw)
        if iou is not None:
            found.append(ObjectIoU(box.id, box.class_id, int(np.count_nonzero(truth_object_hw)), iou))
    return found
