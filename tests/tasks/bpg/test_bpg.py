"""BPG, whole: from image files, scribbles and edges to masks and boundaries."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_scenes import CLASSES, Scene, fit_scenes, metrics
from safetensors.torch import load_file, save_file
from tagged_scenes import load_truth, painted

from artifacts.cache.fit_store import Publication
from artifacts.datasets.scribble_drawing import draw_scribbles
from artifacts.datasets.scribblesup import rasterize
from artifacts.records import MaskRef, Record
from models import bpg as networks
from models.backbones import convolutions
from models.losses import UNDECIDED
from tasks.bpg import stages
from tasks.bpg.network import build_network, least_share, masks_items, predict_items
from tasks.bpg.stages import BPGParams, PartsParams
from tasks.crf.params import PRESETS as CRF_PRESETS
from tasks.deeplab.stages import TestTimeParams
from tasks.edges.canny import canny
from tasks.stage import Item, call, stage_address

PARTS = PartsParams(prn_width=2, prn_depth=2, low_width=4, brn_width=4, brn_depth=2)
SMALL = dataclasses.replace(
    stages.DEMO_TINY, width=8, crop=48, iterations=4, scale_range=(1.0, 1.0), colour_jitter=0.0, parts=PARTS
)
Fit = Callable[..., Publication]


@functools.cache
def scribbled(count: int = 4) -> list[Scene]:
    """Drawn pictures with their scribbles and edges, and their truth for the monitor."""
    assert load_truth(MaskRef("", "", "0")).any()
    scenes = []
    for i in range(count):
        image_rgb, mask_hw = painted(i)
        strokes = rasterize(draw_scribbles(mask_hw, str(i)), mask_hw.shape)  # type: ignore[arg-type]
        edges_hw = np.rint(255 * canny(image_rgb)).astype(np.uint8)
        truth = MaskRef(f"{load_truth.__module__}:load_truth", "", str(i))
        scenes.append(Scene(image_rgb, {"mask_hw": strokes, "edges_hw": edges_hw}, truth=truth))
    return scenes


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(params, **spec fields)`` fits four pictures; roles ``target`` and ``edges`` are what they store."""

    def run(params: BPGParams, scenes: list[Scene] | None = None, **fields: Any) -> Publication:
        return fit_scenes(tmp_path, stages.fit(params), "target edges", scenes or scribbled(), **fields)

    return run


def item(seed: int, net: Path, known: tuple[int, ...] = ()) -> Item:
    image_rgb, _ = painted(seed)
    strokes = np.full(image_rgb.shape[:2], UNDECIDED, np.uint8)
    strokes[0, : len(known)] = known
    up = {"known": {"mask_hw": strokes}}
    return Item(f"d/{seed}", Record(str(seed), ""), CLASSES, image_rgb, up, nets={"net": str(net)})


LEARNT = dataclasses.replace(SMALL, iterations=40, lr=1e-2)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Publication:
    """The network of :data:`LEARNT`."""
    return fit_scenes(tmp_path_factory.mktemp("learnt"), stages.fit(LEARNT), "target edges", scribbled())


def test_it_learns_masks_and_boundaries_from_strokes_and_edges(learnt: Publication) -> None:
    lines = [line for line in metrics(learnt) if "loss" in line]
    assert {"semantic", "boundary", "edge", "labelled", "lr"} <= set(lines[0])
    assert lines[-1]["semantic"] < 0.4 * lines[0]["semantic"] and 0.01 < lines[-1]["labelled"] < 0.2
    assert [line for line in metrics(learnt) if "val_miou" in line][-1]["val_miou"] > 0.5
    found = predict_items([item(0, learnt.weights)], stages.predict(LEARNT).params)[0]  # type: ignore[arg-type]
    truth_hw = painted(0)[1]
    assert (found["mask_hw"] == truth_hw).mean() > 0.8 and found["boundary_hw"].dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({}, {"prn", "brn"}),
        ({"brn": "off"}, {"prn"}),
        ({"prn": False}, {"brn"}),
        ({"prn": False, "brn": "off"}, set()),
        ({"brn": "all", "prn_grouped": True, "low_shared": True}, {"prn", "brn"}),
    ],
)
def test_each_switch_is_in_the_network(change: dict[str, Any], parts: set[str]) -> None:
    chosen = dataclasses.replace(PARTS, **change)
    network = build_network(stages.predict(dataclasses.replace(SMALL, parts=chosen)).params, 3)
    assert set(network.added) == parts
    if "prn" in parts:
        prn: Any = network.added["prn"]
        assert (prn.grouped, prn.low_maps) == (chosen.prn_grouped, 1 if chosen.low_shared else 3)
        assert [c.out_channels for c in convolutions(prn.low)] == [4, 4, 4, 4, 3 * prn.low_maps]
        assert [len([*convolutions(step)]) for step in prn.steps] == [PARTS.prn_depth] * 3
    if "brn" in parts:
        layers = [*convolutions(network.added["brn"])]
        assert [c.in_channels for c in layers] == [2 if chosen.brn == "two" else 3, PARTS.brn_width]


