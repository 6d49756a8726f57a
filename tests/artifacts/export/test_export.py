"""Is an export whole or absent, the same on repetition, and never over what it did not write?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from artifacts.cache import runs
from artifacts.cache.store import MaskStore
from artifacts.export import dataset as export
from artifacts.export.dataset import export_run
from artifacts.export.hdf5 import write_hdf5_export
from artifacts.export.items import FORMATS, ExportImage, Source
from artifacts.objects import Object, pack_objects
from artifacts.records import DataError

ADDRESS = "cut-0"
IDS = ("a", "b ü", "sub/c")


def mask(index: int) -> np.ndarray[Any, Any]:
    mask_hw = np.zeros((6, 8), np.uint8)
    mask_hw[1:4, 2:5] = 1 + index % 2
    mask_hw[5, 7] = 255
    return mask_hw


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A cache with one finished run: three masks with one object each, one image without a mask."""
    cache = tmp_path / "cache"
    store = MaskStore(cache)
    items = []
    stamps: runs.Stamps = {"set/gone": (None, "/nowhere.png")}
    for index, image_id in enumerate(IDS):
        image = tmp_path / "images" / f"{image_id}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.full((6, 8, 3), 40 * index, np.uint8))
        packed = pack_objects([4], [(2, 1, 5, 4)], [np.ones((3, 3), np.uint8)])
        arrays = {"mask_hw": mask(index), "object_classes_n": np.array([1 + index % 2], np.uint8), **packed}
        items.append((f"set/{image_id}", f"s{index}", arrays))
        stamps[f"set/{image_id}"] = (f"s{index}", str(image))
    store.write_segment(ADDRESS, items, meta={})
    stage = {
        "label": "cut",
        "kind": "map",
        "address": ADDRESS,
        "stamps": runs.write_stamps(cache, stamps),
        "split": "train",
        "dataset": "set",
        "output": "",
    }
    manifest = {
        "run": "r",
        "flow": "cfs",
        "stages": [stage],
        "recipe": {"params": {"seed": 7}},
        "libraries": {},
        "classes": {"set": ["cat", "dog"]},
        "skips": [{"key": "set/gone", "stage": "cut", "reason": "gone", "path": "/nowhere.png"}],
    }
    return cache, manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", export.WRITERS)
