"""HDF5 at the level of chunks: datasets whose chunks' places are known, and inflating one chunk without its file.

Opening an HDF5 file costs 0.5 MB (the library's metadata cache) and 0.4 ms, five times what reading a mask costs, so
that random reads over more files than one can keep open would be slower than PNGs. A segment's index therefore says
where each chunk lies; a reader takes those bytes itself and borrows of HDF5 nothing but its filters: :func:`inflate`
puts the bytes as a chunk into a dataset in memory and reads it out again. (Python has no zstd of its own before 3.14.)
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

Codec = Literal["zstd", "gzip"]
Shape = tuple[int, ...]

ZSTD_FILTER = 32015
ZSTD_LEVEL = 1
GZIP_LEVEL = 4
CHUNK_BYTES = 64 << 20
"""An array is one chunk up to this size (HDF5 allows 4 GB)."""
KEPT_DATASETS = 256
"""Shapes for which a thread keeps a dataset to inflate with."""


class Chunk(NamedTuple):
    """Where one chunk's bytes lie in the file."""

    offset: int
    size: int
    crc32: int
    filter_mask: int
    """HDF5's: which filters were left out because they did not make the chunk smaller."""


@functools.cache
def zstd_at_hand() -> bool:
    """Whether h5py can inflate and deflate zstd; importing hdf5plugin teaches it."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(ZSTD_FILTER))


def memory_file() -> Any:
    """A new HDF5 file in memory. HDF5 takes files of one name for one file, hence the numbers."""
    return h5py.File(f"memory-{next(_numbers)}", "w", driver="core", backing_store=False, libver="latest")


_numbers = itertools.count()


def chunk_shape(shape: Shape, itemsize: int) -> Shape:
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


def write_dataset(group: Any, name: str, array: NDArray[Any], codec: Codec) -> list[Chunk]:
    """Create and fill a dataset under the low-level ``group``; returns its chunks in C order (none if it is empty).

    ``array`` has at least one axis.
    """
    dataset = _create(group, name, array.shape, array.dtype, codec)
    if array.size == 0:
        return []
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    chunks = []
    for corner in _corners(array.shape, chunk_shape(array.shape, array.itemsize)):
        mask, data = dataset.read_direct_chunk(corner)
        chunks.append(Chunk(dataset.get_chunk_info_by_coord(corner).byte_offset, len(data), zlib.crc32(data), mask))
    return chunks


def _create(group: Any, name: str, shape: Shape, dtype: np.dtype[Any], codec: Codec) -> Any:
    kind, space, settings = _form(shape, dtype, codec)
    return h5py.h5d.create(group, name.encode(), kind, space, settings, dapl=_no_chunk_cache())


@functools.lru_cache(maxsize=512)
def _form(shape: Shape, dtype: np.dtype[Any], codec: Codec) -> tuple[Any, Any, Any]:
    """Type, space and creation properties of a dataset; images of one size share them."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_obj_track_times(False)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every chunk is written whole
    if math.prod(shape):
        settings.set_chunk(chunk_shape(shape, dtype.itemsize))
        if dtype.itemsize > 1:
            settings.set_shuffle()
        if codec == "zstd":
            settings.set_filter(ZSTD_FILTER, h5py.h5z.FLAG_MANDATORY, (ZSTD_LEVEL,))
        else:
            settings.set_deflate(GZIP_LEVEL)
    return h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape), settings


@functools.cache
def _no_chunk_cache() -> Any:
    """Each chunk is read once and whole: a chunk cache would only add a copy."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    settings.set_chunk_cache(1, 0, 0.0)
    return settings


class _Scratch(threading.local):
    """A file in memory with a dataset for each shape, one for each thread (and, after a fork, each process)."""

    file: Any = None

    def dataset(self, shape: Shape, dtype: np.dtype[Any], codec: Codec) -> Any:
        if self.file is None or len(self.datasets) >= KEPT_DATASETS:
            self.file = memory_file()
            self.datasets: dict[tuple[Shape, str, Codec], Any] = {}
        key = (shape, dtype.str, codec)
        if key not in self.datasets:
            self.datasets[key] = _create(self.file.id, str(len(self.datasets)), shape, dtype, codec)
        return self.datasets[key]


_scratch = _Scratch()


def inflate(data: bytes, filter_mask: int, shape: Shape, dtype: np.dtype[Any], codec: Codec) -> NDArray[Any]:
    """The array of ``shape`` whose single chunk is stored as ``data``. Raises ``OSError`` if it cannot be inflated."""
    dataset = _scratch.dataset(shape, dtype, codec)
    dataset.write_direct_chunk((0,) * len(shape), data, filter_mask)
    array = np.empty(shape, dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def assemble(
    parts: Sequence[bytes], places: Sequence[Chunk], shape: Shape, dtype: np.dtype[Any], codec: Codec
) -> NDArray[Any]:
    """The array of ``shape`` whose chunks, in C order, are stored as ``parts``. Raises as :func:`inflate`."""
    step = chunk_shape(shape, dtype.itemsize)
    if len(parts) == 1:
        return inflate(parts[0], places[0].filter_mask, step, dtype, codec)
    array = np.empty(shape, dtype)
    for corner, part, place in zip(_corners(shape, step), parts, places, strict=True):
        whole = inflate(part, place.filter_mask, step, dtype, codec)  # a chunk at the edge is stored whole, too
        room = array[tuple(slice(start, start + width) for start, width in zip(corner, step, strict=True))]
        room[...] = whole[tuple(map(slice, room.shape))]
    return array


def _corners(shape: Shape, step: Shape) -> Iterator[Shape]:
    """First element of each chunk, in C order."""
    for index in np.ndindex(*(-(-size // width) for size, width in zip(shape, step, strict=True))):
        yield tuple(i * width for i, width in zip(index, step, strict=True))
