"""Boxes filled and truth handed on: the right pixels, the right errors, and nobody else may read truth."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.datasets.corrections import with_corrections, write_corrections
from artifacts.objects import Object, unpack_objects
from artifacts.records import Box, DataError, Record, RecordSet
from tasks import labels
from tasks.boxes import LABEL_OUTPUTS, label_arrays
from tasks.labels import corrected_item, corrected_objects
from tasks.stage import Item, SkipImage, call

IMAGE = np.zeros((6, 8, 3), np.uint8)


def run(stage, record):
    view = record.view(stage.reads)
    return call(stage, [Item("set/one", view, ("a", "b"), IMAGE)])[0]


def boxes(*found):
    return Record("one", "one.png", boxes=found)


class TestBoxes:
    def test_smaller_boxes_lie_on_top_whatever_their_order(self):
        large, small = Box(0, 1, 0, 0, 6, 5), Box(1, 2, 2, 1, 4, 3)
        expected = np.zeros((6, 8), np.uint8)
        expected[0:5, 0:6] = 1
        expected[1:3, 2:4] = 2
        for order in ((large, small), (small, large)):
            arrays = run(labels.box_masks(), boxes(*order))
            assert (arrays["mask_hw"] == expected).all()
            assert [o.id for o in unpack_objects(arrays)] == [box.id for box in order]

    def test_equal_boxes_the_higher_id_lies_on_top(self):
        arrays = run(labels.box_masks(), boxes(Box(1, 2, 0, 0, 4, 4), Box(0, 1, 0, 0, 4, 4)))
        assert set(np.unique(arrays["mask_hw"])) == {0, 2}

    def test_boxes_that_stick_out_are_cut_and_those_outside_are_empty(self):
        arrays = run(labels.box_masks(), boxes(Box(0, 1, -3, -3, 2, 2), Box(1, 2, 50, 50, 60, 60)))
        assert arrays["mask_hw"].sum() == 4
        assert [o.values_hw.size for o in unpack_objects(arrays)] == [4, 0]

    def test_fractions_mean_the_pixels_whose_centres_are_inside(self):
        arrays = run(labels.box_masks(), boxes(Box(0, 1, 1.5, 1.6, 3.4, 3.6)))
        assert np.argwhere(arrays["mask_hw"]).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]

    def test_crowds_and_difficult_objects(self):
        record = boxes(Box(0, 1, 0, 0, 2, 2, crowd=True), Box(1, 2, 3, 3, 5, 5, difficult=True))
        assert set(np.unique(run(labels.box_masks(), record)["mask_hw"])) == {0, 2}
        without = labels.box_masks(labels.BoxMaskParams(difficult=False))
        assert not run(without, record)["mask_hw"].any()

    def test_no_boxes_is_background_unknown_boxes_a_skip(self):
        assert not run(labels.box_masks(), boxes())["mask_hw"].any()
        with pytest.raises(SkipImage, match="no boxes are known"):
            run(labels.box_masks(), Record("one", "one.png"))


@dataclass(frozen=True)
class Truth:
    mask: object
    path: str = "truth.png"

    def load(self):
        return self.mask


class TestGiven:
    def record(self, mask):
        return Record("one", "one.png", truth=Truth(mask))

    def test_truth_comes_through_unchanged(self):
        mask = np.zeros((6, 8), np.uint8)
        mask[0, :3] = 1, 2, 255
        assert (run(labels.given_masks(), self.record(mask))["mask_hw"] == mask).all()

    def test_wrong_size_names_file_and_both_sizes(self):
        with pytest.raises(DataError, match=r"truth.png: wrong mask size \(5, 8\), the image one.png is \(6, 8\)"):
            run(labels.given_masks(), self.record(np.zeros((5, 8), np.uint8)))

    def test_a_foreign_class_is_named(self):
        with pytest.raises(DataError, match=r"holds 3, allowed are 0\.\.2 and 255"):
            run(labels.given_masks(), self.record(np.full((6, 8), 3, np.uint8)))

    def test_no_truth_is_a_skip(self):
        with pytest.raises(SkipImage, match="no truth mask is known"):
            run(labels.given_masks(), Record("one", "one.png"))


def declared_reads():
    """``(module, function, kinds)`` of every stage that the sources of ``tasks`` describe; nothing is imported."""
    for path in sorted(Path(labels.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for made in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if getattr(made.func, "id", "") in ("MapStage", "FitStage"):
                    reads = {word.arg: word.value for word in made.keywords}["reads"]
                    # Where a condition decides, all that either side names.
                    kinds = [node.value for node in ast.walk(reads) if isinstance(node, ast.Constant)]
                    yield path.stem, function.name, tuple(kinds)


def test_only_given_masks_reads_truth():
    found = list(declared_reads())
    some = {("labels", "given_masks"), ("labels", "box_masks"), ("grabcut", "propose"), ("refine", "refine")}
    assert some <= {entry[:2] for entry in found}
    readers = {entry[:2] for entry in found if {"truth", "truth_objects"} & set(entry[2])}
    assert readers == {("labels", "given_masks")}


# -- corrected masks


def grid(*rows: str) -> NDArray[np.uint8]:
    return np.array([[int(c) for c in row] for row in rows], np.uint8)


def test_pixels_of_a_corrected_mask_go_to_the_smallest_object_over_them_or_to_the_nearest() -> None:
    large, small = np.ones((4, 4), np.uint8), np.ones((2, 2), np.uint8)
    objects = [Object(3, (0, 0, 4, 4), large), Object(5, (1, 1, 3, 3), small), Object(8, (6, 0, 8, 2), small)]
    mask_hw = grid("11110000", "11110001", "11110022", "11110022")
    found = {
        object_id: (class_id, part) for object_id, class_id, part in corrected_objects(mask_hw, objects, [1, 1, 1])
    }
    assert found[5][1].sum() == 4 and found[3][1].sum() == 12, "the small one lies on top"
    assert np.argwhere(found[8][1]).tolist() == [[1, 7]]
    assert found[9][0] == 2 and found[9][1].sum() == 4, "a class that had no object"
    assert sum(part.astype(int) * class_id for class_id, part in found.values()).tolist() == mask_hw.tolist()


def test_an_object_without_a_pixel_stays_and_an_empty_one_takes_its_class() -> None:
    none = np.zeros((2, 2), np.uint8)
    objects = [Object(0, (0, 0, 2, 2), none), Object(1, (2, 0, 4, 2), np.ones((2, 2), np.float16))]
    found = {object_id: part for object_id, _, part in corrected_objects(grid("1100", "0000"), objects, [1, 2])}
    assert found[0].sum() == 2 and found[1].sum() == 0


def test_a_corrected_picture_has_the_persons_mask_and_all_others_their_own_bytes(tmp_path: Path) -> None:
    own = label_arrays([Box(4, 1, 0, 0, 2, 2)], [(0, 0, 2, 2)], [np.ones((2, 2), np.bool_)], (3, 4))
    item = Item("s/a", Record("a", "a.png"), ("cat", "dog"), up={"masks": own})
    untouched = corrected_item(item, None)
    assert {name: array.tobytes() for name, array in untouched.items()} == {n: a.tobytes() for n, a in own.items()}
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((3, 4, 3), np.uint8))
    mask_hw = grid("1110", "0220", "0000")
    write_corrections(tmp_path / "c", [("a", mask_hw)], ("cat", "dog"))
    given = with_corrections(
        RecordSet("s", "train", ("cat", "dog"), [Record("a", str(tmp_path / "a.png"))]), tmp_path / "c"
    )
    found = corrected_item(dataclasses.replace(item, record=given.records[0]), None)
    assert set(found) == set(LABEL_OUTPUTS) and np.array_equal(found["mask_hw"], mask_hw)
    assert found["object_ids_n"].tolist() == [4, 5] and found["object_classes_n"].tolist() == [1, 2]
    assert [one.window_xyxy for one in unpack_objects(found)] == [(0, 0, 3, 1), (1, 1, 3, 2)]
    alone = dataclasses.replace(item, record=given.records[0], up={"masks": {"mask_hw": own["mask_hw"]}})
    assert list(corrected_item(alone, None)) == ["mask_hw"]
