"""Work of a run on a worker of somebody's cluster: its units go to a local pool of processes there.

So a unit is worked on as on the run's own machine: one thread an image, the same memory settings and time limits; an
image that kills its process is tried alone, then left out, and costs the cluster's worker nothing. The processes die
with the worker. What a worker keeps for a run is ended by the run, or once it has been idle for a minute.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from artifacts.cache.store import MaskStore
from tasks.engine.children import Stopped
from tasks.engine.options import RunParams
from tasks.engine.work_unit import UnitResult, WorkUnit, store_of
from tasks.engine.worker_process import WorkerError, load, portable
from tasks.engine.workers import Workers

IDLE_S = 60.0
"""Seconds after its last unit in which a run's processes are kept."""
LAG_S = 90.0
"""How long what another machine has written may take to be seen here: NFS remembers a folder for a minute."""
PLENTY = 1024
"""Processes at most: as many are started as the cluster sends units at a time."""
same_sources: set[str] = set()
"""Digests of the sources of runs whose Maskmill is this one."""


@dataclass(frozen=True)
class Setup:
    """What a run says to every worker, with every unit."""

    run: str
    """Its name among the runs that this worker serves."""
    image_timeout_s: float
    device: str
    level: int
    """Of the log."""
    env: Mapping[str, str]
    """Settings of Maskmill in the run's environment."""


@dataclass(frozen=True)
class Answer:
    """What came of a unit: its result, or what it raised, and what was logged meanwhile."""

    result: UnitResult | None
    error: BaseException | None
    trace: str
    said: tuple[tuple[str, int, str], ...]
    """(logger, level, text) of each message."""


class Guest:
    """One run on this worker."""

    def __init__(self, setup: Setup) -> None:
        self.workers = Workers(env=setup.env)
        self._run = setup.run
        self._options = RunParams(
            workers=PLENTY,
            device=setup.device,  # type: ignore[arg-type]  # checked by the run
            image_timeout_s=setup.image_timeout_s,
        )
        self._busy = 0
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While a unit is; the last to leave starts the clock."""
        with _table:
            self._busy += 1
            if self._timer is not None:
                self._timer.cancel()
        try:
            yield
        finally:
            with _table:
                self._busy -= 1
                if not self._busy:
                    self._timer = threading.Timer(IDLE_S, self._idle)
                    self._timer.daemon = True
                    self._timer.start()

    def _idle(self) -> None:
        with _table:
            if self._busy:
                return
            if _guests.get(self._run) is self:
                del _guests[self._run]
        self.workers.close()

    def do(self, unit: WorkUnit) -> UnitResult:
        """Wait until this machine sees what the unit needs, then have it done by a process here."""
        await_sight(unit, self.workers.stop)
        with self.workers.pool(self._options, uses_torch=unit.stage.uses_torch, on_wait=_waits) as (pool, device):
            future = pool.submit(replace(unit, device=device))
            while True:
                with contextlib.suppress(TimeoutError):
                    return future.result(timeout=0.5)
                if future.done():  # a time-out of the unit's own
                    return future.result()


_table = threading.RLock()
_guests: dict[str, Guest] = {}
_ended: deque[str] = deque(maxlen=100)
"""Runs of which nothing is begun any more."""


def answer(payload: bytes) -> bytes:
    """Do one unit: ``payload`` is a pickled ``(Setup, pickled unit)``; a pickled :class:`Answer`."""
    said = _Said()
    try:
        setup, packed = pickle.loads(payload)
        logging.getLogger("maskmill").setLevel(setup.level)
        guest = _guest_of(setup)
        try:
            with said, guest.at_work():
                found = Answer(guest.do(_unit(packed)), None, "", said.taken())
        except KeyboardInterrupt:  # how Ray cancels
            end(setup.run)
            raise
    except Exception as error:
        found = Answer(None, *portable(error), said.taken())
    return pickle.dumps(found)


def end(run: str) -> None:
    """End what is done for ``run``; what waits for it raises ``Stopped``. Returns at once."""
    with _table:
        _ended.append(run)
        guest = _guests.pop(run, None)
    if guest is not None:
        guest.workers.stop.set()
        threading.Thread(target=guest.workers.close, daemon=True, name="maskmill-guest-end").start()


def _guest_of(setup: Setup) -> Guest:
    with _table:
        if setup.run in _ended:
            raise Stopped("the run has ended")
        if setup.run not in _guests:
            _guests[setup.run] = Guest(setup)
        return _guests[setup.run]


def _unit(packed: bytes) -> WorkUnit:
    """The unit. Raises :class:`WorkerError` that names what cannot be imported here."""
    try:
        unit: WorkUnit = load(packed)
    except ImportError as error:
        raise WorkerError(
            f"the worker on {socket.gethostname()} cannot load its unit: {error}; a stage of your own must be"
            " importable there, too: install it, or set PYTHONPATH where the worker is started"
        ) from error
    return unit


def _waits(holder: str) -> None:
    logging.getLogger("maskmill").info("%s: a unit waits for %s", socket.gethostname(), holder)


# -- does this machine see it? ---------------------------------------------------------------------------------------


def await_sight(unit: WorkUnit, stop: threading.Event, patience_s: float = LAG_S) -> None:
    """Wait for what other machines have written just now. Raises :class:`WorkerError` for what is never seen here.

    Arrays that are not there in the end are left to the unit, which records them.
    """
    if "image" in unit.stage.reads:
        folders = {os.path.dirname(task.record.image) for task in unit.tasks}
        if not any(os.path.isdir(folder) for folder in folders):
            _blind(min(folders), "of the pictures")
    store, deadline = store_of(unit.cache), time.monotonic() + patience_s
    while lacking := _unseen(unit, store):
        if time.monotonic() > deadline:
            if os.path.isabs(lacking):
                _blind(lacking, "that the stage reads")
            return
        if stop.wait(0.5):
            raise Stopped("the run is stopping")


def _unseen(unit: WorkUnit, store: MaskStore) -> str:
    """The first file, or address of arrays, that is not seen here; "" if all is."""
    for path in unit.nets.values():
        if not os.path.exists(path):
            return path
    wanted = sorted({(address, task.key, stamp) for task in unit.tasks for address, stamp in task.up.values()})
    for address, pairs in itertools.groupby(wanted, key=lambda one: one[0]):
        entries = store.entries(address)
        if any((key, stamp) not in entries for _, key, stamp in pairs):
            store.refresh(address)
            return str(address)
    return ""


def _blind(path: str, what: str) -> None:
    raise WorkerError(
        f"the worker on {socket.gethostname()} does not see {path} {what}; it must lie under the same path on all"
        " machines: mount the shared folder there"
    )


class _Said(logging.Handler):
    """Keeps what is logged while a unit is at work here, for the run."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[str, int, str]] = []

    def __enter__(self) -> _Said:
        logging.getLogger("maskmill").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("maskmill").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """As text."""
        self._kept.append((record.name, record.levelno, record.getMessage()))

    def taken(self) -> tuple[tuple[str, int, str], ...]:
        """All of it; messages of units beside this one are among them."""
        return tuple(dict.fromkeys(self._kept))
