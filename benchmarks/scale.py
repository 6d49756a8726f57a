"""A run of very many pictures: plan, and the run when all is cached. `python -m benchmarks.scale [--images N ...]`.

Pictures are hard links to a few files, labels a box each, arrays 2 x 2: only the book-keeping is measured. Two map
stages, a fit over all, its predictions for a few pictures, scores, report. A process of its own fills the cache; then
each size is planned and run in a fresh one: wall and CPU seconds, peak memory. Aim for 1,000,000: 120 s and 4 GB, and
time and memory that grow with the number of pictures, not faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from artifacts.records import Box, Record, RecordSet, Sets
from benchmarks import results
from flows.cli.main import COLLECT
from tasks.engine.options import RunParams
from tasks.engine.pending import Sources
from tasks.engine.runner import Runner
from tasks.engine.work_unit import SEGMENT_IMAGES
from tasks.evaluate.finish import Result, finish
from tasks.stage import PARAMS_CONFIG, Arrays, FitStage, Item, MapStage

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.training.context import FitContext

AIM_S, AIM_MB, AIM_IMAGES = 120.0, 4096.0, 1_000_000
LINKS = 30_000
"""Names of one file: file systems allow 65,000."""
VAL = 8
ROOT = Path(__file__).resolve().parents[1]
MASK = np.ones((2, 2), np.uint8)
HERE = "benchmarks.scale"


@dataclass(frozen=True)
class Nothing:
    """No params."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG


MADE = MapStage("made", 1, None, ("image", "boxes"), ("mask_hw",), f"{HERE}:mask", holds_classes=True)
REFINED = MapStage("refined", 1, None, (), ("mask_hw",), f"{HERE}:mask", holds_classes=True)
LEARNT = FitStage("learnt", 1, Nothing(), ("image",), f"{HERE}:nothing")
SHOWN = MapStage("shown", 1, None, ("image",), ("mask_hw",), f"{HERE}:mask", holds_classes=True)


def mask(item: Item, params: Any) -> Arrays:
    """All is class 1."""
    return {"mask_hw": MASK}


def nothing(context: FitContext) -> dict[str, Tensor]:
    """A network of one number."""
    import torch

    return {"w": torch.zeros(1)}


