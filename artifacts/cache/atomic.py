"""The one way in which Maskmill writes a file: aside, flushed, synced, renamed.

A reader therefore sees the old file, the new file or none, never half of one. What a kill leaves
behind is a temporary file, whose name marks it as removable (:func:`sweep_temporaries`).

:func:`kill_point` marks the instants at which a kill is most likely to do harm. Tests set
``MASKMILL_KILL_AT`` to reach each of them; without it the call costs a dictionary look-up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from artifacts.records import DataError

TEMPORARY_PREFIX = ".maskmill-tmp-"
"""Every unfinished file or folder starts with this, followed by its writer's pid."""

KILL_POINTS = (
    "store.after_write",
    "store.before_fsync",
    "store.before_rename",
    "store.after_rename",
    "fit.mid_checkpoint",
    "fit.mid_publish",
    "export.mid_export",
)
"""The named instants. ``store.after_rename`` lies between a segment's rename and its index."""


def kill_point(name: str) -> None:
    """Die here, with the whole run, if the environment says so.

    ``MASKMILL_KILL_AT=store.before_rename`` kills at the first arrival, ``store.before_rename:3`` at
    the third in one process. The run's own process group (``MASKMILL_RUN_PGID``, set by the test) is
    killed with it, since a run survives a worker's death alone.
    """
    wanted = os.environ.get("MASKMILL_KILL_AT")
    if not wanted:
        return
    point, _, nth = wanted.partition(":")
    if point != name:
        return
    _arrivals[name] = _arrivals.get(name, 0) + 1
    if _arrivals[name] < int(nth or 1):
        return
    group = os.environ.get("MASKMILL_RUN_PGID")
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(group), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


_arrivals: dict[str, int] = {}


def temporary_beside(path: Path) -> Path:
    """A fresh name in ``path``'s folder (same file system, so that the rename is atomic)."""
    return path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}"


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Flush ``path``'s content to the disk, whichever process wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write ``path`` through ``write(file)`` so that it is there whole or not at all.

    ``durable=False`` leaves out the syncs: right for what can be rebuilt (an index, a picture).
    A failing ``write`` removes the temporary file and raises what it raised; an ``OSError`` names ``path``.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with open(temporary, "xb") as file:
                write(file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            fsync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An ``OSError`` within names ``path``, where it would name nothing (a full disk), a temporary beside it, or the
    file that is being copied there.
    """
    try:
        yield
    except OSError as error:
        copied = error.filename2 is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if error.filename is not None and TEMPORARY_PREFIX not in str(error.filename) and not copied:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_bytes_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """:func:`write_atomic` of bytes in memory."""
    write_atomic(path, lambda file: file.write(data), durable=durable)


def write_text_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """:func:`write_atomic` of UTF-8 text in memory; a file name in it that is no text is written as JSON escapes it."""
    write_bytes_atomic(path, text.encode(errors="backslashreplace"), durable=durable)


def check_writable(option: str, folder: Path | None) -> None:
    """Raise :class:`DataError` where no file can be made in ``folder`` (of ``--option``); it need not exist yet.

    For the time before the work, which may take hours: every command asks here. ``None`` (the option is not given) is
    fine. Leaves no files.
    """
    if folder is None:
        return
    there = folder
    try:
        while not (there.exists() or there.is_symlink()):
            there = there.parent
        if not there.is_dir():
            raise DataError(f"--{option} {folder}: {there} is no folder; name another place")
        probe = temporary_beside(there / "any")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise DataError(
            f"--{option} {folder}: nothing can be written in {there} ({error.strerror}); name another folder, or"
            " give yourself write permission there"
        ) from error


def check_file_writable(option: str, path: Path | None) -> None:
    """:func:`check_writable` of the folder of a file (of ``--option``), which may be there: it is replaced."""
    if path is None:
        return
    check_writable(option, path.parent)
    if path.is_dir():
        raise DataError(f"--{option} {path}: is a folder; name a file")


def fsync_tree(folder: Path) -> None:
    """Sync every file and folder below ``folder``, and itself."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            fsync_file(file)
        elif file.is_dir():
            fsync_folder(file)
    fsync_folder(folder)


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place, its files synced first.

    Raises ``FileExistsError`` if ``final`` exists: published folders are never overwritten.
    """
    fsync_tree(temporary)
    if final.exists():
        raise FileExistsError(f"{final} is already published")
    os.rename(temporary, final)
    fsync_folder(final.parent)


def sweep_temporaries(folder: Path, *, older_than_s: float = 3600.0) -> int:
    """Remove what killed writers left in ``folder``; returns how many entries went.

    A temporary of a living process of this machine is left alone, and so is one younger than
    ``older_than_s`` whose writer cannot be judged (the cache may be shared over a network).
    """
    removed = 0
    for entry in abandoned(folder, older_than_s=older_than_s):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        removed += 1
    return removed


def abandoned(folder: Path, *, older_than_s: float = 3600.0) -> list[Path]:
    """What :func:`sweep_temporaries` would remove from ``folder``."""
    return [entry for entry in folder.glob(f"{TEMPORARY_PREFIX}*") if _abandoned(entry, older_than_s)]


def process_lives(pid: str) -> bool:
    """Whether a process of this machine has that number."""
    return Path(f"/proc/{pid}").exists()


def _abandoned(entry: Path, older_than_s: float) -> bool:
    # An export's folder may hold other files: only names that temporary_beside gives are Maskmill's.
    name = re.fullmatch(rf"{re.escape(TEMPORARY_PREFIX)}(\d+)-[0-9a-f]{{12}}", entry.name)
    if name is None or process_lives(name[1]):
        return False
    with contextlib.suppress(FileNotFoundError):
        return time.time() - entry.stat().st_mtime >= older_than_s
    return False
