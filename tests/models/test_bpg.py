"""BPG: every equation by hand or by brute force, where gradients go, sizes, and that the picture's rim is no edge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import bpg, deeplab, losses
from models.backbones import convolutions
from models.bpg import BRN, PRN, Refinement, Regression
from models.groups import parameter_groups
from models.names import SEGMENTERS
from models.resample import resize
from tasks.training.networks import load_into
from tasks.training.weights import WeightsError

SLIM = Refinement(width=3, depth=2, low_width=4)
EDGES = Regression(width=4, depth=2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def small(**options: Any) -> bpg.BPG:
    return bpg.build("tiny", 4, **{"width": 4, "refinement": SLIM, "regression": EDGES, **options}).eval()


def shake(module: nn.Module) -> None:
    """Weights that start near zero would hide what they do."""
    for convolution in convolutions(module):
        nn.init.normal_(convolution.weight, std=0.3)


def image_of(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width)).float()


# Equation 1


def test_the_foreground_is_the_largest_of_the_foreground_scores() -> None:
    scores = torch.randn(2, 5, 3, 4)
    found = bpg.background_foreground(scores)
    for n, y, x in np.ndindex(2, 3, 4):
        assert found[n, 0, y, x] == scores[n, 0, y, x]
        assert found[n, 1, y, x] == max(float(scores[n, c, y, x]) for c in range(1, 5))


def test_the_gradient_goes_to_the_channel_of_the_maximum_alone() -> None:
    scores = torch.randn(2, 5, 3, 4, requires_grad=True)
    outer = torch.randn(2, 1, 3, 4)
    bpg.foreground(scores).backward(outer)
    assert scores.grad is not None
    for n, c, y, x in np.ndindex(2, 5, 3, 4):
        own = scores[n, 1:, y, x].argmax() + 1 == c
        assert scores.grad[n, c, y, x] == (outer[n, 0, y, x] if own else 0)


def test_under_ties_it_goes_to_one_of_them_whole() -> None:
    scores = torch.zeros(1, 4, 2, 2)
    scores[0, 1] = -1.0
    scores.requires_grad_()
    bpg.foreground(scores).sum().backward()
    assert scores.grad is not None
    given = scores.grad[0].flatten(1).T.tolist()
    assert all(sorted(pixel) == [0, 0, 0, 1] and pixel[0] == pixel[1] == 0 for pixel in given)


# Equations 2 to 4


def batch_of(size: int = 6, count: int = 2) -> dict[str, Tensor]:
    labels = torch.randint(0, 4, (count, size, size), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.7] = 255
    inside = torch.ones(count, size, size, dtype=torch.bool)
    inside[:, :, -2:] = False
    labels[~inside] = 255
    return {"labels": labels, "inside": inside, "edges": torch.rand(count, size, size)}


def by_brute_force(scores: Tensor, boundary: Tensor, batch: dict[str, Tensor], weight: float) -> float:
    """Both sums, pixel by pixel, over the number of scribbled pixels."""
    semantic = edges = 0.0
    labelled = int((batch["labels"] != 255).sum())
    for n, y, x in np.ndindex(*batch["labels"].shape):
        label = int(batch["labels"][n, y, x])
        if label != 255:
            powers = [math.exp(value) for value in scores[n, :, y, x].tolist()]
            semantic -= math.log(powers[label] / sum(powers))
        if batch["inside"][n, y, x]:
            edges += (1 / (1 + math.exp(-float(boundary[n, y, x]))) - float(batch["edges"][n, y, x])) ** 2
    return (semantic + weight * edges) / labelled


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_losses_are_sums_over_pixels_divided_by_the_scribbled_ones(weight: float) -> None:
    batch, network = batch_of(), small()
    network.boundary_weight = weight
    output = bpg.Output(torch.randn(2, 4, 6, 6), torch.randn(2, 6, 6))
    found = network.losses(output, batch)
    assert output.boundary_nhw is not None
    expected = by_brute_force(output.scores_nkhw, output.boundary_nhw, batch, weight)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert found["loss"].item() == pytest.approx((found["semantic"] + weight * found["boundary"]).item())
    squares = (output.boundary_nhw.sigmoid() - batch["edges"]).square()[batch["inside"]]
    assert found["edge"].item() == pytest.approx(squares.mean().item(), rel=1e-5)


def test_padding_is_in_no_loss() -> None:
    batch, network = batch_of(), small()
    output = bpg.Output(torch.randn(2, 4, 6, 6), torch.randn(2, 6, 6))
    plain = network.losses(output, batch)["loss"]
    assert output.boundary_nhw is not None
    output.boundary_nhw[~batch["inside"]] += 9.0
    batch["edges"][~batch["inside"]] = 1.0
    assert network.losses(output, batch)["loss"] == plain


def test_a_batch_without_scribbles_learns_edges_with_a_bounded_weight() -> None:
    batch, network = batch_of(40), small()
    batch["labels"][:] = 255
    scores = torch.randn(2, 4, 40, 40, requires_grad=True)
    boundary = torch.randn(2, 40, 40, requires_grad=True)
    found = network.losses(bpg.Output(scores, boundary), batch)
    found["loss"].backward()
    assert found["semantic"] == 0 and scores.grad is not None and not scores.grad.any()
    assert found["loss"].item() == pytest.approx(found["edge"].item() / bpg.LEAST_SHARE, rel=1e-4)


def test_clicks_are_what_the_sums_are_divided_by_where_clicks_are_what_is_given() -> None:
    batch, network = batch_of(40), small()
    batch["labels"][:] = 255
    batch["labels"][0, 20, 20] = 1  # one of 3,040 pixels
    output = bpg.Output(torch.randn(2, 4, 40, 40), torch.randn(2, 40, 40))
    assert output.boundary_nhw is not None
    expected = by_brute_force(output.scores_nkhw, output.boundary_nhw, batch, 1.0)
    network.least_share = 1e-5
    assert network.losses(output, batch)["loss"].item() == pytest.approx(expected, rel=1e-4)
    network.least_share = bpg.LEAST_SHARE
    assert network.losses(output, batch)["loss"].item() == pytest.approx(expected / 3.04, rel=1e-4)


def test_ranks_with_unlike_scribbles_add_up_to_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks; the mean of their gradients is the gradient of the one batch that they share."""
    batch, network = batch_of(8), small()
    batch["labels"][0, :4] = 255
    scores, boundary = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 8, 8, requires_grad=True)
    inputs = (scores, boundary)
    whole = torch.autograd.grad(network.losses(bpg.Output(*inputs), batch)["loss"], inputs)
    counts = [torch.stack([(batch["labels"][n] != 255).sum(), batch["inside"][n].sum()]).float() for n in range(2)]
    assert counts[0][0] != counts[1][0]
    monkeypatch.setattr(losses, "_is_shared", lambda: True)
    monkeypatch.setattr(losses.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda tensor: tensor.copy_(counts[0] + counts[1]))
    parts = [{name: value[n : n + 1] for name, value in batch.items()} for n in range(2)]
    shares = [network.losses(bpg.Output(scores[n : n + 1], boundary[n : n + 1]), parts[n])["loss"] for n in range(2)]
    for one, both in zip(torch.autograd.grad(sum(shares) / 2, inputs), whole, strict=True):
        torch.testing.assert_close(one, both)


