"""Do manifests and lists of stamps read back, and does a damaged one cost no more than itself?"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from artifacts.cache.atomic import write_text_atomic
from artifacts.cache.runs import (
    RunFolder,
    all_runs,
    find_run,
    last_seconds,
    list_runs,
    named,
    read_stamps,
    run_before,
    write_stamps,
)
from artifacts.records import DataError


def finished(cache: Path, flow: str, like: str, seconds: float, computed: int, **more: object) -> RunFolder:
    run = RunFolder.create(cache, flow)
    stage = {"kind": "map", "label": "cut", "like": like, "computed": computed, "seconds": seconds, "total": 10}
    run.write_manifest({"stages": [{**stage, "amount": 10.0, "stamps": "s", **more}]})
    return run


def test_runs_are_found_by_flow_and_id(tmp_path: Path) -> None:
    one, two = finished(tmp_path, "cfs", "cut", 1, 1), finished(tmp_path, "rrm", "cam", 1, 1)
    assert {run.run_id for run in list_runs(tmp_path)} == {one.run_id, two.run_id}
    assert [run.run_id for run in list_runs(tmp_path, "cfs")] == [one.run_id]
    assert find_run(tmp_path, one.run_id) == one
    with pytest.raises(DataError, match="no run 'nothing'; the newest are"):
        find_run(tmp_path, "nothing")
    with pytest.raises(DataError, match="no run here yet"):
        find_run(tmp_path / "other")


def test_the_latest_of_runs_within_one_second_is_the_one_that_began_last(tmp_path: Path) -> None:
    """Cached runs take less than a second; what comes after them must not read an older one's manifest."""
    runs = []
    for place in range(40):
        runs.append(finished(tmp_path, ("rrm", "cfs")[place % 2], "cut", 1, 1))
        assert find_run(tmp_path) == runs[-1]
    assert list_runs(tmp_path) == all_runs(tmp_path) == runs


def test_a_run_has_the_same_name_everywhere_whether_it_left_a_manifest_or_not(tmp_path: Path) -> None:
    one, two = finished(tmp_path, "cfs", "cut", 1, 1), finished(tmp_path, "cfs", "cut", 1, 1)
    begun = RunFolder.create(tmp_path, "cfs")
    assert [find_run(tmp_path, name) for name in ("last", "last~1", "last~2")] == [begun, two, one]
    assert [named(all_runs(tmp_path), name) for name in ("last", "last~1", "last~2")] == [begun, two, one]
    assert find_run(tmp_path) == two, "the latest that did anything"


def test_estimates_come_from_the_last_run_with_work_and_survive_a_broken_manifest(tmp_path: Path) -> None:
    finished(tmp_path, "cfs", "cut", 8, 4)
    broken = finished(tmp_path, "cfs", "cut", 9, 0)
    (broken.path / "manifest.json").write_text("{")
    assert last_seconds(tmp_path, "cfs") == {"cut": 2.0}
    finished(tmp_path, "cfs", "net", 600, 1, kind="fit", total=1, amount=300.0)
    finished(tmp_path, "cfs", "other", 600, 1, kind="fit", total=1, amount=300.0, stamps="")
    assert last_seconds(tmp_path, "cfs") == {"cut": 2.0, "net": 2.0}, "what was not finished foretells nothing"
    with pytest.raises(DataError, match="no readable manifest"):
        broken.manifest()


def test_equal_stamps_are_stored_once_and_damage_is_seen(tmp_path: Path) -> None:
    stamps = {"set/ü": ("s", "/a.jpg"), "set/b": (None, "/b.jpg")}
    name = write_stamps(tmp_path, stamps)
    assert write_stamps(tmp_path, dict(reversed(stamps.items()))) == name
    assert read_stamps(tmp_path, name) == stamps
    (tmp_path / "stamps" / f"{name}.json").write_text("{}")
    with pytest.raises(DataError, match="does not match its name"):
        read_stamps(tmp_path, name)
    (tmp_path / "stamps" / f"{name}.json").unlink()
    with pytest.raises(DataError, match="gone"):
        read_stamps(tmp_path, name)


def test_a_path_that_is_no_text_is_stored_and_read_back(tmp_path: Path) -> None:
    """File names of an old disk, which Python holds as surrogates."""
    stamps = {"set/a": ("s", os.fsdecode(b"/old-disk-\xe9/a.jpg"))}
    assert read_stamps(tmp_path, write_stamps(tmp_path, stamps)) == stamps
    write_text_atomic(tmp_path / "card.json", json.dumps(stamps, ensure_ascii=False))
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == {"set/a": list(stamps["set/a"])}


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="full or read-only.*--cache"):
        RunFolder.create(tmp_path, "cfs")


def test_the_run_before_is_finished_of_the_same_flow_and_data(tmp_path: Path) -> None:
    made = {
        "20260101-000000-cfs-aaaa": ("finished", "demo"),
        "20260102-000000-cfs-aaaa": ("finished", "demo"),
        "20260103-000000-cfs-aaaa": ("failed", "demo"),
        "20260104-000000-cfs-aaaa": ("finished", "voc:x"),
        "20260105-000000-rrm-aaaa": ("finished", "demo"),
        "20260106-000000-cfs-aaaa": ("finished", "demo"),
    }
    for name, (status, source) in made.items():
        run = RunFolder(tmp_path, name)
        run.path.mkdir(parents=True)
        run.write_manifest({"run": name, "status": status, "recipe": {"data": {"source": source}}})
    last = RunFolder(tmp_path, "20260106-000000-cfs-aaaa")
    found = run_before(last, "cfs", "demo")
    assert found is not None and found["run"] == "20260102-000000-cfs-aaaa"
    assert run_before(last, "cfs", "coco:y") is None
    (tmp_path / "runs" / "20260102-000000-cfs-aaaa" / "manifest.json").write_text("damaged")
    found = run_before(last, "cfs", "demo")
    assert found is not None and found["run"] == "20260101-000000-cfs-aaaa"
