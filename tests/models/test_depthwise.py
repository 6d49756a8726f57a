"""Are the quick gradients of a depthwise convolution torch's own?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbones import SameConv2d
from models.depthwise import depthwise_conv2d

Gradients = tuple[Tensor, ...]

CASES = [
    (size, stride, padding, dilation)
    for size in (1, 2, 3, 4, 5, 7)
    for stride, dilation in ((1, 1), (2, 1), (1, 2), (1, 3), (2, 2))
    for padding in ((0, 0), (dilation * (size // 2),) * 2, (1, 2))
]


def made(size: int, dtype: torch.dtype, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 6, 21, 24, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), torch.randn(6, 1, size, size, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize(("size", "stride", "padding", "dilation"), CASES)
def test_gradients_are_torchs(size: int, stride: int, padding: tuple[int, int], dilation: int) -> None:
    x, weight = made(size, torch.float64)
    expected = F.conv2d(x, weight, None, stride, padding, dilation, 6)
    found = depthwise_conv2d(x, weight, stride, padding, dilation)
    assert torch.equal(found, expected)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, (x, weight), gradient), torch.autograd.grad(expected, (x, weight), gradient)
    )


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_gradients_in_bfloat16_under_autocast_are_near_those_in_float32(stride: int, dilation: int) -> None:
    x, weight = made(5, torch.float32)
    expected = F.conv2d(x, weight, None, stride, 2, dilation, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise_conv2d(x, weight, stride, (2, 2), dilation)
    assert found.dtype == torch.bfloat16
    gradients = torch.autograd.grad(found.float().square().sum(), (x, weight))
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2
    for gradient, whole in zip(gradients, torch.autograd.grad(expected.square().sum(), (x, weight)), strict=True):
        assert (gradient - whole).norm() < 0.01 * whole.norm()


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, weight = made(5, torch.float32)
    depthwise_conv2d(x.detach(), weight, 1, (2, 2)).sum().backward()
    assert weight.grad is not None
    weight.grad = None
    depthwise_conv2d(x, weight.detach(), 1, (2, 2)).sum().backward()
    assert x.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not depthwise_conv2d(x, weight).requires_grad


@pytest.mark.parametrize("side", [20, 21])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_same_padding_has_them_too(side: int, stride: int, dilation: int) -> None:
    layer = SameConv2d(6, 6, 5, stride=stride, dilation=dilation, groups=6, bias=False).double()
    x = torch.randn(2, 6, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    biased = SameConv2d(6, 6, 5, stride=stride, dilation=dilation, groups=6).double()
    with torch.no_grad():
        biased.weight.copy_(layer.weight)
        assert biased.bias is not None
        biased.bias.zero_()
    found, expected = layer(x), biased(x)
    torch.testing.assert_close(found, expected)
    ours, own = (torch.autograd.grad(y.pow(3).sum(), of.weight) for y, of in ((found, layer), (expected, biased)))
    torch.testing.assert_close(ours, own)
