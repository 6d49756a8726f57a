"""CFS's crops: the right pixels of the right size, the box where it is said to be, and exactly the way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.objects import paste_object
from tasks.boxes import pixel_window
from tasks.cfs.box_crop import BoxCrop, resize_axes

FILL = (9, 8, 7)


@st.composite
def windows(draw, size=(1, 60)):
    """An image's size, and the pixels of a box in it, at any border, of any shape."""
    height, width = draw(st.tuples(st.integers(*size), st.integers(*size)))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (height, width), (x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height)))


def area_share(values, length):
    """Means over the area, one axis, by brute force: how much of each old pixel lies in each new one."""
    step = len(values) / length
    return np.array(
        [
            sum(v * max(0.0, min((i + 1) * step, j + 1) - max(i * step, j)) for j, v in enumerate(values)) / step
            for i in range(length)
        ]
    )


class TestGeometry:
    def test_the_box_grows_by_half_of_its_sides(self):
        crop = BoxCrop.around((10, 20, 50, 40), 1.5, 32)
        assert crop.outer_xyxy == (0, 15, 60, 45) and crop.outer_hw == (30, 60)
        assert crop.inner == (slice(5, 25), slice(10, 50))

    def test_context_one_still_shows_an_edge(self):
        assert BoxCrop.around((3, 3, 4, 9), 1.0, 16).outer_xyxy == (2, 2, 5, 10)

    def test_factors_scale_the_margins_one_by_one(self):
        crop = BoxCrop.around((40, 40, 80, 60), 1.5, 32, (0.5, 2.0, 1.0, 0.0))
        assert crop.outer_xyxy == (35, 30, 90, 61)

    @pytest.mark.parametrize("window", [(4, 4, 4, 9), (4, 4, 9, 4), (5, 5, 4, 4)])
    def test_nothing_to_crop_is_an_error(self, window):
        with pytest.raises(ValueError, match="no area"):
            BoxCrop.around(window, 1.5, 32)

    @settings(max_examples=60, deadline=None)
    @given(windows(), st.integers(16, 64))
    def test_same_centre_one_and_a_half_sides(self, drawn, side):
        _, window = drawn
        crop = BoxCrop.around(window, 1.5, side)
        for low, high in ((0, 2), (1, 3)):
            assert crop.outer_xyxy[low] + crop.outer_xyxy[high] == window[low] + window[high]
            length = window[high] - window[low]
            assert abs(crop.outer_xyxy[high] - crop.outer_xyxy[low] - max(1.5 * length, length + 2)) <= 1


class TestForward:
    def test_by_hand(self):
        # A 2 x 2 box in the corner of a 3 x 3 image: grown to 4 x 4, seen as 4 x 4.
        image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) + 100
        crop = BoxCrop.around((1, 1, 3, 3), 2.0, 4)
        seen = crop.image(image, FILL)
        assert (seen[:3, :3] == image).all() and (seen[3] == FILL).all() and (seen[:, 3] == FILL).all()
        assert crop.box().astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
        assert crop.target(np.array([[1, 0], [1, 1]])).tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0] * 4]

    @pytest.mark.parametrize("window", [(0, 0, 1, 30), (29, 0, 30, 1), (0, 0, 40, 30), (0, 14, 40, 15)])
    def test_boxes_at_the_edge_one_pixel_wide_and_as_large_as_the_image(self, window):
        image = np.full((30, 40, 3), 200, np.uint8)
        crop = BoxCrop.around(window, 1.5, 24)
        seen, box = crop.image(image, FILL), crop.box()
        assert seen.shape == (24, 24, 3) and box.any() and not box.all()
        assert (seen[box].mean(0) > 150).all() and (seen.reshape(-1, 3).min(0) < 20).any()
        values = crop.back(box.astype(np.float32))
        assert values.shape == (window[3] - window[1], window[2] - window[0])
        assert (values > 0.5).all()

    @settings(max_examples=60, deadline=None)
    @given(windows(), st.integers(16, 64), st.integers(0, 2**32))
    def test_target_is_zero_outside_the_box_and_a_full_box_fills_it(self, drawn, side, seed):
        _, (x0, y0, x1, y1) = drawn
        crop = BoxCrop.around((x0, y0, x1, y1), 1.5, side)
        mask = np.random.default_rng(seed).random((y1 - y0, x1 - x0)) < 0.5
        target = crop.target(mask)
        assert set(np.unique(target)) <= {0, 1} and not target[~crop.box()].any()
        assert (crop.target(np.ones_like(mask)) == crop.box()).all()

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
    def test_each_axis_by_its_own_rule_against_brute_force(self, h, w, new_h, new_w, seed):
        values = np.random.default_rng(seed).random((h, w)).astype(np.float32)
        found = resize_axes(values, (new_h, new_w))

        def axis(one, length):
            if length <= len(one):
                return area_share(one, length)
            centres = (np.arange(length) + 0.5) * len(one) / length - 0.5
            return np.interp(centres, np.arange(len(one)), one)

        rows = np.stack([axis(values[:, x], new_h) for x in range(w)], axis=1)
        expected = np.stack([axis(row, new_w) for row in rows])
        np.testing.assert_allclose(found, expected, atol=2e-5)


