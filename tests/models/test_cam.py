"""Class activation maps: each equation against sums written out, and the classifier they come from."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models import cam
from models.groups import parameter_groups
from models.names import SEGMENTERS
from models.resample import scale_images


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_equation_1_is_the_weighted_sum_of_the_feature_maps_where_it_is_positive() -> None:
    features, weights = torch.randn(2, 3, 2, 4), torch.randn(5, 3)
    found = cam.activation(features, weights, (2, 4))
    for n in range(2):
        for k in range(5):
            for y in range(2):
                for x in range(4):
                    total = sum(float(weights[k, ch] * features[n, ch, y, x]) for ch in range(3))
                    assert float(found[n, k, y, x]) == pytest.approx(max(0.0, total), abs=1e-6)


def test_equation_1_resizes_what_is_positive_between_cell_centres() -> None:
    found = cam.activation(torch.tensor([[[[2.0, -2.0]]]]), torch.ones(1, 1), (1, 4))
    # Cells at 1 and 3 of 4 pixels; the ReLU comes first: a negative cell weighs nothing against its neighbour.
    assert found.flatten().tolist() == [2.0, 1.5, 0.5, 0.0]


def test_equation_1_is_in_float32_under_autocast_too() -> None:
    features, weights = torch.rand(1, 64, 3, 3), torch.randn(2, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = cam.activation(features, weights, (6, 6))
    assert torch.equal(found, cam.activation(features, weights, (6, 6)))


def test_equation_2_is_the_mean_over_scales() -> None:
    maps = [torch.rand(1, 2, 3, 4) for _ in range(4)]
    for at in ((0, 0, 0, 0), (0, 1, 2, 3)):
        assert float(cam.mean_over_scales(maps)[at]) == pytest.approx(sum(float(m[at]) for m in maps) / 4)


def test_equation_3_divides_each_tags_map_by_its_own_maximum() -> None:
    maps = torch.rand(2, 4, 3, 5) * 9
    maps[0, 2] = 0  # a class whose map is zero everywhere
    tags = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]])  # the second image has no tags
    found = cam.normalised(maps, tags)
    for n in range(2):
        for k in range(4):
            highest = float(maps[n, k].max())
            for y in range(3):
                for x in range(5):
                    expected = float(maps[n, k, y, x]) / highest if tags[n, k] and highest else 0.0
                    assert float(found[n, k, y, x]) == pytest.approx(expected, abs=1e-6)
    assert torch.isfinite(found).all() and float(found[0, 0].max()) == 1.0


def test_equation_3_has_no_floor_under_faint_maps() -> None:
    found = cam.normalised(torch.tensor([[[[1e-30, 5e-31]]]]), torch.ones(1, 1))
    assert found.flatten().tolist() == pytest.approx([1.0, 0.5])


def test_the_loss_is_the_mean_over_classes_of_two_logistic_terms() -> None:
    scores, tags = torch.randn(3, 4) * 3, torch.randint(0, 2, (3, 4))
    logistic = lambda value: 1 / (1 + math.exp(-value))  # noqa: E731
    total = 0.0
    for n in range(3):
        for k in range(4):
            x = float(scores[n, k])
            total -= math.log(logistic(x)) if tags[n, k] else math.log(logistic(-x))
    assert float(cam.multilabel_soft_margin(scores, tags)) == pytest.approx(total / 12, rel=1e-5)


def small(classes: int = 3) -> cam.CamNet:
    return cam.build("tiny", classes, width=4).eval()


def test_scores_are_the_classifier_on_the_averaged_map_and_so_the_maps_mean() -> None:
    network = small()
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, 16, 4, 6) and network.grid((32, 48)) == (4, 6)
        everywhere = F.conv2d(features, network.classifier.weight)
        torch.testing.assert_close(network(images), everywhere.mean((2, 3)))


def test_padding_takes_no_part_in_the_scores() -> None:
    network = small()
    features = torch.rand(2, 16, 4, 6, requires_grad=True)
    inside = torch.zeros(2, 32, 48, dtype=torch.bool)
    inside[0, :16, :24] = True
    inside[1, :, :44] = True  # half of the last cells
    scores = network.scores(features, inside)
    expected = features[0, :, :2, :3].mean((1, 2))
    torch.testing.assert_close(scores[0], network.classifier.weight[:, :, 0, 0] @ expected)
    cam.multilabel_soft_margin(scores, torch.ones(2, 3)).backward()
    assert features.grad is not None
    reached = features.grad.abs().sum(1) > 0
    assert reached[0, :2, :3].all() and not reached[0, 2:].any() and not reached[0, :, 3:].any()
    half, full = features.grad[1, :, 0, 5], features.grad[1, :, 0, 4]
    torch.testing.assert_close(half, full / 2)


def test_the_maps_of_all_scales_are_those_of_each_alone() -> None:
    network = small()
    images = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        found = network.maps(images, (40, 56), (0.5, 1.0, 2.0))
        total = torch.zeros(1, 3, 40, 56)
        for scale in (0.5, 1.0, 2.0):
            scaled = scale_images(images.float(), scale)
            # At scale .5 the last cells are half empty: 20 x 28 pixels have 3 x 4 cells of 8, for 48 x 64 of before.
            scaled = F.pad(scaled, (0, -scaled.shape[3] % 8, 0, -scaled.shape[2] % 8), mode="replicate")
            maps = F.conv2d(network.features(scaled), network.classifier.weight).clamp(min=0)
            covered = (round(scaled.shape[2] / scale), round(scaled.shape[3] / scale))
            total += F.interpolate(maps, covered, mode="bilinear", align_corners=False)[..., :40, :56] / 3
        torch.testing.assert_close(found, total, atol=1e-5, rtol=1e-4)
        flipped = network.maps(images, (40, 56), (1.0,), flip=True)
        plain, mirrored = network.maps(images, (40, 56), (1.0,)), network.maps(images.flip(3), (40, 56), (1.0,)).flip(3)
        torch.testing.assert_close(flipped, (plain + mirrored) / 2)
        assert not torch.allclose(plain, mirrored)
    with pytest.raises(ValueError, match="at least one scale"):
        network.maps(images, (40, 56), ())


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (17, 16)])
def test_a_thin_picture_has_maps_of_its_own_size(size: tuple[int, int]) -> None:
    network = small()
    with torch.no_grad():
        found = network.maps(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8), size)
    assert found.shape == (1, 3, *size) and torch.isfinite(found).all()


@pytest.mark.parametrize("name", [name for name in SEGMENTERS if name != "timm:NAME"])
def test_on_every_backbone_each_parameter_is_in_a_group_and_the_map_has_the_backbones_grid(name: str) -> None:
    with torch.device("meta"):
        network = cam.build(name, 20, output_stride=16 if name == "lite0" else 8).eval()
        assert network.features(torch.zeros(1, 3, 65, 90)).shape[2:] == network.grid((65, 90))
    groups = {g["name"]: g["lr"] for g in parameter_groups(network, network.rules, lr=1.0, weight_decay=0.0).groups}
    assert groups["classifier"] == (1.0 if name == "tiny" else 10.0) and len(groups) > 1
    if name == "resnet38":
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 105_023_168 + 20 * 4096


def test_without_a_class_there_is_no_classifier() -> None:
    with pytest.raises(ValueError, match="classes 0 must be at least 1"):
        cam.build("tiny", 0)
