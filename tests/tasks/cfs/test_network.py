"""CFS at work: what a sample holds, and that every box is answered in its own pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cfs_scenes import CLASSES, SMALL, WHERE, box_of, coarse, item_of, scene
from fit_scenes import Scene, fit_scenes
from safetensors.torch import load_file, save_file

from artifacts.objects import pack_objects, unpack_objects
from artifacts.records import Box, DataError, Record
from models import unet
from models.normalise import NORMALISATIONS, Normalisation
from tasks.cfs import network as cfs_net
from tasks.cfs import stages as cfs
from tasks.cfs.box_crop import BoxCrop
from tasks.cfs.stages import DEMO, CFSParams
from tasks.refine import RefineParams, refine_item
from tasks.stage import Item, SkipImage, call
from tasks.training.networks import fill_rgb, load_network
from tasks.training.rng import generator

GREY = (124, 116, 104)
"""ImageNet's mean."""


class TestSample:
    def test_image_box_and_target_lie_on_each_other(self) -> None:
        image, mask = scene(1)
        params = dataclasses.replace(SMALL, crop=54, margin_jitter=0.0)  # a pixel is a pixel
        seen, box, target = cfs_net.object_sample(
            item_of(image, [box_of(1)], mask), box_of(1), params, generator(0), GREY
        )
        assert (seen == image[5:59, 11:65]).all() and (target == mask[5:59, 11:65]).all()
        assert box[9:45, 9:45].all() and box.sum() == 36 * 36

    def test_a_neighbour_is_background_and_a_window_of_another_size_is_brought_into_the_box(self) -> None:
        image, mask = scene(1)
        everything = np.ones_like(mask)
        found = pack_objects([7, 8], [(0, 0, 72, 64), WHERE], [mask, everything[14:50, 20:56]])
        item = dataclasses.replace(item_of(image, [box_of(1)]), up={"coarse": found})
        params = dataclasses.replace(SMALL, crop=54, margin_jitter=0.0)
        assert (cfs_net.object_sample(item, box_of(1), params, generator(0), GREY)[2] == mask[5:59, 11:65]).all()

    def test_probabilities_are_masks_above_one_half(self) -> None:
        image, mask = scene(1)
        found = pack_objects([7], [WHERE], [np.where(mask[14:50, 20:56], 0.51, 0.5).astype(np.float16)])
        item = dataclasses.replace(item_of(image, [box_of(1)]), up={"coarse": found})
        params = dataclasses.replace(SMALL, crop=54, margin_jitter=0.0)
        assert (cfs_net.object_sample(item, box_of(1), params, generator(0), GREY)[2] == mask[5:59, 11:65]).all()

    def test_a_mask_that_is_missing_is_an_error_and_a_box_outside_a_skip(self) -> None:
        image, mask = scene(1)
        with pytest.raises(DataError, match=r"set/one: no coarse mask of object 9;.*difficult= alike"):
            cfs_net.object_sample(item_of(image, [box_of(1)], mask), box_of(1, id=9), SMALL, generator(0), GREY)
        with pytest.raises(SkipImage, match="box 7 lies outside the image"):
            outside = box_of(1, x0=100.0, x1=200.0)
            cfs_net.object_sample(item_of(image, [box_of(1)], mask), outside, SMALL, generator(0), GREY)

    def test_draws_depend_on_seed_epoch_image_and_object_alone(self) -> None:
        image, mask = scene(1)
        boxes = [box_of(1), box_of(1, id=8)]

        class Data(cfs_net.ObjectData):
            def __init__(self) -> None:
                self.boxes = boxes

            def item(self, index: int) -> Item:
                return item_of(image, boxes, mask)

        params = dataclasses.replace(SMALL, colour_jitter=0.3, margin_jitter=0.5)
        sample = cfs_net.sampler(Data(), params, GREY)

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

        sample = cfs_net.sampler(
            Data(), dataclasses.replace(SMALL, crop=54, colour_jitter=0.0, margin_jitter=0.0), GREY
        )
        lefts = set()
        for epoch in range(12):
            one = sample(0, epoch, generator(epoch))
            assert torch.equal(one["image"][0] == 255, one["target"] == 1)
            lefts.add(bool(one["target"][:, :27].any()))
        assert lefts == {True, False}


