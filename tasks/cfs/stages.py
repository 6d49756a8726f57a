"""Constrained foreground segmentation (CFS) as two stages: learn from coarse masks (:func:`fit`), segment each box
(:func:`predict`). Xie et al., "Learning Effectively from Noisy Supervision", BMVC 2020, section 3.2.

The network sees one box at a time. The box mask and its class are inputs. It learns foreground from
GrabCut's noisy masks: it fits what the masks have in common before their errors. Its probabilities are made
precise by :func:`tasks.refine.refine`.

Params and stage descriptions only: crops are :mod:`tasks.cfs.box_crop`, torch lives in :mod:`tasks.cfs.network`,
imported when a stage runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from artifacts.keys import OPERATIONAL
from artifacts.records import Box
from models.names import ENCODERS, check_name, is_timm
from tasks.bounds import number
from tasks.boxes import LABEL_OUTPUTS
from tasks.stage import PARAMS_CONFIG, FitStage, MapStage
from tasks.training import weights as weights_files
from tasks.training.backbone import encoder_refusal
from tasks.training.params import TrainParams


@dataclass(frozen=True)
class CFSParams(TrainParams):
    """The network, its input crops, its schedule, and its inference. The defaults are the paper's.

    224 x 224, boxes of 50 px and more, SGD .005 times .8 every 10 of 60 epochs. Batch 32, momentum .9, weight decay
    5e-4 and mirrored crops are usual values that its text does not give.
    """

    NAME: ClassVar[str] = "cfs"
    DECAYS_BY_EPOCH: ClassVar[bool] = True

    network: str = field(
        default="resnet50",
        metadata={"help": f"encoder of the U-Net: {', '.join(ENCODERS)}; the paper's is resnet50"},
    )
    width: int = number(16, 4, 256, "channels of the tiny network's stem")
    weights: str = field(
        default="imagenet",
        metadata={"help": weights_files.HELP},
    )
    batch_norm: Literal["trained", "frozen"] = field(
        default="trained", metadata={"help": "batch norms of a pretrained encoder: trained, or frozen as loaded"}
    )
    class_channel: bool = field(default=True, metadata={"help": "the box's class is an input of the network"})
    deep_refeed: bool = field(default=True, metadata={"help": "box and class are inputs of the deep layers, too"})
    crop: int = number(224, 16, 1024, "side of the square that a grown box is resized to, pixels")
    context: float = number(1.5, 1.0, 4.0, "height and width of the grown box, times the box's")
    min_side: float = number(
        50.0, 0.0, 10_000.0, "boxes with a shorter side are left out of training, pixels; inference covers all boxes"
    )
    difficult: bool = field(
        default=True,
        metadata={"help": "use difficult objects in training and inference (as in grabcut and refine)"},
    )
    flip: bool = field(default=True, metadata={"help": "training: mirror every second crop"})
    margin_jitter: float = number(
        0.0, 0.0, 1.0, "training: random factor of each margin of the grown box, 1 minus/plus up to this; 0: none"
    )
    colour_jitter: float = number(0.0, 0.0, 1.0, "random brightness, contrast and saturation, up to this much; 0: none")
    batch: int = number(32, 1, 4096, "crops an iteration, over all devices")
    epochs: int = number(60, 1, 100_000, "passes over the data; every object once each")
    iterations: int = number(
        0, 0, 10_000_000, "optimizer steps; the epochs are spread over them; 0: as many as the epochs need"
    )
    lr: float = number(0.005, 1e-9, 10.0, "learning rate of the first epochs")
    lr_decay: float = number(0.8, 1e-6, 1.0, "factor of the learning rate after every decay_every")
    decay_every: int = number(10, 1, 100_000, "epochs between two decays")
    weight_decay: float = number(5e-4, 0.0, 1.0, "weight decay, of all but the decoder's biases")
    test_flip: bool = field(default=False, metadata={"help": "inference: average over the crop and its mirror image"})
    predict_batch: int = number(32, 1, 4096, "inference: boxes of one image in a batch", operational=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.network, ENCODERS)
        weights_files.check_fits(self.weights, self.network, "cfs.weights")

    @property
    def smallest_alone(self) -> int:
        """Side of the smallest crop that can be a batch of one, pixels: torch's batch norm has to see two values.

        The deepest map has a thirty-second of the crop's side, the tiny network's a sixteenth. Where the encoder's
        batch norms are frozen, the decoder's first, at a sixteenth, is still trained. Sides are rounded up, by the tiny
        stem down; for timm's models crops are padded to multiples of 32. Some of them have no batch norm and could do
        with less.
        """
        if self.network == "tiny":
            return 18
        if is_timm(self.network):
            return 1 if self.batch_norm == "frozen" else 33
        return 17 if self.batch_norm == "frozen" else 33

    def refusal(self, devices: int, name: str) -> str:
        """One of timm's models that is no encoder; batch norm cannot train on one small crop per device."""
        return encoder_refusal(
            self.network, name, batch=self.batch, crop=self.crop, smallest=self.smallest_alone, devices=devices
        )


