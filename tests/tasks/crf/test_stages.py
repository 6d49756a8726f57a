"""The CRF as stages: golden masks, declared reads, addresses, caching; and behind DeepLab's prediction."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from crf_pictures import scene
from safetensors.torch import save_file

from artifacts import keys
from artifacts.records import Box, DataError, Record, RecordSet
from models import deeplab as networks
from tasks.crf import dense_crf as crf
from tasks.crf.dense_crf import PRESETS, BoxCRFParams, CRFParams, ProbsCRFParams, dense_crf, from_probabilities
from tasks.deeplab import inference
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DEMO, TestTimeParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.stage import Item, MapStage, SkipImage, call, check_outputs, stage_address

CLASSES = ("a", "b", "c")


def run(stage: MapStage, record: Record, image: np.ndarray, **up: dict[str, np.ndarray]) -> np.ndarray:
    item = Item("set/one", record.view(stage.reads), CLASSES, image, up=up)
    return call(stage, [item])[0]["mask_hw"]


def coarse(labels_hw: np.ndarray, numbers: tuple[int, ...], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What a network leaves: float16 probabilities at a coarse grid over some classes."""
    maps = [cv2.resize((labels_hw == n).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA) for n in numbers]
    probs = np.stack(maps) * 0.8 + 0.2 / len(numbers)
    return {"probs_chw": probs.astype(np.float16), "classes_c": np.array(numbers, np.uint8)}


IMAGE, LABELS = scene(48, 64, 12)
PROBS = coarse(LABELS, (0, 1, 3), (6, 8))
RECORD = Record("one", "one.png", boxes=(Box(0, 1, 4, 4, 40, 40), Box(1, 3, 30, 10, 60, 44)))

# From probabilities


def test_the_mask_is_the_crf_over_the_classes_present_at_the_images_size() -> None:
    mask = run(crf.from_probs(), RECORD, IMAGE, probs=PROBS)
    maps = torch.from_numpy(PROBS["probs_chw"]).float()[None]
    resized = F.interpolate(maps, IMAGE.shape[:2], mode="bilinear", align_corners=False)[0].numpy()
    q = dense_crf(IMAGE, from_probabilities(resized.astype(np.float64)))
    second, best = np.sort(q, axis=0)[-2:]
    clear = best - second > 1e-3
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(mask[clear], np.array([0, 1, 3])[q.argmax(0)][clear])
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 3}


@pytest.mark.parametrize("grid", [(1, 1), (6, 8), (48, 64), (96, 130)])
def test_any_grid_is_resized_between_cell_centres(grid: tuple[int, int]) -> None:
    probs = np.random.default_rng(0).random((3, *grid), np.float32)
    expected = F.interpolate(torch.from_numpy(probs)[None], (48, 64), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(crf.resize_probabilities(probs, (48, 64)), expected.numpy(), atol=2e-3)


def test_an_image_of_background_alone_is_background() -> None:
    probs = {"probs_chw": np.ones((1, 6, 8), np.float16), "classes_c": np.zeros(1, np.uint8)}
    assert not run(crf.from_probs(), RECORD, IMAGE, probs=probs).any()


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((3, 6, 8), [0, 1], r"probs_chw \(3, 6, 8\) and classes_c \(2,\) do not fit"),
        ((0, 6, 8), [], r"do not fit"),
        ((2, 6, 8), [0, 4], r"set/one: classes_c \[0, 4\] must be distinct numbers of 0\.\.3"),
        ((2, 6, 8), [1, 1], r"classes_c \[1, 1\]"),
    ],
)
def test_probabilities_without_their_classes_are_refused(shape: Any, classes: Any, message: str) -> None:
    probs = {"probs_chw": np.full(shape, 0.5, np.float16), "classes_c": np.array(classes, np.uint8)}
    with pytest.raises(DataError, match=message):
        run(crf.from_probs(), RECORD, IMAGE, probs=probs)


# From boxes


def test_boxes_constrain_the_mask() -> None:
    mask = run(crf.from_boxes(BoxCRFParams(core=0.25)), RECORD, IMAGE)
    outside = np.ones(mask.shape, bool)
    outside[4:40, 4:40] = outside[10:44, 30:60] = False
    assert not mask[outside].any(), "background outside of all boxes"
    assert (mask[13:31, 13:30] == 1).all() and (mask[18:35, 40:52] == 3).all(), "the middles"
    assert set(np.unique(mask)) == {0, 1, 3}


def test_a_flat_object_in_a_box_is_found_to_its_edge() -> None:
    image = np.full((40, 60, 3), 40, np.uint8)
    inside = np.zeros((40, 60), np.uint8)
    cv2.ellipse(inside, (30, 20), (18, 12), 0, 0, 360, 1, -1)
    image[inside == 1] = (200, 120, 30)
    mask = run(crf.from_boxes(), Record("one", "one.png", boxes=(Box(0, 2, 12, 8, 49, 33),)), image)
    np.testing.assert_array_equal(mask, 2 * inside)


def test_boxes_unknown_are_a_skip_and_no_boxes_background() -> None:
    with pytest.raises(SkipImage, match="no boxes are known"):
        run(crf.from_boxes(), Record("one", "one.png"), IMAGE)
    assert not run(crf.from_boxes(), Record("one", "one.png", boxes=()), IMAGE).any()
    hard = Record("one", "one.png", boxes=(Box(0, 1, 4, 4, 40, 40, difficult=True),))
    assert run(crf.from_boxes(), hard, IMAGE).any()
    assert not run(crf.from_boxes(BoxCRFParams(difficult=False)), hard, IMAGE).any()


# Addresses and caching


