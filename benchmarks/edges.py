"""Boundaries of HED on BSDS500 val, as its benchmark scores them: `python -m benchmarks.edges [--images N]`.

Maps are thinned, cut at 33 thresholds and matched one to one with each annotator within .0075 of the diagonal:
recall is summed over annotators, precision counts what any of them drew. The matching has the most pairs possible
(scipy), where the benchmark's also seeks the nearest: counts agree closely. Needs ``../shared/data/bsds``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree
from skimage.morphology import thin as skeleton

from artifacts.images import read_image_rgb
from tasks.edges.inference import draw, load_network
from tasks.edges.stages import EdgesParams
from tasks.edges.thin import smooth, thin

DATA = Path(__file__).parents[1] / "../shared/data/bsds"
RADIUS = 0.0075


def candidates(found: NDArray[np.int64], truth: NDArray[np.int64], radius: float) -> csr_matrix:
    """(found, truth) bool: pairs of pixels, given as (n, 2) rows and columns, that are near enough to be one."""
    pairs = cKDTree(found).sparse_distance_matrix(cKDTree(truth), radius, output_type="coo_matrix")
    # The matrix leaves out pairs at distance 0, the best of all.
    same = cKDTree(found).query(truth, distance_upper_bound=0.5)
    hit = np.flatnonzero(np.isfinite(same[0]))
    rows, columns = np.concatenate([pairs.row, same[1][hit]]), np.concatenate([pairs.col, hit])
    return csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(found), len(truth)))


def counts(
    edges_hw: NDArray[np.float32], truths: NDArray[np.bool_], thresholds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(thresholds, 4): found that match any annotator, found, drawn that are matched, drawn."""
    thinned = thin(edges_hw)
    pixels = np.argwhere(thinned >= thresholds[0])
    number_hw = np.full(thinned.shape, -1)
    number_hw[tuple(pixels.T)] = np.arange(len(pixels))
    radius = RADIUS * float(np.hypot(*thinned.shape))
    graphs = [candidates(pixels, np.argwhere(truth), radius) for truth in truths]
    rows = []
    for threshold in thresholds:
        found = number_hw[skeleton(thinned >= threshold)]
        some = np.zeros(len(found), bool)
        recalled = 0
        for graph in graphs:
            hit = maximum_bipartite_matching(graph[found], perm_type="column") >= 0
            some |= hit
            recalled += int(hit.sum())
        rows.append((int(some.sum()), len(some), recalled, int(truths.sum())))
    return np.array(rows, np.int64)


def f_measure(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of rows (..., 4) as :func:`counts` gives them."""
    precision = table[..., 0] / np.maximum(table[..., 1], 1)
    recall = table[..., 2] / np.maximum(table[..., 3], 1)
    return np.asarray(2 * precision * recall / np.maximum(precision + recall, 1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--thresholds", type=int, default=33, help="fewer are quicker, and may miss the best one")
    arguments = parser.parse_args()
    thresholds = np.linspace(0, 1, arguments.thresholds + 2)[1:-1]
    network = load_network(EdgesParams())
    tables: dict[str, list[NDArray[np.int64]]] = {"raw": [], "smoothed": []}
    for path in sorted((DATA / "images/val").glob("*.jpg"))[: arguments.images]:
        truths = np.load(DATA / f"annotators/val/{path.stem}.npz")["boundaries"]
        edges = draw(network, [read_image_rgb(path)], arguments.scales)[0]
        tables["raw"].append(counts(edges, truths, thresholds))
        tables["smoothed"].append(counts(smooth(edges), truths, thresholds))
        best = f_measure(tables["smoothed"][-1]).max()
        print(f"{path.stem}: {best:.3f} smoothed, at its own best threshold", flush=True)
    for name, rows in tables.items():
        whole = np.stack(rows)
        ods, ois = f_measure(whole.sum(0)), f_measure(whole).argmax(1)
        best = f_measure(whole[np.arange(len(whole)), ois].sum(0))
        print(
            f"{name}: ODS {ods.max():.3f} at {thresholds[ods.argmax()]:.2f}, OIS {best:.3f}, {len(whole)} images, "
            f"scales {arguments.scales}",
            flush=True,
        )


if __name__ == "__main__":
    main()
