"""One segment: an immutable HDF5 file that holds the arrays of up to 64 images or so.

Layout (plain h5py reads it; ``docs/cache.md`` has the ten lines):

``/``                   attributes ``maskmill_segment`` (format version), ``codec``
``/index``              JSON as uint8, deflated (every h5py reads it): ``{"format", "codec", "address", "meta",
                        "packed", "entries"}`` with one entry, on one line, an image: ``{"key", "stamp", "output",
                        "reason", "arrays"}``, where ``arrays`` maps a name to ``[dtype, shape, start, chunks]``
``/arrays/<name>/<i>``  array ``<name>`` of entry ``i``, in its own shape (``start`` is null)
``/arrays/<name>``      a dataset instead of a group: the arrays of all entries end to end, entry ``i`` from element
                        ``start`` on (small arrays: ids, windows, offsets; dtype, length, chunks: ``packed[name]``)
after HDF5's end        a footer of 48 bytes that says where ``/index`` is stored (HDF5 does not look there)

A chunk is ``[offset in the file, size, crc32, filter mask]``, the CRC-32 taken over the bytes as stored.

Why so. A dataset an image in its own shape keeps masks of any size without padding, and a random read inflates one
image and nothing else. With HDF5's old file format each such dataset costs 2.7 KB of B-tree, as much as the mask;
``libver="latest"`` keeps the place of a single chunk in the dataset's header (0.4 KB). Small arrays would cost more in
headers than in content, so they lie end to end. A reader finds a chunk by footer and index, checks its CRC (1 us for
3 KB, where a CRC of the 300 KB array costs more than inflating it) and inflates it, without opening the file as HDF5
(:mod:`artifacts.cache.chunks` says why). Measured on 64 real masks (480 x 640, COCO): zstd-1 3.0 KB a mask and 3,600
writes/s; zstd-3 3.2 KB, 2,900; deflate-1 6.5 KB, 1,500; deflate-4 4.8 KB, 920; PNG 4.5 KB, 1,750.

The digest of the arrays themselves (``output``), and that plain h5py sees the same arrays, is checked by
``maskmill cache verify``.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.cache import chunks
from artifacts.cache.chunks import Chunk, Codec
from artifacts.records import Skip

Arrays = Mapping[str, NDArray[Any]]
Item = tuple[str, str, Arrays | Skip]
"""``(key, stamp, arrays or skip)``."""

SEGMENT_FORMAT = 2
PACK_MEAN_BYTES = 4096
"""Arrays of this many bytes an image, or fewer, lie end to end in one dataset."""
FIX = "run `maskmill cache verify --repair`; the next run computes these images again"
FOOTER = struct.Struct("<8sIQQIII4xI")
"""Magic, format, size of the file, then offset, size, CRC-32 and filter mask of the index, CRC-32 of all before."""
MAGIC = b"mmseg\r\n\x1a"


class StoreError(Exception):
    """The cache cannot be used as requested; the message names the path and what to do."""


class CorruptSegment(StoreError):
    """A segment whose bytes are not what was written: truncated, flipped, or no HDF5 at all."""

    def __init__(self, segment: Path, what: str, key: str | None = None) -> None:
        self.segment = segment
        self.key = key
        self.what = what
        super().__init__(f"{segment} is damaged ({what}){f' at {key}' if key else ''}; {FIX}")

    def __reduce__(self) -> tuple[type[CorruptSegment], tuple[Path, str, str | None]]:
        return CorruptSegment, (self.segment, self.what, self.key)


@dataclass(frozen=True, slots=True)
class Stored:
    """How one array lies in its segment."""

    dtype: str
    shape: tuple[int, ...]
    start: int | None
    """First element in the packed dataset; ``None`` for a dataset of its own."""
    chunks: tuple[Chunk, ...] = ()
    """Of a dataset of its own."""


@dataclass(frozen=True, slots=True)
class Content:
    """One image in a segment: arrays, or the reason why there are none."""

    key: str
    stamp: str
    output: str | None
    """:func:`keys.digest_arrays` of the arrays; ``None`` for a skip."""
    reason: str | None
    arrays: Mapping[str, Stored] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """A segment's header."""

    codec: Codec
    address: str
    """Of the stage; it is the name of the folder, too, or the segment lies in a wrong one."""
    meta: Mapping[str, Any]
    contents: tuple[Content, ...]
    packed: Mapping[str, Stored] = field(default_factory=dict)
    """The datasets in which small arrays lie end to end."""


