"""Does the VOC reader say what the files say, and survive what people put into such trees?"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from artifacts.datasets import DataParams, voc, voc_tree
from artifacts.datasets.scribblesup import write_scribbles
from artifacts.datasets.voc_masks import load_class_mask, load_objects
from artifacts.datasets.voc_xml import read_annotation, read_xml
from artifacts.records import DataError, RecordSet

SIZE = (20, 30)
CAT = ("cat", (2.0, 3.0, 12.0, 9.0), False)
SHARED = Path(__file__).parents[3] / "../shared/data/voc-mini"


def image(root: Path, image_id: str, size_hw: tuple[int, int] = SIZE, suffix: str = ".jpg") -> Path:
    path = root / "JPEGImages" / f"{image_id}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_hw[::-1], (9, 99, 9)).save(path)
    return path


def add(root: Path, image_id: str, objects: Sequence[object] = (CAT,), size_hw: tuple[int, int] = SIZE) -> Path:
    image(root, image_id, size_hw)
    path = root / "Annotations" / f"{image_id}.xml"
    voc.write_annotation(path, f"{image_id}.jpg", size_hw, objects)
    return path


def lists(root: Path, split: str = "train", *lines: str) -> None:
    voc.write_image_set(root / "ImageSets" / "Segmentation" / f"{split}.txt", lines)


def read(root: Path, split: str = "train", **options: object) -> RecordSet:
    return voc.read(str(root), split, DataParams(source=f"voc:{root}", **options))


def raw_box(text: str, name: str = "cat") -> str:
    corners = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), text.split(), strict=True))
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


def raw(root: Path, image_id: str, body: str, size_hw: tuple[int, int] = SIZE, *, head: str = "") -> Path:
    image(root, image_id, size_hw)
    path = root / "Annotations" / f"{image_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{size_hw[1]}</width><height>{size_hw[0]}</height><depth>3</depth></size>"
    path.write_text(f"{head}<annotation>{size}{body}</annotation>", encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with one good image ``good`` in its train list; tests add the bad ones."""
    root = tmp_path / "my trees" / "pets"
    add(root, "good")
    lists(root, "train", "good")
    return root


def skip_of(found: RecordSet, image_id: str) -> str:
    """The one skip, of ``image_id``; and the good image is still there."""
    assert [s.key for s in found.skips] == [f"{found.dataset}/{image_id}"]
    assert [r.image_id for r in found] == ["good"], "the others survive"
    return found.skips[0].reason


# --- coordinates

FINE = st.integers(0, 64 * 400).map(lambda n: n / 64)
NAMES = st.sampled_from(["cat", "tv & <set>", "naïve Katze", "猫"])


@st.composite
def objects(draw: st.DrawFn) -> tuple[str, tuple[float, float, float, float] | None, bool]:
    x0, x1 = sorted((draw(FINE), draw(FINE)))
    y0, y1 = sorted((draw(FINE), draw(FINE)))
    box = (x0, y0, x1 + 1 / 64, y1 + 1 / 64) if draw(st.booleans()) else None
    return draw(NAMES), box, draw(st.booleans())


@given(written=st.lists(objects(), max_size=5))
@settings(max_examples=40, deadline=None)
def test_boxes_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, written) -> None:
    path = tmp_path_factory.getbasetemp() / "box ü.xml"
    voc.write_annotation(path, "a b & c.jpg", (500, 500), written)
    got = read_annotation(path)
    assert "<filename>a b &amp; c.jpg</filename>" in path.read_text() and got.size_hw == (500, 500)
    assert [(o.name, o.xyxy, o.difficult) for o in got.objects] == written
    assert [o.index for o in got.objects] == list(range(len(written)))


@given(box=st.tuples(*[st.integers(1, 300)] * 4))
@settings(max_examples=40, deadline=None)
def test_one_based_inclusive_means_the_pixels_people_count(tmp_path_factory: pytest.TempPathFactory, box) -> None:
    xmin, xmax = sorted(box[:2])
    ymin, ymax = sorted(box[2:])
    root = tmp_path_factory.mktemp("tree")
    path = raw(root, "a", raw_box(f"{xmin} {ymin} {xmax} {ymax}"))
    x0, y0, x1, y1 = read_annotation(path).objects[0].xyxy
    assert [x + 1 for x in range(int(x0), int(x1))] == list(range(xmin, xmax + 1))
    assert [y + 1 for y in range(int(y0), int(y1))] == list(range(ymin, ymax + 1))
    voc.write_annotation(path, "a.jpg", (300, 300), [("cat", (x0, y0, x1, y1), False)])
    inside = dict(re.findall(r"<(\w+)>(\d+)</", path.read_text()))
    assert [int(inside[k]) for k in ("xmin", "ymin", "xmax", "ymax")] == [xmin, ymin, xmax, ymax]


