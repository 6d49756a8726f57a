"""Does `maskmill cache gc` remove what no kept run reaches, and nothing else, whenever it is killed?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from artifacts import keys
from artifacts.cache import gc, locks
from artifacts.cache.fit_store import FitStore
from artifacts.cache.reach import choose
from artifacts.cache.runs import IN_USE, RunFolder, all_runs, list_runs, read_stamps, write_pictures, write_stamps
from artifacts.cache.store import MaskStore
from artifacts.cache.verify import verify, verify_records
from artifacts.records import DataError, Skip
from flows.cli.cache_gc import parse_size
from flows.cli.main import main

A, B, NET = "grabcut-0123", "refine-4567", "deeplab-89ab"
OLD, NEW = "20260101-020000-cfs-aaaa", "20260102-020000500000-cfs-bbbb"
"""Names as older versions gave them, by the second, and as they are now."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def arrays(value: int) -> dict[str, np.ndarray]:
    return {"mask_hw": np.full((80, 80), value, np.uint8)}


def write(store: MaskStore, address: str, *items: tuple[int, str]) -> None:
    stored = [(f"d/{i}", stamp, arrays(i)) for i, stamp in items]
    store.write_segment(address, stored, meta={"label": address})


def fit(root: Path, stamp: str, value: float = 1.0) -> None:
    FitStore(root).publish(NET, stamp, save({"w": np.full(9, value)}), members=[])


def stage(root: Path, address: str, stamps: dict[str, str | None]) -> dict[str, Any]:
    name = write_stamps(root, {key: (stamp, f"/{key}.jpg") for key, stamp in stamps.items()})
    return {"label": address, "kind": "map", "address": address, "stamps": name, "computed": 1}


def run_of(root: Path, run_id: str, stages: list[dict[str, Any]], status: str = "finished", **more: Any) -> RunFolder:
    run = RunFolder(root, run_id)
    run.path.mkdir(parents=True)
    run.write_manifest(
        {
            "flow": "cfs",
            "status": status,
            "started": time.time(),
            "stages": stages,
            "recipe": {"data": {"source": "voc:a"}},
            **more,
        }
    )
    return run


def two_nights(root: Path) -> MaskStore:
    """The second night found pictures 0..2 changed, 3 as it was, 4 broken; it refined nothing and fitted again."""
    store = MaskStore(root)
    write(store, A, (0, "s"), (1, "s"), (2, "s"), (3, "s"))
    write(store, B, (0, "s"), (1, "s"))
    fit(root, "old")
    first = {f"d/{i}": "s" for i in range(4)}
    pictures = {"train": write_pictures(root, {"d/0": {"image": "ab"}})}
    fits = [{"label": "net", "kind": "fit", "address": NET, "stamps": name, "computed": 1} for name in ("old", "new")]
    stages = [stage(root, A, first), stage(root, B, {"d/0": "s", "d/1": "s"}), fits[0]]
    (run_of(root, OLD, stages, pictures=pictures).path / "net.log").write_text("loss")
    skip = ("d/4", "t", Skip("d/4", "4.jpg", "truncated"))
    store.write_segment(A, [*((f"d/{i}", "t", arrays(i + 10)) for i in range(3)), skip], meta={"label": A})
    fit(root, "new", 1.0)
    fit(root, "new", 2.0)
    second = {"d/0": "t", "d/1": "t", "d/2": "t", "d/3": "s", "d/4": None}
    run_of(root, NEW, [stage(root, A, second), fits[1]])
    (root / "datasets").mkdir()
    (root / "datasets" / "x.json.corrupt").write_text("rubbish")
    left = root / "maps" / A / ".maskmill-tmp-999999999-0123456789ab"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    return store


def results(root: Path) -> dict[tuple[str, str, str], str | None]:
    """All that a fresh process finds."""
    store = MaskStore(root)
    return {
        (address, *pair): entry.reason if entry.output is None else keys.digest_arrays(store.read(address, *pair))
        for address in store.addresses()
        for pair, entry in store.entries(address).items()
    }


