"""A depthwise convolution whose gradients are nearly as fast as its forward pass, on CPUs.

oneDNN has quick depthwise kernels for every forward pass, and for the weights' gradient where a kernel is undilated and
at most three columns wide. Other gradients (5x5, dilated, strided in bfloat16) fall to reference loops of 10 to 100
times the forward pass: a third of a training step of EfficientNet-Lite0 at output stride 16, and in bfloat16 most of
it. Here the quick kernels compute those gradients, too: the same sums in another order.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Pair = tuple[int, int]

QUICK_COLUMNS = 3
"""Widest kernel whose weights' gradient is quick; the height is free."""


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: Pair = (0, 0), dilation: int = 1) -> Tensor:
    """``F.conv2d`` with one filter a channel: ``(N, C, H, W)`` and ``(C, 1, k, k)`` -> ``(N, C, h, w)``.

    ``padding`` is of rows and of columns. On GPUs, and without a gradient to come, it is that function.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))
    return cast(Tensor, _Depthwise.apply(x, weight, stride, padding, dilation))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: Pair, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # Autocast has cast what it saw in the forward pass, and does not reach here: all take the gradient's dtype.
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        of_x = input_gradient(gradient, x, weight, *ctx.geometry).to(x.dtype) if needs_x else None
        of_weight = weight_gradient(gradient, x, weight, *ctx.geometry).to(weight.dtype) if needs_weight else None
        return of_x, of_weight, None, None, None


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Pair, dilation: int) -> Tensor:
    """The gradient of x, ``(N, C, H, W)``: without a stride the gradient, convolved with the turned kernel."""
    reach = dilation * (weight.shape[-1] - 1)
    if stride > 1 or max(padding) > reach:
        wide = gradient.dtype if gradient.dtype == torch.float64 else torch.float32
        gradient, x, weight = (each.to(wide) for each in (gradient, x, weight))
        return _torchs_own(gradient, x, weight, stride, padding, dilation, (True, False, False))[0]
    turned = weight.to(gradient.dtype).flip(2, 3)
    return F.conv2d(gradient, turned, None, 1, (reach - padding[0], reach - padding[1]), dilation, len(weight))


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Pair, dilation: int) -> Tensor:
    """The gradient of the kernels, ``(C, 1, k, k)``.

    A dilated kernel is an undilated one on each of ``dilation``^2 grids of every ``dilation``-th cell. A wide one is
    narrow ones side by side, each on x moved to the left.
    """
    x, size = x.to(gradient.dtype), weight.shape[-1]
    if dilation > 1 and stride == 1:
        (rows, more_rows), (columns, more_columns) = (divmod(pad, dilation) for pad in padding)
        x = F.pad(x, (more_columns, more_columns, more_rows, more_rows))
        gradient, x, padding, dilation = _grids(gradient, dilation), _grids(x, dilation), (rows, columns), 1
    found = gradient.new_empty(len(weight), 1, size, size)
    step = QUICK_COLUMNS if dilation == 1 else size
    for left in range(0, size, step):
        part = found[:, :, :, left : left + step]
        right = size - left - part.shape[3]
        moved = x if step >= size else F.pad(x, (padding[1] - left, padding[1] - right))
        within = padding if step >= size else (padding[0], 0)
        part[:] = _torchs_own(gradient, moved, part, stride, within, dilation, (False, True, False))[1]
    return found


def _torchs_own(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Pair,
    dilation: int,
    wanted: tuple[bool, bool, bool],
) -> list[Tensor]:
    """The gradients of x, kernels and bias by torch."""
    backward = torch.ops.aten.convolution_backward.default
    geometry = ([stride] * 2, list(padding), [dilation] * 2, False, [0, 0], x.shape[1])
    return cast(list[Tensor], backward(gradient, x, weight.contiguous(), None, *geometry, wanted))


def _grids(x: Tensor, dilation: int) -> Tensor:
    """``(N, C, H, W)`` -> ``(dilation^2 N, C, ceil(H/dilation), ceil(W/dilation))``; zeros behind."""
    below, right = (-side % dilation for side in x.shape[2:])
    nhwc = F.pad(x, (0, right, 0, below)).permute(0, 2, 3, 1)
    count, height, width, channels = nhwc.shape
    split = nhwc.reshape(count, height // dilation, dilation, width // dilation, dilation, channels)
    grids = split.permute(2, 4, 0, 1, 3, 5).reshape(-1, height // dilation, width // dilation, channels)
    return grids.permute(0, 3, 1, 2)
