"""Runs that share their workers: are they the same processes, are the runs as they are alone, and is nothing left?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from artifacts.cache.store import MaskStore
from artifacts.records import Record, RecordSet
from tasks.engine.children import Stopped
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.engine.workers import Workers
from tasks.stage import PARAMS_CONFIG, MapHandle, MapStage

TESTS = Path(__file__).parents[2] / "helpers"


@dataclass(frozen=True)
class Level:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    level: int = 100


def stage(name: str, level: int = 0, *, uses_torch: bool = False) -> MapStage:
    return MapStage(name, 1, Level(level), (), ("mask_hw",), f"stage_functions:{name}", uses_torch=uses_torch)


def records(*names: str) -> RecordSet:
    return RecordSet("set", "train", ("thing",), tuple(Record(name, f"{name}.png", tags=(1,)) for name in names))


ONE = records("a")


def options(tmp_path: Path, cache: str = "cache", **changes: Any) -> RunParams:
    return RunParams(**{"cache": str(tmp_path / cache), "workers": 1, "device": "cpu", **changes})


def arrays(cache: str, handle: MapHandle) -> dict[str, Any]:
    store = MaskStore(Path(cache), readonly=True)
    found = {key: made.stamp for key, made in handle.produced.items() if made.output}
    return {key: store.read(handle.address, key, stamp)["mask_hw"] for key, stamp in found.items()}


def pid_of_worker(given: RunParams, workers: Workers | None, level: int = 0, uses_torch: bool = False) -> int:
    """Of a run with one image."""
    with Runner(given, workers=workers) as run:
        handle = run.map(stage("worker_pid", level, uses_torch=uses_torch), ONE)
    return int(arrays(given.cache, handle)["set/a"].item())


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.01)


# -- shared ----------------------------------------------------------------------------------------------------------


def test_one_worker_serves_several_runs_and_ends_with_the_hands(tmp_path: Path) -> None:
    with Workers() as workers:
        pids = {pid_of_worker(options(tmp_path), workers, level) for level in range(3)}
        (pid,) = pids
        assert alive(pid) and pid != os.getpid()
    assert not alive(pid)


def test_without_hands_each_run_has_a_worker_of_its_own(tmp_path: Path) -> None:
    first, second = (pid_of_worker(options(tmp_path), None, level) for level in range(2))
    assert first != second and not alive(first) and not alive(second)


def test_other_options_and_torch_have_workers_of_their_own(tmp_path: Path) -> None:
    with Workers() as workers:
        plain = pid_of_worker(options(tmp_path), workers)
        others = [
            pid_of_worker(options(tmp_path, workers=2), workers, 1),
            pid_of_worker(options(tmp_path, image_timeout_s=60.0), workers, 2),
            pid_of_worker(options(tmp_path), workers, 3, uses_torch=True),
        ]
        assert len({plain, *others}) == 4
        assert pid_of_worker(options(tmp_path, workers=0), workers, 4) == os.getpid()
        assert pid_of_worker(options(tmp_path), workers, 5) == plain, "and come back to them"
    assert not any(alive(pid) for pid in (plain, *others))


def test_a_stage_with_nothing_to_do_starts_no_worker(tmp_path: Path) -> None:
    pid_of_worker(options(tmp_path), None)
    with Workers() as workers:
        pid_of_worker(options(tmp_path), workers)
        assert workers._supervisor is None


def test_runs_with_caches_of_their_own_are_as_if_alone(tmp_path: Path) -> None:
    """The same images and stages in two caches with two sets of params, in turn, with one pair of workers."""
    some = records("a", "b", "c")

    def run(cache: str, level: int, workers: Workers | None) -> dict[str, Any]:
        given = options(tmp_path, cache, workers=2)
        with Runner(given, workers=workers) as run:
            one = run.map(stage("level", level), some)
            two = run.map(stage("invert", level), some, source=one)
        assert [report.computed for report in run.reports] == [3, 3]
        return {h.label: {k: mask.tolist() for k, mask in arrays(given.cache, h).items()} for h in (one, two)}

    with Workers() as workers:
        shared = [run(f"shared-{number}", number, workers) for number in range(3)]
    assert shared == [run(f"alone-{number}", number, None) for number in range(3)]
    assert shared[0] != shared[1]


def test_many_runs_leave_nothing_in_this_process(tmp_path: Path) -> None:
    with Workers() as workers:
        me, seen = psutil.Process(), []
        for level in range(6):
            pid_of_worker(options(tmp_path), workers, level)
            seen.append((me.num_fds(), me.num_threads(), len(me.children())))
    assert seen[1:] == seen[1:2] * 5


# -- what goes wrong in one run ----------------------------------------------------------------------------------------


@pytest.mark.kills
def test_a_worker_that_dies_in_one_run_costs_the_next_one_nothing(tmp_path: Path) -> None:
    with Workers() as workers:
        with Runner(options(tmp_path), workers=workers) as run:
            run.map(stage("touchy"), records("a", "abort", "b"))
        assert [skip.key for skip in run.skips] == ["set/abort"]
        pid = pid_of_worker(options(tmp_path), workers)
        os.kill(pid, signal.SIGKILL)  # while it is idle
        until(lambda: not alive(pid), 2)
        assert pid_of_worker(options(tmp_path), workers, 1) != pid
        with Runner(options(tmp_path), workers=workers) as run:
            run.map(stage("touchy", 1), records("a", "b"))
        assert run.skips == []


def test_a_pool_that_has_ended_is_replaced(tmp_path: Path) -> None:
    with Workers() as workers:
        before = pid_of_worker(options(tmp_path), workers)
        with workers.pool(options(tmp_path), uses_torch=False, on_wait=lambda _: None) as (pool, _):
            pool.close()
        assert pid_of_worker(options(tmp_path), workers, 1) != before


def test_a_run_that_fails_takes_its_workers_along(tmp_path: Path) -> None:
    """What it had begun would go on otherwise, for nobody, in the next run's time."""
    with Workers() as workers:
        pid = pid_of_worker(options(tmp_path), workers)
        with pytest.raises(RuntimeError, match="of the page"), Runner(options(tmp_path), workers=workers):
            raise RuntimeError("of the page")
        assert workers.stop.is_set() and not alive(pid)
        with pytest.raises(Stopped), Runner(options(tmp_path), workers=workers) as run:
            run.map(stage("worker_pid", 1), ONE)


def test_a_later_run_is_stopped_as_quickly_as_the_first(tmp_path: Path) -> None:
    with Workers() as workers:
        pid = pid_of_worker(options(tmp_path), workers)
        run = Runner(options(tmp_path), workers=workers)
        threading.Timer(0.3, run.stop.set).start()
        started = time.monotonic()
        with pytest.raises(Stopped), run:
            run.map(stage("touchy"), records("hang"))
        assert time.monotonic() - started < 2.5 and not alive(pid)
    assert '"interrupted"' in (run.folder.path / "manifest.json").read_text()


@pytest.mark.kills
def test_no_worker_outlives_a_process_that_is_killed_in_its_second_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import os, signal, sys
from pathlib import Path
from test_workers import Workers, Runner, options, pid_of_worker, stage
workers = Workers()
tmp_path = Path({str(tmp_path)!r})
print(*(pid_of_worker(options(tmp_path), workers, level) for level in range(2)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parents[1]), str(TESTS), str(Path(__file__).parent)]),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    first, second = map(int, done.stdout.split())
    assert first == second
    until(lambda: not alive(first), 2)
