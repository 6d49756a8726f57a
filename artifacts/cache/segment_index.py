"""The files of an address: segments, and beside each its index, so that listing opens no HDF5 file.

``<segment>.idx``: a JSON line with format, size of the segment and CRC-32 of the rest; a line with ``codec``,
``address`` and ``meta``; then a line ``[key, stamp, output, reason]`` an image. It repeats the segment's header, and
whatever is missing, damaged, or made for a file of another size is rebuilt from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.cache import atomic
from artifacts.cache.segments import Content, Header

INDEX_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One image in the index of an address."""

    key: str
    stamp: str
    segment: str
    """File name of the segment, in the address's folder."""
    output: str | None
    """Digest of the arrays; ``None`` if the image was skipped."""
    reason: str | None = None
    """Why the image was skipped."""


def segment_names(folder: Path) -> list[str]:
    """File names of the segments in ``folder``, oldest first."""
    return sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))


_NAME = re.compile(r"\d{8}-[0-9a-f]+\.h5")


def write_durably(folder: Path, data: bytes, after: str | None = None) -> Path:
    """Write a segment's bytes: aside, flushed, synced, renamed, folder synced. Whatever fails leaves nothing.

    The name is the last in ``folder``'s order, or the one right ``after`` a segment of that name.
    """
    temporary = atomic.temporary_beside(folder / "segment")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            atomic.kill_point("store.after_write")
            file.flush()
            atomic.kill_point("store.before_fsync")
            os.fsync(file.fileno())
        atomic.kill_point("store.before_rename")
        path = folder / (_next_name(folder) if after is None else _name_after(after))
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    atomic.fsync_folder(folder)
    return path


def _next_name(folder: Path) -> str:
    last = max((int(name.partition("-")[0]) for name in segment_names(folder)), default=0)
    return f"{last + 1:08d}-{secrets.token_hex(4)}.h5"


def _name_after(name: str) -> str:
    """``00000007-ab.h5`` -> ``00000007-ab1c5e.h5``: '.' sorts before digits and letters, so nothing lies between."""
    return f"{name.removesuffix('.h5')}{secrets.token_hex(2)}.h5"


def index_path(segment: Path) -> Path:
    """The index beside ``segment``."""
    return segment.with_suffix(".idx")


def entries_of(name: str, contents: Iterable[Content]) -> tuple[Entry, ...]:
    """Index entries of a segment named ``name``."""
    return tuple(Entry(c.key, c.stamp, name, c.output, c.reason) for c in contents)


def write_index(segment: Path, header: Header) -> None:
    """Keep the header's index beside the segment. Only a convenience: a failure is not an error."""
    lines = [json.dumps({"codec": header.codec, "address": header.address, "meta": header.meta})]
    lines += [json.dumps([c.key, c.stamp, c.output, c.reason]) for c in header.contents]
    body = "\n".join(lines).encode()
    with contextlib.suppress(OSError):
        first = {"format": INDEX_FORMAT, "segment_bytes": segment.stat().st_size, "crc32": zlib.crc32(body)}
        data = json.dumps(first).encode() + b"\n" + body
        atomic.write_bytes_atomic(index_path(segment), data, durable=False)


def read_index(segment: Path) -> tuple[dict[str, Any], tuple[Entry, ...]] | None:
    """``({"codec", "address", "meta"}, entries)`` from the index beside ``segment``.

    ``None`` if it is missing, damaged, of another address, or made for a file of another size (so that a segment that
    was cut or does not belong here is opened, and found out). Raises ``FileNotFoundError`` if the segment is gone.
    """
    size = segment.stat().st_size
    try:
        first, _, body = index_path(segment).read_bytes().partition(b"\n")
        head = json.loads(first)
        if (head["format"], head["segment_bytes"], head["crc32"]) != (INDEX_FORMAT, size, zlib.crc32(body)):
            return None
        about, *rows = json.loads(b"[" + body.replace(b"\n", b",") + b"]")
        if about["address"] != segment.parent.name:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = segment.name
    return about, tuple(Entry(key, stamp, name, output, reason) for key, stamp, output, reason in rows)
