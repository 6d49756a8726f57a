"""Bad input to the whole command: a clear error or a listed skip, the rest done. Readers' cases lie with them."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flow_runs import Done, copy_of, demo_tree, maskmill, run_cfs, tiny_of
from PIL import Image

from artifacts.cache import segment_index
from artifacts.cache.segments import Segment
from artifacts.cache.store import CorruptSegment, MaskStore
from benchmarks.soak_kill import fingerprint

QUICK = ("--set", "params.proposals=box", "--set", "params.deeplab.iterations=1")


# -- a VOC tree in which much is wrong -------------------------------------------------------------------------------


def annotate(tree: Path, image_id: str, body: str = "", head: str = "") -> None:
    """An annotation of an image of 64 x 64."""
    size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
    text = f"{head}<annotation><filename>{image_id}.jpg</filename>{size}{body}</annotation>"
    (tree / "Annotations" / f"{image_id}.xml").write_text(text)


def thing(name: str, *corners: object) -> str:
    edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>"


def bomb() -> bytes:
    """The beginning of a PNG of 60,000 x 60,000 pixels."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(999)))
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def broken_tree(tree: Path) -> dict[str, str]:
    """Adds broken images to the train list; image id -> part of the reason that has to be reported."""
    images = tree / "JPEGImages"
    whole = (images / "demo_train_00000.jpg").read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "zero": b"", "text": b"no pixels here", "bomb": bomb()}
    for image_id, content in contents.items():
        (images / f"{image_id}.jpg").write_bytes(content)
        annotate(tree, image_id, thing("fish", 2, 2, 50, 50))
    for image_id in ("no xml", "broken xml", "expanding", "external", "alien", "bad boxes"):
        (images / f"{image_id}.jpg").write_bytes(whole)
    annotate(tree, "gone", thing("fish", 2, 2, 50, 50))
    (tree / "Annotations" / "broken xml.xml").write_text("<annotation><object>")
    annotate(tree, "expanding", "&b;", '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>')
    annotate(tree, "external", "&f;", '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]>')
    annotate(tree, "alien", thing("unicorn", 2, 2, 50, 50))
    boxes = [("nan", 2, 50, 50), (-30, -30, -2, -2), (50, 2, 20, 50), (200, 200, 300, 300), (10, 10, 40, 40)]
    annotate(tree, "bad boxes", "".join(thing("fish", *corners) for corners in boxes))
    with open(tree / "ImageSets" / "Segmentation" / "train.txt", "a") as listed:
        added = [*contents, "gone", "no xml", "broken xml", "expanding", "external", "alien", "bad boxes"]
        listed.write("\n".join([*added, "demo_train_00003", "../../secret"]) + "\n")
    return {
        "cut": "truncated",
        "zero": "empty",
        "text": "image",
        "bomb": "60000",
        "gone": "no image",
        "no xml": "no annotation",
        "broken xml": "broken XML",
        "expanding": "declares entities",
        "external": "declares entities",
        "alien": "class 'unicorn'",
        "demo_train_00003": "is listed twice",
        "../../secret": "leads out of the data set's folder",
    }


def test_a_tree_with_every_kind_of_broken_image(tiny: Done, tmp_path: Path) -> None:
    tree = tmp_path / "data" / demo_tree(tiny).name
    shutil.copytree(demo_tree(tiny), tree)
    reasons = broken_tree(tree)
    small, foreign = (tree / "SegmentationClass" / f"demo_train_0000{i}.png" for i in (1, 2))
    palette = Image.open(foreign).getpalette()
    for path, mask_hw in ((small, np.zeros((9, 9), np.uint8)), (foreign, np.full((64, 64), 77, np.uint8))):
        image = Image.fromarray(mask_hw, "P")
        image.putpalette(palette)
        image.save(path)
    out = copy_of(tiny, tmp_path / "run")
    moved = ("--data", f"voc:{tree}", "--set", "data.name=demo-tiny", "--set", "options.refit=never")
    run = run_cfs(out, *moved)

    assert run.code == 3, run.printed
    listed = {skip["key"].removeprefix("demo-tiny/"): skip for skip in run.manifest["skips"]}
    assert set(listed) == {*reasons, "demo_train_00001", "demo_train_00002"}
    for image_id, reason in reasons.items():
        assert reason in listed[image_id]["reason"], (image_id, listed[image_id])
        assert reason in run.printed and listed[image_id]["path"] in run.printed
    assert "the mask is 9 x 9" in listed["demo_train_00001"]["reason"]
    assert "holds the number 77" in listed["demo_train_00002"]["reason"]
    assert "4 x boxes left out" in run.printed and "xmin is nan, not a finite number" in run.printed
    # Everything that is sound is as it was, and the image with one good box among four bad ones is new.
    assert run.computed["grabcut"] == 1, "the one with bad boxes; the four that cannot be decoded have no result"
    before, after = (
        {key: digest for key, digest in fingerprint(folder).items() if key.startswith("grabcut") and "mask_hw" in key}
        for folder in (tiny.out, out)
    )
    assert before.items() < after.items()
    (new,) = after.keys() - before.keys()
    assert "demo-tiny/bad boxes" in new
    # The next run tries only what may have changed: the limit of pixels may have been raised.
    plan = run_cfs(out, *moved, "--dry-run")
    (row,) = (line.split() for line in plan.stdout.splitlines() if line.split()[:2] == ["grabcut", "map"])
    assert row[3] == "1", plan.stdout
    again = run_cfs(out, *moved)
    assert (again.code, again.computed["grabcut"]) == (3, 0)
    assert {skip["key"] for skip in again.manifest["skips"]} == {skip["key"] for skip in run.manifest["skips"]}


