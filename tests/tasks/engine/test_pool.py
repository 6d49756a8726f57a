"""The pool: what happens to work when a worker dies, hangs, is killed, is stopped, or loses its parent."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.engine import pool as pool_module
from tasks.engine import worker_handle
from tasks.engine.children import Stopped, Supervisor
from tasks.engine.pool import Pool, RemoteTraceback, WorkerDied, WorkerError

HERE = Path(__file__).parents[2] / "helpers"
ROOT = HERE.parents[1]
from pool_units import Deeds  # noqa: E402

ABORTED = "skip: worker died with signal SIGABRT twice"


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def make(stop: threading.Event) -> Iterator[Callable[..., Pool]]:
    """Pools of this test; afterwards no child may be left."""
    with Supervisor(stop) as supervisor:
        pools: list[Pool] = []

        def build(workers: int = 2, **options: Any) -> Pool:
            pools.append(Pool(workers, supervisor=supervisor, stop=stop, **options))
            return pools[-1]

        yield build
        for pool in pools:
            pool.close()
    assert living_children() == []


_SHARED: set[psutil.Process] = set()
"""Children that were there before a test: servers and zygotes that the suite shares."""


@pytest.fixture(autouse=True)
def shared_children() -> None:
    _SHARED.clear()
    _SHARED.update(psutil.Process().children(recursive=True))


def living_children() -> list[psutil.Process]:
    """Those of the test itself."""
    now = psutil.Process().children(recursive=True)
    return [child for child in now if child not in _SHARED and child.status() != psutil.STATUS_ZOMBIE]


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # init may be slow to reap
    except psutil.NoSuchProcess:
        return False


def tries(log: Path) -> list[tuple[int, int, str]]:
    """(pid, size of the unit, key) of every image that was begun."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(int(pid), int(size), key) for pid, size, key in lines]


