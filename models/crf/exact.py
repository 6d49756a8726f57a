"""The Gaussian filter without approximation: tensors on any device, and brute force for tests.

Exact filtering is attention. With ``q = [f, -|f|^2/2, 1]`` and ``k = [f, 1, -|f|^2/2]`` the product ``q k^T`` is
``-|f_i - f_j|^2 / 2``, so that ``exp(q k^T) v`` is attention without the softmax's division (which is the CRF's
normalisation). Its cost grows with N^2: for small images, for a GPU, and to judge the lattice by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Of K at a time: on a CPU what stays in its cache between the passes (x1.2 against 64 MiB), on a GPU what fills it.
CPU_CHUNK_BYTES = 4 << 20
GPU_CHUNK_BYTES = 64 << 20
# exp of less than this is taken as exp of this, some 1e-35 in float32: nothing beside K_ii = 1, but no denormal number,
# which costs a CPU x2.4.
_LOWEST = {torch.float32: -80.0, torch.float64: -700.0}


def exact_apply(features_nd: Tensor, values_nk: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """``K v`` with ``K_ij = exp(-|f_i - f_j|^2 / 2)``: the convolution in Krähenbühl & Koltun 2011, eq. 5 (i = j in).

    ``features_nd`` ``(N, D)`` and ``values_nk`` ``(N, K)`` floating, on one device; result ``(N, K)`` in the values'
    dtype. Computed in the wider of both dtypes, float32 at least, also under autocast and where TF32 is allowed (its
    10 bits are an error of whole units in the exponent). Differentiable once, in the values alone: K is symmetric, so
    the gradient is the same filter again and nothing of size N x N is stored. At most ``chunk_bytes`` of K exist at a
    time, one row at least (4 MiB on a CPU, 64 MiB on a GPU). ``ValueError`` on other shapes, devices, dtypes, or
    features that are not finite.
    """
    _check(features_nd, values_nk)
    filtered: Tensor = _Exact.apply(features_nd, values_nk, chunk_bytes)
    return filtered


def exact_row_sums(features_nd: Tensor, rows_m: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """``sum_j K_ij``, i = j included, of the rows ``rows_m`` ``(M,)`` int64 alone: ``(M,)`` in float32 or float64."""
    dtype = torch.promote_types(features_nd.dtype, torch.float32)
    ones = torch.ones(len(features_nd), 1, dtype=dtype, device=features_nd.device)
    _check(features_nd, ones)
    return _rows(features_nd.detach(), ones, chunk_bytes, rows_m)[:, 0]


class _Exact(torch.autograd.Function):
    """``K v`` with the gradient ``K^T g = K g``; keeps the features only."""

    @staticmethod
    def forward(ctx: Any, features_nd: Tensor, values_nk: Tensor, chunk_bytes: int | None) -> Tensor:
        ctx.save_for_backward(features_nd)
        ctx.chunk_bytes = chunk_bytes
        return _rows(features_nd, values_nk, chunk_bytes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nk: Tensor) -> tuple[None, Tensor, None]:
        (features_nd,) = ctx.saved_tensors
        return None, _rows(features_nd, grad_nk, ctx.chunk_bytes), None


def _rows(features_nd: Tensor, values_nk: Tensor, chunk_bytes: int | None, rows_m: Tensor | None = None) -> Tensor:
    """Rows of ``K v``, as many at a time as fit into ``chunk_bytes``; all of them without ``rows_m``."""
    dtype = torch.promote_types(torch.promote_types(features_nd.dtype, values_nk.dtype), torch.float32)
    features, values = features_nd.to(dtype), values_nk.to(dtype)
    chunk_bytes = chunk_bytes or (CPU_CHUNK_BYTES if values.device.type == "cpu" else GPU_CHUNK_BYTES)
    with torch.autocast(values.device.type, enabled=False), _ieee_products(values.device):
        queries, keys = _queries_keys(features)
        queries = queries if rows_m is None else queries[rows_m]
        out = values.new_empty(len(queries), values.shape[1])
        step = max(1, chunk_bytes // max(1, len(keys) * values.element_size()))
        room = values.new_empty(min(step, len(queries)), len(keys))
        for start in range(0, len(queries), step):
            chunk = queries[start : start + step]
            exponents = torch.mm(chunk, keys.T, out=room[: len(chunk)])
            # Rounding can leave a few 1e-5 above 0 where i = j; a Gaussian never exceeds 1.
            kernel = exponents.clamp_(_LOWEST[dtype], 0).exp_()
            torch.mm(kernel, values, out=out[start : start + step])
    return out.to(values_nk.dtype)


def _queries_keys(features_nd: Tensor) -> tuple[Tensor, Tensor]:
    """``q = [f, -|f|^2/2, 1]`` and ``k = [f, 1, -|f|^2/2]`` ``(N, D+2)``: ``q_i . k_j = -|f_i - f_j|^2 / 2``."""
    # Centred, the squares are as small as they can be: they cancel, and their rounding is the kernel's relative error.
    centred = features_nd - features_nd.mean(dim=0)
    half = centred.square().sum(dim=1, keepdim=True) * -0.5
    one = torch.ones_like(half)
    return torch.cat([centred, half, one], dim=1), torch.cat([centred, one, half], dim=1)


@contextmanager
def _ieee_products(device: torch.device) -> Iterator[None]:
    """Full float32 products on a GPU whatever the training loop allows elsewhere; the setting is put back."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _check(features_nd: Tensor, values_nk: Tensor) -> None:
    if features_nd.ndim != 2 or values_nk.ndim != 2 or len(features_nd) != len(values_nk):
        shapes = f"{tuple(features_nd.shape)} and {tuple(values_nk.shape)}"
        raise ValueError(f"features (N, D) and values (N, K) of the same N expected, got {shapes}")
    if not (features_nd.is_floating_point() and values_nk.is_floating_point()):
        raise ValueError(f"floating features and values expected, got {features_nd.dtype} and {values_nk.dtype}")
    if features_nd.device != values_nk.device:
        raise ValueError(f"features on {features_nd.device}, values on {values_nk.device}: one device expected")
    if not bool(features_nd.isfinite().all()):
        raise ValueError("features hold NaN or infinity")


def brute_kernel(features_nd: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """``K_ij = exp(-|f_i - f_j|^2 / 2)`` written out: ``(N, N)`` float64 of ``(N, D)`` features.

    For tests: N^2 D memory. ``ValueError`` on another shape or features that are not finite.
    """
    features = np.asarray(features_nd, dtype=np.float64)
    if features.ndim != 2:
        raise ValueError(f"features (N, D) expected, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    differences = features[:, None, :] - features[None, :, :]
    kernel: NDArray[np.float64] = np.exp(-0.5 * np.square(differences).sum(axis=2))
    return kernel


def brute_apply(features_nd: NDArray[np.floating[Any]], values_nk: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """``K v`` by the whole matrix, float64: ``(N, K)`` of ``(N, D)`` features and ``(N, K)`` values.

    ``ValueError`` on other shapes or features that are not finite.
    """
    values = np.asarray(values_nk, dtype=np.float64)
    kernel = brute_kernel(features_nd)
    if values.ndim != 2 or len(values) != len(kernel):
        raise ValueError(f"values ({len(kernel)}, K) expected, got {values.shape}")
    filtered: NDArray[np.float64] = kernel @ values
    return filtered
