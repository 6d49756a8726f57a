"""Is what cannot work refused before any work is done?"""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.datasets import DataParams
from artifacts.records import DataError, RecordSet
from flows.command import configure
from flows.page import run_page
from tasks import deeplab
from tasks.deeplab import DeepLabParams
from tasks.finish import Result
from tasks.options import RunParams
from tasks.run import Runner, StageFailed


def never(run: Runner, train: RecordSet, val: RecordSet, params: DeepLabParams) -> Result:
    if not run.planning:
        raise AssertionError("work was begun")
    return Result("", {}, {}, {})


def test_an_export_that_would_be_refused_at_the_end_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "dataset-voc").mkdir()
    (tmp_path / "dataset-voc" / "mine.txt").write_text("precious")
    options = RunParams(out=str(tmp_path), export=("voc",))
    with pytest.raises(DataError, match="no export of Maskmill"):
        run_page("cfs", never, DataParams("demo-tiny"), DeepLabParams(), options)


def test_a_data_error_in_the_middle_of_work_is_a_failure_not_wrong_usage(tmp_path: Path) -> None:
    def page(run: Runner, train: RecordSet, val: RecordSet, params: DeepLabParams) -> Result:
        if not run.planning:
            raise DataError("too late")
        return Result("", {}, {}, {})

    with pytest.raises(StageFailed, match="too late"):
        run_page("cfs", page, DataParams("demo-tiny"), DeepLabParams(), RunParams(out=str(tmp_path)))


def test_demo_data_bring_their_own_parameters() -> None:
    job = configure("cfs", "demo-tiny", None, (), {})
    assert job.params.deeplab == deeplab.PRESETS["demo-tiny"]
    assert job.data.source == "demo-tiny"
    assert configure("cfs", "demo", "demo-tiny", (), {}).data.source == "demo", "the option wins over the file"


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (DeepLabParams(batch=10), RunParams(devices=3, device="cpu"), "batch=10 cannot be shared by options.devices=3"),
        (DeepLabParams(precision="fp16"), RunParams(device="cpu"), "precision=fp16 needs a GPU"),
    ],
)
def test_impossible_combinations_are_refused(params: DeepLabParams, options: RunParams, message: str) -> None:
    with pytest.raises(DataError, match=message):
        deeplab.check_run(params, options)


def test_not_a_number_is_no_option() -> None:
    with pytest.raises(ValueError, match="image_timeout_s=nan"):
        RunParams(image_timeout_s=float("nan"))
