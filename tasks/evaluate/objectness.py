"""What a network that has seen ImageNet takes for an object: a cue of suspicion beyond colours and edges.

Masks that are wrong are wrong each in its own way; what is right in most of them is alike. So a linear classifier of
EfficientNet-Lite0's frozen features learns from the run's own masks what is object and what is not, and a mask that
it does not follow is suspicious. 113 numbers learn from pictures by the hundred: no picture is known by heart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.objects import clip_window
from artifacts.records import UNDECIDED, ImageRGB, MaskHW, size_of
from tasks.evaluate.suspicion import MaskBool, Window, with_context

if TYPE_CHECKING:
    from models.hed_lite import Lite0Start

WEIGHTS_NAME = "lite0"
SIDE = 256
"""Pixels of the longest side as the network sees a picture."""
CELL = 16
CELLS = 16
"""Cells of 16 x 16 of these pixels that a window must have: features are too coarse for smaller objects."""
SMALLEST = 64
"""Pixels of the longest side of a picture that shows anything."""
LEARNS_FROM = 200
"""Pictures, at most; spread evenly."""
AT_LEAST = 30
"""Pictures that it takes to learn anything."""
RIDGE = 1e-3
"""Ridge, as a share of each feature's own square."""
REMEMBERED = 1000
"""Pictures whose features a process keeps, of 43 KB each: variants that are compared look at the same ones."""

Map = NDArray[np.float32]
Half = NDArray[np.float16]


def is_here() -> bool:
    """Are the weights on this machine, and sound?"""
    from tasks.training.weights import here, known_row

    found = here.look(known_row(WEIGHTS_NAME))
    return found is not None and not found.problem


@functools.cache
def _network() -> Lite0Start:
    from models.deeplab import load_part
    from models.hed_lite import Lite0Start
    from tasks.training.weights import state_of

    network = Lite0Start()
    load_part(network, state_of(WEIGHTS_NAME), source=WEIGHTS_NAME)
    return network.eval()


