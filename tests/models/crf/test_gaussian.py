"""The Gaussian filter: is it linear, is its transpose the transpose, do all backends mean the same kernel?"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crf_pictures import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import models.crf
from models.crf import _lattice, lattice_torch
from models.crf.energy import energy_and_gradient
from models.crf.exact import brute_kernel
from models.crf.gaussian import (
    EXACT_ON_GPU,
    GaussianFilter,
    bilateral_features,
    choose_backend,
    position_features,
    spatial_filter,
)

LATTICES = ["lattice-cpp", "lattice-torch"]
EVERY = [*LATTICES, "exact", "brute"]


def features_of(points: int, dimensions: int, seed: int = 0, spread: float = 3.0) -> Any:
    return np.random.default_rng(seed).normal(0, spread, (points, dimensions)).astype(np.float32)


def matrix(kernel: GaussianFilter, transpose: bool = False) -> Any:
    """The whole N x N operator, column by column."""
    return kernel.apply(np.eye(kernel.points, dtype=np.float32), transpose)


# --- the operator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_the_transpose_is_the_transpose(backend: str, dimensions: int) -> None:
    kernel = GaussianFilter(features_of(60, dimensions), backend)
    forward, back = matrix(kernel), matrix(kernel, transpose=True)
    assert np.abs(forward.T - back).max() < 1e-5
    asymmetry = np.abs(forward - forward.T).max()
    assert asymmetry < 1e-5 if kernel.symmetric else dimensions == 1 or asymmetry > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    features=hnp.arrays(np.float32, (24, 5), elements=st.floats(-8, 8, width=32)),
    seed=st.integers(0, 2**31),
    factors=st.tuples(st.floats(-4, 4, width=32), st.floats(-4, 4, width=32)),
)
@pytest.mark.parametrize("backend", ["lattice-cpp", "lattice-torch", "exact"])
def test_it_is_linear_and_its_transpose_moves_across_a_product(
    backend: str, features: Any, seed: int, factors: tuple[float, float]
) -> None:
    kernel = GaussianFilter(features, backend)
    u, v = np.random.default_rng(seed).normal(size=(2, 24, 3)).astype(np.float32)
    a, b = factors
    np.testing.assert_allclose(
        kernel.apply(a * u + b * v), a * kernel.apply(u) + b * kernel.apply(v), rtol=1e-4, atol=1e-4
    )
    left = float((u.astype(np.float64) * kernel.apply(v)).sum())
    right = float((kernel.apply(u, transpose=True).astype(np.float64) * v).sum())
    assert left == pytest.approx(right, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("dimensions", range(1, 8))
def test_all_lattices_are_one_kernel(dimensions: int) -> None:
    features = features_of(200, dimensions)
    values = np.random.default_rng(1).normal(size=(200, 7)).astype(np.float32)
    for transpose in (False, True):
        one, *others = (GaussianFilter(features, name).apply(values, transpose) for name in LATTICES)
        for other in others:
            np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 9, 16, 17, 24, 25, 32, 33, 70])
def test_any_number_of_channels_is_filtered_channel_by_channel(channels: int) -> None:
    kernel = GaussianFilter(features_of(300, 5), "lattice-cpp")
    values = np.random.default_rng(2).normal(size=(300, channels)).astype(np.float32)
    whole = kernel.apply(values)
    for c in (0, channels // 2, channels - 1):
        np.testing.assert_allclose(whole[:, c], kernel.apply(values[:, c : c + 1])[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", EVERY)
def test_the_diagonal_is_the_matrix_diagonal(backend: str) -> None:
    # Inside a dense patch every neighbour in the lattice exists, as the diagonal of the complete lattice supposes.
    grid = np.stack(np.meshgrid(np.arange(33), np.arange(33)), axis=-1).reshape(-1, 2).astype(np.float32) / 5
    kernel = GaussianFilter(grid, backend)
    inner = np.flatnonzero(((grid > 2.9) & (grid < 3.7)).all(axis=1))
    units = np.zeros((len(grid), len(inner)), np.float32)
    units[inner, np.arange(len(inner))] = 1
    np.testing.assert_allclose(kernel.diagonal()[inner], np.diagonal(kernel.apply(units)[inner]), rtol=1e-5)


def test_the_lattice_approximates_the_gaussian() -> None:
    """About .58 of it by unnormalised weight (a constant factor of the method), and closely correlated."""
    image = picture(24, 30)
    features = bilateral_features(image, 10.0, 30.0)
    exact, lattice = brute_kernel(features), matrix(GaussianFilter(features, "lattice-cpp"))
    assert 0.4 < lattice.sum() / exact.sum() < 0.8
    assert np.corrcoef(exact.ravel(), lattice.ravel())[0, 1] > 0.97


# --- the compiled lattice -------------------------------------------------------------------------------------------


@pytest.fixture
def chosen_instructions() -> Any:
    yield _lattice.use
    _lattice.use(_lattice.instruction_sets()[0])


def test_instruction_sets_agree(chosen_instructions: Any) -> None:
    image = picture(40, 33)
    features = bilateral_features(image, 20.0, 13.0)
    values = np.random.default_rng(3).random((len(features), 21)).astype(np.float32)
    unary = np.ascontiguousarray(-np.log(values.T / values.sum(axis=1) + 1e-3))
    found = []
    for name in _lattice.instruction_sets():
        chosen_instructions(name)
        lattice = _lattice.build(features)
        q = _lattice.mean_field(unary, [(lattice, None, None, 0.01)], 3)
        energy, gradient = _lattice.pair_energy(lattice, np.ascontiguousarray(values.T), values[:, 0].copy(), True)
        found.append((lattice.vertices, _lattice.apply(lattice, values, False), q, np.float32(energy), gradient))
    assert found[-1][0] > 100
    for other in found[:-1]:
        assert other[0] == found[-1][0]
        for a, b in zip(other[1:], found[-1][1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5)
    with pytest.raises(ValueError, match="no instruction set mmx"):
        _lattice.use("mmx")


def test_points_on_the_border_of_simplices_have_their_vertices(chosen_instructions: Any) -> None:
    """Colours that are multiples of sigma lie on borders: a fused multiply-add there drops vertices of weight 0."""
    rng = np.random.default_rng(4)
    image = (rng.integers(0, 19, (60, 60, 3)) * 13).astype(np.uint8)
    features = bilateral_features(image, 5.0, 13.0)
    counts = {"torch": lattice_torch.build(torch.from_numpy(features)).vertices}
    for name in _lattice.instruction_sets():
        chosen_instructions(name)
        counts[name] = _lattice.build(features).vertices
    assert len(set(counts.values())) == 1, counts


def test_elevation_is_rounded_as_in_the_authors_code() -> None:
    """float32(1 / sqrt((i + 1)(i + 2)) * float32(6 sqrt(2 / 3))), printed by C++; a last bit off moves vertices."""
    printed = ["0x1.bb67b0p+1", "0x1.0p+1", "0x1.6a09e8p+0", "0x1.186f18p+0", "0x1.c9f25ep-1"]
    expected = [float.fromhex(text) for text in printed]
    # The first coordinate is the sum of the scaled features: of a unit vector, its scale.
    assert lattice_torch._elevate(torch.eye(5))[:, 0].tolist() == expected


def test_many_vertices_outgrow_the_first_hash_table() -> None:
    """A line of points, each in an interval of its own: its two ends are two vertices."""
    features = (np.arange(30_000, dtype=np.float32) * 9)[:, None]
    lattice = _lattice.build(features)
    assert lattice.vertices == 60_000
    found = _lattice.apply(lattice, np.ones((len(features), 1), np.float32), False)
    few = GaussianFilter(features[:60], "lattice-torch").apply(np.ones((60, 1), np.float32))
    np.testing.assert_allclose(found[:60], few, rtol=1e-3)


def test_wide_spreads_take_longer_keys_and_wider_ones_are_refused() -> None:
    """64 bits hold a usual image's vertices; far apart points need 128, and mean the same kernel."""
    near = features_of(40, 5, spread=2.0)
    far = np.concatenate([near, near + 3000.0])
    both = GaussianFilter(far, "lattice-cpp")
    values = np.random.default_rng(5).random((80, 2)).astype(np.float32)
    alone = GaussianFilter(near, "lattice-cpp").apply(values[:40])
    np.testing.assert_allclose(both.apply(values)[:40], alone, rtol=1e-5)
    with pytest.raises(ValueError, match="spread too widely"):
        GaussianFilter(near * 1e7, "lattice-cpp")


