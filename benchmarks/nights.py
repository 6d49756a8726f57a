"""Ten nights of a flow on a folder that changes, on one cache: what each computed against what it had to compute.

    python -m benchmarks.nights [--flow FLOW ...] [--refit changed never]      (make nights)

Between nights somebody adds, changes, removes, renames, breaks and mends pictures (``benchmarks.night_world``). What a
night has to compute follows from what was done to the folder, from what each stage declares that it reads, and from the
arrays above it; stamps are not asked. What was computed before must be the same to the byte. At the end, with
``changed``, a run on an empty cache must give the same masks and networks. Exit status 1 on any difference.

A killed night dies (``kill -9``) where its first fit publishes, or, without a fit, where its first masks are stored. It
is run again, and both count as one night.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts import keys
from artifacts.cache.runs import read_stamps
from artifacts.cache.store import MaskStore
from artifacts.demo.data import prepare_demo
from artifacts.records import RecordSet, Sets
from benchmarks import results
from benchmarks.night_world import NIGHTS, Night, World
from flows.configure import Job, configure
from flows.registry import FLOWS, SHIPPED
from flows.run_flow import read_sets, run_page
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.stage import FitHandle, FitStage, Handle, MapHandle, Stage

ROOT = Path(__file__).resolve().parents[1]
NAME = "folder"
"""Of the data set."""
HERE = ("threads=1", "launch=inline", "workers=0", "progress=false", "export=[]")
"""Options: everything in one process."""
REFITS = ("changed", "never")
STEPS = {
    "cfs": (*FLOWS["cfs"].figure, "params.cfs.iterations=3", "params.deeplab.iterations=3"),
    "rrm": ("params.cam.iterations=3", "params.rrm.iterations=3", "params.deeplab.iterations=3"),
    "bpg": ("params.bpg.iterations=3", "params.deeplab.iterations=3"),
    "lpg-learn": ("params.segmenter.iterations=3", "params.generator.iterations=3"),
    "lpg": (
        "params.segmenter.iterations=3",
        "params.learn.segmenter.iterations=3",
        "params.learn.generator.iterations=3",
    ),
}
"""Fits of three steps, in which most pictures are seen: what is computed does not depend on how good a network is.
``cfs`` is the whole figure."""


# -- what a run found or made ----------------------------------------------------------------------------------------


Place = tuple[str, str, str]
"""Address, key and stamp."""


@dataclass(frozen=True)
class Found:
    """A run's results by content, and what it worked on, from its manifest and the arrays themselves."""

    maps: Mapping[str, Mapping[str, str | None]]
    """Stage -> key -> digest of the arrays; ``None`` for a skip."""
    fits: Mapping[str, str]
    """Fit -> digest of the weights."""
    worked: Mapping[str, int]
    """Stage -> images that were tried, or fits done."""
    places: Mapping[str, set[Place]]
    """Stage -> where its arrays are stored."""

    @classmethod
    def of(cls, cache: Path, manifest: Mapping[str, Any]) -> Found:
        """Read what the run of ``manifest`` used, each array from disk."""
        store = MaskStore(cache, readonly=True)
        stages = manifest["stages"]
        maps, places = {}, {}
        for stage in (stage for stage in stages if stage["kind"] == "map"):
            stamps = read_stamps(cache, stage["stamps"])
            maps[stage["label"]] = {
                key: None if stamp is None else keys.digest_arrays(store.read(stage["address"], key, stamp))
                for key, (stamp, _) in stamps.items()
            }
            places[stage["label"]] = {(stage["address"], key, stamp) for key, (stamp, _) in stamps.items() if stamp}
        worked = {s["label"]: s["computed"] if s["kind"] == "fit" else s["total"] - s["cached"] for s in stages}
        return cls(maps, {s["label"]: s["output"] for s in stages if s["kind"] == "fit"}, worked, places)


# -- what had to be computed -----------------------------------------------------------------------------------------


class Recorder(Runner):
    """Plans a page, and keeps what each fit is built on: its handle does not say."""

    def __init__(self, options: RunParams, sets: Sets) -> None:
        super().__init__(options, planning=True, sets=sets)
        self.above: dict[str, Mapping[str, Handle]] = {}

    def fit(self, stage: FitStage, train: RecordSet, **given: Any) -> FitHandle:
        """As the Runner's."""
        handle = super().fit(stage, train, **given)
        self.above[handle.label] = {role: h for role, h in given.items() if isinstance(h, (MapHandle, FitHandle))}
        return handle


