"""Does every file of the cache know what it is and where it belongs? Does damage to one cost no more than itself?"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest

from artifacts import keys
from artifacts.cache import listing as cache
from artifacts.cache import sealed
from artifacts.cache.fit_store import FitStore, tensor_digests
from artifacts.cache.fit_work import Work
from artifacts.cache.runs import RunFolder, read_origin, read_stamps, write_origin, write_stamps
from artifacts.cache.store import CorruptSegment, MaskStore, MissingEntry
from artifacts.datasets import DataParams, read_split, remember_dataset
from artifacts.datasets.voc_writer import write_annotation, write_image_set
from artifacts.images import ImageDigests
from artifacts.records import DataError

A, B = "grabcut-1", "grabcut-2"


def safetensors(header: object, data: bytes = b"ab") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = safetensors({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}})


def mask(value: int) -> dict[str, np.ndarray]:
    return {"mask_hw": np.full((80, 80), value, np.uint8)}


def filled(root: Path) -> MaskStore:
    store = MaskStore(root)
    for value, address in enumerate((A, B)):
        store.write_segment(address, [("set/a", "s", mask(value))], meta={"stage": "grabcut"})
    return store


# -- a file in another's place ---------------------------------------------------------------------------------------


def test_a_segment_in_another_address_s_folder_is_never_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = filled(tmp_path)
    shutil.rmtree(store.folder(B))
    shutil.copytree(store.folder(A), store.folder(B))  # a restore into the wrong folder, indexes and all
    again = MaskStore(tmp_path)
    assert dict(again.entries(B)) == {} and f"it belongs to {A}" in caplog.text
    with pytest.raises(MissingEntry):
        again.read(B, "set/a", "s")
    (problem,) = cache.verify(again).problems
    assert problem.segment.parent.name == B and "copied here by mistake" in problem.what
    report = cache.verify(again, repair=True)
    assert report.ok and [path.parent.name for path in report.quarantined] == [B] and report.saved == 0
    assert list(again.entries(A)) == [("set/a", "s")]


def test_a_segment_that_takes_another_s_name_is_found_by_the_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (one,), (other,) = ([*store.folder(address).glob("*.h5")] for address in (A, B))
    shutil.copyfile(one, other)  # by a program that knows of no index, after this process has listed the folder
    with pytest.raises(CorruptSegment, match=f"it belongs to {A}"):
        store.read(B, "set/a", "s")


def test_a_publication_and_a_checkpoint_of_another_fit_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fits = FitStore(tmp_path)
    fits.publish("deeplab-1", "s1", ONE, members=[])
    work = fits.work("deeplab-1", "s1")
    work.save(7, b"state")
    shutil.copytree(tmp_path / "fits/deeplab-1/s1", tmp_path / "fits/deeplab-1/s2")
    assert fits.published("deeplab-1", "s1") is not None and work.load() == (7, b"state")
    assert fits.published("deeplab-1", "s2") is None and "it belongs to deeplab-1/s1" in caplog.text
    assert Work(tmp_path / "fits/deeplab-1/s2/work").load() is None and "of another fit" in caplog.text
    _, problems = cache.verify_fits(cache.list_fits(tmp_path))
    assert [problem.segment.parent.name for problem in problems] == ["s2"]


def test_a_folder_or_a_pipe_called_like_a_segment_is_put_aside(tmp_path: Path) -> None:

    store = filled(tmp_path)
    (store.folder(A) / "00000009-ab.h5").mkdir()
    os.mkfifo(store.folder(A) / "00000010-ab.h5")
    again = MaskStore(tmp_path)
    assert list(again.entries(A)) == [("set/a", "s")]
    report = cache.verify(again, repair=True)
    assert report.ok and [problem.what for problem in report.problems] == ["it is no regular file"] * 2
    assert cache.compact(again).problems == ()
    assert (store.folder(A) / "00000009-ab.h5.corrupt").is_dir(), "a folder may hold anything: it is never removed"


# -- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"a": 1}, {"ü": [1.5, None], "b\udc80": "x"}])
@pytest.mark.parametrize("indent", [None, 1])
def test_every_flipped_bit_of_a_record_is_seen(value: dict[str, object], indent: int | None) -> None:
    data = sealed.seal(value, indent=indent)
    assert sealed.unseal(data) == value
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="checksum"):
            sealed.unseal(bytes(flipped))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="checksum"):
            sealed.unseal(data[:length])
    if "a" in value:
        assert json.loads(data)["a"] == 1, "any JSON reader reads it"


def test_a_damaged_file_that_its_content_names_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stamps = {"set/a": ("s", "/a.jpg")}
    name = write_stamps(tmp_path, stamps)
    origin = {"licenses": [1]}
    of_set = tmp_path / "origins" / f"{write_origin(tmp_path, origin)}.json"
    of_set.write_bytes(b"{}")
    manifest = {"origins": {"train": of_set.stem}}
    assert read_origin(tmp_path, manifest, "train") == {} and f"{of_set} is damaged" in caplog.text
    assert cache.verify_records(tmp_path)[1][0].segment == of_set
    write_origin(tmp_path, origin)
    assert read_origin(tmp_path, manifest, "train") == origin
    path = tmp_path / "stamps" / f"{name}.json"
    for damage in (b"", path.read_bytes().replace(b"/a", b"/b"), b"\xff"):
        path.write_bytes(damage)
        with pytest.raises(DataError, match="run the flow again"):
            read_stamps(tmp_path, name)
        assert write_stamps(tmp_path, stamps) == name and read_stamps(tmp_path, name) == stamps


def test_a_damaged_data_set_entry_keeps_the_class_numbers_of_the_last_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, folder = tmp_path / "pets", tmp_path / "cache"
    (root / "JPEGImages").mkdir(parents=True)
    for name, label in (("a", "dog"), ("b", "ant")):
        from PIL import Image

        Image.new("RGB", (8, 8)).save(root / f"JPEGImages/{name}.jpg")
        write_annotation(root / f"Annotations/{name}.xml", f"{name}.jpg", (8, 8), [(label, (1, 1, 5, 5), False)])
    write_image_set(root / "ImageSets/Segmentation/train.txt", ["a"])
    data = DataParams(source=f"voc:{root}")
    first = read_split(data, "train", cache=folder)
    remember_dataset(folder, first)
    RunFolder.create(folder, "cfs").write_manifest({"classes": {"pets": list(first.classes)}})
    write_image_set(root / "ImageSets/Segmentation/train.txt", ["a", "b"])
    path = folder / "datasets/pets.json"
    path.write_bytes(path.read_bytes().replace(b'"dog"', b'"dof"'))
    found = read_split(data, "train", cache=folder)
    assert found.classes[: len(first.classes)] == first.classes and "dof" not in found.classes
    assert "pets.json was damaged" in caplog.text
    remember_dataset(folder, found)
    assert sealed.unseal(path.read_bytes())["root"] == str(root)


def test_verify_finds_every_damaged_record_and_repair_puts_it_aside(tmp_path: Path) -> None:
    filled(tmp_path)
    write_stamps(tmp_path, {"set/a": ("s", "/a.jpg")})
    run = RunFolder.create(tmp_path, "cfs")
    run.write_manifest({"stages": []})
    (run.path / "deeplab.spec.json").write_bytes(sealed.seal({"cache": "x"}))
    digests = ImageDigests(tmp_path)
    digests._remembered, digests._changed = {"/a.jpg": (1, 2, "d")}, True
    digests.save()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/pets.json").write_bytes(sealed.seal({"name": "pets"}))
    records = [path for path in tmp_path.rglob("*.json") if "maps" not in path.parts]
    assert len(records) == 6 and cache.verify_records(tmp_path) == (6, [], [])
    for path in records:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    sound, problems, aside = cache.verify_records(tmp_path)
    assert (sound, sorted(problem.segment for problem in problems), aside) == (0, sorted(records), [])
    _, _, aside = cache.verify_records(tmp_path, repair=True)
    assert sorted(aside) == sorted(path.with_name(f"{path.name}.corrupt") for path in records)
    assert cache.verify_records(tmp_path) == (0, [], [])


# -- segments as plain h5py sees them --------------------------------------------------------------------------------


def plain(path: Path) -> dict[tuple[str, str], str]:
    """The snippet of docs/cache.md."""
    masks = {}
    with h5py.File(path) as file:
        for i, entry in enumerate(json.loads(file["index"][()].tobytes())["entries"]):
            for name, (_, shape, start, _) in entry["arrays"].items():
                node = file["arrays"][name]
                flat = node[start : start + math.prod(shape)] if start is not None else node[str(i)][()]
                masks[entry["key"], name] = keys.digest_array(flat.reshape(shape))
    return masks


def test_no_flipped_bit_that_plain_h5py_trips_over_is_overlooked(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (path,) = store.folder(A).glob("*.h5")
    sound, want = path.read_bytes(), plain(path)
    random.seed(0)
    tripped = 0
    for bit in random.sample(range(8 * len(sound)), 120):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            same = plain(path) == want
        except Exception:
            same = False
        tripped += not same
        assert same or cache.verify(MaskStore(tmp_path), [A]).problems, f"bit {bit}"
    assert tripped > 20


def test_a_segment_that_a_viewer_holds_is_busy_and_not_damaged(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (path,) = store.folder(A).glob("*.h5")
    code = f"import h5py, sys; f = h5py.File({str(path)!r}, 'r+'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as viewer:
        assert viewer.stdout is not None and viewer.stdout.readline()
        report = cache.verify(MaskStore(tmp_path), repair=True)
        viewer.kill()
    assert report.ok and (report.problems, report.quarantined, report.busy) == ((), (), (path,))
    assert report.images == 2
    # Killed, the viewer leaves HDF5's mark that the file is being written: plain h5py cannot open it any more.
    report = cache.verify(MaskStore(tmp_path), repair=True)
    assert report.ok and [problem.segment for problem in report.problems] == [path] and report.saved == 1


def test_a_segment_that_another_program_has_closed_is_sound_and_sealed_again(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (path,) = store.folder(A).glob("*.h5")
    before = path.read_bytes()
    with h5py.File(path, "r+"):
        pass
    assert len(path.read_bytes()) < len(before), "HDF5 has cut the footer off"
    report = cache.verify(MaskStore(tmp_path))
    (problem,) = report.problems
    assert not report.ok and not problem.damaged and "content is as written; --repair seals it" in problem.what
    report = cache.verify(MaskStore(tmp_path), repair=True)
    assert report.ok and (report.problems, report.quarantined, report.resealed) == ((), (), (path,))
    again = MaskStore(tmp_path)
    np.testing.assert_array_equal(again.read(A, "set/a", "s")["mask_hw"], mask(0)["mask_hw"])
    assert cache.verify(again).ok and cache.verify(again).images == 2
    with h5py.File(path, "r+") as file:  # a mask that was changed is damage
        file["arrays/mask_hw/0"][0, 0] = 9
    report = cache.verify(MaskStore(tmp_path), repair=True)
    assert (report.resealed, [one.name for one in report.quarantined]) == ((), [f"{path.name}.corrupt"])


def test_an_index_that_was_damaged_too_is_not_sealed(tmp_path: Path) -> None:
    """It is what says what the content was; the check goes on with the other segments."""
    store = filled(tmp_path)
    (path,) = store.folder(A).glob("*.h5")
    with h5py.File(path, "r+") as file:
        place = file["index"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    for at in (0, place.size // 2, place.size - 1):
        data[place.byte_offset + at] ^= 0x55
        path.write_bytes(data)
        (problem,) = cache.verify(MaskStore(tmp_path)).problems
        assert problem.damaged, at
    report = cache.verify(MaskStore(tmp_path), repair=True)
    assert (report.ok, report.resealed, len(report.quarantined)) == (True, (), 1)


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, "2"]}},
        {"w": {"dtype": "U8", "shape": [2], "data_offsets": [0]}},
        {"w": {"dtype": "U8", "shape": [2], "data_offsets": 7}},
        {"w": {"dtype": "U8", "shape": 2, "data_offsets": [0, 2]}},
        {"w": {"dtype": 8, "shape": [2], "data_offsets": [0, 2]}},
        {"w": {"dtype": "U8", "shape": [2], "data_offsets": [-2, 0]}},
        {"w": {"dtype": "U8", "shape": [2], "data_offsets": [2, 0]}},
        {"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 3]}},
        {"w": "U8"},
        ["w"],
        7,
    ],
)
def test_a_damaged_header_of_weights_is_an_error_that_names_the_file(header: object) -> None:
    with pytest.raises(DataError, match=r"^w\.safetensors: "):
        tensor_digests(safetensors(header), "w.safetensors")
