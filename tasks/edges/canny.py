"""Boundaries without a network: Canny's filter (IEEE TPAMI 8(6), 1986) at all thresholds at once. No torch."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.records import ImageRGB
from tasks.edges.stages import EdgesParams
from tasks.edges.thin import suppress, to_uint8
from tasks.stage import Arrays, Item, image_of

SIGMA = 2.5
"""Pixels; the best of 1.5, 2, 2.5 and 3 on BSDS500."""
LOWER = 0.4
"""Hysteresis: a crest goes on while it is at least this share of the upper threshold."""
LEVELS = 64
"""Upper thresholds that are told apart."""


def edges_item(item: Item, params: EdgesParams) -> Arrays:
    """Map function of :func:`tasks.edges.stages.edges` with Canny: ``edges_hw (H, W) uint8``."""
    return {"edges_hw": to_uint8(canny(image_of(item)))}


def canny(image_rgb: ImageRGB) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (H, W) float32 in 0..1: the largest upper threshold at which Canny's filter draws the pixel.

    Thresholds are square roots of a contrast: a straight step from black to white has 1, one of a quarter of that .5.
    """
    grey = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    blurred = cv2.GaussianBlur(grey, (0, 0), SIGMA, borderType=cv2.BORDER_REPLICATE)
    dx = cv2.Sobel(blurred, cv2.CV_32F, 1, 0, ksize=1, borderType=cv2.BORDER_REPLICATE)
    dy = cv2.Sobel(blurred, cv2.CV_32F, 0, 1, ksize=1, borderType=cv2.BORDER_REPLICATE)
    magnitude = np.hypot(dy, dx)
    across = np.maximum(magnitude, 1e-12)
    # The blurred step's slope is its height / (sigma * sqrt(2 pi)), and ksize 1 is the difference over two pixels.
    contrast = magnitude / 2 * (SIGMA * math.sqrt(2 * math.pi))
    return hysteresis(np.sqrt(suppress(contrast, dy / across, dx / across)), math.sqrt(LOWER))


def hysteresis(crests_hw: NDArray[np.float32], lower: float) -> NDArray[np.float32]:
    """(H, W) in 0..1, 0 between crests -> the largest upper threshold, of :data:`LEVELS`, that keeps the pixel.

    At an upper threshold t those pixels are kept that are connected, diagonally too, to one of at least t by pixels of
    at least ``lower * t``.
    """
    found = np.zeros(crests_hw.shape, np.float32)
    for level in range(1, LEVELS + 1):
        upper = level / LEVELS
        count, parts = cv2.connectedComponents((crests_hw >= lower * upper).astype(np.uint8), connectivity=8)
        strong = np.zeros(count, bool)
        strong[parts[crests_hw >= upper]] = True
        strong[0] = False
        if not strong.any():
            break
        found[strong[parts]] = upper
    return found
