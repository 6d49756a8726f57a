"""Pictures and energies that the CRF's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.images import read_image_rgb
from tasks.stage import Item

SHARED = Path(__file__).parents[2] / "../shared/data/voc-mini"
"""Real photographs; tests skip where they are absent."""


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """The image of a :func:`scene`."""
    return scene(height, width, seed)[0]


def scene(height: int, width: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Soft ground, three flat shapes, sensor noise: what a small photograph looks like to a CRF; and labels 0..3."""
    rng = np.random.default_rng(seed)
    ground = rng.uniform(0, 255, (3, 4, 3)).astype(np.float32)
    image = cv2.resize(ground, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 3)
    labels = np.zeros((height, width), np.uint8)
    for number in (1, 2, 3):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (max(1, int(width * rng.uniform(0.1, 0.4))), max(1, int(height * rng.uniform(0.1, 0.4))))
        angle, colour = float(rng.uniform(0, 180)), rng.uniform(0, 255, 3).tolist()
        image = np.ascontiguousarray(image)
        cv2.ellipse(image, centre, axes, angle, 0, 360, colour, -1)
        cv2.ellipse(labels, centre, axes, angle, 0, 360, number, -1)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8), labels


def energies(k: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Unaries as a coarse network's: smooth maps of probabilities, -log of them."""
    rng = np.random.default_rng(seed)
    logits = [
        cv2.resize(rng.normal(0, 2, (4, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(k)
    ]
    maps = np.stack(logits).reshape(k, height, width)
    maps -= maps.max(axis=0)
    return (np.log(np.exp(maps).sum(axis=0)) - maps).astype(np.float32)


def cam_like(labels_hw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unaries that know the objects roughly, as activation maps do: blurred labels, a tenth of doubt."""
    k = int(labels_hw.max()) + 1
    sigma = 0.05 * max(labels_hw.shape)
    maps = np.stack([cv2.GaussianBlur((labels_hw == n).astype(np.float32), (0, 0), sigma) for n in range(k)])
    return -np.log(0.9 * maps / maps.sum(axis=0) + 0.1 / k).astype(np.float32)


def photographs(count: int) -> list[Path]:
    """The first real photographs, or none."""
    return sorted((SHARED / "JPEGImages").glob("*.jpg"))[:count]


def labelled_photographs(count: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The first real photographs with labels 0..k-1 that are all there (255 is taken for background), or none."""
    found = []
    for mask in sorted((SHARED / "SegmentationClass").glob("*.png"))[:count]:
        with Image.open(mask) as opened:
            numbers = np.asarray(opened)
        _, labels = np.unique(np.where(numbers == 255, 0, numbers), return_inverse=True)
        found.append((read_image_rgb(SHARED / "JPEGImages" / f"{mask.stem}.jpg"), labels.reshape(numbers.shape)))
    return [(image, labels.astype(np.uint8)) for image, labels in found]


def two_class_probs(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """A stage function: background, and class 2 where the picture's left half is bright; at a grid of 5 x 7."""
    assert item.image_rgb is not None
    small = cv2.resize(item.image_rgb, (7, 5), interpolation=cv2.INTER_AREA).mean(2) / 255
    small[:, 4:] *= 0.2
    return {"probs_chw": np.stack([1 - small, small]).astype(np.float16), "classes_c": np.array([0, 2], np.uint8)}