def publications(root: Path) -> list[str]:
    return sorted(path.relative_to(root / "fits" / NET).as_posix() for path in (root / "fits" / NET).glob("*/pub-*"))


REACHED = {(A, f"d/{i}", "t") for i in (0, 1, 2, 4)} | {(A, "d/3", "s")}


def cleaned(root: Path, **rules: Any) -> gc.Cleaned:
    store = MaskStore(root)
    with gc.alone(root):
        return gc.clean(store, gc.find(store, **rules))


def check_clean(root: Path, before: dict[tuple[str, str, str], str | None]) -> None:
    assert results(root) == {name: before[name] for name in REACHED}
    assert publications(root) == ["new/pub-0002"]
    assert [run.run_id for run in all_runs(root)] == [NEW]
    manifest = RunFolder(root, NEW).manifest()
    assert len(read_stamps(root, manifest["stages"][0]["stamps"])) == 5
    assert sorted(path.parent.name for path in root.glob("[sp]*/*.json")) == ["stamps"], "one list, no pictures"
    assert not list(root.glob("datasets/*")) and not list(root.glob("**/.maskmill-tmp-*"))


def test_what_the_kept_run_does_not_reach_goes_and_nothing_else(tmp_path: Path) -> None:
    store = two_nights(tmp_path)
    before = results(tmp_path)
    assert gc.find(store).items and not {i.kind for i in gc.find(store).items} & {"run", "images", "fit"}
    found = gc.find(store, keep_runs=1)
    assert results(tmp_path) == before and len(all_runs(tmp_path)) == 2, "looking changes nothing"
    counts = {kind: (count, images) for kind, (count, images, _) in gc.by_kind(found.items).items()}
    assert counts == {
        "run": (1, 0),
        "images": (2, 5),
        "fit": (1, 0),
        "old publications": (1, 0),
        "file": (5, 0),  # two lists of stamps, one of pictures, a damaged file, a killed writer's
    }
    done = cleaned(tmp_path, keep_runs=1)
    check_clean(tmp_path, before)
    assert done.bytes_after == sum(gc.usage(tmp_path).values()) < found.bytes_before
    assert gc.find(MaskStore(tmp_path), keep_runs=1).items == ()
    assert store.read(A, "d/3", "s")["mask_hw"][0, 0] == 3, "one who had the cache open reads on"


@contextmanager
def dying(at: int) -> Iterator[list[int]]:
    """Within: the process dies at its ``at``-th change of the disk."""
    count = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield count


