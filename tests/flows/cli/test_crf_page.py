"""Does what docs/crf.md shows run, and is its table of parameter sets the code's?"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crf_pictures import cam_like, scene
from flow_runs import maskmill
from PIL import Image

from artifacts.datasets.voc_writer import write_class_mask
from artifacts.demo.data import prepare_demo
from tasks.crf.dense_crf import PRESETS, CRFParams

PAGE = Path(__file__).parents[3] / "docs/crf.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's lines read: a picture, probabilities, a label map; and folders of them."""
    monkeypatch.chdir(tmp_path)
    image, labels = scene(61, 83, 1)
    probs = np.exp(-cam_like(labels))[:, ::4, ::4]
    for folder in (".", "images", "probs"):
        Path(folder).mkdir(exist_ok=True)
    for path in ("a.jpg", "images/b.jpg", "images/c.jpg"):
        Image.fromarray(image).save(path)
    for path in ("p.npy", "probs/b.npy", "probs/c.npy"):
        np.save(path, probs)
    Path("boxes.csv").write_text("image,class,x0,y0,x1,y1\nb.jpg,cat,5,5,60,50\nc.jpg,dog,10,2,70,40\n")
    prepare_demo("demo-tiny", tmp_path / "demo").rename("VOC2012")
    write_class_mask(Path("rough.png"), np.where(np.arange(83) % 3, 255, labels).astype(np.uint8))
    return tmp_path


def test_every_command_runs_as_printed(here: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        name, *arguments = shlex.split(line, comments=True)
        done = maskmill(here, *arguments)
        assert (name, done.code) == ("maskmill", 0), done.printed
    with Image.open("m.png") as made:
        assert made.size == (83, 61)
    made_of_folders = {path.name for path in Path("masks").iterdir()}
    assert {"b.png", "c.png", "demo_train_00001.png"} <= made_of_folders and len(made_of_folders) == 2 + 24
    assert Path("look.jpg").exists()


def test_the_python_runs_as_printed_and_the_two_calls_agree(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    found = blocks("python")
    assert len(found) == 4
    for block in found:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["labels"].shape == (61, 83)
    np.testing.assert_array_equal(names["soft"], names["q"])
    assert not names["some"][2:].any()
    assert capsys.readouterr().out.splitlines() == ["0 (61, 83)", "1 (61, 83)"]
    assert float(np.abs(names["before"] - names["after"]).max()) <= 1e-4
    assert (names["before"].argmax(0) != probs_labels(names)).any(), "a picture on which the CRF changes something"


def probs_labels(names: dict[str, Any]) -> np.ndarray:
    labels: np.ndarray = names["probs"].argmax(0)
    return labels


def test_the_table_of_sets_is_the_codes() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\d+) \| (\S+) / (\S+) \| (\S+) / (\S+) / (\S+) \| (\w+) \|", TEXT, re.MULTILINE
    )
    documented = {
        name: CRFParams(int(steps), float(g), float(gw), float(b), float(rgb), float(bw), how)  # type: ignore[arg-type]
        for name, steps, gw, g, bw, b, rgb, how in rows
    }
    assert documented == dict(PRESETS)


def test_every_page_that_it_points_to_is_there() -> None:
    targets = re.findall(r"\]\(([^)#:]+)", TEXT)
    assert targets and [target for target in targets if not (PAGE.parent / target).exists()] == []