def until(condition: Callable[[], object], within_s: float) -> float:
    """Seconds until ``condition`` held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, f"not within {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - started


def units(count: int, size: int, **options: Any) -> list[Deeds]:
    return [Deeds(tuple(f"{u}/{i}" for i in range(size)), **options) for u in range(count)]


# -- an image that kills or hangs its worker -------------------------------------------------------------------------


@pytest.mark.kills
def test_an_image_that_aborts_is_left_out_and_everything_else_is_done_once(
    make: Callable[..., Pool], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    pool = make(2)
    futures = [pool.submit(unit) for unit in units(6, 5, deeds={"2/3": "abort"}, log=str(log), seconds=0.01)]
    results: dict[str, Any] = {}
    for future in futures:
        results |= future.result(20)
    assert {key: result for key, result in results.items() if isinstance(result, str)} == {"2/3": ABORTED}
    assert len(results) == 30

    begun = tries(log)
    counts = Counter(key for _, _, key in begun)
    assert counts["2/3"] == 2  # as part of its unit, then alone; not a third time
    assert {key: n for key, n in counts.items() if not key.startswith("2/") and n != 1} == {}
    (alone,) = [pid for pid, size, key in begun if key == "2/3" and size == 1]
    assert [key for pid, _, key in begun if pid == alone] == ["2/3"]  # a fresh process, used for nothing else


@pytest.mark.kills
def test_an_image_that_hangs_is_given_up_after_the_time_limit(make: Callable[..., Pool]) -> None:
    started = time.monotonic()
    future = make(1, image_timeout_s=0.5).submit(Deeds(("a", "b", "c"), {"b": "hang"}))
    result = future.result(20)
    assert result.pop("b") == "skip: no result within 0.5 s (image_timeout_s)"
    assert sorted(result) == ["a", "c"]
    assert 1.0 < time.monotonic() - started < 5.0


def test_the_time_limit_is_per_image_not_per_unit(make: Callable[..., Pool]) -> None:
    result = make(1, image_timeout_s=0.5).submit(Deeds(tuple("abcdef"), seconds=0.2)).result(20)
    assert not any(isinstance(value, str) for value in result.values())


def test_idle_time_counts_towards_no_limit(make: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(1, image_timeout_s=0.5)
    pool.submit(Deeds(("a",))).result(20)
    monkeypatch.setattr(worker_handle, "START_S", 0.6)
    time.sleep(0.7)
    pid = living_children()[0].pid
    assert pool.submit(Deeds(("a",), before="sleep:0.25")).result(20) == {"a": pid}


@pytest.mark.kills
@pytest.mark.parametrize(
    ("deed", "reason"),
    [("segfault", "worker died with signal SIGSEGV twice"), ("exit:3", "worker exited with code 3 twice")],
)
def test_the_reason_says_how_the_worker_ended(make: Callable[..., Pool], deed: str, reason: str) -> None:
    assert make(1).submit(Deeds(("a", "b"), {"a": deed})).result(20)["a"] == f"skip: {reason}"


@pytest.mark.kills
@pytest.mark.parametrize("workers", [1, 2])
def test_many_bad_images_in_several_units_at_once(make: Callable[..., Pool], workers: int) -> None:
    bad = {"0/0": "abort", "0/2": "exit:1", "1/1": "abort", "1/2": "abort", "2/0": "abort"}
    pool = make(workers)
    results: dict[str, Any] = {}
    for future in [pool.submit(unit) for unit in units(3, 3, deeds=bad)]:
        results |= future.result(30)
    assert {key for key, result in results.items() if isinstance(result, str)} == set(bad)
    assert len(results) == 9


@pytest.mark.kills
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    deeds=st.dictionaries(
        st.sampled_from([f"{u}/{i}" for u in range(3) for i in range(3)]),
        st.sampled_from(["abort", "exit:2", "raise:no", "die-once"]),
        max_size=4,
    )
)
def test_every_unit_is_answered_and_only_killers_are_left_out(
    make: Callable[..., Pool], tmp_path: Path, deeds: dict[str, str]
) -> None:
    folder = tmp_path / str(time.monotonic_ns())
    folder.mkdir()
    made = {k: f"{d}:{folder / k.replace('/', '-')}" if d == "die-once" else d for k, d in deeds.items()}
    pool = make(2)
    futures = [pool.submit(unit) for unit in units(3, 3, deeds=made)]
    killers = {key for key, deed in deeds.items() if deed in ("abort", "exit:2")}
    for number, future in enumerate(futures):
        keys = [f"{number}/{i}" for i in range(3)]
        if any(deeds.get(key) == "raise:no" for key in keys):
            assert str(future.exception(30)) == "no"
        else:
            left_out = {key for key, value in future.result(30).items() if str(value).startswith("skip")}
            assert left_out == killers & set(keys)
    pool.close()


@pytest.mark.kills
def test_a_worker_killed_from_outside_costs_nothing(make: Callable[..., Pool], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    pool = make(2)
    futures = [pool.submit(unit) for unit in units(4, 10, log=str(log), seconds=0.03)]
    until(lambda: len(tries(log)) > 6, 5)
    for pid in {pid for pid, _, _ in tries(log)}:  # all at once, as the OOM killer may
        os.kill(pid, signal.SIGKILL)
    results: dict[str, Any] = {}
    for future in futures:
        results |= future.result(20)
    assert len(results) == 40
    assert not any(isinstance(value, str) for value in results.values())
    assert max(Counter(key for _, _, key in tries(log)).values()) <= 3


@pytest.mark.kills
def test_an_image_that_dies_once_is_done_the_second_time(make: Callable[..., Pool], tmp_path: Path) -> None:
    result = make(1).submit(Deeds(("a", "b"), {"b": f"die-once:{tmp_path / 'mark'}"})).result(20)
    assert result["b"] == "second time"


@pytest.mark.kills
@pytest.mark.parametrize("where", ["before", "after"])
def test_deaths_outside_of_any_image_fail_that_unit_only(make: Callable[..., Pool], where: str) -> None:
    pool = make(2)
    bad = pool.submit(Deeds(("a",), **{where: "abort"}))
    good = [pool.submit(unit) for unit in units(3, 2)]
    with pytest.raises(WorkerDied, match="deeds: worker died with signal SIGABRT outside of any image, twice"):
        bad.result(20)
    assert [len(future.result(20)) for future in good] == [2, 2, 2]


# -- exceptions ------------------------------------------------------------------------------------------------------


def test_an_exception_comes_back_with_the_remote_traceback(make: Callable[..., Pool]) -> None:
    pool = make(1)
    bad, good = pool.submit(Deeds(("a",), {"a": "raise:wrong size"})), pool.submit(Deeds(("b",)))
    error = bad.exception(20)
    assert isinstance(error, ValueError)
    assert str(error) == "wrong size"
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in _raise" in str(error.__cause__)
    assert list(good.result(20)) == ["b"]


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("raise-odd", "Odd: odd 1 2"),
        ("sysexit:3", "SystemExit: 3"),
        ("unpicklable", "pickle|local object"),
    ],
)
def test_what_cannot_travel_is_named(make: Callable[..., Pool], deed: str, text: str) -> None:
    with pytest.raises(Exception, match=text):
        make(1).submit(Deeds(("a",), {"a": deed})).result(20)


def test_a_unit_that_cannot_be_sent_fails_alone(make: Callable[..., Pool]) -> None:
    pool = make(1)
    bad = pool.submit(Deeds(("a",), {"a": lambda: None}))  # type: ignore[dict-item]
    assert "pickle" in str(bad.exception(20))
    assert len(pool.submit(Deeds(("b",))).result(20)) == 1


def test_a_class_of_the_main_script_is_an_error_that_says_so(tmp_path: Path) -> None:
    script = """
        import dataclasses, threading
        from tasks.engine.children import Supervisor
        from tasks.engine.pool import Pool
        import pool_units

        class Mine(pool_units.Deeds):
            pass

        with Supervisor() as supervisor, Pool(1, supervisor=supervisor, stop=threading.Event()) as pool:
            print(pool.submit(Mine(("a",))).exception())
    """
    assert "not in a script's __main__" in run_script(tmp_path, script)


def test_a_broken_initializer_gives_up_with_its_last_words(make: Callable[..., Pool]) -> None:
    pool = make(1, initializer="pool_units:initialize_badly")
    with pytest.raises(WorkerDied, match=r"(?s)no worker process can be started: .*no such device"):
        pool.submit(Deeds(("a",))).result(20)


# -- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.kills
def test_stop_fails_all_futures_and_kills_all_workers_within_a_second(
    make: Callable[..., Pool], stop: threading.Event
) -> None:
    pool = make(2)
    futures = [pool.submit(unit) for unit in units(5, 2, seconds=30)]
    until(lambda: len(living_children()) == 2, 5)
    started = time.monotonic()
    stop.set()
    for future in futures:
        with pytest.raises(Stopped):
            future.result(5)
    until(lambda: not living_children(), 5)
    assert time.monotonic() - started < 1.0
    with pytest.raises(Stopped):
        pool.submit(Deeds(("late",))).result(1)


@pytest.mark.kills
def test_stop_ends_idle_workers_too(make: Callable[..., Pool], stop: threading.Event) -> None:
    make(1).submit(Deeds(("a",))).result(20)
    assert len(living_children()) == 1
    stop.set()
    assert until(lambda: not living_children(), 5) < 1.0


def test_closing_leaves_no_process_and_fails_what_is_unfinished(make: Callable[..., Pool]) -> None:
    pool = make(1)
    future = pool.submit(Deeds(("a",), {"a": "hang"}))
    until(living_children, 5)
    pool.close()
    assert living_children() == []
    with pytest.raises(Stopped):
        future.result(0)


def test_a_cancelled_unit_is_not_begun(make: Callable[..., Pool], tmp_path: Path) -> None:
    log = tmp_path / "log"
    pool = make(1)
    first = pool.submit(Deeds(("a",), {"a": "sleep:0.3"}, log=str(log)))
    second = pool.submit(Deeds(("b",), log=str(log)))
    third = pool.submit(Deeds(("c",), log=str(log)))
    assert second.cancel()
    first.result(20), third.result(20)
    assert [key for *_, key in tries(log)] == ["a", "c"]


@pytest.mark.kills
def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = """
        import os, signal, threading, time
        from tasks.engine.children import Supervisor
        from tasks.engine.pool import Pool
        import pool_units

        pool = Pool(2, supervisor=Supervisor(), stop=threading.Event())
        log = os.path.abspath("log")
        units = [pool_units.Deeds((key,), {key: "hang"}, log=log) for key in "ab"]
        futures = [pool.submit(unit) for unit in units]
        while not os.path.exists(log) or open(log).read().count("\\n") < 2:
            time.sleep(0.02)
        print(open(log).read())
        os.kill(os.getpid(), signal.SIGKILL)
    """
    printed = run_script(tmp_path, script, code=-signal.SIGKILL)
    pids = [int(line.split()[0]) for line in printed.splitlines() if line.strip()]
    assert len(set(pids)) == 2
    assert until(lambda: not any(running(pid) for pid in pids), 5) < 2.0


def run_script(folder: Path, script: str, code: int = 0) -> str:
    """stdout of a script in a process of its own."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


