"""Boundaries on BSDS500 val, scored as its benchmark does: `python -m benchmarks.edges [--network hed hed-lite canny]`.

Maps as the stage keeps them (uint8), smoothed (with `--way` also raw, or smoothed with plain gradients for directions)
and suppressed; with `--people` each annotator against the others. Time is of one thread, drawing alone; the networks
draw one picture after the other, each in turn, so that their times compare. `--name edges` keeps the figures, beside
those of other calls. Needs ``../shared/data/bsds``.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.datasets.bsds import read_boundaries
from artifacts.images import read_image_rgb
from benchmarks.results import load, save
from flows.cli.edges import drawing_of
from tasks.edges.stages import EdgesParams
from tasks.edges.thin import smooth, suppress, thin, to_uint8
from tasks.evaluate.boundary import THRESHOLDS, Counts, boundary_counts, boundary_scores, thresholds

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


def score_networks(
    networks: Mapping[str, EdgesParams], ways: Sequence[str], pictures: list[Path], at: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    """Network and way -> scores, thresholds and seconds."""
    drawing = {name: drawing_of(params) for name, params in networks.items()}
    counts: dict[tuple[str, str], list[Counts]] = {}
    seconds = dict.fromkeys(networks, 0.0)
    for number, path in enumerate(pictures):
        image_rgb, drawn = read_image_rgb(path), boundaries_of(path)
        for name, draw in drawing.items():
            begun = time.process_time()
            edges_hw = to_uint8(draw(image_rgb)).astype(np.float32) / 255
            seconds[name] += time.process_time() - begun
            plain = networks[name].network == "canny"  # its lines are thin
            for way in ["as it is"] if plain else ways:
                crests_hw = edges_hw if plain else WAYS[way](edges_hw)
                counts.setdefault((name, way), []).append(boundary_counts(crests_hw, drawn, at))
        if number % 20 == 19:
            print(f"{number + 1} of {len(pictures)}", flush=True)
    figures = {}
    for (name, way), rows in counts.items():
        found = boundary_scores(np.stack(rows), at)
        spent = seconds[name] / len(rows)
        print(
            f"{name}, {way}: ODS {found.ods:.3f} at {found.threshold:.2f}, OIS {found.ois:.3f}, AP {found.ap:.3f},"
            f" {len(rows)} images, {spent:.3f} CPU s an image",
            flush=True,
        )
        figures[f"{name}, {way}"] = {**found.as_dict(), "thresholds": len(at), "cpu_s": spent}
    return figures


def score_people(pictures: list[Path]) -> dict[str, dict[str, float]]:
    """Each annotator's map against those of the others."""
    rows = []
    for path in pictures:
        drawn = boundaries_of(path)
        for number, one in enumerate(drawn):
            rows.append(boundary_counts(one.astype(np.float32), np.delete(drawn, number, axis=0), np.array([0.5])))
    found = boundary_scores(np.stack(rows), np.array([0.5]))
    print(f"people: F {found.ods:.3f}, precision {found.precision:.3f}, recall {found.recall:.3f}", flush=True)
    return {"people": found.as_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="*", default=["canny", "hed-lite", "hed"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--held-out", action="store_true", help="the 40 pictures of train on which settings are chosen")
    parser.add_argument("--people", action="store_true")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--way", nargs="*", default=["smoothed"], choices=list(WAYS))
    parser.add_argument("--thresholds", type=int, default=THRESHOLDS)
    parser.add_argument("--name", help="keep the figures as benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = by_hash("train")[:HELD_OUT] if arguments.held_out else by_hash("val")
    pictures = sorted(pictures[: arguments.images])
    figures = score_people(pictures) if arguments.people else {}
    networks = {}
    for network in arguments.network:
        plain = network == "canny"
        more = {} if plain else {"weights": arguments.weights, "scales": tuple(arguments.scales)}
        networks[network] = EdgesParams(network, **more, flip=arguments.flip and not plain)
    if networks:
        figures |= score_networks(networks, arguments.way, pictures, thresholds(arguments.thresholds))
    if arguments.name:
        print(save(arguments.name, {**load(arguments.name).get("figures", {}), **figures}))


if __name__ == "__main__":
    main()
