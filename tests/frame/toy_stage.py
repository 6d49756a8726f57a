"""A toy method, file 1 of 3: its parameters and its stages. No torch here.

It has what the frame has to carry: scribbles, auxiliary data with masks of other classes, a soft target beside hard
labels, and two rounds of learning. docs/house.md walks through its files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from artifacts.datasets.scribblesup import rasterize
from artifacts.records import UNDECIDED
from tasks.stage import PARAMS_CONFIG, Arrays, FitStage, Item, MapStage, SkipImage
from tasks.training import weights as weights_files
from tasks.training.params import TrainParams


@dataclass(frozen=True)
class ToyParams(TrainParams):
    """Both networks of the toy, and how they learn."""

    NAME: ClassVar[str] = "toy"

    network: Literal["toy"] = field(default="toy", metadata={"help": "the only one there is"})
    weights: str = field(default="none", metadata={"help": weights_files.HELP})
    width: int = field(default=8, metadata={"help": "channels", "bounds": (1, 64)})
    crop: int = field(default=48, metadata={"help": "side of the training crop, pixels", "bounds": (16, 512)})
    soft_weight: float = field(default=1.0, metadata={"help": "of the soft target's loss", "bounds": (0.0, 1e3)})


@dataclass(frozen=True)
class ToyNet:
    """What of :class:`ToyParams` decides an inference, given the checkpoint."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    width: int


def prior(params: ToyParams) -> FitStage:
    """Learns from auxiliary masks (role ``target``) what looks like an object, of whatever class."""
    return _fit("prior", params, "toy_net:train_prior")


def objectness(params: ToyParams) -> MapStage:
    """Probability of being an object, ``object_hw (H, W) float16``; role ``net`` is :func:`prior`'s network."""
    return MapStage(
        name="objectness",
        version=1,
        params=ToyNet(params.width),
        reads=("image",),
        outputs=("object_hw",),
        function="toy_net:objectness_item",
        uses_torch=True,
        heat=("object_hw",),
    )


def strokes() -> MapStage:
    """Scribbles as a label map, undecided elsewhere."""
    return MapStage(
        "strokes", 1, None, ("image", "scribbles"), ("mask_hw",), "toy_stage:strokes_item", holds_classes=True
    )


def segmenter(params: ToyParams) -> FitStage:
    """Learns from label maps (role ``target``) and from a soft map of what is object (role ``soft``)."""
    return _fit("segmenter", params, "toy_net:train_segmenter")


def _fit(name: str, params: ToyParams, function: str) -> FitStage:
    source = weights_files.resolve(params.weights, params.network, "params.toy.weights")
    semantic = replace(params.semantic(), weights=source.semantic)
    return FitStage(name, 1, semantic, ("image",), function, seed=params.seed, inputs=source.inputs)


def predict(params: ToyParams) -> MapStage:
    """Label maps; role ``net`` is :func:`segmenter`'s network."""
    return MapStage(
        name="predict",
        version=1,
        params=ToyNet(params.width),
        reads=("image",),
        outputs=("mask_hw",),
        function="toy_net:predict_item",
        holds_classes=True,
        uses_torch=True,
    )


def keep_strokes() -> MapStage:
    """``masks`` with what the ``strokes`` say laid over them."""
    return MapStage("keep-strokes", 1, None, (), ("mask_hw",), "toy_stage:keep_strokes_item", holds_classes=True)


def strokes_item(item: Item, params: None) -> Arrays:
    """Map function of :func:`strokes`."""
    assert item.image_rgb is not None
    if not item.record.scribbles:
        raise SkipImage(f"{item.key}: no scribbles are known for this image")
    return {"mask_hw": rasterize(item.record.scribbles, item.image_rgb.shape[:2])}


def keep_strokes_item(item: Item, params: None) -> Arrays:
    """Map function of :func:`keep_strokes`."""
    drawn_hw = item.up["strokes"]["mask_hw"]
    return {"mask_hw": np.where(drawn_hw == UNDECIDED, item.up["masks"]["mask_hw"], drawn_hw)}
