"""The picture of benchmarks/crf.py's growth figures: docs/images/crf_speed.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

TARGET = Path(__file__).parents[1] / "docs/images/crf_speed.png"
AXIS_LABELS = {
    "pixels": "pixels (4 labels)",
    "labels": "labels (375 x 500)",
    "colour sigma": "colour sigma, grey levels (375 x 500, 4 labels)",
}


def draw(growth: Mapping[str, Sequence[tuple[float, float, float]]], target: Path = TARGET) -> Path:
    """One panel for each axis: ms of pydensecrf and ours, both scales logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(growth), figsize=(11, 3.2), sharey=True, constrained_layout=True)
    for axis, (name, points) in zip(axes, growth.items(), strict=True):
        x, theirs, ours = zip(*points, strict=True)
        axis.loglog(x, theirs, "o-", color="#777777", label="pydensecrf")
        axis.loglog(x, ours, "o-", color="#c0392b", label="maskmill")
        for at, a, b in points:
            axis.annotate(
                f"x{a / b:.1f}", (at, b), textcoords="offset points", xytext=(0, -13), ha="center", fontsize=7
            )
        axis.set_xlabel(AXIS_LABELS[name])
        axis.set_xticks(x, [f"{value:,.0f}" for value in x], rotation=30)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms of one thread")
    axes[0].margins(y=0.15)
    axes[0].legend(frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target
