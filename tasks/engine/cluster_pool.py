"""Map work on a cluster of somebody's: Dask or Ray, behind the interface of the local pool.

A unit goes to the cluster as bytes, is done there by a local pool (:mod:`tasks.engine.guest`), writes its segment into
the cache folder that all machines see, and comes back as entries. Before the first unit every worker is looked at
(:mod:`tasks.engine.probe`): one that cannot do the work, or would do it otherwise, is an error then and not a thousand
skips. The client libraries are imported when an engine is chosen, and only then.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import inspect
import logging
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from artifacts.cache.atomic import temporary_beside
from artifacts.records import DataError
from tasks.engine import probe
from tasks.engine.children import Stopped
from tasks.engine.options import RunParams
from tasks.engine.pool_state import TICK_S, Watch, WorkerDied, watched
from tasks.engine.worker_process import RemoteTraceback

if TYPE_CHECKING:
    from tasks.engine.work_unit import UnitResult, WorkUnit

log = logging.getLogger("maskmill")
EXTRAS = {"dask": "distributed", "ray": "ray"}
"""Engine (and extra of the installation) -> its client library."""
ALONE_S = 120.0
"""How long a cluster may be without any worker."""
HEALTH_S = 5.0
PATIENCE_S = 30.0
"""How long the first worker may take to come."""
SEEN_S = 10.0
"""How long a file that a worker has just written may take to be seen here."""


class ClusterError(RuntimeError):
    """A cluster cannot do this run's work; the message names host and fix. Nothing was begun on it."""


class Cluster(Protocol):
    """Somebody's workers, as :mod:`tasks.engine.dask_cluster` and :mod:`tasks.engine.ray_cluster` reach them."""

    name: str
    """Engine and address, for messages."""

    def slots(self) -> int:
        """Units that are worked on at a time, now."""

    def look(self, *arguments: Any) -> dict[str, Any]:
        """Worker (or machine) -> what ``probe.look(*arguments)`` gives there, or the exception."""

    def submit(self, *arguments: Any) -> Future[bytes]:
        """``probe.call(*arguments)`` on any worker; again on another one if its worker dies."""

    def end(self, run: str) -> None:
        """Take back what is queued, and end what is at work or kept for ``run`` (:func:`tasks.engine.guest.end`)."""

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""


def check_engine(options: RunParams) -> None:
    """Raises :class:`DataError` where the engine's client library is not installed. Nothing is imported."""
    name, _ = options.cluster
    if name != "local" and importlib.util.find_spec(EXTRAS[name]) is None:
        raise DataError(f"engine={options.engine} needs {name.capitalize()}: pip install 'maskmill[{name}]'")


def connect(options: RunParams) -> Cluster:
    """The cluster that ``options.engine`` names. Raises :class:`ClusterError` if nobody answers there."""
    name, address = options.cluster
    found: Cluster
    if name == "dask":
        from tasks.engine.dask_cluster import DaskCluster

        found = DaskCluster(address, max(1, options.worker_count))
    else:
        from tasks.engine.ray_cluster import RayCluster

        found = RayCluster(address, max(1, options.worker_count))
    return found


