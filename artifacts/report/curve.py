"""Training curves: the rows of a ``metrics.jsonl`` as small charts side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.report import drawing
from artifacts.report.drawing import Colour, Sheet

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values."""

CHART_W, CHART_H = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 44, 44
COLUMNS = 3
LOG_FROM = 30.0
"""A loss whose largest value is this many times its least is drawn on a logarithmic axis."""


def curve_png(metrics: Iterable[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Draw loss, learning rate, val mIoU and whatever else was logged over the steps.

    Args:
        metrics: rows with ``step`` and numbers by name; a row need not hold every name. Values that are not finite
            are left out and counted in the chart's title.
        path: the PNG file.
        title: heading.
    """
    charts = _charts(list(metrics))
    columns = min(COLUMNS, max(1, len(charts)))
    lines = max(1, math.ceil(len(charts) / columns))
    top = 46 if title else 10
    sheet = Sheet(columns * CHART_W + 20, top + lines * CHART_H + 10)
    if title:
        sheet.text(24, 16, drawing.fit_text(title, 19, columns * CHART_W - 28, bold=True), size=19, bold=True)
    if not charts:
        sheet.text(CHART_W / 2, CHART_H / 2, "nothing was logged", size=15, colour=drawing.MUTED, anchor="mm")
    for place, (name, series, lost) in enumerate(charts):
        _draw_chart(sheet, 10 + place % columns * CHART_W, top + place // columns * CHART_H, name, series, lost)
    sheet.save(path)


def _charts(rows: list[Mapping[str, Any]]) -> list[tuple[str, dict[str, Series], int]]:
    """``(title, {name: series}, values left out)`` for each chart: losses together, rates together, the rest alone."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(key for row in rows for key in row if key != "step"):
        groups.setdefault(_group(name), []).append(name)
    order = {"loss": 0, "learning rate": 1}
    found = []
    for group in sorted(groups, key=lambda g: (order.get(g, 2), g)):
        series, lost = {}, 0
        for name in groups[group]:
            pairs = [(float(row.get("step", i)), _number(row[name])) for i, row in enumerate(rows) if name in row]
            good = [(step, value) for step, value in pairs if math.isfinite(value)]
            lost += len(pairs) - len(good)
            if good:
                steps, values = np.array(sorted(good)).T
                series[name] = (steps, values)
        if series or lost:
            found.append((group, series, lost))
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) else math.nan


def _group(name: str) -> str:
    if "loss" in name.lower():
        return "loss"
    if name.lower() == "lr" or name.lower().startswith(("lr_", "lr/")):
        return "learning rate"
    return name.replace("_", " ").replace("miou", "mIoU")


def _draw_chart(sheet: Sheet, x0: int, y0: int, title: str, series: dict[str, Series], lost: int) -> None:
    sheet.text(x0 + LEFT, y0 + 12, title, size=15, bold=True)
    note = f"{lost} values not finite" if lost else _last_value(title, series)
    sheet.text(x0 + CHART_W - RIGHT, y0 + 14, note, size=12, colour=drawing.MUTED, anchor="ra")
    if not series:
        return
    steps = np.concatenate([s for s, _ in series.values()])
    values = np.concatenate([v for _, v in series.values()])
    log = title == "loss" and values.min() > 0 and values.max() / values.min() > LOG_FROM
    score = "miou" in title.lower() or "iou" in title.lower()
    y_ticks = _log_ticks(values) if log else nice_ticks(0.0 if score or title != "loss" else None, values)
    x_ticks = nice_ticks(None, steps)
    place_x = _scale(
        min(steps.min(), x_ticks[0]), max(steps.max(), x_ticks[-1]), x0 + LEFT, x0 + CHART_W - RIGHT, False
    )
    low, high = min(y_ticks[0], values.min()), max(y_ticks[-1], values.max())
    place_y = _scale(low, high, y0 + CHART_H - BOTTOM, y0 + TOP, log)
    for tick in y_ticks:
        y = place_y(tick)
        sheet.draw.line((x0 + LEFT, y, x0 + CHART_W - RIGHT, y), fill=drawing.LINE)
        sheet.text(x0 + LEFT - 8, y, _label(tick), size=12, colour=drawing.MUTED, anchor="rm")
    for tick in x_ticks:
        sheet.text(place_x(tick), y0 + CHART_H - BOTTOM + 8, _label(tick), size=12, colour=drawing.MUTED, anchor="ma")
    sheet.text(x0 + CHART_W - RIGHT, y0 + CHART_H - 19, "step", size=12, colour=drawing.MUTED, anchor="ra")
    _draw_lines(sheet, series, place_x, place_y, few=score)
    if len(series) > 1:
        _draw_names(sheet, x0 + LEFT, y0 + CHART_H - 19, list(series))


def _draw_lines(
    sheet: Sheet,
    series: dict[str, Series],
    place_x: Callable[[Any], Any],
    place_y: Callable[[Any], Any],
    *,
    few: bool,
) -> None:
    """The raw values pale, a running mean over them strong; scores with a dot each."""
    picture = sheet.pixels()
    for number, (steps, values) in enumerate(series.values(), 1):
        colour = _series_colour(number)
        points = np.stack([place_x(steps), place_y(values)], axis=1)
        smooth = not few and len(values) >= 20 and "loss" in next(iter(series)).lower()
        if smooth:
            drawing.polyline(picture, points, _paler(colour), 1)
            points = np.stack([place_x(steps), place_y(running_mean(values, max(3, len(values) // 25)))], axis=1)
        drawing.polyline(picture, points, colour, 2)
        if few or len(values) == 1:
            for point in points:
                drawing.polyline(picture, np.stack([point, point]), colour, 7)
    sheet.paste(picture, 0, 0, radius=0)


def _draw_names(sheet: Sheet, x: float, y: float, names: Sequence[str]) -> None:
    for number, name in enumerate(names, 1):
        sheet.draw.rounded_rectangle((x, y + 5, x + 14, y + 9), 2, fill=_series_colour(number))
        shown = drawing.fit_text(name, 12, 110)
        sheet.text(x + 19, y, shown, size=12)
        x += 19 + drawing.text_width(shown, 12) + 16


def _series_colour(number: int) -> Colour:
    return drawing.class_colour({1: 2, 2: 1}.get(number, number))


def _paler(colour: Colour) -> Colour:
    red, green, blue = (round(0.35 * c + 0.65 * 255) for c in colour)
    return red, green, blue


def _last_value(title: str, series: dict[str, Series]) -> str:
    if len(series) != 1:
        return ""
    last = float(next(iter(series.values()))[1][-1])
    return f"last {100 * last:.1f} %" if "iou" in title.lower() and abs(last) <= 1 else f"last {last:.4g}"


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Callable[[Any], Any]:
    """Value -> pixel, linear or logarithmic, the ends included."""
    bend = np.log10 if log else np.asarray
    a, b = float(bend(low)), float(bend(high))
    span = (b - a) or 1.0
    return lambda value: start + (bend(value) - a) / span * (end - start)


def running_mean(values: NDArray[np.float64], half: int) -> NDArray[np.float64]:
    """Mean over the ``half`` values on each side and the value itself; fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left, right = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[right] - total[left]) / (right - left))


def nice_ticks(floor: float | None, values: NDArray[np.float64], wanted: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 times a power of ten) that enclose ``values`` (and ``floor``)."""
    low, high = float(values.min()), float(values.max())
    low = low if floor is None else min(low, floor)
    if high == low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, count = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) if step > 1e-9 else k * step for k in range(first, count + 1)]


def _log_ticks(values: NDArray[np.float64]) -> list[float]:
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    return [10.0**k for k in range(low, max(high, low + 1) + 1)]


def _label(value: float) -> str:
    if value and (abs(value) < 1e-4 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.10g}".replace(",", " ")
