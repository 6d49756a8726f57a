"""DeepLab with LGSA: does it start as the plain network, is the walk where it should be, is everything trained?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import deeplab, lgsa, lgsa_deeplab
from models.groups import parameter_groups
from models.lgsa_deeplab import LGSADeepLab, Walk
from models.losses import segmentation_loss
from models.resample import sample_labels


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tiny(modules: int = 2, **options: Any) -> LGSADeepLab:
    return lgsa_deeplab.build("tiny", 4, modules=modules, width=8, **options)


def awake(network: LGSADeepLab) -> LGSADeepLab:
    """The network with h no longer 0 and a W that differs from pixel to pixel."""
    for module in network.attention:
        attention = cast(lgsa.SelfAttention, module)
        nn.init.normal_(attention.h.weight, std=0.1)
        nn.init.normal_(attention.theta.weight, std=0.1)
    nn.init.normal_(cast(nn.Conv2d, network.head.branches[0]).weight, std=0.1)  # type: ignore[union-attr, index]
    return network


def batch(height: int = 64, width: int = 48) -> tuple[Tensor, Tensor]:
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, height // 16, width // 16)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[0, :16] = 255
    return images, labels


def twins(modules: int, walk: Walk) -> tuple[deeplab.DeepLab, LGSADeepLab]:
    plain = deeplab.build("tiny", 4, width=8).eval()
    network = tiny(modules, walk=walk).eval()
    network.load_state_dict({**network.state_dict(), **plain.state_dict()})
    return plain, network


# Does it start as the plain network?


@pytest.mark.parametrize("modules", [0, 1, 2, 3])
def test_starts_as_the_plain_network(modules: int) -> None:
    plain, network = twins(modules, "off")
    images, labels = batch()
    with torch.no_grad():
        output = network(images)
        assert torch.equal(output.logits_bkhw, plain(images))
        assert output.walked_bkhw is None
        upsampled = F.interpolate(plain(images), size=(64, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network.spread(output, (64, 48)), upsampled.softmax(1))
        losses = network.losses(output, {"labels": labels})
    torch.testing.assert_close(losses["loss"], segmentation_loss(plain(images), labels))


def test_without_modules_there_is_no_walk() -> None:
    plain, network = twins(0, "probabilities")
    images, labels = batch()
    output = network(images, labels)
    assert output.walked_bkhw is None
    assert output.attention.item() == 0.0
    assert set(network.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("modules", [0, 1, 2, 3])
def test_as_many_modules_as_asked_each_with_its_own_weights(modules: int) -> None:
    network = tiny(modules)
    assert len(network.attention) == modules
    pointers = {p.data_ptr() for p in network.attention.parameters()}
    assert len(pointers) == 8 * modules


def test_a_module_of_resnet_101_counts() -> None:
    with torch.device("meta"):
        network = lgsa_deeplab.build("resnet101", 21, modules=2)
    assert sum(p.numel() for p in network.attention.parameters()) == 2 * 4_197_888
    assert sum(p.numel() for p in network.parameters()) == 44_048_532 + 2 * 4_197_888


def test_initial_weights_follow_the_size_of_the_features() -> None:
    network = tiny(2).train()
    as_built = copy.deepcopy(network)
    images, _ = batch()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        scale = float(as_built.features(images).pow(2).mean() ** 0.5)
    assert abs(scale - 1) > 0.1
    network.scale_attention(images)
    for name, tensor in network.state_dict().items():
        scaled = name.startswith("attention.") and name.endswith("weight") and ".h." not in name
        torch.testing.assert_close(tensor, before[name] / scale if scaled else before[name])


def test_modules_that_have_learnt_keep_their_weights() -> None:
    network = awake(tiny(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.scale_attention(batch()[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# The cascade and the walk


def by_hand(network: LGSADeepLab, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and each module's W, by the equations on N x N matrices."""
    x = network.features(images)
    weights = []
    for module in network.attention:
        attention = cast(lgsa.SelfAttention, module)
        theta, phi, g = (layer(x).flatten(2) for layer in (attention.theta, attention.phi, attention.g))
        w = torch.einsum("bcn,bcm->bnm", theta, phi).softmax(2)
        weights.append(w)
        x = attention.h(torch.einsum("bnm,bcm->bcn", w, g).unflatten(2, x.shape[2:])) + x
    return network.head(x), weights


