"""Edge maps against boundaries that people drew, as the benchmark of BSDS500 scores them. No torch.

Martin, Fowlkes, Malik, "Learning to detect natural image boundaries", IEEE TPAMI 26(5), 2004; Arbelaez et al., "Contour
detection and hierarchical image segmentation", IEEE TPAMI 33(5), 2011. Found pixels are matched one to one with each
annotator's within .0075 of the picture's diagonal. Recall is summed over annotators; a found pixel that any of them
drew is right. The benchmark's matching also seeks the shortest distances in all; ours tries near pixels first, and has
as many pairs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import thin as skeleton

from artifacts.records import DataError
from tasks.evaluate.matching import match

RADIUS = 0.0075
"""Of the diagonal: as far apart may a found pixel and a drawn one be."""
THRESHOLDS, QUICK = 99, 33

Counts = NDArray[np.int64]
"""(thresholds, 4): found pixels that somebody drew, found ones, drawn ones that were found (summed over annotators),
drawn ones."""


def thresholds(count: int = THRESHOLDS) -> NDArray[np.float64]:
    """``count`` thresholds, evenly within 0..1, without both ends."""
    return np.arange(1, count + 1) / (count + 1)


def boundary_counts(crests_hw: NDArray[Any], drawn_ahw: NDArray[np.bool_], at: NDArray[np.float64]) -> Counts:
    """What the score of one picture is made of.

    Args:
        crests_hw: (H, W) in 0..1, 0 between crests (:func:`tasks.edges.thin.thin`). Lines that are still two pixels
            wide are thinned here.
        drawn_ahw: (annotators, H, W).
        at: thresholds, ascending; a pixel is found if it is at least as high.

    Raises :class:`DataError` where sizes differ.
    """
    if crests_hw.shape != drawn_ahw.shape[1:]:
        raise DataError(f"the map is {crests_hw.shape} (height, width), its boundaries {drawn_ahw.shape[1:]}")
    level_hw = np.searchsorted(at, crests_hw, side="right")
    pixels = np.argwhere(level_hw)
    pixels = pixels[np.argsort(-level_hw[tuple(pixels.T)], kind="stable")]
    near, pixel = _pairs(pixels, drawn_ahw)
    drawn = int(drawn_ahw.sum())
    counts = np.zeros((len(at), 4), np.int64)
    for place in range(len(at)):
        # Lines of one pixel at each threshold anew, as the benchmark's bwmorph: what is left does not depend on others.
        found = skeleton(level_hw > place)[tuple(pixels.T)]  # type: ignore[no-untyped-call]
        rows = np.flatnonzero(found[pixel])
        matched = rows[match(near[rows], drawn)]
        counts[place] = len(np.unique(pixel[matched])), found.sum(), len(matched), drawn
    return counts


def _pairs(pixels: NDArray[np.int64], drawn_ahw: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """For each found pixel and annotator who drew something near: (rows, columns) numbers of the drawn pixels, nearest
    first, -1 for none, and (rows,) the pixel's number. Rows are in the order of the pixels.
    """
    annotators, height, width = drawn_ahw.shape
    radius = RADIUS * float(np.hypot(height, width))
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    offsets = np.stack([y, x], -1)[np.hypot(y, x) <= radius]
    offsets = offsets[np.argsort((offsets**2).sum(1), kind="stable")]
    number = np.full((annotators, height + 2 * reach, width + 2 * reach), -1, np.int32)
    number[:, reach : reach + height, reach : reach + width][drawn_ahw] = np.arange(drawn_ahw.sum())
    stride = width + 2 * reach
    flat = (pixels[:, 0] + reach) * stride + pixels[:, 1] + reach
    places = flat[:, None] + offsets[:, 0] * stride + offsets[:, 1]
    # (pixels, annotators, columns): the rows of one pixel follow each other.
    near = np.stack([one.ravel()[places] for one in number], axis=1)
    some = (near >= 0).any(axis=2)
    return near[some], np.nonzero(some)[0]


# -- scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoundaryScores:
    """Scores of a set of pictures, 0..1."""

    ods: float
    """F at the best threshold of the whole set."""
    threshold: float
    precision: float
    recall: float
    ois: float
    """F where each picture has its own best threshold."""
    ap: float
    """Mean precision over recalls 0, .01 ... 1."""
    images: int

    def as_dict(self) -> dict[str, float]:
        """Plain data, for JSON."""
        return asdict(self)


def precision_recall(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of :data:`Counts` (..., 4); 0 where nothing is found or drawn."""
    shares = counts[..., ::2] / np.maximum(counts[..., 1::2], 1)
    return shares[..., 0], shares[..., 1]


def f_measure(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """Their harmonic mean; 0 where both are 0."""
    return np.asarray(2 * precision * recall / np.maximum(precision + recall, 1e-12))


def boundary_scores(counts: NDArray[np.int64], at: NDArray[np.float64]) -> BoundaryScores:
    """ODS, OIS and AP of ``(pictures, thresholds, 4)`` counts.

    As in the benchmark, precision and recall are linear between two thresholds, for ODS and for AP.
    """
    precision, recall = precision_recall(counts.sum(0))
    fine = np.arange((len(at) - 1) * 100 + 1) / 100
    between = [np.interp(fine, np.arange(len(at)), values) for values in (precision, recall, at)]
    best = int(f_measure(between[0], between[1]).argmax())
    own = f_measure(*precision_recall(counts)).argmax(axis=1)
    ois = f_measure(*precision_recall(counts[np.arange(len(counts)), own].sum(0)))
    recalls, first = np.unique(recall, return_index=True)
    curve = np.interp(np.arange(101) / 100, recalls, precision[first], left=0, right=0)
    return BoundaryScores(
        ods=float(f_measure(between[0], between[1])[best]),
        threshold=float(between[2][best]),
        precision=float(between[0][best]),
        recall=float(between[1][best]),
        ois=float(ois),
        ap=float(curve.sum() / 100),
        images=len(counts),
    )
