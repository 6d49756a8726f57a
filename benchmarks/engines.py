"""What an engine costs over `local`: 1,000 units of one tiny image each. `python -m benchmarks.engines`.

All engines run here, with as many places for units, warm: processes are started and have imported all by then. CPU
seconds are of this process and of all below it; on a busy machine they are what can be compared. A unit has up to 64
images in a real run. There is no bar.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from artifacts.records import Record
from benchmarks import results
from tasks.engine.image_task import ImageTask
from tasks.engine.options import RunParams
from tasks.engine.work_unit import WorkUnit
from tasks.engine.workers import Workers
from tasks.stage import Arrays, Item, MapStage

STAGE = MapStage("tiny", 1, None, (), ("mask_hw",), "benchmarks.engines:tiny")


def tiny(item: Item, params: Any) -> Arrays:
    """Next to nothing."""
    return {"mask_hw": np.zeros((2, 2), np.uint8)}


def units(cache: str, first: int, count: int) -> list[WorkUnit]:
    tasks = [ImageTask(f"set/{n}", f"{n:032d}", Record(str(n), f"{n}.png")) for n in range(first, first + count)]
    return [WorkUnit(cache, "tiny", "tiny-1", STAGE, ("thing",), (task,)) for task in tasks]


def cpu_s() -> float:
    """CPU seconds of this process and of all that live below it."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measure(engine: str, count: int, workers: int) -> dict[str, float]:
    """Wall and CPU milliseconds a unit, and the seconds until the first units were done."""
    with tempfile.TemporaryDirectory(prefix="maskmill-engines-") as cache, Workers() as started:
        options = RunParams(cache=cache, engine=engine, workers=workers, device="cpu")
        began = time.perf_counter()
        with started.pool(options, uses_torch=False, on_wait=print) as (pool, _):
            for future in [pool.submit(unit) for unit in units(cache, 0, 4 * workers)]:
                future.result()
            start_s = time.perf_counter() - began
            work = units(cache, 4 * workers, count)
            before, began = cpu_s(), time.perf_counter()
            for future in [pool.submit(unit) for unit in work]:
                future.result()
            wall_s, used_s = time.perf_counter() - began, cpu_s() - before
    return {
        "wall_ms": round(1000 * wall_s / count, 2),
        "cpu_ms": round(1000 * used_s / count, 2),
        "start_s": round(start_s, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["local", "dask", "ray"], help="dask:ADDRESS, too")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/engines.json")
    options = parser.parse_args(arguments)
    # Workers that somebody else starts find this module here.
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    figures: dict[str, dict[str, float]] = {}
    for engine in options.engines:
        figures[engine] = found = measure(engine, options.units, options.workers)
        over = found["cpu_ms"] - figures[options.engines[0]]["cpu_ms"]
        print(
            f"engines: {engine}: {found['wall_ms']} ms a unit, {found['cpu_ms']} ms of CPU ({over:+.2f} over"
            f" {options.engines[0]}), first units after {found['start_s']} s; load {os.getloadavg()[0]:.1f} on"
            f" {os.cpu_count()} cores",
            flush=True,
        )
    if options.save:
        print(results.save("engines", {"units": options.units, "workers": options.workers, "engines": figures}))
    return 0


if __name__ == "__main__":
    from benchmarks.engines import main as entry

    sys.exit(entry())
