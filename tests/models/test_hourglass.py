"""Does the generator have the paper's size, its five inputs, and an output that lies on the picture?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models import hourglass, unet
from models.backbones import SameConv2d
from models.groups import parameter_groups
from models.hourglass import Hourglass, Plan, build, foreground

TINY = Plan(4, (8, 8, 12), (1, 1, 1), 8, 4)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def inputs(height: int, width: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    images = torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    boxes = torch.zeros(n, height, width)
    boxes[:, 3:-3, 4:-5] = 1.0
    return images, boxes, torch.rand(n, height, width, generator=generator)


def test_it_has_the_papers_size() -> None:
    with torch.device("meta"):
        paper = build("hourglass")
        assert round(count(paper) / 1e6, 1) == 12.1 and count(paper) == 12_120_370
        assert count(build("hourglass-small")) == 610_290
        first = paper.get_submodule("hourglass.0")
        assert isinstance(first, nn.Conv2d) and (first.in_channels, first.kernel_size) == (5, (7, 7))
        for name, millions in (("resnet18", 11.1), ("resnet101", 42.5)):  # Table II
            assert count(build(name).get_submodule("encoder")) / 1e6 == pytest.approx(millions, abs=0.1)


def test_each_scale_halves_and_comes_back() -> None:
    sizes: list[tuple[int, int]] = []
    network = build("hourglass").eval()
    for module in network.modules():
        if isinstance(module, hourglass.Scale):
            module.down.register_forward_hook(lambda _m, _i, output: sizes.append(tuple(output.shape[1:3])))
    with torch.inference_mode():
        assert network(*inputs(128, 128, 1)).shape == (1, 2, 32, 32)
    assert sizes == [(96, 16), (128, 8), (128, 4), (128, 2), (192, 1)]


CASES = [("plan", (32, 48)), ("plan", (33, 50)), ("plan", (17, 16)), ("tiny", (33, 50)), ("tiny", (17, 16))]
CASES += [("resnet18", (33, 50)), ("lite0", (33, 50)), ("timm:resnet10t", (33, 50))]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_any_size_fits_and_every_parameter_learns(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = Hourglass(TINY) if name == "plan" else build(name, width=4)
    stride = 2 if name == "tiny" else 4
    logits = network(*inputs(*size))
    assert logits.shape[:2] == (2, 2)
    assert all(abs(cells - side / stride) < 1 for cells, side in zip(logits.shape[2:], size, strict=True))
    logits.square().mean().backward()
    groups = parameter_groups(network, network.rules, lr=1.0, weight_decay=0.1).groups
    assert {group["name"] for group in groups} == {"generator", "generator-norms-and-biases"}
    assert all(parameter.grad is not None for parameter in network.parameters())
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert "head.0.weight" in decayed and "head.0.bias" not in decayed


def test_padding_is_below_and_on_the_right_and_is_cut_off_again() -> None:
    torch.manual_seed(1)
    network = Hourglass(TINY).eval()
    given = inputs(30, 21)
    with torch.inference_mode():
        normal, priors = network.inputs(*given)
        padded = torch.zeros(2, 5, 32, 32)
        padded[:, :, :30, :21] = torch.cat([normal, priors], 1)
        expected = network.head(network.hourglass(padded))[:, :, :8, :6]
        assert torch.equal(network(*given), expected)


def test_boxes_and_probability_are_inputs_of_an_hourglass_from_the_start() -> None:
    torch.manual_seed(2)
    network = Hourglass(TINY).eval()
    images, boxes, probs = inputs(32, 32)
    with torch.inference_mode():
        base = network(images, boxes, probs)
        assert not torch.equal(network(images, 1 - boxes, probs), base)
        assert not torch.equal(network(images, boxes, 1 - probs), base)


@pytest.mark.parametrize("name", ["tiny", "lite0"])
def test_new_channels_of_an_encoder_start_at_zero_and_are_channels_of_its_first_convolution(name: str) -> None:
    torch.manual_seed(3)
    network = build(name, width=4).eval()
    images, boxes, probs = inputs(32, 48)
    with torch.inference_mode():
        base = network(images, boxes, probs)
        assert torch.equal(network(images, 1 - boxes, 1 - probs), base)
        network.get_parameter("priors").normal_(std=0.1)  # type: ignore[operator]
        assert not torch.equal(network(images, boxes, probs), base)
        # One convolution with five input channels gives the same numbers.
        first = network.encoder.conv1  # type: ignore[union-attr]
        kind = SameConv2d if isinstance(first, SameConv2d) else nn.Conv2d
        five = kind(5, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)  # type: ignore[union-attr, arg-type]
        five.weight.copy_(torch.cat([first.weight, network.get_parameter("priors")], 1))  # type: ignore[union-attr, list-item]
        normal, priors = network.inputs(images, boxes, probs)
        added = unet.further_channels(priors, network.get_parameter("priors"), network.stride, network.padding)  # type: ignore[arg-type]
        torch.testing.assert_close(first(normal) + added, five(torch.cat([normal, priors], 1)), rtol=0, atol=1e-4)  # type: ignore[operator]


def test_softmax_over_two_outputs() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[0.0, 1.0]]]])
    expected = torch.tensor([[[0.5, 1 / (1 + torch.e)]]])
    torch.testing.assert_close(foreground(logits), expected)


def test_what_does_not_belong_together_is_refused() -> None:
    images, boxes, probs = inputs(32, 32)
    network = Hourglass(TINY)
    with pytest.raises(ValueError, match=r"need boxes \(2, 32, 32\), got \(1, 32, 32\)"):
        network(images, boxes[:1], probs)
    with pytest.raises(ValueError, match=r"need probabilities .* got \(2, 16, 32\)"):
        network(images, boxes, probs[:, :16])
    with pytest.raises(ValueError, match="network 'vgg' is unknown; known: hourglass, hourglass-small"):
        build("vgg")
    with pytest.raises(ValueError, match="an hourglass has no ImageNet weights"):
        network.load_pretrained({}, source="file")
