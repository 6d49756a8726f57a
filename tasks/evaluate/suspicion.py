"""Which masks are likely wrong, without truth: cues from what the stages already know, and their order together.

Each cue is a function, 0 (nothing speaks against the mask) to 1; ``nan`` where it cannot be told. An object's suspicion
is the mean of its cues by :data:`WEIGHTS`, which were fitted to drawn pictures alone (``benchmarks/suspicion.py``;
``docs/suspicion.md`` says how well they order real ones). It is an order, not a probability.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.objects import clip_window, tight_window
from artifacts.records import ImageRGB

MaskBool = NDArray[np.bool_]
Window = tuple[int, int, int, int]

CUES = (
    "leak",
    "missed",
    "edges",
    "tightness",
    "claimed",
    "objectness",
    "disagreement",
    "margin",
    "size",
    "share",
    "fragments",
)
"""Names of the cues, in the order of the table in ``docs/suspicion.md``."""
WEIGHTS: Mapping[str, float] = {
    "leak": 0.2,
    "missed": 0.2,
    "edges": 0.35,
    "tightness": 0.2,
    "claimed": 0.3,
    "objectness": 0.3,
    "disagreement": 0.3,
}
"""Weight of each cue; a cue that cannot be told is left out of the mean, and so are those that are not named: they
were of no use on held-out drawn objects."""
CONTEXT = 0.5
"""Of the box's sides, what is looked at beside it on each side; two pixels more for small boxes."""
STRONG = 75
"""Percentile from which an edge is strong."""
_THREE = np.ones((3, 3), np.uint8)
USUAL_AT_LEAST = 5
"""Objects of a class from which its usual share is taken; of rarer classes, that of all objects."""


@dataclass(frozen=True)
class ObjectCues:
    """What speaks against one object's mask."""

    object_id: int
    class_id: int
    area: int
    """Pixels of its mask."""
    share: float
    """Of its window, the share that the mask fills."""
    cues: Mapping[str, float]
    """All of :data:`CUES` but ``share``, which needs the other objects (:func:`all_cues`), and ``objectness``, which
    needs a network (:mod:`tasks.evaluate.objectness`)."""


def disagreement(mask_hw: MaskBool, window_xyxy: Window, others: Iterable[tuple[Window, MaskBool]]) -> float:
    """1 less the mean IoU with the masks that other stages made of the object; ``nan`` without any."""
    ious = [_iou(mask_hw, window_xyxy, other_hw, other_xyxy) for other_xyxy, other_hw in others]
    return 1 - sum(ious) / len(ious) if ious else math.nan


def unusual_share(share: float, usual: float) -> float:
    """How far the share of the window that is filled lies from the usual one: 0 there, 1 at empty or full."""
    room = usual if share < usual else 1 - usual
    return abs(share - usual) / room if room > 0 else 0.0


def tightness(mask_hw: MaskBool) -> float:
    """Of the box (the mask's window), the share outside of the mask's own tight box: an object reaches all sides."""
    x0, y0, x1, y1 = tight_window(mask_hw)
    return 1 - (x1 - x0) * (y1 - y0) / mask_hw.size


def edge_support(strength_hw: NDArray[Any], mask_hw: MaskBool) -> float:
    """Share of the outline that lies on no strong edge: none of its 3 x 3 pixels is among the strongest quarter.

    Args:
        strength_hw: ``(h, w)`` of the window and what is around it, >= 0: :func:`gradient`, or boundaries by HED.
        mask_hw: of the same size.

    ``nan`` where the mask has no outline there (it is empty, or all).
    """
    outline = mask_hw & (cv2.erode(mask_hw.astype(np.uint8), _THREE, borderType=cv2.BORDER_REPLICATE) == 0)
    if not outline.any():
        return math.nan
    near = cv2.dilate(np.asarray(strength_hw, np.float32), _THREE)
    return float((near[outline] <= np.percentile(strength_hw, STRONG)).mean())


def leak_and_missed(colour_hw: NDArray[np.int64], mask_hw: MaskBool, box_hw: MaskBool) -> tuple[float, float]:
    """How much the mask looks like what surrounds the box, and how much of the rest of the box does not.

    The surroundings are background for certain (but for other objects). Of a colour that is ``m`` of the mask and
    ``s`` of the surroundings, ``s / (m + s)`` is foreign to the mask: ``leak`` is its mean over the mask; ``missed`` is
    the mean of ``m / (m + s)`` over the pixels of the box that are not of the mask.

    Args:
        colour_hw: ``(h, w)`` of the window and what is around it: :func:`colours`.
        mask_hw: of the same size.
        box_hw: where the box is.

    ``nan`` where there are no such pixels.
    """
    around_hw, rest_hw = ~box_hw, box_hw & ~mask_hw
    if not mask_hw.any() or not around_hw.any():
        return math.nan, math.nan
    likeness = foreign_share(colour_hw, mask_hw, around_hw)
    leak = float(likeness[colour_hw[mask_hw]].mean())
    return leak, float(1 - likeness[colour_hw[rest_hw]].mean()) if rest_hw.any() else math.nan


