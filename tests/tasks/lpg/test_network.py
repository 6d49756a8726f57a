"""LPG's generator at work: what a sample holds, that it learns to cut objects out, and what is made of an image."""

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
from artifacts.objects import unpack_objects
from artifacts.records import Box, DataError, Record
from models import hourglass
from tasks.lpg import network, stages
from tasks.lpg.merge import box_map
from tasks.lpg.stages import DEMO, GenerateParams, GeneratorNet, GeneratorParams
from tasks.stage import Item, call, stage_address

SMALL = dataclasses.replace(DEMO, width=4, crop=48, batch=4, iterations=3, scale_range=(1.0, 1.0), colour_jitter=0.0)
Fit = Callable[..., Publication]


def painted(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[Box, ...]]:
    """A 48 x 56 picture with a disc (1) and a bar (2), its label map, and their boxes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((48, 56), np.uint8)
    x, y = int(rng.integers(12, 20)), int(rng.integers(14, 32))
    cv2.circle(mask, (x, y), 9, 1, -1)
    cv2.rectangle(mask, (32, 10), (50, 20), 2, -1)
    colours = np.array([[120, 120, 120], *rng.integers(0, 255, (2, 3))])
    image = np.clip(colours[mask] + rng.normal(0, 8, (48, 56, 3)), 0, 255).astype(np.uint8)
    boxes = (Box(0, 1, x - 9.0, y - 9.0, x + 10.0, y + 10.0), Box(1, 2, 32.0, 10.0, 51.0, 21.0))
    return image, mask, boxes


def probs(classes: tuple[int, ...] = (0, 1, 2)) -> dict[str, np.ndarray]:
    maps = np.stack([np.full((6, 7), (1 + one) / 10, np.float16) for one in classes])
    return {"probs_chw": maps, "classes_c": np.array(classes, np.uint8)}


def scenes(count: int = 3) -> list[Scene]:
    found = []
    for seed in range(count):
        image, mask, boxes = painted(seed)
        found.append(Scene(image, {"mask_hw": mask, **probs()}, boxes=boxes))
    return found


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """``fit(params, ...)``: what the scenes store is both roles, ``target`` and ``probs``."""
    item = network.FitData.item
    monkeypatch.setattr(
        network.FitData,
        "item",
        lambda data, index: dataclasses.replace(
            (found := item(data, index)), up={"target": found.up["target"], "probs": found.up["target"]}
        ),
    )

    def run(params: GeneratorParams, given: list[Scene] | None = None, **fields: Any) -> Publication:
        return fit_scenes(tmp_path, stages.fit(params), "target", given or scenes(), **fields)

    return run


def item_of(seed: int = 0, net: str = "", **fields: Any) -> Item:
    image, mask, boxes = painted(seed)
    up = {"target": {"mask_hw": mask}, "probs": probs()}
    record = Record("one", "one.png", boxes=boxes)
    return dataclasses.replace(Item("set/one", record, CLASSES, image, up, {"net": net} if net else {}), **fields)


# The fit


def test_a_sample_is_one_class_of_an_image_with_its_boxes_and_its_stored_probability() -> None:
    item = item_of()
    for class_id, prob in ((1, 0.2), (2, 0.3)):
        labels, prob_hw = network.class_sample(item, class_id, difficult=True)
        assert np.array_equal(labels["target"] == 1, item.up["target"]["mask_hw"] == class_id)
        assert labels["target"].max() == 1 and labels["box"].sum() == (19 * 19 if class_id == 1 else 19 * 11)
        assert (labels["box"] >= labels["target"]).all()
        assert prob_hw.shape == (48, 56) and np.allclose(prob_hw, prob, atol=1e-3)


def test_what_a_sample_lacks_is_named() -> None:
    lacking = dataclasses.replace(item_of(), up={**item_of().up, "probs": probs((0, 1))})
    with pytest.raises(DataError, match=r"set/one: no probabilities of bar; .* \(keep=boxes\)"):
        network.class_sample(lacking, 2, difficult=True)
    other = {"mask_hw": np.zeros((5, 6), np.uint8)}
    with pytest.raises(DataError, match=r"set/one: label map is \(5, 6\)"):
        network.class_sample(dataclasses.replace(item_of(), up={"target": other, "probs": probs()}), 1, difficult=True)


def test_samples_lie_on_each_other_and_padding_is_in_no_loss(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    sampler = network.sampler
    monkeypatch.setattr(
        network,
        "sampler",
        lambda *given: lambda *where: seen.append(made := sampler(*given)(*where)) or made,  # type: ignore[func-returns-value]
    )
    fit(dataclasses.replace(SMALL, crop=64, batch=6, iterations=1))
    assert len(seen) == 6, "three images of two classes are six samples an epoch"
    for sample in seen:
        outside = sample["target"] == 255
        assert outside.sum() == 64 * 64 - 48 * 56
        assert not sample["box"][outside].any() and not sample["prob"][outside].any()
        assert sample["box"].sum() in (19 * 19, 19 * 11) and (sample["box"] >= (sample["target"] == 1)).all()
    areas = [int(sample["box"].sum()) for sample in seen]
    assert sorted(areas) == [209] * 3 + [361] * 3


def test_it_learns_to_cut_objects_out_of_boxes_also_of_a_class_that_it_never_saw(fit: Fit, tmp_path: Path) -> None:
    discs = [
        dataclasses.replace(scene, boxes=(scene.boxes or ())[:1], stored={**scene.stored, **probs((0, 1))})
        for scene in scenes(8)
    ]
    (disc, _) = painted(7)[2]
    publication = fit(dataclasses.replace(SMALL, iterations=40, lr=1e-2), discs)
    losses = [line["loss"] for line in metrics(publication) if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    # Another disc, in a box of the class that has no sample.
    other = item_of(
        7, str(publication.weights), record=Record("one", "", boxes=(dataclasses.replace(disc, class_id=2),))
    )
    stage = stages.generate(GeneratorNet("hourglass-small", 4))
    found = call(stage, [other])[0]["mask_hw"] == 2
    truth, filled = painted(7)[1] == 1, box_map([disc], (48, 56))
    iou, of_box = ((truth & one).sum() / (truth | one).sum() for one in (found, filled))
    assert iou > of_box + 0.05


def test_resumed_in_the_middle_it_gives_the_same_weights(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(SMALL, name="whole")
    calls = []

    def die(context: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(network.FitContext, "check_stop", die)
        with pytest.raises(InterruptedError):
            fit(SMALL, name="cut", checkpoint_every_s=0.0)
    assert fit(SMALL, name="cut", checkpoint_every_s=0.0).weights.read_bytes() == whole.weights.read_bytes()


def test_a_generator_before_it_is_a_start(fit: Fit, tmp_path: Path) -> None:
    torch.manual_seed(9)
    start = hourglass.build("hourglass-small", width=4)
    save_file(start.state_dict(), tmp_path / "before.safetensors")
    slow = dataclasses.replace(SMALL, lr=1e-8, iterations=1)
    made = load_file(fit(slow, init=str(tmp_path / "before.safetensors")).weights)
    for name, tensor in start.named_parameters():
        torch.testing.assert_close(made[name], tensor.data, rtol=0, atol=1e-6)


def test_without_any_box_there_is_nothing_to_learn(fit: Fit) -> None:
    bare = [dataclasses.replace(scene, boxes=()) for scene in scenes()]
    with pytest.raises(DataError, match="none of 3 auxiliary images has a box to learn from"):
        fit(SMALL, bare)


# One image


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    state = hourglass.build("hourglass-small", width=4).state_dict()
    state["head.2.bias"][1] += 4  # or it would find nothing in the boxes
    save_file(state, path)
    return str(path)


def generated(item: Item, **given: Any) -> dict[str, np.ndarray]:
    stage = stages.generate(GeneratorNet("hourglass-small", 4), GenerateParams(**given))
    return call(stage, [item])[0]


def test_nothing_lies_outside_the_boxes_of_a_class_and_objects_are_what_is_in_theirs(net: str) -> None:
    found = generated(item_of(2, net))
    mask = found["mask_hw"]
    assert mask.shape == (48, 56) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1, 2}
    boxes = item_of(2).record.boxes or ()
    for one, box in zip(unpack_objects(found), boxes, strict=True):
        x0, y0, x1, y1 = (int(edge) for edge in box.xyxy)
        merged = mask[y0:y1, x0:x1] == box.class_id
        assert one.window_xyxy == (x0, y0, x1, y1) and (one.mask_hw >= merged).all()
        mask[y0:y1, x0:x1][merged] = 0
    assert not mask.any()


def test_an_object_is_what_was_found_before_another_class_took_its_pixels(net: str) -> None:
    """As all stages' objects: the label map has one class at a pixel, an exported instance keeps what is its own."""
    boxes = tuple(Box(place, number, 10.0, 10.0, 40.0, 40.0) for place, number in enumerate((1, 2)))
    both, *alone = (
        generated(item_of(1, net, record=Record("one", "", boxes=some))) for some in (boxes, boxes[:1], boxes[1:])
    )
    for one, (single,) in zip(unpack_objects(both), map(unpack_objects, alone), strict=True):
        assert np.array_equal(one.mask_hw, single.mask_hw) and one.mask_hw.any()
    first, second = (one.mask_hw for one in unpack_objects(both))
    assert (first & second).any(), "a scene in which no class takes pixels of the other shows nothing"


