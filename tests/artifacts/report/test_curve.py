"""Training curves: the right numbers in the right chart, and bytes that repeat."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from artifacts.report import curve_png, drawing
from artifacts.report.curve import curve_figure, running_mean


def test_a_falling_loss_falls(tmp_path: Path) -> None:
    curve_png([{"step": i, "loss": 2.0 - i / 100} for i in range(100)], tmp_path / "c.png")
    away = np.abs(
        np.asarray(Image.open(tmp_path / "c.png"))[..., :3].astype(int) - np.array(drawing.class_colour(2))
    ).max(-1)
    y, x = np.nonzero(away < 40)
    assert np.corrcoef(x, y)[0, 1] > 0.99, "down to the right (y points down)"


ROWS: list[dict[str, Any]] = [
    *({"step": i, "loss": 1.0 - i / 10, "loss_ce": 0.5, "lr": 1e-3, "grad_norm": 3e5 * i} for i in range(5)),
    {"step": 4, "val_miou": 0.4},
]


def test_each_quantity_has_its_chart_scores_beside_the_losses() -> None:
    charts = curve_figure(ROWS).axes
    assert [axes.get_title("left") for axes in charts] == ["loss", "val mIoU (%)", "grad norm", "learning rate"]
    assert {axes.get_xlabel() for axes in charts} == {"training step"}
    assert [text.get_text() for text in charts[0].get_legend().get_texts()] == ["loss", "loss_ce"]
    lines = [np.transpose(line.get_data()).tolist() for line in (charts[0].lines[0], charts[1].lines[0])]
    assert lines == [[[i, 1.0 - i / 10] for i in range(5)], [[4, 40.0]]]
    assert [axes.get_title("right") for axes in charts] == ["", "last 40.0 %", "last 1.2e+06", "last 0.001"]
    assert all(axes.get_ylim()[0] == 0 and axes.get_xlim()[0] == 0 for axes in charts)


def test_a_score_is_recognised_by_whole_words() -> None:
    """A loss on the IoU is a loss, and "previous" holds the letters, too."""
    row = {"step": 1, "loss_iou": 0.25, "previous": 0.5, "val_object_iou": 0.75}
    charts = {axes.get_title("left"): float(axes.lines[0].get_ydata()[0]) for axes in curve_figure([row]).axes}
    assert charts == {"loss": 0.25, "val object IoU (%)": 75.0, "previous": 0.5}


def test_many_losses_have_a_running_mean_over_them_and_steep_ones_a_logarithmic_axis() -> None:
    rows = [{"step": i, "loss": 10.0 ** -(i / 10) * (1.5 if i % 2 else 1.0)} for i in range(40)]
    (axes,) = curve_figure(rows).axes
    assert axes.get_yscale() == "log" and len(axes.lines) == 2
    raw, smooth = (np.log10(line.get_ydata()) for line in axes.lines)
    assert np.abs(np.diff(smooth)).max() < 0.5 * np.abs(np.diff(raw)).max() and np.abs(smooth - raw)[3:-3].max() < 0.2
    assert curve_figure([{"step": i, "loss": 1.0 - i / 50} for i in range(40)]).axes[0].get_yscale() == "linear"


def test_curves_repeat_byte_by_byte_whatever_style_the_user_has(tmp_path: Path) -> None:
    curve_png(ROWS, tmp_path / "a.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "savefig.dpi": 10, "text.usetex": True}):
        curve_png(ROWS, tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert {data[m.start() : m.end()] for m in re.finditer(rb"tEXt|tIME|iTXt|zTXt|eXIf", data)} == set()


@pytest.mark.parametrize(
    ("rows", "titles"),
    [
        ([], []),
        ([{"step": 1, "loss": 0.5}], ["last 0.5"]),
        ([{"step": i, "loss": math.nan} for i in range(3)], ["not finite: 3"]),
        ([{"step": 1, "loss": math.inf}, {"step": 2, "loss": 1.0}], ["not finite: 1"]),
        ([{"step": i, "loss": 10.0 ** (-i)} for i in range(6)], ["last 1e-05"]),
        ([{"step": i, "lr": 0.0, "$note_": None} for i in range(3)], ["not finite: 3", "last 0"]),
        ([{"loss": -1.0}, {"loss": -2.0}], ["last -2"]),
    ],
)
def test_odd_metrics_are_drawn(rows: list[dict[str, Any]], titles: list[str], tmp_path: Path) -> None:
    curve_png(rows, tmp_path / "c.png")
    assert np.asarray(Image.open(tmp_path / "c.png")).ndim == 3
    assert [axes.get_title("right") for axes in curve_figure(rows).axes] == titles


def test_drawing_a_curve_leaves_pyplot_alone(tmp_path: Path) -> None:
    """Its global state is not safe beside threads, and picks a window system."""
    code = "import sys, pathlib; from artifacts.report import curve_png; "
    code += f"curve_png([], pathlib.Path({str(tmp_path / 'c.png')!r}))"
    code += "; print('matplotlib.pyplot' in sys.modules, 'matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.split() == ["False", "True"]


def test_running_mean_by_hand() -> None:
    np.testing.assert_allclose(running_mean(np.array([1.0, 2, 6, 3]), 1), [1.5, 3, 11 / 3, 4.5])
