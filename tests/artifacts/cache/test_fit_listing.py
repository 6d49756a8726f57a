"""Fits in `maskmill cache`: listed as they are, and only unused ones are removed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from artifacts.cache import listing as cache
from artifacts.cache import locks
from artifacts.cache.fit_listing import STALE_S, FitInfo
from artifacts.cache.fit_store import FitStore, Publication
from artifacts.cache.runs import RunFolder
from artifacts.cache.store import MaskStore, StoreError

A = "deeplab-0123"


def publish(root: Path, stamp: str = "s1", value: float = 1.0, address: str = A, label: str = "deeplab") -> Publication:
    weights = save({"w": np.full(50, value)})
    return FitStore(root).publish(address, stamp, weights, members=[("d/1", "x")], info={"label": label})


def checkpoint(root: Path, stamp: str = "s1", age_s: float = 0.0) -> Path:
    path = FitStore(root).work(A, stamp).save(7, b"state" * 100)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def one(root: Path) -> FitInfo:
    (found,) = cache.list_fits(root)
    return found


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root / "fits").as_posix() for path in (root / "fits").glob("*/*/*"))


def damage(publication: Publication) -> None:
    data = bytearray(publication.weights.read_bytes())
    data[-1] ^= 1
    publication.weights.write_bytes(data)


def test_what_there_is(tmp_path: Path) -> None:
    assert cache.list_fits(tmp_path) == []
    publish(tmp_path)
    publish(tmp_path, value=2.0)
    path = checkpoint(tmp_path, "s2")
    with FitStore(tmp_path).lock(A, "s3"):
        """Begun, and nothing written."""
    unfinished, done = cache.list_fits(tmp_path)
    assert (done.name, done.label, len(done.publications), done.work_bytes) == (f"{A}/s1", "deeplab", 2, 0)
    assert done.bytes == sum(file.stat().st_size for file in done.folder.rglob("*") if file.is_file())
    assert (unfinished.name, unfinished.publications) == (f"{A}/s2", ())
    assert unfinished.work_bytes == unfinished.bytes == path.stat().st_size
    assert not unfinished.stale_work


def test_verify_reads_the_weights(tmp_path: Path) -> None:
    publish(tmp_path)
    assert cache.verify_fits(cache.list_fits(tmp_path)) == (1, [])
    second, third = publish(tmp_path), publish(tmp_path)
    damage(second)
    (third.path / "publication.json").unlink()
    sound, problems = cache.verify_fits(cache.list_fits(tmp_path))
    assert sound == 1
    assert [(problem.segment, problem.what.partition(";")[0]) for problem in problems] == [
        (second.weights, "the tensors are not those that were published"),
        (third.path, "not a whole publication"),
    ]


def test_names_mean_labels_first_and_beginnings_last(tmp_path: Path) -> None:
    store = MaskStore(tmp_path)
    store.write_segment("deeplab-predict-4", [("d/1", "s", {"mask_hw": np.ones((9, 9), np.uint8)})], meta={})
    publish(tmp_path)
    publish(tmp_path, "s2")

    def meant(*wanted: str) -> tuple[list[str], list[str]]:
        maps, fits = cache.resolve_all(store, wanted)
        return maps, sorted(fit.name for fit in fits)

    assert meant("deeplab") == ([], [f"{A}/s1", f"{A}/s2"])
    assert meant(f"{A}/s2") == ([], [f"{A}/s2"])
    assert meant("deepl") == (["deeplab-predict-4"], [f"{A}/s1", f"{A}/s2"])
    assert meant("deeplab-p", f"{A}/s1", A) == (["deeplab-predict-4"], [f"{A}/s1", f"{A}/s2"])
    with pytest.raises(StoreError, match=f"no address begins with 'x'.*known: deeplab-predict-4, {A}$"):
        meant("deeplab", "x")


def test_remove_takes_the_fit_names_its_runs_and_leaves_the_lock(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path, "s2")
    checkpoint(tmp_path, "s2")
    for stamp in ("s1", "s2"):
        run = RunFolder.create(tmp_path, "cfs")
        run.write_manifest({"stages": [{"label": "deeplab", "address": A, "stamps": stamp}]})
    _, fits = cache.resolve_all(MaskStore(tmp_path), [f"{A}/s2"])
    with FitStore(tmp_path).lock(A, "s2"):
        """The lock file is there."""
    before = names(tmp_path)
    planned = cache.remove_fits(tmp_path, fits, dry_run=True)
    assert names(tmp_path) == before
    done = cache.remove_fits(tmp_path, fits)
    assert (done.runs, done.publications, done.works) == (planned.runs, 1, 1) == ((run.run_id,), 1, 1)
    assert names(tmp_path) == [f"{A}/s1/pub-0001", f"{A}/s2/lock"]
    assert one(tmp_path).stamp == "s1"
    assert FitStore(tmp_path).published(A, "s2") is None


def test_what_somebody_is_at_is_left_alone(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path)
    checkpoint(tmp_path, age_s=2 * STALE_S)
    before = names(tmp_path)
    with locks.hold(tmp_path / "fits" / A / "s1" / "lock"):
        assert cache.remove_fits(tmp_path, [one(tmp_path)]).busy == (f"{A}/s1",)
        assert cache.compact_fits(tmp_path, [one(tmp_path)]).busy == (f"{A}/s1",)
    assert names(tmp_path) == [f"{A}/s1/lock", *before]


def test_compact_leaves_what_a_run_that_works_now_may_read(tmp_path: Path) -> None:
    """It looked when the first publication was the newest."""
    publish(tmp_path)
    run = RunFolder.create(tmp_path, "cfs")
    with locks.hold(run.lock):
        publish(tmp_path)
        for plan in ([], [{"address": "other"}, {"address": A}]):
            run.write_progress({"plan": plan})
            done = cache.compact_fits(tmp_path, cache.list_fits(tmp_path))
            assert (done.busy, done.publications) == ((f"{A}/s1",), 0)
        run.write_progress({"plan": [{"address": "other"}]})
        assert cache.compact_fits(tmp_path, cache.list_fits(tmp_path)).publications == 1


def test_compact_keeps_the_newest_sound_publication_of_each_stamp(tmp_path: Path) -> None:
    for stamp in ("s1", "s1", "s1", "s2"):
        last = publish(tmp_path, stamp)
    size = one_size(tmp_path)
    done = cache.compact_fits(tmp_path, cache.list_fits(tmp_path))
    assert (done.publications, done.works, done.bytes) == (2, 0, size - one_size(tmp_path))
    assert names(tmp_path) == [f"{A}/s1/lock", f"{A}/s1/pub-0003", f"{A}/s2/pub-0001"]
    assert last.weights.exists()
    damage(publish(tmp_path))
    assert cache.compact_fits(tmp_path, cache.list_fits(tmp_path)).publications == 0, "the older one is the sound one"


def one_size(root: Path) -> int:
    return sum(info.bytes for info in cache.list_fits(root))


@pytest.mark.parametrize(
    ("published", "age_s", "goes"),
    [(False, 60.0, False), (False, STALE_S + 60, True), (True, 60.0, True), (True, -60.0, False)],
)
def test_only_an_abandoned_checkpoint_goes(tmp_path: Path, published: bool, age_s: float, goes: bool) -> None:
    """Of an interrupted fit, hours of work; beside a publication that is newer, nothing."""
    if published:
        publish(tmp_path)
    path = checkpoint(tmp_path, age_s=age_s)
    assert one(tmp_path).stale_work == goes
    assert cache.compact_fits(tmp_path, cache.list_fits(tmp_path)).works == int(goes)
    assert path.exists() != goes
    assert (FitStore(tmp_path).published(A, "s1") is not None) == published


def test_an_unreadable_manifest_names_nothing(tmp_path: Path) -> None:
    publish(tmp_path)
    run = RunFolder.create(tmp_path, "cfs")
    (run.path / "manifest.json").write_text(json.dumps({"stages": []})[:5])
    assert cache.remove_fits(tmp_path, [one(tmp_path)]).runs == ()
