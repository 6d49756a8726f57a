"""Do masks come back from each annotation tool's file as they went in, to the byte where the format can hold them?"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifacts.export.cvat import decode_runs, encode_runs
from artifacts.export.dataset import WRITERS
from artifacts.export.items import ExportImage
from artifacts.export.label_studio import decode_brush, encode_brush
from artifacts.export.read_back import ReadBack
from artifacts.export.regions import fill_polygon, fill_polygons, outlines, regions
from artifacts.objects import Object
from artifacts.records import DataError, Record, RecordSet

CLASSES = ("cat", '<dog> & "co"')
SIZE_HW = (30, 40)


def noisy(seed: int) -> NDArray[np.uint8]:
    """Two classes, a hole, parts of one pixel, undecided pixels."""
    rng = np.random.default_rng(seed)
    mask_hw = np.zeros(SIZE_HW, np.uint8)
    mask_hw[3:20, 4:25] = 1
    mask_hw[8:12, 9:15] = 0
    mask_hw[10, 11] = 2
    mask_hw[15:29, 20:38] = 2
    mask_hw[rng.random(SIZE_HW) < 0.03] = 1
    mask_hw[rng.random(SIZE_HW) < 0.03] = 255
    return mask_hw


@dataclass
class Pictures:
    """An export's source: three pictures, one of them in a folder, one without any object."""

    root: Path
    classes: tuple[str, ...] = CLASSES
    split: str = "train"
    with_images: bool = True
    origin: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    origin: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.masks = {"a": noisy(1), "b ü": np.zeros(SIZE_HW, np.uint8), "sub/a": noisy(2)}
        for image_id in self.masks:
            path = self.image(image_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((*SIZE_HW, 3), 90, np.uint8))

    def image(self, image_id: str) -> Path:
        return self.root / "pictures" / f"{image_id}.png"

    def __iter__(self) -> Iterator[ExportImage]:
        for image_id, mask_hw in self.masks.items():
            objects = [
                (Object(5, (2, 2, 30, 28), np.ones((26, 28), np.uint8)), 1),
                (Object(7, (4, 4, 20, 20), np.ones((16, 16), np.uint8)), 1),
                (Object(9, (10, 10, 50, 50), np.ones((40, 40), np.float16)), 2),
            ]
            yield ExportImage(image_id, self.image(image_id), mask_hw, objects if image_id == "a" else None)

    @property
    def records(self) -> RecordSet:
        return RecordSet("set", "train", self.classes, [Record(i, str(self.image(i))) for i in self.masks])


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    return Pictures(tmp_path)


def back(pictures: Pictures, *paths: Path) -> dict[str, NDArray[np.uint8]]:
    found = ReadBack(pictures.records)
    masks = dict(found.masks(paths))
    assert found.problems == []
    return masks


