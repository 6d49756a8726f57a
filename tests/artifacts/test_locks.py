"""Locks: one holder at a time, freed by the kernel whatever happens to it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifacts.cache import locks

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from artifacts.cache import locks
with locks.hold(Path(sys.argv[1])):
    {inside}
    print("held", flush=True)
    time.sleep(60)
"""
FORK = """
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
"""
EXEC = """
    print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
"""
NOTHING = """
    print(0, flush=True)
"""

Started = tuple[subprocess.Popen[str], int]


@pytest.fixture
def start() -> Iterator[Callable[[Path, str], Started]]:
    """Start a process that holds a lock; gives it and the pid of its child."""
    pids: list[int] = []

    def go(path: Path, inside: str = NOTHING) -> Started:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(inside=inside), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.stdout.readline() == "held\n"
        pids.extend(pid for pid in (process.pid, child) if pid)
        return process, child

    yield go
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def taken(path: Path) -> bool:
    try:
        with locks.hold(path, wait=False):
            return False
    except locks.LockTaken:
        return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_held_in_the_block_and_free_after_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with locks.hold(path):
        assert taken(path)
    assert not taken(path)
    with pytest.raises(KeyError), locks.hold(path):
        raise KeyError
    assert not taken(path)


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [0], [0]

    def work() -> None:
        with locks.hold(path, poll_s=0.001):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1]


@pytest.mark.parametrize("inside", [NOTHING, FORK, EXEC], ids=["alone", "forked child lives", "program lives"])
def test_a_killed_holder_frees_the_lock_at_once(
    tmp_path: Path, start: Callable[[Path, str], Started], inside: str
) -> None:
    path = tmp_path / "lock"
    process, child = start(path, inside)
    assert taken(path)
    holders: list[str] = []
    threading.Timer(0.3, process.kill).start()
    late = threading.Event()
    watch = threading.Timer(5.0, late.set)
    watch.start()
    before = time.monotonic()
    with locks.hold(path, stop=late, on_wait=holders.append):
        waited = time.monotonic() - before
    watch.cancel()
    process.wait()
    assert 0.2 < waited < 1.5
    assert holders == [f"pid {process.pid} on {os.uname().nodename}"]
    assert not child or alive(child), "the child was to outlive the holder"


def test_the_parent_keeps_its_lock_when_a_forked_child_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.hold(path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert taken(path)


def test_a_forked_child_closes_nothing_that_it_opened_itself(tmp_path: Path) -> None:
    """Leaving the block in the child must not close a descriptor whose number was given out anew."""
    hold = locks.hold(tmp_path / "lock")
    hold.__enter__()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            other = os.open(tmp_path / "lock", os.O_RDONLY)  # takes the lowest number, the closed lock's
            hold.__exit__(None, None, None)
            os.fstat(other)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    hold.__exit__(None, None, None)


def test_stop_ends_the_waiting(tmp_path: Path) -> None:
    path, stop = tmp_path / "lock", threading.Event()
    with locks.hold(path):
        threading.Timer(0.15, stop.set).start()
        with pytest.raises(locks.LockAborted, match=f"stopped while waiting for .*lock, held by pid {os.getpid()}"):
            locks.hold(path, stop=stop, poll_s=0.02).__enter__()


def test_not_waiting_names_the_holder(tmp_path: Path) -> None:
    with locks.hold(tmp_path / "lock"), pytest.raises(locks.LockTaken, match=f"held by pid {os.getpid()} on"):
        locks.hold(tmp_path / "lock", wait=False).__enter__()


def test_the_file_stays_and_links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.hold(path):
        inode = path.stat().st_ino
    with locks.hold(path):
        assert path.stat().st_ino == inode
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError, match="link"):
        locks.hold(tmp_path / "link").__enter__()
    assert victim.read_text() == "precious"


def test_the_folder_is_one_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKMILL_LOCKS", str(tmp_path / "named"))
    assert locks.gpu_lock_path("GPU-1a/..b") == tmp_path / "named" / "gpu-GPU-1a___b.lock"
    monkeypatch.delenv("MASKMILL_LOCKS")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = locks.lock_folder()
    assert folder == tmp_path / "maskmill-locks"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    with locks.hold(folder / "gpu.lock"):
        assert stat.S_IMODE((folder / "gpu.lock").stat().st_mode) == 0o666
    assert locks.lock_folder() == folder


def test_a_link_in_the_folders_place_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKMILL_LOCKS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "maskmill-locks").symlink_to(tmp_path / "elsewhere")
    own = locks.lock_folder()
    assert own == tmp_path / f"maskmill-locks-{os.getuid()}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.rmdir()
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((PermissionError, FileExistsError)):
        locks.lock_folder()
