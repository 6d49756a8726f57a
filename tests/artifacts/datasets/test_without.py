"""Is what belonged to a class that is left out background, in every kind of label, and is it said what went?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from artifacts.datasets import DataParams, read_split, remember_dataset
from artifacts.datasets.coco_writer import CocoImage, CocoObject, write_coco
from artifacts.datasets.voc_tree import VOC_CLASSES
from artifacts.datasets.without import meant, only_classes, share_of, shared, without_classes
from artifacts.records import Box, DataError, MaskRef, Record, RecordSet, Scribble

BOX = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
CLASSES = ("cat", "airplane", "Potted Plant", "kite")
TRUTH = np.array([[0, 1, 2, 3, 4, 255]], np.uint8)


def load_truth(reference: MaskRef) -> np.ndarray:
    return TRUTH


def load_objects(reference: MaskRef) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([number == TRUTH for number in (1, 2, 4)]), np.array([5, 6, 8])


def records() -> RecordSet:
    record = Record(
        "one",
        "one.jpg",
        tags=(1, 2, 4),
        boxes=(Box(5, 1, 0, 0, 2, 2), Box(6, 2, 0, 0, 3, 3), Box(8, 4, 1, 1, 2, 2)),
        scribbles=(Scribble(0, ((0.0, 0.0),)), Scribble(2, ((1.0, 0.0),)), Scribble(4, ((2.0, 0.0),))),
        truth=MaskRef(f"{__name__}:load_truth", "t.png", "as it was"),
        truth_objects=MaskRef(f"{__name__}:load_objects", "o.png"),
        corrected=MaskRef(f"{__name__}:load_truth", "c.png"),
    )
    return RecordSet("set", "train", CLASSES, (record, Record("two", "two.jpg")))


def test_every_kind_of_label_loses_the_class() -> None:
    left = without_classes(records(), ("airplane",))
    assert left.classes == ("cat", "Potted Plant", "kite") and left.own_classes == CLASSES
    one, two = left
    assert one.tags == (1, 3) and [(box.id, box.class_id) for box in one.boxes or ()] == [(5, 1), (8, 3)]
    assert [stroke.class_id for stroke in one.scribbles or ()] == [0, 0, 3], "its strokes say background"
    assert one.truth is not None and one.truth.load().tolist() == [[0, 1, 0, 2, 3, 255]]
    assert one.truth_objects is not None
    masks, ids = one.truth_objects.load()
    assert ids.tolist() == [5, 8] and masks.shape == (2, 1, 6)
    assert one.corrected is not None and one.corrected.load().tolist() == [[0, 1, 0, 2, 3, 255]]
    assert two == Record("two", "two.jpg"), "what is not known stays unknown"
    assert left.records[0] == one and left.records[:1] == (one,)
    twice = without_classes(left, ("kite",))
    assert twice.classes == ("cat", "Potted Plant") and twice.own_classes == CLASSES
    assert twice.records[0].truth is not None and twice.records[0].truth.load().tolist() == [[0, 1, 0, 2, 0, 255]]


def test_a_number_of_no_class_does_not_become_background() -> None:
    record = Record("one", "one.jpg", truth=MaskRef(f"{__name__}:load_truth", "t.png"))
    (left,) = without_classes(RecordSet("set", "train", CLASSES[:3], (record,)), ("airplane",))
    assert left.truth is not None and left.truth.load().tolist() == [[0, 1, 0, 2, 4, 255]], "4 is foreign to 2 classes"


def test_the_classes_that_are_named_alone_are_left() -> None:
    left = only_classes(records(), ("aeroplane", "CAT", "cow"))
    same = without_classes(records(), ("Potted Plant", "kite"))
    assert left.classes == same.classes == ("cat", "airplane") and left.records[0] == same.records[0]
    assert left.own_classes == CLASSES
    assert left.warnings == (
        "set: 2 of 4 classes left out by data.only, now background: Potted Plant, kite",
        "set: data.only names cow, which it does not have",
    )
    with pytest.raises(DataError, match="data.only names cow, and none of them is one of its classes cat, airplane"):
        only_classes(records(), ("cow",))
    with pytest.raises(ValueError, match="only and without must not both be given"):
        DataParams("demo", only=("cat",), without=("dog",))


def test_two_trees_with_the_table_of_voc_have_no_class_in_common_where_each_keeps_its_own(tmp_path: Path) -> None:
    """The table names twenty classes, whatever a tree holds."""
    for place in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / "tree" / place).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "tree" / "JPEGImages" / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    named = "".join(f"<object><name>{one}</name><bndbox>{BOX}</bndbox></object>" for one in ("person", "cat"))
    (tmp_path / "tree" / "Annotations" / "a.xml").write_text(f"<annotation>{named}</annotation>")
    (tmp_path / "tree" / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    (cats, people) = (
        read_split(DataParams(f"voc:{tmp_path / 'tree'}", only=(one,)), "train") for one in ("cat", "person")
    )
    assert cats.classes == ("cat",) and people.classes == ("person",) and not shared(cats.classes, people.classes)
    assert [[box.id for box in one.records[0].boxes or ()] for one in (cats, people)] == [[1], [0]]


def test_scribbles_that_are_a_mask_lose_the_class_too() -> None:
    record = Record("one", "one.jpg", scribbles=MaskRef(f"{__name__}:load_truth", "s.png"))
    (left,) = without_classes(RecordSet("set", "train", CLASSES, (record,)), ("airplane",))
    assert isinstance(left.scribbles, MaskRef) and left.scribbles.load().tolist() == [[0, 1, 0, 2, 3, 255]]


def test_names_are_compared_as_people_mean_them_and_it_is_said_what_went() -> None:
    left = without_classes(records(), ("voc",))
    assert left.classes == ("kite",)
    (line,) = left.warnings
    assert "3 of 4 classes left out" in line and "by name cat;" in line
    assert "airplane (= aeroplane), Potted Plant (= pottedplant)" in line
    _, unknown = without_classes(records(), ("CAT", "cow")).warnings
    assert unknown == "set: data.without names cow, which it does not have"
    with pytest.raises(DataError, match=r"none of its classes cat, airplane, Potted Plant, kite is left"):
        without_classes(records(), ("voc", "kite"))


def test_coco_has_all_of_vocs_classes_by_other_names() -> None:
    """COCO's own spelling of the six that differ, and of some that are the same or only look alike."""
    coco = ["airplane", "motorcycle", "couch", "tv", "dining table", "potted plant", "person", "hot dog", "teddy bear"]
    assert [theirs for _, theirs in shared(coco, VOC_CLASSES)] == [
        *("aeroplane", "motorbike", "sofa", "tvmonitor", "diningtable", "pottedplant", "person")
    ]
    assert meant("TV-Monitor") == meant("tv") and meant("dog") != meant("hot dog")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("dining_table", "Dining Table", True),
        ("hot\u2013dog", "hot-dog", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("STRASSE", "stra\u00dfe", True),
        ("\uff23\uff21\uff34", "cat", True),
        ("\u092e\u093e\u0932\u093e", "\u092e\u0947\u0932\u093e", False),  # they differ by a vowel sign
        ("\U0001f436", "\U0001f431", False),
        ("C", "C++", False),
        ("C++", "C#", False),
    ],
)
def test_a_name_is_all_of_its_letters_and_signs_in_any_script(one: str, other: str, same: bool) -> None:
    assert (meant(one) == meant(other)) is same
    assert meant(one) and bool(shared((one,), (other,))) is same


