"""hed-lite's network: its size, its weights, where its cells lie, any size."""

from __future__ import annotations

import pytest
import torch

from models.backbones import convolutions
from models.groups import parameter_groups
from models.hed_lite import WIDTHS, HEDLite, Lite0Start, refine
from tasks.training.weights import state_of


@pytest.fixture(scope="module")
def network() -> HEDLite:
    torch.manual_seed(0)
    made = HEDLite().eval()
    made.load_pretrained(state_of("lite0"), source="lite0")
    return made


def test_its_size_and_its_groups(network: HEDLite) -> None:
    assert sum(p.numel() for p in network.parameters()) == 748_825
    assert sum(p.numel() for p in network.body.parameters()) == 700_768
    rates = [g["lr"] for g in parameter_groups(network, network.rules, lr=1.0, weight_decay=0.1).groups]
    assert rates == [0.2, 1.0]
    stored = sum(tensor.numel() for tensor in network.state_dict().values()) * 2
    assert stored < 4e6, "float16"


def test_weights_that_do_not_fit_are_refused() -> None:
    state = state_of("lite0")
    del state["_blocks.3._bn1.weight"]
    with pytest.raises(ValueError, match=r"lite0.pth does not fit this network: 1 keys missing"):
        HEDLite().load_pretrained(state, source="lite0.pth")


@pytest.mark.parametrize("factor", [2, 16])
def test_a_ramp_on_the_coarse_grid_is_the_same_ramp_on_the_fine_one(factor: int) -> None:
    """Cell i of stride s lies on pixel s i + s - 1."""
    cells = torch.arange(5.0) * factor + factor - 1
    found = refine(cells.repeat(4, 1)[None, None], factor)[0, 0]
    assert found.shape == (4 * factor, 5 * factor)
    wanted = torch.arange(5.0 * factor).clamp(min=factor - 1)
    torch.testing.assert_close(found, wanted.expand_as(found))


def test_lite0s_cells_lie_where_the_decoder_takes_them_to_be() -> None:
    """With kernels of equal numbers a cell sees the picture symmetrically about its centre: pixel s i + s - 1."""
    body = Lite0Start()
    for convolution in convolutions(body):
        torch.nn.init.constant_(convolution.weight, 1 / convolution.weight[0].numel())
    images = torch.full((1, 3, 256, 256), 1e-3, requires_grad=True)  # sums stay below the 6 of ReLU6
    for stride, cells in zip((2, 4, 8, 16), body.maps(images), strict=True):
        at = 128 // stride
        (gradient,) = torch.autograd.grad(cells[0, 0, at, at], images, retain_graph=True)
        share = gradient[0].sum((0, 1)).double()
        centre = float((share * torch.arange(256)).sum() / share.sum())
        assert centre == pytest.approx(stride * at + stride - 1, abs=0.25)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (31, 16)])
def test_any_size_gives_maps_of_that_size(network: HEDLite, size: tuple[int, int]) -> None:
    with torch.no_grad():
        found = network(torch.rand(2, 3, *size) * 255)
    assert found.shape == (2, len(WIDTHS) + 1, *size) and bool(torch.isfinite(found).all())