def foreign_share(colour_hw: NDArray[np.int64], mask_hw: MaskBool, around_hw: MaskBool) -> NDArray[np.float32]:
    """Of each colour, ``s / (m + s)``: how much more it is one of the surroundings than of the mask, ``(2048,)``."""
    own, foreign = _shares(colour_hw[mask_hw]), _shares(colour_hw[around_hw])
    return np.asarray(foreign / (own + foreign + 1e-9), np.float32)


_LIGHTNESS = np.arange(256) // 32 * 256
_B = np.clip((np.arange(256) - 128) // 8 + 8, 0, 15)
_A = 16 * _B


def colours(image_rgb: ImageRGB) -> NDArray[np.int64]:
    """``(H, W)``: each pixel's cell of CIELAB, 8 steps of lightness by 16 by 16 of a and b around grey."""
    lab = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2LAB)
    return np.asarray(_LIGHTNESS[lab[..., 0]] + _A[lab[..., 1]] + _B[lab[..., 2]])


def _shares(colour_n: NDArray[np.int64]) -> NDArray[np.float32]:
    """Share of each of the 2048 cells, smoothed over neighbours in a and b (sigma 1)."""
    counts = np.bincount(colour_n, minlength=2048).reshape(8, 16, 16).astype(np.float32)
    smooth = cv2.GaussianBlur(np.ascontiguousarray(counts.transpose(1, 2, 0)), (0, 0), 1.0)
    shares = np.asarray(smooth.transpose(2, 0, 1).ravel(), np.float32)
    return shares / np.float32(max(float(shares.sum()), 1e-9))


def claimed(mask_hw: MaskBool, window_xyxy: Window, rivals: Iterable[tuple[Window, MaskBool]]) -> float:
    """Share of the mask that the masks of other objects of the picture claim, too; ``nan`` for an empty mask."""
    taken_hw = np.zeros(mask_hw.shape, np.bool_)
    left, top, right, bottom = window_xyxy
    for (x0, y0, x1, y1), rival_hw in rivals:
        cut = max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)
        if cut[0] < cut[2] and cut[1] < cut[3]:
            part_hw = rival_hw[cut[1] - y0 : cut[3] - y0, cut[0] - x0 : cut[2] - x0]
            taken_hw[cut[1] - top : cut[3] - top, cut[0] - left : cut[2] - left] |= part_hw
    return float(taken_hw[mask_hw].mean()) if mask_hw.any() else math.nan


def fragments(mask_hw: MaskBool) -> float:
    """Share of the mask outside of its largest connected part, holes counted as parts that are missing."""
    if not mask_hw.any():
        return 1.0
    _, _, parts, _ = cv2.connectedComponentsWithStats(mask_hw.astype(np.uint8), connectivity=8)
    framed = np.pad(~mask_hw, 1, constant_values=True).astype(np.uint8)
    _, marks, holes, _ = cv2.connectedComponentsWithStats(framed, connectivity=4)
    around = marks[0, 0]
    in_holes = sum(int(area) for mark, (*_, area) in enumerate(holes) if mark not in (0, around))
    area = int(mask_hw.sum())
    return (area - int(parts[1:, cv2.CC_STAT_AREA].max()) + in_holes) / (area + in_holes)


def margin(prob_hw: NDArray[Any]) -> float:
    """Mean doubt of a network's probabilities in the window: 0 where all are 0 or 1, 1 where all are a half."""
    return float(1 - np.abs(2 * prob_hw.astype(np.float32) - 1).mean()) if prob_hw.size else math.nan


def smallness(area: int) -> float:
    """1 for an object without pixels, a half at 32 x 32, towards 0 for large ones."""
    return 1 / (1 + math.sqrt(area) / 32)


def gradient(image_rgb: ImageRGB) -> NDArray[np.float32]:
    """``(H, W)``: the largest of the three channels' gradients (Sobel, after a slight blur)."""
    smooth = cv2.GaussianBlur(image_rgb, (0, 0), 1.0).astype(np.float32)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    # One by one: numpy's maximum over an axis of three is ten times as slow.
    squares = [across[..., channel] ** 2 + down[..., channel] ** 2 for channel in range(3)]
    return np.asarray(np.sqrt(np.maximum(np.maximum(squares[0], squares[1]), squares[2])), np.float32)


