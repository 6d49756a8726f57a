"""Does the end of a flow score, draw and export everything that the flow made, and each part of it alone?"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from artifacts import report
from artifacts.export.voc import DEVKIT
from artifacts.records import MaskHW, MaskRef, Record, RecordSet, Sets
from artifacts.report import SheetRow
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner, UntilReached
from tasks.evaluate.finish import draw, evaluate, export, finish, sample, so_far, write_manifest
from tasks.stage import PARAMS_CONFIG, MapHandle, MapStage, first_of


@dataclass(frozen=True)
class Level:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    level: int = 100


def stage(name: str, outputs: tuple[str, ...] = ("mask_hw",), level: int = 100, **changes: Any) -> MapStage:
    return replace(MapStage(name, 1, Level(level), ("image",), outputs, f"stage_functions:{name}"), **changes)


THRESHOLD, INVERT = stage("threshold"), stage("invert", reads=())
EDGES = stage("edges", ("edges_hw",), heat=("edges_hw",))
CAMS = stage("cams", ("cams_chw", "classes_c"), heat=("cams_chw",))
BOTH = stage("both_masks", ("mask_hw", "mask_crf_hw"))


def bright(reference: MaskRef) -> MaskHW:
    """What ``threshold`` finds."""
    return np.asarray(cv2.imread(reference.path).mean(2) > 100, np.uint8)


def records(folder: Path, split: str, dataset: str = "set", count: int = 3) -> RecordSet:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(split))
    made = []
    for number in range(count):
        path = folder / f"{split} {number}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        made.append(Record(path.stem, str(path), tags=(1,), truth=MaskRef(f"{__name__}:bright", str(path))))
    return RecordSet(dataset, split, ("thing",), tuple(made))


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    aux = replace(records(tmp_path / "aux", "train", "other", count=2), classes=("thing", "other"))
    return Sets(records(tmp_path / "i", "train"), records(tmp_path / "i", "val", count=2), aux)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SheetRow, tuple[str, ...]]]:
    """The rows of every sheet that is drawn, with the names that stand right of the truth."""
    seen: list[tuple[SheetRow, tuple[str, ...]]] = []
    whole = report.contact_sheet

    def looked_at(given: Any, *rest: Any, **options: Any) -> list[Path]:
        seen.extend((row, tuple(options["last"])) for row in given)
        return whole(given, *rest, **options)

    monkeypatch.setattr(report, "contact_sheet", looked_at)
    return seen


def runner(tmp_path: Path, sets: Sets, **options: Any) -> Runner:
    given = {"cache": str(tmp_path / "cache"), "out": str(tmp_path / "out"), "workers": 0, **options}
    return Runner(RunParams(**given), sets=sets)


def test_rounds_predictions_by_name_and_heat_maps(
    tmp_path: Path, sets: Sets, rows: list[tuple[SheetRow, tuple[str, ...]]]
) -> None:
    with runner(tmp_path, sets, export=("voc",)) as run:
        run.map(EDGES, sets.train)
        run.map(THRESHOLD, sets.train, label="generator")
        masks = run.map(stage("threshold", level=120), sets.train, label="generator")
        run.map(THRESHOLD, sets.aux or sets.train, label="generator")
        run.map(CAMS, sets.train)
        first = run.map(THRESHOLD, sets.val, label="first")
        second = run.map(INVERT, sets.val, label="second", source=first)
        crf = run.map(BOTH, sets.val, label="third")
        result = finish(run, sets, masks, {"one-step": second, "two-step": crf})
    assert list(result.scores) == [
        "generator (train)",
        "generator@3 (aux)",
        "first (val)",
        "masks (train)",
        "one-step (val)",
        "two-step (val)",
        "two-step + CRF (val)",
    ]
    assert result.scores["generator (train)"]["miou"] == result.scores["first (val)"]["miou"] == 1
    assert 0 < result.scores["masks (train)"]["miou"] < 1 and result.scores["one-step (val)"]["miou"] == 0
    assert result.scores["generator@3 (aux)"]["images"] == 2
    assert set(result.scores["generator@3 (aux)"]["per_class"]) == {"background", "thing", "other"}
    assert result.scores["two-step (val)"]["miou"] != result.scores["two-step + CRF (val)"]["miou"]
    assert json.loads((tmp_path / "out" / "scores.json").read_text()).keys() == result.scores.keys()

    row, last = rows[0]
    assert [panel.name for panel in row.panels] == [
        "edges: edges",
        "generator",
        "generator@2",
        "cams: cams",
        "one-step",
        "two-step",
        "two-step + CRF",
    ]
    assert last == ("one-step", "two-step", "two-step + CRF") and len(rows) == 3
    kinds = {panel.name: (panel.is_heat_map, panel.iou, tuple(panel.classes)) for panel in row.panels}
    assert kinds["edges: edges"] == (True, None, ()) and kinds["cams: cams"] == (True, None, (1,))
    assert kinds["generator"] == (False, 1.0, ())
    edges = row.panels[0].array
    assert edges.dtype.kind == "f" and 1 / 255 < edges.max() <= 1, "kept in 255ths"
    shown = [report.label for report in run.reports][-3:]
    assert shown == ["first-shown", "second-shown", "third-shown"], "and what they were made from"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "two-step + CRF (val)" in page and "generator@3 (aux)" in page
    every = json.loads((tmp_path / "out" / "pictures.json").read_text())
    counts = {"masks (train)": 3, "one-step (val)": 2, "two-step (val)": 2}
    assert {name: len(found) for name, found in every.items()} == counts and page.count('class="pic"') == 7
    assert all(one["score"] is not None and 0 <= one["suspicion"] <= 1 for found in every.values() for one in found)
    assert page.count("mask of cams") == 0 and page.count('alt="mask of generator@2"') == 2 * 3
    assert (tmp_path / "out" / "dataset-voc" / DEVKIT / "SegmentationClass" / "train 0.png").exists()
    assert (result.manifest["status"], result.manifest["masks"]) == ("finished", "generator@2")
    assert result.manifest["predictions"] == {"one-step": "second", "two-step": "third"}
    assert result.manifest["classes"] == {"set": ["thing"], "other": ["thing", "other"]}


def test_each_part_can_be_called_alone(
    tmp_path: Path, sets: Sets, rows: list[tuple[SheetRow, tuple[str, ...]]]
) -> None:
    out = tmp_path / "alone"
    with runner(tmp_path, sets, export=("hdf5",)) as run:
        masks = run.map(THRESHOLD, sets.train)
        prediction = {"student": run.map(THRESHOLD, sets.val, label="student")}
        assert list(evaluate(run, sets).scores) == ["threshold (train)", "student (val)"]
        assert list(evaluate(run, sets, masks, prediction).scores) == ["masks (train)", "student (val)"]
        assert draw(run, sets, {}, tmp_path) == {"contact sheet": str(tmp_path / "contact_sheet.png")}
        assert [panel.name for panel in rows[-1][0].panels] == ["threshold"]
        draw(run, sets, sample(run, sets, prediction), tmp_path)
        assert [panel.name for panel in rows[-1][0].panels] == ["threshold", "student"]
        manifest = write_manifest(run, sets, masks)
        assert export(run, manifest, out) == ({"dataset (hdf5)": str(out / "dataset-hdf5")}, ())
        (out / "dataset-hdf5" / "mine").write_text("")
        files, failures = export(run, manifest, out)
        assert not files and "export to hdf5 failed" in failures[0]
        assert export(run, manifest, tmp_path / "val", "student")[0]
    assert manifest["status"] == "finished" and manifest["scores"] == {}


def test_without_masks_of_the_training_images_what_is_there_is_drawn(
    tmp_path: Path, sets: Sets, rows: list[tuple[SheetRow, tuple[str, ...]]]
) -> None:
    with runner(tmp_path, sets, export=("voc",)) as run:
        run.map(EDGES, sets.train)
        result = finish(run, sets, *so_far(run, sets))
    assert result.scores == {} and result.failures == () and not (tmp_path / "out" / "dataset-voc").exists()
    assert [panel.name for panel in rows[0][0].panels] == ["edges: edges"]
    assert any("no dataset was exported" in warning for warning in result.manifest["warnings"])


def test_a_page_that_ended_early_has_the_last_masks_and_predictions_by_label(tmp_path: Path, sets: Sets) -> None:
    def page(run: Runner) -> None:
        run.map(EDGES, sets.val)
        for _ in range(3):
            source = run.map(THRESHOLD, sets.train, label="generator")
            run.map(INVERT, sets.val, label="student", source=run.map(THRESHOLD, sets.val, label="source"))
            run.map(CAMS, sets.train, source=source)

    with runner(tmp_path, sets, until="cams@2") as run:
        with pytest.raises(UntilReached):
            page(run)
        masks, predictions = so_far(run, sets)
        assert masks is not None and masks.label == "generator@2"
        assert list(predictions) == ["source", "student", "source@2", "student@2"]
        result = finish(run, sets, masks, predictions)
    assert "student@2 (val)" in result.scores and "masks (train)" in result.scores
    assert [report.label for report in run.reports][-4:] == [f"{label}-shown" for label in predictions]


def test_until_does_not_cut_the_end(tmp_path: Path, sets: Sets) -> None:
    with runner(tmp_path, sets, until="student-shown") as run:
        result = finish(
            run, sets, run.map(THRESHOLD, sets.train), {"student": run.map(BOTH, sets.val, label="student")}
        )
    assert result.manifest["status"] == "finished"


def test_two_sets_of_masks_of_one_name_are_refused_in_the_plan(tmp_path: Path, sets: Sets) -> None:
    def page(run: Runner) -> MapHandle:
        run.map(THRESHOLD, sets.val, label="student")
        return run.map(INVERT, sets.val, label="student", source=run.handles[0])

    with Runner(RunParams(cache=str(tmp_path / "cache")), planning=True) as run:
        last = page(run)
        with pytest.raises(ValueError, match=r"called 'student \(val\)': a prediction needs a name of its own"):
            finish(run, sets, None, {"student": last})
        finish(run, sets, None, {"refined": last})


def test_arrays_of_either_of_two_stages_can_be_above_a_prediction_and_are_no_masks_to_export(
    tmp_path: Path, sets: Sets, rows: list[tuple[SheetRow, tuple[str, ...]]]
) -> None:
    one = sets.val.only([sets.val.records[0].image_id])
    with runner(tmp_path, sets) as run:
        masks = run.map(THRESHOLD, sets.train)
        either = first_of(run.map(BOTH, one, label="some"), run.map(THRESHOLD, sets.val, label="rest"))
        prediction = run.map(INVERT, sets.val, source=either)
        with pytest.raises(ValueError, match="'some or rest' is no stage of this run"):
            finish(run, sets, either)
        result = finish(run, sets, masks, {"student": prediction, "either": either})
    assert result.scores["either (val)"]["images"] == 2 and 0 < result.scores["either (val)"]["miou"] < 1
    assert [panel.name for panel in rows[0][0].panels] == ["threshold", "student", "either"]


def test_a_stage_declares_heat_maps_among_its_outputs() -> None:
    with pytest.raises(ValueError, match=r"heat maps \['cams'\], which are no outputs"):
        stage("cams", ("cams_chw",), heat=("cams",))


def test_pictures_show_the_labels_that_stages_read_of_the_training_images(
    tmp_path: Path, sets: Sets, rows: list[tuple[SheetRow, tuple[str, ...]]]
) -> None:
    """Tags that only a stage over the auxiliary data reads are none of the flow's on the training images."""
    tagged = stage("threshold", reads=("image", "tags"))
    assert sets.aux is not None
    for records_read, shown in ((sets.aux, ()), (sets.train.only(["train 0"]), (1,))):
        rows.clear()
        with runner(tmp_path, sets) as run:
            run.map(tagged, records_read, label="tagged")
            finish(run, sets, run.map(THRESHOLD, sets.train))
        assert {tuple(row.tags) for row, _ in rows} == {shown}


def test_warnings_of_every_set_are_in_the_manifest_once(tmp_path: Path, sets: Sets) -> None:
    assert sets.aux is not None
    warned = Sets(
        *(replace(one, warnings=("both", word)) for one, word in zip(sets, ("train", "val", "aux"), strict=True))
    )
    with runner(tmp_path, warned) as run:
        result = finish(run, warned, run.map(THRESHOLD, warned.train))
    assert result.manifest["warnings"] == ["both", "train", "val", "aux"]


def test_masks_that_hold_no_class_at_all_are_told(tmp_path: Path, sets: Sets) -> None:
    """Level 300: no pixel is brighter, as where a CRF wipes out every object."""
    with Runner(RunParams(cache=str(tmp_path / "cache"), workers=0), sets=sets) as run:
        masks = run.map(stage("threshold", level=300), sets.train)
        student = run.map(THRESHOLD, sets.val)
        found = evaluate(run, sets, masks, {"student": student})
    assert found.warnings == ("masks (train): all masks are background; no class of the labels is left in any",)
