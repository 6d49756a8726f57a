"""Reliable regions: each equation against loops, the 40 % rule at its edges, and the stage."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from crf_pictures import scene
from grabcut_scenes import fingerprint

from artifacts.records import DataError, Record
from models import cam
from tasks import reliable as module
from tasks.crf.dense_crf import dense_crf, from_probabilities
from tasks.crf.params import PRESETS
from tasks.reliable import ReliableParams, reliable, reliable_item, reliable_labels, share_threshold
from tasks.stage import Item, SkipImage, call, stage_address

RNG = np.random.default_rng(0)
CAM_ALONE = ReliableParams(agreement=False)


def maps_of(labels_hw: np.ndarray, classes: tuple[int, ...], blur: float = 5) -> np.ndarray:
    """Soft maps of what a scene holds, as a coarse network sees it."""
    found = [cv2.GaussianBlur((labels_hw == number).astype(np.float32), (0, 0), blur) for number in classes]
    return np.stack(found)


# Equation by equation


def test_equation_3_is_the_networks() -> None:
    maps = RNG.random((3, 4, 5)).astype(np.float32) * 7
    maps[1] = 0
    expected = cam.normalised(torch.from_numpy(maps)[None], torch.ones(1, 3))[0].numpy()
    np.testing.assert_allclose(module.normalised_maps(maps), expected, rtol=1e-6)
    assert module.normalised_maps(np.zeros((0, 4, 5))).shape == (0, 4, 5)


@pytest.mark.parametrize("gamma", [1.0, 4.0, 32.0])
def test_equation_4_by_hand(gamma: float) -> None:
    maps = RNG.random((3, 2, 4)).astype(np.float32)
    found = module.background_score(maps, gamma)
    for y in range(2):
        for x in range(4):
            highest = max(float(maps[c, y, x]) for c in range(3))
            assert float(found[y, x]) == pytest.approx((1 - highest) ** gamma, rel=1e-5)
    stacked = module.with_background(maps, gamma)
    assert np.array_equal(stacked[0], found) and np.array_equal(stacked[1:], maps)
    assert (module.background_score(np.zeros((0, 2, 4), np.float32), gamma) == 1).all()


def test_equation_5_is_this_projects_crf_over_background_and_the_images_classes() -> None:
    image, labels = scene(40, 48, 3)
    probs = module.with_background(module.normalised_maps(maps_of(labels, (1, 3))), 4.0)
    found = module.crf_marginals(image, probs, ReliableParams())
    np.testing.assert_array_equal(found, dense_crf(image, from_probabilities(probs), PRESETS["ahn-kwak-cam"]))


def kept(values: list[float], share: float) -> list[float]:
    """The rule, written out."""
    if share == 1:
        return values
    position = int(len(values) * (100 - round(100 * share)) // 100)
    return [v for v in values if v > sorted(values)[position]]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 50, 100])
def test_the_threshold_is_the_value_at_its_position_in_ascending_order(count: int, share: float) -> None:
    values = RNG.permutation(np.arange(count)).astype(np.float32) / 128
    threshold = share_threshold(values, share)
    assert sorted(values[values > threshold].tolist()) == sorted(kept(values.tolist(), share))
    if share == 0.4 and count == 10:
        assert threshold == np.float32(6 / 128) and (values > threshold).sum() == 3


def test_the_thresholds_edges() -> None:
    assert share_threshold(np.zeros(0, np.float32), 0.4) == math.inf
    assert share_threshold(np.array([0.7], np.float32), 0.4) == np.float32(0.7)  # one pixel: nothing is above it
    assert share_threshold(np.array([0.7], np.float32), 1.0) == -math.inf
    assert share_threshold(np.full(9, 0.5, np.float32), 0.4) == 0.5  # all alike: nothing is above
    assert share_threshold(np.array([0.1, 0.2], np.float32), 0.01) == np.float32(0.2)


@pytest.mark.parametrize("share", [0.2, 0.4, 1.0])
def test_equation_6_class_by_class(share: float) -> None:
    probs = RNG.random((4, 9, 11)).astype(np.float32)
    found = reliable_labels(probs, share)
    for label in range(4):
        own = {}
        for y in range(9):
            for x in range(11):
                column = probs[:, y, x]
                if max(range(4), key=lambda c: column[c]) == label:
                    own[y, x] = float(column[label])
        chosen = kept(list(own.values()), share)
        for (y, x), value in own.items():
            assert found[y, x] == (label if value in chosen else 255)


def test_a_class_with_no_pixel_and_one_with_one_pixel_have_no_label_and_no_error() -> None:
    probs = np.full((3, 4, 4), 0.1, np.float32)
    probs[0] = np.arange(16).reshape(4, 4) / 16 + 0.2
    probs[1, 0, 0] = 1.0  # the whole of class 1; class 2 wins nowhere
    found = reliable_labels(probs, 0.4)
    assert set(np.unique(found)) == {0, 255} and found[0, 0] == 255
    assert (found == 0).sum() == 15 - 1 - 9  # of 15 pixels those above the value at position 9
    assert reliable_labels(probs, 1.0)[0, 0] == 1


def test_faint_scores_can_be_left_out_of_the_ranking() -> None:
    probs = np.zeros((2, 1, 10), np.float32)
    probs[1, 0] = np.arange(1, 11) / 20  # .05 .. .5
    labels = reliable_labels(probs, 0.4, rank_above=0.2)
    # Ranked: .25 .. .5, six values; the one at position 3 is .4.
    assert labels[0].tolist() == [255] * 8 + [1, 1]
    assert reliable_labels(probs, 0.4)[0].tolist() == [255] * 7 + [1] * 3
    assert (reliable_labels(probs, 0.4, rank_above=0.9) == 255).all()
    # The background is no class activation map.
    assert (reliable_labels(probs[::-1], 0.4, rank_above=0.9)[0] == 0).sum() == 3


def test_a_best_score_that_too_many_share_is_kept_if_wished() -> None:
    probs = np.zeros((2, 1, 10), np.float32)
    probs[0, 0, :6] = [1, 1, 1, 1, 1, 0.5]  # the value at position 3 is the highest
    probs[1, 0, 6:] = [0.1, 0.2, 0.3, 0.4]
    assert reliable_labels(probs, 0.4)[0].tolist() == [255] * 9 + [1]
    assert reliable_labels(probs, 0.4, ties="all")[0].tolist() == [0] * 5 + [255] * 4 + [1]
    lonely = np.array([[[0.9, 0.2]], [[0.1, 0.3]]], np.float32)
    assert reliable_labels(lonely, 0.4, ties="all")[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"reliable\.ties must be one of none, all, not 'some'"):
        ReliableParams(ties="some")  # type: ignore[arg-type]


def test_background_can_be_kept_by_its_score() -> None:
    probs = np.zeros((2, 1, 10), np.float32)
    probs[0, 0] = [1, 1, 1, 1, 1, 1, 0.9, 0.8, 0.7, 0.1]
    probs[1, 0, 9] = 0.5
    assert reliable_labels(probs, 0.4, background_above=0.8)[0].tolist() == [0] * 7 + [255] * 3
    # By its share: more than that has the highest score there is, so nothing is above.
    assert (reliable_labels(probs, 0.4) == 255).all()


def test_equation_7_keeps_what_both_say() -> None:
    given, crf = np.array([[0, 1, 2, 255, 2]], np.uint8), np.array([[0, 2, 2, 1, 0]])
    assert module.agreeing(given, crf).tolist() == [[0, 255, 2, 255, 255]]


# All of them together


def test_all_classes_at_once_and_numbers_that_are_no_positions() -> None:
    image, labels = scene(48, 64, 12)
    maps = maps_of(labels, (1, 2, 3), blur=20)
    classes = (4, 9, 200)
    found = module.reliable_regions(image, maps, classes, ReliableParams())
    alone = module.reliable_regions(image, maps, classes, CAM_ALONE)
    assert found.dtype == np.uint8 and set(np.unique(found)) <= {0, *classes, 255}
    assert set(np.unique(alone)) == {0, *classes, 255}
    decided = found != 255
    assert np.array_equal(found[decided], alone[decided]) and decided.sum() < (alone != 255).sum()
    probs = module.with_background(module.normalised_maps(maps), 4.0)
    crf = dense_crf(image, from_probabilities(probs)).argmax(0)
    assert np.array_equal(decided, (alone != 255) & (np.array([0, *classes])[crf] == alone))


def test_a_tag_that_the_image_does_not_show_changes_nothing() -> None:
    image, labels = scene(48, 64, 12)
    maps = maps_of(labels, (1, 3))
    with_ghost = np.concatenate([maps, np.zeros((1, 48, 64), np.float32)])
    alone = module.reliable_regions(image, maps, (1, 3), CAM_ALONE)
    assert np.array_equal(module.reliable_regions(image, with_ghost, (1, 3, 7), CAM_ALONE), alone)
    both = module.reliable_regions(image, with_ghost, (1, 3, 7), ReliableParams())
    assert 7 not in both and (both != 255).any()


def test_no_class_at_all_is_decided_nowhere_by_share_and_everywhere_by_score() -> None:
    image = scene(20, 30, 1)[0]
    none = np.zeros((0, 20, 30), np.float32)
    assert (module.reliable_regions(image, none, (), ReliableParams()) == 255).all()
    assert (module.reliable_regions(image, none, (), ReliableParams(background_above=0.8)) == 0).all()
    assert (module.reliable_regions(image, none, (), ReliableParams(share=1.0)) == 0).all()


def test_each_rule_is_reached_by_its_parameter() -> None:
    image, labels = scene(48, 64, 12)
    maps = maps_of(labels, (1, 2))  # zero far from the objects: a background of score 1
    plain = module.reliable_regions(image, maps, (1, 2), CAM_ALONE)
    assert 0 not in plain
    for change in ({"ties": "all"}, {"background_above": 0.8}, {"rank_above": 0.5}, {"share": 0.2}):
        params = dataclasses.replace(CAM_ALONE, **change)
        found = module.reliable_regions(image, maps, (1, 2), params)
        rules = {name: getattr(params, name) for name in ("rank_above", "background_above", "ties")}
        probs = module.with_background(module.normalised_maps(maps), 4.0)
        assert np.array_equal(found, reliable_labels(probs, params.share, **rules))
        assert not np.array_equal(found, plain), change


def test_an_uncertain_crf_can_leave_pixels_undecided() -> None:
    image, labels = scene(48, 64, 12)
    maps = maps_of(labels, (1, 2))
    plain = module.reliable_regions(image, maps, (1, 2), ReliableParams(share=0.8))
    strict = module.reliable_regions(image, maps, (1, 2), ReliableParams(share=0.8, crf_certain=0.999))
    probs = module.with_background(module.normalised_maps(maps), 4.0)
    certain = dense_crf(image, from_probabilities(probs)).max(0) >= 0.999
    assert np.array_equal(strict, np.where(certain, plain, 255)) and (strict != plain).any()


def test_another_power_for_the_maps_own_labels() -> None:
    image, labels = scene(48, 64, 12)
    maps = maps_of(labels, (1, 2))
    found = [
        module.reliable_regions(image, maps, (1, 2), dataclasses.replace(CAM_ALONE, share=1.0, **change))
        for change in ({}, {"label_gamma": 32.0}, {"gamma": 32.0})
    ]
    assert (found[1] == 0).sum() < (found[0] == 0).sum() and np.array_equal(found[1], found[2])


def test_at_half_the_scale_the_crf_says_nearly_the_same() -> None:
    image, labels = scene(96, 128, 5)
    maps = maps_of(labels, (1, 2, 3), blur=20)
    whole, half = (
        module.reliable_regions(image, maps, (1, 2, 3), ReliableParams(share=1.0, crf_scale=scale))
        for scale in (1.0, 0.5)
    )
    assert (whole == half).mean() > 0.97 and (whole != half).any()
    tiny = module.reliable_regions(image[:1, :1], maps[:, :1, :1], (1, 2, 3), ReliableParams(crf_scale=0.05))
    assert tiny.shape == (1, 1)


# The stage


def item(tags: tuple[int, ...] | None, numbers: tuple[int, ...] = (1, 3), **fields: Any) -> Item:
    image, labels = scene(48, 64, 12)
    coarse = np.stack([cv2.resize(one, (16, 12), interpolation=cv2.INTER_AREA) for one in maps_of(labels, numbers)])
    stored = {"probs_chw": coarse.astype(np.float16), "classes_c": np.array(numbers, np.uint8)}
    record = Record("one", "one.png", tags=tags)
    return Item("set/one", record, ("a", "b", "c"), image, up={"cam": {**stored, **fields}})


def run(one: Item, params: ReliableParams = ReliableParams()) -> np.ndarray:
    stage = reliable(params)
    return call(stage, [one])[0]["mask_hw"]


def test_the_stage_takes_the_tags_maps_alone() -> None:
    assert set(np.unique(run(item((1, 3))))) == {0, 1, 3, 255}
    # A map of a class that is no tag is not looked at, nor is the maps' order.
    assert np.array_equal(run(item((3,), (1, 3))), run(item((3,), (3,))))
    assert np.array_equal(run(item((3, 1), (3, 1))), run(item((1, 3))))
    assert (run(item(())) == 255).all()


def test_what_cannot_be_used_is_said() -> None:
    with pytest.raises(SkipImage, match="set/one: no tags are known"):
        reliable_item(item(None), ReliableParams())
    with pytest.raises(DataError, match=r"tags \[2\] have no class activation map, only \[1, 3\] have"):
        reliable_item(item((1, 2)), ReliableParams())


def test_golden() -> None:
    """Fails when the regions change: then raise the stage's ``version``, and renew the digest."""
    assert (reliable().version, fingerprint(run(item((1, 3))))) == (1, GOLDEN)


GOLDEN = "d07e88a5957c00cdf307a864493c11378c4c32c7746794814f0bdb660adf497d"


def test_the_defaults_are_the_papers() -> None:
    params = ReliableParams()
    assert (params.share, params.gamma, params.agreement) == (0.4, 4.0, True)
    assert params.crf == PRESETS["ahn-kwak-cam"] and params.crf_scale == 1.0
    assert (params.rank_above, params.background_above, params.crf_certain) == (0.0, None, 0.0)


@pytest.mark.parametrize(
    ("change", "same"),
    [({"crf_scale": 0.5, "floor": 1e-3}, True), ({"label_gamma": 4.0}, True), ({"share": 0.5}, False)],
)
def test_a_value_without_effect_makes_no_region_stale(change: dict[str, Any], same: bool) -> None:
    changed = dataclasses.replace(CAM_ALONE, **change)
    addresses = {stage_address(reliable(one), ("a",), {}) for one in (CAM_ALONE, changed)}
    assert (len(addresses) == 1) is same
