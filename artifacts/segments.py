"""One segment: an immutable HDF5 file that holds the arrays of up to 64 images or so.

Layout (plain h5py reads it; ``docs/cache.md`` has the ten lines):

``/``                   attributes ``maskmill_segment`` (format version), ``codec``, ``index_crc32``
``/index``              JSON as uint8, deflated (every h5py reads it): ``{"format", "codec", "meta", "entries"}``
                        with one entry an image: ``{"key", "stamp", "output", "reason", "arrays"}``, where ``arrays``
                        maps an array's name to ``[dtype, shape, crc32, start]``
``/arrays/<name>/<i>``  array ``<name>`` of entry ``i``, in its own shape (``start`` is null)
``/arrays/<name>``      a dataset instead of a group: the arrays of all entries end to end, entry ``i`` from
                        element ``start`` on (small arrays: ids, windows, offsets)

Why so. A dataset an image in its own shape keeps masks of any size without padding, and a random read inflates one
image and nothing else. With HDF5's old file format each such dataset costs 2.7 KB of B-tree, as much as the mask;
``libver="latest"`` keeps the address of a single chunk in the dataset's header (0.2 KB). Small arrays would cost
more in headers than in content, so they lie end to end. Measured on 64 real masks (480 x 640, COCO): zstd-1 3.0 KB a
mask, 3,600 writes/s; zstd-3 3.2 KB, 2,900; deflate-1 6.5 KB, 1,500; deflate-4 4.8 KB, 920; PNG 4.5 KB, 1,750. A read
takes 0.17 ms by h5py's upper layer and 0.09 ms by the lower one, which is used here.

The checksum of an array is the CRC-32 of its bytes *as stored* (compressed): 1 us for a 3 KB chunk, where a CRC of
the 300 KB array costs more than inflating it. Shapes and types are covered by the index's own CRC-32, HDF5's
metadata by HDF5's. The digest of the arrays themselves (``output``) is checked by ``maskmill cache verify``.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.records import Skip

Arrays = Mapping[str, NDArray[Any]]
Codec = Literal["zstd", "gzip"]
Item = tuple[str, str, Arrays | Skip]
"""``(key, stamp, arrays or skip)``."""

SEGMENT_FORMAT = 1
ZSTD_FILTER = 32015
ZSTD_LEVEL = 1
GZIP_LEVEL = 4
PACK_MEAN_BYTES = 4096
"""Arrays of this many bytes an image, or fewer, lie end to end in one dataset."""
CHUNK_BYTES = 64 << 20
"""An array is one chunk up to this size (HDF5 allows 4 GB), so that one read inflates it."""
FIX = "run `maskmill cache verify --repair`; the next run computes these images again"


class StoreError(Exception):
    """The cache cannot be used as asked; the message names the path and what to do."""


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
    crc32: int
    start: int | None = None
    """First element in the packed dataset; ``None`` for a dataset of its own."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


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
    """What a segment says about itself."""

    codec: Codec
    meta: Mapping[str, Any]
    contents: tuple[Content, ...]


# -- writing -------------------------------------------------------------------------------------------------------


def best_codec() -> Codec:
    """``zstd`` where hdf5plugin is installed, else ``gzip``."""
    return "zstd" if zstd_at_hand() else "gzip"


