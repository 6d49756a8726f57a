"""A picture with a marked pixel, and heat maps of that pixel's attention to every place (LGSA, Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.records import ImageRGB
from artifacts.report import drawing
from artifacts.report.drawing import Colour, Picture, Sheet

MARGIN, GAP, LINE = 24, 12, 22
WIDTH = 320
RED = (230, 40, 40)


@dataclass(frozen=True)
class HeatPanel:
    """One map: weights ``(h, w)`` >= 0 on any grid over the whole picture, with text above and below."""

    title: str
    weights_hw: NDArray[np.float32]
    caption: str = ""


def heat_sheet(image_rgb: ImageRGB, xy: tuple[float, float], panels: Sequence[HeatPanel], path: Path) -> None:
    """Write a PNG: the picture with a red cross at pixel ``x, y``, then each map over it.

    Each map is shown from 0 to its own largest value. Long titles and captions are wrapped, not cut: what tells two
    runs may stand anywhere in them. Raises ``ValueError`` without panels or for a negative weight.
    """
    if not panels:
        raise ValueError("a heat sheet needs at least one map")
    scale = WIDTH / image_rgb.shape[1]
    height = max(1, round(image_rgb.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(image_rgb, (WIDTH, height), interpolation=how), np.uint8)
    at = ((xy[0] + 0.5) * scale - 0.5, (xy[1] + 0.5) * scale - 0.5)
    shown = [HeatPanel(f"x={xy[0]:g}, y={xy[1]:g}", np.zeros((1, 1), np.float32)), *panels]
    titles = [drawing.wrap_text(panel.title, 14, WIDTH, bold=True) for panel in shown]
    captions = [drawing.wrap_text(panel.caption, 12, WIDTH) for panel in shown]
    above, below = (LINE * max(map(len, lines)) for lines in (titles, captions))
    sheet = Sheet(2 * MARGIN + len(shown) * (WIDTH + GAP) - GAP, 2 * MARGIN + above + height + below)
    for place, panel in enumerate(shown):
        x = MARGIN + place * (WIDTH + GAP)
        for number, line in enumerate(titles[place]):
            sheet.text(x, MARGIN - 6 + number * LINE, line, size=14, bold=True)
        tile = picture.copy() if place == 0 else heat_overlay(picture, panel.weights_hw)
        _cross(tile, at)
        sheet.paste(tile, x, MARGIN + above - 4)
        for number, line in enumerate(captions[place]):
            sheet.text(x, MARGIN + above + height + 2 + number * LINE, line, size=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def heat_overlay(picture_rgb: Picture, weights_hw: NDArray[np.float32], top: float | None = None) -> Picture:
    """The map in colours (dark: nothing, bright: ``top``) over the grey picture, ``(H, W, 3) uint8``.

    ``top`` is the map's largest value by default. Raises ``ValueError`` for a negative weight.
    """
    if float(weights_hw.min()) < 0:
        raise ValueError("a heat map has no negative weights")
    fine = _fine(weights_hw, picture_rgb, float(weights_hw.max()) if top is None else top)
    heat = cv2.applyColorMap(np.round(255 * fine).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = picture_rgb.mean(axis=2, keepdims=True)
    return np.asarray(np.clip(np.round(0.3 * grey + 0.7 * heat), 0, 255), np.uint8)


def class_heat(picture_rgb: Picture, maps_chw: NDArray[np.float32], colours: Sequence[Colour | None]) -> Picture:
    """Each pixel in the colour of its strongest channel, paler the weaker it is; ``(H, W, 3) uint8``.

    Args:
        picture_rgb: (H, W, 3) uint8.
        maps_chw: (c, h, w) >= 0 on any grid over the whole picture.
        colours: of each channel; ``None`` for background, which is not drawn.
    """
    top = heat_scale(maps_chw)
    drawn = [(_fine(one, picture_rgb, top), colour) for one, colour in zip(maps_chw, colours, strict=True) if colour]
    fine = np.stack([one for one, _ in drawn])
    table = np.array([colour for _, colour in drawn], np.float32)
    strength = fine.max(axis=0)[..., None]
    grey = picture_rgb.mean(axis=2, keepdims=True)
    found = (1 - strength) * (0.62 * grey + 0.38 * 255) + strength * (0.3 * grey + 0.7 * table[fine.argmax(axis=0)])
    return np.asarray(np.clip(np.round(found), 0, 255), np.uint8)


def heat_scale(maps: NDArray[np.floating[Any]]) -> float:
    """The value that is drawn brightest: 1, as of probabilities, or the largest where that is above 1."""
    return max(1.0, float(np.asarray(maps, np.float32).max()))


def _fine(weights_hw: NDArray[np.float32], picture_rgb: Picture, top: float) -> NDArray[np.float32]:
    """The map at the picture's size, 0..1."""
    height, width = picture_rgb.shape[:2]
    relative = np.minimum(np.asarray(weights_hw, np.float32) / max(top, 1e-30), 1)
    # As the network's maps are brought to a picture's size: bilinear, cells' centres on cells' centres.
    return np.asarray(cv2.resize(relative, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _cross(picture: Picture, at: tuple[float, float]) -> None:
    x, y = at
    for colour, width, arm in (((255, 255, 255), 4, 9), (RED, 2, 8)):
        for ends in (((x - arm, y), (x + arm, y)), ((x, y - arm), (x, y + arm))):
            drawing.polyline(picture, np.array(ends), colour, width)
