"""Unary energies ``(K, H, W) float32`` for a dense CRF: from probabilities, from labels, from boxes.

An energy is a negative log probability up to a constant per pixel: 0 is certain, larger is less likely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.records import UNDECIDED
from tasks.boxes import pixel_window

UnaryKHW = NDArray[np.float32]

ROUNDING = 1e-3
"""What a probability may exceed 1 by: sums of float16 values do."""
FORBIDDEN = 1000.0
"""Energy of a label that a pixel cannot have: far above every sum of messages, far below float32's end."""


def from_probabilities(probs_khw: NDArray[Any], floor: float = 1e-5) -> UnaryKHW:
    """``-log(p)`` with probabilities below ``floor`` taken as ``floor``.

    Args:
        probs_khw: (K, H, W) floating, 0..1; a pixel's values need not sum to 1.
        floor: least probability, 0 < floor < 1: -log(floor) is the most that the CRF has to overcome.

    Equal to ``pydensecrf.utils.unary_from_softmax`` (whose ``clip`` is 1e-5 as well). Raises ``ValueError`` for
    another shape or dtype, NaN, and values outside 0..1 (logits, say).
    """
    probs = np.asarray(probs_khw)
    if probs.ndim != 3 or not np.issubdtype(probs.dtype, np.floating):
        raise ValueError(
            f"probabilities must be a floating (labels, height, width) array, not {probs.shape} {probs.dtype}"
        )
    if not 0 < floor < 1:
        raise ValueError(f"floor {floor!r} must lie between 0 and 1")
    if probs.size:
        low, high = float(probs.min()), float(probs.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # nan, too
            raise ValueError(f"probabilities must lie in 0..1, not {low:g}..{high:g}; are these logits?")
    unary: UnaryKHW = np.clip(probs, floor, 1.0, dtype=np.float32, order="C")
    np.log(unary, out=unary)
    np.negative(unary, out=unary)
    return unary


def check_layout(shape: tuple[int, ...], size_hw: tuple[int, int]) -> None:
    """Raise ``ValueError`` where ``shape`` is no (labels, height, width) at any grid over an image of ``size_hw``.

    A grid that has the image's shape only if its axes change places is refused: it would be stretched to a wrong mask.
    """
    height, width = size_hw
    if len(shape) == 4:
        fix = "array[0] takes off the batch axis" if shape[0] == 1 else "one array an image: array[i]"
        raise ValueError(f"expected (labels, height, width), not {shape}: {fix}")
    if len(shape) == 2:
        raise ValueError(f"expected (labels, height, width), not {shape}: of one map, np.stack([1 - array, array])")
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"expected (labels, height, width), at least one of each, not {shape}")
    if shape[1:] == size_hw:
        return
    of_image = f"the image is {height} x {width} (height x width)"
    if shape[:2] == size_hw:
        raise ValueError(f"{shape}, and {of_image}: labels last? array.transpose(2, 0, 1)")
    if shape[:2] == (width, height):
        raise ValueError(f"{shape}, and {of_image}: labels last and transposed? array.transpose(2, 1, 0)")
    if shape[1:] == (width, height) or (not _alike(shape[1:], size_hw) and _alike(shape[1:], (width, height))):
        raise ValueError(f"{shape}, and {of_image}: transposed? array.transpose(0, 2, 1)")
    if shape[0] >= UNDECIDED or (not _alike(shape[1:], size_hw) and _alike(shape[:2], size_hw)):
        raise ValueError(f"{shape}, and {of_image}: labels last? array.transpose(2, 0, 1)")


def _alike(grid: Sequence[int], size_hw: tuple[int, int]) -> bool:
    """Whether a grid has the proportions of ``size_hw``, give or take a cell."""
    (rows, columns), (height, width) = grid, size_hw
    return (rows - 1) * width <= (columns + 1) * height and (columns - 1) * height <= (rows + 1) * width


OWN_TO_OTHER = 20.0
"""How many times as likely a label map's own label is as each other: 0.5 with VOC's 21 labels, the usual value."""


