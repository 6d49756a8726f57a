"""Training curves: the rows of a ``metrics.jsonl`` as small charts side by side, by matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.atomic import write_bytes_atomic
from artifacts.report.drawing import INK, LINE, MUTED, Colour, class_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

WIDTH, HEIGHT, DPI = 4.4, 2.9, 130
"""Of one chart: inches, and pixels per inch."""
COLUMNS = 3
LOG_FROM = 30.0
"""A loss whose largest value is this many times its least is drawn on a logarithmic axis."""
SMOOTHED_FROM = 20
"""Values of a loss from which on a running mean is drawn over them."""


@dataclass
class Chart:
    """One quantity: its name, its series (name -> steps, values), and how many values were not finite."""

    name: str
    series: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    lost: int = 0


def curve_png(metrics: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw losses, val mIoU, learning rate and whatever else was logged over the steps.

    Args:
        metrics: rows with ``step`` and numbers by name; a row need not hold every name. Values that are not finite
            are left out and counted beside the chart's title.
        path: the PNG file; the same rows give the same bytes.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style changes no byte
        matplotlib.rcParams["text.parse_math"] = False
        curve_figure(metrics).savefig(buffer, format="png", metadata={"Software": None})  # drawn by Agg
    write_bytes_atomic(path, buffer.getvalue(), durable=False)


def curve_figure(metrics: Iterable[Mapping[str, Any]]) -> Figure:
    """The charts of :func:`curve_png`, not yet drawn: one ``Axes`` for each quantity."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    charts = charts_of(list(metrics))
    columns = min(COLUMNS, max(1, len(charts)))
    lines = max(1, math.ceil(len(charts) / columns))
    figure = Figure((columns * WIDTH, lines * HEIGHT), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    for place, chart in enumerate(charts, 1):
        _draw(figure.add_subplot(lines, columns, place), chart)
    if not charts:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", color=_hex(MUTED))
    return figure


def charts_of(rows: list[Mapping[str, Any]]) -> list[Chart]:
    """A chart for all losses, one for each score (IoU), one for all learning rates, one for each other name."""
    charts: dict[str, Chart] = {}
    for name in dict.fromkeys(key for row in rows for key in row if key != "step"):
        group = _group(name)
        chart = charts.setdefault(group, Chart(group))
        pairs = [(float(row.get("step", i)), _number(row[name])) for i, row in enumerate(rows) if name in row]
        good = sorted((step, value) for step, value in pairs if math.isfinite(value))
        chart.lost += len(pairs) - len(good)
        if good:
            steps, values = np.array(good).T
            chart.series[name] = (steps, 100 * values if _is_score(group) else values)
    return sorted(charts.values(), key=lambda c: (c.name != "loss", not _is_score(c.name), c.name))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) else math.nan


def _is_score(name: str) -> bool:
    return not {"iou", "miou"}.isdisjoint(re.split("[^a-z]+", name.lower()))


def _group(name: str) -> str:
    if "loss" in name.lower():
        return "loss"
    if name.lower() == "lr" or name.lower().startswith(("lr_", "lr/")):
        return "learning rate"
    return name.replace("_", " ").replace("miou", "mIoU").replace(" iou", " IoU")


def _draw(axes: Axes, chart: Chart) -> None:
    """One chart. Of many loss values the values are pale and their running mean is strong; scores have dots."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    score = _is_score(chart.name)
    axes.set_title(f"{chart.name} (%)" if score else chart.name, loc="left", size=11, weight="bold", color=_hex(INK))
    axes.set_title(_note(chart), loc="right", size=9, color=_hex(MUTED))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_hex(LINE))
    axes.tick_params(labelsize=9, labelcolor=_hex(MUTED), length=0, which="both")
    axes.grid(color=_hex(LINE), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("training step", size=9, color=_hex(MUTED))
    if not chart.series:
        axes.set(xticks=(), yticks=())
        return
    drawn = np.concatenate([values for _, values in chart.series.values()])
    log = chart.name == "loss" and drawn.min() > 0 and drawn.max() > LOG_FROM * drawn.min()
    for number, (name, (steps, values)) in enumerate(chart.series.items()):
        colour = _hex(class_colour((2, 1, *range(3, 99))[number]))
        smooth = chart.name == "loss" and len(values) >= SMOOTHED_FROM
        if smooth:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.9)
            bend, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
            values = back(running_mean(bend(values), max(3, len(values) // 25)))
        marker = "o" if score or len(values) == 1 else ""
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=name)
    axes.margins(y=0.1)
    if log:
        axes.set_yscale("log")
    elif drawn.min() >= 0:
        axes.set_ylim(bottom=0, top=None if drawn.any() else 1)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(left=0)
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=9, loc="upper right", labelcolor=_hex(INK))


def _note(chart: Chart) -> str:
    """The last value; or how many could not be drawn."""
    if chart.lost:
        return f"not finite: {chart.lost}"
    if len(chart.series) != 1:
        return ""
    last = float(next(iter(chart.series.values()))[1][-1])
    return f"last {last:.1f} %" if _is_score(chart.name) else f"last {last:.4g}"


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def running_mean(values: Floats, half: int) -> Floats:
    """Mean over the ``half`` values on each side and the value itself; fewer at the ends. ``2 half + 1`` at least."""
    window = np.ones(2 * half + 1)
    return np.asarray(np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same"))
