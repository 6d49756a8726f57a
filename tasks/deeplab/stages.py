"""DeepLab as two stages: learn from label maps (:func:`fit`), label images (:func:`predict`).

Params and stage descriptions only: torch lives in :mod:`tasks.deeplab.network` and :mod:`tasks.deeplab.inference`,
imported when a stage runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from artifacts.keys import WHEN_SET
from models.names import OutputStride
from tasks.bounds import bounded, number
from tasks.crf.params import CRFParams
from tasks.deeplab.lgsa import AttentionNet, LGSAParams, net_of
from tasks.stage import CRF_MASK, IMAGES_AT_ONCE, PARAMS_CONFIG, FitStage, MapStage
from tasks.training import weights as weights_files
from tasks.training.backbone import BackboneParams

Keep = Literal["tags", "boxes", "all"]
"""Classes whose probabilities are kept: background and the image's tags, or those of its boxes, or every class."""


@dataclass(frozen=True)
class TestTimeParams:
    """Inference of a trained network: averaged over scales and mirror images, at the image's own size."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    __test__: ClassVar[bool] = False

    scales: tuple[float, ...] = number((1.0,), 0.1, 4.0, "factors by which the image is resized before inference")
    flip: bool = field(default=False, metadata={"help": "also predict the mirror image of each scale"})
    fusion: Literal["mean", "max"] = field(
        default="mean",
        metadata={"help": "mean: of probabilities; max: of logits, as multi_scale_inputs fuses in training"},
    )

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("test.scales is empty; give at least one factor, (1.0,) say")
        bounded(self, "deeplab.test")


@dataclass(frozen=True)
class DeepLabParams(BackboneParams):
    """One DeepLab: network, schedule, augmentation, inference. The defaults are v2 on ImageNet's ResNet-50."""

    NAME: ClassVar[str] = "deeplab"

    epochs: int = number(50, 1, 100_000, "passes over the data; every image once each")
    iterations: int = number(
        0, 0, 10_000_000, "optimizer steps, the last weights are the result; 0: as many as the epochs need"
    )
    lr: float = number(2.5e-4, 1e-9, 10.0, "learning rate of multiplier 1 (groups 1/10/20, 1/2/10/20)")
    weight_decay: float = number(5e-4, 0.0, 1.0, "weight decay, of all but the heads' biases")
    multi_scale_inputs: bool = field(
        default=False, metadata={"help": "DeepLab v2's training: scales 1, .75, .5, fused by maximum, a loss on each"}
    )
    loss_at: Literal["crop", "output"] = field(
        default="crop",
        metadata={"help": "crop: logits upsampled to the labels; output: labels sampled at the network's map"},
    )
    test: TestTimeParams = field(
        default_factory=TestTimeParams, metadata={"help": "inference: scales and mirror images"}
    )
    monitor_every: int = number(
        0, 0, 10_000_000, "iterations between two measurements of val mIoU; 0: only at the end", operational=True
    )


@dataclass(frozen=True)
class DeepLabFitParams(DeepLabParams):
    """What decides a fit: :class:`DeepLabParams`, and self-attention where the student has it."""

    lgsa: LGSAParams | None = field(default=None, metadata=WHEN_SET)
    """As :func:`tasks.deeplab.lgsa.chosen` gives it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lgsa is not None and self.multi_scale_inputs:
            raise ValueError("multi_scale_inputs fuses logits, self-attention gives probabilities: use one of them")

    @property
    def attention(self) -> AttentionNet | None:
        """What the network's self-attention is built with."""
        return None if self.lgsa is None else net_of(self.lgsa)


