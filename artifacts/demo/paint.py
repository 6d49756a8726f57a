"""Paint of the demo: materials from photographs, identity patterns, relief.

The photographs are those that ship inside scikit-image's wheel (``skimage/data``; public domain or CC0); only
crops of their brightness are used, coloured anew. Colours are ``float32`` RGB in 0..1.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.demo.geometry import Rng
from artifacts.records import DataError

Plane = NDArray[np.float32]
"""``(H, W) float32``."""
Colour = NDArray[np.float32]
"""``(3,) float32`` RGB in 0..1."""

GRAINS = ("brick.png", "grass.png", "gravel.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg")
"""Photographs whose brightness makes a material's grain."""
VIEWS = ("coffee.png", "rocket.jpg", "astronaut.png", "chelsea.png")
"""Photographs that are shown, strongly blurred, as a far background."""
SOURCE_SIDE = 384

HUES = {
    "terracotta": (0.80, 0.40, 0.28),
    "mustard": (0.86, 0.67, 0.26),
    "sage": (0.52, 0.63, 0.45),
    "teal": (0.20, 0.52, 0.54),
    "slate": (0.36, 0.44, 0.56),
    "plum": (0.52, 0.32, 0.47),
    "rose": (0.85, 0.55, 0.55),
    "sand": (0.82, 0.72, 0.56),
    "umber": (0.46, 0.33, 0.25),
    "cream": (0.92, 0.87, 0.76),
    "sky": (0.52, 0.68, 0.82),
    "moss": (0.38, 0.46, 0.24),
    "stone": (0.60, 0.58, 0.55),
}
ACCENTS = ((0.75, 0.12, 0.14), (0.10, 0.22, 0.55), (0.07, 0.36, 0.30), (0.42, 0.10, 0.42), (0.12, 0.10, 0.10))
"""Dark colours of identity patterns; every class draws from all of them."""
PAPERS = ((0.97, 0.95, 0.90), (0.98, 0.88, 0.55), (0.86, 0.94, 0.97))
"""Light colours of identity patterns."""