@dataclass(frozen=True)
class CFSPredictParams:
    """The part of :class:`CFSParams` that decides a prediction, given the checkpoint."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    network: str
    width: int
    class_channel: bool
    deep_refeed: bool
    crop: int
    context: float
    difficult: bool
    test_flip: bool
    predict_batch: int = field(metadata=OPERATIONAL)
    channels_last: bool = field(metadata=OPERATIONAL)


VOC = CFSParams(network="resnet50", weights="imagenet")
"""The paper's."""

DEMO = CFSParams(
    network="tiny",
    weights="none",
    crop=64,
    min_side=10.0,
    margin_jitter=0.5,
    colour_jitter=0.3,
    iterations=100,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
    test_flip=True,
)
"""From scratch on 96 px pictures, in half a minute of one core. Chosen on the demo's training pictures (1 seed):
without the jitters raw masks lose 2 mIoU, crops of 48 px 1 and a faster decay another 2, 24 channels learn what 16 do.
Refined masks are best after 7 epochs; after 14 the network overfits the errors of plain GrabCut (raw 62 and 50
mIoU)."""

DEMO_TINY = dataclasses.replace(DEMO, width=8, crop=32, batch=4, iterations=20)
"""Twenty iterations: a check that everything runs; the masks are poor."""

PRESETS: Mapping[str, CFSParams] = {"voc": VOC, "demo": DEMO, "demo-tiny": DEMO_TINY}


def learnable(box: Box, params: CFSParams) -> bool:
    """Whether a box is used in training: no crowd, both sides ``min_side`` or more, difficult ones if requested."""
    if box.crowd or (box.difficult and not params.difficult):
        return False
    return min(box.x1 - box.x0, box.y1 - box.y0) >= params.min_side


def rate_factor(params: CFSParams, step: int, iterations: int) -> float:
    """Factor of the learning rate in ``step`` (0-based): ``lr_decay`` per ``decay_every`` epochs behind it (Sec. 4.1).

    Epochs are evenly spread over the iterations.
    """
    epoch = step * params.epochs // iterations
    return float(params.lr_decay ** (epoch // params.decay_every))


def fit(params: CFSParams, *, name: str = "cfs") -> FitStage:
    """The stage that learns foreground inside boxes: role ``coarse`` gives one mask per object (packed objects).

    Inference parameters are no part of it. A weights file is an input, identified by its content.
    Raises :class:`tasks.training.weights.WeightsError` if named weights are not there or are not what they should be.
    """
    source = weights_files.resolve(params.weights, params.network, f"params.{name}.weights")
    semantic = dataclasses.replace(params.semantic(), weights=source.semantic, test_flip=False)
    return FitStage(
        name=name,
        version=3,
        params=semantic,
        reads=("image", "boxes"),
        function="tasks.cfs.network:train",
        seed=params.seed,
        inputs=source.inputs,
    )


def predict(params: CFSParams, *, name: str = "cfs-predict") -> MapStage:
    """The stage that predicts the foreground of every box, small ones too: role ``net`` is the fit.

    Packed objects of float16 foreground probabilities, each in the pixels of its box (nothing outside of it is
    foreground), in the layout that :func:`tasks.refine.refine` reads as role ``dense``; and ``mask_hw``, where they
    exceed .5, larger boxes first.
    """
    shared = {entry.name: getattr(params, entry.name) for entry in dataclasses.fields(CFSPredictParams)}
    return MapStage(
        name=name,
        version=2,
        params=CFSPredictParams(**shared),
        reads=("image", "boxes"),
        outputs=LABEL_OUTPUTS,
        function="tasks.cfs.network:predict_item",
        holds_classes=True,
        uses_torch=True,
    )
