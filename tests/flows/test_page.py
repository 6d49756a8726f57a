"""Is what cannot work refused before any work is done?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.datasets import DataParams
from artifacts.records import DataError, RecordSet
from flows.cfs import CFSFlowParams, page
from flows.cli.flow_command import configure
from flows.run_flow import plan_page, read_sets, run_page, settle
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner, StageFailed
from tasks.evaluate.finish import Result
from tasks.training.params import check_run


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


def test_a_configuration_for_another_flow_says_where_and_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("data: {source: demo-tiny}\nflow: rrm\n")
    with pytest.raises(DataError, match=r"my.yaml, line 2: .*no flow 'rrm' yet; there are cfs"):
        configure("cfs", None, str(tmp_path / "my.yaml"), (), {})
    with pytest.raises(DataError, match=r"^--set: .*no flow 'rrm' yet"):
        configure("cfs", "demo-tiny", None, ("flow=rrm",), {})


def test_a_file_is_no_folder_for_output_or_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match=rf"--out {file}: {file} is a file"):
        settle(RunParams(out=str(file)))
    with pytest.raises(DataError, match=rf"--cache {file}/below: {file} is a file"):
        settle(RunParams(cache=str(file / "below")))


def test_data_without_the_labels_that_the_flow_needs_are_refused_in_the_plan(tmp_path: Path) -> None:
    options = RunParams(cache=str(tmp_path), device="cpu")
    train, val = read_sets(DataParams("demo-tiny"), options)
    doubled = replace(train, warnings=("odd",)), replace(val, warnings=("odd",))
    assert plan_page("cfs", page, doubled, CFSFlowParams(), options).warnings == ("odd",)
    bare = replace(train, records=tuple(replace(record, boxes=None, scribbles=None) for record in train))
    with pytest.raises(
        DataError, match=rf"cfs needs boxes, and .*{tmp_path}.* has none \(it has tags\): add boxes.csv"
    ):
        plan_page("cfs", page, (bare, val), CFSFlowParams(), options)
    one = replace(train, records=(*bare.records, *train.records[:1]))
    plan_page("cfs", page, (one, val), CFSFlowParams(), options)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (DeepLabParams(batch=10), RunParams(devices=3, device="cpu"), "batch=10 cannot be shared by options.devices=3"),
        (DeepLabParams(precision="fp16"), RunParams(device="cpu"), "precision=fp16 needs a GPU"),
    ],
)
def test_impossible_combinations_are_refused(params: DeepLabParams, options: RunParams, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_run(params, options, name="deeplab")


def test_not_a_number_is_no_option() -> None:
    with pytest.raises(ValueError, match="image_timeout_s=nan"):
        RunParams(image_timeout_s=float("nan"))
