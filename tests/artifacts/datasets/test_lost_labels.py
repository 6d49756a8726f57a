"""Labels that are lost, truth that would be invented, spellings that have one meaning. Right, or said."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_trees import CAT, DOG, LINES, SIZE, annotate, coco, picture, read, sample_mask, voc, whole, yolo
from PIL import Image

from artifacts.datasets import DataParams
from artifacts.datasets.coco_masks import parse_counts
from artifacts.datasets.voc_masks import read_index_png
from artifacts.records import DataError

# --- where labels lie (A)


def test_labels_beside_the_pictures_are_read(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        picture(tmp_path / "obj_train_data" / f"{name}.jpg")
        (tmp_path / "obj_train_data" / f"{name}.txt").write_text(LINES)
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/p1.jpg\ndata/obj_train_data/p2.jpg\n")
    assert whole(read("yolo", tmp_path, "train"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "obj_train_data").iterdir():
        path.rename(flat / path.name)
    (flat / "classes.txt").write_text("cat\ndog\n")
    assert whole(read("yolo", flat))


@pytest.mark.parametrize("folder", ["labels/train", "label"])
def test_label_files_elsewhere_are_counted_as_missing(tmp_path: Path, folder: str) -> None:
    yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "aside")
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / "aside").rename(tmp_path / folder)
    found = read("yolo", tmp_path)
    assert (found.counts.listed, found.counts.without_label, found.counts.labels) == (2, 2, 0)
    assert f"{tmp_path}/images" in "\n".join(found.warnings)


# --- a picture whose labels are all damaged is no background


def test_a_damaged_picture_is_never_background(tmp_path: Path) -> None:
    yolo(tmp_path / "y", ("p1", "p2"))
    (tmp_path / "y/labels/p1.txt").write_text("0 0,5 0,5 0,2 0,2\n7 0.5 0.5 0.1 0.1\n")
    found = read("yolo", tmp_path / "y")
    assert [r.image_id for r in found] == ["p2"] and "none of its 2 lines can be used" in found.skips[0].reason
    assert found.counts.dropped("boxes") == 2 and found.counts.labels == 4

    voc(tmp_path / "v")
    annotate(tmp_path / "v", "p1", (("cat", (200, 200, 300, 300)), ("dog", (40, 40, 40, 60))))
    found = read("voc", tmp_path / "v", "train")
    assert found.records[0].boxes is None and found.records[0].tags == (1, 2)
    assert found.counts.dropped("boxes") == 2 and found.counts.dropped("tags") == 0

    broken = {"annotation_bbox": lambda a: [0, 0, -1, 0] if a["image_id"] == 1 else a["bbox"]}
    found = read("coco", coco(tmp_path / "c", annotation_segmentation=..., **broken))
    assert [r.boxes is None for r in found] == [True, False] and found.records[0].tags == (1, 2)

    unknown = {"annotation_category_id": lambda a: 99 if a["image_id"] == 1 else a["category_id"]}
    found = read("coco", coco(tmp_path / "d", **unknown))
    assert [(r.boxes is None, r.tags is None) for r in found] == [(True, True), (False, False)]

    (tmp_path / "f").mkdir()
    picture(tmp_path / "f/p1.jpg")
    (tmp_path / "f/classes.txt").write_text("cat\n")
    (tmp_path / "f/tags.csv").write_text("image,tags\np1,unicorn\n")
    assert read("folder", tmp_path / "f").records[0].tags is None


def test_annotations_that_fit_no_image_make_those_without_any_unknown(tmp_path: Path) -> None:
    away = {"annotation_image_id": lambda a: "p1" if a["image_id"] == 1 else 2}
    found = read("coco", coco(tmp_path, **away))
    first, second = found
    assert (first.boxes, first.tags, first.truth) == (None, None, None) and second.tags == (1, 2)
    assert found.counts.dropped("boxes") == 2 and "labels are unknown" in "\n".join(found.warnings)


# --- spellings with one meaning (G)


@pytest.mark.parametrize(
    "changes",
    [
        {"annotation_image_id": lambda a: str(a["image_id"])},
        {"annotation_image_id": lambda a: float(a["image_id"])},
        {"image_id": lambda a: str(a["id"])},
        {"image_id": lambda a: f"0{a['id']}"},
        {"category_id": lambda a: str(a["id"]), "annotation_category_id": lambda a: str(a["category_id"])},
        {"category_id": lambda a: float(a["id"]), "annotation_category_id": lambda a: float(a["category_id"])},
        {"image_width": 0, "image_height": 0},
        {"image_width": "96", "image_height": 64.0},
        {"image_width": ..., "image_height": None},
        {"annotation_bbox": ...},
        {"annotation_bbox": []},
        {"annotation_bbox": [0, 0, 0, 0]},
        {"annotation_bbox": lambda a: [str(number) for number in a["bbox"]]},
        {"annotation_bbox": lambda a: ", ".join(map(str, a["bbox"]))},
        {"annotation_bbox": lambda a: [a["bbox"]]},
        {"more": ({"id": 0, "name": "pets", "supercategory": "none"},), "category_supercategory": "pets"},
        {"more": ({"id": 0, "name": "cat", "supercategory": "none"},)},
        {"more": ({"id": 9, "name": "cat"},), "annotation_category_id": lambda a: {1: 9}.get(a["category_id"], 2)},
        {"more": ({"id": None, "name": 3},)},
    ],
)
def test_coco_spellings(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = read("coco", coco(tmp_path, **changes))
    assert found.classes == ("cat", "dog") and whole(found)


def test_one_bad_entry_costs_itself(tmp_path: Path) -> None:
    coco(tmp_path, more=({"id": "x", "name": "bird"}, 3, {"name": "cow"}))
    content = json.loads((tmp_path / "i.json").read_text())
    content["annotations"] += [7, {"image_id": 1}, {"image_id": [1], "category_id": 1}]
    (tmp_path / "i.json").write_text(json.dumps(content))
    found = read("coco", tmp_path)
    assert found.classes == ("cat", "dog") and whole(found)
    assert found.counts.labels == 7 and found.counts.dropped("boxes") == 3


# --- truth that would be invented (B)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_holds_the_numbers_themselves(tmp_path: Path, bits: int) -> None:
    import struct
    import zlib

    rows = sample_mask()
    shift = 8 // bits
    packed = np.zeros((SIZE[0], SIZE[1] // shift), np.uint8)
    for place in range(shift):
        packed |= rows[:, place::shift] << (8 - bits * (place + 1))
    data = b"".join(b"\0" + row.tobytes() for row in packed)
    head = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], bits, 0, 0, 0, 0)
    parts = (b"IHDR" + head, b"IDAT" + zlib.compress(data), b"IEND")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert np.array_equal(read_index_png(str(tmp_path / "m.png"), SIZE), rows)


def test_a_jpeg_called_png_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(sample_mask()).save(tmp_path / "m.png", "JPEG")
    with pytest.raises(DataError, match="not a PNG file"):
        read_index_png(str(tmp_path / "m.png"), SIZE)


@pytest.mark.parametrize("form", ["voc", "folder"])
def test_masks_of_0_and_255_are_asked_about(tmp_path: Path, form: str) -> None:
    mask = np.where(sample_mask() > 0, 255, 0).astype(np.uint8)
    if form == "voc":
        voc(tmp_path, mask=mask)
    else:
        picture(tmp_path / "a.jpg")
        (tmp_path / "masks").mkdir()
        Image.fromarray(mask).save(tmp_path / "masks/a.png")
        (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="hold only 0 and 255"):
        read(form, tmp_path)
    assert read(form, tmp_path, only_undecided=True).records[0].truth is not None


def test_masks_that_count_other_classes_than_the_labels_name(tmp_path: Path) -> None:
    voc(tmp_path, mask=sample_mask())
    assert whole(read("voc", tmp_path, "train"))
    (tmp_path / "classes.txt").unlink()  # cat and dog are VOC's names, too: 8 and 12
    with pytest.raises(DataError, match=r"holds 1 aeroplane, 2 bicycle, its labels say 8 cat, 12 dog.*classes\.txt"):
        read("voc", tmp_path, "train")


def test_masks_that_say_object_alone(tmp_path: Path) -> None:
    voc(tmp_path, mask=(sample_mask() > 0).astype(np.uint8))
    assert "hold no class but 1 cat" in read("voc", tmp_path, "train").warnings[-1]


@pytest.mark.parametrize("form", ["voc", "coco"])
def test_masks_that_lie_elsewhere_than_the_boxes_are_said(tmp_path: Path, form: str) -> None:
    mask = sample_mask()
    if form == "voc":
        voc(tmp_path / "good", mask=mask)
        voc(tmp_path / "swapped", mask=np.choose(mask, [0, 2, 1]).astype(np.uint8))
        voc(tmp_path / "by-frequency", mask=np.choose(mask, [2, 1, 0]).astype(np.uint8))  # a palette that was made anew
        voc(tmp_path / "empty", mask=mask * 0)
        voc(tmp_path / "undecided", mask=np.where(mask == 0, 255, mask).astype(np.uint8))
    else:
        coco(tmp_path / "good")
        coco(tmp_path / "empty", annotation_segmentation=lambda a: [[v / 100 for v in a["segmentation"][0]]])
        coco(tmp_path / "by-frequency", annotation_segmentation=[[60, 50, 80, 50, 80, 60]])
        coco(tmp_path / "undecided", annotation_iscrowd=1)
        coco(tmp_path / "swapped", annotation_bbox=lambda a: [40, 45, 10, 10])
    split = "train" if form == "voc" else "all"
    for name in ("good", "undecided"):
        assert not read(form, tmp_path / name, split).warnings, name
    for name in ("swapped", "by-frequency"):
        assert "mostly outside the boxes of their class (the first" in read(form, tmp_path / name, split).warnings[0]
    assert "2 of 2 images looked at is all background" in read(form, tmp_path / "empty", split).warnings[0]


def test_an_object_without_a_box_is_no_background_without_a_word(tmp_path: Path) -> None:
    voc(tmp_path)
    path = tmp_path / "Annotations/p1.xml"
    one = path.read_text().replace("bndbox>", "robndbox>", 2)
    path.write_text(one)
    found = read("voc", tmp_path, "train")
    assert [len(record.boxes or ()) for record in found] == [1, 2]
    assert "object 0 (cat): <robndbox>, and no <bndbox>" in found.warnings[0] and found.counts.dropped("boxes") == 1
    path.write_text(one.replace("robndbox>", "pose>"))
    assert "object 0 (cat): no <bndbox>, and others have one" in read("voc", tmp_path, "train").warnings[0]
    path.write_text(path.read_text().replace("bndbox>", "pose>"))  # tags alone
    assert read("voc", tmp_path, "train").warnings == ()


def test_class_numbers_from_1_are_seen_as_floats_too(tmp_path: Path) -> None:
    root = yolo(tmp_path, text=LINES.replace("\n1 ", "\n2.0 ").replace("0 ", "1.0 ", 1))
    with pytest.raises(DataError, match="do the lines count from 1"):
        read("yolo", root)


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_the_table_of_cvat_is_read(tmp_path: Path, mode: str) -> None:
    voc(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:9,8,7::\ncat:0,200,0::\n"
    )
    colours = np.zeros((256, 3), np.uint8)
    colours[1], colours[2] = (0, 200, 0), (9, 8, 7)  # the file's own palette: 1 is the cat, which the table has second
    image = Image.fromarray(sample_mask() if mode == "P" else colours[sample_mask()])
    if mode == "P":
        image.putpalette(colours.tobytes())
    for name in ("p1", "p2"):
        image.save(tmp_path / "SegmentationClass" / f"{name}.png")
    found = read("voc", tmp_path, "train")
    expected = np.array([0, 2, 1], np.uint8)[sample_mask()]
    assert found.classes == ("dog", "cat") and found.records[0].truth is not None
    assert np.array_equal(found.records[0].truth.load(), expected)


@pytest.mark.parametrize("polygon", [[[10, 12, 30, 28]], [10, 12, 30, 28], [[]], [[1, 1]]])
def test_a_polygon_that_is_none_is_no_empty_mask(tmp_path: Path, polygon: Any) -> None:
    coco(tmp_path, annotation_segmentation=lambda a: polygon if a["category_id"] == 2 else a["segmentation"])
    found = read("coco", tmp_path)
    assert whole(found) and any("truth masks looked at cannot be read" in line for line in found.warnings) == (
        polygon != [[]]
    )
    for record in found:
        if record.truth is not None:  # [[]] is "no segmentation"
            with pytest.raises(DataError, match="a polygon has three at least"):
                record.truth.load()


def test_shares_where_pixels_belong(tmp_path: Path) -> None:
    coco(tmp_path, annotation_bbox=[0.1, 0.2, 0.3, 0.3])
    with pytest.raises(DataError, match="shares of the image's size"):
        read("coco", tmp_path)


# --- sizes and codes that cost too much


def test_stated_sizes_are_bounded_and_compared(tmp_path: Path) -> None:
    coco(tmp_path, image_width=lambda i: 60_000 if i["id"] == 1 else 95, image_height=lambda i: 60_000 // i["id"] ** 9)
    found = read("coco", tmp_path, min_labelled=0)
    assert "states 60,000 x 60,000 pixels" in found.skips[0].reason and len(found) == 1
    with pytest.raises(DataError, match=r"states 95 x 117, the picture is 96 x 64"):
        found.records[0].truth.load()  # type: ignore[union-attr]


def test_codes_without_end_and_depth_without_bottom(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 60 bits"):
        parse_counts("o" * 3_000_000)
    coco(tmp_path, annotation_segmentation=lambda a: "DEEP")
    path = tmp_path / "i.json"
    path.write_text(path.read_text().replace('"DEEP"', "[" * 50_000 + "]" * 50_000))
    with pytest.raises(DataError, match="nested too deeply"):
        read("coco", tmp_path)
    many = [{"id": number, "name": f"c{number}"} for number in range(20_000)]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": many}))
    with pytest.raises(DataError, match="20000 categories, but a uint8 mask holds at most 254"):
        read("coco", tmp_path)


# --- mutated sets: right, or said

DAMAGE = ("cut", "byte", "line twice", "line away", "number", "word", "upper", "blank", "empty")


def damaged(text: str, how: str, chance: random.Random) -> str:
    """``text`` after one of the accidents that happen to files."""
    lines = text.split("\n")
    row = chance.randrange(len(lines))
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    if how == "cut":
        return text[: chance.randrange(len(text))]
    if how == "byte":
        place = chance.randrange(len(text))
        return text[:place] + chance.choice("\x00\x7f<{[,;-é ") + text[place + 1 :]
    if how in ("line twice", "line away"):
        return "\n".join([*lines[:row], *([lines[row]] * (2 if how == "line twice" else 0)), *lines[row + 1 :]])
    if how in ("number", "word") and digits:
        place = chance.choice(digits)
        return text[:place] + ("999" if how == "number" else "x") + text[place + 1 :]
    return {"upper": text.upper(), "blank": text.replace(" ", "\t "), "empty": ""}.get(how, text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("yolo", "coco", "voc", "folder")), st.sampled_from(DAMAGE), st.integers(0, 10**6))
def test_a_damaged_set_is_read_right_or_it_is_said(
    tmp_path_factory: pytest.TempPathFactory, form: str, how: str, seed: int
) -> None:
    root = tmp_path_factory.mktemp("set")
    if form == "folder":
        for name in ("p1", "p2"):
            picture(root / f"{name}.jpg")
        rows = [f"{p},{c},{','.join(map(str, box))}" for p in ("p1", "p2") for c, box in (("cat", CAT), ("dog", DOG))]
        (root / "boxes.csv").write_text("image,class,x0,y0,x1,y1\n" + "\n".join(rows) + "\n")
        files = [root / "boxes.csv"]
    else:
        {"yolo": yolo, "coco": coco, "voc": voc}[form](root)  # type: ignore[operator]
        if form == "yolo":
            (root / "data.yaml").write_text("nc: 2\nnames: [cat, dog]\ntrain: images\n")
        texts = [p for p in sorted(root.rglob("*")) if p.suffix in (".txt", ".json", ".xml", ".yaml")]
        files = [p for p in texts if p.name != "classes.txt"]
    chance = random.Random(seed)
    path = chance.choice(files)
    before = path.read_text()
    path.write_text(damaged(before, how, chance))
    try:
        found = read(form, root, "train" if form == "voc" else "all")
    except (DataError, OSError) as error:
        assert str(root) in str(error) or "no " in str(error)
        return
    for record in found:  # what was read lies inside its picture and has a class
        for box in record.boxes or ():
            assert 0 <= box.x0 < box.x1 <= SIZE[1] and 0 <= box.y0 < box.y1 <= SIZE[0]
            assert 1 <= box.class_id <= len(found.classes)
    complete = sum(len(record.boxes or ()) for record in found) >= 4
    said = found.warnings or found.skips or found.counts.without_label or any(r.boxes is None for r in found)
    fewer = found.counts.labels < 4 or found.counts.listed < 2  # a line that is not there is nobody's fault
    assert complete or said or fewer, (path.name, how, before, path.read_text())


def test_a_voc_tree_is_no_folder_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"read it as voc:{tmp_path}"):
        read("folder", voc(tmp_path, mask=sample_mask()))


def test_defaults_ask_for_half() -> None:
    assert DataParams("demo").min_labelled == 0.5
    with pytest.raises(ValueError, match="min_labelled"):
        DataParams("demo", min_labelled=1.5)


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_boxes_outside_their_pictures_are_lost_ones_of_the_split_that_is_read(tmp_path: Path, split: str) -> None:
    lines = ["image,class,x0,y0,x1,y1"]
    for name in ("p1", "p2", "good"):
        picture(tmp_path / f"{name}.jpg")
        lines.append(f"{name},cat,{','.join(map(str, CAT))}")
        if name != "good":
            lines += [f"{name},cat,200,200,220,220"] * 2 + [f"{name},cat,1,1,x,5"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "train.txt").write_text("p1\np2\n")
    (tmp_path / "val.txt").write_text("good\n")
    counts = read("folder", tmp_path, split, min_labelled=0).counts
    expected = {"train": (8, 6, 2), "val": (1, 0, 0), "all": (9, 6, 2)}[split]
    assert (counts.labels, counts.dropped("boxes"), counts.dropped("tags")) == expected