@pytest.mark.parametrize("piece", [lgsa.PIECE, 100])
@pytest.mark.parametrize("walk", ["off", "probabilities", "logits"])
def test_modules_in_cascade_then_the_head_then_the_walk_by_the_last_w(walk: Walk, piece: int) -> None:
    network = awake(tiny(2, walk=walk, piece=piece)).double().eval()
    images, labels = batch()
    logits, (first, last) = by_hand(network, images)
    output = network(images, labels)
    torch.testing.assert_close(output.logits_bkhw, logits)
    segments = (logits.softmax(1) if walk == "probabilities" else logits).flatten(2)
    walked = torch.einsum("bnm,bkm->bkn", last, segments).view_as(logits)
    assert (walked - torch.einsum("bnm,bkm->bkn", first, segments).view_as(logits)).abs().max() > 1e-3
    sampled = sample_labels(labels, (8, 6)).flatten(1)
    share = lgsa.class_share(sampled).double()
    expected = sum(lgsa.attention_loss(w, sampled, share) for w in (first, last))
    torch.testing.assert_close(output.attention, expected, check_dtype=False)
    probabilities = network.spread(output, (64, 48))
    if walk == "off":
        assert output.walked_bkhw is None
        final = F.interpolate(logits, size=(64, 48), mode="bilinear").softmax(1)
    else:
        torch.testing.assert_close(output.walked_bkhw, walked)
        final = F.interpolate(walked, size=(64, 48), mode="bilinear")
        final = final.softmax(1) if walk == "logits" else final
    torch.testing.assert_close(probabilities, final)
    torch.testing.assert_close(probabilities.sum(1), torch.ones_like(probabilities[:, 0]))


def test_the_losses_are_equations_9_and_10_at_the_crop_and_at_the_output() -> None:
    network = awake(tiny(1)).eval()
    images, labels = batch()
    output = network(images, labels)
    assert output.walked_bkhw is not None
    up = F.interpolate(output.walked_bkhw, size=(64, 48), mode="bilinear")
    for at, p, target in (("crop", up, labels), ("output", output.walked_bkhw, labels[:, 4::8, 4::8])):
        expected = F.nll_loss((p + 1e-7).log(), target, ignore_index=255)
        for scaled, alpha in ((False, 300.0), (True, 300.0 * (48 / 1681) ** 2)):
            network.alpha, network.alpha_scaled, network.loss_at = 300.0, scaled, at  # type: ignore[assignment]
            losses = network.losses(output, {"labels": labels})
            torch.testing.assert_close(losses["segmentation"], expected)
            torch.testing.assert_close(losses["loss"], expected + alpha * output.attention)
            assert losses["attention"] == output.attention


def test_a_walk_over_logits_or_none_has_deeplabs_own_loss() -> None:
    images, labels = batch()
    for walk in ("logits", "off"):
        network = awake(tiny(1, walk=walk, alpha=0.0)).eval()
        output = network(images, labels)
        scores = output.logits_bkhw if walk == "off" else output.walked_bkhw
        expected = segmentation_loss(scores, labels)
        torch.testing.assert_close(network.losses(output, {"labels": labels})["loss"], expected)


def test_no_labels_no_guidance_the_non_local_network() -> None:
    network = awake(tiny(2)).eval()
    images, labels = batch()
    free, led = network(images), network(images, labels)
    assert free.attention.item() == 0.0
    assert led.attention.item() > 0.0
    network.alpha = 0.0
    assert network(images, labels).attention.item() == 0.0, "without a weight no error is computed"
    torch.testing.assert_close(free.walked_bkhw, led.walked_bkhw)


