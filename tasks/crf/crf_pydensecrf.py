"""``backend="pydensecrf"``: the same CRF by Krähenbühl's own code, selectable, and the tests' oracle.

It holds the GIL for the whole call, so threads over images gain nothing with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.records import ImageRGB
from tasks.crf.params import CRFParams

NORMALISATIONS = {
    "none": "NO_NORMALIZATION",
    "before": "NORMALIZE_BEFORE",
    "after": "NORMALIZE_AFTER",
    "symmetric": "NORMALIZE_SYMMETRIC",
}
"""Our name -> pydensecrf's."""


def mean_field(
    image_rgb: ImageRGB,
    unary_khw: NDArray[np.float32],
    params: CRFParams,
    spatial: float | NDArray[np.float32],
    bilateral: float | NDArray[np.float32],
    iterations: int,
) -> NDArray[np.float32]:
    """Marginals (K, H, W) by pydensecrf. Raises ``ImportError`` naming the package where it is not installed."""
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise ImportError("backend='pydensecrf' needs the package pydensecrf2 (pip install pydensecrf2)") from error
    k, height, width = unary_khw.shape
    how: Any = getattr(densecrf, NORMALISATIONS[params.normalisation])
    crf = densecrf.DenseCRF2D(width, height, k)
    # It needs writable buffers.
    crf.setUnaryEnergy(unary_khw.reshape(k, -1).copy())
    if np.any(spatial):
        crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=spatial, normalization=how)
    if np.any(bilateral):
        crf.addPairwiseBilateral(
            sxy=params.bilateral_sxy,
            srgb=params.bilateral_srgb,
            rgbim=np.array(image_rgb, order="C"),
            compat=bilateral,
            normalization=how,
        )
    return np.array(crf.inference(iterations), dtype=np.float32).reshape(unary_khw.shape)
