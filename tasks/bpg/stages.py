"""BPG as stages: it learns from scribbles and edges (:func:`fit`) and labels images (:func:`predict`, :func:`masks`).

Wang et al., "Boundary Perception Guidance", IJCAI 2019. The network and its losses are :mod:`models.bpg`. Params and
stage descriptions only, no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tasks.bounds import bounded, number
from tasks.crf.params import CRFParams
from tasks.deeplab.stages import VOC_TEST, PredictParams, TestTimeParams
from tasks.stage import CRF_MASK, IMAGES_AT_ONCE, LABEL_PROB, PARAMS_CONFIG, FitStage, MapStage
from tasks.training import weights as weights_files
from tasks.training.backbone import BackboneParams

BOUNDARY = "boundary_hw"
"""Array of :func:`predict`: the boundaries that BRN finds."""


@dataclass(frozen=True)
class PartsParams:
    """What is added to DeepLab: PRN and BRN. The paper prints neither widths nor depths."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    prn: bool = field(default=True, metadata={"help": "prediction refinement: twofold upsampling, step by step"})
    brn: Literal["off", "two", "all"] = field(
        default="two",
        metadata={
            "help": "boundary regression: off; from background and foreground (C = 2); from all score maps (C = K + 1),"
            " which Table 2 warns of"
        },
    )
    prn_width: int = number(8, 1, 256, "PRN: channels of its convolutions, for each score map")
    prn_depth: int = number(3, 1, 16, "PRN: convolutions at each step")
    prn_grouped: bool = field(default=False, metadata={"help": "PRN: convolutions of its own for each score map"})
    low_width: int = number(16, 1, 256, "PRN: channels of the five convolutions on the image")
    low_shared: bool = field(
        default=False, metadata={"help": "PRN: one low-level channel for all score maps of a step, not one for each"}
    )
    brn_width: int = number(16, 1, 256, "BRN: channels of its convolutions")
    brn_depth: int = number(3, 1, 16, "BRN: convolutions")

    def __post_init__(self) -> None:
        bounded(self, "bpg.parts")

    def semantic(self) -> PartsParams:
        """The same with the fields of a part that is off at their defaults."""
        unused = [] if self.prn else ["prn_width", "prn_depth", "prn_grouped", "low_width", "low_shared"]
        unused += ["brn_width", "brn_depth"] if self.brn == "off" else []
        changed: dict[str, Any] = {entry.name: entry.default for entry in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: changed[name] for name in unused})


@dataclass(frozen=True)
class BPGParams(BackboneParams):
    """The network, its schedule, augmentation, inference.

    The defaults are the paper's, but for ImageNet's ResNet-50 and inference at one scale; :data:`VOC` has all of them.
    """

    NAME: ClassVar[str] = "bpg"

    epochs: int = number(25, 1, 100_000, "passes over the data; every image once each")
    lr: float = number(2.5e-4, 1e-9, 10.0, "learning rate of multiplier 1 (groups 1/10/20, 1/2/10/20)")
    scale_range: tuple[float, float] = number(
        (1.0, 1.0), 0.1, 4.0, "random scale before the crop; the paper trains on a single scale"
    )
    parts: PartsParams = field(default_factory=PartsParams, metadata={"help": "PRN and BRN"})
    boundary_weight: float = number(1.0, 0.0, 1e6, "lambda of eq. 4: what the boundary loss counts")
    test: TestTimeParams = field(
        default_factory=TestTimeParams, metadata={"help": "inference: scales and mirror images"}
    )
    monitor_every: int = number(
        0, 0, 10_000_000, "iterations between two measurements of val mIoU; 0: only at the end", operational=True
    )

    @property
    def learns_edges(self) -> bool:
        """Whether the fit needs edges."""
        return self.parts.brn != "off"

    def semantic(self) -> BPGParams:
        """As :meth:`tasks.training.params.TrainParams.semantic`; a part that is off has no numbers."""
        weight = self.boundary_weight if self.learns_edges else 1.0
        return dataclasses.replace(super().semantic(), parts=self.parts.semantic(), boundary_weight=weight)