@functools.cache
def zstd_at_hand() -> bool:
    """Whether h5py can inflate and deflate zstd; importing hdf5plugin teaches it."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(ZSTD_FILTER))


def encode_segment(items: Sequence[Item], *, meta: Mapping[str, Any], codec: Codec) -> tuple[bytes, Header]:
    """The bytes of a segment that holds ``items``, and its header. Nothing touches the disk.

    The file is built in memory, so that a full disk is an ``OSError`` of one write and not HDF5's state in the
    middle of a close. Equal items give equal bytes.

    Raises:
        ValueError: an array whose name or dtype has no place in a segment, or a ``(key, stamp)`` given twice.
        StoreError: ``zstd`` is asked for and hdf5plugin is not installed.
    """
    if codec == "zstd" and not zstd_at_hand():
        raise StoreError("codec zstd needs the package hdf5plugin: install it, or write with codec gzip")
    plain = [_normalised(item) for item in items]
    if len({(key, stamp) for key, stamp, _ in plain}) != len(plain):
        raise ValueError("one segment was given the same (key, stamp) twice")
    with h5py.File("segment", "w", driver="core", backing_store=False, libver="latest") as file:
        stored = _write_arrays(file, plain, codec)
        contents = tuple(
            Content(key, stamp, None, value.reason)
            if isinstance(value, Skip)
            else Content(key, stamp, keys.digest_arrays(value), None, stored[i])
            for i, (key, stamp, value) in enumerate(plain)
        )
        header = Header(codec, dict(meta), contents)
        _write_index(file, header)
        file.flush()
        return bytes(file.id.get_file_image()), header


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


def _write_arrays(file: Any, items: Sequence[Item], codec: Codec) -> list[dict[str, Stored]]:
    by_name: dict[str, list[tuple[int, NDArray[Any]]]] = {}
    for i, (_, _, value) in enumerate(items):
        if not isinstance(value, Skip):
            for name, array in value.items():
                by_name.setdefault(name, []).append((i, array))
    stored: list[dict[str, Stored]] = [{} for _ in items]
    root = h5py.h5g.create(file.id, b"arrays")
    for name, members in sorted(by_name.items()):
        arrays = [array for _, array in members]
        packed = len({array.dtype for array in arrays}) == 1 and _mean_bytes(arrays) <= PACK_MEAN_BYTES
        places = (_pack if packed else _write_each)(root, name, members, codec)
        for (i, _), place in zip(members, places, strict=True):
            stored[i][name] = place
    return stored


def _mean_bytes(arrays: Sequence[NDArray[Any]]) -> float:
    return sum(array.nbytes for array in arrays) / len(arrays)


def _pack(root: Any, name: str, members: Sequence[tuple[int, NDArray[Any]]], codec: Codec) -> Iterator[Stored]:
    """All arrays of one name end to end in one dataset."""
    _write_dataset(root, name, np.concatenate([array.reshape(-1) for _, array in members]), codec)
    start = 0
    for _, array in members:
        yield Stored(array.dtype.str, array.shape, zlib.crc32(array.tobytes()), start)
        start += array.size


def _write_each(root: Any, name: str, members: Sequence[tuple[int, NDArray[Any]]], codec: Codec) -> Iterator[Stored]:
    """A dataset an image, in a group named as the array."""
    group = h5py.h5g.create(root, name.encode())
    for i, array in members:
        yield Stored(array.dtype.str, array.shape, _write_dataset(group, str(i), array, codec))


def _write_dataset(group: Any, name: str, array: NDArray[Any], codec: Codec) -> int:
    """Create and fill one dataset; returns the CRC-32 of what is stored."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_obj_track_times(False)
    chunked = array.ndim > 0 and array.size > 0
    if chunked:
        settings.set_chunk(chunk_shape(array.shape, array.itemsize))
        if array.itemsize > 1:
            settings.set_shuffle()
        if codec == "zstd":
            settings.set_filter(ZSTD_FILTER, h5py.h5z.FLAG_MANDATORY, (ZSTD_LEVEL,))
        else:
            settings.set_deflate(GZIP_LEVEL)
    space = h5py.h5s.create_simple(array.shape) if array.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    dataset = h5py.h5d.create(group, name.encode(), kind, space, settings, dapl=_no_chunk_cache())
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return _stored_crc32(dataset, array.shape, array.itemsize) if chunked else zlib.crc32(array.tobytes())


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The whole array up to :data:`CHUNK_BYTES`, else as many leading rows (then columns, ...) as fit."""
    if itemsize * math.prod(shape) <= CHUNK_BYTES:
        return shape
    chunk = list(shape)
    for axis in range(len(chunk)):
        rest = itemsize * math.prod(chunk[axis + 1 :])
        chunk[axis] = min(chunk[axis], max(1, CHUNK_BYTES // rest))
        if chunk[axis] > 1 or rest <= CHUNK_BYTES:
            break
    return tuple(chunk)


@functools.cache
def _no_chunk_cache() -> Any:
    """Each chunk is read once and whole: a chunk cache would only add a copy."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    settings.set_chunk_cache(1, 0, 0.0)
    return settings


