"""DeepLab: are the networks the papers', is every parameter trained as declared, do the weights fit?"""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from models import deeplab
from models.backbones import EXTRA_KEYS, FrozenBatchNorm2d, ResNetBackbone, VggBackbone, convolutions
from models.groups import GroupRule, parameter_groups
from models.losses import segmentation_loss
from models.normalise import CAFFE, IMAGENET, Normalise
from models.resample import scale_images


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def count(module: nn.Module, trainable: bool | None = None) -> int:
    return sum(p.numel() for p in module.parameters() if trainable is None or p.requires_grad is trainable)


# Is it the paper's network?


@pytest.mark.parametrize(
    ("name", "total", "frozen"),
    [("largefov", 20_505_429, 0), ("resnet101", 44_048_532, 105_344)],
)
def test_full_size_networks_count_and_train_at_the_papers_crop(name: str, total: int, frozen: int) -> None:
    network = deeplab.build(name, 21).train()
    assert count(network) == total
    assert count(network, trainable=False) == frozen
    images = torch.randint(0, 256, (1, 3, 321, 321), dtype=torch.uint8)
    logits = network(images)
    assert logits.shape == (1, 21, 41, 41)
    # With random weights a frozen ResNet's logits are huge: a mean keeps the check about gradients reaching everything.
    (logits / logits.detach().abs().max()).square().mean().backward()
    for parameter_name, parameter in network.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, parameter_name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_small_resnets_keep_output_stride_8(name: str) -> None:
    network = deeplab.build(name, 3).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 65, 57)).shape == (1, 3, 9, 8)


def test_resnet_dilations_are_2_and_4_everywhere_in_layers_3_and_4() -> None:
    backbone = ResNetBackbone(101)
    for layer, dilation in ((backbone.layer3, 2), (backbone.layer4, 4)):
        threes = [c for c in convolutions(layer) if c.kernel_size == (3, 3)]
        assert {c.dilation for c in threes} == {c.padding for c in threes} == {(dilation, dilation)}
        assert {c.stride for c in convolutions(layer)} == {(1, 1)}
    assert len([c for c in convolutions(backbone.layer3) if c.kernel_size == (3, 3)]) == 23


@pytest.mark.parametrize("depth", [18, 50])
def test_exact_atrous_gives_the_strided_networks_features_at_every_fourth_cell(depth: int) -> None:
    backbone = ResNetBackbone(cast("int", depth), "exact").double()  # type: ignore[arg-type]
    strided = getattr(torchvision.models, f"resnet{depth}")(norm_layer=FrozenBatchNorm2d).double()
    strided.load_state_dict(backbone.state_dict(), strict=False)
    images = torch.randn(1, 3, 97, 97, dtype=torch.float64)
    with torch.no_grad():
        dense = backbone(images)
        x = strided.maxpool(strided.relu(strided.bn1(strided.conv1(images))))
        coarse = strided.layer4(strided.layer3(strided.layer2(strided.layer1(x))))
    torch.testing.assert_close(dense[:, :, ::4, ::4], coarse)
    paper = ResNetBackbone(cast("int", depth), "paper").double()  # type: ignore[arg-type]
    paper.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert not torch.allclose(paper(images)[:, :, ::4, ::4], coarse)


def test_exact_atrous_is_what_torchvision_builds() -> None:
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    ours = ResNetBackbone(50, "exact")
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        a, b = (list(convolutions(getattr(net, layer))) for net in (theirs, ours))
        assert [(c.dilation, c.padding, c.stride) for c in a] == [(c.dilation, c.padding, c.stride) for c in b]


def test_largefov_pools_and_dilations() -> None:
    backbone = VggBackbone()
    pools = [m for m in backbone.features if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.padding) for m in pools] == [(3, s, 1) for s in (2, 2, 2, 1, 1)]
    assert [c.dilation[0] for c in convolutions(backbone)] == [1] * 10 + [2] * 3
    head = deeplab.LargeFovHead(512, 21)
    assert (head.fc6.kernel_size, head.fc6.dilation, head.fc6.out_channels) == ((3, 3), (12, 12), 1024)
    assert head.drop.p == 0.5


