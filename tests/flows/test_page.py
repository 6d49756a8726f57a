"""Is what cannot work refused before any work is done?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.datasets import DataParams
from artifacts.records import DataError, Kind, RecordSet, Sets
from flows.cfs import CFSFlowParams, page
from flows.config import ConfigError, as_yaml
from flows.configure import configure
from flows.run_flow import defaults_left, plan_page, read_sets, resolve_options, run_page
from flows.unread import watched
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner, StageFailed
from tasks.evaluate.finish import Result
from tasks.stage import FitStage, MapStage
from tasks.training.params import check_run


def never(run: Runner, sets: Sets, params: DeepLabParams) -> Result:
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
    def page(run: Runner, sets: Sets, params: DeepLabParams) -> Result:
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
    (tmp_path / "my.yaml").write_text("data: {source: demo-tiny}\nflow: odd\n")
    with pytest.raises(DataError, match=r"my.yaml, line 2: .*no flow 'odd'; there are cfs"):
        configure("cfs", None, str(tmp_path / "my.yaml"), (), {})
    with pytest.raises(DataError, match=r"^--set: .*no flow 'odd'; there are"):
        configure("cfs", "demo-tiny", None, ("flow=odd",), {})


def test_a_file_is_no_folder_for_output_or_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match=rf"--out {file}: {file} is a file"):
        resolve_options(RunParams(out=str(file)))
    with pytest.raises(DataError, match=rf"--cache {file}/below: {file} is a file"):
        resolve_options(RunParams(cache=str(file / "below")))


def test_data_without_the_labels_that_the_flow_needs_are_refused_in_the_plan(tmp_path: Path) -> None:
    options = RunParams(cache=str(tmp_path), device="cpu")
    sets = read_sets(DataParams("demo-tiny"), options)
    train = sets.train
    doubled = Sets(*(replace(records, warnings=("odd",)) for records in sets))
    assert plan_page("cfs", page, doubled, CFSFlowParams(), options).warnings == ("odd",)
    bare = replace(train, records=tuple(replace(record, boxes=None, scribbles=None) for record in train))
    bare = replace(bare, warnings=("9 x row for an image that is not there",))
    with pytest.raises(
        DataError, match=rf"cfs needs boxes, and .*{tmp_path}.* has none \(it has tags\): add boxes.csv.*; 9 x row for"
    ):
        plan_page("cfs", page, replace(sets, train=bare), CFSFlowParams(), options)
    one = replace(train, records=(*bare.records, *train.records[:1]))
    plan_page("cfs", page, replace(sets, train=one), CFSFlowParams(), options)


@pytest.mark.parametrize("verb", ["map", "fit"])
def test_each_set_needs_the_labels_that_are_read_from_it(tmp_path: Path, verb: str) -> None:
    """By map stages and by fits; of a part of a set, the set itself."""
    wanted: tuple[Kind, ...] = ("image", "scribbles")

    def page(run: Runner, sets: Sets, of: str) -> Result:
        records = getattr(sets, of)
        records = records.only([records.records[0].image_id])
        if verb == "map":
            run.map(MapStage("scribbled", 1, None, wanted, ("mask_hw",), "nowhere:map"), records)
        else:
            run.fit(FitStage("scribbled", 1, None, wanted, "nowhere:fit"), records)
        return Result("", {}, {}, {})

    options = RunParams(cache=str(tmp_path), device="cpu")
    whole = read_sets(DataParams("demo-tiny", aux=DataParams("demo-tiny-auxiliary")), options)
    names = ("train", "val", "aux")
    bare = Sets(*(replace(records, records=tuple(replace(r, scribbles=None) for r in records)) for records in whole))
    for of in names:
        records: RecordSet = getattr(whole, of)
        with pytest.raises(DataError, match=rf"odd needs scribbles, and split {records.split} of .*{records.root} has"):
            plan_page("odd", page, replace(whole, **{of: getattr(bare, of)}), of, options)
        one = (*getattr(bare, of).records[:-1], records.records[-1])
        plan_page("odd", page, replace(bare, **{of: replace(records, records=one)}), of, options)


AUX = "data.aux.source=demo-tiny-auxiliary"


def test_auxiliary_data_reach_the_page_and_are_remembered(tmp_path: Path) -> None:
    seen: list[Sets] = []

    def page(run: Runner, sets: Sets, params: CFSFlowParams) -> Result:
        seen.append(sets)
        return Result("", {}, {}, {})

    job = configure("cfs", "demo-tiny", None, (AUX, "data.aux.name=others"), {"cache": str(tmp_path)})
    assert job.data.aux == DataParams("demo-tiny-auxiliary", name="others")
    run_page("cfs", page, job.data, job.params, job.options)
    for sets in seen:
        assert sets.aux is not None and (sets.aux.dataset, sets.aux.split, len(sets.aux)) == ("others", "train", 12)
        assert not set(sets.aux.classes) & set(sets.train.classes) and list(sets) == [sets.train, sets.val, sets.aux]
    assert len(seen) == 2 and (tmp_path / "datasets" / "others.json").exists()
    assert list(Sets(seen[0].train, seen[0].val)) == [seen[0].train, seen[0].val]


def test_auxiliary_data_are_shown_and_read_back(tmp_path: Path) -> None:
    for given in ((), (AUX, "data.aux.val_share=0")):
        job = configure("cfs", "demo-tiny", None, given, {})
        shown = as_yaml("cfs", {"data": job.data, "params": job.params, "options": job.options})
        (tmp_path / "shown.yaml").write_text(shown)
        assert configure("cfs", None, str(tmp_path / "shown.yaml"), (), {}) == job
    assert "  aux:\n    source: demo-tiny-auxiliary" in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("data.aux.train=x",), r"^--set: data.aux: .*give data.aux.source"),
        (("data.aux=voc:/x",), r"^--set: data.aux: "),
        (("data.aux.source=vok:/x",), r"^--set: data.aux.source: source must start with"),
        (("data.aux.sorce=demo",), r"give data.aux.source"),
        ((AUX, "data.aux.trian=x"), r"^--set: data.aux.trian: no such parameter \(did you mean 'train'"),
        ((AUX, "data.aux.aux.source=demo"), r"^--set: data.aux: aux must have no auxiliary data of its own"),
    ],
)
def test_auxiliary_data_that_cannot_be_are_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure("cfs", "demo-tiny", None, given, {})


def test_two_data_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    for aux in (DataParams("demo-tiny-auxiliary", name="demo-tiny"), DataParams("demo-tiny", difficult=False)):
        with pytest.raises(DataError, match=r"the name 'demo-tiny' of .*--set data.aux.name=demo-tiny-aux"):
            read_sets(DataParams("demo-tiny", aux=aux), RunParams(cache=str(tmp_path)))
    same = read_sets(DataParams("demo-tiny", aux=DataParams("demo-tiny", train="val")), RunParams(cache=str(tmp_path)))
    assert same.aux is not None and same.aux.split == "val"


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
    with pytest.raises(ValueError, match=r"options\.image_timeout_s must be .* not nan"):
        RunParams(image_timeout_s=float("nan"))


def test_what_differs_from_the_default_is_told_with_it() -> None:
    data = DataParams("voc:x", difficult=False)
    params = CFSFlowParams(student="none", deeplab=DeepLabParams(crop=99))
    found = defaults_left(data, params)
    assert found == {
        "data.source": "demo",
        "data.difficult": True,
        "params.student": "deeplab",
        "params.deeplab.crop": DeepLabParams().crop,
    }


def test_sections_that_no_stage_takes_are_told(tmp_path: Path) -> None:
    job = configure("cfs", "demo-tiny", None, (), {"cache": str(tmp_path)})
    sets = read_sets(job.data, job.options)
    for changed, unused in (
        ({"proposals": "grabcut", "student": "none"}, ("box_crf", "cfs", "deeplab", "lgsa", "refine")),
        ({"proposals": "cfs-refined", "student": "deeplab", "attention": "lgsa"}, ("box_crf",)),
    ):
        params = replace(job.params, **changed)
        plan = plan_page("cfs", page, sets, params, job.options)
        assert plan.unread == unused
        with Runner(job.options, flow="cfs", planning=True, sets=sets) as run:
            page(run, sets, params)
        assert [report.address for report in run.reports] == [stage.address for stage in plan.stages]
    assert watched(3) == (3, set()), "params of a flow of one's own"
