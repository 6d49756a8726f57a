"""MaskStore: the HDF5 cache of arrays per image.

``<cache>/maps/<address>/`` is a folder of immutable segments (:mod:`artifacts.cache.segments`). A segment is written
aside, flushed, synced, renamed, and never opened for writing again; a new or changed image is a new segment, so no file
grows and no file has two writers. Two runs can at worst write the same arrays twice.

``<number>-<random>.h5``   a segment. ``<number>`` is one more than the highest in the folder, so the names' order is
                           the order of writing, and where two hold the same ``(key, stamp)`` the later name wins.
                           Two writers may take one number; the random part keeps them apart, and decides.
``<number>-<random>.idx``  its index (:mod:`artifacts.cache.segment_index`), rebuilt whenever it is missing or damaged.
``<segment>.corrupt``      a damaged segment, put aside.

A segment that cannot be opened counts as absent, with a warning: the rest of the run goes on and its images are
computed again. ``<cache>/maskmill.json`` holds the format version of the whole cache.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from artifacts.cache import atomic
from artifacts.cache.cache_format import check_cache_format, explained, write_cache_format
from artifacts.cache.chunks import Codec
from artifacts.cache.segment_index import (
    Entry,
    entries_of,
    index_path,
    read_index,
    segment_names,
    write_durably,
    write_index,
)
from artifacts.cache.segments import (
    FIX,
    CorruptSegment,
    Header,
    Item,
    Segment,
    StoreError,
    best_codec,
    encode_segment,
)

__all__ = ["CorruptSegment", "Entry", "MaskStore", "MissingEntry", "StoreError"]

log = logging.getLogger("maskmill")

KEPT_SEGMENTS = 256
"""Segments whose index a process keeps in memory: 20 KB and no file descriptor each."""
RACY_NS = 2_000_000_000
"""A folder's time is trusted once it is this old: a file renamed into it in the same tick would go unseen."""

_ADDRESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class MissingEntry(LookupError):
    """Nothing is stored under this address, key and stamp (any more)."""


@dataclass
class _Folder:
    """What this process has read of one address."""

    segments: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    merged: dict[tuple[str, str], Entry] = field(default_factory=dict)
    modified_ns: int = -1
    """Modification time of the folder as scanned; -1 forces a scan."""


