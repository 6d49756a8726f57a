"""What the Runner costs: a stage of 20 ms of numpy an image, against a bare loop. `python -m benchmarks.runner`.

Both sides read the same JPEGs, call the same function and store the same arrays in segments of 64 images. The bare
loop is one process and does nothing else. The Runner does all its work: digests of the images, stamps, units sent
to a worker process, index, manifest. Start-up (imports, the worker's start, the first write) is measured by the same
run over one image, and subtracted on both sides. The two take turns, and each turn compares CPU seconds (of all
processes) as well as wall seconds, since a busy machine disturbs the latter. Bar: 2 % more wall time than the loop.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.cache.store import MaskStore
from artifacts.images import read_image_rgb
from artifacts.records import Record, RecordSet
from benchmarks import results
from tasks.engine.runner import Runner, RunParams
from tasks.stage import PARAMS_CONFIG, Arrays, Item, MapStage

BAR = 0.02
SEGMENT = 64
SIZE = (375, 500)


@dataclass(frozen=True)
class Work:
    """How much an image costs."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    rounds: int = field(default=10, metadata={"help": "passes over the picture"})


def stage(rounds: int) -> MapStage:
    return MapStage("busy", 1, Work(rounds), ("image",), ("mask_hw",), "benchmarks.runner:busy")


def busy(item: Item, params: Work) -> Arrays:
    """Some 20 ms of numpy in one thread, and a mask that depends on all of it.

    It works in place: temporary arrays of this size cost between nothing and as much again, by the state in which
    malloc happens to be, and that differs from process to process.
    """
    assert item.image_rgb is not None
    grey = item.image_rgb[..., 1].astype(np.float32)
    square, below = _scratch(grey.shape)
    for _ in range(params.rounds):
        np.multiply(grey, grey, out=square)
        below[:-1], below[-1:] = square[1:], square[:1]
        np.add(square, below, out=square)
        np.sqrt(square, out=grey)
        grey *= np.float32(0.7)
    return {"mask_hw": (grey > grey.mean()).astype(np.uint8)}


@functools.lru_cache(maxsize=2)
def _scratch(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two arrays to work in, kept."""
    return np.empty(shape, np.float32), np.empty(shape, np.float32)


def make_images(folder: Path, count: int) -> RecordSet:
    """Smooth pictures, so that the mask of :func:`busy` compresses as masks do."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        coarse = rng.integers(0, 255, (8, 10, 3), dtype=np.uint8)
        path = folder / f"{number:05d}.jpg"
        cv2.imwrite(str(path), cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC))
        records.append(Record(path.stem, str(path)))
    return RecordSet("bench", "train", ("thing",), tuple(records))


def calibrated(records: RecordSet, wanted_s: float = 0.020) -> int:
    """Rounds that cost 20 ms of CPU here and now."""
    image_rgb = read_image_rgb(Path(records.records[0].image))
    item = Item("bench/0", records.records[0], records.classes, image_rgb)
    costs = {}
    for rounds in (5, 25):
        started = time.process_time()
        for _ in range(20):
            busy(item, Work(rounds))
        costs[rounds] = (time.process_time() - started) / 20
    each = (costs[25] - costs[5]) / 20
    return max(1, round((wanted_s - costs[5]) / each) + 5)


def bare_loop(records: RecordSet, rounds: int, cache: Path) -> None:
    """The obvious loop."""
    store = MaskStore(cache)
    held: list[tuple[str, str, Arrays]] = []
    for number, record in enumerate(records, 1):
        item = Item(records.key(record), record, records.classes, read_image_rgb(Path(record.image)))
        held.append((item.key, "stamp", busy(item, Work(rounds))))
        if len(held) == SEGMENT or number == len(records):
            store.write_segment("bare", held, meta={})
            held = []


def with_runner(records: RecordSet, rounds: int, cache: Path) -> None:
    """The same through the Runner, with one worker process, manifest included."""
    with Runner(RunParams(cache=str(cache), workers=1)) as run:
        run.map(stage(rounds), records)
        run.write_manifest("finished")


def seconds(work: Callable[[RecordSet, int, Path], None], records: RecordSet, rounds: int) -> tuple[float, float]:
    """Wall and CPU seconds of ``work`` on a fresh cache."""
    with tempfile.TemporaryDirectory(prefix="maskmill-runner-") as cache:
        before, started = _cpu(), time.perf_counter()
        work(records, rounds, Path(cache))
        return time.perf_counter() - started, _cpu() - before


def _cpu() -> float:
    """CPU seconds of this process and of its children that ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(count: int, turns: int) -> dict[str, Any]:
    """Both sides in turns; overheads are medians over the turns."""
    with tempfile.TemporaryDirectory(prefix="maskmill-runner-") as folder:
        records = make_images(Path(folder) / "images", count)
        one = records.only([records.records[0].image_id])
        rounds = calibrated(records)
        sides: dict[str, Callable[[RecordSet, int, Path], None]] = {"bare": bare_loop, "runner": with_runner}
        for work in sides.values():
            seconds(work, one, rounds)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        starts: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(turns):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                small = seconds(sides[name], one, rounds)
                whole = seconds(sides[name], records, rounds)
                starts[name].append(small[0])
                found[name].append((whole[0] - small[0], whole[1] - small[1]))
    overhead = [
        [found["runner"][turn][kind] / found["bare"][turn][kind] - 1 for turn in range(turns)] for kind in (0, 1)
    ]
    return {
        "images": count,
        "turns": turns,
        "ms_per_image": {
            name: round(1000 * statistics.median(t[0] for t in times) / (count - 1), 3) for name, times in found.items()
        },
        "start_up_s": {name: round(statistics.median(times), 3) for name, times in starts.items()},
        "overhead_wall": [round(value, 4) for value in overhead[0]],
        "overhead_cpu": [round(value, 4) for value in overhead[1]],
        "overhead": round(statistics.median(overhead[0]), 4),
        "bar": BAR,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if the bar is missed by wall and by CPU time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/runner.json")
    options = parser.parse_args(arguments)
    # One thread on both sides: pool workers have theirs limited, too.
    cv2.setNumThreads(1)
    figures = measure(options.images, options.turns)
    wall, cpu = figures["overhead"], statistics.median(figures["overhead_cpu"])
    print(
        f"runner: {figures['images']} images, bare loop {figures['ms_per_image']['bare']:.2f} ms an image, Runner "
        f"{figures['ms_per_image']['runner']:.2f} ms; overhead {wall:+.1%} wall (turns "
        f"{', '.join(f'{value:+.1%}' for value in figures['overhead_wall'])}), {cpu:+.1%} CPU, bar {BAR:.0%}; start-up "
        f"{figures['start_up_s']['runner']:.2f} s; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    if options.save:
        print(results.save("runner", figures))
    return int(min(wall, cpu) > BAR)


if __name__ == "__main__":
    # The stage's params must be those of the imported module, not of __main__: workers load them.
    from benchmarks.runner import main as entry

    sys.exit(entry())
