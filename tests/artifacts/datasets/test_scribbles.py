"""Scribbles of any data set: three kinds of files, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from artifacts.datasets import DataParams, read_split
from artifacts.datasets.folder import write_tags
from artifacts.datasets.scribblesup import rasterize, shortened, write_scribbles
from artifacts.datasets.voc_writer import write_class_mask
from artifacts.records import DataError, MaskRef, RecordSet, Scribble

CLASSES = ("cat", "dog")
SIZE = (20, 30)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures of 20 x 30, one of them in a subfolder."""
    for name in ("a", "b", "sub/c"):
        path = tmp_path / "data" / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((*SIZE, 3), np.uint8))
    write_tags(tmp_path / "data" / "tags.csv", [("a.png", ("cat",)), ("b.png", ("dog",))])
    return tmp_path / "data"


def read(data: Path, files: Path, **more: Any) -> RecordSet:
    params = DataParams(source=f"folder:{data}", classes=CLASSES, scribble_files=str(files), **more)
    return read_split(params, "all")


def found(records: RecordSet) -> dict[str, Any]:
    return {record.image_id: record.scribbles for record in records}


def test_scribblesup_files_for_any_data_set_in_both_origins(data: Path, tmp_path: Path) -> None:
    strokes = [("dog", [(3.0, 4.0), (9.0, 4.0)]), ("background", [(1.0, 1.0)])]
    for name in ("a", "sub/c"):
        write_scribbles(tmp_path / "xml" / f"{name}.xml", f"{name}.png", SIZE, strokes, origin=1)
    records = read(data, tmp_path / "xml", scribble_origin=1)
    expected = (Scribble(2, ((3.0, 4.0), (9.0, 4.0))), Scribble(0, ((1.0, 1.0),)))
    assert found(records) == {"a": expected, "b": None, "sub/c": expected}
    assert records.warnings[-1:] == () or "scribble" not in records.warnings[-1]
    assert [record.tags for record in records][:2] == [(1,), (2,)], "the other labels stay"
    shifted = read(data, tmp_path / "xml")
    assert found(shifted)["a"][0].points_xy == ((4.0, 5.0), (10.0, 5.0))


def test_index_masks_are_references_that_are_known_by_their_pixels(data: Path, tmp_path: Path) -> None:
    mask_hw = rasterize([Scribble(1, ((3.0, 4.0), (9.0, 4.0)))], SIZE)
    write_class_mask(tmp_path / "png" / "a.png", mask_hw)
    records = read(data, tmp_path / "png")
    (a, b, _) = records
    assert isinstance(a.scribbles, MaskRef) and b.scribbles is None and a.strokes == ()
    assert np.array_equal(a.scribbles.load(), mask_hw)
    before = a.label_digest("scribbles")
    assert before == a.label_digest("scribbles")
    write_class_mask(tmp_path / "png" / "a.png", np.where(mask_hw == 1, 2, mask_hw).astype(np.uint8))
    assert a.label_digest("scribbles") != before
    assert not [line for line in records.warnings if "numbers are read as" in line]
    undeclared = read_split(DataParams(source=f"folder:{data}", scribble_files=str(tmp_path / "png")), "all")
    assert undeclared.warnings[-1].endswith("the index masks' numbers are read as 1 cat, 2 dog")


def polylines(path: Path, annotations: list[dict[str, Any]]) -> Path:
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}, {"id": 9, "file_name": "sub/c.png"}]
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 5, "name": "fox"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return path


