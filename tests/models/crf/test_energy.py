"""The dense energy loss: eq. 10 to 14 pair by pair, the true gradient, and padding."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from models.crf.calibration import REFERENCE_ROW_SUM, calibration_picture, position_colour_features
from models.crf.energy import (
    dense_energy_loss,
    energy_and_gradient,
    energy_gradient,
    gaussian_kernel,
    potts_energy,
    soft_filter,
    weighted_energy,
)
from models.crf.exact import brute_kernel
from models.crf.gaussian import GaussianFilter


def _batch(count: int, labels: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """float64 probabilities, float images in few colours, a reliable half."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, labels, height, width, generator=random, dtype=torch.float64)
    images = torch.randint(0, 6, (count, 3, height, width), generator=random).float() * 7
    return logits.softmax(dim=1), images, torch.randint(0, 2, (count, height, width), generator=random)


def _pairs(probs_khw: Tensor, image: Tensor, soft_hw: Tensor, sigmas: tuple[float, float]) -> float:
    """Eq. 13 over eq. 10 by four nested loops; positions and colours written out."""
    labels, height, width = probs_khw.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    total = 0.0
    for yi, xi in pixels:
        for yj, xj in pixels:
            if (yi, xi) == (yj, xj):
                continue
            place = ((yi - yj) ** 2 + (xi - xj) ** 2) / (2 * sigmas[0] ** 2)
            colour = float((image[:, yi, xi] - image[:, yj, xj]).double().square().sum()) / (2 * sigmas[1] ** 2)
            agree = math.exp(-place - colour)
            for a in range(labels):
                for b in range(labels):
                    if a != b:
                        total += float(soft_hw[yi, xi] * agree * probs_khw[a, yi, xi] * probs_khw[b, yj, xj])
    return total


def _factor(height: int, width: int, sigmas: tuple[float, float], weight: float) -> float:
    """The calibrated weight of an exact kernel from the whole matrix."""
    image = torch.from_numpy(calibration_picture(height, width)).permute(2, 0, 1)
    kernel = brute_kernel(position_colour_features(image, *sigmas).numpy())
    row_sum = (kernel.sum() - np.trace(kernel)) / len(kernel)
    return weight * 25600 * REFERENCE_ROW_SUM / (height * width * row_sum)


def _dense_loss(probs: Tensor, images: Tensor, soft: Tensor, sigmas: tuple[float, float]) -> Tensor:
    """Eq. 13 by whole matrices, left to autograd."""
    total = probs.new_zeros(())
    for p, image, s in zip(probs, images, soft, strict=True):
        kernel = torch.from_numpy(brute_kernel(position_colour_features(image, *sigmas).numpy()))
        kernel.fill_diagonal_(0)
        rows = p.flatten(1).T
        pairs = rows @ (1 - rows).T
        total = total + (s.flatten()[:, None] * kernel * pairs).sum()
    return total / len(probs)


# The value


@pytest.mark.parametrize("backend", ["exact", "brute"])
def test_the_loss_is_the_sum_over_pairs_of_pixels_and_labels(backend: str) -> None:
    probs, images, reliable = _batch(2, 3, 3, 4)
    soft = soft_filter(probs, reliable > 0)
    wanted = (
        sum(_pairs(probs[n], images[n], soft[n], (2.0, 15.0)) for n in range(2)) / 2 * _factor(3, 4, (2.0, 15.0), 0.5)
    )
    found = dense_energy_loss(probs, images, reliable, sigma_xy=2, scale=1, weight=0.5, backend=backend)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_two_pixels_by_hand() -> None:
    # Equal colours, one apart, certain of different labels: E(i, j) = E(j, i) = exp(-1 / (2 * 4)).
    probs = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    kernel = gaussian_kernel(torch.zeros(3, 1, 2), 2.0, 15.0, "exact")
    rows = probs[0].flatten(1).T
    energy, gradient = energy_and_gradient(rows, torch.tensor([1.0, 0.5]), kernel)
    near = math.exp(-1 / 8)
    assert float(energy) == pytest.approx(1.5 * near, rel=1e-6)
    # dE/dP(i, c) = S_i G (1 - P_c(j)) - G S_j P_c(j); i sees j certain of label 1 with S_j = 0.5, j sees i with 1.
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -0.5], [-1.0, 0.5]]) * near)


