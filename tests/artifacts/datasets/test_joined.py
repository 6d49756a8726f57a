"""Are several data sets one, with one class table and every label under its number?"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from artifacts.datasets import DataParams, read_split, remember_dataset
from artifacts.datasets.coco_writer import CocoImage, CocoObject, write_coco
from artifacts.datasets.read import placed
from artifacts.records import DataError


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A folder of a kite and a couch, and a COCO set of a sofa and a hat, pictures of one name."""
    for name in ("first/masks", "second"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("first", "second"):
        cv2.imwrite(str(tmp_path / name / "a.png"), np.full((6, 8, 3), len(name), np.uint8))
    (tmp_path / "first" / "classes.txt").write_text("kite\ncouch\n")
    (tmp_path / "first" / "boxes.csv").write_text("image,class,x0,y0,x1,y1\na.png,couch,0,0,2,2\n")
    mask = np.zeros((6, 8), np.uint8)
    mask[:2, :2], mask[5, 7] = 2, 255
    cv2.imwrite(str(tmp_path / "first" / "masks" / "a.png"), mask)
    hat, sofa = np.zeros((2, 6, 8), np.bool_)
    hat[0, 0], sofa[3:5, 3:5] = True, True
    objects = [CocoObject(1, hat), CocoObject(2, sofa)]
    write_coco(tmp_path / "second" / "i.json", [CocoImage("a.png", (6, 8), objects)], ("hat", "sofa"))
    return f"folder:{tmp_path / 'first'}", f"coco:{tmp_path / 'second'},{tmp_path / 'second' / 'i.json'}"


def test_images_of_both_have_one_table_and_ids_that_say_whose_they_are(two: tuple[str, str], tmp_path: Path) -> None:
    data = DataParams(two[0], more=(two[1],), val_share=0)
    found = read_split(data, "train")
    assert found.dataset == "first+second" and found.classes == ("kite", "couch", "hat")
    one, other = found
    assert [record.image_id for record in found] == [one.image_id, other.image_id]
    assert one.image_id == "first/a" and other.image_id.startswith("second/")
    assert [box.class_id for box in one.boxes or ()] == [2]
    assert [box.class_id for box in other.boxes or ()] == [3, 2], "a sofa is a couch"
    assert one.truth is not None and np.unique(one.truth.load()).tolist() == [0, 2, 255]
    assert other.truth is not None and other.truth.load()[0, 0] == 3 and other.truth.load()[4, 4] == 2
    assert other.truth_objects is not None and len(other.truth_objects.load()[1]) == 2
    assert found.records[-1] == other and found.records[:1] == (one,)
    with pytest.raises(IndexError):
        found.records[2]
    assert found.counts.listed == 2 and found.warnings[-2:] == (
        "first+second: joined of first (1 images), second (1 images)",
        "first+second: taken as one class: sofa of second (= couch)",
    )
    named = read_split(DataParams(two[0], more=(two[1],), val_share=0, name="all", only=("sofa",)), "train")
    assert named.dataset == "all" and named.classes == ("couch",) and len(named) == 2
    remember_dataset(tmp_path / "cache", named)


def test_what_cannot_be_joined_is_said(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two sets are called 'first', by their folders"):
        read_split(DataParams(two[0], more=(two[0],), val_share=0), "train")
    with pytest.raises(ValueError, match="more must start with one of voc, coco, yolo, folder, demo, not 'first'"):
        DataParams(two[0], more=("first",))
    with pytest.raises(ValueError, match="leave out corrections and scribble_files"):
        DataParams(two[0], more=(two[1],), corrections="people")
    there = placed(DataParams("folder:a", more=("coco:b,c.json", "demo")), str(tmp_path)).more
    assert there == (f"coco:{tmp_path / 'b'},{tmp_path / 'c.json'}", "demo")
