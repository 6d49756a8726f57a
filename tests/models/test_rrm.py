"""RRM's two branches: which loss reaches which layer, the losses by hand, and that padding is in none of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import cam, rrm
from models.crf.energy import dense_energy_loss
from models.groups import parameter_groups
from models.losses import balanced_cross_entropy
from models.names import SEGMENTERS
from models.rrm import LossWeights, Output, joint_losses
from tasks.training.networks import load_into

PARTS = ("class", "ce", "energy")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def batch_of(size: int = 32, count: int = 2) -> dict[str, Any]:
    labels = torch.randint(0, 4, (count, size, size), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.5] = 255
    return {
        "image": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
        "tags": torch.randint(0, 2, (count, 3)).float(),
        "labels": labels,
        "inside": torch.ones(count, size, size, dtype=torch.bool),
    }


def small(width: int = 4) -> rrm.RRM:
    return rrm.build("tiny", 3, width=width).train()


def only(part: str, energy: float = 1e-7) -> LossWeights:
    return LossWeights(float(part == "class"), float(part == "ce"), energy if part == "energy" else 0.0)


# Which loss reaches which layer


@pytest.mark.parametrize(
    ("part", "reached"),
    [("class", {"backbone", "classifier"}), ("ce", {"backbone", "head"}), ("energy", {"backbone", "head"})],
)
def test_each_loss_reaches_the_backbone_and_its_own_branch(part: str, reached: set[str]) -> None:
    network, batch = small(), batch_of()
    network.weights = only(part)
    network.losses(network(batch["image"], batch["inside"]), batch)["loss"].backward()
    for name, parameter in network.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert touched == (name.split(".")[0] in reached), name


def test_all_together_give_the_sum_of_the_gradients() -> None:
    network, batch = small(), batch_of()
    network.eval()  # its batch norms would move between the passes
    total: dict[str, Tensor] = {}
    for part in PARTS:
        network.zero_grad()
        network.weights = only(part)
        network.losses(network(batch["image"], batch["inside"]), batch)["loss"].backward()
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, torch.zeros(())) + parameter.grad
    network.zero_grad()
    network.weights = LossWeights()
    found = network.losses(network(batch["image"], batch["inside"]), batch)
    found["loss"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, total[name], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found["loss"].detach(), found["class"] + found["ce"] + found["energy"])
    assert not any(found[part].requires_grad for part in PARTS)


def test_weights_scale_their_losses_and_no_energy_is_not_computed() -> None:
    batch = batch_of()
    output = Output(torch.randn(2, 3), torch.randn(2, 4, 4, 4))
    one = joint_losses(output, batch, LossWeights())
    other = joint_losses(output, batch, LossWeights(2.0, 3.0, 5e-7))
    torch.testing.assert_close(other["loss"], 2 * one["class"] + 3 * one["ce"] + 5 * one["energy"])
    assert "energy" not in joint_losses(output, batch, LossWeights(energy=0.0))


def test_the_parts_are_the_losses_of_their_equations() -> None:
    batch = batch_of()
    output = Output(torch.randn(2, 3), torch.randn(2, 4, 4, 4))
    found = joint_losses(output, batch, LossWeights())
    probs = F.interpolate(output.logits_nkhw, (32, 32), mode="bilinear").softmax(1)
    reliable = batch["labels"] != 255
    torch.testing.assert_close(found["energy"], dense_energy_loss(probs, batch["image"], reliable, batch["inside"]))
    torch.testing.assert_close(found["class"], cam.multilabel_soft_margin(output.scores_nk, batch["tags"]))
    torch.testing.assert_close(found["ce"], balanced_cross_entropy(probs.log(), batch["labels"]))


# Equation 9


def test_the_cross_entropy_is_a_mean_over_background_and_a_mean_over_foreground() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, :2] = 255
    halves: dict[bool, list[float]] = {True: [], False: []}
    for n in range(2):
        for y in range(4):
            for x in range(5):
                label = int(labels[n, y, x])
                if label == 255:
                    continue
                powers = [math.exp(float(value)) for value in logits[n, :, y, x]]
                halves[label == 0].append(-math.log(powers[label] / sum(powers)))
    expected = sum(sum(half) / len(half) for half in halves.values())
    assert float(balanced_cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("label", "halves"), [(0, 1), (1, 1), (255, 0)])
def test_a_half_without_a_pixel_counts_nothing(label: int, halves: int) -> None:
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.full((1, 2, 2), label))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(halves * math.log(3))
    assert logits.grad is not None and bool(logits.grad.abs().sum() > 0) == bool(halves)


def test_the_halves_are_balanced_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has all of the background, rank 1 most of the foreground: as one batch of both."""
    from models import losses

    logits, labels = torch.randn(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.long)
    labels[0] = 0
    labels[0, 0, 0] = 2
    whole = float(balanced_cross_entropy(logits, labels))
    everywhere = {0: (16 - 1, 0), 1: (1, 16)}  # half -> its pixels on each rank
    total = 0.0
    for rank in (0, 1):
        halves = iter((0, 1))

        def share(counted: Tensor, ignore: int = 255, rank: int = rank, halves: Any = halves) -> float:
            counts = everywhere[next(halves)]
            assert int((counted != ignore).sum()) == counts[rank]
            return counts[rank] * 2 / sum(counts)

        monkeypatch.setattr(losses, "rank_share", share)
        total += float(balanced_cross_entropy(logits[rank : rank + 1], labels[rank : rank + 1])) / 2
    assert total == pytest.approx(whole, rel=1e-5)


