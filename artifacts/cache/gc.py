"""`maskmill cache gc`: remove what no kept run reaches. :mod:`artifacts.cache.reach` says which runs, and what.

Runs go first, then what they alone reached: a kill between leaves unreached results, which the next clean-up removes,
and never a run without its results. All that is removed goes by a rename or is rewritten before the old file goes.

A run that begins shares a lock until its plan is written down; the clean-up holds it alone. So it never meets a run
whose plan it cannot know, and leaves alone every address in the plans of those that work.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from artifacts.cache import atomic, locks
from artifacts.cache.cache_format import explained
from artifacts.cache.compact import Problem, entries_in, merge_address
from artifacts.cache.fit_listing import FitInfo, compact_fits, fit_info, list_fits, remove_fits
from artifacts.cache.listing import remove_address
from artifacts.cache.reach import Kept, Reach, choose
from artifacts.cache.runs import IN_USE, RunFolder, all_runs
from artifacts.cache.segment_index import Entry, index_path, segment_names
from artifacts.cache.store import MaskStore, StoreError

Kind = Literal["run", "images", "fit", "old publications", "file"]
LISTS = ("stamps", "origins", "pictures")
_RUN = re.compile(r"\d{8}-\d{6}(\d{6})?-.+-[0-9a-f]{4}")
"""A run's id; what has another name in ``runs/`` is somebody's."""
_FIT_PART = re.compile(rf"lock|work|pub-\d+|{re.escape(atomic.TEMPORARY_PREFIX)}.*")
"""What lies in a fit's folder."""


@dataclass(frozen=True)
class Item:
    """One thing that no kept run reaches."""

    kind: Kind
    name: str
    """A run's id, ``address/segment``, ``address/stamp`` of a fit, or a file's path below the cache."""
    bytes: int
    """An estimate where a segment holds other images, too."""
    age_s: float
    images: int = 0
    """Results of images, if it is a segment."""


@dataclass(frozen=True)
class Garbage:
    """What could go, and what stays."""

    kept: tuple[str, ...]
    live: tuple[str, ...]
    """Those of the kept runs that work now."""
    items: tuple[Item, ...]
    """The oldest first."""
    bytes_before: int
    """Of the whole cache."""
    spared: tuple[Item, ...] = ()
    """Unreached, too, and kept because the size cap does not need them."""
    over: int = 0
    """Bytes above the size cap that would be left, all of them reached."""
    _reach: Reach = field(default_factory=lambda: Reach(Path()), repr=False)

    @property
    def bytes(self) -> int:
        """What goes, about."""
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True)
class Cleaned:
    """What a clean-up did."""

    garbage: Garbage
    bytes_after: int
    busy: tuple[str, ...] = ()
    """Fits and runs that somebody began to use meanwhile."""
    problems: tuple[Problem, ...] = ()
    """Segments that were left alone because they cannot be read."""


def find(
    store: MaskStore,
    *,
    keep_runs: int = 10,
    keep_days: float | None = None,
    max_bytes: int | None = None,
    drop_runs: bool = False,
) -> Garbage:
    """What a clean-up with these rules would remove. Nothing is changed.

    Args:
        store: the cache.
        keep_runs: see :func:`artifacts.cache.reach.choose`.
        keep_days: keep whatever began within so many days, too.
        max_bytes: remove no more than it takes to get below, the oldest first.
        drop_runs: where that is not enough, let the oldest kept runs go, too. Those that live and the newest of
            each flow and data set stay in any case.

    Raises :class:`DataError` where a run's manifest is damaged.
    """
    runs = all_runs(store.root)
    size = sum(usage(store.root).values())
    kept, dropped = choose(runs, keep_runs, keep_days)
    least = {one.run for one in choose(runs, 1)[0]} if drop_runs else set()
    found = _garbage(store, kept, dropped, size, max_bytes)
    while drop_runs and found.over and (old := next((one for one in kept if one.run not in least), None)):
        kept.remove(old)
        dropped.append(old.run)
        found = _garbage(store, kept, dropped, size, max_bytes)
    return found


