"""`maskmill cache compact`: many small segments become few, outdated copies go, every pair stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.cache import atomic
from artifacts.cache.segment_index import Entry, entries_of, read_index, segment_names
from artifacts.cache.segments import Content, CorruptSegment, Item, Segment, StoreError, best_codec, encode_segment
from artifacts.cache.store import MaskStore
from artifacts.records import Skip

Drop = Callable[[Entry], bool]
"""Whether an image's result goes, though no newer segment holds it (`maskmill cache gc`)."""
Progress = Callable[[str, int, int], None]
"""``progress(address, done, total)``, in segments."""
FULL_SEGMENT = 64
"""Compaction merges segments until they hold this many images."""


def no_progress(address: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Problem:
    """One fault: in a segment, or in one image of it."""

    segment: Path
    key: str | None
    what: str
    damaged: bool = True
    """``False``: the bytes could not be judged (no permission, a missing package); repair leaves them alone."""


@dataclass(frozen=True)
class CompactReport:
    """What ``cache compact`` did."""

    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int
    entries: int
    """Pairs of key and stamp; the same before and after."""
    problems: tuple[Problem, ...] = ()
    """Segments that were left alone because they cannot be read."""
    swept: int = 0


def compact(
    store: MaskStore, addresses: Iterable[str] | None = None, *, progress: Progress = no_progress
) -> CompactReport:
    """Merge small segments, drop entries that a newer segment holds too, remove what was put aside as damaged.

    Every ``(key, stamp)`` is kept. A new segment is in place before the old ones go, so a kill at any
    moment leaves at worst some images twice; readers and writers may go on meanwhile.
    """
    wanted = store.addresses() if addresses is None else list(addresses)
    before = [_usage(store.folder(address)) for address in wanted]
    entries, swept, problems = 0, 0, []
    for address in wanted:
        store.refresh(address)
        swept += atomic.sweep_temporaries(store.folder(address))
        problems += merge_address(store, address, progress)
        swept += _remove_strays(store.folder(address))
        store.refresh(address)
        entries += len(store.entries(address))
    after = [_usage(store.folder(address)) for address in wanted]
    return CompactReport(
        sum(segments for segments, _ in before),
        sum(segments for segments, _ in after),
        sum(size for _, size in before),
        sum(size for _, size in after),
        entries,
        tuple(problems),
        swept,
    )


def _usage(folder: Path) -> tuple[int, int]:
    """Number of segments, and bytes of everything in ``folder``."""
    segments = size = 0
    for file in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # a writer has just given it its name
            size += file.stat().st_size if file.is_file() else 0
            segments += file.name.endswith(".h5")
    return segments, size


def merge_address(
    store: MaskStore, address: str, progress: Progress = no_progress, drop: Drop | None = None
) -> list[Problem]:
    """Do what :func:`plan_merges` says; what could not be read stays, and is told."""
    groups = plan_merges(store.folder(address), drop)
    problems: list[Problem] = []
    for done, group in enumerate(groups):
        progress(address, done, len(groups))
        try:
            _merge_segments(store, address, group)
        except FileNotFoundError:
            continue  # another compaction was faster
        except CorruptSegment as error:
            problems.append(Problem(error.segment, error.key, error.what))
    progress(address, len(groups), len(groups))
    return problems


Pair = tuple[str, str]
Live = tuple[str, set[Pair]]
"""A segment's name, and the pairs in it that no newer segment holds."""


def plan_merges(folder: Path, drop: Drop | None = None) -> list[list[Live]]:
    """Groups of segments to be merged into one each, in the order of writing, of up to :data:`FULL_SEGMENT` images.

    A full segment without outdated entries is in no group, and neither is one that cannot be read. All is judged by
    ONE listing: a segment that is written meanwhile is not known, and therefore not touched. With ``drop`` only
    segments from which something is dropped are touched.
    """
    found = {name: entries for name in segment_names(folder) if (entries := entries_in(folder / name)) is not None}
    held = {name: [(entry.key, entry.stamp) for entry in entries] for name, entries in found.items()}
    newest = {pair: name for name, pairs in held.items() for pair in pairs}
    gone = {name: {(e.key, e.stamp) for e in found[name] if drop is not None and drop(e)} for name in held}
    groups: list[list[Live]] = []
    images = 0
    for name, pairs in held.items():
        if drop is not None and not gone[name]:
            continue
        live = {pair for pair in pairs if newest[pair] == name} - gone[name]
        if len(live) == len(pairs) >= FULL_SEGMENT:
            continue
        if not groups or images + len(live) > FULL_SEGMENT:
            groups.append([])
            images = 0
        groups[-1].append((name, live))
        images += len(live)
    return [group for group in groups if len(group) > 1 or len(group[0][1]) < len(held[group[0][0]])]


def entries_in(path: Path) -> tuple[Entry, ...] | None:
    """All that is in a segment; ``None`` if it cannot be read."""
    try:
        if (index := read_index(path)) is not None:
            return index[1]
        return entries_of(path.name, Segment(path).header.contents)
    except (OSError, StoreError):
        return None


def _merge_segments(store: MaskStore, address: str, group: Sequence[Live]) -> None:
    """One new segment with all live entries of ``group``, right after its last; then the old ones go."""
    items: list[Item] = []
    meta: Mapping[str, Any] = {}
    for name, live in group:
        if live:
            segment = Segment(store.folder(address) / name)
            meta = segment.header.meta
            items += [item_of(segment, c) for c in segment.header.contents if (c.key, c.stamp) in live]
    if items:
        write_after(store, address, items, meta, group[-1][0])
    for name, _ in group:
        store.discard(address, name)


def _remove_strays(folder: Path) -> int:
    """Remove damaged segments put aside, and indexes without a segment; returns how many files went."""
    gone = list(folder.glob("*.corrupt"))
    gone += [path for path in folder.glob("*.idx") if not path.with_suffix(".h5").exists()]
    gone = [path for path in gone if not path.is_dir()]  # a folder is somebody's data: no segment was one
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


def item_of(segment: Segment, content: Content) -> Item:
    """One image of a segment, ready to be written again."""
    if content.output is None:
        return content.key, content.stamp, Skip(content.key, "", content.reason or "")
    return content.key, content.stamp, segment.read(content.key, content.stamp)


def write_after(store: MaskStore, address: str, items: Sequence[Item], meta: Mapping[str, Any], after: str) -> None:
    """Write ``items`` as one segment, right after the one named ``after``."""
    data, header = encode_segment(items, address=address, meta=meta, codec=store.codec or best_codec())
    store.write_encoded(address, data, header, after=after)