def test_the_same_run_exports_to_the_same_bytes(kind: str, run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    cache, manifest = run
    first = export_run(cache, manifest, "cut", kind, tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    second = export_run(cache, {**manifest, "run": "another"}, "cut", kind, tmp_path / "two")
    assert contents(first) == contents(second)
    export_run(cache, manifest, "cut", kind, tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before, "an unchanged export is left alone"
    written = json.loads((first / export.MANIFEST).read_text())
    assert written["counts"]["images"] == 3
    assert written["without_mask"] == ["gone"]
    assert written["recipe"] == {"params": {"seed": 7}}
    assert written["skips"][0]["reason"] == "gone"
    assert written["addresses"] == {"cut": ADDRESS}


def test_voc_masks_read_back_with_their_palette(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = export_run(*run, "cut", "voc", tmp_path / "out")
    for index, image_id in enumerate(IDS):
        with Image.open(out / "SegmentationClass" / f"{image_id}.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
            assert np.array_equal(np.asarray(image), mask(index))
        with Image.open(out / "SegmentationObject" / f"{image_id}.png") as image:
            assert np.array_equal(np.asarray(image) == 1, (mask(index) > 0) & (mask(index) < 255))
        assert (out / "JPEGImages" / f"{image_id}.png").exists()
    assert (out / "ImageSets" / "Segmentation" / "train.txt").read_text().splitlines() == sorted(IDS)
    assert (out / "classes.txt").read_text() == "cat\ndog\n"


def test_the_server_tree_holds_no_undecided_pixel(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = export_run(*run, "cut", "voc-server", tmp_path / "out")
    with Image.open(out / "results" / "VOC2012" / "Segmentation" / "comp6_train_cls" / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.where(mask(0) == 255, 0, mask(0)))
    assert json.loads((out / export.MANIFEST).read_text())["counts"]["undecided_pixels_as_background"] == 3


def test_coco_objects_read_back_through_pycocotools(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = export_run(*run, "cut", "coco", tmp_path / "out")
    coco = COCO(str(out / "annotations" / "instances_train.json"))
    assert len(coco.anns) == 3
    assert {c["name"] for c in coco.cats.values()} == {"cat", "dog"}
    for annotation in coco.anns.values():
        assert np.argwhere(coco.annToMask(annotation)).tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3, 4)]
        assert annotation["bbox"] == [2, 1, 3, 3]
    assert all((out / "images" / image["file_name"]).exists() for image in coco.imgs.values())


def test_hdf5_reads_with_plain_h5py(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = export_run(*run, "cut", "hdf5", tmp_path / "out")
    with h5py.File(out / "masks.h5") as file:
        assert list(file.attrs["classes"]) == ["background", "cat", "dog"]
        for index, image_id in enumerate(IDS):
            name = image_id.replace("/", "%2F")
            assert np.array_equal(file[f"masks/{name}"][()], mask(index))
            assert file[f"masks/{name}"].attrs["image_id"] == image_id
            assert file[f"objects/{name}/classes"][()].tolist() == [1 + index % 2]
            assert file[f"objects/{name}/ids"][()].tolist() == [4]


def test_hdf5_holds_an_image_and_those_in_a_folder_of_its_name(tmp_path: Path) -> None:
    ids = ("a", "a/b", "a%2Fb", "100%/%25")
    objects = [(Object(7, (0, 0, 8, 6), np.ones((6, 8), np.uint8)), 1)]
    images = [ExportImage(i, Path("x.png"), mask(n), objects) for n, i in enumerate(ids)]

    class Images:
        split, classes = "train", ("cat",)

        def __iter__(self) -> Iterator[ExportImage]:
            return iter(images)

    assert write_hdf5_export(tmp_path, cast(Source, Images())) == {"images": 4, "objects": 4}
    with h5py.File(tmp_path / "masks.h5") as file:
        assert sorted(map(unquote, file["masks"])) == sorted(map(unquote, file["objects"])) == sorted(ids)


def test_another_array_of_a_stage_is_another_export_without_its_objects(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Both arrays have one digest in the cache: the second export to a folder must not pass for the first."""
    cache, manifest = run
    with pytest.raises(DataError, match=r"no mask_crf_hw: export a stage that gives such masks"):
        export_run(cache, manifest, "cut", "voc", tmp_path / "none", array="mask_crf_hw")
    assert not (tmp_path / "none").exists()
    stamps = runs.read_stamps(cache, manifest["stages"][0]["stamps"])
    arrays = MaskStore(cache, readonly=True).read(ADDRESS, "set/a", "s0")
    with_crf = {**arrays, "mask_crf_hw": 2 * (mask(0) == 1).astype(np.uint8)}
    MaskStore(cache).write_segment(ADDRESS, [("set/a", "both", with_crf)], meta={})
    manifest["stages"][0]["stamps"] = runs.write_stamps(cache, {"set/a": ("both", stamps["set/a"][1])})
    out = tmp_path / "out"
    for array in ("mask_hw", "mask_crf_hw", "mask_hw"):
        export_run(cache, manifest, "cut", "voc", out, array=array)
        with Image.open(out / "SegmentationClass" / "a.png") as image:
            assert np.array_equal(np.asarray(image), with_crf[array])
        assert (out / "SegmentationObject").exists() == (array == "mask_hw")
        assert json.loads((out / export.MANIFEST).read_text())["array"] == array


def test_changed_masks_replace_an_untouched_export(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    cache, manifest = run
    out = export_run(cache, manifest, "cut", "voc", tmp_path / "out")
    MaskStore(cache).write_segment(ADDRESS, [("set/a", "new", {"mask_hw": mask(1)})], meta={})
    stamps = runs.read_stamps(cache, manifest["stages"][0]["stamps"])
    stamps = {"set/a": ("new", stamps["set/a"][1])}
    manifest["stages"][0]["stamps"] = runs.write_stamps(cache, stamps)
    export_run(cache, manifest, "cut", "voc", out)
    assert sorted(p.name for p in (out / "SegmentationClass").rglob("*.png")) == ["a.png"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".maskmill-tmp")] == []


def spoil_extra(out: Path) -> None:
    (out / "mine.txt").write_text("precious")


def spoil_changed(out: Path) -> None:
    (out / "classes.txt").write_text("other\n")


def spoil_foreign(out: Path) -> None:
    (out / export.MANIFEST).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_extra, "mine.txt was not written by the export"),
        (spoil_changed, "classes.txt was changed since"),
        (spoil_foreign, "no export of Maskmill"),
    ],
)
def test_what_no_export_wrote_is_never_overwritten(
    spoil: Callable[[Path], None], message: str, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = export_run(*run, "cut", "voc", tmp_path / "out")
    spoil(out)
    before = contents(out)
    with pytest.raises(DataError, match=message):
        export_run(*run, "cut", "voc", out)
    assert contents(out) == before


def test_a_failing_export_leaves_the_old_one_whole(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, manifest = run
    out = export_run(cache, manifest, "cut", "voc", tmp_path / "out")
    before = contents(out)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(OSError, match=r"a\.png"):
        export_run(cache, manifest, "cut", "voc", out)
    assert contents(out) == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".maskmill-tmp")] == []


def test_the_formats_that_options_are_checked_against_are_the_writers() -> None:
    assert tuple(export.WRITERS) == FORMATS


def test_an_unknown_stage_or_format_lists_what_there_is(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no map stage 'cat'; it has cut"):
        export_run(*run, "cat", "voc", tmp_path / "out")
    with pytest.raises(DataError, match="expected one of voc, voc-server, coco, hdf5"):
        export_run(*run, "cut", "png", tmp_path / "out")
