"""The constrained foreground segmentation network (CFS): one box's crop to foreground and background.

Xie et al., "Learning Effectively from Noisy Supervision for Weakly Supervised Semantic Segmentation", BMVC 2020,
section 3.2: a U-Net on a ResNet-50. Box mask and class are inputs, and are fed again to its deep layers. The layers'
widths are in a supplement that was not available: they are the usual ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.backbones import (
    BatchNorm,
    FrozenBatchNorm2d,
    Pretrained,
    TinyBlock,
    convolutions,
    further_channels,
    geometry_of,
    same_padding,
)
from models.deeplab import flat_rules, load_part
from models.groups import GroupRule
from models.lite0 import Lite0Encoder
from models.losses import cross_entropy, rank_share
from models.names import ENCODERS, check_name
from models.network import Network
from models.normalise import IMAGENET, Normalisation, Normalise
from models.resample import resize
from models.timm_backbone import WHOLE, TimmEncoder, pad_to

RESNET_DECODER = (256, 128, 64, 32, 16)
"""Channels of the decoder's blocks, from a sixteenth of the input's side to the whole."""


class ResNetEncoder(Pretrained):
    """ResNet-18, -50 or -101 whole, with its strides, under torchvision's names; gives one map per halving."""

    def __init__(self, depth: Literal[18, 50, 101], batch_norm: BatchNorm = "trained") -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if batch_norm == "frozen" else nn.BatchNorm2d
        net = getattr(torchvision.models, f"resnet{depth}")(weights=None, norm_layer=norm)
        self.conv1: nn.Conv2d = net.conv1
        self.bn1, self.relu, self.maxpool = net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        wider = 1 if depth == 18 else 4
        self.channels = (64, *(wider * width for width in (64, 128, 256, 512)))

    def forward(self, images_nchw: Tensor, prior_nchw: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` normalised, and what the priors add to conv1's output -> maps at strides 2, 4 ... 32."""
        maps = [self.relu(self.bn1(self.conv1(images_nchw) + prior_nchw))]
        x = self.maxpool(maps[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class TinyEncoder(Pretrained):
    """For small crops, from scratch on a CPU: ``width``, 2, 4 and 4 times it at strides 2, 4, 8, 16."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.channels = (width, 2 * width, 4 * width, 4 * width)
        inputs = (width, *self.channels[:-1])
        self.stages = nn.ModuleList(
            TinyBlock(before, after, stride=1 if number == 0 else 2)
            for number, (before, after) in enumerate(zip(inputs, self.channels, strict=True))
        )
        init_body(self)

    def forward(self, images_nchw: Tensor, prior_nchw: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` normalised, and what the priors add to conv1's output -> maps at strides 2, 4, 8, 16."""
        x = self.relu(self.bn1(self.conv1(images_nchw) + prior_nchw))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class PriorStem(nn.Module):
    """conv1's further input channels: the box mask and, if ``classes``, the class as one-hot constant maps.

    A convolution is linear in its input channels, so ``conv1(image) + PriorStem(box, class)`` is one conv1 with
    ``3 + 1 + K`` input channels, while conv1 keeps the shape of the ImageNet weights. All zero at first: the network
    starts as the pretrained one [infer].
    """

    def __init__(self, conv1: nn.Conv2d, classes: int) -> None:
        super().__init__()
        size, self.stride, self.padding = geometry_of(conv1)
        self.box = nn.Parameter(torch.zeros(conv1.out_channels, 1, *size))
        self.classes = nn.Parameter(torch.zeros(conv1.out_channels, classes, *size)) if classes else None

    def forward(self, boxes_n1hw: Tensor, classes_n: Tensor) -> Tensor:
        """``(N, 1, H, W)`` 0/1 and ``(N,)`` int64 1..K -> ``(N, C, h, w)`` at conv1's output grid."""
        size = (boxes_n1hw.shape[2], boxes_n1hw.shape[3])
        response = further_channels(boxes_n1hw, self.box, self.stride, self.padding)
        if self.classes is None:
            return response
        kernels_nckk = self.classes.index_select(1, classes_n - 1).transpose(0, 1)
        return response + constant_response(kernels_nckk, size, self.stride, self.padding)


def constant_response(kernels_nckk: Tensor, size_hw: tuple[int, int], stride: int, padding: int | None) -> Tensor:
    """What zero-padded convolutions make of an input that is 1 everywhere: ``(N, C, k, k)`` -> ``(N, C, h, w)``.

    ``padding``: of every side; ``None``: "same" (:func:`models.backbones.same_padding`). A sum of the kernel's weights
    that lie inside the picture. K one-hot maps as real channels would cost K convolutions for the same numbers (at 80
    classes, most of the network's time).
    """
    rows, columns = (
        taps_inside(size, kernel, stride, padding).to(kernels_nckk)
        for size, kernel in zip(size_hw, kernels_nckk.shape[2:], strict=True)
    )
    return torch.einsum("yi,ncij,xj->ncyx", rows, kernels_nckk, columns)


def taps_inside(size: int, kernel: int, stride: int, padding: int | None) -> Tensor:
    """``(out, kernel)`` bool: whether tap ``j`` of output position ``i`` lies in an axis of ``size`` pixels."""
    before, behind = same_padding(size, kernel, stride) if padding is None else (padding, padding)
    outputs = (size + before + behind - kernel) // stride + 1
    position = torch.arange(outputs)[:, None] * stride - before + torch.arange(kernel)
    return (position >= 0) & (position < size)


class UpBlock(nn.Module):
    """A decoder's step: upsample to the skip's grid, put the skip beside it, two 3x3 with batch norm."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs + skip, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, size_hw: tuple[int, int], skip: Tensor | None) -> Tensor:
        """``(N, inputs, h, w)`` -> ``(N, outputs, *size_hw)``; ``skip`` is ``(N, skip, *size_hw)``."""
        x = resize(x, size_hw)
        if skip is not None:
            x = torch.cat([x, skip], 1)
        x = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(x))))


Encoder = ResNetEncoder | TinyEncoder | Lite0Encoder | TimmEncoder


class UNet(Network):
    """CFS (section 3.2, Fig. 2). ``classes`` K; see :func:`build` for the switches. ``rules`` as DeepLab's."""

    PRETRAINED: ClassVar[str] = "encoder."

    def __init__(
        self,
        encoder: Encoder,
        widths: Sequence[int],
        classes: int,
        *,
        class_channel: bool = True,
        deep_refeed: bool = True,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        super().__init__()
        self.class_count = classes
        self.class_channel, self.deep_refeed = class_channel, deep_refeed
        self.normalise = Normalise(normalisation)
        self.encoder = encoder
        self.prior = PriorStem(encoder.conv1, classes if class_channel else 0)
        refed = (1 + (classes if class_channel else 0)) if deep_refeed else 0
        # From the deepest map up; the last block, at the input's size, has no skip.
        *skips, deepest = encoder.channels
        inputs = (deepest + refed, *widths[:-1])
        self.decoder = nn.ModuleList(UpBlock(*each) for each in zip(inputs, (*reversed(skips), 0), widths, strict=True))
        self.head = nn.Conv2d(widths[-1], 2, 1)
        init_body(self.decoder)
        # Not DeepLab's deviation of 0.01: over 16 channels such a head needs dozens of steps before the loss falls.
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="linear")
        nn.init.zeros_(cast(Tensor, self.head.bias))
        self.rules = RULES
        if isinstance(encoder, Lite0Encoder | TimmEncoder):
            # Their norms and biases learn without decay; the priors are weights.
            self.rules = (*flat_rules("encoder", self, ("encoder.", "prior.")), *RULES[1:])

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """See :func:`models.deeplab.load_part`. conv1's further channels are :class:`PriorStem`'s and stay."""
        load_part(self.encoder, state, source=source)

    def forward(self, images_nchw: Tensor, boxes_nhw: Tensor, classes_n: Tensor) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255, ``(N, H, W)`` box masks B_exp, ``(N,)`` classes -> logits ``(N, 2, H, W)``.

        Box masks are 1 (or True) inside the box, any dtype; classes are integers 1..K (used only if
        ``class_channel``). Channel 0 is background, 1 foreground. Any H and W of 2 or more. Raises ``ValueError`` for
        shapes that do not belong together and for a class outside 1..K.
        """
        size = (images_nchw.shape[2], images_nchw.shape[3])
        self._check(images_nchw, boxes_nhw, classes_n)
        images = self.normalise(images_nchw)
        boxes = boxes_nhw[:, None].to(images.dtype)
        if isinstance(self.encoder, TimmEncoder):
            images, boxes = pad_to(images, WHOLE), pad_to(boxes, WHOLE)
        padded = (images.shape[2], images.shape[3])
        classes = classes_n.long()
        maps = self.encoder(images, self.prior(boxes, classes))
        x = self._refeed(maps.pop(), boxes, classes)
        for block in self.decoder:
            skip = maps.pop() if maps else None
            x = block(x, padded if skip is None else (skip.shape[2], skip.shape[3]), skip)
        return cast(Tensor, self.head(x))[:, :, : size[0], : size[1]]

    def _refeed(self, deepest: Tensor, boxes_n1hw: Tensor, classes_n: Tensor) -> Tensor:
        """The deepest map with the box mask (area-averaged) and the one-hot class beside it.

        "We add skip connections to feed B_exp and y to deep layers directly" (section 3.2); that the deepest map is
        the place is a reading of it [infer].
        """
        if not self.deep_refeed:
            return deepest
        size = (deepest.shape[2], deepest.shape[3])
        parts = [deepest, F.adaptive_avg_pool2d(boxes_n1hw, size).to(deepest.dtype)]
        if self.class_channel:
            parts.append(one_hot(classes_n, self.class_count).to(deepest.dtype)[:, :, None, None].expand(-1, -1, *size))
        return torch.cat(parts, 1)

    def _check(self, images_nchw: Tensor, boxes_nhw: Tensor, classes_n: Tensor) -> None:
        n, _, height, width = images_nchw.shape
        if tuple(boxes_nhw.shape) != (n, height, width) or tuple(classes_n.shape) != (n,):
            raise ValueError(
                f"images {tuple(images_nchw.shape)} need box masks {(n, height, width)} and classes {(n,)}, got "
                f"{tuple(boxes_nhw.shape)} and {tuple(classes_n.shape)}"
            )
        # Not while tracing: a look at the values would cut the graph in two.
        if n and self.class_channel and not torch.compiler.is_compiling() and not classes_n.is_meta:
            low, high = (int(value) for value in torch.aminmax(classes_n))
            if low < 1 or high > self.class_count:
                raise ValueError(f"classes {low}..{high} are outside 1..{self.class_count}")


def one_hot(classes_n: Tensor, count: int) -> Tensor:
    """``(N,)`` integers 1..count -> ``(N, count)`` float32: class c is column c - 1."""
    return F.one_hot(classes_n.long() - 1, count).float()


def cfs_loss(logits_n2hw: Tensor, targets_nhw: Tensor) -> Tensor:
    """Equation 3: L_CFS = CE(M̂_exp, M_exp), the mean over all pixels of all crops (255, if any, left out).

    ``(N, 2, H, W)`` logits, ``(N, H, W)`` integer targets 0 background, 1 foreground -> float32 scalar.
    """
    return cross_entropy(logits_n2hw, targets_nhw) * rank_share(targets_nhw)


def foreground_probability(logits_n2hw: Tensor) -> Tensor:
    """Probability of the foreground: ``(N, 2, H, W)`` logits -> ``(N, H, W)`` float32."""
    return logits_n2hw.float().softmax(1)[:, 1]


def build(
    encoder: str,
    classes: int,
    *,
    class_channel: bool = True,
    deep_refeed: bool = True,
    batch_norm: BatchNorm = "trained",
    normalisation: Normalisation = IMAGENET,
    width: int = 16,
) -> UNet:
    """A CFS network for ``classes`` K, randomly initialised from torch's global generator.

    ``class_channel``: the one-hot class is an input. ``deep_refeed``: box mask (and class) enter the deepest map again.
    ``batch_norm`` of a pretrained encoder: trained (the paper says nothing and batches of 32 crops allow it [infer]) or
    frozen at the loaded weights. ``width`` matters to the tiny one. With 20 classes ResNet-50 has 32,635,234
    parameters, ResNet-18 14,442,338, Lite0 5,252,482, the tiny one 327,890. Raises ``ValueError`` for an unknown
    encoder, one of timm's that has no map per halving, or no class.
    """
    if classes < 1:
        raise ValueError(f"classes {classes} must be at least 1")
    kind = check_name(encoder, ENCODERS)
    body: Encoder
    widths: Sequence[int] = RESNET_DECODER
    if kind == "tiny":
        body, widths = TinyEncoder(width), (4 * width, 2 * width, width, max(4, width // 2))
    elif kind == "lite0":
        body = Lite0Encoder(batch_norm)
    elif kind == "timm:NAME":
        body = TimmEncoder(encoder, batch_norm)
        widths = RESNET_DECODER[-len(body.channels) :]
    else:
        body = ResNetEncoder(cast(Literal[18, 50], int(encoder.removeprefix("resnet"))), batch_norm)
    return UNet(
        body,
        widths,
        classes,
        class_channel=class_channel,
        deep_refeed=deep_refeed,
        normalisation=normalisation,
    )


RULES = (
    GroupRule("encoder", lambda name: name.startswith(("encoder.", "prior.")), 1.0),
    GroupRule("decoder-weights", lambda name: name.startswith(("decoder.", "head.")) and name.endswith(".weight"), 1.0),
    GroupRule(
        "decoder-biases",
        lambda name: name.startswith(("decoder.", "head.")) and name.endswith(".bias"),
        1.0,
        decay=False,
    ),
)
"""One rate for all, as the paper gives one (0.005); biases of the new layers without decay."""


def init_body(module: nn.Module) -> None:
    """He initialisation of every convolution inside ``module``."""
    for convolution in convolutions(module):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
