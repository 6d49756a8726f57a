"""Ctrl-C and SIGTERM for a command whose threads compute: it ends at once, with a message, and no file is half-written.

Waiting for the threads may take minutes (a large picture), and an interpreter that ends while they compute may abort:
they request its lock from C++ (OpenCV), where the thread exit that it then tries fails. So the process ends
without the interpreter's own end, as soon as nobody is writing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Writes:
    """What threads write. A stop waits for writes in progress, and lets no other begin."""

    def __init__(self) -> None:
        self.done = 0
        """How many have been finished without an error."""
        self._changed = threading.Condition()
        self._now = 0
        self._closed = False

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """The files that belong to one item: a stop finds all of them or none."""
        with self._changed:
            while self._closed:
                self._changed.wait()  # for ever: the process ends
            self._now += 1
        done = 0
        try:
            yield
            done = 1
        finally:
            with self._changed:
                self._now -= 1
                self.done += done
                self._changed.notify_all()

    def close(self) -> None:
        """Return when no write is in progress; none can begin afterwards."""
        with self._changed:
            self._closed = True
            while self._now:
                self._changed.wait()


@contextlib.contextmanager
def stopping(writes: Writes, on_stop: Callable[[str], None]) -> Iterator[None]:
    """Within, SIGINT and SIGTERM end the process with 130 and 143; further ones change nothing.

    Args:
        writes: what the threads write through; the main thread must not.
        on_stop: called with the signal's name after the last write.

    A signal that the process was started to ignore stays ignored. To be used in the main thread.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        writes.close()
        with contextlib.suppress(Exception):  # a closed terminal must not keep the process
            on_stop(signal.Signals(number).name)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(128 + number)

    before = {one: signal.getsignal(one) for one in SIGNALS}
    own = [one for one in SIGNALS if before[one] is not signal.SIG_IGN]
    for one in own:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one in own:
            signal.signal(one, before[one])
