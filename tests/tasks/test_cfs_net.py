"""CFS at work: what a sample holds, that a fit learns objects from noisy masks, and that every box is answered."""

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
from safetensors.torch import load_file, save_file

from artifacts.fits import METRICS, Publication
from artifacts.objects import pack_objects, unpack_objects
from artifacts.records import Box, DataError, Record
from artifacts.store import MaskStore
from models import unet
from tasks import cfs, cfs_net, grabcut
from tasks.cfs import DEMO, CFSParams
from tasks.cfs_crop import BoxCrop
from tasks.fit import FitSpec, plain_params, run_spec
from tasks.grabcut import GrabCutParams
from tasks.rng import generator
from tasks.stage import Item, SkipImage, check_outputs, resolve
from tasks.unit import Job
from tasks.weights import WeightsError

SMALL = dataclasses.replace(DEMO, width=4, crop=16, batch=4, iterations=2, test_flip=False)
CLASSES = ("disc", "bar")
WHERE = (20, 14, 56, 50)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A 64 x 72 picture with one object in :data:`WHERE`, a red disc or a green bar: (image, object)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 72), np.uint8)
    if seed % 2:
        cv2.circle(mask, (38, 32), 17, 1, -1)
    else:
        cv2.rectangle(mask, (20, 26), (55, 38), 2, -1)
    colours = np.array([[120, 120, 120], [200, 70, 60], [60, 190, 90]])
    return np.clip(colours[mask] + rng.normal(0, 12, (64, 72, 3)), 0, 255).astype(np.uint8), mask > 0


def box_of(seed: int, **fields: Any) -> Box:
    return dataclasses.replace(Box(7, 1 + (seed + 1) % 2, *map(float, WHERE)), **fields)


def coarse(boxes: list[Box], mask: np.ndarray) -> dict[str, Any]:
    """Packed masks of boxes that lie in the image: what a coarse stage found."""
    windows = [tuple(int(v) for v in box.xyxy) for box in boxes]
    return pack_objects([box.id for box in boxes], windows, [mask[y0:y1, x0:x1] for x0, y0, x1, y1 in windows])


def item_of(image: np.ndarray, boxes: list[Box], mask: np.ndarray | None = None, **nets: str) -> Item:
    up = {} if mask is None else {"coarse": coarse(boxes, mask)}
    return Item("set/one", Record("one", "one.png", boxes=tuple(boxes)), CLASSES, image, up, nets)


