"""Each cue by hand on tiny masks, and the order of them together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.cache import runs
from artifacts.cache.store import MaskStore
from artifacts.objects import pack_objects
from tasks.evaluate import suspicion as s
from tasks.evaluate.run_suspicion import run_cues, suspects


def bits(*rows: str) -> NDArray[np.bool_]:
    return np.array([[c == "#" for c in row] for row in rows])


def test_disagreement_is_one_less_the_mean_iou_wherever_the_windows_lie() -> None:
    mask_hw = bits("##", "##")
    same, half, none = ((0, 0, 2, 2), mask_hw), ((1, 0, 2, 2), bits("#", "#")), ((5, 5, 6, 6), bits("#"))
    assert s.disagreement(mask_hw, (0, 0, 2, 2), [same]) == 0
    assert s.disagreement(mask_hw, (0, 0, 2, 2), [same, half]) == pytest.approx(0.25)
    assert s.disagreement(mask_hw, (0, 0, 2, 2), [none]) == 1
    assert math.isnan(s.disagreement(mask_hw, (0, 0, 2, 2), []))


@pytest.mark.parametrize(("share", "expected"), [(0.6, 0), (0.0, 1), (1.0, 1), (0.3, 0.5), (0.8, 0.5)])
def test_an_unusual_share(share: float, expected: float) -> None:
    assert s.unusual_share(share, 0.6) == pytest.approx(expected)
    assert s.unusual_share(1.0, 1.0) == 0


def test_usual_shares_are_medians_and_of_a_rare_class_that_of_all() -> None:
    one = [s.ObjectCues(i, 1, 1, share, {}) for i, share in enumerate((0.1, 0.2, 0.3, 0.4, 0.9))]
    two = [s.ObjectCues(9, 2, 1, 0.7, {})]
    assert s.usual_shares(one + two) == {1: 0.3, 2: pytest.approx(0.35)}


def test_tightness_is_the_part_of_the_box_that_the_mask_does_not_reach() -> None:
    assert s.tightness(bits("#..", ".#.", "..#")) == 0
    assert s.tightness(bits("....", ".##.", "....", "....")) == pytest.approx(1 - 2 / 16)
    assert s.tightness(bits("..")) == 1


def test_an_outline_on_an_edge_is_supported() -> None:
    image_rgb = np.zeros((20, 20, 3), np.uint8)
    image_rgb[5:15, 5:15] = 200
    strength_hw = s.gradient(image_rgb)
    on, beside = (np.zeros((20, 20), np.bool_) for _ in range(2))
    on[5:15, 5:15] = True
    beside[8:12, 8:12] = True
    assert s.edge_support(strength_hw, on) == 0
    assert s.edge_support(strength_hw, beside) == 1
    assert math.isnan(s.edge_support(strength_hw, np.ones((20, 20), np.bool_)))
    assert math.isnan(s.edge_support(strength_hw, np.zeros((20, 20), np.bool_)))


def test_what_has_the_colours_of_the_surroundings_leaks_and_what_has_not_was_missed() -> None:
    image_rgb = np.full((8, 8, 3), (0, 0, 255), np.uint8)
    image_rgb[2:6, 2:6] = (255, 0, 0)
    colour_hw, box_hw = s.colours(image_rgb), np.zeros((8, 8), np.bool_)
    box_hw[1:7, 1:7] = True
    right = np.zeros_like(box_hw)
    right[2:6, 2:6] = True
    assert s.leak_and_missed(colour_hw, right, box_hw) == pytest.approx((0, 0), abs=0.02)
    leak, missed = s.leak_and_missed(colour_hw, box_hw, box_hw)  # 16 red of 36: blue is 20/36 of it, 1 around
    assert leak == pytest.approx(20 / 36 * (1 / (1 + 20 / 36)), abs=0.02) and math.isnan(missed)
    half = right.copy()
    half[4:] = False
    leak, missed = s.leak_and_missed(colour_hw, half, box_hw)
    assert leak == pytest.approx(0, abs=0.02) and missed == pytest.approx(8 / 28, abs=0.02)
    assert all(map(math.isnan, s.leak_and_missed(colour_hw, np.zeros_like(box_hw), box_hw)))
    assert all(map(math.isnan, s.leak_and_missed(colour_hw, right, np.ones_like(box_hw))))


def test_what_other_objects_claim_too() -> None:
    mask_hw = bits("##", "##")
    assert s.claimed(mask_hw, (2, 2, 4, 4), []) == 0
    assert s.claimed(mask_hw, (2, 2, 4, 4), [((3, 0, 9, 3), np.ones((3, 6), np.bool_))]) == 0.25
    assert s.claimed(mask_hw, (2, 2, 4, 4), [((4, 2, 5, 4), bits("#", "#"))]) == 0, "beside it"
    assert math.isnan(s.claimed(bits(".."), (0, 0, 2, 1), []))


def test_fragments_are_what_is_not_in_the_largest_part_and_holes() -> None:
    assert s.fragments(bits("##..", "##.#")) == pytest.approx(1 / 5)
    assert s.fragments(bits("###", "#.#", "###")) == pytest.approx(1 / 9)
    assert s.fragments(bits("###", "#..", "###")) == 0, "open: no hole"
    assert s.fragments(bits("..")) == 1


def test_doubt_and_size() -> None:
    assert s.margin(np.array([[0, 1], [0.5, 0.75]], np.float16)) == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert math.isnan(s.margin(np.zeros((0, 0), np.float16)))
    assert s.smallness(0) == 1 and s.smallness(32 * 32) == 0.5


def test_suspicion_is_the_weighted_mean_of_what_is_known() -> None:
    weights = {"leak": 1.0, "edges": 3.0, "margin": 5.0}
    assert s.suspicion({"leak": 0.2, "edges": 0.6, "margin": math.nan}, weights) == pytest.approx((0.2 + 1.8) / 4)
    assert s.suspicion({}, weights) == 0
    assert s.picture_suspicion([]) == 0
    assert s.picture_suspicion([(0.9, 16), (0.3, 4)]) == pytest.approx((0.9 * 4 + 0.3 * 2) / 6)
    assert set(s.WEIGHTS) <= set(s.CUES)


def test_a_window_may_stick_out_and_may_be_empty() -> None:
    image_rgb = np.zeros((6, 6, 3), np.uint8)
    colour_hw, strength_hw = s.colours(image_rgb), s.gradient(image_rgb)
    one = s.object_cues(3, 1, np.ones((6, 6), np.bool_), (3, 3, 9, 9), colour_hw, strength_hw)
    assert (one.area, one.share) == (9, 1.0)
    gone = s.object_cues(3, 1, np.zeros((0, 0), np.bool_), (6, 6, 6, 6), colour_hw, strength_hw)
    assert (gone.area, gone.share, gone.cues["tightness"], gone.cues["fragments"]) == (0, 0.0, 1.0, 1.0)
    assert all(set(found.cues) == set(s.CUES) - {"share", "objectness"} for found in (one, gone))


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Two pictures of a red square; ``good`` has its mask, ``bad`` a corner of it. Probabilities, another stage."""
    cache = tmp_path / "cache"
    store = MaskStore(cache)
    stages = []
    image_rgb = np.full((24, 24, 3), (30, 60, 220), np.uint8)
    image_rgb[8:16, 8:16] = (200, 30, 30)
    for name in ("good", "bad"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image_rgb[..., ::-1])
    right, wrong = np.ones((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    wrong[:4, :4] = 1
    window = (8, 8, 16, 16)
    for label, masks in {
        "first": {"good": right, "bad": right},
        "dense": {"good": right.astype(np.float16), "bad": np.full((8, 8), 0.6, np.float16)},
        "last": {"good": right, "bad": wrong},
    }.items():
        items = []
        for name, mask_hw in masks.items():
            whole = np.zeros((24, 24), np.uint8)
            whole[8:16, 8:16] = mask_hw > 0.5
            packed = pack_objects([7], [window], [mask_hw])
            items.append(
                (f"set/{name}", name, {"mask_hw": whole, "object_classes_n": np.array([1], np.uint8), **packed})
            )
        store.write_segment(label, items, meta={})
        stamps: runs.Stamps = {f"set/{name}": (name, str(tmp_path / f"{name}.png")) for name in masks}
        stamps["set/gone"] = (None, "nowhere.png")
        stage = {"label": label, "kind": "map", "address": label, "split": "train", "dataset": "set"}
        stages.append(stage | {"stamps": runs.write_stamps(cache, stamps)})
    return cache, {"run": "r", "stages": stages}


def test_the_wrong_mask_of_a_run_is_the_more_suspicious(run: tuple[Path, dict[str, Any]]) -> None:
    cues = {key: found[0].cues for key, found in run_cues(*run, "last").items()}
    assert set(cues) == {"set/good", "set/bad"}
    good, bad = cues["set/good"], cues["set/bad"]
    assert (good["disagreement"], bad["disagreement"]) == (0, pytest.approx(1 - 16 / 64))
    assert (good["margin"], bad["margin"]) == (0, pytest.approx(0.8, abs=1e-3))
    found = suspects(*run, "last")
    assert found["set/bad"].suspicion > 2 * found["set/good"].suspicion
    assert [one[:2] for one in found["set/bad"].objects] == [(7, 1)]
    assert list(suspects(*run, "last", only={"set/bad"})) == ["set/bad"]


def test_without_objects_the_classes_of_a_picture_stand_for_them(run: tuple[Path, dict[str, Any]]) -> None:
    cache, manifest = run
    mask_hw = np.zeros((24, 24), np.uint8)
    mask_hw[8:16, 8:16], mask_hw[0, 0] = 2, 255
    MaskStore(cache).write_segment("plain", [("set/good", "p", {"mask_hw": mask_hw})], meta={})
    stamps = runs.write_stamps(cache, {"set/good": ("p", str(cache.parent / "good.png"))})
    manifest["stages"].append(manifest["stages"][0] | {"label": "plain", "address": "plain", "stamps": stamps})
    [one] = run_cues(cache, manifest, "plain")["set/good"]
    assert (one.class_id, one.area, one.share) == (2, 64, 1.0) and one.cues["disagreement"] == 1
    assert math.isnan(one.cues["tightness"]) and one.cues["leak"] < 0.05, "its own tight box stands for a box"
