"""Places of the demo: grounds, skies and walls, clutter behind the objects and blades in front of them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from artifacts.demo import paint
from artifacts.demo.brush import FINE, Canvas, Stencil, lay, shadow, stencil_of
from artifacts.demo.geometry import Rng, box, bumpy, ellipse, leaf, limb, turn


@dataclass(frozen=True)
class Place:
    """Where the objects stand."""

    canvas: Canvas
    stuff: paint.Material
    """What the ground is made of: camouflaged objects wear it."""
    horizon: float
    """Height of the horizon as a share of the picture; 0 = a wall without one."""
    light_xy: tuple[float, float]


def make_place(rng: Rng, side: int) -> Place:
    """A wall or a landscape with clutter, ``(side, side, 3)``."""
    angle = rng.uniform(-2.6, -0.5)
    light_xy = (float(np.cos(angle)), float(np.sin(angle)))
    stuff = paint.material(rng, zoom=1.6)
    if rng.random() < 0.25:
        canvas = np.ascontiguousarray(stuff.paint(rng, side, side))
        horizon = 0.0
    else:
        horizon = float(rng.uniform(0.3, 0.62))
        canvas = _landscape(rng, side, horizon, stuff)
    place = Place(canvas, stuff, horizon, light_xy)
    _clutter(rng, place)
    return place


def _landscape(rng: Rng, side: int, horizon: float, stuff: paint.Material) -> Canvas:
    """Blurred far view above, ground with perspective below, a soft line between."""
    edge = int(side * horizon)
    far = cv2.resize(_far(rng, side // FINE), (side, side), interpolation=cv2.INTER_LINEAR)
    flat = stuff.paint(rng, side, side)
    squeeze = rng.uniform(0.15, 0.4)
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    target = np.array(
        [[0, edge], [side, edge], [side * (1 + 1 / squeeze) / 2, side], [side * (1 - 1 / squeeze) / 2, side]],
        np.float32,
    )
    near = cv2.warpPerspective(
        flat,
        cv2.getPerspectiveTransform(corners, target),
        (side, side),
        flags=cv2.INTER_AREA,
        borderMode=cv2.BORDER_REFLECT,
    )
    row = np.arange(side, dtype=np.float32)[:, None, None]
    haze = np.clip((row - edge) / (side * 0.25), 0, 1)
    near = near * (0.8 + 0.2 * haze) + far[edge : edge + 1] * 0.2 * (1 - haze)
    ground = np.clip((row - edge) / (side * rng.uniform(0.01, 0.05)) + 0.5, 0, 1)
    return np.ascontiguousarray(np.clip(far * (1 - ground) + near * ground, 0, 1), np.float32)


def _far(rng: Rng, side: int) -> Canvas:
    """What lies far behind: a sky, a blurred photograph or a blurred wall."""
    blur = side * rng.uniform(0.012, 0.035)
    kind = rng.integers(3)
    if kind == 0:  # sky
        top, low = (paint.material(rng, hue).high for hue in rng.choice(["sky", "cream", "slate", "rose", "sand"], 2))
        ramp = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
        far = (top + (low - top) * ramp) * np.ones((side, side, 1), np.float32)
        clouds = cv2.GaussianBlur(paint.grain(rng, "coffee.png", side, side, 4.0 / FINE), (0, 0), side * 0.02)
        return np.asarray(far + 0.07 * clouds[..., None], np.float32)
    if kind == 1:
        far = paint.view(rng, side, side, blur)
        tint = paint.material(rng).high
        return np.asarray(far * 0.6 + tint * 0.4 * (0.5 + far.mean(axis=2, keepdims=True)), np.float32)
    stuff = paint.material(rng, zoom=2.5 / FINE).paint(rng, side, side)
    return np.asarray(cv2.GaussianBlur(stuff, (0, 0), blur * 0.6), np.float32)


def _clutter(rng: Rng, place: Place) -> None:
    """Stones, posts, bushes and panels behind the objects: the objects' materials in shapes of no class."""
    canvas = place.canvas
    side = len(canvas)
    for _ in range(int(rng.integers(0, 4))):
        x = rng.uniform(0, side)
        y = rng.uniform(max(place.horizon, 0.05) + 0.05, 0.95) * side
        size = rng.uniform(0.05, 0.17) * side
        kind = rng.integers(4)
        if kind == 0:
            outline = bumpy(ellipse(0, 0, 1.0, 0.6, count=9), rng, 0.15, 7)
        elif kind == 1:
            outline = limb([(0, 0), (rng.uniform(-0.2, 0.2), -2.0)], [0.2, 0.16])
        elif kind == 2:
            outline = bumpy(ellipse(0, -0.4, 1.1, 0.9, count=12), rng, 0.14, 20)
        else:
            outline = turn(box(-0.8, -0.8, 0.8, 0.3), rng.uniform(-0.2, 0.2))
        stencil = stencil_of([outline * size + (x, y)], (), side)
        stuff = paint.material(rng, near=place.stuff if rng.random() < 0.4 else None)
        shadow(canvas, stencil, place.light_xy, y + size * 0.3, 0.3)
        lay(rng, canvas, stencil, stuff, place.light_xy, size, 0.92)
    if rng.random() < 0.5:
        np.copyto(canvas, cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.5, 2.2))))


def put_foreground(rng: Rng, place: Place) -> Stencil:
    """Blades, a branch or a post in front of everything; returns what they cover."""
    canvas, side = place.canvas, len(place.canvas)
    kind = rng.integers(3)
    if kind == 0:
        x0 = rng.uniform(0, 0.75) * side
        outlines = [
            leaf(
                x0 + rng.uniform(0, 0.3) * side,
                side * 1.03,
                -np.pi / 2 + rng.uniform(-0.5, 0.5),
                rng.uniform(0.18, 0.42) * side,
                rng.uniform(0.02, 0.045) * side,
                rng.uniform(-0.3, 0.3),
            )
            for _ in range(int(rng.integers(5, 12)))
        ]
    elif kind == 1:
        start, end = (
            (-0.05 * side, rng.uniform(0.1, 0.9) * side),
            (rng.uniform(0.35, 0.8) * side, rng.uniform(0.1, 0.9) * side),
        )
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + rng.uniform(-0.06, 0.06) * side)
        outlines = [limb([start, middle, end], [0.02 * side, 0.015 * side, 0.006 * side])]
        outlines += [
            leaf(middle[0], middle[1], rng.uniform(-2.4, 2.4), rng.uniform(0.08, 0.16) * side, 0.05 * side)
            for _ in range(4)
        ]
    else:
        x, half = rng.uniform(0.05, 0.95) * side, rng.uniform(0.012, 0.028) * side
        outlines = [box(x - half, -1, x + half, side + 1)]
    stencil = stencil_of(outlines, (), side)
    lay(
        rng,
        canvas,
        stencil,
        paint.material(rng, near=place.stuff if rng.random() < 0.3 else None),
        place.light_xy,
        6.0,
        0.9,
    )
    return stencil