class TestSample:
    def test_image_box_and_target_lie_on_each_other(self) -> None:
        image, mask = scene(1)
        params = dataclasses.replace(SMALL, crop=54, margin_jitter=0.0)  # a pixel is a pixel
        seen, box, target = cfs_net.object_sample(item_of(image, [box_of(1)], mask), box_of(1), params, generator(0))
        assert (seen == image[5:59, 11:65]).all() and (target == mask[5:59, 11:65]).all()
        assert box[9:45, 9:45].all() and box.sum() == 36 * 36

    def test_a_neighbour_is_background_and_a_window_of_another_size_is_brought_into_the_box(self) -> None:
        image, mask = scene(1)
        everything = np.ones_like(mask)
        found = pack_objects([7, 8], [(0, 0, 72, 64), WHERE], [mask, everything[14:50, 20:56]])
        item = dataclasses.replace(item_of(image, [box_of(1)]), up={"coarse": found})
        params = dataclasses.replace(SMALL, crop=54, margin_jitter=0.0)
        assert (cfs_net.object_sample(item, box_of(1), params, generator(0))[2] == mask[5:59, 11:65]).all()

    def test_probabilities_are_masks_above_one_half(self) -> None:
        image, mask = scene(1)
        found = pack_objects([7], [WHERE], [np.where(mask[14:50, 20:56], 0.51, 0.5).astype(np.float16)])
        item = dataclasses.replace(item_of(image, [box_of(1)]), up={"coarse": found})
        params = dataclasses.replace(SMALL, crop=54, margin_jitter=0.0)
        assert (cfs_net.object_sample(item, box_of(1), params, generator(0))[2] == mask[5:59, 11:65]).all()

    def test_a_mask_that_is_missing_is_an_error_and_a_box_outside_a_skip(self) -> None:
        image, mask = scene(1)
        with pytest.raises(DataError, match=r"set/one: no coarse mask of object 9;.*difficult= alike"):
            cfs_net.object_sample(item_of(image, [box_of(1)], mask), box_of(1, id=9), SMALL, generator(0))
        with pytest.raises(SkipImage, match="box 7 lies outside the image"):
            outside = box_of(1, x0=100.0, x1=200.0)
            cfs_net.object_sample(item_of(image, [box_of(1)], mask), outside, SMALL, generator(0))

    def test_draws_depend_on_seed_epoch_image_and_object_alone(self) -> None:
        image, mask = scene(1)
        boxes = [box_of(1), box_of(1, id=8)]

        class Data(cfs_net.ObjectData):
            def __init__(self) -> None:
                self.boxes = boxes

            def item(self, index: int) -> Item:
                return item_of(image, boxes, mask)

        params = dataclasses.replace(SMALL, colour_jitter=0.3, margin_jitter=0.5)
        sample = cfs_net.sampler(Data(), params)

        def draw(index: int, epoch: int) -> dict[str, Any]:
            return dict(sample(index, epoch, generator(0, epoch, "set/one")))

        first, again, other, later = draw(0, 0), draw(0, 0), draw(1, 0), draw(0, 1)
        assert all(torch.equal(first[name], again[name]) for name in ("image", "box", "target"))
        assert first["class"] == 1
        assert not torch.equal(first["image"], other["image"]) and not torch.equal(first["image"], later["image"])
        assert first["image"].shape == (3, 16, 16)
        for one in (first, other, later):
            assert one["image"].dtype == one["box"].dtype == one["target"].dtype == torch.uint8
            assert set(one["target"].unique().tolist()) == {0, 1} == set(one["box"].unique().tolist())
            assert not one["target"][one["box"] == 0].any()

    def test_image_and_masks_are_mirrored_together(self) -> None:
        image, mask = np.zeros((64, 72, 3), np.uint8), np.zeros((64, 72), bool)
        mask[14:50, 20:30] = True  # only the left of the box
        image[mask] = 255
        item = item_of(image, [box_of(1)], mask)

        class Data(cfs_net.ObjectData):
            def __init__(self) -> None:
                self.boxes = [box_of(1)]

            def item(self, index: int) -> Item:
                return item

        sample = cfs_net.sampler(Data(), dataclasses.replace(SMALL, crop=54, colour_jitter=0.0, margin_jitter=0.0))
        lefts = set()
        for epoch in range(12):
            one = sample(0, epoch, generator(epoch))
            assert torch.equal(one["image"][0] == 255, one["target"] == 1)
            lefts.add(bool(one["target"][:, :27].any()))
        assert lefts == {True, False}


