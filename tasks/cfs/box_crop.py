"""CFS's crop of one box and its inverse (Xie et al. 2020, section 3.2, equations 1 and 2): numpy and OpenCV only.

The box is grown about its centre and resized to a square, whatever its shape. Where the grown box leaves the image it
is filled with one colour; the object's place in the crop is therefore always the same, at any border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.objects import Window, clip_window
from artifacts.records import ImageRGB, size_of
from tasks.crop import MaskBool, extend

SAME = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class BoxCrop:
    """A box's pixels with their surroundings, seen as ``side`` x ``side`` pixels."""

    window_xyxy: Window
    """The box's pixels, inside the image, with area."""
    outer_xyxy: Window
    """The grown box in image pixels; it may stick out of the image."""
    side: int

    @classmethod
    def around(
        cls, window_xyxy: Window, context: float, side: int, factors: tuple[float, float, float, float] = SAME
    ) -> BoxCrop:
        """The crop whose height and width are ``context`` times the box's, about the same centre.

        Margins are whole pixels, at least one, so that every box has an edge to be seen. ``factors`` (left, top,
        right, bottom) scale the margins: training sees the object at other places and sizes in its crop.
        Raises ``ValueError`` for a window without area.
        """
        x0, y0, x1, y1 = window_xyxy
        if x1 <= x0 or y1 <= y0:
            raise ValueError(f"window {window_xyxy} has no area: there is nothing to crop")
        share = (context - 1.0) / 2.0
        left, top, right, bottom = (
            max(1, round(share * length * factor))
            for length, factor in zip((x1 - x0, y1 - y0, x1 - x0, y1 - y0), factors, strict=True)
        )
        return cls(window_xyxy, (x0 - left, y0 - top, x1 + right, y1 + bottom), side)

    @property
    def outer_hw(self) -> tuple[int, int]:
        """Height and width of the grown box in image pixels."""
        x0, y0, x1, y1 = self.outer_xyxy
        return y1 - y0, x1 - x0

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the box in the grown box's frame."""
        x0, y0, x1, y1 = self.window_xyxy
        left, top = self.outer_xyxy[:2]
        return slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)

    def image(self, image_rgb: ImageRGB, fill_rgb: Sequence[int]) -> ImageRGB:
        """``(side, side, 3) uint8`` of an image ``(H, W, 3) uint8``; what lies outside it has ``fill_rgb``."""
        framed = np.empty((*self.outer_hw, 3), np.uint8)
        inside, part = clip_window(self.outer_xyxy, size_of(image_rgb))
        if image_rgb[inside].shape != framed.shape:
            framed[:] = np.asarray(fill_rgb, np.uint8)
        framed[part] = image_rgb[inside]
        return resize_axes(framed, (self.side, self.side))

    def box(self) -> MaskBool:
        """``(side, side) bool``, equation 2: the pixels whose centres lie in the box."""
        height, width = self.outer_hw
        rows, columns = self.inner
        mask_hw: MaskBool = np.outer(_covered(rows, height, self.side), _covered(columns, width, self.side))
        return mask_hw

    def target(self, mask_hw: NDArray[Any]) -> NDArray[np.uint8]:
        """``(side, side) uint8``, equation 1: 1 where most of a pixel is the object, 0 everywhere outside the box.

        ``mask_hw``: the object in the box's window, nonzero or true where it is. It is a mask of one object, with no
        undecided pixels, so nothing but shares of area is interpolated.
        """
        (top, bottom), (left, right) = (
            (inner.start, length - inner.stop) for inner, length in zip(self.inner, self.outer_hw, strict=True)
        )
        # Continued outwards, then cut at the box: zeros around it would eat into an object that touches its box.
        framed = np.pad((mask_hw != 0).astype(np.float32), ((top, bottom), (left, right)), mode="edge")
        share = resize_axes(framed, (self.side, self.side))
        return ((share > 0.5) & self.box()).astype(np.uint8)

    def back(self, values_hw: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Values of the crop (side, side) in the pixels of the box's window, ``float32``.

        What lies outside the box is dropped: the box's edge is continued outwards before the resize.
        """
        rows, columns = np.flatnonzero(self.box().any(1)), np.flatnonzero(self.box().any(0))
        window = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        return resize_axes(extend(values_hw.astype(np.float32), window), self.outer_hw)[self.inner]


def _covered(inner: slice, length: int, side: int) -> MaskBool:
    """Which of ``side`` pixels over ``0..length`` have their centre in ``inner``; the nearest one if none has."""
    centres = (np.arange(side) + 0.5) * (length / side)
    covered: MaskBool = (centres >= inner.start) & (centres < inner.stop)
    if not covered.any():
        covered[np.abs(centres - (inner.start + inner.stop) / 2).argmin()] = True
    return covered


def resize_axes(values: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """``(h, w[, 3])`` at another size: each axis by means over the area where it shrinks, else linearly.

    OpenCV's own area resize means nothing where one axis shrinks and the other grows; a narrow box does that.
    """
    for axis, wanted in enumerate(size_hw):
        have = values.shape[axis]
        if have != wanted:
            width, height = (values.shape[1], wanted) if axis == 0 else (wanted, values.shape[0])
            how = cv2.INTER_AREA if wanted < have else cv2.INTER_LINEAR
            values = cv2.resize(values, (width, height), interpolation=how)
    return values
