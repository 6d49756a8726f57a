"""Fits in the cache, for `maskmill cache`: what there is, whether it is what was published, and what may go.

Whatever is removed here is removed by the holder of the fit's lock, so never during a fit. The lock file
itself stays (:mod:`artifacts.cache.locks` says why): a folder with nothing else in it is no fit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.cache import atomic, locks
from artifacts.cache.cache_format import explained
from artifacts.cache.compact import Problem
from artifacts.cache.fit_store import FitStore, Publication
from artifacts.cache.runs import in_use, users
from artifacts.records import DataError

STALE_S = 14 * 24 * 3600.0
"""A fit that was not resumed for this long is abandoned: its data or params have changed."""


@dataclass(frozen=True)
class FitInfo:
    """One fit: an address and a stamp."""

    folder: Path
    label: str
    """Of the stage, as the newest publication knows it; empty for a fit that was never finished."""
    publications: tuple[Publication, ...] = field(repr=False)
    """Oldest first; damaged ones left out."""
    bytes: int
    """Of everything, ``work_bytes`` among it."""
    work_bytes: int
    """Of checkpoints from which an unfinished fit would resume."""
    age_s: float
    """Seconds since anything was written."""
    work_age_s: float = 0.0

    @property
    def address(self) -> str:
        """Of the stage."""
        return self.folder.parent.name

    @property
    def stamp(self) -> str:
        """Of its training records."""
        return self.folder.name

    @property
    def name(self) -> str:
        """``<address>/<stamp>``."""
        return f"{self.address}/{self.stamp}"

    @property
    def stale_work(self) -> bool:
        """Whether no run will resume from ``work/``: it is older than the publication, or than :data:`STALE_S`."""
        if not self.work_bytes:
            return False
        published = max((publication.published for publication in self.publications), default=0.0)
        return self.work_age_s > STALE_S or time.time() - self.work_age_s < published


@dataclass(frozen=True)
class FitsRemoved:
    """What :func:`remove_fits` or :func:`compact_fits` removed."""

    fits: tuple[FitInfo, ...]
    runs: tuple[str, ...] = ()
    """Runs that used them: they can still be exported, and would fit again."""
    publications: int = 0
    works: int = 0
    bytes: int = 0
    busy: tuple[str, ...] = ()
    """Fits that were kept because a process is using them."""


def list_fits(root: Path) -> list[FitInfo]:
    """Every fit of the cache ``root``, the most recently written first."""
    folders = [folder for folder in (root / "fits").glob("*/*") if folder.is_dir()]
    found = [fit_info(root, folder.parent.name, folder.name) for folder in folders]
    return sorted((info for info in found if info.bytes), key=lambda info: info.age_s)


def fit_info(root: Path, address: str, stamp: str) -> FitInfo:
    """Sizes and publications of one fit; no weights are read."""
    store = FitStore(root)
    folder = store.folder(address, stamp)
    size, newest = _usage(path for path in folder.glob("*") if path.name != "lock")
    work_size, work_newest = _usage([folder / "work"])
    publications = tuple(store.publications(address, stamp))
    label = str(publications[-1].info.get("label", "")) if publications else ""
    now = time.time()
    return FitInfo(folder, label, publications, size, work_size, max(0.0, now - newest), max(0.0, now - work_newest))


def _usage(paths: Iterable[Path]) -> tuple[int, float]:
    """Bytes of all files below ``paths``, and the time of the newest."""
    size, newest = 0, 0.0
    for path in paths:
        for file in [path, *path.rglob("*")]:
            with contextlib.suppress(OSError):  # gone meanwhile
                status = file.stat()
                if file.is_file():
                    size += status.st_size
                    newest = max(newest, status.st_mtime)
    return size, newest


def match_fits(fits: Sequence[FitInfo], name: str, *, whole: bool) -> list[FitInfo]:
    """The fits meant by ``name``: an address, ``address/stamp``, or a label.

    Unless ``whole``: beginnings of an address, or of address and stamp, with a slash between.
    """
    if whole:
        return [fit for fit in fits if name in (fit.address, fit.name, fit.label)]
    address, _, stamp = name.partition("/")
    return [fit for fit in fits if fit.address.startswith(address) and fit.stamp.startswith(stamp)]


def verify_fits(fits: Iterable[FitInfo]) -> tuple[int, list[Problem]]:
    """Read the weights of every publication; how many are as published, and what is wrong with the others."""
    sound, problems = 0, []
    for fit in fits:
        for publication in fit.publications:
            try:
                publication.verify()
                sound += 1
            except DataError as error:
                what = str(error).partition(": ")[2]
                problems.append(Problem(publication.weights, None, what))
        whole = {publication.path for publication in fit.publications}
        cut = [path for path in sorted(fit.folder.glob("pub-*")) if path not in whole]
        problems += [Problem(path, None, "not a whole publication") for path in cut]
    return sound, problems


def remove_fits(root: Path, fits: Sequence[FitInfo], *, dry_run: bool = False) -> FitsRemoved:
    """Remove whole fits, unfinished ones too; a run that needs one fits again.

    Raises ``StoreError`` where the cache cannot be written.
    """
    gone: list[FitInfo] = []
    busy: list[str] = []
    for fit in fits:
        with _alone(fit, dry_run=dry_run) as free:
            if not free:
                busy.append(fit.name)
                continue
            gone.append(fit)
            if not dry_run:
                _remove(fit, [path for path in fit.folder.iterdir() if path.name != "lock"])
    used = users(root) if gone else {}
    runs = sorted({run for fit in gone for run in used.get(fit.name, ())})
    publications, works = sum(len(fit.publications) for fit in gone), sum(bool(fit.work_bytes) for fit in gone)
    return FitsRemoved(tuple(gone), tuple(runs), publications, works, sum(fit.bytes for fit in gone), tuple(busy))


def compact_fits(root: Path, fits: Sequence[FitInfo]) -> FitsRemoved:
    """Remove what no run will use again: publications before the newest of the same stamp, abandoned ``work/``.

    The newest is read whole before any other goes for it. A fit in use is kept: one that is being done, and one that a
    run which works now has in its plan. It may be about to read the publication that was the newest when it looked.
    """
    planned = in_use(root)
    touched: list[FitInfo] = []
    busy: list[str] = []
    publications = works = size = 0
    for fit in fits:
        if len(fit.publications) < 2 and not fit.stale_work:
            continue
        if planned(fit.address):
            busy.append(fit.name)
            continue
        with _alone(fit) as free:
            if not free:
                busy.append(fit.name)
                continue
            now = fit_info(root, fit.address, fit.stamp)
            older = [publication.path for publication in now.publications[:-1]] if _newest_is_sound(now) else []
            work = [fit.folder / "work"] if now.stale_work else []
            _remove(now, [*older, *work])
            after = fit_info(root, fit.address, fit.stamp)
        if older or work:
            touched.append(fit)
        publications, works, size = publications + len(older), works + len(work), size + now.bytes - after.bytes
    return FitsRemoved(tuple(touched), (), publications, works, size, tuple(busy))


def _newest_is_sound(fit: FitInfo) -> bool:
    try:
        fit.publications[-1].verify()
    except (DataError, IndexError):
        return False
    return True


@contextlib.contextmanager
def _alone(fit: FitInfo, *, dry_run: bool = False) -> Iterator[bool]:
    """Hold the fit's lock; ``False`` if another process does."""
    if dry_run:
        yield True
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.hold(fit.folder / "lock", wait=False))
        except locks.LockTaken:
            yield False
            return
        except OSError as error:
            raise explained(error, fit.folder, "removed") from error
        yield True


def _remove(fit: FitInfo, paths: Sequence[Path]) -> None:
    """Each goes by one rename and is deleted after that: a kill leaves no half publication."""
    for path in paths:
        aside = atomic.temporary_beside(path)
        try:
            os.rename(path, aside)
            if aside.is_dir():
                shutil.rmtree(aside)
            else:
                aside.unlink()
        except OSError as error:
            raise explained(error, fit.folder, "removed") from error
