"""Do the scores say what the words mean? Hand-computed numbers and brute force."""

from __future__ import annotations

import json
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from artifacts.records import Box, DataError, Record
from tasks.evaluate import object_iou, score


def mask(*rows):
    return np.array(rows, dtype=np.uint8)


def masks(k, shape=(4, 5), void=True):
    values = [*range(k + 1), 255] if void else [*range(k + 1)]
    return arrays(np.uint8, shape, elements=st.sampled_from(values))


def brute_matrix(pred_hw, truth_hw, k):
    matrix = np.zeros((k + 1, k + 2), dtype=np.int64)
    for p, t in zip(pred_hw.flat, truth_hw.flat, strict=True):
        if t != 255:
            matrix[t, k + 1 if p == 255 else p] += 1
    return matrix


def brute_iou(pred_hw, truth_hw, c, drop_void_predictions):
    hit = union = 0
    for p, t in zip(pred_hw.flat, truth_hw.flat, strict=True):
        if t == 255 or (drop_void_predictions and p == 255):
            continue
        hit += p == c and t == c
        union += p == c or t == c
    return hit / union if union else None


class TestMatrix:
    def test_counts_by_hand(self):
        pred = mask([0, 1, 2], [255, 2, 1])
        truth = mask([0, 1, 1], [1, 255, 0])
        expected = [[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
        found = score.confusion(pred, truth, 2)
        assert found.dtype == np.int64
        assert found.tolist() == expected

    @settings(max_examples=40, deadline=None)
    @given(st.data(), st.integers(0, 3))
    def test_equals_a_pixel_loop(self, data, k):
        pred, truth = data.draw(masks(k)), data.draw(masks(k))
        assert (score.confusion(pred, truth, k) == brute_matrix(pred, truth, k)).all()

    def test_254_classes_and_255_do_not_meet(self):
        pred, truth = mask([254, 255, 254]), mask([254, 254, 255])
        found = score.confusion(pred, truth, 254)
        assert found.shape == (255, 256)
        assert found[254, 254] == 1 and found[254, 255] == 1 and found.sum() == 2

    def test_wrong_size_names_both_and_the_image(self):
        with pytest.raises(DataError, match=r"cat: wrong mask size: the prediction is 2 x 3, the truth 3 x 2"):
            score.confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 1, where="cat")

    @pytest.mark.parametrize("which", ["prediction", "truth"])
    def test_a_foreign_value_is_shown_with_its_place(self, which):
        good, bad = mask([0, 1], [255, 0]), mask([0, 1], [7, 0])
        pair = (bad, good) if which == "prediction" else (good, bad)
        with pytest.raises(DataError, match=rf"the {which} holds 7 at row 1, column 0 \(1 such pixels\).*0\.\.2"):
            score.confusion(*pair, 2)

    def test_a_foreign_prediction_is_refused_even_where_truth_is_void(self):
        with pytest.raises(DataError, match="prediction holds 9"):
            score.confusion(mask([9]), mask([255]), 2)

    @pytest.mark.parametrize("bad", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8)])
    def test_other_dtypes_and_ranks_are_refused(self, bad):
        with pytest.raises(DataError, match="uint8 mask"):
            score.confusion(bad, np.zeros((2, 2), np.uint8), 1)

    def test_class_count_is_checked(self):
        with pytest.raises(ValueError, match=r"0\.\.254, not 255"):
            score.confusion(mask([0]), mask([0]), 255)

    def test_a_thousand_voc_sized_masks_take_seconds(self):
        rng = np.random.default_rng(0)
        pred, truth = (rng.integers(0, 21, (375, 500)).astype(np.uint8) for _ in range(2))
        started = time.process_time()
        for _ in range(50):
            score.confusion(pred, truth, 20)
        assert (time.process_time() - started) * 20 < 10  # measured: 1.2 s