def test_one_pixel_of_each_class_is_enough_and_so_is_one_image() -> None:
    """Of a batch of one: all classes, a pixel each, then the foreground's three as one half."""
    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    labels = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    labels[0, 0, :4] = torch.arange(4)
    batch = {**batch_of(8, 1), "labels": labels}
    found = joint_losses(Output(torch.zeros(1, 3), logits), batch, LossWeights())
    each = [-float(logits[0, :, 0, x].log_softmax(0)[x].detach()) for x in range(4)]
    assert float(found["ce"]) == pytest.approx(each[0] + sum(each[1:]) / 3, rel=1e-5)
    found["loss"].backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


# Padding


def test_padding_is_in_no_loss() -> None:
    """Neither its labels nor its colours nor what the network says there changes a loss or gets a gradient."""
    batch = batch_of()
    batch["inside"][:, 16:] = False
    batch["inside"][1, :, 24:] = False
    features = torch.rand(2, 16, 4, 4, requires_grad=True)
    logits = torch.randn(2, 4, 32, 32, requires_grad=True)  # at the crop's size: no cell lies across the edge
    network = small()

    def losses(of: dict[str, Any]) -> dict[str, Tensor]:
        scores = cam.class_scores(network.classifier, features, of["inside"])
        return joint_losses(Output(scores, logits), of, LossWeights())

    found = losses(batch)
    found["loss"].backward()
    outside = ~batch["inside"]
    assert logits.grad is not None and features.grad is not None
    assert not logits.grad.abs().sum(1)[outside].any() and logits.grad.abs().sum(1)[~outside].all()
    reached = features.grad.abs().sum(1) > 0
    assert reached[0, :2].all() and not reached[:, 2:].any() and not reached[1, :, 3].any()
    changed = {**batch, "labels": batch["labels"].clone(), "image": batch["image"].clone()}
    changed["labels"][outside] = 1
    changed["image"].permute(0, 2, 3, 1)[outside] = 255
    for name, value in losses(changed).items():
        assert torch.equal(value, found[name]), name


# The network


