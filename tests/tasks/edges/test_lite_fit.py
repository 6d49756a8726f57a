"""hed-lite's training: do labels lie on what they are of, however the picture is turned, and is anything learnt?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fit_scenes import metrics
from numpy.typing import NDArray
from safetensors.torch import load_file

from artifacts.records import Record
from models.hed_lite import HEDLite
from tasks.edges.lite_fit import LiteFitParams, calibrated, consensus, draw_sample, platt
from tasks.engine.fit_spec import FitSpec, plain_params
from tasks.engine.image_task import ImageTask
from tasks.training.fit_process import run_spec

PLAIN = LiteFitParams(crop=64, gain=0.0)


def step() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A picture whose right part is bright, and its border, which all have drawn."""
    image = np.full((80, 120, 3), 50, np.uint8)
    image[:, 70:] = 200
    share = np.zeros((80, 120), np.float32)
    share[:, 70] = 1
    return image, share


def test_labels_turn_scale_and_mirror_with_the_picture() -> None:
    generator = np.random.default_rng(0)
    bright_left = seen = 0
    for _ in range(60):
        image, labels = draw_sample(*step(), PLAIN, generator)
        assert image.shape == (64, 64, 3) and labels.shape == (64, 64)
        grey = image[..., 0]
        change = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 60
        for one, other in ((labels == 1, change), (change, labels != 0)):
            beside = cv2.dilate(other.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            assert not (one & ~beside)[2:-2, 2:-2].any(), (
                "a boundary where nothing changes, or none where the picture does"
            )
        if (labels == 1).sum() > 20:
            seen += 1
            bright_left += grey[:, :8].mean() > grey[:, -8:].mean()
    assert seen > 30 and 5 < bright_left < seen - 5, "the bright part is on either side"


def test_what_few_have_drawn_is_undecided() -> None:
    plain = dataclasses.replace(PLAIN, scale_range=(1.0, 1.0))
    image = np.zeros((64, 64, 3), np.uint8)
    for share, label in ((0.0, 0), (0.2, 255), (0.3, 1), (1.0, 1)):
        labels = draw_sample(image, np.full((64, 64), share, np.float32), plain, np.random.default_rng(1))[1]
        assert np.unique(labels).tolist() == [label]


def test_lines_are_whole_in_a_picture_made_smaller() -> None:
    small = dataclasses.replace(PLAIN, scale_range=(0.6, 0.6), drawn_by=0.3)
    for seed in range(10):
        _, labels = draw_sample(*step(), small, np.random.default_rng(seed))
        parts = cv2.connectedComponents((labels == 1).astype(np.uint8))[0] - 1
        assert parts <= 4, "the line, and its mirror images beyond the border"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    for folder in ("images/train", "annotators/train"):
        (tmp_path / folder).mkdir(parents=True)
    found = []
    for number in range(3):
        image, share = step()
        found.append(tmp_path / f"images/train/{number}.png")
        cv2.imwrite(str(found[-1]), np.roll(image, 10 * number, axis=1))
        drawn = np.stack([np.roll(share, 10 * number, axis=1) > 0, np.zeros(share.shape, bool)])
        np.savez(tmp_path / f"annotators/train/{number}.npz", boundaries=drawn)
    return found


def test_the_share_of_annotators_is_read(pictures: list[Path]) -> None:
    assert np.unique(consensus(str(pictures[0]))).tolist() == [0, 0.5]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_it_learns_and_leaves_what_the_network_reads(pictures: list[Path], tmp_path: Path, precision: Any) -> None:
    params = LiteFitParams(crop=64, batch=2, iterations=40, weights="imagenet", lr=3e-3, precision=precision)
    params_type, plain = plain_params(params)
    spec = FitSpec(
        cache=str(tmp_path / "cache"),
        label="hed-lite",
        address="hed-lite",
        stamp="0",
        function="tasks.edges.lite_fit:fit",
        params_type=params_type,
        params=plain,
        train=tuple(ImageTask(f"bsds/{path.stem}", path.stem, Record(path.stem, str(path))) for path in pictures),
        reads=("image",),
        seed=0,
        device="cpu",
        threads=1,
    )
    made = run_spec(spec, lambda event: None)
    assert set(load_file(made.weights)) == set(HEDLite().state_dict())
    losses = [line["loss"] for line in metrics(made) if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]


def test_calibrated_values_are_the_share_of_hits() -> None:
    logits = np.repeat([-2.0, 4.0], 10)
    hits = np.array([True] * 2 + [False] * 8 + [True] * 9 + [False])
    scale, shift = platt(logits, hits)
    assert 1 / (1 + np.exp(-(scale * -2 + shift))) == pytest.approx(0.2, abs=1e-4)
    assert 1 / (1 + np.exp(-(scale * 4 + shift))) == pytest.approx(0.9, abs=1e-4)


def test_calibration_changes_the_fused_logit_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = HEDLite().eval()
    images = torch.rand(1, 3, 32, 48)
    before = network.logits(images)
    network.load_state_dict(calibrated(network.state_dict(), 0.5, -1.5))
    after = network.logits(images)
    assert torch.equal(after[:, :4], before[:, :4])
    torch.testing.assert_close(after[:, 4], 0.5 * before[:, 4] - 1.5)