def test_guidance_of_all_modules_or_of_the_last() -> None:
    images, labels = batch()
    for guided, first_learns in (("all", True), ("last", False)):
        network = tiny(2, guided=guided, walk="off").train()
        network(images, labels).attention.backward()
        first, last = (cast(lgsa.SelfAttention, module) for module in network.attention)
        # h is 0 at first, so the second module's loss does not reach the first module's embeddings.
        assert (first.theta.weight.grad is not None and bool(first.theta.weight.grad.abs().sum() > 0)) is first_learns
        assert last.theta.weight.grad is not None and last.theta.weight.grad.abs().sum() > 0


def test_images_that_are_undecided_throughout_give_no_loss() -> None:
    network = awake(tiny(2))
    images, labels = batch()
    output = network(images, torch.full_like(labels, 255))
    loss = network.losses(output, {"labels": torch.full_like(labels, 255)})["loss"]
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


def test_labels_as_bytes_or_as_integers_are_the_same() -> None:
    network = awake(tiny(2)).eval()
    images, labels = batch()
    small, large = (network(images, each) for each in (labels.to(torch.uint8), labels))
    assert small.attention == large.attention


def test_under_autocast_w_the_walk_and_the_losses_stay_in_float32() -> None:
    network = awake(tiny(2)).train()
    images, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images, labels)
        losses = network.losses(output, {"labels": labels})
    assert output.logits_bkhw.dtype == torch.bfloat16
    assert output.walked_bkhw is not None and output.walked_bkhw.dtype == torch.float32
    torch.testing.assert_close(output.walked_bkhw.sum(1), torch.ones(2, 8, 6))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    losses["loss"].backward()


# The interface of segmenters


@pytest.mark.parametrize("walk", ["off", "probabilities", "logits"])
def test_probabilities_are_the_softmax_of_the_logits_for_both_segmenters(walk: Walk) -> None:
    plain, _ = twins(1, walk)
    images, _ = batch(60, 44)
    for network in (plain, awake(tiny(2, walk=walk)).eval()):
        with torch.no_grad():
            logits, probabilities = (give(images, (21, 17)) for give in (network.logits, network.probabilities))
        assert logits.shape == (2, 4, 21, 17) and logits.dtype == probabilities.dtype == torch.float32
        torch.testing.assert_close(logits.softmax(1), probabilities, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 21, 17))


@pytest.mark.parametrize(("name", "stride"), [("tiny", 8), ("tiny", 4), ("resnet18", 8), ("largefov", 8)])
def test_the_grid_is_the_one_that_the_network_gives(name: Any, stride: Any) -> None:
    with torch.device("meta"):
        for network in (
            deeplab.build(name, 3, output_stride=stride),
            lgsa_deeplab.build(name, 3, output_stride=stride),
        ):
            for size in ((64, 48), (65, 47), (16, 31), (71, 40)):
                features = network.eval().features(torch.zeros(1, 3, *size))
                assert network.grid(size) == tuple(features.shape[2:])


# The heat map


def test_attention_rows_are_ws_rows_at_the_cell_under_the_pixel() -> None:
    network = awake(tiny(3)).eval()
    images, _ = batch()
    with torch.no_grad():
        _, weights = by_hand(network, images)
        rows = network.attention_rows(images, (25, 47))
    # 8 x 6 cells of 8 pixels: row 3, column 5.
    assert [row.shape for row in rows] == [(2, 8, 6)] * 3
    for row, w in zip(rows, weights, strict=True):
        torch.testing.assert_close(row, w[:, 3 * 6 + 5].view(2, 8, 6))
        torch.testing.assert_close(row.sum((1, 2)), torch.ones(2))
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(rows))


@pytest.mark.parametrize(
    ("yx", "cell"), [((0, 0), 0), ((7, 8), 1), ((8, 7), 8), ((63, 63), 63), ((63.9, 63.9), 63), ((8.5, 0), 8)]
)
def test_the_cell_under_a_pixel(yx: tuple[float, float], cell: int) -> None:
    assert lgsa_deeplab.cell_under(yx, (64, 64), (8, 8)) == cell


