"""timm's models as backbones: are maps and weights timm's, norms and groups right in families that share no name?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from models import deeplab, hourglass, unet
from models.backbones import has_frozen_norms
from models.deeplab import load_part
from models.groups import parameter_groups
from models.normalise import HALF
from models.timm_backbone import (
    TimmBackbone,
    TimmEncoder,
    levels,
    normalisation_of,
    normalisation_with,
    reductions,
    said_of,
)

FAMILIES = ("resnet18", "mobilenetv3_small_050", "convnext_atto")
"""Batch norm; fused with its activation, and biases in squeeze-and-excitation; layer norm, scales."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def crops(side: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    boxes = torch.zeros(2, side, side, dtype=torch.bool)
    boxes[:, 8:50, 10:40] = True
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8), boxes, torch.tensor([1, 3])


# Maps and weights


@pytest.mark.parametrize("name", FAMILIES)
def test_the_providers_state_gives_the_providers_maps(name: str) -> None:
    """Read strictly, under the names of timm's whole model."""
    whole = timm.create_model(name).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
    images = torch.randn(1, 3, 64, 96)
    encoder = TimmEncoder(f"timm:{name}").eval()
    load_part(encoder, whole.state_dict(), source="timm's")
    names = encoder.provider_names()
    assert len(set(names.values())) == len(names)
    assert all(torch.equal(value, whole.state_dict()[names[key]]) for key, value in encoder.state_dict().items())
    extractor = timm.create_model(name, features_only=True).eval()
    extractor.load_state_dict({key.removeprefix("net."): value for key, value in encoder.state_dict().items()})
    with torch.no_grad():
        maps = encoder(images, torch.zeros(1))
        for ours, expected in zip(maps, extractor(images), strict=True):
            torch.testing.assert_close(ours, expected)
        if name == "resnet18":  # whose features are its last map
            features: Any = whole.forward_features
            torch.testing.assert_close(maps[-1], features(images))


def test_a_file_of_another_model_is_named() -> None:
    network = deeplab.build("timm:mobilenetv3_small_050", 3, output_stride=16)
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    network.load_pretrained(state, source="good.pth")
    broken = {**state, "conv_stem.weight": torch.zeros(16, 4, 3, 3), "blocks.9.weight": torch.zeros(1)}
    del broken["blocks.1.0.conv_dw.weight"]
    message = r"bad\.pth.*\['blocks\.1\.0\.conv_dw\.weight'\].*\['blocks\.9\.weight'\].*conv_stem\.weight: file \(16, 4"
    with pytest.raises(ValueError, match=message):
        network.load_pretrained(broken, source="bad.pth")


