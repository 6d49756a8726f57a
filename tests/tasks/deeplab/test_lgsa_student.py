"""The student with self-attention: what decides its address, what a fit learns, how inference runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fit_scenes import CLASSES, Scene, fit_scenes, metrics
from safetensors.torch import load_file, save_file

from artifacts import keys
from artifacts.cache.codec import from_plain, to_plain
from artifacts.cache.fit_store import Publication
from artifacts.records import Record
from models import deeplab as networks
from models import lgsa_deeplab
from models.lgsa_deeplab import LGSADeepLab
from tasks.crf.params import PRESETS as CRFS
from tasks.deeplab import inference, lgsa
from tasks.deeplab import stages as deeplab
from tasks.deeplab.build import build_network
from tasks.deeplab.lgsa import LGSAParams, chosen
from tasks.deeplab.stages import DEMO, DeepLabFitParams, DeepLabParams, TestTimeParams
from tasks.stage import Item, stage_address
from tasks.training.networks import load_into, load_network
from tasks.training.optim import make_optimizer
from tasks.training.weights import WeightsError

SMALL = dataclasses.replace(
    DEMO, width=8, crop=32, batch=4, iterations=2, scale_range=(1.0, 1.0), test=TestTimeParams()
)
PAPER = chosen("lgsa", LGSAParams())
assert PAPER is not None


# -- params and addresses --------------------------------------------------------------------------------------------


def fit_address(attention: lgsa.Attention, params: DeepLabParams = DEMO, **changes: Any) -> str:
    return stage_address(deeplab.fit(params, lgsa=chosen(attention, LGSAParams(**changes))), ("a", "b"), {})


def digest(attention: lgsa.Attention, **changes: Any) -> str:
    return keys.digest(deeplab.predict(DEMO, lgsa=chosen(attention, LGSAParams(**changes))).params)


def test_without_attention_addresses_stay_what_they_are() -> None:
    """Golden: if these change, every cached student is stale."""
    assert fit_address("none") == "deeplab-2dc8c1cbe4f66072f642b64da7485ec0"
    stages = [deeplab.predict(DEMO), deeplab.predict(DEMO, crf=CRFS["deeplab-v2"])]
    assert [stage_address(stage, ("a", "b"), {}) for stage in stages] == [
        "deeplab-predict-02e556a293dc12d1dd69adf5e408472c",
        "deeplab-predict-cef3c7c1d3dee923dfed230e3ac0205f",
    ]
    assert fit_address("none", modules=3, alpha=5.0, walk="off") == fit_address("none")


def test_equal_fits_have_one_address_and_others_another() -> None:
    assert fit_address("lgsa") == fit_address("lgsa", alpha=10_000.0) == fit_address("lgsa", alpha=10_000)
    assert fit_address("lgsa", modules=1) == fit_address("lgsa", modules=1, alpha=1_000.0, guided="last")
    assert fit_address("nonlocal") == fit_address("lgsa", alpha=0, walk="off", guided="last", alpha_scaled=False)
    fits = {
        fit_address("none"),
        fit_address("nonlocal"),
        fit_address("lgsa"),
        fit_address("lgsa", alpha=0.0),
        *(fit_address("lgsa", alpha=alpha, walk="off") for alpha in (5e3, 1e4, 1.5e4, 2e4)),
        fit_address("lgsa", modules=1),
        fit_address("lgsa", modules=3),
        fit_address("lgsa", guided="last"),
        fit_address("lgsa", warmup_epochs=0.0),
        fit_address("lgsa", alpha_scaled=False),
    }
    assert len(fits) == 13


def test_a_prediction_is_decided_by_the_network_not_by_its_loss() -> None:
    assert digest("lgsa") == digest("lgsa", alpha=5.0, guided="last", warmup_epochs=3.0)
    crf = deeplab.predict(DEMO, lgsa=PAPER, crf=CRFS["deeplab-v2"])
    found = {
        digest("none"),
        digest("nonlocal"),
        digest("lgsa"),
        digest("lgsa", modules=1),
        keys.digest(crf.params),
    }
    assert len(found) == 5


@pytest.mark.parametrize(("modules", "alpha"), [(1, 1_000.0), (2, 10_000.0), (3, 10_000.0)])
def test_alpha_is_the_papers_if_none_is_given(modules: int, alpha: float) -> None:
    resolved = chosen("lgsa", LGSAParams(modules=modules))
    assert resolved is not None and resolved.alpha == lgsa.paper_alpha(modules) == alpha


def test_fit_params_travel_to_another_process_whole() -> None:
    params = deeplab.fit(DEMO, lgsa=chosen("lgsa", LGSAParams(modules=3, walk="logits"))).params
    assert isinstance(params, DeepLabFitParams)
    assert from_plain(DeepLabFitParams, json.loads(json.dumps(to_plain(params)))) == params


def test_attention_and_multi_scale_inputs_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="multi_scale_inputs"):
        deeplab.fit(dataclasses.replace(DEMO, multi_scale_inputs=True), lgsa=PAPER)


def test_the_first_epoch_learns_at_a_tenth() -> None:
    rate = lgsa.warmed_up(lambda step: 1.0 - step / 100, LGSAParams(), images=25, batch=10)
    assert [rate(step) for step in (0, 2, 3, 50)] == pytest.approx([0.1, 0.098, 0.97, 0.5])
    plain = lgsa.warmed_up(lambda step: 1.0, LGSAParams(warmup_epochs=0.0), images=25, batch=10)
    assert plain(0) == 1.0


# -- the fit ---------------------------------------------------------------------------------------------------------


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A 48 x 56 picture: a red disc or a green bar on grey, noisy; a strip of undecided pixels below."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((48, 56), np.uint8)
    if seed % 2:
        cv2.circle(mask, (28, 22), 14, 1, -1)
    else:
        cv2.rectangle(mask, (12, 10), (44, 34), 2, -1)
    colours = np.array([[120, 120, 120], [200, 70, 60], [60, 190, 90]])
    image = np.clip(colours[mask] + rng.normal(0, 12, (48, 56, 3)), 0, 255).astype(np.uint8)
    mask[44:] = 255
    return image, mask


Fit = Callable[..., Publication]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(params, lgsa, **spec fields)`` fits four scenes whose label maps lie in a store."""

    def run(params: DeepLabParams, settings: LGSAParams | None, **fields: Any) -> Publication:
        scenes = [Scene(image, {"mask_hw": mask}) for image, mask in map(scene, range(4))]
        return fit_scenes(tmp_path, deeplab.fit(params, lgsa=settings), "target", scenes, **fields)

    return run


