"""Pictures with one object each, and what the stages around CFS give for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
from fit_scenes import CLASSES

from artifacts.objects import pack_objects
from artifacts.records import Box, Record
from tasks.cfs.stages import CFSParams
from tasks.stage import Item

SMALL = CFSParams(
    network="tiny",
    weights="none",
    width=4,
    crop=16,
    min_side=10.0,
    margin_jitter=0.5,
    colour_jitter=0.3,
    batch=4,
    iterations=2,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
)
WHERE = (20, 14, 56, 50)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A 64 x 72 picture with one object in :data:`WHERE`, a red disc or a green bar: (image, object)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 72), np.uint8)
    if seed % 2:
        cv2.circle(mask, (38, 32), 17, 1, -1)
    else:
        cv2.rectangle(mask, (20, 26), (55, 38), 2, -1)
    colours = np.array([[120, 120, 120], [200, 70, 60], [60, 190, 90]])
    return np.clip(colours[mask] + rng.normal(0, 12, (64, 72, 3)), 0, 255).astype(np.uint8), mask > 0


def box_of(seed: int, **fields: Any) -> Box:
    return dataclasses.replace(Box(7, 1 + (seed + 1) % 2, *map(float, WHERE)), **fields)


def coarse(boxes: list[Box], mask: np.ndarray) -> dict[str, Any]:
    """Packed masks of boxes that lie in the image: what a coarse stage found."""
    windows = [tuple(int(v) for v in box.xyxy) for box in boxes]
    return pack_objects([box.id for box in boxes], windows, [mask[y0:y1, x0:x1] for x0, y0, x1, y1 in windows])


def item_of(image: np.ndarray, boxes: list[Box], mask: np.ndarray | None = None, **nets: str) -> Item:
    up = {} if mask is None else {"coarse": coarse(boxes, mask)}
    return Item("set/one", Record("one", "one.png", boxes=tuple(boxes)), CLASSES, image, up, nets)