# Norms and groups


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
@pytest.mark.parametrize("name", FAMILIES)
def test_batch_norms_are_frozen_or_trained_and_other_norms_are_trained(name: str, batch_norm: Any) -> None:
    network = deeplab.build(f"timm:{name}", 3, output_stride=16, batch_norm=batch_norm).train()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running_" in key}
    frozen = {key for key, value in network.named_parameters() if not value.requires_grad}
    assert bool(before) is (name != "convnext_atto")
    network(crops()[0])[:, 0].mean().backward()
    if batch_norm == "frozen" and before:
        norms = {key.rpartition(".")[0] for key in before}
        assert frozen == {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}
        assert has_frozen_norms(network)
        assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    else:
        assert not frozen and not has_frozen_norms(network)
        assert not any(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, key


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
@pytest.mark.parametrize("name", [*(f"timm:{name}" for name in FAMILIES), "lite0"])
def test_every_trainable_parameter_is_in_one_declared_group(name: str, batch_norm: Any) -> None:
    with torch.device("meta"):
        networks = (
            deeplab.build(name, 21, output_stride=16, batch_norm=batch_norm),
            unet.build(name, 20, batch_norm=batch_norm),
        )
    for network in networks:
        found = parameter_groups(network, network.rules, lr=0.5, weight_decay=0.25)
        names = [n for group in found.groups for n in group["names"]]
        assert sorted([*names, *found.frozen]) == sorted(n for n, _ in network.named_parameters())
        for group in found.groups:
            pretrained = all(n.startswith(("backbone.", "encoder.", "prior.")) for n in group["names"])
            if pretrained:
                assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
            assert group["weight_decay"] == (0.0 if group["name"].endswith("biases") else 0.25)
    rates = {
        group["name"]: group["lr"] / 0.5
        for group in parameter_groups(networks[0], networks[0].rules, lr=0.5, weight_decay=0.25).groups
    }
    # Squeeze-and-excitation has biases, layer norms are trained in any case.
    flat = batch_norm == "trained" or name in ("timm:mobilenetv3_small_050", "timm:convnext_atto")
    expected = {"backbone": 1, "head-weights": 10, "head-biases": 20}
    assert rates == expected | ({"backbone-norms-and-biases": 1} if flat else {})


# The U-Net


@pytest.mark.parametrize("name", FAMILIES)
def test_the_unet_hears_box_and_class_and_takes_any_crop(name: str) -> None:
    network = unet.build(f"timm:{name}", 3, deep_refeed=False).eval()
    images, boxes, classes = crops()
    with torch.no_grad():
        deaf = network(images, boxes, classes)
        torch.testing.assert_close(network(images, ~boxes, classes), deaf, rtol=0, atol=0)
        for parameter in network.prior.parameters():
            nn.init.normal_(parameter, std=0.1)
        plain = network(images, boxes, classes)
        assert not torch.equal(plain, network(images, ~boxes, classes))
        assert not torch.equal(plain, network(images, boxes, classes % 3 + 1))
        for height, width in ((2, 2), (17, 33), (63, 64)):
            assert network(images[:, :, :height, :width], boxes[:, :height, :width], classes).shape == (
                2, 2, height, width
            )  # fmt: skip


def test_the_prior_is_added_to_the_first_convolutions_output() -> None:
    encoder = TimmEncoder("timm:resnet18").eval()
    images, seen = torch.randn(1, 3, 64, 64), []
    prior = torch.randn(1, 64, 32, 32)
    following: Any = encoder.net.get_submodule("bn1")
    following.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(images, prior)
        encoder.maps(images)
        torch.testing.assert_close(seen[0], encoder.conv1(images) + prior)
        torch.testing.assert_close(seen[1], encoder.conv1(images))


# What cannot be


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("rsnet18", 16, "network 'timm:rsnet18': timm has no such model; close: timm:resnet18,"),
        (
            "resnet18.nope",
            16,
            r"network 'timm:resnet18\.nope': timm has no such weights, only .*timm:resnet18\.tv_in1k",
        ),
        ("densenet121", 16, "'timm:densenet121' cannot give output_stride 16; set output_stride to 32, or network"),
        ("ghostnet_050", 16, "'timm:ghostnet_050' cannot give output_stride 16; set output_stride to 32, or network"),
        ("inception_v3", 32, "crops the picture's rim from its maps; set network"),
        ("vit_tiny_patch16_224", 32, "takes pictures of one size only; set network"),
        ("vit_tiny_patch16_224", 16, "takes pictures of one size only; set network"),
        ("swin_tiny_patch4_window7_224", 16, "takes pictures of one size only; set network"),
        ("resnetblur50", 32, "constants outside of its state .*; set network"),
        ("shvit_s1", 16, "'timm:shvit_s1' cannot give output_stride 16; set network to one that can"),
        ("tiny_vit_5m_224", 16, "cannot give output_stride 16; set network to one that can"),
        ("naflexvit_base_patch16_gap", 32, "cannot give output_stride 32; set output_stride to 16, or network"),
        ("halonet26t", 16, r"takes only some picture sizes \(not 144 x 112: AssertionError\); set network to another"),
        ("halonet26t", 32, r"takes only some picture sizes \(not 128 x 128: AssertionError\); set network to another"),
    ],
)
def test_a_model_that_is_no_backbone_is_refused_with_what_to_set(name: str, output_stride: int, message: str) -> None:
    """Some of timm's know no stride, some take the word and do nothing with it; no advice that is refused in turn."""
    with pytest.raises(ValueError, match=message):
        deeplab.build(f"timm:{name}", 3, output_stride=output_stride)  # type: ignore[arg-type]


