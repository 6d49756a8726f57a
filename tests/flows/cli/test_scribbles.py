"""``maskmill scribbles``: does it draw on every image with a mask, in files that the readers read?"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from flow_runs import Runs, demo_tree, maskmill

from artifacts.datasets import DataParams, read_split
from artifacts.datasets.scribblesup import rasterize
from artifacts.records import MaskRef


@pytest.fixture(scope="module")
def tree(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny demo data without its scribbles, and without the mask of one image."""
    tree = tmp_path_factory.mktemp("tree") / "tree"
    shutil.copytree(demo_tree(runs.tiny("cfs")), tree)
    shutil.rmtree(tree / "ScribbleSup")
    (tree / "demo.json").unlink()
    next(iter((tree / "SegmentationClass").glob("*val*00003.png"))).unlink()
    return tree


def test_what_it_writes_is_read_back(tree: Path, tmp_path: Path) -> None:
    for kind in ("xml", "png"):
        out = tmp_path / kind
        given = ("--from", f"voc:{tree}", "--out", str(out), "--split", "val", "--format", kind, "--quiet")
        done = maskmill(out, "scribbles", *given, "--length", ".5", "--width", "2")
        assert done.code == 3, done.printed
        assert "files of scribbles: 7, skipped: 1" in done.printed and "no mask is known for it" in done.printed
        assert f"--set data.scribble_files={out}" in done.printed
    data = [DataParams(f"voc:{tree}", scribble_files=str(tmp_path / kind)) for kind in ("xml", "png")]
    for strokes, mask in zip(*(read_split(one, "val") for one in data), strict=True):
        if strokes.truth is None:
            assert strokes.scribbles is mask.scribbles is None
            continue
        truth_hw = strokes.truth.load()
        assert {stroke.class_id for stroke in strokes.strokes} == set(np.unique(truth_hw).tolist())
        assert isinstance(mask.scribbles, MaskRef)
        assert np.array_equal(mask.scribbles.load(), rasterize(strokes.strokes, truth_hw.shape, 2.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--length", "2"), "--length 2 must lie in 0..1"),
        (("--width", "0"), "--width 0 must lie in 1..100"),
        (("--from", "odd:x"), "--from odd:x: source must start with one of"),
        (("--split", "odd"), "has no split 'odd'"),
    ],
)
def test_a_wrong_request_is_refused(tree: Path, tmp_path: Path, given: tuple[str, str], message: str) -> None:
    source = () if given[0] == "--from" else ("--from", f"voc:{tree}")
    done = maskmill(tmp_path, "scribbles", *source, "--out", str(tmp_path / "out"), *given)
    assert (done.code, message in done.printed) == (2, True), done.printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("folder", "kind"), [("SegmentationClass", "png"), ("Annotations", "xml"), ("JPEGImages", "png")]
)
def test_no_file_of_another_hand_is_replaced(tree: Path, folder: str, kind: str) -> None:
    """Scribbles of an image have the names of its mask and its boxes."""
    before = {path: path.read_bytes() for path in (tree / folder).iterdir()}
    done = maskmill(tree, "scribbles", "--from", f"voc:{tree}", "--out", str(tree / folder), "--format", kind)
    assert (done.code, "holds files that are not of `maskmill scribbles`" in done.printed) == (2, True), done.printed
    assert {path: path.read_bytes() for path in (tree / folder).iterdir()} == before


def test_its_own_folder_is_written_again_but_not_in_another_format(tree: Path, tmp_path: Path) -> None:
    given = ("scribbles", "--from", f"voc:{tree}", "--out", str(tmp_path / "mine"), "--split", "val", "--quiet")
    codes = [maskmill(tmp_path, *given, "--length", length).code for length in ("1", ".5")]
    assert codes == [3, 3]
    other = maskmill(tmp_path, *given, "--format", "png")
    assert (other.code, "holds scribbles as .xml; name another folder for .png" in other.printed) == (2, True)


def test_data_without_masks_are_refused(tree: Path, tmp_path: Path) -> None:
    given = ("--from", f"folder:{tree / 'JPEGImages'}", "--out", str(tmp_path / "out"))
    done = maskmill(tmp_path, "scribbles", *given)
    assert (done.code, "has a mask" in done.printed) == (2, True), done.printed