class ClusterPool:
    """Takes units as :class:`tasks.engine.pool.Pool` does. One thread watches ``stop`` and the cluster's health."""

    def __init__(self, cluster: Cluster, options: RunParams, *, stop: threading.Event) -> None:
        from tasks.engine.guest import Setup

        self._cluster = cluster
        self._stop = stop
        self._setup = Setup(
            uuid.uuid4().hex,
            options.image_timeout_s,
            options.device,
            log.getEffectiveLevel(),
            {name: value for name, value in os.environ.items() if name.startswith("MASKMILL_") and name not in _OWN},
        )
        self._sources = probe.sources()[0]
        self._lock = threading.RLock()
        self._open: dict[Future[Any], WorkUnit] = {}
        self._watches: dict[str, Watch] = {}
        self._checked: set[Path] = set()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def workers(self) -> int:
        """Units that are worked on at a time; at least 1."""
        return max(1, self._cluster.slots())

    @property
    def closed(self) -> bool:
        """Whether it takes no more work."""
        return self._closing.is_set()

    def check(self, options: RunParams) -> None:
        """Look at every worker, once for each cache. Raises :class:`ClusterError` that names them and the fix."""
        cache = Path(os.path.abspath(options.cache))
        if cache not in self._checked:
            _check(self._cluster, cache)
            self._checked.add(cache)

    def submit(self, unit: WorkUnit) -> Future[UnitResult]:
        """Run ``unit`` on the cluster; its exceptions come through the future, the remote traceback as their cause."""
        answer: Future[UnitResult] = Future()
        with self._lock:
            if self.closed or self._stop.is_set():
                answer.set_exception(Stopped("the run is stopping; no work is taken any more"))
                return answer
            self._open[answer] = unit
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True, name="maskmill-cluster")
                self._thread.start()
        remote = self._cluster.submit(self._sources, pickle.dumps((self._setup, pickle.dumps(unit))))
        remote.add_done_callback(functools.partial(self._done, answer))
        return answer

    def queue(self, units: Sequence[WorkUnit]) -> Callable[[WorkUnit], Future[UnitResult]]:
        """Submit all ``units`` now, and give each one's future when it is asked for.

        A skin may ask from threads, of which there are fewer than a large cluster has workers.
        """
        futures = {id(unit): self.submit(unit) for unit in units}
        return lambda unit: futures[id(unit)]

    @contextlib.contextmanager
    def reporting(self, label: str, callback: Callable[[int], None]) -> Iterator[None]:
        """Within this context ``callback(images done)`` is called as units of this label come back."""
        with watched(self._watches, label, callback, self._lock):
            yield

    def close(self) -> None:
        """Take back what is queued, end what is at work there, leave the cluster."""
        with self._lock:
            if self.closed:
                return
            self._closing.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(10.0)
        self._end(Stopped("the run was stopped before this unit was done"))
        self._cluster.close()

    # -- answers -----------------------------------------------------------------------------------------------------

    def _done(self, answer: Future[UnitResult], remote: Future[bytes]) -> None:
        """What the cluster says of a unit; called from a thread of the client library's."""
        with self._lock:
            unit = self._open.pop(answer, None)
            watch = None if unit is None else self._watches.get(unit.label)
        if unit is None:
            return
        with contextlib.suppress(InvalidStateError):
            try:
                found = pickle.loads(remote.result())
            except BaseException as error:
                stopped = self._stop.is_set() or self.closed
                answer.set_exception(Stopped("the run was stopped") if stopped else self._lost(unit, error))
                return
            for name, level, text in found.said:
                logging.getLogger(name).log(level, "%s", text)
            if found.error is not None:
                found.error.__cause__ = RemoteTraceback(found.trace)
                answer.set_exception(found.error)
                return
            if watch is not None:
                watch.add(len(unit.keys))
                watch.report()
            answer.set_result(found.result)

    def _lost(self, unit: WorkUnit, error: BaseException) -> WorkerDied:
        return WorkerDied(
            f"{unit.label}: {self._cluster.name} gave up a unit of {len(unit.keys)} images, the first {unit.keys[0]}:"
            f" {str(error).strip() or type(error).__name__}"
        )

    def _watch(self) -> None:
        """Until the end: is the run stopped, has the cluster still workers?"""
        seen = asked = time.monotonic()
        while not self._closing.wait(TICK_S):
            now = time.monotonic()
            if self._stop.is_set():
                self._end(Stopped("the run was stopped before this unit was done"))
                return
            if now - asked < HEALTH_S:
                continue
            asked = now
            with contextlib.suppress(Exception):  # who does not answer has no workers
                if self._cluster.slots() or not self._open:
                    seen = now
            if now - seen > ALONE_S:
                self._end(
                    WorkerDied(f"{self._cluster.name} has had no worker for {ALONE_S:g} s; start some, run again")
                )
                return

    def _end(self, reason: Exception) -> None:
        """Answer all that is open, and tell the cluster."""
        with self._lock:
            waiting = list(self._open)
            self._open.clear()
        for answer in waiting:
            with contextlib.suppress(InvalidStateError):
                answer.set_exception(reason)
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing to end
            self._cluster.end(self._setup.run)


_OWN = frozenset({"MASKMILL_LOCKS", "MASKMILL_RUN_PGID"})
"""Settings that mean something on this machine only."""


# -- the look at every worker ----------------------------------------------------------------------------------------


