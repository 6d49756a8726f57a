"""Outlines of the demo's drawings: ellipses, tapered limbs, splines, and the layers they make up.

All points are ``(n, 2) float64``, ``x`` to the right, ``y`` down, in the frame of one drawing (about -1..1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
PointsLike = NDArray[np.float64] | Sequence[Any]
"""Points, or a sequence of pairs (tuples and arrays mixed)."""
Rng = np.random.Generator
Role = Literal["body", "trim", "identity", "dark"]
"""``body`` and ``trim``: materials that every class shares; ``identity``: the class's own pattern; ``dark``: eyes."""


@dataclass(frozen=True)
class Layer:
    """Outlines painted together: their union, less the holes. Layers lie back to front."""

    outlines: tuple[Points, ...]
    role: Role = "body"
    pattern: str = ""
    """What an identity layer is painted with."""
    shade: float = 1.0
    """Brightness; limbs on the far side are darker."""
    holes: tuple[Points, ...] = ()


def layer(
    outlines: Sequence[Points], role: Role = "body", pattern: str = "", shade: float = 1.0, holes: Sequence[Points] = ()
) -> Layer:
    """:class:`Layer` from any sequences."""
    return Layer(tuple(outlines), role, pattern, shade, tuple(holes))


def at(x: float, y: float) -> Points:
    """A single point, ``(2,)``: adds to points."""
    return np.array([x, y], dtype=np.float64)


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, count: int = 32) -> Points:
    """An ellipse turned by ``angle`` (radians, clockwise on the screen)."""
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return turn(np.stack([rx * np.cos(t), ry * np.sin(t)], 1), angle) + at(cx, cy)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """An upright rectangle."""
    return polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def polygon(points: PointsLike) -> Points:
    """Points as an array."""
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def turn(points: Points, angle: float) -> Points:
    """``points`` turned about the origin by ``angle`` radians, clockwise on the screen."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]))


def spline(points: PointsLike, *, closed: bool = True, steps: int = 8) -> Points:
    """A Catmull-Rom curve through ``points`` (Catmull, Rom 1974; uniform, tension 1/2)."""
    p = polygon(points)
    padded = (
        np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    )
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, p[-1:]])


def limb(points: PointsLike, radii: Sequence[float], *, steps: int = 6) -> Points:
    """A smooth tube through ``points`` whose radius goes through ``radii`` (one each), with round ends."""
    centre = spline(points, closed=False, steps=steps)
    knots = np.linspace(0, 1, len(radii))
    radius = np.interp(np.linspace(0, 1, len(centre)), knots, radii)[:, None]
    tangent = np.gradient(centre, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    t = np.linspace(0, np.pi, 7)[1:-1, None]
    head = centre[-1] + radius[-1] * (np.cos(t) * normal[-1] + np.sin(t) * tangent[-1])
    tail = centre[0] + radius[0] * (-np.cos(t) * normal[0] - np.sin(t) * tangent[0])
    return np.concatenate([centre + radius * normal, head, (centre - radius * normal)[::-1], tail])


def leaf(x: float, y: float, angle: float, length: float, width: float, bend: float = 0.0) -> Points:
    """A pointed leaf that grows from ``(x, y)`` towards ``angle`` (0 = right, -pi/2 = up), bent sideways."""
    t = np.linspace(0, 1, 14)
    half = width * np.sin(np.pi * t**0.8) ** 0.9 * 0.5
    axis = bend * length * t**2
    upper = np.stack([t * length, axis - half], 1)
    lower = np.stack([t * length, axis + half], 1)[::-1]
    return turn(np.concatenate([upper, lower]), angle) + at(x, y)


def bumpy(points: Points, rng: Rng, size: float, bumps: int) -> Points:
    """An outline with round bumps: wool, foliage, a heap."""
    dense = spline(points, steps=4)
    centre = dense.mean(0)
    phase = np.linspace(0, 2 * np.pi, len(dense), endpoint=False) * bumps + rng.uniform(0, 6.28)
    return np.asarray(centre + (dense - centre) * (1 + size * np.abs(np.sin(phase / 2)))[:, None])


def ring(outer: Points, inner_scale: float) -> tuple[Points, Points]:
    """``outer`` and a smaller copy of it, as outline and hole."""
    centre = outer.mean(0)
    return outer, centre + (outer - centre) * inner_scale