def test_the_share_of_a_rank_and_the_mean_over_ranks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([[[1, 255, 0, 2]]])
    assert losses.rank_share(labels) == 1.0 and losses.rank_mean(torch.tensor(5.0)) == 5.0
    monkeypatch.setattr(losses, "_is_shared", lambda: True)
    monkeypatch.setattr(losses.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda tensor: tensor.add_(5.0))
    assert losses.rank_mean(torch.tensor(3.0)) == 4.0
    assert losses.rank_share(labels) == pytest.approx(3 / 4)


# PRN


def one_by_one(prn: PRN, scores: Tensor, image: Tensor) -> Tensor:
    """Section 3.1 map by map: upsample, lay the low-level channel beside, convolve, add."""
    height, width = image.shape[2:]
    lows = prn.low(image)
    for number, step in enumerate(prn.steps):
        stride = 2 ** (len(prn.steps) - 1 - number)
        size = (math.ceil(height / stride), math.ceil(width / stride))
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        refined = []
        for k in range(scores.shape[1]):
            channel = number * prn.low_maps + (k if prn.low_maps > 1 else 0)
            x = torch.cat([scores[:, k : k + 1], F.adaptive_avg_pool2d(lows[:, channel : channel + 1], size)], 1)
            layers = [*convolutions(step)]
            for place, layer in enumerate(layers):
                each = layer.out_channels // (scores.shape[1] if prn.grouped else 1)
                own = slice(k * each, (k + 1) * each) if prn.grouped else slice(None)
                assert layer.bias is not None
                x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), layer.weight[own], layer.bias[own])
                x = x if place == len(layers) - 1 else F.relu(x)
            refined.append(scores[:, k : k + 1] + x)
        scores = torch.cat(refined, 1)
    return scores


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("low_shared", [False, True])
def test_prn_is_what_the_section_says_map_by_map(grouped: bool, low_shared: bool) -> None:
    prn = PRN(3, 8, Refinement(width=2, depth=3, grouped=grouped, low_width=3, low_shared=low_shared)).eval()
    shake(prn)
    scores, image = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 21, 27)
    with torch.no_grad():
        torch.testing.assert_close(prn(scores, image), one_by_one(prn, scores, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "steps"), [(4, 2), (8, 3), (16, 4), (32, 5)])