@pytest.mark.kills
def test_killed_at_any_instant_it_leaves_a_sound_cache_and_the_next_one_ends_the_work(tmp_path: Path) -> None:
    """A kill before each single rename and removal; what a kill leaves aside is swept when it is an hour old."""
    two_nights(tmp_path / "cache")
    before = results(tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "whole")
    with dying(0) as count:
        cleaned(tmp_path / "whole", keep_runs=1)
    assert count[0] > 20
    for at in range(1, count[0] + 1):
        root = tmp_path / f"at-{at}"
        shutil.copytree(tmp_path / "cache", root)
        pid = os.fork()
        if pid == 0:
            with dying(at):
                cleaned(root, keep_runs=1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, at
        left = results(root)
        assert {name: left.get(name) for name in REACHED} == {name: before[name] for name in REACHED}, at
        assert left.items() <= before.items() and "new/pub-0002" in publications(root), at
        assert verify(MaskStore(root)).problems == () and verify_records(root)[1] == [], at
        for run in list_runs(root):
            for one in run.manifest()["stages"]:
                if one["kind"] == "map":
                    names = {(one["address"], key, s) for key, (s, _) in read_stamps(root, one["stamps"]).items() if s}
                    assert names <= left.keys(), (at, "a run without its results")
        for path in root.glob("**/.maskmill-tmp-*"):
            os.utime(path, (0, 0))
        cleaned(root, keep_runs=1)
        check_clean(root, before)
        shutil.rmtree(root)


def test_a_running_flow_keeps_all_that_its_plan_names(tmp_path: Path) -> None:
    two_nights(tmp_path)
    before = results(tmp_path)
    live = RunFolder(tmp_path, "20260103-020000-rrm-cccc")
    live.path.mkdir()
    with locks.hold(live.lock):
        with pytest.raises(DataError, match="this run reads its data or plans.* try again when it works"):
            gc.find(MaskStore(tmp_path), keep_runs=1)
        live.write_progress({"plan": [{"address": A}, {"address": NET}]})
        done = cleaned(tmp_path, keep_runs=1)
        assert done.garbage.live == (live.run_id,)
        assert results(tmp_path) == {name: value for name, value in before.items() if name[0] == A}
        assert publications(tmp_path) == ["new/pub-0001", "new/pub-0002", "old/pub-0001"], "it may have found the first"
        assert len(list((tmp_path / "stamps").iterdir())) == 3, "a list may be there that it is about to name"
    cleaned(tmp_path, keep_runs=1)
    assert live.path.exists(), "killed, and newer than the last good one of its flow: it goes on where it was"
    assert results(tmp_path).keys() == {name for name in before if name[0] == A}
    run_of(tmp_path, "20260104-020000-rrm-dddd", [], flow="rrm")
    cleaned(tmp_path, keep_runs=1)
    assert results(tmp_path).keys() == REACHED, "its flow has come to an end since"


def test_a_run_killed_in_its_first_stage_is_not_judged_by_another_data_set(tmp_path: Path) -> None:
    """It left no manifest. A good end on other data of the same flow says nothing of its checkpoints."""
    two_nights(tmp_path)
    killed = RunFolder(tmp_path, "20260101-010000-cfs-cccc")
    killed.path.mkdir()
    killed.write_progress({"plan": [{"address": NET}], "source": "voc:b", "named": [f"coco:a,runs/{OLD}/bundle"]})
    cleaned(tmp_path, keep_runs=1)
    assert killed.path.exists() and "old/pub-0001" in publications(tmp_path)
    assert not (tmp_path / "runs" / OLD).exists(), "relative, but of no folder"
    killed.write_progress(killed.progress() | {"source": "voc:a"})
    cleaned(tmp_path, keep_runs=1)
    assert publications(tmp_path) == ["new/pub-0002"]


def test_what_a_run_names_before_a_stage_has_ended_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_nights(tmp_path)
    live = RunFolder(tmp_path, "20260103-020000-lpg-cccc")
    live.path.mkdir()
    named = [f"coco:elsewhere,runs/{OLD}/data", f"~/fits/{NET}/old/pub-0001/weights.safetensors"]
    monkeypatch.setenv("HOME", str(tmp_path))
    with locks.hold(live.lock):
        live.write_progress({"plan": [{"address": B}], "named": named, "folder": str(tmp_path)})
        cleaned(tmp_path, keep_runs=1)
    assert (tmp_path / "runs" / OLD / "net.log").exists()
    assert publications(tmp_path) == ["new/pub-0002", "old/pub-0001"]


def test_links_and_folders_of_other_names_are_not_taken_for_runs_or_stages(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    two_nights(root)
    mine, other = root / "runs" / "2026-paper", tmp_path / "other-disk"
    mine.mkdir()
    other.mkdir()
    for place in (root / "maps" / B, root / "runs" / OLD):
        shutil.move(place, other)
        place.symlink_to(other / place.name)
    cleaned(root, keep_runs=1)
    assert mine.exists() and (root / "runs" / OLD / "net.log").exists()
    assert (root / "maps" / B).is_symlink() and not list((other / B).glob("*.h5")), "nothing in it is reached"
    assert results(root).keys() == REACHED


def test_a_fit_beside_which_somebody_put_something_stays(tmp_path: Path) -> None:
    two_nights(tmp_path)
    (tmp_path / "fits" / NET / "old" / "notes.txt").write_text("the one of the paper")
    cleaned(tmp_path, keep_runs=1)
    assert publications(tmp_path) == ["new/pub-0002", "old/pub-0001"]


def test_a_folder_among_the_segments_is_somebodys(tmp_path: Path) -> None:
    two_nights(tmp_path)
    mine = tmp_path / "maps" / B / "00000009-ab.h5.corrupt" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    cleaned(tmp_path, keep_runs=1)
    assert mine.exists() and not list((tmp_path / "maps" / B).glob("*.idx"))


def test_a_fit_that_somebody_does_is_left_alone(tmp_path: Path) -> None:
    two_nights(tmp_path)
    with FitStore(tmp_path).lock(NET, "old"):
        assert cleaned(tmp_path, keep_runs=1).busy == (f"{NET}/old",)
    assert publications(tmp_path) == ["new/pub-0002", "old/pub-0001"]


def test_it_waits_for_whoever_is_about_to_plan(tmp_path: Path) -> None:
    with locks.hold(tmp_path / IN_USE, shared=True):
        with locks.hold(tmp_path / IN_USE, shared=True, wait=False):
            """Two may plan at the same time."""
        assert not locks.held(tmp_path / IN_USE)
        with pytest.raises(locks.LockTaken), locks.hold(tmp_path / IN_USE, wait=False):
            pytest.fail("a clean-up began")
    with gc.alone(tmp_path), pytest.raises(locks.LockTaken):
        assert locks.held(tmp_path / IN_USE)
        with locks.hold(tmp_path / IN_USE, shared=True, wait=False):
            pytest.fail("a run began")


def test_the_runs_of_a_process_that_lives_are_kept(tmp_path: Path) -> None:
    """A comparison has ended its first runs for hours when it draws them."""
    two_nights(tmp_path)
    old = RunFolder(tmp_path, OLD)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            old.write_progress({"process": f"pid {other.pid} on {os.uname().nodename}"})
            cleaned(tmp_path, keep_runs=1)
            assert old.path.exists()
            old.write_progress({"process": f"pid {other.pid} on another-machine"})
            assert [run.run_id for run in choose(all_runs(tmp_path), 1)[1]] == [OLD]
            old.write_progress({"process": f"pid {other.pid} on {os.uname().nodename}"})
        finally:
            other.kill()
    cleaned(tmp_path, keep_runs=1)
    assert not old.path.exists()


def test_a_size_cap_takes_no_masks_of_a_run_that_stays(tmp_path: Path) -> None:
    two_nights(tmp_path)
    for path in (tmp_path / "maps").rglob("*"):
        os.utime(path, (1e9, 1e9))  # older than the run that made them, as always
    whole = gc.find(MaskStore(tmp_path), keep_runs=1)
    found = gc.find(MaskStore(tmp_path), keep_runs=1, max_bytes=whole.bytes_before - 5)  # four are a killed writer's
    assert [item.kind for item in found.items] == ["file", "run"] and found.items[1].name == OLD


def test_which_runs_are_kept(tmp_path: Path) -> None:
    """Nights that failed do not push out the good ones; each flow and data set has its own."""

    def night(
        day: int, status: str = "finished", source: str = "voc:a", flow: str = "cfs", age_days: float = 99
    ) -> str:
        run = f"202601{day:02d}-020000-{flow}-aaaa"
        recipe = {"data": {"source": source}}
        run_of(tmp_path, run, [], status, flow=flow, recipe=recipe, started=time.time() - age_days * 86400)
        return run

    first, second, other = night(1), night(2), night(3, source="voc:b")
    third = night(4, flow="lpg-learn", age_days=3.5)
    failed = [night(day, "failed") for day in (5, 6, 7)]
    killed = RunFolder(tmp_path, "20260108-020000123456-cfs-aaaa")
    killed.path.mkdir()

    def kept(runs: int, days: float | None = None) -> list[str]:
        one, two = choose(all_runs(tmp_path), runs, days)
        assert len(one) + len(two) == 8
        return [run.run.run_id for run in one]

    assert kept(1) == [second, other, third, killed.run_id]
    assert kept(2) == [first, second, other, third, failed[-1], killed.run_id]
    assert kept(1, days=200) == [run.run_id for run in all_runs(tmp_path)]
    whole = {one.run.run_id for one in choose(all_runs(tmp_path), 9)[0] if one.whole}
    assert whole == {*failed, killed.run_id}, "what came after the last good one may be gone on with"
    (RunFolder(tmp_path, first).path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="nobody knows what this run reaches"):
        kept(1)


def test_a_size_cap_takes_the_oldest_first_and_no_more_than_it_must(tmp_path: Path) -> None:
    store = two_nights(tmp_path)
    for number, path in enumerate([tmp_path / "runs" / OLD, tmp_path / "maps" / B, tmp_path / "fits" / NET / "old"]):
        for file in [path, *path.rglob("*")]:
            os.utime(file, (1e9 + number, 1e9 + number))
    whole = gc.find(store, keep_runs=1)
    size = whole.bytes_before
    assert gc.find(store, keep_runs=1, max_bytes=size).items == ()
    some = gc.find(store, keep_runs=1, max_bytes=size - 5)  # the killed writer's four bytes are the oldest
    assert [item.kind for item in some.items] == ["file", "run"]
    assert (len(some.items) + len(some.spared), some.over) == (len(whole.items), 0)
    most = gc.find(store, keep_runs=1, max_bytes=0)
    assert {i.name for i in most.items} == {i.name for i in whole.items} and most.over == size - whole.bytes
    assert not [item for item in gc.find(store, keep_runs=2, max_bytes=0).items if item.kind == "run"]
    dropped = gc.find(store, keep_runs=2, max_bytes=0, drop_runs=True)
    assert [item.name for item in dropped.items if item.kind == "run"] == [OLD], "the newest stays in any case"
    assert gc.find(store, keep_runs=2, max_bytes=size, drop_runs=True).items == ()


def test_what_a_kept_configuration_names_by_its_path_stays(tmp_path: Path) -> None:
    two_nights(tmp_path)
    inside = {"weights": str(tmp_path / "fits" / NET / "old" / "pub-0001"), "bundle": f"runs/{OLD}/bundle"}
    recipe = {"data": {"source": "voc:a"}, "params": {"deep": [inside]}}
    run_of(tmp_path, "20260103-020000-cfs-cccc", [], recipe=recipe, folder=str(tmp_path))
    cleaned(tmp_path, keep_runs=1)
    assert publications(tmp_path) == ["old/pub-0001"]
    assert (tmp_path / "runs" / OLD / "net.log").exists() and not (tmp_path / "runs" / NEW).exists()


def test_a_lost_list_keeps_the_whole_stage(tmp_path: Path) -> None:
    two_nights(tmp_path)
    before = results(tmp_path)
    (tmp_path / "stamps" / f"{RunFolder(tmp_path, NEW).manifest()['stages'][0]['stamps']}.json").write_text("[]")
    cleaned(tmp_path, keep_runs=1)
    assert results(tmp_path) == {name: value for name, value in before.items() if name[0] == A}


def test_the_command_asks_before_anything_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_nights(tmp_path)
    before = results(tmp_path)
    command = ["cache", "gc", "--cache", str(tmp_path), "--keep-runs", "1"]
    assert main([*command, "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["kept"], [item["name"] for item in listed["items"] if item["kind"] == "run"]) == ([NEW], [OLD])
    assert main(command) == 2
    captured = capsys.readouterr()
    assert "would remove 2 segments with results of images (5 images)" in captured.out and "--yes" in captured.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    assert main(command) == 2 and results(tmp_path) == before
    assert main([*command, "--yes"]) == 0
    assert f"runs: {OLD}" in capsys.readouterr().out
    check_clean(tmp_path, before)
    assert main([*command, "--max-size", "1B"]) == 1, "all that is there is reached"
    for wrong in (["--keep-runs", "0"], ["--keep-days", "-1"], ["--max-size", "much"], ["--drop-runs"]):
        assert main(["cache", "gc", "--cache", str(tmp_path), *wrong]) == 2


def test_sizes_are_read_as_they_are_printed() -> None:
    assert [parse_size(text) for text in ("20GB", "1.5 tb", "500kB", "12")] == [20e9, 1.5e12, 5e5, 12]
