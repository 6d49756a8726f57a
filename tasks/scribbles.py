"""Scribbles as label maps, undecided where nobody drew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from artifacts.datasets.scribblesup import rasterize, shortened
from artifacts.records import UNDECIDED, DataError, MaskHW, MaskRef, Scribble
from tasks.bounds import bounded, number
from tasks.stage import PARAMS_CONFIG, Arrays, Item, MapStage, SkipImage, image_of


@dataclass(frozen=True)
class ScribbleParams:
    """How strokes become pixels. Index masks are taken as they are."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    width: float = number(3.0, 1.0, 100.0, "thickness of a stroke, pixels of the image; a click is a disc of it")
    length: float = number(1.0, 0.0, 1.0, "share of each stroke that is used, its middle; 0: a click")

    def __post_init__(self) -> None:
        bounded(self, "scribbles")


def scribbles(params: ScribbleParams = ScribbleParams()) -> MapStage:
    """The stage: ``mask_hw (H, W) uint8``, class numbers on the scribbles, 255 elsewhere."""
    return MapStage(
        name="scribbles",
        version=1,
        params=params,
        reads=("image", "scribbles"),
        outputs=("mask_hw",),
        function="tasks.scribbles:scribbles_item",
        holds_classes=True,
        numbers_of_labels=True,
    )


def scribbles_item(item: Item, params: ScribbleParams) -> Arrays:
    """Map function of :func:`scribbles`. Raises :class:`SkipImage` for an image on which nothing is drawn."""
    size_hw = image_of(item).shape[:2]
    found = item.record.scribbles
    if found is None:
        raise SkipImage(f"{item.key}: no scribbles are known for this image")
    if isinstance(found, MaskRef):
        mask_hw = _given(found, size_hw, params)
    else:
        mask_hw = rasterize((_part(stroke, params.length) for stroke in found), size_hw, params.width)
    if (mask_hw == UNDECIDED).all():
        count = f"none of its {len(found)} strokes lies" if isinstance(found, tuple) and found else "no scribble lies"
        raise SkipImage(f"{item.key}: {count} in the image, so there is nothing to learn from it")
    return {"mask_hw": mask_hw}


def _part(stroke: Scribble, length: float) -> Scribble:
    return replace(stroke, points_xy=shortened(stroke.points_xy, length))


def check_length(reference: MaskRef, params: ScribbleParams, *, within: str = "") -> None:
    """Raises :class:`DataError` for an index mask that is to be shortened. ``within``: of the section, for messages."""
    if params.length != 1:
        raise DataError(
            f"{reference.path}: an index mask has no strokes to be shortened; set {within}scribbles.length to 1"
        )


def _given(reference: MaskRef, size_hw: tuple[int, ...], params: ScribbleParams) -> MaskHW:
    check_length(reference, params)
    mask_hw: MaskHW = np.asarray(reference.load(), np.uint8)
    if mask_hw.shape != size_hw:
        raise DataError(f"{reference.path}: is {mask_hw.shape}, its image {size_hw} (height, width)")
    return mask_hw