def test_polylines_of_a_json_in_cocos_frame(data: Path, tmp_path: Path) -> None:
    path = polylines(
        tmp_path / "s.json",
        [
            {"id": 1, "image_id": 7, "category_id": 4, "scribble": [[3.5, 4.5, 9.5, 4.5], [1.5, 1.5]]},
            {"id": 2, "image_id": 7, "category_id": 0, "scribble": [[0.5, 0.5]]},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]},
            {"id": 4, "image_id": 9, "category_id": 3, "scribble": []},
        ],
    )
    assert found(read(data, path)) == {
        "a": (Scribble(2, ((3.0, 4.0), (9.0, 4.0))), Scribble(2, ((1.0, 1.0),)), Scribble(0, ((0.0, 0.0),))),
        "b": None,
        "sub/c": (),
    }


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 5, "scribble": [[1, 1]]}, "the unknown class 'fox'; the classes are cat, dog"),
        ({"category_id": 77, "scribble": [[1, 1]]}, "the unknown class 77"),
        ({"category_id": 3, "scribble": [[1, 1, 2]]}, r"finite numbers x, y, x, y, ..., not \[1, 1, 2\]"),
        ({"category_id": 3, "scribble": [["1", "1"]]}, "finite numbers"),
        ({"category_id": 3, "scribble": [1, 1]}, "scribble must be a list of strokes"),
        ({"category_id": 3, "scribble": [[10**400, 1]]}, "finite numbers"),
        ({"category_id": [3], "scribble": [[1, 1]]}, r"category_id must be a category's id, not \[3\]"),
        ({"scribble": [[1, 1]]}, "category_id must be a category's id, not None"),
    ],
)
def test_a_stroke_that_cannot_be_used_costs_its_image_the_scribbles_and_is_said(
    data: Path, tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    good = {"id": 1, "image_id": 8, "category_id": 3, "scribble": [[5, 5]]}
    path = polylines(tmp_path / "s.json", [good, {**good, "image_id": 7}, {"id": 2, "image_id": 7, **annotation}])
    records = read(data, path)
    assert found(records)["a"] is None and found(records)["b"] is not None
    with pytest.raises(AssertionError, match=rf"images without scribbles: .*s.json: annotation 2 \(a\): .*{message}"):
        raise AssertionError(records.warnings[-1])


def test_strokes_drawn_on_a_picture_of_another_size_are_no_labels_of_this_one(data: Path, tmp_path: Path) -> None:
    """Turned, or twice as large: every point is inside the picture, and elsewhere."""
    strokes = [("dog", [(3.0, 4.0), (9.0, 4.0)])]
    for name, size in (("a", SIZE), ("b", SIZE[::-1]), ("sub/c", (0, 0))):
        write_scribbles(tmp_path / "xml" / f"{name}.xml", f"{name}.png", size, strokes)
    records = read(data, tmp_path / "xml")
    expected = (Scribble(2, ((3.0, 4.0), (9.0, 4.0))),)
    assert found(records) == {"a": expected, "b": None, "sub/c": expected}, "a size of 0 states none"
    said = "1 x images without scribbles: .*b.xml: drawn on 20 x 30 pixels, but .*b.png has 30 x 20 .*elsewhere"
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(records.warnings[-1])
    images = [
        {"id": 7, "file_name": "a.png", "width": 30, "height": 20},
        {"id": 8, "file_name": "b.png", "width": 60, "height": 40},
        {"id": 9, "file_name": "sub/c.png", "width": "x"},
    ]
    one = {"category_id": 3, "scribble": [[5, 5]]}
    annotations = [{"id": number, "image_id": number, **one} for number in (7, 8, 9)]
    document = {"images": images, "categories": [{"id": 3, "name": "cat"}], "annotations": annotations}
    (tmp_path / "s.json").write_text(json.dumps(document))
    records = read(data, tmp_path / "s.json")
    assert [one is None for one in found(records).values()] == [False, True, False]
    assert "s.json: b.png: drawn on 60 x 40 pixels" in records.warnings[-1]


def test_index_masks_without_255_are_said(data: Path, tmp_path: Path) -> None:
    """Drawn on zeros, as many tools do: 0 is background, and every pixel would be one label or another."""
    whole = np.zeros(SIZE, np.uint8)
    whole[4, 3:9] = 1
    for name in ("a", "b"):
        write_class_mask(tmp_path / "png" / f"{name}.png", whole)
    said = [line for line in read(data, tmp_path / "png").warnings if "no pixel 255" in line]
    assert len(said) == 1 and "2 index masks looked at" in said[0]
    write_class_mask(tmp_path / "png" / "b.png", np.where(whole == 0, 255, whole).astype(np.uint8))
    assert not [line for line in read(data, tmp_path / "png").warnings if "no pixel 255" in line]


@pytest.mark.parametrize("image_id", [12, None, [7], "a"])
def test_polylines_of_an_image_that_is_not_listed_are_said(data: Path, tmp_path: Path, image_id: Any) -> None:
    good = {"id": 1, "image_id": 8, "category_id": 3, "scribble": [[5, 5]]}
    records = read(data, polylines(tmp_path / "s.json", [good, {**good, "id": 2, "image_id": image_id}]))
    assert found(records)["a"] is None and found(records)["b"] is not None
    assert f"annotation 2: {image_id!r}" in records.warnings[-1] and "does not list" in records.warnings[-1]


def test_an_unknown_class_in_a_scribblesup_file_and_a_stroke_outside_are_said(data: Path, tmp_path: Path) -> None:
    write_scribbles(tmp_path / "x" / "a.xml", "a.png", SIZE, [("fox", [(1.0, 1.0)])])
    write_scribbles(tmp_path / "x" / "b.xml", "b.png", SIZE, [("cat", [(1.0, 1.0), (90.0, 1.0)])])
    write_scribbles(tmp_path / "x" / "sub" / "c.xml", "c.png", SIZE, [("cat", [(-1.0, 20.0), (30.0, -1.0)])])
    records = read(data, tmp_path / "x")
    assert found(records)["a"] is None and found(records)["b"] is not None
    lost, beyond = records.warnings[-2:]
    assert "1 x images without scribbles: " in lost and "'fox'" in lost
    assert "1 x images whose scribbles leave them" in beyond and "b: x 90, y 1 in an image of 30 x 20 pixels" in beyond


def test_a_vocs_own_strokes_outside_are_said_too_and_other_files_replace_them(tmp_path: Path) -> None:
    records = read_split(DataParams("demo-tiny"), "train", cache=tmp_path / "cache")
    assert all(record.strokes for record in records)
    (root,) = (tmp_path / "cache" / "demo-data").iterdir()
    first = next(iter(records)).image_id
    write_scribbles(root / "ScribbleSup" / f"{first}.xml", "a.jpg", (64, 64), [("cart", [(70.0, 1.0)])])
    (warning,) = read_split(DataParams("demo-tiny"), "train", cache=tmp_path / "cache").warnings
    assert f"{first}.xml: x 70, y 1 in an image of 64 x 64" in warning
    write_scribbles(tmp_path / "mine" / f"{first}.xml", "a.jpg", (64, 64), [("fish", [(7.0, 1.0)])])
    other = read_split(
        DataParams("demo-tiny", scribble_files=str(tmp_path / "mine")), "train", cache=tmp_path / "cache"
    )
    assert [record.strokes for record in other if record.scribbles] == [(Scribble(4, ((7.0, 1.0),)),)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no .xml and no .png files"),
        ({"a.xml": "", "b.png": ""}, "both .xml and .png files"),
        (None, "no such file or folder"),
        ("{}", "no JSON of COCO-style polylines"),
        ("[", "no JSON of COCO-style polylines"),
        ('{"images": [], "annotations": [{"id": 1}]}', "none of its annotations has a scribble"),
    ],
)
def test_a_place_without_scribbles_is_an_error(data: Path, tmp_path: Path, files: Any, message: str) -> None:
    place = tmp_path / "there"
    if isinstance(files, str):
        place.write_text(files)
    elif files is not None:
        place.mkdir()
        for name, text in files.items():
            (place / name).write_text(text)
    with pytest.raises(DataError, match=f"{place}.*{message}"):
        read(data, place)


