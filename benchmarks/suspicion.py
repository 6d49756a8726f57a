"""How well suspicion orders masks that are wrong: rank correlation of each cue, and of all, with true object IoU.

    python -m benchmarks.suspicion CACHE [CACHE ...]              # runs with truth: a table
    python -m benchmarks.suspicion CACHE --fit leak missed edges  # weights by least squares, none below 0

The caches hold a run of ``cfs`` whose masks have objects, e.g. ``maskmill cfs --data demo --set
params.proposals=grabcut --set params.student=none``. Weights are fitted to drawn data alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.runs import find_run, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.datasets import DataParams, read_split
from artifacts.objects import clip_window
from artifacts.records import UNDECIDED, Box
from flows.config import Layer, build
from tasks.evaluate.object_iou import object_ious, windows
from tasks.evaluate.run_suspicion import run_cues
from tasks.evaluate.score import confusion, image_miou, read_as_wrong
from tasks.evaluate.suspicion import CUES, Window, all_cues, picture_suspicion, suspicion, usual_shares


@dataclass(frozen=True)
class Measured:
    """Objects of one run with truth."""

    name: str
    cues_nc: NDArray[np.float64]
    """(objects, cues); nan where a cue cannot be told."""
    iou_n: NDArray[np.float64]
    pictures: list[tuple[float, float]]
    """(suspicion, the picture's own mIoU)."""
    matrices_pkk: NDArray[np.int64]
    """Each picture's confusion matrix."""


def measure(cache: Path) -> Measured:
    """Cues and true IoU of every object of the newest run's masks."""
    manifest = find_run(cache).manifest()
    label = manifest["masks"]
    stage = next(one for one in manifest["stages"] if one["label"] == label)
    data = build(DataParams, "data", manifest["recipe"], [Layer(manifest["recipe"], "run", {})])
    records = read_split(data, stage["split"], cache=cache)
    stamps, store = read_stamps(cache, stage["stamps"]), MaskStore(cache, readonly=True)
    cues = run_cues(cache, manifest, label)
    usual = usual_shares(one for found in cues.values() for one in found)
    rows: list[list[float]] = []
    ious: list[float] = []
    pictures: list[tuple[float, float]] = []
    matrices: list[NDArray[np.int64]] = []
    for record in records:
        key = records.key(record)
        stamp, _ = stamps.get(key, (None, ""))
        if stamp is None or record.truth is None:
            continue
        arrays = store.read(stage["address"], key, stamp)
        truth_hw = record.truth.load()
        if record.truth_objects is None:
            found = class_ious(windows(arrays), record.boxes or (), truth_hw)
        else:
            objects_hw = record.truth_objects.load()
            found = {
                one.object_id: one.iou for one in object_ious(windows(arrays), record.boxes or (), objects_hw, truth_hw)
            }
        named = [(one, all_cues(one, usual)) for one in cues[key]]
        for one, by_name in named:
            if one.object_id in found:
                rows.append([by_name[name] for name in CUES])
                ious.append(found[one.object_id])
        matrix = confusion(arrays["mask_hw"], truth_hw, len(records.classes))
        own = image_miou(arrays["mask_hw"], truth_hw, len(records.classes))
        if own is not None:
            pictures.append((picture_suspicion([(suspicion(c), one.area) for one, c in named]), own))
            matrices.append(matrix)
    return Measured(
        cache.parent.name, np.array(rows).reshape(-1, len(CUES)), np.array(ious), pictures, np.array(matrices)
    )


def class_ious(
    found: Mapping[int, tuple[Window, NDArray[np.bool_]]], boxes: Sequence[Box], truth_hw: NDArray[np.uint8]
) -> dict[int, float]:
    """Object id -> IoU with the class's truth in the box, of boxes that meet no other of their class: where a set has
    masks of classes alone."""
    ious = {}
    for box in boxes:
        if box.id not in found or any(meet(box, other) for other in boxes if other is not box):
            continue
        window, mask_hw = found[box.id]
        inside, part = clip_window(window, (truth_hw.shape[0], truth_hw.shape[1]))
        scored_hw, truth = truth_hw[inside] != UNDECIDED, truth_hw[inside] == box.class_id
        either = int(((truth | mask_hw[part]) & scored_hw).sum())
        if either:
            ious[box.id] = int((truth & mask_hw[part] & scored_hw).sum()) / either
    return ious


def meet(one: Box, other: Box) -> bool:
    """Two boxes of one class that share a pixel."""
    (a, b, c, d), (e, f, g, h) = one.xyxy, other.xyxy
    return one.class_id == other.class_id and min(c, g) > max(a, e) and min(d, h) > max(b, f)


def corrected_miou(measured: Measured, order: Sequence[int], count: int) -> float:
    """mIoU of the set once the first ``count`` pictures of ``order`` have their truth as mask."""
    total = measured.matrices_pkk.sum(axis=0)
    for place in order[:count]:
        matrix = measured.matrices_pkk[place]
        total = total - matrix
        total[:, :-1] += np.diag(matrix.sum(axis=1))
    return read_as_wrong(total).miou or math.nan


def corrections_table(measured: Measured) -> list[str]:
    """Lines of a table: what corrections of the most suspicious, the worst and of random pictures buy."""
    doubt, own = (np.array(column) for column in zip(*measured.pictures, strict=True))
    rng = np.random.default_rng(0)
    orders = {"most suspicious": [np.argsort(-doubt)], "lowest mIoU (needs truth)": [np.argsort(own)]}
    orders["random, mean of 20"] = [rng.permutation(len(own)) for _ in range(20)]
    counts = [count for count in (0, 20, 50, 100) if count < len(own)]
    lines = [f"| {measured.name} | " + " | ".join(map(str, counts)) + " |", "|---|" + "--:|" * len(counts)]
    for name, found in orders.items():
        values = [100 * float(np.mean([corrected_miou(measured, o.tolist(), n) for o in found])) for n in counts]
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    return lines


def rank_correlation(a: Sequence[float] | NDArray[Any], b: Sequence[float] | NDArray[Any]) -> float:
    """Spearman's, over the places where both are known; nan for fewer than three or a constant."""
    from scipy.stats import spearmanr

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return math.nan
    return float(spearmanr(x[known], y[known]).statistic)


def fitted(measured: Sequence[Measured], names: Sequence[str]) -> tuple[dict[str, float], float]:
    """Weights of the cues ``names`` by non-negative least squares of 1 - IoU, an unknown cue counting as its mean; and
    the rank correlation on objects that were held out (five parts)."""
    from scipy.optimize import nnls

    columns = [CUES.index(name) for name in names]
    x = np.concatenate([one.cues_nc for one in measured])[:, columns]
    x = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    y = 1 - np.concatenate([one.iou_n for one in measured])

    def solve(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        one = np.ones((int(rows.sum()), 1))
        weights: NDArray[np.float64] = nnls(np.concatenate([x[rows], one, -one], axis=1), y[rows])[0][:-2]
        return weights

    part = np.random.default_rng(0).integers(0, 5, len(y))
    held_out = np.zeros(len(y))
    for number in range(5):
        held_out[part == number] = x[part == number] @ solve(part != number)
    weights = solve(np.ones(len(y), np.bool_))
    return dict(zip(names, weights.tolist(), strict=True)), rank_correlation(held_out, y)


def main() -> None:
    """Print a table for each cache, or the fitted weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--fit", nargs="+", default=[], choices=CUES, help="cues whose weights to fit")
    given = parser.parse_args()
    measured = [measure(cache) for cache in given.caches]
    if given.fit:
        weights, held_out = fitted(measured, given.fit)
        print(f"fitted: {', '.join(f'{n} {w:.2f}' for n, w in weights.items())}; held out {held_out:.2f}\n")
    print("| cue | " + " | ".join(f"{one.name} ({len(one.iou_n)} objects)" for one in measured) + " |")
    print("|---|" + "--:|" * len(measured))
    for place, name in enumerate(CUES):
        row = [rank_correlation(-one.cues_nc[:, place], one.iou_n) for one in measured]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    together = [[suspicion(dict(zip(CUES, row, strict=True))) for row in one.cues_nc.tolist()] for one in measured]
    values = [rank_correlation([-v for v in t], one.iou_n) for t, one in zip(together, measured, strict=True)]
    print("| together | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    values = [rank_correlation([-s for s, _ in one.pictures], [m for _, m in one.pictures]) for one in measured]
    print("| pictures | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    for one in measured:
        print()
        print("\n".join(corrections_table(one)))


if __name__ == "__main__":
    main()
