"""Do the cues of a pixel's confidence give values computed by hand, and do the run's truth and corrections stay out?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from artifacts.cache.runs import write_stamps
from artifacts.cache.store import MaskStore
from artifacts.objects import pack_objects
from tasks.evaluate.confidence import agreement, colour, confidence_map, depth, doubts_of, margin, together
from tasks.evaluate.run_suspicion import Beside, sampled, summary, suspects
from tasks.evaluate.suspicion import colours


def test_depth_is_the_distance_from_the_nearest_other_label() -> None:
    mask_hw = np.zeros((5, 12), np.uint8)
    mask_hw[:, 6:] = 1
    found = depth(mask_hw, np.full((5, 12), 4, np.float32))
    # Pixels at the change are 0 away, the next ones 1: (distance + 1) / (4 + 1), at most 1.
    assert np.allclose(found[2], [1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.4, 0.6, 0.8, 1, 1], atol=0.02)
    assert (depth(np.ones((3, 3), np.uint8), np.ones((3, 3), np.float32)) == 1).all(), "one label: no outline"


def test_agreement_is_the_share_of_stages_that_say_the_same() -> None:
    mask_hw = np.array([[1, 1, 0, 2]], np.uint8)
    others = [np.array([[1, 0, 255, 2]], np.uint8), np.array([[1, 1, 0, 1]], np.uint8), np.zeros((2, 2), np.uint8)]
    found = agreement(mask_hw, others)
    assert found is not None and found.tolist() == [[1, 0.5, 0.75, 0.5]]
    assert agreement(mask_hw, []) is None


def test_colour_doubts_what_looks_like_the_other_side() -> None:
    image_rgb = np.full((20, 20, 3), (20, 160, 40), np.uint8)
    image_rgb[6:14, 6:14] = (230, 30, 30)  # the object
    image_rgb[8, 8] = (20, 160, 40)  # a pixel of the background's colour in its mask
    mask_hw = np.zeros((20, 20), np.uint8)
    mask_hw[6:14, 6:13] = 3  # and a column that it missed
    part = (3, (6, 6, 14, 14), mask_hw[6:14, 6:14] > 0)
    found = colour(mask_hw, [part], colours(image_rgb))
    assert found[10, 10] > 0.95 and found[8, 8] < 0.2, "of the mask: its own colour, and the surroundings'"
    assert found[10, 13] < 0.05, "missed: the mask's colour"
    assert (found[:6] == 0.5).all(), "no window: nothing is known"
    two = (5, (6, 6, 8, 8), np.ones((2, 2), np.bool_))
    assert colour(mask_hw, [part, two], colours(image_rgb)).shape == (20, 20)


def test_margin_is_the_probability_of_the_label_among_the_known_ones() -> None:
    mask_hw = np.array([[0, 2], [4, 2]], np.uint8)
    probs = np.array([[[0.6, 0.1], [0.3, 0.3]], [[0.2, 0.3], [0.1, 0.1]]], np.float16)
    found = margin(mask_hw, {"probs_chw": probs, "classes_c": np.array([0, 2], np.uint8)})
    assert found is not None and np.allclose(found, [[0.75, 0.75], [0.5, 0.25]], atol=1e-3), "4 is not among them"
    objects = pack_objects([1, 2], [(0, 0, 2, 1), (0, 0, 2, 2)], [np.full((1, 2), 0.9, np.float16), probs[0] * 0])
    stored = {**objects, "object_classes_n": np.array([2, 7], np.uint8)}
    found = margin(mask_hw, stored)
    assert found is not None and np.allclose(found, [[0.1, 0.9], [1, 1]], atol=1e-3)
    assert margin(mask_hw, {"mask_hw": mask_hw}) is None
    own = {
        "mask_hw": np.array([[0, 2], [4, 0]], np.uint8),
        "label_prob_hw": np.array([[255, 51], [102, 204]], np.uint8),
    }
    found = margin(mask_hw, own)
    assert found is not None and np.allclose(found, [[1, 0.2], [0.4, 0.5]]), "of another label it says nothing"


def test_together_rises_with_each_cue_and_unknown_ones_count_as_a_half() -> None:
    low, half, high = (np.full((1, 1), value, np.float32) for value in (0.1, 0.5, 0.9))
    weights = {"depth": 2.0, "colour": 1.0}
    assert together({"depth": low}, weights, 0.0) < together({"depth": high}, weights, 0.0)
    assert together({"depth": high, "colour": half}, weights, -1.0) == together({"depth": high}, weights, -1.0)
    assert np.isclose(together({"depth": high}, weights, -1.0), 1 / (1 + np.exp(-(1.8 + 0.5 - 1))))


def stage(label: str, name: str, stamps: str, outputs: list[str], of_set: str = "train") -> dict[str, Any]:
    return {
        **{"label": label, "kind": "map", "address": f"{name}-0", "stamps": stamps, "split": "train"},
        **{"dataset": "set", "set": of_set, "outputs": outputs},
    }


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Two pictures; GrabCut, truth, GrabCut's masks again of which one is corrected, a part on the contact sheet."""
    cache, names = tmp_path / "cache", ("a", "b")
    store = MaskStore(cache)
    stamps = {}
    for name in names:
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (10, 10, 3), np.uint8))
        stamps[f"set/{name}"] = ("s", str(path))
    mask_hw = np.zeros((10, 10), np.uint8)
    mask_hw[2:6, 2:6] = 1
    mask_hw[9, 9] = 255
    part = {
        "mask_hw": mask_hw,
        "object_classes_n": np.array([1], np.uint8),
        **pack_objects([0], [(2, 2, 7, 7)], [mask_hw[2:7, 2:7]]),
    }
    for address in ("grabcut-0", "corrected-0"):
        store.write_segment(address, [(f"set/{name}", "s", part) for name in names], meta={})
    truth = {"mask_hw": 1 - np.minimum(mask_hw, 1)}
    for address in ("given-masks-0", "student-0"):
        store.write_segment(address, [(f"set/{name}", "s", truth) for name in names], meta={})
    digest, masks = write_stamps(cache, stamps), ["mask_hw"]
    stages = [
        stage("grabcut", "grabcut", digest, [*part]),
        stage("truth", "given-masks", digest, masks),
        stage("corrected", "corrected", digest, [*part]),
        stage("student-shown", "student", digest, masks, of_set=""),
    ]
    return cache, {"run": "r", "stages": stages, "masks": "corrected", "corrected": ["set/b"]}