def test_a_shortened_stroke_is_a_part_of_every_longer_one() -> None:
    line = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0))
    assert shortened(line, 1.0) == line and shortened(line, 0.0) == ((10.0, 0.0),)
    assert shortened(line, 0.5) == ((5.0, 0.0), (10.0, 0.0), (10.0, 5.0))
    assert shortened(line, 0.0, at=0.25) == ((5.0, 0.0),) and shortened(((1.0, 2.0),), 0.3) == ((1.0, 2.0),)
    for at in (0.0, 0.3, 1.0):
        ends = [0.0, 20.0]
        for share in (0.8, 0.5, 0.3, 0.0):
            part = shortened(line, share, at)
            start, end = (x + y for x, y in (part[0], part[-1]))
            assert ends[0] - 1e-9 <= start <= end <= ends[1] + 1e-9
            assert end - start == pytest.approx(20 * share)
            ends = [start, end]
    with pytest.raises(ValueError, match="must lie in 0..1"):
        shortened(line, 1.5)
    assert shortened(((2.0, 2.0), (2.0, 2.0)), 0.5) == ((2.0, 2.0), (2.0, 2.0))


# -- which scribbles are whose


def pictures(root: Path, *names: str) -> Path:
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((*SIZE, 3), np.uint8))
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def listed(path: Path, *names: str, without: tuple[str, ...] = (), **more: Any) -> Path:
    """A JSON with a point at (n, n) for the n-th of ``names``, and images ``without`` scribbles."""
    images = [{"id": n, "file_name": name, "width": 30, "height": 20} for n, name in enumerate((*names, *without), 1)]
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "scribble": [[n + 0.5, n + 0.5]], **more}
        for n in range(1, len(names) + 1)
    ]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": annotations}
    path.write_text(json.dumps(content))
    return path


def points(records: RecordSet) -> dict[str, float | None]:
    return {record.image_id: record.strokes[0].points_xy[0][0] if record.strokes else None for record in records}


