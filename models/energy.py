"""Dense energy loss (RRM, Zhang et al. 2020, eq. 10-14; after Tang et al. 2018): pixels alike should agree.

The kernel is a Gaussian filter, so all N^2 pairs cost one application of it, the true gradient one of its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.calibration import calibrated_weight, position_colour_features
from models.gaussian import GaussianFilter

# A pixel's probabilities add up to 1 within this; bfloat16 rounds each by 0.4 %.
_SUM_TOLERANCE = 0.02


def dense_energy_loss(
    probs_nkhw: Tensor,
    images_n3hw: Tensor,
    reliability_nhw: Tensor,
    inside_nhw: Tensor | None = None,
    *,
    sigma_xy: float = 100.0,
    sigma_rgb: float = 15.0,
    scale: float = 0.5,
    weight: float = 1e-7,
    backend: str = "auto",
    threads: int = 1,
) -> Tensor:
    """Weighted energy of eq. 13, summed over pixel pairs i != j, mean over the batch; a scalar.

    ``probs_nkhw`` ``(N, K, H, W)``: probabilities (after softmax), the only input with a gradient. ``images_n3hw``
    ``(N, 3, H, W)``: RGB 0..255 (uint8 or float, not normalised). ``reliability_nhw`` ``(N, H, W)``: 1 where the pixel
    has a reliable label (the paper's Phi), 0 elsewhere. ``inside_nhw`` ``(N, H, W)``: 0 on padding, which then takes no
    part at all; all is picture without it. All on one device.

    ``sigma_xy`` in pixels of H x W, ``sigma_rgb`` in grey values. The text prints 15 for position and 100 for colour;
    a colour sigma of 100 makes nearly all colours alike, and the authors' code has them the other way round, so that
    is the default. Everything is resized to ``scale`` first (probabilities and images bilinearly, the masks by nearest
    sampling), sigma_xy with it. ``weight`` is meant as on the authors' 160 x 160 grid with the lattice;
    :func:`models.calibration.calibrated_weight` carries it to other sizes and backends (an image with padding counts
    as much less as it has fewer pixels). ``threads``: images of the batch at a time.

    Computed in float32 under autocast too (float64 stays float64). ``ValueError`` on other shapes, dtypes, devices, NaN
    or infinity, values that are no probabilities, no RGB or no mask, and on options out of range.
    """
    inside_nhw = torch.ones_like(reliability_nhw) if inside_nhw is None else inside_nhw
    _check_options(sigma_xy, sigma_rgb, scale, weight, threads)
    _check_shapes(probs_nkhw, images_n3hw, reliability_nhw, inside_nhw, scale)
    _check_values(probs_nkhw.detach(), images_n3hw, reliability_nhw, inside_nhw)
    with torch.autocast(probs_nkhw.device.type, enabled=False):
        probs = _scaled(_at_least_float32(probs_nkhw), scale, "bilinear")
        images = _scaled(images_n3hw.detach().float(), scale, "bilinear")
        reliable = _scaled(reliability_nhw[:, None].float(), scale, "nearest-exact")[:, 0] > 0
        inside = _scaled(inside_nhw[:, None].float(), scale, "nearest-exact")[:, 0] > 0
        soft = soft_filter(probs, reliable)
        sigmas = (sigma_xy * scale, sigma_rgb)

        def measure(n: int) -> tuple[Tensor, Tensor]:
            return _weighted_image(probs[n].detach(), images[n], soft[n], inside[n], sigmas, weight, backend)

        energy: Tensor = _Energy.apply(probs, measure, threads)
        return energy / len(probs)


def gaussian_kernel(
    image_3hw: Tensor, sigma_xy: float, sigma_rgb: float, backend: str = "auto", inside_hw: Tensor | None = None
) -> GaussianFilter:
    """G of eq. 11 as a filter over the pixels of ``(3, h, w)`` RGB, row by row; over those ``inside`` alone if given.

    Without its 1/W: the authors' sum is unnormalised, and the weight of 1e-7 belongs to that sum.
    """
    features = position_colour_features(image_3hw, sigma_xy, sigma_rgb)
    if inside_hw is not None:
        features = features[inside_hw.flatten()]
    return GaussianFilter(features, backend, str(image_3hw.device))


def potts_energy(probs_pk: Tensor, filtered_pk: Tensor, row_sums_p: Tensor) -> Tensor:
    """``sum_j E(i, j)`` of eq. 12 (eq. 10 for probabilities that add up to 1) for every pixel i: ``(P,)``.

    ``sum_c P_c(i) sum_j G(i, j) (1 - P_c(j))`` from ``filtered = G P`` ``(P, K)`` and ``row_sums = G 1`` ``(P,)``,
    both with i = j left out.
    """
    return (probs_pk * (row_sums_p[:, None] - filtered_pk)).sum(dim=1)


def weighted_energy(soft_p: Tensor, potts_p: Tensor) -> Tensor:
    """Eq. 13: ``sum_i S(i) sum_{j != i} E(i, j)``; a scalar."""
    return (soft_p * potts_p).sum()


def soft_filter(probs_nkhw: Tensor, reliable_nhw: Tensor) -> Tensor:
    """S of eq. 14: ``1 - max_c P_c(i)`` where the label is reliable, 1 elsewhere; ``(N, h, w)``, without gradient.

    S says how much a pixel still has to learn; with a gradient, the loss would fall by making all pixels certain.
    """
    doubt = 1 - probs_nkhw.detach().amax(dim=1)
    return torch.where(reliable_nhw, doubt, torch.ones_like(doubt))


def energy_gradient(soft_p: Tensor, row_sums_p: Tensor, filtered_pk: Tensor, returned_pk: Tensor) -> Tensor:
    """Gradient of eq. 13 in P, S constant: ``S (G 1 - G P) - G^T (S P)``; ``(P, K)``.

    Both roles of a pixel, as i and as j: S makes the weight of a pair depend on its order, and the lattice's G is not
    symmetric itself. (The released code doubles one role and leaves ``S G 1`` out.) ``returned = G^T (S P)``, all
    with i = j left out.
    """
    return soft_p[:, None] * (row_sums_p[:, None] - filtered_pk) - returned_pk


def energy_and_gradient(probs_pk: Tensor, soft_p: Tensor, kernel: GaussianFilter) -> tuple[Tensor, Tensor]:
    """Eq. 13 of one image and its gradient in P: a scalar and ``(P, K)``.

    ``probs_pk`` ``(P, K)`` and ``soft_p`` ``(P,)`` over the filter's points. One application of the filter and one of
    its transpose; of a symmetric filter a single one.
    """
    # G 1 rides along as one more channel.
    values = torch.cat([probs_pk, torch.ones_like(probs_pk[:, :1])], dim=1)
    weighted = soft_p[:, None] * probs_pk
    if kernel.symmetric:
        both = kernel.apply(torch.cat([values, weighted], dim=1))
        filtered, returned = both[:, : values.shape[1]], both[:, values.shape[1] :]
    else:
        filtered, returned = kernel.apply(values), kernel.apply(weighted, transpose=True)
    own = torch.as_tensor(kernel.diagonal(), dtype=probs_pk.dtype, device=probs_pk.device)[:, None]
    filtered, returned = filtered - own * values, returned - own * weighted
    row_sums, filtered = filtered[:, -1], filtered[:, :-1]
    energy = weighted_energy(soft_p, potts_energy(probs_pk, filtered, row_sums))
    return energy, energy_gradient(soft_p, row_sums, filtered, returned)


class _Energy(torch.autograd.Function):
    """Sum of the images' energies. Forward keeps the finished gradient alone: one lattice a thread lives at a time."""

    @staticmethod
    def forward(ctx: Any, probs_nkhw: Tensor, measure: Callable[[int], tuple[Tensor, Tensor]], threads: int) -> Tensor:
        images = range(len(probs_nkhw))
        if threads > 1 and len(images) > 1:
            with ThreadPoolExecutor(min(threads, len(images))) as pool:
                measured = list(pool.map(measure, images))
        else:
            measured = [measure(n) for n in images]
        ctx.save_for_backward(torch.stack([gradient for _, gradient in measured]))
        return torch.stack([energy for energy, _ in measured]).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient_nkhw,) = ctx.saved_tensors
        return grad * gradient_nkhw, None, None


