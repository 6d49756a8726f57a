"""Data as people have them: names of other systems, tables that disagree, labels that are lost. Right, or said."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from label_trees import CAT, DOG, LINES, annotate, coco, picture, read, sample_mask, shares, voc, whole, yolo

from artifacts import images
from artifacts.datasets.find import Folder, Names
from artifacts.records import DataError

# --- names of other systems (F)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("a.jpg", "a.jpg"),
        ("sub\\b.jpg", "sub/b.jpg"),
        ("D:\\set\\images\\sub\\b.jpg", "sub/b.jpg"),
        ("..\\images\\a.jpg", "a.jpg"),
        ("../../x/sub/b.jpg", "sub/b.jpg"),
        ("/home/x/images/a.jpg", "a.jpg"),
        ("images/images/a.jpg", "a.jpg"),
        ("A.JPG", "a.jpg"),
        ("c%20d.jpg", "c d.jpg"),
        ("https://host/x/c%20d.jpg", "c d.jpg"),
        ("/data/local-files/?d=x/a.jpg", "a.jpg"),
        (unicodedata.normalize("NFD", "é.jpg"), "é.jpg"),
        ("nobody.jpg", None),
        ("b.jpg", None),  # lies in a folder that nothing names
        ("a.png", None),
        ("x.jpg", None),  # X.jpg or x.JPG?
        ("..", None),
        ("", None),
    ],
)
def test_a_name_finds_its_file_or_none(asked: str, found: str | None) -> None:
    names = Names(["a.jpg", "sub/b.jpg", "c d.jpg", "é.jpg", "X.jpg", "x.JPG"], "here")
    assert names.find(asked) == found


def test_endings_and_folders_count_where_they_must() -> None:
    names = Names(["a.jpg", "b.jpg", "b.png"], "here")
    assert names.find("a", any_ending=True) == names.find("x/a.png", any_ending=True) == "a.jpg"
    assert names.find("b", any_ending=True) is None and names.find("b.png", any_ending=True) == "b.png"
    assert names.find("x/a.jpg", whole=True) is None
    assert names.tried("..\\q.jpg") == "..\\q.jpg (nor 'q.jpg')"


@pytest.mark.parametrize("name", ["images\\p{}.jpg", "../images/p{}.jpg", "C:\\x\\p{}.jpg", "p{}.JPG"])
def test_coco_names(tmp_path: Path, name: str) -> None:
    assert whole(read("coco", coco(tmp_path, (name.format(1), name.format(2)))))


def test_two_coco_names_that_would_be_one_file_are_neither(tmp_path: Path) -> None:
    found = read("coco", coco(tmp_path, ("train/p1.jpg", "val/p1.jpg", "p3.jpg")), min_labelled=0)
    assert [record.image_id for record in found] == ["p3"]
    assert "'train/p1.jpg', 'val/p1.jpg' would all be this file" in found.skips[0].reason


@pytest.mark.parametrize("line", ["D:\\darknet\\data\\images\\p1.jpg", "data/obj/p1.jpg", "./images/p1.jpg", "P1.JPG"])
def test_lists_of_other_systems(tmp_path: Path, line: str) -> None:
    yolo(tmp_path, train_txt=f"{line}\n", val_txt="p2.jpg\n")
    assert whole(read("yolo", tmp_path, "train"), 1)


def test_label_files_in_another_spelling(tmp_path: Path) -> None:
    yolo(tmp_path, ("é1", "p2", "p3.jpg"))
    os.rename(tmp_path / "labels/é1.txt", tmp_path / "labels" / unicodedata.normalize("NFD", "é1.txt"))
    os.rename(tmp_path / "labels/p2.txt", tmp_path / "labels/p2.TXT")
    os.rename(tmp_path / "images/p3.jpg.jpg", tmp_path / "images/p3.jpg")  # p3.jpg has p3.jpg.txt
    found = read("yolo", tmp_path)
    assert whole(found, 3) and "'e\\u0301" in found.warnings[0] and len(found.warnings) == 1


@pytest.mark.parametrize(
    "line",
    [
        "{}.jpg",
        "/home/x/VOC2012/JPEGImages/{}.jpg",
        "JPEGImages\\{}.jpg",
        "JPEGImages/{}.jpg Annotations/{}.xml",
        "{}  1",
        "{} -1",
        "Annotations/{}.xml",
        "{} ",
    ],
)
def test_voc_lists(tmp_path: Path, line: str) -> None:
    voc(tmp_path)
    lines = "".join(line.replace("{}", name) + "\n" for name in ("p1", "p2"))
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(lines)
    found = read("voc", tmp_path, "train")
    assert whole(found) and [record.image_id for record in found] == ["p1", "p2"] and not found.warnings


def test_voc_files_with_other_endings_and_filenames_that_nothing_uses(tmp_path: Path) -> None:
    voc(tmp_path, mask=sample_mask())
    annotate(tmp_path, "p1", (("cat", CAT), ("dog", DOG)), "<filename>../../home/x/p1.jpg</filename>")
    os.rename(tmp_path / "Annotations/p2.xml", tmp_path / "Annotations/p2.XML")
    os.rename(tmp_path / "SegmentationClass/p2.png", tmp_path / "SegmentationClass/p2.PNG")
    found = read("voc", tmp_path, "train")
    assert whole(found) and not found.warnings
    assert all(np.array_equal(record.truth.load(), sample_mask()) for record in found if record.truth)


def test_blanks_at_the_ends_of_names_are_part_of_them(tmp_path: Path) -> None:
    voc(tmp_path, (" p1", "p2 "))
    assert [record.image_id for record in read("voc", tmp_path, "train")] == [" p1", "p2 "]


def test_names_with_line_breaks_are_left_out_by_name(tmp_path: Path) -> None:
    yolo(tmp_path)
    picture(tmp_path / "images" / "p\n3\x1b[31m.jpg")
    found = read("yolo", tmp_path)
    assert len(found) == 2 and "line break" in found.skips[0].reason
    assert not any("\x1b" in text or "\n" in text for skip in found.skips for text in (skip.key, skip.reason))
    (tmp_path / "classes.txt").write_text("cat\x1b[31m\ndog\n")
    with pytest.raises(DataError, match=r"control characters: \['cat\\x1b"):
        read("yolo", tmp_path)


# --- what is no file of the data set


def test_pipes_devices_and_links_out_are_refused_by_name(tmp_path: Path) -> None:
    yolo(tmp_path / "set", ("p1", "p2", "p3", "p4"))
    images = tmp_path / "set" / "images"
    for name in ("p1", "p2", "p3"):
        (images / f"{name}.jpg").unlink()
    os.mkfifo(images / "p1.jpg")
    (images / "p2.jpg").symlink_to("/dev/zero")
    picture(tmp_path / "away" / "p3.jpg")
    (images / "p3.jpg").symlink_to(tmp_path / "away" / "p3.jpg")
    found = read("yolo", tmp_path / "set")
    reasons = {Path(skip.path).stem: skip.reason for skip in found.skips}
    assert [record.image_id for record in found] == ["p4"] and set(reasons) == {"p1", "p2", "p3"}
    assert "is a pipe" in reasons["p1"] and "out of the data set" in reasons["p2"] and "follow_links" in reasons["p3"]
    found = read("yolo", tmp_path / "set", follow_links=True)
    assert [record.image_id for record in found] == ["p3", "p4"] and "is a device" in found.skips[1].reason
    (tmp_path / "set" / "classes.txt").unlink()
    (tmp_path / "set" / "classes.txt").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="out of the data set"):
        read("yolo", tmp_path / "set")


def test_a_folder_that_is_a_link_itself_is_the_data_set(tmp_path: Path) -> None:
    yolo(tmp_path / "real")
    (tmp_path / "set").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "images" / "q.jpg").symlink_to("p1.jpg")
    assert [record.image_id for record in read("yolo", tmp_path / "set")] == ["p1", "p2", "q"]


def test_a_folder_of_the_tree_that_leads_away_is_refused_by_name(tmp_path: Path) -> None:
    voc(tmp_path / "away")
    (tmp_path / "set").mkdir()
    for name in ("JPEGImages", "Annotations", "ImageSets", "classes.txt"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "away" / name)
    with pytest.raises(DataError, match="leads to .*away.*data.follow_links=true"):
        read("voc", tmp_path / "set", "train")
    assert whole(read("voc", tmp_path / "set", "train", follow_links=True))


def test_lists_of_sbd_may_lie_beside_the_tree(tmp_path: Path) -> None:
    voc(tmp_path / "VOC2012")
    (tmp_path / "VOC2012/classes.txt").unlink()
    (tmp_path / "VOC2012/ImageSets/Segmentation/val.txt").write_text("p1\n")
    (tmp_path / "SBD/cls").mkdir(parents=True)
    for name, text in (("train", "p2\n"), ("val", "p1\n")):
        (tmp_path / f"SBD/{name}.txt").write_text(text)
    assert [record.image_id for record in read("voc", tmp_path / "VOC2012", "trainaug")] == ["p2"]


def test_postscript_in_a_picture_is_not_run(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "images/p1.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    assert "not an image file that Pillow knows" in read("yolo", tmp_path).skips[0].reason


# --- pictures that are passed over (E)


def test_jfif_and_avif_are_read_and_others_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "readable", lambda: tuple(name for name in images.FORMATS if name != "HEIF"))
    yolo(tmp_path, ("p1",))
    for name, kind in (("p2.jfif", "JPEG"), ("p3.avif", "AVIF")):
        picture(tmp_path / "images" / name, kind=kind)
        (tmp_path / "labels" / name).with_suffix(".txt").write_text(LINES)
    for name in ("p4.heic", "p5.xyz", "notes.txt", ".hidden.xyz"):
        (tmp_path / "images" / name).write_bytes(b"?")
    found = read("yolo", tmp_path, min_labelled=0)
    assert [record.image_id for record in found] == ["p1", "p2", "p3"]
    said = "\n".join(found.warnings)
    assert "p5.xyz" in said and "pip install maskmill[heif]" in said and "hidden" not in said and "notes" not in said
    assert "p4.heic" in found.skips[0].path


# --- tables that disagree, what is declared (C)


def test_two_class_tables_that_disagree_are_both_shown(tmp_path: Path) -> None:
    yolo(tmp_path, data_yaml="names: [cat, dog]\n", classes="")
    (tmp_path / "labels/classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match=r"labels/classes\.txt says 0 dog, 1 cat, .*data\.yaml says 0 cat, 1 dog"):
        read("yolo", tmp_path)
    assert read("yolo", tmp_path, classes=("cat", "dog")).classes == ("cat", "dog")
    (tmp_path / "labels/classes.txt").write_text("cat\ndog\n")
    assert whole(read("yolo", tmp_path))


def test_class_names_stay_as_written(tmp_path: Path) -> None:
    yolo(tmp_path, data_yaml="nc: 5\nnames: [no, 007, 1.10, 'yes', ~]\n", classes="")
    assert read("yolo", tmp_path).classes == ("no", "007", "1.10", "yes", "~")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: &a [*a]\n", "nested too deeply, or within itself"),
        ("names: [a]\nnc: 2\n", "nc is 2, and there are 1 names"),
        ("names: [a]\nkpt_shape: [x, 2]\n", "kpt_shape"),
        ("names: [a]\ntask: guess\n", "task is 'guess'"),
        ("names: [a]\ntrain: 2024-13-45\n", "'2024-13-45' is not there"),
        ("names: [a]\ntrain: {a: b}\n", "train must be a folder"),
        ("names: [a]\ntrain: images\n", "declares train and no val"),
    ],
)
def test_data_yaml_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    yolo(tmp_path, data_yaml=text, classes="")
    with pytest.raises(DataError, match=message):
        for split in ("train", "val"):
            read("yolo", tmp_path, split)


@pytest.mark.parametrize(
    ("yaml", "folders"),
    [
        ("path: .\ntrain: images/train2017\nval: images/val2017\n", ("images/train2017", "images/val2017")),
        ("train: [images/a, images/b]\nval: images/training\n", ("images/a", "images/training")),
        ("path: /gone/x\ntrain: ../train/images\nval: ../valid/images\n", ("train/images", "valid/images")),
        ("path: D:\\x\ntrain: images\\t\nval: images\\v\n", ("images/t", "images/v")),
    ],
)
def test_splits_are_those_of_data_yaml(tmp_path: Path, yaml: str, folders: tuple[str, str]) -> None:
    (tmp_path / "images" / "b").mkdir(parents=True)
    for number, folder in enumerate(folders, 1):
        picture(tmp_path / folder / f"p{number}.jpg")
        labels = tmp_path / folder.replace("images", "labels")
        labels.mkdir(parents=True)
        (labels / f"p{number}.txt").write_text(LINES)
    (tmp_path / "data.yaml").write_text(f"{yaml}names: [cat, dog]\n")
    for number, split in enumerate(("train", "val"), 1):
        found = read("yolo", tmp_path, split)
        assert whole(found, 1) and found.records[0].image_id.endswith(f"p{number}") and not found.warnings
    assert len(read("yolo", tmp_path, "all")) == 2


def test_folders_that_look_like_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train2017/p1", "val2017/p2"):
        picture(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"train2017, val2017 look like splits"):
        read("yolo", tmp_path, "train")
    found = read("yolo", tmp_path, "train2017", train="train2017", val="val2017")
    assert [record.image_id for record in found] == ["train2017/p1"]


def keypoints(count: int, each: int) -> str:
    one = " 0.5 0.5" + (" 2" if each == 3 else "")
    return f"0 {shares(CAT)}{count * one}\n1 {shares(DOG)}{count * one}\n"


@pytest.mark.parametrize(("count", "each"), [(7, 2), (4, 3), (17, 3), (1, 2), (2, 2)])
def test_keypoints_follow_the_box_where_they_are_declared(tmp_path: Path, count: int, each: int) -> None:
    yaml = f"names: [cat, dog]\nkpt_shape: [{count}, {each}]\n"
    assert whole(read("yolo", yolo(tmp_path, text=keypoints(count, each), data_yaml=yaml)))


def test_lines_of_another_kind_than_declared_are_refused_by_line(tmp_path: Path) -> None:
    yaml = "names: [cat, dog]\nkpt_shape: [7, 2]\n"
    yolo(tmp_path, text=LINES + "0 0.1 0.1 0.5 0.1 0.5 0.5\n", data_yaml=yaml)
    found = read("yolo", tmp_path)
    assert whole(found) and found.counts.dropped("boxes") == 2 and "p1.txt:3: 7 fields; kpt_shape" in found.warnings[0]
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntask: detect\n")
    assert "p1.txt:3: 7 fields; expected 5" in read("yolo", tmp_path).warnings[0]
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntask: segment\n")
    assert [len(record.boxes or ()) for record in read("yolo", tmp_path)] == [1, 1]


def test_classes_that_count_from_1_are_asked_about(tmp_path: Path) -> None:
    yolo(tmp_path, text=f"1 {shares(CAT)}\n2 {shares(DOG)}\n")
    with pytest.raises(DataError, match="do the lines count from 1"):
        read("yolo", tmp_path)
    yolo(tmp_path, ("p3",), text=LINES)
    assert read("yolo", tmp_path).counts.dropped("boxes") == 2, "0 is there: 2 is a mistake of its own"


def test_long_lines_all_alike_may_be_keypoints_and_are_asked_about(tmp_path: Path) -> None:
    yolo(tmp_path, text=keypoints(7, 2))
    with pytest.raises(DataError, match=r"all 4 longer lines have 19 fields.*kpt_shape: \[7, 2\].*task: segment"):
        read("yolo", tmp_path)
    corners = " ".join(f"0.{i} 0.{i}" for i in range(1, 8))
    yolo(tmp_path, text=f"0 {corners}\n1 {corners} 0.9 0.2\n")
    assert [len(record.boxes or ()) for record in read("yolo", tmp_path)] == [2, 2]


def test_tags_by_comma_bar_or_blank(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.jpg")
    table = tmp_path / "tags.csv"
    table.write_text('image,tags\na,"cat,dog"\nb,cat\nc,dog\n')
    found = read("folder", tmp_path)
    assert found.classes == ("cat", "dog") and "by ','" in found.warnings[0]
    table.write_text('image,tags\na,"cat,dog"\nb,"cat,dog"\n')
    found = read("folder", tmp_path, min_labelled=0)
    assert found.classes == ("cat,dog",) and "class name with a separator in it" in found.warnings[0]
    assert read("folder", tmp_path, tag_separator=",").classes == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    table.write_text("image,tags\na,cat dog\n")
    assert read("folder", tmp_path).records[0].tags == (1, 2)
    (tmp_path / "classes.txt").write_text("traffic light\nlight\n")
    table.write_text("image,tags\na,traffic light\nb,light\n")
    found = read("folder", tmp_path)
    assert [record.tags for record in found] == [(1,), (2,), None] and not found.warnings


def test_masks_that_are_no_pictures_and_names_alike_are_said(tmp_path: Path) -> None:
    for name in "abcde":
        picture(tmp_path / f"{name}.jpg")
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "B.PNG", "c.jpg.png", "d.tif", "e_mask.png"):
        picture(tmp_path / "masks" / name, kind="PNG")
    (tmp_path / "classes.txt").write_text("cat\nCat\n")
    found = read("folder", tmp_path)
    assert [record.truth is not None for record in found] == [True, True, True, False, False]
    said = "\n".join(found.warnings)
    assert f"2 x mask that is not used: no picture has its name, or it is no PNG: {tmp_path}/masks/d.tif" in said
    assert "differ in case alone: cat and Cat" in said


@pytest.mark.parametrize(
    ("cells", "classes", "said"),
    [
        (("cat/dog", "cat", "dog"), ("cat", "dog"), "by '/'"),
        (("cat;dog", "cat|dog", "dog"), ("cat", "cat|dog", "dog"), "'cat|dog' is one class; the others have ';'"),
    ],
)
def test_tags_with_other_separators_are_said(
    tmp_path: Path, cells: tuple[str, ...], classes: tuple[str, ...], said: str
) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    rows = "".join(f"{name},{cell}\n" for name, cell in zip("abc", cells, strict=True))
    (tmp_path / "tags.csv").write_text("image,tags\n" + rows)
    found = read("folder", tmp_path)
    assert found.classes == classes and said in found.warnings[0]


def test_a_stray_file_whose_name_is_no_text_is_named_in_text(tmp_path: Path) -> None:
    """A name of an old disk went raw into warnings, which no export could write."""
    (tmp_path / "a.png").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/old\xe9.foo")).write_bytes(b"")
    assert Folder(tmp_path).passed_over == ["old\\udce9.foo"]
