"""Strokes drawn from masks: inside, one for each part, the same every time, shorter ones within longer ones."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from artifacts.datasets.scribble_drawing import draw_scribbles, middle_path
from artifacts.datasets.scribblesup import rasterize


@pytest.fixture(scope="module")
def mask_hw() -> np.ndarray:
    """Two discs of class 1, a bar of class 3 with a tail, a speck of class 2, undecided pixels round the bar."""
    mask = np.zeros((80, 100), np.uint8)
    cv2.rectangle(mask, (8, 48), (92, 70), 255, -1)
    cv2.rectangle(mask, (10, 50), (90, 60), 3, -1)
    cv2.circle(mask, (25, 25), 12, 1, -1)
    cv2.circle(mask, (70, 25), 16, 1, -1)
    mask[3:5, 50:52] = 2
    mask[76, 3] = 1  # a speck beside larger parts of its class
    return mask


def test_each_part_of_each_class_has_one_stroke_that_never_leaves_it(mask_hw: np.ndarray) -> None:
    drawn = draw_scribbles(mask_hw, "a")
    assert sorted(stroke.class_id for stroke in drawn) == [0, 1, 1, 2, 3], "a speck counts if its class has no other"
    for stroke in drawn:
        assert {int(mask_hw[round(y), round(x)]) for x, y in stroke.points_xy} == {stroke.class_id}
    thin = rasterize(drawn, mask_hw.shape, 1.0)
    assert (mask_hw[thin != 255] == thin[thin != 255]).all()


def test_the_stroke_of_a_bar_goes_along_its_middle(mask_hw: np.ndarray) -> None:
    path = middle_path(np.ones((11, 81), np.bool_))
    assert np.ptp(path[:, 0]) > 60 and np.abs(path[10:-10, 1] - 5).max() <= 1
    (bar,) = (stroke for stroke in draw_scribbles(mask_hw, "a") if stroke.class_id == 3)
    assert np.ptp([x for x, _ in bar.points_xy]) > 60
    with pytest.raises(ValueError, match="an empty region"):
        middle_path(np.zeros((3, 3), np.bool_))
    assert middle_path(np.ones((1, 1), np.bool_)).tolist() == [[0, 0]]


def test_a_ring_has_a_stroke_too() -> None:
    ring = np.zeros((40, 40), np.uint8)
    cv2.circle(ring, (20, 20), 15, 1, 4)
    path = middle_path(ring == 1)
    assert len(path) > 30 and (ring[path[:, 1], path[:, 0]] == 1).all()


def test_seed_and_image_decide_and_every_length_shrinks_the_same_stroke(mask_hw: np.ndarray) -> None:
    whole = draw_scribbles(mask_hw, "a")
    assert whole == draw_scribbles(mask_hw.copy(), "a") == draw_scribbles(mask_hw, "a", seed=1), (
        "all of it is all of it"
    )
    longer = [set(np.flatnonzero(rasterize([stroke], mask_hw.shape, 3.0) != 255)) for stroke in whole]
    for length in (0.8, 0.5, 0.3, 0.0):
        shorter = draw_scribbles(mask_hw, "a", length=length)
        assert [stroke.class_id for stroke in shorter] == [stroke.class_id for stroke in whole]
        pixels = [set(np.flatnonzero(rasterize([stroke], mask_hw.shape, 3.0) != 255)) for stroke in shorter]
        assert all(part <= all_ for part, all_ in zip(pixels, longer, strict=True)), length
        longer = pixels
    assert all(len(stroke.points_xy) == 1 for stroke in draw_scribbles(mask_hw, "a", length=0.0))
    clicks = {draw_scribbles(mask_hw, name, length=0.0, seed=seed) for name in ("a", "b") for seed in (0, 1)}
    assert len(clicks) == 4


def test_nothing_is_drawn_on_what_is_undecided() -> None:
    assert draw_scribbles(np.full((9, 9), 255, np.uint8), "a") == ()
