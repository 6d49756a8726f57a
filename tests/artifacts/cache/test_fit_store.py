"""Fits on disk: what a result is called, that it appears whole or not at all, and what a kill leaves."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from artifacts.cache import fit_store as fits
from artifacts.cache import fit_work, sealed
from artifacts.cache.fit_store import Difference, FitStore, Publication
from artifacts.cache.fit_work import Work
from artifacts.cache.store import StoreError
from artifacts.records import DataError

ADDRESS, STAMP = "deeplab-0123", "abcd"
WEIGHTS: dict[str, Any] = {
    "a.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.b": np.ones(3, np.int64),
    "b.w": np.zeros(2),
}
MEMBERS = [("d/2", "y"), ("d/1", "x")]


@pytest.fixture
def store(tmp_path: Path) -> FitStore:
    return FitStore(tmp_path)


def publish(store: FitStore, *, stamp: str = STAMP, factor: float = 1.0, **more: Any) -> Publication:
    weights = {name: (array * factor).astype(array.dtype) for name, array in WEIGHTS.items()}
    return store.publish(ADDRESS, stamp, save(weights), members=MEMBERS, **more)


def digest(tensors: dict[str, np.ndarray[Any, Any]]) -> str:
    return fits.digest_of(fits.tensor_digests(save(tensors)))


# -- digests ---------------------------------------------------------------------------------------------------------

arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int64, np.uint8]),
    hnp.array_shapes(min_dims=0, max_dims=2, max_side=3),
    elements=st.integers(0, 3),
)
tensors = st.dictionaries(st.sampled_from(["a.w", "a.b", "b.w", "c"]), arrays, max_size=3)


@given(tensors, tensors)
@settings(max_examples=80, deadline=None)
def test_digests_are_equal_exactly_when_names_dtypes_shapes_and_values_are(
    one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]
) -> None:
    same = one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and one[k].shape == other[k].shape and (one[k] == other[k]).all() for k in one
    )
    assert (digest(one) == digest(other)) == same


def test_the_digest_is_not_the_files() -> None:
    """Order and metadata of the file do not count."""
    backwards = dict(reversed(WEIGHTS.items()))
    data = save(backwards, metadata={"written": "today"})
    assert data != save(WEIGHTS)
    assert fits.digest_of(fits.tensor_digests(data)) == digest(WEIGHTS)


def test_a_network_has_the_same_digest_alone_and_as_a_part() -> None:
    parts = fits.part_digests(fits.tensor_digests(save(WEIGHTS)))
    assert parts == {"a": digest({"w": WEIGHTS["a.w"], "b": WEIGHTS["a.b"]}), "b": digest({"w": WEIGHTS["b.w"]})}


@pytest.mark.parametrize("length", [0, 5, 40, -1])
def test_weights_cut_short_are_named(length: int) -> None:
    data = save(WEIGHTS)[:length]
    with pytest.raises(DataError, match=r"x\.safetensors: .*cut short"):
        fits.tensor_digests(data, "x.safetensors")


# -- publications ----------------------------------------------------------------------------------------------------


def test_a_publication_comes_back_whole(store: FitStore) -> None:
    store.work(ADDRESS, STAMP).save(1, b"state")
    made = publish(store, lineage="l", info={"seed": 3}, files={"metrics.jsonl": b'{"step": 1}\n'})
    found = store.published(ADDRESS, STAMP)
    assert found == made
    assert (found.number, found.digest, found.lineage, found.info) == (1, digest(WEIGHTS), "l", {"seed": 3})
    assert found.members == (("d/1", "x"), ("d/2", "y"))
    assert found.weights.read_bytes() == save(WEIGHTS)
    assert fit_work.read_metrics(found.metrics) == [{"step": 1}]
    found.verify()
    assert sorted(p.name for p in store.folder(ADDRESS, STAMP).iterdir()) == ["pub-0001"], "no work, no leftovers"


def test_nothing_published(store: FitStore) -> None:
    assert store.published(ADDRESS, STAMP) is None
    assert store.last_of_lineage(ADDRESS, "l") is None


def test_a_fit_done_again_is_published_beside_the_first(store: FitStore) -> None:
    first = publish(store)
    assert store.published(ADDRESS, STAMP, newer_than=first.number) is None
    second = publish(store, factor=2.0)
    assert second.number == 2
    assert store.published(ADDRESS, STAMP) == second
    assert store.published(ADDRESS, STAMP, newer_than=1) == second
    assert store.publications(ADDRESS, STAMP) == [first, second]
    assert first.weights.read_bytes() == save(WEIGHTS), "what is published is never touched"
    assert publish(store).digest == first.digest, "the same weights have the same name"


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "cut record", "foreign record", "later format"])
def test_a_damaged_publication_is_left_out(store: FitStore, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    first, second = publish(store), publish(store)
    record = second.path / "publication.json"
    match damage:
        case "cut weights":
            second.weights.write_bytes(second.weights.read_bytes()[:-1])
        case "no weights":
            second.weights.unlink()
        case "cut record":
            record.write_text(record.read_text()[:50])
        case "foreign record":
            record.write_text("[]")
        case "later format":
            record.write_bytes(sealed.seal({**sealed.unseal(record.read_bytes()), "format": 99}))
    with caplog.at_level(logging.WARNING):
        assert store.published(ADDRESS, STAMP) == first
    assert f"{second.path} is left out" in caplog.text


def test_verify_sees_a_flipped_byte(store: FitStore) -> None:
    publication = publish(store)
    data = bytearray(publication.weights.read_bytes())
    data[-1] ^= 1
    publication.weights.write_bytes(data)
    assert store.published(ADDRESS, STAMP) is not None, "the cheap look does not read weights"
    with pytest.raises(DataError, match=r"weights\.safetensors: the tensors are not those that were published"):
        publication.verify()


def test_the_last_of_a_lineage_whatever_its_stamp(store: FitStore) -> None:
    publish(store, stamp="1", lineage="l")
    last = publish(store, stamp="0", lineage="l")
    publish(store, stamp="2", lineage="other")
    assert store.last_of_lineage(ADDRESS, "l") == last


def test_a_younger_one_that_cannot_be_read_may_be_the_last(store: FitStore) -> None:
    older = publish(store, stamp="0", lineage="l")
    damaged = publish(store, stamp="1", lineage="l")
    (damaged.path / "publication.json").write_text("[]")
    for age_s, found in ((60, older), (-60, damaged.path)):
        os.utime(damaged.path, 2 * (older.published - age_s,))
        assert store.last_of_lineage(ADDRESS, "l") == found
    last = publish(store, stamp="2", lineage="l")
    os.utime(damaged.path, 2 * (last.published - 1,))
    assert store.last_of_lineage(ADDRESS, "l") == last, "one fit later it does not matter any more"


@pytest.mark.parametrize(
    ("current", "expected", "share"),
    [
        (MEMBERS, (2, 0, 0, 0), 0),
        ([("d/1", "x")], (1, 0, 0, 1), 0.5),
        ([*MEMBERS, ("d/3", "z"), ("d/4", "z")], (2, 2, 0, 0), 1),
        ([("d/1", "changed"), ("d/2", "y")], (1, 0, 1, 0), 0.5),
        ([("d/1", "x"), ("d/9", "y")], (1, 1, 0, 1), 1),
        ([], (0, 0, 0, 2), 1),
    ],
)
def test_how_a_list_differs_from_that_of_a_fit(
    store: FitStore, current: list[tuple[str, str]], expected: tuple[int, ...], share: float
) -> None:
    found = Difference.between(publish(store), current)
    assert (found.same, found.new, found.changed, found.removed) == expected
    assert (found.share, found.now, found.trained_on) == (share, len(current), 2)


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "work")


def test_the_newest_checkpoint_is_loaded_and_two_are_kept(work: Work) -> None:
    assert work.load() is None
    for step in (5, 10, 1000):
        work.save(step, f"state {step}".encode())
    assert work.load() == (1000, b"state 1000")
    assert [path.name for path in work.checkpoints()] == ["step-000000010.ckpt", "step-000001000.ckpt"]


@pytest.mark.parametrize("damage", ["cut short", "flipped byte", "empty", "something else"])
def test_a_damaged_checkpoint_costs_a_warning_and_the_steps_since_the_last(
    work: Work, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    work.save(5, b"a good state")
    path = work.save(10, b"a bad state")
    data = bytearray(path.read_bytes())
    match damage:
        case "cut short":
            del data[-4:]
        case "flipped byte":
            data[-2] ^= 8
        case "empty":
            data.clear()
        case "something else":
            data[:] = b"PK\x03\x04 an archive of torch"
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert work.load() == (5, b"a good state")
    assert "step-000000010.ckpt" in caplog.text
    assert "the checkpoint before it is used" in caplog.text
    (work.path / "step-000000005.ckpt").write_bytes(b"")
    assert work.load() is None, "all damaged: from the start"


def test_a_checkpoint_that_cannot_be_read_now_is_left_alone(
    work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [work.save(step, f"state {step}".encode()) for step in (5, 10)]
    sick = {paths[1]}
    read = Path.read_bytes

    def reading(path: Path) -> bytes:
        if path in sick:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", reading)
        assert work.load() == (5, b"state 5")
        assert "step-000000010.ckpt: [Errno 5] Input/output error" in caplog.text
        sick.add(paths[0])
        with pytest.raises(StoreError, match=r"step-000000010\.ckpt cannot be read \(Input/output error\); run again"):
            work.load()
    assert work.load() == (10, b"state 10")


def test_metrics_are_cut_back_to_the_checkpoint(work: Work) -> None:
    for step in (10, 20, 30):
        work.append_metrics({"step": step, "loss": 1 / step})
    with open(work.metrics, "a") as file:
        file.write('{"step": 40, "lo')
    work.cut_metrics(20)
    assert [line["step"] for line in fit_work.read_metrics(work.metrics)] == [10, 20]
    work.append_metrics({"step": 30, "loss": 2.0})
    assert [line["step"] for line in fit_work.read_metrics(work.metrics)] == [10, 20, 30]
    work.cut_metrics(0)
    assert work.metrics.read_text() == ""


# -- kills -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save
from artifacts.cache.fit_store import FitStore
store = FitStore(Path(sys.argv[1]))
with store.lock("deeplab-0123", "abcd"):
    work = store.work("deeplab-0123", "abcd")
    work.save(1, b"1" * 100000)
    work.save(2, b"2" * 100000)
    store.publish("deeplab-0123", "abcd", save({"w": np.zeros(3)}), members=[])
"""


@pytest.mark.parametrize(
    ("point", "step", "left"),
    [("fit.mid_checkpoint", None, b""), ("fit.mid_checkpoint:2", 1, b"1"), ("fit.mid_publish", 2, b"2")],
)
def test_a_kill_leaves_the_state_before_and_nothing_half(
    store: FitStore, tmp_path: Path, point: str, step: int | None, left: bytes
) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], env={**os.environ, "MASKMILL_KILL_AT": point})
    assert done.returncode == -signal.SIGKILL
    folder = store.folder(ADDRESS, STAMP)
    assert list(folder.rglob(".maskmill-tmp-*")), "the kill came too early or too late to show anything"
    assert store.published(ADDRESS, STAMP) is None
    with store.lock(ADDRESS, STAMP):
        loaded = store.work(ADDRESS, STAMP).load()
        assert loaded == (None if step is None else (step, left * 100000))
        publish(store)
    assert not list(folder.rglob(".maskmill-tmp-*")), "leftovers are swept by the next writer"
