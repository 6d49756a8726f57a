"""Segments that another program had open for writing, whose content is as it was.

HDF5 cuts off what lies after its own end when it closes a file that it could have written: our footer goes, and with it
what a segment is known by. Whether the content is what was written is known all the same: the deflated index has a
checksum, it holds the checksum of every chunk, and the digest of every image's arrays.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import h5py

from artifacts.cache.chunks import Chunk
from artifacts.cache.segments import FOOTER, MAGIC, footer
from artifacts.inputs import read_input

CHANGED = "another program had it open for writing and cut its footer off; its content is as written"


def with_footer(path: Path) -> bytes | None:
    """The bytes of the segment with a footer again; ``None`` if it has one, or is no HDF5 file with a sound index.

    Only footer and index are judged: whoever takes the bytes verifies them. Raises ``OSError`` if it cannot be read.
    """
    data = read_input(path)
    if data[-FOOTER.size :].startswith(MAGIC):
        return None
    try:
        with h5py.File(io.BytesIO(data)) as file:
            found = file["index"].id.get_chunk_info(0)
        stored = data[found.byte_offset : found.byte_offset + found.size]
        zlib.decompress(stored)  # its checksum; an index that is not deflated has none, and fails here, too
    except Exception:  # damaged metadata makes h5py raise nearly anything
        return None
    return data + footer(data, Chunk(found.byte_offset, found.size, zlib.crc32(stored), found.filter_mask))