def test_it_doubles_until_the_pictures_size_and_starts_as_plain_upsampling(stride: int, steps: int) -> None:
    prn = PRN(2, stride, SLIM)
    assert len(prn.steps) == steps and len([*convolutions(prn.low)]) == 5
    scores, image = 5 * torch.randn(1, 2, 2, 3), torch.randn(1, 3, 2 * stride, 3 * stride)
    plain = scores
    for step in range(1, steps + 1):
        plain = resize(plain, (2 * 2**step, 3 * 2**step))
    with torch.no_grad():
        found = prn(scores, image)
    assert found.shape == (1, 2, 2 * stride, 3 * stride)
    assert 0 < (found - plain).std() < 0.15 * plain.std()


def test_a_stride_that_cannot_be_doubled_away_is_refused() -> None:
    with pytest.raises(ValueError, match="output stride 6 must be a power of two"):
        PRN(2, 6, SLIM)


# BRN


def test_brn_of_two_channels_knows_no_class_and_that_of_all_does() -> None:
    scores = torch.randn(1, 4, 9, 7)
    for channels in ("two", "all"):
        brn = BRN(4, Regression(channels, width=4, depth=2)).eval()
        shake(brn)
        with torch.no_grad():
            one, other = brn(scores), brn(scores[:, [0, 2, 3, 1]])
        assert torch.equal(one, other) is (channels == "two"), channels


def test_its_gradient_reaches_background_and_the_strongest_class_only() -> None:
    brn = BRN(4, EDGES)
    shake(brn)
    scores = torch.randn(1, 4, 9, 7, requires_grad=True)
    brn(scores).sum().backward()
    assert scores.grad is not None
    weaker = F.one_hot(scores[:, 1:].argmax(1), 3).permute(0, 3, 1, 2) == 0
    assert not scores.grad[:, 1:][weaker].any() and scores.grad[:, 0].any() and scores.grad[:, 1:].any()


def test_the_rim_of_the_picture_is_no_edge() -> None:
    """Zeros around the picture would be a step of the scores there; constant scores must have no edge anywhere."""
    scores = torch.tensor([3.0, -1.0, 2.0, 0.5])[None, :, None, None]
    brn, prn = BRN(4, EDGES), PRN(4, 4, SLIM)
    found = {
        brn: lambda: brn(scores.expand(1, 4, 8, 9)),
        prn: lambda: prn(scores.expand(1, 4, 2, 3), torch.full((1, 3, 8, 9), 0.7)),
    }
    for part, run in found.items():
        shake(part)
        for padding, bounds in (("replicate", (0.0, 1e-4)), ("zeros", (0.1, 1e4))):
            for convolution in convolutions(part):
                convolution.padding_mode = padding
            with torch.no_grad():
                flat = run().reshape(-1, 8 * 9)
            spread = float((flat.amax(1) - flat.amin(1)).max())
            assert bounds[0] <= spread <= bounds[1], (type(part).__name__, padding)


def test_a_step_of_the_scores_is_an_edge_where_it_is_and_not_beside_it() -> None:
    """Mirrored scores, mirrored boundary: convolutions and upsampling shift nothing."""
    brn, prn = BRN(4, EDGES), PRN(4, 8, SLIM)
    for part in (brn, prn):
        shake(part)
        for convolution in convolutions(part):
            convolution.weight.data = (convolution.weight + convolution.weight.flip(3)) / 2
    scores, image = torch.randn(1, 4, 3, 4), torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        there = brn(prn(scores, image))
        back = brn(prn(scores.flip(3), image.flip(3))).flip(2)
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-4)


