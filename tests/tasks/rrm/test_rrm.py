"""RRM, whole: from image files and tags to both branches and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from fit_scenes import CLASSES, Scene, fit_scenes, metrics
from safetensors.torch import load_file, save_file
from tagged_scenes import painted, tagged, tags_of

from artifacts.cache.fit_store import Publication
from artifacts.records import Record
from models import cam as classifiers
from models import rrm as networks
from tasks.crf.params import PRESETS as CRF_PRESETS
from tasks.deeplab.stages import TestTimeParams
from tasks.reliable import ReliableParams
from tasks.rrm import stages
from tasks.rrm.network import RegionWatch, loss_weights, masks_items, predict_items
from tasks.rrm.stages import DEMO, RRMParams
from tasks.stage import Item, SkipImage, call, stage_address
from tasks.training.context import FitContext
from tasks.training.loop import Diverged

FAST = ReliableParams(crf=dataclasses.replace(CRF_PRESETS["ahn-kwak-cam"], iterations=2), ties="all")
SMALL = dataclasses.replace(
    DEMO, width=8, crop=48, batch=4, iterations=4, scale_range=(1.0, 1.0), mining_scales=(1.0,), reliable=FAST
)
Fit = Callable[..., Publication]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(params, scenes=..., **spec fields)`` fits four tagged scenes; role ``target`` is what they store."""

    def run(params: RRMParams, scenes: list[Scene] | None = None, **fields: Any) -> Publication:
        return fit_scenes(tmp_path, stages.fit(params), "target", tagged() if scenes is None else scenes, **fields)

    return run


def item(seed: int, net: Path, tags: tuple[int, ...] | None) -> Item:
    return Item(f"d/{seed}", Record(str(seed), "", tags=tags), CLASSES, painted(seed)[0], nets={"net": str(net)})


def test_it_learns_from_tags_what_and_where(fit: Fit) -> None:
    params = dataclasses.replace(SMALL, iterations=50, lr=1e-2, warmup_epochs=20.0)
    publication = fit(params, tagged(monitor=True))
    lines = [line for line in metrics(publication) if "loss" in line]
    assert {"class", "ce", "energy", "labelled", "lr"} <= set(lines[0])
    assert lines[0]["ce"] == lines[0]["labelled"] == lines[0]["energy"] == 0, "warm-up"
    assert lines[-1]["class"] < 0.3 * lines[0]["class"] and 0.02 < lines[-1]["labelled"] < 0.9
    assert [line for line in metrics(publication) if "val_miou" in line][-1]["val_miou"] > 0.5
    for seed in range(4):
        found = masks_items([item(seed, publication.weights, tags_of(seed))], stages.masks(params).params)[0]["mask_hw"]
        assert set(np.unique(found)) <= {0, *tags_of(seed)}