def test_everything_that_changes_masks_changes_the_address() -> None:
    def address(params: ProbsCRFParams) -> str:
        return stage_address(crf.from_probs(params), CLASSES, {})

    plain = ProbsCRFParams()
    others = [ProbsCRFParams(floor=1e-4)]
    changed = {"normalisation": "after", "backend": "exact"}
    for field in dataclasses.fields(CRFParams):
        value = changed.get(field.name, getattr(plain.crf, field.name))
        value = value if isinstance(value, str) else value + 1
        others.append(ProbsCRFParams(crf=dataclasses.replace(plain.crf, **{field.name: value})))
    assert len({address(params) for params in [plain, *others]}) == 1 + len(others)
    assert stage_address(crf.from_boxes(), CLASSES, {}) != stage_address(
        crf.from_boxes(BoxCRFParams(core=0.3)), CLASSES, {}
    )
    with_torch = [ProbsCRFParams(crf=CRFParams(backend=backend)) for backend in ("exact", "lattice-torch", "auto")]  # type: ignore[arg-type]
    assert [crf.from_probs(params).uses_torch for params in with_torch] == [True, True, False]


def test_stages_are_cached_and_read_what_they_declare(tmp_path: Path) -> None:
    records = []
    for name in ("x", "y"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), IMAGE)
        records.append(dataclasses.replace(RECORD, image_id=name, image=str(tmp_path / f"{name}.png"), tags=(1,)))
    data = RecordSet("set", "train", CLASSES, tuple(records))
    made = MapStage("probs", 1, None, ("image",), ("probs_chw", "classes_c"), "crf_pictures:two_class_probs")
    counts = []
    for _ in range(2):
        with Runner(RunParams(cache=str(tmp_path / "cache"), workers=0)) as runner:
            probs = runner.map(made, data)
            masks = runner.map(crf.from_probs(), data, probs=probs)
            runner.map(crf.from_boxes(), data)
            counts.append([(report.label, report.computed) for report in runner.reports])
            stored = runner.store.read(masks.address, "set/x", masks.produced["set/x"].stamp)
    assert counts == [
        [("probs", 2), ("crf", 2), ("crf-boxes", 2)],
        [("probs", 0), ("crf", 0), ("crf-boxes", 0)],
    ]
    assert stored["mask_hw"].shape == IMAGE.shape[:2] and set(np.unique(stored["mask_hw"])) <= {0, 2}
    assert crf.from_probs().reads == ("image",) and crf.from_boxes().reads == ("image", "boxes")


# Behind DeepLab's prediction


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Item:
    torch.manual_seed(3)
    network = networks.build("tiny", 4).eval()
    for branch in network.head.branches:  # type: ignore[union-attr]
        torch.nn.init.normal_(branch.weight, std=0.3)  # type: ignore[union-attr]
    path = tmp_path_factory.mktemp("net") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return Item("d/a", Record("a", "a.jpg"), CLASSES, IMAGE, nets={"net": str(path)})


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_both_masks_come_from_one_look_at_the_network(item: Item, fusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params = dataclasses.replace(DEMO, test=TestTimeParams((1.0, 0.75), fusion=fusion))
    with_crf = deeplab.predict(params, crf=PRESETS["rrm-test"])
    looks = []
    ask = inference.batch_scores
    monkeypatch.setattr(inference, "batch_scores", lambda *a, **k: looks.append(ask(*a, **k)) or looks[-1])
    out = check_outputs(with_crf, inference.predict_items([item], with_crf.params)[0])
    ((scores,),) = looks
    probs = scores.softmax(0) if fusion == "max" else scores
    expected = dense_crf(IMAGE, from_probabilities(probs.numpy()), PRESETS["rrm-test"]).argmax(0)
    np.testing.assert_array_equal(out["mask_crf_hw"], expected)
    assert (out["mask_crf_hw"] != out["mask_hw"]).any()
    plain = deeplab.predict(params)
    np.testing.assert_array_equal(out["mask_hw"], inference.predict_items([item], plain.params)[0]["mask_hw"])


def test_without_a_crf_the_prediction_is_what_it_was() -> None:
    """An optional part that is not there is in no address."""
    stage = deeplab.predict(DEMO)
    assert stage.outputs == ("mask_hw",)
    in_address = set(keys.canonical(stage.params)) - {"__params__"}
    assert in_address == {"network", "width", "output_stride", "atrous", "test"}
    addresses = {
        keys.digest(deeplab.predict(DEMO, crf=one).params) for one in (None, PRESETS["rrm-test"], PRESETS["deeplab-v2"])
    }
    assert len(addresses) == 3


# Golden: a change here without a new stage version would leave stale results in every cache


def shown(mask_hw: np.ndarray) -> list[str]:
    return ["".join(map(str, row)) for row in mask_hw[3::6, 2::4].tolist()]


def test_golden_masks() -> None:
    assert crf.from_probs().version == crf.from_boxes().version == 1
    assert deeplab.predict(DEMO, crf=CRFParams()).version == 3
    assert shown(run(crf.from_probs(), RECORD, IMAGE, probs=PROBS)) == GOLDEN_PROBS
    assert shown(run(crf.from_boxes(), RECORD, IMAGE)) == GOLDEN_BOXES


GOLDEN_PROBS = [
    "0000000000111100",
    "0000000000111000",
    "0000000000110000",
    "0000000000100000",
    "0000000000000000",
    "0000000000000000",
    "0000000000333300",
    "0000000003333300",
]
GOLDEN_BOXES = [
    "0000000000000000",
    "0000110000000000",
    "0011111133003000",
    "0011111133333000",
    "0011111333333000",
    "0001111113333000",
    "0000000000000000",
    "0000000000000000",
]
