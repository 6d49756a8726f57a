"""The classifier of tags and its maps, whole: from image files and tags to stored maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_scenes import CLASSES, Scene, fit_scenes, metrics
from safetensors.torch import load_file, save_file
from tagged_scenes import painted, tagged, tags_of

from artifacts.cache.fit_store import Publication
from artifacts.records import DataError, Record
from models import cam as networks
from tasks.cam import stages
from tasks.cam.network import maps_items, tag_vector, tagged_sampler
from tasks.cam.stages import DEMO, CamParams, MapParams
from tasks.stage import Item, SkipImage, call, stage_address

SMALL = dataclasses.replace(DEMO, width=8, crop=48, batch=4, iterations=2, scale_range=(1.0, 1.0))
Fit = Callable[..., Publication]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(params, scenes=..., **spec fields)`` fits four tagged scenes."""

    def run(params: CamParams, scenes: list[Scene] | None = None, **fields: Any) -> Publication:
        return fit_scenes(tmp_path, stages.fit(params), "none", tagged() if scenes is None else scenes, **fields)

    return run


def item(seed: int, net: Path, tags: tuple[int, ...] | None = None, image: np.ndarray | None = None) -> Item:
    record = Record(str(seed), "", tags=tags_of(seed) if tags is None else tags)
    return Item(f"d/{seed}", record, CLASSES, painted(seed)[0] if image is None else image, nets={"net": str(net)})


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of two classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    save_file(networks.build("tiny", 2, width=8).state_dict(), path)
    return path


def test_it_learns_four_pictures_and_looks_where_the_objects_are(fit: Fit) -> None:
    params = dataclasses.replace(SMALL, iterations=40, lr=5e-3)
    publication = fit(params)
    losses = [line["loss"] for line in metrics(publication) if "loss" in line]
    assert losses[-1] < 0.3 * losses[0]
    network = networks.build("tiny", 2, width=8).eval()
    network.load_state_dict(load_file(publication.weights))
    for seed in range(4):
        image, mask = painted(seed)
        with torch.no_grad():
            scores = network(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0]
        assert [number + 1 for number in range(2) if scores[number] > 0] == list(tags_of(seed))
        stored = maps_items([item(seed, publication.weights)], stages.maps(params).params)[0]
        assert stored["classes_c"].tolist() == list(tags_of(seed))
        (one,) = torch.nn.functional.interpolate(torch.from_numpy(stored["probs_chw"]).float()[None], mask.shape)[0]
        assert one[torch.from_numpy(mask > 0)].mean() > 2 * one[torch.from_numpy(mask == 0)].mean()


def test_maps_are_of_the_tags_alone_at_the_largest_scales_grid(net: Path) -> None:
    stage = stages.maps(SMALL)
    found = call(stage, [item(0, net, (2, 1))])[0]
    assert found["probs_chw"].shape == (2, 16, 18) and found["probs_chw"].dtype == np.float16
    assert found["classes_c"].tolist() == [1, 2] and found["classes_c"].dtype == np.uint8
    assert all(one.max() in (0, 1) and one.min() >= 0 for one in found["probs_chw"])
    half = stages.maps(dataclasses.replace(SMALL, maps=MapParams(scales=(0.5,)))).params
    assert maps_items([item(0, net, (2,))], half)[0]["probs_chw"].shape == (1, 8, 9)
    nothing = maps_items([item(0, net, ())], stage.params)[0]
    assert nothing["probs_chw"].shape == (0, 16, 18) and nothing["classes_c"].shape == (0,)
    with pytest.raises(SkipImage, match="no tags are known"):
        maps_items([dataclasses.replace(item(0, net), record=Record("0", ""))], stage.params)


def test_the_stored_maps_are_equations_1_to_3(net: Path) -> None:
    network = networks.build("tiny", 2, width=8).eval()
    network.load_state_dict(load_file(net))
    image = torch.from_numpy(painted(1)[0].transpose(2, 0, 1).copy())[None]
    params = dataclasses.replace(SMALL, maps=MapParams(scales=(1.0, 1.5), flip=True))
    with torch.no_grad():
        maps = network.maps(image, (12, 14), (1.0, 1.5), flip=True)
        expected = networks.normalised(maps, torch.ones(1, 2))[0]
    found = maps_items([item(1, net, (1, 2))], stages.maps(params).params)[0]["probs_chw"]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)


def test_images_of_several_sizes_at_once_are_as_each_alone(net: Path) -> None:
    params = stages.maps(SMALL).params
    cut = painted(2)[0][:40, :50]
    items = [item(0, net), item(2, net, (1, 2), cut), item(1, net), item(3, net, ())]
    for together, one in zip(maps_items(items, params), items, strict=True):
        alone = maps_items([one], params)[0]
        assert together["classes_c"].tolist() == alone["classes_c"].tolist()
        np.testing.assert_allclose(together["probs_chw"], alone["probs_chw"], atol=2e-3)


class Drawn:
    """Just enough of a fit's data for a sampler."""

    def __init__(self, one: Item) -> None:
        self.one = one

    def item(self, index: int) -> Item:
        return self.one