def test_it_learns_and_its_checkpoint_predicts(fit: Fit) -> None:
    params = dataclasses.replace(SMALL, width=16, crop=48, iterations=60, lr=5e-3)
    publication = fit(params, PAPER)
    lines = metrics(publication)
    for what in ("loss", "segmentation"):
        assert lines[-1][what] < 0.6 * lines[0][what], what
    # W begins nearly flat, and its error is small; a hundred times the paper's alpha makes it smaller.
    guided = metrics(fit(params, chosen("lgsa", LGSAParams(alpha=1e6)), name="guided"))
    assert guided[-1]["attention"] < 0.7 * lines[-1]["attention"]
    # Equation 10, with alpha brought to maps of 6 x 6 cells.
    for line in lines:
        alpha = 10_000 * (36 / 1681) ** 2
        assert line["loss"] == pytest.approx(line["segmentation"] + alpha * line["attention"], rel=1e-4)
    hits = 0
    for i in range(4):
        image, mask = scene(i)
        item = Item(f"d/{i}", Record(str(i), ""), CLASSES, image, nets={"net": str(publication.weights)})
        found = inference.predict_items([item], deeplab.predict(params, lgsa=PAPER, crf=CRFS["deeplab-v2"]).params)[0]
        assert set(found) == {"mask_hw", "mask_crf_hw"}
        hits += int((found["mask_hw"] == mask)[:44].sum())
    assert hits / (4 * 44 * 56) > 0.9, "0.65 of it is background"