def submit(folder: Path) -> None:
    """What a person does who looks at every picture in Label Studio and submits it as it is."""
    tasks = json.loads((folder / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = [{"result": task.pop("predictions")[0]["result"], "was_cancelled": False}]
    (folder / "tasks.json").write_text(json.dumps(tasks))


EXACT = ("label-studio", "cvat", "labelme", "voc")


@pytest.mark.parametrize("kind", EXACT)
def test_masks_come_back_to_the_byte(kind: str, pictures: Pictures, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    WRITERS[kind](out, pictures)
    if kind == "label-studio":
        submit(out)
    found = back(pictures, out)
    assert found.keys() == pictures.masks.keys()
    for image_id, mask_hw in pictures.masks.items():
        assert np.array_equal(found[image_id], mask_hw), image_id


@pytest.mark.parametrize("kind", ["yolo-seg", "coco"])
def test_what_has_no_place_for_undecided_pixels_loses_them_alone(kind: str, pictures: Pictures, tmp_path: Path) -> None:
    pictures.masks.pop("a")  # its objects overlap: COCO keeps them before they are painted
    out = tmp_path / "out"
    out.mkdir()
    counts = WRITERS[kind](out, pictures)
    found = back(pictures, out)
    for image_id, mask_hw in pictures.masks.items():
        assert np.array_equal(found[image_id], np.where(mask_hw == 255, 0, mask_hw)), image_id
    if kind == "yolo-seg":
        assert counts["undecided_pixels_as_background"] == sum(int((m == 255).sum()) for m in pictures.masks.values())
        assert counts["pixels_changed_by_polygons"] == 0


@pytest.mark.parametrize("kind", ["label-studio-polygons", "cvat-polygons", "labelme-polygons"])
def test_what_editable_polygons_lose_is_counted(kind: str, pictures: Pictures, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    counts = WRITERS[kind](out, pictures)
    if kind.startswith("label-studio"):
        submit(out)
    found = back(pictures, out)
    # A pixel that changes leaves one region, or enters one, or both.
    changed = sum(int((found[i] != mask_hw).sum()) for i, mask_hw in pictures.masks.items())
    assert 0 < changed <= counts["pixels_changed_by_polygons"] < 0.2 * counts["region_pixels"]


def test_polygons_are_exact_for_any_mask() -> None:
    rng = np.random.default_rng(3)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        mask_hw = rng.random((17, 23)) < share
        assert np.array_equal(fill_polygons(outlines(mask_hw), (17, 23)), mask_hw)


def test_a_polygon_means_the_pixels_whose_centres_it_holds() -> None:
    points_xy = np.array([[1.4, 0.6], [6.2, 2.1], [3.3, 5.7], [-2.0, 3.0]])
    found = fill_polygon(points_xy, (6, 8))
    for y, x in np.ndindex(6, 8):
        inside = cv2.pointPolygonTest(points_xy.astype(np.float32), (x + 0.5, y + 0.5), False) > 0
        assert found[y, x] == inside
    with pytest.raises(DataError, match="three or more points"):
        fill_polygon(points_xy[:2], (6, 8))


def test_regions_are_the_objects_that_can_be_seen_and_what_is_in_none(pictures: Pictures) -> None:
    image = next(iter(pictures))
    found = regions(image)
    assert {(one.class_id, one.object_id) for one in found} == {
        (1, 5),
        (1, 7),
        (2, 9),
        (1, None),
        (2, None),
        (255, None),
    }
    assert np.array_equal(sum(one.mask_hw * one.class_id for one in found), image.mask_hw), "no two overlap"


def test_brush_bytes_by_hand() -> None:
    """8 elements of 8 bits, widths 3 4 8 16; a run of 4 x 255, a run of 4 x 0."""
    head = f"{8:032b}" + "00111" + "0010001101111111"
    runs = "10001111111111" + "10001100000000"
    bits = head + runs
    bits += "0" * (-len(bits) % 8)
    by_hand = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert encode_brush(np.array([[True, False]])) == by_hand
    # Elements one by one, as the brush of the browser writes soft edges: alpha is the fourth of each pixel.
    single = head + "000111" + "".join(f"{value:08b}" for value in (9, 9, 9, 1, 9, 9, 9, 0))
    single += "0" * (-len(single) % 8)
    code = [int(single[i : i + 8], 2) for i in range(0, len(single), 8)]
    assert decode_brush(code, (1, 2)).tolist() == [[True, False]]
    with pytest.raises(DataError, match="cut off"):
        decode_brush(by_hand[:-2], (1, 2))
    with pytest.raises(DataError, match=r"8 elements .* expected 4 x 2 x 2"):
        decode_brush(by_hand, (2, 2))
    with pytest.raises(DataError, match="list of bytes"):
        decode_brush([300], (1, 2))


def test_long_brush_runs() -> None:
    mask_hw = np.zeros((200, 300), np.bool_)
    mask_hw[90:] = True
    assert np.array_equal(decode_brush(encode_brush(mask_hw), (200, 300)), mask_hw)


def test_cvat_runs_by_hand() -> None:
    assert encode_runs(np.array([[True, True, False], [False, True, False]])) == [0, 2, 2, 1, 1]
    assert encode_runs(np.array([[False, True]])) == [1, 1]
    assert decode_runs("1, 1", 1, 2).tolist() == [[False, True]]
    with pytest.raises(DataError, match="add up to 3"):
        decode_runs("1, 2", 1, 2)


def test_label_studios_own_converter_agrees() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    mask_hw = noisy(4) == 1
    code = encode_brush(mask_hw)
    assert list(brush.mask2rle(mask_hw.astype(np.uint8) * 255)) == code
    assert np.array_equal(brush.decode_rle(code).reshape(*SIZE_HW, 4)[..., 3] > 0, mask_hw)


def test_cvats_own_sdk_agrees(pictures: Pictures) -> None:
    masks = pytest.importorskip("cvat_sdk.masks", reason="cvat-sdk is not installed")
    mask_hw = noisy(4) == 1
    assert [int(n) for n in masks.encode_mask(mask_hw, [0, 0, 40, 30])[:-4]] == encode_runs(mask_hw)


def test_labelme_reads_its_masks(pictures: Pictures, tmp_path: Path) -> None:
    shape = pytest.importorskip("labelme.utils.shape", reason="labelme is not installed")
    WRITERS["labelme"](tmp_path, pictures)
    content = json.loads((tmp_path / "a.json").read_text())
    for one in content["shapes"]:
        one["mask"] = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"])))) > 0
    names = {name: number for number, name in enumerate(CLASSES, 1)} | {"undecided": 255}
    found, _ = shape.shapes_to_label((*SIZE_HW, 3), content["shapes"], names)
    assert np.array_equal(found, pictures.masks["a"])


# -- what a person, or another tool, does to the files


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def labelme(**changes: Any) -> dict[str, Any]:
    square = {"label": "cat", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9], [1, 9]]}
    return {"shapes": [square | changes], "imagePath": "b ü.png", "imageHeight": 30, "imageWidth": 40}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (labelme(label="cow"), "'cow' is no class of the data set; it has cat"),
        (labelme(shape_type="rectangle"), "'rectangle' is no mask"),
        (labelme(shape_type="mask", mask="%"), "not a PNG in base64"),
        (labelme(points=[[1, 1]]), "three or more points"),
        (labelme() | {"imageHeight": 31}, "the file says that the picture is 40 x 31"),
        (labelme() | {"imagePath": "c.png"}, "no picture of set is called 'one' or 'c.png'"),
        (labelme() | {"imagePath": "x/b ü.png"}, ""),
        (labelme() | {"imagePath": "..\\pictures\\sub\\a.png"}, ""),
    ],
)
def test_a_picture_that_cannot_be_used_says_why(
    content: dict[str, Any], problem: str, pictures: Pictures, tmp_path: Path
) -> None:
    found = ReadBack(pictures.records)
    masks = dict(found.masks([write(tmp_path / "one.json", content)]))
    if problem:
        assert masks == {} and problem in found.problems[0]
    else:
        assert found.problems == [] and [int((m == 1).sum()) for m in masks.values()] == [64]