class TestReadings:
    pred = mask([0, 0, 1, 255], [1, 1, 255, 0])
    truth = mask([0, 1, 1, 1], [1, 0, 0, 255])
    # pairs (truth, pred): 00 10 11 1V / 11 01 0V --: background 3 true, class one 4 true, 7 scored.

    def scores(self):
        scorer = score.Scorer(2)
        scorer.add(self.pred, self.truth)
        return scorer.scores()

    def test_255_as_wrong(self):
        found = self.scores()
        assert found.iou_c == (1 / 4, 2 / 5, None)
        assert found.miou == pytest.approx((1 / 4 + 2 / 5) / 2)
        assert found.pixel_accuracy == 3 / 7
        assert found.precision == 2 / 3
        assert found.recall == 2 / 4
        assert found.absent == (2,)

    def test_255_left_out_with_its_coverage(self):
        found = self.scores()
        assert found.left_out.iou_c == (1 / 3, 2 / 4, None)
        assert found.left_out.miou == pytest.approx((1 / 3 + 1 / 2) / 2)
        assert found.left_out.pixel_accuracy == 3 / 5
        assert found.left_out.precision == 2 / 3
        assert found.left_out.recall == 2 / 3
        assert found.coverage == 5 / 7

    def test_a_class_only_ever_undecided_is_missed_in_one_reading_and_absent_in_the_other(self):
        scorer = score.Scorer(1)
        scorer.add(mask([0, 255]), mask([0, 1]))
        found = scorer.scores()
        assert found.as_wrong.iou_c == (1.0, 0.0) and found.as_wrong.absent == ()
        assert found.left_out.iou_c == (1.0, None) and found.left_out.absent == (1,)

    def test_a_class_that_is_only_predicted_counts_as_zero(self):
        scorer = score.Scorer(2)
        scorer.add(mask([0, 2]), mask([0, 1]))
        assert scorer.scores().iou_c == (1.0, 0.0, 0.0)

    def test_background_counts_and_can_be_absent(self):
        scorer = score.Scorer(1)
        scorer.add(mask([1, 1]), mask([1, 1]))
        assert scorer.scores().as_dict(["cat"])["absent"] == ["background"]
        assert scorer.scores().miou == 1.0

    def test_nothing_scored_gives_none_everywhere(self):
        scorer = score.Scorer(1)
        scorer.add(mask([1]), mask([255]))
        found = scorer.scores()
        assert (found.miou, found.pixel_accuracy, found.precision, found.recall, found.coverage) == (None,) * 5
        assert found.object_iou is None

    @settings(max_examples=40, deadline=None)
    @given(masks(2), masks(2))
    def test_equals_a_pixel_loop(self, pred, truth):
        matrix = score.confusion(pred, truth, 2)
        for reading, drop in ((score.read_as_wrong(matrix), False), (score.read_left_out(matrix), True)):
            assert list(reading.iou_c) == [brute_iou(pred, truth, c, drop) for c in range(3)]


class TestOneMatrix:
    """The set's mIoU comes from one matrix; the mean of the images' own mIoU is another number."""

    pairs = ((mask([0, 0, 1, 0]), mask([0, 0, 1, 1])), (mask([0, 1, 1, 1]), mask([0, 0, 0, 0])))

    def test_the_two_readings_differ_and_ours_is_the_matrix(self):
        scorer = score.Scorer(1)
        for pred, truth in self.pairs:
            scorer.add(pred, truth)
        # One matrix: background 3 right of 7 in the union, class one 1 of 5.
        assert scorer.scores().miou == pytest.approx((3 / 7 + 1 / 5) / 2)
        sampled = [score.image_miou(pred, truth, 1) for pred, truth in self.pairs]
        assert sampled == [pytest.approx((2 / 3 + 1 / 2) / 2), pytest.approx((1 / 4 + 0) / 2)]
        assert scorer.scores().miou != pytest.approx(np.mean(sampled), abs=0.01)

    def test_parts_scored_apart_add_up(self):
        whole, *parts = (score.Scorer(1) for _ in range(3))
        for part, (pred, truth) in zip(parts, self.pairs, strict=True):
            part.add(pred, truth)
            part.add_objects([object_iou.ObjectIoU(0, 1, 10, 0.5)])
            whole.add(pred, truth)
            whole.add_objects([object_iou.ObjectIoU(0, 1, 10, 0.5)])
        parts[0].merge(parts[1])
        assert parts[0].scores().as_dict(["a"]) == whole.scores().as_dict(["a"])
        assert parts[0].scores().images == 2
        with pytest.raises(ValueError, match="2 classes"):
            whole.merge(score.Scorer(2))

    def test_memory_does_not_grow_with_the_images(self):
        scorer = score.Scorer(20)
        pred = truth = np.zeros((100, 100), np.uint8)
        scorer.add(pred, truth)
        tracemalloc.start()
        for _ in range(50):
            scorer.add(pred, truth)
            scorer.add_objects([object_iou.ObjectIoU(0, 1, 10, 0.5)])
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 64 * 1024  # a kept 100 x 100 mask an image would be 500 KB


