"""Boundaries on BSDS500 val, scored as its benchmark does: `python -m benchmarks.edges [--network hed hed-lite canny]`.

Maps as the stage keeps them (uint8), suppressed raw, smoothed, and smoothed with plain gradients for directions; with
`--people` each annotator against the others. Time is of one thread, drawing alone. Needs ``../shared/data/bsds``.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.datasets.bsds import read_boundaries
from artifacts.images import read_image_rgb
from flows.cli.edges import drawing_of
from tasks.edges.stages import EdgesParams
from tasks.edges.thin import smooth, suppress, thin, to_uint8
from tasks.evaluate.boundary import QUICK, Counts, boundary_counts, boundary_scores, thresholds

DATA = Path(__file__).parents[1] / "../shared/data/bsds"
HELD_OUT = 40
"""Pictures of train on which hed-lite's settings are chosen."""


def by_hash(split: str) -> list[Path]:
    """The split's pictures in the order of their names' hashes: of train, the first 40 are held out."""
    return sorted((DATA / "images" / split).glob("*.jpg"), key=lambda path: hashlib.sha256(path.stem.encode()).digest())


def boundaries_of(picture: Path) -> NDArray[np.bool_]:
    return read_boundaries(DATA / "annotators" / picture.parent.name / f"{picture.stem}.npz")


def by_gradient(edges_hw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Suppression across the map's own gradient, which has no direction on a crest's top."""
    dy = cv2.Sobel(edges_hw, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE)
    dx = cv2.Sobel(edges_hw, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE)
    length = np.maximum(np.hypot(dy, dx), 1e-9)
    return suppress(edges_hw, dy / length, dx / length)


WAYS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "raw": thin,
    "smoothed": lambda edges_hw: thin(smooth(edges_hw)),
    "smoothed, plain gradient": lambda edges_hw: by_gradient(smooth(edges_hw)),
}


def score_network(params: EdgesParams, pictures: list[Path], at: NDArray[np.float64]) -> None:
    draw = drawing_of(params)
    ways = {"as it is": np.asarray} if params.network == "canny" else WAYS  # Canny's lines are thin
    counts: dict[str, list[Counts]] = {way: [] for way in ways}
    seconds = 0.0
    for number, path in enumerate(pictures):
        image_rgb, drawn = read_image_rgb(path), boundaries_of(path)
        begun = time.process_time()
        edges_hw = to_uint8(draw(image_rgb)).astype(np.float32) / 255
        seconds += time.process_time() - begun
        for way, suppressed in ways.items():
            counts[way].append(boundary_counts(suppressed(edges_hw), drawn, at))
        if number % 20 == 19:
            print(f"{params.network}: {number + 1} of {len(pictures)}", flush=True)
    for way, rows in counts.items():
        found = boundary_scores(np.stack(rows), at)
        print(
            f"{params.network}, {way}: ODS {found.ods:.3f} at {found.threshold:.2f}, OIS {found.ois:.3f}, AP"
            f" {found.ap:.3f}, {len(rows)} images, {seconds / len(rows):.3f} CPU s an image",
            flush=True,
        )


def score_people(pictures: list[Path]) -> None:
    """Each annotator's map against those of the others."""
    rows = []
    for path in pictures:
        drawn = boundaries_of(path)
        for number, one in enumerate(drawn):
            rows.append(boundary_counts(one.astype(np.float32), np.delete(drawn, number, axis=0), np.array([0.5])))
    found = boundary_scores(np.stack(rows), np.array([0.5]))
    print(f"people: F {found.ods:.3f}, precision {found.precision:.3f}, recall {found.recall:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="*", default=["canny", "hed-lite", "hed"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--held-out", action="store_true", help="the 40 pictures of train on which settings are chosen")
    parser.add_argument("--people", action="store_true")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--thresholds", type=int, default=QUICK)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = by_hash("train")[:HELD_OUT] if arguments.held_out else by_hash("val")
    pictures = sorted(pictures[: arguments.images])
    if arguments.people:
        score_people(pictures)
    for network in arguments.network:
        plain = network == "canny"
        more = {} if plain else {"weights": arguments.weights, "scales": tuple(arguments.scales)}
        params = EdgesParams(network, **more, flip=arguments.flip and not plain)
        score_network(params, pictures, thresholds(arguments.thresholds))


if __name__ == "__main__":
    main()