def test_a_box_over_the_whole_image_is_the_whole_image(root: Path) -> None:
    raw(root, "good", raw_box("1 1 30 20"))
    assert read(root).records[0].boxes[0].xyxy == (0.0, 0.0, 30.0, 20.0)


# --- what a tree says


def test_a_record_holds_what_the_files_say(root: Path) -> None:
    things = [CAT, ("dog", None, False), ("cow", (0, 0, 5, 5), True), ("cat", (1, 1, 4, 4), False)]
    add(root, "good", things)
    found = read(root)
    record = found.records[0]
    assert found.dataset == "pets" and found.format == "voc" and found.root == str(root)
    assert found.classes == voc.VOC_CLASSES, "the annotations use VOC's names only"
    assert record.image == str(root / "JPEGImages/good.jpg") and record.size_hw == SIZE
    cat, cow, dog = (voc.VOC_CLASSES.index(n) + 1 for n in ("cat", "cow", "dog"))
    assert record.tags == (cat, cow, dog), "difficult objects and those without box are tags"
    assert [(b.id, b.class_id, b.difficult) for b in record.boxes] == [(0, cat, False), (2, cow, True), (3, cat, False)]
    assert record.truth is None and record.truth_objects is None and record.scribbles is None
    plain = read(root, difficult=False).records[0]
    assert [b.id for b in plain.boxes] == [0, 3] and plain.tags == record.tags, "ids stay, tags stay"


def test_an_image_without_objects_stays_and_unlocated_objects_are_not_nothing(root: Path) -> None:
    add(root, "empty", [])
    add(root, "tagged", [("cat", None, False)])
    lists(root, "train", "good", "empty", "tagged")
    _, empty, tagged = read(root)
    assert empty.boxes == () and empty.tags == ()
    assert tagged.boxes is None and tagged.tags == (8,), "nobody said where the cat is"


def test_names_with_spaces_accents_and_folders(root: Path) -> None:
    ids = ["a b", "día 1.final", "猫", "sub/deeper/x", "b.c", "-1"]
    for image_id in ids:
        add(root, image_id)
    lists(root, "train", *ids)
    found = read(root)
    assert [r.image_id for r in found] == ids and not found.skips
    assert all(Path(r.image).is_file() for r in found)


def test_a_list_with_byte_order_mark_windows_lines_and_blanks(root: Path) -> None:
    add(root, "ü")
    path = root / "ImageSets/Segmentation/train.txt"
    path.write_bytes("\ufeffgood\r\n\r\n  ü  \r\n".encode())
    assert [r.image_id for r in read(root)] == ["good", "ü"]
    path.write_bytes("gut\nü\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train.txt:2: not UTF-8"):
        read(root)


def test_other_suffixes_and_a_missing_size(root: Path) -> None:
    add(root, "png")
    (root / "JPEGImages/png.jpg").unlink()
    image(root, "png", suffix=".png")
    path = add(root, "unsized", size_hw=(11, 17))
    path.write_text(path.read_text().replace("<width>17</width>", "<width>0</width>"))
    lists(root, "train", "png", "unsized")
    png, unsized = read(root)
    assert png.image.endswith("png.png") and unsized.size_hw == (11, 17)