def test_each_class_is_given_its_own_boxes(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    probability = network._probability

    def watched(net: Any, images: torch.Tensor, boxes: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        seen.extend(boxes[:, :48, :56].numpy() > 0)
        return probability(net, images, boxes, probs)

    monkeypatch.setattr(network, "_probability", watched)
    generated(item_of(1, net))
    boxes = item_of(1).record.boxes or ()
    assert [np.array_equal(one, box_map([box], (48, 56))) for one, box in zip(seen, boxes, strict=True)] == [True] * 2


def test_a_file_of_other_generators_is_told_from_the_right_one(tmp_path: Path) -> None:
    small = hourglass.build("hourglass-small", width=4).state_dict()
    path = tmp_path / "two.safetensors"
    save_file({f"generator{one}.{name}": tensor.clone() for one in (1, 2) for name, tensor in small.items()}, path)
    network.check_generators(path, GeneratorNet("hourglass-small", 4), 2)
    for net, rounds in ((("hourglass-small", 4), 3), (("hourglass-small", 4), 1), (("hourglass-small", 8), 2)):
        with pytest.raises(ValueError, match=f"tensors are not those of {rounds} networks hourglass-small of width"):
            network.check_generators(path, GeneratorNet(*net), rounds)
    with pytest.raises(ValueError, match="timm has no such model"):
        network.check_generators(path, GeneratorNet("timm:nosuchmodel", 16), 2)
    for width in (-3, 3, 1000):
        with pytest.raises(ValueError, match="generator.width must be 4..256"):
            GeneratorNet("hourglass-small", width)


def test_each_input_matters_and_so_do_the_switches(net: str) -> None:
    stage = stages.generate(GeneratorNet("hourglass-small", 4))

    def probability(item: Item, **given: Any) -> np.ndarray:
        params = dataclasses.replace(stage.params, **given)
        inside = [np.ones((48, 56), np.bool_), np.zeros((48, 56), np.bool_)]
        return np.stack(network.foregrounds(item, [1, 2], inside, params))

    item = item_of(2, net)
    base = probability(item)
    assert base.shape == (2, 48, 56) and base.dtype == np.float32 and (base > 0).all() and (base < 1).all()
    darker = dataclasses.replace(item, image_rgb=np.zeros((48, 56, 3), np.uint8))
    surer = dataclasses.replace(item, up={"probs": {**probs(), "probs_chw": np.ones((3, 6, 7), np.float16)}})
    for other in (probability(darker), probability(surer), probability(item, flip=True), probability(item, longest=28)):
        assert not np.allclose(other, base, atol=1e-3)
    assert np.allclose(probability(item, predict_batch=1), base, atol=1e-5)
    assert np.array_equal(probability(item, longest=56), base)
    mirrored = dataclasses.replace(item, image_rgb=np.ascontiguousarray(item.image_rgb[:, ::-1]))  # type: ignore[index]
    assert np.allclose(probability(mirrored, flip=True)[:, :, ::-1], probability(item, flip=True), atol=1e-4)


def test_images_without_boxes_and_tiny_ones_have_masks_too(net: str) -> None:
    bare = item_of(0, net, record=Record("one", "", boxes=()))
    assert not generated(bare)["mask_hw"].any() and len(generated(bare)["object_ids_n"]) == 0
    speck = Record("one", "", boxes=(Box(0, 1, 0.0, 0.0, 3.0, 2.0),))
    small = item_of(0, net, record=speck, image_rgb=np.full((2, 3, 3), 90, np.uint8))
    assert generated(small)["mask_hw"].shape == (2, 3)


# Params


def test_the_papers_values_are_the_defaults() -> None:
    paper = stages.PRESETS["voc"]
    assert (paper.network, paper.optimizer, paper.lr, paper.betas) == ("hourglass", "adam", 1e-4, (0.9, 0.999))
    assert (paper.iterations, paper.batch, paper.poly_power, paper.weight_decay) == (100_000, 32, 0.9, 0.0)
    assert (paper.crop, paper.scale_range, paper.flip) == (512, (0.5, 1.5), True)


@pytest.mark.parametrize(
    ("change", "same"),
    [({"momentum": 0.5}, True), ({"epochs": 7}, True), ({"crop": 64}, False), ({"network": "tiny"}, False)],
)
def test_what_makes_a_fit_another_one(change: dict[str, Any], same: bool) -> None:
    found = {stage_address(stages.fit(p), ("a",), {}) for p in (SMALL, dataclasses.replace(SMALL, **change))}
    assert (len(found) == 1) is same


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="network 'vgg' is unknown"):
        GeneratorParams(network="vgg")
    with pytest.raises(ValueError, match="there are none for it"):
        GeneratorParams(weights="imagenet")
    with pytest.raises(ValueError, match="must be low <= high"):
        GeneratorParams(scale_range=(1.5, 0.5))
    alone = dataclasses.replace(SMALL, batch=2, crop=32)
    assert "batch norm would see a map of 1 x 1" in alone.refusal(2, "generator")
    assert not alone.refusal(1, "generator") and not dataclasses.replace(alone, crop=33).refusal(2, "generator")


def test_golden(fit: Fit) -> None:
    """Golden: if these change, every cached fit is stale, and the stage needs a new version."""
    assert (stages.fit(DEMO).version, stages.generate(stages.net_of(DEMO)).version) == (3, 3)
    losses = [line["loss"] for line in metrics(fit(dataclasses.replace(SMALL, iterations=5))) if "loss" in line]
    assert losses[-1] == pytest.approx(0.5769, rel=0.01)


def test_golden_masks(net: str) -> None:
    """Golden, as :func:`test_golden`: of the masks. Pixels of each class, objects before the merge."""
    found = generated(item_of(2, net))
    pixels = [
        *np.bincount(found["mask_hw"].ravel(), minlength=3),
        *(one.mask_hw.sum() for one in unpack_objects(found)),
    ]
    assert pixels == pytest.approx([2323, 336, 29, 336, 29], abs=12)
