"""Does the cache keep what it was given, whoever writes, dies, or damages a file meanwhile?"""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import keys
from artifacts.cache import atomic, sealed, segment_index
from artifacts.cache import store as store_module
from artifacts.cache.store import CorruptSegment, Entry, MaskStore, MissingEntry, StoreError
from artifacts.records import Skip

A = "grabcut-0123"


def mask(value: int, side: int = 96) -> np.ndarray:
    """A label map too large to be packed, whose content depends on ``value``."""
    return np.kron(np.random.default_rng(value).integers(0, 9, (8, 8)), np.ones((side // 8,) * 2)).astype(np.uint8)


def item(i: int, stamp: str = "s") -> Any:
    return f"set/{i}", stamp, {"mask_hw": mask(i), "ids_n": np.arange(i % 4)}


def files(store: MaskStore, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in store.folder(A).glob(pattern))


def segment_of(store: MaskStore, i: int = 0) -> Path:
    return store.folder(A) / store.entries(A)[f"set/{i}", "s"].segment


def flip_in_mask(path: Path, i: int) -> None:
    """Flip a bit in the stored bytes of entry ``i``'s mask."""
    import h5py
    import hdf5plugin  # noqa: F401

    with h5py.File(path) as file:
        chunk = file[f"arrays/mask_hw/{i}"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> MaskStore:
    return MaskStore(tmp_path)


def assert_whole(store: MaskStore, indices: Any) -> None:
    """Exactly these images are stored, and each reads back as it was written."""
    assert set(store.entries(A)) == {(f"set/{i}", "s") for i in indices}
    for i in indices:
        arrays = store.read(A, f"set/{i}", "s")
        np.testing.assert_array_equal(arrays["mask_hw"], mask(i))
        assert arrays["ids_n"].tolist() == list(range(i % 4))


# -- what goes in comes out ------------------------------------------------------------------------------------------


def test_another_process_finds_what_was_written(store: MaskStore) -> None:
    entries = store.write_segment(A, [item(i) for i in range(5)], meta={"stage": "grabcut"})
    assert [entry.key for entry in entries] == [f"set/{i}" for i in range(5)]
    assert entries[2].output == keys.digest_arrays(item(2)[2])
    fresh = MaskStore(store.root)
    assert dict(fresh.entries(A)) == {(e.key, e.stamp): e for e in entries}
    assert_whole(fresh, range(5))
    assert list(fresh.read(A, "set/3", "s", ["ids_n"])) == ["ids_n"]
    assert fresh.addresses() == [A]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(max_size=5)), min_size=1, max_size=6, unique=True))
def test_any_text_is_a_key(tmp_path_factory: Any, pairs: list[tuple[str, str]]) -> None:
    root = tmp_path_factory.mktemp("keys")
    items = [(key, stamp, {"n": np.array([i])}) for i, (key, stamp) in enumerate(pairs)]
    MaskStore(root).write_segment(A, items, meta={})
    for path in (root / "maps" / A).glob("*.idx"):
        with_index = dict(MaskStore(root).entries(A))
        path.unlink()
        assert dict(MaskStore(root).entries(A)) == with_index
    for i, (key, stamp) in enumerate(pairs):
        assert MaskStore(root).read(A, key, stamp)["n"].tolist() == [i]


def test_a_key_from_an_undecodable_file_name_is_kept(store: MaskStore) -> None:
    key = os.fsdecode(b"set/\xff\xfe.jpg")
    store.write_segment(A, [(key, "s", {"n": np.array([1])})], meta={})
    assert MaskStore(store.root).read(A, key, "s")["n"].tolist() == [1]


def test_skips_are_entries_without_arrays(store: MaskStore) -> None:
    store.write_segment(A, [("set/1", "s", Skip("set/1", "1.jpg", "truncated JPEG")), item(2)], meta={})
    entry = MaskStore(store.root).entries(A)["set/1", "s"]
    assert (entry.output, entry.reason) == (None, "truncated JPEG")
    with pytest.raises(MissingEntry, match="set/1 was skipped .truncated JPEG"):
        store.read(A, "set/1", "s")


def test_what_is_not_there_is_missing_and_says_what_to_do(store: MaskStore) -> None:
    assert dict(store.entries(A)) == {}
    store.write_segment(A, [item(1)], meta={})
    with pytest.raises(MissingEntry, match="nothing for set/1 with stamp old; run its stage"):
        store.read(A, "set/1", "old")
    with pytest.raises(MissingEntry, match=r"has arrays \['ids_n', 'mask_hw'\], not \['probs_chw'\]"):
        store.read(A, "set/1", "s", ["probs_chw"])


def test_one_more_image_touches_no_stored_file(store: MaskStore) -> None:
    store.write_segment(A, [item(0), item(1)], meta={})
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.folder(A).iterdir()}
    store.write_segment(A, [item(2)], meta={})
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert_whole(store, range(3))


