"""Draws plausible scribbles from masks, for experiments: a stroke along the middle of every part of a class.

Lengths 1, .8, .5, .3 and 0 (a click) are those of Lin et al. ("ScribbleSup", CVPR 2016); a shorter stroke is a part of
the longer one.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.datasets.scribblesup import shortened
from artifacts.records import UNDECIDED, MaskHW, Scribble

LEAST_AREA = 64
"""Smaller parts of a class get no stroke, unless the class has no other."""


def draw_scribbles(mask_hw: MaskHW, image_id: str, *, length: float = 1.0, seed: int = 0) -> tuple[Scribble, ...]:
    """One stroke in each connected part of each class and of the background; none in what is undecided.

    A stroke is the longest way along the part's skeleton, or ``length`` (0..1) of it: where that lies is drawn by
    ``seed`` and ``image_id``, the same for every length. Every point is a pixel of the part.

    Args:
        mask_hw: ``(H, W) uint8``; 0 background, 255 undecided.
        image_id: with ``seed`` the source of all randomness.
        length: share of the longest way.
        seed: another seed, other places.
    """
    rng = np.random.default_rng(int(keys.digest([seed, image_id]), 16))
    found = []
    for number in np.unique(mask_hw).tolist():
        if number == UNDECIDED:
            continue
        for part_hw, (x, y) in _parts(mask_hw == number):
            path = [(float(x + px), float(y + py)) for px, py in middle_path(part_hw)]
            found.append(Scribble(number, shortened(path, length, float(rng.random()))))
    return tuple(found)


def _parts(region_hw: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], tuple[int, int]]]:
    """Connected parts that get a stroke, each in its own window, and the window's first pixel ``x, y``."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(region_hw.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    chosen = [n for n in range(1, count) if areas[n - 1] >= LEAST_AREA] or [1 + int(areas.argmax())]
    parts = []
    for number in chosen:
        x, y, width, height = stats[number, :4].tolist()
        parts.append((labels[y : y + height, x : x + width] == number, (x, y)))
    return parts


def middle_path(part_hw: NDArray[np.bool_]) -> NDArray[np.intp]:
    """``(n, 2)`` x, y: the longest of the shortest ways along the skeleton of a connected region, pixel by pixel.

    From any pixel to the one that is farthest, and from there to the farthest again: in a skeleton without loops no way
    is longer. Raises ``ValueError`` for an empty region.
    """
    from skimage.graph import MCP_Geometric
    from skimage.morphology import skeletonize

    skeleton: NDArray[np.bool_] = skeletonize(np.pad(part_hw, 1))  # type: ignore[no-untyped-call]
    lines_hw = skeleton[1:-1, 1:-1]  # the picture's rim is a rim of the region
    if not lines_hw.any():
        raise ValueError("an empty region has no middle")
    graph = MCP_Geometric(np.where(lines_hw, 1.0, -1.0))
    end = tuple(np.argwhere(lines_hw)[0])
    for _ in range(2):
        total, _ = graph.find_costs([end])
        end = np.unravel_index(int(np.where(np.isfinite(total), total, -1).argmax()), total.shape)
    return np.array(graph.traceback(end), dtype=np.intp)[:, ::-1]
