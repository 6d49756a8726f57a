"""COCO: what the numbers in the file mean, what broken files do, what comes back after writing."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from artifacts.datasets import DataParams, coco
from artifacts.datasets.coco import CocoImage, CocoObject, read_coco, write_coco
from artifacts.datasets.coco_masks import decode_segmentation, encode_mask, parse_counts, runs_mask
from artifacts.datasets.paths import dataset_name, image_ids
from artifacts.datasets.splits import SplitRule, hash_share
from artifacts.records import Box, DataError

# pycocotools is the oracle here; its decode() speaks numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COCO_MINI = Path(__file__).parents[3] / "../shared/data/coco-mini"
OWN = ({"id": 70, "name": "cat"}, {"id": 30, "name": "dog", "supercategory": "animal"})
RECTANGLE = [[1, 1, 5, 1, 5, 4, 1, 4]]  # x 1..5, y 1..4


def annotation(number, image=1, category=7, bbox=(1, 1, 4, 3), segmentation=RECTANGLE, **more):
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "iscrowd": 0,
        "segmentation": segmentation, **more,
    }  # fmt: skip


def write(root, annotations=(), images=None, categories=((7, "cat"), (3, "dog")), text=None, files=True):
    """A COCO set with empty image files: whoever decodes one fails."""
    images = [image(1)] if images is None else images
    (root / "images").mkdir(exist_ok=True)
    for entry in images if files else ():
        name = entry["file_name"] if isinstance(entry["file_name"], str) else "x"
        if ".." not in name and not name.startswith("/"):
            path = root / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    content = {"images": images, "annotations": list(annotations)}
    content["categories"] = [{"id": i, "name": n} for i, n in categories]
    (root / "i.json").write_text(json.dumps(content) if text is None else text, encoding="utf-8")
    return root / "images", root / "i.json"


def image(number, name=None, height=8, width=10):
    return {"id": number, "file_name": name or f"{number:03d}.jpg", "height": height, "width": width}


def read(root, **options):
    return read_coco(root / "images", root / "i.json", dataset="d", **options)


# What the numbers mean


def test_categories_with_gaps_become_1_to_k_in_order_of_their_ids(tmp_path):
    write(tmp_path, [annotation(1, category=7), annotation(2, category=3)])
    found = read(tmp_path)
    assert found.classes == ("dog", "cat")
    assert [b.class_id for b in found.records[0].boxes] == [2, 1]
    assert found.records[0].tags == (1, 2)
    assert not found.warnings and not found.skips


def test_box_id_is_the_index_within_the_image_in_file_order_whatever_is_dropped(tmp_path):
    entries = [
        annotation(10, image=2),
        annotation(11, image=1, bbox=(0, 0, 0, 5)),  # no area
        annotation(12, image=2, category=99),  # unknown
        annotation(13, image=1, bbox=(2, 3, 4.5, 2)),
        annotation(14, image=2, iscrowd=1),
        annotation(15, image=2),
    ]
    write(tmp_path, entries, images=[image(1), image(2), image(3)])
    one, two, three = read(tmp_path)
    assert one.boxes == (Box(1, 2, 2.0, 3.0, 6.5, 5.0),)
    assert [b.id for b in two.boxes] == [0, 3]
    assert three.boxes == () and three.tags == () and three.truth is not None
    assert not three.truth.load().any()
    assert [b.id for b in read(tmp_path, include_crowd=True).records[1].boxes if b.crowd] == [2]


def test_crowd_is_a_tag_and_255_but_no_object(tmp_path):
    crowd = {"size": [8, 10], "counts": [0, 16, 64]}  # the two left columns
    write(tmp_path, [annotation(1), annotation(2, category=3, iscrowd=1, segmentation=crowd)])
    record = read(tmp_path).records[0]
    assert record.tags == (1, 2)
    expected = np.zeros((8, 10), np.uint8)
    expected[:, :2] = 255
    expected[1:4, 1:5] = 2  # the object lies on top of the crowd
    assert np.array_equal(record.truth.load(), expected)
    masks, ids = record.truth_objects.load()
    assert masks.shape == (1, 8, 10) and masks.dtype == bool and ids.tolist() == [0]


def test_smaller_objects_lie_on_top_of_larger_ones(tmp_path):
    small = annotation(1, category=3, segmentation=[[2, 2, 4, 2, 4, 4, 2, 4]])
    large = annotation(2, category=7, segmentation=[[0, 0, 10, 0, 10, 8, 0, 8]])
    write(tmp_path, [small, large])
    record = read(tmp_path).records[0]
    expected = np.full((8, 10), 2)
    expected[2:4, 2:4] = 1
    assert np.array_equal(record.truth.load(), expected)
    masks, ids = record.truth_objects.load()
    assert masks[1].all() and masks[0].sum() == 4 and ids.tolist() == [0, 1]


def test_a_polygon_of_two_parts_is_one_object_and_specks_have_no_area():
    raw = json.dumps([[0, 0, 2, 0, 2, 2, 0, 2], [5, 5, 7, 5, 7, 6, 5, 6], [1, 1, 3, 3]]).encode()
    expected = np.zeros((8, 10), bool)
    expected[0:2, 0:2] = expected[5:6, 5:7] = True
    assert np.array_equal(decode_segmentation(raw, (8, 10)), expected)
    flat = decode_segmentation(b"[0, 0, 2, 0, 2, 2, 0, 2]", (8, 10))
    assert flat.sum() == 4
    assert decode_segmentation(b"[[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]]", (8, 10)).all()


def test_runs_go_down_the_columns_and_begin_with_background():
    mask = runs_mask([1, 2, 3], (3, 2))
    assert mask.tolist() == [[False, False], [True, False], [True, False]]


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
def test_run_lengths_agree_with_pycocotools(mask_hw):
    from pycocotools import mask as oracle

    counts, area, bbox = encode_mask(mask_hw)
    code = {"size": list(mask_hw.shape), "counts": counts}
    assert np.array_equal(oracle.decode(code), mask_hw)
    for form in (code, {**code, "counts": parse_counts(counts)}):
        assert np.array_equal(decode_segmentation(json.dumps(form).encode(), mask_hw.shape), mask_hw.astype(bool))
    ys, xs = np.nonzero(mask_hw)
    assert area == len(xs)
    if len(xs):
        assert bbox == (xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min())


def test_an_unlabelled_file_says_nothing_instead_of_empty(tmp_path):
    write(tmp_path, text=json.dumps({"images": [image(1)], "categories": [{"id": 1, "name": "a"}]}))
    (tmp_path / "images" / "001.jpg").touch()
    record = read(tmp_path).records[0]
    assert record.boxes is None and record.tags is None and record.truth is None


def test_without_any_segmentation_there_is_no_truth(tmp_path):
    write(tmp_path, [annotation(1, segmentation=[]), annotation(2, image=2)], images=[image(1), image(2)])
    first, second = read(tmp_path)
    assert first.truth is None and first.boxes and second.truth is not None
    write(tmp_path, [annotation(1, segmentation=[])], images=[image(1), image(2)])
    assert all(r.truth is None for r in read(tmp_path))


def test_a_class_table_of_the_user_orders_and_leaves_out(tmp_path):
    write(tmp_path, [annotation(1, category=7), annotation(2, category=3, segmentation=[[0, 0, 9, 0, 9, 8, 0, 8]])])
    found = read(tmp_path, classes=("bird", "cat"))
    assert found.classes == ("bird", "cat") and found.records[0].tags == (2,)
    assert [(b.id, b.class_id) for b in found.records[0].boxes] == [(0, 2)]
    assert set(np.unique(found.records[0].truth.load())) == {0, 2}
    assert any("dog" in w for w in found.warnings) and any("bird" in w for w in found.warnings)
    with pytest.raises(DataError, match="data.classes"):
        read(tmp_path, classes=("fish",))


# Ids, splits, names


def test_ids_are_stems_where_unique_else_paths(tmp_path):
    names = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "Straße am Meer.jpg", "b/3.jpg", "b/3.png"]
    write(tmp_path, images=[image(i, name) for i, name in enumerate(names)])
    ids = [r.image_id for r in read(tmp_path)]
    assert ids == ["a/1", "b/1", "2", "Straße am Meer", "b/3.jpg", "b/3.png"]
    assert image_ids(["a/1.jpg", "x.jpg"]) == ["a/1", "x"]
    assert all(Path(r.image).is_file() for r in read(tmp_path))


def test_the_hash_is_pinned_and_looks_at_the_name_alone():
    first_bytes_of_sha256 = "d366132a5d40829f"  # printf 000000000009 | sha256sum
    assert hash_share("000000000009") == int(first_bytes_of_sha256, 16) / 16**16
    names = [f"{i:012d}" for i in range(2000)]
    assert np.mean([hash_share(n) < 0.2 for n in names]) == pytest.approx(0.2, abs=0.03)


def test_both_splits_come_from_one_file_by_hash(tmp_path):
    images = [image(i) for i in range(60)]
    write(tmp_path, images=images)
    data = DataParams(source="coco:x")
    spec = f"{tmp_path}/images,{tmp_path}/i.json"
    ids = {split: {r.image_id for r in coco.read(spec, split, data)} for split in ("train", "val", "all")}
    assert ids["train"] | ids["val"] == ids["all"] and not ids["train"] & ids["val"] and 4 < len(ids["val"]) < 22
    write(tmp_path, images=[*images[::-1], image(99)])
    assert {r.image_id for r in coco.read(spec, "val", data)} - {"099"} == ids["val"]
    with pytest.raises(DataError, match="unknown split 'test'"):
        coco.read(spec, "test", data)
    half = SimpleNamespace(train="train", val="val", val_share=0.5)
    assert len(coco.read(spec, "val", half)) > len(ids["val"])


def test_lists_beside_the_file_win_over_the_hash(tmp_path):
    write(tmp_path, images=[image(i) for i in range(1, 5)])
    (tmp_path / "train.txt").write_text("﻿002.jpg\r\n./images/003\r\n\r\nnobody.jpg\r\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"val\.txt does not"):
        read(tmp_path, split="val", rule=SplitRule())
    (tmp_path / "val.txt").write_text("/somewhere/else/001.jpg\n")
    found = read(tmp_path, split="train", rule=SplitRule())
    assert [r.image_id for r in found] == ["002", "003"] and "nobody.jpg" in found.warnings[0]
    assert [r.image_id for r in read(tmp_path, split="val", rule=SplitRule())] == ["001"]


def test_a_file_per_split(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "sets" / split).mkdir(parents=True)
        write(tmp_path / "sets" / split, images=[image(1, f"{split}.jpg")])
    spec = f"coco:{tmp_path}/sets/{{split}}/images,{tmp_path}/sets/{{split}}/i.json"
    data = DataParams(source=spec)
    train, val = (coco.read(spec, split, data) for split in ("train", "val"))
    assert [r.image_id for r in train] == ["train"] and [r.image_id for r in val] == ["val"]
    assert train.dataset == val.dataset == "sets" and train.root == val.root
    assert dataset_name("/d/coco/images") == "coco"
    with pytest.raises(DataError, match="expected coco:IMAGES,JSON"):
        coco.read("coco:/only/one", "train", data)
    with pytest.raises(DataError, match=r"/sets/test/images is not a folder; expected coco:IMAGES,JSON"):
        coco.read(spec, "test", data)
    (tmp_path / "sets" / "val" / "i.json").unlink()
    with pytest.raises(DataError, match=r"/sets/val/i\.json is not a file; expected coco:IMAGES,JSON"):
        coco.read(spec, "val", data)


# Broken input: an error or a recorded skip, the rest is read


def survivors(root, **options):
    found = read(root, **options)
    return [r.image_id for r in found], [s.reason for s in found.skips], "\n".join(found.warnings)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_json_cut_in_the_middle_names_file_and_byte(tmp_path, share):
    _, path = write(tmp_path, [annotation(i) for i in range(20)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=rf"i\.json: cut off at byte {int(len(whole) * share)}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "Expected `object`, got `array`"),
        ('{"images": [], "annotations": []}', "missing required field `categories`"),
        ('{"images": {}, "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "images: Expected `array`"),
        ('{"images": [], "annotations": 3, "categories": [{"id": 1, "name": "a"}]}', "annotations: Expected `array`"),
        ('{"images": [], "annotations": [], "categories": []}', "categories is empty"),
        ('{"images": [], "annotations": [], "categories": [{"id": "x", "name": "b"}]}', "categories is empty"),
        ('{"images": [,]}', r"byte 12"),
        ("hello", r"byte 0"),
    ],
)
def test_a_file_of_another_kind_says_what_was_expected(tmp_path, text, message):
    write(tmp_path, text=text)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert "i.json" in str(caught.value)


def test_wrong_types_of_one_entry_cost_that_entry(tmp_path):
    entries = [annotation(1), annotation(2, bbox=("a", 1, 2, 3)), annotation(3, category="cat"), {"image_id": None}]
    images = [image(1), image(2, 5), image(3), {**image(4), "height": "high"}, {**image(5), "width": -3}]
    write(tmp_path, entries, images=images)
    ids, skips, warnings = survivors(tmp_path)
    assert ids == ["001", "003"]
    assert "images[1]" in skips[0] and "$.file_name" in skips[0]
    assert 'images[3]: height is "high"' in skips[1] and "-3 pixels in width" in skips[2]
    for place in ("annotations[1]: Expected `float`, got `str` - at `$.bbox[0]`", "annotations[2]", "annotations[3]"):
        assert place in warnings
    record = read(tmp_path).records[0]
    assert [b.id for b in record.boxes] == [0, 1] and record.tags == (2,)  # the second by its polygon
    assert set(np.unique(record.truth.load())) <= {0, 2, 255}


def test_the_place_of_an_annotation_without_id_is_its_place_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("artifacts.datasets.coco_json.CHUNK", 4)
    odd = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 0, 0]}
    write(tmp_path, [*(annotation(i) for i in range(9)), odd, {**odd, "bbox": "?"}])
    _, _, warnings = survivors(tmp_path)
    assert "annotations[9]: [0.0, 0.0, 0.0, 0.0]" in warnings and "annotations[10]: Expected `array" in warnings


def test_nothing_but_wrong_annotations_is_an_error(tmp_path):
    write(tmp_path, [{"image": 1}, {"image": 2}])
    with pytest.raises(DataError, match=r"none of the 2 annotations can be read.*annotations\[0\]"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("bbox", "box"),
    [
        ((float("nan"), 1, 2, 3), (1, 1, 5, 4)),  # no number: the segmentation's own box
        ((1, 1, float("inf"), 3), (1, 1, 5, 4)),
        ((1, float("-inf"), 2, 3), (1, 1, 5, 4)),
        ((5, 5, -3, 2), None),
        ((5, 5, 0, 2), None),
        ((20, 1, 5, 5), None),
        ((-9, -9, 5, 5), None),
        ((-2, -3, 5, 5), (0, 0, 3, 2)),
        ((7, 6, 50, 50), (7, 6, 10, 8)),
    ],
)
def test_boxes_without_area_are_dropped_and_the_others_clipped(tmp_path, bbox, box):
    write(tmp_path, [annotation(41, bbox=bbox), annotation(42)])
    found = read(tmp_path)
    boxes = found.records[0].boxes
    assert [b.xyxy for b in boxes] == ([] if box is None else [box]) + [(1, 1, 5, 4)]
    assert "annotation id 41" in found.warnings[-1] or "annotations[0]" in found.warnings[0]
    assert found.records[0].tags == (2,) and (found.records[0].truth.load() == 2).sum() == 12


def test_nan_in_the_file_keeps_byte_offsets_true(tmp_path):
    entries = [annotation(1, bbox=(float("nan"), -float("inf"), 1, 1)), annotation(2, category=3)]
    write(tmp_path, entries)
    assert "NaN" in (tmp_path / "i.json").read_text()
    assert (read(tmp_path).records[0].truth.load() == 1).sum() == 12


def test_annotation_of_an_unknown_image_or_category(tmp_path):
    entries = [annotation(5, image=77), annotation(6, category=99), annotation(7, segmentation=[[8, 0, 10, 0, 10, 2]])]
    write(tmp_path, entries)
    ids, skips, warnings = survivors(tmp_path)
    assert ids == ["001"] and not skips
    assert "annotation id 5: 77" in warnings and "annotation id 6: category 99" in warnings
    record = read(tmp_path).records[0]
    assert record.tags == (2,) and [b.id for b in record.boxes] == [1]
    assert (record.truth.load()[1:4, 1:5] == 255).all()


def test_two_images_with_one_id_and_one_name_twice(tmp_path):
    entries = [annotation(1, image=1), annotation(2, image=3)]
    write(tmp_path, entries, images=[image(1), image(1, "other.jpg"), image(2, "./001.jpg"), image(3)])
    ids, skips, _ = survivors(tmp_path)
    assert ids == ["001", "003"] and len(skips) == 2
    assert "image id 1 of 'other.jpg' belongs to '001.jpg'" in skips[0] and "listed twice" in skips[1]
    assert all(len(r.boxes) == 1 for r in read(tmp_path))


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a/../../b.jpg", "nul\0.jpg", ""])
def test_a_name_that_leads_out_of_the_folder_is_a_skip(tmp_path, name):
    write(tmp_path, images=[image(1), {**image(2), "file_name": name}], files=False)
    (tmp_path / "images" / "001.jpg").touch()
    ids, skips, _ = survivors(tmp_path)
    assert ids == ["001"] and len(skips) == 1 and "file name" in skips[0] and "i.json" in skips[0]


def test_a_missing_image_is_a_skip_and_all_missing_an_error(tmp_path):
    write(tmp_path, [annotation(1)], images=[image(1), image(2, "sub folder/ü 2.jpg"), image(3)])
    (tmp_path / "images" / "003.jpg").unlink()
    found = read(tmp_path)
    assert [r.image_id for r in found] == ["001", "ü 2"]
    (skip,) = found.skips
    assert skip.key == "d/003" and "missing" in skip.reason and not skip.permanent and skip.stage == "read"
    os.unlink(tmp_path / "images" / "001.jpg")
    os.unlink(tmp_path / "images" / "sub folder/ü 2.jpg")
    with pytest.raises(DataError, match="none of the 3 images"):
        read(tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read_coco(tmp_path / "nowhere", tmp_path / "i.json", dataset="d")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [8, 10], "counts": [5, 5]}, "add up to 10 pixels"),
        ({"size": [8, 10], "counts": [90, -10]}, "add up to 80"),
        ({"size": [10, 8], "counts": [80]}, r"size \[10, 8\], but the image is \[8, 10\]"),
        ({"size": [8, 10], "counts": "\x01"}, "cannot stand in compressed counts"),
        ({"size": [8, 10], "counts": "P"}, "cut off"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 coordinates"),
        ("whatever", "Expected"),
        ([["a"]], "Expected"),
    ],
)
def test_a_bad_segmentation_hurts_only_whoever_asks_for_it(tmp_path, segmentation, message):
    write(tmp_path, [annotation(1), annotation(55, image=2, segmentation=segmentation)], images=[image(1), image(2)])
    good, bad = read(tmp_path)
    assert good.truth.load().any() and len(bad.boxes) == 1
    for reference in (bad.truth, bad.truth_objects):
        with pytest.raises(DataError, match=message) as caught:
            reference.load()
        assert "annotation id 55" in str(caught.value) and "i.json" in str(caught.value)


def test_sizes_that_the_file_does_not_give_come_from_the_header(tmp_path):
    entries = [{"id": 1, "file_name": "001.jpg"}, {"id": 2, "file_name": "002.jpg"}]
    write(tmp_path, [annotation(1, bbox=(2, 2, 99, 99))], images=entries)
    Image.new("RGB", (10, 8)).save(tmp_path / "images" / "001.jpg")
    found = read(tmp_path)
    assert found.records[0].size_hw == (8, 10) and found.records[0].boxes[0].xyxy == (2, 2, 10, 8)
    assert [s.key for s in found.skips] == ["d/002"] and "empty" in found.skips[0].reason


# Lazy, small, from another process


def test_records_are_lazy_and_travel_alone(tmp_path):
    write(tmp_path, [annotation(i, image=1 + i % 3) for i in range(9)], images=[image(i) for i in (1, 2, 3)])
    found = read(tmp_path)
    assert [r.image_id for r in found.records[1:]] == ["002", "003"] and found.records[-1].image_id == "003"
    with pytest.raises(IndexError):
        found.records[3]
    packed = pickle.dumps(found.records[0])
    assert len(packed) < 2000
    assert np.array_equal(pickle.loads(packed).truth.load(), found.records[0].truth.load())
    assert list(pickle.loads(pickle.dumps(found)).records) == list(found.records)


def test_a_byte_order_mark_and_long_lists_do_not_shift_offsets(tmp_path, monkeypatch):
    monkeypatch.setattr("artifacts.datasets.coco_json.CHUNK", 4)
    entries = [annotation(i, image=1 + i % 3, category=3 + 4 * (i % 2)) for i in range(10)]
    _, path = write(tmp_path, entries, images=[image(i) for i in (1, 2, 3)])
    plain = [(r.boxes, r.truth.load().tolist()) for r in read(tmp_path)]
    assert [[b.id for b in boxes] for boxes, _ in plain] == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [(r.boxes, r.truth.load().tolist()) for r in read(tmp_path)] == plain


def test_annotations_keep_their_order_among_hundreds(tmp_path):
    entries = [annotation(i, image=1 + i % 7, bbox=(i / 1000, 0, 1, 1)) for i in range(700)]
    write(tmp_path, entries, images=[image(i) for i in range(1, 8)])
    for record in read(tmp_path):
        lefts = [b.x0 for b in record.boxes]
        assert lefts == sorted(lefts) and [b.id for b in record.boxes] == list(range(100))


def test_a_file_changed_after_reading_is_not_trusted(tmp_path):
    _, path = write(tmp_path, [annotation(1)])
    record = read(tmp_path).records[0]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match="has changed since"):
        record.truth.load()


# Writing


def written(root, images, classes=("cat", "dog"), **options):
    (root / "images").mkdir(exist_ok=True)
    for item in images:
        (root / "images" / item.file_name).touch()
    counts = write_coco(root / "i.json", images, classes, **options)
    return counts, json.loads((root / "i.json").read_text())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 49), st.floats(0, 39), st.floats(0.01, 1), st.floats(0.01, 1)), max_size=6),
    st.lists(st.integers(1, 2), min_size=6, max_size=6),
)
def test_boxes_come_back_as_they_were_written(tmp_path_factory, corners, classes):
    root = tmp_path_factory.mktemp("coco")
    boxes = [(x, y, x + w * (50 - x), y + h * (40 - y)) for x, y, w, h in corners]
    objects = [CocoObject(c, box_xyxy=b) for c, b in zip(classes, boxes, strict=False)]
    written(root, [CocoImage("a b.jpg", (40, 50), objects), CocoImage("ü.jpg", (40, 50), [])])
    first, second = read(root)
    assert [b.class_id for b in first.boxes] == classes[: len(boxes)] and second.boxes == ()
    assert [b.id for b in first.boxes] == list(range(len(boxes)))
    assert np.allclose([b.xyxy for b in first.boxes], boxes or np.zeros((0,)), rtol=0, atol=1e-9)
    write_coco(
        root / "again.json",
        [
            CocoImage(r.image_id + ".jpg", r.size_hw, [CocoObject(b.class_id, box_xyxy=b.xyxy) for b in r.boxes])
            for r in (first, second)
        ],
        ("cat", "dog"),
    )
    again = read_coco(root / "images", root / "again.json", dataset="d")
    for a, b in zip(again, (first, second), strict=True):
        assert np.allclose([x.xyxy for x in a.boxes], [x.xyxy for x in b.boxes], rtol=0, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1, 2, 255])))
def test_a_class_mask_comes_back_pixel_for_pixel(tmp_path_factory, mask_hw):
    root = tmp_path_factory.mktemp("coco")
    counts, content = written(root, [CocoImage("a.jpg", (9, 11), mask_hw=mask_hw)])
    expected = np.where(mask_hw == 255, 0, mask_hw)
    assert counts.annotations == len(set(np.unique(expected)) - {0})
    found = read(root).records[0]
    if counts.annotations:
        assert np.array_equal(found.truth.load(), expected)
    assert content["info"]["annotations"].startswith("one per class and image")


def test_objects_keep_mask_box_crowd_and_the_same_bytes(tmp_path):
    mask = np.zeros((8, 10), bool)
    mask[1:4, 1:5] = True
    objects = [CocoObject(2, mask), CocoObject(1, mask, (0.5, 0.5, 6, 5)), CocoObject(1, mask, crowd=True)]
    objects.append(CocoObject(1, np.zeros((8, 10), bool)))
    images = [CocoImage("a.jpg", (8, 10), objects), CocoImage("b.jpg", (8, 10), mask_hw=mask.astype(np.uint8))]
    counts, content = written(tmp_path, images, info={"description": "x"}, categories=OWN)
    first = content["annotations"][0]
    assert first["bbox"] == [1, 1, 4, 3] and first["area"] == 12 and first["category_id"] == 30
    assert content["annotations"][1]["bbox"] == [0.5, 0.5, 5.5, 4.5] and content["annotations"][2]["iscrowd"] == 1
    assert (counts.images, counts.annotations, counts.empty_objects, counts.per_class_images) == (2, 4, 1, 1)
    assert content["info"] == {
        "description": "x",
        "annotations": "one per object; one per class and image in the 1 images without known objects",
    }
    before = (tmp_path / "i.json").read_bytes()
    written(tmp_path, images, info={"description": "x"}, categories=OWN)
    assert (tmp_path / "i.json").read_bytes() == before
    from pycocotools.coco import COCO

    official = COCO(str(tmp_path / "i.json"))
    assert np.array_equal(official.annToMask(official.anns[1]), mask)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([CocoImage("a.jpg", (8, 10), [CocoObject(3, box_xyxy=(0, 0, 1, 1))])], r"class number 3, but .* 1\.\.2"),
        ([CocoImage("a.jpg", (8, 10), [CocoObject(1, np.ones((10, 8)))])], r"mask of \(10, 8\)"),
        ([CocoImage("a.jpg", (8, 10), [], id=2), CocoImage("b.jpg", (8, 10), [])], "image id 2 is already taken"),
        ([CocoImage("a.jpg", (8, 10))], "neither objects nor a class mask"),
    ],
)
def test_what_cannot_be_written_says_why_and_leaves_no_file(tmp_path, images, message):
    with pytest.raises(DataError, match=message):
        write_coco(tmp_path / "i.json", images, ("cat", "dog"))
    assert not list(tmp_path.iterdir())


# Real pictures


needs_coco_mini = pytest.mark.skipif(not COCO_MINI.is_dir(), reason="coco-mini does not lie beside the checkout")


@needs_coco_mini
def test_coco_mini_has_its_known_numbers():
    data = DataParams(source="coco:x")
    found = coco.read(f"coco:{COCO_MINI}/images,{COCO_MINI}/instances.json", "all", data)
    crowded = read_coco(COCO_MINI / "images", COCO_MINI / "instances.json", dataset="d", include_crowd=True)
    assert (len(found), len(found.classes), found.skips, found.warnings) == (100, 80, (), ())
    assert sum(len(r.boxes) for r in found) == 740
    boxes = [b for r in crowded for b in r.boxes]
    assert len(boxes) == 746 and sum(b.crowd for b in boxes) == 6
    assert len({t for r in found for t in r.tags}) == 69
    assert sum(r.boxes == () for r in crowded) == 2
    for record in found.records[:25]:
        truth = np.array(Image.open(COCO_MINI / "masks" / f"{record.image_id}.png"))
        assert np.array_equal(record.truth.load(), truth)


@needs_coco_mini
def test_coco_mini_polygons_and_runs_show_the_same_objects():
    runs, polygons = (
        read_coco(COCO_MINI / "images", COCO_MINI / name, dataset="d")
        for name in ("instances.json", "instances_polygons.json")
    )
    ious = []
    for a, b in zip(runs, polygons, strict=True):
        (masks_a, ids_a), (masks_b, ids_b) = a.truth_objects.load(), b.truth_objects.load()
        assert ids_a.tolist() == ids_b.tolist()
        ious += [(m & n).sum() / (m | n).sum() for m, n in zip(masks_a, masks_b, strict=True)]
    assert len(ious) == 740 and np.mean(ious) == pytest.approx(0.983, abs=0.0005)
    assert min(ious) == pytest.approx(0.746, abs=0.0005)