def test_aspp_sums_its_four_branches_with_bias() -> None:
    aspp = deeplab.Aspp(5, 3, deeplab.ASPP_RATES).double()
    assert [b.dilation for b in aspp.branches] == [(r, r) for r in (6, 12, 18, 24)]
    for branch in aspp.branches:
        nn.init.normal_(cast(torch.Tensor, branch.bias))
    x = torch.randn(2, 5, 30, 31, dtype=torch.float64)
    by_hand = sum(
        F.conv2d(x, b.weight, b.bias, padding=rate, dilation=rate)  # type: ignore[arg-type]
        for b, rate in zip(aspp.branches, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(aspp(x), by_hand)


def test_head_of_features_is_the_network() -> None:
    network = deeplab.build("tiny", 6).eval()
    images = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, network.backbone.channels, 8, 6)
        torch.testing.assert_close(network.head(features), network(images), rtol=0, atol=0)


def test_normalisation_belongs_to_the_network_and_is_saved_with_it() -> None:
    image = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)
    expected = (torch.tensor([10.0, 20.0, 30.0]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(Normalise(IMAGENET)(image).flatten(), expected)
    blue_first = torch.tensor([30 - 104.008, 20 - 116.669, 10 - 122.679])
    torch.testing.assert_close(Normalise(CAFFE)(image).flatten(), blue_first)
    other = deeplab.build("tiny", 3, normalisation=IMAGENET)
    other.load_state_dict(deeplab.build("tiny", 3, normalisation=CAFFE).state_dict())
    torch.testing.assert_close(other.normalise(image).flatten(), blue_first)


# Is what is frozen frozen, and what is trained in one group?


def test_frozen_batch_norm_is_constant_under_train() -> None:
    network = deeplab.build("resnet18", 3).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    x = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    first = network(x)
    torch.testing.assert_close(network.eval()(x), first, rtol=0, atol=0)
    assert not any(m.training for m in norms)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


MULTIPLIERS = {
    "tiny": {"backbone": 1, "head-weights": 1, "head-biases": 1},
    "resnet18": {"backbone": 1, "head-weights": 10, "head-biases": 20},
    "resnet101": {"backbone": 1, "head-weights": 10, "head-biases": 20},
    "largefov": {"weights": 1, "biases": 2, "classifier-weights": 10, "classifier-biases": 20},
}


@pytest.mark.parametrize("name", list(MULTIPLIERS))
def test_every_trainable_parameter_is_in_one_declared_group(name: str) -> None:
    with torch.device("meta"):
        network = deeplab.build(name, 21)
    found = parameter_groups(network, network.rules, lr=0.5, weight_decay=0.25)
    assert {g["name"]: g["lr"] / 0.5 for g in found.groups} == MULTIPLIERS[name]
    names = [n for g in found.groups for n in g["names"]]
    assert sorted([*names, *found.frozen]) == sorted(n for n, _ in network.named_parameters())
    assert sum(p.numel() for g in found.groups for p in g["params"]) == count(network, trainable=True)
    for group in found.groups:
        assert group["weight_decay"] == (0.0 if group["name"].endswith("biases") else 0.25)
    assert all(".bn" in n or "downsample.1" in n for n in found.frozen)
    if name == "resnet101":
        assert sum(dict(network.named_parameters())[n].numel() for n in found.frozen) == 105_344
        assert not any(n.endswith(".bias") for n in found.groups[0]["names"])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([GroupRule("weights", lambda n: n.endswith("weight"), 1)], "in no declared group.*'bias'"),
        ([GroupRule("a", lambda n: True, 1), GroupRule("b", lambda n: "bias" in n, 2)], "more than one group.*'bias'"),
        ([GroupRule("a", lambda n: True, 1), GroupRule("aspp", lambda n: "aspp" in n, 10)], "'aspp'.*matches no"),
    ],
)
def test_a_group_that_matches_nothing_or_too_much_is_an_error(rules: list[GroupRule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(nn.Conv2d(1, 1, 1), rules, lr=1, weight_decay=0)


# Multi-scale inputs


def test_multi_scale_inputs_fuse_by_the_maximum_of_upsampled_logits() -> None:
    inner = deeplab.build("tiny", 4).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        fused, *scales = deeplab.MultiScaleInputs(inner, 8)(images)
        by_hand = inner(images)
        assert [tuple(s.shape[2:]) for s in scales] == [(8, 8), (6, 6), (4, 4)]
        for size in (48, 32):
            small = F.interpolate(
                images.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
            )
            logits = inner(small)
            by_hand = torch.maximum(by_hand, F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False))
    torch.testing.assert_close(fused, by_hand)


def test_multi_scale_inputs_see_a_checkerboards_mean_as_the_test_time_scales_do() -> None:
    seen: list[torch.Tensor] = []

    class Eye(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images

    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255.0
    # Stripes three pixels wide: without antialiasing they become other stripes.
    stripes = (torch.arange(64) // 3 % 2 * 255.0).expand(64, 64)
    images = torch.stack([board, stripes, board.roll(1, 0)])[None]
    deeplab.MultiScaleInputs(Eye(), 8, (1.0, 0.75, 0.5))(images)
    for scale, scaled in zip((0.75, 0.5), seen[1:], strict=True):
        assert torch.equal(scaled, scale_images(images, scale))
        inner = scaled[0, [0, 2], 4:-4, 4:-4]
        assert inner.mean() == pytest.approx(127.5, abs=1)
    assert (seen[2][0, [0, 2], 4:-4, 4:-4] - 127.5).abs().max() < 20


def test_the_fused_gradient_goes_to_one_scale_under_ties() -> None:
    logits = [torch.ones(1, 1, 2, 2, requires_grad=True) for _ in range(3)]
    deeplab.fuse_max(logits).sum().backward()
    grads = torch.stack([cast(torch.Tensor, item.grad) for item in logits])
    assert grads.sum() == 4
    assert set(grads.unique().tolist()) == {0.0, 1.0}


# Do weight files fit without renaming?


@pytest.mark.parametrize(
    ("name", "theirs"), [("resnet101", "resnet101"), ("resnet18", "resnet18"), ("largefov", "vgg16")]
)
def test_backbone_keys_are_torchvisions(name: str, theirs: str) -> None:
    with torch.device("meta"):
        reference = getattr(torchvision.models, theirs)().state_dict()
        ours = deeplab.build(name, 2).backbone.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in reference.items() if not k.startswith(EXTRA_KEYS)
    }


def test_torchvision_weights_load_and_a_wrong_file_is_named() -> None:
    network = deeplab.build("resnet18", 2)
    state = torchvision.models.resnet18().state_dict()
    deeplab.load_backbone(network, state, source="r18.pth")
    assert all(torch.equal(v, state[k]) for k, v in network.backbone.state_dict().items())
    old = {k: v for k, v in state.items() if "num_batches" not in k}
    deeplab.load_backbone(network, old, source="r18-old.pth")
    broken = {**state, "conv1.weight": torch.zeros(64, 4, 7, 7), "stem.weight": torch.zeros(1)}
    del broken["layer1.0.conv1.weight"]
    with pytest.raises(
        ValueError, match=r"bad\.pth.*layer1\.0\.conv1\.weight.*stem\.weight.*conv1\.weight: file \(64, 4"
    ):
        deeplab.load_backbone(network, broken, source="bad.pth")


def test_fc6_takes_every_fourth_filter_at_positions_0_3_6() -> None:
    head = deeplab.LargeFovHead(2, 3)
    wide = torch.arange(4096 * 2 * 49, dtype=torch.float32).view(4096, 98)
    fc7 = torch.arange(4096, dtype=torch.float32)[:, None] * 4096 + torch.arange(4096, dtype=torch.float32)
    state = {"classifier.0.weight": wide, "classifier.3.weight": fc7}
    state |= {"classifier.0.bias": torch.arange(4096.0), "classifier.3.bias": -torch.arange(4096.0)}
    deeplab.decimate_fc(head, state)
    # filter 8 of the wide layer, channel 1, row 3, column 6
    assert head.fc6.weight[2, 1, 1, 2] == wide[8, 49 + 3 * 7 + 6]
    assert head.fc7.weight[3, 5, 0, 0] == fc7[12, 20]
    assert head.fc6.bias is not None and head.fc6.bias[7] == 28
    assert head.fc7.bias is not None and head.fc7.bias[7] == -28


def test_the_tiny_networks_output_stride_can_be_4_with_the_same_weights() -> None:
    fine, coarse = deeplab.build("tiny", 3, output_stride=4).eval(), deeplab.build("tiny", 3).eval()
    coarse.load_state_dict(fine.state_dict())
    with torch.no_grad():
        assert fine(torch.zeros(1, 3, 96, 66)).shape == (1, 3, 24, 17)
        assert coarse(torch.zeros(1, 3, 96, 66)).shape == (1, 3, 12, 9)
    with pytest.raises(ValueError, match="output_stride 4 with network 'resnet18': it can be 8$"):
        deeplab.build("resnet18", 3, output_stride=4)


def test_unknown_network_and_too_few_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="vgg19"):
        deeplab.build("vgg19", 21)
    with pytest.raises(ValueError, match="outputs 1"):
        deeplab.build("tiny", 1)


# Can it learn?


def test_tiny_overfits_four_pictures() -> None:
    network = deeplab.build("tiny", 3).train()
    labels = torch.zeros(4, 48, 48, dtype=torch.long)
    for i in range(4):
        labels[i, 8 * i : 8 * i + 16, 10:34] = 1 + i % 2
        labels[i, 40:, 40:] = 255
    colours = torch.tensor([[60, 60, 60], [200, 80, 40], [40, 90, 200]], dtype=torch.uint8)
    images = colours[labels.clamp(max=2)].permute(0, 3, 1, 2)
    images = (images.int() + torch.randint(-40, 40, images.shape)).clamp(0, 255).to(torch.uint8)
    groups = parameter_groups(network, network.rules, lr=5e-3, weight_decay=1e-4).groups
    optimizer = torch.optim.AdamW([{k: v for k, v in g.items() if k not in ("name", "names")} for g in groups])
    for _ in range(40):
        optimizer.zero_grad()
        segmentation_loss(network(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = deeplab.resize(network(images), (48, 48)).argmax(1)
    scored = labels != 255
    assert (predicted[scored] == labels[scored]).float().mean() > 0.93