def test_potts_energy_is_the_sum_over_unequal_labels() -> None:
    # eq. 12 = eq. 10 for probabilities that add up to 1: one pixel against two, by hand.
    probs = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    kernel = torch.tensor([[0.0, 0.5, 0.25], [0.5, 0.0, 0.0], [0.25, 0.0, 0.0]])
    found = potts_energy(probs, kernel @ (1 - probs))
    first = 0.5 * (0.2 * 0.5 + 0.8 * 0.5) + 0.25 * (0.2 * 0.0 + 0.8 * 1.0)
    torch.testing.assert_close(found, torch.tensor([first, 0.5 * 0.5, 0.25 * 0.8]))
    assert float(weighted_energy(torch.tensor([2.0, 0.0, 1.0]), found)) == pytest.approx(2 * first + 0.25 * 0.8)


def test_soft_filter_by_hand_and_without_gradient() -> None:
    probs = torch.tensor([[[[0.7, 0.4]], [[0.3, 0.6]]]], requires_grad=True)
    soft = soft_filter(probs, torch.tensor([[[True, False]]]))
    torch.testing.assert_close(soft, torch.tensor([[[0.3, 1.0]]]))
    assert not soft.requires_grad


def test_agreement_costs_nothing_and_weight_scales() -> None:
    probs, images, reliable = _batch(1, 3, 8, 8)
    certain = F.one_hot(torch.ones(1, 8, 8, dtype=torch.long), 3).permute(0, 3, 1, 2).double()
    once, twice, none, agreed = (
        float(dense_energy_loss(p, images, reliable, weight=w, backend="exact"))
        for p, w in ((probs, 1.0), (probs, 2.0), (probs, 0.0), (certain, 1.0))
    )
    assert once > 0
    assert twice == pytest.approx(2 * once)
    assert none == 0
    assert abs(agreed) < 1e-6 * once


def test_half_scale_averages_two_by_two_and_halves_sigma_xy() -> None:
    probs, images, reliable = _batch(2, 3, 8, 12)
    small = F.avg_pool2d(probs, 2), F.avg_pool2d(images, 2), reliable[:, 1::2, 1::2]
    wanted = dense_energy_loss(*small, sigma_xy=3, scale=1, backend="exact")
    torch.testing.assert_close(dense_energy_loss(probs, images, reliable, sigma_xy=6, backend="exact"), wanted)
    # An odd crop drops its last row and column, so that no cell averages otherwise.
    odd = [F.pad(t, (0, 1, 0, 1)) for t in (probs, images, reliable)]
    odd[0][:, 0, -1], odd[0][:, 0, :, -1] = 1, 1
    torch.testing.assert_close(dense_energy_loss(*odd, sigma_xy=6, backend="exact"), wanted)


# The gradient


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_gradient_is_autograd_of_the_matrices_with_s_detached(scale: float) -> None:
    probs, images, reliable = _batch(2, 3, 6, 8)
    probs.requires_grad_()
    found = torch.autograd.grad(
        dense_energy_loss(probs, images, reliable, sigma_xy=4, scale=scale, weight=1, backend="exact"), probs
    )[0]
    sigmas = (4 * scale, 15.0)
    if scale == 1:
        small, colours, labelled = probs, images, reliable
    else:
        small, colours, labelled = F.avg_pool2d(probs, 2), F.avg_pool2d(images, 2), reliable[:, 1::2, 1::2]
    frozen = soft_filter(small, labelled > 0)
    dense = _dense_loss(small, colours, frozen, sigmas) * _factor(*small.shape[2:], sigmas, 1)
    wanted = torch.autograd.grad(dense, probs, retain_graph=True)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    # With S in the graph it would be another gradient: this comparison can tell.
    doubt = torch.where(labelled > 0, 1 - small.amax(dim=1), torch.ones_like(frozen))
    other = torch.autograd.grad(
        _dense_loss(small, colours, doubt, sigmas) * _factor(*small.shape[2:], sigmas, 1), probs
    )[0]
    assert (other - wanted).norm() > 0.05 * wanted.norm()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradcheck_of_the_whole_loss(scale: float) -> None:
    # No pixel reliable: S = 1, so finite differences see no detached part.
    probs, images, reliable = _batch(2, 3, 4, 4)
    logits = probs.log().requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return dense_energy_loss(
            logits.softmax(1), images, reliable * 0, sigma_xy=4, scale=scale, weight=1, backend="exact"
        )

    assert gradcheck(loss, (logits,))


@pytest.mark.parametrize("backend", ["lattice", "lattice-torch", "exact", "brute"])
def test_it_is_the_true_gradient_of_a_kernel_that_is_not_symmetric(backend: str) -> None:
    # Eq. 13 is quadratic in P, so a central difference of any width is the derivative itself. With S from 0 to 1 both
    # S and the lattice make the pairs' order matter.
    probs, images, _ = _batch(1, 3, 12, 12)
    kernel = gaussian_kernel(images[0], 6.0, 15.0, backend)
    rows, soft = probs[0].flatten(1).T.float(), torch.rand(144, generator=torch.Generator().manual_seed(1))
    _, gradient = energy_and_gradient(rows, soft, kernel)
    for seed in range(5):
        step = torch.randn(144, 3, generator=torch.Generator().manual_seed(seed))
        above, below = (energy_and_gradient(rows + sign * step, soft, kernel)[0] for sign in (1, -1))
        change = float((gradient * step).sum())
        assert (float(above) - float(below)) / 2 == pytest.approx(
            change, abs=1e-4 * float(gradient.norm() * step.norm())
        )