def test_lambda_and_the_parts_change_what_is_learnt(fit: Fit) -> None:
    brief = dataclasses.replace(SMALL, iterations=1, crop=16)
    without = dataclasses.replace(PARTS, prn=False, brn="off")
    changes: list[dict[str, Any]] = [{}, {"boundary_weight": 0.0}, {"parts": without}]
    made = [load_file(fit(dataclasses.replace(brief, **one), name=str(i)).weights) for i, one in enumerate(changes)]
    heads = [tensors["head.branches.0.weight"] for tensors in made]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert {name for name in made[2] if name.startswith("added.")} == set()


# What the trained network gives


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    network = build_network(stages.predict(SMALL).params, 3)
    for convolution in convolutions(network):
        torch.nn.init.kaiming_normal_(convolution.weight)
    save_file(network.state_dict(), path)
    return path


@pytest.mark.parametrize("crf", [None, "rrm-test"])
def test_masks_are_of_the_scribbled_classes_and_predictions_of_all(net: Path, crf: Any) -> None:
    params = dataclasses.replace(SMALL, test=TestTimeParams(scales=(0.75, 1.0), flip=True))
    dense = CRF_PRESETS[crf] if crf else None
    predict, masks = stages.predict(params, crf=dense), stages.masks(params, crf=dense)
    assert predict.outputs == ("mask_hw", *(("mask_crf_hw",) if crf else ()), "boundary_hw")
    assert predict.reads == masks.reads == ("image",) and predict.heat == ("boundary_hw",)
    whole = call(predict, [item(0, net)])[0]
    assert len(np.unique(whole["mask_hw"])) > 1 and len(np.unique(whole["boundary_hw"])) > 2
    for known in ((0, 1), (2,), (0,), (0, 1, 2)):
        found = call(masks, [item(0, net, known)])[0]
        assert set(np.unique(found["mask_hw"])) <= {0, *known}
        assert np.array_equal(found["boundary_hw"], whole["boundary_hw"])
    assert np.array_equal(found["mask_hw"], whole["mask_crf_hw" if crf else "mask_hw"]), "all classes are known there"
    kept = stages.masks(params, crf=dense, confidence=True)
    assert kept.outputs == (*masks.outputs, "label_prob_hw")
    also = call(kept, [item(0, net, (0, 1, 2))])[0]
    assert np.array_equal(also["mask_hw"], found["mask_hw"]) and also["label_prob_hw"].min() >= 85


def test_the_boundary_is_the_networks_own_averaged_like_the_classes(net: Path) -> None:
    params = dataclasses.replace(SMALL, test=TestTimeParams(scales=(1.0,), flip=True))
    found = predict_items([item(1, net)], stages.predict(params).params)[0]["boundary_hw"]  # type: ignore[arg-type]
    network = build_network(stages.predict(params).params, 3)
    network.load_state_dict(load_file(net))
    image = torch.from_numpy(painted(1)[0].transpose(2, 0, 1).copy()).float()[None]
    with torch.no_grad():
        both = [network.eval()(one).boundary_nhw.sigmoid() for one in (image, image.flip(3))]
    expected = 255 * (both[0] + both[1].flip(2))[0] / 2
    assert np.abs(found - expected.numpy()).max() <= 0.51