# -- cost ------------------------------------------------------------------------------------------------------------


def test_workers_start_when_there_is_work_quickly_and_without_torch(make: Callable[..., Pool]) -> None:
    pool = make(2)
    assert living_children() == []
    started = time.monotonic()
    modules = pool.submit(Deeds(("a",), {"a": "modules"})).result(20)["a"]
    assert time.monotonic() - started < 1.0
    assert len(living_children()) == 1  # one unit, one worker
    heavy = {"torch", "torchvision", "numpy", "cv2", "prefect", "h5py"} & set(modules)
    assert heavy == set()


def test_idle_workers_and_their_pool_use_no_cpu(make: Callable[..., Pool]) -> None:
    pool = make(2)
    [future.result(20) for future in [pool.submit(unit) for unit in units(2, 1, seconds=0.2)]]
    workers = living_children()
    assert len(workers) == 2
    before = [sum(worker.cpu_times()[:2]) for worker in workers]
    own = time.process_time()
    time.sleep(0.6)
    assert [sum(worker.cpu_times()[:2]) - b for worker, b in zip(workers, before, strict=True)] == [0.0, 0.0]
    assert time.process_time() - own < 0.05


def test_five_hundred_tiny_units(make: Callable[..., Pool]) -> None:
    pool = make(2)
    pool.submit(Deeds(("warm",))).result(20)
    started = time.monotonic()
    futures = [pool.submit(unit) for unit in units(500, 2)]
    assert sum(len(future.result(30)) for future in futures) == 1000
    assert time.monotonic() - started < 5.0  # 0.1 s on idle cores


