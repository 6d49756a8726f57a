"""Reads the labels of 100,000 COCO images: seconds and peak memory, in a process of its own.

    python -m benchmarks.coco_memory [--images 100000]

The JSON is made up at the size of COCO's train2017 (8.6 annotations an image, polygons of some 20 corners, 400 MB). The
image files are empty: decoding one would fail. Bars: no image decoded, peak RSS under 1 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BAR_MB = 1000.0
CATEGORIES = 80


def write_dataset(root: Path, n_images: int, seed: int = 0) -> Path:
    """``root/images`` with empty files and ``root/instances.json``; returns the JSON's path."""
    rng = np.random.default_rng(seed)
    images = root / "images"
    images.mkdir(parents=True)
    category_ids = np.sort(rng.choice(np.arange(1, 91), CATEGORIES, replace=False))
    path = root / "instances.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info":{},"images":[')
        for i in range(1, n_images + 1):
            name = f"{i:012d}.jpg"
            (images / name).touch()
            entry = {
                "license": 3, "file_name": name, "height": 480, "width": 640, "id": i,
                "coco_url": f"http://images.example/train2017/{name}", "date_captured": "2013-11-14 11:18:45",
                "flickr_url": f"http://farm9.example/8186/{i:010d}_d51ac3.jpg",
            }  # fmt: skip
            file.write(("," if i > 1 else "") + json.dumps(entry))
        file.write('],"annotations":[')
        per_image = rng.poisson(8.6, n_images)
        number = 0
        for image_id, count in enumerate(per_image, start=1):
            for _ in range(count):
                number += 1
                corners = int(rng.integers(6, 34))
                xy = np.round(rng.uniform((0, 0), (640, 480), (corners, 2)), 2)
                (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
                entry = {
                    "segmentation": [xy.ravel().tolist()], "area": round(float((x1 - x0) * (y1 - y0) / 2), 4),
                    "iscrowd": int(number % 120 == 0), "image_id": image_id,
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "category_id": int(category_ids[number % CATEGORIES]), "id": 100_000 + number,
                }  # fmt: skip
                file.write(("," if number > 1 else "") + json.dumps(entry))
        categories = [{"supercategory": "thing", "id": int(c), "name": f"class {c}"} for c in category_ids]
        file.write('],"categories":' + json.dumps(categories) + "}")
    return path


def measure(images: Path, annotations: Path) -> dict[str, float]:
    """Read, then walk over every record; this process's times and peak RSS (MB = 10^6 bytes)."""
    from artifacts.datasets.coco import read_coco

    before = _peak_mb()
    start = time.perf_counter()
    records = read_coco(images, annotations, dataset="bench", split="all")
    read_s = time.perf_counter() - start
    read_peak = _peak_mb()
    boxes = sum(len(record.boxes or ()) for record in records)
    walk_s = time.perf_counter() - start - read_s
    return {
        "images": len(records), "boxes": boxes, "json_mb": annotations.stat().st_size / 1e6, "read_s": read_s,
        "walk_s": walk_s, "before_mb": before, "read_peak_mb": read_peak, "peak_mb": _peak_mb(),
    }  # fmt: skip


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(arguments: list[str] | None = None) -> int:
    """Make the data, read it in a fresh process, print; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure / "images", options.measure / "instances.json")))
        return 0
    with tempfile.TemporaryDirectory(prefix="maskmill-coco-") as folder:
        root = Path(folder) / "data"
        write_dataset(root, options.images)
        command = [sys.executable, "-m", "benchmarks.coco_memory", "--measure", str(root)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(out)
    print(
        f"coco labels: {found['images']:.0f} images, {found['boxes']:.0f} boxes, {found['json_mb']:.0f} MB of JSON: "
        f"read in {found['read_s']:.2f} s, all records built in {found['walk_s']:.2f} s; "
        f"peak RSS {found['peak_mb']:.0f} MB ({found['before_mb']:.0f} MB before), bar {BAR_MB:.0f} MB"
    )
    return int(found["peak_mb"] > BAR_MB)


if __name__ == "__main__":
    raise SystemExit(main())