@dataclass(frozen=True)
class BPGPredictParams(PredictParams):
    """What decides a prediction, given the checkpoint."""

    parts: PartsParams = PartsParams()


VOC = BPGParams(network="resnet101", test=VOC_TEST)
"""The paper's: ResNet-101, 25 epochs, averaged over four scales and mirror images."""

DEMO = BPGParams(
    network="tiny",
    weights="none",
    crop=96,
    scale_range=(0.75, 1.33),
    colour_jitter=0.3,
    batch=16,
    iterations=1000,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
    output_stride=4,
    parts=PartsParams(prn_width=4, prn_depth=2, low_width=8, brn_width=8),
    test=TestTimeParams(flip=True),
)
"""From scratch on 96 px pictures."""

DEMO_TINY = dataclasses.replace(
    DEMO,
    batch=4,
    iterations=20,
    crop=64,
    output_stride=8,
    parts=PartsParams(prn_width=2, prn_depth=2, low_width=4, brn_width=4),
)
"""Twenty iterations: a check that everything runs; the masks are poor."""

PRESETS: Mapping[str, BPGParams] = {"voc-bpg": VOC, "demo": DEMO, "demo-tiny": DEMO_TINY}


def fit(params: BPGParams, *, name: str = "bpg") -> FitStage:
    """The stage that learns: role ``target`` gives ``mask_hw``, scribbles and 255; with BRN, ``edges`` ``edges_hw``.

    ``init`` may be a DeepLab's checkpoint. Inference parameters are no part of it. Raises
    :class:`tasks.training.weights.WeightsError` if named weights are not there or are not what they should be.
    """
    source = weights_files.resolve(params.weights, params.network, f"params.{name}.weights")
    return FitStage(
        name=name,
        version=4,
        params=dataclasses.replace(params.semantic(), weights=source.semantic, test=TestTimeParams()),
        reads=("image",),
        function="tasks.bpg.network:train",
        seed=params.seed,
        inputs=source.inputs,
    )


def predict(params: BPGParams, *, name: str = "bpg-predict", crf: CRFParams | None = None) -> MapStage:
    """The stage that labels any image: role ``net`` is the fit, ``mask_hw`` any of the classes.

    With ``crf`` also ``mask_crf_hw``, as :func:`tasks.deeplab.stages.predict`; with BRN ``boundary_hw (H, W) uint8``,
    255 times the probability of a boundary, from the same inference.
    """
    return _labelling(params, name, "predict", crf, params.learns_edges)


def masks(
    params: BPGParams, *, name: str = "bpg-masks", crf: CRFParams | None = None, confidence: bool = False
) -> MapStage:
    """The stage that labels the training images: role ``net`` is the fit, ``known`` the scribbles' ``mask_hw``.

    A pixel is background or one of the classes that are scribbled in its image; with ``crf`` after it. ``confidence``:
    with ``label_prob_hw``. Otherwise as :func:`predict`.
    """
    stage = _labelling(params, name, "masks", crf, params.learns_edges)
    if not confidence:
        return stage
    kept = dataclasses.replace(stage.params, confidence=True)
    return dataclasses.replace(stage, params=kept, outputs=(*stage.outputs, LABEL_PROB))


def _labelling(params: BPGParams, name: str, what: str, crf: CRFParams | None, boundary: bool) -> MapStage:
    of_crf = (CRF_MASK,) if crf is not None and what == "predict" else ()
    heat = (BOUNDARY,) if boundary else ()
    return MapStage(
        name=name,
        version=2,
        params=BPGPredictParams(
            params.network,
            params.width,
            params.output_stride,
            params.atrous,
            params.test,
            crf=crf,
            parts=params.parts.semantic(),
        ),
        reads=("image",),
        outputs=("mask_hw", *of_crf, *heat),
        function=f"tasks.bpg.network:{what}_items",
        holds_classes=True,
        uses_torch=True,
        images_at_once=IMAGES_AT_ONCE,
        heat=heat,
    )