def test_a_model_without_a_pyramid_is_no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.timm_backbone._measured", lambda *_, **__: (nn.Identity(), [16, 16, 32]))
    with pytest.raises(ValueError, match=r"no map per halving \(strides 16, 16, 32\).* set network to a model"):
        levels("timm:columns")


def test_a_unet_is_not_told_of_a_stride_that_it_cannot_choose() -> None:
    with pytest.raises(ValueError, match=r"cannot give output_stride 32; set network to one that can$"):
        levels("timm:naflexvit_base_patch16_gap")


def test_a_model_whose_first_convolution_sees_no_plain_picture_is_no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The priors would have another grid, or would never be heard."""
    config: Any = timm.get_pretrained_cfg("resnet18")
    later = dataclasses.replace(config, first_conv="layer1.0.conv1")
    monkeypatch.setattr("models.timm_backbone._config", lambda _network: later)
    with pytest.raises(ValueError, match=r"does not begin with a plain convolution .*\(layer1.*; set network"):
        levels("timm:resnet18")


@pytest.mark.parametrize("name", ["dm_nfnet_f0", "repvgg_a0"])
def test_same_padding_of_any_class_and_stems_of_branches_take_the_priors(name: str) -> None:
    """dm_nfnet's first convolution is of timm's third class of "same" padding; RepVGG begins with two side by side."""
    images, boxes = torch.zeros(2, 3, 95, 70, device="meta"), torch.zeros(2, 95, 70, device="meta")
    with torch.device("meta"):
        network = unet.build(f"timm:{name}", 3)
        generator = hourglass.build(f"timm:{name}")
        assert network(images, boxes, torch.ones(2, dtype=torch.long)).shape == (2, 2, 95, 70)
        assert generator(images, boxes, boxes).shape == (2, 2, 24, 18)


def test_the_models_own_stride_needs_no_word() -> None:
    """And the last map is the last block's, although the model gives only the maps of its last three."""
    with torch.device("meta"):
        backbone = TimmBackbone("timm:naflexvit_base_patch16_gap", 16)
        assert backbone(torch.zeros(1, 3, 40, 70)).shape == (1, 768, 3, 5)
    assert any(name.startswith("net.model.blocks.11.") for name in backbone.state_dict())


def test_maps_are_counted_as_timm_counts_them() -> None:
    """DLA leaves out its map of stride 1."""
    assert reductions("timm:dla34", 32) == [2, 4, 8, 16, 32]
    assert levels("timm:dla34") == [1, 2, 3, 4, 5]
    with torch.device("meta"):
        assert TimmBackbone("timm:dla34", 32)(torch.zeros(1, 3, 64, 96)).shape == (1, 512, 2, 3)


def test_strides_and_levels_of_a_model() -> None:
    assert reductions("timm:vgg11", 32) == [1, 2, 4, 8, 16, 32]
    assert levels("timm:vgg11") == [1, 2, 3, 4, 5]
    assert reductions("timm:convnext_atto", 8) == [4, 8, 8, 8]
    assert TimmBackbone("timm:mobilenetv3_small_050", 16).channels == 288


def test_normalisations_are_the_weights() -> None:
    names = {"resnet18": "imagenet", "mixer_b16_224": "half", "vit_base_patch32_clip_224": "clip", "dpn68": "dpn"}
    found = {name: normalisation_of(f"timm:{name}") for name in names}
    assert {name: one.name for name, one in found.items() if one is not None} == names
    assert normalisation_of("timm:tf_efficientnet_lite0") is HALF
    assert normalisation_with((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)) is normalisation_with((0.5,), (0.5,)) is None
    dpn = said_of("timm:dpn68")
    assert dpn == said_of("timm:dpn68.mx_in1k") and dpn.name == "timm:dpn68.mx_in1k"
    assert [255 * value for value in dpn.mean] == pytest.approx([124, 117, 104])
