"""A worker process of the pool: ``python -m tasks.engine.worker_process SOCKET_FD BOARD_FD PARENT_PID``.

It reads one unit at a time from its socket, runs it, and answers. Before each image it writes the image's place
in the unit to a page of memory that it shares with the pool, so that the pool knows which image killed it without
a message per image. Only the standard library is imported here: a unit brings what it needs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from tasks.engine.process_tree import die_with_parent

HEADER = struct.Struct("<Q")
"""A frame on the socket is its payload's length, then the payload (a pickle)."""
BOARD_BYTES = mmap.PAGESIZE
COUNT, PLACE, TOGETHER = 0, 1, 2
"""Places of the board (int64): reports of this unit so far, index of the image at work (-1: none of them), how many
images from there on are at work at once."""


class WorkerError(RuntimeError):
    """A worker failed, and the original exception's class cannot be sent."""


class RemoteTraceback(Exception):
    """Cause of an exception that came from a worker: the traceback there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def frame(message: object) -> bytes:
    """``message`` as it goes over the socket."""
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(payload)) + payload


class Wire:
    """The worker's end of its socket. Sending is thread-safe (log records come from any thread)."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()

    def send(self, data: bytes) -> None:
        """One whole frame."""
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> bytes | None:
        """The next frame's payload, or ``None`` when the pool has closed its end."""
        header = self._exactly(HEADER.size)
        return None if header is None else self._exactly(HEADER.unpack(header)[0])

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            received = self._socket.recv_into(view)
            if received == 0:
                return None
            view = view[received:]
        return bytes(data)


class Forward(logging.Handler):
    """Sends log records to the run, where the handlers are."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        """As text: a record's arguments need not be picklable."""
        with contextlib.suppress(OSError):
            self._wire.send(frame(("log", record.name, record.levelno, self.format(record))))


def main(arguments: list[str]) -> None:
    """Serve until the pool closes the socket."""
    descriptor, board_descriptor, parent = (int(argument) for argument in arguments)
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the run, which ends its workers
    faulthandler.enable()
    os.set_inheritable(board_descriptor, False)
    board = memoryview(mmap.mmap(board_descriptor, BOARD_BYTES)).cast("q")
    wire = Wire(descriptor)
    setup = wire.receive()
    if setup is None:
        return
    prepare(pickle.loads(setup), wire)
    wire.send(frame(("ready",)))
    while (request := wire.receive()) is not None:
        wire.send(answer(board, request))


def prepare(setup: Mapping[str, Any], wire: Wire) -> None:
    """The run's module path and log level, then the pool's initializer."""
    sys.path[:] = setup["path"]
    logging.basicConfig(level=logging.WARNING, handlers=[Forward(wire)], format="%(message)s")
    logging.getLogger("maskmill").setLevel(setup["level"])
    if setup["initializer"]:
        from tasks.stage import resolve

        resolve(setup["initializer"])()


def answer(board: memoryview[int], request: bytes) -> bytes:
    """Run one unit; the frame with its outcome."""
    try:
        return frame(("done", run(board, request), resident_bytes()))
    except BaseException as error:
        return frame(("failed", *portable(error), resident_bytes()))


def run(board: memoryview[int], request: bytes) -> object:
    """Load the unit and run it; its progress goes to the board."""
    unit, poisoned = load(request)
    places = {key: place for place, key in enumerate(unit.keys)}

    def report(key: str, together: int = 1) -> None:
        board[PLACE], board[TOGETHER] = places.get(key, -1), together
        board[COUNT] += 1

    if ready := getattr(unit, "prepare", None):
        ready()
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(1)
    return unit.run(report, poisoned)


def load(request: bytes) -> Any:
    """Unpickle ``(unit, poisoned)``. Raises :class:`WorkerError` that names the usual cause."""
    try:
        return pickle.loads(request)
    except AttributeError as error:
        raise WorkerError(
            f"a worker cannot load its unit: {error}. Classes and functions of a stage must live in a module that can"
            " be imported, not in a script's __main__; or run with workers=0"
        ) from error


def portable(error: BaseException) -> tuple[BaseException, str]:
    """``error`` and its traceback; a :class:`WorkerError` that names it if it cannot be sent or would end the run."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error, text
    return WorkerError(f"{type(error).__name__}: {error}"), text


def resident_bytes() -> int:
    """Resident memory of this process; 0 where ``/proc`` is missing."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


if __name__ == "__main__":
    # Under its real name, so that its classes are pickled as the run knows them.
    from tasks.engine import worker_process as pool_worker

    pool_worker.main(sys.argv[1:])