@dataclass(frozen=True)
class PredictParams:
    """The part of :class:`DeepLabParams` that decides a prediction, given the checkpoint; and its optional parts."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    network: str
    width: int
    output_stride: OutputStride
    atrous: Literal["paper", "exact"]
    test: TestTimeParams
    attention: AttentionNet | None = field(default=None, metadata=WHEN_SET)
    """Of a network with self-attention."""
    crf: CRFParams | None = field(default=None, metadata=WHEN_SET)
    """A dense CRF behind the network."""
    floor: float = field(default=1e-5, metadata={**WHEN_SET, "bounds": (1e-30, 0.99)})
    """Floor of the probabilities that enter the CRF (pydensecrf's)."""
    keep: Keep = field(default="tags", metadata=WHEN_SET)
    """As :func:`predict_probs` has it."""
    confidence: bool = field(default=False, metadata=WHEN_SET)
    """Whether masks of the training images come with the probability of each pixel's label."""

    def __post_init__(self) -> None:
        bounded(self, "predict")


VOC_TEST = TestTimeParams(scales=(0.5, 0.75, 1.0, 1.25), flip=True)
"""BPG's: averaged over four scales and mirror images."""

VOC_LARGEFOV = DeepLabParams(
    network="largefov",
    weights="imagenet",
    batch=30,
    lr=1e-3,
    iterations=20_000,
    scale_range=(1.0, 1.0),
    test=VOC_TEST,
)
"""DeepLab-LargeFOV as released: crop 321, mirror images only, batch 30, 1e-3, groups 1/2/10/20."""

VOC_RESNET101 = DeepLabParams(network="resnet101", weights="imagenet", iterations=20_000, test=VOC_TEST)
"""DeepLab v2: crop 321, scale .5-1.5, batch 10, 2.5e-4, momentum .9, weight decay 5e-4, groups 1/10/20."""

DEMO = DeepLabParams(
    network="tiny",
    weights="none",
    crop=96,
    scale_range=(0.75, 1.33),
    colour_jitter=0.3,
    batch=16,
    iterations=800,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
    test=TestTimeParams(flip=True),
)
"""From scratch on 96 px pictures, about a minute and a half on 2 busy cores."""

DEMO_TINY = dataclasses.replace(DEMO, batch=4, iterations=20, crop=64)
"""Twenty iterations: a check that everything runs; the masks are poor."""

PRESETS: Mapping[str, DeepLabParams] = {
    "voc-largefov": VOC_LARGEFOV,
    "voc-resnet101": VOC_RESNET101,
    "demo": DEMO,
    "demo-tiny": DEMO_TINY,
}


def fit(
    params: DeepLabParams, *, name: str = "deeplab", lgsa: LGSAParams | None = None, within: str = "params."
) -> FitStage:
    """The stage that learns from label maps: role ``target`` gives ``mask_hw``.

    With ``lgsa`` (:func:`tasks.deeplab.lgsa.chosen`'s) the network has self-attention, and the label maps guide it,
    too. Inference parameters are no part of the stage. A weights file is an input, identified by its content.
    ``within``: where in the config the section ``name`` lies, for messages.
    Raises :class:`tasks.training.weights.WeightsError` if named weights are not there or are not what they should be,
    ``ValueError`` for multi-scale inputs with self-attention.
    """
    source = weights_files.resolve(params.weights, params.network, f"{within}{name}.weights")
    semantic = params.semantic()
    own = {entry.name: getattr(semantic, entry.name) for entry in dataclasses.fields(DeepLabParams)}
    own |= {"weights": source.semantic, "test": TestTimeParams()}
    return FitStage(
        name=name,
        version=4,
        params=DeepLabFitParams(**own, lgsa=lgsa),
        reads=("image",),
        function="tasks.deeplab.network:train",
        seed=params.seed,
        inputs=source.inputs,
    )


def predict(
    params: DeepLabParams,
    *,
    name: str = "deeplab-predict",
    crf: CRFParams | None = None,
    lgsa: LGSAParams | None = None,
) -> MapStage:
    """The stage that labels images: role ``net`` is the fit, the output ``mask_hw`` (0 background, 1..K).

    ``lgsa`` as the fit had it. With ``crf`` a dense CRF works on the same probabilities at the image's size, and its
    mask is a second output, ``mask_crf_hw``: one inference gives both.
    """
    return MapStage(
        name=name,
        version=3,
        params=_predict_params(params, crf, lgsa),
        reads=("image",),
        outputs=("mask_hw",) if crf is None else ("mask_hw", CRF_MASK),
        function="tasks.deeplab.inference:predict_items",
        holds_classes=True,
        uses_torch=True,
        images_at_once=IMAGES_AT_ONCE,
    )


def predict_probs(
    params: DeepLabParams, *, name: str = "deeplab-probs", lgsa: LGSAParams | None = None, keep: Keep = "tags"
) -> MapStage:
    """The stage that keeps probabilities: role ``net`` is the fit.

    ``probs_chw`` float16, background first, and ``classes_c`` uint8, their class numbers. At the network's output grid:
    resize bilinearly (``align_corners=False``) for the image's size. ``lgsa`` as the fit had it.

    ``keep="tags"``: background and the image's tags, for images whose tags may be used: those learnt from. They do not
    add up to 1 where the network finds another class. ``keep="boxes"``: the same with the classes of the image's boxes.
    ``keep="all"``: every class, for images that are scored; their tags would be truth.
    """
    return MapStage(
        name=name,
        version=2,
        params=dataclasses.replace(_predict_params(params, None, lgsa), keep=keep),
        reads=("image",) if keep == "all" else ("image", keep),
        outputs=("probs_chw", "classes_c"),
        function="tasks.deeplab.inference:probs_items",
        holds_classes=True,
        uses_torch=True,
        images_at_once=IMAGES_AT_ONCE,
        heat=("probs_chw",),
    )


def _predict_params(params: DeepLabParams, crf: CRFParams | None, lgsa: LGSAParams | None) -> PredictParams:
    attention = None if lgsa is None else net_of(lgsa)
    return PredictParams(params.network, params.width, params.output_stride, params.atrous, params.test, attention, crf)
