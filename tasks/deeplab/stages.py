"""DeepLab as two stages: learn from label maps (:func:`fit`), label images (:func:`predict`).

Params and stage descriptions only: torch lives in :mod:`tasks.deeplab.network`, imported when a stage runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from artifacts.keys import OPERATIONAL
from artifacts.records import DataError
from tasks.crf.params import CRF_MASK, CRFParams
from tasks.deeplab.lgsa import AttentionNet, LGSAParams, net_of
from tasks.engine.gpus import has_gpu
from tasks.stage import PARAMS_CONFIG, Arrays, FitStage, Item, MapStage
from tasks.training import weights as weights_files

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.engine.options import RunParams
    from tasks.training.fit_process import FitContext

Network = Literal["tiny", "largefov", "resnet18", "resnet50", "resnet101"]


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value!r} is outside {low:g}..{high:g}")


@dataclass(frozen=True)
class TestTimeParams:
    """How a trained network is asked: averaged over scales and mirror images, at the image's own size."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    __test__: ClassVar[bool] = False

    scales: tuple[float, ...] = field(
        default=(1.0,), metadata={"help": "factors by which the image is resized before the network sees it"}
    )
    flip: bool = field(default=False, metadata={"help": "also ask for the mirror image of each scale"})
    fusion: Literal["mean", "max"] = field(
        default="mean",
        metadata={"help": "mean: of probabilities; max: of logits, as multi_scale_inputs fuses in training"},
    )

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("test.scales is empty; give at least one factor, (1.0,) say")
        for scale in self.scales:
            _check("test.scales", scale, 0.1, 4.0)


@dataclass(frozen=True)
class DeepLabParams:
    """One DeepLab: network, schedule, augmentation, and how it is asked afterwards."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    network: Network = field(default="tiny", metadata={"help": "largefov is VGG-16; resnet* are DeepLab v2"})
    width: int = field(default=16, metadata={"help": "channels of the tiny network's stem"})
    output_stride: Literal[4, 8] = field(
        default=8, metadata={"help": "pixels of the image to a cell of the network's map; 4 with the tiny network only"}
    )
    atrous: Literal["paper", "exact"] = field(
        default="paper",
        metadata={
            "help": "dilation of the first 3x3 of layer3/4: as all others (DeepLab v2), or the stage's before, "
            "which leaves torchvision's features unchanged"
        },
    )
    weights: str = field(
        default="none",
        metadata={"help": "none, imagenet (torchvision's IMAGENET1K_V1), a file, or caffe:FILE (BGR, mean subtracted)"},
    )
    crop: int = field(default=321, metadata={"help": "side of the training crop, pixels"})
    scale_range: tuple[float, float] = field(default=(0.5, 1.5), metadata={"help": "random scale before the crop"})
    flip: bool = field(default=True, metadata={"help": "mirror every second crop"})
    colour_jitter: float = field(
        default=0.0, metadata={"help": "random brightness, contrast and saturation, up to this much; 0: none"}
    )
    batch: int = field(default=10, metadata={"help": "crops an iteration, over all devices"})
    iterations: int = field(default=20_000, metadata={"help": "optimizer steps; the last checkpoint is the result"})
    optimizer: Literal["sgd", "adamw"] = field(default="sgd", metadata={"help": "sgd with momentum, or adamw"})
    lr: float = field(default=2.5e-4, metadata={"help": "learning rate of multiplier 1 (groups 1/10/20, 1/2/10/20)"})
    momentum: float = field(default=0.9, metadata={"help": "of sgd"})
    weight_decay: float = field(default=5e-4, metadata={"help": "on weights; biases of the heads have none"})
    poly_power: float = field(default=0.9, metadata={"help": "lr times (1 - iteration/iterations)**poly_power"})
    multi_scale_inputs: bool = field(
        default=False, metadata={"help": "DeepLab v2's: scales 1, .75, .5, fused by maximum, a loss on each"}
    )
    loss_at: Literal["crop", "output"] = field(
        default="crop",
        metadata={"help": "crop: logits upsampled to the labels; output: labels sampled at the network's map"},
    )
    precision: Literal["32", "bf16", "fp16"] = field(default="32", metadata={"help": "bf16 and fp16 are for GPUs"})
    seed: int = field(default=0, metadata={"help": "of initial weights, order and augmentation"})
    test: TestTimeParams = field(default_factory=TestTimeParams, metadata={"help": "how the network is asked"})
    monitor_every: int = field(
        default=0, metadata={**OPERATIONAL, "help": "iterations between two val mIoU; 0: only at the end"}
    )
    compile: bool = field(default=False, metadata={**OPERATIONAL, "help": "torch.compile the training step"})
    channels_last: bool = field(default=True, metadata={**OPERATIONAL, "help": "memory format that is faster"})

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            _check(name, getattr(self, name), low, high)
        low, high = self.scale_range
        if not 0.1 <= low <= high <= 4.0:
            raise ValueError(f"scale_range {self.scale_range!r} must be low <= high within 0.1..4")
        if self.output_stride not in ((4, 8) if self.network == "tiny" else (8,)):
            raise ValueError(f"output_stride {self.output_stride} with network {self.network!r}: 8, or 4 with tiny")
        if weights_files.parse(self.weights).kind == "imagenet" and self.network == "tiny":
            raise ValueError("weights 'imagenet' with network 'tiny': there are none for it; set weights='none'")


_BOUNDS = (
    ("width", 4, 256),
    ("crop", 16, 4096),
    ("batch", 1, 4096),
    ("iterations", 1, 10_000_000),
    ("lr", 1e-9, 10.0),
    ("momentum", 0.0, 0.9999),
    ("weight_decay", 0.0, 1.0),
    ("poly_power", 0.0, 10.0),
    ("colour_jitter", 0.0, 1.0),
    ("seed", 0, 2**31 - 1),
    ("monitor_every", 0, 10_000_000),
)


@dataclass(frozen=True)
class AttentionFitParams(DeepLabParams):
    """A fit with self-attention. A class of its own: fits without keep their address."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    lgsa: LGSAParams = field(default_factory=LGSAParams)
    """As :func:`tasks.deeplab.lgsa.chosen` settles it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_scale_inputs:
            raise ValueError("multi_scale_inputs fuses logits, self-attention gives probabilities: use one of them")

    @property
    def attention(self) -> AttentionNet:
        """What the network is built with."""
        return net_of(self.lgsa)


@dataclass(frozen=True)
class PredictParams:
    """What of :class:`DeepLabParams` decides a prediction, given the checkpoint."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    network: Network
    width: int
    output_stride: Literal[4, 8]
    atrous: Literal["paper", "exact"]
    test: TestTimeParams


