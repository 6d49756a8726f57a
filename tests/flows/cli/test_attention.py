"""``maskmill attention``: is the map W's row of that pixel, side by side for two runs, and is what is wrong said?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from flow_runs import FIGURE, Done, copy_of, maskmill, run_cfs
from safetensors.numpy import save

from artifacts.cache.fit_store import FitStore
from artifacts.images import read_image_rgb
from artifacts.records import DataError
from flows.cli.attention import find_image, maps, pixel, student_of
from flows.cli.export import finished
from models.lgsa_deeplab import LGSADeepLab
from tasks.deeplab.build import build_network
from tasks.deeplab.lgsa import LGSAParams, chosen, share_on_class
from tasks.deeplab.stages import DEMO_TINY, predict
from tasks.training.networks import load_network

IMAGE = "demo_train_00002"


@pytest.fixture(scope="module")
def two(whole: Done, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A cache with a run with LGSA and one without guidance, and their ids."""
    out = copy_of(whole, tmp_path_factory.mktemp("attention") / "run")
    done = run_cfs(out, *FIGURE, "--set", "params.attention=nonlocal", "--set", "params.deeplab.iterations=2")
    assert done.code == 0, done.printed
    assert done.computed["deeplab"] == 1 and done.computed["cfs"] == done.computed["refine"] == 0
    return out / "cache", whole.manifest["run"], done.manifest["run"]


def test_runs_side_by_side(two: tuple[Path, str, str], tmp_path: Path) -> None:
    cache, guided, unguided = two
    runs = ("--run", unguided, "--run", guided)
    out = tmp_path / "heat.png"
    done = maskmill(
        tmp_path, "attention", "--cache", str(cache), *runs, "--image", IMAGE, "--at", "20,31", "--out", str(out)
    )
    assert done.code == 0, done.printed
    assert f"nonlocal ({unguided})" in done.printed and f"lgsa ({guided})" in done.printed
    assert done.printed.count("% of the weight on the pixel's class") == 2
    assert cv2.imread(str(out)).shape[1] > 3 * 320


def test_the_map_is_the_row_of_w(two: tuple[Path, str, str]) -> None:
    cache, guided, _ = two
    manifest = finished(cache, guided)
    picture, record = find_image(IMAGE, manifest, cache)
    assert record is not None and record.truth is not None
    image = read_image_rgb(picture)
    found = maps(manifest, cache, image, (20.0, 31.0))
    (weights,) = (cache / "fits").glob(f"{_fit(manifest)}/pub-0001/weights.safetensors")
    network = load_network(
        str(weights), build_network, predict(DEMO_TINY, lgsa=chosen("lgsa", LGSAParams())).params, 6, "cpu"
    )
    assert isinstance(network, LGSADeepLab)
    x = network.features(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float())
    for module, row in zip(network.attention, found, strict=True):
        theta, phi = (layer(x).flatten(2)[0] for layer in (module.theta, module.phi))
        w = (theta.T @ phi).softmax(1)
        torch.testing.assert_close(torch.from_numpy(row).flatten(), w[3 * 8 + 2])  # 8 x 8 cells of 8 pixels
        x = module(x)[0]


def _fit(manifest: dict[str, Any]) -> str:
    stage = next(stage for stage in manifest["stages"] if stage["label"] == "deeplab")
    return f"{stage['address']}/{stage['stamps']}"


def test_a_picture_file_needs_no_truth(two: tuple[Path, str, str], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "other.png"), np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8))
    where = ("--cache", str(two[0]), "--run", two[1], "--out", str(tmp_path / "heat.png"))
    done = maskmill(tmp_path, "attention", *where, "--image", str(tmp_path / "other.png"), "--at", "80,30")
    assert (done.code, "no truth mask" in done.printed) == (0, True), done.printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", IMAGE, "--at", "64,3"), "--at 64,3: outside of .*64 x 64 pixels"),
        (("--image", IMAGE, "--at", "3,64"), "outside of"),
        (("--image", IMAGE, "--at", "nan,3"), "outside of"),
        (("--image", IMAGE, "--at", "5"), "--at 5: expected X,Y"),
        (("--image", "nobody", "--at", "5,5"), "--image nobody: no such image in demo-tiny"),
        (("--image", IMAGE, "--at", "5,5", "--run", "nothing"), "no run 'nothing'"),
    ],
)
def test_what_is_wrong_is_said(
    two: tuple[Path, str, str], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "heat.png"
    done = maskmill(tmp_path, "attention", "--cache", str(two[0]), "--out", str(out), *arguments)
    assert done.code == 2 and not out.exists()
    assert re.search(message, done.printed), done.printed


def test_a_student_without_attention_is_refused(tiny: Done, tmp_path: Path) -> None:
    where = ("--cache", str(tiny.out / "cache"), "--image", IMAGE, "--at", "5,5", "--out", str(tmp_path / "heat.png"))
    done = maskmill(tmp_path, "attention", *where)
    assert done.code == 2 and "its student has no self-attention (params.attention=none)" in done.printed


def test_a_runs_own_student_is_asked_even_where_another_was_learnt_since(tmp_path: Path) -> None:
    fits = FitStore(tmp_path)
    own, newer = (fits.publish("deeplab-0", "s", save({"w": np.full(2, i)}), members=[]) for i in (0, 1))
    stage = {"kind": "fit", "label": "deeplab", "address": "deeplab-0", "stamps": "s"}
    for published in (own, newer):
        found = student_of({"run": "a", "stages": [{**stage, "output": published.digest}]}, tmp_path)
        assert found.weights == published.weights
    with pytest.raises(DataError, match="run a: its student's checkpoint is not in .* any more; run the flow again"):
        student_of({"run": "a", "stages": [{**stage, "output": "other"}]}, tmp_path)


def test_pixels_are_numbers() -> None:
    assert pixel("12,7.5") == (12.0, 7.5)


def test_the_share_on_the_class_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 255], [2, 2, 255, 255]], np.uint8)
    weights = np.array([[0.1, 0.4], [0.3, 0.2]], np.float32)
    assert share_on_class(weights, truth, (3, 0)) == pytest.approx(0.4 / 0.8)
    assert share_on_class(weights, truth, (0, 3)) == pytest.approx(0.3 / 0.8)
    assert share_on_class(weights, truth, (3, 3)) is None
