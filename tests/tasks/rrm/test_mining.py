"""Online mining: the regions of what the network sees now, whatever the number of threads, and without a trace."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from tagged_scenes import painted, tags_of

from models import rrm
from tasks.reliable import ReliableParams, reliable_regions
from tasks.rrm import mining
from tasks.rrm.mining import Miner, mine

SCALES = (0.5, 1.0)


@pytest.fixture
def network() -> rrm.RRM:
    torch.manual_seed(1)
    return rrm.build("tiny", 2, width=4).train()


def batch_of(count: int = 4) -> dict[str, Any]:
    """Crops of 80 x 80 with the pictures somewhere in them, padding around."""
    images = torch.full((count, 3, 80, 80), 7, dtype=torch.uint8)
    inside = torch.zeros(count, 80, 80, dtype=torch.bool)
    tags = torch.zeros(count, 2)
    for n in range(count):
        top, left = 4 * (n % 4), 2 * (n % 4)
        images[n, :, top : top + 64, left : left + 72] = torch.from_numpy(painted(n)[0].transpose(2, 0, 1).copy())
        inside[n, top : top + 64, left : left + 72] = True
        tags[n, [tag - 1 for tag in tags_of(n)]] = 1
    return {"image": images, "inside": inside, "tags": tags}


def mined(network: rrm.RRM, batch: dict[str, Any], threads: int = 1, **fields: Any) -> np.ndarray:
    with Miner(network, ReliableParams(**fields), SCALES, threads) as miner:
        return miner.start(batch)().numpy()


def test_labels_are_the_reliable_regions_of_the_picture_alone(network: rrm.RRM) -> None:
    batch = batch_of()
    found = mined(network, batch)
    assert found.shape == (4, 80, 80) and found.dtype == np.uint8
    network.eval()
    with torch.no_grad():
        maps = network.maps(batch["image"], (80, 80), SCALES).numpy()
    for n in range(4):
        part = slice(4 * n, 4 * n + 64), slice(2 * n, 2 * n + 72)
        (tag,) = tags_of(n)
        expected = reliable_regions(painted(n)[0], maps[n, [tag - 1]][:, *part], [tag], ReliableParams())
        assert np.array_equal(found[n][part], expected) and set(np.unique(found[n])) <= {0, tag, 255}
        outside = ~batch["inside"][n].numpy()
        assert (found[n][outside] == 255).all() and (found[n] != 255).any()


@pytest.mark.parametrize("crf_scale", [1.0, 0.5])
def test_one_and_eight_threads_mine_the_same(network: rrm.RRM, crf_scale: float) -> None:
    batch = batch_of(6)
    one, eight = (mined(network, batch, threads, crf_scale=crf_scale) for threads in (1, 8))
    assert np.array_equal(one, eight) and (one != 255).any()


def test_crfs_work_in_threads_while_the_network_goes_on(network: rrm.RRM, monkeypatch: pytest.MonkeyPatch) -> None:
    go, names = threading.Event(), []

    def slow(*given: Any) -> np.ndarray:
        names.append(threading.current_thread().name)
        assert go.wait(10)
        return mine(*given)

    monkeypatch.setattr(mining, "mine", slow)
    with Miner(network, ReliableParams(), SCALES, 2) as miner:
        pending = miner.start(batch_of(2))
        go.set()  # reached although nothing is mined yet
        assert pending().shape == (2, 80, 80)
    assert len(names) == 2 and all(name.startswith("mining") for name in names)


def test_the_network_is_left_as_it_was(network: rrm.RRM) -> None:
    batch = batch_of(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    mined(network, batch)
    assert network.training and all(module.training for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    mined(network.eval(), batch)
    assert not network.training


def test_the_maps_have_no_gradient_and_no_dropout() -> None:
    torch.manual_seed(0)
    network = rrm.build("resnet18", 2).train()
    network.backbone = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Dropout2d(0.5))  # type: ignore[assignment]
    network.backbone.output_stride = 8  # type: ignore[assignment]
    network.classifier = torch.nn.Conv2d(3, 2, 1, bias=False)
    with Miner(network, ReliableParams(), (1.0,), 1) as miner:
        maps = [miner.maps(batch_of(1)["image"]) for _ in range(2)]
    assert torch.equal(*maps) and not maps[0].requires_grad


def test_they_are_the_maps_of_the_network_as_it_is_now(network: rrm.RRM) -> None:
    batch = batch_of(2)
    first = mined(network, batch)
    with torch.no_grad():
        network.classifier.weight.neg_()
    assert not np.array_equal(first, mined(network, batch))


def test_a_crop_of_padding_alone_and_a_picture_without_tags_have_no_labels(network: rrm.RRM) -> None:
    batch = batch_of(3)
    batch["inside"][0] = False
    batch["tags"][1] = 0
    found = mined(network, batch)
    assert (found[:2] == 255).all() and (found[2] != 255).any()


def test_an_error_in_a_thread_is_raised(network: rrm.RRM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> np.ndarray:
        raise ValueError("no labels today")

    monkeypatch.setattr(mining, "mine", broken)
    with Miner(network, ReliableParams(), SCALES) as miner, pytest.raises(ValueError, match="no labels today"):
        miner.start(batch_of(1))()


def test_a_tag_without_any_evidence_has_no_label_and_the_others_keep_theirs(network: rrm.RRM) -> None:
    """The class activation map of class 2 is zero everywhere: the picture does not show it, or not yet."""
    batch = batch_of(2)
    batch["tags"][:] = 1
    with torch.no_grad():
        network.classifier.weight[1] = -network.classifier.weight[1].abs()
        assert not network.eval().maps(batch["image"], (80, 80), SCALES)[:, 1].any()
    found = mined(network, batch)
    assert 2 not in found and all((one == 1).any() for one in found)


def test_a_class_of_one_pixel_has_no_label_by_share_and_one_by_all() -> None:
    image, inside = painted(1)[0], np.ones((64, 72), bool)
    maps = np.zeros((2, 64, 72), np.float32)
    maps[0] = np.linspace(0.1, 1, 72)
    maps[1, 5, 0] = 7
    for ties, left in (("none", {0, 1, 255}), ("all", {0, 1, 2, 255})):
        params = ReliableParams(agreement=False, ties=ties)  # type: ignore[arg-type]
        found = mine(image, maps, np.ones(2, np.float32), inside, params)
        assert set(np.unique(found)) == left and (found == 2).sum() == (ties == "all")
    assert mine(image, maps, np.ones(2, np.float32), inside, ReliableParams()).shape == (64, 72)


def test_one_picture_alone_and_many_at_once_mine_the_same(network: rrm.RRM) -> None:
    batch = batch_of(3)
    together = mined(network, batch)
    for n in range(3):
        alone = mined(network, {name: values[n : n + 1] for name, values in batch.items()})
        assert alone.shape == (1, 80, 80) and (alone[0] == together[n]).mean() > 0.999
