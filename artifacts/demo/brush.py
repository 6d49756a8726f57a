"""Brushwork of the demo: stencils laid on a canvas in relief, with shadows.

Everything is painted :data:`FINE` times finer than requested and averaged down, so outlines are smooth and a
pixel belongs to what covers most of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.demo import paint
from artifacts.demo.geometry import Points, Rng

FINE = 3
SHIFT = 4
"""Fractional bits of OpenCV's polygon corners."""

Canvas = NDArray[np.float32]
"""``(H, W, 3) float32`` RGB in 0..1."""
Stencil = NDArray[np.uint8]
"""``(H, W) uint8``, 0 or 1."""


def shrink(plane: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Average down to ``(size, size)``."""
    return np.asarray(cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA), np.float32)


def stencil_of(outlines: Iterable[Points], holes: Iterable[Points], side: int) -> Stencil:
    """The union of the outlines without the holes, ``(side, side)``."""
    stencil = np.zeros((side, side), np.uint8)
    for points, value in [*((o, 1) for o in outlines), *((h, 0) for h in holes)]:
        corners = np.round(points * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(stencil, [corners], value, lineType=cv2.LINE_8, shift=SHIFT)
    return stencil


def _window(stencil: Stencil, margin: int) -> tuple[slice, slice]:
    x, y, w, h = cv2.boundingRect(stencil)
    height, width = stencil.shape
    return slice(max(0, y - margin), min(height, y + h + margin)), slice(max(0, x - margin), min(width, x + w + margin))


def lay(
    rng: Rng,
    canvas: Canvas,
    stencil: Stencil,
    stuff: paint.Material | None,
    light_xy: tuple[float, float],
    roundness: float,
    shade: float,
) -> None:
    """Paint a stencil with a material (``None``: nearly black), in relief, with a soft shadow on what is below."""
    if not stencil.any():
        return
    window = _window(stencil, 4)
    mask = stencil[window]
    height, width = mask.shape
    if stuff is None:
        colour = np.full((height, width, 3), 0.08, np.float32)
    else:
        colour = stuff.paint(rng, height, width)
    _blend(canvas, window, mask, colour * shade, light_xy, roundness)


def lay_identity(
    rng: Rng,
    canvas: Canvas,
    stencil: Stencil,
    pattern: str,
    period: float,
    angle: float,
    light_xy: tuple[float, float],
    long: float,
) -> None:
    """Paint a stencil with its class's pattern."""
    if not stencil.any():
        return
    window = _window(stencil, 4)
    mask = stencil[window]
    height, width = mask.shape
    centre_xy = ((width - 1) / 2, (height - 1) / 2)
    colour = paint.identity_paint(rng, pattern, height, width, period, centre_xy=centre_xy, angle=angle)
    _blend(canvas, window, mask, colour, light_xy, long * 0.12)


def _blend(
    canvas: Canvas,
    window: tuple[slice, slice],
    mask: Stencil,
    colour: Canvas,
    light_xy: tuple[float, float],
    roundness: float,
) -> None:
    target = canvas[window]
    inside = mask[..., None].astype(np.float32)
    contact = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.2)[..., None]
    shaded = colour * paint.relief(mask, light_xy, roundness)[..., None]
    target *= 1 - 0.3 * contact * (1 - inside)
    target += (shaded - target) * inside


def darken_rim(canvas: Canvas, cover: Stencil, strength: float) -> None:
    """Darken a thin line along the inside of the outline."""
    window = _window(cover, 2)
    mask = cover[window]
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    line = np.clip(1.3 - distance / FINE, 0, 1) * mask
    canvas[window] *= 1 - strength * line[..., None].astype(np.float32)


def shadow(canvas: Canvas, cover: Stencil, light_xy: tuple[float, float], base_y: float, strength: float) -> None:
    """Cast shadow: the outline laid down behind ``base_y``, away from the light, and a dark line where it touches."""
    side = len(canvas)
    flat, lean = 0.28, -light_xy[0] * 0.55
    # (x, y) -> (x + lean (base - y), base - flat (base - y)): the foot stays, the top falls.
    matrix = np.array([[1, -lean, lean * base_y], [0, flat, base_y * (1 - flat)]], np.float32)
    matrix[:, 2] /= FINE  # both sides in coarse pixels: the shadow is soft, so a third of the resolution will do
    coarse = shrink(cover.astype(np.float32), side // FINE)
    fallen = cv2.warpAffine(coarse, matrix, (side // FINE, side // FINE), flags=cv2.INTER_LINEAR)
    soft = cv2.resize(cv2.GaussianBlur(fallen, (0, 0), side * 0.012 / FINE), (side, side))
    canvas *= 1 - strength * soft[..., None]
