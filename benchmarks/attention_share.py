"""How much of the last W lies on the pixel's own class, over all objects of a val set: the paper's Fig. 6 as a number.

    python -m benchmarks.attention_share --cache runs/claims-cfs/cache RUN [RUN ...]

For each class in each val picture, the pixel that lies deepest inside it (background left out) is given to every run's
student; what is averaged is :func:`tasks.deeplab.lgsa.share_on_class` on the truth. A uniform W has
the class's share of the picture, which stands beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from artifacts.datasets import DataParams, read_split
from artifacts.images import read_image_rgb
from artifacts.records import UNDECIDED, MaskHW
from flows.cli.attention import maps, title_of
from flows.cli.export import finished
from flows.config import Layer, build
from tasks.deeplab.lgsa import share_on_class


def main(given: Sequence[str] | None = None) -> int:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="ids of finished runs with self-attention, of the same data")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--images", type=int, default=0, help="the first so many val pictures; default: all")
    args = parser.parse_args(given)
    manifests = [finished(args.cache, run) for run in args.runs]
    recipe = manifests[0]["recipe"]
    data = build(DataParams, "data", recipe, [Layer(recipe, args.runs[0], {})])
    shares: dict[str, list[float]] = {run: [] for run in args.runs}
    even: list[float] = []
    for record in list(read_split(data, data.val, cache=args.cache))[: args.images or None]:
        image_rgb, truth_hw = read_image_rgb(Path(record.image)), record.truth.load() if record.truth else None
        for xy in () if truth_hw is None else deepest_pixels(truth_hw):
            even.append(float((truth_hw == truth_hw[int(xy[1]), int(xy[0])]).mean()))
            for run, manifest in zip(args.runs, manifests, strict=True):
                share = share_on_class(maps(manifest, args.cache, image_rgb, xy)[-1], truth_hw, xy)
                shares[run].append(np.nan if share is None else share)
    print(f"{len(even)} objects; a uniform W: {100 * np.mean(even):.1f} %")
    for run, manifest in zip(args.runs, manifests, strict=True):
        print(f"{title_of(manifest)}: {100 * np.nanmean(shares[run]):.1f} %")
    return 0


def deepest_pixels(truth_hw: MaskHW) -> Iterator[tuple[float, float]]:
    """``x, y`` of the pixel of each class that is farthest from all others."""
    for number in np.unique(truth_hw):
        if number not in (0, UNDECIDED):
            inside = np.pad((truth_hw == number).astype(np.uint8), 1)  # the picture's edge is a border too
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            yield float(x), float(y)


if __name__ == "__main__":
    sys.exit(main())