class MaskStore:
    """Arrays per ``(address, key, stamp)`` in the cache folder ``root``. Safe to share between threads.

    Pickles as its root; no file stays open.

    Raises:
        StoreError: the cache was written by a newer Maskmill.
    """

    def __init__(self, root: Path | str, *, readonly: bool = False, codec: Codec | None = None) -> None:
        """``codec``: how new segments are compressed; by default zstd if hdf5plugin is there, else gzip."""
        self.root = Path(root)
        self.readonly = readonly
        self.codec = codec
        self._lock = threading.RLock()
        self._folders: dict[str, _Folder] = {}
        self._segments: OrderedDict[tuple[str, str], Segment] = OrderedDict()
        check_cache_format(self.root)
        _stores.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "readonly": self.readonly, "codec": self.codec}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], readonly=state["readonly"], codec=state["codec"])  # type: ignore[misc]

    # -- the index -------------------------------------------------------------------------------------------------

    def folder(self, address: str) -> Path:
        """Where the segments of ``address`` lie."""
        if not _ADDRESS.fullmatch(address):
            raise ValueError(f"address {address!r} must be letters, digits, '.', '_' and '-'")
        return self.root / "maps" / address

    def addresses(self) -> list[str]:
        """Every address that has a folder, sorted."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(e.name for e in os.scandir(self.root / "maps") if e.is_dir() and _ADDRESS.fullmatch(e.name))
        return []

    def entries(self, address: str) -> Mapping[tuple[str, str], Entry]:
        """``(key, stamp) -> Entry``; where two segments hold a pair, the newest one's.

        A live view: what :meth:`adopt`, :meth:`write_segment` or a later call finds is added to it.
        """
        with self._lock:
            folder = self._folders.setdefault(address, _Folder())
            self._scan(address, folder)
            return MappingProxyType(folder.merged)

    def refresh(self, address: str) -> None:
        """Scan the folder again at the next :meth:`entries`, whatever its time stamp."""
        with self._lock:
            if address in self._folders:
                self._folders[address].modified_ns = -1

    def forget(self, address: str) -> None:
        """Drop what this process knows of ``address``."""
        with self._lock:
            self._folders.pop(address, None)
            for name in [name for name in self._segments if name[0] == address]:
                del self._segments[name]

    def adopt(self, address: str, entries: Iterable[Entry]) -> None:
        """Add entries that another process wrote and sent here."""
        with self._lock:
            _merge(self._folders.setdefault(address, _Folder()).merged, entries)

    def _scan(self, address: str, folder: _Folder) -> None:
        """Bring ``folder`` up to date with the disk; one ``stat`` if nothing has changed."""
        path = self.folder(address)
        try:
            modified_ns = path.stat().st_mtime_ns
            if modified_ns == folder.modified_ns:
                return
            names = segment_names(path)
        except FileNotFoundError:
            modified_ns, names = -1, []
        except OSError as error:
            raise explained(error, path, "read") from error
        if gone := folder.segments.keys() - set(names):
            folder.merged.clear()
            for name in gone:
                del folder.segments[name]
            for known in folder.segments.values():
                _merge(folder.merged, known)
        for name in names:
            if name not in folder.segments:
                folder.segments[name] = self._load_index(path / name)
                _merge(folder.merged, folder.segments[name])
        folder.modified_ns = modified_ns if time.time_ns() - modified_ns > RACY_NS else -1

    def _load_index(self, segment: Path) -> tuple[Entry, ...]:
        """Entries of one segment, from the index beside it or from its header."""
        try:
            known = read_index(segment)
            if known is not None:
                return known[1]
            header = Segment(segment).header
        except CorruptSegment as error:
            log.warning("%s", error)
            return ()
        except FileNotFoundError:
            return ()  # compacted or removed since the listing
        except OSError as error:
            raise explained(error, segment, "read") from error
        if not self.readonly:
            write_index(segment, header)
        return entries_of(segment.name, header.contents)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, address: str, key: str, stamp: str, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """Arrays of one image (all, or the named ones), each verified against its checksum.

        Raises:
            MissingEntry: nothing is stored under this pair, or it is a skip, or it has no array of that name.
            CorruptSegment: the bytes are not what was written; pass ``.segment`` to :meth:`quarantine`.
            StoreError: the disk failed, or the package that inflates the segment is missing.
        """
        for attempt in (1, 2):
            entry = self._entry(address, key, stamp, again=attempt == 2)
            try:
                return self._read_from(self._segment(address, entry.segment), entry, names)
            except FileNotFoundError:
                self._forget(address, entry.segment)  # compacted by another process: look again, once
            except OSError as error:
                raise explained(error, self.folder(address) / entry.segment, "read") from error
        raise MissingEntry(f"{self.folder(address)}: the segment of {key} (stamp {stamp}) was removed; run again")

    def _read_from(self, segment: Segment, entry: Entry, names: Iterable[str] | None) -> dict[str, NDArray[Any]]:
        content = segment.content(entry.key, entry.stamp)
        if content is None:
            raise CorruptSegment(segment.path, "the index beside it lists what it does not hold", entry.key)
        wanted = None if names is None else list(names)
        if unknown := set(wanted or ()) - set(content.arrays):
            raise MissingEntry(f"{entry.key} has arrays {sorted(content.arrays)}, not {sorted(unknown)}")
        return segment.read_content(content, wanted)

    def _entry(self, address: str, key: str, stamp: str, *, again: bool) -> Entry:
        with self._lock:
            folder = self._folders.setdefault(address, _Folder())
            entry = folder.merged.get((key, stamp))
            if entry is None or again:
                if again:
                    folder.modified_ns = -1
                self._scan(address, folder)
                entry = folder.merged.get((key, stamp))
        if entry is None:
            raise MissingEntry(f"{self.folder(address)} holds nothing for {key} with stamp {stamp}; run its stage")
        if entry.output is None:
            raise MissingEntry(f"{self.folder(address)}: {key} was skipped ({entry.reason}), so it has no arrays")
        return entry

    def _segment(self, address: str, name: str) -> Segment:
        """A segment, its index from memory if it was read before."""
        with self._lock:
            segment = self._segments.pop((address, name), None) or Segment(self.folder(address) / name)
            self._segments[address, name] = segment
            while len(self._segments) > KEPT_SEGMENTS:
                self._segments.popitem(last=False)
            return segment

    def _forget(self, address: str, name: str) -> None:
        """Leave a segment out of the index; the folder is scanned again."""
        with self._lock:
            self._segments.pop((address, name), None)
            folder = self._folders.setdefault(address, _Folder())
            folder.segments.pop(name, None)
            folder.modified_ns = -1
            folder.merged.clear()
            for known in folder.segments.values():
                _merge(folder.merged, known)

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_segment(self, address: str, items: Sequence[Item], *, meta: Mapping[str, Any]) -> list[Entry]:
        """Store ``items`` as one new segment; returns its entries, in the order of ``items``.

        ``meta`` (stage, label, params, ...: plain JSON) is kept in the segment's header for inspection.

        Raises:
            StoreError: the cache cannot be written (full, read-only, ...); nothing is left behind.
            ValueError: an array that cannot be stored, or a pair given twice.
        """
        if not items:
            return []
        data, header = encode_segment(items, address=address, meta=meta, codec=self.codec or best_codec())
        path = self.write_encoded(address, data, header)
        entries = entries_of(path.name, header.contents)
        self.adopt(address, entries)
        return list(entries)

    def write_encoded(self, address: str, data: bytes, header: Header, *, after: str | None = None) -> Path:
        """Put an encoded segment in its place, durably: last in the folder, or right ``after`` a named one.

        A segment in another's place (compaction) must not win over what was written since.
        """
        folder = self.folder(address)
        if self.readonly:
            raise StoreError(f"{folder} was to be written, but the cache was opened read-only")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_cache_format(self.root)
            path = write_durably(folder, data, after)
        except OSError as error:
            raise explained(error, folder, "written") from error
        atomic.kill_point("store.after_rename")
        write_index(path, header)
        return path

    def discard(self, address: str, name: str) -> None:
        """Remove a segment whose content lies in others. Readers that have it open continue, the others scan again."""
        path = self.folder(address) / name
        if self.readonly:
            raise StoreError(f"{path} was to be removed, but the cache was opened read-only")
        try:
            path.unlink(missing_ok=True)
            index_path(path).unlink(missing_ok=True)
        except OSError as error:
            raise explained(error, path, "removed") from error
        self._forget(address, name)

    def quarantine(self, segment: Path | str) -> Path | None:
        """Put a damaged segment aside as ``<name>.corrupt``; ``None`` if another process did so already.

        Its images count as absent from then on, so that the next run computes them again.
        """
        path = Path(segment)
        if path.parent.parent != self.root / "maps":
            raise ValueError(f"{path} is no segment of {self.root}")
        aside = path.with_name(f"{path.name}.corrupt")
        if self.readonly:
            raise StoreError(f"{path} is damaged, but the cache was opened read-only; {FIX}")
        try:
            os.rename(path, aside)
            index_path(path).unlink(missing_ok=True)
            atomic.fsync_folder(path.parent)
        except FileNotFoundError:
            aside_or_none = None
        except OSError as error:
            raise explained(error, path, "put aside") from error
        else:
            aside_or_none = aside
            log.warning("%s was put aside as %s; its images will be computed again", path, aside.name)
        self._forget(path.parent.name, path.name)
        return aside_or_none

    def _after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()


_stores: weakref.WeakSet[MaskStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _merge(merged: dict[tuple[str, str], Entry], entries: Iterable[Entry]) -> None:
    """Enter ``entries``; the later segment name wins."""
    for entry in entries:
        pair = (entry.key, entry.stamp)
        known = merged.get(pair)
        if known is None or known.segment <= entry.segment:
            merged[pair] = entry