def test_guidance_and_walk_change_what_is_learnt_and_nonlocal_has_neither(fit: Fit) -> None:
    settings: dict[str, LGSAParams | None] = {
        "none": None,
        "nonlocal": chosen("nonlocal", LGSAParams()),
        "walk": chosen("lgsa", LGSAParams(alpha=0.0)),
        "guided": chosen("lgsa", LGSAParams(walk="off")),
        "last": chosen("lgsa", LGSAParams(walk="off", guided="last")),
    }
    fits = {name: fit(SMALL, setting, name=name) for name, setting in settings.items()}
    weights = {name: load_file(publication.weights) for name, publication in fits.items()}
    theta = {name: tensors["attention.0.theta.weight"] for name, tensors in weights.items() if name != "none"}
    assert not any("attention." in name for name in weights["none"])
    assert len({tensor.numpy().tobytes() for tensor in theta.values()}) == 4
    logged = {name: metrics(publication)[0] for name, publication in fits.items()}
    assert "attention" not in logged["none"]
    assert [logged[name]["attention"] > 0 for name in settings if name != "none"] == [False, False, True, True]
    assert logged["last"]["attention"] < logged["guided"]["attention"], "one module's error, not the sum of two"


def test_backbone_and_head_start_as_the_plain_networks(fit: Fit) -> None:
    still = dataclasses.replace(SMALL, lr=1e-9, iterations=1)
    plain, attended = (load_file(fit(still, s, name=n).weights) for n, s in (("a", None), ("b", PAPER)))
    for name, tensor in plain.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(attended[name], tensor, rtol=0, atol=1e-6)


def test_it_starts_from_a_plain_or_from_its_own_checkpoint_but_from_no_other(fit: Fit, tmp_path: Path) -> None:
    torch.manual_seed(9)
    plain, own = networks.build("tiny", 3, width=8), lgsa_deeplab.build("tiny", 3, width=8, modules=2)
    three = lgsa_deeplab.build("tiny", 3, width=8, modules=3)
    for module in own.attention:
        torch.nn.init.normal_(module.h.weight, std=0.1)
    files = {}
    for name, network in (("plain", plain), ("own", own), ("three", three)):
        files[name] = str(tmp_path / f"{name}.safetensors")
        save_file(network.state_dict(), files[name])
    slow = dataclasses.replace(SMALL, lr=1e-9, iterations=1)
    found = load_file(fit(dataclasses.replace(slow, weights=files["plain"]), PAPER, name="a").weights)
    assert float(found["attention.1.h.weight"].abs().max()) < 1e-6
    torch.testing.assert_close(found["head.branches.0.weight"], plain.state_dict()["head.branches.0.weight"])
    found = load_file(fit(slow, PAPER, name="b", init=files["own"]).weights)
    for name, tensor in own.named_parameters():
        torch.testing.assert_close(found[name], tensor.data, rtol=0, atol=1e-6)
    with pytest.raises(WeightsError, match="attention.2"):
        fit(dataclasses.replace(slow, weights=files["three"]), PAPER, name="c")


