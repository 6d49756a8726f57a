"""Does a heat map show what gives most where it lies, and the cross where the pixel is?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifacts.report import drawing
from artifacts.report.contact_sheet import MARGIN as SHEET_MARGIN
from artifacts.report.contact_sheet import Panel, SheetRow, contact_sheet
from artifacts.report.heat_sheet import GAP, LINE, MARGIN, WIDTH, HeatPanel, heat_overlay, heat_sheet

GREY = np.full((60, 80, 3), 128, np.uint8)


def test_the_largest_weight_is_the_brightest_place() -> None:
    weights = np.zeros((3, 4), np.float32)
    weights[1, 2] = 0.002
    shown = heat_overlay(GREY, weights).astype(int).sum(2)
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (abs(y - 29.5), abs(x - 49.5)) <= (1, 1), "the middle of cell 1, 2 on cells of 20 x 20"
    assert shown[5, 5] == shown[55, 5] == shown.min()
    np.testing.assert_array_equal(heat_overlay(GREY, weights), heat_overlay(GREY, 7 * weights))
    even = heat_overlay(GREY, np.ones((3, 4), np.float32)).reshape(-1, 3)
    assert (even == even[0]).all()
    with pytest.raises(ValueError, match="negative"):
        heat_overlay(GREY, -weights)


def test_the_sheet_shows_the_picture_and_each_map_with_a_red_cross_at_the_pixel(tmp_path: Path) -> None:
    panels = [HeatPanel(name, np.ones((2, 2), np.float32), "caption") for name in ("nonlocal", "lgsa")]
    heat_sheet(GREY, (20, 15), panels, tmp_path / "new" / "heat.png")
    page = np.asarray(Image.open(tmp_path / "new" / "heat.png")).astype(int)
    assert page.shape == (2 * MARGIN + 240 + 2 * LINE, 2 * MARGIN + 3 * (WIDTH + GAP) - GAP, 3)
    red = (page[..., 0] > 180) & (page[..., 1] < 90) & (page[..., 2] < 90)
    for place in range(3):
        left = MARGIN + place * (WIDTH + GAP)
        ys, xs = np.nonzero(red[:, left : left + WIDTH])
        assert abs(xs.mean() - (20.5 * 4 - 0.5)) < 1.5 and abs(ys.mean() - (MARGIN + LINE - 4 + 15.5 * 4 - 0.5)) < 1.5
    first = (tmp_path / "new" / "heat.png").read_bytes()
    heat_sheet(GREY, (20, 15), panels, tmp_path / "new" / "heat.png")
    assert (tmp_path / "new" / "heat.png").read_bytes() == first
    with pytest.raises(ValueError, match="at least one map"):
        heat_sheet(GREY, (20, 15), [], tmp_path / "none.png")


def test_long_titles_and_captions_are_whole_in_more_lines(tmp_path: Path) -> None:
    """Two runs of one flow had titles that differed in the part that was left out."""
    title = (
        "lgsa, alpha 0.0005 (a-run-of-last-tuesday-with-a-long-name-20260221-101500-1a2b3c4d-and-longer-than-a-line)"
    )
    caption = "97 % of the weight on the pixel's class, " * 3
    lines = drawing.wrap_text(title, 14, WIDTH, bold=True)
    assert len(lines) == 4 and "".join("".join(lines).split()) == "".join(title.split())
    assert all(0 < drawing.text_width(line, 14, bold=True) <= WIDTH for line in lines)
    assert drawing.wrap_text("", 12, WIDTH) == [""]
    panels = [HeatPanel("short", np.ones((2, 2), np.float32)), HeatPanel(title, np.ones((2, 2), np.float32), caption)]
    heat_sheet(GREY, (20, 15), panels, tmp_path / "heat.png")
    page = np.asarray(Image.open(tmp_path / "heat.png")).astype(int)
    below = LINE * len(drawing.wrap_text(caption, 12, WIDTH))
    assert page.shape[0] == 2 * MARGIN + 4 * LINE + 240 + below
    right = MARGIN + 2 * (WIDTH + GAP)
    for top in (MARGIN - 6, MARGIN + 4 * LINE + 242):  # the last line of each has ink, and nothing sticks out
        last = top + (3 * LINE if top < MARGIN else below - LINE)
        assert (page[last : last + LINE - 4, right : right + WIDTH] < 100).any()
    assert (page[:, right + WIDTH :] == 255).all()


# -- on the contact sheet --------------------------------------------------------------------------------------------


def panel_pixels(path: Path, place: int, size: int) -> NDArray[np.int64]:
    """The square panel at column ``place`` of a sheet with one row."""
    found = np.asarray(Image.open(path)).astype(int)
    top = found.shape[0] - size - 30 - SHEET_MARGIN + 8
    left = SHEET_MARGIN + place * (size + GAP)
    return found[top : top + size, left : left + size]


def test_a_heat_map_is_drawn_from_0_to_1_or_to_its_largest_value(tmp_path: Path) -> None:
    """Half of what is certain must not look certain; CAMs have no upper end."""
    gray = np.full((100, 100, 3), 128, np.uint8)
    half, cam = np.zeros((4, 4), np.float16), np.zeros((4, 4), np.float32)
    half[:, 2:], cam[:, 2:] = 0.5, 7.0
    odd = np.full((4, 4), np.nan, np.float32)
    odd[:, 2:] = -1.0
    panels = [
        Panel("edges", half),
        Panel("cam", cam),
        Panel("odd", odd),
        Panel("empty", np.zeros((0, 4, 4), np.float32)),
    ]
    contact_sheet([SheetRow("a", gray, panels)], ("cat", "dog"), tmp_path / "a.png", width=200)
    edges, cams, nothing = (panel_pixels(tmp_path / "a.png", place, 200) for place in (1, 2, 3))
    expected = heat_overlay(gray, np.array([[0.0, 0.5]], np.float32), 1.0)
    assert np.array_equal(edges[100, [10, 190]], expected[50, [0, 99]])
    bright = heat_overlay(gray, np.ones((1, 1), np.float32))
    assert np.array_equal(cams[100, 190], bright[0, 0]) and np.array_equal(cams[100, 10], edges[100, 10])
    assert (nothing == cams[100, 10]).all(axis=-1)[10:-10, 10:-10].all(), "what is below 0 or no number is drawn as 0"


def test_channels_that_are_classes_have_their_colours(tmp_path: Path) -> None:
    gray = np.full((100, 100, 3), 128, np.uint8)
    probs = np.zeros((3, 4, 4), np.float16)
    probs[0, :, :2], probs[1, :2, 2:], probs[2, 2:, 2:] = 1, 1, 1  # background left, class 2 above class 1
    panel = Panel("probs", probs, classes=(0, 2, 1))
    contact_sheet([SheetRow("a", gray, [panel])], ("cat", "dog"), tmp_path / "a.png", width=200)
    found = panel_pixels(tmp_path / "a.png", 1, 200)
    for y, number in ((20, 2), (180, 1)):
        assert np.abs(found[y, 180] - (0.3 * 128 + 0.7 * np.array(drawing.class_colour(number)))).max() <= 1
    assert np.ptp(found[100, 20]) == 0 and found[100, 20, 0] > 128, "background is pale"
    wrong = Panel("probs", probs, classes=(0, 2))
    contact_sheet([SheetRow("a", gray, [wrong])], ("cat", "dog"), tmp_path / "a.png", width=200)