def _garbage(
    store: MaskStore, kept: Sequence[Kept], dropped: Sequence[RunFolder], size: int, max_bytes: int | None
) -> Garbage:
    reach = Reach.of(store.root, kept)
    live = tuple(one.run.run_id for one in kept if one.live)
    items = [
        *_runs(dropped, reach),
        *_images(store, reach),
        *_fits(store.root, reach),
        *_files(store.root, reach, with_lists=not live),
    ]
    # A run before all results: those are older than the run that made them, which would stay without.
    oldest = max((item.age_s for item in items if item.kind != "file" or item.name.startswith(LISTS)), default=0.0)
    age = {item: oldest if item.kind == "run" else item.age_s for item in items}
    items.sort(key=lambda item: (-age[item], item.kind != "run", item.name))
    found = Garbage(tuple(one.run.run_id for one in kept), live, tuple(items), size, _reach=reach)
    if max_bytes is None:
        return found
    needed, chosen = size - max_bytes, 0
    while needed > 0 and chosen < len(items):
        needed -= items[chosen].bytes
        chosen += 1
    return replace(found, items=tuple(items[:chosen]), spared=tuple(items[chosen:]), over=max(0, needed))


def _runs(dropped: Sequence[RunFolder], reach: Reach) -> Iterator[Item]:
    for run in dropped:
        if run.run_id not in reach.runs and _RUN.fullmatch(run.run_id) and not run.path.is_symlink():
            yield Item("run", run.run_id, *_size_age(run.path))


