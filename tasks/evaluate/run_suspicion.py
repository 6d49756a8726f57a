"""The suspicion of a run's masks, from its manifest and cache: of every object and picture of one stage."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.cache import sealed
from artifacts.cache.atomic import write_bytes_atomic
from artifacts.cache.runs import Stamps, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.images import read_image_rgb
from artifacts.objects import Object, tight_window, unpack_objects
from artifacts.records import UNDECIDED, DataError, MaskHW, size_of
from tasks.evaluate import objectness
from tasks.evaluate.suspicion import (
    WEIGHTS,
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
from tasks.stage import CORRECTED, LABEL_PROB

JUDGED = 500
"""Pictures whose suspicion the end of a run looks at, spread evenly; ``maskmill export --worst`` looks at all."""
LISTED = 10
"""Most suspicious pictures that a summary names."""

EDGES = "edges_hw"
TRUTH = "given-masks"
"""Name of the stage that hands on truth: what it knows must not count."""
COPIES = (CORRECTED, "chosen-masks")
"""Names of stages that hand on another's masks, but for some pictures."""


@dataclass(frozen=True)
class Beside:
    """A map stage of a run, and the run's other map stages over the same images: what is known of its masks."""

    store: MaskStore
    stage: Mapping[str, Any]
    others: Sequence[Mapping[str, Any]]
    copied: Sequence[Mapping[str, Any]]
    """The stages whose masks it hands on, where it does."""
    corrected: frozenset[str]
    """Keys of the pictures whose masks are a person's."""
    only: Collection[str] | None = None
    """Keys of the pictures that are asked about; ``None``: all."""

    @classmethod
    def of(
        cls, store: MaskStore | Path, manifest: Mapping[str, Any], label: str, only: Collection[str] | None = None
    ) -> Beside:
        """``store``: a run's own, whose index is loaded; or its folder.

        Raises :class:`DataError` where the run has no such complete stage.
        """
        stages = [one for one in manifest["stages"] if one["kind"] == "map" and one["stamps"]]
        mine = next((one for one in stages if one["label"] == label), None)
        if mine is None:
            raise DataError(f"run {manifest['run']}: no complete map stage {label!r}")
        same = ("dataset", "split", "set")  # a part of the pictures, as on the contact sheet, has no set
        beside = [one for one in stages if all(one.get(name) == mine.get(name) for name in same)]
        copied = _copied(beside, mine)
        others = [one for one in beside if one not in copied and _name(one) not in (TRUTH, *COPIES)]
        corrected = frozenset(manifest.get("corrected", ()) if label == manifest.get("masks") else ())
        read = store if isinstance(store, MaskStore) else MaskStore(store, readonly=True)
        return cls(read, mine, others, copied[1:], corrected, only)

    @functools.cached_property
    def stamps(self) -> Mapping[str, Stamps]:
        """Stage -> stamps of the pictures that are asked about, and of those that objectness is learnt from: where
        these are few, memory does not grow with all."""
        stages = [self.stage, *self.copied, *self.others]
        whole = ((one["label"], read_stamps(self.store.root, one["stamps"])) for one in stages)
        if self.only is None:
            return dict(whole)
        wanted = {*self.only, *self.learnt_from}
        return {label: {key: found[key] for key in wanted if key in found} for label, found in whole}

    @property
    def pictures(self) -> list[str]:
        """Keys of the pictures that the stage has a mask of, sorted; of those that are asked about."""
        found = _with_masks(self.stamps[self.stage["label"]])
        return found if self.only is None else [key for key in found if key in self.only]

    @functools.cached_property
    def learnt_from(self) -> list[str]:
        """Keys of some of all pictures of the stage, whichever are asked about: answers must not differ by that."""
        label, stamps = self.stage["label"], self.stage["stamps"]
        every = self.stamps[label] if self.only is None else read_stamps(self.store.root, stamps)
        found = _with_masks(every)
        return sorted(sampled(found, objectness.LEARNS_FROM)) if len(found) >= objectness.AT_LEAST else []

    @property
    def made_from(self) -> str:
        """Digest of all that is known."""
        whole = [[one["address"], one["stamps"]] for one in (self.stage, *self.others, *self.copied)]
        return keys.digest([whole, sorted(self.corrected)])

    def image(self, key: str) -> Path:
        """The picture's file."""
        return Path(self.stamps[self.stage["label"]][key][1])

    def mine(self, key: str) -> dict[str, NDArray[Any]]:
        """The stage's arrays; with the probability of each label, if a stage whose masks it hands on keeps that."""
        found = self._read(self.stage, key)
        for one in self.copied:
            if LABEL_PROB in one["outputs"] and LABEL_PROB not in found:
                kept = self._read(one, key)
                if np.array_equal(kept.get("mask_hw", ()), found.get("mask_hw", ())):
                    found[LABEL_PROB] = kept[LABEL_PROB]
        return found

    def above(self, key: str) -> list[dict[str, NDArray[Any]]]:
        """The other stages' arrays, of those that have any of this picture, in page order."""
        return [arrays for one in self.others if (arrays := self._read(one, key))]

    def _read(self, stage: Mapping[str, Any], key: str) -> dict[str, NDArray[Any]]:
        stamp, _ = self.stamps[stage["label"]].get(key, (None, ""))
        return {} if stamp is None else dict(self.store.read(stage["address"], key, stamp))


