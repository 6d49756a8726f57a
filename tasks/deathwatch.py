"""A child that does not outlive its parent, not even one killed by ``kill -9``.

Every process of a run calls :func:`die_with_parent` as its first act; ``tasks/guard.py`` does it for commands that
cannot. Only the standard library is imported, and little of it: this is on the path of every child's start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have this process killed (SIGKILL) when the thread that started it ends.

    ``parent_pid`` is who must still be the parent: if it died before the kernel was asked, this process
    dies here. ``None`` accepts whoever is the parent now. The kernel watches the starting THREAD, not its
    process, so children are started by a thread that lives as long as the run (``tasks.children.Supervisor``).
    Where there is no ``prctl`` (not Linux) a thread looks twice a second instead.
    """
    expected = os.getppid() if parent_pid is None else parent_pid
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        threading.Thread(target=_watch, args=(expected,), daemon=True, name="deathwatch").start()
    elif prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed: " + os.strerror(ctypes.get_errno()))
    _die_unless(expected)


def _die_unless(expected: int) -> None:
    if os.getppid() != expected:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(expected: int) -> None:
    while True:
        time.sleep(0.5)
        _die_unless(expected)