def test_reports_are_cheap(make: Callable[..., Pool]) -> None:
    count = 5_000
    pool = make(1)
    pool.submit(Deeds(("warm",))).result(20)
    started = time.monotonic()
    pool.submit(Deeds(tuple(map(str, range(count))))).result(30)
    assert (time.monotonic() - started) / count < 100e-6  # with the test's own work; 2 % of 20 ms is 400


def test_units_and_results_of_any_size_at_once(make: Callable[..., Pool]) -> None:
    """Frames of 4 MB, larger than any socket's buffer, are not sent in steps of a tick."""
    keys = tuple(f"{i:01000d}" for i in range(4_000))
    pool = make(1)
    pool.submit(Deeds(("warm",))).result(20)
    started = time.monotonic()
    assert len(pool.submit(Deeds(keys)).result(30)) == len(keys)
    assert time.monotonic() - started < 1.0  # in steps of a tick: 2 s


@pytest.mark.kills
def test_a_worker_that_has_grown_is_replaced(make: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "GROWN_BYTES", 60 << 20)
    pool = make(1)
    pids = [pool.submit(Deeds(("a",), {"a": "hoard:40"})).result(20)["a"] for _ in range(4)]
    assert pids[0] == pids[1] == pids[2] != pids[3]


# -- what a worker sees ----------------------------------------------------------------------------------------------


def test_a_worker_uses_one_thread_and_calls_the_initializer_once(make: Callable[..., Pool]) -> None:
    deeds = {"omp": "environ:OMP_NUM_THREADS", "cv2": "cv2-threads", "own": "environ:OWN", "init": "initialized"}
    deeds |= {"kept": "environ:MALLOC_TRIM_THRESHOLD_", "large": "environ:MALLOC_MMAP_MAX_"}
    result = (
        make(1, initializer="pool_units:initialize", env={"OWN": "x"}).submit(Deeds(tuple(deeds), deeds)).result(20)
    )
    assert (result["omp"], result["cv2"], result["own"], len(result["init"])) == ("1", 1, "x", 1)
    assert int(result["kept"]) > 10_000_000 and result["large"] == "0", "freed arrays stay with the worker"


