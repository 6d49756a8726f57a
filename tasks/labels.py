"""Labels as masks, nothing computed: boxes filled, truth masks unchanged (the one stage that may read truth), masks
that people corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from artifacts.objects import Object, pack_objects, paste_object, tight_window, unpack_objects
from artifacts.records import UNDECIDED, DataError, MaskHW, RecordSet, size_of
from tasks.boxes import LABEL_OUTPUTS, label_arrays, pixel_window, usable_boxes
from tasks.engine.runner import Runner
from tasks.stage import CORRECTED, PARAMS_CONFIG, Arrays, Item, MapHandle, MapStage, SkipImage, first_of, image_of


@dataclass(frozen=True)
class BoxMaskParams:
    """How boxes become masks."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    difficult: bool = field(default=True, metadata={"help": "paint difficult objects too"})


@dataclass(frozen=True)
class GivenMaskParams:
    """Truth masks are taken as they are."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG


def box_masks(params: BoxMaskParams = BoxMaskParams()) -> MapStage:
    """Every box filled with its class, larger boxes first: the weakest masks, and LPG's first round."""
    return MapStage(
        name="box-masks",
        version=1,
        params=params,
        reads=("image", "boxes"),
        outputs=LABEL_OUTPUTS,
        function="tasks.labels:box_item",
        holds_classes=True,
        numbers_of_labels=True,
    )


def given_masks(params: GivenMaskParams = GivenMaskParams()) -> MapStage:
    """The truth masks of a set: the fully supervised row, auxiliary sets, manually labelled images.

    The only stage that may declare ``truth``.
    """
    return MapStage(
        name="given-masks",
        version=1,
        params=params,
        reads=("image", "truth"),
        outputs=("mask_hw",),
        function="tasks.labels:given_item",
        holds_classes=True,
    )


def people_masks() -> MapStage:
    """The masks that people corrected, unchanged: truth-like labels of the pictures that have one."""
    return MapStage(
        name="people-masks",
        version=1,
        params=None,
        reads=("corrected",),
        outputs=("mask_hw",),
        function="tasks.labels:people_item",
        holds_classes=True,
    )


def people_item(item: Item, params: None) -> Arrays:
    """Map function of :func:`people_masks`. Raises :class:`DataError` for a mask that does not fit the image."""
    if item.record.corrected is None:
        raise SkipImage(f"{item.key}: nobody has corrected this image's mask")
    return {"mask_hw": item.record.corrected.load()}


def corrected_alone(run: Runner, records: RecordSet) -> MapHandle | None:
    """:func:`people_masks` of the pictures that have one; ``None`` without any."""
    found = records.only(record.image_id for record in records if record.corrected is not None)
    return run.map(people_masks(), found) if len(found) else None


def known_masks(run: Runner, records: RecordSet, *, label: str) -> MapHandle:
    """Truth, called ``label``; of pictures that a person has corrected, that mask."""
    truth = run.map(given_masks(), records, label=label)
    corrected = corrected_alone(run, records)
    return truth if corrected is None else first_of(corrected, truth)


def chosen_masks() -> MapStage:
    """The masks of role ``masks``, as a stage of their own: what :func:`tasks.stage.first_of` chose can be exported."""
    return MapStage(
        name="chosen-masks",
        version=1,
        params=None,
        reads=(),
        outputs=("mask_hw",),
        function="tasks.labels:chosen_item",
        holds_classes=True,
    )


def chosen_item(item: Item, params: None) -> Arrays:
    """Map function of :func:`chosen_masks`."""
    return {"mask_hw": item.up["masks"]["mask_hw"]}


def box_item(item: Item, params: BoxMaskParams) -> Arrays:
    """Map function of :func:`box_masks`: ``mask_hw`` and packed objects."""
    size_hw = size_of(image_of(item))
    boxes = usable_boxes(item.record, difficult=params.difficult)
    windows = [pixel_window(box.xyxy, size_hw) for box in boxes]
    masks = [np.ones((y1 - y0, x1 - x0), dtype=np.bool_) for x0, y0, x1, y1 in windows]
    return label_arrays(boxes, windows, masks, size_hw)


def given_item(item: Item, params: GivenMaskParams) -> Arrays:
    """Map function of :func:`given_masks`. Raises :class:`DataError` for a mask that does not fit the image."""
    size_hw = size_of(image_of(item))
    truth = item.record.truth
    if truth is None:
        raise SkipImage(f"{item.key}: no truth mask is known for this image")
    mask_hw = truth.load()
    if mask_hw.shape != size_hw:
        raise DataError(
            f"{truth.path}: wrong mask size {mask_hw.shape}, the image {item.record.image} is {size_hw} (height, width)"
        )
    k = len(item.classes)
    if (foreign := (mask_hw > k) & (mask_hw != UNDECIDED)).any():
        raise DataError(
            f"{truth.path}: holds {mask_hw[foreign][0]}, allowed are 0..{k} and {UNDECIDED}. Is it another class table?"
        )
    return {"mask_hw": mask_hw}


