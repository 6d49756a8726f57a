"""YOLO trees: layouts, lines, broken lines, what comes back after writing."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from artifacts.datasets import DataParams, yolo
from artifacts.datasets.yolo import class_names, parse_line, read_yolo, write_yolo
from artifacts.records import Box, DataError, Record

COCO_MINI = Path(__file__).parents[3] / "../shared/data/coco-mini"
DATA = DataParams(source="yolo:x")


def picture(path, size_hw=(40, 50), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size_hw[::-1]).save(path, exif=exif)


def tree(root, labels, classes=("cat", "dog"), images="images", folder="labels"):
    """``labels``: stem -> text of its label file, or None for no file."""
    for stem, text in labels.items():
        picture(root / images / f"{stem}.jpg")
        if text is not None:
            path = root / folder / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    (root / "classes.txt").write_text("".join(f"{c}\n" for c in classes), encoding="utf-8")
    return root


def test_shares_of_the_image_become_pixel_edges(tmp_path):
    tree(tmp_path, {"a": "0 0.5 0.25 0.4 0.5\n\n1 0.1 0.5 0.2 1\n", "b": "", "ü 1": None})
    found = read_yolo(tmp_path, dataset="d", split="all")
    a, b, u = found
    assert found.classes == ("cat", "dog") and (a.image_id, b.image_id, u.image_id) == ("a", "b", "ü 1")
    assert a.size_hw == (40, 50) and a.tags == (1, 2)
    # Width 50: 0.5 -+ 0.2 -> 15..35; height 40: 0.25 -+ 0.25 -> 0..20.
    assert np.allclose([x.xyxy for x in a.boxes], [(15, 0, 35, 20), (0, 0, 10, 40)])
    assert [(x.id, x.class_id) for x in a.boxes] == [(0, 1), (1, 2)]
    assert b.boxes == () and u.boxes == () and u.tags == () and not found.warnings


def test_shares_are_of_the_picture_as_a_person_sees_it(tmp_path):
    tree(tmp_path, {"a": "0 0.5 0.5 1 0.5\n"})
    picture(tmp_path / "images" / "a.jpg", size_hw=(40, 50), orientation=6)
    (record,) = read_yolo(tmp_path, dataset="d", split="all")
    assert record.size_hw == (50, 40) and record.boxes[0].xyxy == (0, 12.5, 40, 37.5)


def test_a_polygon_becomes_its_box():
    box, sticks_out = parse_line(["1", "0.2", "0.1", "0.6", "0.3", "0.4", "0.9"], 5, (100, 200), 2)
    assert not sticks_out and (box.id, box.class_id) == (5, 2)
    assert np.allclose(box.xyxy, (40, 10, 120, 90))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "4 fields; expected 5"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 fields; expected 5"),
        ("2 0.5 0.5 0.2 0.2", "class 2; expected a whole number from 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "class -1"),
        ("cat 0.5 0.5 0.2 0.2", "class cat"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5"),
        ("0 nan 0.5 0.2 0.2", "must be finite"),
        ("0 0.5 inf 0.2 0.2", "must be finite"),
        ("0 0.5 x 0.2 0.2", "could not convert.*'x'"),
        ("0 20 14 9 9", "are these pixels"),
        ("0 0.5 0.5 0 0.2", "no area inside the image of 50 x 40"),
        ("0 0.5 0.5 -0.2 0.2", "no area"),
        ("0 1.5 0.5 0.2 0.2", "no area"),
    ],
)
def test_a_broken_line_is_dropped_by_name_and_the_rest_is_read(tmp_path, line, message):
    tree(tmp_path, {"a": f"0 0.5 0.5 0.2 0.2\n{line}\n1 0.5 0.5 0.2 0.2\n", "b": "0 0.5 0.5 1 1\n"})
    found = read_yolo(tmp_path, dataset="d", split="all")
    assert [b.id for b in found.records[0].boxes] == [0, 2] and len(found.records[1].boxes) == 1
    (warning,) = found.warnings
    with pytest.raises(DataError, match=message):
        parse_line(line.split(), 0, (40, 50), 2)
    assert f"{tmp_path / 'labels' / 'a.txt'}:2: " in warning


def test_boxes_that_stick_out_are_clipped_and_said(tmp_path):
    tree(tmp_path, {"a": "0 0 0 0.5 0.5\n0 0.99 0.5 0.03 0.5\n"})
    found = read_yolo(tmp_path, dataset="d", split="all")
    assert np.allclose([b.xyxy for b in found.records[0].boxes], [(0, 0, 12.5, 10), (48.75, 10, 50, 30)])
    assert found.warnings == (
        f"1 x box that sticks out of the image by more than a pixel, clipped: {tmp_path}/labels/a.txt:1",
    )


def test_broken_files_are_skips_and_the_rest_is_read(tmp_path):
    tree(tmp_path, {"a": "0 0.5 0.5 0.2 0.2", "empty": "", "text": "", "latin": "", "z": None})
    (tmp_path / "images" / "empty.jpg").write_bytes(b"")
    (tmp_path / "images" / "text.jpg").write_text("I am no picture")
    (tmp_path / "labels" / "latin.txt").write_bytes(b"0 0.5 0.5 0.2 0.2\n0 \xe9")
    (tmp_path / "labels" / "nobody.txt").write_text("0 0.5 0.5 0.2 0.2")
    found = read_yolo(tmp_path, dataset="d", split="all")
    assert [r.image_id for r in found] == ["a", "z"]
    assert [s.key for s in found.skips] == ["d/empty", "d/latin", "d/text"] and all(s.permanent for s in found.skips)
    assert "latin.txt:2: not UTF-8 text (byte 20: 0xe9)" in found.skips[1].reason
    assert found.warnings == (f"1 x label file without an image: {tmp_path}/labels/nobody.txt",)


def test_all_images_broken_is_an_error(tmp_path):
    tree(tmp_path, {"a": ""})
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images can be used.*empty"):
        read_yolo(tmp_path, dataset="d", split="all")
    with pytest.raises(DataError, match="not a folder"):
        yolo.read(f"{tmp_path}/nowhere", "train", DATA)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match="no images in"):
        read_yolo(tmp_path, dataset="d", split="all")


# Layouts, splits, class names


@pytest.mark.parametrize("layout", [("images/{}", "labels/{}"), ("{}/images", "{}/labels")])
def test_split_folders(tmp_path, layout):
    for split, class_number in (("train", 0), ("val", 1)):
        images, labels = (part.format(split) for part in layout)
        tree(tmp_path, {"sub/a": f"{class_number} 0.5 0.5 1 1"}, images=images, folder=labels)
    train, val = (yolo.read(f"yolo:{tmp_path}", split, DATA) for split in ("train", "val"))
    assert [(r.image_id, r.tags) for r in (*train, *val)] == [("train/sub/a", (1,)), ("val/sub/a", (2,))]
    assert train.dataset == tmp_path.name and train.root == str(tmp_path)


def test_one_split_folder_without_the_other_never_mixes_them(tmp_path):
    tree(tmp_path, {"a": ""}, images="images/train", folder="labels/train")
    with pytest.raises(DataError, match=r"images/train exists but .*images/val does not"):
        yolo.read(str(tmp_path), "val", DATA)
    assert len(yolo.read(str(tmp_path), "train", DATA)) == 1


def test_lists_and_hash(tmp_path):
    tree(tmp_path, {f"{i:02d}": "" for i in range(30)})
    train, val = ({r.image_id for r in yolo.read(str(tmp_path), split, DATA)} for split in ("train", "val"))
    assert not train & val and len(train | val) == 30 and 1 <= len(val) <= 13
    (tmp_path / "train.txt").write_text("./images/03.jpg\nimages/05.jpg\n")
    (tmp_path / "val.txt").write_text(f"{tmp_path}/images/04.jpg\n04.jpg\n")
    found = [[r.image_id for r in yolo.read(str(tmp_path), split, DATA)] for split in ("train", "val")]
    assert found == [["03", "05"], ["04"]]


@pytest.mark.parametrize(
    ("text", "names"),
    [("names: [cat, 5]", ("cat", "5")), ("names:\n  0: cat\n  1: dog", ("cat", "dog"))],
)
def test_names_from_yaml(tmp_path, text, names):
    (tmp_path / "data.yaml").write_text(text)
    assert class_names(tmp_path) == names


def test_each_line_of_the_class_file_counts(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n\n\n")
    assert class_names(tmp_path) == ("background", "cat")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "names: 7", "names must be a list"),
        ("data.yaml", "names:\n  1: cat", "names must be a list"),
        ("data.yaml", "a: [", "not YAML"),
        ("classes.txt", "cat\ncat\n", "twice: cat"),
        ("classes.txt", "\n", "no names"),
        ("classes.txt", "cat\n \ndog\n", r"classes\.txt:2: empty line between names"),
        ("obj.names", "\r\ncat\r\n", r"obj\.names:1: empty line"),
        ("other.txt", "", r"write .*classes\.txt"),
    ],
)
def test_names_that_cannot_be_used(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        class_names(tmp_path)


# Writing


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.01, 1)] * 2, st.integers(1, 2)), max_size=5),
    st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
)
def test_boxes_come_back_as_they_were_written(tmp_path_factory, drawn, size_hw):
    height, width = size_hw
    boxes = tuple(
        Box(i, c, x * width, y * height, (x + w * (1 - x)) * width, (y + h * (1 - y)) * height)
        for i, (x, y, w, h, c) in enumerate(drawn)
    )
    root = tmp_path_factory.mktemp("yolo")
    assert write_yolo(root, [(Record("sub/ä b", "x", boxes=boxes), size_hw)], ("cat", "dog")) == 1
    assert class_names(root) == ("cat", "dog")
    lines = (root / "labels" / "sub" / "ä b.txt").read_text().splitlines()
    back = [parse_line(line.split(), i, size_hw, 2)[0] for i, line in enumerate(lines)]
    assert [dataclasses.replace(b, x0=0, y0=0, x1=0, y1=0) for b in back] == [
        Box(b.id, b.class_id, 0, 0, 0, 0) for b in boxes
    ]
    assert np.allclose([b.xyxy for b in back], [b.xyxy for b in boxes] or np.zeros(0), rtol=0, atol=1e-6)


def test_unknown_boxes_write_no_file_and_crowds_no_line(tmp_path):
    box = Box(0, 1, 0, 0, 10, 10)
    records = [
        (Record("none", "x"), (40, 50)),
        (Record("empty", "x", boxes=()), (40, 50)),
        (Record("crowd", "x", boxes=(box, dataclasses.replace(box, id=1, crowd=True))), (40, 50)),
    ]
    assert write_yolo(tmp_path, records, ("cat",)) == 2
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["crowd.txt", "empty.txt"]
    assert (tmp_path / "labels" / "crowd.txt").read_text() == "0 0.1 0.125 0.2 0.25\n"
    with pytest.raises(DataError, match="leads out"):
        write_yolo(tmp_path, [(Record("../x", "x", boxes=()), (1, 1))], ("cat",))


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="coco-mini does not lie beside the checkout")
def test_coco_mini_has_its_known_numbers():
    found = yolo.read(f"yolo:{COCO_MINI}/yolo,{COCO_MINI}/images", "all", DATA)
    assert (len(found), len(found.classes), found.skips, found.warnings) == (100, 80, (), ())
    assert sum(len(r.boxes) for r in found) == 741 and sum(r.boxes == () for r in found) == 2
    from artifacts.datasets.coco import read_coco

    tight = {
        r.image_id: np.array([b.xyxy for b in r.boxes]).reshape(-1, 4)
        for r in read_coco(COCO_MINI / "images", COCO_MINI / "instances.json", dataset="d")
    }
    ious = [best_iou(b.xyxy, tight[r.image_id]) for r in found for b in r.boxes]
    assert np.mean(ious) == pytest.approx(0.96, abs=0.005)


def best_iou(box_xyxy, boxes_xyxy):
    x0, y0, x1, y1 = box_xyxy
    width = np.clip(np.minimum(boxes_xyxy[:, 2], x1) - np.maximum(boxes_xyxy[:, 0], x0), 0, None)
    height = np.clip(np.minimum(boxes_xyxy[:, 3], y1) - np.maximum(boxes_xyxy[:, 1], y0), 0, None)
    areas = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    return (width * height / (areas + (x1 - x0) * (y1 - y0) - width * height)).max()


# Folders images/ below the picture folder


def boxes(root, split="train"):
    found = read_yolo(root, dataset="d", split=split)
    return {record.image_id: len(record.boxes) for record in found}, found


def test_labels_are_found_where_images_lies_below_the_picture_folder(tmp_path):
    tree(tmp_path, dict.fromkeys("123", "0 .5 .5 .5 .5\n"), images=".", folder=".")
    tree(tmp_path, {"4": "0 .5 .5 .5 .5\n1 .2 .2 .1 .1\n"}, images="extra/images", folder="extra/labels")
    (tmp_path / "train.txt").write_text("1.jpg\n2.jpg\n3.jpg\nextra/images/4.jpg\n")
    (tmp_path / "val.txt").write_text("1.jpg\n")
    assert boxes(tmp_path)[0] == {"1": 1, "2": 1, "3": 1, "extra/images/4": 2}


def test_the_last_folder_images_is_the_one_that_labels_stands_for(tmp_path):
    tree(tmp_path, {"a": "0 .5 .5 .5 .5\n"}, images="images/x/images/y", folder="images/x/labels/y")
    tree(tmp_path, {"a": "0 .5 .5 .5 .5\n0 .2 .2 .1 .1\n"}, images="images/x/images/y", folder="labels/x/images/y")
    assert boxes(tmp_path, "all")[0] == {"x/images/y/a": 1}
    (tmp_path / "images/x/labels/y/a.txt").unlink()
    assert boxes(tmp_path, "all")[0] == {"x/images/y/a": 2}


def test_a_list_of_roboflows_folders_in_data_yaml(tmp_path):
    labels = {"train1": "0 .5 .5 .5 .5\n", "train2": ""}
    tree(tmp_path, labels, images="train/images", folder="train/labels")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text("train/images/train1.jpg\n./train/images/train2.jpg\n")
    (tmp_path / "val.txt").write_text("train/images/train1.jpg\n")
    counts, found = boxes(tmp_path)
    assert counts == {"train/images/train1": 1, "train/images/train2": 0} and found.counts.without_label == 0
    (tmp_path / "train/labels").rename(tmp_path / "train/aside")
    _, found = boxes(tmp_path)
    assert f"(looked in {tmp_path}, {tmp_path}/train/labels)" in "\n".join(found.warnings)


@pytest.mark.parametrize("places", ["seta/images, train.txt", "seta/images, ./seta/images", "seta/images, seta"])
def test_a_picture_that_data_yaml_names_twice_is_one(tmp_path, places):
    tree(tmp_path, {"a": "0 .5 .5 .5 .5\n"}, images="seta/images", folder="seta/labels")
    (tmp_path / "data.yaml").write_text(f"train: [{places}]\nval: val.txt\nnames: [cat, dog]\n")
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("seta/images/a.jpg\n")
    counts, found = boxes(tmp_path)
    assert counts == {"seta/a": 1} and found.counts.listed == 1
    assert "1 x picture that data.yaml names twice, taken once" in "\n".join(found.warnings)