def test_the_head_is_two_dilated_convolutions_with_a_relu_between() -> None:
    with torch.device("meta"):
        network = rrm.build("resnet38", 20)
    head = network.head
    assert isinstance(head, rrm.Head)
    for convolution, shape in ((head.conv1, (512, 4096)), (head.conv2, (21, 512))):
        assert (convolution.kernel_size, convolution.dilation, convolution.padding) == ((3, 3), (12, 12), (12, 12))
        assert convolution.weight.shape[:2] == shape and convolution.bias is not None
    own = rrm.Head(4, 6, 3, 2)
    features = torch.randn(1, 4, 7, 8)
    hidden = F.conv2d(features, own.conv1.weight, own.conv1.bias, padding=2, dilation=2).clamp(min=0)
    torch.testing.assert_close(own(features), F.conv2d(hidden, own.conv2.weight, own.conv2.bias, padding=2, dilation=2))


def test_as_a_segmenter_it_is_its_head_and_its_maps_are_the_classifiers() -> None:
    network = small().eval()
    images = torch.randint(0, 256, (1, 3, 32, 40), dtype=torch.uint8)
    with torch.no_grad():
        output = network(images)
        assert output.scores_nk.shape == (1, 3) and output.logits_nkhw.shape == (1, 4, *network.grid((32, 40)))
        upsampled = F.interpolate(output.logits_nkhw, (32, 40), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network.probabilities(images, (32, 40)), upsampled.softmax(1))
        maps = network.maps(images, (4, 5), (1.0,))
        torch.testing.assert_close(maps, F.conv2d(network.features(images), network.classifier.weight).clamp(min=0))


@pytest.mark.parametrize("name", [name for name in SEGMENTERS if name != "timm:NAME"])
def test_on_every_backbone_the_rates_are_1_2_10_20_and_each_parameter_has_one(name: str) -> None:
    with torch.device("meta"):
        network = rrm.build(name, 3, output_stride=16 if name == "lite0" else 8)
    groups = {g["name"]: g["lr"] for g in parameter_groups(network, network.rules, lr=1.0, weight_decay=0.0).groups}
    assert {group: rate for group, rate in groups.items() if not group.startswith("backbone")} == (
        {"classifier": 1.0, "head-weights": 1.0, "head-biases": 1.0}
        if name == "tiny"
        else {"classifier": 10.0, "head-weights": 10.0, "head-biases": 20.0}
    )
    assert name != "largefov" or groups["backbone-biases"] == 2.0
    assert isinstance(network.head.conv1, nn.Conv2d)
    assert network.head.conv1.dilation[0] == (3 if name == "tiny" else 6 if name == "lite0" else 12)


def test_it_stands_on_a_model_of_timm() -> None:
    """All of it is reached by the losses, and in a group; the classifier's network is the same without the head."""
    name = "timm:mobilenetv3_small_050"
    network, batch = rrm.build(name, 3, output_stride=16).train(), batch_of(48)
    output = network(batch["image"], batch["inside"])
    assert output.scores_nk.shape == (2, 3) and output.logits_nkhw.shape == (2, 4, *network.grid((48, 48)))
    network.losses(output, batch)["loss"].backward()
    trained = {own: parameter for own, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    groups = parameter_groups(network, network.rules, lr=1.0, weight_decay=0.0).groups
    assert sum(len(group["params"]) for group in groups) == len(trained)
    with torch.no_grad():
        maps = network.eval().maps(batch["image"][:, :, :37], (37, 48), (0.5, 1.0, 2.0))
    assert maps.shape == (2, 3, 37, 48) and torch.isfinite(maps).all() and maps.min() >= 0
    own = {name for name in network.state_dict() if not name.startswith("head.")}
    assert own == set(cam.build(name, 3, output_stride=16).state_dict())


def test_a_trained_classifier_is_a_start() -> None:
    classifier, network = cam.build("tiny", 3, width=4), small()
    before = network.head.conv1.weight.detach().clone()  # type: ignore[union-attr]
    load_into(network, classifier.state_dict(), "cam", start=True)
    assert torch.equal(network.classifier.weight, classifier.classifier.weight)
    assert torch.equal(network.backbone.stem[0].weight, classifier.backbone.stem[0].weight)  # type: ignore
    assert torch.equal(network.head.conv1.weight, before)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="classes 0 must be at least 1"):
        rrm.build("tiny", 0)
