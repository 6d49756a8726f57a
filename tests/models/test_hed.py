"""HED's network: its size, sides and fusion against a computation of their own, shifts at odd sizes, its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from models import hed
from models.groups import parameter_groups
from models.hed import HED, EdgeNetwork, hed_loss
from models.hed_lite import HEDLite
from models.normalise import IMAGENET, Normalise
from models.resample import resize


class Cells(EdgeNetwork):
    """A network that is quick to run: cells of 16 pixels, a 3 x 3 on them, resized; and a 3 x 3 on the pixels."""

    CONTEXT = 48

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise(IMAGENET)
        self.cells = torch.nn.Conv2d(3, 1, 16, stride=16)
        self.on_cells, self.on_pixels = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Conv2d(3, 1, 3, padding=1)
        self.rules = ()

    def load_pretrained(self, state: Mapping[str, torch.Tensor], *, source: str) -> None:
        raise NotImplementedError

    def logits(self, images_nchw: torch.Tensor) -> torch.Tensor:
        coarse = resize(self.on_cells(self.cells(images_nchw)), (images_nchw.shape[2], images_nchw.shape[3]))
        return torch.cat([coarse, coarse + self.on_pixels(images_nchw)], 1)


def in_tiles(network: EdgeNetwork, images: torch.Tensor, tile: int, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The map in tiles of that side. ``network`` is of doubles: rounding is far below what any pixel adds."""
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(hed, "WHOLE_PIXELS", 0)
        patch.setattr(hed, "TILE", tile)
        return network.edges(images)


