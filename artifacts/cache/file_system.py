"""What the cache needs of the file system that it lies on, tried out: for ``maskmill doctor``.

Everything is tried in a folder of its own (``.maskmill-tmp-...``), which is removed again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts.cache.atomic import fsync_file, fsync_folder, temporary_beside, write_bytes_atomic

LEAST_BYTES = 1 << 30
LEAST_FILES = 10_000
LONG_NAME = 200
"""Bytes of a file's name: of the longest that the cache or an export has."""
SKEW_S = 1.0
"""How far the file system's clock may be from this machine's: newer files are told from older ones by it."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    """What to do, if it is not ok."""


def check_folder(folder: Path) -> list[Check]:
    """Try everything that the store does, in ``folder`` (or where it would be made)."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    trial = temporary_beside(there / "any")
    try:
        trial.mkdir()
    except OSError as error:
        return [Check("writable", False, f"{there}: {error.strerror}", "name another folder, or change its owner")]
    try:
        return [Check("folder", True, f"{there}, {_kind(there)}"), *_tried(trial), *_room(there)]
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _tried(trial: Path) -> Iterator[Check]:
    local = "use a local disk, or another kind of file system, for options.cache"
    locks = "NFS: mount v4, or v3 with lockd and without nolock; Lustre: -o flock; until then one run at a time here"
    names = "put the cache where names may have 200 bytes (eCryptfs takes 143)"
    case = "names that differ in case alone would be one file in an export: rename such pictures, or use another disk"
    clock = "let NTP set the clocks of this machine and of the file server"
    yield _attempted("rename over a file", _rename, trial, local)
    yield _attempted("rename of a folder", _rename_folder, trial, local)
    yield _attempted("fsync", _fsync, trial, local)
    yield _attempted("made once", _exclusive, trial, local)
    yield _attempted("locks (flock)", _locks, trial, locks)
    yield _attempted("long names", _long_names, trial, names)
    yield _attempted("upper and lower case", _case, trial, case)
    yield _attempted("clock", _clock, trial, clock)


def _attempted(name: str, attempt: Callable[[Path], str], trial: Path, fix: str) -> Check:
    """``attempt`` gives "" if all is well, else what is not; an ``OSError`` of it says so, too."""
    folder = trial / name.replace(" ", "-")
    try:
        folder.mkdir()
        problem = attempt(folder)
    except OSError as error:
        problem = error.strerror or str(error)
    return Check(name, not problem, problem or "ok", fix if problem else "")


def _rename(folder: Path) -> str:
    path = folder / "file"
    write_bytes_atomic(path, b"old")
    with open(path, "rb") as before:
        write_bytes_atomic(path, b"new")
        if path.read_bytes() != b"new":
            return "the new content is not seen"
        if before.read() != b"old":
            return "a reader of the old file does not get its old content"
    left = [name for name in os.listdir(folder) if name != "file" and not name.startswith(".nfs")]
    return f"files are left: {left}" if left else ""


def _rename_folder(folder: Path) -> str:
    (folder / "a").mkdir()
    (folder / "a" / "file").write_bytes(b"x")
    os.rename(folder / "a", folder / "b")
    return "" if (folder / "b" / "file").read_bytes() == b"x" else "the content is not seen"


def _fsync(folder: Path) -> str:
    path = folder / "file"
    path.write_bytes(b"x")
    fsync_file(path)
    fsync_folder(folder)
    return ""


def _exclusive(folder: Path) -> str:
    path = folder / "file"
    path.open("xb").close()
    try:
        path.open("xb").close()
    except FileExistsError:
        return ""
    return "a file can be made twice (O_EXCL is ignored)"


_OTHER = "import fcntl,sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def _locks(folder: Path) -> str:
    """A lock that is held here must be refused to another process: one process may be asked about its own."""
    import fcntl

    path = folder / "lock"
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        other = subprocess.run([sys.executable, "-I", "-S", "-c", _OTHER, str(path)], capture_output=True)
    return "" if other.returncode else "two processes get the same lock"


def _long_names(folder: Path) -> str:
    path = folder / ("ü" * (LONG_NAME // 2))
    path.write_bytes(b"x")
    return "" if path.name in os.listdir(folder) else "a name is changed (its letters, or its length)"


def _case(folder: Path) -> str:
    (folder / "a").write_bytes(b"x")
    return "A and a are one name" if (folder / "A").exists() else ""


def _clock(folder: Path) -> str:
    path = folder / "file"
    before = time.time()
    path.write_bytes(b"x")
    modified, after = path.stat().st_mtime, time.time()
    apart = max(before - modified, modified - after)
    return f"a file's time is {apart:.1f} s from this machine's" if apart > SKEW_S else ""


def _room(folder: Path) -> Iterator[Check]:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    yield Check(
        "free space",
        free >= LEAST_BYTES,
        f"{free / (1 << 30):.1f} GiB",
        "" if free >= LEAST_BYTES else "free some, or `maskmill cache compact` and `maskmill cache rm`",
    )
    if status.f_files:  # else the file system makes them as they are needed
        enough = status.f_favail >= LEAST_FILES
        yield Check("free files", enough, f"{status.f_favail:,}", "" if enough else "remove small files")


def _kind(path: Path) -> str:
    """The kind of file system that ``path`` lies on, as the kernel calls it."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return "unknown"
    best = ("", "unknown")
    for line in lines:
        fields = line.split(" ")
        place = fields[1].replace("\\040", " ")
        if path.is_relative_to(place) and len(place) >= len(best[0]):
            best = place, fields[2]
    return best[1]