def _with_masks(stamps: Stamps) -> list[str]:
    return sorted(key for key, (stamp, _) in stamps.items() if stamp is not None)


def _name(stage: Mapping[str, Any]) -> str:
    return str(stage["address"]).rpartition("-")[0]


def _copied(stages: Sequence[Mapping[str, Any]], mine: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """``mine`` and the stages whose masks it hands on: they agree with it without saying that it is right."""
    found = [mine]
    before = list(stages[: stages.index(mine)])
    while before and _name(found[-1]) in COPIES:
        one = before.pop()
        if "mask_hw" in one["outputs"] and _name(one) != TRUTH:
            found.append(one)
    return found


@dataclass(frozen=True)
class Suspect:
    """One picture's suspicion, 0..1, and its objects' as ``(id, class, suspicion, area)``, the worst first."""

    key: str
    suspicion: float
    objects: tuple[tuple[int, int, float, int], ...]


_LAST: dict[tuple[str, str, frozenset[str] | None], dict[str, Suspect]] = {}
"""The last answer of :func:`suspects`."""
KEPT = "digests/suspicion.json"
"""In the cache: the last answer that the end of a run got. A night with nothing new judges nothing."""
VERSION = 1
"""Of the answers: raised when equal masks get other ones."""


def suspects(
    store: MaskStore | Path,
    manifest: Mapping[str, Any],
    label: str,
    *,
    only: Collection[str] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Suspect]:
    """Key -> suspicion of each picture that stage ``label`` has a mask of; ``only`` these keys, if named.

    A picture that a person corrected has none. An image that cannot be read any more is left out. ``advance`` is called
    at each picture.
    """
    beside = Beside.of(store, manifest, label, only)
    asked = str(beside.store.root), beside.made_from, None if only is None else frozenset(only)
    if asked in _LAST:  # the end of a run asks twice: for the data card, and for the report
        return _LAST[asked]
    knows = bool(beside.learnt_from) and objectness.is_here()
    made_from = keys.digest([beside.made_from, sorted(only or ()), knows, dict(WEIGHTS), VERSION])
    kept = None if only is None else beside.store.root / KEPT
    found = _kept(kept, made_from)
    if found is None:
        found = _judged(beside, advance)
        if kept is not None and not beside.store.readonly:
            listed = {key: [one.suspicion, one.objects] for key, one in found.items()}
            write_bytes_atomic(kept, sealed.seal({"made_from": made_from, "pictures": listed}), durable=False)
    _LAST.clear()
    _LAST[asked] = found
    return found


def _kept(path: Path | None, made_from: str) -> dict[str, Suspect] | None:
    """The answer that is kept, if it is the one; anything odd counts as none, since it can be had again."""
    try:
        stored = sealed.unseal(path.read_bytes()) if path is not None else {}
        if stored.get("made_from") != made_from:
            return None
        return {
            key: Suspect(key, value, tuple((number, kind, doubt, area) for number, kind, doubt, area in objects))
            for key, (value, objects) in stored["pictures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _judged(beside: Beside, advance: Callable[[], None]) -> dict[str, Suspect]:
    cues = _run_cues(beside, advance)
    usual = usual_shares(one for found in cues.values() for one in found)
    corrected = beside.corrected
    found = {}
    for key, objects in cues.items():
        weights = {} if key in corrected else WEIGHTS
        scored = [(one.object_id, one.class_id, suspicion(all_cues(one, usual), weights), one.area) for one in objects]
        scored.sort(key=lambda one: (-one[2], one[0]))
        found[key] = Suspect(key, picture_suspicion([(value, area) for _, _, value, area in scored]), tuple(scored))
    return found


def sampled(pictures: Sequence[str], most: int = JUDGED) -> set[str]:
    """Up to ``most`` of the pictures, spread evenly."""
    return set(pictures[:: -(-len(pictures) // most)]) if pictures else set()


def summary(found: Mapping[str, Suspect]) -> dict[str, Any] | None:
    """For a data card: number of pictures, median, what a tenth exceeds, the worst by id; ``None`` without any."""
    if not found:
        return None
    median, tenth = np.percentile([one.suspicion for one in found.values()], [50, 90]).tolist()
    worst = sorted(found.values(), key=lambda one: (-one.suspicion, one.key))[:LISTED]
    return {
        "pictures": len(found),
        "median": round(median, 4),
        "tenth": round(tenth, 4),
        "worst": [[one.key.partition("/")[2], round(one.suspicion, 4)] for one in worst],
    }


def run_cues(
    store: MaskStore | Path, manifest: Mapping[str, Any], label: str, *, only: Collection[str] | None = None
) -> dict[str, list[ObjectCues]]:
    """Key -> cues of each object of stage ``label``; of each class of the picture, where it keeps no objects.

    Other map stages of the run over the same images give what they know: masks of the same objects (or of the class)
    for disagreement, probabilities of objects for the margin, ``edges_hw`` for the outline's support.
    """
    return _run_cues(Beside.of(store, manifest, label, only))


def _run_cues(beside: Beside, advance: Callable[[], None] = lambda: None) -> dict[str, list[ObjectCues]]:
    learnt = _learnt(beside)
    found: dict[str, list[ObjectCues]] = {}
    for key in beside.pictures:
        advance()
        try:
            image_rgb = read_image_rgb(beside.image(key))
        except (DataError, OSError):
            continue
        size_hw = image_rgb.shape[0], image_rgb.shape[1]
        above = beside.above(key)
        strength_hw = next((arrays[EDGES] for arrays in above if EDGES in arrays), None)
        if strength_hw is None or strength_hw.shape != size_hw:
            strength_hw = gradient(image_rgb)
        colour_hw = colours(image_rgb)
        arrays = beside.mine(key)
        objects = _objects(arrays, above)
        found[key] = [
            object_cues(object_id, class_id, mask_hw, window, colour_hw, strength_hw, masks, rivals, probs)
            for object_id, class_id, window, mask_hw, masks, rivals, probs in objects
        ]
        if "objects_flat" not in arrays:  # no box is known that a mask could fail to fill
            found[key] = [replace(one, cues={**one.cues, "tightness": math.nan}) for one in found[key]]
        if learnt is not None and any(objectness.is_large(window, size_hw) for _, _, window, *_ in objects):
            object_hw = learnt.map_of(objectness.features(image_rgb))
            found[key] = [
                replace(one, cues={**one.cues, "objectness": objectness.unlike(object_hw, mask_hw, window, size_hw)})
                for one, (_, _, window, mask_hw, *_) in zip(found[key], objects, strict=True)
            ]
    return found


def _learnt(beside: Beside) -> objectness.Objectness | None:
    """What the run's masks teach of objects; ``None`` of few pictures, or without weights: the cue is unknown then."""
    if not beside.learnt_from or not objectness.is_here():
        return None

    def pictures() -> Iterator[tuple[objectness.Map, MaskHW, list[Window]]]:
        for key in beside.learnt_from:
            arrays = beside.mine(key)
            mask_hw = arrays["mask_hw"]
            windows = [window for _, _, window, *_ in _objects(arrays, [])]
            if not any(objectness.is_large(window, size_of(mask_hw)) for window in windows):
                continue
            try:
                image_rgb = read_image_rgb(beside.image(key))
            except (DataError, OSError):
                continue
            yield objectness.features(image_rgb), mask_hw, windows

    return objectness.learn(pictures())


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
