"""LPG's mask generator: image, boxes of one class and the segmenter's probability of it -> the class's mask.

Xie et al., "Learning Class-Agnostic Pseudo Mask Generation for Box-Supervised Semantic Segmentation", 2021, section
III-B: an hourglass of one stack (Newell et al., ECCV 2016, in CornerNet's form) with 5 input channels and 2 outputs,
"the object mask inside the bounding box" and "the remaining unrelated background". Table II compares it with ResNets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from models.backbones import BatchNorm, Pretrained, further_channels, geometry_of
from models.deeplab import flat_rules, load_part
from models.lite0 import Lite0Encoder
from models.names import GENERATORS, check_name
from models.network import Network
from models.normalise import IMAGENET, Normalisation, Normalise
from models.timm_backbone import WHOLE, TimmEncoder, pad_to
from models.unet import Encoder, ResNetEncoder, TinyEncoder, UpBlock, init_body

PRIORS = 2
"""Input channels beside the image's three: boxes, probability."""
CELL = 4
"""Pixels to a cell of the output, at most: sides that are multiples of it have whole cells."""
FULL_LEVELS = 5
"""Maps of an encoder that gives one at stride 2."""


@dataclass(frozen=True)
class Plan:
    """Sizes of an hourglass."""

    stem: int
    """Channels after the first convolution (7x7, stride 2)."""
    widths: tuple[int, ...]
    """Channels at each scale, the finest first."""
    modules: tuple[int, ...]
    """Residual blocks at each scale."""
    features: int
    """Channels between the hourglass and its head."""
    stride: Literal[2, 4]
    """Of the finest scale, and of the output."""

    @property
    def multiple(self) -> int:
        """Sides that are multiples of this are halved down to the coarsest scale without a rest."""
        return int(self.stride * 2 ** (len(self.widths) - 1))


PAPER = Plan(48, (96, 96, 128, 128, 128, 192), (2, 2, 2, 2, 2, 4), 256, 4)
"""12,120,370 parameters, the paper's 12.1 M. The convolution to 256 before the head is CornerNet's: without it there
would be 11.8 M [infer]. Sides of 128 and its multiples fit."""


def small(width: int) -> Plan:
    """For small pictures, from scratch on a CPU; 610,290 parameters at width 16."""
    return Plan(width, (2 * width, 2 * width, 3 * width, 3 * width, 4 * width), (1, 1, 1, 1, 2), 2 * width, 2)


class Residual(nn.Module):
    """Two 3x3 with batch norm and a shortcut: 1x1 with batch norm where shapes differ."""

    def __init__(self, inputs: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.match: nn.Module = nn.Identity()
        if inputs != channels or stride > 1:
            self.match = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, h, w)`` -> ``(N, channels, ceil(h/stride), ceil(w/stride))``."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return cast(Tensor, self.relu(y + self.match(x)))


def residuals(inputs: int, channels: int, count: int, stride: int = 1) -> nn.Sequential:
    """``count`` blocks, of which the first changes channels and stride."""
    first = Residual(inputs, channels, stride)
    return nn.Sequential(first, *(Residual(channels, channels) for _ in range(count - 1)))


class Scale(nn.Module):
    """One scale of the hourglass and all coarser ones: a branch at this scale, plus what comes back from below."""

    def __init__(self, widths: Sequence[int], modules: Sequence[int]) -> None:
        super().__init__()
        (own, below), count = widths[:2], modules[0]
        self.branch = residuals(own, own, count)
        self.down = residuals(own, below, count, stride=2)
        deepest = len(widths) == 2
        self.inner: nn.Module = residuals(below, below, modules[1]) if deepest else Scale(widths[1:], modules[1:])
        self.back = nn.Sequential(*(Residual(below, below) for _ in range(count - 1)), Residual(below, own))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        """``(N, widths[0], h, w)`` -> the same shape; sides that can be halved ``len(widths) - 1`` times."""
        return cast(Tensor, self.branch(x) + self.up(self.back(self.inner(self.down(x)))))


