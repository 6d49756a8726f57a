"""Are the masks right where the answer is known, the same on every run, and defined for every box?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from grabcut_scenes import disc_image, fingerprint, iou, item, painted, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.objects import unpack_objects
from artifacts.records import Box, Record
from tasks import grabcut
from tasks.boxes import lies_inside, pixel_window
from tasks.crop import Crop
from tasks.grabcut import GrabCutParams, propose_item, propose_object
from tasks.stage import Item, MapStage, SkipImage, call

FAST = GrabCutParams(working_size=64, probe_size=48)
SHARED = Path(__file__).parents[2] / "../shared/data/voc-mini"


class TestOneObject:
    @pytest.mark.parametrize("variant", ["crop", "plain"])
    def test_a_disc_in_its_box_is_found(self, variant):
        image, truth = disc_image()
        params = dataclasses.replace(FAST, working_size=96, variant=variant)
        window, mask, fell_back = propose_object(image, (18, 18, 62, 62), params, seed=1)
        assert window == (18, 18, 62, 62) and mask.shape == (44, 44) and mask.dtype == np.bool_
        assert iou(whole(window, mask, (80, 80)), truth) > 0.95
        assert not fell_back

    def test_nothing_outside_the_box(self):
        image, _ = disc_image()
        window, mask, _ = propose_object(image, (18, 18, 40, 62), FAST, seed=1)
        assert window == (18, 18, 40, 62) and mask.shape == (44, 22)
        assert mask[22, 5:-2].all() and not mask[0, 0]

    def test_the_image_may_be_a_view(self):
        image, _ = disc_image()
        wide = np.concatenate([image, image], axis=1)
        assert (
            propose_object(wide[:, :80], (18, 18, 62, 62), FAST, 1)[1]
            == propose_object(image, (18, 18, 62, 62), FAST, 1)[1]
        ).all()

    def test_plain_is_exactly_opencvs_own_rectangle_call(self):
        image, _ = disc_image(noise=60)
        mask = np.zeros((80, 80), np.uint8)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(5)
        cv2.grabCut(image, mask, (18, 18, 44, 44), *models, 5, cv2.GC_INIT_WITH_RECT)
        expected = ((mask == 1) | (mask == 3))[18:62, 18:62]
        params = GrabCutParams(variant="plain", fallback="none")
        assert (propose_object(image, (18, 18, 62, 62), params, 5)[1] == expected).all()

    def test_same_seed_same_mask_whatever_happened_before(self):
        image, _ = disc_image(noise=90)
        first = propose_object(image, (10, 10, 70, 70), FAST, 3)[1]
        cv2.setRNGSeed(99)
        propose_object(image, (0, 0, 30, 30), FAST, 4)
        assert (propose_object(image, (10, 10, 70, 70), FAST, 3)[1] == first).all()

    @pytest.mark.parametrize(
        ("box", "window"),
        [
            ((40, 40, 41, 41), (40, 40, 41, 41)),
            ((40.2, 40.3, 40.4, 40.4), (40, 40, 41, 41)),
            ((0, 0, 1, 1), (0, 0, 1, 1)),
            ((79, 79, 80, 80), (79, 79, 80, 80)),
            ((0, 0, 80, 80), (0, 0, 80, 80)),
            ((-50, -50, 200, 200), (0, 0, 80, 80)),
            ((0, 30, 80, 31), (0, 30, 80, 31)),
            ((79.6, 10, 90, 20), (79, 10, 80, 20)),
            ((1, 1, 80, 80), (1, 1, 80, 80)),
        ],
    )
    @pytest.mark.parametrize("variant", ["crop", "plain"])
    def test_every_box_has_a_mask_of_its_windows_size(self, box, window, variant):
        image, _ = disc_image()
        params = dataclasses.replace(FAST, variant=variant)
        found, mask, _ = propose_object(image, box, params, 1)
        assert found == window
        assert mask.shape == (window[3] - window[1], window[2] - window[0]) and mask.any()

    def test_a_box_outside_the_image_is_an_empty_fallback(self):
        image, _ = disc_image()
        window, mask, fell_back = propose_object(image, (90, 10, 95, 20), FAST, 1)
        assert mask.size == 0 and fell_back and window[0] == window[2]

    @pytest.mark.parametrize("box", [(5, 5, 1, 9), (5, 9, 9, 5), (0, 0, float("nan"), 5), (0, 0, float("inf"), 5)])
    def test_an_impossible_box_is_an_error(self, box):
        with pytest.raises(ValueError, match="must be finite pixel edges"):
            propose_object(disc_image()[0], box, FAST, 1)

    @pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (40, 1), (2, 3)])
    def test_tiny_images(self, size_hw):
        image = np.random.default_rng(0).integers(0, 255, (*size_hw, 3)).astype(np.uint8)
        _, mask, _ = propose_object(image, (0, 0, size_hw[1], size_hw[0]), FAST, 1)
        assert mask.shape == size_hw and mask.any()

    @pytest.mark.parametrize("variant", ["crop", "plain"])
    def test_one_colour_gives_a_mask_all_the_same(self, variant):
        image = np.full((40, 40, 3), 128, np.uint8)
        _, mask, _ = propose_object(image, (10, 10, 30, 30), dataclasses.replace(FAST, variant=variant), 1)
        assert mask.any()


class TestProbe:
    def test_core_by_hand(self):
        params = GrabCutParams(core=0.4, core_collapsed=0.8, probe_share=0.2)
        assert grabcut.core_for(0.0, params) == pytest.approx(0.8)
        assert grabcut.core_for(0.05, params) == pytest.approx(0.7)
        assert grabcut.core_for(0.2, params) == grabcut.core_for(0.9, params) == 0.4
        assert grabcut.core_for(0.0, dataclasses.replace(params, probe_share=0.0)) == 0.4

    def test_an_object_that_the_plain_call_loses_keeps_its_core(self):
        # Object and background share their colours: only faint texture tells them apart.
        rng = np.random.default_rng(2)
        image = rng.normal(128, 20, (80, 80, 3)).clip(0, 255).astype(np.uint8)
        plain = propose_object(image, (20, 20, 60, 60), GrabCutParams(variant="plain", fallback="none"), 1)
        assert plain[1].mean() < 0.05 or plain[2]
        probed = propose_object(image, (20, 20, 60, 60), FAST, 1)
        assert probed[1].mean() > 0.45 and not probed[2]
        unprobed = propose_object(image, (20, 20, 60, 60), dataclasses.replace(FAST, probe_size=0), 1)
        assert unprobed[1].mean() < probed[1].mean()

    def test_trimap_by_hand(self):
        found = grabcut.box_trimap((5, 7), (1, 1, 6, 4), core=0.5)
        assert found.tolist() == [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 3, 3, 3, 3, 3, 0],
            [0, 3, 1, 1, 1, 3, 0],
            [0, 3, 3, 3, 3, 3, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ]

    def test_trimap_without_context(self):
        # Nothing outside the box: its corners start as probable background.
        assert grabcut.box_trimap((5, 5), (0, 0, 5, 5), core=0.0).tolist() == [
            [2, 3, 3, 3, 2],
            [3, 3, 3, 3, 3],
            [3, 3, 3, 3, 3],
            [3, 3, 3, 3, 3],
            [2, 3, 3, 3, 2],
        ]

    def test_ellipse_against_a_loop(self):
        for h, w, share in ((5, 9, 0.6), (1, 1, 0.3), (4, 4, 0.01), (7, 3, 1.0)):
            found = grabcut.ellipse((h, w), share)
            for y in range(h):
                for x in range(w):
                    r = ((y + 0.5) / h * 2 - 1) ** 2 + ((x + 0.5) / w * 2 - 1) ** 2
                    assert found[y, x] == (r <= share**2 or (y, x) == (h // 2, w // 2))


class TestRivals:
    """Where the middle of the box is background, the certain core is wrong; where all is right, nothing is lost."""

    def both(self, image, box):
        """Whole masks with and without rivals."""
        params = FAST, dataclasses.replace(FAST, rivals=False)
        return [whole(*propose_object(image, box, one, 1)[:2], image.shape[:2]) for one in params]

    def test_an_aeroplane_keeps_no_sky(self):
        # Two bars at the rim of the box, as a fuselage and a wing; its middle is sky.
        y, x = np.mgrid[:96, :96] + 0.5
        truth = (abs(x - 20) < 6) & (abs(y - 48) < 32) | (abs(y - 76) < 6) & (x > 14) & (x < 82)
        image = painted(truth, (90, 90, 110), (120, 160, 220))
        found, without = self.both(image, (14, 16, 82, 82))
        assert iou(without, truth) < 0.7, "a scene where the core is right shows nothing"
        assert iou(found, truth) > 0.95

    def test_a_ring_at_the_rim_of_the_picture_is_not_filled(self):
        # The picture ends with the box on two sides, so there is little background beside the ring.
        y, x = np.mgrid[:80, :80] + 0.5
        truth = (r := np.hypot(x - 35, y - 35)) < 35
        truth &= (r > 24) & ~((x > 35) & (abs(y - 35) < 10))
        found, without = self.both(painted(truth, (90, 90, 110), (120, 160, 220)), (0, 0, 70, 70))
        assert iou(without, truth) < 0.7
        assert iou(found, truth) > 0.8

    @pytest.mark.parametrize("box", [(0, 0, 96, 96), (0, 0, 95, 96), (0, 2, 96, 96), (1, 1, 95, 95)])
    def test_a_box_about_as_large_as_the_picture_has_no_rivals(self, box):
        # Next to nothing is certain outside: the inverted mask touches every side as well.
        y, x = np.mgrid[:96, :96] + 0.5
        truth = (abs(x - 48) < 26) & (y > 34) | (np.hypot(x - 48, y - 24) < 16)
        image = painted(truth, (60, 50, 45), (230, 225, 220))
        found, without = self.both(image, box)
        assert iou(found, truth) > 0.9 and (found == without).all()

    def test_the_share_outside_a_box(self):
        assert grabcut.share_outside((0, 0, 40, 20), (20, 40), 0.3) == 0
        assert grabcut.share_outside((10, 10, 20, 20), (90, 90), 0.5) == pytest.approx(1 - 100 / 400)
        assert grabcut.share_outside((0, 10, 10, 20), (90, 90), 0.5) == pytest.approx(1 - 100 / 300)  # at the rim

    def test_tightness_by_hand(self):
        mask = np.zeros((4, 5), dtype=bool)
        assert grabcut.tightness(mask, 0.5) == 0
        mask[1, 1] = mask[2, 1] = mask[2, 3] = True  # 2 of 4 rows, 2 of 5 columns, 3 of 20 pixels
        assert grabcut.tightness(mask, 0.5) == pytest.approx(0.5 + 0.4 - 0.5 * 0.15)

    def test_the_tightest_of_those_that_keep_enough(self):
        cross, full, corner = np.eye(10, dtype=bool), np.ones((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
        corner[:3, :3] = True
        params = GrabCutParams()
        assert grabcut.tightest([corner, full, None, cross], params) is cross
        assert grabcut.tightest([corner, full], params) is full
        assert grabcut.tightest([corner, full], dataclasses.replace(params, share_weight=2.0)) is corner
        assert grabcut.tightest([full, full.copy()], params) is full, "the cut itself is the first of equals"
        strict = dataclasses.replace(params, fallback_share=0.2)
        assert grabcut.tightest([corner, cross, full], strict) is full
        assert grabcut.tightest([corner, cross], strict) is corner  # the fallback replaces it
        assert grabcut.tightest([None, cross], strict) is None


class TestLargeBoxes:
    """From ``large_side`` on, the cut that the rivals stand against is finer, has no core, and iterates again."""

    FIRST = GrabCutParams(
        rival_margin=2.0, probe_share=0.0, fallback="none", working_size=48, probe_size=32, large_size=96
    )
    """No rival can win, and no probe changes the core: the mask is the first cut's."""

    def first_cut(self, image, box, size, core, iterations):
        return grabcut._cut_crop(image, pixel_window(box, image.shape[:2]), 0.3, size, core, iterations, 5)

    @pytest.fixture
    def scene(self):
        y, x = np.mgrid[:320, :320] + 0.5  # colours that overlap: a second iteration moves the outline
        image = np.stack([x * 0.5 + 20, y * 0.5 + 30, 160 - x * 0.3], axis=-1)
        image[np.hypot(x - 140, y - 150) < 75] += (40, -30, 25)
        image[np.hypot(x - 150, y - 140) < 30] += (-50, 60, -40)
        image = (image + np.random.default_rng(0).normal(0, 10, image.shape)).clip(0, 255).astype(np.uint8)
        return image, (60, 70, 220, 230)  # 160 x 160

    def test_the_cut_is_the_fine_one(self, scene):
        image, box = scene
        fine, coarse = self.first_cut(image, box, 96, 0.0, 2), self.first_cut(image, box, 48, 0.35, 1)
        assert (fine != coarse).any() and (fine != self.first_cut(image, box, 96, 0.0, 1)).any()
        assert (propose_object(image, box, self.FIRST, 5)[1] == fine).all()
        no_smaller = dataclasses.replace(self.FIRST, large_size=40)
        assert (propose_object(image, box, no_smaller, 5)[1] == self.first_cut(image, box, 48, 0.0, 2)).all()

    @pytest.mark.parametrize("changed", [{"large_side": 161}, {"large_side": 0}, {"rivals": False}])
    def test_others_are_cut_as_any(self, scene, changed):
        image, box = scene
        params = dataclasses.replace(self.FIRST, **changed)
        assert (propose_object(image, box, params, 5)[1] == self.first_cut(image, box, 48, 0.35, 1)).all()

    def test_a_box_about_as_large_as_the_picture_keeps_its_core(self, scene):
        image, box = scene[0], (0, 0, 320, 320)
        assert (propose_object(image, box, self.FIRST, 5)[1] == self.first_cut(image, box, 48, 0.35, 1)).all()

    def test_size_is_the_root_of_the_area(self):
        params = GrabCutParams()
        assert grabcut.is_large((0, 0, 320, 80), params) and not grabcut.is_large((0, 0, 319, 80), params)
        assert not grabcut.is_large((0, 0, 900, 900), dataclasses.replace(params, large_side=0))


