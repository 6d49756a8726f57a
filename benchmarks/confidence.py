"""How well the confidence of a pixel tells that its label is wrong: each cue, and all together, on runs with truth.

    python -m benchmarks.confidence CACHE [CACHE ...]     # a table
    python -m benchmarks.confidence CACHE --fit           # weights of the logistic function

Pixels whose label the boxes decide, and those that are undecided in mask or truth, are left out. AUROC: the chance that
a wrong pixel has less confidence than a right one. "Lowest tenth": the share of wrong pixels among the tenth of least
confidence, against their share among all. Weights are fitted to drawn data alone.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.runs import find_run
from artifacts.datasets import DataParams, read_split
from artifacts.images import read_image_rgb
from artifacts.records import UNDECIDED
from flows.config import Layer, build
from tasks.evaluate.confidence import OFFSET, WEIGHTS, cues, together
from tasks.evaluate.run_suspicion import Beside

PIXELS = 4000
"""Of each picture, drawn by chance."""


@dataclass(frozen=True)
class Pixels:
    """Pixels of one run with truth."""

    name: str
    cues: dict[str, NDArray[np.float32]]
    """``(n,)`` each; of those that the run knows."""
    wrong: NDArray[np.bool_]
    """``(n,)``"""


def measure(cache: Path) -> Pixels:
    """Cues of pixels of the newest run's masks, and whether the label is wrong."""
    manifest = find_run(cache).manifest()
    beside = Beside.of(cache, manifest, manifest["masks"])
    data = build(DataParams, "data", manifest["recipe"], [Layer(manifest["recipe"], "run", {})])
    records = read_split(data, beside.stage["split"], cache=cache)
    rng = np.random.default_rng(0)
    found: list[dict[str, NDArray[np.float32]]] = []
    wrong: list[NDArray[np.bool_]] = []
    with_mask = set(beside.pictures)
    for record in records:
        key = records.key(record)
        if key not in with_mask or record.truth is None:
            continue
        arrays = beside.mine(key)
        of_picture, certain_hw = cues(arrays, beside.above(key), read_image_rgb(Path(record.image)), "mask_hw")
        truth_hw, mask_hw = record.truth.load(), arrays["mask_hw"]
        places = np.flatnonzero(~certain_hw & (truth_hw != UNDECIDED) & (mask_hw != UNDECIDED))
        places = rng.choice(places, min(PIXELS, len(places)), replace=False)
        found.append({name: cue.ravel()[places] for name, cue in of_picture.items()})
        wrong.append((truth_hw != mask_hw).ravel()[places])
    known = [name for name in WEIGHTS if all(name in one for one in found)]
    return Pixels(
        cache.parent.name, {name: np.concatenate([one[name] for one in found]) for name in known}, np.concatenate(wrong)
    )


def auroc(confidence: NDArray[Any], wrong: NDArray[np.bool_]) -> float:
    """The chance that a wrong pixel has less confidence than a right one; equal ones count a half."""
    from scipy.stats import rankdata

    bad = int(wrong.sum())
    good = len(wrong) - bad
    if not bad or not good:
        return math.nan
    return float((rankdata(-confidence)[wrong].sum() - bad * (bad + 1) / 2) / (bad * good))


def lowest_tenth(confidence: NDArray[Any], wrong: NDArray[np.bool_]) -> float:
    """Share of wrong pixels among the tenth of least confidence."""
    order = np.argsort(confidence, kind="stable")[: max(1, len(wrong) // 10)]
    return float(wrong[order].mean())


def fitted(measured: list[Pixels]) -> tuple[dict[str, float], float]:
    """Weights and offset of the logistic function, by maximum likelihood; none below 0."""
    from scipy.optimize import minimize

    names = [name for name in WEIGHTS if any(name in one.cues for one in measured)]
    half = np.float32(0.5)
    x = np.concatenate(
        [np.stack([one.cues.get(name, np.full(len(one.wrong), half)) for name in names], 1) for one in measured]
    )
    sign = np.where(np.concatenate([one.wrong for one in measured]), 1.0, -1.0)

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = sign * (x @ w[:-1] + w[-1])
        slope = sign / (1 + np.exp(-z)) / len(sign)
        return float(np.logaddexp(0, z).mean()), np.append(slope @ x, slope.sum())

    bounds = [(0, None)] * len(names) + [(None, None)]
    w = minimize(loss, np.ones(len(names) + 1), jac=True, bounds=bounds, method="L-BFGS-B").x.tolist()
    return dict(zip(names, w, strict=False)), w[-1]


def main() -> None:
    """Print the table, or the fitted weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--fit", action="store_true", help="fit the weights to all the caches")
    given = parser.parse_args()
    measured = [measure(cache) for cache in given.caches]
    weights, offset = fitted(measured) if given.fit else (WEIGHTS, OFFSET)
    if given.fit:
        print(f"fitted: {', '.join(f'{n} {w:.2f}' for n, w in weights.items())}; offset {offset:.2f}\n")
    print("| cue | " + " | ".join(f"{one.name} ({one.wrong.mean():.1%} wrong)" for one in measured) + " |")
    print("|---|" + "--:|" * len(measured))
    for name in WEIGHTS:
        values = [f"{auroc(one.cues[name], one.wrong):.2f}" if name in one.cues else "" for one in measured]
        print(f"| {name} | " + " | ".join(values) + " |")
    whole = [together(one.cues, weights, offset) for one in measured]
    pairs = list(zip(whole, measured, strict=True))
    print("| **together** | " + " | ".join(f"**{auroc(c, one.wrong):.2f}**" for c, one in pairs) + " |")
    print("| wrong in the lowest tenth | " + " | ".join(f"{lowest_tenth(c, one.wrong):.1%}" for c, one in pairs) + " |")
    print(
        "| mean confidence, right share | "
        + " | ".join(f"{c.mean():.2f}, {1 - o.wrong.mean():.2f}" for c, o in pairs)
        + " |"
    )


if __name__ == "__main__":
    main()