class TestBack:
    @settings(max_examples=100, deadline=None)
    @given(windows(), st.integers(16, 400), st.floats(1.0, 3.0))
    def test_crop_then_paste_is_the_identity_on_the_box_at_any_border(self, drawn, side, context):
        size_hw, window = drawn
        expected = np.zeros(size_hw, bool)
        expected[window[1] : window[3], window[0] : window[2]] = True
        crop = BoxCrop.around(window, context, side)
        everywhere = crop.back(np.ones((side, side)))
        assert (paste_object(everywhere > 0.5, crop.window_xyxy, size_hw) == expected).all()
        seen = crop.back(crop.box().astype(np.float32))
        assert (paste_object(seen > 0.5, crop.window_xyxy, size_hw) == expected).all()

    @pytest.mark.parametrize(("length", "side"), [(200, 64), (30, 224), (64, 64), (1, 64)])
    def test_a_perfect_network_is_as_certain_at_the_boxs_edge_as_inside(self, length, side):
        crop = BoxCrop.around((7, 3, 7 + length, 3 + 2 * length), 1.5, side)
        found = crop.back(crop.target(np.ones((2 * length, length), bool)).astype(np.float32))
        assert found.shape == (2 * length, length)
        np.testing.assert_allclose(found, 1.0, atol=1e-5)

    def test_background_at_the_edge_stays_background(self):
        mask = np.zeros((200, 200), bool)
        mask[:, 50:150] = True
        crop = BoxCrop.around((0, 0, 200, 200), 1.5, 64)
        found = crop.back(crop.target(mask).astype(np.float32))
        assert (found[[0, 1, -2, -1]] == found[100]).all() and not found[:, :40].any() and not found[:, 160:].any()

    @settings(max_examples=100, deadline=None)
    @given(windows(size=(1, 16)), st.integers(80, 120), st.integers(0, 2**32))
    def test_a_mask_enlarged_and_brought_back_is_the_same_mask(self, drawn, side, seed):
        _, (x0, y0, x1, y1) = drawn
        crop = BoxCrop.around((x0, y0, x1, y1), 1.5, side)
        mask = np.random.default_rng(seed).random((y1 - y0, x1 - x0)) < 0.5
        assert ((crop.back(crop.target(mask).astype(np.float32)) > 0.5) == mask).mean() > 0.97

    @settings(max_examples=100, deadline=None)
    @given(windows(size=(1, 400)), st.integers(16, 90))
    def test_positions_come_back_to_where_they_were(self, drawn, side):
        _, (x0, y0, x1, y1) = drawn
        crop = BoxCrop.around((x0, y0, x1, y1), 1.5, side)
        places = np.indices(crop.outer_hw, dtype=np.float32)
        rows, columns = (crop.back(resize_axes(place, (side, side))) for place in places)
        own = crop.inner
        # Linear ramps survive both ways. Within a crop pixel of the box's edge the last value inside it is continued:
        # there a position is off by less than that pixel, elsewhere by rounding alone.
        for found, start, length in (
            (rows, own[0].start, crop.outer_hw[0]),
            (columns.T, own[1].start, crop.outer_hw[1]),
        ):
            wanted = start + np.arange(found.shape[0], dtype=np.float32)
            off, pixel = np.abs(found - wanted[:, None]), length / side
            assert off.max() <= max(0.51, 1.01 * pixel)
            reach = math.ceil(1.5 * pixel)
            assert (off[reach : len(off) - reach] <= max(0.51, 0.51 * pixel)).all()

    def test_a_float_box_has_its_pixels_back(self):
        size_hw = (20, 30)
        window = pixel_window((-3.2, 4.4, 12.6, 25.0), size_hw)
        crop = BoxCrop.around(window, 1.5, 32)
        assert window == (0, 4, 13, 20) and crop.back(np.zeros((32, 32))).shape == (16, 13)
