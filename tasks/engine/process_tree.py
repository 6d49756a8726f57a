"""Processes that do not outlive their parent, and a process with all its descendants.

A child that calls :func:`die_with_parent` as its first act dies with the thread that started it, even if that was
killed by ``kill -9``. ``python tasks/engine/process_tree.py PARENT_PID COMMAND ...`` becomes COMMAND, which dies with
PARENT_PID: for commands that cannot request their parent-death signal themselves (torchrun, a shell); the request
survives ``exec``. It is run by path, in an isolated interpreter without site packages, so that it costs some 20 ms.
Only the standard library is imported, and little of it: this is on the path of every child's start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have this process killed (SIGKILL) when the thread that started it ends.

    ``parent_pid`` is who must still be the parent: if it died before the request, this process
    dies here. ``None`` accepts any current parent. The kernel watches the starting THREAD, not its
    process, so children are started by a thread that lives as long as the run (``tasks.engine.children.Supervisor``).
    Without ``prctl`` (not Linux) a thread checks twice a second instead.
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


# -- a process and its descendants ------------------------------------------------------------------------------------


def family(leader: int) -> dict[int, int]:
    """``{pid: start time}`` of all living processes of ``leader``'s group, session or descendants, itself left out.

    Descendants matter: torchrun gives each rank a session of its own. Start times (clock ticks since boot) tell a
    process from a later one with its number. Empty where there is no ``/proc``.
    """
    table = _process_table()
    members = {pid for pid, (_, group, session, _) in table.items() if leader in (group, session)} | {leader}
    grown = True
    while grown:
        more = {pid for pid, (parent, *_) in table.items() if parent in members} - members
        members |= more
        grown = bool(more)
    return {pid: table[pid][3] for pid in members - {leader, os.getpid()} if pid in table}


def _process_table() -> dict[int, tuple[int, int, int, int]]:
    """pid -> (parent, group, session, start time), zombies left out."""
    table = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (entry := _stat(int(name))) is not None:
                table[int(name)] = entry
    return table


def _stat(pid: int) -> tuple[int, int, int, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name, in brackets, may hold anything: count from its end.
    state, parent, group, session, *rest = text[text.rindex(")") + 2 :].split()
    return None if state in "ZX" else (int(parent), int(group), int(session), int(rest[15]))


def group_of(pid: int) -> int | None:
    """Process group of ``pid``; a process signalled through its group is not signalled twice."""
    entry = _stat(pid)
    return None if entry is None else entry[1]


def signal_members(members: Mapping[int, int], number: int) -> None:
    """Signal those that are still the processes they were."""
    for pid, started in members.items():
        current = _stat(pid)
        if current is not None and current[3] == started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def wait_until_gone(members: Mapping[int, int], within_s: float) -> None:
    """Wait until none of these processes runs any more (a kill takes effect when the kernel next schedules them)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any((entry := _stat(pid)) is not None and entry[3] == started for pid, started in members.items()):
            return
        time.sleep(0.005)


# -- commands that cannot request the signal themselves ---------------------------------------------------------------


def become(arguments: list[str]) -> None:
    """Become the command. Exit code 127: it cannot be started."""
    die_with_parent(int(arguments[0]))
    # Python ignores these two at its start, and what is ignored stays so through exec.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(arguments[1], arguments[1:])
    except OSError as error:
        print(f"cannot start {arguments[1]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    become(sys.argv[1:])
