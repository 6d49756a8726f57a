"""The suspicion of a run's masks, from its manifest and cache: of every object and picture of one stage."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.runs import read_stamps
from artifacts.cache.store import MaskStore
from artifacts.images import read_image_rgb
from artifacts.objects import Object, tight_window, unpack_objects
from artifacts.records import UNDECIDED, DataError
from tasks.evaluate.suspicion import (
    MaskBool,
    ObjectCues,
    Window,
    all_cues,
    colours,
    gradient,
    object_cues,
    picture_suspicion,
    suspicion,
    usual_shares,
)

EDGES = "edges_hw"


@dataclass(frozen=True)
class Suspect:
    """One picture's suspicion, 0..1, and its objects' as ``(id, class, suspicion, area)``, the worst first."""

    key: str
    suspicion: float
    objects: tuple[tuple[int, int, float, int], ...]


def suspects(
    cache: Path, manifest: Mapping[str, Any], label: str, *, only: Collection[str] | None = None
) -> dict[str, Suspect]:
    """Key -> suspicion of each picture that stage ``label`` has a mask of; ``only`` these keys, if named.

    An image that cannot be read any more is left out.
    """
    cues = run_cues(cache, manifest, label, only=only)
    usual = usual_shares(one for found in cues.values() for one in found)
    found = {}
    for key, objects in cues.items():
        scored = [(one.object_id, one.class_id, suspicion(all_cues(one, usual)), one.area) for one in objects]
        scored.sort(key=lambda one: (-one[2], one[0]))
        found[key] = Suspect(key, picture_suspicion([(value, area) for _, _, value, area in scored]), tuple(scored))
    return found


def run_cues(
    cache: Path, manifest: Mapping[str, Any], label: str, *, only: Collection[str] | None = None
) -> dict[str, list[ObjectCues]]:
    """Key -> cues of each object of stage ``label``; of each class of the picture, where it keeps no objects.

    Other map stages of the run over the same images give what they know: masks of the same objects (or of the class)
    for disagreement, probabilities of objects for the margin, ``edges_hw`` for the outline's support.
    """
    stages = [one for one in manifest["stages"] if one["kind"] == "map" and one["stamps"]]
    mine = next((one for one in stages if one["label"] == label), None)
    if mine is None:
        raise DataError(f"run {manifest['run']}: no complete map stage {label!r}")
    same = ("dataset", "split")
    others = [one for one in stages if one is not mine and all(one[name] == mine[name] for name in same)]
    stamps = {one["label"]: read_stamps(cache, one["stamps"]) for one in [mine, *others]}
    store = MaskStore(cache, readonly=True)

    def read(stage: Mapping[str, Any], key: str) -> dict[str, NDArray[Any]]:
        stamp, _ = stamps[stage["label"]].get(key, (None, ""))
        return {} if stamp is None else dict(store.read(stage["address"], key, stamp))

    found: dict[str, list[ObjectCues]] = {}
    for key, (stamp, image) in sorted(stamps[label].items()):
        if stamp is None or (only is not None and key not in only):
            continue
        try:
            image_rgb = read_image_rgb(Path(image))
        except (DataError, OSError):
            continue
        above = [arrays for one in others if (arrays := read(one, key))]
        strength_hw = next((arrays[EDGES] for arrays in above if EDGES in arrays), None)
        if strength_hw is None or strength_hw.shape != image_rgb.shape[:2]:
            strength_hw = gradient(image_rgb)
        colour_hw = colours(image_rgb)
        arrays = read(mine, key)
        found[key] = [
            object_cues(object_id, class_id, mask_hw, window, colour_hw, strength_hw, masks, rivals, probs)
            for object_id, class_id, window, mask_hw, masks, rivals, probs in _objects(arrays, above)
        ]
        if "objects_flat" not in arrays:  # no box is known that a mask could fail to fill
            found[key] = [replace(one, cues={**one.cues, "tightness": math.nan}) for one in found[key]]
    return found


_Masks = list[tuple[Window, MaskBool]]
_One = tuple[int, int, Window, MaskBool, _Masks, _Masks, NDArray[Any] | None]


def _objects(arrays: Mapping[str, NDArray[Any]], above: list[dict[str, NDArray[Any]]]) -> list[_One]:
    """Id, class, window, mask, other stages' masks, other objects', probabilities: of each object, or of each class."""
    if "objects_flat" not in arrays or "object_classes_n" not in arrays:
        return _classes(arrays["mask_hw"], [one["mask_hw"] for one in above if "mask_hw" in one])
    objects = unpack_objects(arrays)
    classes = arrays["object_classes_n"].tolist()
    known: list[dict[int, Object]] = [
        {item.id: item for item in unpack_objects(one)} for one in above if "objects_flat" in one
    ]
    found = []
    for item, class_id in zip(objects, classes, strict=True):
        seen = [one[item.id] for one in known if item.id in one]
        probs = [one.values_hw for one in [item, *seen] if one.values_hw.dtype.kind == "f"]
        masks = [(one.window_xyxy, one.mask_hw) for one in seen]
        rivals = [(one.window_xyxy, one.mask_hw) for one in objects if one is not item]
        found.append((item.id, class_id, item.window_xyxy, item.mask_hw, masks, rivals, probs[0] if probs else None))
    return found


def _classes(mask_hw: NDArray[np.uint8], others: list[NDArray[np.uint8]]) -> list[_One]:
    """The classes of a picture as its objects, each in the tight box of its pixels."""
    height, width = mask_hw.shape
    found: list[_One] = []
    for number in np.unique(mask_hw).tolist():
        if number in (0, UNDECIDED):
            continue
        window = x0, y0, x1, y1 = tight_window(mask_hw == number)
        masks = [((0, 0, width, height), other == number) for other in others if other.shape == mask_hw.shape]
        found.append((number, number, window, mask_hw[y0:y1, x0:x1] == number, masks, [], None))
    return found