class TestFallback:
    def mask(self, kept, extent):
        """A mask in a 10 x 10 box that keeps ``kept`` pixels inside its top-left ``extent`` x ``extent`` corner."""
        mask = np.zeros((10, 10), dtype=bool)
        corner = mask[:extent, :extent]
        corner.flat[: kept - 1] = True
        corner[-1, -1] = True
        return mask

    def test_share(self):
        params = GrabCutParams(fallback="share", fallback_share=0.3)
        assert grabcut.keeps_too_little(self.mask(29, 10), params)
        assert not grabcut.keeps_too_little(self.mask(30, 10), params)

    def test_sdi(self):
        params = GrabCutParams(fallback="sdi")
        assert not grabcut.keeps_too_little(self.mask(50, 10), params)
        assert grabcut.keeps_too_little(self.mask(49, 10), params)
        by_extent = dataclasses.replace(params, sdi_area=0.0, sdi_iou=0.5)
        assert grabcut.keeps_too_little(self.mask(49, 7), by_extent)  # its box: 49 of 100
        assert not grabcut.keeps_too_little(self.mask(49, 8), by_extent)

    def test_none_falls_back_only_where_nothing_is_left(self):
        params = GrabCutParams(fallback="none")
        assert not grabcut.keeps_too_little(self.mask(1, 1), params)
        assert grabcut.keeps_too_little(np.zeros((3, 3), dtype=bool), params)

    def test_a_cut_that_keeps_too_little_gives_the_box_and_says_so(self):
        image, _ = disc_image(radius=6)
        params = dataclasses.replace(FAST, variant="plain", fallback_share=0.5)
        _, mask, fell_back = propose_object(image, (20, 20, 60, 60), params, 1)
        assert mask.all() and fell_back

    def test_a_cut_that_fails_gives_the_box(self, monkeypatch):
        def fail(*_):
            raise cv2.error("no samples")

        monkeypatch.setattr(grabcut.cv2, "grabCut", fail)
        _, mask, fell_back = propose_object(disc_image()[0], (20, 20, 60, 60), FAST, 1)
        assert mask.all() and fell_back


