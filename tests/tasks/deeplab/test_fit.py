"""DeepLab's fit, whole: from image files and stored label maps to published tensors, in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fit_scenes import CLASSES, Scene, fit_scenes, metrics
from safetensors.torch import load_file, save_file

from artifacts.cache.fit_store import Publication
from artifacts.records import MaskRef, Record
from models import deeplab as networks
from models.groups import parameter_groups
from tasks.deeplab import stages as deeplab
from tasks.deeplab.inference import predict_items, predict_scores
from tasks.deeplab.stages import DEMO, DeepLabParams
from tasks.stage import Item
from tasks.training.optim import make_optimizer

SMALL = dataclasses.replace(DEMO, width=8, crop=32, batch=4, iterations=2, scale_range=(1.0, 1.0))


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A 64 x 72 picture: a red disc or a green bar on grey, all noisy; a strip of undecided pixels below."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 72), np.uint8)
    x, y = (int(v) for v in rng.integers(22, 40, 2))
    if seed % 2:
        cv2.circle(mask, (x, y), 16, 1, -1)
    else:
        cv2.rectangle(mask, (x - 17, y - 12), (x + 17, y + 12), 2, -1)
    colours = np.array([[120, 120, 120], [200, 70, 60], [60, 190, 90]])
    image = np.clip(colours[mask] + rng.normal(0, 12, (64, 72, 3)), 0, 255).astype(np.uint8)
    mask[60:] = 255
    return image, mask


def load_truth(reference: MaskRef) -> np.ndarray:
    """Loader of the monitor's truth: what the scene was painted from."""
    return scene(int(reference.detail))[1]