def test_what_a_person_has_corrected_is_certain_and_truth_copies_and_samples_say_nothing(
    run: tuple[Path, dict[str, Any]],
) -> None:
    cache, manifest = run
    beside = Beside.of(cache, manifest, "corrected")
    assert beside.others == [], "truth, the masks themselves, and eight pictures of a sheet"
    assert Beside.of(cache, manifest, "grabcut").others == [], "nor what hands its masks on"
    found = suspects(cache, manifest, "corrected")
    assert found["set/a"].suspicion > 0 and found["set/b"].suspicion == 0
    told = summary(found)
    assert told is not None and told["pictures"] == 2 and told["worst"][0][0] == "a"
    doubts = doubts_of(cache, manifest, "corrected")
    assert doubts.confidence is not None
    assert (doubts.confidence("b") == 255).all()
    own = doubts.confidence("a")
    arrays = beside.mine("set/a")
    assert own[9, 9] == 0, "undecided"
    assert (own[:2] == 255).all() and (own[2:7, 2:7] < 255).all(), "no box: background; in the box who knows"
    image_rgb = cv2.imread(str(beside.image("set/a")))[..., ::-1]
    with_another = confidence_map(arrays, [{"mask_hw": arrays["mask_hw"] * 0}], np.ascontiguousarray(image_rgb))
    assert (with_another[2:6, 2:6] < own[2:6, 2:6]).all(), "a stage that disagrees"
    again = {**manifest, "corrected": []}
    assert doubts_of(cache, again, "corrected").confidence_from != doubts.confidence_from


def test_a_sample_is_spread_evenly() -> None:
    assert sampled([]) == set() and sampled(["a", "b"]) == {"a", "b"}
    many = [str(number) for number in range(1001)]
    assert sampled(many) == {str(number) for number in range(0, 1001, 3)}