def test_tags_and_scribbles_are_read_where_they_lie(root: Path) -> None:
    add(root, "other", [("dog", None, False)])
    add(root, "third", [("dog", None, False)])
    lists(root, "train", "good", "other", "third")
    voc.write_tags(root / "WeakTags/tags.csv", [("good.jpg", ["dog", "cow"]), ("other.jpg", [])])
    strokes = [("cat", [(1.5, 2.0), (3.0, 4.0)]), ("background", [(0.0, 0.0)])]
    write_scribbles(root / "ScribbleSup/good.xml", "good.jpg", SIZE, strokes)
    write_scribbles(root / "ScribbleSup/other.xml", "other.jpg", SIZE, [("unicorn", [(0.0, 0.0)])])
    found = read(root)
    good, other, third = found
    assert good.tags == (10, 12) and other.tags == () and third.tags == (12,)
    assert [(s.class_id, s.points_xy) for s in good.scribbles] == [(8, ((1.5, 2.0), (3.0, 4.0))), (0, ((0.0, 0.0),))]
    assert found.records[0] == good and found.records[:2] == (good, other) and len(found) == 3
    assert other.scribbles is None
    text = "\n".join(found.warnings)
    assert re.search(r"1 x images without scribbles: .*other.xml: stroke 0 has the unknown class 'unicorn'", text)
    assert re.search(r"1 x images that WeakTags/tags.csv lacks.*third", text)
    assert read(root, scribble_origin=1).records[0].scribbles[0].points_xy[0] == (0.5, 1.0)
    assert read(root, scribbles=False).records[0].scribbles is None


def test_an_unknown_tag_costs_the_image_its_tags_only(root: Path) -> None:
    voc.write_classes(root / "classes.txt", ["cat"])
    voc.write_tags(root / "WeakTags/tags.csv", [("good.jpg", ["cat", "ghost"])])
    found = read(root)
    assert found.records[0].tags is None and found.records[0].boxes
    assert "tags.csv: good has the class 'ghost'" in found.warnings[0]
    (root / "WeakTags/tags.csv").write_text("name;labels\n")
    with pytest.raises(DataError, match=r"tags.csv:1: the first line must be image,tags, not 'name;labels'"):
        read(root)