def test_imagenet_weights_reach_the_backbone() -> None:
    torch.manual_seed(0)
    params = DeepLabFitParams(network="resnet18", weights="none", lgsa=PAPER)
    network = build_network(params, 3)
    assert isinstance(network, LGSADeepLab)
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    before = network.attention.state_dict()["0.theta.weight"].clone()
    load_into(network, state, "torchvision's resnet18")
    assert torch.equal(network.backbone.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert torch.equal(network.attention.state_dict()["0.theta.weight"], before)


def test_all_parameters_of_the_modules_are_in_a_group() -> None:
    with torch.device("meta"):
        network = build_network(DeepLabFitParams(network="resnet18", weights="none", lgsa=PAPER), 3)
    optimizer = make_optimizer(network, DeepLabParams(network="resnet18", lr=0.001))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(network, LGSADeepLab)
    assert {id(p) for p in network.attention.parameters()} <= trained


def test_golden_fit(fit: Fit) -> None:
    """Golden: if these change, every cached fit with attention is stale, and the stage needs a new version."""
    assert deeplab.fit(DEMO, lgsa=PAPER).version == 4
    params = dataclasses.replace(SMALL, iterations=40, scale_range=(0.75, 1.33), colour_jitter=0.3)
    lines = metrics(fit(params, PAPER))
    assert [line["loss"] for line in lines] == pytest.approx(GOLDEN_LOSSES, rel=0.01)


GOLDEN_LOSSES = [0.65255, 0.38554]


# -- inference -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def awake() -> LGSADeepLab:
    """A network whose W differs from pixel to pixel and whose modules change something."""
    torch.manual_seed(3)
    network = lgsa_deeplab.build("tiny", 4, modules=2)
    for name, parameter in network.named_parameters():
        if name.endswith(("h.weight", "theta.weight")) or name.startswith("head.branches.0"):
            torch.nn.init.normal_(parameter, std=0.1)
    network.train()(torch.randint(0, 256, (4, 3, 64, 64)).float())
    return network.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return coarse.repeat(6, 0).repeat(6, 1)[:height, :width]


def test_walked_probabilities_of_all_scales_and_mirror_images_are_averaged(awake: LGSADeepLab) -> None:
    image = picture(48, 64)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    total, plain = torch.zeros(4, 48, 64), torch.zeros(4, 48, 64)
    with torch.no_grad():
        for height, width in ((48, 64), (24, 32)):
            scaled = F.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
            for mirror in (False, True):
                output = awake(torch.flip(scaled, [3]) if mirror else scaled)
                assert output.walked_bkhw is not None
                for sum_, maps in ((total, output.walked_bkhw), (plain, output.logits_bkhw.softmax(1))):
                    maps = F.interpolate(maps, (48, 64), mode="bilinear", align_corners=False)
                    sum_ += (torch.flip(maps, [3]) if mirror else maps)[0]
    scores = inference.predict_scores(awake, image, (1.0, 0.5), flip=True)
    torch.testing.assert_close(scores, total / 4, rtol=1e-4, atol=1e-5)
    assert float((scores.sum(0) - 1).abs().max()) < 1e-5
    assert float((plain - total).abs().max()) > 0.1, "a walk that changes something"


def test_max_fusion_takes_the_larger_logarithm(awake: LGSADeepLab) -> None:
    image = picture(40, 48)
    full, half = (inference.predict_scores(awake, image, (scale,)) for scale in (1.0, 0.5))
    scores = inference.predict_scores(awake, image, (1.0, 0.5), fusion="max")
    torch.testing.assert_close(scores.exp(), torch.maximum(full, half), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (97, 31)])
def test_any_size_is_answered_at_that_size(awake: LGSADeepLab, size: tuple[int, int]) -> None:
    assert inference.predict_scores(awake, picture(*size), (0.5, 1.0), flip=True).shape == (4, *size)


def test_a_checkpoint_with_and_one_without_modules_are_not_taken_for_each_other(
    awake: LGSADeepLab, tmp_path: Path
) -> None:
    plain = networks.build("tiny", 4)
    for name, network in (("plain", plain), ("own", awake)):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    with_modules, without = deeplab.predict(DEMO, lgsa=PAPER).params, deeplab.predict(DEMO).params
    assert isinstance(
        load_network(str(tmp_path / "own.safetensors"), build_network, with_modules, 4, "cpu"), LGSADeepLab
    )
    assert isinstance(
        load_network(str(tmp_path / "plain.safetensors"), build_network, without, 4, "cpu"), networks.DeepLab
    )
    with pytest.raises(WeightsError, match="attention"):
        load_network(str(tmp_path / "plain.safetensors"), build_network, with_modules, 4, "cpu")
    with pytest.raises(WeightsError, match="attention"):
        load_network(str(tmp_path / "own.safetensors"), build_network, without, 4, "cpu")