def test_fused_by_the_maximum_the_boundary_is_still_a_probability(net: Path) -> None:
    one = dataclasses.replace(SMALL, test=TestTimeParams(fusion="max"))
    mean = dataclasses.replace(SMALL, test=TestTimeParams())
    found = [predict_items([item(0, net)], stages.predict(p).params)[0] for p in (one, mean)]  # type: ignore[arg-type]
    assert np.array_equal(found[0]["mask_hw"], found[1]["mask_hw"])
    assert np.abs(found[0]["boundary_hw"].astype(int) - found[1]["boundary_hw"]).max() <= 1


def test_without_brn_there_is_no_boundary(tmp_path: Path) -> None:
    params = dataclasses.replace(SMALL, parts=dataclasses.replace(PARTS, brn="off"))
    stage = stages.predict(params)
    assert stage.outputs == ("mask_hw",) and stage.heat == ()
    save_file(
        networks.build("tiny", 3, width=8, refinement=None, regression=None).state_dict(), tmp_path / "n.safetensors"
    )
    bare = stages.predict(dataclasses.replace(params, parts=PartsParams(prn=False, brn="off")))
    assert set(call(bare, [item(0, tmp_path / "n.safetensors")])[0]) == {"mask_hw"}


def test_several_images_at_once_are_as_each_alone(net: Path) -> None:
    params: Any = stages.masks(SMALL).params
    items = [item(seed, net, (0, 1, 2)) for seed in range(3)]
    for together, one in zip(masks_items(items, params), items, strict=True):
        alone = masks_items([one], params)[0]
        assert (together["mask_hw"] == alone["mask_hw"]).mean() > 0.999
        assert np.abs(together["boundary_hw"].astype(int) - alone["boundary_hw"]).max() <= 1


# Params and addresses


def test_the_papers_preset() -> None:
    voc = stages.PRESETS["voc-bpg"]
    assert (voc.network, voc.output_stride, voc.crop, voc.batch, voc.epochs) == ("resnet101", 8, 321, 10, 25)
    assert (voc.lr, voc.momentum, voc.weight_decay, voc.optimizer) == (2.5e-4, 0.9, 5e-4, "sgd")
    assert (voc.boundary_weight, voc.scale_range, voc.parts.prn, voc.parts.brn) == (1.0, (1.0, 1.0), True, "two")
    assert voc.test == TestTimeParams(scales=(0.5, 0.75, 1.0, 1.25), flip=True)


OFF = dataclasses.replace(SMALL, parts=dataclasses.replace(PARTS, prn=False, brn="off"))


@pytest.mark.parametrize(
    ("params", "change", "same"),
    [
        (SMALL, {"test": TestTimeParams(scales=(2.0,))}, True),
        (SMALL, {"monitor_every": 7}, True),
        (SMALL, {"boundary_weight": 2.0}, False),
        (SMALL, {"parts": dataclasses.replace(PARTS, brn="all")}, False),
        (SMALL, {"parts": dataclasses.replace(PARTS, low_shared=True)}, False),
        (OFF, {"boundary_weight": 2.0}, True),
        (OFF, {"parts": PartsParams(prn=False, brn="off")}, True),
    ],
)
def test_what_makes_a_fit_another_one(params: BPGParams, change: dict[str, Any], same: bool) -> None:
    found = {stage_address(stages.fit(p), ("a",), {}) for p in (params, dataclasses.replace(params, **change))}
    assert (len(found) == 1) is same


@pytest.mark.parametrize(("pixels", "least"), [(0, 1e-6), (1, 1e-5), (200, 1e-3)])
def test_no_batch_counts_for_less_than_a_tenth_of_what_is_scribbled_on_average(pixels: int, least: float) -> None:
    labels = torch.full((100, 100), 255, dtype=torch.uint8)
    labels.view(-1)[:pixels] = 1
    assert least_share([{"labels": labels, "inside": torch.ones(100, 100, dtype=torch.bool)}] * 3) == least


def test_golden(learnt: Publication) -> None:
    """Golden: if these change, every cached fit is stale, and the stage needs a new version."""
    assert (stages.fit(SMALL).version, stages.predict(SMALL).version, stages.masks(SMALL).version) == (4, 2, 2)
    losses = [line for line in metrics(learnt) if "loss" in line]
    found = [losses[0][name] for name in ("semantic", "boundary", "edge", "labelled")]
    assert found == pytest.approx([0.34781, 0.083203, 0.0049288, 0.066428], rel=0.01)
