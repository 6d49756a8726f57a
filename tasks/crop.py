"""A part of the image at a working size, and the way back: the input of GrabCut and of the box networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.objects import Window

MaskBool = NDArray[np.bool_]

MIN_CONTEXT_PX = 4
"""Context on each side of a box at least, in image pixels: the background needs samples."""


def extend(values_hw: NDArray[Any], window_xyxy: Window) -> NDArray[Any]:
    """``(H, W)`` whose values inside the window (inside the array, with area) are continued outwards by its edge.

    Outside a box a mask is zero by construction, not by evidence. A resize would mix those zeros into the box's rim.
    """
    x0, y0, x1, y1 = window_xyxy
    height, width = values_hw.shape
    return np.pad(values_hw[y0:y1, x0:x1], ((y0, height - y1), (x0, width - x1)), mode="edge")


@dataclass(frozen=True)
class Crop:
    """A part of the image, scaled to a working size, and the way back."""

    xyxy: Window
    """In image pixels, inside the image."""
    scaled_hw: tuple[int, int]

    @classmethod
    def around(cls, window_xyxy: Window, size_hw: tuple[int, int], context: float, size: int) -> Crop:
        """``window_xyxy`` with context on each side as far as the image reaches, longest side ``size``."""
        x0, y0, x1, y1 = window_xyxy
        mx = max(MIN_CONTEXT_PX, math.ceil(context * (x1 - x0)))
        my = max(MIN_CONTEXT_PX, math.ceil(context * (y1 - y0)))
        left, top = max(0, x0 - mx), max(0, y0 - my)
        right, bottom = min(size_hw[1], x1 + mx), min(size_hw[0], y1 + my)
        height, width = bottom - top, right - left
        scale = size / max(height, width)
        return cls((left, top, right, bottom), (max(1, round(height * scale)), max(1, round(width * scale))))

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in image pixels."""
        left, top, right, bottom = self.xyxy
        return bottom - top, right - left

    def scale(self, image: NDArray[Any]) -> NDArray[Any]:
        """The crop of an image (H, W[, 3]) at working size."""
        left, top, right, bottom = self.xyxy
        return self.resize(image[top:bottom, left:right])

    def resize(self, part: NDArray[Any]) -> NDArray[Any]:
        """An array of the crop's own size, at working size: area means when it shrinks, else smooth."""
        shrinks = self.scaled_hw[0] < part.shape[0] or self.scaled_hw[1] < part.shape[1]
        smooth = cv2.INTER_CUBIC if part.ndim == 3 else cv2.INTER_LINEAR  # cubic would leave 0..1
        height, width = self.scaled_hw
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if shrinks else smooth)

    def frame(self, window_xyxy: Sequence[int]) -> Window:
        """A window of the image in the crop's own pixels; it may stick out."""
        x0, y0, x1, y1 = window_xyxy
        left, top = self.xyxy[:2]
        return x0 - left, y0 - top, x1 - left, y1 - top

    def scaled(self, window_xyxy: Window) -> Window:
        """A window inside the crop, in working pixels; at least one pixel."""
        left, top, right, bottom = self.xyxy
        sx, sy = self.scaled_hw[1] / (right - left), self.scaled_hw[0] / (bottom - top)
        x0 = min(round((window_xyxy[0] - left) * sx), self.scaled_hw[1] - 1)
        y0 = min(round((window_xyxy[1] - top) * sy), self.scaled_hw[0] - 1)
        x1 = max(round((window_xyxy[2] - left) * sx), x0 + 1)
        y1 = max(round((window_xyxy[3] - top) * sy), y0 + 1)
        return x0, y0, x1, y1

    def back(self, mask_hw: MaskBool, window_xyxy: Window) -> MaskBool:
        """A mask at working size, in the pixels of a window inside the crop (majority of what a pixel covers).

        What lies outside the window is dropped: the mask's edge in it is continued outwards before the resize.
        """
        left, top, right, bottom = self.xyxy
        shrinks = self.scaled_hw[0] > bottom - top or self.scaled_hw[1] > right - left
        share = cv2.resize(
            extend(mask_hw.astype(np.float32), self.scaled(window_xyxy)),
            (right - left, bottom - top),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
        x0, y0, x1, y1 = window_xyxy
        return share[y0 - top : y1 - top, x0 - left : x1 - left] > 0.5
