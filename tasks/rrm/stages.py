"""RRM as stages: both branches are trained (:func:`fit`), the head labels images (:func:`predict`, :func:`masks`).

Zhang et al., "Reliability Does Matter", AAAI 2020. The network and its losses are :mod:`models.rrm`, the regions it
learns from :mod:`tasks.reliable`. Params and stage descriptions only, no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tasks.bounds import number
from tasks.cam.stages import TagFitParams
from tasks.crf.params import PRESETS as CRF_PRESETS
from tasks.crf.params import CRFParams
from tasks.deeplab.stages import PredictParams, TestTimeParams
from tasks.reliable import ReliableParams
from tasks.stage import CRF_MASK, IMAGES_AT_ONCE, LABEL_PROB, FitStage, MapStage
from tasks.training import weights as weights_files


@dataclass(frozen=True)
class RRMParams(TagFitParams):
    """Both branches, their losses and the mining. The paper's values but the rate, on EfficientNet-Lite0.

    With the paper's rate of 1e-3, which is ResNet-38's (:data:`VOC`), Lite0 diverges.
    """

    NAME: ClassVar[str] = "rrm"

    lr: float = number(1e-4, 1e-9, 10.0, "learning rate of multiplier 1 (groups 1/2/10/20); the paper's is 1e-3")
    mining: Literal["online", "offline"] = field(
        default="online",
        metadata={
            "help": "reliable regions from the network's own maps at every step, as in the paper, or given once by a"
            " stage before (cheap; each of its steps is cached)"
        },
    )
    mining_scales: tuple[float, ...] = number(
        (0.5, 1.0, 1.5, 2.0),
        0.1,
        4.0,
        "scales of the crop whose maps are averaged when mining online (eq. 2; the released code has three)",
    )
    mining_threads: int = number(0, 0, 1024, "CRFs and energies at a time; 0: one for each core", operational=True)
    reliable: ReliableParams = field(
        default_factory=ReliableParams, metadata={"help": "which pixels are taken for certain when mining online"}
    )
    class_weight: float = number(1.0, 0.0, 1e6, "weight of the classifier's loss")
    label_weight: float = number(1.0, 0.0, 1e6, "weight of the cross entropy on reliable pixels")
    energy_weight: float = number(
        1e-7, 0.0, 1e6, "weight of the dense energy loss, as on a grid of 160 x 160; 0: the cross entropy alone"
    )
    sigma_xy: float = number(100.0, 0.01, 1e4, "the energy's standard deviation in position, pixels of the crop")
    sigma_rgb: float = number(15.0, 0.01, 1e4, "the energy's standard deviation in colour, 0..255")
    energy_scale: float = number(0.5, 0.05, 1.0, "scale of the crop at which the energy is computed")
    warmup_epochs: float = number(0.0, 0.0, 1e6, "epochs at the start with the classifier's loss alone")
    test: TestTimeParams = field(
        default_factory=TestTimeParams, metadata={"help": "inference: scales and mirror images"}
    )
    monitor_every: int = number(
        0, 0, 10_000_000, "iterations between two measurements of val mIoU; 0: only at the end", operational=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mining_scales:
            raise ValueError("rrm.mining_scales is empty; give at least one factor, (1.0,) say")

    def semantic(self) -> RRMParams:
        """As :meth:`tasks.training.params.TrainParams.semantic`; what is not mined or weighted has no effect either."""
        changed: dict[str, Any] = {"reliable": self.reliable.semantic()}
        unused = [] if self.energy_weight else ["sigma_xy", "sigma_rgb", "energy_scale"]
        if self.mining == "offline":
            unused.append("mining_scales")
            changed["reliable"] = ReliableParams()
        changed |= {entry.name: entry.default for entry in dataclasses.fields(self) if entry.name in unused}
        return dataclasses.replace(super().semantic(), **changed)


VOC = RRMParams(
    network="resnet38",
    output_stride=8,
    weights="none",
    lr=1e-3,
    test=TestTimeParams(scales=(0.5, 0.75, 1.0, 1.25), flip=True),
)
"""The paper's network. Set ``weights`` to the file of its ImageNet (or classifier's) weights: there is no download."""

DEMO = RRMParams(
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
    test=TestTimeParams(flip=True),
)
"""From scratch on 96 px pictures."""

DEMO_TINY = dataclasses.replace(DEMO, batch=4, iterations=20, crop=64)
"""Twenty iterations: a check that everything runs; the masks are poor."""

PRESETS: Mapping[str, RRMParams] = {"voc-rrm": VOC, "demo": DEMO, "demo-tiny": DEMO_TINY}


def fit(params: RRMParams, *, name: str = "rrm") -> FitStage:
    """The stage that learns from tags. With ``mining="offline"`` role ``target`` gives the reliable regions.

    ``init`` may be the checkpoint of :func:`tasks.cam.stages.fit` with the same backbone. Inference parameters are no
    part of it. A weights file is an input, identified by its content. Raises
    :class:`tasks.training.weights.WeightsError` if named weights are not there or are not what they should be.
    """
    source = weights_files.resolve(params.weights, params.network, f"params.{name}.weights")
    return FitStage(
        name=name,
        version=3,
        params=dataclasses.replace(params.semantic(), weights=source.semantic, test=TestTimeParams()),
        reads=("image", "tags"),
        function="tasks.rrm.network:train",
        seed=params.seed,
        inputs=source.inputs,
    )


def predict(params: RRMParams, *, name: str = "rrm-predict", crf: CRFParams | None = None) -> MapStage:
    """The stage that labels any image: role ``net`` is the fit, ``mask_hw`` any of the classes.

    With ``crf`` also ``mask_crf_hw``, as :func:`tasks.deeplab.stages.predict`.
    """
    return MapStage(
        name=name,
        version=2,
        params=_predict_params(params, crf),
        reads=("image",),
        outputs=("mask_hw",) if crf is None else ("mask_hw", CRF_MASK),
        function="tasks.rrm.network:predict_items",
        holds_classes=True,
        uses_torch=True,
        images_at_once=IMAGES_AT_ONCE,
    )


def masks(
    params: RRMParams,
    *,
    name: str = "rrm-masks",
    crf: CRFParams | None = CRF_PRESETS["rrm-test"],
    confidence: bool = False,
) -> MapStage:
    """The stage that makes the two-step method's training masks: role ``net`` is the fit, the output ``mask_hw``.

    For images whose tags are known: a pixel is background or one of the tags. ``crf``: on the probabilities of these.
    ``confidence``: with ``label_prob_hw``.
    """
    return MapStage(
        name=name,
        version=2,
        params=dataclasses.replace(_predict_params(params, crf), confidence=confidence),
        reads=("image", "tags"),
        outputs=("mask_hw", LABEL_PROB) if confidence else ("mask_hw",),
        function="tasks.rrm.network:masks_items",
        holds_classes=True,
        uses_torch=True,
        images_at_once=IMAGES_AT_ONCE,
    )


def _predict_params(params: RRMParams, crf: CRFParams | None) -> PredictParams:
    return PredictParams(params.network, params.width, params.output_stride, params.atrous, params.test, crf=crf)
