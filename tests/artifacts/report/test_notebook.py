"""Do records, masks, scores and runs show themselves in Jupyter, and is nothing of their names taken as markup?"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.cache.runs import RunFolder
from artifacts.objects import Object
from artifacts.records import Box, MaskRef, Record, RecordSet
from artifacts.report import drawing
from artifacts.report.notebook import SIDE, mask_png
from tasks.evaluate.score import Scorer

EVIL = "<script>x</script>"


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def ones(ref: MaskRef) -> object:
    """Loader of the masks below."""
    mask_hw = np.ones((20, 30), np.uint8)
    return mask_hw if ref.detail == "class" else (np.stack([mask_hw > 0]), np.zeros(1, np.int64))


@pytest.fixture
def record(tmp_path: Path) -> Record:
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "a.png")
    return Record(EVIL, str(tmp_path / "a.png"), tags=(1,), boxes=(Box(0, 1, 10, 10, 50, 30),))


def test_a_mask_is_drawn_over_its_picture_and_named() -> None:
    mask_hw = np.zeros((40, 60), np.uint8)
    mask_hw[4:35, 14:45] = 2
    found = decoded(mask_png(mask_hw, np.full((40, 60, 3), 128, np.uint8), ("a", "b")))
    assert found.shape == (240, SIDE, 3)
    assert np.abs(found[60, 120] - (0.42 * 128 + 0.58 * np.array(drawing.class_colour(2)))).max() <= 2
    assert found[110:124, 170:184].min() < 60, "a dark label in the middle"


def test_objects_and_references_are_pictures() -> None:
    one = Object(3, (0, 0, 4, 5), np.ones((5, 4), np.uint8))
    references = [MaskRef(f"{__name__}:ones", "", detail) for detail in ("class", "objects")]
    for shown in (one, *references):
        assert decoded(shown._repr_png_()).max() > 0


def test_records_show_picture_boxes_and_words(record: Record) -> None:
    html = record._repr_html_()
    assert "<script" not in html and html.count("data:image/png;base64,") == 1 and "1 tags, 1 boxes" in html
    whole = RecordSet("demo", "train", (EVIL,), [record] * 9)._repr_html_()
    assert "<script" not in whole and whole.count("<img") == 6 and "9 pictures" in whole
    gone = Record("gone", "/nowhere.png")._repr_html_()
    assert "no labels" in gone and "nowhere.png" in gone and "<img" not in gone


def test_scores_and_runs_are_tables(tmp_path: Path) -> None:
    scorer = Scorer(1)
    scorer.add(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
    text = re.sub(r"<[^>]*>", " ", scorer.scores()._repr_html_())
    assert "pixel accuracy  50.0" in text and "background  50.0" in text and "class 1  0.0" in text
    run = RunFolder(tmp_path, "r1")
    assert "no readable manifest" in run._repr_html_()
    run.path.mkdir(parents=True)
    stage = {"label": EVIL, "computed": 3, "cached": 1, "seconds": 61.0}
    run.write_manifest({"flow": "cfs", "scores": {"masks (train)": {"miou": 0.5}}, "stages": [stage]})
    html = run._repr_html_()
    assert "<script" not in html and "<td>50.0</td>" in html and "<td>1 min 01 s</td>" in html