def records(folder: Path, count: int) -> Sets:
    """The pictures, made if they are not there: 1,000 in a folder."""
    found = []
    for number in range(count + VAL):
        path = folder / f"{number // 1000:04d}" / f"{number:07d}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        original = folder / f"original-{number // LINKS}.png"
        if number % LINKS == 0 and not original.exists():
            pixels = np.full((2, 2, 3), number // LINKS % 251, np.uint8)
            cv2.imwrite(str(original), pixels)
            os.utime(original, (1e9, 1e9))
        if not path.exists():
            os.link(original, path)
        found.append(Record(path.stem, str(path), (2, 2), boxes=(Box(0, 1, 0.0, 0.0, 2.0, 2.0),)))
    train = RecordSet("many", "train", ("thing",), tuple(found[:count]))
    return Sets(train, RecordSet("many", "val", ("thing",), tuple(found[count:])))


def page(run: Runner, sets: Sets) -> Result:
    made = run.map(MADE, sets.train)
    refined = run.map(REFINED, sets.train, source=made)
    net = run.fit(LEARNT, sets.train, target=refined)
    return finish(run, sets, refined, {"shown": run.map(SHOWN, sets.val, net=net)})


def fill(sets: Sets, cache: Path) -> None:
    """Store what the two map stages would give, without running them one by one; then run the rest."""
    from tasks.engine.pending import pending_images
    from tasks.stage import stage_address

    with Runner(RunParams(cache=str(cache)), planning=True, sets=sets) as run:
        upstream: dict[str, Any] = {}
        for stage in (MADE, REFINED):
            address = stage_address(stage, sets.train.classes, upstream)
            images = pending_images(stage, address, stage.name, sets.train, upstream, run.sources, rerun=False)
            for start in range(0, len(images.pending), SEGMENT_IMAGES):
                part = images.pending[start : start + SEGMENT_IMAGES]
                run.store.write_segment(address, [(task.key, task.stamp, {"mask_hw": MASK}) for task in part], meta={})
            upstream = {"source": run.map(stage, sets.train, **upstream)}
    _run(sets, cache)


def _run(sets: Sets, cache: Path, sources: Sources | None = None) -> None:
    options = RunParams(cache=str(cache), workers=0, launch="inline", device="cpu")
    with Runner(options, flow="scale", sets=sets, sources=sources, recipe={"data": {}}) as run:
        page(run, sets)


def again(folder: Path, count: int) -> dict[str, float]:
    """Plan and run in this process, all being cached."""
    import torch  # noqa: F401  a run has it, and its memory

    gc.set_threshold(*COLLECT)  # as the command line does
    cache = folder / "cache"
    began = time.perf_counter()
    sets = records(folder / "pictures", count)
    read_s, imported_mb = time.perf_counter() - began, _peak_mb()
    began, used = time.perf_counter(), time.process_time()
    with Runner(RunParams(cache=str(cache)), flow="scale", sets=sets, planning=True) as run:
        page(run, sets)
    assert not any(report.to_compute or report.unknown for report in run.reports), "not all was cached"
    sources = run.sources
    del run  # as run_page: of the plan its digests are kept
    planned, planned_cpu = time.perf_counter() - began, time.process_time() - used
    began, used = time.perf_counter(), time.process_time()
    _run(sets, cache, sources)
    return {
        "records_s": read_s,
        "plan_s": planned,
        "plan_cpu_s": planned_cpu,
        "run_s": time.perf_counter() - began,
        "run_cpu_s": time.process_time() - used,
        "peak_mb": _peak_mb(),
        "records_mb": imported_mb,
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int, parent: str | None) -> dict[str, Any]:
    """Fill a cache for ``count`` pictures, then the figures of a cached run in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="maskmill-scale-", dir=parent) as folder:
        began = time.perf_counter()
        _fresh("--fill", folder, count)
        filled = time.perf_counter() - began
        found: dict[str, Any] = json.loads(_fresh("--once", folder, count).splitlines()[-1])
        files = [entry for _, _, names in os.walk(Path(folder) / "cache") for entry in names]
        size = sum(path.stat().st_size for path in (Path(folder) / "cache").rglob("*") if path.is_file())
        return {"fill_s": filled, **found, "files": len(files), "cache_mb": size / (1 << 20)}


def _fresh(what: str, folder: str, count: int) -> str:
    argv = [sys.executable, "-m", HERE, what, folder, "--images", str(count)]
    return subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if the aim for 1,000,000 is missed, where that many were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", help="where the pictures and caches are made; default: among temporary files")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/scale.json")
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.fill:
        fill(records(options.fill / "pictures", options.images[0]), options.fill / "cache")
        return 0
    if options.once:
        print(json.dumps(again(options.once, options.images[0])))
        return 0
    figures: dict[str, dict[str, Any]] = {}
    missed = False
    for count in options.images:
        found = figures[str(count)] = {name: round(v, 2) for name, v in measure(count, options.folder).items()}
        print(
            f"scale: {count:,} pictures: plan {found['plan_s']:.1f} s ({found['plan_cpu_s']:.1f} s of CPU), cached run"
            f" {found['run_s']:.1f} s ({found['run_cpu_s']:.1f}), peak {found['peak_mb']:.0f} MB (records and imports"
            f" {found['records_mb']:.0f}), {found['files']:,} files in {found['cache_mb']:.0f} MB; filled in"
            f" {found['fill_s']:.0f} s; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            flush=True,
        )
        both = min(found["plan_s"] + found["run_s"], found["plan_cpu_s"] + found["run_cpu_s"])
        missed |= count >= AIM_IMAGES and (both > AIM_S or found["peak_mb"] > AIM_MB)
    if options.save:
        print(results.save("scale", figures))
    return int(missed)


if __name__ == "__main__":
    from benchmarks.scale import main as entry

    sys.exit(entry())