def test_a_sample_says_what_is_padding_and_which_tags_there_are(net: Path) -> None:
    params = dataclasses.replace(SMALL, crop=80, colour_jitter=0.0, flip=False)
    sample = tagged_sampler(Drawn(item(1, net)), params, (1, 2, 3))  # type: ignore[arg-type]
    drawn = sample(0, 0, np.random.default_rng(0))
    assert drawn["tags"].tolist() == [1, 0]
    inside = drawn["inside"]
    assert int(inside.sum()) == 64 * 72
    assert (drawn["image"][:, ~inside] == torch.tensor([1, 2, 3])[:, None]).all()
    labelled = dataclasses.replace(item(1, net), up={"target": {"mask_hw": painted(1)[1]}})
    sample = tagged_sampler(Drawn(labelled), params, (1, 2, 3), target=True)  # type: ignore[arg-type]
    drawn = sample(0, 0, np.random.default_rng(0))
    assert torch.equal(drawn["labels"] != 255, inside)


def test_a_tag_that_is_no_class_and_unknown_tags_are_said(net: Path) -> None:
    with pytest.raises(DataError, match=r"d/0: tag 3 is no class; classes are 1\.\.2"):
        tag_vector(item(0, net, (3,)))
    assert tag_vector(item(0, net, ())).tolist() == [0, 0]


def test_an_image_without_tags_is_left_out_and_said(fit: Fit) -> None:
    scenes = tagged()
    scenes[2] = dataclasses.replace(scenes[2], tags=None)
    skips = [event for event in fit(SMALL, scenes).info["events"] if event["event"] == "skip"]
    assert [(skip["key"], "no tags are known" in skip["reason"]) for skip in skips] == [("d/2", True)]


def warnings_of(publication: Publication) -> list[str]:
    return [event["message"] for event in publication.info["events"] if event["event"] == "warning"]


def test_a_tag_of_all_pictures_is_said_as_nothing_tells_where_it_is(fit: Fit) -> None:
    brief = dataclasses.replace(SMALL, iterations=1)
    scenes = [dataclasses.replace(scene, tags=(1,)) for scene in tagged()]
    (said,) = warnings_of(fit(brief, scenes, name="all"))
    assert "all 4 training pictures have the tag disc" in said and "an empty tag" in said
    for name, other in (("without", ()), ("other", (2,))):
        assert warnings_of(fit(brief, [*scenes[:3], dataclasses.replace(scenes[3], tags=other)], name=name)) == []
    unknown = [dataclasses.replace(scenes[0], tags=None), *scenes[1:]]
    assert "all 3 training pictures" in warnings_of(fit(brief, unknown, name="unknown"))[0]


def test_a_crop_that_shows_little_of_a_picture_is_said(fit: Fit) -> None:
    """48 pixels of 640 x 480 are a hundredth of it: most crops do not show what their tags name."""
    large = [dataclasses.replace(s, image_rgb=np.repeat(np.repeat(s.image_rgb, 8, 0), 8, 1)) for s in tagged()]
    brief = dataclasses.replace(SMALL, iterations=1)
    (said,) = warnings_of(fit(brief, large, name="large"))
    assert "a crop of 48 pixels shows 0.8 % of a picture of 576 x 512 pixels at scale 1" in said
    assert "72 pixels at the longer side" in said and "params.cam.scale_range" in said
    fitting = dataclasses.replace(brief, scale_range=(0.1, 0.15))
    assert warnings_of(fit(fitting, large, name="reduced")) == []


def test_inference_is_no_part_of_the_fit_and_training_none_of_the_maps() -> None:
    def address(stage: Any) -> str:
        return stage_address(stage, ("a",), {})

    other = dataclasses.replace(SMALL, maps=MapParams(flip=True))
    assert address(stages.fit(SMALL)) == address(stages.fit(other))
    assert address(stages.maps(SMALL)) != address(stages.maps(other))
    longer = dataclasses.replace(SMALL, iterations=9)
    assert address(stages.fit(SMALL)) != address(stages.fit(longer))
    assert address(stages.maps(SMALL)) == address(stages.maps(longer))
    assert stages.fit(SMALL).reads == stages.maps(SMALL).reads == ("image", "tags")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "imagenet"}, "cam.weights 'imagenet' with network 'tiny'"),
        ({"scale_range": (1.5, 0.5)}, r"cam\.scale_range"),
        ({"network": "resnet38", "output_stride": 16}, "output_stride 16 with network 'resnet38'"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=r"maps\.scales is empty"):
        MapParams(scales=())


def test_golden(fit: Fit, net: Path) -> None:
    """Golden: if these change, what is cached is stale, and the stage needs a new version."""
    assert (stages.fit(DEMO).version, stages.maps(DEMO).version) == (3, 2)
    params = dataclasses.replace(SMALL, iterations=40, scale_range=(0.75, 1.33), colour_jitter=0.3)
    losses = [line["loss"] for line in metrics(fit(params)) if "loss" in line]
    assert losses == pytest.approx([0.49732, 0.17992], rel=0.01)
    maps = maps_items([item(0, net, (1, 2))], stages.maps(SMALL).params)[0]["probs_chw"].astype(np.float64)
    assert (float(maps.mean()), float(maps[0, 3, 5]), float(maps[1, 10, 2])) == pytest.approx(
        (0.19584, 0, 0.448), rel=0.01
    )
