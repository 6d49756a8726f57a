"""How sure a run may be of each pixel of its masks: a uint8 map from what its stages already know.

Four cues of a pixel, each 0 (nothing speaks for its label) to 1, are functions of their own; which of them there are
depends on the flow (``docs/suspicion.md``). A logistic function of their sum gives the map: 255 times what would be the
chance that the pixel is right, on the drawn pictures that :data:`WEIGHTS` were fitted to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.cache.store import MaskStore
from artifacts.export.items import Doubts
from artifacts.images import read_image_rgb
from artifacts.objects import clip_window, tight_window, unpack_objects
from artifacts.records import UNDECIDED, ImageRGB, MaskHW, size_of
from tasks.evaluate.run_suspicion import Beside, sampled, summary, suspects
from tasks.evaluate.suspicion import MaskBool, Window, colours, foreign_share, with_context
from tasks.stage import LABEL_PROB

VERSION = 1
"""Of the maps: raised when equal masks get other ones."""
Cue = NDArray[np.float32]
WEIGHTS: Mapping[str, float] = {"depth": 0.7, "colour": 3.6, "margin": 1.6, "agreement": 1.4}
"""Weight of each cue in the logistic function's sum; a cue that is not known counts as a half."""
OFFSET = -2.8
DEPTH = 0.08
"""Of the root of an object's window, the distance from its outline at which the outline says no more."""
CERTAIN = 255
"""Confidence where labels say what a pixel is: a person's mask, background outside of all boxes of masks from boxes."""


def depth(mask_hw: MaskHW, scale_hw: NDArray[np.float32]) -> Cue:
    """Distance from the nearest pixel of another label, in units of ``scale_hw`` pixels, at most 1: masks are wrong
    at their outlines first. 1 everywhere where there is but one label."""
    outline = np.zeros(mask_hw.shape, np.bool_)
    for axis in (0, 1):
        change = np.diff(mask_hw.astype(np.int16), axis=axis) != 0
        first, last = [slice(None)] * 2, [slice(None)] * 2
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        outline[tuple(first)] |= change
        outline[tuple(last)] |= change
    if not outline.any():
        return np.ones(mask_hw.shape, np.float32)
    distance = cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(np.minimum(1, (distance + 1) / (scale_hw + 1)), np.float32)


def agreement(mask_hw: MaskHW, others: Iterable[MaskHW]) -> Cue | None:
    """Share of the other stages' masks that give the pixel the same label; where one says 255 it counts as a half.

    ``None`` without any of this size.
    """
    votes = [
        np.where(other == UNDECIDED, np.float32(0.5), (other == mask_hw).astype(np.float32))
        for other in others
        if other.shape == mask_hw.shape
    ]
    return None if not votes else np.mean(votes, axis=0, dtype=np.float32)


Part = tuple[int, Window, MaskBool]
"""Class number, window in the image, mask in the window: of one object, or of one class."""


def colour(mask_hw: MaskHW, parts: Iterable[Part], colour_hw: NDArray[np.int64]) -> Cue:
    """How well the pixel's colour fits its label: of each window around it the share of the label's side in that colour
    (:func:`tasks.evaluate.suspicion.foreign_share`), the least of all windows; a half where there is no window.

    Args:
        mask_hw: the label map.
        parts: what is labelled in it.
        colour_hw: :func:`tasks.evaluate.suspicion.colours` of the image.
    """
    height, width = mask_hw.shape
    found_hw = np.full(mask_hw.shape, np.inf, np.float32)
    for class_id, (x0, y0, x1, y1), part_hw in parts:
        left, top, right, bottom = with_context((x0, y0, x1, y1), (height, width))
        wide_hw, around_hw = np.zeros((2, bottom - top, right - left), np.bool_)
        own = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        around_hw[:] = True
        around_hw[own] = False
        wide_hw[own] = part_hw
        if not part_hw.any() or not around_hw.any():
            continue
        foreign_hw = foreign_share(colour_hw[top:bottom, left:right], wide_hw, around_hw)[colour_hw[y0:y1, x0:x1]]
        place = slice(y0, y1), slice(x0, x1)
        fits_hw = np.where(part_hw, 1 - foreign_hw, foreign_hw)
        told = part_hw | (mask_hw[place] != class_id)  # another object of the class may have other colours
        found_hw[place][told] = np.minimum(found_hw[place], fits_hw)[told]
    return np.where(np.isinf(found_hw), np.float32(0.5), found_hw)


def margin(mask_hw: MaskHW, stored: Mapping[str, NDArray[Any]]) -> Cue | None:
    """The probability that a network gave to the pixel's label, of the labels that it knew of; ``None`` if a stage has
    kept none. Objects' probabilities are of foreground in their windows; outside of all, a half."""
    if LABEL_PROB in stored and "mask_hw" in stored:
        return np.where(stored["mask_hw"] == mask_hw, stored[LABEL_PROB] / np.float32(255), np.float32(0.5))
    if "probs_chw" in stored and "classes_c" in stored:
        classes = stored["classes_c"].tolist()
        height, width = mask_hw.shape
        probs_hwc = stored["probs_chw"].astype(np.float32).transpose(1, 2, 0)
        probs_hwc = np.atleast_3d(cv2.resize(np.ascontiguousarray(probs_hwc), (width, height)))
        whole_hw = probs_hwc.sum(axis=2) + 1e-9
        found_hw = np.full(mask_hw.shape, 0.5, np.float32)
        for channel, number in enumerate(classes):
            here = mask_hw == number
            found_hw[here] = (probs_hwc[..., channel] / whole_hw)[here]
        return found_hw
    if "objects_flat" not in stored or stored["objects_flat"].dtype.kind != "f" or "object_classes_n" not in stored:
        return None
    size_hw = size_of(mask_hw)
    own_hw = np.full(mask_hw.shape, -1, np.float32)
    rest_hw = np.full(mask_hw.shape, -1, np.float32)
    for item, number in zip(unpack_objects(stored), stored["object_classes_n"].tolist(), strict=True):
        place, part = clip_window(item.window_xyxy, size_hw)
        prob_hw = item.values_hw[part].astype(np.float32)
        same = mask_hw[place] == number
        own_hw[place] = np.where(same, np.maximum(own_hw[place], prob_hw), own_hw[place])
        rest_hw[place] = np.where(same, rest_hw[place], np.maximum(rest_hw[place], prob_hw))
    labelled = own_hw >= 0
    known = labelled | (rest_hw >= 0)
    return np.where(known, np.where(labelled, own_hw, 1 - rest_hw), np.float32(0.5)).astype(np.float32)


