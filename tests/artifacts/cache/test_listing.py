"""Do `maskmill cache ls | show | verify | compact | rm` tell the truth and lose nothing?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from artifacts import keys
from artifacts.cache import atomic, chunks, sealed, segments
from artifacts.cache import compact as cache_compact
from artifacts.cache import listing as cache
from artifacts.cache.runs import RunFolder
from artifacts.cache.segments import Segment
from artifacts.cache.store import CorruptSegment, MaskStore, StoreError
from artifacts.records import Skip

A, B = "grabcut-0123", "cfs-predict-4567"
Everything = dict[tuple[str, str], Any]


def mask(value: int) -> np.ndarray:
    """A label map too large to be packed, whose content depends on ``value``."""
    return np.kron(np.random.default_rng(value).integers(0, 9, (8, 8)), np.ones((12, 12))).astype(np.uint8)


def item(i: int, stamp: str = "s", value: int | None = None) -> Any:
    return f"set/{i}", stamp, {"mask_hw": mask(i if value is None else value), "ids_n": np.arange(3)}


def everything(root: Path, address: str = A) -> Everything:
    """Content of all pairs as a fresh process sees it."""
    store = MaskStore(root)
    return {
        pair: entry.reason if entry.output is None else keys.digest_arrays(store.read(address, *pair))
        for pair, entry in store.entries(address).items()
    }


def damage(store: MaskStore, i: int) -> Path:
    """Flip a bit of the stored mask of ``set/<i>``; returns its segment."""
    path = store.folder(A) / store.entries(A)[f"set/{i}", "s"].segment
    content = Segment(path).content(f"set/{i}", "s")
    assert content is not None
    (chunk,) = content.arrays["mask_hw"].chunks
    data = bytearray(path.read_bytes())
    data[chunk.offset + chunk.size // 2] ^= 1
    path.write_bytes(data)
    return path


@pytest.fixture
def store(tmp_path: Path) -> MaskStore:
    return MaskStore(tmp_path)


@pytest.fixture
def filled(store: MaskStore) -> MaskStore:
    """Two segments of ``A``: set/0..3, then set/3 again, a skip and another stamp of set/0."""
    store.write_segment(A, [item(i) for i in range(4)], meta={"stage": "grabcut", "label": "coarse"})
    second = [item(3, value=33), ("set/9", "s", Skip("set/9", "9.jpg", "truncated")), item(0, "t")]
    store.write_segment(A, second, meta={"stage": "grabcut", "label": "coarse", "version": "2"})
    return store


# -- ls, show --------------------------------------------------------------------------------------------------------


def test_ls_counts_images_entries_skips_and_bytes(filled: MaskStore) -> None:
    filled.write_segment(B, [item(7)], meta={"stage": "cfs-predict", "label": "dense"})
    old = time.time() - 3600
    for path in filled.folder(A).iterdir():
        os.utime(path, (old, old))
    dense, coarse = cache.list_addresses(filled)
    assert (dense.address, dense.label, dense.images) == (B, "dense", 1)
    assert (coarse.stage, coarse.label) == ("grabcut", "coarse")
    assert (coarse.images, coarse.entries, coarse.skipped, coarse.segments, coarse.corrupt) == (5, 6, 1, 2, 0)
    assert coarse.bytes == sum(path.stat().st_size for path in filled.folder(A).iterdir())
    assert coarse.age_s == pytest.approx(3600, abs=60)


def test_ls_of_nothing(store: MaskStore) -> None:
    assert cache.list_addresses(store) == []


class Listed(list[os.DirEntry[str]]):
    """Of a folder in which a writer gives its file the final name once it has been listed."""

    def __init__(self, folder: Path, scandir: Callable[[Path], Any]) -> None:
        (folder / ".maskmill-tmp-1-2").write_bytes(b"x")
        with scandir(folder) as found:
            super().__init__(found)
        (folder / ".maskmill-tmp-1-2").unlink()

    def __enter__(self) -> Listed:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_file_that_is_renamed_meanwhile_is_no_error(filled: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scandir = filled.folder(A), os.scandir
    segments, size = cache.address_info(filled, A).segments, cache.address_info(filled, A).bytes
    monkeypatch.setattr(os, "scandir", lambda path: Listed(path, scandir) if path == folder else scandir(path))
    found = cache.address_info(filled, A)
    assert (found.segments, found.bytes) == cache_compact._usage(folder) == (segments, size)


def test_show_tells_meta_arrays_entries_and_runs(filled: MaskStore) -> None:
    for run, address in (("20260101-000000-cfs-ab", A), ("20260102-000000-cfs-cd", B)):
        folder = filled.root / "runs" / run
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(sealed.seal({"stages": [{"label": "x", "address": address}]}))
    shown = cache.show(filled, A)
    assert shown.meta == {"stage": "grabcut", "label": "coarse", "version": "2"}
    assert shown.codec == segments.best_codec()
    assert shown.arrays == {"ids_n": "int64 (3,)", "mask_hw": "uint8 (96, 96)"}
    assert [(e.key, e.stamp) for e in shown.entries][:2] == [("set/0", "s"), ("set/0", "t")]
    assert shown.runs == ("20260101-000000-cfs-ab",)


def test_an_address_is_named_by_its_beginning_or_its_label(filled: MaskStore) -> None:
    filled.write_segment(B, [item(7)], meta={"label": "dense"})
    assert cache.resolve_all(filled, ["grab", "dense", A]) == ([A, B], [])
    assert cache.vague(filled, ["grab", "dense", A]) == ["grab"]
    run = RunFolder.create(filled.root, "cfs")
    run.write_manifest({"stages": [{"label": "student", "address": B}, {"label": "shared", "address": A}]})
    assert cache.resolve_all(filled, ["student", "shared"]) == ([B, A], []), "labels of later runs, too"
    for name in ("", " ", "\t"):
        with pytest.raises(StoreError, match="an empty name means nothing"):
            cache.resolve_all(filled, [A, name])
    with pytest.raises(StoreError, match=rf"begins with 'crf' and no stage is labelled so; known: {B}, {A}"):
        cache.resolve_all(filled, ["crf"])


def test_a_picture_shows_the_newest_map_in_the_given_colours(filled: MaskStore, tmp_path: Path) -> None:
    palette = [(i, 255 - i, 7) for i in range(256)]
    assert cache.save_picture(filled, A, "set/3", tmp_path / "3.png", palette) == "mask_hw"
    with Image.open(tmp_path / "3.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), mask(33))
        assert picture.convert("RGB").getpixel((0, 0)) == palette[mask(33)[0, 0]]
    with pytest.raises(StoreError, match="no arrays of 'set/9'"):
        cache.save_picture(filled, A, "set/9", tmp_path / "9.png", palette)


# -- verify ----------------------------------------------------------------------------------------------------------


def test_a_sound_cache_is_found_sound_and_progress_is_told(filled: MaskStore) -> None:
    steps: list[tuple[str, int, int]] = []
    report = cache.verify(filled, progress=lambda *step: steps.append(step))
    assert report.ok and (report.segments, report.images, report.problems) == (2, 7, ())
    assert steps == [(A, 0, 2), (A, 1, 2), (A, 2, 2)]


def test_verify_names_what_is_damaged_and_touches_nothing(filled: MaskStore) -> None:
    path = damage(filled, 1)
    before = {p: p.read_bytes() for p in filled.folder(A).iterdir()}
    report = cache.verify(filled)
    assert not report.ok
    assert [(p.segment, p.key) for p in report.problems] == [(path, "set/1")]
    assert "checksum of array mask_hw" in report.problems[0].what
    assert {p: p.read_bytes() for p in filled.folder(A).iterdir()} == before


def test_repair_costs_the_damaged_image_and_no_other(filled: MaskStore) -> None:
    before = everything(filled.root)
    path = damage(filled, 1)
    report = cache.verify(filled, repair=True)
    assert report.ok and report.saved == 3
    assert [aside.name for aside in report.quarantined] == [f"{path.name}.corrupt"]
    del before["set/1", "s"]
    assert everything(filled.root) == before, "set/3 is still the newer segment's"
    assert ("set/1", "s") not in filled.entries(A)
    assert cache.verify(filled).problems == ()
    assert cache.list_addresses(filled)[0].corrupt == 1


@pytest.mark.parametrize("content", [b"", b"no HDF5"])
def test_repair_puts_a_segment_aside_that_cannot_be_opened(filled: MaskStore, content: bytes) -> None:
    path = filled.folder(A) / filled.entries(A)["set/1", "s"].segment
    path.write_bytes(content)
    report = cache.verify(filled, repair=True)
    assert report.ok and report.saved == 0 and len(report.quarantined) == 1
    assert set(everything(filled.root)) == {("set/3", "s"), ("set/9", "s"), ("set/0", "t")}


def test_verify_sees_arrays_that_are_not_what_their_digest_says(
    store: MaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments.keys, "digest_arrays", lambda arrays: "0" * 32)
    store.write_segment(A, [item(0)], meta={})
    monkeypatch.undo()
    (problem,) = cache.verify(store).problems
    assert (problem.key, problem.what) == ("set/0", "the arrays' digest differs")


def test_verify_sees_damage_to_hdf5_itself_and_repair_mends_it_without_loss(filled: MaskStore) -> None:
    """Reads go by index and footer and would not notice; plain h5py would."""
    before = everything(filled.root)
    path = filled.folder(A) / filled.entries(A)["set/1", "s"].segment
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF  # in HDF5's superblock
    path.write_bytes(data)
    assert everything(filled.root) == before
    (problem,) = cache.verify(filled).problems
    assert "plain HDF5 cannot open it" in problem.what
    report = cache.verify(filled, repair=True)
    assert report.ok and report.saved == 4
    assert everything(filled.root) == before
    assert cache.verify(filled).problems == ()


def test_what_cannot_be_judged_is_told_and_left_alone(store: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    MaskStore(store.root, codec="zstd").write_segment(A, [item(0)], meta={})
    monkeypatch.setattr(chunks, "zstd_at_hand", lambda: False)
    report = cache.verify(store, repair=True)
    assert not report.ok and not report.quarantined
    assert "hdf5plugin" in report.problems[0].what and not report.problems[0].damaged
    monkeypatch.undo()
    assert len(everything(store.root)) == 1


def test_repair_mends_a_wrong_index_and_sweeps_what_killed_writers_left(filled: MaskStore) -> None:
    first, second = sorted(filled.folder(A).glob("*.idx"))
    good = first.read_bytes()
    first.unlink()
    second.write_bytes(b"rubbish")
    left = filled.folder(A) / ".maskmill-tmp-999999999-0123456789ab"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    report = cache.verify(filled, repair=True)
    assert (report.indexes, report.swept) == (2, 1)
    assert first.read_bytes() == good and not left.exists()


# -- compact ---------------------------------------------------------------------------------------------------------

WRITES = st.lists(
    st.dictionaries(st.tuples(st.integers(0, 5), st.sampled_from("st")), st.integers(0, 9), min_size=1, max_size=4),
    min_size=1,
    max_size=7,
)


@settings(max_examples=10, deadline=None)
@given(WRITES, st.integers(1, 6))
def test_compaction_keeps_every_pair_and_its_newest_content(
    tmp_path_factory: Any, writes: list[dict[tuple[int, str], int]], full: int
) -> None:
    """Any history of writes, skips (value 0) and overwrites; segments of any size."""
    root = tmp_path_factory.mktemp("cache")
    store = MaskStore(root)
    for write in writes:
        items = [
            (f"set/{i}", stamp, Skip("", "", "no")) if value == 0 else item(i, stamp, value)
            for (i, stamp), value in write.items()
        ]
        store.write_segment(A, items, meta={})
    before = everything(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_compact, "FULL_SEGMENT", full)
        report = cache.compact(store)
        again = cache.compact(store)
    assert everything(root) == before
    assert report.entries == len(before) and report.segments_after <= report.segments_before
    assert again.segments_after <= report.segments_after
    stored = [
        pair for path in store.folder(A).glob("*.h5") for c in Segment(path).contents for pair in [(c.key, c.stamp)]
    ]
    assert sorted(stored) == sorted(before), "nothing is stored twice"
    assert {(e.key, e.stamp): e.segment for e in store.entries(A).values()} == {
        (e.key, e.stamp): e.segment for e in MaskStore(root).entries(A).values()
    }


def test_a_hundred_small_segments_become_two(store: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # speed
    for i in range(100):
        store.write_segment(A, [item(i)], meta={"label": f"run {i}"})
    before = everything(store.root)
    reader = MaskStore(store.root)
    for pair in reader.entries(A):
        reader.read(A, *pair)
    report = cache.compact(store)
    assert (report.segments_before, report.segments_after, report.entries) == (100, 2, 100)
    assert report.bytes_after < report.bytes_before / 3
    assert everything(store.root) == before
    for i in range(100):  # whose index still names the old segments
        np.testing.assert_array_equal(reader.read(A, f"set/{i}", "s")["mask_hw"], mask(i))
    assert cache.show(store, A).meta == {"label": "run 99"}


def test_full_segments_are_left_as_they_are(store: MaskStore) -> None:
    store.write_segment(A, [item(i) for i in range(64)], meta={})
    store.write_segment(A, [item(64)], meta={})
    before = {path: path.stat().st_mtime_ns for path in store.folder(A).iterdir()}
    cache.compact(store)
    assert {path: path.stat().st_mtime_ns for path in store.folder(A).iterdir()} == before


def test_what_is_written_during_a_compaction_is_kept_and_wins(
    filled: MaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(filled.root)
    plan = cache_compact.plan_merges

    def plan_then_write(folder: Path, *drop: Any) -> Any:
        groups = plan(folder, *drop)
        MaskStore(filled.root).write_segment(A, [item(3, value=99), item(50)], meta={})
        return groups

    monkeypatch.setattr(cache_compact, "plan_merges", plan_then_write)
    cache.compact(filled)
    new = {(key, stamp): keys.digest_arrays(arrays) for key, stamp, arrays in (item(3, value=99), item(50))}
    assert everything(filled.root) == before | new


def test_a_damaged_segment_is_told_and_left_for_repair(filled: MaskStore) -> None:
    path = damage(filled, 1)
    report = cache.compact(filled)
    assert [(problem.segment, problem.key) for problem in report.problems] == [(path, "set/1")]
    assert path.exists() and len(filled.entries(A)) == 6
    with pytest.raises(CorruptSegment):
        filled.read(A, "set/1", "s")


def test_compaction_removes_what_was_put_aside_and_indexes_without_a_segment(filled: MaskStore) -> None:
    damage(filled, 1)
    cache.verify(filled, repair=True)
    stray = filled.folder(A) / "00000077-ab.idx"
    stray.write_bytes(b"x")
    before = everything(filled.root)
    assert cache.compact(filled).swept == 2
    assert not list(filled.folder(A).glob("*.corrupt")) and not stray.exists()
    assert everything(filled.root) == before


def killed(work: Callable[[], object]) -> bool:
    """Do ``work`` in a forked child; whether it died by SIGKILL."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.kills