def test_the_cell_under_a_pixel_of_a_picture_that_ends_inside_a_cell() -> None:
    """57 pixels have 8 cells of 8: the last pixel lies alone in the last cell, the one before in the cell before."""
    cells = [lgsa_deeplab.cell_under((0, x), (64, 57), (8, 8), (1.0, 57 / 64)) for x in (7, 8, 55, 56)]
    assert cells == [0, 1, 6, 7]


@pytest.mark.parametrize("yx", [(-1, 0), (0, 64), (64, 0)])
def test_a_pixel_outside_the_image_is_refused(yx: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="outside"):
        lgsa_deeplab.cell_under(yx, (64, 64), (8, 8))


# Is every parameter trained as declared?


MULTIPLIERS = {
    "tiny": {"backbone": 1, "head-weights": 1, "head-biases": 1, "attention-weights": 1, "attention-biases": 1},
    "resnet101": {
        "backbone": 1,
        "head-weights": 10,
        "head-biases": 20,
        "attention-weights": 10,
        "attention-biases": 20,
    },
    "largefov": {
        "weights": 1,
        "biases": 2,
        "classifier-weights": 10,
        "classifier-biases": 20,
        "attention-weights": 10,
        "attention-biases": 20,
    },
}


@pytest.mark.parametrize("name", list(MULTIPLIERS))
def test_every_trainable_parameter_is_in_one_declared_group(name: str) -> None:
    with torch.device("meta"):
        network = lgsa_deeplab.build(name, 21, modules=2)
    found = parameter_groups(network, network.rules, lr=0.5, weight_decay=0.25)
    assert {g["name"]: g["lr"] / 0.5 for g in found.groups} == MULTIPLIERS[name]
    names = [n for g in found.groups for n in g["names"]]
    assert sorted([*names, *found.frozen]) == sorted(n for n, _ in network.named_parameters())
    groups = {g["name"]: g for g in found.groups}
    assert len(groups["attention-weights"]["names"]) == len(groups["attention-biases"]["names"]) == 8
    for group in found.groups:
        assert group["weight_decay"] == (0.0 if group["name"].endswith("biases") else 0.25)


def test_groups_without_modules_and_with_other_multipliers() -> None:
    for modules, expected in ((0, {}), (1, {"attention-weights": 3.0, "attention-biases": 4.0})):
        network = tiny(modules, multipliers=(3.0, 4.0))
        found = parameter_groups(network, network.rules, lr=1.0, weight_decay=0.0)
        assert {g["name"]: g["lr"] for g in found.groups if g["name"].startswith("attention")} == expected


def parameters_without_gradient(network: nn.Module) -> Iterator[str]:
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or parameter.grad.abs().sum() == 0):
            yield name


def test_after_one_step_every_parameter_has_a_gradient() -> None:
    network = tiny(2).train()
    images, labels = batch()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        network.losses(network(images, labels), {"labels": labels})["loss"].backward()
        optimizer.step()
    # phi's bias adds one number to a whole row of W's logits, which the softmax takes away again.
    without = [name for name in parameters_without_gradient(network) if not name.endswith("phi.bias")]
    assert without == []


def test_the_guided_w_comes_nearer_to_w_gt() -> None:
    network = tiny(1, walk="off").train()
    images, _ = batch()
    labels = torch.zeros(2, 64, 48, dtype=torch.long)
    labels[:, :, 24:] = 1
    images[:, 0][labels == 1] = 250
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = network(images, labels).attention
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_wrong_choices_are_refused() -> None:
    for wrong in ({"modules": -1}, {"walk": "run"}, {"guided": "none"}):
        with pytest.raises(ValueError, match="|".join(str(value) for value in wrong.values())):
            lgsa_deeplab.build("tiny", 4, **wrong)  # type: ignore[arg-type]
