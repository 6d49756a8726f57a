"""What `maskmill cache ls | show | verify | compact | rm` does, as plain functions.

Nothing here is needed to run a flow. :func:`verify` and :func:`compact` have pages of their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from artifacts.cache import atomic
from artifacts.cache.cache_format import explained
from artifacts.cache.compact import CompactReport, Problem, Progress, compact
from artifacts.cache.fit_listing import (
    FitInfo,
    FitsRemoved,
    compact_fits,
    list_fits,
    match_fits,
    remove_fits,
    verify_fits,
)
from artifacts.cache.runs import list_runs, users
from artifacts.cache.segment_index import Entry, read_index, segment_names
from artifacts.cache.segments import Segment, StoreError
from artifacts.cache.store import MaskStore
from artifacts.cache.verify import VerifyReport, verify, verify_records

__all__ = [
    "AddressDetail",
    "AddressInfo",
    "CompactReport",
    "FitInfo",
    "FitsRemoved",
    "Problem",
    "Progress",
    "RemoveReport",
    "VerifyReport",
    "address_info",
    "compact",
    "compact_fits",
    "list_addresses",
    "list_fits",
    "remove",
    "remove_fits",
    "resolve_all",
    "save_picture",
    "show",
    "vague",
    "verify",
    "verify_fits",
    "verify_records",
]

# -- ls, show --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AddressInfo:
    """One line of ``cache ls``."""

    address: str
    stage: str
    label: str
    images: int
    """Different keys."""
    entries: int
    """Pairs of key and stamp; more than ``images`` where outdated ones are kept."""
    skipped: int
    segments: int
    bytes: int
    age_s: float
    """Seconds since the newest segment was written."""
    corrupt: int = 0
    """Segments that were put aside as damaged."""


@dataclass(frozen=True)
class AddressDetail:
    """What ``cache show`` prints."""

    info: AddressInfo
    meta: Mapping[str, Any]
    """What the newest segment says of its stage: version, label, params."""
    codec: str
    """How its newest segment is compressed."""
    arrays: Mapping[str, str]
    """Name -> dtype and shape of the newest image that has arrays, e.g. ``uint8 (375, 500)``."""
    entries: tuple[Entry, ...] = field(repr=False)
    """Sorted by key, then by age, the newest last."""
    runs: tuple[str, ...] = ()
    """Runs whose manifest names this address."""


def list_addresses(store: MaskStore) -> list[AddressInfo]:
    """Every address in the cache, the most recently written first."""
    return sorted((address_info(store, address) for address in store.addresses()), key=lambda info: info.age_s)


def address_info(store: MaskStore, address: str) -> AddressInfo:
    """Counts and sizes of one address; no array is read."""
    entries = store.entries(address)
    size, newest, corrupt, segments = 0, 0.0, 0, 0
    with os.scandir(store.folder(address)) as files:
        for file in files:
            try:
                status = file.stat()
            except FileNotFoundError:  # a writer has just given it its name
                continue
            size += status.st_size
            corrupt += file.name.endswith(".corrupt")
            if file.name.endswith(".h5"):
                segments += 1
                newest = max(newest, status.st_mtime)
    meta, _ = _newest_meta(store, address)
    return AddressInfo(
        address,
        str(meta.get("stage", address.rpartition("-")[0])),
        str(meta.get("label", "")),
        len({key for key, _ in entries}),
        len(entries),
        sum(entry.output is None for entry in entries.values()),
        segments,
        size,
        max(0.0, time.time() - newest) if newest else 0.0,
        corrupt,
    )


def show(store: MaskStore, address: str) -> AddressDetail:
    """All that is known of one address; at most one segment is opened."""
    entries = sorted(store.entries(address).values(), key=lambda entry: (entry.key, entry.segment))
    meta, codec = _newest_meta(store, address)
    with_arrays = [entry for entry in entries if entry.output is not None]
    arrays: dict[str, str] = {}
    if with_arrays:
        newest = max(with_arrays, key=lambda entry: entry.segment)
        found = store.read(address, newest.key, newest.stamp)
        arrays = {name: f"{array.dtype} {array.shape}" for name, array in found.items()}
    return AddressDetail(
        address_info(store, address), meta, codec, arrays, tuple(entries), tuple(users(store.root).get(address, ()))
    )


def _newest_meta(store: MaskStore, address: str) -> tuple[Mapping[str, Any], str]:
    """``meta`` and codec of the newest segment that can be read."""
    folder = store.folder(address)
    for name in reversed(segment_names(folder)):
        with contextlib.suppress(OSError, StoreError):
            index = read_index(folder / name)
            if index is not None:
                return index[0]["meta"], index[0]["codec"]
            header = Segment(folder / name).header
            return header.meta, header.codec
    return {}, ""


def resolve_all(store: MaskStore, names: Iterable[str]) -> tuple[list[str], list[FitInfo]]:
    """Addresses of map stages, and fits, meant by ``names``.

    A name is an address, a fit's ``address/stamp`` or the label that a stage has in some run; only if it is none of
    these, the beginning of an address. Raises :class:`StoreError` that lists what there is, if a name means none.
    """
    known = _Known.of(store)
    maps: dict[str, None] = {}
    found: dict[str, FitInfo] = {}
    for name in names:
        of_maps, of_fits = known.whole(name)
        if not of_maps and not of_fits:
            of_maps = [a for a in known.addresses if a.startswith(name)]
            of_fits = match_fits(known.fits, name, whole=False)
        if not of_maps and not of_fits:
            there = ", ".join([*known.addresses, *dict.fromkeys(fit.address for fit in known.fits)]) or "none"
            raise StoreError(
                f"{store.root}: no address begins with {name!r} and no stage is labelled so; known: {there}"
            )
        maps.update(dict.fromkeys(of_maps))
        found.update({fit.name: fit for fit in of_fits})
    return list(maps), list(found.values())


def vague(store: MaskStore, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are not the whole name of one thing: beginnings, and names of several."""
    known = _Known.of(store)
    found = {name: known.whole(name) for name in names}
    return [name for name, (maps, fits) in found.items() if len(maps) + len(fits) != 1]


