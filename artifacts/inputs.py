"""Files that come from outside, opened in one way: regular files only, of bounded size, inside the data set.

A pipe in the place of a picture would be waited for without end, a link to a device would fill the memory. Inside
:func:`confined`, a link that leads out of the named folders is refused, too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

MOST_BYTES = 2**31
"""Most bytes of a file that is read whole, unless the caller knows better."""
MOST_TEXT_BYTES = 2**28
"""Most bytes of one text of labels: an XML file, a table, a list."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_roots: ContextVar[tuple[str, ...]] = ContextVar("roots", default=())


class InputFault(OSError):
    """A path that is no file of the data set: a pipe, a device, a link that leads out of it, too many bytes."""


@contextlib.contextmanager
def confined(roots: Iterable[str | Path]) -> Iterator[None]:
    """While it lasts, nothing outside of ``roots`` (files or folders, links in their own paths resolved) is opened."""
    token = _roots.set(tuple(os.path.realpath(root) for root in roots))
    try:
        yield
    finally:
        _roots.reset(token)


def check_link(path: str | Path) -> None:
    """Raise :class:`InputFault` where ``path`` leads out of the folders of :func:`confined`."""
    roots = _roots.get()
    if not roots:
        return
    real = os.path.realpath(path)
    if not any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots):
        raise InputFault(f"{path} leads to {real}, out of the data set; data.follow_links=true follows such links")


def open_input(path: str | Path, limit: int = MOST_BYTES) -> io.BufferedReader:
    """``path`` for reading, in binary. Raises :class:`InputFault` unless it is a regular file of at most ``limit``."""
    check_link(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise InputFault(f"{path} is {_kind(status.st_mode)}, not a file; remove it, or put the file there")
        if status.st_size > limit:
            raise InputFault(f"{path} has {status.st_size:,} bytes, more than the {limit:,} that such a file may have")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_input(path: str | Path, limit: int = MOST_BYTES) -> bytes:
    """The bytes of ``path``. Raises as :func:`open_input`."""
    with open_input(path, limit) as file:
        return file.read()


def has_control(text: str) -> bool:
    """Whether ``text`` holds a line break or another character that steers a terminal or splits a list."""
    return _CONTROL.search(text) is not None


def shown(text: str) -> str:
    """``text`` with such characters written as escapes: safe in a message."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def _kind(mode: int) -> str:
    names = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in names.items() if test(mode)), "a device")
