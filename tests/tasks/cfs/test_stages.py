"""CFS's params and stages: the paper's values, what decides an address, epochs as iterations, which boxes count."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts import keys
from artifacts.objects import OBJECT_ARRAYS
from artifacts.records import Box, DataError
from tasks.cfs import network as cfs_net
from tasks.cfs import stages as cfs
from tasks.cfs.stages import DEMO, PRESETS, CFSParams, CFSPredictParams, learnable, rate_factor
from tasks.engine.options import RunParams
from tasks.stage import resolve, stage_address
from tasks.training.params import check_run
from tasks.training.weights import WeightsError

BOX = Box(0, 1, 10, 10, 60, 60)


class TestParams:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("weights", "imagenet", "with network 'tiny'"),
            ("weights", "", "weights is empty"),
            (
                "network",
                "resnet101",
                "network 'resnet101' is unknown; known: tiny, resnet18, resnet50, lite0, timm:NAME",
            ),
        ],
    )
    def test_impossible_values_name_field_and_value(self, field: str, value: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(DEMO, **{field: value})

    def test_the_voc_preset_is_the_papers(self) -> None:
        voc = PRESETS["voc"]
        assert (voc.network, voc.weights, voc.crop, voc.context, voc.min_side) == ("resnet50", "imagenet", 224, 1.5, 50)
        assert (voc.optimizer, voc.lr, voc.lr_decay, voc.decay_every, voc.epochs) == ("sgd", 0.005, 0.8, 10, 60)
        assert (voc.batch, voc.momentum, voc.weight_decay, voc.iterations) == (32, 0.9, 5e-4, 0)
        assert voc.class_channel and voc.deep_refeed
        assert set(PRESETS) == {"voc", "demo", "demo-tiny"}

    def test_runs_that_cannot_be_are_refused_before_any_work(self) -> None:
        with pytest.raises(DataError, match=r"params\.cfs\.batch=32 cannot be shared by options\.devices=3"):
            check_run(DEMO, RunParams(devices=3), name="cfs")
        with pytest.raises(DataError, match=r"params\.cfs\.precision=fp16 needs a GPU"):
            check_run(dataclasses.replace(DEMO, precision="fp16"), RunParams(device="cpu"), name="cfs")
        check_run(DEMO, RunParams(devices=2), name="cfs")

    @pytest.mark.parametrize(
        ("network", "batch_norm", "devices", "crop"),
        [("tiny", "trained", 1, 17), ("tiny", "frozen", 1, 17), ("resnet50", "trained", 2, 32)],
    )
    def test_one_small_crop_a_device_is_refused_with_what_to_set(
        self, network: Any, batch_norm: Any, devices: int, crop: int
    ) -> None:
        params = CFSParams(network=network, weights="none", batch_norm=batch_norm, crop=crop, batch=devices)
        options = RunParams(devices=devices)
        fault = rf"params\.cfs\.batch={devices} .* params\.cfs\.crop={crop} .* to {2 * devices} or more.* {crop + 1} or"
        with pytest.raises(DataError, match=fault):
            check_run(params, options, name="cfs")
        check_run(dataclasses.replace(params, crop=crop + 1), options, name="cfs")
        check_run(dataclasses.replace(params, batch=2 * devices), options, name="cfs")

    def test_a_timm_model_that_is_no_encoder_is_refused_before_any_work(self) -> None:
        params = CFSParams(network="timm:rsnet18", weights="none")
        with pytest.raises(DataError, match=r"params\.cfs: network 'timm:rsnet18': .* close: timm:resnet18"):
            check_run(params, RunParams(), name="cfs")
        check_run(dataclasses.replace(params, network="timm:resnet18"), RunParams(), name="cfs")

    def test_describing_a_stage_loads_no_torch(self) -> None:
        code = (
            "import sys; from tasks.cfs import stages as cfs; cfs.fit(cfs.DEMO); cfs.predict(cfs.DEMO);"
            " print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


class TestSchedule:
    def test_an_epoch_is_every_object_once(self) -> None:
        assert CFSParams(batch=32, epochs=60).total_iterations(320) == 600
        assert CFSParams(batch=32, epochs=3).total_iterations(33) == 4  # 99 samples
        assert CFSParams(batch=32, epochs=60).total_iterations(1) == 2
        assert CFSParams(iterations=7).total_iterations(10_000) == 7

    def test_the_papers_rates_by_hand(self) -> None:
        params = CFSParams(batch=32, epochs=60)
        of_epoch = [rate_factor(params, 10 * epoch, 600) for epoch in range(60)]
        assert of_epoch == pytest.approx([0.8 ** (epoch // 10) for epoch in range(60)])
        assert rate_factor(params, 99, 600) == 1.0 and rate_factor(params, 100, 600) == 0.8
        assert rate_factor(params, 599, 600) == pytest.approx(0.8**5)

    def test_given_iterations_stretch_the_epochs(self) -> None:
        params = CFSParams(epochs=60, iterations=12)
        assert [rate_factor(params, step, 12) for step in range(12)] == pytest.approx(
            [0.8 ** (step // 2) for step in range(12)]
        )


class TestBoxes:
    @pytest.mark.parametrize(
        ("change", "learnt"),
        [
            ({}, True),
            ({"x1": 59.9}, False),
            ({"y1": 59.9}, False),
            ({"crowd": True}, False),
            ({"difficult": True}, True),
        ],
    )
    def test_boxes_under_fifty_pixels_and_crowds_are_not_learnt_from(self, change: Any, learnt: bool) -> None:
        assert learnable(dataclasses.replace(BOX, **change), CFSParams()) is learnt

    def test_difficult_ones_by_parameter(self) -> None:
        assert not learnable(dataclasses.replace(BOX, difficult=True), CFSParams(difficult=False))


class TestStages:
    def address(self, params: CFSParams) -> str:
        return stage_address(cfs.fit(params), ("a", "b"), {})

    def test_what_they_declare(self) -> None:
        fit, predict = cfs.fit(DEMO), cfs.predict(DEMO)
        assert (fit.name, fit.version, fit.reads, fit.seed) == ("cfs", 3, ("image", "boxes"), DEMO.seed)
        assert (predict.name, predict.version, predict.reads) == ("cfs-predict", 2, ("image", "boxes"))
        assert set(predict.outputs) == {"mask_hw", "object_classes_n", *OBJECT_ARRAYS}
        assert predict.uses_torch and predict.holds_classes
        assert resolve(fit.function) is cfs_net.train and resolve(predict.function) is cfs_net.predict_item

    def test_every_learnt_field_is_in_the_fits_address_and_how_it_is_asked_is_not(self) -> None:
        operational = {"test_flip": False, "predict_batch": 3, "compile": True, "channels_last": False}
        assert self.address(dataclasses.replace(DEMO, **operational)) == self.address(DEMO)
        first = dataclasses.replace(DEMO, network="resnet18")  # with it every other value is allowed
        words: dict[str, Any] = {
            "network": "resnet50",
            "weights": "imagenet",
            "batch_norm": "frozen",
            "optimizer": "sgd",
        }
        words |= {"precision": "bf16", "betas": (0.8, 0.9)}
        without_effect = {"momentum"}  # AdamW has none
        learnt = [entry.name for entry in dataclasses.fields(CFSParams) if entry.name not in operational]
        for name in learnt:
            value = getattr(first, name)
            other = not value if isinstance(value, bool) else words.get(name) or value * 0.9 or 1
            same = self.address(dataclasses.replace(first, **{name: other})) == self.address(first)
            assert same == (name in without_effect), name

    def test_a_prediction_depends_on_what_shapes_it_and_nothing_else(self) -> None:
        def digest(**change: Any) -> str:
            return keys.digest(cfs.predict(dataclasses.replace(DEMO, **change)).params)

        assert {digest(lr=1e-3), digest(predict_batch=1), digest(iterations=5), digest(channels_last=False)} == {
            digest()
        }
        assert len({digest(), digest(crop=96), digest(context=2.0), digest(test_flip=False), digest(width=8)}) == 5
        assert {f.name for f in dataclasses.fields(CFSPredictParams)} <= {f.name for f in dataclasses.fields(CFSParams)}

    def test_a_weights_file_is_an_input_known_by_content_not_by_path(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.pth"):
            (tmp_path / name).write_bytes(b"x")
        params = [CFSParams(network="resnet18", weights=str(tmp_path / name)) for name in ("a.pth", "b.pth")]
        assert [cfs.fit(one).inputs["weights"].name for one in params] == ["a.pth", "b.pth"]
        assert self.address(params[0]) == self.address(params[1])
        with pytest.raises(WeightsError, match=r"no\.pth does not exist; set params\.cfs\.weights="):
            cfs.fit(dataclasses.replace(params[0], weights=str(tmp_path / "no.pth")))
