"""Every backbone alike: is the grid what the network gives, do the head's rates and the names fit the stride?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2dSame, StdConv2dSame
from torch import nn

from models import deeplab, lgsa_deeplab, unet
from models.backbones import SameConv2d, further_channels, geometry_of
from models.groups import parameter_groups
from models.names import ENCODERS, SEGMENTERS, check_choices, check_name, check_stride

STRIDES = [
    ("lite0", 8),
    ("lite0", 16),
    ("lite0", 32),
    ("timm:mobilenetv3_small_050", 8),
    ("timm:convnext_atto", 16),
    ("timm:resnet18", 32),
]


@pytest.mark.parametrize(("name", "stride"), STRIDES)
def test_the_grid_is_what_the_network_gives(name: str, stride: Any) -> None:
    """Without numbers: shapes alone decide."""
    with torch.device("meta"):
        network = deeplab.build(name, 3, output_stride=stride).eval()
        for size in ((1, 17), (97, 224), (321, 500)):
            assert network(torch.zeros(1, 3, *size)).shape[2:] == network.grid(size)
            assert network.grid(size) == tuple(-(-side // stride) for side in size)


@pytest.mark.parametrize("name", ["lite0", "timm:mobilenetv3_small_050"])
def test_attention_works_at_stride_16(name: str) -> None:
    torch.manual_seed(0)
    network = lgsa_deeplab.build(name, 3, output_stride=16, modules=1, batch_norm="trained").train()
    images = torch.randint(0, 256, (2, 3, 64, 40), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 64, 40))
    output = network(images, labels)
    assert output.logits_bkhw.shape == (2, 3, 4, 3)
    network.losses(output, {"labels": labels})["loss"].backward()
    for key, parameter in network.named_parameters():
        if ".theta." not in key and ".phi." not in key:  # equal pairs at first, so without gradient
            assert parameter.grad is not None, key


def test_rates_are_the_same_in_pixels_at_every_stride() -> None:
    assert deeplab.aspp_rates(8) == deeplab.ASPP_RATES == (6, 12, 18, 24)
    assert deeplab.aspp_rates(16) == (3, 6, 9, 12)
    assert deeplab.aspp_rates(32) == (2, 3, 4, 6)
    with torch.device("meta"):
        head = deeplab.build("lite0", 3, output_stride=16).head
    assert [branch.dilation for branch in head.branches] == [(3, 3), (6, 6), (9, 9), (12, 12)]  # type: ignore


@pytest.mark.parametrize(("name", "strides"), list(SEGMENTERS.items()))
def test_strides_are_allowed_as_listed(name: str, strides: tuple[int, ...]) -> None:
    network = name.replace("NAME", "resnet18")
    for stride in (4, 8, 16, 32):
        if stride in strides:
            check_stride(network, stride)
            continue
        with pytest.raises(ValueError, match=rf"output_stride {stride} with network '{network}': it can be"):
            check_stride(network, stride)


@pytest.mark.parametrize("name", list(SEGMENTERS))
def test_norms_and_rates_of_the_papers_networks_are_not_for_choice(name: str) -> None:
    network = name.replace("NAME", "resnet18")
    check_choices(network, "frozen", None)
    choices: tuple[dict[str, Any], ...] = ({"batch_norm": "trained"}, {"head_multipliers": (1.0, 2.0)})
    for choice in choices:
        if name in ("lite0", "timm:NAME"):
            check_choices(network, **{"batch_norm": "frozen", "head_multipliers": None, **choice})
            continue
        (field,) = choice
        with pytest.raises(ValueError, match=f"{field} .* with network '{network}': only lite0 and timm:NAME"):
            deeplab.build(network, 3, **choice)


def test_the_heads_rates_are_as_chosen_and_the_attentions_too() -> None:
    with torch.device("meta"):
        network = lgsa_deeplab.build("lite0", 3, output_stride=16, head_multipliers=(3.0, 4.0))
    groups = parameter_groups(network, network.rules, lr=1.0, weight_decay=0.0).groups
    assert {group["name"]: group["lr"] for group in groups} == {
        "backbone": 1.0,
        "head-weights": 3.0,
        "head-biases": 4.0,
        "attention-weights": 3.0,
        "attention-biases": 4.0,
    }


@pytest.mark.parametrize("network", ["vgg19", "timm:", "timm:NAME", "lite1", ""])
def test_an_unknown_name_lists_the_known_ones(network: str) -> None:
    for known in (SEGMENTERS, ENCODERS):
        with pytest.raises(ValueError, match=f"network '{network}' is unknown; known: {', '.join(known)}"):
            check_name(network, known)
    with pytest.raises(ValueError, match="resnet101"):
        unet.build("resnet101", 3)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3, 4, 7])
@pytest.mark.parametrize("kind", [SameConv2d, Conv2dSame, StdConv2dSame, ScaledStdConv2dSame])
def test_same_padding_is_seen_in_what_a_convolution_does(kind: Any, kernel: int, stride: int) -> None:
    """And a further channel then has the convolution's own grid, on even sides and on odd ones."""
    options = {} if kind in (SameConv2d, Conv2dSame) else {"padding": "same"}
    convolution = kind(3, 2, kernel, stride=stride, bias=False, **options)
    size, found, padding = geometry_of(convolution)
    assert (size, found) == ((kernel, kernel), stride)
    for sides in ((12, 9), (7, 8)):
        x = torch.randn(1, 3, *sides)
        ours = further_channels(x, convolution.weight, found, padding)
        if not options:  # the others change their weights as they run
            torch.testing.assert_close(ours, convolution(x))
        assert ours.shape == convolution(x).shape == (1, 2, *(-(-side // stride) for side in sides))


@pytest.mark.parametrize(("padding", "expected"), [(0, 0), (1, 1), (3, 3), ("valid", 0), ("same", None)])
def test_fixed_padding_is_as_it_says(padding: Any, expected: int | None) -> None:
    assert geometry_of(nn.Conv2d(3, 2, 5, padding=padding)) == ((5, 5), 1, expected)
    if isinstance(padding, int):
        assert geometry_of(nn.Conv2d(3, 2, 3, stride=2, padding=padding, dilation=2)) == ((3, 3), 2, expected)
