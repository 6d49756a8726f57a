"""A child process that dies with the process that started it, however that one ends.

The kernel's parent-death signal has two traps. It is sent when the *thread* that forked the child ends, so
children are started by one long-lived thread only. And it must be asked for by the child itself, so a parent that
dies before the child has come that far is missed: hence the look at ``getppid`` afterwards.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(expected_ppid: int) -> None:
    """First act of every child: SIGKILL for this process as soon as the thread that started it ends.

    Args:
        expected_ppid: pid of the process that started this one, handed down by it (an argument, an environment
            variable). If it is not our parent any more, it is dead already, and this process kills itself.

    Call it once, in the child, before anything slow. Elsewhere than on Linux only the check is done.
    """
    if _libc is not None and _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl(PR_SET_PDEATHSIG): {os.strerror(errno)}")
    if os.getppid() != expected_ppid:
        os.kill(os.getpid(), signal.SIGKILL)