def test_a_name_that_two_pictures_may_have_gives_its_strokes_to_none(tmp_path: Path) -> None:
    data = pictures(tmp_path, "x/1.jpg", "y/1.jpg", "z/2.jpg")
    records = read(data, listed(tmp_path / "s.json", "1.jpg", "2.jpg", "old/9.jpg"))
    assert points(records) == {"x/1": None, "y/1": None, "z/2": 2.0}
    said = "\n".join(records.warnings)
    assert (
        "2 x scribbles that may be several images', taken for none" in said and "'1.jpg' fits 'x/1' and others" in said
    )
    assert "'z/2' is '2.jpg' in" in said and "1 x scribbles that are no image's: " in said and "'old/9.jpg'" in said
    records = read(data, listed(tmp_path / "s.json", "x/1.jpg", "1.jpg", "y\\1.jpg"))
    assert points(records) == {"x/1": 1.0, "y/1": 3.0, "z/2": None}
    assert any("1 x scribbles that are no image's: " in line and "'1.jpg'" in line for line in records.warnings)


def test_an_instances_file_may_hold_its_own_scribbles(tmp_path: Path) -> None:
    pictures(tmp_path, "train2017/1.jpg", "train2017/2.jpg")
    for images, without in (("images", ()), ("images/train2017", ("val2017/2.jpg",))):
        path = listed(
            tmp_path / "i.json", "train2017/1.jpg", "train2017/2.jpg", without=without, bbox=[1, 1, 5, 5], iscrowd=0
        )
        params = DataParams(f"coco:{tmp_path}/{images},{path}", scribble_files=str(path), min_labelled=0)
        assert points(read_split(params, "all"))["1"] == 1.0


def test_names_with_folders_that_the_pictures_lack_are_said(tmp_path: Path) -> None:
    data = pictures(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    names = ("C:\\data\\1.jpg", "camA/2.jpg", "camB/2.jpg", "camA/4.jpg")
    records = read(data, listed(tmp_path / "s.json", *names, without=("camA/3.jpg",)))
    assert points(records) == {"1": 1.0, "2": None, "3": None, "4": 4.0}
    said = "\n".join(records.warnings)
    assert "'1' is 'C:/data/1.jpg' in" in said and "'camA/2', 'camB/2' would all be '2.jpg'" in said


def test_of_two_entries_the_one_with_the_pictures_own_folder_is_its(tmp_path: Path) -> None:
    data = pictures(tmp_path, "train/1.jpg", "val/1.jpg")
    for name in ("train", "val"):
        (data / f"{name}.txt").write_text(f"{name}/1.jpg\n")
    path = listed(tmp_path / "s.json", "val/1.jpg", without=("train/1.jpg",))
    params = DataParams(f"folder:{data}", scribble_files=str(path))
    for split, expected in (("train", {"train/1": None}), ("val", {"val/1": 1.0})):
        assert points(read_split(params, split)) == expected


def test_files_in_another_case_and_those_of_another_split(tmp_path: Path) -> None:
    data = pictures(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg", "b.jpg", "B.jpg")
    for number, name in enumerate(("1.xml", "2.XML", "3.xml", "B.xml", "none.xml"), 1):
        write_scribbles(tmp_path / "s" / name, "", SIZE, [("cat", [(float(number), 1.0)])])
    records = read(data, tmp_path / "s")
    assert points(records) == {"1": 1.0, "2": 2.0, "3": 3.0, "B": 4.0, "b": None}
    assert any("are no image's" in line and "'none.xml'" in line for line in records.warnings)
    (data / "train.txt").write_text("1.jpg\n2.jpg\n")
    (data / "val.txt").write_text("3.jpg\n")
    (tmp_path / "s/none.xml").unlink()
    found = read_split(DataParams(f"folder:{data}", scribble_files=str(tmp_path / "s")), "train")
    assert points(found) == {"1": 1.0, "2": 2.0} and found.warnings == ()


def test_a_link_out_of_the_folder_is_refused_unless_it_is_allowed(data: Path, tmp_path: Path) -> None:
    write_scribbles(tmp_path / "far" / "a.xml", "", SIZE, [("cat", [(3.0, 1.0)])])
    write_scribbles(tmp_path / "s" / "b.xml", "", SIZE, [("cat", [(4.0, 1.0)])])
    (tmp_path / "s" / "a.xml").symlink_to(tmp_path / "far" / "a.xml")
    records = read(data, tmp_path / "s")
    assert points(records) == {"a": None, "b": 4.0, "sub/c": None}
    assert any("out of the data set; data.follow_links=true" in line for line in records.warnings)
    assert points(read(data, tmp_path / "s", follow_links=True)) == {"a": 3.0, "b": 4.0, "sub/c": None}