def object_cues(
    object_id: int,
    class_id: int,
    mask_hw: MaskBool,
    window_xyxy: Window,
    colour_hw: NDArray[np.int64],
    strength_hw: NDArray[Any],
    others: Sequence[tuple[Window, MaskBool]] = (),
    rivals: Sequence[tuple[Window, MaskBool]] = (),
    prob_hw: NDArray[Any] | None = None,
) -> ObjectCues:
    """All cues of one object.

    Args:
        object_id: as in ``Box.id``.
        class_id: its class number.
        mask_hw: in its window.
        window_xyxy: its box in pixels.
        colour_hw: :func:`colours` of the whole image.
        strength_hw: :func:`gradient` of it, or its boundaries.
        others: window and mask of the object in other stages.
        rivals: window and mask of the picture's other objects.
        prob_hw: a network's probabilities in some window of the object.
    """
    height, width = colour_hw.shape
    inside, part = clip_window(window_xyxy, (height, width))
    mask_hw = mask_hw[part]
    x0, y0, x1, y1 = clipped = inside[1].start, inside[0].start, inside[1].stop, inside[0].stop
    left, top, right, bottom = with_context(clipped, (height, width))
    wide_hw, box_hw = (np.zeros((bottom - top, right - left), np.bool_) for _ in range(2))
    own = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    wide_hw[own], box_hw[own] = mask_hw, True
    leak, missed = leak_and_missed(colour_hw[top:bottom, left:right], wide_hw, box_hw)
    area = int(mask_hw.sum())
    cues = {
        "leak": leak,
        "missed": missed,
        "edges": edge_support(strength_hw[top:bottom, left:right], wide_hw),
        "tightness": tightness(mask_hw) if mask_hw.size else 1.0,
        "claimed": claimed(mask_hw, clipped, rivals),
        "size": smallness(area),
        "fragments": fragments(mask_hw),
        "disagreement": disagreement(mask_hw, clipped, others),
        "margin": math.nan if prob_hw is None else margin(prob_hw),
    }
    return ObjectCues(object_id, class_id, area, area / mask_hw.size if mask_hw.size else 0.0, cues)


def with_context(window_xyxy: Window, size_hw: tuple[int, int]) -> Window:
    """A window that lies in the image, with what is around it (:data:`CONTEXT`)."""
    x0, y0, x1, y1 = window_xyxy
    dx, dy = int(CONTEXT * (x1 - x0)) + 2, int(CONTEXT * (y1 - y0)) + 2
    return max(0, x0 - dx), max(0, y0 - dy), min(size_hw[1], x1 + dx), min(size_hw[0], y1 + dy)


def usual_shares(objects: Iterable[ObjectCues]) -> dict[int, float]:
    """Class number -> the median share of their windows that its objects fill; of a rare class, that of all objects."""
    shares: dict[int, list[float]] = {}
    for one in objects:
        shares.setdefault(one.class_id, []).append(one.share)
    every = [share for found in shares.values() for share in found]
    usual = float(np.median(every)) if every else 0.5
    return {
        class_id: float(np.median(found)) if len(found) >= USUAL_AT_LEAST else usual
        for class_id, found in shares.items()
    }


def all_cues(one: ObjectCues, usual: Mapping[int, float]) -> dict[str, float]:
    """Every cue of one object by name."""
    return {"objectness": math.nan, **one.cues, "share": unusual_share(one.share, usual[one.class_id])}


def suspicion(cues: Mapping[str, float], weights: Mapping[str, float] = WEIGHTS) -> float:
    """The weighted mean of the cues that are known, 0..1."""
    known = {name: cues[name] for name in weights if not math.isnan(cues.get(name, math.nan)) and weights[name]}
    total = sum(weights[name] for name in known)
    return sum(weights[name] * value for name, value in known.items()) / total if total else 0.0


def picture_suspicion(objects: Sequence[tuple[float, int]]) -> float:
    """A picture's suspicion from its objects' ``(suspicion, area of their windows)``: the mean by the root of the area.

    0 for a picture without objects. Large objects decide a picture's score more than small ones, not in proportion:
    classes count alike.
    """
    weights = [math.sqrt(max(area, 1)) for _, area in objects]
    return sum(value * w for (value, _), w in zip(objects, weights, strict=True)) / sum(weights) if objects else 0.0


def _iou(a_hw: MaskBool, a_xyxy: Window, b_hw: MaskBool, b_xyxy: Window) -> float:
    """IoU of two masks in windows of their own; of two empty ones 1."""
    x0, y0 = max(a_xyxy[0], b_xyxy[0]), max(a_xyxy[1], b_xyxy[1])
    x1, y1 = min(a_xyxy[2], b_xyxy[2]), min(a_xyxy[3], b_xyxy[3])
    both = 0
    if x0 < x1 and y0 < y1:
        a = a_hw[y0 - a_xyxy[1] : y1 - a_xyxy[1], x0 - a_xyxy[0] : x1 - a_xyxy[0]]
        b = b_hw[y0 - b_xyxy[1] : y1 - b_xyxy[1], x0 - b_xyxy[0] : x1 - b_xyxy[0]]
        both = int((a & b).sum())
    union = int(a_hw.sum()) + int(b_hw.sum()) - both
    return both / union if union else 1.0
