"""Folders in another case, lists in another place, palettes made anew: found and said, or said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_trees import CAT, annotate, coco, picture, read, sample_mask, voc, whole, yolo
from PIL import Image

from artifacts.datasets import find
from artifacts.datasets.find import child
from artifacts.datasets.paths import Notes
from artifacts.datasets.scribblesup import write_scribbles
from artifacts.datasets.voc_tree import VOC_CLASSES
from artifacts.datasets.voc_writer import voc_palette, write_class_mask
from artifacts.records import DataError


def test_the_only_entry_that_differs_in_case_is_taken_and_two_are_not(tmp_path: Path) -> None:
    notes = Notes()
    assert child(tmp_path, "labels", notes) == tmp_path / "labels"
    (tmp_path / "Labels").mkdir()
    assert child(tmp_path, "labels", notes) == tmp_path / "Labels"
    (said,) = notes.lines()
    assert "1 x name found in another spelling" in said and said.endswith("labels' is 'Labels'")
    (tmp_path / "LABELS").mkdir()
    assert child(tmp_path, "labels", notes) == tmp_path / "labels", "two may be meant"
    (tmp_path / "labels").mkdir()
    assert child(tmp_path, "labels", notes) == tmp_path / "labels" and len(notes.lines()) == 1


def respell(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.rename(path.with_name(path.name.swapcase()))


def test_a_yolo_tree_with_folders_in_another_case(tmp_path: Path) -> None:
    yolo(tmp_path)
    respell(tmp_path, "labels", "images", "classes.txt")
    found = read("yolo", tmp_path)
    assert whole(found) and "labels' is 'LABELS'" in "\n".join(found.warnings)


@pytest.mark.parametrize("form", ["yolo", "folder", "coco"])
def test_lists_in_another_case(tmp_path: Path, form: str) -> None:
    {"yolo": yolo, "folder": yolo, "coco": coco}[form](tmp_path)
    (tmp_path / "Train.txt").write_text("p1.jpg\n")
    (tmp_path / "val.TXT").write_text("p2.jpg\n")
    train, val = read(form, tmp_path, "train"), read(form, tmp_path, "val")
    assert [[r.image_id for r in found] for found in (train, val)] == [["p1"], ["p2"]]
    assert "'train.txt' is 'Train.txt'" in "\n".join(train.warnings)
    assert "'val.txt' is 'val.TXT'" in "\n".join(val.warnings)


def test_a_voc_tree_with_folders_in_another_case(tmp_path: Path) -> None:
    voc(tmp_path, mask=sample_mask())
    names = ("ImageSets/Segmentation/train.txt", "ImageSets/Segmentation", "ImageSets", "SegmentationClass")
    respell(tmp_path, *names, "JPEGImages", "Annotations", "classes.txt")
    found = read("voc", tmp_path, "train")
    assert whole(found) and all(record.truth is not None for record in found)
    np.testing.assert_array_equal(next(iter(found)).truth.load(), sample_mask())  # type: ignore[union-attr]
    assert all(one in "\n".join(found.warnings) for one in ("JPEGImages' is 'jpegiMAGES'", "train.txt' is 'TRAIN.TXT'"))


def test_a_folder_of_masks_in_another_case_unless_it_is_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "Masks").mkdir()
    write_class_mask(tmp_path / "Masks/a.png", sample_mask())
    (tmp_path / "Tags.csv").write_text("image,tags\na.png,cat;dog\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (record,) = read("folder", tmp_path)
    assert record.tags == (1, 2) and record.truth is not None
    np.testing.assert_array_equal(record.truth.load(), sample_mask())
    for name in ("Tags.csv", "classes.txt", "a.png"):
        (tmp_path / name).unlink()
    found = read("folder", tmp_path)
    assert found.classes == ("Masks",) and [record.tags for record in found] == [(1,)]


# -- lists


def test_lists_beside_the_folders_of_a_voc_tree_are_its_splits(tmp_path: Path) -> None:
    voc(tmp_path, ("p1", "p2", "p3"))
    (tmp_path / "ImageSets/Segmentation/train.txt").unlink()
    (tmp_path / "train.txt").write_text("p1\nJPEGImages/p3.jpg\n")
    with pytest.raises(DataError, match=r"train.txt exists but .*val.txt does not"):
        read("voc", tmp_path, "val")
    (tmp_path / "val.txt").write_text("p2\n")
    train, val = read("voc", tmp_path, "train"), read("voc", tmp_path, "val")
    assert [[r.image_id for r in found] for found in (train, val)] == [["p1", "p3"], ["p2"]]
    assert "not in ImageSets, taken all the same" in "\n".join(train.warnings)


def test_lists_of_classes_alone_are_the_splits_of_a_voc_tree(tmp_path: Path) -> None:
    voc(tmp_path, ("p1", "p2", "p3"))
    (tmp_path / "ImageSets/Segmentation/train.txt").unlink()
    main = tmp_path / "ImageSets/Main"
    main.mkdir()
    for name in ("cat", "dog"):
        (main / f"{name}_train.txt").write_text("p1  1\np2 -1\n")
        (main / f"{name}_val.txt").write_text("p3  0\n")
    train, val = read("voc", tmp_path, "train"), read("voc", tmp_path, "val")
    assert [[r.image_id for r in found] for found in (train, val)] == [["p1", "p2"], ["p3"]]
    assert "but of classes: a split is what these list" in "\n".join(train.warnings)
    assert whole(read("voc", tmp_path, "all"), 3)
    with pytest.raises(DataError, match=r"no split 'test'.*it has train \(class lists\), val \(class lists\)"):
        read("voc", tmp_path, "test")


# -- palettes


def test_vocs_colours_under_other_numbers_are_said_where_no_box_could_tell(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for xml in (tmp_path / "Annotations").iterdir():
        xml.unlink()
    (tmp_path / "Annotations").rmdir()
    cat, dog = VOC_CLASSES.index("cat") + 1, VOC_CLASSES.index("dog") + 1
    mask = np.zeros((64, 96), np.uint8)
    mask[CAT[1] : CAT[3], CAT[0] : CAT[2]] = cat
    mask[0, :] = dog
    mask[-1, :] = 255
    for name in ("p1", "p2"):
        write_class_mask(tmp_path / f"SegmentationClass/{name}.png", mask)
    found = read("voc", tmp_path, "train")
    assert found.classes == VOC_CLASSES and "colours" not in "\n".join(found.warnings)
    # A picture editor keeps the colours, and numbers them as it meets them.
    order = [255, dog, 0, cat]
    anew = Image.fromarray(np.argsort(order).astype(np.uint8)[np.searchsorted(np.sort(order), mask)])
    anew.putpalette([value for number in order for value in voc_palette()[number].tolist()])
    anew.save(tmp_path / "SegmentationClass/p1.png")
    assert np.array_equal(np.asarray(anew.convert("RGB")), voc_palette()[mask]), "it looks the same"
    (said,) = [line for line in read("voc", tmp_path, "train").warnings if "colours" in line]
    assert said.startswith("1 of 2 truth masks looked at hold VOC's colours under other numbers (the first: p1: 0 back")
    anew.convert("RGB").save(tmp_path / "SegmentationClass/p1.png")
    found = read("voc", tmp_path, "train")
    assert "colours" not in "\n".join(found.warnings)
    np.testing.assert_array_equal(next(iter(found)).truth.load(), mask)  # type: ignore[union-attr]


# -- pictures that differ in case alone


def twins(root: Path, folder: str, *names: str) -> None:
    for name in names:
        picture(root / folder / f"{name}.jpg")


@pytest.mark.parametrize(("label", "expected"), [("A", {"A": 2, "a": 0}), ("a", {"A": 0, "a": 2})])
def test_a_picture_has_not_the_labels_of_its_twin_in_case_yolo(
    tmp_path: Path, label: str, expected: dict[str, int]
) -> None:
    yolo(tmp_path, ("p",))
    (tmp_path / "images/p.jpg").unlink()
    (tmp_path / "labels/p.txt").rename(tmp_path / f"labels/{label}.txt")
    twins(tmp_path, "images", "A", "a")
    found = read("yolo", tmp_path)
    assert {record.image_id: len(record.boxes or ()) for record in found} == expected
    assert "another spelling" not in "\n".join(found.warnings) and found.counts.without_label == 1


def test_a_label_file_that_two_pictures_may_mean_is_nobodys(tmp_path: Path) -> None:
    yolo(tmp_path, ("p1", "p2"))
    twins(tmp_path, "images", "AB", "ab")
    (tmp_path / "labels/p1.txt").rename(tmp_path / "labels/Ab.txt")
    (tmp_path / "labels/p2.txt").rename(tmp_path / "labels/P2.txt")
    found = {record.image_id: len(record.boxes or ()) for record in read("yolo", tmp_path)}
    assert found == {"AB": 0, "ab": 0, "p1": 0, "p2": 2}


def test_a_picture_has_not_the_labels_of_its_twin_in_case_voc(tmp_path: Path) -> None:
    voc(tmp_path, ("A",), mask=sample_mask())
    write_scribbles(tmp_path / "ScribbleSup/A.xml", "A.jpg", (64, 96), [("cat", [(3.0, 3.0)])])
    twins(tmp_path, "JPEGImages", "a")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("A\na\n")
    found = read("voc", tmp_path, "train", min_labelled=0)
    assert [record.image_id for record in found] == ["A"] and "no annotation" in found.skips[0].reason
    annotate(tmp_path, "a", (("cat", CAT),))
    first, second = read("voc", tmp_path, "train")
    assert first.truth and first.scribbles and not second.truth and not second.scribbles


def test_a_picture_has_not_the_mask_of_its_twin_in_case_folder(tmp_path: Path) -> None:
    twins(tmp_path, "images", "A", "a", "b")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    for name in ("A", "B"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        write_class_mask(tmp_path / f"masks/{name}.png", sample_mask())
    assert [record.truth is not None for record in read("folder", tmp_path)] == [True, False, True]


def test_a_folder_of_masks_that_a_list_names_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("p1", "p2", "p3")
    voc(tmp_path, names, mask=sample_mask())
    (tmp_path / "SegmentationClass").rename(tmp_path / "Mine")
    lines = [f"JPEGImages/{name}.jpg Mine/{name}.png\n" for name in names]
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("".join(lines))
    listed: list[Path] = []
    walk = find._walk
    monkeypatch.setattr(find, "_walk", lambda root, *more: (listed.append(root), walk(root, *more))[1])
    found = read("voc", tmp_path, "train")
    assert all(record.truth is not None for record in found) and listed.count(tmp_path / "Mine") == 1