@dataclass
class Needed:
    """What nights have to compute: work is a stage, its params and classes, and the contents that it is done to."""

    world: World
    refit: str
    done: dict[Hashable, str | None] = field(default_factory=dict)
    """Work -> digest of its result."""
    _last: dict[Hashable, str] = field(default_factory=dict)
    """A fit without its pictures -> the network that was learnt last."""
    kept: int = 0
    """Results of the night that were there before, and are the same."""
    faults: list[str] = field(default_factory=list)

    def night(self, plan: Recorder, found: Found) -> dict[str, int]:
        """Stage -> images, or fits, that the night had to work on. Enters what it found into the books."""
        needed: dict[str, int] = {}
        self.kept = 0
        for handle in plan.handles:
            if isinstance(handle, FitHandle):
                needed[handle.label] = int(self._fit(handle, plan.above[handle.label], found))
            elif handle.stage.function:
                works = [self._map(handle, record.image_id, found) for record in handle.records]
                needed[handle.label] = sum(works)
        return needed

    def _map(self, handle: MapHandle, image_id: str, found: Found) -> bool:
        """Whether an image of a map stage was new work."""
        arrays = self._arrays(handle.upstream, image_id, found)
        if None in arrays.values():
            return False
        seen = self._seen(handle.stage, image_id, handle.records)
        work = (_what(handle.stage, handle.records), _nets(handle.upstream, found), image_id, seen, _plain(arrays))
        return self._enter(work, found.maps[handle.label][f"{handle.records.dataset}/{image_id}"], handle.label)

    def _fit(self, handle: FitHandle, above: Mapping[str, Handle], found: Found) -> bool:
        """Whether a fit was new work: never, where ``refit`` is ``never`` and there is a network to take."""
        assert handle.records is not None
        kind = (_what(handle.stage, handle.records), _nets(above, found))
        members = set()
        for record in handle.records:
            arrays = self._arrays(above, record.image_id, found)
            if None not in arrays.values():
                members.add(
                    (record.image_id, self._seen(handle.stage, record.image_id, handle.records), _plain(arrays))
                )
        work, weights = (*kind, frozenset(members)), found.fits[handle.label]
        if work not in self.done and self.refit == "never" and kind in self._last:
            if weights != self._last[kind]:
                self.faults.append(f"{handle.label}: not the network that was learnt last")
            return False
        new = self._enter(work, weights, handle.label)
        if new:
            self._last[kind] = weights
        return new

    def _enter(self, work: Hashable, result: str | None, label: str) -> bool:
        new = work not in self.done
        if new:
            self.done[work] = result
        elif self.done[work] == result:
            self.kept += 1
        else:
            self.faults.append(f"{label}: the same work gave other bytes than before")
        return new

    def _arrays(self, above: Mapping[str, Handle], image_id: str, found: Found) -> dict[str, str | None]:
        """role -> digest of the arrays of an image from above."""
        return {role: _result(h, image_id, found) for role, h in above.items() if isinstance(h, MapHandle)}

    def _seen(self, stage: Stage, image_id: str, records: RecordSet) -> Hashable:
        """The contents of a picture that ``stage`` declares; of another data set they never change."""
        own = records.dataset == NAME
        return records.dataset, *((kind, own and self.world.content(image_id, kind)) for kind in stage.reads)


def _result(handle: MapHandle, image_id: str, found: Found) -> str | None:
    if handle.stage.function:
        return found.maps[handle.label][f"{handle.records.dataset}/{image_id}"]
    first, second = (handle.upstream[role] for role in ("a", "b"))  # tasks.stage.first_of
    assert isinstance(first, MapHandle) and isinstance(second, MapHandle)
    has = any(record.image_id == image_id for record in first.records)
    return (_result(first, image_id, found) if has else None) or _result(second, image_id, found)


def _what(stage: Stage, records: RecordSet) -> Hashable:
    # A class is only ever appended here: it changes no number that comes from the labels.
    of_table = stage.holds_classes and not getattr(stage, "numbers_of_labels", False)
    return stage.name, stage.version, repr(stage.params), records.classes if of_table else ()


def _nets(above: Mapping[str, Handle], found: Found) -> Hashable:
    return _plain({role: (found.fits[h.label], h.prefix) for role, h in above.items() if isinstance(h, FitHandle)})


def _plain(given: Mapping[str, Any]) -> Hashable:
    return tuple(sorted(given.items()))


# -- nights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One night."""

    name: str
    computed: Mapping[str, int]
    needed: Mapping[str, int]
    kept: int
    faults: tuple[str, ...]
    pinned: tuple[str, ...]
    """What was said of fits for which an older one stood in."""

    @property
    def right(self) -> bool:
        """Computed is needed, and nothing changed that should not."""
        return self.computed == self.needed and not self.faults