def source_of_probe() -> str:
    """The text of :mod:`tasks.engine.probe`, which workers execute."""
    return inspect.getsource(probe)


def remote_runner() -> Callable[..., Any]:
    """A function that client libraries send by value, as it has no name in any module: runs ``source``'s ``name``."""

    def run(source: str, name: str, arguments: Sequence[Any]) -> Any:
        import sys
        import types

        module = sys.modules.get("maskmill_probe")  # kept there: compiling takes as long as a small unit
        if module is None or module.__doc__ != source:
            module = types.ModuleType("maskmill_probe")
            exec(compile(source, "maskmill_probe", "exec"), module.__dict__)
            module.__doc__ = source
            sys.modules["maskmill_probe"] = module
        return getattr(module, name)(*arguments)

    return run


def _check(cluster: Cluster, cache: Path) -> None:
    """Raises :class:`ClusterError` unless every worker has what runs here, and sees and writes ``cache``."""
    deadline = time.monotonic() + PATIENCE_S
    while not cluster.slots():
        if time.monotonic() > deadline:
            raise ClusterError(f"{cluster.name} has no workers: start some, then run again")
        time.sleep(TICK_S)
    cache.mkdir(parents=True, exist_ok=True)
    shown, content = temporary_beside(cache / "probe"), uuid.uuid4().hex
    written = [shown]
    try:
        with open(shown, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            locks_here = _locked(file.fileno())
            found = cluster.look(str(shown), content)
        answers = {name: Path(one["answer"]) for name, one in found.items() if isinstance(one, dict)}
        written += answers.values()
        faults, locks = _faults(found, probe.facts(), cache)
        if not faults and (unseen := [name for name, answer in answers.items() if not _appears(answer, content)]):
            faults = [
                f"  {', '.join(unseen[:3])}: what they write into {cache} is not seen here: mount the same folder"
            ]
        if faults:
            raise ClusterError("\n".join([f"{cluster.name} cannot do this run's work:", *faults]))
        if locks_here and not locks:
            log.warning(
                "%s: locks (flock) do not reach from machine to machine here; run the fits of one cache on one machine"
                " at a time (docs/engines.md)",
                cache,
            )
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def _faults(found: Mapping[str, Any], here: Mapping[str, Any], cache: Path) -> tuple[list[str], bool]:
    """One line for each kind of fault, with the workers that have it; whether locks reach all."""
    faults: dict[str, list[str]] = {}
    locks = True
    for worker, there in found.items():
        if isinstance(there, BaseException):
            faults.setdefault(f"cannot be looked at: {type(there).__name__}: {there}", []).append(worker)
            continue
        locks &= bool(there["locks"])
        for fault in _of_worker(there, here, cache):
            faults.setdefault(fault, []).append(f"{worker} (on {there['host']})")
    lines = []
    for fault, workers in faults.items():
        more = f" and {len(workers) - 3} more" if len(workers) > 3 else ""
        lines.append(f"  {', '.join(workers[:3])}{more}: {fault}")
    return lines, locks


def _of_worker(there: Mapping[str, Any], here: Mapping[str, Any], cache: Path) -> Iterator[str]:
    """What is wrong with one worker."""
    python, install = there["executable"], f"install the same there: {there['executable']} -m pip install"
    if not there["sources"]:
        yield f"has no Maskmill in {python}; {install} maskmill"
    elif there["sources"] != here["sources"]:
        yield f"has another version of Maskmill ({there['place']}) than this run ({here['place']}); install this one"
    elif here["lattice"] and not there["lattice"]:
        yield f"has no compiled models/crf/_lattice in {there['place']}; {install} -e {there['place']}"
    for name, version in here["versions"].items():
        found = there["versions"].get(name)
        if found is None:
            yield f"lacks the package {name} in {python}; {install} {name}=={version}"
        elif found != version:
            yield f"has {name} {found}, this run {version}: results might differ; {install} {name}=={version}"
    if there["cache"]:
        yield f"does not see the cache folder {cache} ({there['cache']}): mount it there under this path, writable"


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _appears(path: Path, content: str) -> bool:
    """Whether a worker's file is seen here, within a while."""
    deadline = time.monotonic() + SEEN_S
    while True:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK_S)
