"""Map stages on real clusters of this machine: the same bytes as the local engine, whatever happens to a worker."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import psutil
import pytest

from artifacts.cache.store import MaskStore
from artifacts.records import DataError, Kind, Record, RecordSet
from tasks.engine import cluster_pool, guest, probe
from tasks.engine.children import Stopped
from tasks.engine.cluster_pool import ClusterError, ClusterPool, check_engine
from tasks.engine.image_task import ImageTask
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.engine.work_unit import WorkUnit
from tasks.engine.worker_process import WorkerError
from tasks.stage import PARAMS_CONFIG, MapHandle, MapStage

HELPERS = Path(__file__).parents[2] / "helpers"
ROOT = HELPERS.parents[1]
NAMES = ["a", "b", "abort c", "skip d", "fault e", "ü f", *(f"nap {n}" for n in range(6))]
Made = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Level:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    level: int = 100


def stage(name: str = "threshold", level: int = 100, reads: tuple[Kind, ...] = ("image",)) -> MapStage:
    return MapStage(name, 1, Level(level), reads, ("mask_hw",), f"stage_functions:{name}")


def made_by(cache: Path, records: RecordSet, engine: str, **changes: Any) -> Made:
    """Two stages; label -> key -> arrays as bytes, or why there are none."""
    options = RunParams(**{"cache": str(cache), "engine": engine, "workers": 2, "device": "cpu", **changes})
    with Runner(options) as run:
        first = run.map(stage("touchy_threshold"), records)
        return {h.label: read(run, h) for h in (first, run.map(stage("invert", reads=()), records, source=first))}


def read(run: Runner, handle: MapHandle) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, made in handle.produced.items():
        if made.output is None:
            found[key] = (made.stamp, made.reason)
        else:
            arrays = MaskStore(run.cache, readonly=True).read(handle.address, key, made.stamp)
            found[key] = (
                made.stamp,
                made.output,
                {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()},
            )
    return found


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> RecordSet:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in NAMES:
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return RecordSet("set", "train", ("thing",), tuple(Record(name, str(folder / f"{name}.png")) for name in NAMES))


@pytest.fixture(scope="module")
def locally(tmp_path_factory: pytest.TempPathFactory, records: RecordSet) -> Made:
    made = made_by(tmp_path_factory.mktemp("local"), records, "local")
    assert made["touchy_threshold"]["set/abort c"][1] == "worker died with signal SIGABRT twice"
    assert sum(len(found) == 3 for found in made["invert"].values()) == 9
    return made


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A scheduler and two worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster


def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


def has_work(pid: int) -> bool:
    """Whether there is a process of ours below a cluster's worker."""
    try:
        below = psutil.Process(pid).children(recursive=True)
        return any("tasks.engine.worker_process" in child.cmdline() for child in below)
    except psutil.Error:  # gone, or going
        return False


def killed_at_work(pids: Callable[[], list[int]]) -> threading.Thread:
    """Kills the first worker that has a process of ours below it. ``join`` raises nothing: ask ``.pid``."""

    def kill() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            for pid in filter(has_work, pids()):
                time.sleep(0.7)  # it is at an image, or nearly
                os.kill(pid, signal.SIGKILL)
                thread.pid = pid  # type: ignore[attr-defined]
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


# -- Dask ------------------------------------------------------------------------------------------------------------


@pytest.mark.kills
def test_dask_gives_the_same_bytes_though_a_worker_is_killed(
    dask: Any, tmp_path: Path, records: RecordSet, locally: Made
) -> None:
    killer = killed_at_work(lambda: [worker.pid for worker in dask.workers.values() if worker.pid])
    made = made_by(tmp_path / "cache", records, f"dask:{dask.scheduler_address}")
    killer.join(100)
    assert killer.pid  # type: ignore[attr-defined]
    assert made == locally
    assert not list(tmp_path.rglob(".maskmill-tmp-*"))
    assert len(dask.scheduler.tasks) == 0  # nothing is kept there


