"""Locks that the kernel frees when their holder dies, however it dies: ``flock`` on a small file.

Two rules make that true. No child inherits the descriptor: ``O_CLOEXEC`` for programs it starts, and a hook
after ``fork`` (a forked loader worker otherwise keeps the lock for as long as it outlives the holder). And no
lock file is ever removed, since a second holder could then lock another file of the same name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

POLL_S = 0.1
"""Seconds between two tries: what a waiter loses at most after the holder's death."""


class Stop(Protocol):
    """What makes a waiter give up, e.g. a ``threading.Event``."""

    def is_set(self) -> bool:
        """Whether to give up."""


class LockAborted(RuntimeError):
    """The run was stopped while it waited for a lock."""


class LockTaken(RuntimeError):
    """Another process holds the lock, and the caller did not want to wait."""


class NoLocks(OSError):
    """The file system has no ``flock``: who needs the lock cannot have it, and may decide to go on without."""

    def __str__(self) -> str:
        return f"{self.filename}: its file system has no locks (flock: {self.strerror}); `maskmill doctor` says more"


_MISSING = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""How file systems say so: NFS without a lock service, Lustre mounted without flock, some of FUSE."""


def lock_folder() -> Path:
    """This machine's folder of locks: ``$MASKMILL_LOCKS``, or ``maskmill-locks`` among the temporary files.

    The default is shared by all users (a GPU is, too), writable by everybody and sticky like ``/tmp`` itself; where
    it is anything else, a folder of our own is used. Raises ``OSError`` if there can be none.
    """
    named = os.environ.get("MASKMILL_LOCKS")
    if named:
        folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    shared = Path(tempfile.gettempdir()) / "maskmill-locks"
    with contextlib.suppress(FileExistsError):
        shared.mkdir()
        shared.chmod(0o1777)
    if _is_real_folder(shared) and os.access(shared, os.W_OK | os.X_OK):
        return shared
    own = shared.with_name(f"maskmill-locks-{os.getuid()}")
    own.mkdir(mode=0o700, exist_ok=True)
    if not _is_real_folder(own) or own.lstat().st_uid != os.getuid():
        raise PermissionError(f"{own} is not a folder of this user; set MASKMILL_LOCKS to a folder of your own")
    return own


def _is_real_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def gpu_lock_path(uuid: str) -> Path:
    """The lock file of one GPU, by its UUID as ``nvidia-smi -L`` prints it."""
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in uuid)
    return lock_folder() / f"gpu-{name}.lock"


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    wait: bool = True,
    shared: bool = False,
    stop: Stop | None = None,
    poll_s: float = POLL_S,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock ``path`` while in the block; threads of one process exclude each other too.

    Args:
        path: the lock file, made if missing.
        shared: exclude only those who hold it alone; the holder that is named is then the last of several.
        wait: otherwise :class:`LockTaken` is raised at once if another process holds it.
        stop: checked while waiting; :class:`LockAborted` if set.
        poll_s: seconds between tries.
        on_wait: called once, with the holder as text ("pid 123 on host"), before waiting.

    Raises :class:`NoLocks` where the file system has none.
    """
    descriptor = _open(path)
    _held.add(descriptor)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        _acquire(descriptor, path, kind, wait=wait, stop=stop, poll_s=poll_s, on_wait=on_wait)
        _sign(descriptor)
        yield
    finally:
        if descriptor in _held:  # not in a forked child, where the number may be another file's by now
            _held.discard(descriptor)
            os.close(descriptor)


def _acquire(
    descriptor: int,
    path: Path,
    kind: int,
    *,
    wait: bool,
    stop: Stop | None,
    poll_s: float,
    on_wait: Callable[[str], None] | None,
) -> None:
    announced = False
    while not _try(descriptor, path, kind):
        if not wait:
            raise LockTaken(f"{path} is held by {holder(path)}")
        if on_wait is not None and not announced:
            announced = True
            on_wait(holder(path))
        if stop is not None and stop.is_set():
            raise LockAborted(f"stopped while waiting for {path}, held by {holder(path)}")
        time.sleep(poll_s)


def _try(descriptor: int, path: Path, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
            return False
        if error.errno in _MISSING:
            raise NoLocks(error.errno, error.strerror, str(path)) from error
        raise
    return True


def held(path: Path) -> bool:
    """Whether a living process holds the lock ``path`` alone. Makes no file, and changes none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _try(descriptor, path, fcntl.LOCK_SH)
    except OSError:  # a file system without locks: nobody can hold one
        return False
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor of our own. The file is made at most once and never with a link followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        # First without O_CREAT: in a sticky folder the kernel may refuse O_CREAT on another user's file.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            if path.parent.stat().st_mode & stat.S_ISVTX:
                os.fchmod(descriptor, 0o666)  # other users lock this file as well, whatever our umask
            return descriptor


def _sign(descriptor: int) -> None:
    """Write our pid into the file, for messages only."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {os.uname().nodename}\n".encode(), 0)


def holder(path: Path) -> str:
    """Who took the lock last, as text."""
    with contextlib.suppress(OSError):
        if text := path.read_text(errors="replace").strip():
            return text
    return "another process"


_held: set[int] = set()
"""Descriptors of this process, to be closed in a forked child. The parent's lock stays: it has its own copy."""


def _close_in_child() -> None:
    for descriptor in list(_held):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