def test_energy_gradient_by_hand() -> None:
    against = torch.tensor([[2.0, 1.0], [1.5, 0.5]])
    found = energy_gradient(torch.tensor([0.5, 1.0]), against, torch.full((2, 2), 0.25))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25], [1.25, 0.25]]))


def _cosine_with_exact(image_hw3: np.ndarray) -> float:
    """Gradient of the lattice against exact on a square crop of 192 (a grid of 96), 21 labels, 40 % reliable."""
    size = 192
    images = torch.from_numpy(np.ascontiguousarray(image_hw3[:size, :size])).permute(2, 0, 1)[None].float()
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 21, size // 8, size // 8, generator=random) * 2
    coarse += (
        F.interpolate(images, size=coarse.shape[2:], mode="area").mean(1, keepdim=True)
        / 50
        * torch.linspace(-1, 1, 21).view(1, 21, 1, 1)
    )
    probs = F.interpolate(coarse, size=(size, size), mode="bilinear").softmax(dim=1).requires_grad_()
    reliable = (
        F.interpolate(torch.rand(1, 1, 12, 12, generator=random), size=(size, size), mode="bilinear")[:, 0] < 0.45
    )
    lattice, exact = (
        torch.autograd.grad(dense_energy_loss(probs, images, reliable, backend=backend), probs)[0].flatten()
        for backend in ("lattice", "exact")
    )
    return float(F.cosine_similarity(lattice, exact, dim=0))


def test_the_lattice_gradient_points_where_the_exact_one_does() -> None:
    assert _cosine_with_exact(calibration_picture(192, 192)) >= 0.995


PHOTOGRAPHS = sorted((Path(__file__).resolve().parents[4] / "shared/data/voc-mini").rglob("*.jpg"))


@pytest.mark.skipif(not PHOTOGRAPHS, reason="no photographs here")
@pytest.mark.parametrize("number", [0, 50])
def test_so_it_does_on_a_photograph(number: int) -> None:
    # Of 30 photographs 29 reach .995 (median .998); an even wall gives .994 here and .995 on the grid of 160.
    import cv2

    image = cv2.imread(str(PHOTOGRAPHS[number % len(PHOTOGRAPHS)]))[:, :, ::-1]
    assert min(image.shape[:2]) >= 192
    assert _cosine_with_exact(image) >= 0.995


# Padding


def test_padding_takes_no_part_at_all() -> None:
    probs, images, reliable = _batch(2, 3, 6, 8)
    inside = torch.ones(2, 6, 8, dtype=torch.bool)
    inside[1, 4:], inside[1, :, 5:] = False, False
    results = []
    for seed in (5, 6):  # whatever lies there
        other_probs, other_images, other_reliable = _batch(2, 3, 6, 8, seed=seed)
        filled = torch.where(inside[:, None], probs, other_probs).requires_grad_()
        colours = torch.where(inside[:, None], images, other_images)
        labelled = torch.where(inside, reliable, other_reliable)
        loss = dense_energy_loss(filled, colours, labelled, inside, sigma_xy=4, scale=1, weight=1, backend="exact")
        results.append((loss.item(), torch.autograd.grad(loss, filled)[0]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    gradient = results[0][1]
    torch.testing.assert_close(gradient, results[1][1])
    outside = ~inside[1]
    assert gradient[1][:, outside].abs().max() == 0
    assert gradient[1][:, ~outside].abs().min() > 0
    soft = soft_filter(probs, reliable > 0)
    wanted = _pairs(probs[0], images[0], soft[0], (4.0, 15.0)) + _pairs(
        probs[1, :, :4, :5], images[1, :, :4, :5], soft[1, :4, :5], (4.0, 15.0)
    )
    assert results[0][0] == pytest.approx(wanted / 2 * _factor(6, 8, (4.0, 15.0), 1), rel=1e-5)


def test_a_cell_with_padding_in_it_is_padding() -> None:
    probs, images, reliable = _batch(1, 3, 8, 8)
    inside = torch.ones(1, 8, 8, dtype=torch.bool)
    inside[:, :, 5:] = False  # the third column of cells is half padding
    losses = []
    for seed in (5, 6):
        other_probs, other_images, _ = _batch(1, 3, 8, 8, seed=seed)
        filled, colours = torch.where(inside, probs, other_probs), torch.where(inside, images, other_images)
        losses.append(dense_energy_loss(filled, colours, reliable, inside, sigma_xy=4, backend="exact").item())
    assert losses[0] == losses[1] > 0


def test_an_image_of_padding_only_is_zero() -> None:
    probs, images, reliable = _batch(1, 3, 6, 8)
    probs.requires_grad_()
    loss = dense_energy_loss(probs, images, reliable, torch.zeros(1, 6, 8))
    loss.backward()
    assert loss.item() == 0
    assert probs.grad is not None and probs.grad.abs().max() == 0


# Precision, threads, memory


def test_computed_in_float32_also_under_autocast_and_from_half() -> None:
    probs, images, reliable = _batch(2, 3, 16, 16)
    wanted = dense_energy_loss(probs.float(), images, reliable, weight=1)
    assert wanted.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_energy_loss(probs.float(), images, reliable, weight=1), wanted)
    half = probs.half().requires_grad_()
    found = dense_energy_loss(half, images, reliable, weight=1e-6)
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item() * 1e-6, rel=2e-3)
    single = probs.float().requires_grad_()
    dense_energy_loss(single, images, reliable, weight=1e-6).backward()
    assert half.grad is not None and single.grad is not None and half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad.float(), single.grad, rtol=0.01, atol=0.01 * float(single.grad.abs().max()))
    torch.testing.assert_close(dense_energy_loss(probs.float(), images.byte(), reliable, weight=1), wanted)