class TestObjects:
    truth_hw = mask([0, 1, 1, 255], [0, 1, 1, 255], [0, 0, 0, 0])

    def truth_objects(self, *objects):
        return np.stack([np.asarray(o, dtype=bool) for o in objects]), np.arange(len(objects), dtype=np.int64)

    def test_by_hand_with_void_left_out_and_the_window_sticking_out(self):
        truth = self.truth_hw == 1
        window = (2, -1, 5, 2)  # one row above the image, one column right of it
        inside = np.ones((3, 3), dtype=bool)
        # Visible and scored: column 2, rows 0..1 (column 3 is void); both are truth; truth has 4.
        scored = self.truth_hw != 255
        assert object_iou.window_iou(inside, window, truth, scored) == 2 / 4
        inside[1, 0] = False
        assert object_iou.window_iou(inside, window, truth, scored) == 1 / 4

    def test_truth_outside_the_window_counts(self):
        truth = np.zeros((10, 10), dtype=bool)
        truth[0, :5] = True
        scored = np.ones((10, 10), dtype=bool)
        assert object_iou.window_iou(np.ones((1, 2), dtype=bool), (0, 0, 2, 1), truth, scored) == 2 / 5
        assert object_iou.window_iou(np.ones((1, 2), dtype=bool), (20, 20, 22, 21), truth, scored) == 0.0

    def test_an_object_without_a_scored_pixel_is_not_scored(self):
        truth = self.truth_hw == 255
        assert object_iou.window_iou(np.ones((1, 1), dtype=bool), (0, 0, 1, 1), truth, self.truth_hw != 255) is None

    @settings(max_examples=40, deadline=None)
    @given(arrays(bool, (3, 3)), st.integers(-3, 5), st.integers(-3, 5), arrays(bool, (4, 5)), arrays(bool, (4, 5)))
    def test_equals_pasting_whole(self, window_mask, x0, y0, truth, scored):
        whole = np.zeros((4, 5), dtype=bool)
        for y, x in np.argwhere(window_mask):
            if 0 <= y + y0 < 4 and 0 <= x + x0 < 5:
                whole[y + y0, x + x0] = True
        hit = (whole & truth & scored).sum()
        union = ((whole | truth) & scored).sum()
        expected = hit / union if (truth & scored).any() else None
        assert object_iou.window_iou(window_mask, (x0, y0, x0 + 3, y0 + 3), truth, scored) == expected

    def test_sizes_that_disagree_are_errors(self):
        truth = np.zeros((4, 4), dtype=bool)
        with pytest.raises(DataError, match=r"\(2, 2\) for the window \(0, 0, 3, 2\), expected \(2, 3\)"):
            object_iou.window_iou(np.ones((2, 2), dtype=bool), (0, 0, 3, 2), truth, truth)
        with pytest.raises(DataError, match=r"truth object is \(4, 4\), the image \(5, 5\)"):
            object_iou.window_iou(np.ones((2, 2), dtype=bool), (0, 0, 2, 2), truth, np.ones((5, 5), dtype=bool))

    def test_who_is_scored(self):
        truth_hw = np.ones((4, 4), np.uint8)
        objects = self.truth_objects(*[np.eye(4) for _ in range(4)])
        boxes = [
            Box(0, 1, 0, 0, 4, 4),
            Box(1, 1, 0, 0, 4, 4, difficult=True),
            Box(2, 1, 0, 0, 4, 4, crowd=True),
            Box(3, 2, 0, 0, 4, 4),
            Box(9, 1, 0, 0, 4, 4),  # no truth object
        ]
        windows = {i: ((0, 0, 4, 4), np.eye(4, dtype=bool)) for i in (0, 1, 2, 9)}
        found = object_iou.object_ious(windows, boxes, objects, truth_hw)
        assert [(o.object_id, o.class_id, o.area, o.iou) for o in found] == [(0, 1, 4, 1.0), (3, 2, 4, 0.0)]

    def test_sizes_are_cocos(self):
        areas = {1023: "small", 1024: "medium", 9216: "medium", 9217: "large"}
        assert {area: object_iou.ObjectIoU(0, 1, area, 1.0).size for area in areas} == areas
        scorer = score.Scorer(1)
        found = [(9, 0.2), (9, 0.4), (9999, 0.9)]
        scorer.add_objects([object_iou.ObjectIoU(i, 1, area, iou) for i, (area, iou) in enumerate(found)])
        scores = scorer.scores()
        assert scores.by_size == {"small": (pytest.approx(0.3), 2), "medium": (None, 0), "large": (0.9, 1)}
        assert scores.object_iou == pytest.approx(0.5) and scores.objects == 3


