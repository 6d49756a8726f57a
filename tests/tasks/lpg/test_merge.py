"""Eq. 7 and section III-D of LPG against a pixel by pixel reading of them, and the cases in which it is decided."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from artifacts.records import Box, Record
from tasks.lpg.merge import box_map, boxes_by_class, class_mask, merge, object_target, overlap_rate
from tasks.stage import SkipImage

NAMES = {1: "cat", 2: "ant", 3: "bee", 4: "dog"}
Masks = Mapping[int, np.ndarray]


def brute_force(masks: Masks, foreground: Masks, names: Mapping[int, str]) -> np.ndarray:
    """Every pixel by itself: the class that beats each other one there, in rates of whole masks, pair by pair."""
    shape = next(iter(masks.values())).shape
    found = np.zeros(shape, np.uint8)

    def beats(one: int, other: int, y: int, x: int) -> bool:
        rate, theirs = overlap_rate(masks[one], masks[other]), overlap_rate(masks[other], masks[one])
        if rate != theirs:
            return rate > theirs
        here, there = foreground[one][y, x], foreground[other][y, x]
        return here > there if here != there else names[one] < names[other]

    for y, x in np.ndindex(*shape):
        there = [one for one in masks if masks[one][y, x]]
        winners = [one for one in there if all(beats(one, other, y, x) for other in there if other != one)]
        assert len(winners) == bool(there)
        found[y, x] = winners[0] if winners else 0
    return found


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_pairwise_rule_at_every_pixel_whatever_the_order_and_the_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 2 + seed % 3
    masks = {one: rng.random((7, 6)) < 0.5 for one in range(1, count + 1)}
    if seed % 2:  # equal areas: rates are equal, probabilities decide, at some pixels the names do
        masks = {one: np.roll(masks[1], one, axis=1) for one in masks}
    foreground = {one: rng.integers(6, 9, (7, 6)) / 10 for one in masks}
    expected = brute_force(masks, foreground, NAMES)
    for order in itertools.permutations(masks):
        assert np.array_equal(merge({one: masks[one] for one in order}, foreground, NAMES, (7, 6)), expected)
    # Another class table: the same classes under other numbers.
    other = {one: count + 1 - one for one in masks}
    renumbered = merge(
        {other[one]: mask for one, mask in masks.items()},
        {other[one]: values for one, values in foreground.items()},
        {other[one]: NAMES[one] for one in masks},
        (7, 6),
    )
    back = np.array([0, *(next(one for one in masks if other[one] == number) for number in range(1, count + 1))])
    assert np.array_equal(back[renumbered], expected)


def full(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((8, 10), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def even(masks: Masks) -> dict[int, np.ndarray]:
    return {one: np.full((8, 10), 0.9) for one in masks}


def test_rates_by_hand() -> None:
    large, small = full(0, 0, 8, 8), full(6, 0, 10, 4)
    assert overlap_rate(small, large) == 8 / 16 and overlap_rate(large, small) == 8 / 64
    assert overlap_rate(np.zeros((8, 10), np.bool_), large) == 0.0
    merged = merge({1: large, 2: small}, even({1: large, 2: small}), NAMES, (8, 10))
    assert (merged[:4, 6:] == 2).all() and (merged[:, :6] == 1).all() and (merged[4:, 8:] == 0).all()


def test_of_nested_boxes_the_inner_class_keeps_its_pixels() -> None:
    masks = {1: full(0, 0, 10, 8), 2: full(2, 2, 8, 6), 3: full(4, 3, 6, 5)}
    merged = merge(masks, even(masks), NAMES, (8, 10))
    assert (merged[masks[3]] == 3).all() and (merged == 2).sum() == 24 - 4 and (merged == 1).sum() == 80 - 24


def test_of_identical_boxes_probability_decides_pixel_by_pixel_and_then_the_name() -> None:
    masks = {1: full(1, 1, 9, 7), 2: full(1, 1, 9, 7)}
    foreground = {1: np.full((8, 10), 0.8), 2: np.full((8, 10), 0.8)}
    assert set(np.unique(merge(masks, foreground, NAMES, (8, 10)))) == {0, 2}, "ant before cat"
    foreground[1][:, :5] = 0.81
    merged = merge(masks, foreground, NAMES, (8, 10))
    assert (merged[1:7, 1:5] == 1).all() and (merged[1:7, 5:9] == 2).all()


def test_an_image_without_boxes_is_background() -> None:
    assert boxes_by_class(Record("a", "", boxes=()), difficult=True) == {}
    assert np.array_equal(merge({}, {}, {}, (3, 4)), np.zeros((3, 4), np.uint8))
    with pytest.raises(SkipImage, match="a: no boxes are known"):
        boxes_by_class(Record("a", ""), difficult=True)


def test_a_class_has_the_union_of_its_boxes_and_nothing_outside_of_them() -> None:
    boxes = (
        Box(0, 2, 0, 0, 3, 2),
        Box(1, 1, 5, 5, 9.4, 8),
        Box(2, 2, 2, 1, 20, 3),
        Box(3, 3, 0, 0, 9, 9, difficult=True),
        Box(4, 4, 0, 0, 9, 9, crowd=True),
    )
    record = Record("a", "", boxes=boxes)
    own = boxes_by_class(record, difficult=False)
    assert {one: [box.id for box in found] for one, found in own.items()} == {1: [1], 2: [0, 2]}
    assert list(boxes_by_class(record, difficult=True)) == [1, 2, 3]
    inside = box_map(own[2], (8, 10))
    assert np.array_equal(inside, full(0, 0, 3, 2) | full(2, 1, 10, 3))
    everywhere = np.full((8, 10), 0.99)
    assert np.array_equal(class_mask(everywhere, inside), inside)
    assert not class_mask(np.full((8, 10), 0.5), inside).any(), "numpy.argmax takes the first of equal channels"


def test_the_target_of_a_class_is_its_object_inside_its_boxes() -> None:
    truth = np.array([[1, 1, 2, 255], [1, 0, 2, 2]], np.uint8)
    inside = np.array([[0, 1, 1, 1], [0, 1, 1, 0]], np.bool_)
    assert object_target(truth, 2, inside).tolist() == [[0, 0, 1, 255], [0, 0, 1, 0]]
    assert object_target(truth, 1, inside).tolist() == [[0, 1, 0, 255], [0, 0, 0, 0]]