def _stored_crc32(dataset: Any, shape: tuple[int, ...], itemsize: int) -> int:
    """CRC-32 over the stored chunks of a chunked dataset, in C order."""
    chunk = chunk_shape(shape, itemsize)
    if chunk == shape:
        return zlib.crc32(dataset.read_direct_chunk((0,) * len(shape))[1])
    value = 0
    for index in np.ndindex(*(-(-size // step) for size, step in zip(shape, chunk, strict=True))):
        offset = tuple(i * step for i, step in zip(index, chunk, strict=True))
        value = zlib.crc32(dataset.read_direct_chunk(offset)[1], value)
    return value


def _write_index(file: Any, header: Header) -> None:
    entries = [
        {
            "key": content.key,
            "stamp": content.stamp,
            "output": content.output,
            "reason": content.reason,
            "arrays": {name: [s.dtype, list(s.shape), s.crc32, s.start] for name, s in content.arrays.items()},
        }
        for content in header.contents
    ]
    document = {"format": SEGMENT_FORMAT, "codec": header.codec, "meta": header.meta, "entries": entries}
    text = json.dumps(document, separators=(",", ":")).encode()
    file.create_dataset("index", data=np.frombuffer(text, np.uint8), chunks=(len(text),), compression=9)
    file.attrs["maskmill_segment"] = SEGMENT_FORMAT
    file.attrs["codec"] = header.codec
    file.attrs["index_crc32"] = zlib.crc32(text)


# -- reading -------------------------------------------------------------------------------------------------------


class Segment:
    """An open segment. Its file stays open as long as somebody holds the object; nothing has to be closed.

    Raises on opening: :class:`CorruptSegment`, :class:`StoreError` (written by a newer version), ``OSError``
    (missing, forbidden, the disk failed).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb"):
            pass  # a missing or forbidden file is no damage: plain OSError, with its errno
        with self._damage("cannot be opened"):
            self._file = h5py.File(path, "r")
            self.header = self._read_header()
            self._arrays = h5py.h5g.open(self._file.id, b"arrays")
        self._position = {(c.key, c.stamp): i for i, c in enumerate(self.header.contents)}
        self._groups: dict[str, Any] = {}
        self._packed: dict[str, NDArray[Any]] = {}

    def _damage(self, what: str, key: str | None = None) -> _Damage:
        return _Damage(self.path, what, key)

    def _read_header(self) -> Header:
        attributes = dict(self._file.attrs)
        version = int(attributes["maskmill_segment"])
        if version > SEGMENT_FORMAT:
            raise StoreError(
                f"{self.path} has segment format {version}; this Maskmill reads up to {SEGMENT_FORMAT}: update it"
            )
        text = self._file["index"][()].tobytes()
        if zlib.crc32(text) != int(attributes["index_crc32"]):
            raise CorruptSegment(self.path, "checksum of the index differs")
        document = json.loads(text)
        contents = tuple(
            Content(
                entry["key"],
                entry["stamp"],
                entry["output"],
                entry["reason"],
                {name: Stored(d, tuple(shape), crc, start) for name, (d, shape, crc, start) in entry["arrays"].items()},
            )
            for entry in document["entries"]
        )
        return Header(document["codec"], document["meta"], contents)

    def content(self, key: str, stamp: str) -> Content | None:
        """What the segment holds of ``(key, stamp)``, if anything."""
        position = self._position.get((key, stamp))
        return None if position is None else self.header.contents[position]

    def read(self, key: str, stamp: str, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """Arrays of one image, checksums verified; ``KeyError`` for a pair or a name that is not there."""
        position = self._position[key, stamp]
        stored = self.header.contents[position].arrays
        wanted = list(stored) if names is None else list(names)
        return {name: self._read_one(key, position, name, stored[name]) for name in wanted}

    def _read_one(self, key: str, position: int, name: str, stored: Stored) -> NDArray[Any]:
        with self._damage(f"array {name} cannot be read", key):
            if stored.start is None:
                array, crc32 = self._read_own(position, name, stored)
            else:
                flat = self._read_packed(name)[stored.start : stored.start + stored.size]
                array = flat.reshape(stored.shape).copy()
                crc32 = zlib.crc32(array.tobytes())
        if crc32 != stored.crc32:
            raise CorruptSegment(self.path, f"checksum of array {name} differs", key)
        return array

    def _read_own(self, position: int, name: str, stored: Stored) -> tuple[NDArray[Any], int]:
        if name not in self._groups:
            self._check_codec()
            self._groups[name] = h5py.h5g.open(self._arrays, name.encode())
        dataset = h5py.h5d.open(self._groups[name], str(position).encode(), _no_chunk_cache())
        dtype = np.dtype(stored.dtype)
        if dataset.shape != stored.shape or dataset.dtype != dtype:
            found, said = f"{dataset.dtype}{dataset.shape}", f"{dtype}{stored.shape}"
            raise CorruptSegment(self.path, f"array {name} is {found}, the index says {said}")
        array = np.empty(stored.shape, dtype)
        chunked = array.ndim > 0 and array.size > 0
        if chunked and _stored_crc32(dataset, array.shape, array.itemsize) != stored.crc32:
            return array, ~stored.crc32  # damaged bytes are never handed to a decoder
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        return array, stored.crc32 if chunked else zlib.crc32(array.tobytes())

    def _read_packed(self, name: str) -> NDArray[Any]:
        if name not in self._packed:
            self._check_codec()
            dataset = h5py.h5d.open(self._arrays, name.encode(), _no_chunk_cache())
            array = np.empty(dataset.shape, dataset.dtype)
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
            self._packed[name] = array
        return self._packed[name]

    def _check_codec(self) -> None:
        if self.header.codec == "zstd" and not zstd_at_hand():
            raise StoreError(f"{self.path} is compressed with zstd; install the package hdf5plugin to read it")


class _Damage:
    """Turns what HDF5 and a damaged index raise into :class:`CorruptSegment`, a failing disk into ``OSError``."""

    def __init__(self, path: Path, what: str, key: str | None) -> None:
        self.path, self.what, self.key = path, what, key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StoreError) or error is None or not isinstance(error, Exception):
            return
        if isinstance(error, MemoryError):
            return
        if isinstance(error, OSError) and (number := _errno(error)):
            raise OSError(number, f"{self.what}: {error}", str(self.path)) from error
        raise CorruptSegment(self.path, f"{self.what}: {type(error).__name__}: {error}", self.key) from error


def _errno(error: OSError) -> int:
    """The system's error number, which HDF5 buries in its text; 0 where the file itself is at fault."""
    found = re.search(r"errno = (\d+)", str(error))
    number = error.errno or (int(found.group(1)) if found else 0)
    return 0 if number in (errno.EINVAL, errno.EOVERFLOW) else number
