"""Do per-object masks survive packing, and land in the image where and in the order they should?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.objects import (
    OBJECT_ARRAYS,
    Object,
    pack_objects,
    paint_label_map,
    paste_object,
    tight_window,
    unpack_objects,
)

FEW = settings(max_examples=40, deadline=None)


@st.composite
def some_objects(draw: st.DrawFn, max_objects: int = 6) -> list[Object]:
    """Objects with distinct ids, all uint8 or all float16, whose windows may lie partly or wholly outside 12 x 10."""
    count = draw(st.integers(0, max_objects))
    ids = draw(st.lists(st.integers(0, 500), min_size=count, max_size=count, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probabilities = draw(st.booleans())
    objects = []
    for object_id in ids:
        x0, y0 = (draw(st.integers(-8, 14)) for _ in range(2))
        width, height = (draw(st.integers(0, 9)) for _ in range(2))
        values = rng.random((height, width))
        mask = values.astype(np.float16) if probabilities else (values > 0.5).astype(np.uint8)
        objects.append(Object(object_id, (x0, y0, x0 + width, y0 + height), mask))
    return objects


def pack(objects: list[Object]) -> dict[str, np.ndarray]:
    return pack_objects([o.id for o in objects], [o.window_xyxy for o in objects], [o.values_hw for o in objects])


def assert_same(left: list[Object], right: list[Object]) -> None:
    assert [(o.id, o.window_xyxy) for o in left] == [(o.id, o.window_xyxy) for o in right]
    for a, b in zip(left, right, strict=True):
        assert a.values_hw.dtype == b.values_hw.dtype
        np.testing.assert_array_equal(a.values_hw, b.values_hw)


@FEW
@given(some_objects())
def test_what_is_packed_is_unpacked(objects: list[Object]) -> None:
    arrays = pack(objects)
    assert tuple(arrays) == OBJECT_ARRAYS
    assert [arrays[name].dtype for name in OBJECT_ARRAYS[:4]] == [np.int64, np.int32, np.int32, np.int64]
    assert_same(unpack_objects(arrays), objects)


@pytest.mark.parametrize("count", [0, 1, 200])
def test_any_number_of_objects(count: int) -> None:
    objects = [Object(i, (i, 2, i + 3, 6), np.full((4, 3), i % 2, np.uint8)) for i in range(count)]
    arrays = pack(objects)
    assert arrays["objects_flat"].nbytes == 12 * count
    assert arrays["windows_xyxy_n4"].shape == (count, 4)
    assert_same(unpack_objects(arrays), objects)


def test_bool_masks_are_stored_as_uint8_whatever_their_strides() -> None:
    mask = np.array([[True, False, True], [False, False, True]])
    (back,) = unpack_objects(pack_objects([7], [(0, 0, 2, 3)], [mask.T]))
    assert back.values_hw.dtype == np.uint8
    assert back.values_hw.tolist() == [[1, 0], [0, 0], [1, 1]]


@FEW
@given(some_objects())
def test_pasting_moves_every_pixel_that_lies_in_the_image_and_no_other(objects: list[Object]) -> None:
    height, width = 12, 10
    for item in objects:
        expected = np.zeros((height, width), item.values_hw.dtype)
        x0, y0, x1, y1 = item.window_xyxy
        for y in range(y0, y1):
            for x in range(x0, x1):
                if 0 <= y < height and 0 <= x < width:
                    expected[y, x] = item.values_hw[y - y0, x - x0]
        np.testing.assert_array_equal(paste_object(item.values_hw, item.window_xyxy, (height, width)), expected)


@FEW
@given(some_objects(), st.randoms(use_true_random=False))
def test_painting_does_not_depend_on_the_order_of_the_objects(objects: list[Object], random: object) -> None:
    classes = {o.id: 1 + o.id % 254 for o in objects}
    painted = paint_label_map(objects, classes, (12, 10))
    shuffled = list(objects)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(paint_label_map(shuffled, classes, (12, 10)), painted)


@FEW
@given(some_objects())
def test_each_pixel_belongs_to_the_smallest_object_that_covers_it(objects: list[Object]) -> None:
    classes = {o.id: 1 + i for i, o in enumerate(objects)}
    painted = paint_label_map(objects, classes, (12, 10))
    covers = {o.id: paste_object(o.values_hw, o.window_xyxy, (12, 10)) > 0.5 for o in objects}
    for y, x in np.ndindex(12, 10):
        over = [o for o in objects if covers[o.id][y, x]]
        top = min(over, key=lambda o: (o.window_area, -o.id), default=None)
        assert painted[y, x] == (0 if top is None else classes[top.id])


def test_a_small_object_lies_on_a_large_one_and_ties_go_to_the_higher_id() -> None:
    large = Object(9, (0, 0, 4, 1), np.ones((1, 4), np.uint8))
    low, high = (Object(i, (i, 0, i + 2, 1), np.ones((1, 2), np.uint8)) for i in (0, 1))
    assert paint_label_map([high, large, low], {9: 9, 0: 5, 1: 6}, (1, 4)).tolist() == [[5, 6, 6, 9]]


def test_boxes_can_decide_the_order_where_windows_hold_context() -> None:
    tight = Object(1, (0, 0, 2, 1), np.ones((1, 2), np.uint8))
    wide = Object(2, (0, 0, 4, 1), np.ones((1, 4), np.uint8))
    painted = paint_label_map([tight, wide], {1: 1, 2: 2}, (1, 4), area_of_id={1: 2.0, 2: 1.5})
    assert painted.tolist() == [[2, 2, 2, 2]]


def test_a_probability_must_exceed_the_threshold() -> None:
    values = np.array([[0.4, 0.5, 0.6, 0.9]], np.float16)
    item = Object(3, (0, 0, 4, 1), values)
    assert paint_label_map([item], {3: 7}, (1, 4)).tolist() == [[0, 0, 7, 7]]
    assert paint_label_map([item], {3: 7}, (1, 4), threshold=0.7).tolist() == [[0, 0, 0, 7]]


@pytest.mark.parametrize(
    ("ids", "windows", "masks", "message"),
    [
        ([1, 2], [(0, 0, 1, 1)], [np.ones((1, 1), bool)], "2 ids, 1 windows and 1 masks"),
        ([1, 1], [(0, 0, 1, 1)] * 2, [np.ones((1, 1), bool)] * 2, "occurs twice"),
        ([4], [(0, 0, 2, 3)], [np.ones((2, 3), bool)], r"object 4: window .* needs a mask of \(3, 2\)"),
        ([4], [(0, 0, -1, 1)], [np.ones((1, 1), bool)], "object 4"),
        ([4], [(0, 0.5, 1, 1)], [np.ones((1, 1), bool)], "whole pixel edges"),
        ([4], [(2**31, 0, 2**31 + 1, 1)], [np.ones((1, 1), bool)], "int32"),
        ([4], [(0, 0, 1, 1)], [np.ones((1, 1), np.float32)], "got float32"),
        ([4, 5], [(0, 0, 1, 1)] * 2, [np.ones((1, 1), bool), np.ones((1, 1), np.float16)], "share a dtype"),
    ],
)
def test_what_cannot_be_packed_is_refused(ids: list[int], windows: list, masks: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_objects(ids, windows, masks)


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    arrays = pack_objects([1, 2], [(0, 0, 2, 2), (1, 1, 3, 3)], [np.ones((2, 2), bool)] * 2)
    with pytest.raises(ValueError, match="object 2: size .* 7 stored elements"):
        unpack_objects(arrays | {"objects_flat": arrays["objects_flat"][:-1]})
    with pytest.raises(ValueError, match="2 ids, 1 windows"):
        unpack_objects(arrays | {"windows_xyxy_n4": arrays["windows_xyxy_n4"][:1]})


def test_an_object_without_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objects \[3\] have no class"):
        paint_label_map([Object(3, (0, 0, 1, 1), np.ones((1, 1), np.uint8))], {4: 1}, (1, 1))


def test_a_mask_is_what_is_not_zero_and_of_probabilities_what_exceeds_a_half() -> None:
    values = np.array([[0, 1, 2]], np.uint8)
    assert Object(0, (0, 0, 3, 1), values).mask_hw.tolist() == [[False, True, True]]
    probabilities = np.array([[0.0, 0.4, 0.5, 0.6]], np.float16)
    assert Object(0, (0, 0, 4, 1), probabilities).mask_hw.tolist() == [[False, False, False, True]]


def test_the_tight_window_of_a_mask() -> None:
    mask_hw = np.zeros((5, 7), np.bool_)
    assert tight_window(mask_hw) == (0, 0, 0, 0)
    mask_hw[1, 2] = mask_hw[3, 5] = True
    assert tight_window(mask_hw) == (2, 1, 6, 4)