def test_without_annotations_tags_are_in_the_class_lists(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for name in ("a", "b", "c", "d", "e"):
        image(root, name)
    lists(root, "train", "a", "b", "c", "d", "e")
    main = root / "ImageSets" / "Main"
    main.mkdir()
    (main / "train.txt").write_text("a\nb\n")
    (main / "train_val.txt").write_text("a\nb\n")  # a list of images, not of trains
    (main / "cat_train.txt").write_text("a  1\nb -1\nc  0\nd 1\n")  # 0: difficult cats alone
    (main / "dog_train.txt").write_text("a  1\nb -1\nc -1\n")
    found = read(root)
    assert found.classes == voc_tree.VOC_CLASSES
    assert [record.tags for record in found] == [(8, 12), (), (8,), None, None]
    text = "\n".join(found.warnings)
    assert "2 x images without tags: d: not in ImageSets/Main (class lists: in those of every class); e: not" in text
    (main / "dog_train.txt").write_text("a 1\nb maybe\n")
    with pytest.raises(DataError, match=r"dog_train\.txt: line 2: 'b maybe'; expected an image and -1, 0 or 1"):
        read(root)
    (main / "dog_train.txt").write_text("a -1\n")
    add(root, "a", [("cow", None, False)])  # an annotation says more than a list
    assert read(root).records[0].tags == (10,)


# --- class tables


def test_the_class_table_is_the_same_for_every_split(root: Path) -> None:
    add(root, "v", [("zebra", (1, 1, 5, 5), False), ("apple", (1, 1, 5, 5), False)])
    lists(root, "val", "v")
    tables = {read(root, split).classes for split in ("train", "val", "all")}
    assert tables == {("apple", "cat", "zebra")}
    assert voc.read(str(root), "val", DataParams(source="voc:x"), known=("zebra", "cat")).classes == (
        "zebra",
        "cat",
        "apple",
    ), "numbers that the cache knows stay, new names are appended"


def test_parts_comments_and_cdata_do_not_fool_the_name_scan(root: Path) -> None:
    raw(root, "a", "<object><name>person</name><part><name>head</name></part></object><!-- <name>ghost</name> -->")
    raw(root, "b", "<object><name><![CDATA[dog]]></name></object><object><name>&#99;ow</name></object>")
    assert voc_tree.names_found(root) == {"cat", "person", "dog", "cow"}


def test_a_class_file_or_parameter_is_the_table(root: Path) -> None:
    (root / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n\n")
    assert read(root).classes == ("cat", "dog")
    (root / "classes.txt").write_text("dog\ncat\n")
    assert read(root).classes == ("dog", "cat") and read(root).records[0].tags == (2,)
    assert read(root, classes=("cat",)).records[0].tags == (1,)
    (root / "classes.txt").write_text("dog\ncat\ndog\n")
    with pytest.raises(DataError, match=r"classes.txt: 'dog' stands in it twice"):
        read(root)
    (root / "classes.txt").write_text("dog\n\ncat\n")
    with pytest.raises(DataError, match=r"classes.txt:2: empty line between names"):
        read(root)


def test_an_unknown_class_is_a_skip_with_class_file_and_fix(root: Path) -> None:
    voc.write_classes(root / "classes.txt", ["cat"])
    path = add(root, "bad", [CAT, ("unicorn", (1, 1, 4, 4), False)])
    lists(root, "train", "good", "bad")
    reason = skip_of(read(root), "bad")
    assert reason.startswith(f"{path}: object 1 has the class 'unicorn'")
    assert "classes.txt: cat)" in reason and "add it to the table" in reason


def test_masks_without_a_class_file_are_warned_about(root: Path) -> None:
    add(root, "good", [("wolf", (1, 1, 4, 4), False)])
    assert not read(root).warnings
    voc.write_class_mask(root / "SegmentationClass/good.png", np.zeros(SIZE, np.uint8))
    assert "no classes.txt, so the masks' numbers are read as 1 wolf" in read(root).warnings[0]


# --- bad boxes


@pytest.mark.parametrize(
    ("corners", "kept", "remark"),
    [
        ("nan 1 5 5", None, "xmin is nan, not a finite number"),
        ("1 1 5 inf", None, "ymax is inf, not a finite number"),
        ("1 one 5 5", None, "ymin is 'one', not a number"),
        ("9 1 5 5", None, "xmin 9 > xmax 5: inverted"),
        ("6 1 5 5", None, "no area: 0 x 5 pixels"),
        ("-9 -9 -2 -2", None, "edges -10, -10, -2, -2 lies outside the image of 30 x 20"),
        ("31 1 40 5", None, "lies outside the image of 30 x 20"),
        ("-3 1 5 5", (0.0, 0.0, 5.0, 5.0), "edges -4, 0, 5, 5 sticks out of the image of 30 x 20"),
        ("26 16 99 99", (25.0, 15.0, 30.0, 20.0), "sticks out"),
        ("0 0 5 5", (0.0, 0.0, 5.0, 5.0), "edges -1, -1, 5, 5 sticks out"),
        ("5.5 5 9.25 9", (4.5, 4.0, 9.25, 9.0), None),
        ("5 5 5 5", (4.0, 4.0, 5.0, 5.0), None),
    ],
)
def test_a_bad_box_costs_itself_never_the_image(corners: str, kept: object, remark: str | None, root: Path) -> None:
    path = raw(root, "good", raw_box("1 1 2 2") + raw_box(corners) + raw_box("3 3 4 4"))
    found = read(root)
    boxes = {b.id: b.xyxy for b in found.records[0].boxes}
    assert boxes.pop(0) == (0.0, 0.0, 2.0, 2.0) and boxes.pop(2) == (2.0, 2.0, 4.0, 4.0)
    assert boxes == ({} if kept is None else {1: kept})
    assert found.records[0].tags == (8,)
    if remark is None:
        assert not found.warnings
    else:
        kind = "boxes that stick out of their image, clipped" if kept else "boxes left out"
        assert re.search(rf"1 x {kind}: {path}: object 1 \(cat\): .*{remark}", found.warnings[0])


def test_a_box_without_a_corner(root: Path) -> None:
    raw(root, "good", "<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>")
    found = read(root)
    assert found.records[0].boxes is None, "there is a cat, but nobody can say where"
    assert "<bndbox> has no <ymin>" in found.warnings[0]


# --- bad files: a recorded skip, the rest read


def test_missing_image_and_missing_xml(root: Path) -> None:
    add(root, "gone")
    (root / "JPEGImages/gone.jpg").unlink()
    lists(root, "train", "good", "gone")
    found = read(root)
    assert "no image" in skip_of(found, "gone") and "JPEGImages/gone.jpg" in found.skips[0].reason
    assert not found.skips[0].permanent, "it may be there tomorrow"
    image(root, "gone")
    (root / "Annotations/gone.xml").unlink()
    found = read(root)
    assert f"no annotation {root}/Annotations/gone.xml" in skip_of(found, "gone")
    assert found.skips[0].path == str(root / "JPEGImages/gone.jpg") and found.skips[0].stage == "read"


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        ("", "<object>", r"bad.xml:1: broken XML at column \d+"),
        (LAUGHS, "<filename>&b;</filename>", "declares entities or external references.*DOCTYPE"),
        (EXTERNAL, "<filename>&f;</filename>", "declares entities or external references.*DOCTYPE"),
        ('<?xml version="1.0" encoding="klingon"?>', "", "unreadable XML|broken XML"),
        ("", "<object><difficult>0</difficult></object>", "object 0 has no <name>"),
    ],
    ids=["cut", "expanding", "external", "encoding", "nameless"],
)
def test_bad_xml_is_a_skip_with_path_and_reason(head: str, body: str, reason: str, root: Path) -> None:
    path = raw(root, "bad", body, head=head)
    lists(root, "train", "good", "bad")
    got = skip_of(read(root), "bad")
    assert re.search(reason, got) and str(path) in got
    assert read(root).skips[0].permanent