def test_the_energy_in_one_call_is_the_equations() -> None:
    image = picture(30, 41)
    for labels in (1, 2, 5, 21, 40):
        kernel = GaussianFilter(bilateral_features(image, 20.0, 30.0), "lattice-cpp")
        probs = torch.rand(kernel.points, labels, generator=torch.Generator().manual_seed(labels)).softmax(1)
        soft = torch.rand(kernel.points, generator=torch.Generator().manual_seed(9))
        energy, gradient = energy_and_gradient(probs, soft, kernel, True)
        flat = np.ascontiguousarray(probs.T.numpy())
        found, slopes = _lattice.pair_energy(kernel.lattice, flat, soft.numpy(), True)
        assert gradient is not None and slopes is not None
        assert found == pytest.approx(float(energy), rel=1e-4, abs=1e-3)
        np.testing.assert_allclose(slopes, gradient.T.numpy(), rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
        alone, none = _lattice.pair_energy(kernel.lattice, flat, soft.numpy(), False)
        assert alone == found and none is None


def test_threads_give_the_same_bytes() -> None:
    features = [bilateral_features(picture(50, 40 + n, n), 30.0, 13.0) for n in range(6)]

    def work(one: Any) -> bytes:
        kernel = GaussianFilter(one, "lattice-cpp")
        return kernel.apply(np.ones((len(one), 3), np.float32)).tobytes()

    once = [work(one) for one in features]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(work, features)) == once


