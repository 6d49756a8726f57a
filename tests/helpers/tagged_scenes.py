"""Drawn pictures with tags, for the fits that learn from tags; and what they were painted from."""

from __future__ import annotations

import cv2
import numpy as np
from fit_scenes import Scene

from artifacts.records import MaskRef

SIZE = (64, 72)


def painted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A 64 x 72 picture: a red disc (1) or a green bar (2) on grey, all noisy; and its label map."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    x, y = (int(v) for v in rng.integers(22, 40, 2))
    if seed % 2:
        cv2.circle(mask, (x, y), 14, 1, -1)
    else:
        cv2.rectangle(mask, (x - 16, y - 10), (x + 16, y + 10), 2, -1)
    colours = np.array([[120, 120, 120], [200, 70, 60], [60, 190, 90]])
    return np.clip(colours[mask] + rng.normal(0, 12, (*SIZE, 3)), 0, 255).astype(np.uint8), mask


def tags_of(seed: int) -> tuple[int, ...]:
    """The picture's only tag."""
    return (1,) if seed % 2 else (2,)


def tagged(count: int = 4, *, monitor: bool = False, **stored: np.ndarray) -> list[Scene]:
    """Scenes with tags; ``stored`` arrays are the same for each."""
    truth = [MaskRef(f"{__name__}:load_truth", "", str(i)) if monitor else None for i in range(count)]
    return [Scene(painted(i)[0], stored, tags=tags_of(i), truth=truth[i]) for i in range(count)]


def load_truth(reference: MaskRef) -> np.ndarray:
    """Loader of the monitor's truth."""
    return painted(int(reference.detail))[1]