def test_an_entity_hidden_in_another_encoding_is_seen_too(root: Path) -> None:
    path = raw(root, "bad", "")
    path.write_bytes(f'<?xml version="1.0" encoding="UTF-16"?>{LAUGHS}<annotation>&b;</annotation>'.encode("utf-16"))
    with pytest.raises(DataError, match="declares entities"):
        read_xml(path)


def test_another_root_element_and_an_empty_file(root: Path) -> None:
    path = raw(root, "bad", "")
    lists(root, "train", "good", "bad")
    path.write_text("<html/>")
    assert "the root element is <html>" in skip_of(read(root), "bad")
    path.write_text("")
    assert "broken XML" in skip_of(read(root), "bad")


@pytest.mark.parametrize("line", ["../../secret", "/etc/../../x.jpg /m.png", "..", "JPEGImages/../../x.jpg"])
def test_a_list_cannot_lead_out_of_the_tree(line: str, root: Path) -> None:
    lists(root, "train", "good", line)
    found = read(root)
    assert len(found) == 1 and len(found.skips) == 1
    assert "leads out of the data set's folder" in found.skips[0].reason
    assert "train.txt, line 2" in found.skips[0].reason
    with pytest.raises(DataError, match="leads out"):
        read(root, "../train")


def test_of_duplicate_ids_the_first_is_kept_and_both_lines_named(root: Path) -> None:
    add(root, "b")
    lists(root, "train", "good", "b", "good")
    found = read(root)
    assert [r.image_id for r in found] == ["good", "b"]
    assert "image 'good' is listed twice, lines 1 and 3; the first is kept" in found.skips[0].reason


def test_boxes_of_another_frame_are_a_skip(root: Path) -> None:
    """The label tool ignored the EXIF orientation: the XML speaks of the image lying on its side."""
    path = add(root, "turned")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages/turned.jpg", exif=exif)
    lists(root, "train", "good", "turned")
    assert "XML says 30 x 20, the image is 20 x 30 (EXIF rotation applied)" in skip_of(read(root), "turned")
    path.write_text(path.read_text().replace(">30<", ">x<").replace(">20<", ">30<").replace(">x<", ">20<"))
    assert len(read(root)) == 2


def test_an_undecodable_image_is_left_to_the_stages(root: Path) -> None:
    add(root, "broken")
    (root / "JPEGImages/broken.jpg").write_text("no pixels")
    lists(root, "train", "good", "broken")
    assert len(read(root)) == 2, "reading looks at labels"


def test_when_nothing_can_be_used_it_is_an_error(root: Path) -> None:
    raw(root, "good", "<object>")
    with pytest.raises(DataError, match="split 'train': none of the 1 images can be used; the first: .*broken XML"):
        read(root)


# --- truth


def paint(root: Path, folder: str, image_id: str, mask: np.ndarray) -> Path:
    path = root / folder / f"{image_id}.png"
    voc.write_class_mask(path, mask)
    return path


def sample_mask() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 2:12] = 8
    mask[0] = 255
    return mask