# --- tensors and gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", EVERY)
def test_the_gradient_is_the_transpose(backend: str) -> None:
    kernel = GaussianFilter(features_of(50, 3), backend)
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    filtered = kernel.apply(values)
    np.testing.assert_allclose(filtered.detach().numpy(), kernel.apply(values.detach().numpy()), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(filtered, values, out)
    np.testing.assert_allclose(gradient.numpy(), kernel.apply(out.numpy(), transpose=True), rtol=1e-4, atol=1e-5)
    transposed = kernel.apply(values, transpose=True)
    (gradient,) = torch.autograd.grad(transposed, values, out)
    np.testing.assert_allclose(gradient.numpy(), kernel.apply(out.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", EVERY)
def test_short_floats_go_in_and_come_out(backend: str) -> None:
    features = torch.from_numpy(features_of(20, 2)).bfloat16()
    kernel = GaussianFilter(features, backend)
    values = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    filtered = kernel.apply(values)
    (gradient,) = torch.autograd.grad(filtered, values, torch.ones_like(filtered))
    assert filtered.dtype == gradient.dtype == torch.bfloat16
    expected = GaussianFilter(features.float(), backend).apply(values.detach().float())
    torch.testing.assert_close(filtered.float(), expected, rtol=1e-2, atol=1e-2)


def test_exact_passes_gradcheck_in_double() -> None:
    kernel = GaussianFilter(features_of(12, 3).astype(np.float64), "exact")
    values = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kernel.apply, (values,))


# --- features -------------------------------------------------------------------------------------------------------


def test_features_are_row_by_row_in_units_of_sigma() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    expected = [[x / 2, y / 2, *(image[y, x] / 5)] for y in range(2) for x in range(3)]
    np.testing.assert_allclose(bilateral_features(image, 2.0, 5.0), expected, rtol=1e-6)
    np.testing.assert_allclose(position_features(2, 3, 2.0), np.array(expected)[:, :2], rtol=1e-6)


def test_the_position_filter_is_made_once_a_size() -> None:
    assert spatial_filter(17, 19, 3.0) is spatial_filter(17, 19, 3.0)
    assert spatial_filter(17, 19, 3.0) is not spatial_filter(19, 17, 3.0)


# --- which backend --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "points", "chosen"),
    [
        ("auto", "cpu", 10, "lattice-cpp"),
        ("lattice", "cpu", 10**6, "lattice-cpp"),
        ("auto", "cuda", EXACT_ON_GPU, "exact"),
        ("auto", "cuda:1", EXACT_ON_GPU + 1, "lattice-torch"),
        ("lattice", "cuda", 10, "lattice-torch"),
        ("exact", "cpu", 10, "exact"),
    ],
)
def test_device_and_size_choose(name: str, device: str, points: int, chosen: str) -> None:
    assert choose_backend(name, device, points) == chosen


def test_without_the_extension_the_error_says_how_to_build_it(monkeypatch: Any) -> None:
    monkeypatch.delattr(models.crf, "_lattice")
    monkeypatch.setitem(sys.modules, "models.crf._lattice", None)
    for backend in ("auto", "lattice", "lattice-cpp"):
        with pytest.raises(ImportError, match=r"apt-get install g\+\+ python3-dev.*make -B setup"):
            GaussianFilter(features_of(9, 2), backend)
    assert GaussianFilter(features_of(9, 2), "exact").backend == "exact"


def test_an_install_without_a_compiler_fails(tmp_path: Path) -> None:
    """Otherwise it succeeds, and the first CRF is where the compiler is missed."""
    places = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--force", *places],
        cwd=Path(models.crf.__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", "CC": "no-compiler-here", "CXX": "no-compiler-here"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "no-compiler-here" in done.stdout + done.stderr


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(backend: str, bad: float) -> None:
    features = features_of(20, 3)
    features[7, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        GaussianFilter(features, backend)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(5, np.float32), r"\(points, dimensions\)"),
        (np.zeros((0, 2), np.float32), r"at least one of each, not \(0, 2\)"),
        (np.zeros((5, 2), np.int64), "floating numbers, not int64"),
        (np.zeros((5, 8), np.float32), "8 dimensions; 1 to 7"),
    ],
)
def test_features_of_another_shape_are_refused(features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianFilter(features, "lattice-cpp")


@pytest.mark.parametrize("backend", EVERY)
def test_values_of_another_shape_are_refused(backend: str) -> None:
    kernel = GaussianFilter(features_of(6, 2), backend)
    for values in (np.zeros((5, 2), np.float32), np.zeros(6, np.float32)):
        with pytest.raises(ValueError, match=r"values must be \(6, channels\)"):
            kernel.apply(values)
    with pytest.raises(ValueError, match="not int32"):
        kernel.apply(np.zeros((6, 1), np.int32))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="would spread to every point"):
            kernel.apply(np.full((6, 2), bad, np.float32))


def test_unknown_and_impossible_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="'fastest' is none of auto, lattice"):
        GaussianFilter(features_of(5, 2), "fastest")
    with pytest.raises(ValueError, match="runs on the CPU, not on 'cuda'"):
        choose_backend("lattice-cpp", "cuda", 5)