# -- writing -------------------------------------------------------------------------------------------------------


def best_codec() -> Codec:
    """``zstd`` where hdf5plugin is installed, else ``gzip``."""
    return "zstd" if chunks.zstd_at_hand() else "gzip"


def encode_segment(
    items: Sequence[Item], *, address: str, meta: Mapping[str, Any], codec: Codec
) -> tuple[bytes, Header]:
    """The bytes of a segment of ``address`` that holds ``items``, and its header. Nothing touches the disk.

    The file is built in memory, so that a full disk is an ``OSError`` of one write and not HDF5's state in the
    middle of a close. Equal items give equal bytes.

    Raises:
        ValueError: an array whose name or dtype has no place in a segment, or a ``(key, stamp)`` given twice.
        StoreError: ``zstd`` is requested and hdf5plugin is not installed.
    """
    if codec == "zstd" and not chunks.zstd_at_hand():
        raise StoreError("codec zstd needs the package hdf5plugin: install it, or write with codec gzip")
    plain = [_normalised(item) for item in items]
    if len({(key, stamp) for key, stamp, _ in plain}) != len(plain):
        raise ValueError("one segment was given the same (key, stamp) twice")
    with chunks.memory_file() as file:
        stored, packed = _write_arrays(file, plain, codec)
        contents = tuple(
            Content(key, stamp, None, value.reason)
            if isinstance(value, Skip)
            else Content(key, stamp, keys.digest_arrays(value), None, stored[i])
            for i, (key, stamp, value) in enumerate(plain)
        )
        header = Header(codec, address, dict(meta), contents, packed)
        (index,) = _write_index(file, header)
        file.flush()
        image = bytes(file.id.get_file_image())
    return image + footer(image, index), header


def _normalised(item: Item) -> Item:
    key, stamp, value = item
    if isinstance(value, Skip):
        return item
    return key, stamp, {name: _little_endian(key, name, np.asarray(array)) for name, array in sorted(value.items())}