def test_any_data_set_can_be_read_so_and_the_cache_remembers_its_whole_table(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), np.bool_)
    mask[1:3, 1:4] = True
    images = [CocoImage(f"{n}.png", (4, 6), [CocoObject(1 + n % 2, mask)]) for n in range(20)]
    write_coco(tmp_path / "all.json", images, ("couch", "kite"))
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(b"")
    data = DataParams(f"coco:{tmp_path},{tmp_path / 'all.json'}", name="mini", val_share=0.0, without=("sofa",))
    found = read_split(data, "train")
    assert found.classes == ("kite",) and len(found) == 20
    assert [record.truth.load().max() for record in found if record.truth] == [0, 1] * 10
    assert any("couch (= sofa)" in warning for warning in found.warnings)
    parts = {
        (share, split): len(read_split(dataclasses.replace(data, val_share=0.4, share=share), split))
        for share in (1.0, 0.5)
        for split in ("train", "val")
    }
    assert parts[0.5, "train"] < parts[1.0, "train"] and parts[0.5, "val"] == parts[1.0, "val"] > 0
    folds = [
        {one.image_id for one in read_split(dataclasses.replace(data, share=0.5, share_rest=rest), "train")}
        for rest in (False, True)
    ]
    assert not folds[0] & folds[1] and len(folds[0] | folds[1]) == 20 and all(folds)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], not 0"):
        dataclasses.replace(data, share=0.0)
    remember_dataset(tmp_path / "cache", found)
    assert '"couch"' in (tmp_path / "cache" / "datasets" / "mini.json").read_text()


def test_a_share_is_the_same_images_in_every_run_and_larger_ones_hold_the_smaller() -> None:
    many = RecordSet("set", "train", ("a",), tuple(Record(str(n), f"{n}.jpg") for n in range(400)))
    parts = {share: {record.image_id for record in share_of(many, share, 0)} for share in (0.25, 0.5, 0.75, 1.0)}
    assert parts[0.25] < parts[0.5] < parts[0.75] < parts[1.0] and len(parts[1.0]) == 400
    assert all(abs(len(part) - 400 * share) < 40 for share, part in parts.items())
    assert parts[0.5] != {record.image_id for record in share_of(many, 0.5, 1)}
    others = {record.image_id for record in share_of(many, 0.5, 0, rest=True)}
    assert not others & parts[0.5] and others | parts[0.5] == parts[1.0]
