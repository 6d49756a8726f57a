"""Does a linear classifier of features find the masks that are not like the others, and only where it can?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from artifacts.cache import runs, sealed
from artifacts.cache.store import MaskStore
from artifacts.objects import pack_objects
from tasks.evaluate import objectness as o
from tasks.evaluate.run_suspicion import KEPT, run_cues, suspects
from tasks.evaluate.suspicion import WEIGHTS, Window, with_context


def test_the_grid_has_the_pictures_shape_and_sixteen_cells_along_it() -> None:
    assert o.grid_of((375, 500)) == (12, 16) and o.grid_of((500, 100)) == (16, 3)
    assert o.grid_of((3, 96)) == (1, 16)


def test_a_window_is_large_from_sixteen_cells_on() -> None:
    """At 256 x 192 a cell is 16 x 16 pixels, at 512 x 384 it is 32 x 32."""
    assert o.is_large((0, 0, 64, 64), (192, 256)) and not o.is_large((0, 0, 64, 63), (192, 256))
    assert o.is_large((10, 0, 138, 128), (384, 512)) and not o.is_large((10, 0, 137, 128), (384, 512))
    assert not o.is_large((0, 0, 63, 63), (63, 63)), "such a picture shows nothing"


def test_a_cell_sees_what_is_around_its_own_middle() -> None:
    image_rgb = np.full((192, 256, 3), 127, np.uint8)
    plain = o.features(image_rgb)
    assert plain.shape == (12, 16, 112)
    image_rgb[16 * 7 + 5 : 16 * 7 + 11, 16 * 9 + 5 : 16 * 9 + 11] = 255
    changed = np.abs(o.features(image_rgb) - plain).sum(axis=2)
    assert np.unravel_index(int(changed.argmax()), changed.shape) == (7, 9)
    around = changed[6:9, 8:11]
    assert around[0].sum() == pytest.approx(around[2].sum(), rel=0.5), "as much above as below"
    assert around[:, 0].sum() == pytest.approx(around[:, 2].sum(), rel=0.5)


def test_features_are_kept_of_so_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(o, "REMEMBERED", 2)
    monkeypatch.setattr(o, "_FEATURES", {})
    monkeypatch.setattr(o, "_computed", lambda image_rgb: np.full((1, 1, 1), image_rgb[0, 0, 0], np.float16))
    for value in (1, 2, 1, 3):
        assert o.features(np.full((64, 64, 3), value, np.uint8)).tolist() == [[[value]]]
    assert [float(found.item()) for found in o._FEATURES.values()] == [2, 3]


def test_shares_of_cells_are_means_over_their_pixels() -> None:
    mask_hw = np.zeros((4, 6), np.bool_)
    mask_hw[:2, :3], mask_hw[3, 5] = True, True
    assert o.share_of_cells(mask_hw, (2, 2)).tolist() == [[1, 0], [0, pytest.approx(1 / 6)]]


def pictures(count: int, rng: np.random.Generator) -> Iterator[tuple[o.Map, np.ndarray[Any, Any], list[Window]]]:
    """Pictures of 320 x 320 whose third feature is .25 + half the share of the object, near the window."""
    for _ in range(count):
        mask_hw = np.zeros((320, 320), np.uint8)
        mask_hw[96:224, 96:224] = 5
        mask_hw[96:112, 96:112] = 255
        found = rng.normal(size=(20, 20, 4)).astype(np.float32)
        found[..., 2] = 0.25 + 0.5 * o.share_of_cells(mask_hw == 5, (20, 20))
        found[..., 3] = 0
        found[:2] = 100  # far from the window, where nothing is learnt
        found[6, 6] = -100  # undecided
        yield found, mask_hw, [(96, 96, 224, 224)]


def test_it_learns_the_feature_that_tells_objects_near_the_windows() -> None:
    learnt = o.learn(pictures(o.AT_LEAST, np.random.default_rng(0)))
    assert learnt is not None
    np.testing.assert_allclose(learnt.weights_c, [0, 0, 2, 0, -0.5], atol=0.02)
    seen, mask_hw, [window] = next(pictures(1, np.random.default_rng(1)))
    x0, y0, x1, y1 = (side // o.CELL for side in with_context(window, (320, 320)))
    inner = slice(y0 + 1, y1), slice(x0 + 1, x1)
    truth = o.share_of_cells(mask_hw == 5, (20, 20))
    known = learnt.map_of(seen)
    assert known.min() >= 0 and known.max() <= 1
    np.testing.assert_allclose(np.delete(known[inner], 0, 0)[3:], np.delete(truth[inner], 0, 0)[3:], atol=0.05)


def test_nothing_is_learnt_from_few_pictures() -> None:
    assert o.learn(pictures(o.AT_LEAST - 1, np.random.default_rng(0))) is None
    empty = ((np.zeros((20, 20, 4), np.float32), np.zeros((320, 320), np.uint8), []) for _ in range(o.AT_LEAST))
    assert o.learn(empty) is None, "without windows nothing counts"


def test_unlike_is_one_less_the_soft_iou_within_the_window() -> None:
    object_hw = np.zeros((16, 16), np.float32)
    object_hw[4:8, 4:8], object_hw[10:, :] = 0.75, 1.0  # what lies outside of the window does not count
    window, size_hw = (64, 64, 136, 128), (256, 256)  # 4.5 x 4 cells
    mask_hw = np.zeros((64, 72), np.bool_)
    mask_hw[:32, :64] = True
    both, either = 8 * 0.75, 8 * 1 + 8 * 0.75
    assert o.unlike(object_hw, mask_hw, window, size_hw) == pytest.approx(1 - both / either, abs=1e-6)
    assert o.unlike(object_hw, np.zeros_like(mask_hw), window, size_hw) == 1
    assert math.isnan(o.unlike(object_hw, mask_hw[:32, :32], (64, 64, 96, 96), size_hw))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """Six pictures of a square on a ground of noise; the mask of the last is the ground beside it."""
    monkeypatch.setattr(o, "AT_LEAST", 5)
    cache, rng = tmp_path / "cache", np.random.default_rng(0)
    items, stamps = [], {}
    for number in range(6):
        image_rgb = rng.integers(90, 130, (160, 160, 3)).astype(np.uint8)
        image_rgb[40:110, 40:110] = (200, 40, 40)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image_rgb[..., ::-1])
        window = (30, 30, 130, 130)
        whole = np.zeros((160, 160), np.uint8)
        if number < 5:
            whole[40:110, 40:110] = 1
        else:
            whole[112:130, 30:130] = 1
        own = (whole[30:130, 30:130] == 1).astype(np.uint8)
        packed = pack_objects([0], [window], [own])
        arrays = {"mask_hw": whole, "object_classes_n": np.array([1], np.uint8), **packed}
        items.append((f"set/{number}", str(number), arrays))
        stamps[f"set/{number}"] = (str(number), str(tmp_path / f"{number}.png"))
    MaskStore(cache).write_segment("made", items, meta={})
    stage = {"label": "made", "kind": "map", "address": "made", "split": "train", "dataset": "set", "outputs": []}
    return cache, {"run": "r", "stages": [stage | {"stamps": runs.write_stamps(cache, stamps)}]}


def test_the_mask_that_the_others_do_not_explain_is_the_most_suspicious(run: tuple[Path, dict[str, Any]]) -> None:
    cues = {key: one.cues["objectness"] for key, [one] in run_cues(*run, "made").items()}
    assert max(cues, key=lambda key: cues[key]) == "set/5"
    assert cues["set/5"] > 0.8 > 0.4 > max(value for key, value in cues.items() if key != "set/5")
    alone = run_cues(*run, "made", only={"set/5"})
    assert alone["set/5"][0].cues["objectness"] == cues["set/5"], "whichever pictures are asked about"


def test_without_weights_the_cue_is_unknown(run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(o, "is_here", lambda: False)
    assert all("objectness" not in one.cues for [one] in run_cues(*run, "made").values())
    assert WEIGHTS["objectness"] > 0 and 0 < suspects(*run, "made")["set/5"].suspicion < 1


def test_a_second_night_judges_nothing(run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, manifest = run
    asked = {"set/0", "set/5"}
    suspects(cache, manifest, "made", only=asked)
    assert not (cache / KEPT).exists(), "a cache that is only read stays as it is"
    monkeypatch.setattr("tasks.evaluate.run_suspicion._LAST", {})
    first = suspects(MaskStore(cache), manifest, "made", only=asked)
    kept = (cache / KEPT).read_bytes()
    assert set(sealed.unseal(kept)["pictures"]) == asked

    def none(*_: object) -> None:
        raise AssertionError("judged again")

    with monkeypatch.context() as patched:
        patched.setattr("tasks.evaluate.run_suspicion._LAST", {})
        patched.setattr("tasks.evaluate.run_suspicion._run_cues", none)
        assert suspects(MaskStore(cache), manifest, "made", only=asked) == first
        with pytest.raises(AssertionError, match="judged again"):
            suspects(MaskStore(cache), manifest, "made", only={"set/0"})
    monkeypatch.setattr("tasks.evaluate.run_suspicion._LAST", {})
    (cache / KEPT).write_bytes(kept[:-20])
    assert suspects(MaskStore(cache), manifest, "made", only=asked) == first, "a damaged answer counts as none"
    assert (cache / KEPT).read_bytes() == kept