def _weighted_image(
    probs_khw: Tensor,
    image_3hw: Tensor,
    soft_hw: Tensor,
    inside_hw: Tensor,
    sigmas: tuple[float, float],
    weight: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """One image's energy and gradient ``(K, h, w)``, both times the calibrated weight; 0 on padding."""
    gradient = torch.zeros_like(probs_khw)
    where = inside_hw.flatten().nonzero()[:, 0]
    if not len(where):
        return probs_khw.new_zeros(()), gradient
    with torch.no_grad():  # threads of a pool do not inherit it
        kernel = gaussian_kernel(image_3hw, *sigmas, backend, inside_hw)
        probs_pk = probs_khw.flatten(1).T[where]
        energy, gradient_pk = energy_and_gradient(probs_pk, soft_hw.flatten()[where], kernel)
        factor = calibrated_weight(weight, kernel, (image_3hw.shape[1], image_3hw.shape[2]), sigmas)
        gradient.flatten(1)[:, where] = factor * gradient_pk.T
    return factor * energy, gradient


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _scaled(maps_nchw: Tensor, scale: float, mode: str) -> Tensor:
    """Maps at ``scale`` exactly, not at the rounded size's ratio: each cell of an odd crop then averages alike."""
    if scale == 1 or not len(maps_nchw):
        return maps_nchw
    corners = False if mode == "bilinear" else None
    return F.interpolate(maps_nchw, scale_factor=scale, mode=mode, align_corners=corners, recompute_scale_factor=False)


def _check_options(sigma_xy: float, sigma_rgb: float, scale: float, weight: float, threads: int) -> None:
    for name, value in (("sigma_xy", sigma_xy), ("sigma_rgb", sigma_rgb)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be above 0, not {value}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale must lie in (0, 1], not {scale}")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be 0 or more, not {weight}")
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")


def _check_shapes(probs: Tensor, images: Tensor, reliability: Tensor, inside: Tensor, scale: float) -> None:
    if probs.ndim != 4 or not probs.is_floating_point():
        raise ValueError(f"floating probabilities (N, K, H, W) expected, got {probs.dtype} {tuple(probs.shape)}")
    count, _, height, width = probs.shape
    wanted = {
        "images": (images, (count, 3, height, width)),
        "reliability": (reliability, (count, height, width)),
        "inside": (inside, (count, height, width)),
    }
    for name, (given, shape) in wanted.items():
        if tuple(given.shape) != shape:
            raise ValueError(
                f"{name} {shape} expected beside probabilities {tuple(probs.shape)}, got {tuple(given.shape)}"
            )
        if given.device != probs.device:
            raise ValueError(f"{name} on {given.device}, probabilities on {probs.device}: one device expected")
    if not count or min(height, width) * scale < 1:
        raise ValueError(f"nothing is left of probabilities {tuple(probs.shape)} at scale {scale}")
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ValueError(f"images uint8 or floating expected, got {images.dtype}")


def _check_values(probs: Tensor, images: Tensor, reliability: Tensor, inside: Tensor) -> None:
    """All questions in one transfer from the device."""
    probs, images = probs.float(), images.float()
    finite, colours, low, high, off, colour_low, colour_high, mask_low, mask_high = torch.stack(
        [
            probs.isfinite().all().float(),
            images.isfinite().all().float(),
            probs.amin(),
            probs.amax(),
            (probs.sum(dim=1) - 1).abs().amax(),
            images.amin(),
            images.amax(),
            torch.minimum(reliability.amin(), inside.amin()).float(),
            torch.maximum(reliability.amax(), inside.amax()).float(),
        ]
    ).tolist()
    if not finite:
        raise ValueError("probabilities hold NaN or infinity")
    if not colours:
        raise ValueError("images hold NaN or infinity")
    if low < -_SUM_TOLERANCE or high > 1 + _SUM_TOLERANCE or off > _SUM_TOLERANCE:
        raise ValueError(
            f"values from {low:.3g} to {high:.3g}, sums up to {off:.3g} off 1: no probabilities (softmax?)"
        )
    if colour_low < -1 or colour_high > 256:
        raise ValueError(f"images from {colour_low:.3g} to {colour_high:.3g}: RGB 0..255 expected, not normalised")
    if mask_low < 0 or mask_high > 1:
        raise ValueError(f"masks hold {mask_low:g} to {mask_high:g}: reliability and inside are 0 or 1 (labels != 255)")
