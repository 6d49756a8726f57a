"""The pool's end of one worker process: its socket, its board, its output."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from tasks.engine.children import Child, Supervisor
from tasks.engine.worker_process import BOARD_BYTES, COUNT, HEADER, PLACE, TOGETHER, frame

log = logging.getLogger("maskmill")
_OUTPUT_BYTES = 8192

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
"""One thread per worker: the pool's processes are the parallelism. Read by the libraries when they are loaded."""
START_S = 120.0
"""Least time for what comes before a unit's first image: starting Python, importing torch, opening a network."""


def run_setup(initializer: str | None) -> dict[str, Any]:
    """The first message to every worker: this process's module path and log level, and the initializer."""
    path = [entry or os.getcwd() for entry in sys.path]
    return {"path": path, "level": log.getEffectiveLevel(), "initializer": initializer}


class WorkerHandle:
    """One worker. Only the pool's thread touches it."""

    def __init__(
        self, supervisor: Supervisor, setup: Mapping[str, Any], env: Mapping[str, str], on_exit: Callable[[], None]
    ) -> None:
        """Start the worker. Raises ``OSError`` or ``tasks.engine.children.Stopped`` if that is not possible."""
        self.ready = False
        self.closed = False
        """The worker's end of the socket is closed: nothing more will come."""
        self.writing = False
        """The pool is woken when the socket takes more."""
        self.seen_at = time.monotonic()
        """When its board last changed, as this process saw it."""
        self.base_bytes: int | None = None
        """Resident memory after its first unit."""
        self._seen = 0
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._output = bytearray()
        with contextlib.ExitStack() as undo:
            self.socket, theirs = socket.socketpair()
            undo.callback(self.socket.close)
            output, theirs_output = os.pipe()
            self.output = open(output, "rb", buffering=0)  # noqa: SIM115 closed in close()
            undo.callback(self.output.close)
            with theirs, open(theirs_output, "wb"), _shared_page() as page:
                self._map = mmap.mmap(page, BOARD_BYTES)
                self._board = memoryview(self._map).cast("q")
                arguments = [str(theirs.fileno()), str(page), str(os.getpid())]
                self.child: Child = supervisor.start_python(
                    "tasks.engine.worker_process",
                    arguments,
                    env=env,
                    pass_fds=(theirs.fileno(), page),
                    output=theirs_output,
                    on_exit=on_exit,
                )
            undo.pop_all()
        self.socket.setblocking(False)
        os.set_blocking(output, False)
        self.post(frame(setup))

    @property
    def reports(self) -> int:
        """How often the present unit has reported."""
        return self._board[COUNT]

    @property
    def place(self) -> int:
        """Index of the image at work, -1 for none."""
        return self._board[PLACE] if self._board[COUNT] else -1

    @property
    def together(self) -> int:
        """Images that are at work at once."""
        return max(1, self._board[TOGETHER])

    def images_done(self, count: int) -> int:
        """Images of the present unit, which has ``count``, that are done."""
        if not self.reports:  # read first: the place is written before it
            return 0
        return count if self.place < 0 else self.place

    def post(self, data: bytes) -> None:
        """Queue a frame, and send what the socket takes. A worker that does not read must not block the pool."""
        self._outbox += data
        self.flush()

    def begin(self, data: bytes) -> None:
        """Post a unit: its board starts at zero."""
        self._board[COUNT], self._board[PLACE], self._board[TOGETHER] = 0, -1, 1
        self._seen, self.seen_at = 0, time.monotonic()
        self.post(data)

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        with contextlib.suppress(OSError):  # full, or the worker is dead, which is seen elsewhere
            while self._outbox:
                del self._outbox[: self.socket.send(self._outbox)]

    @property
    def unsent(self) -> bool:
        """Whether something is still queued."""
        return bool(self._outbox)

    def messages(self) -> list[tuple[Any, ...] | Exception]:
        """New messages of the worker. One that cannot be loaded is replaced by the exception."""
        with contextlib.suppress(OSError):
            while data := self.socket.recv(1 << 20):
                self._inbox += data
            self.closed = True
        found: list[tuple[Any, ...] | Exception] = []
        while (payload := self._frame()) is not None:
            try:
                found.append(pickle.loads(payload))
            except Exception as error:
                found.append(error)
        return found

    def _frame(self) -> bytes | None:
        if len(self._inbox) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._inbox)[0]
        if len(self._inbox) < end:
            return None
        payload = bytes(self._inbox[HEADER.size : end])
        del self._inbox[:end]
        return payload

    def read_output(self) -> bool:
        """Take what it printed (warnings of C libraries, a fault handler's output); whether more may come."""
        with contextlib.suppress(OSError):
            while data := self.output.read(1 << 16):
                log.debug("worker %d: %s", self.child.pid, data.decode(errors="replace").rstrip())
                self._output += data
                del self._output[:-_OUTPUT_BYTES]
            return data is None  # nothing now; empty: closed
        return True

    @property
    def last_words(self) -> str:
        """The end of what it printed."""
        self.read_output()
        return self._output.decode(errors="replace").strip()

    def quiet_for(self, now: float) -> float:
        """Seconds since its board changed."""
        if (reports := self.reports) != self._seen:
            self._seen, self.seen_at = reports, now
        return now - self.seen_at

    def overdue(self, now: float, image_timeout_s: float, *, busy: bool) -> str | None:
        """Why this worker is given up, if it has been silent for too long."""
        quiet = self.quiet_for(now)
        if not self.ready and quiet > START_S:
            return f"worker was not ready within {START_S:g} s"
        if self.ready and busy:
            limit = image_timeout_s * self.together
            if self.reports and quiet > limit:
                return f"no result within {limit:g} s (image_timeout_s)"
            if quiet > max(image_timeout_s, START_S):
                return f"no image begun within {max(image_timeout_s, START_S):g} s"
        return None

    @property
    def fate(self) -> str:
        """How it ended, as text."""
        code = self.child.returncode
        if code is None:
            return "worker closed its connection"
        if code >= 0:
            return f"worker exited with code {code}"
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"{-code}"
        return f"worker died with signal {name}"

    def close(self) -> None:
        """Kill it if it lives, without waiting, and release its resources."""
        self.child.kill()
        self.socket.close()
        self.output.close()
        self._board.release()
        self._map.close()


@contextlib.contextmanager
def _shared_page() -> Any:
    """Descriptor of a zeroed page that two processes can map."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("maskmill-board"), "wb") as file:
            file.truncate(BOARD_BYTES)
            yield file.fileno()
    else:
        with tempfile.TemporaryFile() as file:
            file.truncate(BOARD_BYTES)
            yield file.fileno()