class TestImage:
    def test_outputs_are_those_declared(self):
        image, truth = disc_image()
        stage = grabcut.propose(FAST)
        arrays = call(stage, [item(image, [Box(7, 2, 18, 18, 62, 62)])])[0]
        assert arrays["mask_hw"].dtype == np.uint8 and set(np.unique(arrays["mask_hw"])) == {0, 2}
        assert iou(arrays["mask_hw"] == 2, truth) > 0.9
        assert arrays["object_ids_n"].tolist() == [7] and arrays["fell_back_n"].tolist() == [False]

    def test_no_boxes_is_background_and_unknown_boxes_a_skip(self):
        image, _ = disc_image()
        arrays = propose_item(item(image, []), FAST)
        assert not arrays["mask_hw"].any() and arrays["fell_back_n"].shape == (0,)
        with pytest.raises(SkipImage, match="no boxes are known"):
            propose_item(Item("k", Record("one", "one.png"), (), image), FAST)

    def test_crowds_have_no_mask_and_difficult_ones_by_parameter(self):
        image, _ = disc_image()
        boxes = [
            Box(0, 1, 18, 18, 62, 62),
            Box(1, 2, 0, 0, 20, 20, crowd=True),
            Box(2, 3, 60, 60, 80, 80, difficult=True),
        ]
        assert propose_item(item(image, boxes), FAST)["object_ids_n"].tolist() == [0, 2]
        without = dataclasses.replace(FAST, difficult=False)
        assert propose_item(item(image, boxes), without)["object_ids_n"].tolist() == [0]

    def test_the_order_of_boxes_and_the_other_images_do_not_matter(self):
        image, _ = disc_image(noise=60)
        boxes = [Box(0, 1, 10, 10, 70, 70), Box(1, 2, 40, 40, 60, 60), Box(2, 3, 0, 30, 30, 80)]
        first = propose_item(item(image, boxes), FAST)
        propose_item(item(image, boxes[:1], key="set/two"), FAST)
        again = propose_item(item(image, boxes[::-1]), FAST)
        assert (first["mask_hw"] == again["mask_hw"]).all()
        masks = {o.id: o.values_hw for o in unpack_objects(first)}
        assert all((masks[o.id] == o.values_hw).all() for o in unpack_objects(again))
        assert grabcut.object_seed(0, "a", 1) != grabcut.object_seed(0, "a", 2) != grabcut.object_seed(1, "a", 2)

    def test_two_hundred_boxes_and_equal_ones(self):
        image, _ = disc_image()
        boxes = [Box(i, 1 + i % 2, 18 + i % 3, 18, 60, 60) for i in range(200)]
        arrays = propose_item(item(image, boxes), GrabCutParams(working_size=16, probe_size=0))
        assert len(arrays["object_ids_n"]) == 200
        equal = [Box(0, 1, 18, 18, 62, 62), Box(1, 2, 18, 18, 62, 62)]
        arrays = propose_item(item(image, equal), FAST)
        (x0, y0, x1, y1), on_top = next((o.window_xyxy, o.mask_hw) for o in unpack_objects(arrays) if o.id == 1)
        assert on_top.any() and (arrays["mask_hw"][y0:y1, x0:x1][on_top] == 2).all(), "the higher id lies on top"

    def test_the_image_is_a_seed_and_the_data_sets_name_is_not(self, monkeypatch):
        seeds = []
        real = grabcut.propose_object
        monkeypatch.setattr(grabcut, "propose_object", lambda *given: seeds.append(given[-1]) or real(*given))
        for key in ("set/one", "a copy/one", "set/two"):
            propose_item(item(disc_image()[0], [Box(0, 1, 10, 10, 70, 70)], key=key), FAST)
        assert seeds[0] == seeds[1] != seeds[2]

    def test_inner_boxes_is_a_parameter(self):
        image, _ = disc_image(size=120, radius=45, centre=(60, 60))
        boxes = [Box(0, 1, 15, 15, 105, 105), Box(1, 2, 50, 50, 70, 70)]
        middle = {
            on: unpack_objects(propose_item(item(image, boxes), dataclasses.replace(FAST, inner_boxes=on)))[
                0
            ].values_hw[40:50, 40:50]
            for on in (True, False)
        }
        assert not middle[True].any() and middle[False].all()

    def test_two_overlapping_objects_share_no_pixel_if_asked(self):
        # One colour, one class: the two discs are one region, and either mask would take what both boxes hold.
        y, x = np.mgrid[:80, :120] + 0.5
        image = painted((np.hypot(x - 45, y - 40) < 25) | (np.hypot(x - 78, y - 40) < 25), (200, 40, 40), (40, 150, 60))
        boxes = [Box(0, 1, 20, 15, 70, 65), Box(1, 1, 53, 15, 103, 65)]
        params = dataclasses.replace(FAST, compete=True)
        for one, shared in ((params, False), (dataclasses.replace(params, compete=False), True)):
            objects = unpack_objects(propose_item(item(image, boxes), one))
            first, second = (whole(o.window_xyxy, o.mask_hw, (80, 120)) for o in objects)
            assert (first & second).any() == shared
            assert first[40, 25:60].all() and second[40, 63:98].all()


