"""Energies of a CRF: equal to pydensecrf's helpers, right where a hand can check them, clear where they are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydensecrf import utils

from tasks.crf.unary import FORBIDDEN, check_layout, from_box_prior, from_labels, from_probabilities

# From probabilities


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 2, 21])
def test_probabilities_give_pydensecrfs_energies(dtype: Any, k: int) -> None:
    probs = np.random.default_rng(k).dirichlet(np.ones(k) * 0.3, (7, 5)).transpose(2, 0, 1).astype(dtype)
    probs[0, 0, 0] = 0
    unary = from_probabilities(probs)
    assert unary.dtype == np.float32 and unary.shape == (k, 7, 5) and unary.flags.c_contiguous
    expected = utils.unary_from_softmax(probs.astype(np.float64)).reshape(unary.shape)
    np.testing.assert_allclose(unary, expected, rtol=1e-6, atol=1e-6)


def test_the_floor_is_the_most_that_a_label_costs() -> None:
    probs = np.array([0.0, 1e-9, 0.5, 1.0]).reshape(1, 1, 4)
    np.testing.assert_allclose(from_probabilities(probs, 1e-3)[0, 0], [6.9078, 6.9078, 0.6931, 0.0], atol=1e-4)


def test_rounding_above_one_is_taken_for_one() -> None:
    assert from_probabilities(np.full((1, 1, 1), 1.0005, np.float32)).item() == 0.0


@pytest.mark.parametrize(
    ("probs", "floor", "message"),
    [
        (np.zeros((2, 3, 4), np.uint8), 1e-5, r"floating \(labels, height, width\) array, not \(2, 3, 4\) uint8"),
        (np.zeros((3, 4)), 1e-5, r"not \(3, 4\) float64"),
        (np.full((2, 3, 4), np.nan), 1e-5, r"must lie in 0\.\.1, not nan"),
        (np.full((2, 3, 4), -0.1), 1e-5, r"not -0\.1\.\.-0\.1; are these logits"),
        (np.full((2, 3, 4), 7.5), 1e-5, r"7\.5"),
        (np.full((2, 3, 4), np.inf), 1e-5, r"inf"),
        (np.zeros((2, 3, 4)), 0.0, r"floor 0\.0 must lie between 0 and 1"),
    ],
)
def test_what_is_no_probability_is_refused(probs: Any, floor: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_probabilities(probs, floor)


# From labels


@given(st.integers(2, 40), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_labels_give_pydensecrfs_energies(k: int, gt_prob: float, seed: int) -> None:
    assume(gt_prob > 1 / k)
    labels = np.random.default_rng(seed).integers(0, k + 1, (4, 6))  # pydensecrf: 0 unsure, labels from 1
    ours = np.where(labels == 0, 255, labels - 1).astype(np.uint8)
    expected = utils.unary_from_labels(labels, k, gt_prob).reshape(k, 4, 6)
    np.testing.assert_allclose(from_labels(ours, k, gt_prob), expected, rtol=1e-6, atol=1e-7)


def test_more_labels_than_a_byte_holds() -> None:
    unary = from_labels(np.array([[0, 299, -1]], np.int32), 300, 0.7, unknown=-1)
    assert unary.shape == (300, 1, 3)
    assert unary[299, 0, 1] == pytest.approx(-math.log(0.7))
    assert unary[298, 0, 1] == pytest.approx(-math.log(0.3 / 299))
    assert unary[:, 0, 2] == pytest.approx(math.log(300))


def test_one_label_costs_what_it_must_and_nothing_more() -> None:
    assert np.isfinite(from_labels(np.array([[0, 255]], np.uint8), 1)).all()


@pytest.mark.parametrize(
    ("labels", "k", "gt_prob", "message"),
    [
        (np.zeros((2, 2)), 2, 0.5, r"integer \(height, width\) array, not \(2, 2\) float64"),
        (np.zeros((1, 2, 2), np.uint8), 2, 0.5, r"not \(1, 2, 2\)"),
        (np.full((2, 3), 2, np.uint8), 2, 0.6, r"label 2 at row 0, column 0: labels are 0\.\.1, 255 is unknown"),
        (np.full((2, 3), -1), 2, 0.6, r"label -1"),
        (np.zeros((2, 3), np.uint8), 0, 0.5, r"at least 1, not 0"),
        (np.zeros((2, 3), np.uint8), 2, 1.0, r"gt_prob 1\.0"),
        (np.zeros((2, 3), np.uint8), 2, 0.5, r"no likelier than the others; give more than 0\.5, or leave it out"),
        (np.zeros((2, 3), np.uint8), 5, 0.2, r"give more than 0\.2"),
    ],
)
def test_what_is_no_label_map_is_refused(labels: Any, k: int, gt_prob: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_labels(labels, k, gt_prob)


@pytest.mark.parametrize("k", [2, 3, 21, 300])
def test_by_default_a_label_is_likelier_than_each_other_by_the_same_factor(k: int) -> None:
    unary = from_labels(np.array([[1]]), k)[:, 0, 0]
    assert np.exp(-unary).sum() == pytest.approx(1)
    assert np.delete(unary, 1) - unary[1] == pytest.approx(math.log(20)), "0.5 with 21 labels, .95 with 2"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 20, 30), r"array\[0\] takes off the batch axis"),
        ((4, 5, 20, 30), r"array\[i\]"),
        ((20, 30), r"np.stack"),
        ((5, 0, 30), "at least one of each"),
        ((5, 30, 20), r"transposed\? array.transpose\(0, 2, 1\)"),
        ((5, 15, 10), r"transposed\?"),
        ((20, 30, 5), r"labels last\? array.transpose\(2, 0, 1\)"),
        ((30, 20, 5), r"labels last and transposed\? array.transpose\(2, 1, 0\)"),
        ((40, 60, 5), r"labels last\?"),
        ((400, 30, 20), r"transposed\?"),
        ((400, 3, 2), r"labels last\?"),
        ((400, 41, 41), r"labels last\?"),
    ],
)
def test_axes_in_another_order_are_refused_with_the_call_that_mends_them(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_layout(shape, (20, 30))


def test_a_grid_of_any_size_is_taken() -> None:
    for grid in ((20, 30), (10, 15), (3, 4), (41, 41), (1, 1), (321, 481), (2, 3)):
        check_layout((5, *grid), (20, 30))
    check_layout((5, 4, 4), (4, 4))
    check_layout((30, 20, 30), (20, 30))
    check_layout((21, 41, 41), (321, 321))
    for height in range(1, 400, 7):  # a network's own grid, whatever its rounding
        for stride in (8, 16):
            check_layout((5, -(-height // stride), -(-333 // stride)), (height, 333))
            check_layout((5, height // stride + 1, 333 // stride + 1), (height, 333))


# From boxes


def allowed(unary: np.ndarray) -> list[str]:
    """Rows of pixels, each the labels it may have as a number in base 2 (1 background, 2 first class, 4 second)."""
    assert set(np.unique(unary)) <= {0.0, FORBIDDEN}
    bits = (unary == 0).astype(int)
    return ["".join(str(value) for value in row) for row in (bits * 2 ** np.arange(len(bits))[:, None, None]).sum(0)]


def test_outside_is_background_the_core_is_the_class_and_between_is_open() -> None:
    # 4 x 4 box, a quarter of its pixels certain: the 2 x 2 in its middle.
    assert allowed(from_box_prior([(1, 1, 5, 5)], [1], (6, 7), 1, core=0.25)) == [
        "1111111",
        "1333311",
        "1322311",
        "1322311",
        "1333311",
        "1111111",
    ]


def test_a_smaller_box_opens_the_larger_ones_core() -> None:
    # Of 10 pixels the middle 6 (.36 is .6 of the width and .6 of the height); of 3 pixels 1.8, which is one centre.
    assert allowed(from_box_prior([(4, 0, 7, 1), (0, 0, 10, 1)], [2, 1], (1, 10), 2, core=0.36)) == ["3322646233"]


@given(st.integers(0, 2**31))
def test_boxes_in_any_order_and_sticking_out_give_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-5, 20, (5, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    classes = rng.integers(1, 4, 5)
    order = rng.permutation(5)
    first = from_box_prior(boxes, classes, (12, 15), 3)
    np.testing.assert_array_equal(first, from_box_prior(boxes[order], classes[order], (12, 15), 3))
    assert (first == 0).any(axis=0).all(), "every pixel may have some label"


def test_no_box_is_background_and_no_core_leaves_all_of_the_box_open() -> None:
    assert allowed(from_box_prior([], [], (2, 3), 1)) == ["111", "111"]
    assert allowed(from_box_prior([(0, 0, 3, 1)], [1], (2, 3), 1, core=0)) == ["333", "111"]


@pytest.mark.parametrize(
    ("boxes", "classes", "core", "message"),
    [
        ([(0, 0, 1, 1)], [1, 2], 0.2, "1 boxes have 2 class numbers"),
        ([(0, 0, 1, 1)], [3], 0.2, r"class number 3 of box .*classes are 1\.\.2"),
        ([(0, 0, 1, 1)], [0], 0.2, "class number 0"),
        ([(2, 0, 1, 1)], [1], 0.2, "x0 <= x1"),
        ([(0, 0, math.nan, 1)], [1], 0.2, "finite"),
        ([(0, 0, 1, 1)], [1], 1.5, r"core 1\.5 must lie in 0\.\.1"),
    ],
)
def test_impossible_boxes_are_refused(boxes: Any, classes: Any, core: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_box_prior(boxes, classes, (4, 5), 2, core)