def test_a_name_that_two_pictures_have_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    pictures.masks["other/c"] = pictures.masks["deep/c"] = noisy(5)
    found = ReadBack(pictures.records)
    assert dict(found.masks([write(tmp_path / "one.json", labelme() | {"imagePath": "c.png"})])) == {}
    assert "'c' may be other/c, deep/c" in found.problems[0]


def test_coco_crowds_are_undecided_and_smaller_objects_lie_on_top(pictures: Pictures, tmp_path: Path) -> None:
    def one(number: int, side: int, **more: Any) -> dict[str, Any]:
        runs = [part for _ in range(side) for part in (side, 30 - side)]
        counts = [0, *runs[:-1], runs[-1] + 30 * (40 - side)]
        return {
            "id": number,
            "image_id": 1,
            "category_id": 7,
            "segmentation": {"size": [30, 40], "counts": counts},
        } | more

    content = {
        "images": [{"id": 1, "file_name": "b ü.png", "height": 30, "width": 40}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": CLASSES[1]}],
        "annotations": [one(1, 5, category_id=8), one(2, 10), one(3, 20, iscrowd=1)],
    }
    found = back(pictures, write(tmp_path / "instances.json", content))["b ü"]
    assert [found[y, y].item() for y in (0, 4, 5, 9, 10, 19, 20)] == [2, 2, 1, 1, 255, 255, 0]
    content["annotations"] = [one(1, 5, segmentation=[])]
    problems = ReadBack(pictures.records)
    assert dict(problems.masks([write(tmp_path / "boxes.json", content)])) == {}
    assert "a box is no mask" in problems.problems[0]


def test_only_submitted_tasks_of_label_studio_count(pictures: Pictures, tmp_path: Path) -> None:
    WRITERS["label-studio"](tmp_path, pictures)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    result = tasks[0]["predictions"][0]["result"]
    tasks[0]["annotations"] = [{"result": result}, {"result": []}]
    tasks[1]["annotations"] = [{"result": result, "was_cancelled": True}]
    tasks[2]["annotations"] = []
    tasks[0]["data"] = {"image": "/data/upload/3/x-a.png?y=1", "image_id": "sub/a"}
    found = ReadBack(pictures.records)
    masks = dict(found.masks([write(tmp_path / "done.json", tasks)]))
    assert list(masks) == ["sub/a"] and not masks["sub/a"].any(), "the last annotation: nothing is there"
    assert found.without == 2


@pytest.mark.parametrize("content", ["[1]", "{}", "{", '{"shapes": 3}', "3"])
def test_other_files_are_refused(content: str, pictures: Pictures, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError):
        list(ReadBack(pictures.records).masks([path]))


@dataclass
class Splits:
    """Two splits of one data set, each picture's mask filled with the number of its split (1 train, 2 val)."""

    root: Path
    ids: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        for image_id in (*self.ids["train"], *self.ids["val"]):
            path = self.root / "pictures" / f"{image_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((*SIZE_HW, 3), 90, np.uint8))

    def records(self, split: str) -> RecordSet:
        found = [Record(i, str(self.root / "pictures" / f"{i}.png")) for i in self.ids[split]]
        return RecordSet("set", split, CLASSES, found)

    def source(self, split: str) -> Any:
        number = 1 + ("train", "val").index(split)
        masks = {image_id: np.full(SIZE_HW, number, np.uint8) for image_id in self.ids[split]}
        source = Pictures(self.root, split=split)
        source.masks = masks
        return source


SPLITS = [
    {"train": ("train/0001", "train/0002"), "val": ("val/0001", "val/0002")},
    {"train": ("camA/0001", "camB/0002"), "val": ("camB/0001", "camA/0002")},
    {"train": ("0001", "camA/0002"), "val": ("camB/0001", "0002")},
]


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo-seg"])
@pytest.mark.parametrize("ids", SPLITS)
def test_truth_of_val_never_comes_back_as_a_correction(
    kind: str, ids: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    splits = Splits(tmp_path, ids)
    out = tmp_path / "out"
    out.mkdir()
    for split in ("train", "val"):
        WRITERS[kind](out, splits.source(split))
    found = ReadBack(splits.records("train"), splits.records("val"))
    masks = {image_id: np.unique(mask_hw).tolist() for image_id, mask_hw in found.masks([out])}
    assert masks == {image_id: [1] for image_id in ids["train"]}
    assert found.of_held_out == 2 and found.problems == []


@pytest.mark.parametrize(
    ("ids", "names", "stored", "problems"),
    [
        (SPLITS[0], ["0001.png", "train/0002.png"], ["train/0002"], ["'0001' may be train/0001, val/0001"]),
        (SPLITS[0], ["test/0001.png", "images/val/0001.png"], [], ["'0001' may be train/0001, val/0001"]),
        ({"train": ("train/0001",), "val": ("val/0002",)}, ["test/0001.png"], [], ["'test/0001.png' lies in another"]),
        (
            {"train": ("camA/1", "camB/2"), "val": ()},
            ["camB/1.png"],
            [],
            ["'camB/1.png' lies in another folder than cam"],
        ),
        ({"train": ("1", "camB/2"), "val": ()}, ["camB/1.png"], [], ["'camB/1.png' lies in another folder than 1"]),
        ({"train": ("camA/1", "camB/2"), "val": ()}, ["images/1.png"], ["camA/1"], []),
        ({"train": ("train2017/1",), "val": ()}, ["data/train/1.png"], ["train2017/1"], []),
        ({"train": ("1",), "val": ()}, ["x/1.png", "y/1.png"], [], ["'x/1.png' and 'y/1.png' may be 1, and one"]),
        ({"train": ("1",), "val": ()}, ["1.png", "y/1.png"], ["1"], ["'y/1.png' may be 1, which '1.png' is"]),
        ({"train": ("1",), "val": ("1",)}, ["1.png"], ["1"], []),
    ],
)
def test_a_name_that_may_be_another_pictures_is_refused(
    ids: dict[str, tuple[str, ...]], names: list[str], stored: list[str], problems: list[str], tmp_path: Path
) -> None:
    """Of val, of a split that is not read, or of two folders: a path's end is no proof."""
    splits = Splits(tmp_path, ids)
    images = "".join(f'<image name="{name}" width="40" height="30"/>' for name in names)
    path = tmp_path / "annotations.xml"
    path.write_text(f"<annotations>{images}</annotations>")
    found = ReadBack(splits.records("train"), splits.records("val"))
    assert [image_id for image_id, _ in found.masks([path])] == stored
    assert len(found.problems) == len(problems)
    assert all(re.search(wanted, said) for wanted, said in zip(problems, found.problems, strict=True))


COCO_ANNOTATION = {"category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
CVAT_IMAGE = '<image name="{}.png" width="{}" height="30"><polygon label="cat" points="1,1;9,1;9,9;1,9" {}/></image>'


def labelme_beside(folder: Path, bad: str) -> Path:
    write(folder / "a.json", labelme() | {"imagePath": "a.png"})
    (folder / "b ü.json").write_text(bad)
    return folder


def yolo_beside(folder: Path, bad: bytes) -> Path:
    (folder / "data.yaml").write_text("names: [cat]\n")
    (folder / "labels" / "train").mkdir(parents=True)
    for name, line in {"a": b"0 .025 .04 .225 .04 .225 .3 .025 .3\n", "b ü": bad}.items():
        (folder / "labels" / "train" / f"{name}.txt").write_bytes(line)
    return folder


def coco_beside(folder: Path, image: dict[str, Any], annotation: dict[str, Any]) -> Path:
    images = [{"id": i, "file_name": f"{name}.png", "height": 30, "width": 40} for i, name in enumerate(("a", "b ü"))]
    annotations = [COCO_ANNOTATION | {"id": 70 + i, "image_id": i} for i in range(2)]
    images[1] |= image
    annotations[1] |= annotation
    categories = [{"id": 1, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write(folder / "instances.json", content)


def cvat_beside(folder: Path, width: str, more: str) -> Path:
    good, bad = CVAT_IMAGE.format("a", 40, ""), CVAT_IMAGE.format("b ü", width, more)
    path = folder / "annotations.xml"
    path.write_text(f"<annotations>{good}{bad}</annotations>")
    return path


def tasks_beside(folder: Path, bad: Any) -> Path:
    value = {"points": [[2.5, 4], [22.5, 4], [22.5, 30], [2.5, 30]], "polygonlabels": ["cat"]}
    good = {"data": {"image": "a.png"}, "annotations": [{"result": [{"type": "polygonlabels", "value": value}]}]}
    return write(folder / "tasks.json", [good, bad])


BESIDE: list[tuple[Callable[..., Path], tuple[Any, ...], str]] = [
    (yolo_beside, (b"1 0 0 .5 0 .5 .5\n",), "line 1: '1' is no class number of"),
    (yolo_beside, ("\u00b2 0 0 .5 0 .5 .5\n".encode(),), "line 1: '\u00b2' is no class number of"),
    (yolo_beside, (b"\xff\xfe0 0",), "txt:1: not UTF-8 text"),
    (coco_beside, ({}, {"category_id": 9}), "annotation 71: the file defines no category 9"),
    (coco_beside, ({}, {"category_id": [1]}), r"annotation 71: the file defines no category \[1\]"),
    (coco_beside, ({"height": None}, {}), "height and width are not there"),
    (coco_beside, ({"height": "x"}, {}), "height and width must be whole numbers, not 'x' and 40"),
    (coco_beside, ({"file_name": "c.png"}, {}), "no picture of set is called 'c.png'"),
    (coco_beside, ({"id": []}, {}), r"images\[1\] is no picture"),
    (labelme_beside, ("",), r"b ü.json: not readable JSON"),
    (labelme_beside, ('{"version": 5}',), r"b ü.json: expected a Label Studio JSON"),
    (labelme_beside, ('{"shapes": null}',), r"b ü.json: 'shapes' must be a list"),
    (
        labelme_beside,
        (json.dumps(labelme() | {"imageHeight": "x"}),),
        "b ü.json: height and width must be whole numbers",
    ),
    (labelme_beside, (json.dumps(labelme(points=None)),), "points must be pairs|three or more points"),
    (cvat_beside, ("40", 'z_order="x"'), "<polygon>: z_order must be a whole number, not 'x'"),
    (cvat_beside, ("x", ""), "height and width must be whole numbers, not '30' and 'x'"),
    (tasks_beside, ({"data": {"image": "b ü.png"}},), "task 1: no data and annotations"),
    (tasks_beside, (7,), "task 1: no data and annotations"),
    (tasks_beside, ({"data": {"image": "b ü.png"}, "annotations": None},), "task 1: no data and annotations"),
    (
        tasks_beside,
        ({"data": {"image": "b ü.png"}, "annotations": [{"result": None}]},),
        "task 1: 'result' must be a list",
    ),
    (
        tasks_beside,
        ({"data": {"image": "b ü.png"}, "annotations": [{"result": [{"type": "polygonlabels", "value": [1]}]}]},),
        "'polygonlabels': 'value' must hold what was drawn",
    ),
    (
        tasks_beside,
        ({"data": {"image": "b ü.png"}, "annotations": [{"result": [{"original_width": [1], "original_height": 2}]}]},),
        "task 1: height and width must be whole numbers",
    ),
]


@pytest.mark.parametrize(("make", "bad", "problem"), BESIDE)
def test_a_bad_picture_costs_itself_and_not_the_good_one_beside_it(
    make: Callable[..., Path], bad: tuple[Any, ...], problem: str, pictures: Pictures, tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    path = make(folder, *bad)
    found = ReadBack(pictures.records)
    masks = {image_id: int((mask_hw == 1).sum()) for image_id, mask_hw in found.masks([path])}
    assert list(masks) == ["a"] and masks["a"] == 64
    [said] = found.problems
    assert re.search(problem, said) and str(folder) in said


def test_a_labelme_file_that_names_its_picture_costs_that_picture(pictures: Pictures, tmp_path: Path) -> None:
    """Also where each file is named, as a shell does with ``*.json``."""
    good = write(tmp_path / "b ü.json", labelme())
    bad = write(tmp_path / "a.json", {"shapes": None, "imagePath": "a.png"})
    found = ReadBack(pictures.records)
    assert [image_id for image_id, _ in found.masks([good, bad])] == ["b ü"]
    assert f"{bad}: a: {bad}: 'shapes' must be a list" in found.problems[0]


def test_a_label_studio_file_without_any_task_is_refused_by_name(pictures: Pictures, tmp_path: Path) -> None:
    path = write(tmp_path / "min.json", [{"image": "a.png"}, {"image": "b ü.png"}])
    with pytest.raises(DataError, match=r"min.json: task 0: no data and annotations; export from Label Studio"):
        list(ReadBack(pictures.records).masks([path]))