class TestGeometry:
    @pytest.mark.parametrize("size", [16, 40, 200])
    def test_a_mask_that_fills_its_box_comes_back_whole(self, size):
        window = (13, 17, 62, 70)
        crop = Crop.around(window, (80, 80), 0.3, size)
        left, top, right, bottom = crop.scaled(window)
        cut = np.zeros(crop.scaled_hw, np.bool_)
        cut[top:bottom, left:right] = True
        assert crop.back(cut, window).shape == (53, 49) and crop.back(cut, window).all()

    @settings(max_examples=60, deadline=None)
    @given(st.tuples(*[st.floats(-8, 14) for _ in range(4)]))
    def test_a_window_is_the_pixels_whose_centres_lie_in_the_box(self, values):
        x0, x1 = sorted(values[:2])
        y0, y1 = sorted(values[2:])
        left, top, right, bottom = pixel_window((x0, y0, x1, y1), (6, 9))
        centres = [(x, y) for x in range(9) for y in range(6) if x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1]
        if centres:
            xs, ys = zip(*centres, strict=True)
            assert (left, top, right, bottom) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        meets = x0 < 9 and x1 > 0 and y0 < 6 and y1 > 0
        assert (right > left and bottom > top) == meets
        assert 0 <= left <= right <= 9 and 0 <= top <= bottom <= 6

    def test_inside_by_hand(self):
        outer = Box(0, 1, 0, 0, 10, 10)
        assert lies_inside(Box(1, 1, 0, 0, 7, 7), outer)  # 49 % of it
        assert not lies_inside(Box(1, 1, 0, 0, 8, 7), outer)  # 56 %
        assert lies_inside(Box(1, 1, -1, 0, 4, 4), outer)  # 80 % of 5 x 4
        assert not lies_inside(Box(1, 1, -2, 0, 4, 4), outer)
        assert not lies_inside(Box(1, 1, 20, 20, 22, 22), outer)
        assert not lies_inside(outer, outer)

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_a_crop_scaled_and_back_is_the_same_mask_when_enlarged(self, data):
        height, width = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
        x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
        crop = Crop.around((x0, y0, x1, y1), (height, width), 0.2, 120)
        assert max(crop.scaled_hw) == 120
        left, top, right, bottom = crop.scaled((x0, y0, x1, y1))
        assert 0 <= left < right <= crop.scaled_hw[1] and 0 <= top < bottom <= crop.scaled_hw[0]
        mask = np.zeros(crop.scaled_hw, dtype=bool)
        mask[top:bottom, left:right] = True
        assert crop.back(mask, (x0, y0, x1, y1)).all()
        assert crop.back(mask, crop.xyxy).sum() == (x1 - x0) * (y1 - y0)


