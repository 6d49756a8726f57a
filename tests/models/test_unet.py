"""CFS's U-Net: are box and class inputs where the paper says, does any crop fit, is every parameter trained?"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import unet
from models.backbones import EXTRA_KEYS, BatchNorm, FrozenBatchNorm2d
from models.groups import parameter_groups


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def crops(n: int = 2, height: int = 64, width: int = 64, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)
    boxes = torch.zeros(n, height, width, dtype=torch.bool)
    boxes[:, height // 6 : height - height // 6, width // 4 :] = True
    return images, boxes, torch.arange(n) % classes + 1


def awake(network: unet.UNet) -> unet.UNet:
    """The network with nothing zero-initialised any more: what is fed to it shows."""
    for parameter in network.prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(network.head.weight)
    return network


# Is it the paper's network?


def test_full_size_network_counts_and_trains_at_the_papers_crop() -> None:
    network = unet.build("resnet50", 20).train()
    assert sum(p.numel() for p in network.parameters()) == 32_635_234
    images, boxes, classes = crops(1, 224, 224)
    logits = network(images, boxes, classes)
    assert logits.shape == (1, 2, 224, 224)
    unet.cfs_loss(logits, boxes.long()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("name", "total"), [("tiny", 327_890), ("lite0", 5_252_482), ("resnet18", 14_442_338)])
def test_the_smaller_networks_count(name: str, total: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in unet.build(name, 20).parameters()) == total


def test_equation_3_is_the_mean_cross_entropy_over_the_whole_crop() -> None:
    logits = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    targets = torch.tensor([[[0, 1], [1, 0]]])
    terms = []
    for y in range(2):
        for x in range(2):
            background, foreground = logits[0, :, y, x].tolist()
            chosen = foreground if targets[0, y, x] else background
            terms.append(math.log(math.exp(background) + math.exp(foreground)) - chosen)
    assert float(unet.cfs_loss(logits, targets)) == pytest.approx(sum(terms) / 4, rel=1e-6)


def test_foreground_probability_is_the_second_channels() -> None:
    logits = torch.tensor([0.0, math.log(3.0)]).view(1, 2, 1, 1).half()
    probability = unet.foreground_probability(logits)
    assert probability.dtype == torch.float32
    assert probability.item() == pytest.approx(0.75, abs=1e-3)


# Box and class at the input


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_conv1_and_the_prior_are_one_convolution_with_1_plus_k_further_channels(name: str) -> None:
    network = awake(unet.build(name, 5)).double()
    images, boxes, classes = crops(3, 37, 50)
    normalised = network.normalise(images.double())
    one_hot = F.one_hot(classes - 1, 5)[:, :, None, None].expand(-1, -1, 37, 50)
    stacked = torch.cat([normalised, boxes[:, None], one_hot], 1)
    conv1 = network.encoder.conv1
    assert network.prior.classes is not None
    weight = torch.cat([conv1.weight, network.prior.box, network.prior.classes], 1)
    by_hand = F.conv2d(stacked, weight, stride=conv1.stride, padding=conv1.padding)  # type: ignore[arg-type]
    ours = conv1(normalised) + network.prior(boxes[:, None].double(), classes)
    torch.testing.assert_close(ours, by_hand)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
)
def test_the_constant_response_is_the_convolution_of_ones(
    height: int, width: int, kernel: int, stride: int, padding: int
) -> None:
    padding = max(padding, -(-(kernel - min(height, width)) // 2))  # the kernel fits into the padded picture
    kernels = torch.randn(2, 3, kernel, kernel, dtype=torch.float64)
    ours = unet.constant_response(kernels, (height, width), stride, padding)
    for n in range(2):
        ones = torch.ones(1, 1, height, width, dtype=torch.float64)
        torch.testing.assert_close(ours[n : n + 1], F.conv2d(ones, kernels[n][:, None], stride=stride, padding=padding))


def test_starts_deaf_to_the_prior_and_learns_to_hear_it() -> None:
    network = unet.build("tiny", 5, deep_refeed=False)
    images, boxes, classes = crops()
    with torch.no_grad():
        network.eval()
        plain = network(images, boxes, classes)
        torch.testing.assert_close(network(images, ~boxes, classes % 5 + 1), plain, rtol=0, atol=0)
    unet.cfs_loss(network.train()(images, boxes, classes), boxes.long()).backward()
    for parameter in network.prior.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    assert network.prior.classes is not None and network.prior.classes.grad is not None
    # Classes 3, 4 and 5 are not in the batch.
    assert network.prior.classes.grad[:, 2:].abs().sum() == 0


# The switches


def heard(network: unet.UNet) -> tuple[bool, bool]:
    """Whether another box, another class changes the output."""
    images, boxes, classes = crops()
    with torch.no_grad():
        network.eval()
        plain = network(images, boxes, classes)
        moved = network(images, boxes.roll(10, 1), classes)
        renamed = network(images, boxes, classes + 1)
    return not torch.equal(plain, moved), not torch.equal(plain, renamed)


def test_without_class_channel_the_class_changes_nothing() -> None:
    assert heard(awake(unet.build("tiny", 5))) == (True, True)
    assert heard(awake(unet.build("tiny", 5, class_channel=False))) == (True, False)


def test_deep_refeed_alone_carries_box_and_class() -> None:
    # The prior's input channels are still zero here: all that is heard comes through the deepest map.
    assert heard(unet.build("tiny", 5)) == (True, True)
    assert heard(unet.build("tiny", 5, class_channel=False)) == (True, False)
    assert heard(unet.build("tiny", 5, deep_refeed=False)) == (False, False)


def test_what_is_refed_is_the_boxs_share_of_each_cell_and_the_one_hot_class() -> None:
    network = unet.build("tiny", 3)
    deepest = torch.randn(2, 64, 2, 2)
    boxes = torch.zeros(2, 1, 8, 8)
    boxes[0, :, :, :6] = 1
    refed = network._refeed(deepest, boxes, torch.tensor([2, 3]))
    assert refed.shape == (2, 64 + 1 + 3, 2, 2)
    torch.testing.assert_close(refed[:, :64], deepest, rtol=0, atol=0)
    assert refed[0, 64].tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert refed[1, 64].abs().sum() == 0
    assert refed[0, 65:, 0, 1].tolist() == [0.0, 1.0, 0.0]
    assert refed[1, 65:, 1, 0].tolist() == [0.0, 0.0, 1.0]


def test_the_last_class_is_the_last_channel() -> None:
    assert unet.one_hot(torch.tensor([1, 4]), 4).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_batch_norm_is_trained_or_frozen_as_asked() -> None:
    with torch.device("meta"):
        trained = unet.build("resnet18", 2)
        frozen = unet.build("resnet18", 2, batch_norm="frozen")
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in trained.modules())
    norms = [m for m in frozen.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and all(isinstance(m, FrozenBatchNorm2d) for m in norms)
    # The decoder starts from scratch, so its own are trained in either case.
    assert all(p.requires_grad for p in frozen.decoder.parameters())


# Any crop


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
@pytest.mark.parametrize("size", [(2, 2), (17, 33), (63, 64), (100, 31)])
def test_any_side_gives_logits_at_the_crops_size(name: str, size: tuple[int, int]) -> None:
    network = unet.build(name, 5).eval()
    with torch.no_grad():
        assert network(*crops(2, *size)).shape == (2, 2, *size)


def test_a_crops_result_does_not_depend_on_its_batch() -> None:
    network = awake(unet.build("tiny", 5)).double().eval()
    images, boxes, classes = crops(4)
    with torch.no_grad():
        together = network(images, boxes, classes)
        alone = torch.cat([network(images[i : i + 1], boxes[i : i + 1], classes[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_wrong_shapes_and_classes_are_refused() -> None:
    network = unet.build("tiny", 5)
    images, boxes, classes = crops()
    for wrong in (torch.tensor([1, 0]), torch.tensor([6, 1])):
        with pytest.raises(ValueError, match="outside 1..5"):
            network(images, boxes, wrong)
    with pytest.raises(ValueError, match="box masks"):
        network(images, boxes[:, :-1], classes)
    with pytest.raises(ValueError, match="classes \\(2,\\)"):
        network(images, boxes, classes[:1])
    with pytest.raises(ValueError, match="resnet34"):
        unet.build("resnet34", 5)
    with pytest.raises(ValueError, match="classes 0"):
        unet.build("tiny", 0)


# Weights and groups


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_encoder_keys_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)().state_dict()
        ours = unet.build(name, 2).encoder.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in reference.items() if not k.startswith(EXTRA_KEYS)
    }


def test_torchvision_weights_give_torchvisions_features_and_a_wrong_file_is_named() -> None:
    network = unet.build("resnet18", 2).eval()
    reference = torchvision.models.resnet18().eval()
    network.load_pretrained(reference.state_dict(), source="r18.pth")
    images = torch.randn(1, 3, 65, 60)
    pooled: list[Tensor] = []
    reference.layer4.register_forward_hook(lambda _module, _inputs, output: pooled.append(output))
    with torch.no_grad():
        reference(images)
        prior = network.prior(torch.ones(1, 1, 65, 60), torch.tensor([1]))
        torch.testing.assert_close(network.encoder(images, prior)[-1], pooled[0])
    old = {k: v for k, v in reference.state_dict().items() if "num_batches" not in k}
    network.load_pretrained(old, source="r18-old.pth")
    broken = {**old, "conv1.weight": torch.zeros(64, 4, 7, 7), "stem.weight": torch.zeros(1)}
    del broken["layer1.0.conv1.weight"]
    with pytest.raises(
        ValueError, match=r"bad\.pth.*layer1\.0\.conv1\.weight.*stem\.weight.*conv1\.weight: file \(64, 4"
    ):
        network.load_pretrained(broken, source="bad.pth")


@pytest.mark.parametrize("batch_norm", ["trained", "frozen"])
@pytest.mark.parametrize("name", ["tiny", "resnet50"])
def test_every_trainable_parameter_is_in_one_declared_group(name: str, batch_norm: BatchNorm) -> None:
    with torch.device("meta"):
        network = unet.build(name, 20, batch_norm=batch_norm)
    found = parameter_groups(network, network.rules, lr=0.005, weight_decay=0.25)
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in found.groups} == {
        "encoder": (0.005, 0.25),
        "decoder-weights": (0.005, 0.25),
        "decoder-biases": (0.005, 0.0),
    }
    names = [n for g in found.groups for n in g["names"]]
    assert sorted([*names, *found.frozen]) == sorted(n for n, _ in network.named_parameters())
    assert {"prior.box", "prior.classes", "head.weight", "head.bias"} <= set(names)
    assert bool(found.frozen) is (name == "resnet50" and batch_norm == "frozen")
    assert all(n.startswith("encoder.") for n in found.frozen)


# Can it learn?


def test_tiny_learns_which_of_two_objects_the_class_names() -> None:
    """Two discs in every box; the class alone says which one is the object."""
    network = unet.build("tiny", 2).train()
    ys, xs = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    discs = torch.stack([(ys - 16) ** 2 + (xs - x) ** 2 < 25 for x in (9, 23)])
    images = torch.full((2, 3, 32, 32), 60.0)
    images[:, 0] += 120 * discs[0] + 20 * torch.randn(32, 32)
    images[:, 2] += 120 * discs[1] + 20 * torch.randn(32, 32)
    boxes = torch.zeros(2, 32, 32)
    boxes[:, 6:26, 2:30] = 1
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        unet.cfs_loss(network(images, boxes, torch.tensor([1, 2])), discs.long()).backward()
        optimizer.step()
    with torch.no_grad():
        foreground = unet.foreground_probability(network(images, boxes, torch.tensor([1, 2]))) > 0.5
    assert (foreground & discs).sum() / (foreground | discs).sum() > 0.9
