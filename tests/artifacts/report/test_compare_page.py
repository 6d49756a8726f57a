"""The page of a comparison: what it shows, and that nothing of a name is taken as markup. (The browser: test_page.)"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from artifacts import report
from artifacts.report import drawing
from artifacts.report.compare_page import ShownVariant, comparison_page
from artifacts.report.comparison import ScoreTable
from artifacts.report.contact_sheet import GAP, HEADER, MARGIN, NAME_LINE, Panel, SheetRow
from artifacts.report.pictures import Layer, ReportPicture

EVIL = "<script>alert(1)</script>"


def test_tables_settings_problems_and_pictures(tmp_path: Path) -> None:
    mask_hw = np.zeros((30, 40), np.uint8)
    mask_hw[5:25, 5:30] = 1
    image_rgb = np.full((30, 40, 3), 90, np.uint8)
    layers = [Layer(f"masks: {EVIL}, mIoU 71.0", mask_hw), Layer("truth", mask_hw)]
    one = ReportPicture("a", "masks (train)", image_rgb, layers, "", 0.4, 0.31, [("box", 0.4), (EVIL, 0.71)])
    path = comparison_page(
        tmp_path / "compare.html",
        title=f"Flows {EVIL}",
        subtitle="2 variants",
        tables=[ScoreTable("Methods", ["variant", "masks mIoU"], [[EVIL, "71.0 ± 0.4"], ["box", "-"]])],
        variants=[ShownVariant(EVIL, [f"a={EVIL}"], {"seed 0": str(tmp_path / "runs" / "x#1" / "index.html")})],
        notes=["Labels' cost: none"],
        problems=[f"box, seed 0: {EVIL}"],
        pictures=report.ReportPictures([one], {"masks (train)": (EVIL,)}, {"masks (train)": 240}),
    )
    text = path.read_text()
    assert text.count("<script") == 1 and "http" not in text and "<link" not in text
    assert 'href="runs/x%231/index.html"' in text
    words = " ".join(re.sub(r"<(script|style)>.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL).split())
    for said in ("71.0 ± 0.4", "most different", "difference 31.0", "box 40.0", "Labels&#39; cost: none", "Not done"):
        assert said in words, said


def test_many_columns_take_several_lines_with_their_names_above(tmp_path: Path) -> None:
    grey, width = np.full((50, 50, 3), 128, np.uint8), 100
    panels = [Panel(f"masks: variant {n}", np.full((50, 50), n, np.uint8), 0.5) for n in range(1, 6)]
    rows = [SheetRow(name, grey, panels) for name in ("a", "b")]
    report.contact_sheet(rows, ("x",), tmp_path / "s.png", width=width, most_columns=3)
    found = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    assert found.shape[1] == 2 * MARGIN + 3 * width + 2 * GAP, "image and five masks: two lines of three"
    line = HEADER + NAME_LINE + 100 + 30 + GAP  # names of two lines, panel, caption
    assert found.shape[0] >= 4 * line
    bottom = found.shape[0] - MARGIN + 8 - 30  # lower edge of the last panels
    for place, (up, column) in {1: (1, 1), 2: (1, 2), 3: (0, 0), 4: (0, 1), 5: (0, 2)}.items():
        middle = found[bottom - 50 - up * line, MARGIN + column * (width + GAP) + 50]
        assert np.abs(middle - (0.42 * 128 + 0.58 * np.array(drawing.class_colour(place)))).max() <= 1, place
