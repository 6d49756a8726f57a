"""Scribbles of the demo: a wobbly stroke along the middle of each object, and some on the background."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.demo.geometry import Rng, spline

Path = tuple[tuple[float, float], ...]
"""Pixel positions ``x, y``, centres at integers."""


def object_stroke(rng: Rng, region_hw: NDArray[np.bool_]) -> Path:
    """A stroke inside the region's largest piece, 40 to 80 % of its longest way along the middle.

    Every pixel under the drawn line belongs to the region. Raises ``ValueError`` for an empty region.
    """
    depth = _depth(_largest_piece(region_hw))
    path = _middle_path(depth)
    share = rng.uniform(0.4, 0.8)
    start = int(rng.uniform(0, 1 - share) * len(path))
    part = path[start : start + max(2, round(share * len(path)))]
    knots = part[:: max(3, len(part) // 6)].astype(float)
    room = depth[part[:: max(3, len(part) // 6), 1], part[:: max(3, len(part) // 6), 0]]
    wobble = rng.normal(0, 0.3, knots.shape) * np.minimum(room, 3.0)[:, None]
    for scale in (1.0, 0.5, 0.0):
        if len(knots) < 2:
            break
        stroke = _thin(spline(knots + scale * wobble, closed=False, steps=4))
        if _inside(stroke, region_hw):
            return stroke
    return _thin(part.astype(float), step=1)


def background_strokes(rng: Rng, region_hw: NDArray[np.bool_], count: int) -> list[Path]:
    """At most ``count`` wobbly strokes that lie in the region, the longest of several tries each."""
    depth = _depth(region_hw)
    height, width = region_hw.shape
    rows, columns = np.nonzero(depth >= 2)
    found: list[Path] = []
    for _ in range(count):
        best: Path = ()
        for _ in range(12):
            if not len(rows):
                break
            at = int(rng.integers(len(rows)))
            heading, long = rng.uniform(0, np.pi), rng.uniform(0.15, 0.45) * max(height, width)
            reach = np.linspace(-0.5, 0.5, 5)[:, None] * long * np.array([np.cos(heading), np.sin(heading)])
            knots = np.array([columns[at], rows[at]]) + reach + rng.normal(0, 0.04 * long, (5, 2))
            stroke = _thin(spline(knots, closed=False, steps=4))
            if len(stroke) > len(best) and _inside(stroke, region_hw):
                best = stroke
        if best:
            found.append(best)
    return found


def _largest_piece(region_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(region_hw.astype(np.uint8), connectivity=4)
    if count < 2:
        raise ValueError("an empty region has no stroke")
    piece: NDArray[np.bool_] = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return piece


def _depth(region_hw: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance to the region's border; the image's own edge counts as border."""
    padded = np.pad(region_hw.astype(np.uint8), 1)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def _middle_path(depth_hw: NDArray[np.float32]) -> NDArray[np.intp]:
    """``(n, 2)`` x, y: the cheapest way between two far ends of the region, where depth makes a step cheap."""
    from skimage.graph import MCP_Geometric  # 0.3 s to import, and only the demo needs it

    inside = depth_hw > 0
    costs = np.where(inside, 1 / np.maximum(depth_hw, 0.5) ** 2 + 0.05, -1.0)
    end = np.unravel_index(int(depth_hw.argmax()), depth_hw.shape)
    graph = MCP_Geometric(costs)
    for _ in range(2):
        total, _ = graph.find_costs([end])
        end = np.unravel_index(int(np.where(np.isfinite(total), total, -1).argmax()), total.shape)
    return np.array(graph.traceback(end), dtype=np.intp)[:, ::-1]


def _thin(points: NDArray[np.float64], step: int = 2) -> Path:
    """Whole pixels, every ``step``-th point, no repetition, both ends kept."""
    pixels = np.round(points).astype(int)
    kept = [*pixels[:-1:step].tolist(), pixels[-1].tolist()]
    return tuple((float(x), float(y)) for i, (x, y) in enumerate(kept) if i == 0 or [x, y] != kept[i - 1])


def _inside(stroke: Path, region_hw: NDArray[np.bool_]) -> bool:
    """Whether the line through the stroke stays in the region and in the image."""
    points = np.array(stroke, dtype=np.int32)
    height, width = region_hw.shape
    if points.min() < 0 or (points >= (width, height)).any():
        return False
    line = np.zeros(region_hw.shape, np.uint8)
    cv2.polylines(line, [points], False, 1, 1)
    return bool(region_hw[line > 0].all())
