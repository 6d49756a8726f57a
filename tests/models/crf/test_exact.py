"""The exact filter against the matrix written out, and what it promises of dtypes, memory and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from models.crf.exact import brute_apply, brute_kernel, exact_apply, exact_row_sums


def _points(count: int, dimensions: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# What it computes


def test_brute_kernel_by_hand() -> None:
    kernel = brute_kernel(np.array([[0.0, 0.0], [1.0, 2.0], [0.0, 3.0]]))
    wanted = [
        [1, math.exp(-2.5), math.exp(-4.5)],
        [math.exp(-2.5), 1, math.exp(-1)],
        [math.exp(-4.5), math.exp(-1), 1],
    ]
    np.testing.assert_allclose(kernel, wanted, rtol=1e-14)


def test_brute_apply_is_a_double_loop() -> None:
    features, values = _points(7, 3).numpy(), _points(7, 2, 1).numpy()
    wanted = np.zeros((7, 2))
    for i in range(7):
        for j in range(7):
            squares = sum((features[i, d] - features[j, d]) ** 2 for d in range(3))
            wanted[i] += math.exp(-squares / 2) * values[j]
    np.testing.assert_allclose(brute_apply(features, values), wanted, rtol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_exact_is_brute(dtype: torch.dtype, tolerance: float) -> None:
    features, values = _points(200, 5, dtype=dtype), _points(200, 4, 1, dtype)
    wanted = brute_apply(features.numpy(), values.numpy())
    found = exact_apply(features, values)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_features_far_from_zero_are_centred() -> None:
    # Uncentred, |f|^2 would be 1e8 and its float32 rounding 8: no kernel at all.
    features, values = _points(50, 2), _points(50, 1, 1).abs()
    moved = exact_apply((features + 1e4).float(), values.float())
    np.testing.assert_allclose(moved.numpy(), brute_apply((features + 1e4).float().numpy(), values.numpy()), rtol=1e-4)


def test_rows_alone_are_the_rows() -> None:
    features = _points(40, 3)
    rows = torch.tensor([39, 0, 7])
    sums = exact_row_sums(features, rows, chunk_bytes=1)
    assert exact_row_sums(features.half(), rows).dtype == torch.float32
    np.testing.assert_allclose(sums.numpy(), brute_kernel(features.numpy()).sum(axis=1)[rows.numpy()], rtol=1e-12)


# In pieces, in other dtypes


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 37 * 5, 8 * 37 * 37])
def test_chunks_change_nothing(chunk_bytes: int) -> None:
    features, values = _points(37, 5), _points(37, 3, 1)
    wanted = exact_apply(features, values, chunk_bytes=1 << 30)
    torch.testing.assert_close(exact_apply(features, values, chunk_bytes), wanted, rtol=1e-13, atol=1e-13)


def test_half_precision_is_computed_in_float32_also_under_autocast() -> None:
    features, values = _points(64, 5, dtype=torch.float32), _points(64, 3, 1, torch.float32)
    wanted = exact_apply(features, values)
    assert torch.equal(
        exact_apply(features, values.bfloat16()), exact_apply(features, values.bfloat16().float()).bfloat16()
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = exact_apply(features, values)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


# Gradients


def test_gradcheck() -> None:
    features, values = _points(9, 3), _points(9, 2, 1).requires_grad_()
    assert gradcheck(lambda v: exact_apply(features, v, chunk_bytes=8 * 9 * 2), (values,))


def test_nothing_of_size_n_squared_is_kept_for_the_gradient() -> None:
    kept: list[int] = []
    features, values = _points(300, 2, dtype=torch.float32), torch.ones(300, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        exact_apply(features, values).sum().backward()
    assert kept and max(kept) <= features.numel()


# Properties


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 40), dimensions=st.integers(1, 7), a=st.floats(-3, 3))
def test_linear_and_symmetric(seed: int, count: int, dimensions: int, a: float) -> None:
    features, both = _points(count, dimensions, seed), _points(count, 2, seed + 1)
    u, v = both[:, :1], both[:, 1:]
    ku, kv = exact_apply(features, u), exact_apply(features, v)
    torch.testing.assert_close(exact_apply(features, u + a * v), ku + a * kv, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((u * kv).sum(), (ku * v).sum(), rtol=1e-10, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 7), width=st.integers(1, 7))
def test_mirrored_picture_gives_the_mirrored_result(seed: int, height: int, width: int) -> None:
    colours = _points(height * width, 3, seed).view(height, width, 3)
    values = _points(height * width, 1, seed + 1).view(height, width, 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

    def filtered(colours: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        features = torch.cat([torch.stack([x, y], 2) / 3, colours], dim=2).float().view(-1, 5)
        return exact_apply(features, values.float().reshape(-1, 1)).view(height, width)

    mirrored = filtered(colours.flip(1), values.flip(1)).flip(1)
    torch.testing.assert_close(mirrored, filtered(colours, values), rtol=1e-5, atol=1e-5)


# What it refuses


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite(bad: float) -> None:
    features = _points(5, 2)
    features[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        exact_apply(features, _points(5, 1))
    with pytest.raises(ValueError, match="NaN or infinity"):
        brute_apply(features.numpy(), np.ones((5, 1)))


def test_wrong_shapes_and_dtypes() -> None:
    with pytest.raises(ValueError, match=r"same N expected, got \(5, 2\) and \(4, 1\)"):
        exact_apply(_points(5, 2), _points(4, 1))
    with pytest.raises(ValueError, match="same N expected"):
        exact_apply(_points(5, 2), torch.ones(5))
    with pytest.raises(ValueError, match="floating"):
        exact_apply(_points(5, 2), torch.ones(5, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="one device"):
        exact_apply(_points(5, 2), torch.ones(5, 1, device="meta"))
    with pytest.raises(ValueError, match=r"values \(5, K\) expected, got \(4, 1\)"):
        brute_apply(np.ones((5, 2)), np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"features \(N, D\) expected"):
        brute_kernel(np.ones(5))