Fit = Callable[..., Publication]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(params, masks=..., monitor=..., **spec fields)`` fits four scenes whose label maps lie in a store."""

    def run(params: DeepLabParams, *, masks: Any = None, monitor: bool = False, **fields: Any) -> Publication:
        scenes = []
        for i in range(4):
            image, mask = scene(i)
            truth = MaskRef(f"{__name__}:load_truth", "", str(i)) if monitor else None
            scenes.append(Scene(image, {"mask_hw": mask if masks is None else masks(i, mask)}, truth=truth))
        return fit_scenes(tmp_path, deeplab.fit(params), "target", scenes, **fields)

    return run


def test_tiny_learns_four_pictures_and_its_checkpoint_predicts_them(fit: Fit) -> None:
    params = dataclasses.replace(SMALL, width=16, crop=48, iterations=60, lr=5e-3)
    publication = fit(params, monitor=True)
    lines = metrics(publication)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert [line for line in lines if "val_miou" in line][-1]["val_miou"] > 0.75
    hits = 0
    for i in range(4):
        image, mask = scene(i)
        item = Item(f"d/{i}", Record(str(i), ""), CLASSES, image, nets={"net": str(publication.weights)})
        predicted = predict_items([item], deeplab.predict(params).params)[0]["mask_hw"]
        hits += int((predicted == mask)[:60].sum())
    assert hits / (4 * 60 * 72) > 0.93


def test_watching_changes_no_weight_and_the_seed_changes_all(fit: Fit) -> None:
    plain = load_file(fit(SMALL, name="a").weights)
    watched = load_file(fit(SMALL, name="b", monitor=True).weights)
    other = load_file(fit(dataclasses.replace(SMALL, seed=1), name="c").weights)
    assert all(torch.equal(plain[k], watched[k]) for k in plain)
    assert not torch.equal(plain["backbone.stem.0.weight"], other["backbone.stem.0.weight"])


def test_loader_workers_change_no_weight(fit: Fit) -> None:
    alone = load_file(fit(SMALL, name="a").weights)
    helped = load_file(fit(SMALL, name="b", loader_workers=2).weights)
    assert all(torch.equal(alone[k], helped[k]) for k in alone)


def test_nothing_decided_gives_zero_loss_and_finite_weights(fit: Fit) -> None:
    publication = fit(SMALL, masks=lambda i, mask: np.full_like(mask, 255))
    assert [line["loss"] for line in metrics(publication) if "loss" in line] == [0.0]
    assert all(bool(torch.isfinite(t.float()).all()) for t in load_file(publication.weights).values())


def test_a_label_that_is_no_class_is_a_named_skip(fit: Fit) -> None:
    def break_one(i: int, mask: np.ndarray) -> np.ndarray:
        return np.where(mask == 1, 9, mask).astype(np.uint8) if i == 1 else mask

    info = fit(SMALL, masks=break_one).info
    assert [key for key, _, reason, _ in info["skips"] if "label 9 at x=" in reason and "0..2" in reason] == ["d/1"]


def test_a_label_map_of_another_size_is_a_named_skip(fit: Fit) -> None:
    info = fit(SMALL, masks=lambda i, mask: mask[:20] if i == 2 else mask).info
    assert [key for key, _, reason, _ in info["skips"] if "(20, 72)" in reason and "(64, 72)" in reason] == ["d/2"]


def test_epochs_become_iterations(fit: Fit) -> None:
    lines = metrics(fit(dataclasses.replace(SMALL, iterations=0, epochs=3, batch=2)))
    assert lines[-1]["step"] == 6  # 4 images, 2 at a time, 3 times
    assert lines[-1]["lr"] == pytest.approx(SMALL.lr * (1 - 5 / 6) ** 0.9), "the schedule ends where the epochs do"


def test_the_logged_rate_is_poly_09(fit: Fit) -> None:
    publication = fit(dataclasses.replace(SMALL, iterations=20, lr=0.01))
    last = [line for line in metrics(publication) if "lr" in line][-1]
    assert last["step"] == 20
    assert last["lr"] == pytest.approx(0.01 * (1 - 19 / 20) ** 0.9)


@pytest.mark.parametrize(
    "change",
    [{"multi_scale_inputs": True}, {"loss_at": "output"}, {"optimizer": "sgd", "lr": 0.01}, {"optimizer": "adam"}],
)
def test_variants_train_the_same_tensors(fit: Fit, change: dict[str, Any]) -> None:
    plain = load_file(fit(SMALL, name="a").weights)
    variant = load_file(fit(dataclasses.replace(SMALL, **change), name="b").weights)
    assert {k: v.shape for k, v in variant.items()} == {k: v.shape for k, v in plain.items()}
    assert not torch.equal(variant["head.branches.0.weight"], plain["head.branches.0.weight"])


def test_weights_file_and_init_are_what_a_fit_starts_from(fit: Fit, tmp_path: Path) -> None:
    torch.manual_seed(9)
    start = networks.build("tiny", 3, width=8)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    slow = dataclasses.replace(SMALL, lr=1e-8, iterations=1)
    from_file = load_file(fit(dataclasses.replace(slow, weights=str(tmp_path / "start.safetensors")), name="a").weights)
    from_init = load_file(fit(slow, name="b", init=str(tmp_path / "start.safetensors")).weights)
    for name, tensor in start.named_parameters():
        torch.testing.assert_close(from_file[name], tensor.data, rtol=0, atol=1e-6)
        torch.testing.assert_close(from_init[name], tensor.data, rtol=0, atol=1e-6)


def test_the_optimizer_gets_every_group_with_momentum_and_decay_in_their_places() -> None:
    with torch.device("meta"):
        network = networks.build("resnet18", 3)
    params = DeepLabParams(network="resnet18", lr=0.001, momentum=0.8, weight_decay=0.02)
    optimizer = make_optimizer(network, params)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.001, 0.8, 0.02),
        (0.01, 0.8, 0.02),
        (0.02, 0.8, 0.0),
    ]
    declared = parameter_groups(network, network.rules, lr=1, weight_decay=0)
    assert sum(len(g["params"]) for g in optimizer.param_groups) + len(declared.frozen) == len(
        list(network.parameters())
    )


@pytest.mark.parametrize("network", ["lite0", "timm:mobilenetv3_small_050", "timm:convnext_atto"])
def test_other_backbones_are_fitted_and_their_checkpoint_predicts(fit: Fit, network: str) -> None:
    """A checkpoint is read into a network that was built empty: nothing of it may be missing in the state dict."""
    params = dataclasses.replace(
        SMALL, network=network, output_stride=16, batch_norm="trained", head_multipliers=(1.0, 1.0), crop=48
    )
    weights = str(fit(params).weights)
    image = scene(0)[0]
    item = Item("d/0", Record("0", ""), CLASSES, image, nets={"net": weights})
    torch.manual_seed(1)
    by_hand = networks.build(network, 3, output_stride=16).eval()
    by_hand.load_state_dict(load_file(weights))
    expected = predict_scores(by_hand, image, flip=True)
    predicted = predict_items([item], deeplab.predict(params).params)[0]["mask_hw"]
    assert (predicted == expected.argmax(0).numpy()).mean() > 0.999
    assert torch.isfinite(expected).all()


def test_a_frozen_resnet_without_weights_is_warned_about(fit: Fit) -> None:
    params = dataclasses.replace(SMALL, network="resnet18", lr=1e-6, iterations=1, batch=1, optimizer="sgd")
    events = fit(params).info["events"]
    assert any(e["event"] == "warning" and "params.deeplab.weights=imagenet" in e["message"] for e in events)


def test_golden_fit(fit: Fit) -> None:
    """Golden: if these change, every cached fit is stale, and the stage needs a new version."""
    assert deeplab.fit(DEMO).version == 4
    params = dataclasses.replace(SMALL, iterations=40, scale_range=(0.75, 1.33), colour_jitter=0.3)
    losses = [line["loss"] for line in metrics(fit(params)) if "loss" in line]
    assert losses == pytest.approx([0.60171, 0.22417], rel=0.01)