@dataclass(frozen=True)
class Ref:
    """Stands in for a MaskRef: hands over what it holds, or fails as a file does."""

    value: object
    path: str = "truth.png"

    def load(self):
        if isinstance(self.value, OSError):
            raise self.value
        return self.value


class TestSet:
    def record(self, name, truth):
        objects = Ref((np.array([[[True, True, False]]]), np.array([0])))
        return Record(name, name, boxes=(Box(0, 1, 0, 0, 2, 1),), truth=truth, truth_objects=objects)

    def test_what_cannot_be_scored_is_named_and_the_rest_scored(self):
        truth = Ref(mask([1, 1, 0]))
        records = [self.record(name, truth) for name in ("good", "nothing", "small")]
        records += [self.record("unreadable", Ref(OSError("gone"))), self.record("weak", None)]
        preds = {"good": mask([1, 0, 0]), "small": mask([1]), "unreadable": mask([1, 0, 0]), "weak": mask([0])}
        window = {0: ((0, 0, 2, 1), np.array([[True, False]]))}
        found = score.score_set(records, 1, lambda r: preds.get(r.image_id), lambda r: window)
        assert found.without_truth == ("weak",) and found.without_mask == ("nothing",)
        assert [(s.key, s.permanent) for s in found.skips] == [("small", True), ("unreadable", False)]
        assert "wrong mask size" in found.skips[0].reason
        assert found.image_miou == {"good": 0.5}
        assert found.scores.iou_c == (0.5, 0.5) and found.scores.objects == 1 and found.scores.object_iou == 0.5

    def test_a_picture_without_any_class_has_no_score_of_its_own(self):
        """Its 100 would be of the background alone, and first in no list of the worst."""
        truths = {"void": [0, 255, 0], "called": [0, 0, 0], "unsure": [0, 0, 0]}
        records = [self.record(name, Ref(mask(row))) for name, row in truths.items()]
        preds = {"void": mask([0, 1, 0]), "called": mask([0, 1, 0]), "unsure": mask([0, 255, 0])}
        found = score.score_set(records, 1, lambda r: preds[r.image_id]).image_miou
        assert found["void"] is None and found["called"] == pytest.approx(1 / 3)
        assert found["unsure"] == pytest.approx(2 / 3), "255 where background is, is wrong"
        assert score.image_miou(preds["void"], mask(truths["void"]), 1) is None

    def test_precision_and_coverage_of_each_class_of_a_map_that_decides_few_pixels(self):
        truth = mask([0, 0, 0, 0, 1, 1, 1, 255, 2])
        found = mask([0, 0, 1, 255, 1, 255, 255, 1, 255])
        record = self.record("regions", Ref(truth))
        scores = score.score_set([record], 3, lambda r: found).scores.as_dict(["cat", "dog", "cow"])
        assert scores["precision_per_class"] == {"background": 1.0, "cat": 0.5, "dog": None, "cow": None}
        assert scores["coverage_per_class"] == {"background": 0.75, "cat": 1 / 3, "dog": 0.0, "cow": None}
        assert scores["coverage"] == 4 / 8 and scores["precision"] == 0.5

    def test_json(self):
        record = self.record("good", Ref(mask([1, 1, 0])))
        found = score.score_set([record], 1, lambda r: mask([1, 255, 0])).scores.as_dict(["cat"])
        assert json.loads(json.dumps(found)) == found
        assert found["per_class"] == {"background": 1.0, "cat": 0.5}
        assert found["left_out"]["per_class"] == {"background": 1.0, "cat": 1.0}
        assert found["as_wrong"]["miou"] == found["miou"] == 0.75
        assert found["coverage"] == 2 / 3
        assert found["object_iou"] == {"mean": None, "count": 0}
        assert found["by_size"]["small"] == {"mean": None, "count": 0}
        with pytest.raises(ValueError, match="1 classes, the class table has 2"):
            score.Scorer(1).scores().as_dict(["cat", "dog"])
