"""What runs reach in a cache: which images' results, fits and lists their manifests name. For `maskmill cache gc`."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import process_lives
from artifacts.cache.runs import MANIFEST, RunFolder, read_stamps
from artifacts.cache.segment_index import Entry
from artifacts.records import DataError

DAY_S = 24 * 3600.0
_PROCESS = re.compile(r"pid (\d{1,9}) on (.+)")
"""How a run names its process in ``progress.json``."""


@dataclass(frozen=True)
class Kept:
    """One run that is kept."""

    run: RunFolder
    manifest: Mapping[str, Any]
    """Empty for a run that was killed before it left one."""
    live: bool
    whole: bool
    """It may go on where it is: all that lies at the addresses of its plan stays."""


def choose(
    runs: Sequence[RunFolder], keep_runs: int, keep_days: float | None = None
) -> tuple[list[Kept], list[RunFolder]]:
    """The runs that are kept, and the others; both oldest first.

    Kept are: all that live, and those of another process that still does (a comparison reads its runs at its end); of
    each flow and data set the ``keep_runs`` newest that finished, of each flow the ``keep_runs`` newest that did not;
    whatever began within ``keep_days``. Raises :class:`DataError` for a damaged manifest: nobody knows what its run
    reaches.
    """
    finished: dict[tuple[str, str], int] = {}
    others: dict[str, int] = {}
    ended_well: set[tuple[str, str]] = set()
    kept: list[Kept] = []
    dropped: list[RunFolder] = []
    since = float("inf") if keep_days is None else time.time() - keep_days * DAY_S
    for run in reversed(runs):
        live = run.live
        manifest = _manifest(run, live)
        flow = str(manifest.get("flow") or "-".join(run.run_id.split("-")[2:-1]))
        source = str((manifest.get("recipe") or {}).get("data", {}).get("source", ""))
        if manifest.get("status") == "finished":
            number = finished[flow, source] = finished.get((flow, source), 0) + 1
            whole = False
            ended_well |= {(flow, source), (flow, "")}
        else:
            number = others[flow] = others.get(flow, 0) + 1
            # Killed in its first stage, it left no manifest.
            whole = (flow, source or str(run.progress().get("source", ""))) not in ended_well
        if live or number <= keep_runs or _began(run, manifest) >= since or _process_lives(run):
            kept.append(Kept(run, manifest, live, live or whole))
        else:
            dropped.append(run)
    return kept[::-1], dropped[::-1]


def _manifest(run: RunFolder, live: bool) -> Mapping[str, Any]:
    try:
        return run.manifest()
    except DataError as error:
        if (run.path / MANIFEST).exists() and not live:
            raise DataError(
                f"{run.path}: its manifest is damaged, so nobody knows what this run reaches; put it aside with"
                " `maskmill cache verify --repair`, or remove the folder"
            ) from error
        return {}


def _process_lives(run: RunFolder) -> bool:
    """Whether the process that the run was part of still works, on this machine, and is another one than this."""
    found = _PROCESS.fullmatch(str(run.progress().get("process", "")))
    if found is None or found[2] != os.uname().nodename or int(found[1]) == os.getpid():
        return False
    return process_lives(found[1])


def _began(run: RunFolder, manifest: Mapping[str, Any]) -> float:
    if "started" in manifest:
        return float(manifest["started"])
    with contextlib.suppress(OSError):
        return run.path.stat().st_mtime
    return 0.0


@dataclass
class Reach:
    """What a number of runs reach."""

    cache: Path
    pairs: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """Address -> (key, stamp)."""
    skipped: dict[str, set[str]] = field(default_factory=dict)
    """Address -> keys without a result: the stored reasons keep a run from trying again."""
    whole: set[str] = field(default_factory=set)
    """Addresses of which all stays."""
    live: set[str] = field(default_factory=set)
    """Those of runs that work now: what they have found there stays, though superseded since."""
    fits: set[tuple[str, str]] = field(default_factory=set)
    """(address, stamp)."""
    lists: set[str] = field(default_factory=set)
    """Names in ``stamps/``, ``origins/`` and ``pictures/``."""
    runs: set[str] = field(default_factory=set)
    """Runs in whose folders something lies that a configuration names (a bundle of generators, say)."""
    _read: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, cache: Path, kept: Iterable[Kept]) -> Reach:
        """All that these runs reach. Raises :class:`DataError` where that cannot be known."""
        found = cls(cache)
        for one in kept:
            found._add(one)
        return found

    def keeps(self, address: str, entry: Entry) -> bool:
        """Whether an image's stored result, or the stored reason why it has none, is reached."""
        if address in self.whole or (entry.key, entry.stamp) in self.pairs.get(address, ()):
            return True
        return entry.output is None and entry.key in self.skipped.get(address, ())

    def keeps_fit(self, address: str, stamp: str) -> bool:
        """Whether a fit is reached."""
        return address in self.whole or (address, stamp) in self.fits

    def _add(self, kept: Kept) -> None:
        manifest = kept.manifest
        for stage in manifest.get("stages", ()):
            address, stamps = str(stage.get("address", "")), str(stage.get("stamps", ""))
            if stage.get("kind") == "fit":
                self.fits.add((address, stamps))
            elif stamps:
                self._add_stamps(address, stamps, kept)
            else:
                self.whole.add(address)  # not finished: some of its units are stored
        for name in ("origins", "pictures"):
            self.lists.update(str(one) for one in manifest.get(name, {}).values())
        if kept.whole:
            self._add_plan(kept)
        begun = {} if manifest.get("recipe") else kept.run.progress()  # no stage has ended yet
        folder = str(manifest.get("folder") or begun.get("folder", ""))
        for text in texts([manifest.get("recipe"), manifest.get("loaded"), begun.get("named")]):
            # A source is voc:PATH or coco:PATH,PATH.
            for part in {text, *re.split("[:,]", text)}:
                self._add_path(folder, part)

    def _add_stamps(self, address: str, name: str, kept: Kept) -> None:
        self.lists.add(name)
        if (address, name) in self._read:
            return
        self._read.add((address, name))
        try:
            stamps = read_stamps(self.cache, name)
        except (DataError, ValueError):
            self.whole.add(address)  # which of its images are meant is lost: all stay
            return
        self.pairs.setdefault(address, set()).update((key, s) for key, (s, _) in stamps.items() if s is not None)
        self.skipped.setdefault(address, set()).update(key for key, (s, _) in stamps.items() if s is None)

    def _add_plan(self, kept: Kept) -> None:
        progress = kept.run.progress()
        planned = {str(stage["address"]) for stage in progress.get("plan", ())}
        self.whole |= planned
        self.live |= planned if kept.live else set()
        if kept.live and not progress.get("plan"):
            raise DataError(
                f"{kept.run.path}: this run reads its data or plans, so what it reaches is not known yet; try again"
                " when it works (`maskmill status`)"
            )

    def _add_path(self, folder: str, text: str) -> None:
        """Protect what a configuration names inside of the cache, by whatever path."""
        if os.sep not in text or "\n" in text:
            return
        with contextlib.suppress(OSError, ValueError, IndexError):
            parts = (
                Path(os.path.realpath(Path(folder, os.path.expanduser(text))))
                .relative_to(os.path.realpath(self.cache))
                .parts
            )
            if parts[0] == "fits" and len(parts) > 2:
                self.fits.add((parts[1], parts[2]))
            elif parts[0] == "fits" and len(parts) == 2:
                self.whole.add(parts[1])
            elif parts[0] == "runs" and len(parts) > 1:
                self.runs.add(parts[1])


def texts(value: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts(item)
