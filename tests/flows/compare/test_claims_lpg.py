"""What each row of LPG's tables learns from and makes masks of: planned, nothing is computed."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.datasets import DataParams, read_split
from artifacts.records import DataError, Sets
from benchmarks import claims, claims_lpg_photo_aux, crf_boxes
from benchmarks.claim_table import SUPERVISED, Claims
from flows.compare.variants import Variant
from flows.registry import FLOWS
from flows.run_flow import plan_page, read_sets
from tasks.crf.dense_crf import BoxCRFParams
from tasks.engine.options import RunParams

OTHERS = DataParams("demo-tiny-auxiliary")
Planned = Callable[..., dict[str, Any]]


def table(name: str) -> Claims:
    found: Claims = importlib.import_module(FLOWS["lpg"].claims[name]).CLAIMS
    return found


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RunParams:
    return RunParams(cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def plan(options: RunParams) -> Planned:
    """``plan(table, row, aux, *sets)``: the handles of a row's page on the tiny demo data, by their labels."""

    def handles(of: str, row: str, aux: DataParams = OTHERS, *given: str) -> dict[str, Any]:
        (one,) = (one for one in table(of).rows if one.name == row)
        weights = ("segmenter", "learn.segmenter", "learn.generator", "deeplab") if of != "drawn" else ()
        sets = (*(f"params.{place}.weights=none" for place in weights), *given)
        shared = {"data": None, "config": table(of).config, "sets": sets, "options": {}}
        variant: Variant = claims.variant_of(one, "lpg", (0,), shared)
        kept: dict[str, Any] = {}

        def looked_at(run: Any, sets: Sets, params: Any) -> Any:
            result = variant.page(run, sets, params)
            kept.update({handle.label: handle for handle in run.handles})
            return result

        data = read_sets(DataParams("demo-tiny", aux=aux), options)
        plan_page(variant.flow, looked_at, data, variant.params, options)
        return kept

    return handles


def ids(handle: Any) -> set[str]:
    return {record.image_id for record in handle.records}


def test_of_table_7_the_auxiliary_classes_are_the_target(plan: Planned) -> None:
    other = plan("drawn", "reverse, generators of the other set")
    own = plan("drawn", "reverse, generators of its own set")
    for found, learnt_on in ((other, "demo-tiny"), (own, "demo-tiny-auxiliary")):
        assert found["aux-truth"].records.dataset == learnt_on
        assert found["box-masks"].records.dataset == "demo-tiny-auxiliary"
        assert found["student"].records.split == "val" and ids(found["student"])
    apart = [ids(own[label]) for label in ("aux-truth", "box-masks", "student")]
    assert sum(map(len, apart)) == len(set().union(*apart)) == 12, "no image is learnt from and made masks of"
    assert ids(other["box-masks"]) == apart[1] and ids(other["student"]) == apart[2]
    assert "given-masks" not in own and "given-masks" not in other


def test_a_row_takes_the_auxiliary_images_of_one_of_the_joined_sets(plan: Planned, options: RunParams) -> None:
    both = DataParams("demo-tiny-auxiliary", more=("demo-tiny",), name="both")
    sets = read_sets(DataParams("demo-tiny", aux=both), options)
    assert sets.aux is not None and len(sets.aux) == 36
    part = claims_lpg_photo_aux.part_of(sets.aux, "demo-tiny-auxiliary")
    assert len(part) == 12 and all(one.image_id.startswith("demo-tiny-auxiliary/") for one in part)
    with pytest.raises(DataError, match="no image of aux-people is in the auxiliary set demo-tiny-auxiliary; join it"):
        plan("photo-aux", "LPG, people")


def test_folds_have_no_image_in_common_and_are_swapped(plan: Planned) -> None:
    again = DataParams("demo-tiny", name="others")
    for row in ("LPG", "box", "CRF", "GrabCut"):
        a, b = (plan("folds", f"{fold}: {row}", again, "params.overlap=allow") for fold in "AB")
        (one, other) = (next(iter(found.values())) for found in (a, b))
        if row == "LPG":
            one, other = a["box-masks"], b["box-masks"]
            assert ids(a["aux-truth"]) == ids(other) and ids(b["aux-truth"]) == ids(one)
        assert not ids(one) & ids(other) and len(ids(one) | ids(other)) == 24
    assert list(table("folds").columns) == ["masks", "objects", "small", "medium", "large"]


def test_on_photographs_every_baseline_teaches_the_same_student(plan: Planned) -> None:
    rows = ("box", "CRF", "GrabCut", "GrabCut in crops", "CFS refined, from crops", "LPG", SUPERVISED)
    found = {row: plan("photo", row) for row in rows}
    assert len({handles["deeplab"].stage.params for handles in found.values()}) == 1
    assert len({handles["deeplab"].address for handles in found.values()}) == len(rows), "on masks of its own"
    assert "refine" in found["CFS refined, from crops"] and "generated@3" in found["LPG"]
    seeded = plan("photo", "CFS refined, from crops", OTHERS, "params.deeplab.seed=5")
    assert seeded["cfs"].stage.seed == 5, "a seed of the table is CFS's, too"


def test_the_crf_is_the_best_of_18_settings_one_value_after_the_other() -> None:
    wanted = {"bilateral_srgb": 10.0, "bilateral_sxy": 80.0, "bilateral_compat": 45.0, "gaussian_compat": 30.0}

    def score(params: BoxCRFParams) -> float:
        return sum(getattr(params.crf, name) == value for name, value in wanted.items()) + params.core

    found = list(crf_boxes.search(score))
    assert len(found) == 18 and found[-1][3].core == 0.4
    assert {name: getattr(found[-1][3].crf, name) for name in wanted} == wanted
    assert crf_boxes.main(["--data", "nowhere:x"]) == 2


def test_the_crf_is_scored_on_pictures_with_boxes_and_masks(options: RunParams) -> None:
    records = read_split(DataParams("demo-tiny"), "train", cache=Path(options.cache))
    few = dataclasses.replace(records, records=tuple(records)[:2])
    score = crf_boxes.of_pictures(few)
    assert 0.3 < score(BoxCRFParams()) < 1 and score(BoxCRFParams(core=1.0)) < score(BoxCRFParams())
