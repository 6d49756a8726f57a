"""``maskmill cam``: is it the run's own classifier, and is what is wrong said?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from flow_runs import Done, Runs, maskmill
from safetensors.torch import load_file

from artifacts.cache.runs import RunFolder
from artifacts.images import read_image_rgb
from artifacts.report.heat_sheet import heat_overlay
from flows.cli.cam import seen, trained
from models import cam as networks

SCALES = (0.5, 1.0, 1.5, 2.0)


@pytest.fixture(scope="module")
def done(runs: Runs) -> Done:
    return runs.tiny("rrm")


@pytest.fixture(scope="module")
def picture(done: Done) -> Path:
    return next((done.out / "cache" / "demo-data").glob("demo-tiny*/JPEGImages/*train_00002.*"))


def heat(cache: Path, picture: Path, out: Path, *more: str, name: str = "kettle") -> Done:
    return maskmill(out, "cam", str(picture), "--class", name, "--out", str(out), "--cache", str(cache), *more)


def test_it_is_the_map_of_the_runs_classifier(done: Done, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "heat.png"
    found = heat(done.out / "cache", picture, out)
    assert found.code == 0, found.printed
    (stage,) = [one for one in done.manifest["stages"] if one["label"] == "classifier"]
    network = networks.build("tiny", 5).eval()
    (weights,) = (done.out / "cache" / "fits").glob(f"{stage['address']}/{stage['stamps']}/pub-0001/*.safetensors")
    network.load_state_dict(load_file(weights))
    image = read_image_rgb(picture)
    number = done.manifest["classes"]["demo-tiny"].index("kettle")
    with torch.no_grad():
        batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
        maps = network.maps(batch, image.shape[:2], SCALES)[0, number].numpy()
        probability = float(network(batch).sigmoid()[0, number])
    shown = cv2.imread(str(out))[..., ::-1]
    assert np.abs(shown.astype(int) - heat_overlay(image, maps / max(maps.max(), 1e-30))).max() <= 1
    assert f"kettle: probability {probability:.2f}" in found.printed


def test_without_it_the_networks_own_branch_is_drawn(done: Done, picture: Path, tmp_path: Path) -> None:
    manifest, stage = trained(done.out / "cache", "latest")
    assert stage["label"] == "classifier"
    (other,) = [one for one in manifest["stages"] if one["label"] == "rrm"]
    image = read_image_rgb(picture)
    of_both = [seen(manifest, one, done.out / "cache", image, 1) for one in (stage, other)]
    assert all(heat_hw.shape == image.shape[:2] and heat_hw.min() >= 0 for heat_hw, _ in of_both)
    assert of_both[0][1] != of_both[1][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "dog"}, "--class dog: the classifier of run .* knows .*kettle"),
        ({"out": "heat.txt"}, "name a .png or .jpg file"),
        ({"more": ("--run", "nothing")}, "no run 'nothing'"),
        ({"cache": "elsewhere"}, "no run here yet; run a flow first"),
    ],
)
def test_what_cannot_be_is_said(
    done: Done, picture: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    cache = tmp_path / change["cache"] if "cache" in change else done.out / "cache"
    out, name = tmp_path / change.get("out", "a.png"), change.get("name", "kettle")
    found = heat(cache, picture, out, *change.get("more", ()), name=name)
    assert found.code == 2 and re.search(message, found.printed), found.printed
    assert not out.exists()


def test_a_run_without_a_classifier(picture: Path, tmp_path: Path) -> None:
    fit = {"kind": "fit", "label": "deeplab", "output": "0"}
    RunFolder.create(tmp_path, "cfs").write_manifest({"run": "a", "stages": [fit]})
    found = heat(tmp_path, picture, tmp_path / "a.png")
    assert found.code == 2 and "no run here has trained a classifier of tags; run `maskmill rrm` first" in found.printed
