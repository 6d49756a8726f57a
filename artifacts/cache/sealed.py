"""JSON files that know whether they are as written: the first line is ``{"crc32": "1a2b3c4d",``, of all that follows.

Any JSON reader reads them. Whatever of them can be made again is put aside where it is damaged (``<name>.corrupt``),
so that no run stops at it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("maskmill")

_FIRST = re.compile(rb'\{"crc32": "([0-9a-f]{8})",\n')


def seal(value: Mapping[str, Any], *, indent: int | None = None, sort_keys: bool = False) -> bytes:
    """``value`` (not empty) as sealed JSON. A file name need not be UTF-8: surrogateescape keeps its bytes."""
    text = json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False)
    body = text[1:].lstrip().encode(errors="surrogateescape") + b"\n"
    return f'{{"crc32": "{zlib.crc32(body):08x}",\n'.encode() + body


def unseal(data: bytes) -> dict[str, Any]:
    """What :func:`seal` was given. Raises ``ValueError`` where the bytes are others."""
    first = _FIRST.match(data)
    if first is None:
        raise ValueError("it does not begin with its checksum: cut, or no file of Maskmill")
    body = data[first.end() :]
    if zlib.crc32(body) != int(first[1], 16):
        raise ValueError("its checksum differs: it was changed after it was written")
    found: dict[str, Any] = json.loads("{" + body.decode(errors="surrogateescape"))
    return found


def put_aside(path: Path, why: object) -> Path | None:
    """Rename a damaged file that can be made again to ``<name>.corrupt``, with a warning.

    ``None`` where that cannot be done (a read-only cache); the file then counts as absent all the same.
    """
    aside = path.with_name(f"{path.name}.corrupt")
    try:
        os.replace(path, aside)
    except OSError as error:
        log.warning("%s is damaged (%s) and is not used; it cannot be put aside: %s", path, why, error.strerror)
        return None
    log.warning("%s was damaged (%s) and was put aside as %s; it is made again", path, why, aside.name)
    return aside
