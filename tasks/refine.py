"""GrabCut from probabilities: the network's masks made precise (Xie et al., CFS, section 3.2).

The cut and the rule for its fallback are those of :mod:`tasks.grabcut`. The start is a trimap of the probabilities.
The fallback is the probabilities above .5: a thin object covers little of its box. Only where none is, it is the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.objects import Window, paste_object, unpack_objects
from artifacts.records import DataError, ImageRGB, size_of
from tasks.bounds import number
from tasks.boxes import pixel_window, usable_boxes
from tasks.crop import Crop, extend
from tasks.grabcut import (
    OUTPUTS,
    CutParams,
    Trimap,
    cut,
    foreground,
    keeps_too_little,
    object_arrays,
    object_seed,
    one_thread,
    whole_box,
)
from tasks.overlap import Proposal
from tasks.stage import Arrays, Item, MapStage, image_of


@dataclass(frozen=True)
class RefineParams(CutParams):
    """How probabilities become masks."""

    NAME: ClassVar[str] = "refine"

    iterations: int = number(5, 1, 100, "GrabCut iterations")
    trimap_low: float = number(0.4, 0.0, 1.0, "a probability below this is certain background")
    trimap_high: float = number(0.6, 0.0, 1.0, "a probability above this is certain foreground")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trimap_low > self.trimap_high:
            raise ValueError(f"refine.trimap_low must be <= trimap_high, not {self.trimap_low} and {self.trimap_high}")


def refine_object(
    image_rgb: ImageRGB,
    prob_hw: NDArray[Any],
    window_xyxy: Window,
    box_xyxy: Sequence[float],
    params: RefineParams,
    seed: int,
) -> Proposal:
    """A probability map made precise by GrabCut with CFS's trimap.

    Above ``trimap_high`` certain foreground, below ``trimap_low`` certain background, the rest possible foreground;
    nothing outside the box. Where the cut has nothing to do (all certain), the trimap is the mask. Where the cut keeps
    too little, the probabilities above .5 are the mask, or the box if there are none.

    Args:
        image_rgb: (H, W, 3) uint8.
        prob_hw: floating foreground probability, of ``window_xyxy``'s size (the window may stick out of the image).
        window_xyxy: the map's window in the image.
        box_xyxy: the object's box.
        params: trimap, working size, fallback.
        seed: as in :func:`tasks.grabcut.propose_object`, and so is the result.
    """
    size_hw = size_of(image_rgb)
    target_xyxy = pixel_window(box_xyxy, size_hw)
    if target_xyxy[0] == target_xyxy[2]:
        return target_xyxy, np.zeros((0, 0), dtype=np.bool_), True
    crop = Crop.around(target_xyxy, size_hw, params.context, params.working_size)
    prob_crop = paste_object(prob_hw.astype(np.float32), crop.frame(window_xyxy), crop.size_hw)
    trimap = np.full(crop.scaled_hw, cv2.GC_BGD, dtype=np.uint8)
    left, top, right, bottom = crop.scaled(target_xyxy)
    inner = (slice(top, bottom), slice(left, right))
    trimap[inner] = probability_trimap(crop.resize(extend(prob_crop, crop.frame(target_xyxy)))[inner], params)
    cut_hw = cut(crop.scale(image_rgb), trimap, params.iterations, seed)
    if cut_hw is None:
        cut_hw = foreground(trimap)
    mask_hw = crop.back(cut_hw, target_xyxy)
    if not keeps_too_little(mask_hw, params):
        return target_xyxy, mask_hw, False
    left, top, right, bottom = crop.frame(target_xyxy)
    likely_hw = prob_crop[top:bottom, left:right] > 0.5
    return target_xyxy, likely_hw if likely_hw.any() else whole_box(target_xyxy), True


def probability_trimap(prob_hw: NDArray[np.floating[Any]], params: RefineParams) -> Trimap:
    """CFS's trimap: > high certain foreground, < low certain background, the rest possible foreground."""
    trimap = np.full(prob_hw.shape, cv2.GC_PR_FGD, dtype=np.uint8)
    trimap[prob_hw > params.trimap_high] = cv2.GC_FGD
    trimap[prob_hw < params.trimap_low] = cv2.GC_BGD
    return trimap


def refine(params: RefineParams = RefineParams()) -> MapStage:
    """Boxes and probabilities (upstream role ``dense``: packed objects, float16) -> precise masks."""
    return MapStage(
        name="refine",
        version=2,
        params=params,
        reads=("image", "boxes"),
        outputs=OUTPUTS,
        function="tasks.refine:refine_item",
        holds_classes=True,
    )


def refine_item(item: Item, params: RefineParams) -> Arrays:
    """Map function of :func:`refine`. Raises :class:`DataError` where ``dense`` lacks one of the boxes."""
    image_rgb = image_of(item)
    one_thread()
    dense = {one.id: one for one in unpack_objects(item.up["dense"])}
    boxes = usable_boxes(item.record, difficult=params.difficult)
    if missing := [box.id for box in boxes if box.id not in dense]:
        raise DataError(
            f"{item.key}: no probabilities for objects {missing}; the stage behind role 'dense' must cover the same"
            " boxes (difficult= alike in both)"
        )
    found = {
        box.id: refine_object(
            image_rgb,
            dense[box.id].values_hw,
            dense[box.id].window_xyxy,
            box.xyxy,
            params,
            object_seed(params.seed, item.record.image_id, box.id),
        )
        for box in boxes
    }
    return object_arrays(boxes, found, size_of(image_rgb))
