"""Is an export whole or absent, the same on repetition, and never over what it did not write?"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from artifacts.export.voc import DEVKIT
from artifacts.objects import Object, pack_objects
from artifacts.records import Box, DataError, MaskRef, Record, RecordSet

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
        with Image.open(out / DEVKIT / "SegmentationClass" / f"{image_id}.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
            assert np.array_equal(np.asarray(image), mask(index))
        with Image.open(out / DEVKIT / "SegmentationObject" / f"{image_id}.png") as image:
            assert np.array_equal(np.asarray(image) == 1, (mask(index) > 0) & (mask(index) < 255))
        assert (out / DEVKIT / "JPEGImages" / f"{image_id}.png").exists()
    assert (out / DEVKIT / "ImageSets" / "Segmentation" / "train.txt").read_text().splitlines() == sorted(IDS)
    assert (out / DEVKIT / "classes.txt").read_text() == "cat\ndog\n"


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
        with Image.open(out / DEVKIT / "SegmentationClass" / "a.png") as image:
            assert np.array_equal(np.asarray(image), with_crf[array])
        assert (out / DEVKIT / "SegmentationObject").exists() == (array == "mask_hw")
        assert json.loads((out / export.MANIFEST).read_text())["array"] == array


def change_masks(cache: Path, manifest: dict[str, Any]) -> None:
    MaskStore(cache).write_segment(ADDRESS, [("set/a", "new", {"mask_hw": mask(1)})], meta={})
    stamps = runs.read_stamps(cache, manifest["stages"][0]["stamps"])
    stamps = {"set/a": ("new", stamps["set/a"][1])}
    manifest["stages"][0]["stamps"] = runs.write_stamps(cache, stamps)


def test_changed_masks_replace_an_untouched_export(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    cache, manifest = run
    out = export_run(cache, manifest, "cut", "voc", tmp_path / "out")
    change_masks(cache, manifest)
    export_run(cache, manifest, "cut", "voc", out)
    assert sorted(p.name for p in (out / DEVKIT / "SegmentationClass").rglob("*.png")) == ["a.png"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".maskmill-tmp")] == []


@pytest.mark.parametrize("at", ["while the new one is synced", "while it is given its name"])
def test_a_disk_that_fails_while_an_export_is_replaced_leaves_the_old_one(
    at: str, run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_run(*run, "cut", "voc", tmp_path / "out")
    before, rename = contents(out), os.rename
    change_masks(*run)

    def full(*given: Any) -> None:
        assert contents(out) == before
        raise OSError(errno.ENOSPC, "No space left on device")

    def renamed(old: Any, new: Any) -> None:
        if Path(new) == out and contents(Path(old)) != before:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(*((export, "fsync_tree", full) if "synced" in at else (os, "rename", renamed)))
        with pytest.raises(OSError, match="No space left"):
            export_run(*run, "cut", "voc", out)
    assert contents(out) == before
    export_run(*run, "cut", "voc", out)
    assert contents(out) != before


def spoil_extra(out: Path) -> None:
    (out / "mine.txt").write_text("precious")


def spoil_changed(out: Path) -> None:
    (out / DEVKIT / "classes.txt").write_text("other\n")


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


# -- the evaluation pictures -----------------------------------------------------------------------------------------


def half(reference: MaskRef) -> np.ndarray[Any, Any]:
    """The truth of val pictures: class 2 in the left half."""
    mask_hw = np.zeros((6, 8), np.uint8)
    mask_hw[:, :4] = 2
    return mask_hw


def one_object(reference: MaskRef) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return (half(reference) > 0)[None], np.array([0])


@pytest.fixture
def with_val(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any], RecordSet]:
    """The run with five more pictures: ``v`` with truth, ``w`` and ``x`` without, of which ``w`` was predicted; one
    whose truth cannot be read, and one that the training split holds, too.
    """
    cache, manifest = run
    stage = manifest["stages"][0]
    stage |= {"set": "train", "outputs": ["mask_hw"]}
    records = []
    for name in ("v", "w", "x", "y", "a"):
        image = tmp_path / "images" / f"{name}.jpeg"
        cv2.imwrite(str(image.with_suffix(".jpg")), np.zeros((6, 8, 3), np.uint8))
        image.with_suffix(".jpg").rename(image)
        truth = {"v": MaskRef(f"{__name__}:half", str(image)), "y": MaskRef(f"{__name__}:broken", str(image))}.get(name)
        objects = MaskRef(f"{__name__}:one_object", str(image)) if name == "v" else None
        boxes = (Box(0, 2, 0, 0, 4, 6),)
        records.append(Record(name, str(image), boxes=boxes, truth=truth, truth_objects=objects))
    MaskStore(cache).write_segment("student-0", [("set/w", "t", {"mask_hw": mask(1)})], meta={})
    stamps = {"set/w": ("t", records[1].image), "set/x": (None, records[2].image)}
    student = {**stage, "label": "student", "address": "student-0", "set": "val", "split": "val"}
    student["stamps"] = runs.write_stamps(cache, stamps)
    manifest |= {"stages": [stage, student], "predictions": {"student": "student"}}
    return cache, manifest, RecordSet("set", "val", ("cat", "dog"), tuple(records))


def broken(reference: MaskRef) -> None:
    raise DataError(f"{reference.path}: cut")


COUNTS = {"truth": 1, "student": 1, "no_mask": 2}


def test_torchvision_reads_the_voc_export_of_both_splits_as_it_is(
    with_val: tuple[Path, dict[str, Any], RecordSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torchvision.datasets import VOCSegmentation

    cache, manifest, val = with_val
    out = export_run(cache, manifest, "cut", "voc", tmp_path / "out", val=val)
    val_set = VOCSegmentation(str(out), year="2012", image_set="val")
    assert len(val_set) == 2
    (image, truth), (_, predicted) = val_set[0], val_set[1]
    assert image.size == (8, 6) and np.array_equal(np.asarray(truth), half(MaskRef("", "")))
    assert np.array_equal(np.asarray(predicted), mask(1))
    lists = out / DEVKIT / "ImageSets" / "Segmentation"
    assert (lists / "train.txt").read_text().split("\n")[:-1] == ["a", "b ü", "sub/c"]
    assert (lists / "trainval.txt").read_text().split("\n")[:-1] == ["a", "b ü", "sub/c", "v", "w"]
    written = json.loads((out / export.MANIFEST).read_text())
    assert written["counts"]["val"]["masks"] == COUNTS
    assert "1 of the 4 pictures of val have no truth; their masks are the student's" in caplog.text
    assert "the truth of y is left out" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    export_run(cache, manifest, "cut", "voc", out, val=val)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    only_truth = replace(val, records=val.records[:1])
    export_run(cache, manifest, "cut", "voc", out, val=only_truth)
    assert (lists / "val.txt").read_text() == "v\n", "another val, another export"


def test_coco_and_yolo_hold_both_splits(with_val: tuple[Path, dict[str, Any], RecordSet], tmp_path: Path) -> None:
    cache, manifest, val = with_val
    out = export_run(cache, manifest, "cut", "coco", tmp_path / "coco", val=val)
    coco = COCO(str(out / "annotations" / "instances_val.json"))
    assert {image["file_name"] for image in coco.imgs.values()} == {"v.jpeg", "w.jpeg"}
    assert len(COCO(str(out / "annotations" / "instances_train.json")).imgs) == 3
    of_v = next(a for a in coco.anns.values() if coco.imgs[a["image_id"]]["file_name"] == "v.jpeg")
    assert (coco.cats[of_v["category_id"]]["name"], of_v["bbox"]) == ("dog", [0, 0, 4, 6])
    out = export_run(cache, manifest, "cut", "yolo-seg", tmp_path / "yolo", val=val)
    assert "train: images/train\nval: images/val\n" in (out / "data.yaml").read_text()
    assert sorted(path.name for path in (out / "labels/val").iterdir()) == ["v.txt", "w.txt"]


def test_hdf5_holds_val_in_a_file_of_its_own(with_val: tuple[Path, dict[str, Any], RecordSet], tmp_path: Path) -> None:
    cache, manifest, val = with_val
    out = export_run(cache, manifest, "cut", "hdf5", tmp_path / "hdf5", val=val)
    with h5py.File(out / "masks.h5") as train, h5py.File(out / "masks-val.h5") as file:
        assert (train.attrs["split"], len(train["masks"]), file.attrs["split"]) == ("train", 3, "val")
        assert list(file.attrs["classes"]) == list(train.attrs["classes"]) and sorted(file["masks"]) == ["v", "w"]
        assert np.array_equal(file["masks/v"][()], half(MaskRef("", "")))
        assert np.array_equal(file["masks/w"][()], mask(1))


def test_other_stages_formats_and_samples_have_no_val(
    with_val: tuple[Path, dict[str, Any], RecordSet], tmp_path: Path
) -> None:
    cache, manifest, val = with_val
    cases = {"voc-server": ("cut", {}), "labelme": ("cut", {}), "voc": ("student", {})}
    cases |= {"coco": ("cut", {"only": ["set/a"]})}
    for kind, (label, options) in cases.items():
        out = export_run(cache, manifest, label, kind, tmp_path / kind, val=val, **options)  # type: ignore[arg-type]
        assert "val" not in json.loads((out / export.MANIFEST).read_text())["counts"]
    same = replace(val, split="train")
    out = export_run(cache, manifest, "cut", "voc", tmp_path / "same", val=same)
    assert "val" not in json.loads((out / export.MANIFEST).read_text())["counts"]
