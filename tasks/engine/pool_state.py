"""What the pool works on: units, their attempts, and their progress."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from typing import Generic, Protocol, TypeVar

from tasks.engine.children import Stopped
from tasks.engine.worker_process import WorkerError

log = logging.getLogger("maskmill")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

TICK_S = 0.1
"""How often stop, time limits and progress are checked while there is work."""
ATTEMPTS = 2
"""Workers that an image (or what surrounds a unit's images) may cost."""


class Report(Protocol):
    """Reports which image a unit is at; see :meth:`Unit.run`."""

    def __call__(self, key: str, together: int = 1) -> None:
        """Before the image ``key``, or the ``together`` images from it on."""


class WorkerDied(WorkerError):
    """Workers died on a unit outside of any image, so that no image can be left out for it."""


class Unit(Protocol[R_co]):
    """Picklable work on some images, in order. (``tasks.engine.work_unit.WorkUnit`` is the one there is.)

    An optional method ``prepare()`` is called before the first image, and not under the image's time limit.
    """

    @property
    def label(self) -> str:
        """The stage that the unit belongs to: what progress is counted by."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its images, in the order of work."""

    def only(self, key: str) -> Unit[R_co]:
        """The same work for one of its images."""

    def one_by_one(self) -> Unit[R_co]:
        """The same work, never several images at once."""

    def run(self, report: Report, poisoned: Mapping[str, str]) -> R_co:
        """Do it.

        ``report(key)`` is called BEFORE each image (cheap: stores into shared memory), ``report(key, n)`` before the
        ``n`` images from ``key`` on that are worked on at once (perhaps while others are read); ``report("")`` says
        that the images are done and something else is worked on. ``poisoned`` (key -> reason) must not be tried; the
        unit records them itself.
        """


class Watch:
    """Progress of one label: how many images are done, reported at most every tick."""

    def __init__(self, callback: Callable[[int], None]) -> None:
        self._callback = callback
        self._lock = threading.Lock()
        self._done = 0
        self._reported = 0
        self._reported_at = 0.0

    def add(self, images: int) -> None:
        """``images`` more are done."""
        with self._lock:
            self._done += images

    def report(self, *, now: bool = False) -> None:
        """Call the callback if there is news and the last call is a tick ago (or ``now``)."""
        with self._lock:
            clock = time.monotonic()
            if self._done == self._reported or (clock - self._reported_at < TICK_S and not now):
                return
            self._reported, self._reported_at = self._done, clock
            try:
                self._callback(self._done)
            except Exception:
                log.exception("progress callback failed")


@contextlib.contextmanager
def watched(
    watches: dict[str, Watch],
    label: str,
    callback: Callable[[int], None],
    lock: contextlib.AbstractContextManager[bool],
) -> Iterator[None]:
    """``watches`` has one of ``label`` within this context; its last report comes on leaving. ``lock`` guards them."""
    watch = Watch(callback)
    with lock:
        watches[label] = watch
    try:
        yield
    finally:
        with lock:
            if watches.get(label) is watch:
                del watches[label]
        watch.report(now=True)


class Task(Generic[R]):
    """A submitted unit and its attempts."""

    def __init__(self, unit: Unit[R], watch: Watch | None) -> None:
        self.unit = unit
        self.keys = unit.keys
        self.future: Future[R] = Future()
        self.poisoned: dict[str, str] = {}
        self.probe: str | None = None
        """The image to try alone before anything else."""
        self.lost = 0
        """Deaths outside of any image."""
        self._deaths: dict[str, list[str]] = {}
        self.watch = watch
        self._done = 0

    def progress(self, done: int) -> None:
        """``done`` of its images are done; a second pass does not count them again."""
        if done > self._done:
            if self.watch is not None:
                self.watch.add(done - self._done)
            self._done = done

    def worker_lost(self, how: str, place: int | None, together: int, words: str) -> bool:
        """A worker has ended at the image of index ``place`` (-1: at none; ``None``: at the probe). True to try again.

        Where it was at several images at once none is blamed: from then on the unit takes them one by one.
        """
        key = self.probe if place is None else self.keys[place] if 0 <= place < len(self.keys) else None
        if key is not None and place is not None and together > 1:
            self.unit = self.unit.one_by_one()
            log.warning("%s: %s at one of %d images; they are tried one by one", self.unit.label, how, together)
        elif key is None or key in self.poisoned:
            self.lost += 1
            log.warning("%s: %s outside of any image", self.unit.label, how)
            if self.lost >= ATTEMPTS:
                self.answer(error=WorkerDied(f"{self.unit.label}: {how} outside of any image, twice. {words}"))
                return False
        else:
            self.death(key, how)
            outcome = "tried again alone" if self.probe else "left out"
            log.warning("%s: %s at %s; %s", self.unit.label, how, key, outcome)
        return True

    def death(self, key: str, how: str) -> None:
        """A worker ended while at ``key``: the first time it becomes the probe, the second time it is poisoned."""
        deaths = self._deaths.setdefault(key, [])
        deaths.append(how)
        if len(deaths) < ATTEMPTS:
            self.probe = key
        else:
            self.probe = None
            self.poisoned[key] = _reason(deaths)

    def answer(self, result: R | None = None, error: BaseException | None = None) -> None:
        """Resolve the future, unless the waiter has cancelled it."""
        with contextlib.suppress(InvalidStateError):
            if error is not None:
                self.future.set_exception(error)
            else:
                self.progress(len(self.keys))
                self.future.set_result(result)  # type: ignore[arg-type]


def _reason(deaths: list[str]) -> str:
    """``worker died with signal SIGABRT twice``; a time limit is not repeated."""
    first, second = deaths[-2:]
    if first != second:
        return f"{first}, then {second}"
    hint = " (out of memory?)" if first.endswith("SIGKILL") else ""
    return first if first.startswith("no result") else f"{first} twice{hint}"


def run_here(task: Task[R], stop: threading.Event) -> None:
    """``task`` in this thread and process: no time limit, no protection from a crash, ``stop`` between two images."""
    task.future.set_running_or_notify_cancel()
    places = {key: place for place, key in enumerate(task.keys)}

    def report(key: str, together: int = 1) -> None:
        if stop.is_set():
            raise Stopped("the run is stopping")
        task.progress(places.get(key, len(places)))
        if task.watch is not None:
            task.watch.report()

    try:
        result = task.unit.run(report, {})
    except Exception as error:
        task.answer(error=error)
    else:
        task.answer(result)
        if task.watch is not None:
            task.watch.report()