@pytest.mark.parametrize("backend", ["lattice", "exact"])
def test_threads_change_no_byte(backend: str) -> None:
    probs, images, reliable = _batch(4, 5, 20, 24)
    results = []
    for threads in (1, 3):
        leaf = probs.float().requires_grad_()
        loss = dense_energy_loss(leaf, images, reliable, backend=backend, threads=threads)
        results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", ["lattice", "exact"])
def test_without_a_gradient_the_filter_is_not_transposed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probs, images, reliable = _batch(2, 3, 16, 16)
    dense_energy_loss(probs, images, reliable, backend=backend)  # the calibration filters too, once a process
    columns: list[int] = []
    apply = GaussianFilter.apply

    def counted(self: GaussianFilter, values_nk: Tensor, transpose: bool = False) -> Tensor:
        columns.append(values_nk.shape[1])
        return apply(self, values_nk, transpose)

    monkeypatch.setattr(GaussianFilter, "apply", counted)
    wanted = dense_energy_loss(probs.requires_grad_(), images, reliable, backend=backend).item()
    both = sum(columns)
    columns.clear()
    with torch.no_grad():
        found = dense_energy_loss(probs.detach(), images, reliable, backend=backend).item()
    assert found == pytest.approx(wanted, rel=1e-6)
    assert sum(columns) == both / 2


def test_only_a_gradient_is_kept() -> None:
    probs, images, reliable = _batch(2, 3, 16, 16)
    leaf = probs.float().requires_grad_()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dense_energy_loss(leaf, images, reliable, scale=1).backward()
    assert kept == [leaf.numel()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["lattice", "exact", "auto"])
def test_cuda_is_the_cpu(backend: str) -> None:
    probs, images, reliable = _batch(2, 21, 64, 64)
    results = []
    for device in ("cpu", "cuda"):
        leaf = probs.float().to(device).requires_grad_()
        loss = dense_energy_loss(leaf, images.to(device), reliable.to(device), backend=backend)
        results.append((loss.item(), torch.autograd.grad(loss, leaf)[0].cpu()))
    tolerance = 0.05 if backend == "auto" else 1e-4  # auto is the lattice here and exact there
    assert results[0][0] == pytest.approx(results[1][0], rel=tolerance)
    assert F.cosine_similarity(results[0][1].flatten(), results[1][1].flatten(), dim=0) > 1 - tolerance


# Properties


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), labels=st.integers(1, 5), height=st.integers(2, 9), width=st.integers(2, 9))
def test_not_negative_and_blind_to_the_order_of_labels_and_to_mirroring(
    seed: int, labels: int, height: int, width: int
) -> None:
    probs, images, reliable = _batch(1, labels, height, width, seed)

    def loss(probs: Tensor, images: Tensor, reliable: Tensor) -> float:
        return float(dense_energy_loss(probs, images, reliable, scale=1, weight=1e-6, backend="exact"))

    found = loss(probs, images, reliable)
    assert found >= -1e-9
    assert loss(probs.flip(1), images, reliable) == pytest.approx(found, rel=1e-6, abs=1e-9)
    assert loss(probs.flip(3), images.flip(3), reliable.flip(2)) == pytest.approx(found, rel=1e-5, abs=1e-9)
