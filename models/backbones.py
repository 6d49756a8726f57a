"""Backbones of DeepLab: images to features, the papers' under torchvision's weight names.

``load_state_dict`` of a torchvision ImageNet checkpoint works on each ResNet and VGG without renaming (the classifier's
own keys left out, :data:`EXTRA_KEYS`); the tiny one has seen nothing. Chen et al., "DeepLab", arXiv 1606.00915, and its
v1, arXiv 1412.7062. EfficientNet-Lite0 is :mod:`models.lite0`, timm's models are :mod:`models.timm_backbone`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from models.depthwise import depthwise_conv2d

Atrous = Literal["paper", "exact"]
BatchNorm = Literal["trained", "frozen"]

EXTRA_KEYS = ("fc.", "classifier.")
"""Prefixes in torchvision's files that belong to the ImageNet classifier, not to the backbone."""


class Pretrained(nn.Module):
    """The part of a network that a provider's ImageNet weights fill; see :func:`models.deeplab.load_part`."""

    EXTRA: ClassVar[tuple[str, ...]] = EXTRA_KEYS

    def provider_names(self) -> dict[str, str]:
        """Name of each tensor here -> its name in the provider's state dict."""
        return {name: name for name in self.state_dict()}

    def left_out(self, provided: Iterable[str]) -> set[str]:
        """Those of the provider's names that are left out on purpose: the classifier's."""
        return {name for name in provided if name.startswith(self.EXTRA)}


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that is a fixed affine map: running statistics, no gradient, ``train()`` changes nothing."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stays in eval mode, whatever ``mode`` is."""
        return super().train(False)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: ``ceil(side / stride)`` cells, an odd pixel behind."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, h, w)`` -> ``(N, outputs, ceil(h/stride), ceil(w/stride))``."""
        (top, bottom), (left, right) = (
            same_padding(side, *each)
            for side, each in zip(
                x.shape[2:], zip(self.kernel_size, self.stride, self.dilation, strict=True), strict=True
            )
        )
        if self.groups == self.in_channels == self.out_channels and self.bias is None:
            x, padding = (
                (x, (top, left)) if (top, left) == (bottom, right) else (F.pad(x, (left, right, top, bottom)), (0, 0))
            )
            return depthwise_conv2d(x, self.weight, self.stride[0], padding, self.dilation[0])
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(side: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros that "same" padding puts before and behind an axis of ``side`` cells."""
    total = max(0, (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side)
    return total // 2, total - total // 2


def geometry_of(conv1: nn.Conv2d) -> tuple[tuple[int, int], int, int | None]:
    """Kernel, stride and padding of a network's first convolution; ``None``: "same" padding, computed as it runs."""
    kernel, stride = cast("tuple[int, int]", conv1.kernel_size), int(conv1.stride[0])
    if isinstance(conv1.padding, str):
        return kernel, stride, None if conv1.padding == "same" else 0
    padding = int(conv1.padding[0])
    # Classes that pad as they run share no base and no attribute (timm has four). Their maps tell: where a cell begins
    # on the last pixel, "same" padding gives one more than none does.
    reach = int(conv1.dilation[0]) * (kernel[0] - 1)
    side = (reach + 1) * stride + 1
    with torch.no_grad():
        cells = conv1(conv1.weight.new_zeros(1, conv1.in_channels, side, side)).shape[2]
    return kernel, stride, padding if cells == (side + 2 * padding - reach - 1) // stride + 1 else None


def further_channels(x_nchw: Tensor, weight: Tensor, stride: int, padding: int | None) -> Tensor:
    """What further input channels of a convolution of this geometry add to its output."""
    if padding is not None:
        return F.conv2d(x_nchw, weight, stride=stride, padding=padding)
    (top, bottom), (left, right) = (
        same_padding(side, kernel, stride) for side, kernel in zip(x_nchw.shape[2:], weight.shape[2:], strict=True)
    )
    return F.conv2d(F.pad(x_nchw, (left, right, top, bottom)), weight, stride=stride)


def has_frozen_norms(network: nn.Module) -> bool:
    """Whether batch norms are fixed affine maps, of whatever class: random weights behind them train badly."""
    norms = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return any(norm.affine and not norm.weight.requires_grad for norm in norms)


def make_atrous(layer: nn.Module, dilation: int, previous: int) -> None:
    """Take a ResNet stage's stride away and dilate its 3x3 convolutions instead, in place.

    Every 3x3 gets ``dilation``, but the one that loses its stride gets ``previous``. DeepLab v2 (as released)
    has ``previous == dilation``: its ResNet strides in a 1x1, so that every 3x3 of the stage lies behind the
    stride. torchvision's strides in the first 3x3, which therefore sees the finer grid: with ``previous`` the
    dilation of the stage before, features at every second position are exactly the strided network's.
    """
    for convolution in (module for module in layer.modules() if isinstance(module, nn.Conv2d)):
        strided = convolution.stride != (1, 1)
        convolution.stride = (1, 1)
        if convolution.kernel_size == (3, 3):
            rate = previous if strided else dilation
            convolution.dilation = convolution.padding = (rate, rate)


class ResNetBackbone(Pretrained):
    """ResNet-18, -50 or -101, layer3 dilated 2 and layer4 4, output stride 8, batch norm frozen.

    ``atrous="paper"``: every 3x3 of layer3/4 has dilation 2/4 (DeepLab v2). ``"exact"``: the first 3x3 keeps the
    dilation of the stage before (torchvision's ``replace_stride_with_dilation``); see :func:`make_atrous`.
    """

    def __init__(self, depth: Literal[18, 50, 101], atrous: Atrous = "paper") -> None:
        super().__init__()
        build = getattr(torchvision.models, f"resnet{depth}")
        net = build(weights=None, norm_layer=FrozenBatchNorm2d)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        make_atrous(self.layer3, 2, 2 if atrous == "paper" else 1)
        make_atrous(self.layer4, 4, 4 if atrous == "paper" else 2)
        self.channels = 512 if depth == 18 else 2048
        self.output_stride = 8

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised -> ``(N, channels, ceil(H/8), ceil(W/8))``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images_nchw))))
        return cast(Tensor, self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    def cells(self, side: int) -> int:
        """Cells of the map along ``side`` pixels."""
        return -(-side // 8)


class VggBackbone(Pretrained):
    """VGG-16 as DeepLab-LargeFOV has it: 3x3 pools, the last two of stride 1, conv5 dilated 2, an average pool last."""

    def __init__(self) -> None:
        super().__init__()
        # Not vgg16(): it would also fill its classifier's 124 million weights.
        features = make_layers(cfgs["D"])
        pools = [i for i, module in enumerate(features) if isinstance(module, nn.MaxPool2d)]
        for number, index in enumerate(pools, start=1):
            features[index] = nn.MaxPool2d(3, stride=2 if number <= 3 else 1, padding=1)
        for module in features[pools[3] :]:
            if isinstance(module, nn.Conv2d):
                module.dilation = module.padding = (2, 2)
        for convolution in convolutions(features):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, convolution.bias))
        self.features = features
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1)
        self.channels = 512
        self.output_stride = 8

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised -> ``(N, 512, ceil(H/8), ceil(W/8))``."""
        return cast(Tensor, self.pool5a(self.features(images_nchw)))

    def cells(self, side: int) -> int:
        """Cells of the map along ``side`` pixels."""
        return -(-side // 8)


class TinyBlock(nn.Module):
    """Two 3x3 with batch norm and a shortcut; ``stride`` 2 halves by a 2x2 average, which keeps cells centred."""

    def __init__(self, inputs: int, channels: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.match: nn.Module = (
            nn.Identity() if inputs == channels else nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, h, w)`` -> ``(N, channels, ceil(h/stride), ceil(w/stride))``."""
        x = self.pool(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return cast(Tensor, self.relu(y + self.match(x)))


class TinyBackbone(Pretrained):
    """A backbone that trains from scratch in a minute on a CPU: ``width``, then 2 and 4 times it.

    Output stride 8, or 4: the last halving is left out, what follows sees the finer map.
    """

    def __init__(self, width: int = 16, output_stride: Literal[4, 8] = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential(
            # A block before the second halving: the parts that distinguish classes may be a few pixels wide.
            TinyBlock(width, width),
            TinyBlock(width, 2 * width, stride=2),
            TinyBlock(2 * width, 4 * width, stride=output_stride // 4),
            TinyBlock(4 * width, 4 * width, dilation=2),
            TinyBlock(4 * width, 4 * width, dilation=4),
        )
        self.channels = 4 * width
        self.output_stride = output_stride
        for convolution in convolutions(self):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised -> ``(N, 4 width, ~H/8, ~W/8)``; /4 with that stride."""
        return cast(Tensor, self.stages(self.stem(images_nchw)))

    def cells(self, side: int) -> int:
        """Cells of the map along ``side`` pixels: the stem rounds down, the blocks round up."""
        return -(-(side // 2) // (self.output_stride // 2))


def convolutions(module: nn.Module) -> Iterable[nn.Conv2d]:
    """Every convolution inside ``module``."""
    return (m for m in module.modules() if isinstance(m, nn.Conv2d))