def _little_endian(key: str, name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not name or "/" in name or name in (".", ".."):
        raise ValueError(f"{key}: {name!r} cannot name an array; use letters, digits and _")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{key}: array {name} has dtype {array.dtype}; bool, integers and floats can be stored")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(array.shape)  # ascontiguousarray makes 0-d arrays 1-d


def _write_arrays(file: Any, items: Sequence[Item], codec: Codec) -> tuple[list[dict[str, Stored]], dict[str, Stored]]:
    """Write all arrays; returns how each item's arrays are stored, and the packed datasets."""
    by_name: dict[str, dict[int, NDArray[Any]]] = {}
    for i, (_, _, value) in enumerate(items):
        if not isinstance(value, Skip):
            for name, array in value.items():
                by_name.setdefault(name, {})[i] = array
    stored: list[dict[str, Stored]] = [{} for _ in items]
    packed: dict[str, Stored] = {}
    root = h5py.h5g.create(file.id, b"arrays")
    for name, arrays in sorted(by_name.items()):
        if _is_small(list(arrays.values())):
            packed[name] = _pack(root, name, list(arrays.values()), codec)
            start = 0
            for i, array in arrays.items():
                stored[i][name] = Stored(array.dtype.str, array.shape, start)
                start += array.size
        else:
            group = h5py.h5g.create(root, name.encode())
            for i, array in arrays.items():
                written = chunks.write_dataset(group, str(i), array if array.ndim else array.reshape(1), codec)
                stored[i][name] = Stored(array.dtype.str, array.shape, None, tuple(written))
    return stored, packed


def _is_small(arrays: Sequence[NDArray[Any]]) -> bool:
    same = len({array.dtype for array in arrays}) == 1
    return same and sum(array.nbytes for array in arrays) <= PACK_MEAN_BYTES * len(arrays)


def _pack(root: Any, name: str, arrays: Sequence[NDArray[Any]], codec: Codec) -> Stored:
    """All arrays of one name end to end in one dataset."""
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    return Stored(flat.dtype.str, flat.shape, None, tuple(chunks.write_dataset(root, name, flat, codec)))


def _write_index(file: Any, header: Header) -> list[Chunk]:
    entries = [
        _compact_json(
            {
                "key": content.key,
                "stamp": content.stamp,
                "output": content.output,
                "reason": content.reason,
                "arrays": {name: _as_json(stored) for name, stored in content.arrays.items()},
            }
        )
        for content in header.contents
    ]
    packed = {name: _as_json(stored) for name, stored in header.packed.items()}
    about = {
        "format": SEGMENT_FORMAT,
        "codec": header.codec,
        "address": header.address,
        "meta": header.meta,
        "packed": packed,
    }
    text = (_compact_json(about)[:-1] + ',"entries":[\n' + ",\n".join(entries) + "\n]}").encode()
    file.attrs["maskmill_segment"] = SEGMENT_FORMAT
    file.attrs["codec"] = header.codec
    return chunks.write_dataset(file.id, "index", np.frombuffer(text, np.uint8), "gzip")


_compact_json = json.JSONEncoder(separators=(",", ":")).encode


def _as_json(stored: Stored) -> list[Any]:
    return [stored.dtype, stored.shape, stored.start, stored.chunks]


def _from_json(value: list[Any]) -> Stored:
    dtype, shape, start, listed = value
    return Stored(dtype, tuple(shape), start, tuple(Chunk(*chunk) for chunk in listed))


def footer(image: bytes, index: Chunk) -> bytes:
    """What follows HDF5's end: where ``image`` holds the index."""
    if zlib.crc32(image[index.offset : index.offset + index.size]) != index.crc32:
        raise StoreError(f"h5py {h5py.__version__} does not report where a chunk lies; install the locked version")
    checked = FOOTER.pack(MAGIC, SEGMENT_FORMAT, len(image) + FOOTER.size, *index, 0)[:-4]
    return checked + struct.pack("<I", zlib.crc32(checked))


# -- reading -------------------------------------------------------------------------------------------------------


class Segment:
    """A segment's index, and what it takes to read its arrays. No file stays open.

    Raises on opening: :class:`CorruptSegment` (of another address, too), :class:`StoreError` (written by a newer
    version), ``OSError`` (missing, forbidden, the disk failed).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for a writer
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CorruptSegment(path, "it is no regular file")
            self._index = _read_index(path, descriptor)
        finally:
            os.close(descriptor)
        first = self._index.partition(b"\n")[0]
        about = json.loads(first + b"]}")
        self.codec: Codec = about["codec"]
        self.address: str = about["address"]
        if self.address != path.parent.name:
            raise CorruptSegment(path, f"it belongs to {self.address}, and was copied here by mistake")
        self.meta: Mapping[str, Any] = about["meta"]
        self.packed = {name: _from_json(value) for name, value in about["packed"].items()}
        self._flat: dict[str, NDArray[Any]] = {}

    @cached_property
    def contents(self) -> tuple[Content, ...]:
        """Everything that is stored, in the order of writing."""
        return tuple(_content(entry) for entry in json.loads(self._index)["entries"])

    @property
    def header(self) -> Header:
        """What :func:`encode_segment` returned."""
        return Header(self.codec, self.address, self.meta, self.contents, self.packed)

    def content(self, key: str, stamp: str) -> Content | None:
        """What the segment holds of ``(key, stamp)``, if anything."""
        line = self._line(key, stamp)
        return None if line is None else _content(json.loads(line))

    def _line(self, key: str, stamp: str) -> bytes | None:
        """The entry's line. No JSON string holds a line break, so what is found is an entry's beginning."""
        begin = self._index.find(("\n" + _compact_json({"key": key, "stamp": stamp})[:-1] + ",").encode())
        if begin < 0:
            return None
        return self._index[begin + 1 : self._index.index(b"\n", begin + 1)].removesuffix(b",")

    def read(self, key: str, stamp: str, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """Arrays of one image, checksums verified; ``KeyError`` for a pair or a name that is not there."""
        content = self.content(key, stamp)
        if content is None:
            raise KeyError((key, stamp))
        return self.read_content(content, names)

    def read_content(self, content: Content, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """:meth:`read` of what :meth:`content` gave."""
        wanted = list(content.arrays) if names is None else list(names)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return {name: self._read_one(descriptor, content, name) for name in wanted}
        finally:
            os.close(descriptor)

    def _read_one(self, descriptor: int, content: Content, name: str) -> NDArray[Any]:
        stored = content.arrays[name]
        if stored.start is None:
            return self._read_dataset(descriptor, content, name, stored).reshape(stored.shape)
        if name not in self._flat:
            self._flat[name] = self._read_dataset(descriptor, content, name, self.packed[name])
        stop = stored.start + math.prod(stored.shape)
        return self._flat[name][stored.start : stop].reshape(stored.shape).copy()

    def _read_dataset(self, descriptor: int, content: Content, name: str, stored: Stored) -> NDArray[Any]:
        dtype = np.dtype(stored.dtype)
        if not math.prod(stored.shape):
            return np.empty(stored.shape, dtype)
        if self.codec == "zstd" and not chunks.zstd_at_hand():
            raise StoreError(f"{self.path} is compressed with zstd; install the package hdf5plugin to read it")
        parts = [_read_chunk(self.path, descriptor, c, f"array {name}", content.key) for c in stored.chunks]
        try:
            return chunks.assemble(parts, stored.chunks, stored.shape or (1,), dtype, self.codec)
        except (OSError, RuntimeError, ValueError) as error:  # no damage: the checksum was right
            raise StoreError(
                f"{self.path}: array {name} cannot be inflated ({error}) though its bytes are as written; "
                "install the locked versions of h5py and hdf5plugin"
            ) from error

    def read_by_h5py(self) -> Iterator[tuple[Content, dict[str, NDArray[Any]] | Exception]]:
        """All images as plain h5py sees them (``docs/cache.md``), or what h5py raised."""
        with h5py.File(self.path) as file:
            if file["index"][()].tobytes() != self._index:
                raise KeyError("/index is not what the footer names")
            for i, content in enumerate(self.contents):
                try:
                    yield content, {name: _plain(file, name, i, stored) for name, stored in content.arrays.items()}
                except Exception as error:  # damaged metadata makes h5py raise nearly anything
                    yield content, error


def _plain(file: Any, name: str, position: int, stored: Stored) -> NDArray[Any]:
    node = file["arrays"][name]
    stop = (stored.start or 0) + math.prod(stored.shape)
    flat: NDArray[Any] = node[str(position)][()] if stored.start is None else node[stored.start : stop]
    return flat.reshape(stored.shape)


def _content(entry: dict[str, Any]) -> Content:
    arrays = {name: _from_json(value) for name, value in entry["arrays"].items()}
    return Content(entry["key"], entry["stamp"], entry["output"], entry["reason"], arrays)


def _read_index(path: Path, descriptor: int) -> bytes:
    """The index's text, by way of the footer; all damage to either is found here."""
    size = os.fstat(descriptor).st_size
    footer = os.pread(descriptor, FOOTER.size, max(0, size - FOOTER.size))
    if len(footer) < FOOTER.size or not footer.startswith(MAGIC):
        raise CorruptSegment(path, "it does not end as a segment does: cut, of an earlier layout, or no segment at all")
    if zlib.crc32(footer[:-4]) != int.from_bytes(footer[-4:], "little"):
        raise CorruptSegment(path, "checksum of the footer differs")
    _, version, stated_size, *place, _ = FOOTER.unpack(footer)
    if version > SEGMENT_FORMAT:
        raise StoreError(f"{path} has segment format {version}; this Maskmill reads up to {SEGMENT_FORMAT}: update it")
    if version < SEGMENT_FORMAT:
        raise CorruptSegment(path, f"it is of an earlier layout (segment format {version})")
    if stated_size != size:
        raise CorruptSegment(path, f"it has {size} bytes, not {stated_size}")
    chunk = Chunk(*place)
    data = _read_chunk(path, descriptor, chunk, "the index", None)
    return data if chunk.filter_mask else zlib.decompress(data)


def _read_chunk(path: Path, descriptor: int, chunk: Chunk, what: str, key: str | None) -> bytes:
    """Stored bytes, verified; damaged bytes never reach a decoder."""
    data = os.pread(descriptor, chunk.size, chunk.offset)
    if len(data) != chunk.size or zlib.crc32(data) != chunk.crc32:
        raise CorruptSegment(path, f"checksum of {what} differs", key)
    return data