@pytest.mark.parametrize("point", [*(p for p in atomic.KILL_POINTS if p.startswith("store.")), "between removals"])
def test_a_kill_during_compaction_loses_nothing(filled: MaskStore, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(filled.root)
    discard = MaskStore.discard

    def discard_then_die(self: MaskStore, address: str, name: str) -> None:
        discard(self, address, name)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setenv("MASKMILL_KILL_AT", point)
        patch.setattr(atomic, "_arrivals", {})
        if point == "between removals":
            patch.setattr(MaskStore, "discard", discard_then_die)
        assert killed(lambda: cache.compact(filled))
    assert everything(filled.root) == before
    report = cache.compact(filled)
    assert everything(filled.root) == before
    assert report.segments_after == 1


def test_a_readonly_cache_is_not_compacted(filled: MaskStore) -> None:
    before = everything(filled.root)
    with pytest.raises(StoreError, match="read-only"):
        cache.compact(MaskStore(filled.root, readonly=True))
    assert everything(filled.root) == before


# -- rm --------------------------------------------------------------------------------------------------------------


def test_rm_first_tells_and_then_removes_that_address_and_no_other(filled: MaskStore) -> None:
    filled.write_segment(B, [item(7)], meta={})
    planned = cache.remove(filled, [A], dry_run=True)
    assert not planned.removed and planned.bytes == cache.address_info(filled, A).bytes
    assert len(everything(filled.root)) == 6
    done = cache.remove(filled, [A])
    assert done.removed and [info.address for info in done.addresses] == [A]
    assert filled.addresses() == [B] and dict(filled.entries(A)) == {}
    assert [path.name for path in (filled.root / "maps").iterdir()] == [B]
    filled.write_segment(A, [item(1)], meta={})
    assert set(everything(filled.root)) == {("set/1", "s")}


def test_rm_of_a_readonly_cache_is_refused(filled: MaskStore) -> None:
    with pytest.raises(StoreError, match="read-only"):
        cache.remove(MaskStore(filled.root, readonly=True), [A])
    assert filled.addresses() == [A]


@pytest.mark.kills
def test_a_kill_during_rm_leaves_no_half_address(filled: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "rmtree", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        assert killed(lambda: cache.remove(filled, [A]))
    fresh = MaskStore(filled.root)
    assert fresh.addresses() == [] and dict(fresh.entries(A)) == {}
