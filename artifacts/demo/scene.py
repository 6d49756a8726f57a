"""Scenes of the demo: a place with light and clutter, one to three objects in it, and what each object covers.

Everything is painted :data:`FINE` times finer than requested and averaged down, so outlines are smooth and a
pixel belongs to what covers most of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.demo import paint
from artifacts.demo.brush import FINE, Stencil, darken_rim, lay, lay_identity, shadow, shrink, stencil_of
from artifacts.demo.geometry import Layer, Points, Rng, turn
from artifacts.demo.places import Place, make_place, put_foreground

MIN_VISIBLE = 0.5
"""Share of an object that must stay visible, and"""
MIN_PIXELS_OF_96 = 90
"""pixels of a 96 x 96 picture that it must keep (scaled with the picture's area)."""
HIDDEN_SHARE = 0.4
"""Share of pictures whose objects have the ground's own colours."""
TRIES = 20

Shapes = Mapping[str, Callable[[Rng], list[Layer]]]
"""class name -> what draws another individual of it."""


@dataclass(frozen=True)
class Scene:
    """A finished picture and its truth."""

    image_rgb: NDArray[np.uint8]
    objects_hw: NDArray[np.uint8]
    """``(H, W)``: number of the visible object (from 1), 0 = none."""
    names: tuple[str, ...]
    """Class name of object ``i + 1``."""


def make_scene(rng: Rng, size: int, first: str, shapes: Shapes) -> Scene:
    """Draw one scene with an object of class ``first`` and up to two more. Deterministic by ``rng``."""
    for _ in range(TRIES):
        count = int(rng.choice([1, 2, 3], p=[0.34, 0.44, 0.22]))
        names = [first, *(str(name) for name in rng.choice(list(shapes), count - 1))]
        scene, visible = _try_scene(rng, size, names, shapes)
        if visible:
            break
    return scene


def _try_scene(rng: Rng, size: int, names: list[str], shapes: Shapes) -> tuple[Scene, bool]:
    """A scene, and whether every object shows enough of itself."""
    place = make_place(rng, size * FINE)
    spots = _spots(rng, size * FINE, len(names), place.horizon)
    order = [int(i) for i in np.argsort([y for _, y, _ in spots])]  # what stands lower is nearer
    covers = _paint_objects(rng, place, [(names[i], spots[i]) for i in order], shapes)
    whole = [int(cover.sum()) for cover in covers]
    for nearer, cover in enumerate(covers):
        for other in covers[:nearer]:
            other[cover > 0] = 0
    if rng.random() < 0.3:
        front = put_foreground(rng, place)
        for other in covers:
            other[front > 0] = 0
    image_rgb = _photograph(rng, place, size)
    shares = np.stack([shrink(cover.astype(np.float32), size) for cover in covers])
    owner = np.where(shares.sum(0) >= 0.5, shares.argmax(0) + 1, 0).astype(np.uint8)
    shown = [int((owner == number).sum()) for number in range(1, len(covers) + 1)]
    least = MIN_PIXELS_OF_96 * (size / 96) ** 2
    enough = all(n >= least and n * FINE**2 >= MIN_VISIBLE * w for n, w in zip(shown, whole, strict=True))
    return Scene(image_rgb, owner, tuple(names[i] for i in order)), enough


def _paint_objects(
    rng: Rng, place: Place, standing: list[tuple[str, tuple[float, float, float]]], shapes: Shapes
) -> list[Stencil]:
    hidden = bool(rng.random() < HIDDEN_SHARE)
    covers = []
    for name, spot in standing:
        drawing = _put(rng, shapes[name](rng), *spot)
        covers.append(_paint_object(rng, drawing, place, camouflage=hidden))
    return covers


# -- objects ---------------------------------------------------------------------------------------------------------


def _spots(rng: Rng, side: int, count: int, horizon: float) -> list[tuple[float, float, float]]:
    """``(centre x, base y, longer side)`` of each object: the arrangement that overlaps least of a few, or nearly."""
    low, high = {1: (0.58, 0.94), 2: (0.46, 0.72), 3: (0.38, 0.56)}[count]
    best: list[tuple[float, float, float]] = []
    best_cost = np.inf
    for _ in range(int(rng.integers(2, 10))):
        found = []
        for _ in range(count):
            long = float(rng.uniform(low, high))
            x = float(rng.uniform(0.42 * long, 1 - 0.42 * long))
            floor = max(horizon + 0.1, 0.9 * long)
            y = float(rng.uniform(min(floor, 0.97), 1.0))
            found.append((x * side, y * side, long * side))
        cost = sum(
            max(0.0, (a[2] + b[2]) / 2 - abs(a[0] - b[0])) * max(0.0, (a[2] + b[2]) / 2 - abs(a[1] - b[1]))
            for i, a in enumerate(found)
            for b in found[:i]
        )
        if cost < best_cost:
            best, best_cost = found, cost
    return best


def _put(rng: Rng, drawing: list[Layer], centre_x: float, base_y: float, long: float) -> list[Layer]:
    """Turn, mirror and scale a drawing so that it stands at ``(centre_x, base_y)`` with longer side ``long``."""
    angle = float(rng.normal(0, 0.09))
    flip = (-1.0, 1.0) if rng.random() < 0.5 else (1.0, 1.0)
    stretch = np.array([flip[0] * rng.uniform(0.9, 1.12), rng.uniform(0.9, 1.12)])
    points = np.concatenate([o for part in drawing for o in part.outlines])
    turned = turn(points * stretch, angle)
    low, high = turned.min(0), turned.max(0)
    scale = long / max(high - low)
    offset = np.array([centre_x - scale * (low[0] + high[0]) / 2, base_y - scale * high[1]])

    def move(outline: Points) -> Points:
        return np.asarray(turn(outline * stretch, angle) * scale + offset)

    return [
        Layer(tuple(map(move, part.outlines)), part.role, part.pattern, part.shade, tuple(map(move, part.holes)))
        for part in drawing
    ]


def _paint_object(rng: Rng, drawing: list[Layer], place: Place, *, camouflage: bool) -> Stencil:
    """Paint one object with its shadow; returns what it covers."""
    canvas, side = place.canvas, len(place.canvas)
    stencils = [stencil_of(part.outlines, part.holes, side) for part in drawing]
    cover: Stencil = np.maximum.reduce(stencils)
    base = max(float(o[:, 1].max()) for part in drawing for o in part.outlines)
    shadow(canvas, cover, place.light_xy, base, float(rng.uniform(0.25, 0.5)))
    near = place.stuff if camouflage else None
    body = paint.material(rng, near=near)
    trim = paint.material(rng, near=body) if rng.random() < 0.4 else paint.material(rng, near=near)
    long = max(cv2.boundingRect(cover)[2:])
    period = FINE * 4.6 * (side / FINE / 96) * float(rng.uniform(0.85, 1.2))
    angle = float(rng.uniform(-0.35, 0.35))
    for part, stencil in zip(drawing, stencils, strict=True):
        if part.role == "identity":
            lay_identity(rng, canvas, stencil, part.pattern, period, angle, place.light_xy, long)
        else:
            stuff = {"body": body, "trim": trim}.get(part.role)
            lay(rng, canvas, stencil, stuff, place.light_xy, long * 0.16, part.shade)
    if camouflage or rng.random() < 0.5:  # a hidden object still has an outline
        darken_rim(canvas, cover, float(rng.uniform(0.35, 0.75)))
    return cover


def _photograph(rng: Rng, place: Place, size: int) -> NDArray[np.uint8]:
    """Light across the picture, vignette, white balance, a lens, noise; ``(size, size, 3) uint8``."""
    small = np.stack([shrink(place.canvas[..., c], size) for c in range(3)], axis=-1)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    slope = float(rng.uniform(0, 0.5))
    light = 1 + slope * (x * place.light_xy[0] + y * place.light_xy[1])
    light *= 1.04 - float(rng.uniform(0, 0.45)) * (x**2 + y**2)
    warmth = float(rng.normal(0, 0.05))
    small = small * light[..., None] * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    small = small * float(rng.uniform(0.85, 1.12))
    small = cv2.GaussianBlur(small, (0, 0), float(rng.uniform(0.3, 0.55)))
    small += rng.normal(0, rng.uniform(0.003, 0.014), small.shape).astype(np.float32)
    return np.asarray(np.clip(np.round(small * 255), 0, 255), np.uint8)
