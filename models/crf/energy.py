"""Dense energy loss (RRM, Zhang et al. 2020, eq. 10-14; after Tang et al. 2018): pixels alike should agree.

The kernel is a Gaussian filter, so all N^2 pairs cost one application of it, the true gradient one of its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.crf.calibration import calibrated_weight, position_colour_features
from models.crf.gaussian import GaussianFilter

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
    is the default. Everything is resized to ``scale`` first (probabilities and images bilinearly, reliability by
    nearest sampling; a cell with padding in it is padding), sigma_xy with it. ``weight`` is meant as on the authors'
    160 x 160 grid with the lattice; :func:`models.crf.calibration.calibrated_weight` carries it to other sizes and
    backends (an image with padding counts as much less as it has fewer pixels). ``threads``: images of the batch at a
    time.

    Computed in float32 under autocast too (float64 stays float64). ``ValueError`` on other shapes, dtypes, devices, NaN
    or infinity, values that are no probabilities, no RGB or no mask, and on options out of range.
    """
    _check_options(sigma_xy, sigma_rgb, scale, weight, threads)
    _check_shapes(probs_nkhw, images_n3hw, reliability_nhw, inside_nhw, scale)
    with torch.autocast(probs_nkhw.device.type, enabled=False):
        probs = _scaled(_at_least_float32(probs_nkhw), scale, "bilinear")
        images = _scaled(images_n3hw.detach().float(), scale, "bilinear")
        reliable = _scaled(reliability_nhw[:, None].float(), scale, "nearest-exact")[:, 0]
        # Bilinearly: a cell is inside only where nothing of it is padding.
        inside = None if inside_nhw is None else _scaled(inside_nhw[:, None].float(), scale, "bilinear")[:, 0]
        _check_values(probs.detach(), images, reliable, inside)
        batch = _Batch(probs.detach(), images, soft_filter(probs, reliable > 0), inside)

        def measure(n: int, gradient_khw: Tensor | None) -> Tensor:
            return batch.measure(n, gradient_khw, (sigma_xy * scale, sigma_rgb), weight, backend)

        energy: Tensor = _Energy.apply(probs, measure, threads)
        return energy / len(probs)


def gaussian_kernel(
    image_3hw: Tensor, sigma_xy: float, sigma_rgb: float, backend: str = "auto", points_p: Tensor | None = None
) -> GaussianFilter:
    """G of eq. 11 as a filter over the pixels of ``(3, h, w)`` RGB, row by row; over ``points_p`` alone if given.

    Without its 1/W: the authors' sum is unnormalised, and the weight of 1e-7 belongs to that sum.
    """
    features = position_colour_features(image_3hw, sigma_xy, sigma_rgb)
    return GaussianFilter(features if points_p is None else features[points_p], backend, str(image_3hw.device))


def potts_energy(probs_pk: Tensor, against_pk: Tensor) -> Tensor:
    """``sum_j E(i, j)`` of eq. 12 (eq. 10 for probabilities that add up to 1) for every pixel i: ``(P,)``.

    ``sum_c P_c(i) sum_j G(i, j) (1 - P_c(j))`` from ``against = G (1 - P)`` ``(P, K)``, i = j left out.
    """
    return (probs_pk * against_pk).sum(dim=1)


def weighted_energy(soft_p: Tensor, potts_p: Tensor) -> Tensor:
    """Eq. 13: ``sum_i S(i) sum_{j != i} E(i, j)``; a scalar."""
    return (soft_p * potts_p).sum()


def soft_filter(probs_nkhw: Tensor, reliable_nhw: Tensor) -> Tensor:
    """S of eq. 14: ``1 - max_c P_c(i)`` where the label is reliable, 1 elsewhere; ``(N, h, w)``, without gradient.

    S is large where a pixel is still uncertain; with a gradient, the loss would fall by making all pixels certain.
    """
    doubt = 1 - probs_nkhw.detach().amax(dim=1)
    return torch.where(reliable_nhw, doubt, torch.ones_like(doubt))


def energy_gradient(soft_p: Tensor, against_pk: Tensor, returned_pk: Tensor) -> Tensor:
    """Gradient of eq. 13 in P, S constant: ``S G (1 - P) - G^T (S P)``; ``(P, K)``.

    Both roles of a pixel, as i and as j: S makes the weight of a pair depend on its order, and the lattice's G is not
    symmetric itself. (The released code doubles one role and leaves ``S G 1`` out.) ``against = G (1 - P)`` and
    ``returned = G^T (S P)``, both ``(P, K)`` with i = j left out.
    """
    return soft_p[:, None] * against_pk - returned_pk