def test_masks_come_back_as_written_with_vocs_colours(root: Path) -> None:
    path = paint(root, "SegmentationClass", "good", sample_mask())
    truth = read(root).records[0].truth
    assert np.array_equal(truth.load(), sample_mask()) and truth.load().dtype == np.uint8
    colours = np.asarray(Image.open(path).convert("RGB"))
    assert colours[5, 5].tolist() == [64, 0, 0] and colours[0, 0].tolist() == [224, 224, 192]
    palette = voc.voc_palette()
    assert palette.shape == (256, 3) and palette[[1, 2, 15, 20]].tolist() == [
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    before = path.read_bytes()
    paint(root, "SegmentationClass", "good", sample_mask())
    assert path.read_bytes() == before


def test_masks_as_grey_colour_or_bilevel_png(root: Path) -> None:
    path = paint(root, "SegmentationClass", "good", sample_mask())
    ref = read(root).records[0].truth
    Image.fromarray(sample_mask()).save(path)
    assert np.array_equal(load_class_mask(ref), sample_mask())
    Image.fromarray(voc.voc_palette()[sample_mask()]).save(path)
    assert np.array_equal(load_class_mask(ref), sample_mask())
    Image.fromarray((sample_mask() == 8).astype(np.uint8) * 255).convert("1").save(path)
    assert np.array_equal(load_class_mask(ref), sample_mask() == 8)
    Image.new("RGB", SIZE[::-1], (1, 2, 3)).save(path)
    with pytest.raises(DataError, match=r"good.png: the colour \(1, 2, 3\) at x 0, y 0 is not in VOC's palette"):
        load_class_mask(ref)


def test_bad_masks_are_errors_with_numbers_when_asked_for(root: Path) -> None:
    mask = sample_mask()
    mask[19, :7] = 21
    path = paint(root, "SegmentationClass", "good", mask)
    record = read(root).records[0]
    with pytest.raises(DataError, match=r"good.png: holds the number 21 \(7 pixels\); the class table has 1..20"):
        record.truth.load()
    paint(root, "SegmentationClass", "good", mask[:, :20])
    with pytest.raises(DataError, match=r"good.png: the mask is 20 x 20 \(width x height\), its image 30 x 20"):
        record.label_digest("truth")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"good.png: not a readable mask"):
        record.truth.load()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        record.truth.load()
    assert read(root).records[0].truth is None, "no mask is no error"


def test_object_masks_carry_the_ids_of_the_boxes(root: Path) -> None:
    add(root, "good", [CAT, ("dog", None, True), ("cow", (0, 0, 5, 5), False)])
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 2:12], mask[0:2, 0:5], mask[19] = 1, 3, 255
    path = paint(root, "SegmentationObject", "good", mask)
    ref = read(root).records[0].truth_objects
    masks, ids = load_objects(ref)
    assert ids.tolist() == [0, 2] and ids.dtype == np.int64 and masks.dtype == np.bool_
    assert np.array_equal(masks[0], mask == 1) and np.array_equal(masks[1], mask == 3)
    mask[10, 10] = 4
    paint(root, "SegmentationObject", "good", mask)
    with pytest.raises(DataError, match=f"{path}: holds object 4, but the annotation has 3"):
        load_objects(ref)
    paint(root, "SegmentationObject", "good", np.zeros(SIZE, np.uint8))
    assert load_objects(ref)[0].shape == (0, *SIZE)


# --- trainaug: VOC + SBD


def test_trainaug_as_pairs_of_paths_and_as_ids(root: Path) -> None:
    for image_id in ("2007_1", "a b"):
        add(root, image_id)
        image_mask = root / "SegmentationClassAug" / f"{image_id}.png"
        image_mask.parent.mkdir(exist_ok=True)
        Image.fromarray(sample_mask()).save(image_mask)
    pairs = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in ("2007_1", "a b")]
    lists(root, "trainaug", *pairs, "/JPEGImages/good.jpg /SegmentationClassAug/good.png")
    by_pair = read(root, "trainaug")
    assert [r.image_id for r in by_pair] == ["2007_1", "a b", "good"] and by_pair.records[2].truth is None
    assert any("1 x listed masks that do not exist" in w for w in by_pair.warnings)
    lists(root, "trainaug", "2007_1", "a b")
    by_id = read(root, "trainaug")
    assert by_id.records == by_pair.records[:2]
    assert np.array_equal(by_id.records[1].truth.load(), sample_mask()), "plain index PNG"
    lists(root, "train_aug", "JPEGImages/2007_1.jpg")
    os.remove(root / "ImageSets/Segmentation/trainaug.txt")
    assert read(root, "trainaug").records == by_id.records[:1], "both spellings of the list are known"