@pytest.mark.parametrize("size", [(200, 333), (333, 200), (160, 161), (17, 400), (161, 1)])
def test_tiles_are_the_whole_pictures_map(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    network = Cells().double().eval()
    images = torch.rand(2, 3, *size, dtype=torch.double) * 255
    with torch.inference_mode():
        whole = network.edges(images)
    seen: list[tuple[int, int]] = []
    network.register_forward_pre_hook(lambda _, given: seen.append((given[0].shape[2], given[0].shape[3])))
    torch.testing.assert_close(in_tiles(network, images, 160, monkeypatch), whole, rtol=0, atol=1e-12)
    assert len(seen) >= 4 and max(max(one) for one in seen) <= 160
    monkeypatch.setattr(Cells, "CONTEXT", 16)
    assert (in_tiles(network, images, 96, monkeypatch) - whole).abs().max() > 1e-6, "a smaller context is seen"


@pytest.mark.parametrize("made", [HED, HEDLite])
def test_nothing_beyond_the_context_has_a_part_in_a_pixel(
    made: type[HED] | type[HEDLite], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = made().double().eval()
    for side in network.sides:
        torch.nn.init.normal_(side.weight, std=0.1)
    context = made.CONTEXT
    images = torch.rand(1, 3, 16, 3 * context + 24, dtype=torch.double) * 255
    with torch.inference_mode():
        whole = network.edges(images)
    assert whole.std() > 1e-3
    torch.testing.assert_close(in_tiles(network, images, 3 * context, monkeypatch), whole, rtol=0, atol=1e-12)
    monkeypatch.setattr(made, "CONTEXT", context // 2)
    assert (in_tiles(network, images, 2 * context, monkeypatch) - whole).abs().max() > 1e-9


def test_a_picture_of_usual_size_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hed.WHOLE_PIXELS >= 2**22 and hed.TILE**2 <= hed.WHOLE_PIXELS and hed.TILE % hed.MULTIPLE == 0
    network = Cells().eval()
    seen: list[tuple[int, int]] = []
    network.register_forward_pre_hook(lambda _, given: seen.append((given[0].shape[2], given[0].shape[3])))
    with torch.inference_mode():
        network.edges(torch.zeros(1, 3, 2048, 2048))
        assert seen == [(2048, 2048)]
        assert network.edges(torch.zeros(1, 3, 2048, 2049)).shape == (1, 2048, 2049)
    assert len(seen) == 3 and all(max(one) <= 2048 for one in seen)


@pytest.fixture(scope="module")
def network() -> HED:
    torch.manual_seed(0)
    made = HED().eval()
    for side in made.sides:
        torch.nn.init.normal_(side.weight, std=0.1)
    torch.nn.init.normal_(made.fuse.weight)
    return made


def test_its_size_and_its_groups(network: HED) -> None:
    assert sum(p.numel() for p in network.parameters()) == 14_716_171
    groups = parameter_groups(network, network.rules, lr=1.0, weight_decay=0.1).groups
    assert [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups] == [(19, 1.0, 0.1), (19, 2.0, 0.0)]


def bilinear(row: np.ndarray, size: int) -> np.ndarray:
    """One axis between cell centres, by numpy's own interpolation."""
    centres = (np.arange(len(row)) + 0.5) * size / len(row) - 0.5
    return np.apply_along_axis(lambda one: np.interp(np.arange(size), centres, one), 0, row)


def test_sides_are_resized_and_fused(network: HED) -> None:
    images = torch.rand(1, 3, 32, 48) * 255
    features = []
    handles = [
        side.register_forward_pre_hook(lambda _, given: features.append(given[0][0].numpy())) for side in network.sides
    ]
    with torch.no_grad():
        found = network(images)[0].numpy()
    for handle in handles:
        handle.remove()
    sides = []
    for number, (maps, side) in enumerate(zip(features, network.sides, strict=True)):
        assert maps.shape[1:] == (32 >> number, 48 >> number)
        logit = np.einsum("chw,c->hw", maps, side.weight[0, :, 0, 0].detach().numpy())
        sides.append(bilinear(bilinear(logit, 32).T, 48).T)
        np.testing.assert_allclose(found[number], sides[-1], rtol=1e-3, atol=1e-3)
    fused = sum(w * side for w, side in zip(network.fuse.weight.detach().flatten().tolist(), sides, strict=True))
    np.testing.assert_allclose(found[5], fused, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (31, 16)])
def test_any_size_is_extended_by_its_last_pixels_and_cropped(network: HED, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size) * 255
    whole = tuple(16 * math.ceil(side / 16) for side in size)
    rows, columns = (torch.arange(long).clamp(max=side - 1) for long, side in zip(whole, size, strict=True))
    with torch.no_grad():
        found, padded = network(images), network(images[:, :, rows][:, :, :, columns])
    assert found.shape == (2, 6, *size)
    torch.testing.assert_close(found, padded[:, :, : size[0], : size[1]])


def test_imagenets_vgg_fits_and_another_does_not(network: HED) -> None:
    state = {name: value for name, value in network.state_dict().items() if name.startswith("features.")}
    other = HED()
    other.load_pretrained({**state, "classifier.0.weight": torch.zeros(1)}, source="vgg.pth")
    torch.testing.assert_close(other.features[0].weight, network.features[0].weight)
    del state["features.0.bias"]
    with pytest.raises(ValueError, match=r"vgg.pth does not fit this network: 1 keys missing"):
        other.load_pretrained(state, source="vgg.pth")


def test_the_loss_is_the_papers_sum() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(2, 6, 3, 4)), generator.choice([0, 1, 255], (2, 3, 4), p=[0.6, 0.2, 0.2])
    total = 0.0
    for n in range(2):
        b = (labels[n] == 0).sum() / (labels[n] != 255).sum()
        for m, y, x in np.ndindex(6, 3, 4):
            p = 1 / (1 + math.exp(-logits[n, m, y, x]))
            total -= {1: b * math.log(p), 0: (1 - b) * math.log(1 - p), 255: 0.0}[int(labels[n, y, x])]
    assert hed_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item() == pytest.approx(total / 2)
    assert hed_loss(torch.from_numpy(logits), torch.full((2, 3, 4), 255)).item() == 0
    with pytest.raises(ValueError, match="0, 1 and 255"):
        hed_loss(torch.from_numpy(logits), torch.full((2, 3, 4), 2))
