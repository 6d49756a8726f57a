"""A picture whose object is known, for the tests of GrabCut and of the refinement."""

from __future__ import annotations

import hashlib

import numpy as np

from artifacts.records import Record
from tasks.stage import Item


def disc_image(size=80, radius=22, centre=(40, 40), noise=12):
    """A red disc on green grass: (image, truth)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] + 0.5
    truth = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    image = np.where(truth[..., None], (200, 40, 40), (40, 150, 60)) + rng.normal(0, noise, (size, size, 3))
    return image.clip(0, 255).astype(np.uint8), truth


def painted(truth, foreground, background, noise=8):
    """An object of one colour on a ground of one colour, noise on both."""
    rng = np.random.default_rng(0)
    image = np.where(truth[..., None], foreground, background) + rng.normal(0, noise, (*truth.shape, 3))
    return image.clip(0, 255).astype(np.uint8)


def whole(window, mask, size_hw):
    image = np.zeros(size_hw, dtype=bool)
    image[window[1] : window[3], window[0] : window[2]] = mask
    return image


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def fingerprint(mask_hw):
    """What a golden mask is compared by: its shape, type and every pixel's place."""
    digest = hashlib.sha256(f"{mask_hw.shape} {mask_hw.dtype.str} ".encode())
    digest.update(np.ascontiguousarray(mask_hw).tobytes())
    return digest.hexdigest()


def item(image, boxes, key="set/one", **up):
    return Item(key, Record(key.partition("/")[2], "one.png", boxes=tuple(boxes)), ("a", "b", "c"), image, up)