def test_no_lock_is_inherited(make: Callable[..., Pool], tmp_path: Path) -> None:
    with open(tmp_path / "gpu.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        links = make(1).submit(Deeds(("a",), {"a": "descriptors"})).result(20)["a"]
    assert not any("gpu.lock" in link for link in links)
    assert len(links) <= 8, links  # three standard ones, socket, board, /proc/self/fd


def test_log_records_of_a_worker_reach_the_run(make: Callable[..., Pool], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make(1).submit(Deeds(("a",), {"a": "log:look here"})).result(20)
    assert any(r.name == "maskmill.deeds" and "look here" in r.message for r in caplog.records)


def test_a_worker_that_closes_its_output_goes_on(make: Callable[..., Pool]) -> None:
    pool = make(1)
    pool.submit(Deeds(("a",), {"a": "close-output"})).result(20)
    own = time.process_time()
    assert len(pool.submit(Deeds(("b",), {"b": "sleep:0.3"})).result(20)) == 1
    assert time.process_time() - own < 0.1


# -- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.kills
def test_progress_grows_to_the_number_of_images_whatever_dies(make: Callable[..., Pool]) -> None:
    pool, reported, other = make(2), list[int](), list[int]()
    times: list[float] = []
    with pool.reporting("deeds", lambda done: (reported.append(done), times.append(time.monotonic()))):
        work = units(4, 10, seconds=0.02, deeds={"1/4": "abort"})
        with pool.reporting("other", other.append):
            futures = [pool.submit(unit) for unit in work] + [pool.submit(Deeds(("x", "y"), label="other"))]
            [future.result(20) for future in futures]
    assert reported == sorted(reported)
    assert reported[-1] == 40
    assert any(done % 10 for done in reported), "within units, too"
    assert other[-1] == 2
    gaps = [b - a for a, b in itertools.pairwise(times[:-1])]  # the last call does not wait
    assert min(gaps) > 0.09


@pytest.mark.kills
def test_a_second_pass_over_a_unit_is_not_counted_again(make: Callable[..., Pool]) -> None:
    pool, reported = make(1), list[int]()
    with pool.reporting("deeds", reported.append):
        pool.submit(Deeds(tuple("abcdefgh"), {"g": "abort"}, seconds=0.05)).result(20)
    assert reported == sorted(reported)
    assert reported[-1] == 8


def test_a_failing_callback_harms_nobody(make: Callable[..., Pool]) -> None:
    pool = make(1)
    with pool.reporting("deeds", lambda done: 1 / 0):
        assert len(pool.submit(Deeds(("a", "b"))).result(20)) == 2


# -- many threads, and none ------------------------------------------------------------------------------------------


def test_units_may_be_submitted_from_many_threads(make: Callable[..., Pool]) -> None:
    pool, done = make(2), list[int]()

    def work(number: int) -> None:
        for turn in range(10):
            done.append(len(pool.submit(Deeds((f"{number}/{turn}",))).result(20)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(done) == 80
    assert len(living_children()) == 2


def test_without_workers_units_run_in_the_calling_thread(stop: threading.Event) -> None:
    reported: list[int] = []
    with Pool(0, supervisor=None, stop=stop) as pool:
        with pool.reporting("deeds", reported.append):
            assert pool.submit(Deeds(("a", "b"))).result(0) == {"a": os.getpid(), "b": os.getpid()}
        assert reported[-1] == 2
        assert isinstance(pool.submit(Deeds(("a",), {"a": "raise:no"})).exception(0), ValueError)
        stop.set()
        with pytest.raises(Stopped):
            pool.submit(Deeds(("a",))).result(0)


def test_stop_is_seen_between_two_images_without_workers(stop: threading.Event) -> None:
    with Pool(0, supervisor=None, stop=stop) as pool:
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Stopped):
            pool.submit(Deeds(tuple("abcdefghij"), seconds=0.1)).result(0)


@pytest.mark.parametrize(("workers", "limit", "name"), [(-1, 1.0, "workers=-1"), (1, 0.0, "image_timeout_s=0")])
def test_impossible_settings_are_refused(stop: threading.Event, workers: int, limit: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Pool(workers, supervisor=Supervisor(), stop=stop, image_timeout_s=limit)


def test_worker_error_is_what_is_raised_for_workers() -> None:
    assert issubclass(WorkerDied, WorkerError)
