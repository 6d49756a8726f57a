"""What gives an energy weight the same meaning everywhere: the mean row sum of a kernel on one fixed picture.

A loss over pixel pairs grows with the pixels and with the kernel's sum. Both differ between settings: the lattice's
kernel is about 0.58 of the exact one, a 41 x 41 grid has a fifteenth of the pixels of 160 x 160. The sum is measured on
demand and kept for the process. A table would hold one column for each backend and one row for each crop size and each
pair of sigmas, all of them free parameters, and would be wrong from the day on which a backend changes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.crf.exact import exact_row_sums
from models.crf.gaussian import GaussianFilter

REFERENCE_PIXELS = 160 * 160
# The lattice's mean row sum (i = j left out) on the picture at 160 x 160 with position 50 and colour 15: RRM's kernel
# on its half-resolution grid, where the paper's weight of 1e-7 was chosen.
REFERENCE_ROW_SUM = 764.238

_REGIONS = 8
_WAVES = 48
_SAMPLED_ROWS = 1024


def calibrated_weight(
    weight: float, kernel: GaussianFilter, size_hw: tuple[int, int], sigmas: tuple[float, float]
) -> float:
    """``weight * (25600 r_ref) / (N r)`` for a kernel's backend on a grid of N = h w pixels and ``sigmas`` (xy, rgb).

    r is :func:`mean_row_sum`. The energy's gradient then stands to a cross entropy averaged over pixels as it does in
    the reference, whatever the backend, the crop and the sigmas.
    """
    reference = REFERENCE_PIXELS * REFERENCE_ROW_SUM
    own = size_hw[0] * size_hw[1] * mean_row_sum(kernel.backend, str(kernel.device), size_hw, sigmas)
    return weight * reference / own if own > 0 else weight


@lru_cache(maxsize=256)
def mean_row_sum(backend: str, device: str, size_hw: tuple[int, int], sigmas: tuple[float, float]) -> float:
    """Mean over i of ``sum_{j != i} K_ij`` on :func:`calibration_picture`; 0 where there is one pixel only.

    Exact kernels from an evenly spaced sample of 1,024 rows: the whole is N^2 work, and the mean needs no more.
    """
    image = torch.from_numpy(calibration_picture(*size_hw)).permute(2, 0, 1).to(device)
    features = position_colour_features(image, *sigmas)
    if backend in ("exact", "brute"):
        rows = torch.linspace(0, len(features) - 1, min(len(features), _SAMPLED_ROWS), device=device).long()
        return float(exact_row_sums(features, rows).mean()) - 1
    kernel = GaussianFilter(features, backend, device)
    return max(0.0, float((kernel.row_sums - kernel.diagonal()).mean(dtype=np.float64)))


def position_colour_features(image_3hw: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """``(h w, 5)`` float32 on the image's device, row by row: x and y over ``sigma_xy``, r, g, b over ``sigma_rgb``."""
    _, height, width = image_3hw.shape
    features = torch.empty(height, width, 5, device=image_3hw.device)
    features[:, :, 0] = torch.arange(width, device=features.device) / sigma_xy
    features[:, :, 1] = torch.arange(height, device=features.device)[:, None] / sigma_xy
    torch.div(image_3hw.detach().float().permute(1, 2, 0), sigma_rgb, out=features[:, :, 2:])
    return features.view(-1, 5)


def calibration_picture(height: int, width: int) -> NDArray[np.float32]:
    """``(height, width, 3)`` float32 RGB 0..255: the same picture at any size, with a photograph's statistics.

    Soft-edged regions of different colours, shading and roughness, covered by waves of all lengths. Chosen for its
    numbers: with position 50 and colour 15 the lattice's rows sum up to 4.0, 3.7 and 3.0 % of N at 48, 80 and 160
    pixels (medians of 21 photographs scaled down: 5.0, 4.7 and 2.9 %), lattice to exact is .52, .55 and .58 (the same),
    vertices are 840, 1,280 and 2,590 (750, 1,210 and 2,850).
    """
    rng = np.random.RandomState(3)  # frozen by numpy's promise; Generator streams may change
    centres = rng.uniform(0, 1, (_REGIONS, 2))
    colours = rng.uniform(20, 235, (_REGIONS, 1)) + rng.normal(0, 25, (_REGIONS, 3))
    shading = rng.normal(0, 25, (_REGIONS, 2, 3))
    roughness = rng.uniform(0.2, 1.8, _REGIONS)
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    places_hw2 = np.stack([u, v], axis=2)
    shares_hwr = _soft_regions(places_hw2, centres)
    picture = np.zeros((height, width, 3))
    for region in range(_REGIONS):
        shaded = colours[region] + (places_hw2 - centres[region]) @ shading[region]
        picture += shares_hwr[:, :, region, None] * shaded
    picture += (shares_hwr @ roughness)[:, :, None] * _waves(places_hw2, rng)
    return np.clip(picture, 0, 255).astype(np.float32)


def _soft_regions(places_hw2: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the regions ``(h, w, R)``: the nearest centre, with borders a fiftieth of the side wide."""
    distances = np.linalg.norm(places_hw2[:, :, None] - centres, axis=3)
    shares: NDArray[np.float64] = np.exp((distances.min(axis=2, keepdims=True) - distances) / 0.02)
    shares /= shares.sum(axis=2, keepdims=True)
    return shares


def _waves(places_hw2: NDArray[np.float64], rng: np.random.RandomState) -> NDArray[np.float64]:
    """Grey waves of standard deviation 10 and waves of 6 in each channel, 1 to 80 to the side: ``(h, w, 3)``.

    Equal power per octave, as in photographs. Waves that the grid cannot hold are left out, as in a photograph scaled
    down: small grids are smoother, and their rows sum up to more.
    """
    frequencies = 80 ** rng.uniform(0, 1, _WAVES)
    angles = rng.uniform(0, 2 * np.pi, _WAVES)
    phases = rng.uniform(0, 2 * np.pi, (_WAVES, 4))
    held = frequencies < min(places_hw2.shape[:2]) / 2
    directions = (np.stack([np.cos(angles), np.sin(angles)]) * frequencies)[:, held]
    along, phases = 2 * np.pi * (places_hw2 @ directions), phases[held]
    amplitude = np.sqrt(2 / _WAVES)
    grey = np.cos(along + phases[:, 0]).sum(axis=2) * (10 * amplitude)
    colour = np.stack([np.cos(along + phases[:, 1 + c]).sum(axis=2) for c in range(3)], axis=2) * (6 * amplitude)
    waves: NDArray[np.float64] = grey[:, :, None] + colour
    return waves
