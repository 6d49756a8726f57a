"""Wide ResNet-38 (Wu, Shen and van den Hengel, "Wider or Deeper", arXiv 1611.10080) at output stride 8, as RRM has it.

Names are those of the usual checkpoint, converted from the authors' MXNet file (and of AffinityNet's and RRM's own):

- ``conv1a.weight``: the first 3x3;
- ``b2``, ``b2_1``, ``b2_2``, ``b3`` ... ``b7``: residual units, with ``bn_branch2a``, ``conv_branch2a``,
  ``bn_branch2b1``, ``conv_branch2b1``, in ``b6`` and ``b7`` also ``bn_branch2b2``, ``conv_branch2b2``; ``conv_branch1``
  where the shape changes. A convolution has ``.weight``, a batch norm ``.weight``, ``.bias``, ``.running_mean`` and
  ``.running_var``;
- ``bn7``: the last batch norm;
- ``linear1000``, ``fc8``, ``fc8_seg_conv1`` ...: classifiers and heads, left out.

The input is normalised as torchvision's is.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import FrozenBatchNorm2d, Pretrained, convolutions

STAGES = (
    ("b2", 3, 128, 128, 2, 1),
    ("b3", 3, 256, 256, 2, 1),
    ("b4", 6, 512, 512, 2, 1),
    ("b5", 3, 512, 1024, 1, 2),
)
"""Name, units, channels between its two 3x3, channels, stride of the first unit, dilation."""

WIDEST = (("b6", 2048, 0.3), ("b7", 4096, 0.5))
"""Name, channels, dropout of the last two units, both dilated 4."""


class Unit(nn.Module):
    """Batch norm and ReLU before each of two 3x3, and a shortcut: a 1x1 where the shape changes."""

    def __init__(self, inputs: int, hidden: int, channels: int, stride: int, first: int, dilation: int) -> None:
        super().__init__()
        self.bn_branch2a = FrozenBatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, hidden, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = FrozenBatchNorm2d(hidden)
        self.conv_branch2b1 = nn.Conv2d(hidden, channels, 3, padding=dilation, dilation=dilation, bias=False)
        changes = inputs != channels or stride != 1
        self.conv_branch1 = nn.Conv2d(inputs, channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, h, w)`` -> ``(N, channels, ceil(h/stride), ceil(w/stride))``."""
        y = F.relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(y)
        return cast(Tensor, shortcut + self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(y)))))


class Bottleneck(nn.Module):
    """1x1 to a quarter of the channels, 3x3 to a half, 1x1 to all, dropout before the last two; a 1x1 beside."""

    def __init__(self, inputs: int, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = FrozenBatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, channels // 4, 1, bias=False)
        self.bn_branch2b1 = FrozenBatchNorm2d(channels // 4)
        self.conv_branch2b1 = nn.Conv2d(
            channels // 4, channels // 2, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn_branch2b2 = FrozenBatchNorm2d(channels // 2)
        self.conv_branch2b2 = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.drop = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, h, w)`` -> ``(N, channels, h, w)``."""
        y = F.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(y)
        y = self.conv_branch2b1(self.drop(F.relu(self.bn_branch2b1(self.conv_branch2a(y)))))
        return cast(Tensor, shortcut + self.conv_branch2b2(self.drop(F.relu(self.bn_branch2b2(y)))))


class ResNet38Backbone(Pretrained):
    """Blocks b5, b6, b7 dilated 2, 4, 4 (RRM, "Implementation Details"); batch norms frozen; ends with a ReLU.

    105,023,168 convolution weights. b5's first 3x3, which lost its stride, keeps the dilation before it, as in the
    released code: it sees the finer grid with the weights of the coarser one.
    """

    EXTRA: ClassVar[tuple[str, ...]] = ("linear1000.", "fc8", "fc9")

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self._order: list[str] = []
        channels = 64
        for name, units, hidden, width, stride, dilation in STAGES:
            for number in range(units):
                step, first = (stride, 1) if number == 0 else (1, dilation)
                self._append(name, number, Unit(channels, hidden, width, step, first, dilation))
                channels = width
        for name, width, dropout in WIDEST:
            self._append(name, 0, Bottleneck(channels, width, 4, dropout))
            channels = width
        self.bn7 = FrozenBatchNorm2d(channels)
        self.channels = channels
        self.output_stride = 8
        for convolution in convolutions(self):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def _append(self, name: str, number: int, unit: nn.Module) -> None:
        own = f"{name}_{number}" if number else name
        self.add_module(own, unit)
        self._order.append(own)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised -> ``(N, 4096, ceil(H/8), ceil(W/8))``, none of it negative."""
        x = self.conv1a(images_nchw)
        for name in self._order:
            x = getattr(self, name)(x)
        return F.relu(self.bn7(x))

    def cells(self, side: int) -> int:
        """Cells of the map along ``side`` pixels."""
        return -(-side // 8)