class TestFill:
    @pytest.mark.parametrize("normalisation", NORMALISATIONS.values(), ids=lambda n: n.name)
    def test_the_padding_is_what_the_normalisation_maps_to_zero(self, normalisation: Normalisation) -> None:
        network = cfs_net.build_network(SMALL, 2, normalisation)
        padding = torch.tensor(fill_rgb(network), dtype=torch.uint8).view(1, 3, 1, 1)
        grey_levels = network.normalise(padding)[:, network.normalise.bgr.argsort()] * network.normalise.std
        assert float(grey_levels.abs().max()) <= 0.5, "as near as whole numbers come"

    def test_caffes_weights_pad_with_caffes_mean_in_training_and_in_prediction(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = cfs_net.build_network(SMALL, 2, NORMALISATIONS["caffe"])
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        fills: list[Any] = []
        crop = BoxCrop.image
        monkeypatch.setattr(BoxCrop, "image", lambda *given: fills.append(given[2]) or crop(*given))
        image, mask = scene(1)
        predicted(str(tmp_path / "w.safetensors"), image, [box_of(1)])
        picture = Scene(image, coarse([box_of(1)], mask), (box_of(1),))
        params = dataclasses.replace(SMALL, weights=f"caffe:{tmp_path / 'w.safetensors'}", batch=2, iterations=1)
        fit_scenes(tmp_path, cfs.fit(params), "coarse", [picture])
        assert fills == [(123, 117, 104)] * 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with something to say: random weights, its answers spread about one half."""
    torch.manual_seed(3)
    network = unet.build("tiny", 2, width=4)
    crops = [BoxCrop.around(WHERE, 1.5, 16).image(scene(i)[0], GREY) for i in range(8)]
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
    return call(stage, [item_of(image, boxes, net=weights)])[0]


class TestPredict:
    def test_a_probability_is_the_networks_own_in_the_boxs_pixels(self, weights: str) -> None:
        image, _ = scene(1)
        arrays = predicted(weights, image, [box_of(1)])
        network = load_network(weights, cfs_net.build_network, cfs.predict(SMALL).params, 2, "cpu")
        crop = BoxCrop.around(WHERE, 1.5, 16)
        picture = torch.from_numpy(crop.image(image, GREY)).permute(2, 0, 1)[None]
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
        refined = refine_item(
            dataclasses.replace(item_of(image, [box]), up={"dense": arrays}), RefineParams(working_size=48)
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
            cfs_net.predict_item(unknown, cfs.predict(SMALL).params)

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
        refined = refine_item(item, RefineParams(working_size=48))
        assert refined["fell_back_n"].tolist() == [True] and (refined["mask_hw"][14:50, 20:56] == 1).all()

    def test_one_of_several_networks_in_a_checkpoint_is_asked(self, weights: str, tmp_path: Path) -> None:
        state = load_file(weights)
        other = {f"critic.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
        save_file(other | {f"cfs.{name}": tensor for name, tensor in state.items()}, tmp_path / "several.safetensors")
        item = item_of(scene(1)[0], [box_of(1)], net=str(tmp_path / "several.safetensors"))
        found = cfs_net.predict_item(dataclasses.replace(item, prefixes={"net": "cfs."}), cfs.predict(SMALL).params)
        assert np.array_equal(found["objects_flat"], predicted(weights, scene(1)[0], [box_of(1)])["objects_flat"])

    def test_golden_prediction(self, weights: str) -> None:
        """Golden: if these change, cached probabilities are stale, and the stage needs a new version."""
        assert cfs.predict(DEMO).version == 2
        (found,) = unpack_objects(predicted(weights, scene(1)[0], [box_of(1)]))
        np.testing.assert_allclose(found.values_hw[4::9, 4::9], GOLDEN_PROBS, atol=5e-3)


GOLDEN_PROBS = [
    [0.2322, 0.2673, 0.9277, 0.4492],
    [0.1389, 0.9340, 0.9670, 0.8423],
    [0.7686, 0.9995, 0.8887, 0.5635],
    [0.8774, 0.9690, 0.7266, 0.9360],
]


@pytest.mark.parametrize(
    ("network", "batch_norm"),
    [
        ("tiny", "trained"),
        ("tiny", "frozen"),
        ("resnet18", "trained"),
        ("resnet18", "frozen"),
        ("lite0", "trained"),
        ("lite0", "frozen"),
        ("timm:mobilenetv3_small_050", "trained"),
    ],
)
def test_the_smallest_crop_that_is_learnt_from_alone(network: Any, batch_norm: Any) -> None:
    side = CFSParams(network=network, weights="none", batch_norm=batch_norm).smallest_alone
    net = unet.build(network, 2, batch_norm=batch_norm, width=4).train()

    def learn(side: int) -> None:
        net(torch.zeros(1, 3, side, side), torch.ones(1, side, side), torch.ones(1, dtype=torch.long))

    learn(side)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        learn(side - 1)
