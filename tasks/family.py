"""A process and all that came from it, as ``/proc`` shows them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path


def family(leader: int) -> dict[int, int]:
    """``{pid: start time}`` of all living processes of ``leader``'s group, session or descent, itself left out.

    Descent matters: torchrun gives each rank a session of its own. Start times (clock ticks since boot) tell a
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
    """Wait until none of these processes runs any more (a kill takes effect when the kernel next looks at them)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any((entry := _stat(pid)) is not None and entry[3] == started for pid, started in members.items()):
            return
        time.sleep(0.005)