Fit = Callable[..., Publication]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(params, boxes=..., masks=...)`` fits four scenes whose coarse objects lie in a store."""

    def run(
        params: CFSParams,
        *,
        boxes: Callable[[int], list[Box]] = lambda seed: [box_of(seed)],
        masks: Callable[[int, np.ndarray], np.ndarray] = lambda seed, mask: mask,
        covered: Callable[[Box], bool] = lambda box: not box.crowd,
        name: str = "a",
        **fields: Any,
    ) -> Publication:
        store = MaskStore(tmp_path / name)
        jobs = []
        for i in range(4):
            image, mask = scene(i)
            cv2.imwrite(str(tmp_path / f"{i}.png"), image[..., ::-1])
            found = coarse([b for b in boxes(i) if covered(b)], masks(i, mask))
            store.write_segment("coarse-0", [(f"d/{i}", f"s{i}", found)], meta={})
            record = Record(str(i), str(tmp_path / f"{i}.png"), boxes=tuple(boxes(i)))
            jobs.append(Job(f"d/{i}", f"s{i}", record, {"coarse": ("coarse-0", f"s{i}")}))
        stage = cfs.fit(params)
        params_type, plain = plain_params(stage.params)
        spec = FitSpec(
            cache=str(tmp_path / name),
            label="cfs",
            address="cfs-0",
            stamp="0",
            function=stage.function,
            params_type=params_type,
            params=plain,
            train=tuple(jobs),
            classes=CLASSES,
            reads=stage.reads,
            seed=stage.seed,
            inputs={role: str(path) for role, path in stage.inputs.items()},
            device="cpu",
            **fields,
        )
        events: list[dict[str, Any]] = []
        publication = run_spec(spec, events.append)
        publication.info["events"] = events  # type: ignore[index]
        return publication

    return run


def lines(publication: Publication) -> list[dict[str, float]]:
    text = (publication.weights.parent / METRICS).read_text()
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def losses(publication: Publication) -> list[float]:
    return [line["loss"] for line in lines(publication)]


def same(one: Publication, other: Publication) -> bool:
    a, b = load_file(one.weights), load_file(other.weights)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


class TestFit:
    def test_objects_are_learnt_from_masks_with_holes_and_spots_and_found_precisely(self, fit: Fit) -> None:
        def noisy(seed: int, mask: np.ndarray) -> np.ndarray:
            """Squares of the mask are wrong: other ones in every picture."""
            wrong = np.random.default_rng(100 + seed).random((16, 18)) < 0.2
            return mask ^ wrong.repeat(4, 0).repeat(4, 1)

        params = dataclasses.replace(SMALL, width=8, crop=32, batch=8, iterations=60, margin_jitter=0.2, lr=1e-2)
        publication = fit(params, masks=noisy)
        assert losses(publication)[-1] < 0.6 * losses(publication)[0]
        stage = cfs.predict(params)
        for i in range(4):
            image, mask = scene(i)
            item = item_of(image, [box_of(i)], net=str(publication.weights))
            found = check_outputs(stage, resolve(stage.function)(item, stage.params))["mask_hw"]
            taught, inside = noisy(i, mask)[14:50, 20:56], (slice(14, 50), slice(20, 56))
            learnt = (found[inside] > 0) == mask[inside]
            assert learnt.mean() > (taught == mask[inside]).mean() + 0.05
            assert set(np.unique(found)) == {0, box_of(i).class_id}

    def test_small_boxes_and_crowds_teach_nothing(self, fit: Fit) -> None:
        def with_others(seed: int) -> list[Box]:
            return [Box(1, 1, 0, 0, 9, 30), box_of(seed), Box(2, 1, 0, 0, 40, 40, crowd=True)]

        assert same(fit(SMALL, name="a"), fit(SMALL, boxes=with_others, name="b"))
        small_ones = dataclasses.replace(SMALL, min_side=9.0)
        assert not same(fit(small_ones, name="c"), fit(small_ones, boxes=with_others, name="d"))

    def test_an_image_without_a_usable_box_contributes_nothing(self, fit: Fit) -> None:
        only = fit(SMALL, boxes=lambda seed: [box_of(seed)] if seed == 2 else [])
        assert only.info["skips"] == [] and losses(only)

    def test_no_usable_box_at_all_says_what_to_change(self, fit: Fit) -> None:
        with pytest.raises(DataError, match=r"none of 4 training images has a box.*50 px.*params\.cfs\.min_side"):
            fit(dataclasses.replace(SMALL, min_side=50.0))

    def test_a_class_that_occurs_once_is_learnt_like_the_others(self, fit: Fit) -> None:
        publication = fit(SMALL, boxes=lambda seed: [box_of(seed, class_id=1 + (seed == 3))])
        weights = load_file(publication.weights)
        assert bool(weights["prior.classes"][:, 1].any()) and publication.info["skips"] == []

    def test_a_box_that_the_coarse_stage_left_out_is_a_named_skip(self, fit: Fit) -> None:
        publication = fit(
            SMALL, boxes=lambda seed: [box_of(seed, difficult=seed == 1)], covered=lambda b: not b.difficult
        )
        skips = [(key, reason) for key, _, reason, _ in publication.info["skips"]]
        assert len(skips) == 1 and skips[0][0] == "d/1" and "no coarse mask of object 7" in skips[0][1]

    def test_epochs_become_iterations(self, fit: Fit) -> None:
        publication = fit(dataclasses.replace(SMALL, iterations=0, epochs=3, batch=2))
        assert lines(publication)[-1]["step"] == 6  # 4 objects, 2 at a time, 3 times

    def test_loader_workers_change_no_weight_and_the_seed_changes_all(self, fit: Fit) -> None:
        alone = fit(SMALL, name="a")
        assert same(alone, fit(SMALL, name="b", loader_workers=2))
        assert not same(alone, fit(dataclasses.replace(SMALL, seed=1), name="c"))

    @pytest.mark.parametrize("change", [{"class_channel": False}, {"deep_refeed": False}, {"optimizer": "sgd"}])
    def test_switches_give_a_network_that_predicts(self, fit: Fit, change: dict[str, Any]) -> None:
        params = dataclasses.replace(SMALL, **change)
        publication = fit(params)
        item = item_of(scene(1)[0], [box_of(1)], net=str(publication.weights))
        assert cfs.predict_item(item, cfs.predict(params).params)["objects_flat"].dtype == np.float16
        if "optimizer" not in change:
            with pytest.raises(WeightsError, match="does not fit this network"):
                cfs.predict_item(item, cfs.predict(SMALL).params)

    def test_weights_file_and_init_are_what_a_fit_starts_from(self, fit: Fit, tmp_path: Path) -> None:
        torch.manual_seed(9)
        start = unet.build("tiny", 2, width=4)
        save_file(start.state_dict(), tmp_path / "start.safetensors")
        slow = dataclasses.replace(SMALL, lr=1e-8, iterations=1, weights=str(tmp_path / "start.safetensors"))
        from_file = load_file(fit(slow, name="a").weights)
        from_init = load_file(
            fit(dataclasses.replace(slow, weights="none"), name="b", init=str(tmp_path / "start.safetensors")).weights
        )
        for name, tensor in start.named_parameters():
            torch.testing.assert_close(from_file[name], tensor.data, rtol=0, atol=1e-6)
            torch.testing.assert_close(from_init[name], tensor.data, rtol=0, atol=1e-6)

    def test_golden_fit(self, fit: Fit) -> None:
        """Golden: if these change, every cached fit is stale, and the stage needs a new version."""
        assert cfs.fit(DEMO).version == 1
        found = losses(fit(dataclasses.replace(SMALL, iterations=40)))
        assert found == pytest.approx(GOLDEN_LOSSES, rel=0.01)


GOLDEN_LOSSES = [0.5437, 0.4060]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with something to say: random weights, its answers spread about one half."""
    torch.manual_seed(3)
    network = unet.build("tiny", 2, width=4)
    crops = [BoxCrop.around(WHERE, 1.5, 16).image(scene(i)[0], cfs_net.FILL_RGB) for i in range(8)]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    boxes, classes = torch.ones(8, 16, 16), torch.ones(8, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(40):  # what its batch norms remember
            network.train()(images, boxes, classes)
        logits = network.eval()(images, boxes, classes)
        network.head.weight *= 2 / logits.std()
        network.head.bias -= network(images, boxes, classes).median(0).values.flatten(1).median(1).values
    file = tmp_path_factory.mktemp("cfs") / "weights.safetensors"
    save_file(network.state_dict(), file)
    return str(file)


def predicted(weights: str, image: np.ndarray, boxes: list[Box], params: CFSParams = SMALL) -> dict[str, Any]:
    stage = cfs.predict(params)
    return check_outputs(stage, resolve(stage.function)(item_of(image, boxes, net=weights), stage.params))


class TestPredict:
    def test_a_probability_is_the_networks_own_in_the_boxs_pixels(self, weights: str) -> None:
        image, _ = scene(1)
        arrays = predicted(weights, image, [box_of(1)])
        network = cfs_net.load_network(weights, cfs.predict(SMALL).params, 2, "cpu")
        crop = BoxCrop.around(WHERE, 1.5, 16)
        picture = torch.from_numpy(crop.image(image, cfs_net.FILL_RGB)).permute(2, 0, 1)[None]
        logits = network(picture, torch.from_numpy(crop.box())[None], torch.tensor([1])).softmax(1)[0, 1].numpy()
        (found,) = unpack_objects(arrays)
        assert (found.id, found.window_xyxy) == (7, WHERE) and arrays["object_classes_n"].tolist() == [1]
        np.testing.assert_allclose(found.values_hw, crop.back(logits), atol=1e-3)
        expected = np.zeros((64, 72), np.uint8)
        expected[14:50, 20:56] = found.values_hw > 0.5
        assert (arrays["mask_hw"] == expected).all() and 0 < expected.sum() < 36 * 36

    def test_the_class_is_told(self, weights: str) -> None:
        state = load_file(weights)
        state["prior.classes"][:, 1] += 3.0
        louder = str(Path(weights).with_name("louder.safetensors"))
        save_file(state, louder)
        image, _ = scene(1)
        for class_id, alike in ((1, True), (2, False)):
            boxes = [box_of(1, class_id=class_id)]
            one, other = (predicted(file, image, boxes)["objects_flat"] for file in (weights, louder))
            assert np.array_equal(one, other) is alike

    @pytest.mark.parametrize(
        "xyxy",
        [
            (0, 0, 1, 64),
            (71, 0, 72, 1),
            (0, 0, 72, 64),
            (-30, -30, 200, 200),
            (10.2, 10.3, 10.4, 10.4),
            (60, 50, 72, 64),
        ],
    )
    def test_every_box_is_answered_in_its_own_pixels(self, weights: str, xyxy: tuple[float, ...]) -> None:
        image, _ = scene(1)
        box = Box(3, 2, *xyxy)
        arrays = predicted(weights, image, [box])
        (found,) = unpack_objects(arrays)
        x0, y0, x1, y1 = found.window_xyxy
        assert 0 <= x0 < x1 <= 72 and 0 <= y0 < y1 <= 64 and found.values_hw.dtype == np.float16
        assert ((found.values_hw >= 0) & (found.values_hw <= 1)).all()
        outside = np.ones((64, 72), bool)
        outside[y0:y1, x0:x1] = False
        assert not arrays["mask_hw"][outside].any()
        refined = grabcut.refine_item(
            dataclasses.replace(item_of(image, [box]), up={"dense": arrays}), GrabCutParams(working_size=48)
        )
        assert refined["object_ids_n"].tolist() == [3]

    def test_no_boxes_a_box_outside_and_unknown_boxes(self, weights: str) -> None:
        image, _ = scene(1)
        none = predicted(weights, image, [])
        assert not none["mask_hw"].any() and none["objects_flat"].dtype == np.float16
        outside = predicted(weights, image, [Box(0, 1, 100, 0, 120, 9), box_of(1)])
        assert [o.values_hw.size for o in unpack_objects(outside)] == [0, 36 * 36]
        with pytest.raises(SkipImage, match="no boxes are known"):
            unknown = Item("k", Record("one", "one.png"), CLASSES, image, nets={"net": weights})
            cfs.predict_item(unknown, cfs.predict(SMALL).params)

    def test_crowds_are_left_out_and_difficult_ones_by_parameter(self, weights: str) -> None:
        image, _ = scene(1)
        boxes = [box_of(1), box_of(1, id=8, crowd=True), box_of(1, id=9, difficult=True)]
        assert predicted(weights, image, boxes)["object_ids_n"].tolist() == [7, 9]
        without = dataclasses.replace(SMALL, difficult=False)
        assert predicted(weights, image, boxes, without)["object_ids_n"].tolist() == [7]

    def test_two_hundred_boxes_in_batches_are_each_what_they_are_alone(self, weights: str) -> None:
        image, _ = scene(1)
        rng = np.random.default_rng(0)
        corners = rng.integers(0, (40, 40), (200, 2)), rng.integers(4, 24, (200, 2))
        boxes = [
            Box(i, 1 + i % 2, *map(float, (*xy, *(xy + wh)))) for i, (xy, wh) in enumerate(zip(*corners, strict=True))
        ]
        arrays = predicted(weights, image, boxes, dataclasses.replace(SMALL, predict_batch=64))
        assert arrays["object_ids_n"].tolist() == list(range(200))
        together = unpack_objects(arrays)
        for i in (0, 63, 64, 199):
            (alone,) = unpack_objects(predicted(weights, image, [boxes[i]]))
            np.testing.assert_allclose(together[i].values_hw, alone.values_hw, atol=1e-3)

    def test_of_two_equal_boxes_the_higher_id_lies_on_top_and_smaller_ones_on_larger(self, weights: str) -> None:
        image, _ = scene(1)
        boxes = [box_of(1, id=0, class_id=1), box_of(1, id=1, class_id=2), Box(2, 1, 30, 20, 50, 40)]
        arrays = predicted(weights, image, boxes)
        first, second, small = (o.values_hw > 0.5 for o in unpack_objects(arrays))
        expected = np.zeros((64, 72), np.uint8)
        expected[14:50, 20:56][first] = 1
        expected[14:50, 20:56][second] = 2
        expected[20:40, 30:50][small] = 1
        assert (arrays["mask_hw"] == expected).all()
        assert (predicted(weights, image, boxes[::-1])["mask_hw"] == expected).all()

    def test_mirrored_crops_are_averaged(self, weights: str) -> None:
        image, _ = scene(1)
        plain = predicted(weights, image, [box_of(1)])["objects_flat"].reshape(36, 36)
        wide = np.ascontiguousarray(image[:, ::-1])
        x0, x1 = WHERE[::2]
        other = predicted(weights, wide, [box_of(1, x0=72.0 - x1, x1=72.0 - x0)])["objects_flat"].reshape(36, 36)
        both = predicted(weights, image, [box_of(1)], dataclasses.replace(SMALL, test_flip=True))
        found = both["objects_flat"].reshape(36, 36)
        np.testing.assert_allclose(found, (plain.astype(float) + other[:, ::-1]) / 2, atol=2e-3)
        assert not np.allclose(found, plain, atol=1e-2)

    def test_nothing_above_the_trimap_is_the_box_and_said_so(self) -> None:
        image, _ = scene(1)
        dense = pack_objects([7], [WHERE], [np.full((36, 36), 0.39, np.float16)])
        item = dataclasses.replace(item_of(image, [box_of(1)]), up={"dense": dense})
        refined = grabcut.refine_item(item, GrabCutParams(working_size=48))
        assert refined["fell_back_n"].tolist() == [True] and (refined["mask_hw"][14:50, 20:56] == 1).all()

    def test_one_of_several_networks_in_a_checkpoint_is_asked(self, weights: str, tmp_path: Path) -> None:
        state = load_file(weights)
        other = {f"critic.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
        save_file(other | {f"cfs.{name}": tensor for name, tensor in state.items()}, tmp_path / "several.safetensors")
        item = item_of(scene(1)[0], [box_of(1)], net=str(tmp_path / "several.safetensors"))
        found = cfs.predict_item(dataclasses.replace(item, prefixes={"net": "cfs."}), cfs.predict(SMALL).params)
        assert np.array_equal(found["objects_flat"], predicted(weights, scene(1)[0], [box_of(1)])["objects_flat"])

    def test_golden_prediction(self, weights: str) -> None:
        """Golden: if these change, cached probabilities are stale, and the stage needs a new version."""
        assert cfs.predict(DEMO).version == 1
        (found,) = unpack_objects(predicted(weights, scene(1)[0], [box_of(1)]))
        np.testing.assert_allclose(found.values_hw[4::9, 4::9], GOLDEN_PROBS, atol=5e-3)


GOLDEN_PROBS = [
    [0.2322, 0.2673, 0.9277, 0.4492],
    [0.1389, 0.9340, 0.9670, 0.8423],
    [0.7686, 0.9995, 0.8887, 0.5635],
    [0.8774, 0.9690, 0.7266, 0.9360],
]
