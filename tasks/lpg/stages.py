"""LPG's generator as two stages: learn from masks of whatever classes (:func:`fit`), make masks (:func:`generate`).

Xie et al., "Learning Class-Agnostic Pseudo Mask Generation for Box-Supervised Semantic Segmentation", 2021. The order
of the rounds is :mod:`tasks.lpg.em`'s. Params and stage descriptions only: torch lives in :mod:`tasks.lpg.network`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from artifacts.keys import OPERATIONAL
from models.names import GENERATORS, check_name
from tasks.bounds import bounded, number
from tasks.boxes import LABEL_OUTPUTS
from tasks.stage import PARAMS_CONFIG, FitStage, MapStage
from tasks.training import weights as weights_files
from tasks.training.backbone import encoder_refusal
from tasks.training.params import TrainParams

VERSION = 2
"""Of the generator's network: a bundle of another one is refused."""
SHIPPED: Mapping[str, Path] = {"drawn": Path(__file__).with_name("drawn")}
"""Bundles that come with Maskmill: name -> folder. ``drawn`` was learnt on drawn pictures (docs/lpg.md)."""


@dataclass(frozen=True)
class GeneratorParams(TrainParams):
    """The generator and how it learns. The defaults are the paper's; crop, scales and flip its released code's."""

    NAME: ClassVar[str] = "generator"

    network: str = field(
        default="hourglass",
        metadata={
            "help": f"{', '.join(GENERATORS)}; the paper's is hourglass (12.1 M), hourglass-small is for small"
            " pictures, the others are encoders of a U-Net"
        },
    )
    width: int = number(16, 4, 256, "channels of the stem of hourglass-small and tiny")
    weights: str = field(
        default="none",
        metadata={"help": f"{weights_files.HELP}; boxes and probability are added as channels that start at zero"},
    )
    batch_norm: Literal["trained", "frozen"] = field(
        default="trained", metadata={"help": "batch norms of a pretrained encoder: trained, or frozen as loaded"}
    )
    crop: int = number(512, 16, 4096, "side of the training crop, pixels")
    scale_range: tuple[float, float] = number((0.5, 1.5), 0.1, 4.0, "random scale before the crop")
    flip: bool = field(default=True, metadata={"help": "mirror every second crop"})
    colour_jitter: float = number(0.0, 0.0, 1.0, "random brightness, contrast and saturation, up to this much; 0: none")
    batch: int = number(32, 1, 4096, "crops an iteration, over all devices; a crop is an image with one of its classes")
    iterations: int = number(100_000, 0, 10_000_000, "optimizer steps of each round; 0: as many as the epochs need")
    epochs: int = number(1, 1, 100_000, "passes over the data; every class of every image once each")
    optimizer: Literal["sgd", "adam", "adamw"] = field(
        default="adam", metadata={"help": "adam (the paper's), adamw (weight decay decoupled), sgd with momentum"}
    )
    lr: float = number(1e-4, 1e-9, 10.0, "learning rate")
    weight_decay: float = number(0.0, 0.0, 1.0, "weight decay, of all but norms and biases")
    poly_power: float = number(0.9, 0.0, 10.0, "the learning rate falls as (1 - iteration/iterations)**poly_power")
    difficult: bool = field(default=True, metadata={"help": "learn from difficult objects too"})

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale_range
        if low > high:
            raise ValueError(f"generator.scale_range {self.scale_range!r} must be low <= high")
        check_name(self.network, GENERATORS)
        weights_files.check_fits(self.weights, self.network, "generator.weights")

    @property
    def smallest_alone(self) -> int:
        """Side of the smallest crop that can be a batch of one: torch's batch norm has to see two values."""
        coarsest = {"hourglass": 128, "hourglass-small": 32, "tiny": 16}.get(self.network, 32)
        return coarsest + (2 if self.network == "tiny" else 1)

    def refusal(self, devices: int, name: str) -> str:
        """One of timm's models that is no encoder; batch norm cannot train on one small crop per device."""
        return encoder_refusal(
            self.network, name, batch=self.batch, crop=self.crop, smallest=self.smallest_alone, devices=devices
        )


@dataclass(frozen=True)
class GenerateParams:
    """Inference of a generator."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    flip: bool = field(default=False, metadata={"help": "average over the image and its mirror image"})
    longest: int = number(
        1024, 0, 65_536, "an image whose longer side exceeds this is made smaller before inference; 0: never"
    )
    difficult: bool = field(default=True, metadata={"help": "make masks of difficult objects too"})
    predict_batch: int = number(8, 1, 4096, "classes of one image in a batch", operational=True)

    def __post_init__(self) -> None:
        bounded(self, "generate")


@dataclass(frozen=True)
class GeneratorNet:
    """What of :class:`GeneratorParams` decides the network; what a bundle has to say of it."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    network: str
    width: int = number(16, 4, 256, "channels of the stem of hourglass-small and tiny")

    def __post_init__(self) -> None:
        check_name(self.network, GENERATORS)
        bounded(self, "generator")


@dataclass(frozen=True)
class GenerateStageParams(GenerateParams):
    """:class:`GenerateParams` and the network."""

    network: str = field(kw_only=True)
    width: int = field(kw_only=True)
    channels_last: bool = field(default=True, metadata={**OPERATIONAL, "help": "faster memory format"})


def net_of(params: GeneratorParams) -> GeneratorNet:
    """The network that ``params`` describe."""
    width = params.width if params.network in ("hourglass-small", "tiny") else 16
    return GeneratorNet(params.network, width)


DEMO = GeneratorParams(
    network="hourglass-small",
    crop=96,
    scale_range=(0.75, 1.33),
    colour_jitter=0.3,
    batch=16,
    iterations=400,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
)
"""From scratch on 96 px pictures."""

PRESETS: Mapping[str, GeneratorParams] = {"voc": GeneratorParams(), "demo": DEMO}


def fit(params: GeneratorParams, *, name: str = "generator", within: str = "params.") -> FitStage:
    """The E-step (eq. 6): role ``target`` gives truth masks, ``probs`` the segmenter's probabilities of the classes.

    A sample is an image with one of the classes that it has boxes of. ``init`` may be the generator of the round
    before. A weights file is an input, identified by its content. ``within``: where in the config the section ``name``
    lies, for messages. Raises
    :class:`tasks.training.weights.WeightsError` if named weights are not there or are not what they should be.
    """
    source = weights_files.resolve(params.weights, params.network, f"{within}{name}.weights")
    return FitStage(
        name=name,
        version=VERSION + 1,
        params=dataclasses.replace(params.semantic(), weights=source.semantic),
        reads=("image", "boxes"),
        function="tasks.lpg.network:train",
        seed=params.seed,
        inputs=source.inputs,
        holds_classes=True,
    )


def generate(net: GeneratorNet, params: GenerateParams = GenerateParams(), *, name: str = "generated") -> MapStage:
    """The stage that makes masks (eq. 3 and 7): role ``net`` is a generator, ``probs`` the segmenter's probabilities.

    ``mask_hw``, merged over the classes (:func:`tasks.lpg.merge.merge`), and what the generator found of each box's
    class in it, before that merge. Nothing lies outside a class's boxes; an image without boxes is background.
    """
    shared = {entry.name: getattr(params, entry.name) for entry in dataclasses.fields(GenerateParams)}
    return MapStage(
        name=name,
        version=VERSION + 1,
        params=GenerateStageParams(**shared, network=net.network, width=net.width),
        reads=("image", "boxes"),
        outputs=LABEL_OUTPUTS,
        function="tasks.lpg.network:generate_item",
        holds_classes=True,
        uses_torch=True,
    )