# -- a COCO file in which much is wrong ------------------------------------------------------------------------------


def coco_file(folder: Path, **changes: Any) -> str:
    """Eight pictures with one box each, four of them val; returns ``coco:IMAGES,JSON``."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(8):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 50})
        annotations.append({"id": number, "image_id": number, "category_id": 7, "bbox": [5, 5, 20, 20], "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "thing"}]}
    for name, more in changes.items():
        content[name] = [*content[name], *more]
    (folder / "train.txt").write_text("\n".join(f"{n}" for n in (0, 1, 2, 3, 9, 10)))
    (folder / "val.txt").write_text("4\n5\n6\n7\n")
    (folder / "labels.json").write_text(json.dumps(content))
    return f"coco:{folder}/images,{folder}/labels.json"


def test_a_coco_file_with_wrong_entries(tmp_path: Path) -> None:
    whole = {"id": 20, "image_id": 0, "category_id": 7, "bbox": [5, 5, 20, 20]}
    source = coco_file(
        tmp_path / "d",
        images=[
            {"id": 0, "file_name": "same-id.png", "height": 40, "width": 50},
            {"id": 9, "file_name": "../../secret.png", "height": 40, "width": 50},
            {"id": 10, "file_name": "absent.png", "height": 40, "width": 50},
        ],
        annotations=[{**whole, "bbox": ["a", 1, 2, 3]}, {**whole, "id": 21, "image_id": 99}],
    )
    run = run_cfs(tmp_path / "run", "--data", source, *QUICK)
    assert run.code == 3, run.printed
    for reason in (
        "image id 0 of 'same-id.png' belongs to '0.png'",
        "leads out of the",
        "Expected `float`, got `str`",
        "annotation id 21: 99",
    ):
        assert reason in run.printed, (reason, run.printed)
    assert run.computed["box-masks"] >= 4, "the sound images are done"
    assert run.computed["deeplab"] == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2], "labels.json: cut off at byte"),
        (lambda text: text.replace('"images": [', '"images": 3, "x": [', 1), "images: Expected `array`"),
        (lambda text: "a text", "labels.json"),
    ],
)
def test_a_coco_file_that_cannot_be_read_ends_the_run_before_any_work(
    tmp_path: Path, spoil: Callable[[str], str], message: str
) -> None:
    source = coco_file(tmp_path / "d")
    path = tmp_path / "d" / "labels.json"
    path.write_text(spoil(path.read_text()))
    run = run_cfs(tmp_path / "run", "--data", source, *QUICK)
    assert run.code == 2
    assert message in run.printed
    assert not list((tmp_path / "run").glob("cache/maps/*"))


# -- a cache that was hurt -------------------------------------------------------------------------------------------


def test_damaged_segments_cost_their_images_and_a_second_run_mends_all(tiny: Done, tmp_path: Path) -> None:
    out = copy_of(tiny, tmp_path / "run")
    (folder,) = (out / "cache" / "maps").glob("grabcut-*")
    cut, flipped, foreign, *_ = sorted(folder.glob("*.h5"))
    images = {path: len(Segment(path).contents) for path in (cut, flipped, foreign)}
    for index in folder.glob("*.idx"):
        index.unlink()
    data = cut.read_bytes()
    rewrite(cut, data[: len(data) // 2])
    data = flipped.read_bytes()
    rewrite(flipped, flip_array(data, folder.name))
    rewrite(foreign, b"not HDF5 at all")
    run = run_cfs(out)
    assert run.code == 1
    assert f"{flipped.name} is damaged (checksum of array mask_hw differs) at demo-tiny/" in run.printed
    assert "the next run computes these images again" in run.printed
    assert run.computed["grabcut"] == images[cut] + images[foreign], (
        "the images of the two that cannot be opened; the rest stays"
    )
    again = run_cfs(out)
    assert (again.code, again.computed) == (0, {**dict.fromkeys(tiny.computed, 0), "grabcut": images[flipped]}), (
        again.printed
    )
    assert fingerprint(out) == fingerprint(tiny.out)


def rewrite(path: Path, data: bytes) -> None:
    os.chmod(path, 0o600)
    path.write_bytes(data)


def flip_array(data: bytes, address: str) -> bytes:
    """One flipped byte in an array: the segment opens, and one image in it is not what was written."""
    for position in range(64, len(data), 16):
        spoilt = bytearray(data)
        spoilt[position] ^= 0xFF
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "maps" / address / "00000001-0.h5"
            path.parent.mkdir(parents=True)
            path.write_bytes(spoilt)
            store = MaskStore(Path(folder), readonly=True)
            try:
                entries = store.entries(address)
                for key, stamp in entries:
                    store.read(address, key, stamp, ["mask_hw"])
            except CorruptSegment:
                if entries:
                    return bytes(spoilt)
    raise AssertionError("no byte of any mask was hit")


def test_weights_and_a_checkpoint_cut_short_cost_time_and_nothing_else(
    tiny: Done, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = copy_of(tiny, tmp_path / "run")
    (weights,) = (out / "cache" / "fits").glob("*/*/pub-*/weights.safetensors")
    whole = weights.read_bytes()
    rewrite(weights, whole[: len(whole) // 2])
    work = weights.parent.parent / "work"
    work.mkdir()
    (work / "step-000000015.ckpt").write_bytes(b"maskmill checkpoint 2\n" + bytes(100))
    run = run_cfs(out)
    assert (run.code, run.computed) == (0, {**dict.fromkeys(tiny.computed, 0), "deeplab": 1}), run.printed
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert f"weights.safetensors has {len(whole) // 2} bytes, {len(whole)} were published" in logged
    assert "step-000000015.ckpt: cut short, changed" in logged
    (again,) = (out / "cache" / "fits").glob("*/*/pub-0002/weights.safetensors")
    assert again.read_bytes() == whole, "from the start, and the same"


# -- a disk that takes nothing ---------------------------------------------------------------------------------------


@contextmanager
def unwritable(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Opening for writing, making folders and renaming below ``folder`` fail, as on a read-only or full disk."""

    def guarded(function: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path = args[0]
            if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)) and writes(*args, **kwargs):
                raise OSError(number, os.strerror(number), str(path))
            return function(*args, **kwargs)

        return call

    def opens_to_write(path: Any, mode: Any = "r", *_: Any, **__: Any) -> bool:
        return any(letter in mode for letter in "wax+")

    def os_opens_to_write(path: Any, flags: int, *_: Any, **__: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def always(*_: Any, **__: Any) -> bool:
        return True

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", guarded(builtins.open, opens_to_write))
        patched.setattr(io, "open", guarded(io.open, opens_to_write))
        patched.setattr(os, "open", guarded(os.open, os_opens_to_write))
        for name in ("mkdir", "replace", "rename"):
            patched.setattr(os, name, guarded(getattr(os, name), always))
        yield


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "No space left")])
def test_a_cache_that_takes_nothing(
    tiny: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    out = copy_of(tiny, tmp_path / "run")
    with unwritable(out / "cache", number, monkeypatch):
        run = run_cfs(out, "--rerun", "grabcut")
    assert run.code == 2, "found before any work"
    assert words in run.printed and str(out / "cache") in run.printed.replace(" ", "")
    assert fingerprint(out) == fingerprint(tiny.out), "what was there is there"


def test_a_disk_that_fills_up_between_two_segments(tiny: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    shutil.copytree(demo_tree(tiny).parent, out / "cache" / "demo-data")
    written = segment_index.os.fsync
    left = iter([True, True, True, True])

    def fsync(descriptor: int) -> None:
        if "/maps/" in os.readlink(f"/proc/self/fd/{descriptor}") and not next(left, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(segment_index.os, "fsync", fsync)
        full = run_cfs(out, *QUICK)
    assert full.code == 1
    assert "the disk is full: free space" in full.printed
    assert full.manifest["status"] == "failed"
    stored = len([name for name in fingerprint(out) if name.endswith("mask_hw")])
    assert 0 < stored < 24, "what was written before is whole"
    again = run_cfs(out, *QUICK)
    assert (again.code, again.computed["box-masks"]) == (0, 24 - stored)


# -- nothing to work on or with --------------------------------------------------------------------------------------


def test_a_gpu_asked_for_and_absent_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tasks.engine.gpus", "tasks.engine.runner", "tasks.training.fit_process"):
        monkeypatch.setattr(f"{module}.has_gpu", lambda: False, raising=False)
    run = run_cfs(tmp_path / "run", "--device", "cuda")
    assert run.code == 2
    assert "device=cuda" in run.printed and "device=cpu" in run.printed
    assert not list((tmp_path / "run").glob("cache/maps/*")) and failed_before_it_began(run)


def test_no_training_images(tiny: Done, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(demo_tree(tiny), tree)
    (tree / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")
    run = run_cfs(tmp_path / "run", "--data", f"voc:{tree}")
    assert run.code == 2
    assert "no training images" in run.printed or "none" in run.printed
    assert "'train'" in run.printed and str(tree) in run.printed.replace(" ", "")


def test_all_images_broken(tiny: Done, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(demo_tree(tiny), tree)
    for path in (tree / "JPEGImages").glob("demo_train_*"):
        path.write_bytes(b"")
    run = run_cfs(tmp_path / "run", "--data", f"voc:{tree}")
    assert run.code == 1
    assert "grabcut: all 24 images were skipped; the first:" in run.printed
    assert "demo_train_00000.jpg" in run.printed
    manifest = run.manifest
    assert (manifest["status"], len(manifest["skips"])) == ("failed", 24)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("params: {grabcut: {working_sise: 64}}", "did you mean 'working_size'?"),
        ("params: {deeplab: {iterations: many}}", "params.deeplab.iterations"),
        ("params: {deeplab: {iterations: -1}}", "line 1: params.deeplab.iterations: deeplab.iterations must be 0..1"),
        ("options: {workers: -7}", "options.workers must be -1..1024, not -7"),
        ("option: {workers: 1}", "unknown section 'option' (did you mean 'options'?)"),
        ("flow: rrm", "flow 'rrm'"),
        ("data: {source: 'nowhere:/x'}", "source must start with one of voc"),
        ("params: [1, 2", "line 2: not YAML"),
    ],
)
def test_a_wrong_configuration_leaves_a_run_that_says_so_and_nothing_else(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text + "\n")
    out = tmp_path / "run"
    run = maskmill(
        out, "cfs", "--config", str(path), "--out", str(out), *(() if "source" in text else ("--data", "demo-tiny"))
    )
    assert run.code == 2
    assert words in run.printed and "my.yaml" in run.printed
    assert failed_before_it_began(run) and sorted(path.name for path in (out / "cache").iterdir()) == ["runs"]


def failed_before_it_began(run: Done) -> bool:
    """In one line: what failed, where the log is, the command that goes on; and a run that says the same."""
    (folder,) = (run.out / "cache" / "runs").iterdir()
    (said,) = (line for line in run.stderr.splitlines() if "; log: " in line)
    said, _, command = said.partition("; when that is mended: ")
    assert command.startswith("maskmill cfs ") and f"--out {run.out}" in command
    text = (folder / "run.log").read_text()
    manifest = run.manifest
    assert (manifest["status"], manifest["stages"], manifest["command"]) == ("failed", [], command)
    assert manifest["error"] in text and f"when that is mended: {command}" in text
    return said.endswith(f"; log: {folder / 'run.log'}") and manifest["error"] in said


def test_without_a_place_a_wrong_configuration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--out", str(tmp_path / "run"), "--dry-run"), ("--out", str(tmp_path / "run"), "--show-config")):
        run = maskmill(tmp_path, "cfs", "--data", "demo-tiny", "--set", "params.nothing=1", *more)
        assert run.code == 2 and "log:" not in run.printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "voc:/nowhere/at all"), "/nowhere/at all"),
        (("--set", "params.grabcut.workin_size=3"), "did you mean 'working_size'?"),
        (("--set", "options.cache"), "expected NAME=VALUE"),
        (("--export", "png"), "export png: there are voc, voc-server, coco, hdf5"),
        (("--workers", "many"), "many"),
        (("--frobnicate",), "frobnicate"),
    ],
)
def test_wrong_arguments_compute_nothing(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    out = tmp_path / "run"
    run = maskmill(out, *tiny_of("cfs"), "--out", str(out), *arguments)
    assert run.code == 2
    assert words in run.printed
    assert not (out / "cache" / "maps").exists()
    if arguments[0] in ("--workers", "--frobnicate"):
        assert not out.exists(), "the command line could not be read: no place is known"
    else:
        assert failed_before_it_began(run)
