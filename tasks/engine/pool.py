"""The pool of worker processes that map stages run on.

A worker that dies (segfault, abort, out of memory, ``kill -9``) or is silent on one image for too long costs that
image at most: the worker alone is replaced, the image it was at is tried once more, alone in a fresh process (the
*quarantine*), and the unit is run again; an image that ends a second worker is *poisoned*: the unit is run again and
records it as a skip. Work of other units is not touched. (``ProcessPoolExecutor`` can neither time
out one call, nor say which image killed it, nor go on afterwards.)

    with Supervisor(stop) as supervisor, Pool(2, supervisor=supervisor, stop=stop) as pool:
        futures = [pool.submit(unit) for unit in units]

One thread of the pool owns all workers; callers only wait for futures. Workers are started when there is work.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from tasks.engine.children import KEEP_MEMORY, Stopped, Supervisor, end_all
from tasks.engine.pool_state import TICK_S, R, Task, Unit, Watch, WorkerDied, run_here, watched
from tasks.engine.worker_handle import THREADS, WorkerHandle, run_setup
from tasks.engine.worker_process import RemoteTraceback, WorkerError, frame

__all__ = ["Pool", "RemoteTraceback", "Stopped", "Unit", "WorkerDied", "WorkerError"]

log = logging.getLogger("maskmill")
IDLE_TICK_S = 0.25
GROWN_BYTES = 1 << 30
"""A worker that has grown by this since its first unit is replaced: memory stays flat over any number of images."""


class Pool:
    """``workers`` processes, started when needed; ``workers=0`` runs units in the submitting thread.

    Args:
        workers: processes at most, the quarantine included.
        supervisor: starts the processes.
        stop: when set, workers are killed within a second and unfinished futures raise :class:`Stopped`.
        image_timeout_s: time for one image.
        initializer: ``"module:function"`` that each worker calls first.
        env: added to the workers' environment, over the one-thread settings.
    """

    def __init__(
        self,
        workers: int,
        *,
        supervisor: Supervisor | None,
        stop: threading.Event,
        image_timeout_s: float = 120.0,
        initializer: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if workers < 0 or image_timeout_s <= 0:
            raise ValueError(f"workers={workers} must be >= 0 and image_timeout_s={image_timeout_s} > 0")
        if workers and supervisor is None:
            raise ValueError(f"workers={workers} need a supervisor; only workers=0 does without")
        self.workers = workers
        self.image_timeout_s = image_timeout_s
        self._supervisor = supervisor
        self._stop = stop
        self._setup_of = initializer
        self._env = {**dict.fromkeys(THREADS, "1"), **KEEP_MEMORY, **(env or {})}
        self._lock = threading.RLock()  # a signal handler may come back in while the main thread is inside
        self._watches: dict[str, Watch] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._pending: deque[Task[Any]] = deque()
        # From here on: the pool thread's alone.
        self._probes: deque[Task[Any]] = deque()
        self._links: dict[WorkerHandle, Task[Any] | None] = {}
        self._quarantine: WorkerHandle | None = None
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- called from any thread --------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it takes no more work: it was closed, stopped, or ended by a fault of its own."""
        return self._closing

    def submit(self, unit: Unit[R]) -> Future[R]:
        """Run ``unit``; its exceptions come through the future, the remote traceback as their cause."""
        with self._lock:
            task: Task[R] = Task(unit, self._watches.get(unit.label))
            if self._closing or self._stop.is_set():
                task.answer(error=Stopped("the run is stopping; no work is taken any more"))
                return task.future
            if self.workers:
                self._pending.append(task)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, daemon=True, name="maskmill-pool")
                    self._thread.start()
        if self.workers:
            self._wake()
        else:
            run_here(task, self._stop)
        return task.future

    @contextlib.contextmanager
    def reporting(self, label: str, callback: Callable[[int], None]) -> Iterator[None]:
        """Within this context ``callback(images done)`` is called for this label's units, ten times a second at most.

        Calls come from the pool's thread (``workers=0``: the submitting one), the last from the leaving one.
        """
        with watched(self._watches, label, callback, self._lock):
            yield

    def close(self) -> None:
        """Kill the workers and wait until they are gone; unfinished futures raise :class:`Stopped`."""
        with self._lock:
            self._closing = True
            thread = self._thread
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(10.0)
        elif thread is None:
            self._release()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full (awake anyway) or closed
            self._wake_write.send(b"!")

    # -- the pool's thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason: BaseException = Stopped("the run was stopped before this unit was done")
        try:
            while not (self._closing or self._stop.is_set()):
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                if self._stop.is_set():
                    break  # before deaths are checked: those that stop causes are not logged
                self._look_after_links()
                self._assign()
                self._watch_writes()
                self._report_progress()
        except BaseException as error:  # a fault here must not leave a caller waiting for ever
            if not isinstance(error, Stopped):
                log.exception("the pool failed")
                reason = error
        finally:
            self._end(reason)

    def _patience(self) -> float | None:
        if self._pending or self._probes or any(task is not None for task in self._links.values()):
            return TICK_S
        return IDLE_TICK_S if self._links else None

    def _woken(self) -> None:
        with contextlib.suppress(OSError):
            while self._wake_read.recv(4096):
                pass

    def _end(self, reason: BaseException) -> None:
        """Kill all workers, resolve all futures."""
        children = [link.child for link in self._links]
        tasks = [task for task in self._links.values() if task is not None]
        for link in list(self._links):
            self._drop(link)
        with self._lock:
            self._closing = True
            tasks += [*self._probes, *self._pending]
            self._pending.clear()
        end_all(children)
        for task in tasks:
            task.answer(error=reason)
        self._release()

    def _release(self) -> None:
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _report_progress(self) -> None:
        for link, task in self._links.items():
            if task is not None and link is not self._quarantine:
                task.progress(link.images_done(len(task.keys)))
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            watch.report()

    # -- workers -----------------------------------------------------------------------------------------------------

    def _look_after_links(self) -> None:
        """Messages first: a result that came in time counts, even if its worker died since."""
        now = time.monotonic()
        for link in list(self._links):
            if link.unsent:
                link.flush()
            gone = link.child.exited.is_set()
            for message in link.messages():
                self._message(link, message)
            if link not in self._links:
                continue  # a message has ended it
            if gone or link.closed:
                if link.closed:
                    link.child.exited.wait(1.0)
                self._lost(link, link.fate)
                continue
            verdict = link.overdue(now, self.image_timeout_s, busy=self._links[link] is not None)
            if verdict is not None:
                self._lost(link, verdict)

    def _message(self, link: WorkerHandle, message: tuple[Any, ...] | Exception) -> None:
        """One message of a worker."""
        if isinstance(message, Exception):
            message = ("failed", WorkerError(f"a worker's answer cannot be read: {message!r}"), "", 0)
        match message:
            case ("ready",):
                link.ready = True
                self._failed_starts = 0
            case ("log", name, level, text):
                logging.getLogger(name).log(level, "%s", text)
            case ("done", result, size):
                self._finished(link, size, result, None)
            case ("failed", error, trace, size):
                error.__cause__ = RemoteTraceback(trace)
                self._finished(link, size, None, error)

    def _finished(self, link: WorkerHandle, size: int, result: Any, error: BaseException | None) -> None:
        task, self._links[link] = self._links[link], None
        if task is None:
            return
        if error is None and link is self._quarantine:
            task.probe = None  # it succeeded alone: the unit gets its second run
            self._requeue(task)
        else:
            task.answer(result, error)
        if link.base_bytes is None:
            link.base_bytes = size
        if link is self._quarantine or size - link.base_bytes > GROWN_BYTES:
            self._drop(link)

    def _lost(self, link: WorkerHandle, how: str) -> None:
        """A worker is dead or given up: its unit is tried again, unless it has a result."""
        task = self._links[link]
        place, together, probing = link.place, link.together, link is self._quarantine
        words = link.last_words
        self._drop(link)
        log.debug("%s; its last output: %s", how, words or "none")
        if task is None:
            if not link.ready:
                self._start_failed(f"{how} while it started. {words}")
            return
        if task.worker_lost(how, None if probing else place, together, words):
            self._requeue(task)

    def _requeue(self, task: Task[Any]) -> None:
        if task.probe is not None:
            self._probes.append(task)
        else:
            self._pending.appendleft(task)

    def _drop(self, link: WorkerHandle) -> None:
        """Kill the worker, without waiting, and forget it."""
        self._links.pop(link)
        if link is self._quarantine:
            self._quarantine = None
        for stream in (link.socket, link.output):
            with contextlib.suppress(KeyError):
                self._selector.unregister(stream)
        link.close()

    def _assign(self) -> None:
        """Work to idle workers, workers for waiting work."""
        if self._probes and self._quarantine is None:
            self._begin_quarantine()
        for link, task in list(self._links.items()):
            if not link.ready or task is not None:
                continue
            if link is not self._quarantine and self._pending:
                self._send(link, self._pending.popleft())
            elif link is self._quarantine and self._probes:
                self._send(link, self._probes.popleft())
            elif link is self._quarantine:
                self._drop(link)  # its suspect's unit was cancelled
        coming = sum(not link.ready and link is not self._quarantine for link in self._links)
        while len(self._links) < self.workers and coming < len(self._pending):
            if self._start() is None:
                break
            coming += 1

    def _begin_quarantine(self) -> None:
        """A fresh process for the first suspect, in place of a worker if all places are taken."""
        if len(self._links) >= self.workers:
            idle = [link for link, task in self._links.items() if task is None]
            if not idle:
                return
            self._drop(idle[0])
        self._quarantine = self._start()

    def _send(self, link: WorkerHandle, task: Task[Any]) -> None:
        """Give ``task`` (or, in quarantine, its suspect) to an idle worker."""
        if not task.future.running() and not task.future.set_running_or_notify_cancel():
            return
        try:
            unit = task.unit.only(task.probe) if link is self._quarantine and task.probe else task.unit
            data = frame((unit, task.poisoned))
        except Exception as error:
            task.answer(error=error)
            return
        self._links[link] = task
        link.begin(data)

    def _watch_writes(self) -> None:
        """Be woken when a worker can take the rest of a unit larger than the socket's buffer."""
        for link in self._links:
            if link.unsent != link.writing:
                link.writing = link.unsent
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.unsent else 0)
                self._selector.modify(link.socket, events, _nothing)

    def _start(self) -> WorkerHandle | None:
        assert self._supervisor is not None
        try:
            link = WorkerHandle(self._supervisor, run_setup(self._setup_of), self._env, self._wake)
        except OSError as error:
            self._start_failed(str(error))
            return None
        self._links[link] = None
        self._selector.register(link.socket, selectors.EVENT_READ, _nothing)
        self._selector.register(link.output, selectors.EVENT_READ, functools.partial(self._listen, link))
        return link

    def _listen(self, link: WorkerHandle) -> None:
        if not link.read_output():
            self._selector.unregister(link.output)  # closed: it would be readable for ever

    def _start_failed(self, how: str) -> None:
        """After three in a row, waiting work is given up with the reason."""
        self._failed_starts += 1
        log.warning("a worker did not start: %s", how)
        if self._failed_starts < 3:
            return
        self._failed_starts = 0
        with self._lock:
            waiting = [*self._probes, *self._pending]
            self._probes.clear()
            self._pending.clear()
        for task in waiting:
            task.answer(error=WorkerDied(f"no worker process can be started: {how}"))


def _nothing() -> None:
    """Messages are read in one place, :meth:`Pool._look_after_links`."""