@dataclass(frozen=True)
class CRFPredictParams(PredictParams):
    """Prediction with a dense CRF behind it. A class of its own: predictions without one keep their address."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    crf: CRFParams
    floor: float = 1e-5
    """Least probability that the CRF is given (pydensecrf's)."""


@dataclass(frozen=True)
class AttentionPredictParams(PredictParams):
    """Prediction by a network with self-attention."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    attention: AttentionNet


@dataclass(frozen=True)
class AttentionCRFPredictParams(CRFPredictParams):
    """Prediction by a network with self-attention, with a dense CRF behind it."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    attention: AttentionNet = field(kw_only=True)


def attention_of(params: object) -> AttentionNet | None:
    """The self-attention of a fit's or a prediction's params; ``None`` without."""
    with_attention = AttentionFitParams, AttentionPredictParams, AttentionCRFPredictParams
    return params.attention if isinstance(params, with_attention) else None


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

VOC_RESNET101 = DeepLabParams(network="resnet101", weights="imagenet", test=VOC_TEST)
"""DeepLab v2: crop 321, scale .5-1.5, batch 10, 2.5e-4, momentum .9, weight decay 5e-4, groups 1/10/20."""

DEMO = DeepLabParams(
    network="tiny",
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
"""Twenty iterations: shows that everything runs, learns next to nothing."""

PRESETS: Mapping[str, DeepLabParams] = {
    "voc-largefov": VOC_LARGEFOV,
    "voc-resnet101": VOC_RESNET101,
    "demo": DEMO,
    "demo-tiny": DEMO_TINY,
}


def check_run(params: DeepLabParams, options: RunParams, *, name: str = "deeplab") -> None:
    """Raises :class:`DataError` for parameters that cannot run on what the options name; asked before any work."""
    if params.batch % options.devices:
        raise DataError(
            f"params.{name}.batch={params.batch} cannot be shared by options.devices={options.devices};"
            f" set batch to a multiple of {options.devices}"
        )
    if params.precision == "fp16" and (options.device == "cpu" or not has_gpu()):
        raise DataError(f"params.{name}.precision=fp16 needs a GPU, and this run has none; set precision to 32 or bf16")


def fit(params: DeepLabParams, *, name: str = "deeplab", lgsa: LGSAParams | None = None) -> FitStage:
    """The stage that learns from label maps: role ``target`` gives ``mask_hw``.

    With ``lgsa`` (:func:`tasks.deeplab.lgsa.chosen`'s) the network has self-attention, and the label maps guide it,
    too. How the network is asked afterwards is no part of the stage. A weights file is an input, known by its content.
    Raises :class:`tasks.training.weights.WeightsError` if a named file is not there, ``ValueError`` for multi-scale
    inputs with self-attention.
    """
    weights = weights_files.parse(params.weights)
    inputs: dict[str, Path] = {}
    if weights.path is not None:
        inputs["weights"] = weights_files.require_file(weights.path, f"params.{name}.weights")
    semantic = dataclasses.replace(params, weights=weights.semantic, test=TestTimeParams())
    if lgsa is not None:
        own = {entry.name: getattr(semantic, entry.name) for entry in dataclasses.fields(DeepLabParams)}
        semantic = AttentionFitParams(**own, lgsa=lgsa)
    return FitStage(
        name=name,
        version=2,
        params=semantic,
        reads=("image",),
        function="tasks.deeplab.stages:train",
        seed=params.seed,
        inputs=inputs,
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
    mask is a second output, ``mask_crf_hw``: the network is asked once for both.
    """
    return MapStage(
        name=name,
        version=1,
        params=_predict_params(params, crf, lgsa),
        reads=("image",),
        outputs=("mask_hw",) if crf is None else ("mask_hw", CRF_MASK),
        function="tasks.deeplab.stages:predict_item",
        holds_classes=True,
        uses_torch=True,
    )


def _predict_params(params: DeepLabParams, crf: CRFParams | None, lgsa: LGSAParams | None) -> PredictParams:
    plain = (params.network, params.width, params.output_stride, params.atrous, params.test)
    if lgsa is None:
        return PredictParams(*plain) if crf is None else CRFPredictParams(*plain, crf)
    attention = net_of(lgsa)
    if crf is None:
        return AttentionPredictParams(*plain, attention)
    return AttentionCRFPredictParams(*plain, crf, attention=attention)


def train(context: FitContext) -> dict[str, Tensor]:
    """Run the fit; see :func:`tasks.deeplab.network.train`."""
    from tasks.deeplab import network as segment

    return segment.train(context)


def predict_item(item: Item, params: PredictParams) -> Arrays:
    """``mask_hw (H, W) uint8`` of one image at its own size: arg max of the fused probabilities, never 255.

    With :class:`CRFPredictParams` also ``mask_crf_hw``, the arg max of the CRF's marginals.
    """
    from tasks.deeplab import network as segment

    if item.image_rgb is None:
        raise ValueError(f"{item.key}: deeplab-predict needs the image, but it was not handed over")
    prefix = item.prefixes.get("net", "")
    network = segment.load_network(item.nets["net"], params, len(item.classes) + 1, item.device, prefix)
    test = params.test
    scores: Any = segment.predict_scores(network, item.image_rgb, test.scales, test.flip, test.fusion)
    arrays = {"mask_hw": scores.argmax(0).to("cpu").numpy().astype(np.uint8)}
    if isinstance(params, CRFPredictParams):
        from tasks.crf.dense_crf import dense_crf, from_probabilities, stage_device

        # Maxima of logits are no probabilities yet; means of probabilities are.
        probs = scores.softmax(0) if test.fusion == "max" else scores
        unary = from_probabilities(probs.to("cpu").numpy(), params.floor)
        device = stage_device(params.crf, item.device)
        arrays[CRF_MASK] = dense_crf(item.image_rgb, unary, params.crf, device=device).argmax(0).astype(np.uint8)
    return arrays
