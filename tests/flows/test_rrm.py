"""What is the flow `rrm`'s own: its shipped configuration of the paper, and the rows of its claims."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from artifacts.datasets import DataParams
from benchmarks import claims, claims_rrm, claims_rrm_photo
from benchmarks.claim_table import SUPERVISED, Claims
from benchmarks.claims_rrm import CAM, CE
from flows.configure import configure
from flows.rrm import page
from flows.run_flow import plan_page, read_sets
from tasks.engine.options import RunParams
from tasks.rrm.stages import PRESETS

JOINT = ("CAM, CE", "CAM, joint", "RRM, CE", "RRM, joint")


def test_the_papers_configuration_is_its_preset() -> None:
    params = configure("rrm", None, "voc-rrm", (), {}).params
    assert params.rrm == PRESETS["voc-rrm"] and params.start == "weights" and params.crf == "rrm-test"
    assert (params.deeplab.network, params.deeplab.crop) == ("resnet101", 321)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RunParams:
    return RunParams(cache=str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("table", [claims_rrm.CLAIMS, claims_rrm_photo.CLAIMS], ids=["drawn", "photo"])
def test_every_row_of_the_claims_is_planned_and_of_its_own(table: Claims, options: RunParams) -> None:
    sets = read_sets(DataParams("demo-tiny"), options)
    shared = {"data": None, "config": table.config, "sets": (), "options": {}}
    handles: dict[str, list[Any]] = {}
    for row in table.rows:
        variant = claims.variant_of(row, table.flow, (0,), shared)
        kept = handles.setdefault(row.name, [])

        def looked_at(run: Any, sets: Any, params: Any, variant: Any = variant, kept: list[Any] = kept) -> Any:
            result = variant.page(run, sets, params)
            kept.extend(run.handles)
            return result

        plan_page(variant.flow, looked_at, sets, variant.params, options)
    last = {name: found[-1].address for name, found in handles.items()}
    assert len(set(last.values())) == len(table.rows) > 15
    fits = {
        name: [one.label for one in found if one.label in ("classifier", "rrm", "deeplab")]
        for name, found in handles.items()
    }
    assert all(fits[name] == ["classifier", "rrm"] for name in JOINT)
    assert fits["two-step, stronger student"] == ["classifier", "rrm", "deeplab"] and fits[SUPERVISED] == ["deeplab"]
    first = {name: next(one.address for one in handles[name] if one.label == "classifier") for name in JOINT}
    assert len(set(first.values())) == 1, "all start from one classifier"
    regions = {name: next(one.address for one in handles[name] if one.label == "reliable") for name in JOINT}
    assert regions["CAM, CE"] == regions["CAM, joint"] != regions["RRM, CE"] == regions["RRM, joint"]
    truth = {name for name, found in handles.items() if any("truth" in one.stage.reads for one in found)}
    assert truth == {SUPERVISED}


def test_images_whose_tags_are_unknown_are_said_before_any_work(options: RunParams, tmp_path: Path) -> None:
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((9, 9, 3), number, np.uint8))
    (tmp_path / "tags.csv").write_text("image,tags\n0,dog\n1,\n5,cat\n")
    (tmp_path / "train.txt").write_text("0\n1\n2\n3\n5\n")
    (tmp_path / "val.txt").write_text("4\n")
    job = configure("rrm", f"folder:{tmp_path}", "photo-rrm", (), {})
    plan = plan_page("rrm", page, read_sets(job.data, options), job.params, options)
    assert [said for said in plan.warnings if "unknown" in said] == [
        "train: 2 x image whose tags are unknown, to be skipped: 2; 3"
    ], "val is predicted without tags"
    named = configure("rrm", f"folder:{tmp_path}", "photo-rrm", ("data.val=train", "data.train_on_val=true"), {})
    (tmp_path / "tags.csv").write_text("image,tags\n0,dog\n1,\n2,\n3,\n5,cat\n")
    assert not plan_page("rrm", page, read_sets(named.data, options), named.params, options).warnings


def test_table_2_has_the_papers_numbers_and_switches() -> None:
    rows = {row.name: row for row in claims_rrm.CLAIMS.rows}
    assert [rows[name].paper["student"] for name in JOINT] == [46.1, 55.7, 48.5, 62.6]
    assert [set(rows[name].sets) for name in JOINT] == [{*CAM, *CE}, {*CAM}, {*CE}, set()]
    assert rows["two-step, stronger student"].paper == {"student": 66.3} and rows["share 0.1, joint"].paper == {
        "student": 42.8
    }
    main = {row.name for row in rows.values() if row.main}
    assert main == {*JOINT, "two-step, stronger student", SUPERVISED}


def test_a_table_has_the_flows_first_one_by_default() -> None:
    given = {"data": None, "config": None, "out": None, "budget": None, "device": "cpu", "workers": 0, "quiet": True}
    given |= {"seeds": "0,1", "secondary_seeds": None, "main_only": True, "rows": [], "flow": "rrm"}
    given |= {"table": None, "set": []}
    table = claims.prepare(argparse.Namespace(**given))
    assert table.config == "claims-rrm" and {variant.flow for variant in table.variants} == {
        "rrm-one_step",
        "rrm-two_step",
        "rrm-supervised",
    }
