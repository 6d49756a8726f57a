"""The report: the picture shows what the masks say, the numbers are printed as given, and nothing escapes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from artifacts import report
from artifacts.records import Box, Scribble
from artifacts.report import drawing
from artifacts.report.contact_sheet import GAP, MARGIN, Panel, SheetRow, overlay
from artifacts.report.html import TEMPLATE

ROOT = Path(__file__).parents[3]
CLASSES = ("cat", "dog <wild>")
SCORES: dict[str, Any] = {
    "miou": 0.5042,
    "per_class": {"background": 0.91, "cat": 0.0986, "dog <wild>": None},
    "pixel_accuracy": 0.8,
    "precision": 0.7,
    "recall": None,
    "coverage": 0.9,
    "absent": ["dog <wild>"],
    "as_wrong": {"miou": 0.5042},
    "left_out": {"miou": 0.6},
    "by_size": {"small": {"mean": 0.25, "count": 4}, "medium": (0.5, 2), "large": {"mean": None, "count": 0}},
    "object_iou": {"mean": 0.4, "count": 6},
    "images": 12,
}


def picture(height: int = 60, width: int = 90) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def square_mask(height: int = 60, width: int = 90) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    mask[20:40, 10:30] = 1
    mask[20:40, 50:70] = 2
    mask[:10] = 255
    return mask


def row(**changes: Any) -> SheetRow:
    base: dict[str, Any] = {
        "title": "demo/one",
        "image_rgb": picture(),
        "panels": [Panel("grabcut", square_mask(), 0.713), Panel("student", square_mask())],
        "truth": square_mask(),
        "boxes": (Box(0, 1, 10, 20, 30, 40), Box(1, 2, -5, 20, 200, 40)),
    }
    return SheetRow(**{**base, **changes})


def read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


# -- overlay ---------------------------------------------------------------------------------------------------------


def test_overlay_shows_each_class_in_its_colour() -> None:
    grey = np.full((60, 90, 3), 128, np.uint8)
    found = overlay(grey, square_mask()).astype(int)
    for number, place in ((1, (30, 20)), (2, (30, 60))):
        expected = 0.42 * 128 + 0.58 * np.array(drawing.class_colour(number))
        assert np.abs(found[place] - expected).max() <= 1
    background = found[50, 45]
    assert np.ptp(background) == 0 and background[0] > 128, "the rest is pale"


def test_undecided_is_hatched_in_grey() -> None:
    found = overlay(picture(), np.full((60, 90), 255, np.uint8)).astype(int)
    assert np.ptp(found, axis=2).max() == 0, "no colour"
    flat = overlay(np.full((60, 90, 3), 100, np.uint8), np.full((60, 90), 255, np.uint8))[..., 0]
    values, counts = np.unique(flat, return_counts=True)
    assert len(values) == 2 and counts[values.argmax()] / flat.size == pytest.approx(3 / 8, abs=0.02)
    assert len({tuple(line) for line in flat[:8]}) == 8, "diagonal"


def test_outlines_lie_inside_their_object() -> None:
    grey = np.full((60, 90, 3), 128, np.uint8)
    found = overlay(grey, square_mask()).astype(int)
    edge, inside, outside = found[20, 20], found[30, 20], found[19, 20]
    assert edge.min() > inside.min() + 40 and edge.sum() > outside.sum()
    assert np.array_equal(found[19, 20], found[50, 45])


def test_masks_are_enlarged_and_never_mixed() -> None:
    small = np.array([[0, 2]], np.uint8)
    found = overlay(np.full((40, 80, 3), 128, np.uint8), small).astype(int)
    inner = 0.42 * 128 + 0.58 * np.array(drawing.class_colour(2))
    assert np.abs(found[20, 60] - inner).max() <= 1 and np.ptp(found[20, 20]) == 0
    assert np.ptp(found[:, 39]) == 0, "class 2 begins at column 40"


def test_class_colours_differ() -> None:
    colours = np.array([drawing.class_colour(number) for number in range(1, 81)])
    assert len(np.unique(colours, axis=0)) == 80
    apart = np.abs(colours[:, None].astype(int) - colours).sum(-1) + 999 * np.eye(80, dtype=int)
    assert apart[:12, :12].min() > 70 and apart[:20, :20].min() > 50, "VOC has 20 classes"


def test_class_colours_differ_in_colour_blind_eyes() -> None:
    """CIELAB distances of the first 20 (VOC's) after full dichromacy (Machado et al. 2009): closer ones look alike."""
    kinds = {
        "none": np.eye(3).tolist(),
        "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    srgb = np.array([drawing.class_colour(number) for number in range(1, 21)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    for kind, matrix in kinds.items():
        xyz = np.clip(linear @ np.array(matrix).T, 0, 1) @ to_xyz.T / (0.9505, 1, 1.089)
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 999 * np.eye(20)
        assert apart.min() > 15, kind


# -- contact sheet ---------------------------------------------------------------------------------------------------


def test_sheet_has_a_column_for_each_panel_truth_before_student(tmp_path: Path) -> None:
    width = 100
    truth = np.ones((60, 90), np.uint8)
    student = np.full((60, 90), 2, np.uint8)
    panels = [Panel("student", student, 0.1), Panel("boxes", np.zeros((60, 90), np.uint8), 0.5)]
    path = tmp_path / "sheet.png"
    gray = np.full((60, 90, 3), 128, np.uint8)
    rows = [row(image_rgb=gray, panels=panels, truth=truth)]
    assert report.contact_sheet(rows, CLASSES, path, width=width, last=["student"]) == [path]
    found = read(path).astype(int)
    assert found.shape[1] == 2 * MARGIN + 4 * width + 3 * GAP
    x = [MARGIN + place * (width + GAP) + width // 2 for place in range(4)]
    middle = found.shape[0] - 80
    for place, number in ((2, 1), (3, 2)):
        assert np.abs(found[middle, x[place]] - (0.42 * 128 + 0.58 * np.array(drawing.class_colour(number)))).max() <= 1
    assert np.ptp(found[middle, x[1]]) == 0


def test_the_same_rows_give_the_same_bytes_without_metadata(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        report.contact_sheet([row()], CLASSES, tmp_path / name, title="cfs")
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert {data[m.start() : m.end()] for m in re.finditer(rb"tEXt|tIME|iTXt|zTXt|eXIf", data)} == set()


def test_images_of_any_shape_and_rows_without_everything(tmp_path: Path) -> None:
    tall, wide = np.zeros((300, 40), np.uint8), np.zeros((20, 400), np.uint8)
    rows = [
        row(),
        SheetRow("tall", picture(300, 40), [Panel("grabcut", tall)], tags=(1, 2)),
        SheetRow("wide ünïcode " * 20, picture(20, 400), [Panel("student", wide, 1.0)], truth=wide),
        SheetRow("strokes", picture(), [], scribbles=(Scribble(1, ((3.0, 3.0), (50.0, 40.0))), Scribble(0, ((5, 5),)))),
    ]
    report.contact_sheet(rows, CLASSES, tmp_path / "sheet.png")
    assert read(tmp_path / "sheet.png").shape[2] == 3


def test_long_sheets_have_pages_and_stale_pages_go(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    many = [row(panels=[]) for _ in range(5)]
    pages = report.contact_sheet(many, CLASSES, path, rows_per_page=2, width=60)
    assert [p.name for p in pages] == ["sheet.png", "sheet-2.png", "sheet-3.png"] and report.sheet_pages(path) == pages
    assert report.contact_sheet(many[:1], CLASSES, path, width=60) == [path]
    assert report.sheet_pages(path) == [path] and len(list(tmp_path.iterdir())) == 1


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    gray = np.full((100, 100, 3), 128, np.uint8)
    one = SheetRow("a", gray, [], boxes=(Box(0, 1, 20, 30, 80, 90),))
    report.contact_sheet([one], CLASSES, tmp_path / "a.png", width=200)
    found = read(tmp_path / "a.png").astype(int)
    top = found.shape[0] - 200 - 30 - MARGIN + 8
    panel = found[top : top + 200, MARGIN : MARGIN + 200]
    coloured = np.abs(panel - np.array(drawing.class_colour(1))).max(-1) < 30
    rows, columns = np.nonzero(coloured)
    expected = (40, 60, 160, 180)
    assert np.abs(np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) - expected).max() <= 2


def test_sheet_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        report.contact_sheet([], CLASSES, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_mask_that_does_not_fit_leaves_its_place_blank(tmp_path: Path) -> None:
    """The picture comes last in a long run: a wrong mask must not end it."""
    wrong = np.full((3, 4), 1, np.uint8)
    report.contact_sheet([row(panels=[Panel("grabcut", wrong)], truth=wrong)], CLASSES, tmp_path / "a.png", width=100)
    found = read(tmp_path / "a.png").astype(int)
    for place in (1, 2):
        panel = found[-80:-70, MARGIN + place * (100 + GAP) + 10 : MARGIN + place * (100 + GAP) + 90]
        assert np.ptp(panel, axis=2).max() < 40, "the words in grey, no class colour"


def test_long_text_is_cut_in_the_middle() -> None:
    short = drawing.fit_text("a_very_long_file_name_of_an_image_00017", 13, 120)
    assert short.startswith("a_ver") and short.endswith("017") and "…" in short
    assert drawing.text_width(short, 13) <= 120
    assert drawing.fit_text("short", 13, 120) == "short"


# -- numbers ---------------------------------------------------------------------------------------------------------


def printed(scores: Mapping[str, Any], title: str = "") -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.score_table(scores, title=title))
    return console.export_text()


def test_table_prints_the_numbers_given() -> None:
    text = printed(SCORES, "masks [train]")
    assert "masks [train]" in text
    for label, value in {"mIoU": "50.4", "cat": "9.9", "coverage": "90.0", "recall": "-", "dog <wild>": "-"}.items():
        assert re.search(rf"^\s*{re.escape(label)}\s+{re.escape(value)}\s*$", text, re.M), (label, text)
    assert "mIoU, undecided left out" in text and "60.0" in text
    assert "object IoU, small (4)" in text and "object IoU, medium (2)" in text and "large" not in text
    assert "in no mean: dog <wild>" in text


def test_missing_keys_are_left_out() -> None:
    assert "50.0" in printed({"miou": 0.5}) and "precision" not in printed({"miou": 0.5})
    assert printed({}) is not None
    many = printed({"miou": 0.5, "per_class": {f"c{i:02d}": i / 100 for i in range(80)}})
    assert all(re.search(rf"c{i:02d}\s+{i}\.0", many) for i in range(80)) and len(many.splitlines()) < 40


def test_scores_json_is_deterministic_and_plain(tmp_path: Path) -> None:
    values = {"b": np.float64(0.25), "a": [np.int64(3), float("nan")], "é": {"x": None, "t": (1, True)}}
    report.write_scores_json(tmp_path / "a.json", values)
    report.write_scores_json(tmp_path / "b.json", dict(reversed(values.items())))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    loaded = json.loads((tmp_path / "a.json").read_text())
    assert loaded == {"a": [3, None], "b": 0.25, "é": {"t": [1, True], "x": None}}
    with pytest.raises(TypeError, match="scores hold ndarray"):
        report.write_scores_json(tmp_path / "c.json", {"a": np.zeros(3)})
    assert not (tmp_path / "c.json").exists()


# -- HTML ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags and text, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


EVIL = "<script>alert('x')</script>\"&"


@pytest.fixture()
def page(tmp_path: Path) -> tuple[Path, Page]:
    out = tmp_path / "out"
    sheet = out / "contact sheet#1.png"
    report.contact_sheet([row(panels=[])] * 3, CLASSES, sheet, rows_per_page=2, width=40)
    curve = tmp_path / "cache" / "curve.png"
    report.curve_png([{"step": 1, "loss": 1.0}], curve)
    path = report.html_report(
        out,
        title=f"maskmill {EVIL}",
        manifest={
            "run": EVIL,
            "status": "finished",
            "started": 1763700000.0,
            "seconds": 214.3,
            "warnings": [EVIL],
            "recipe": {"data": {"source": EVIL, EVIL: []}},
            "stages": [{"label": EVIL, "kind": "map", "total": 3, "seconds": 61.0, "address": "grabcut-01"}],
        },
        scores={f"masks {EVIL}": SCORES, "student (val)": {"miou": None}},
        files={"contact sheet": str(sheet), "manifest": str(out / "manifest.json"), EVIL: str(out / EVIL)},
        curves={"deeplab@2": curve, "gone": tmp_path / "nowhere.png"},
        skips=[{"path": EVIL, "reason": EVIL, "stage": "grabcut", "key": "k"}],
    )
    return path, Page(path.read_text())


def test_everything_from_data_is_escaped(page: tuple[Path, Page]) -> None:
    path, parsed = page
    assert not parsed.all("script") and "<script" not in path.read_text()
    assert "".join(parsed.words).count(EVIL) >= 10
    assert all(not name.startswith("on") for _, attributes in parsed.tags for name in attributes)


def test_page_stands_alone_with_relative_links(page: tuple[Path, Page]) -> None:
    path, parsed = page
    sources = [str(image["src"]) for image in parsed.all("img")]
    assert len(sources) == 3 and all(source.startswith("data:image/") for source in sources)
    links = [str(link["href"]) for link in parsed.all("a")]
    assert links[:3] == ["contact%20sheet%231.png", "contact%20sheet%231-2.png", "curves/deeplab%402.png"]
    assert (path.parent / "curves" / "deeplab@2.png").exists()
    assert not any(re.match(r"[a-z]+:|/", link) for link in links)
    text = path.read_text()
    assert "http" not in text and "@import" not in text and "url(" not in text and not parsed.all("link")


def test_page_is_accessible(page: tuple[Path, Page]) -> None:
    path, parsed = page
    assert parsed.all("html") == [{"lang": "en"}] and len(parsed.all("h1")) == 1
    assert all(image.get("alt") for image in parsed.all("img"))
    assert all(head.get("scope") in ("col", "row") for head in parsed.all("th"))
    assert len(parsed.all("caption")) == len(parsed.all("table")) == 4
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(s["aria-labelledby"] in ids for s in parsed.all("section"))
    assert "prefers-color-scheme: dark" in path.read_text()


def test_page_shows_numbers_and_repeats(page: tuple[Path, Page]) -> None:
    path, parsed = page
    words = " ".join(" ".join(parsed.words).split())
    for text in ("50.4", "2025-11-21 04:40 UTC", "3 min 34 s", "1 min 01 s", "in no mean: dog <wild>"):
        assert text in words, text
    first = path.read_bytes()
    report.html_report(path.parent, title="t", manifest={}, scores={}, files={})
    smallest = path.read_text()
    assert "<h1>t</h1>" in smallest and Page(smallest).all("img") == [] and path.read_bytes() != first


def test_a_long_list_of_skips_is_cut_and_said(tmp_path: Path) -> None:
    skips = [{"path": f"p{i}", "reason": "r"} for i in range(1501)]
    files = {"manifest": str(tmp_path / "manifest.json")}
    path = report.html_report(tmp_path, title="t", manifest={}, scores={}, files=files, skips=skips)
    text = path.read_text()
    assert 'And 1,001 more, all in <a href="manifest.json">' in text and "1,501 images left out" in text
    assert "p499<" in text and "p500<" not in text


def test_a_key_of_data_is_never_taken_for_a_method(tmp_path: Path) -> None:
    """Templates look up ``a.b`` in two ways: a class called "items" or a parameter called "get" must do no harm."""
    names = ("items", "values", "get", "keys")
    scores: dict[str, dict[str, Any]] = {name: {"miou": 0.5, "per_class": dict.fromkeys(names, 0.25)} for name in names}
    manifest = {"recipe": {name: {name: 1} for name in names}, "stages": [{"label": "a", "items": 3}]}
    path = report.html_report(tmp_path, title="t", manifest=manifest, scores=scores, files={"items": "a", "get": "b"})
    words = Page(path.read_text()).words
    assert words.count("25.0") == 16 and words.count("1") == 4 and words.count("items") >= 6


def test_the_template_is_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert any(
        fnmatch(TEMPLATE, pattern) for pattern in project["tool"]["setuptools"]["package-data"]["artifacts.report"]
    )


def test_report_is_light_to_import() -> None:
    heavy = ("torch", "matplotlib", "jinja2", "rich", "msgspec")
    code = f"import sys, artifacts.report; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.strip() == "[]"


def test_every_picture_is_listed_in_json(tmp_path: Path) -> None:
    rows = {"masks (train)": [("a", 0.25, None), ('é/"b"', float("nan"), 0.5)], "empty": []}
    report.write_picture_list(tmp_path / report.PICTURES, rows)
    found = json.loads((tmp_path / report.PICTURES).read_text())
    first, second = found["masks (train)"]
    assert found["empty"] == [] and first == {"image": "a", "score": 0.25, "suspicion": None}
    assert second == {"image": 'é/"b"', "score": None, "suspicion": 0.5}
    assert len((tmp_path / report.PICTURES).read_text().splitlines()) == 8, "a picture a line"