# The whole network


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (53, 70), (96, 41)])
@pytest.mark.parametrize(("name", "stride"), [("tiny", 4), ("tiny", 8), ("lite0", 16)])
def test_any_picture_gets_scores_and_boundaries_of_its_size(name: str, stride: int, size: tuple[int, int]) -> None:
    network = bpg.build(name, 4, width=4, output_stride=stride, refinement=SLIM, regression=EDGES).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        output = network(image_of(*size, count=2))
        assert output.scores_nkhw.shape == (2, 4, *size) and output.boundary_nhw is not None
        assert output.boundary_nhw.shape == (2, *size)
        network.boundary_last = True
        both = network.probabilities(image_of(*size), (20, 30))
        logits = network.logits(image_of(*size), (20, 30))
    assert both.shape == logits.shape == (1, 5, 20, 30)
    torch.testing.assert_close(both[:, :4].sum(1), torch.ones(1, 20, 30))
    assert both[:, 4].min() >= 0 and both[:, 4].max() <= 1


@pytest.mark.parametrize("name", list(SEGMENTERS))
def test_it_stands_on_every_deeplab_and_each_parameter_has_a_group(name: str) -> None:
    name = name.replace("NAME", "mobilenetv3_small_050")
    with torch.device("meta"):
        network = bpg.build(name, 4, output_stride=16 if name.startswith("timm") else 8)
        base = deeplab.build(name, 4, output_stride=16 if name.startswith("timm") else 8)
    groups = parameter_groups(network, network.rules, lr=1.0, weight_decay=0.1).groups
    plain = parameter_groups(base, base.rules, lr=1.0, weight_decay=0.1).groups
    own = {group["name"]: (group["names"], group["lr"], group["weight_decay"]) for group in groups}
    for group in plain:
        assert own.pop(group["name"]) == (group["names"], group["lr"], group["weight_decay"])
    assert set(own) == {"added-weights", "added-biases"}
    expected = (1.0, 1.0) if name == "tiny" else (10.0, 20.0)
    assert (own["added-weights"][1], own["added-biases"][1]) == expected and own["added-biases"][2] == 0


def test_without_its_parts_it_is_deeplab_upsampled() -> None:
    torch.manual_seed(7)
    base = deeplab.build("tiny", 4, width=4).eval()
    torch.manual_seed(7)
    bare = small(refinement=None, regression=None)
    assert base.state_dict().keys() == bare.state_dict().keys()
    image = image_of(40, 56)
    with torch.no_grad():
        output = bare(image)
        torch.testing.assert_close(output.scores_nkhw, base.logits(image, (40, 56)))
    assert output.boundary_nhw is None and len(bare.rules) == len(base.rules)
    torch.manual_seed(7)
    for name, tensor in small().state_dict().items():
        assert name.startswith("added.") or torch.equal(tensor, base.state_dict()[name]), "both start alike"


def test_a_deeplab_is_a_start_and_no_end() -> None:
    base, network = deeplab.build("tiny", 4, width=4), small()
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_into(network, base.state_dict(), "a file", start=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, own[name] if name.startswith("added.") else base.state_dict()[name])
    with pytest.raises(WeightsError, match="keys missing"):
        load_into(network, base.state_dict(), "a file")


@pytest.mark.parametrize("refinement", [SLIM, None])
def test_edges_are_read_from_the_last_scores_and_teach_all_that_makes_them(refinement: Refinement | None) -> None:
    """With PRN, BRN reads what PRN gives; the edge loss alone reaches PRN, DeepLab's head and its backbone."""
    network = small(refinement=refinement).train()
    shake(network.added)
    batch = batch_of(24)
    batch["labels"][:] = 255
    output = network(image_of(24, 24, 2))
    assert output.boundary_nhw is not None
    torch.testing.assert_close(output.boundary_nhw, network.added["brn"](output.scores_nkhw))
    network.losses(output, batch)["loss"].backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_part_learns_from_the_losses() -> None:
    network = small().train()
    shake(network.added)
    batch = {**batch_of(24), "image": image_of(24, 24, 2)}
    network.losses(network(batch["image"]), batch)["loss"].backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