def grid_of(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells of a picture."""
    height, width = (max(1, round(side * SIDE / max(size_hw) / CELL)) for side in size_hw)
    return height, width


_FEATURES: dict[str, Half] = {}
"""Digest of a picture's pixels -> its features, the oldest first."""


def features(image_rgb: ImageRGB) -> Map:
    """``(H, W, 3)`` uint8 -> ``(rows, columns, 112)``: features of the fifth stage of Lite0, at stride 16, to half
    precision."""
    digest = f"{image_rgb.shape} {keys.digest_bytes(image_rgb.tobytes())}"
    if digest not in _FEATURES:
        if len(_FEATURES) >= REMEMBERED:
            del _FEATURES[next(iter(_FEATURES))]
        _FEATURES[digest] = _computed(image_rgb)
    return _FEATURES[digest].astype(np.float32)


def _computed(image_rgb: ImageRGB) -> Half:
    import torch

    from models.normalise import LITE0, Normalise

    rows, columns = grid_of(image_rgb.shape[:2])
    shrinks = max(image_rgb.shape[:2]) > SIDE
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    seen_rgb = cv2.resize(image_rgb, (columns * CELL, rows * CELL), interpolation=how)
    # "Same" padding centres a cell on its last pixel: half a cell before the picture puts it in the middle.
    half = CELL // 2
    wide_rgb = cv2.copyMakeBorder(seen_rgb, half, half, half, half, cv2.BORDER_REFLECT)
    with torch.inference_mode():
        x = Normalise(LITE0)(torch.from_numpy(wide_rgb).permute(2, 0, 1)[None])
        last = _network().maps(x)[-1][0, :, :rows, :columns]
    return np.asarray(last.permute(1, 2, 0).numpy(), np.float16)


def share_of_cells(mask_hw: NDArray[Any], grid_hw: tuple[int, int]) -> Map:
    """Share of each cell that is of the mask, ``(rows, columns)``."""
    size = grid_hw[1], grid_hw[0]
    return np.asarray(cv2.resize(mask_hw.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)


def is_large(window_xyxy: Window, size_hw: tuple[int, int]) -> bool:
    """Has the window enough cells?"""
    x0, y0, x1, y1 = window_xyxy
    scale = SIDE / max(size_hw) / CELL
    return max(size_hw) >= SMALLEST and (x1 - x0) * (y1 - y0) * scale**2 >= CELLS


@dataclass(frozen=True)
class Objectness:
    """A linear classifier of features: object or not."""

    weights_c: NDArray[np.float64]
    """One a feature, and the constant."""

    def map_of(self, features_hwc: Map) -> Map:
        """``(rows, columns)``, 0..1."""
        found = features_hwc @ self.weights_c[:-1] + self.weights_c[-1]
        return np.asarray(np.clip(found, 0, 1), np.float32)


def learn(pictures: Iterable[tuple[Map, MaskHW, Sequence[Window]]]) -> Objectness | None:
    """By ridge regression, from features, class mask and windows of each picture; ``None`` of too few.

    What is far from all windows is no object for certain, and says nothing of where an object ends: only the cells of
    windows and their surroundings count. A picture weighs as the root of their number.
    """
    squares: NDArray[np.float64] | float = 0.0
    products: NDArray[np.float64] | float = 0.0
    count = 0
    for features_hwc, mask_hw, windows in pictures:
        grid_hw = features_hwc.shape[0], features_hwc.shape[1]
        near_hw = np.zeros(mask_hw.shape, np.bool_)
        for window in windows:
            x0, y0, x1, y1 = with_context(window, size_of(mask_hw))
            near_hw[y0:y1, x0:x1] = True
        counts = share_of_cells(near_hw & (mask_hw != UNDECIDED), grid_hw) > 0.5
        if not counts.any():
            continue
        x = _with_constant(features_hwc[counts])
        y = share_of_cells((mask_hw != 0) & (mask_hw != UNDECIDED), grid_hw)[counts]
        weight = 1 / math.sqrt(len(x))
        squares, products, count = squares + weight * (x.T @ x), products + weight * (x.T @ y), count + 1
    if count < AT_LEAST:
        return None
    whole = np.asarray(squares)
    # A feature that is 0 everywhere would make the system singular.
    ridge = np.diag(RIDGE * np.diag(whole) + 1e-9)
    return Objectness(np.linalg.solve(whole + ridge, np.asarray(products)))


def _with_constant(features_nc: Map) -> NDArray[np.float64]:
    return np.concatenate([features_nc, np.ones((len(features_nc), 1))], axis=1, dtype=np.float64)


def unlike(object_hw: Map, mask_hw: MaskBool, window_xyxy: Window, size_hw: tuple[int, int]) -> float:
    """1 less the soft IoU of the mask with what is taken for an object in its window: sum of the smaller over sum of
    the larger, cell by cell, each as far as it lies in the window.

    Args:
        object_hw: ``(rows, columns)``, :meth:`Objectness.map_of`.
        mask_hw: in its window.
        window_xyxy: in pixels.
        size_hw: of the picture.

    ``nan`` for a window of too few cells.
    """
    if not is_large(window_xyxy, size_hw):
        return math.nan
    grid_hw = object_hw.shape[0], object_hw.shape[1]
    inside, part = clip_window(window_xyxy, size_hw)
    whole_hw, window_hw = (np.zeros(size_hw, np.bool_) for _ in range(2))
    whole_hw[inside], window_hw[inside] = mask_hw[part], True
    own_hw, weight_hw = share_of_cells(whole_hw, grid_hw), share_of_cells(window_hw, grid_hw)
    both = float((weight_hw * np.minimum(own_hw, object_hw)).sum())
    return 1 - both / max(float((weight_hw * np.maximum(own_hw, object_hw)).sum()), 1e-9)