def _images(store: MaskStore, reach: Reach) -> Iterator[Item]:
    """A segment each: those of its images that are not reached."""
    for address in store.addresses():
        if address in reach.whole:
            continue
        folder = store.folder(address)
        for name in segment_names(folder):
            entries = entries_in(folder / name)
            gone = [entry for entry in entries or () if not reach.keeps(address, entry)]
            if entries and gone:
                size, age = _size_age(folder / name, index_path(folder / name))
                yield Item("images", f"{address}/{name}", size * len(gone) // len(entries), age, len(gone))


def _fits(root: Path, reach: Reach) -> Iterator[Item]:
    for fit in list_fits(root):
        if not reach.keeps_fit(fit.address, fit.stamp):
            if all(_FIT_PART.fullmatch(path.name) for path in fit.folder.iterdir()):  # else it is somebody's
                yield Item("fit", fit.name, fit.bytes, fit.age_s)
        elif fit.address in reach.live:
            continue  # a run may be about to read the publication that was the newest when it looked
        elif len(fit.publications) > 1 or fit.stale_work:
            older = [_size_age(publication.path)[0] for publication in fit.publications[:-1]]
            yield Item("old publications", fit.name, sum(older) + fit.work_bytes * fit.stale_work, fit.age_s)


def _files(root: Path, reach: Reach, *, with_lists: bool) -> Iterator[Item]:
    """Damaged files that were put aside, what killed writers left, lists that no run names.

    A run writes a list before it names it: while one works, lists stay.
    """
    lists = [
        path for name in LISTS if with_lists for path in (root / name).glob("*.json") if path.stem not in reach.lists
    ]
    aside = [path for pattern in ("*", "*/*", "*/*/*") for path in root.glob(f"{pattern}.corrupt") if path.is_file()]
    left = [path for folder in _folders(root) for path in atomic.abandoned(folder)]
    for path in [*lists, *aside, *left]:
        yield Item("file", path.relative_to(root).as_posix(), *_size_age(path))


def _folders(root: Path) -> Iterator[Path]:
    """Where writers leave temporaries."""
    yield root
    for pattern in ("*", "maps/*", "fits/*", "fits/*/*", "fits/*/*/work", "runs/[0-9]*"):
        yield from (path for path in root.glob(pattern) if path.is_dir() and not path.is_symlink())


def _size_age(*paths: Path) -> tuple[int, float]:
    """Bytes of all files at or below ``paths``, and seconds since the newest was written."""
    size, newest = 0, 0.0
    for path in paths:
        for file in [path, *path.rglob("*")]:
            with contextlib.suppress(OSError):  # gone meanwhile
                status = file.lstat()
                newest = max(newest, status.st_mtime)
                size += status.st_size if not file.is_dir() else 0
    return size, max(0.0, time.time() - newest)


def usage(root: Path) -> dict[str, int]:
    """Bytes in the cache: of ``maps``, ``fits``, ``runs`` and whatever else lies there; no file is opened."""
    with contextlib.suppress(OSError):
        return {entry.name: _bytes(entry) for entry in os.scandir(root)}
    return {}


def _bytes(entry: os.DirEntry[str]) -> int:
    with contextlib.suppress(OSError):  # gone meanwhile
        if not entry.is_dir(follow_symlinks=False):
            return entry.stat(follow_symlinks=False).st_size
        return sum(map(_bytes, os.scandir(entry.path)))
    return 0


# -- removing ----------------------------------------------------------------------------------------------------------


def alone(root: Path, on_wait: Callable[[str], None] | None = None) -> contextlib.AbstractContextManager[None]:
    """While no run reads its data or plans: hold this around :func:`find` and :func:`clean`."""
    return locks.hold(root / IN_USE, on_wait=on_wait)


def clean(store: MaskStore, garbage: Garbage) -> Cleaned:
    """Remove what :func:`find` found. Call both within :func:`alone`.

    Raises ``StoreError`` where the cache cannot be written.
    """
    if store.readonly:
        raise StoreError(f"{store.root} was to be cleaned, but the cache was opened read-only")
    busy: list[str] = []
    names: dict[Kind, list[str]] = {}
    for item in garbage.items:
        names.setdefault(item.kind, []).append(item.name)
    for name in names.get("run", ()):
        busy += [] if _remove_run(RunFolder(store.root, name)) else [name]
    problems = _remove_images(store, names.get("images", ()), garbage._reach)
    busy += remove_fits(store.root, _infos(store.root, names.get("fit", ()))).busy
    busy += compact_fits(store.root, _infos(store.root, names.get("old publications", ()))).busy
    for name in names.get("file", ()):
        _remove_file(store.root / name)
    return Cleaned(garbage, sum(usage(store.root).values()), tuple(busy), tuple(problems))


def _remove_run(run: RunFolder) -> bool:
    """By one rename, while nobody holds its lock; whether it went."""
    aside = atomic.temporary_beside(run.path)
    try:
        with locks.hold(run.lock, wait=False):
            os.rename(run.path, aside)
        shutil.rmtree(aside)
    except locks.LockTaken:
        return False
    except OSError as error:
        raise explained(error, run.path, "removed") from error
    return True


def _remove_images(store: MaskStore, names: Sequence[str], reach: Reach) -> list[Problem]:
    """Whole addresses by a rename; else segments are written again without what goes, then the old ones go."""
    chosen: dict[str, set[str]] = {}
    for name in names:
        address, _, segment = name.partition("/")
        chosen.setdefault(address, set()).add(segment)
    problems: list[Problem] = []
    for address, segments in chosen.items():
        folder = store.folder(address)
        store.refresh(address)
        stays = any(name not in segments or _any_kept(folder / name, reach) for name in segment_names(folder))
        stays |= any(entry.is_dir() for entry in os.scandir(folder))  # somebody's data: no segment was one
        stays |= folder.is_symlink()  # a rename would take the link alone

        def drop(entry: Entry, address: str = address, segments: set[str] = segments) -> bool:
            return entry.segment in segments and not reach.keeps(address, entry)

        if stays:
            problems += merge_address(store, address, drop=drop)
        else:
            remove_address(store, address)
    return problems


def _any_kept(segment: Path, reach: Reach) -> bool:
    entries = entries_in(segment)
    return entries is None or any(reach.keeps(segment.parent.name, entry) for entry in entries)


def _infos(root: Path, names: Sequence[str]) -> list[FitInfo]:
    return [fit_info(root, *name.split("/")) for name in names]


def _remove_file(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise explained(error, path, "removed") from error


def by_kind(items: Sequence[Item]) -> Mapping[Kind, tuple[int, int, int]]:
    """Kind -> how many, results of images among them, bytes."""
    found: dict[Kind, tuple[int, int, int]] = {}
    for item in items:
        count, images, size = found.get(item.kind, (0, 0, 0))
        found[item.kind] = count + 1, images + item.images, size + item.bytes
    return found