def prefer_corrected(run: Runner, masks: MapHandle) -> MapHandle:
    """``masks`` with those of a person where there are any (label kind ``corrected``); ``masks`` itself without.

    A stage of the run, and not ``first_of``: it is scored, drawn and exported as the run's masks. Every flow puts its
    proposals through it before its student learns from them.
    """
    if masks.stage.name == CORRECTED or all(record.corrected is None for record in masks.records):
        return masks
    return run.map(corrected_masks(masks.stage), masks.records, masks=masks)


def corrected_masks(masks: MapStage) -> MapStage:
    """The arrays of the stage ``masks`` (role ``masks``), and in a corrected picture the person's class mask.

    Objects, where the stage keeps them, follow the corrected mask (:func:`corrected_objects`).
    """
    with_objects = "objects_flat" in masks.outputs and "object_classes_n" in masks.outputs
    return MapStage(
        name=CORRECTED,
        version=1,
        params=None,
        reads=("corrected",),
        outputs=LABEL_OUTPUTS if with_objects else ("mask_hw",),
        function="tasks.labels:corrected_item",
        holds_classes=True,
    )


def corrected_item(item: Item, params: None) -> Arrays:
    """Map function of :func:`corrected_masks`."""
    above = item.up["masks"]
    names = LABEL_OUTPUTS if "objects_flat" in above and "object_classes_n" in above else ("mask_hw",)
    corrected = item.record.corrected
    if corrected is None:
        return {name: np.asarray(above[name]) for name in names}
    mask_hw = corrected.load()
    if mask_hw.shape != above["mask_hw"].shape:
        raise DataError(f"{corrected.path}: wrong mask size {mask_hw.shape}, the picture is {above['mask_hw'].shape}")
    if names == ("mask_hw",):
        return {"mask_hw": mask_hw}
    objects = unpack_objects(above)
    found = corrected_objects(mask_hw, objects, above["object_classes_n"].tolist())
    ids = [object_id for object_id, _, _ in found]
    windows = [tight_window(part) for _, _, part in found]
    parts = [part[y0:y1, x0:x1] for (_, _, part), (x0, y0, x1, y1) in zip(found, windows, strict=True)]
    classes_n = np.array([class_id for _, class_id, _ in found], np.uint8)
    return {"mask_hw": mask_hw, "object_classes_n": classes_n, **pack_objects(ids, windows, parts)}


def corrected_objects(
    mask_hw: MaskHW, objects: Sequence[Object], classes_n: Sequence[int]
) -> list[tuple[int, int, NDArray[np.bool_]]]:
    """The objects of a corrected class mask, as ``(id, class, (H, W) bool)``: its pixels go to the known objects.

    A pixel belongs to the smallest object of its class that covers it, else to the nearest of its class. Pixels of a
    class without an object are one new object. An object that is left without a pixel stays, empty.
    """
    from scipy.ndimage import distance_transform_edt

    found: dict[int, tuple[int, NDArray[np.bool_]]] = {
        one.id: (class_id, np.zeros(mask_hw.shape, np.bool_)) for one, class_id in zip(objects, classes_n, strict=True)
    }
    fresh = max(found, default=-1) + 1
    for class_id in np.unique(mask_hw[(mask_hw > 0) & (mask_hw != UNDECIDED)]).tolist():
        region = mask_hw == class_id
        own = [one for one, number in zip(objects, classes_n, strict=True) if number == class_id]
        pasted = {one.id: paste_object(one.mask_hw, one.window_xyxy, mask_hw.shape) for one in own}
        shown = {object_id: part for object_id, part in pasted.items() if part.any()}
        if not shown:
            object_id = own[0].id if own else fresh
            fresh += not own
            found[object_id] = class_id, region
            continue
        order = sorted(shown, key=lambda object_id: (int(shown[object_id].sum()), object_id))
        distances = np.stack([distance_transform_edt(~shown[object_id]) for object_id in order])
        nearest = distances.argmin(axis=0)  # of equal ones, all that cover a pixel say, the first: the smallest
        for place, object_id in enumerate(order):
            found[object_id] = class_id, region & (nearest == place)
    return [(object_id, class_id, part) for object_id, (class_id, part) in found.items()]