def sbd(root: Path, image_id: str, instances: np.ndarray, categories: list[int]) -> Path:
    folder = root.parent / "SBD" / "dataset"
    classes = np.array([0, *categories], np.uint8)[instances]
    for kind, struct, fields in (
        ("cls", "GTcls", {"Segmentation": classes}),
        ("inst", "GTinst", {"Segmentation": instances, "Categories": np.array(categories, np.uint8)[:, None]}),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        savemat(folder / kind / f"{image_id}.mat", {struct: fields})
    return folder


def test_sbd_mat_files_are_truth_where_voc_has_none(root: Path) -> None:
    things = [("cow", (0, 12, 8, 20), False), CAT, ("cat", (20, 2, 28, 10), False), ("dog", (0, 0, 1, 1), False)]
    for image_id in ("s1", "s2", "v1"):
        add(root, image_id, things)
    instances = np.zeros(SIZE, np.uint8)
    instances[3:9, 2:12], instances[2:10, 20:28], instances[12:20, 0:8], instances[0:2, 15:17] = 3, 1, 2, 4
    folder = sbd(root, "s1", instances, [8, 10, 8, 8])
    lists(root, "train", "good")
    lists(root, "val", "v1")
    (folder / "train.txt").write_text("s1\nv1\n")
    (folder / "val.txt").write_text("s2\n")
    found = read(root, "trainaug")
    assert [r.image_id for r in found] == ["good", "s1", "s2"], "train and SBD without val"
    s1, s2 = found.records[1:]
    assert np.array_equal(s1.truth.load(), np.array([0, 8, 10, 8, 8])[instances])
    masks, ids = s1.truth_objects.load()
    assert ids.tolist() == [0, 1, 2], "by box and class, not by SBD's numbers; the fourth fits no box"
    for mask, number in zip(masks, (2, 3, 1), strict=True):
        assert np.array_equal(mask, instances == number)
    assert s2.truth is None and s2.truth_objects is None
    (folder / "cls/s1.mat").write_bytes(b"not matlab")
    with pytest.raises(DataError, match=r"s1.mat: no GTcls.Segmentation as SBD has it"):
        s1.truth.load()
    with pytest.raises(DataError, match="sbd '/nowhere': no folder cls/"):
        read(root, sbd="/nowhere")
    os.remove(folder / "val.txt")
    with pytest.raises(DataError, match=r"'trainaug' has no list, and .*val.txt is missing"):
        read(root, "trainaug")


def test_known_counts_are_checked_for_what_looks_like_voc2012(root: Path) -> None:
    assert not read(root).warnings, "a small set of one's own is no VOC2012"
    lists(root, "trainaug", "good")
    assert "1 images; VOC2012's trainaug has 10,582" in read(root, "trainaug").warnings[0]
    renamed = root.rename(root.parent / "VOC2012")
    assert "1 images; VOC2012's train has 1,464" in read(renamed).warnings[0]
    voc.write_classes(renamed / "classes.txt", ["cat", "mouse"])
    assert not read(renamed).warnings, "another class table"


# --- places


def test_the_tree_is_found_from_above_and_pointed_at_from_below(root: Path, tmp_path: Path) -> None:
    assert read(root.parent).records == read(root).records
    with pytest.raises(DataError, match=f"is no VOC tree; did you mean voc:{root}"):
        read(root / "JPEGImages")
    add(root.parent / "other", "x")
    with pytest.raises(DataError, match=f"several VOC trees.*{root.parent}/other, {root}"):
        read(root.parent)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "photos").mkdir()
    with pytest.raises(DataError, match=r"(?s)is no VOC tree.*JPEGImages/<id>.jpg.*found: photos"):
        read(tmp_path / "bare")
    with pytest.raises(DataError, match="not there"):
        read(tmp_path / "nowhere")


def test_a_missing_split_names_those_that_are_there(root: Path) -> None:
    lists(root, "val", "good")
    with pytest.raises(DataError, match=r"no split 'test': no ImageSets/Segmentation/test.txt; it has train, val"):
        read(root, "test")


def test_a_tree_without_lists_is_split_by_name(root: Path) -> None:
    for place in range(20):
        add(root, f"i{place}")
    (root / "ImageSets/Segmentation/train.txt").unlink()
    train, val = ({r.image_id for r in read(root, split)} for split in ("train", "val"))
    assert train | val == {r.image_id for r in read(root, "all")} and not train & val and len(train | val) == 21
    assert "no list of images in ImageSets" in read(root).warnings[0]


