"""Plain folders: tables, masks, splits, broken rows, what comes back after writing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from artifacts.datasets import DataParams, folder
from artifacts.datasets.find import Folder
from artifacts.datasets.folder import read_folder, write_boxes, write_folder_labels, write_tags
from artifacts.datasets.paths import Notes, check_relative
from artifacts.datasets.splits import SplitRule
from artifacts.records import Box, DataError, Record

COCO_MINI = Path(__file__).parents[3] / "../shared/data/coco-mini"
DATA = DataParams(source="folder:x")


def pictures(root, *names, size_hw=(40, 50)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size_hw[::-1]).save(root / name)


def table(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))


def read(root, split="all", **options):
    return read_folder(root, dataset="d", split=split, **options)


# What tables say


def test_tags_boxes_and_silence(tmp_path):
    pictures(tmp_path, "a.jpg", "sub dir/ü.png", "b.jpg", "c.jpg")
    table(tmp_path / "tags.csv", "image,tags\na.jpg,dog; cat\nb.jpg,\n")
    table(
        tmp_path / "boxes.csv",
        "image,class,x0,y0,x1,y1\nsub dir/ü,cat,1,2,3.5,4\na.jpg,dog,0,0,9,9\na.jpg,dog,1,1,2,2\nc,,,,,\n",
    )
    found = read(tmp_path)
    a, b, c, u = found
    assert found.classes == ("cat", "dog") and not found.warnings and not found.skips
    assert [r.image_id for r in found] == ["a", "b", "c", "sub dir/ü"]
    assert a.tags == (1, 2) and b.tags == () and c.tags is None and u.tags is None
    assert a.boxes == (Box(0, 2, 0, 0, 9, 9), Box(1, 2, 1, 1, 2, 2)) and b.boxes is None
    assert c.boxes == () and u.boxes == (Box(0, 1, 1, 2, 3.5, 4),) and u.size_hw == (40, 50)


def test_without_a_tag_table_tags_are_the_boxes_classes_difficult_ones_too(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    table(
        tmp_path / "boxes.csv",
        "image,class,x0,y0,x1,y1,difficult,crowd\na,x,0,0,1,1,1,0\na,y,0,0,1,1,0,\na,z,0,0,1,1,0,1\n",
    )
    first, second = read(tmp_path, difficult=False)
    assert first.tags == (1, 2, 3) and [b.id for b in first.boxes] == [1] and second.tags is None
    assert [(b.id, b.difficult, b.crowd) for b in read(tmp_path, include_crowd=True).records[0].boxes] == [
        (0, True, False),
        (1, False, False),
        (2, False, True),
    ]


def test_without_tables_a_folder_is_a_class(tmp_path):
    pictures(tmp_path, "cat/1.jpg", "cat/old/2.jpg", "dog/1.jpg", "background/x.png", "loose.jpg")
    found = read(tmp_path)
    assert found.classes == ("cat", "dog") and all(record.boxes is None for record in found)
    assert {record.image_id: record.tags for record in found} == {
        "background/x": (),
        "cat/1": (1,),
        "cat/old/2": (1,),
        "dog/1": (2,),
        "loose": None,
    }
    assert "2 x folder whose name was taken as its pictures' tag" in found.warnings[0]
    assert found.warnings[0].endswith("cat (2); dog (1)")
    assert found.warnings[1] == "1 x picture without tags: in no class's folder: loose.jpg"
    known = read(tmp_path, classes=("dog",))
    assert [record.tags for record in known] == [(), None, None, (1,), None], "not: checked, holds nothing"
    assert any("cat/1.jpg: 'cat'" in line for line in known.warnings)
    table(tmp_path / "tags.csv", "image,tags\ncat/1.jpg,horse\n")
    assert read(tmp_path).classes == ("horse",), "a table says all"


def test_folders_of_splits_are_no_classes(tmp_path):
    pictures(tmp_path, "train/1.jpg", "val/2.jpg")
    assert [record.tags for record in read(tmp_path)] == [None, None]
    pictures(tmp_path, "train/cat/1.jpg")
    assert read(tmp_path).classes == ("cat",)


def test_tables_as_spreadsheets_write_them(tmp_path):
    pictures(tmp_path, "a, b.jpg", 'quo"te.jpg')
    text = '﻿Tags , image,note\r\n"cat; größe","a, b.jpg",x\r\n\r\n,"quo""te.jpg",\r\n'
    table(tmp_path / "tags.csv", text)
    found = read(tmp_path)
    assert found.classes == ("cat", "größe") and [r.tags for r in found] == [(1, 2), ()]


def test_same_stem_in_two_folders_stays_two_pictures(tmp_path):
    pictures(tmp_path, "x/1.jpg", "y/1.jpg", "y/1.png")
    table(tmp_path / "tags.csv", "image,tags\nx/1,cat\ny/1.png,dog\ny/1,bird\n1.jpg,bird\n")
    found = read(tmp_path)
    assert [(r.image_id, r.tags) for r in found] == [("x/1", (1,)), ("y/1.jpg", None), ("y/1.png", (2,))]
    assert found.warnings == (
        f"2 x row for an image that is not there: {tmp_path}/tags.csv:4: \"y/1 (nor '1')\";"
        f" {tmp_path}/tags.csv:5: '1.jpg'",
    )


def test_an_images_folder_is_taken_and_hidden_things_are_not(tmp_path):
    pictures(tmp_path, "images/a.jpg", "images/.hidden.jpg", "images/.trash/b.jpg", "logo.png")
    table(tmp_path / "tags.csv", "image,tags\nimages/a.jpg,cat\n")
    assert [(r.image_id, r.tags) for r in read(tmp_path)] == [("a", (1,))]


def test_a_link_that_leads_back_up_ends(tmp_path):
    pictures(tmp_path, "s/a.jpg")
    (tmp_path / "s" / "loop").symlink_to(tmp_path)
    found = Folder(tmp_path)
    assert (found.files, found.unusable) == (["s/a.jpg"], [])


# Broken rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,cat,1,2,x,4", "x1 is 'x'; write a number of pixels"),
        ("a,cat,1,2,,4", "x1 is ''"),
        ("a,cat,nan,2,3,4", "x0 is 'nan'"),
        ("a,cat,1,2,inf,4", "x1 is 'inf'"),
        ('a,cat,"1,5",2,3,4', "x0 is '1,5'"),
        ("a,cat,3,2,1,4", "box 3 2 1 4 has no area; expected x0 < x1"),
        ("a,cat,1,2,3", "5 cells, but the header has 6"),
        ("a,c,at,1,2,3,4", "7 cells, but the header has 6; put names with commas in quotes"),
        ("a,cat,60,2,70,4", "lies outside the image of 50 x 40 pixels"),
        ("a,cat,-9,2,-3,4", "lies outside"),
        ("nobody,cat,1,2,3,4", "not there"),
        ("../nobody,cat,1,2,3,4", "not there"),
    ],
)
def test_a_broken_row_is_dropped_by_file_and_line_and_the_rest_is_read(tmp_path, row, message):
    pictures(tmp_path, "a.jpg", "b.jpg")
    table(tmp_path / "boxes.csv", f"image,class,x0,y0,x1,y1\na,cat,0,0,1,1\n{row}\nb,cat,0,0,1,1\na,dog,0,0,2,2\n")
    found = read(tmp_path)
    (warning,) = found.warnings
    assert message in warning and f"{tmp_path}/boxes.csv:3: " in warning
    assert [len(r.boxes) for r in found] == [2, 1]


def test_box_ids_count_the_rows_of_the_picture_broken_ones_too(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    rows = "a,cat,0,0,1,1\nb,cat,0,0,2,2\na,cat,9,0,1,1\na,cat,-9,0,-1,1\na,cat,0,0,3,3\n"
    table(tmp_path / "boxes.csv", f"image,class,x0,y0,x1,y1\n{rows}")
    assert [[b.id for b in r.boxes] for r in read(tmp_path)] == [[0, 3], [0]]


def test_an_unreadable_flag_names_its_column(tmp_path):
    pictures(tmp_path, "a.jpg")
    table(tmp_path / "boxes.csv", "image,class,x0,y0,x1,y1,difficult\na,cat,0,0,1,1,maybe\na,cat,0,0,1,1,1\n")
    assert "difficult is 'maybe'; write 0 or 1" in read(tmp_path).warnings[0]


@pytest.mark.parametrize("row", ["a,cat,60,2,70,4", "a,cat,12x3,2,30,4", "a,cat,30,2,12,4"])
def test_a_picture_without_any_of_its_boxes_is_a_skip_not_background(tmp_path, row):
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table(tmp_path / "boxes.csv", f"image,class,x0,y0,x1,y1\n{row}\nb,cat,0,0,9,9\nc,,,,,\n")
    found = read(tmp_path)
    assert [(record.image_id, len(record.boxes)) for record in found.records] == [("b", 1), ("c", 0)]
    (skip,) = found.skips
    assert skip.key == "d/a" and "none of its rows in boxes.csv can be used" in skip.reason


def test_a_split_by_hash_is_said_once_with_its_share(tmp_path):
    pictures(tmp_path, *(f"{n}.jpg" for n in range(10)))
    (warning,) = read(tmp_path, "train").warnings
    count = len(read(tmp_path, "train").records)
    assert 0 < count < 10 and f"'train' is {count} of 10 images" in warning and "data.val_share=0" in warning
    assert read(tmp_path, "val").warnings == read(tmp_path, "all").warnings == ()
    assert read(tmp_path, "train", rule=SplitRule(val_share=0.0)).warnings == ()


def test_boxes_that_stick_out_are_clipped_and_said(tmp_path):
    pictures(tmp_path, "a.jpg")
    table(tmp_path / "boxes.csv", "image,class,x0,y0,x1,y1\na,cat,-5,-5,60,60\na,cat,-0.5,0,50.25,40\n")
    found = read(tmp_path)
    assert [b.xyxy for b in found.records[0].boxes] == [(0, 0, 50, 40)] * 2
    assert len(found.warnings) == 1 and "1 x box that sticks out" in found.warnings[0]


def test_a_class_list_is_kept_to(tmp_path):
    pictures(tmp_path, "a.jpg")
    table(tmp_path / "classes.txt", "zebra\r\ncat\r\n")
    table(tmp_path / "tags.csv", "image,tags\na,cat;caat\n")
    table(tmp_path / "boxes.csv", "image,class,x0,y0,x1,y1\na,caat,0,0,1,1\na,zebra,0,0,1,1\n")
    found = read(tmp_path)
    assert found.classes == ("zebra", "cat") and found.records[0].tags == (2,)
    assert [(b.id, b.class_id) for b in found.records[0].boxes] == [(1, 1)]
    assert "tags.csv:2: 'caat'" in found.warnings[0] and "boxes.csv:2: 'caat'" in found.warnings[0]
    assert read(tmp_path, classes=("cat", "zebra")).records[0].tags == (1,)


def test_background_is_no_class_of_the_list(tmp_path):
    pictures(tmp_path, "a.jpg")
    table(tmp_path / "classes.txt", "Background\ncat\n\n")
    table(tmp_path / "tags.csv", "image,tags\na,cat\n")
    assert read(tmp_path).classes == ("cat",) and read(tmp_path).records[0].tags == (1,)
    with pytest.raises(DataError, match="left out on reading"):
        write_folder_labels(tmp_path, read(tmp_path), ["background", "cat"])


def test_a_new_class_does_not_renumber_the_known_ones(tmp_path):
    pictures(tmp_path, "a.jpg")
    table(tmp_path / "tags.csv", "image,tags\na,zebra;ape;cat\n")
    assert read(tmp_path).classes == ("ape", "cat", "zebra")
    found = folder.read(str(tmp_path), "all", DATA, known=("zebra", "gone"))
    assert found.classes == ("zebra", "gone", "ape", "cat") and found.records[0].tags == (1, 3, 4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes.csv", "image;class;x0;y0;x1;y1\n", r"boxes\.csv:1: no column image, class"),
        ("tags.csv", "", r"tags\.csv is empty; the first line must hold image,tags"),
        ("tags.csv", 'image,tags\na,"cat\n', r"tags\.csv:\d: not CSV"),
        ("classes.txt", "cat\ncat\n", r"classes\.txt: 'cat' stands in it twice"),
        ("classes.txt", "cat\n\ndog\n", r"classes\.txt:2: empty line between names"),
    ],
)
def test_a_table_that_is_none_is_an_error(tmp_path, name, text, message):
    pictures(tmp_path, "a.jpg")
    table(tmp_path / name, text)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_latin_1_is_an_error_that_names_the_line(tmp_path):
    pictures(tmp_path, "a.jpg")
    table(tmp_path / "tags.csv", "image,tags\na,größe\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"tags\.csv:2: not UTF-8 text .*save it as UTF-8"):
        read(tmp_path)


def test_broken_pictures_with_boxes_are_skips(tmp_path):
    pictures(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"")
    table(tmp_path / "boxes.csv", "image,class,x0,y0,x1,y1\na,cat,0,0,1,1\nb,cat,0,0,1,1\n")
    found = read(tmp_path)
    assert [r.image_id for r in found] == ["a"] and found.skips[0].key == "d/b" and found.skips[0].permanent
    with pytest.raises(DataError, match="no pictures"):
        (tmp_path / "void").mkdir()
        read(tmp_path / "void")
    with pytest.raises(DataError, match="not a folder"):
        read(tmp_path / "nowhere")


# Masks


def masked(root, mask_hw, classes="cat\ndog\n", mode=None):
    pictures(root, "s/a.jpg", "s/b.jpg")
    (root / "masks" / "s").mkdir(parents=True, exist_ok=True)
    saved = Image.fromarray(mask_hw) if mode is None else Image.fromarray(mask_hw).convert(mode)
    saved.save(root / "masks" / "s" / "a.png")
    if classes:
        table(root / "classes.txt", classes)
    return read(root)


def test_masks_are_truth_where_the_numbers_have_names(tmp_path):
    mask_hw = np.zeros((40, 50), np.uint8)
    mask_hw[3:9, 4:8] = 2
    mask_hw[20] = 255
    a, b = masked(tmp_path, mask_hw)
    assert np.array_equal(a.truth.load(), mask_hw) and b.truth is None
    assert len(read(tmp_path)) == 2  # the masks are no pictures
    palette = Image.fromarray(mask_hw, mode="P")
    palette.putpalette([i for v in range(256) for i in (v, 255 - v, 7)])
    palette.save(tmp_path / "masks" / "s" / "a.png")
    assert np.array_equal(read(tmp_path).records[0].truth.load(), mask_hw)
    (tmp_path / "classes.txt").unlink()
    found = read(tmp_path)
    assert found.records[0].truth is None
    assert any("the meaning of its numbers is unknown" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("mask_hw", "mode", "message"),
    [
        (np.full((40, 50), 3, np.uint8), None, r"number 3 \(2,000 pixels\); the class table has 1\.\.2"),
        (np.zeros((50, 40), np.uint8), None, "mask is 40 x 50 .*, its image 50 x 40"),
        (np.full((40, 50), 77, np.uint8), "RGB", "is not in VOC's palette"),
        (np.full((40, 50), 300, np.uint16), None, "mode I;16"),
    ],
)
def test_a_wrong_mask_is_an_error_of_that_picture_alone(tmp_path, mask_hw, mode, message):
    found = masked(tmp_path, mask_hw, mode=mode)
    with pytest.raises(DataError, match=message) as caught:
        found.records[0].truth.load()
    assert "masks/s/a.png" in str(caught.value)


def test_a_truncated_mask_is_an_error(tmp_path):
    found = masked(tmp_path, np.random.default_rng(0).integers(0, 3, (40, 50), np.uint8))
    path = tmp_path / "masks" / "s" / "a.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="not a readable mask"):
        found.records[0].truth.load()


# Splits


def test_the_split_column_wins_then_lists_then_the_hash(tmp_path):
    names = [f"{i:02d}.jpg" for i in range(30)]
    pictures(tmp_path, *names)
    hashed = {s: [r.image_id for r in folder.read(str(tmp_path), s, DATA)] for s in ("train", "val")}
    assert sorted(hashed["train"] + hashed["val"]) == [n[:-4] for n in names] and hashed["val"]
    (tmp_path / "train.txt").write_text("03\n04.jpg\nnobody\n")
    (tmp_path / "val.txt").write_text("05\n")
    listed = [folder.read(str(tmp_path), s, DATA) for s in ("train", "val")]
    assert [[r.image_id for r in found] for found in listed] == [["03", "04"], ["05"]]
    assert "nobody" in listed[0].warnings[0]
    table(tmp_path / "tags.csv", "image,tags,split\n07,cat,train\n08,cat,val\n09,cat,\n07,dog,val\n")
    found = [folder.read(f"folder:{tmp_path}", s, DATA) for s in ("train", "val", "all")]
    assert [[r.image_id for r in f] for f in found[:2]] == [["07"], ["08"]] and len(found[2]) == 30
    assert found[0].warnings[1].startswith("28 x picture that the split column gives no split") and not any(
        "no split" in line for line in found[2].warnings
    )
    assert "split given twice" in found[0].warnings[0] and found[0].records[0].tags == (1, 2)
    with pytest.raises(DataError, match=r"no picture has split 'test'; the split column holds \['train', 'val'\]"):
        folder.read(str(tmp_path), "test", DATA)


# Writing

names = st.text(
    st.characters(codec="utf-8", exclude_characters=";\r\n\0/", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1
)
class_lists = st.lists(
    names.map(str.strip).filter(bool).filter(lambda n: n != "﻿" and not n.startswith("﻿")),
    min_size=1,
    max_size=3,
    unique=True,
)
number = st.floats(0, 39) | st.integers(0, 39).map(float)


@settings(max_examples=40, deadline=None)
@given(
    class_lists,
    st.lists(st.tuples(number, number, number, number, st.booleans(), st.booleans()), max_size=5),
    st.sampled_from(["a", "s/a b", "ü,;'\"", " x"]),
)
def test_labels_come_back_to_the_same_bits(tmp_path_factory, classes, drawn, image_id):
    root = tmp_path_factory.mktemp("folder")
    pictures(root, f"{image_id}.png", "other.png")
    boxes = tuple(
        Box(i, 1 + i % len(classes), min(a, c), min(b, d), max(a, c) + 0.5, max(b, d) + 0.5, e, f)
        for i, (a, b, c, d, e, f) in enumerate(drawn)
    )
    tags = tuple(range(1, len(classes) + 1))
    records = [Record(image_id, "x", tags=tags, boxes=boxes), Record("other", "x", tags=(), boxes=None)]
    write_folder_labels(root, records, classes)
    back = {r.image_id: r for r in read(root, include_crowd=True)}
    assert back[image_id].boxes == boxes and back[image_id].tags == tags
    assert back["other"].boxes is None and back["other"].tags == ()
    texts = {name: (root / name).read_bytes() for name in ("boxes.csv", "tags.csv", "classes.txt")}
    write_folder_labels(root, [back[image_id], back["other"]], classes)
    assert texts == {name: (root / name).read_bytes() for name in texts}


def test_numbers_are_written_plainly(tmp_path):
    write_boxes(tmp_path / "boxes.csv", [Record("a", "x", boxes=(Box(0, 1, 1.0, 0.1, 20, 1 / 3),))], ["cat"])
    assert (tmp_path / "boxes.csv").read_text() == f"image,class,x0,y0,x1,y1\na,cat,1,0.1,20,{1 / 3!r}\n"


@pytest.mark.parametrize("name", ["a;b", " a", "", "a\nb"])
def test_names_that_would_not_come_back_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot be class names here"):
        write_tags(tmp_path / "tags.csv", [("a.jpg", [name])])
    assert not list(tmp_path.iterdir())


def test_names_inside_the_folder():
    assert check_relative("./a b/ü.jpg") == "a b/ü.jpg"
    for name in ("../x", "/x", "a/../../x", "x\0", "", ".", "\udcff.jpg"):
        with pytest.raises(DataError, match="file name"):
            check_relative(name)


def test_many_complaints_stay_one_line():
    notes = Notes()
    notes.add_all("odd", map(str, range(1000)))
    assert notes.lines() == ("1000 x odd: 0; 1; 2; 3; 4; and 995 more",)


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="coco-mini does not lie beside the checkout")
def test_coco_mini_has_its_known_numbers():
    found = folder.read(f"folder:{COCO_MINI}", "all", DATA)
    assert (len(found), len(found.classes), found.skips) == (100, 69, ())
    assert [r.image_id for r in found if r.tags == ()] == ["000000000250", "000000000508"]
    names = (COCO_MINI / "yolo" / "classes.txt").read_text().split("\n")[:80]
    record = next(r for r in read(COCO_MINI, classes=tuple(names)) if r.image_id == "000000000009")
    assert {names[t - 1] for t in record.tags} == {"bowl", "orange", "broccoli"}
    assert set(np.unique(record.truth.load())) - {0, 255} == set(record.tags)


# Names that would be one picture


def test_rows_of_two_pictures_of_which_one_was_copied_are_nobodys(tmp_path):
    pictures(tmp_path, "images/0001.jpg", "images/0002.jpg")
    table(
        tmp_path / "boxes.csv",
        "image,class,x0,y0,x1,y1\n/data/camA/0001.jpg,cat,1,1,5,5\n/data/camB/0001.jpg,dog,10,10,15,15\n"
        "/data/camA/0002.jpg,cat,1,1,5,5\n/data/camA/0002.JPG,cat,2,2,5,5\n\\data\\camA\\0002,cat,3,3,5,5\n",
    )
    table(tmp_path / "tags.csv", "image,tags\nC:\\camA\\0001.jpg,cat\nC:\\camB\\0001.jpg,dog\n0002.jpg,cat\n")
    first, second = (found := read(tmp_path))
    assert (first.boxes, first.tags) == (None, None) and len(second.boxes) == 3 and second.tags == (1,)
    assert found.counts.dropped("boxes") == found.counts.dropped("tags") == 4
    assert "'/data/camA/0001', '/data/camB/0001' would all be '0001.jpg'; correct the names" in "\n".join(
        found.warnings
    )


def test_of_two_names_for_a_picture_its_own_counts(tmp_path):
    pictures(tmp_path, "images/0001.jpg")
    table(tmp_path / "tags.csv", "image,tags\ncamB/0001.jpg,dog\n0001,cat\n./0001.jpg,bird\n0001.png,cow\n")
    (record,) = (found := read(tmp_path))
    assert [found.classes[tag - 1] for tag in record.tags] == ["bird", "cat"]
    assert found.counts.dropped("tags") == 2
    assert "tags.csv:2: 'camB/0001' is not there, and '0001.jpg' has rows of its own" in found.warnings[0]