def test_offline_it_learns_from_the_regions_that_are_given(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [dataclasses.replace(scene, stored={"mask_hw": painted(i)[1]}) for i, scene in enumerate(tagged())]
    monkeypatch.setattr("tasks.rrm.mining.mine", None)  # nothing is mined
    params = dataclasses.replace(SMALL, mining="offline", iterations=40, crop=32, lr=5e-3, energy_weight=0.0)
    publication = fit(params, scenes)
    lines = [line for line in metrics(publication) if "loss" in line]
    assert lines[-1]["ce"] < 0.5 * lines[0]["ce"] and "energy" not in lines[0]
    assert lines[0]["labelled"] == 1.0


@pytest.mark.parametrize("step", [3, 6])
def test_resumed_in_the_middle_of_joint_training_it_gives_the_same_weights(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    params = dataclasses.replace(SMALL, iterations=8, warmup_epochs=2.0)  # steps 3 to 8 are joint
    whole = fit(params, name="whole")
    calls = []

    def die(context: FitContext) -> None:
        calls.append(1)
        if len(calls) == step + 1:
            raise InterruptedError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(FitContext, "check_stop", die)
        with pytest.raises(InterruptedError):
            fit(params, name="cut", checkpoint_every_s=0.0)
    resumed = fit(params, name="cut", checkpoint_every_s=0.0)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert metrics(resumed) == metrics(whole)


@pytest.mark.parametrize("energy", [0.0, 1e-7])
def test_a_network_that_diverges_is_named_with_its_step_and_what_to_change(fit: Fit, energy: float) -> None:
    wild = dataclasses.replace(SMALL, optimizer="sgd", lr=10.0, momentum=0.99, iterations=40, energy_weight=energy)
    with pytest.raises(Diverged, match=r"rrm: .* at step \d+; lower the learning rate"):
        fit(wild)


def test_threads_change_no_byte_of_the_weights(fit: Fit) -> None:
    one, eight = (fit(dataclasses.replace(SMALL, mining_threads=n), name=str(n)) for n in (1, 8))
    assert one.weights.read_bytes() == eight.weights.read_bytes()


def test_a_batch_of_one_with_every_class_as_tag(fit: Fit) -> None:
    """Each picture shows one of its two tags."""
    scenes = [dataclasses.replace(scene, tags=(1, 2)) for scene in tagged()]
    publication = fit(dataclasses.replace(SMALL, batch=1, iterations=3), scenes)
    (line,) = [line for line in metrics(publication) if "loss" in line]
    assert all(np.isfinite(value) for value in line.values()) and line["labelled"] > 0 and line["energy"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in load_file(publication.weights).values())


def test_each_switch_changes_what_is_learnt(fit: Fit) -> None:
    brief = dataclasses.replace(SMALL, iterations=2, crop=32)
    plain = load_file(fit(brief, name="plain").weights)
    changes: list[dict[str, Any]] = [
        {"energy_weight": 1e-3},
        {"reliable": dataclasses.replace(FAST, agreement=False)},
        {"mining_scales": (0.5, 1.0)},
    ]
    for number, change in enumerate(changes):
        other = load_file(fit(dataclasses.replace(brief, **change), name=str(number)).weights)
        assert other.keys() == plain.keys()
        assert not torch.equal(other["head.conv2.weight"], plain["head.conv2.weight"]), change


def test_the_losses_are_weighted_as_the_params_say() -> None:
    names = {"classes": "class_weight", "labels": "label_weight", "energy": "energy_weight"}
    names |= {"sigma_xy": "sigma_xy", "sigma_rgb": "sigma_rgb", "scale": "energy_scale", "threads": "mining_threads"}
    numbers = dict(zip(names, (2.0, 3.0, 4.0, 5.0, 6.0, 0.7, 8), strict=True))
    params = dataclasses.replace(SMALL, **{names[name]: value for name, value in numbers.items()})
    assert dataclasses.asdict(loss_weights(params)) == numbers
    assert loss_weights(SMALL).threads >= 1


def test_during_warm_up_the_head_has_no_gradient(fit: Fit) -> None:
    params = dataclasses.replace(SMALL, weight_decay=0.0, warmup_epochs=9.0, optimizer="sgd", lr=0.01)
    started = load_file(fit(dataclasses.replace(params, iterations=1), name="a").weights)
    later = load_file(fit(params, name="b").weights)
    for name in started:
        if name.startswith("head."):
            assert torch.equal(started[name], later[name])
    assert not torch.equal(started["classifier.weight"], later["classifier.weight"])


def test_a_classifiers_checkpoint_is_a_start(fit: Fit, tmp_path: Path) -> None:
    torch.manual_seed(9)
    start = classifiers.build("tiny", 2, width=8)
    save_file(start.state_dict(), tmp_path / "cam.safetensors")
    slow = dataclasses.replace(SMALL, lr=1e-8, iterations=1)
    made = load_file(fit(slow, init=str(tmp_path / "cam.safetensors")).weights)
    for name, tensor in start.named_parameters():
        torch.testing.assert_close(made[name], tensor.data, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("share", "said"), [(0.2, 0), (1e-5, 1)])
def test_a_fit_that_finds_no_regions_any_more_is_said_once(share: float, said: int) -> None:
    messages: list[str] = []
    watch = RegionWatch(cast(FitContext, SimpleNamespace(warn=messages.append)))
    for index in range(3 * RegionWatch.STEPS):
        watch.add(index, torch.tensor(0.3 if index < RegionWatch.STEPS else share))
    assert len(messages) == said
    if said:
        assert f"step {2 * RegionWatch.STEPS}:" in messages[0] and "params.rrm.lr" in messages[0]


def test_tags_and_crops_that_teach_little_are_said_once(fit: Fit, tmp_path: Path) -> None:
    """With a classifier as its start the tags have been spoken of."""
    scenes = [dataclasses.replace(scene, tags=(1,)) for scene in tagged()]
    brief = dataclasses.replace(SMALL, iterations=1, crop=16)
    save_file(classifiers.build("tiny", 2, width=8).state_dict(), tmp_path / "cam.safetensors")
    for name, init, count in (("weights", "", 2), ("classifier", str(tmp_path / "cam.safetensors"), 1)):
        events = fit(brief, scenes, name=name, init=init).info["events"]
        said = [event["message"] for event in events if event["event"] == "warning"]
        assert len(said) == count and "params.rrm.scale_range" in said[-1]


# What the trained network gives


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    network = networks.build("tiny", 2, width=8)
    torch.nn.init.normal_(network.head.conv2.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    save_file(network.state_dict(), path)
    return path


def test_masks_are_of_background_and_the_tags_and_predictions_of_all_classes(net: Path) -> None:
    params = dataclasses.replace(SMALL, test=TestTimeParams(scales=(0.75, 1.0), flip=True))
    for crf in (None, CRF_PRESETS["rrm-test"]):
        stage = stages.masks(params, crf=crf)
        assert stage.reads == ("image", "tags") and stages.predict(params).reads == ("image",)
        for tags in ((1,), (2,), (1, 2), ()):
            found = call(stage, [item(0, net, tags)])[0]["mask_hw"]
            assert found.shape == (64, 72) and set(np.unique(found)) <= {0, *tags}
    predicted = predict_items([item(0, net, None)], stages.predict(params).params)[0]["mask_hw"]
    whole = masks_items([item(0, net, (1, 2))], stages.masks(params, crf=None).params)[0]["mask_hw"]
    assert np.array_equal(predicted, whole) and len(np.unique(predicted)) > 1
    both = predict_items([item(0, net, None)], stages.predict(params, crf=CRF_PRESETS["rrm-test"]).params)[0]
    own = masks_items([item(0, net, (1, 2))], stages.masks(params).params)[0]["mask_hw"]
    assert np.array_equal(both["mask_crf_hw"], own) and np.array_equal(both["mask_hw"], predicted)
    for dense, mask_hw in ((CRF_PRESETS["rrm-test"], own), (None, whole)):
        stage = stages.masks(params, crf=dense, confidence=True)
        kept = call(stage, [item(0, net, (1, 2))])[0]
        assert np.array_equal(kept["mask_hw"], mask_hw) and kept["label_prob_hw"].dtype == np.uint8
        assert kept["label_prob_hw"].min() >= 85 and np.ptp(kept["label_prob_hw"]), "the largest of three"
    with pytest.raises(SkipImage, match="d/0: no tags are known"):
        masks_items([item(0, net, None)], stages.masks(params).params)


def test_several_images_at_once_are_as_each_alone(net: Path) -> None:
    params = stages.masks(SMALL).params
    items = [item(seed, net, tags_of(seed)) for seed in range(3)]
    for together, one in zip(masks_items(items, params), items, strict=True):
        assert (together["mask_hw"] == masks_items([one], params)[0]["mask_hw"]).mean() > 0.999


# Params and addresses


def test_the_papers_preset() -> None:
    voc = stages.PRESETS["voc-rrm"]
    assert (voc.network, voc.output_stride, voc.crop, voc.batch) == ("resnet38", 8, 321, 8)
    assert (voc.lr, voc.weight_decay, voc.scale_range, voc.poly_power) == (1e-3, 5e-4, (0.7, 1.3), 0.9)
    assert (voc.energy_weight, voc.sigma_rgb, voc.sigma_xy, voc.energy_scale) == (1e-7, 15.0, 100.0, 0.5)
    assert voc.mining == "online" and voc.reliable == ReliableParams()
    assert RRMParams().lr == 1e-4  # the default network, Lite0, diverges with the paper's rate within 50 steps
    assert voc.mining_scales == (0.5, 1.0, 1.5, 2.0)  # "the scale ratio in (2)", which Algorithm 1 uses at every step


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"test": TestTimeParams(scales=(2.0,))}, True),
        ({"mining_threads": 3, "monitor_every": 7}, True),
        ({"momentum": 0.5}, True),
        ({"mining_scales": (2.0,)}, False),
        ({"energy_weight": 0.0, "sigma_xy": 9.0}, False),
        ({"warmup_epochs": 1.0}, False),
    ],
)
def test_what_makes_a_fit_another_one(change: dict[str, Any], same: bool) -> None:
    found = {stage_address(stages.fit(p), ("a",), {}) for p in (SMALL, dataclasses.replace(SMALL, **change))}
    assert (len(found) == 1) is same


def test_what_is_not_used_has_no_address() -> None:
    offline = dataclasses.replace(SMALL, mining="offline", energy_weight=0.0)
    other = dataclasses.replace(
        offline, mining_scales=(2.0,), reliable=ReliableParams(), sigma_rgb=3.0, energy_scale=1.0
    )
    assert stage_address(stages.fit(offline), ("a",), {}) == stage_address(stages.fit(other), ("a",), {})
    with pytest.raises(ValueError, match=r"rrm\.mining_scales is empty"):
        dataclasses.replace(SMALL, mining_scales=())


def test_golden(fit: Fit) -> None:
    """Golden: if these change, every cached fit is stale, and the stage needs a new version."""
    assert (stages.fit(DEMO).version, stages.predict(DEMO).version, stages.masks(DEMO).version) == (3, 2, 2)
    losses = [line for line in metrics(fit(dataclasses.replace(SMALL, iterations=20))) if "loss" in line]
    found = [losses[-1][name] for name in ("class", "ce", "energy", "labelled")]
    assert found == pytest.approx([0.66123, 2.74097, 1.65535, 0.43848], rel=0.01)
