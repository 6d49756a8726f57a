"""The DeepLab stages: what decides an address, inference of an image, how a fit learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from artifacts import keys
from artifacts.records import Box, DataError, Record
from models import deeplab as networks
from tasks.crf.dense_crf import from_probs, resize_probabilities
from tasks.deeplab import inference
from tasks.deeplab import stages as deeplab
from tasks.deeplab.build import build_network
from tasks.deeplab.lgsa import Attention, LGSAParams, chosen
from tasks.deeplab.stages import DEMO, PRESETS, DeepLabParams, TestTimeParams
from tasks.engine.options import RunParams
from tasks.stage import Item, SkipImage, call, stage_address
from tasks.training.networks import load_network
from tasks.training.params import check_run
from tasks.training.weights import WeightsError

# Params and addresses


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale_range", (1.5, 0.5), "scale_range"),
        ("weights", "imagenet", "tiny"),
        ("weights", "", "weights is empty"),
        ("network", "resnet34", "network 'resnet34' is unknown; known: tiny, .*, resnet101, lite0, timm:NAME"),
        ("batch_norm", "trained", "batch_norm 'trained' with network 'tiny': only lite0 and timm:NAME"),
        ("head_multipliers", (1.0, 1.0), "head_multipliers .* with network 'tiny': only lite0 and timm:NAME"),
        ("output_stride", 16, "output_stride 16 with network 'tiny': it can be 4 or 8"),
    ],
)
def test_impossible_values_name_field_and_value(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DEMO, **{field: value})


def test_no_test_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"test\.scales is empty"):
        TestTimeParams(scales=())


def test_presets_are_the_papers() -> None:
    v2, fov = PRESETS["voc-resnet101"], PRESETS["voc-largefov"]
    assert (v2.crop, v2.batch, v2.lr, v2.momentum, v2.weight_decay, v2.poly_power) == (321, 10, 2.5e-4, 0.9, 5e-4, 0.9)
    assert (fov.crop, fov.batch, fov.lr, fov.iterations, fov.weights) == (321, 30, 1e-3, 20_000, "imagenet")
    assert not v2.multi_scale_inputs
    assert PRESETS["demo"].network == "tiny" and PRESETS["demo"].iterations == 800


def test_the_defaults_alone_are_a_whole() -> None:
    """What photographs can be learnt with, and none of the numbers of a network from scratch."""
    params = DeepLabParams()
    v2 = PRESETS["voc-resnet101"]
    shared = ("weights", "crop", "scale_range", "batch", "optimizer", "lr", "momentum", "weight_decay", "poly_power")
    assert all(getattr(params, name) == getattr(v2, name) for name in shared)
    assert (params.network, params.weights, params.iterations) == ("resnet50", "imagenet", 0)
    assert params.total_iterations(200) == 1000, "each of 200 photographs 50 times"


def test_the_papers_15_epochs_of_voc() -> None:
    assert DeepLabParams(epochs=15).total_iterations(10_582) == 15_873
    assert DeepLabParams(epochs=15, iterations=7).total_iterations(10_582) == 7


def fit_address(params: DeepLabParams) -> str:
    return stage_address(deeplab.fit(params), ("a", "b"), {})


def test_how_the_network_is_asked_does_not_touch_the_fit() -> None:
    other = dataclasses.replace(DEMO, test=TestTimeParams((0.5, 1.0)), compile=True, channels_last=False)
    assert fit_address(other) == fit_address(DEMO)
    assert fit_address(dataclasses.replace(DEMO, lr=1e-3)) != fit_address(DEMO)
    predicting = [keys.digest(deeplab.predict(p).params) for p in (DEMO, other, dataclasses.replace(DEMO, lr=1e-3))]
    assert predicting[0] == predicting[2] != predicting[1]


def test_norms_and_rates_count_where_they_can_be_chosen_and_nowhere_else() -> None:
    lite0 = dataclasses.replace(DEMO, network="lite0", output_stride=16)
    trained = dataclasses.replace(lite0, batch_norm="trained")
    assert fit_address(trained) != fit_address(lite0)
    assert fit_address(dataclasses.replace(lite0, head_multipliers=(1.0, 1.0))) != fit_address(lite0)
    # The same numbers are asked in the same way.
    assert keys.digest(deeplab.predict(trained).params) == keys.digest(deeplab.predict(lite0).params)
    assert not {"batch_norm", "head_multipliers"} & set(keys.canonical(deeplab.fit(DEMO).params))


def test_a_timm_model_that_cannot_be_is_refused_before_any_work() -> None:
    params = dataclasses.replace(DEMO, network="timm:densenet121", output_stride=16)
    with pytest.raises(DataError, match=r"params\.deeplab: network .* cannot give output_stride 16; set output_stride"):
        check_run(params, RunParams(), name="deeplab")
    check_run(dataclasses.replace(params, output_stride=32), RunParams(), name="deeplab")


def test_a_weights_file_is_an_input_known_by_content_not_by_path(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    params = [DeepLabParams(network="resnet18", weights=str(tmp_path / n)) for n in ("a.pth", "b.pth")]
    stages = [deeplab.fit(p) for p in params]
    assert [s.inputs["weights"].name for s in stages] == ["a.pth", "b.pth"]
    assert fit_address(params[0]) == fit_address(params[1])
    assert fit_address(dataclasses.replace(params[0], weights=f"caffe:{tmp_path / 'a.pth'}")) != fit_address(params[0])
    with pytest.raises(WeightsError, match=r"no\.pth does not exist; set params\.deeplab\.weights="):
        deeplab.fit(dataclasses.replace(params[0], weights=str(tmp_path / "no.pth")))


# Inference


@pytest.fixture(scope="module")
def tiny() -> networks.DeepLab:
    torch.manual_seed(3)
    network = networks.build("tiny", 4)
    for branch in network.head.branches:  # type: ignore[union-attr]
        torch.nn.init.normal_(branch.weight, std=0.05)  # type: ignore[union-attr]
    with torch.no_grad():
        logits = network.train()(torch.randint(0, 256, (4, 3, 64, 64)).float())
        network.head.branches[0].bias -= logits.mean((0, 2, 3))  # type: ignore[union-attr,index]
    return network.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return coarse.repeat(6, 0).repeat(6, 1)[:height, :width]


def test_scores_are_the_average_of_each_scale_and_mirror_at_the_images_own_size(tiny: networks.DeepLab) -> None:
    image = picture(48, 80)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    total = torch.zeros(4, 48, 80)
    with torch.no_grad():
        for height, width in ((48, 80), (72, 120), (24, 40)):  # whole cells; other sides: tests/models/test_resample.py
            scaled = F.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
            for mirror in (False, True):
                logits = tiny(torch.flip(scaled, [3]) if mirror else scaled)
                logits = F.interpolate(logits, (48, 80), mode="bilinear", align_corners=False)
                total += (torch.flip(logits, [3]) if mirror else logits).softmax(1)[0]
    scores = inference.predict_scores(tiny, image, (1.0, 1.5, 0.5), flip=True)
    torch.testing.assert_close(scores, total / 6, rtol=1e-4, atol=1e-5)
    assert float((scores.sum(0) - 1).abs().max()) < 1e-5


def test_max_fusion_takes_the_larger_logit(tiny: networks.DeepLab) -> None:
    image = picture(48, 48)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        one = F.interpolate(tiny(tensor), (48, 48), mode="bilinear", align_corners=False)
        half = tiny(F.interpolate(tensor, (24, 24), mode="bilinear", antialias=True))
        half = F.interpolate(half, (48, 48), mode="bilinear", align_corners=False)
    scores = inference.predict_scores(tiny, image, (1.0, 0.5), fusion="max")
    torch.testing.assert_close(scores, torch.maximum(one, half)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (500, 7), (97, 31)])
def test_any_size_is_answered_at_that_size(tiny: networks.DeepLab, size: tuple[int, int]) -> None:
    assert inference.predict_scores(tiny, picture(*size), (0.5, 1.0), flip=True).shape == (4, *size)


def test_an_image_larger_than_the_crop_is_not_cropped(tiny: networks.DeepLab, tmp_path: Path) -> None:
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    params = dataclasses.replace(DEMO, crop=16, test=TestTimeParams())
    image = picture(150, 130)
    item = Item(
        "d/a", Record("a", "a.jpg"), ("x", "y", "z"), image, nets={"net": str(tmp_path / "weights.safetensors")}
    )
    out = inference.predict_items([item], deeplab.predict(params).params)[0]
    assert out["mask_hw"].dtype == np.uint8 and out["mask_hw"].shape == (150, 130)
    np.testing.assert_array_equal(out["mask_hw"], inference.predict_scores(tiny, image).argmax(0).numpy())
    assert len(np.unique(out["mask_hw"])) > 1
    assert out["mask_hw"].max() <= 3


@pytest.mark.parametrize("flip", [False, True])
def test_images_together_are_predicted_as_one_by_one(tiny: networks.DeepLab, tmp_path: Path, flip: bool) -> None:
    """Of any sizes, in their own order; on a GPU a stage is handed several."""
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    net = {"net": str(tmp_path / "weights.safetensors")}
    sizes = [(40, 50), (9, 70), (40, 50), (64, 48), (9, 70)]
    items = [
        Item(f"d/{i}", Record(str(i), "a.jpg", tags=(1 + i % 3,)), ("x", "y", "z"), picture(*size, seed=i), nets=net)
        for i, size in enumerate(sizes)
    ]
    params = dataclasses.replace(DEMO, test=TestTimeParams((1.0, 0.5), flip=flip))
    for stage in (deeplab.predict(params), deeplab.predict_probs(params)):
        assert stage.images_at_once > 1
        together = call(stage, items)
        for item, arrays in zip(items, together, strict=True):
            alone = call(stage, [item])[0]
            assert arrays.keys() == alone.keys()
            for name, array in alone.items():
                np.testing.assert_allclose(arrays[name].astype(float), array.astype(float), atol=2e-3)


def test_a_checkpoint_of_other_classes_or_cut_short_is_named(tiny: networks.DeepLab, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(tiny.state_dict(), file)
    params = deeplab.predict(DEMO).params
    with pytest.raises(WeightsError, match=r"weights\.safetensors does not fit.*head.*file \(4.*network \(9"):
        load_network(str(file), build_network, params, 9, "cpu")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"weights\.safetensors is cut short"):
        load_network(str(file), build_network, params, 4, "cpu")


def test_the_network_is_kept_between_images_and_read_anew_when_the_file_changes(
    tiny: networks.DeepLab, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(tiny.state_dict(), file)
    params = deeplab.predict(DEMO).params
    first = load_network(str(file), build_network, params, 4, "cpu")
    assert load_network(str(file), build_network, params, 4, "cpu") is first
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    save_file({k: v + 1 if "branches" in k else v for k, v in tiny.state_dict().items()}, tmp_path / "new")
    (tmp_path / "new").replace(file)
    assert load_network(str(file), build_network, params, 4, "cpu") is not first


def test_one_of_several_networks_in_a_checkpoint_is_asked(tiny: networks.DeepLab, tmp_path: Path) -> None:
    file, params = tmp_path / "weights.safetensors", dataclasses.replace(DEMO, test=TestTimeParams())
    other = {f"critic.{name}": torch.zeros_like(tensor) for name, tensor in tiny.state_dict().items()}
    save_file(other | {f"generator.{name}": tensor for name, tensor in tiny.state_dict().items()}, file)
    image = picture(40, 50)
    item = Item("d/a", Record("a", "a.jpg"), ("x", "y", "z"), image, nets={"net": str(file)})
    item = dataclasses.replace(item, prefixes={"net": "generator."})
    out = inference.predict_items([item], deeplab.predict(params).params)[0]
    np.testing.assert_array_equal(out["mask_hw"], inference.predict_scores(tiny, image).argmax(0).numpy())
    with pytest.raises(WeightsError, match=r"no tensor's name begins with 'judge\.'"):
        load_network(str(file), build_network, deeplab.predict(params).params, 4, "cpu", "judge.")


@pytest.mark.parametrize("attention", ["none", "lgsa"])
def test_the_network_is_asked_at_the_stride_that_it_was_fitted_with(attention: Attention, tmp_path: Path) -> None:
    """The weights fit every stride: only the params can tell."""
    params = dataclasses.replace(DEMO, width=4, output_stride=4)
    lgsa = chosen(attention, LGSAParams())
    network = build_network(deeplab.fit(params, lgsa=lgsa).params, 4)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    predicting = load_network(
        str(tmp_path / "weights.safetensors"), build_network, deeplab.predict(params, lgsa=lgsa).params, 4, "cpu"
    )
    for one in (network, predicting):
        assert one.features(torch.zeros(1, 3, 32, 48)).shape == (1, 16, 8, 12)
    with pytest.raises(ValueError, match="output_stride 4 with network 'resnet101'"):
        dataclasses.replace(deeplab.PRESETS["voc-resnet101"], output_stride=4)


# Probabilities


def probs_of(network: torch.nn.Module, folder: Path, image: np.ndarray, tags: Any, **change: Any) -> dict[str, Any]:
    save_file(network.state_dict(), folder / "weights.safetensors")
    stage = deeplab.predict_probs(dataclasses.replace(DEMO, **change))
    record = Record("a", "a.jpg", tags=tags)
    item = Item("d/a", record, ("x", "y", "z"), image, nets={"net": str(folder / "weights.safetensors")})
    return call(stage, [item])[0]


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_probabilities_of_the_own_classes_at_the_output_grid(
    tiny: networks.DeepLab, tmp_path: Path, fusion: Any
) -> None:
    image = picture(50, 70)
    test = TestTimeParams((1.0, 0.5), flip=True, fusion=fusion)
    found = probs_of(tiny, tmp_path, image, (3, 1), test=test)
    assert found["classes_c"].tolist() == [0, 1, 3] and found["classes_c"].dtype == np.uint8
    assert found["probs_chw"].dtype == np.float16 and found["probs_chw"].shape == (3, 7, 9)
    if fusion == "mean":
        # What a reader makes of it is what the stage predict sees, but for the grid's resolution.
        whole = inference.predict_scores(tiny, image, (1.0, 0.5), True)[[0, 1, 3]].numpy()
        assert float(np.abs(resize_probabilities(found["probs_chw"], (50, 70)) - whole).mean()) < 0.02
    image = picture(48, 64)
    one = probs_of(tiny, tmp_path, image, (1, 2, 3), test=TestTimeParams(fusion=fusion))
    expected = tiny(torch.from_numpy(image.transpose(2, 0, 1).copy())[None]).softmax(1)[0].detach().numpy()
    np.testing.assert_allclose(one["probs_chw"], expected, atol=1e-3)


@pytest.mark.parametrize(("size", "grid"), [((1, 1), (1, 1)), ((3, 200), (1, 25)), ((97, 31), (12, 4))])
def test_probabilities_of_any_size_cover_the_image_alone(
    tiny: networks.DeepLab, tmp_path: Path, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    found = probs_of(tiny, tmp_path, picture(*size), (2,), test=TestTimeParams((0.5, 1.0)))
    assert found["probs_chw"].shape == (2, *grid)


def test_probabilities_of_an_image_without_known_classes_are_a_skip(tiny: networks.DeepLab, tmp_path: Path) -> None:
    with pytest.raises(SkipImage, match="d/a: no tags are known"):
        probs_of(tiny, tmp_path, picture(20, 20), None)
    assert probs_of(tiny, tmp_path, picture(20, 20), ())["classes_c"].tolist() == [0]


def test_all_classes_are_kept_without_a_look_at_tags(tiny: networks.DeepLab, tmp_path: Path) -> None:
    """Of images that are scored: their tags come from the truth."""
    stage = deeplab.predict_probs(DEMO, keep="all")
    assert stage.reads == ("image",) and deeplab.predict_probs(DEMO).reads == ("image", "tags")
    assert stage_address(stage, ("x",), {}) != stage_address(deeplab.predict_probs(DEMO), ("x",), {})
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    net = {"net": str(tmp_path / "weights.safetensors")}
    item = Item("d/a", Record("a", "a.jpg"), ("x", "y", "z"), picture(40, 40), nets=net)
    found = call(stage, [item])[0]
    assert found["classes_c"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found["probs_chw"].astype(float).sum(0), 1, atol=2e-3)


def test_the_classes_of_the_boxes_are_kept_without_a_look_at_tags(tiny: networks.DeepLab, tmp_path: Path) -> None:
    stage = deeplab.predict_probs(DEMO, keep="boxes")
    assert stage.reads == ("image", "boxes")
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    net = {"net": str(tmp_path / "weights.safetensors")}
    boxes = (Box(0, 3, 0, 0, 9, 9), Box(1, 1, 0, 0, 9, 9, difficult=True), Box(2, 3, 1, 1, 9, 9))
    for own, expected in ((boxes, [0, 1, 3]), ((), [0]), ((Box(0, 2, 0, 0, 9, 9, crowd=True),), [0])):
        item = Item("d/a", Record("a", "a.jpg", boxes=own), ("x", "y", "z"), picture(20, 20), nets=net)
        found = call(stage, [item])[0]
        assert found["classes_c"].tolist() == expected and len(found["probs_chw"]) == len(expected)
    with pytest.raises(SkipImage, match="a: no boxes are known"):
        call(stage, [Item("d/a", Record("a", "a.jpg"), ("x",), picture(20, 20), nets=net)])


def test_probabilities_go_into_the_crf_as_they_are(tiny: networks.DeepLab, tmp_path: Path) -> None:
    image = picture(50, 70)
    stage = from_probs()
    item = Item("d/a", Record("a", "a.jpg"), ("x", "y", "z"), image, {"probs": probs_of(tiny, tmp_path, image, (2,))})
    assert set(np.unique(call(stage, [item])[0]["mask_hw"])) <= {0, 2}


# Golden: a change here without a new stage version would leave stale results in every cache


def test_golden_prediction(tiny: networks.DeepLab) -> None:
    assert deeplab.predict(DEMO).version == 3
    scores = inference.predict_scores(tiny, picture(96, 160, seed=5), (1.0, 0.5), flip=False)
    best = scores.topk(2, dim=0).values
    assert float((best[0] - best[1])[4::8, 4::8].min()) > 1e-4, "too close to call: choose another picture"
    found = ["".join(map(str, row)) for row in scores.argmax(0)[4::8, 4::8].tolist()]
    assert found == GOLDEN_MASK


GOLDEN_MASK = [
    "00222222222222223333",
    "00222322222323323333",
    "00222222222232333333",
    "00222222222222333333",
    "00222222322222323232",
    "02222222322233322233",
    "02222222222202223333",
    "02222222222222223333",
    "20222222222222222030",
    "22222222222222222200",
    "11222222222222221111",
    "11222112222122221111",
]