def cues(
    arrays: Mapping[str, NDArray[Any]], above: Iterable[Mapping[str, NDArray[Any]]], image_rgb: ImageRGB, array: str
) -> tuple[dict[str, Cue], MaskBool]:
    """The cues that there are of every pixel of a stage's masks ``array``, and where labels alone say what it is.

    Args:
        arrays: the stage's.
        above: the other stages', in page order.
        image_rgb: the picture.
        array: ``mask_hw`` or ``mask_crf_hw``.
    """
    mask_hw = arrays[array]
    height, width = size_hw = size_of(mask_hw)
    with_boxes = "objects_flat" in arrays and "object_classes_n" in arrays
    parts = _objects(arrays, size_hw) if with_boxes else _classes(mask_hw)
    scale_hw = np.full(size_hw, DEPTH * np.sqrt(height * width), np.float32)
    inside_hw = np.zeros(size_hw, np.bool_)
    for _, (x0, y0, x1, y1), part_hw in parts:
        place = slice(y0, y1), slice(x0, x1)
        scale_hw[place] = np.minimum(scale_hw[place], DEPTH * np.sqrt(part_hw.size))
        inside_hw[place] = True
    above = list(above)
    masks = [one["mask_hw"] for one in above if "mask_hw" in one]
    masks += [arrays[name] for name in ("mask_hw", "mask_crf_hw") if name in arrays and name != array]
    found = {"depth": depth(mask_hw, scale_hw), "colour": colour(mask_hw, parts, colours(image_rgb))}
    if (agreed := agreement(mask_hw, masks)) is not None:
        found["agreement"] = agreed
    for one in reversed([*above, arrays]):  # the latest network
        if (known := margin(mask_hw, one)) is not None:
            found["margin"] = known
            break
    return found, ~inside_hw & (mask_hw == 0) if with_boxes else np.zeros(size_hw, np.bool_)


def _objects(arrays: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> list[Part]:
    found = []
    for item, class_id in zip(unpack_objects(arrays), arrays["object_classes_n"].tolist(), strict=True):
        (rows, columns), part = clip_window(item.window_xyxy, size_hw)
        found.append((class_id, (columns.start, rows.start, columns.stop, rows.stop), item.mask_hw[part]))
    return found


def _classes(mask_hw: MaskHW) -> list[Part]:
    found = []
    for number in np.unique(mask_hw[(mask_hw > 0) & (mask_hw != UNDECIDED)]).tolist():
        window = x0, y0, x1, y1 = tight_window(mask_hw == number)
        found.append((number, window, mask_hw[y0:y1, x0:x1] == number))
    return found


def together(found: Mapping[str, Cue], weights: Mapping[str, float] = WEIGHTS, offset: float = OFFSET) -> Cue:
    """The logistic function of the cues' weighted sum, 0..1; a cue that is not known counts as a half."""
    total: Any = offset + sum(weight * found.get(name, np.float32(0.5)) for name, weight in weights.items())
    return np.asarray(1 / (1 + np.exp(-total)), np.float32)


def confidence_map(
    arrays: Mapping[str, NDArray[Any]],
    above: Iterable[Mapping[str, NDArray[Any]]],
    image_rgb: ImageRGB,
    array: str = "mask_hw",
) -> NDArray[np.uint8]:
    """``(H, W) uint8`` of one picture; 0 where the mask is undecided. Arguments as of :func:`cues`."""
    found, certain_hw = cues(arrays, above, image_rgb, array)
    confidence_hw = np.round(255 * together(found)).astype(np.uint8)
    confidence_hw[certain_hw] = CERTAIN
    confidence_hw[arrays[array] == UNDECIDED] = 0
    return confidence_hw


def doubts_of(store: MaskStore | Path, manifest: Mapping[str, Any], label: str, array: str = "mask_hw") -> Doubts:
    """What an export can tell of a stage's masks: confidence maps, and a summary of their suspicion.

    A picture that a person has corrected is certain. Raises :class:`artifacts.records.DataError` for an unknown stage.
    """
    beside = Beside.of(store, manifest, label)

    def confidence(image_id: str) -> NDArray[np.uint8]:
        key = f"{beside.stage['dataset']}/{image_id}"
        arrays = beside.mine(key)
        if key in beside.corrected:
            return np.full(arrays[array].shape, CERTAIN, np.uint8)
        return confidence_map(arrays, beside.above(key), read_image_rgb(beside.image(key)), array)

    def suspicion() -> dict[str, Any] | None:
        return summary(suspects(store, manifest, label, only=sampled(beside.pictures)))

    return Doubts(confidence, keys.digest([VERSION, beside.made_from, array]), suspicion)
