"""``maskmill score --edges``: a folder of maps, what is skipped, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flow_runs import maskmill
from PIL import Image


def data(folder: Path) -> None:
    """Three pictures; of one the map is as drawn, of one it is broken, of one it is missing."""
    drawn = np.zeros((2, 80, 60), bool)
    drawn[:, 40, 5:55] = True
    (folder / "truth/annotators/val").mkdir(parents=True)
    (folder / "maps").mkdir()
    for name in "abc":
        np.savez(folder / f"truth/annotators/val/{name}.npz", boundaries=drawn)
    Image.fromarray(np.where(drawn[0], 200, 0).astype(np.uint8)).save(folder / "maps/a.png")
    (folder / "maps/b.png").write_bytes(b"no picture")


@pytest.mark.parametrize("more", [(), ("--thinned", "--quick", "--workers", "2")])
def test_maps_are_scored_and_what_cannot_be_is_said(tmp_path: Path, more: tuple[str, ...]) -> None:
    data(tmp_path)
    out = tmp_path / "s.json"
    arguments = ("--edges", str(tmp_path / "maps"), "--truth", str(tmp_path / "truth"), "--json", str(out), *more)
    done = maskmill(Path(), "score", *arguments)
    assert done.code == 3, done.stderr
    printed = " ".join(done.stdout.split())
    for part in ("b.png: cannot be decoded", "without a map, not scored: 1 (the first: c.png)", "ODS"):
        assert part in printed
    assert f"pictures: 1, thresholds: {33 if more else 99}, " in printed
    scores = json.loads(out.read_text())["boundaries"]
    assert scores["ods"] == scores["ois"] == 1 and scores["images"] == 1
    assert ("1 of the first 2 maps are lines, thinned already as it seems" in printed) is (not more)


def test_scores_are_printed_as_json_too(tmp_path: Path) -> None:
    data(tmp_path)
    arguments = ("--edges", str(tmp_path / "maps"), "--truth", str(tmp_path / "truth"), "--thinned", "--json", "-")
    done = maskmill(Path(), "score", *arguments)
    assert done.code == 3 and json.loads(done.stdout)["boundaries"]["ods"] == 1, done.printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--edges", "maps"), "--edges needs --truth"),
        (("--truth", "truth"), "need --edges"),
        (("--edges", "maps", "--truth", "truth", "--run", "latest"), "are for masks"),
        (("--edges", "maps", "--truth", "truth", "--workers", "-2"), "--workers -2: give a number of processes"),
        (("--edges", "none", "--truth", "truth"), "--edges none: no such folder"),
        (("--edges", "maps", "--truth", "truth", "--split", "test"), "of test; looked in"),
        (("--edges", "truth", "--truth", "truth"), "none of its files is a map of val's 3 (a.png, say)"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str) -> None:
    data(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = maskmill(Path(), "score", *arguments)
    assert done.code == 2 and message in " ".join(done.stderr.split()), done.stderr