class TestParams:
    def test_a_probe_is_none_or_not_tiny(self):
        with pytest.raises(ValueError, match=r"probe_size must be 0 \(no probe\) or 16"):
            GrabCutParams(probe_size=5)

    def test_stage(self):
        stage = grabcut.propose()
        assert isinstance(stage, MapStage) and stage.name == "grabcut"
        assert stage.reads == ("image", "boxes") and stage.holds_classes and not stage.uses_torch


def test_golden():
    """Fails when the masks change: then raise the stages' ``version``, and renew the digest."""
    image, _ = disc_image(size=40, radius=11, centre=(21, 19), noise=70)
    boxes = [Box(0, 1, 8, 6, 34, 32), Box(1, 2, 0, 0, 12, 12), Box(2, 3, 16, 15, 24, 22)]
    arrays = propose_item(item(image, boxes), FAST)
    assert (grabcut.propose(FAST).version, fingerprint(arrays["mask_hw"])) == (5, GOLDEN)
    assert fingerprint(np.roll(arrays["mask_hw"], 1, axis=1)) != GOLDEN


GOLDEN = "c1497b78b21ceef71ebcaf245efca574ca89a9b0eb39d896c109ae4daf31896c"


@pytest.mark.skipif(not SHARED.exists(), reason=f"real pictures are not at {SHARED}")
def test_real_pictures_gain_on_the_boxes():
    """A few objects; benchmarks/grabcut.py measures all of them, against the plain call."""
    from artifacts.datasets import DataParams, read_split
    from artifacts.images import read_image_rgb
    from tasks.evaluate.object_iou import object_ious
    from tasks.labels import BoxMaskParams, box_item

    records = read_split(DataParams(source=f"voc:{SHARED}"), "val")
    gains = []
    for record in sorted(records, key=lambda r: (len(r.boxes or ()), r.image_id))[:5]:
        image_rgb = read_image_rgb(Path(record.image))
        truth = record.truth_objects.load(), record.truth.load()
        one = Item(records.key(record), record, records.classes, image_rgb)
        scores = []
        for arrays in (
            propose_item(one, GrabCutParams(working_size=192, probe_size=96)),
            box_item(one, BoxMaskParams()),
        ):
            windows = {o.id: (o.window_xyxy, o.values_hw != 0) for o in unpack_objects(arrays)}
            scores.append([o.iou for o in object_ious(windows, record.boxes, *truth)])
        gains += [a - b for a, b in zip(*scores, strict=True)]
    assert len(gains) >= 4 and np.mean(gains) > 0.05, gains