@dataclass(frozen=True)
class _Known:
    """What there is to be named."""

    root: Path
    addresses: list[str]
    fits: list[FitInfo]
    labels: dict[str, set[str]]
    """Address -> labels, as its newest segment and the runs know them."""

    @classmethod
    def of(cls, store: MaskStore) -> _Known:
        addresses = store.addresses()
        labels = {address: {str(_newest_meta(store, address)[0].get("label", ""))} for address in addresses}
        for run in list_runs(store.root):
            with contextlib.suppress(ValueError):  # an unreadable manifest names nothing
                for stage in run.manifest().get("stages", ()):
                    labels.setdefault(stage.get("address", ""), set()).add(stage.get("label", ""))
        return cls(store.root, addresses, list_fits(store.root), labels)

    def whole(self, name: str) -> tuple[list[str], list[FitInfo]]:
        """What ``name`` is the address or a label of."""
        if not name.strip():
            raise StoreError(f"{self.root}: an empty name means nothing (a variable that is not set?)")
        maps = [a for a in self.addresses if a == name or name in self.labels[a]]
        fits = match_fits(self.fits, name, whole=True)
        fits += [fit for fit in self.fits if name in self.labels.get(fit.address, ()) and fit not in fits]
        return maps, fits


def save_picture(store: MaskStore, address: str, key: str, path: Path, palette_rgb: Sequence[Sequence[int]]) -> str:
    """Write the newest label map (or other 2-D uint8 array) of ``key`` as a palette PNG; returns the array's name.

    Raises :class:`StoreError` if the key has none.
    """
    of_key = [entry for entry in store.entries(address).values() if entry.key == key and entry.output is not None]
    if not of_key:
        raise StoreError(
            f"{store.folder(address)} holds no arrays of {key!r}; `maskmill cache show {address}` lists keys"
        )
    entry = max(of_key, key=lambda entry: entry.segment)
    arrays = store.read(address, key, entry.stamp)
    maps = [
        name for name, array in sorted(arrays.items()) if array.ndim == 2 and array.dtype == np.uint8 and array.size
    ]
    if not maps:
        raise StoreError(f"{store.folder(address)}: {key!r} has {sorted(arrays)}, none of them a 2-D uint8 map")
    picture = Image.fromarray(arrays[maps[0]])
    picture.putpalette([value for colour in palette_rgb for value in colour])
    atomic.write_atomic(path, lambda file: picture.save(file, "PNG"), durable=False)
    return maps[0]


# -- rm --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoveReport:
    """What ``cache rm`` removed, or with ``dry_run`` would."""

    addresses: tuple[AddressInfo, ...]
    runs: tuple[str, ...]
    """Runs that can no longer be exported or compared without computing these images again."""
    removed: bool

    @property
    def bytes(self) -> int:
        """Bytes set free."""
        return sum(info.bytes for info in self.addresses)


def remove(store: MaskStore, addresses: Iterable[str], *, dry_run: bool = False) -> RemoveReport:
    """Remove whole addresses. Fits lie elsewhere (:func:`remove_fits`) and stay.

    An address goes by one rename and is deleted after that, so a kill leaves no half address. A run that needs the
    images computes them again.
    """
    wanted = list(addresses)
    infos = tuple(address_info(store, address) for address in wanted)
    used = users(store.root)
    runs = sorted({run for address in wanted for run in used.get(address, ())})
    if not dry_run:
        for address in wanted:
            remove_address(store, address)
        atomic.sweep_temporaries(store.root / "maps")
    return RemoveReport(infos, tuple(runs), not dry_run)


def remove_address(store: MaskStore, address: str) -> None:
    """Remove one address by a rename, then delete it. Raises ``StoreError`` where the cache cannot be written."""
    folder = store.folder(address)
    if store.readonly:
        raise StoreError(f"{folder} was to be removed, but the cache was opened read-only")
    aside = atomic.temporary_beside(folder)
    try:
        os.rename(folder, aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise explained(error, folder, "removed") from error
    store.forget(address)