def from_labels(labels_hw: NDArray[Any], k: int, gt_prob: float | None = None, unknown: int = UNDECIDED) -> UnaryKHW:
    """Energies of a label map that is right with probability ``gt_prob``.

    ``-log(gt_prob)`` for a pixel's own label, ``-log((1 - gt_prob) / (k - 1))`` for every other, ``-log(1 / k)`` for
    all labels where the map holds ``unknown``.

    Args:
        labels_hw: (H, W) integer, 0..k-1 and ``unknown``.
        k: number of labels, background included; any number from 1.
        gt_prob: 1 / k < gt_prob < 1: at 1 / k the map says nothing, below it speaks against itself. Default: the own
            label is :data:`OWN_TO_OTHER` times as likely as each other, whatever k is.
        unknown: the value that means "any label".

    ``pydensecrf.utils.unary_from_labels`` gives the same, with 0 in the place of ``unknown`` and labels from 1.
    Raises ``ValueError`` for another shape or dtype and for labels that do not exist.
    """
    labels = np.asarray(labels_hw)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be an integer (height, width) array, not {labels.shape} {labels.dtype}")
    if k < 1:
        raise ValueError(f"number of labels must be at least 1, not {k}")
    if gt_prob is None:
        gt_prob = OWN_TO_OTHER / (OWN_TO_OTHER + k - 1) if k > 1 else 0.5
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob {gt_prob!r} must lie between 0 and 1")
    if k > 1 and gt_prob <= 1 / k:
        raise ValueError(
            f"gt_prob {gt_prob:g} with {k} labels makes a pixel's own label no likelier than the others; give more than"
            f" {1 / k:.3g}, or leave it out"
        )
    open_hw = labels == unknown
    foreign = ~open_hw & ((labels < 0) | (labels >= k))
    if foreign.any():
        y, x = np.argwhere(foreign)[0]
        raise ValueError(f"label {labels[y, x]} at row {y}, column {x}: labels are 0..{k - 1}, {unknown} is unknown")
    other = -math.log((1.0 - gt_prob) / (k - 1)) if k > 1 else 0.0
    unary = np.full((k, *labels.shape), other, dtype=np.float32)
    own = np.where(open_hw, 0, labels).astype(np.intp)
    np.put_along_axis(unary, own[None], np.float32(-math.log(gt_prob)), axis=0)
    unary[:, open_hw] = math.log(k)
    return unary


def from_box_prior(
    boxes_xyxy: Sequence[Sequence[float]] | NDArray[Any],
    classes_n: Sequence[int] | NDArray[Any],
    size_hw: tuple[int, int],
    k: int,
    core: float = 0.2,
) -> UnaryKHW:
    """Boxes as constraints of a CRF: Bbox-Seg (Papandreou et al. 2015, section 3.2).

    Outside of all boxes a pixel is background; the middle of a box, ``core`` of its pixels, is its class; in between
    it is either, and the CRF decides. Smaller boxes lie in front of larger ones: in a smaller box the larger one's
    middle leaves the smaller one's class open [infer: the paper's rule for overlaps is about filled boxes].

    Args:
        boxes_xyxy: N boxes, pixel edges, half-open; may stick out.
        classes_n: N class numbers, 1..k.
        size_hw: height and width of the image.
        k: number of classes; there are k + 1 labels, 0 is background.
        core: share of a box's area that is certain, a centred rectangle; 0: none; default by the released code's
            name for its best setting, "bboxErode20" [infer].

    Returns (k + 1, H, W): 0 for a label that a pixel may have, :data:`FORBIDDEN` for one it cannot have. Raises
    ``ValueError`` for an inverted or non-finite box and for class numbers that do not exist.
    """
    if len(boxes_xyxy) != len(classes_n):
        raise ValueError(f"{len(boxes_xyxy)} boxes have {len(classes_n)} class numbers")
    if not 0 <= core <= 1:
        raise ValueError(f"core {core!r} must lie in 0..1")
    unary = np.full((k + 1, *size_hw), FORBIDDEN, dtype=np.float32)
    unary[0] = 0.0
    boxes = [(tuple(float(v) for v in box), int(number)) for box, number in zip(boxes_xyxy, classes_n, strict=True)]
    for box_xyxy, number in sorted(boxes, key=lambda one: -_area(one[0])):
        if not 1 <= number <= k:
            raise ValueError(f"class number {number} of box {box_xyxy}: classes are 1..{k}")
        x0, y0, x1, y1 = pixel_window(box_xyxy, size_hw)
        unary[number, y0:y1, x0:x1] = 0.0
        if core > 0 and x0 < x1:
            left, top, right, bottom = pixel_window(_shrunk(box_xyxy, math.sqrt(core)), size_hw)
            unary[:, top:bottom, left:right] = FORBIDDEN
            unary[number, top:bottom, left:right] = 0.0
    return unary


def _area(box_xyxy: Sequence[float]) -> float:
    x0, y0, x1, y1 = box_xyxy
    return (x1 - x0) * (y1 - y0)


def _shrunk(box_xyxy: Sequence[float], share: float) -> tuple[float, float, float, float]:
    """The box with the same centre and ``share`` of its sides."""
    x0, y0, x1, y1 = box_xyxy
    dx, dy = (x1 - x0) * (1 - share) / 2, (y1 - y0) * (1 - share) / 2
    return x0 + dx, y0 + dy, x1 - dx, y1 - dy
