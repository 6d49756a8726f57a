"""The report page in a browser: no errors, filters that filter, nothing from data taken as markup, a phone's width."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts import report
from artifacts.objects import Object
from artifacts.report.compare_page import ShownVariant, comparison_page
from artifacts.report.comparison import ScoreTable
from artifacts.report.html import EMBEDDED, changes, points
from artifacts.report.pictures import Layer, ReportPicture, card, inline, region_names

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>document.title='evil'</script>"
CLASSES = (EVIL, "dog")
BEFORE_ALL = "<script>window.found=[];window.onerror=(text)=>{found.push(text)};</script>"
TRIAL = """<script>
const cards = () => [...document.querySelectorAll(".pic")].filter((one) => !one.hidden).map((one) => one.dataset.name);
const set = (name, value) => { const one = document.querySelector(name); one.value = value;
  one.dispatchEvent(new Event("input", { bubbles: true })); return cards(); };
const result = { first: cards(), count: document.querySelector("[data-count]").textContent };
result.evil = set("[data-by=classes]", EVIL_NAME); set("[data-by=classes]", "");
result.val = set("[data-by=of]", "student (val)"); set("[data-by=of]", "");
result.large = set("[data-by=sizes]", "large"); set("[data-by=sizes]", "");
result.low = set("[data-upto]", "50"); set("[data-upto]", "100");
result.doubtful = set("[data-from]", "60"); set("[data-from]", "0");
result.order = set("[data-order]", "suspicion");
document.querySelector(".pic summary").focus();
document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
result.focused = document.activeElement.closest(".pic").dataset.name;
document.querySelector(".pic").open = true;
setTimeout(() => {
  result.photos = document.querySelectorAll(".pic[open] .panels .photo").length;
  const panels = document.querySelector(".pic[open] .panels");
  document.querySelector(".pic[open] .full button").click();
  result.full = [panels.classList.contains("wide"), getComputedStyle(panels).display];
  result.more = document.querySelector(".more").hidden;
  result.names = [...document.querySelectorAll(".pic[open] .panels .view span")].map((one) => one.textContent);
  const page = document.documentElement;
  result.wider = page.scrollWidth - page.clientWidth;
  result.title = document.title;
  result.scripts = document.scripts.length;
  result.errors = found;
  const out = document.createElement("pre");
  out.id = "result";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
}, 50);
</script></body>"""


def picture(name: str, *, of: str, score: float | None, suspicion: float, number: int, side: int) -> ReportPicture:
    mask_hw = np.zeros((120, 160), np.uint8)
    mask_hw[5 : 5 + side, 5 : 5 + side] = number
    mask_hw[110:, 150:] = 255
    objects = [Object(0, (5, 5, 5 + side // 2, 5 + side), np.ones((side, side // 2), np.uint8))]
    layers = [Layer("refine", mask_hw, objects), Layer("truth", np.flipud(mask_hw).copy())]
    image_rgb = np.full((120, 160, 3), 99, np.uint8)
    worst = [(CLASSES[number - 1], suspicion)]
    return ReportPicture(name, of, image_rgb, layers, f"/pictures/{name}.jpg", score, suspicion, worst)


PICTURES = [
    picture("a", of="masks (train)", score=0.9, suspicion=0.1, number=1, side=20),
    picture("b", of="masks (train)", score=0.4, suspicion=0.3, number=2, side=100),
    picture(EVIL, of="masks (train)", score=None, suspicion=0.8, number=2, side=60),
    picture("v", of="student (val)", score=0.7, suspicion=0.5, number=2, side=60),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    scores: dict[str, dict[str, Any]] = {
        "masks (train)": {"miou": 0.5, "per_class": {"background": 0.9, EVIL: 0.5, "dog": 0.1}},
        "student (val)": {"miou": 0.6, "coverage": 1.0, "coverage_per_class": {"dog": 1.0}},
        "regions (train)": {
            "coverage": 0.25,
            "precision_per_class": {"background": 0.911, EVIL: None},
            "coverage_per_class": {"background": 0.322, EVIL: 0.0},
        },
    }
    recipe = {"data": {"source": "voc:x"}, "params": {"student": "none", "rate": (1, 2), EVIL: 3, "deep": {"lr": 1}}}
    return report.html_report(
        tmp_path,
        title="t",
        manifest={"run": "2", "recipe": recipe, "defaults": {"params.student": "deeplab"}, "unread": ["params.deep"]},
        scores=scores,
        files={"pictures": str(tmp_path / "pictures.json")},
        pictures=report.ReportPictures(
            PICTURES, dict.fromkeys(scores, CLASSES), {"masks (train)": 12345, "student (val)": 1}
        ),
        matrices={"masks (train)": report.Confusion(CLASSES, [[90, 10, 0, 0], [0, 30, 10, 0], [0, 0, 0, 0]])},
        before={"run": "1", "scores": {"masks (train)": {"miou": 0.45}}, "recipe": {"params": {"rate": [1, 2]}}},
    )


def test_the_page_says_what_is_shown_and_what_differs(page: Path) -> None:
    text = " ".join(re.sub(r"<[^>]*>", " ", page.read_text()).split())
    assert "12,345 pictures of masks (train)" in text and "all in a list" in text
    assert "45.0 50.0 +5.0" in text, "the run before, now, the difference"
    assert "1 differs from the default: params.student" in text and "default deeplab" in text
    assert "deep not used: no stage of this run takes it" in text and text.count("not used") == 1
    assert "90.0 10.0 0.0 0.0" in text, "per cent of the background"
    assert "What is decided in regions (train)" in text and "background 91.1 32.2" in text and "- 0.0" in text
    assert "What is decided in student" not in text
    assert page.read_text().count("<script") == 1 and "http" not in page.read_text()


def test_what_two_runs_have_otherwise() -> None:
    now = {"recipe": {"params": {"a": (1, 2), "b": 1, "c": {}}}}
    assert changes({"recipe": {"params": {"a": [1, 2], "b": 2}}}, now) == [("params.b", 2, 1), ("params.c", None, {})]
    assert (points(0.5, 0.612), points(None, 0.5), points(0.5, None)) == ("-11.2", "-", "-")


def test_the_largest_confusions_come_first() -> None:
    found = report.Confusion(("a", "b"), [[8, 2, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]])
    assert found.worst == [("a", "b", 0.75), ("background", "a", 0.2)]


def test_regions_are_named_at_their_middle() -> None:
    mask_hw = np.zeros((20, 40), np.uint8)
    mask_hw[4:13, 20:29], mask_hw[0, 0], mask_hw[15:, 35:] = 2, 1, 255
    assert region_names(mask_hw, CLASSES) == [("dog", 61.25, 42.5)], "one pixel is too small to be named"


def test_a_mask_of_another_size_is_refused_and_costs_only_its_picture(tmp_path: Path) -> None:
    wrong = ReportPicture("w", "m", np.zeros((4, 4, 3), np.uint8), [Layer("m", np.zeros((3, 4), np.uint8))])
    with pytest.raises(ValueError, match=r"w: the mask m is \(3, 4\)"):
        card(wrong, CLASSES)
    shown = report.ReportPictures([wrong, PICTURES[0]], {"masks (train)": CLASSES}, {"masks (train)": 2})
    path = report.html_report(tmp_path, title="t", manifest={}, scores={}, files={}, pictures=shown)
    assert path.read_text().count('class="pic"') == 1


def test_a_large_picture_is_put_into_the_page_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.fromarray(noise[:8]).save(tmp_path / "small.png")
    kept = base64.b64encode((tmp_path / "small.png").read_bytes()).decode()
    assert inline(tmp_path / "small.png") == f"data:image/png;base64,{kept}"
    found = inline(tmp_path / "large.png")
    assert found.startswith("data:image/jpeg") and len(found) < (tmp_path / "large.png").stat().st_size


def test_pictures_beyond_the_first_lie_beside_the_page(tmp_path: Path) -> None:
    def written(count: int) -> str:
        many = (picture(f"p{n}", of="m", score=0.5, suspicion=0.5, number=1, side=20) for n in range(count))
        shown = report.ReportPictures(many, {"m": CLASSES}, {"m": count})
        return report.html_report(tmp_path, title="t", manifest={}, scores={}, files={}, pictures=shown).read_text()

    beside = tmp_path / "report-pictures"
    beside.mkdir()
    (beside / "mine.png").write_bytes(b"")
    page = written(EMBEDDED + 3)
    linked = re.findall(r'src="(report-pictures/[^"]+)"', page)
    kinds = ["png", "png", "jpeg"] * 3
    assert sorted(set(linked)) == [f"report-pictures/{n:06d}.{kind}" for n, kind in enumerate(kinds)]
    sizes = {Image.open(tmp_path / name).size for name in linked}
    assert sizes == {(160, 120)} and page.count("data:image/jpeg") == EMBEDDED and page.count('class="pic"') == 27
    assert page.count('loading="lazy"') == page.count("<img "), "what is not in view is not read"
    assert "report-pictures" not in written(EMBEDDED)
    assert [path.name for path in beside.iterdir()] == ["mine.png"], "those of the page before are gone"


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """The same pictures on the page of a comparison."""
    shown = report.ReportPictures(
        PICTURES, {one.of: CLASSES for one in PICTURES}, {"masks (train)": 3, "student (val)": 1}
    )
    variants, table = [ShownVariant(EVIL)], ScoreTable(EVIL, ["variant", EVIL], [[EVIL, "1.0"]])
    path, texts = tmp_path / "compare.html", [EVIL]
    return comparison_page(
        path, title="t", subtitle=EVIL, tables=[table], variants=variants, notes=texts, problems=texts, pictures=shown
    )


@pytest.mark.parametrize("which", ["page", "compared"])
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_in_a_browser(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """From ``file://`` at a phone's width, with a script that works the filters and writes down what it sees."""
    trial = TRIAL.replace("EVIL_NAME", json.dumps(EVIL).replace("</", "<\\/"))
    text = request.getfixturevalue(which).read_text().replace("<head>", f"<head>{BEFORE_ALL}").replace("</body>", trial)
    tried = tmp_path / "tried.html"
    tried.write_text(text)
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,800", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000", tried.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    written = re.search(r'<pre id="result">(.*?)</pre>', done.stdout)
    assert written is not None, done.stderr[-2000:]
    for code, plain in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        written = written if isinstance(written, str) else written[1]
        written = written.replace(code, plain)
    found = json.loads(written)
    assert found["errors"] == [] and found["title"] == "t" and found["scripts"] == 3
    first = {"page": ["b", "v", "a", EVIL], "compared": [EVIL, "v", "b", "a"]}  # lowest mIoU; most different
    assert found["first"] == first[which] and found["count"] == "4 of 4 shown"
    assert found["evil"] == ["a"] and found["val"] == ["v"] and found["large"] == ["b"]
    assert found["low"] == ["b"] and found["doubtful"] == [EVIL]
    assert found["order"] == [EVIL, "v", "b", "a"] and found["focused"] == "v"
    assert found["photos"] == 2 and found["names"] == ["dog", "dog"]
    assert found["full"] == [True, "flex"] and found["more"], "side by side; four pictures are all shown"
    assert found["wider"] <= 0, "a phone scrolls tables, not the page"
