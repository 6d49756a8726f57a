"""Do probabilities become sharp masks, are certain pixels kept, and are the refinement's params its own?"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from grabcut_scenes import disc_image, iou, item, whole

from artifacts.objects import pack_objects
from artifacts.records import Box, DataError
from tasks import refine as refine_module
from tasks.grabcut import GrabCutParams
from tasks.refine import RefineParams, probability_trimap, refine, refine_item, refine_object
from tasks.stage import MapStage, check_outputs, resolve

FAST = RefineParams(working_size=64)


def test_trimap_by_hand():
    prob = np.array([[0.39, 0.4, 0.5, 0.6, 0.61]], dtype=np.float32)
    assert probability_trimap(prob, RefineParams()).tolist() == [[0, 3, 3, 3, 1]]


def test_a_blurred_probability_becomes_the_disc():
    image, truth = disc_image()
    prob = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 6).astype(np.float16)
    window = (-10, 5, 75, 85)  # the map's window sticks out of the image
    padded = np.zeros((100, 100), np.float16)
    padded[10:90, 10:90] = prob
    part = padded[5 + 10 : 85 + 10, 0 : 75 + 10]
    params = dataclasses.replace(FAST, working_size=96)
    found, mask, fell_back = refine_object(image, part, window, (18, 18, 62, 62), params, 1)
    refined = iou(whole(found, mask, (80, 80)), truth)
    assert found == (18, 18, 62, 62) and not fell_back
    assert refined > 0.95 and refined > iou(prob > 0.5, truth)


def test_certain_pixels_stay_what_they_are():
    image, _ = disc_image()
    prob = np.zeros((40, 40), np.float16)
    prob[:10] = 1.0  # certain although it is grass
    prob[10:12] = 0.5
    _, mask, _ = refine_object(image, prob, (20, 20, 60, 60), (20, 20, 60, 60), FAST, 1)
    assert mask[:9].all() and not mask[14:].any()


def test_nothing_to_cut():
    image, _ = disc_image()
    box = (20, 20, 60, 60)
    sure, none = np.full((40, 40), 0.9, np.float16), np.zeros((40, 40), np.float16)
    # All of the image is one object: no background sample, so the trimap is the mask.
    everything = refine_object(image[20:60, 20:60], sure, (0, 0, 40, 40), (0, 0, 40, 40), FAST, 1)
    assert everything[1].all() and not everything[2]
    assert refine_object(image, none, box, box, FAST, 1)[2]  # no foreground at all: the box, and said so
    assert refine_object(image, none, box, (90, 90, 95, 95), FAST, 1)[1].size == 0


def test_iterations_and_fallback_are_parameters(monkeypatch):
    image, _ = disc_image()
    prob = np.zeros((40, 40), np.float16)
    prob[:10] = 1.0  # a quarter of the box
    given = []
    opencv = cv2.grabCut
    monkeypatch.setattr(cv2, "grabCut", lambda *args: (given.append(args[5]), opencv(*args)))
    for params, box_taken in (
        (FAST, False),
        (dataclasses.replace(FAST, iterations=2, fallback_share=0.4), True),
        (dataclasses.replace(FAST, iterations=2, fallback="sdi"), True),
        (dataclasses.replace(FAST, iterations=2, fallback="none", fallback_share=0.4), False),
    ):
        _, mask, fell_back = refine_object(image, prob, (20, 20, 60, 60), (20, 20, 60, 60), params, 1)
        assert (fell_back, mask.all()) == (box_taken, box_taken)
    assert given == [5, 2, 2, 2]


def test_refining_needs_all_boxes():
    image, truth = disc_image()
    prob = truth[18:62, 18:62].astype(np.float16)
    dense = pack_objects([4], [(18, 18, 62, 62)], [prob])
    boxes = [Box(4, 1, 18, 18, 62, 62)]
    stage = refine(FAST)
    arrays = check_outputs(stage, resolve(stage.function)(item(image, boxes, dense=dense), FAST))
    assert iou(arrays["mask_hw"] == 1, truth) > 0.9
    with pytest.raises(DataError, match=r"no probabilities for objects \[5\]"):
        refine_item(item(image, [*boxes, Box(5, 1, 0, 0, 9, 9)], dense=dense), FAST)


def test_difficult_objects_by_parameter():
    image, truth = disc_image()
    prob = truth[18:62, 18:62].astype(np.float16)
    dense = pack_objects([4], [(18, 18, 62, 62)], [prob])
    boxes = [Box(4, 1, 18, 18, 62, 62, difficult=True)]
    for difficult, ids in ((True, [4]), (False, [])):
        arrays = refine_item(item(image, boxes, dense=dense), dataclasses.replace(FAST, difficult=difficult))
        assert arrays["object_ids_n"].tolist() == ids


class TestParams:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"working_size": 8}, r"refine\.working_size must be 16\.\.4096, not 8"),
            ({"context": float("nan")}, r"refine\.context must be"),
            ({"iterations": 0}, r"refine\.iterations must be 1\.\.100, not 0"),
            ({"fallback_share": -0.1}, r"refine\.fallback_share must be 0\.0\.\.1\.0"),
            ({"sdi_iou": 1.1}, r"refine\.sdi_iou must be"),
            ({"sdi_area": 1.1}, r"refine\.sdi_area must be"),
            ({"trimap_low": -0.1}, r"refine\.trimap_low must be 0\.0\.\.1\.0"),
            ({"trimap_high": 1.1}, r"refine\.trimap_high must be 0\.0\.\.1\.0"),
            ({"trimap_low": 0.7}, r"refine\.trimap_low must be <= trimap_high, not 0\.7 and 0\.6"),
            ({"seed": -1}, r"refine\.seed must be"),
        ],
    )
    def test_bounds(self, given, message):
        with pytest.raises(ValueError, match=message):
            RefineParams(**given)

    def test_defaults_are_the_papers_trimap_and_the_first_cuts_crop(self):
        params, first = RefineParams(), GrabCutParams()
        assert (params.trimap_low, params.trimap_high, params.iterations) == (0.4, 0.6, 5)
        assert (params.working_size, params.context) == (first.working_size, first.context) == (384, 0.3)

    def test_stage(self):
        stage = refine()
        assert isinstance(stage, MapStage) and stage.name == "refine"
        assert stage.reads == ("image", "boxes") and stage.holds_classes and not stage.uses_torch

    def test_every_field_has_help(self):
        assert all(f.metadata.get("help") for f in dataclasses.fields(RefineParams))


def test_the_image_is_a_seed_and_the_data_sets_name_is_not(monkeypatch):
    seeds = []
    real = refine_module.refine_object
    monkeypatch.setattr(refine_module, "refine_object", lambda *given: seeds.append(given[-1]) or real(*given))
    image, truth = disc_image(size=40, radius=11, centre=(21, 19), noise=70)
    dense = pack_objects([0], [(8, 6, 34, 32)], [truth[6:32, 8:34].astype(np.float16)])
    for key in ("set/one", "a copy/one", "set/two"):
        refine_item(item(image, [Box(0, 1, 8, 6, 34, 32)], key=key, dense=dense), FAST)
    assert seeds[0] == seeds[1] != seeds[2]


def test_golden():
    """Fails when the masks change: then raise the stage's ``version``, and renew the digits."""
    image, truth = disc_image(size=40, radius=11, centre=(21, 19), noise=70)
    soft = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 4).astype(np.float16)
    boxes = [Box(0, 1, 8, 6, 34, 32), Box(1, 2, 16, 15, 24, 22)]
    dense = pack_objects([0, 1], [(8, 6, 34, 32), (16, 15, 24, 22)], [soft[6:32, 8:34], 1 - soft[15:22, 16:24]])
    arrays = refine_item(item(image, boxes, dense=dense), FAST)
    counts = np.bincount(arrays["mask_hw"].ravel(), minlength=3).tolist()
    assert (refine(FAST).version, counts) == (2, GOLDEN)


GOLDEN = [1215, 329, 56]
