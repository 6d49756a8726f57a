"""One image's class masks from what a generator says of each class, and their merge into a label map: numpy alone.

Xie et al., "Learning Class-Agnostic Pseudo Mask Generation for Box-Supervised Semantic Segmentation", 2021, sections
III-B and III-D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from artifacts.records import UNDECIDED, Box, MaskHW, Record
from tasks.boxes import pixel_window, usable_boxes
from tasks.crop import MaskBool

Probs = NDArray[np.floating]


def boxes_by_class(record: Record, *, difficult: bool) -> dict[int, list[Box]]:
    """Class number -> its usable boxes, by number. Raises ``SkipImage`` where the record does not state its boxes."""
    found: dict[int, list[Box]] = {}
    for box in usable_boxes(record, difficult=difficult):
        found.setdefault(box.class_id, []).append(box)
    return dict(sorted(found.items()))


def box_map(boxes: Sequence[Box], size_hw: tuple[int, int]) -> MaskBool:
    """y^b of one class, ``(H, W) bool``: "1 to the pixels within bounding boxes and 0 to the others for each class"."""
    inside_hw = np.zeros(size_hw, np.bool_)
    for box in boxes:
        x0, y0, x1, y1 = pixel_window(box.xyxy, size_hw)
        inside_hw[y0:y1, x0:x1] = True
    return inside_hw


def object_target(truth_hw: MaskHW, class_id: int, inside_hw: MaskBool) -> MaskHW:
    """y^p of one class (eq. 6), ``(H, W) uint8``: 1 "the object mask inside the bounding box", 0 all else, 255 kept."""
    found: MaskHW = ((truth_hw == class_id) & inside_hw).astype(np.uint8)
    found[truth_hw == UNDECIDED] = UNDECIDED
    return found


def class_mask(foreground_hw: Probs, inside_hw: MaskBool) -> MaskBool:
    """Eq. 7, y^b_i * psi(p): the arg max of the two channels, inside the class's own boxes.

    ``foreground_hw`` is the second channel of p. Equal channels are background, as ``numpy.argmax`` has it.
    """
    found: MaskBool = (foreground_hw > 0.5) & inside_hw
    return found


def overlap_rate(own_hw: MaskBool, other_hw: MaskBool) -> float:
    """Section III-D: overlapping area / predicted semantic area of ``own_hw``; 0 where nothing is predicted."""
    area = int(own_hw.sum())
    return int((own_hw & other_hw).sum()) / area if area else 0.0


def merge(
    masks: Mapping[int, MaskBool],
    foreground: Mapping[int, Probs],
    names: Mapping[int, str],
    size_hw: tuple[int, int],
) -> MaskHW:
    """Eq. 7's sum as a ``(H, W) uint8`` label map; where classes overlap, that of the higher :func:`overlap_rate` wins.

    Two classes share their overlapping area, so the higher rate is that of the smaller predicted area. That is one
    order of all classes: a pixel of three or more goes to the one that beats each of the others. Equal rates: the
    higher probability of the object at the pixel; if that is equal, too, the name that comes first. So neither the
    order nor the numbers of the classes decide (the released code's do).

    Args:
        masks: class number -> :func:`class_mask`.
        foreground: class number -> probability of the object, ``(H, W)``.
        names: class number -> name.
        size_hw: of the image, which may hold no class.
    """
    merged_hw = np.zeros(size_hw, np.uint8)
    least_area_hw = np.full(size_hw, np.iinfo(np.int64).max)
    best_hw = np.zeros(size_hw, np.float64)
    for class_id in sorted(masks, key=lambda number: names[number]):
        mask_hw, area = masks[class_id], int(masks[class_id].sum())
        probability_hw = foreground[class_id]
        wins_hw = mask_hw & ((area < least_area_hw) | ((area == least_area_hw) & (probability_hw > best_hw)))
        merged_hw[wins_hw] = class_id
        least_area_hw[wins_hw] = area
        best_hw[wins_hw] = probability_hw[wins_hw]
    return merged_hw