def simulate(
    flow: str,
    folder: Path,
    world: World,
    sets: Sequence[str] = (),
    *,
    refit: str = "changed",
    nights: Sequence[Night] = NIGHTS,
    show: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """The nights of one flow on one cache in ``folder``; ``changed``: and a run on an empty one, as the last row."""
    given = [*(f"options.{one}" for one in HERE), f"data.name={NAME}", f"options.refit={refit}", *sets]
    needed = Needed(world, refit)
    rows = []

    def job(out: str) -> Job:
        options = {"out": str(folder / out)}
        return configure(flow, f"voc:{world.root}", FLOWS[flow].tiny, given, options)

    for night in nights:
        night.day(world)
        world.write()
        before = killed(flow, folder, world, given, refit) if night.killed else set()
        found, plan, pinned = run_once(job("nights"))
        places = found.places
        computed = {label: count + len(before & places.get(label, set())) for label, count in found.worked.items()}
        rows.append(Row(night.name, computed, needed.night(plan, found), needed.kept, tuple(needed.faults), pinned))
        needed.faults.clear()
        show(rows[-1])
    if refit == "changed":
        fresh, plan, _ = run_once(job("fresh"))
        same = (fresh.maps, fresh.fits) == (found.maps, found.fits)
        everything = Needed(world, refit).night(plan, fresh)
        faults = () if same else ("an empty cache gives other bytes",)
        rows.append(Row("the same folder, an empty cache", fresh.worked, everything, 0, faults, ()))
        show(rows[-1])
    return rows


def run_once(job: Job) -> tuple[Found, Recorder, tuple[str, ...]]:
    """A run in this process: what it found, its plan, what it said of pinned fits."""
    cache = Path(job.options.cache)
    page = FLOWS[job.flow].page
    sets = read_sets(job.data, job.options)
    with Recorder(job.options, sets) as plan:
        page(plan, sets, job.params)
    manifest = run_page(job.flow, page, job.data, job.params, job.options).manifest
    pinned = tuple(f"{stage['label']}: {stage['pinned']}" for stage in manifest["stages"] if stage["pinned"])
    return Found.of(cache, manifest), plan, pinned


def killed(flow: str, folder: Path, world: World, given: Sequence[str], refit: str) -> set[Place]:
    """A run that dies: as its first fit publishes, or as it has stored its first arrays. What it has stored."""
    command = [sys.executable, "-m", "benchmarks.soak_kill", "--run", flow, "--config", FLOWS[flow].tiny, "--quiet"]
    command += ["--data", f"voc:{world.root}", "--out", str(folder / "nights"), *(f"--set={one}" for one in given)]
    point = "fit.mid_publish" if refit == "changed" else "store.after_rename"
    env = {**os.environ, "MASKMILL_KILL_AT": point}
    before = stored(folder / "nights" / "cache")
    done = subprocess.run(command, cwd=ROOT, env=env, start_new_session=True, capture_output=True, text=True)
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"it should have been killed, and ended with {done.returncode}: {done.stderr[-2000:]}")
    return stored(folder / "nights" / "cache") - before


def stored(cache: Path) -> set[Place]:
    """All that a cache holds of map stages."""
    store = MaskStore(cache, readonly=True)
    return {(address, *pair) for address in store.addresses() for pair in store.entries(address)}


# -- the table -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row for each night, a column for each stage, computed / needed."""
    labels = list(rows[0].computed)
    lines = [f"| night | {' | '.join(labels)} | kept |", f"|---|{'---|' * len(labels)}---|"]
    for row in rows:
        cells = [f"{row.computed.get(label, 0)} / {row.needed.get(label, 0)}" for label in labels]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.kept} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """All flows and policies; exit status 1 where a night computed other than it had to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [entry.name for entry in SHIPPED]
    parser.add_argument("--flow", nargs="+", choices=names, default=names)
    parser.add_argument("--refit", nargs="+", choices=REFITS, default=REFITS)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as the flow's own --set")
    given = parser.parse_args(arguments)
    wrong = 0
    for flow, refit in itertools.product(given.flow, given.refit):
        print(f"\n{flow}, refit={refit}", flush=True)
        with tempfile.TemporaryDirectory(prefix="maskmill-nights-") as name:
            folder = Path(name)
            world = World(prepare_demo("demo-tiny", folder), folder / "pictures", first=8, val=3)
            rows = simulate(flow, folder, world, [*STEPS[flow], *given.set], refit=refit, show=progress)
        bad = sum(not row.right for row in rows)
        print(f"\ncomputed / needed, and results of before that are the same to the byte\n\n{table(rows)}", flush=True)
        figures = dict(results.load("nights").get("figures", {}))
        figures[f"{flow}, {refit}"] = {"wrong": bad, "table": table(rows).splitlines()}
        results.save("nights", figures)
        wrong += bad
    print(f"\nfigures: {results.path_of('nights')}; {wrong} nights were wrong")
    return int(bool(wrong))


def progress(row: Row) -> None:
    """A night is over."""
    faults = [] if row.right else [*row.faults, f"needed {dict(row.needed)}"]
    said = f"{row.name}: {'as needed' if row.right else 'WRONG'}, {dict(row.computed)}"
    print(said, *row.pinned, *faults, sep="\n  ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
