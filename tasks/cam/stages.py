"""Class activation maps as two stages: a classifier learns from tags (:func:`fit`), its maps are kept (:func:`maps`).

Zhang et al., "Reliability Does Matter" (RRM), AAAI 2020, eq. 1 to 3; the equations are :mod:`models.cam`. Params and
stage descriptions only: torch lives in :mod:`tasks.cam.network`, imported when a stage runs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from models.names import OutputStride
from tasks.bounds import bounded, help_of, number
from tasks.stage import IMAGES_AT_ONCE, PARAMS_CONFIG, FitStage, MapStage
from tasks.training import weights as weights_files
from tasks.training.backbone import BackboneParams


@dataclass(frozen=True)
class MapParams:
    """How the maps of a trained classifier are made."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    scales: tuple[float, ...] = number((0.5, 1.0, 1.5, 2.0), 0.1, 4.0, "factors by which the image is resized (eq. 2)")
    flip: bool = field(default=False, metadata={"help": "the mirror image of each scale, too"})

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("maps.scales is empty; give at least one factor, (1.0,) say")
        bounded(self, "maps")


@dataclass(frozen=True)
class TagFitParams(BackboneParams):
    """What learns from tags: RRM's schedule, on EfficientNet-Lite0, which a CPU can train."""

    network: str = field(default="lite0", metadata=help_of(BackboneParams, "network"))
    output_stride: OutputStride = field(default=16, metadata=help_of(BackboneParams, "output_stride"))
    scale_range: tuple[float, float] = number((0.7, 1.3), 0.1, 4.0, "random scale before the crop")
    batch: int = number(8, 1, 4096, "crops an iteration, over all devices")
    epochs: int = number(15, 1, 100_000, "passes over the data; every image once each")


@dataclass(frozen=True)
class CamParams(TagFitParams):
    """A classifier of tags on ImageNet features."""

    NAME: ClassVar[str] = "cam"

    lr: float = number(1e-3, 1e-9, 10.0, "learning rate of the backbone; the classifier's is 10 times it")
    maps: MapParams = field(default_factory=MapParams, metadata={"help": "the maps: scales and mirror images"})


@dataclass(frozen=True)
class CamNet:
    """The part of :class:`CamParams` that decides the maps, given the checkpoint."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    network: str
    width: int
    output_stride: OutputStride
    atrous: Literal["paper", "exact"]
    maps: MapParams


DEMO = CamParams(
    network="tiny",
    weights="none",
    output_stride=8,
    crop=96,
    scale_range=(0.75, 1.33),
    colour_jitter=0.3,
    batch=16,
    iterations=800,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
)
"""From scratch on 96 px pictures."""

DEMO_TINY = dataclasses.replace(DEMO, batch=4, iterations=20, crop=64)
"""Twenty iterations: a check that everything runs; the maps are poor."""


def fit(params: CamParams, *, name: str = "classifier") -> FitStage:
    """The stage that learns from tags. Images whose tags are not known are left out, and said.

    The maps' parameters are no part of it. A weights file is an input, identified by its content.
    Raises :class:`tasks.training.weights.WeightsError` if named weights are not there or are not what they should be.
    """
    source = weights_files.resolve(params.weights, params.network, "params.cam.weights")
    return FitStage(
        name=name,
        version=3,
        params=dataclasses.replace(params.semantic(), weights=source.semantic, maps=MapParams()),
        reads=("image", "tags"),
        function="tasks.cam.network:train",
        seed=params.seed,
        inputs=source.inputs,
    )


def maps(params: CamParams, *, name: str = "cam") -> MapStage:
    """The stage that keeps the maps of the image's tags: role ``net`` is the fit.

    ``probs_chw`` float16, eq. 3's: 0..1, each class's maximum is 1 (or 0 everywhere), and ``classes_c`` uint8, the
    tags' numbers in ascending order, no background. At the largest scale's output grid: resize bilinearly
    (``align_corners=False``) for the image's size.
    """
    return MapStage(
        name=name,
        version=2,
        params=CamNet(params.network, params.width, params.output_stride, params.atrous, params.maps),
        reads=("image", "tags"),
        outputs=("probs_chw", "classes_c"),
        function="tasks.cam.network:maps_items",
        holds_classes=True,
        uses_torch=True,
        images_at_once=IMAGES_AT_ONCE,
        heat=("probs_chw",),
    )