@functools.cache
def _photograph(name: str) -> NDArray[np.uint8]:
    """``(H, W, 3) uint8`` RGB, shorter side :data:`SOURCE_SIDE` at most."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DataError("the demo data need scikit-image, whose wheel holds the photographs; pip install scikit-image")
    path = Path(spec.origin).parent / "data" / name
    image_bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image_bgr is None:
        raise DataError(f"{path}: the demo's photograph is missing or broken; reinstall scikit-image")
    scale = min(1.0, SOURCE_SIDE / min(image_bgr.shape[:2]))
    small = cv2.resize(image_bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[:, :, ::-1])


@functools.cache
def _grain(name: str) -> Plane:
    """Brightness of a photograph without its slow part, unit variance."""
    grey = cv2.cvtColor(_photograph(name), cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = grey - cv2.GaussianBlur(grey, (0, 0), 24)
    plane: Plane = np.clip(detail / (detail.std() + 1e-6), -2.5, 2.5).astype(np.float32)
    return plane


def grain(rng: Rng, name: str, height: int, width: int, zoom: float) -> Plane:
    """A crop of the photograph's grain, ``zoom`` > 1 enlarges it; mirrored and turned at random."""
    source = _grain(name)
    tall, wide = min(source.shape[0], max(8, int(height / zoom))), min(source.shape[1], max(8, int(width / zoom)))
    y = int(rng.integers(source.shape[0] - tall + 1))
    x = int(rng.integers(source.shape[1] - wide + 1))
    crop = source[y : y + tall, x : x + wide]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.asarray(cv2.resize(crop, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def view(rng: Rng, height: int, width: int, blur: float) -> NDArray[np.float32]:
    """A blurred crop of a photograph, ``(height, width, 3)``: what lies far behind."""
    photo = _photograph(VIEWS[int(rng.integers(len(VIEWS)))])
    side = int(min(photo.shape[:2]) * rng.uniform(0.45, 1.0))
    y, x = int(rng.integers(photo.shape[0] - side + 1)), int(rng.integers(photo.shape[1] - side + 1))
    crop = cv2.resize(photo[y : y + side, x : x + side], (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), blur) / np.float32(255), np.float32)


@dataclass(frozen=True)
class Material:
    """One stuff: a colour that runs from ``low`` in the grain's dark to ``high`` in its light."""

    low: Colour
    high: Colour
    photo: str
    zoom: float
    amplitude: float

    def paint(self, rng: Rng, height: int, width: int) -> NDArray[np.float32]:
        """``(height, width, 3) float32``."""
        light = np.clip(0.5 + 0.25 * self.amplitude * grain(rng, self.photo, height, width, self.zoom), 0, 1)
        return np.asarray(self.low + (self.high - self.low) * light[..., None], np.float32)


def material(rng: Rng, hue: str | None = None, *, near: Material | None = None, zoom: float = 1.0) -> Material:
    """A random material; ``near`` gives one of the same colours with another grain (camouflage)."""
    if near is not None:
        shift = rng.normal(0, 0.02, 3).astype(np.float32) + np.float32(rng.uniform(-0.08, 0.08))
        low, high = np.clip(near.low + shift, 0, 1), np.clip(near.high + shift, 0, 1)
        photo = GRAINS[int(rng.integers(len(GRAINS)))]
        return Material(low, high, photo, zoom * float(rng.uniform(0.9, 1.8)), float(rng.uniform(0.5, 1.25)))
    names = list(HUES)
    base = np.array(HUES[hue or names[int(rng.integers(len(names)))]]) + rng.normal(0, 0.035, 3)
    spread = rng.uniform(0.5, 0.75)
    low = np.clip(base * spread + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32)
    high = np.clip(base * (2 - spread) * 0.86 + rng.normal(0, 0.03, 3), 0, 1).astype(np.float32)
    photo = GRAINS[int(rng.integers(len(GRAINS)))]
    return Material(low, high, photo, zoom * float(rng.uniform(0.9, 1.8)), float(rng.uniform(0.5, 1.25)))


def identity_paint(
    rng: Rng, pattern: str, height: int, width: int, period: float, *, centre_xy: tuple[float, float], angle: float
) -> NDArray[np.float32]:
    """A two-coloured pattern, ``(height, width, 3)``, around ``centre_xy``, ``period`` pixels wide."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = x - centre_xy[0], y - centre_xy[1]
    cos, sin = np.cos(angle), np.sin(angle)
    u = (cos * dx + sin * dy) / period
    v = (-sin * dx + cos * dy) / period
    ink = np.clip(0.5 + _ink(pattern, u, v) * period * 0.5, 0, 1)[..., None].astype(np.float32)
    dark = np.array(ACCENTS[int(rng.integers(len(ACCENTS)))]) + rng.normal(0, 0.03, 3)
    light = np.array(PAPERS[int(rng.integers(len(PAPERS)))]) + rng.normal(0, 0.02, 3)
    return np.asarray(np.clip(light + (dark - light) * ink, 0, 1), np.float32)


def _wave(t: NDArray[Any]) -> Plane:
    """A triangle wave of period 1 in -0.25..0.25: slope 1, so that it is a distance."""
    return np.asarray(np.abs((t % 1) - 0.5) - 0.25, np.float32)


def _ink(pattern: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed distance to the pattern's ink in periods, positive inside."""
    radius = np.hypot(u, v)
    lozenge_a, lozenge_b = (u + v * 0.8) * 0.6, (u - v * 0.8) * 0.6
    sectors = _wave(np.arctan2(v, u) / (2 * np.pi) * 6) * radius
    inks: dict[str, Callable[[], NDArray[Any]]] = {
        "stripes": lambda: _wave(u),
        "checks": lambda: np.sign(sectors) * np.sign(_wave(radius / 2)) * np.minimum(np.abs(sectors), 0.25),
        "dots": lambda: 0.34 - np.hypot((u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5, v % 1 - 0.5),
        "chevrons": lambda: _wave(u + 0.8 * np.abs(v % 2.4 - 1.2)) * 0.8,
        "lozenges": lambda: (
            np.sign(_wave(lozenge_a))
            * np.sign(_wave(lozenge_b))
            * np.minimum(np.abs(_wave(lozenge_a)), np.abs(_wave(lozenge_b)))
        ),
        "rings": lambda: _wave(radius),
        "plaid": lambda: np.maximum(_wave(u), _wave(v)) - 0.06,
        "scales": lambda: 0.09 - np.abs(np.hypot((u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5, v % 1) - 0.5),
        "spots": lambda: 0.42 - np.hypot((u * 0.7 + 0.35 * (np.floor(v * 0.7) % 2)) % 1 - 0.5, (v * 0.7) % 1 - 0.5),
        "waves": lambda: _wave(v + 0.25 * np.sin(u * 3.2)),
        "cross": lambda: 0.3 - np.minimum(np.abs(u), np.abs(v)),
    }
    return np.asarray(inks[pattern](), np.float32)


def relief(mask: NDArray[np.uint8], light_xy: tuple[float, float], roundness: float) -> Plane:
    """Shading of a mask as if it were an inflated cushion lit from ``light_xy``: a factor around 1.

    The height is a quarter circle over the distance to the outline, ``roundness`` pixels wide at most.
    """
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    width = max(1.5, min(float(distance.max()), roundness))
    rest = 1 - np.minimum(distance / width, 1)
    height = cv2.GaussianBlur(np.sqrt(1 - rest**2) * width, (0, 0), max(0.8, width * 0.18))
    gx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    gy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    length = np.sqrt(gx**2 + gy**2 + 1)
    facing = (0.75 - gx * light_xy[0] - gy * light_xy[1]) / length
    glint = np.clip(facing - 1.02, 0, 1) * 0.9
    return np.asarray(np.clip(0.56 + 0.56 * facing, 0.3, 1.45) + glint, np.float32)