def test_a_worker_that_lacks_what_the_run_needs_is_one_error_before_any_work(
    dask: Any, tmp_path: Path, records: RecordSet
) -> None:
    before = len(dask.scheduler.workers)
    command = [sys.executable, "-m", "distributed.cli.dask_worker", dask.scheduler_address]
    environment = {**os.environ, "PYTHONPATH": str(HELPERS / "lacking")}
    command += ["--no-nanny", "--no-dashboard", "--nthreads", "1", "--host", "127.0.0.1"]
    worker = subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: len(dask.scheduler.workers) > before)
        with pytest.raises(ClusterError) as error:
            made_by(tmp_path / "cache", records, f"dask:{dask.scheduler_address}")
    finally:
        worker.terminate()
        worker.wait()
        until(lambda: len(dask.scheduler.workers) == before)
    said = str(error.value).splitlines()
    assert "cannot do this run's work" in said[0]
    assert len(said) == 3 and all("tcp://127.0.0.1" in line and f"in {sys.executable}" in line for line in said[1:])
    assert "has no Maskmill" in said[1] and "lacks the package h5py" in said[2] and "pip install h5py==" in said[2]
    assert not (tmp_path / "cache" / "maps").exists()
    assert not list(tmp_path.rglob(".maskmill-tmp-*"))


def test_stop_takes_back_what_is_queued_and_ends_what_is_at_work(dask: Any, tmp_path: Path) -> None:
    stop = threading.Event()
    options = RunParams(cache=str(tmp_path / "cache"), engine=f"dask:{dask.scheduler_address}", device="cpu")
    pool = ClusterPool(cluster_pool.connect(options), options, stop=stop)
    pool.check(options)
    slow = stage("sleepy", 60_000, reads=())
    tasks = [ImageTask(f"set/{n}", f"s{n}", Record(str(n), f"{n}.png")) for n in range(9)]
    units = [WorkUnit(options.cache, "sleepy", "sleepy-1", slow, ("thing",), (task,)) for task in tasks]
    submit = pool.queue(units)
    pids = [worker.pid for worker in dask.workers.values()]
    until(lambda: [pid for pid in pids if has_work(pid)])
    stop.set()
    for unit in units:
        with pytest.raises(Stopped):
            submit(unit).result(30)
    until(lambda: not [pid for pid in pids if has_work(pid)])
    until(lambda: not dask.scheduler.tasks)
    with pytest.raises(Stopped):
        pool.submit(units[0]).result(1)
    pool.close()
    assert pool.closed