def test_the_newest_of_two_wins(store: MaskStore) -> None:
    for value in (3, 1, 2):
        store.write_segment(A, [("k", "s", {"n": np.array([value])})], meta={})
        assert store.read(A, "k", "s")["n"] == value
        assert MaskStore(store.root).read(A, "k", "s")["n"] == value
    assert [int(name[:8]) for name in files(store, "*.h5")] == [1, 2, 3]


def test_stamps_live_side_by_side(store: MaskStore) -> None:
    store.write_segment(A, [item(1, "old")], meta={})
    store.write_segment(A, [item(1, "new")], meta={})
    assert set(MaskStore(store.root).entries(A)) == {("set/1", "old"), ("set/1", "new")}


def test_nothing_to_write_writes_nothing(store: MaskStore) -> None:
    assert store.write_segment(A, [], meta={}) == []
    assert not store.root.joinpath("maps").exists()


@pytest.mark.parametrize("address", ["../x", "a/b", "", ".tmp-1", "a b"])
def test_an_address_is_no_path(store: MaskStore, address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        store.write_segment(address, [item(0)], meta={})


def test_the_page_about_the_layout_reads_a_segment(store: MaskStore) -> None:
    page = (Path(__file__).parents[3] / "docs/cache.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    store.write_segment(A, [item(0), ("set/9", "s", Skip("set/9", "", "bad")), item(3), item(2)], meta={})
    found: dict[str, Any] = {"path": store.folder(A) / files(store, "*.h5")[0]}
    exec(snippet, found)
    assert set(found["masks"]) == {(f"set/{i}", name) for i in (0, 2, 3) for name in ("mask_hw", "ids_n")}
    for i in (0, 2, 3):
        np.testing.assert_array_equal(found["masks"][f"set/{i}", "mask_hw"], mask(i))
        assert found["masks"][f"set/{i}", "ids_n"].tolist() == list(range(i % 4))


# -- the index -------------------------------------------------------------------------------------------------------


def test_a_lost_or_damaged_index_is_rebuilt(store: MaskStore) -> None:
    store.write_segment(A, [item(0), ("k", "s", Skip("k", "", "bad"))], meta={"label": "x"})
    before = dict(store.entries(A))
    (path,) = store.folder(A).glob("*.idx")
    good = path.read_bytes()
    for bad in (None, b"", b"{}\n[]", good[:-5], good.replace(b"set/0", b"set/1"), b"\xff" * 99):
        path.unlink()
        if bad is not None:
            path.write_bytes(bad)
        assert dict(MaskStore(store.root).entries(A)) == before
        assert path.read_bytes() == good


def test_a_readonly_store_writes_no_index(store: MaskStore) -> None:
    store.write_segment(A, [item(0)], meta={})
    (path,) = store.folder(A).glob("*.idx")
    path.unlink()
    assert len(MaskStore(store.root, readonly=True).entries(A)) == 1
    assert not path.exists()


def test_listing_opens_no_segment_and_an_unchanged_folder_is_not_listed_again(
    store: MaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        store.write_segment(A, [item(i)], meta={})
    long_ago = time.time() - 60
    os.utime(store.folder(A), (long_ago, long_ago))
    monkeypatch.setattr(store_module, "Segment", None)
    fresh = MaskStore(store.root)
    assert len(fresh.entries(A)) == 3
    monkeypatch.setattr(store_module, "segment_names", None)
    assert len(fresh.entries(A)) == 3


def test_what_others_write_is_seen(store: MaskStore) -> None:
    other = MaskStore(store.root)
    assert len(store.entries(A)) == 0
    for i in range(3):  # each within the folder's clock tick of the one before
        other.write_segment(A, [item(i)], meta={})
        store.refresh(A)
        assert len(store.entries(A)) == i + 1
    other.write_segment(A, [item(3)], meta={})
    assert store.read(A, "set/3", "s")["mask_hw"].shape == (96, 96)


def test_adopted_entries_are_there_without_a_listing(store: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = MaskStore(store.root).write_segment(A, [item(0), item(1)], meta={})
    view = store.entries("other-1")
    monkeypatch.setattr(MaskStore, "_scan", lambda *_: None)
    store.adopt(A, pickle.loads(pickle.dumps(entries)))
    assert_whole(store, range(2))
    store.adopt(A, [Entry("set/0", "s", "00000000-0.h5", "older")])
    assert store.entries(A)["set/0", "s"] == entries[0]
    assert len(view) == 0


# -- processes and threads -------------------------------------------------------------------------------------------


def test_the_store_pickles_as_its_root(store: MaskStore) -> None:
    store.write_segment(A, [item(0)], meta={})
    store.read(A, "set/0", "s")
    assert len(pickle.dumps(store)) < 500
    back = pickle.loads(pickle.dumps(MaskStore(store.root, readonly=True, codec="gzip")))
    assert (back.root, back.readonly, back.codec) == (store.root, True, "gzip")
    assert_whole(back, range(1))


def in_child(work: Callable[[], None]) -> int:
    """Fork, do ``work``, return the exit status of the child (negative: killed by that signal)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_reads_while_the_parent_holds_the_lock(store: MaskStore) -> None:
    store.write_segment(A, [item(i) for i in range(4)], meta={})
    assert_whole(store, range(4))
    store._lock.acquire()  # as another thread of the parent might hold it at the fork
    try:
        assert in_child(lambda: assert_whole(store, range(4))) == 0
    finally:
        store._lock.release()
    assert_whole(store, range(4))


def test_threads_read_at_once_while_few_indexes_are_kept(store: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEPT_SEGMENTS", 2)
    for i in range(6):
        store.write_segment(A, [item(i), item(i + 6)], meta={})
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in np.random.default_rng(seed).integers(0, 12, 60).tolist():
                np.testing.assert_array_equal(store.read(A, f"set/{i}", "s")["mask_hw"], mask(i))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(store._segments) <= 2


def test_threads_write_at_once(store: MaskStore) -> None:
    wrong: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for i in range(first, 16, 4):
                store.write_segment(A, [item(i)], meta={})
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert_whole(store, range(16))


def test_two_processes_write_one_address_at_once(store: MaskStore) -> None:
    def write(first: int) -> None:
        for i in range(first, first + 12):
            MaskStore(store.root).write_segment(A, [item(i)], meta={})

    pid = os.fork()
    if pid == 0:
        write(12)
        os._exit(0)
    write(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert_whole(store, range(24))
    assert_whole(MaskStore(store.root), range(24))


@pytest.mark.kills
@pytest.mark.parametrize("point", [point for point in atomic.KILL_POINTS if point.startswith("store.")])
def test_a_kill_leaves_the_segment_whole_or_absent(
    store: MaskStore, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_segment(A, [item(0)], meta={})
    monkeypatch.setenv("MASKMILL_KILL_AT", point)
    monkeypatch.setattr(atomic, "_arrivals", {})
    assert in_child(lambda: store.write_segment(A, [item(1), item(2)], meta={})) == -signal.SIGKILL
    monkeypatch.delenv("MASKMILL_KILL_AT")
    renamed = point == "store.after_rename"
    assert_whole(MaskStore(store.root), range(3) if renamed else range(1))
    assert len(files(store, ".maskmill-tmp-*")) == (0 if renamed else 1)
    store.write_segment(A, [item(1), item(2)], meta={})
    assert_whole(MaskStore(store.root), range(3))
    atomic.sweep_temporaries(store.folder(A), older_than_s=0)
    assert not files(store, ".maskmill-tmp-*")


# -- damage ----------------------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("this is no HDF5")


@pytest.mark.parametrize("damage", [_truncate, _empty, _text])
@pytest.mark.parametrize("with_index", [True, False])
def test_a_segment_that_cannot_be_opened_counts_as_absent(
    store: MaskStore, damage: Callable[[Path], None], with_index: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_segment(A, [item(0), item(1)], meta={})
    store.write_segment(A, [item(2)], meta={})
    path = segment_of(store)
    damage(path)
    if not with_index:
        path.with_suffix(".idx").unlink()
    fresh = MaskStore(store.root)
    with caplog.at_level(logging.WARNING):
        assert_whole(fresh, [2])
    assert str(path) in caplog.text and "maskmill cache verify --repair" in caplog.text
    fresh.write_segment(A, [item(0), item(1)], meta={})
    assert_whole(fresh, range(3))


def test_a_flipped_byte_names_file_image_and_fix_and_costs_one_image(store: MaskStore) -> None:
    store.write_segment(A, [item(i) for i in range(3)], meta={})
    path = segment_of(store)
    flip_in_mask(path, 1)
    fresh = MaskStore(store.root)
    with pytest.raises(CorruptSegment, match=rf"{path}.*checksum of array mask_hw.*set/1.*verify --repair") as caught:
        fresh.read(A, "set/1", "s")
    assert caught.value.segment == path
    assert fresh.read(A, "set/0", "s") and fresh.read(A, "set/2", "s")


def test_quarantine_makes_the_images_absent_and_the_next_write_mends_it(store: MaskStore) -> None:
    store.write_segment(A, [item(0), item(1)], meta={})
    store.write_segment(A, [item(2)], meta={})
    path = segment_of(store)
    other = MaskStore(store.root)
    assert_whole(other, range(3))
    flip_in_mask(path, 1)
    aside = store.quarantine(path)
    assert aside == path.with_name(f"{path.name}.corrupt") and aside.exists()
    assert not path.exists() and not path.with_suffix(".idx").exists()
    assert_whole(store, [2])
    assert other.quarantine(str(path)) is None, "another worker was faster"
    with pytest.raises(MissingEntry):
        other.read(A, "set/0", "s")
    other.write_segment(A, [item(0), item(1)], meta={})
    assert_whole(other, range(3))
    store.refresh(A)
    assert_whole(store, range(3))


def test_only_segments_of_this_cache_are_put_aside(store: MaskStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no segment of"):
        store.quarantine(tmp_path / "other.h5")


def test_an_older_copy_comes_back_when_the_newest_is_put_aside(store: MaskStore) -> None:
    for value in (1, 2):
        store.write_segment(A, [("k", "s", {"n": np.array([value])})], meta={})
    store.quarantine(store.folder(A) / store.entries(A)["k", "s"].segment)
    assert store.read(A, "k", "s")["n"] == 1


def test_a_reader_follows_a_segment_that_moved(store: MaskStore) -> None:
    """As compaction does: the content lies in a new segment, the old one is gone."""
    store.write_segment(A, [item(0)], meta={})
    reader = MaskStore(store.root)
    old = reader.entries(A)["set/0", "s"].segment
    store.write_segment(A, [item(0)], meta={})
    store.discard(A, old)
    assert_whole(reader, [0])


# -- a cache that cannot be written or read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full: free space"),
        (errno.EROFS, "file system is read-only: name a writable"),
        (errno.EIO, "the disk failed"),
    ],
)
@pytest.mark.parametrize("where", ["write", "fsync", "rename", "mkdir"])
def test_a_write_that_fails_says_what_to_do_and_leaves_nothing(
    store: MaskStore, monkeypatch: pytest.MonkeyPatch, where: str, number: int, advice: str
) -> None:
    store.write_segment(A, [item(0)], meta={})

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    class HalfFile:
        """Takes some bytes, then fails."""

        def __init__(self, *args: Any) -> None:
            self.file = open(*args)  # noqa: SIM115

        def __enter__(self) -> HalfFile:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[:100])
            fail()

    if where == "write":
        monkeypatch.setattr(segment_index, "open", HalfFile, raising=False)
    elif where == "mkdir":
        monkeypatch.setattr(Path, "mkdir", fail)
    else:
        monkeypatch.setattr(segment_index.os, where, fail)
    with pytest.raises(StoreError, match=rf"{re.escape(str(store.folder(A)))} cannot be written: .*{advice}"):
        store.write_segment(A, [item(1)], meta={})
    monkeypatch.undo()
    assert not files(store, ".maskmill-tmp-*")
    assert_whole(MaskStore(store.root), [0])


def test_a_failing_index_is_no_failure(store: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_segment(A, [item(0)], meta={})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(atomic, "write_bytes_atomic", fail)
    store.write_segment(A, [item(1)], meta={})
    assert len(files(store, "*.idx")) == 1
    assert_whole(MaskStore(store.root), [0, 1])


def test_a_store_opened_readonly_refuses_to_write(store: MaskStore) -> None:
    store.write_segment(A, [item(0)], meta={})
    readonly = MaskStore(store.root, readonly=True)
    for refused in (
        lambda: readonly.write_segment(A, [item(1)], meta={}),
        lambda: readonly.quarantine(segment_of(readonly)),
        lambda: readonly.discard(A, segment_of(readonly).name),
    ):
        with pytest.raises(StoreError, match="read-only"):
            refused()
    assert_whole(readonly, [0])


def test_a_forbidden_segment_is_no_damage(store: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_segment(A, [item(0)], meta={})

    def fail(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store_module, "Segment", fail)
    with pytest.raises(StoreError, match="cannot be read: Permission denied; no permission") as caught:
        MaskStore(store.root).read(A, "set/0", "s")
    assert not isinstance(caught.value, CorruptSegment)


def test_the_cache_says_its_format_and_a_newer_one_is_refused(store: MaskStore) -> None:
    store.write_segment(A, [item(0)], meta={})
    path = store.root / "maskmill.json"
    assert json.loads(path.read_text())["format"] == 1
    path.write_bytes(sealed.seal({"format": 2}))
    with pytest.raises(StoreError, match=r"maskmill.json has cache format 2, this Maskmill reads up to 1: update"):
        MaskStore(store.root)
    for damaged in (b"{", sealed.seal({"format": 1}).replace(b": 1", b": 3")):
        path.write_bytes(damaged)
        MaskStore(store.root).write_segment(A, [item(1)], meta={})
        assert (path.with_name("maskmill.json.corrupt").read_bytes(), json.loads(path.read_text())["format"]) == (
            damaged,
            1,
        )
