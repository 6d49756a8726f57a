"""Labels as masks, nothing computed: boxes filled, or truth masks unchanged (the one stage that may read truth)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from artifacts.records import UNDECIDED, DataError
from tasks.boxes import LABEL_OUTPUTS, label_arrays, pixel_window, usable_boxes
from tasks.stage import PARAMS_CONFIG, Arrays, Item, MapStage, SkipImage


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
    assert item.image_rgb is not None
    size_hw = item.image_rgb.shape[:2]
    boxes = usable_boxes(item.record, difficult=params.difficult)
    windows = [pixel_window(box.xyxy, size_hw) for box in boxes]
    masks = [np.ones((y1 - y0, x1 - x0), dtype=np.bool_) for x0, y0, x1, y1 in windows]
    return label_arrays(boxes, windows, masks, size_hw)


def given_item(item: Item, params: GivenMaskParams) -> Arrays:
    """Map function of :func:`given_masks`. Raises :class:`DataError` for a mask that does not fit the image."""
    assert item.image_rgb is not None
    truth = item.record.truth
    if truth is None:
        raise SkipImage(f"{item.key}: no truth mask is known for this image")
    mask_hw = truth.load()
    if mask_hw.shape != item.image_rgb.shape[:2]:
        raise DataError(
            f"{truth.path}: wrong mask size {mask_hw.shape}, the image {item.record.image} is"
            f" {item.image_rgb.shape[:2]} (height, width)"
        )
    k = len(item.classes)
    if (foreign := (mask_hw > k) & (mask_hw != UNDECIDED)).any():
        raise DataError(
            f"{truth.path}: holds {mask_hw[foreign][0]}, allowed are 0..{k} and {UNDECIDED}. Is it another class table?"
        )
    return {"mask_hw": mask_hw}