def test_images_without_any_annotation_folder(root: Path) -> None:
    """A server's test set, or a tree with masks only."""
    voc.write_tags(root / "WeakTags/tags.csv", [("good.jpg", ["cat"])])
    paint(root, "SegmentationClass", "good", sample_mask())
    for file in (root / "Annotations").iterdir():
        file.unlink()
    (root / "Annotations").rmdir()
    record = read(root).records[0]
    assert record.boxes is None and record.tags == (8,) and record.size_hw == SIZE
    assert np.array_equal(record.truth.load(), sample_mask())


def test_unlabelled_test_images_are_no_skips(root: Path) -> None:
    image(root, "t")
    lists(root, "test", "t")
    found = read(root, "test")
    assert not found.skips and found.records[0].tags is None and found.records[0].boxes is None


@pytest.mark.parametrize("name", ["a\x07b", "a\ufffeb"])
def test_names_that_xml_cannot_hold_are_refused_by_the_writer(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which XML cannot hold"):
        voc.write_annotation(tmp_path / "a.xml", "a.jpg", SIZE, [(name, None, False)])
    with pytest.raises(ValueError, match=r"a mask must be \(H, W\) uint8, not \(2, 2\) int64"):
        voc.write_class_mask(tmp_path / "a.png", np.zeros((2, 2), np.int64))


def test_a_name_in_another_unicode_form_is_found(root: Path) -> None:
    """Lists from a Mac write é as two characters, the files of the archive as one, or the other way round."""
    add(root, unicodedata.normalize("NFC", "café"))
    lists(root, "train", unicodedata.normalize("NFD", "café"))
    assert [r.image_id for r in read(root)] == [unicodedata.normalize("NFC", "café")]


# --- real pictures


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_real_pictures_read_as_a_user_would() -> None:
    train, val = (read(SHARED, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (62, 15) and train.dataset == "voc-mini"
    assert train.classes == val.classes == voc.VOC_CLASSES
    records = [*train, *val]
    boxes = [box for record in records for box in record.boxes]
    assert (len(boxes), sum(box.difficult for box in boxes)) == (354, 42)
    assert sum(s.class_id == 0 for r in records for s in r.scribbles) == 132
    assert sum(s.class_id != 0 for r in records for s in r.scribbles) == 354
    assert not (train.skips or val.skips or train.warnings or val.warnings)
    assert all(set(record.tags) >= {box.class_id for box in record.boxes} for record in records)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_real_masks_boxes_and_strokes_lie_in_one_frame() -> None:
    """An offset by one anywhere would show: boxes are tight, and a stroke never leaves its object."""
    from artifacts.datasets.scribblesup import rasterize

    for record in list(read(SHARED, "val")):
        classes = record.truth.load()
        masks, ids = record.truth_objects.load()
        boxes = {box.id: box for box in record.boxes}
        for mask, box_id in zip(masks, ids.tolist(), strict=True):
            box = boxes[box_id]
            outside = mask.copy()
            outside[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = False
            assert not outside.any() and (classes[mask] == box.class_id).all()
        drawn = rasterize(record.scribbles, classes.shape, 1)
        known = (drawn != 255) & (classes != 255)
        assert known.any() and (drawn[known] == classes[known]).all()


def test_a_table_with_a_row_for_each_tag_gives_a_picture_all_of_them(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        image(tmp_path, name)
    lists(tmp_path, "train", "a", "b", "c")
    (tmp_path / "WeakTags").mkdir()
    rows = ["a.jpg,cat", "a.jpg,dog", "a,cow;cat", "b.jpg,dog", "b.jpg,", "x/c.jpg,cat", "y/c.jpg,dog"]
    (tmp_path / "WeakTags/tags.csv").write_text("\n".join(["image,tags", *rows]) + "\n")
    found = read(tmp_path)
    names = [None if record.tags is None else {found.classes[tag - 1] for tag in record.tags} for record in found]
    assert names == [{"cat", "dog", "cow"}, {"dog"}, None] and found.counts.labels == 4
    assert "'x/c', 'y/c' would all be 'c.jpg'" in "\n".join(found.warnings)
    image(tmp_path, "b", suffix=".png")
    (tmp_path / "WeakTags/tags.csv").write_text("image,tags\nb,dog\nb.png,cat\n")
    found = read(tmp_path)
    assert [record.tags and {found.classes[tag - 1] for tag in record.tags} for record in found] == [
        None,
        {"dog"},
        None,
    ]
    assert "twin with another ending" in "\n".join(found.warnings)