def energy_and_gradient(
    probs_pk: Tensor, soft_p: Tensor, kernel: GaussianFilter, with_gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Eq. 13 of one image and its gradient in P: a scalar and ``(P, K)``, None without ``with_gradient``.

    ``probs_pk`` ``(P, K)`` and ``soft_p`` ``(P,)`` over the filter's points. One application of the filter and one of
    its transpose; of a symmetric filter a single one.
    """
    others = 1 - probs_pk
    weighted = soft_p[:, None] * probs_pk
    returned: Tensor | None = None
    if kernel.symmetric and with_gradient:
        against, returned = kernel.apply(torch.cat([others, weighted], dim=1)).tensor_split(2, dim=1)
    else:
        against = kernel.apply(others)
        returned = kernel.apply(weighted, transpose=True) if with_gradient else None
    own = torch.as_tensor(kernel.diagonal(), dtype=probs_pk.dtype, device=probs_pk.device)[:, None]
    against = torch.addcmul(against, own, others, value=-1)
    energy = weighted_energy(soft_p, potts_energy(probs_pk, against))
    if returned is None:
        return energy, None
    return energy, energy_gradient(soft_p, against, torch.addcmul(returned, own, weighted, value=-1))


@dataclass(frozen=True)
class _Batch:
    """What the images' energies are measured from, on the loss' own grid."""

    probs_nkhw: Tensor
    images_n3hw: Tensor
    soft_nhw: Tensor
    inside_nhw: Tensor | None

    def measure(
        self, n: int, gradient_khw: Tensor | None, sigmas: tuple[float, float], weight: float, backend: str
    ) -> Tensor:
        """Image n's energy times its calibrated weight; so much of the gradient fills ``gradient_khw``."""
        image, probs_kp, soft_p = self.images_n3hw[n], self.probs_nkhw[n].flatten(1), self.soft_nhw[n].flatten()
        points_p = None if self.inside_nhw is None else (self.inside_nhw[n].flatten() > 1 - 1e-4).nonzero()[:, 0]
        if points_p is not None:
            probs_kp, soft_p = probs_kp[:, points_p], soft_p[points_p]
            if gradient_khw is not None:
                gradient_khw.zero_()
        if not len(soft_p):
            return soft_p.sum()
        with torch.no_grad():  # threads of a pool do not inherit it
            kernel = gaussian_kernel(image, *sigmas, backend, points_p)
            factor = calibrated_weight(weight, kernel, (image.shape[1], image.shape[2]), sigmas)
            # The energy and its gradient are linear in S.
            energy, gradient_kp = _measured(probs_kp, factor * soft_p, kernel, gradient_khw is not None)
            if gradient_khw is not None and gradient_kp is not None:
                where = slice(None) if points_p is None else points_p
                gradient_khw.view(len(probs_kp), -1)[:, where] = gradient_kp
        return energy


def _measured(
    probs_kp: Tensor, soft_p: Tensor, kernel: GaussianFilter, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """:func:`energy_and_gradient` of class-by-class probabilities; the compiled lattice does it in one call."""
    if kernel.backend == "lattice-cpp" and probs_kp.dtype == torch.float32:
        from models.crf import _lattice

        probs, soft = probs_kp.contiguous().numpy(), soft_p.contiguous().numpy()
        energy, gradient = _lattice.pair_energy(kernel.lattice, probs, soft, with_gradient)
        return soft_p.new_tensor(energy), None if gradient is None else torch.from_numpy(gradient)
    found, gradient_pk = energy_and_gradient(probs_kp.T.contiguous(), soft_p, kernel, with_gradient)
    return found, None if gradient_pk is None else gradient_pk.T


class _Energy(torch.autograd.Function):
    """Sum of the images' energies. Forward keeps the finished gradient alone: one lattice a thread lives at a time."""

    @staticmethod
    def forward(ctx: Any, probs_nkhw: Tensor, measure: Callable[[int, Tensor | None], Tensor], threads: int) -> Tensor:
        images = range(len(probs_nkhw))
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty(probs_nkhw.shape if wanted else 0, dtype=probs_nkhw.dtype, device=probs_nkhw.device)
        parts = list(gradient) if wanted else [None for _ in images]
        if threads > 1 and len(images) > 1:
            with ThreadPoolExecutor(min(threads, len(images))) as pool:
                energies = list(pool.map(measure, images, parts))
        else:
            energies = list(map(measure, images, parts))
        ctx.save_for_backward(gradient)
        return torch.stack(energies).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient_nkhw,) = ctx.saved_tensors
        return grad * gradient_nkhw, None, None


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


def _check_shapes(probs: Tensor, images: Tensor, reliability: Tensor, inside: Tensor | None, scale: float) -> None:
    if probs.ndim != 4 or not probs.is_floating_point():
        raise ValueError(f"floating probabilities (N, K, H, W) expected, got {probs.dtype} {tuple(probs.shape)}")
    count, _, height, width = probs.shape
    wanted = {
        "images": (images, (count, 3, height, width)),
        "reliability": (reliability, (count, height, width)),
        "inside": (reliability if inside is None else inside, (count, height, width)),
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


def _check_values(probs: Tensor, images: Tensor, reliable: Tensor, inside: Tensor | None) -> None:
    """All checks in one transfer from the device; NaN and infinity travel through least, greatest and sums."""
    masks = [reliable] if inside is None else [reliable, inside]
    answers = [probs.amin(), (probs.sum(dim=1) - 1).abs().amax(), *torch.aminmax(images)]
    answers += [extreme for mask in masks for extreme in torch.aminmax(mask)]
    low, off, colour_low, colour_high, *marks = torch.stack([answer.double() for answer in answers]).tolist()
    if not math.isfinite(low + off):
        raise ValueError("probabilities hold NaN or infinity")
    if not math.isfinite(colour_low + colour_high):
        raise ValueError("images hold NaN or infinity")
    if low < -_SUM_TOLERANCE or off > _SUM_TOLERANCE:
        raise ValueError(f"values down to {low:.3g}, sums up to {off:.3g} off 1: no probabilities (softmax?)")
    if colour_low < -1 or colour_high > 256:
        raise ValueError(f"images from {colour_low:.3g} to {colour_high:.3g}: RGB 0..255 expected, not normalised")
    if min(marks) < 0 or max(marks) > 1:
        raise ValueError(f"masks hold {min(marks):g} to {max(marks):g}: 0 and 1 expected (reliable: labels != 255)")
