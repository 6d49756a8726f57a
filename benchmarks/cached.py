"""A run without any work: 10,000 images, all cached. `python -m benchmarks.cached`.

``cfs`` over a VOC tree of small pictures with boxes and no truth: masks from the boxes, a network trained for one
iteration, predictions. The second, fully cached run is measured in a fresh process: wall seconds from the end of the
imports to the end of the run (reading 10,000 annotations, digests, stamps, plan, report, manifest), and the peak of
its memory, against the same with 100 images. Bars: 5 s, and 64 MB more than with 100 images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import results

BAR_S, BAR_MB = 5.0, 64.0
VAL = 8
ROOT = Path(__file__).resolve().parents[1]
XML = """<annotation><filename>{name}.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>{kind}</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>{right}</xmax><ymax>40</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>30</xmin><ymin>20</ymin><xmax>60</xmax><ymax>44</ymax></bndbox></object>
</annotation>"""


def write_tree(root: Path, count: int) -> None:
    """``count`` train and 8 val pictures with two boxes each."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = {"train": [f"t{n:06d}" for n in range(count)], "val": [f"v{n:06d}" for n in range(VAL)]}
    for split, listed in names.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(listed) + "\n")
        for name in listed:
            pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), pixels)
            text = XML.format(name=name, kind=("dog", "bird")[len(listed) % 2], right=20 + len(name) % 9)
            (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "classes.txt").write_text("bird\ncat\ndog\n")


def command(tree: Path, out: Path) -> list[str]:
    sets = ("params.proposals=box", "params.deeplab.iterations=1", "params.deeplab.crop=48")
    return ["cfs", "--config", "demo-tiny", "--data", f"voc:{tree}", "--out", str(out), "--quiet"] + [
        part for one in sets for part in ("--set", one)
    ]


def run_once(tree: Path, out: Path) -> dict[str, float]:
    """In this process: seconds without the imports, and peak memory with them."""
    import flows.cfs
    import flows.cli.flow_command
    import flows.cli.main
    import flows.run_flow

    assert flows.cfs and flows.cli.flow_command and flows.run_flow
    imported_mb = _peak_mb()
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = flows.cli.main.main(command(tree, out))
    seconds = time.perf_counter() - started
    nothing = "nothing, all was cached" in output.getvalue()
    return {"code": code, "s": seconds, "mb": _peak_mb(), "imported_mb": imported_mb, "computed_nothing": nothing}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh(tree: Path, out: Path) -> dict[str, float]:
    """:func:`run_once` in a fresh process."""
    argv = [sys.executable, "-m", "benchmarks.cached", "--once", str(tree), str(out)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if found["code"] != 0:
        raise SystemExit(f"the run ended with exit code {found['code']}:\n{done.stderr[-2000:]}")
    return found


def measure(count: int, again: int) -> dict[str, Any]:
    """Figures for 100 images and for ``count``; of several cached runs the fastest counts."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="maskmill-cached-") as folder:
        for images in (100, count):
            tree, out = Path(folder) / f"tree-{images}", Path(folder) / f"run-{images}"
            write_tree(tree, images)
            first = fresh(tree, out)
            runs = [fresh(tree, out) for _ in range(again)]
            assert all(run["computed_nothing"] for run in runs), "a cached run worked on something"
            figures[str(images)] = {
                "first_s": round(first["s"], 2),
                "cached_s": round(min(run["s"] for run in runs), 2),
                "peak_mb": round(max(run["mb"] for run in runs), 1),
                "imported_mb": round(max(run["imported_mb"] for run in runs), 1),
            }
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--again", type=int, default=2, help="cached runs; the fastest counts")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/cached.json")
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        print(json.dumps(run_once(*options.once)))
        return 0
    figures = measure(options.images, options.again)
    few, many = figures["100"], figures[str(options.images)]
    more_mb = many["peak_mb"] - few["peak_mb"]
    print(
        f"cached: {options.images} images again in {many['cached_s']:.2f} s after the imports (bar {BAR_S:.0f} s; 100 "
        f"images {few['cached_s']:.2f} s; the first time {many['first_s']:.0f} s); memory {many['peak_mb']:.0f} MB,"
        f" {more_mb:+.0f} MB against 100 images (bar {BAR_MB:+.0f} MB); load {os.getloadavg()[0]:.1f} on"
        f" {os.cpu_count()} cores"
    )
    if options.save:
        print(results.save("cached", {**figures, "bar_s": BAR_S, "bar_mb": BAR_MB}))
    return int(many["cached_s"] > BAR_S or more_mb > BAR_MB)


if __name__ == "__main__":
    sys.exit(main())