class Generator(Network):
    """What both kinds share: normalisation, head, shapes. Logits come at the output stride; cell (0, 0) is on top."""

    def __init__(self, inputs: int, hidden: int, normalisation: Normalisation) -> None:
        super().__init__()
        self.normalise = Normalise(normalisation)
        self.head = nn.Sequential(
            nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 2, 1)
        )
        for convolution, follows in ((self.head[0], "relu"), (self.head[2], "linear")):
            nn.init.kaiming_normal_(cast(nn.Conv2d, convolution).weight, nonlinearity=follows)  # type: ignore[arg-type]
            nn.init.zeros_(cast(Tensor, cast(nn.Conv2d, convolution).bias))

    def inputs(self, images_nchw: Tensor, boxes_nhw: Tensor, probs_nhw: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images, and boxes and probabilities as ``(N, 2, H, W)``. ``ValueError`` for unlike shapes."""
        expected = (images_nchw.shape[0], *images_nchw.shape[2:])
        for name, maps in (("boxes", boxes_nhw), ("probabilities", probs_nhw)):
            if tuple(maps.shape) != expected:
                raise ValueError(f"images {tuple(images_nchw.shape)} need {name} {expected}, got {tuple(maps.shape)}")
        images = self.normalise(images_nchw)
        return images, torch.stack([boxes_nhw, probs_nhw], 1).to(images.dtype)


class Hourglass(Generator):
    """The paper's generator; :data:`PAPER` has its sizes. Sides that do not fit are padded with zeros."""

    PRETRAINED: ClassVar[str] = "hourglass."

    def __init__(self, plan: Plan, normalisation: Normalisation = IMAGENET) -> None:
        finest = plan.widths[0]
        super().__init__(plan.features, finest, normalisation)
        self.plan = plan
        self.hourglass = nn.Sequential(
            nn.Conv2d(3 + PRIORS, plan.stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(plan.stem),
            nn.ReLU(inplace=True),
            Residual(plan.stem, finest, stride=plan.stride // 2),
            Scale(plan.widths, plan.modules),
            nn.Conv2d(finest, plan.features, 3, padding=1, bias=False),
            nn.BatchNorm2d(plan.features),
            nn.ReLU(inplace=True),
        )
        init_body(self.hourglass)
        self.rules = flat_rules("generator", self, "")

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """There are no ImageNet weights of it: ``ValueError``."""
        raise ValueError(f"{source} is no generator of Maskmill, and an hourglass has no ImageNet weights")

    def forward(self, images_nchw: Tensor, boxes_nhw: Tensor, probs_nhw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255, boxes 0/1, probabilities 0..1, both ``(N, H, W)`` -> logits ``(N, 2, h, w)``.

        Channel 1 is the object inside the boxes, 0 everything else. h is ceil(H / stride).
        """
        images, priors = self.inputs(images_nchw, boxes_nhw, probs_nhw)
        logits = self.head(self.hourglass(pad_to(torch.cat([images, priors], 1), self.plan.multiple)))
        height, width = (-(-side // self.plan.stride) for side in images.shape[2:])
        return cast(Tensor, logits[:, :, :height, :width])


class EncoderGenerator(Generator):
    """A generator on any encoder of CFS's U-Net, ImageNet features included, with its decoder up to stride 4.

    The first convolution keeps the shape of the RGB weights. Boxes and probability are further input channels of it
    that start at zero: at first the network sees the image alone, as it was pretrained.
    """

    PRETRAINED: ClassVar[str] = "encoder."

    def __init__(self, encoder: Encoder, widths: Sequence[int], normalisation: Normalisation = IMAGENET) -> None:
        super().__init__(widths[-1], widths[-1], normalisation)
        self.encoder = encoder
        kernel, self.stride, self.padding = geometry_of(encoder.conv1)
        self.priors = nn.Parameter(torch.zeros(encoder.conv1.out_channels, PRIORS, *kernel))
        self.skipped = 1 if len(encoder.channels) == FULL_LEVELS else 0
        *skips, deepest = encoder.channels[self.skipped :]
        inputs = (deepest, *widths[:-1])
        self.decoder = nn.ModuleList(UpBlock(*each) for each in zip(inputs, reversed(skips), widths, strict=True))
        init_body(self.decoder)
        self.rules = flat_rules("generator", self, "")

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """See :func:`models.deeplab.load_part`. The first convolution's further channels stay."""
        load_part(cast(Pretrained, self.encoder), state, source=source)

    def forward(self, images_nchw: Tensor, boxes_nhw: Tensor, probs_nhw: Tensor) -> Tensor:
        """As :meth:`Hourglass.forward`; h and w are those of the encoder's map at stride 4 (the tiny one's: 2)."""
        images, priors = self.inputs(images_nchw, boxes_nhw, probs_nhw)
        whole = images.shape[2:]
        if isinstance(self.encoder, TimmEncoder):
            images, priors = pad_to(images, WHOLE), pad_to(priors, WHOLE)
        padded = images.shape[2:]
        maps = self.encoder(images, further_channels(priors, self.priors, self.stride, self.padding))[self.skipped :]
        x = maps.pop()
        for block in self.decoder:
            skip = maps.pop()
            x = block(x, (skip.shape[2], skip.shape[3]), skip)
        logits = self.head(x)
        if padded != whole:
            stride = padded[0] // logits.shape[2]
            height, width = (-(-side // stride) for side in whole)
            logits = logits[:, :, :height, :width]
        return cast(Tensor, logits)


def build(
    name: str, *, width: int = 16, batch_norm: BatchNorm = "trained", normalisation: Normalisation = IMAGENET
) -> Generator:
    """A generator of :data:`models.names.GENERATORS`, randomly initialised from torch's global generator.

    ``width`` matters to ``hourglass-small`` and ``tiny``, ``batch_norm`` to pretrained encoders. The encoders alone
    have Table II's 11.1 M (ResNet-18) and 42.5 M (ResNet-101) parameters; the decoder is ours. Raises ``ValueError``
    for an unknown name, or one of timm's models that has no map per halving.
    """
    kind = check_name(name, GENERATORS)
    if kind == "hourglass":
        return Hourglass(PAPER, normalisation)
    if kind == "hourglass-small":
        return Hourglass(small(width), normalisation)
    if kind == "tiny":
        return EncoderGenerator(TinyEncoder(width), (4 * width, 2 * width, 2 * width), normalisation)
    encoder: Encoder
    if kind == "lite0":
        encoder = Lite0Encoder(batch_norm)
    elif kind == "timm:NAME":
        encoder = TimmEncoder(name, batch_norm)
    else:
        depth = cast(Literal[18, 50, 101], int(name.removeprefix("resnet")))
        encoder = ResNetEncoder(depth, batch_norm)
    return EncoderGenerator(encoder, (256, 128, 64), normalisation)


def foreground(logits_n2hw: Tensor) -> Tensor:
    """Eq. 7, p = softmax(g): probability of the object, ``(N, 2, h, w)`` logits -> ``(N, h, w)`` float32."""
    return logits_n2hw.float().softmax(1)[:, 1]