# -- Ray -------------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def ray_head() -> Iterator[tuple[str, psutil.Process]]:
    """A head with two places for workers. Its ports are given: it would wait 15 s for its agents', and no longer."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("without ray")
    port, grpc, listen, environment, metrics = free_ports(5)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--dashboard-agent-grpc-port={grpc}", f"--dashboard-agent-listen-port={listen}"]
    command += [f"--runtime-env-agent-port={environment}", f"--metrics-export-port={metrics}"]
    head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert head.stdout is not None
    lines = []
    try:
        for line in head.stdout:
            lines.append(line.decode())
            if "--block" in lines[-1]:
                break
        else:
            # Its own limits are 15 and 30 s: too short beside much other work.
            pytest.skip("no Ray head: " + "".join(lines[-20:]))
        threading.Thread(target=head.stdout.read, daemon=True).start()
        yield f"127.0.0.1:{port}", psutil.Process(head.pid)
    finally:
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        _, left = psutil.wait_procs(below, timeout=20)
        for process in left:
            process.kill()
        head.wait(20)


@pytest.mark.kills
@pytest.mark.timeout(400)
def test_ray_gives_the_same_bytes_though_a_worker_is_killed(
    ray_head: tuple[str, psutil.Process], tmp_path: Path, records: RecordSet, locally: Made
) -> None:
    address, head = ray_head

    def workers() -> list[int]:
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in head.children(recursive=True) if child.name().startswith("ray::")]
        return []

    killer = killed_at_work(workers)
    made = made_by(tmp_path / "cache", records, f"ray:{address}")
    killer.join(100)
    assert killer.pid  # type: ignore[attr-defined]
    assert made == locally
    until(lambda: not [pid for pid in workers() if has_work(pid)])  # Ray has ended them with the run


# -- without a cluster -----------------------------------------------------------------------------------------------


def test_the_default_imports_no_client_library() -> None:
    code = (
        "import sys, flows.cli.main, flows.run_flow, tasks.engine.runner;"
        "sys.exit(', '.join({'distributed', 'dask', 'ray', 'prefect_dask', 'prefect_ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("engine", ["dask:tcp://h:1", "ray"])
def test_a_missing_extra_is_one_error_with_the_command(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    name = engine.partition(":")[0]
    with pytest.raises(DataError, match=rf"pip install 'maskmill\[{name}\]'"):
        check_engine(RunParams(engine=engine))
    check_engine(RunParams())


@pytest.mark.parametrize("engine", ["spark", "dask:", "local:here", ""])
def test_an_unknown_engine_is_refused(engine: str) -> None:
    with pytest.raises(ValueError, match="there are local, dask, dask:ADDRESS, ray and ray:ADDRESS"):
        RunParams(engine=engine)


@pytest.mark.parametrize(
    ("there", "fault"),
    [
        ({}, None),
        ({"sources": "", "place": ""}, "has no Maskmill in /py"),
        ({"sources": "2", "place": "/old"}, r"another version of Maskmill \(/old\) than this run \(/here\)"),
        ({"lattice": False}, "has no compiled models/crf/_lattice"),
        ({"versions": {"python": "3.11"}}, r"lacks the package numpy in /py; .* numpy==2\.1"),
        ({"versions": {"python": "3.11", "numpy": "2.0"}}, r"has numpy 2\.0, this run 2\.1"),
        ({"cache": "/c: No such file"}, r"does not see the cache folder /c \(/c: No such file\)"),
    ],
)
def test_every_way_in_which_a_worker_differs_is_said(there: dict[str, Any], fault: str | None) -> None:
    here = {"sources": "1", "place": "/here", "lattice": True, "versions": {"python": "3.11", "numpy": "2.1"}}
    same = {**here, "host": "far", "executable": "/py", "cache": "", "locks": True, "answer": "x"}
    lines, locks = cluster_pool._faults({"w1": {**same, **there}, "w2": same}, here, Path("/c"))
    assert locks
    if fault is None:
        assert lines == []
    else:
        (line,) = lines
        assert line.startswith("  w1 (on far): ")
        assert re.search(fault, line)


def test_what_a_worker_sees(tmp_path: Path) -> None:
    shown = tmp_path / ".maskmill-tmp-1-000000000000"
    assert "No such file" in probe.look(str(shown), "x")["cache"]
    shown.write_text("y")
    assert "another folder" in probe.look(str(shown), "x")["cache"]
    found = probe.look(str(shown), "y")
    assert found["cache"] == "" and not found["locks"]  # nobody holds it
    assert Path(found["answer"]).read_text() == "y"
    assert found["sources"] and found["place"] == str(ROOT) and "numpy" in found["versions"]


class TestSight:
    """A worker's machine sees late what another has written, or never."""

    def unit(self, cache: Path, **changes: Any) -> WorkUnit:
        task = ImageTask("set/a", "new", Record("a", str(cache.parent / "i" / "a.png")), {"source": ("up-1", "s")})
        return WorkUnit(str(cache), "invert", "invert-1", stage("invert", reads=()), (), (task,), **changes)

    def test_arrays_of_another_machine_are_waited_for(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"

        def write() -> None:
            time.sleep(0.8)
            MaskStore(cache).write_segment("up-1", [("set/a", "s", {"mask_hw": np.ones((2, 2), np.uint8)})], meta={})

        writer = threading.Thread(target=write)
        writer.start()
        guest.await_sight(self.unit(cache), threading.Event(), patience_s=30)
        writer.join()
        assert ("set/a", "s") in MaskStore(cache).entries("up-1")

    def test_arrays_that_never_come_are_left_to_the_unit(self, tmp_path: Path) -> None:
        guest.await_sight(self.unit(tmp_path / "cache"), threading.Event(), patience_s=0)

    def test_a_file_that_is_never_seen_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(WorkerError, match=r"does not see /no/weights .* same path on all machines"):
            guest.await_sight(self.unit(tmp_path, nets={"net": "/no/weights"}), threading.Event(), patience_s=0)

    def test_pictures_that_are_not_there_are_an_error_and_one_that_is_gone_is_none(self, tmp_path: Path) -> None:
        unit = replace(self.unit(tmp_path / "cache"), stage=stage())
        with pytest.raises(WorkerError, match="of the pictures"):
            guest.await_sight(unit, threading.Event(), patience_s=0)
        (tmp_path / "i").mkdir()
        guest.await_sight(unit, threading.Event(), patience_s=0)

    def test_a_stopped_run_does_not_wait(self, tmp_path: Path) -> None:
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            guest.await_sight(self.unit(tmp_path / "cache"), stop)
