"""How well suspicion orders masks that are wrong: rank correlation of each cue, and of all, with true object IoU.

    python -m benchmarks.suspicion CACHE [CACHE ...]              # runs with truth: a table
    python -m benchmarks.suspicion --fit CACHE [CACHE ...]        # weights by least squares, none below 0

The caches hold a run of ``cfs`` whose masks have objects, e.g. ``maskmill cfs --data demo --set
params.proposals=grabcut --set params.student=none``. Weights are fitted to drawn data alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.runs import find_run, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.datasets import DataParams, read_split
from flows.config import Layer, build
from tasks.evaluate.finish import windows
from tasks.evaluate.object_iou import object_ious
from tasks.evaluate.run_suspicion import run_cues
from tasks.evaluate.score import image_miou
from tasks.evaluate.suspicion import CUES, all_cues, picture_suspicion, suspicion, usual_shares


@dataclass(frozen=True)
class Measured:
    """Objects of one run with truth."""

    name: str
    cues_nc: NDArray[np.float64]
    """(objects, cues); nan where a cue cannot be told."""
    iou_n: NDArray[np.float64]
    pictures: list[tuple[float, float]]
    """(suspicion, the picture's own mIoU)."""


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
    for record in records:
        key = records.key(record)
        stamp, _ = stamps.get(key, (None, ""))
        if stamp is None or record.truth is None or record.truth_objects is None:
            continue
        arrays = store.read(stage["address"], key, stamp)
        truth_hw = record.truth.load()
        found = {
            one.object_id: one.iou
            for one in object_ious(windows(arrays), record.boxes or (), record.truth_objects.load(), truth_hw)
        }
        named = [(one, all_cues(one, usual)) for one in cues[key]]
        for one, by_name in named:
            if one.object_id in found:
                rows.append([by_name[name] for name in CUES])
                ious.append(found[one.object_id])
        own = image_miou(arrays["mask_hw"], truth_hw, len(records.classes))
        if own is not None:
            pictures.append((picture_suspicion([(suspicion(c), one.area) for one, c in named]), own))
    return Measured(cache.parent.name, np.array(rows).reshape(-1, len(CUES)), np.array(ious), pictures)


def rank_correlation(a: Sequence[float] | NDArray[Any], b: Sequence[float] | NDArray[Any]) -> float:
    """Spearman's, over the places where both are known; nan for fewer than three or a constant."""
    from scipy.stats import spearmanr

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return math.nan
    return float(spearmanr(x[known], y[known]).statistic)


def fitted(measured: Sequence[Measured]) -> dict[str, float]:
    """Weights by non-negative least squares of 1 - IoU on the cues; an unknown cue counts as its mean."""
    from scipy.optimize import nnls

    x = np.concatenate([one.cues_nc for one in measured])
    y = 1 - np.concatenate([one.iou_n for one in measured])
    used = ~np.isnan(x).all(axis=0)
    means = np.nanmean(x[:, used], axis=0)
    filled = np.where(np.isnan(x[:, used]), means, x[:, used])
    design = np.concatenate([filled, np.ones((len(y), 1)), -np.ones((len(y), 1))], axis=1)
    found, _ = nnls(design, y)
    weights = dict.fromkeys(CUES, 0.0)
    weights.update(zip([name for name, ok in zip(CUES, used, strict=True) if ok], found.tolist(), strict=False))
    return weights


def main() -> None:
    """Print a table for each cache, or the fitted weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--fit", action="store_true")
    given = parser.parse_args()
    measured = [measure(cache) for cache in given.caches]
    if given.fit:
        for name, weight in fitted(measured).items():
            print(f"{name:14s} {weight:.3f}")
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


if __name__ == "__main__":
    main()
