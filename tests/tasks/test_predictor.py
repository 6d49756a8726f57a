"""Boxes to masks without a run: the same masks as a flow's stage, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifacts.images import ImageError
from artifacts.records import Box, Record
from tasks import labels
from tasks.grabcut import GrabCutParams, propose, propose_item
from tasks.predictor import BoxPredictor
from tasks.stage import Item

SMALL = propose(GrabCutParams(working_size=48, probe_size=0))
BOXES = [(5, 6, 30, 36), (40, 10, 58, 34)]


def scene() -> NDArray[np.uint8]:
    """Two discs on noise."""
    rng = np.random.default_rng(3)
    image = rng.integers(90, 120, (44, 64, 3)).astype(np.uint8)
    y, x = np.mgrid[:44, :64]
    image[(y - 21) ** 2 + (x - 17) ** 2 < 144] = (220, 40, 30)
    image[(y - 22) ** 2 + (x - 49) ** 2 < 64] = (30, 60, 230)
    return image


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(scene()).save(tmp_path / "discs.png")
    return tmp_path / "discs.png"


def test_masks_are_those_of_the_stage_in_a_flow(photo: Path) -> None:
    record = Record("discs", str(photo), boxes=(Box(0, 2, *BOXES[0]), Box(1, 1, *BOXES[1])))
    expected = propose_item(Item("any/discs", record, ("a", "b"), scene()), SMALL.params)
    predictor = BoxPredictor(SMALL, classes=("a", "b"))
    predictor.set_image(photo)
    for found in (
        predictor.predict(BOXES, ["b", "a"]),
        predictor.predict(BOXES, [2, 1]),
        predictor.predict_record(record),
    ):
        assert np.array_equal(found.mask_hw, expected["mask_hw"]) and [one.id for one in found.objects] == [0, 1]
        assert found.boxes == record.boxes
    assert found.mask_hw[21, 17] == 2 and found.mask_hw[22, 49] == 1 and found.mask_hw[0, 0] == 0


def test_objects_are_whole_masks_in_the_order_of_the_boxes(photo: Path) -> None:
    predictor = BoxPredictor(SMALL)
    predictor.set_image(scene(), "discs")
    masks = predictor.predict(BOXES)
    assert masks.masks_nhw.shape == (2, 44, 64) and masks.masks_nhw.dtype == bool
    assert masks.masks_nhw[:, 21, 17].tolist() == [True, False] and masks.masks_nhw[:, 22, 49].tolist() == [False, True]
    assert predictor.predict([]).masks_nhw.shape == (0, 44, 64)


def test_a_mask_is_saved_as_class_numbers_and_shows_itself(photo: Path, tmp_path: Path) -> None:
    predictor = BoxPredictor(SMALL, classes=("a", "b"))
    predictor.set_image(photo)
    masks = predictor.predict(BOXES[:1], ["b"])
    masks.save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), masks.mask_hw)
    assert masks._repr_png_().startswith(b"\x89PNG")


def test_what_cannot_be_meant_is_said(photo: Path, tmp_path: Path) -> None:
    predictor = BoxPredictor(SMALL, classes=("a", "b"))
    with pytest.raises(ValueError, match="call set_image first"):
        predictor.predict(BOXES)
    with pytest.raises(ValueError, match=r"\(height, width, 3\) uint8 array, not \(4, 4\) float64"):
        predictor.set_image(np.zeros((4, 4)))
    (tmp_path / "no.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"no\.jpg"):
        predictor.set_image(tmp_path / "no.jpg")
    predictor.set_image(photo)
    with pytest.raises(ValueError, match="2 boxes and 1 classes"):
        predictor.predict(BOXES, ["a"])
    with pytest.raises(ValueError, match="no class 'c'; BoxPredictor"):
        predictor.predict(BOXES, ["a", "c"])
    with pytest.raises(ValueError, match=r"1\.\.2, not 3"):
        predictor.predict(BOXES, [1, 3])
    with pytest.raises(ValueError, match="finite pixel edges"):
        predictor.predict([(9, 9, 3, 12)])
    with pytest.raises(ValueError, match="given-masks"):
        BoxPredictor(labels.given_masks())
