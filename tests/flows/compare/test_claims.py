"""Do the claims' verdicts follow the rules, by numbers worked out by hand, and can every row be run?"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flow_runs import ONE_THREAD, Done, share_demo

from artifacts.datasets import DataParams
from artifacts.records import DataError
from benchmarks import claims, claims_bpg, results
from benchmarks.claim_rows import box_row
from benchmarks.claim_table import SUPERVISED, Backbone, Claims, Ordering, Row, as_markdown, evaluate, why_not_valid
from benchmarks.claims_cfs import ALONE, CLAIMS
from flows.compare.trials import Attempt
from flows.configure import configure
from flows.registry import FLOWS
from flows.run_flow import plan_page, read_sets
from tasks.deeplab.stages import DEMO_TINY
from tasks.engine.options import RunParams
from tasks.stage import FitHandle, MapHandle

ROWS = (Row("weak", paper={"student": 66.6}), Row("strong", ("a=1",), paper={"student": 70.8}), Row(SUPERVISED))
COLUMNS = {"masks": "masks ({train}) mIoU", "student": "student ({val}) mIoU"}
CLAIM = Ordering("weak", "strong", "student", "Table 2", aim=0.03)
SMALL = Claims("cfs", "demo-tiny", COLUMNS, ROWS, (CLAIM,), "student")


def students(**rows: tuple[float, ...]) -> dict[str, Any]:
    """Scores of rows' students by seed; ``full`` is the fully supervised row."""
    found = {name: {"masks": {}, "student": dict(enumerate(values))} for name, values in rows.items()}
    return {{"full": SUPERVISED}.get(name, name): values for name, values in found.items()}


def verdict(scores: Any) -> dict[str, Any]:
    (found,) = evaluate(SMALL, scores)["orderings"]
    return dict(found)


def test_an_ordering_holds_by_more_than_the_spread_of_its_paired_differences() -> None:
    # differences .02, .04, .06: mean .04, deviation .02
    found = verdict(students(weak=(0.5, 0.6, 0.7), strong=(0.52, 0.64, 0.76), full=(0.8, 0.8, 0.8)))
    assert found["verdict"] == "holds" and found["why"] == ""
    assert found["difference"] == {"mean": pytest.approx(0.04), "std": pytest.approx(0.02), "n": 3}
    assert found["paper"] == pytest.approx(4.2)


@pytest.mark.parametrize(
    ("strong", "expected"),
    [
        ((0.48, 0.56, 0.64), "reversed"),  # -.02 -.04 -.06
        ((0.51, 0.62, 0.73), "holds"),  # .01 .02 .03: mean .02, deviation .01
        ((0.44, 0.62, 0.76), "undecided"),  # -.06 .02 .06: mean .0067, deviation .061
    ],
)
def test_what_does_not_hold_is_said_as_it_comes(strong: tuple[float, ...], expected: str) -> None:
    assert verdict(students(weak=(0.5, 0.6, 0.7), strong=strong, full=(0.8,)))["verdict"] == expected


def test_the_ceiling_has_to_reach_60_or_nothing_holds() -> None:
    good = students(weak=(0.1, 0.1), strong=(0.5, 0.5), full=(0.59, 0.61))
    assert why_not_valid(SMALL, good) == "" and verdict(good)["verdict"] == "holds"
    low = students(weak=(0.1, 0.1), strong=(0.5, 0.5), full=(0.59, 0.6))
    assert "59.5 mIoU, less than 60" in why_not_valid(SMALL, low)
    found = evaluate(SMALL, low)
    assert not found["valid"] and found["orderings"][0]["verdict"] == "undecided"
    assert as_markdown(found).startswith("**Not valid")
    missing = students(weak=(0.1, 0.1), strong=(0.5, 0.5))
    assert "is missing" in why_not_valid(SMALL, missing) and verdict(missing)["verdict"] == "undecided"


def test_one_seed_decides_nothing() -> None:
    found = verdict(students(weak=(0.1,), strong=(0.9,), full=(0.9,)))
    assert (found["verdict"], found["why"]) == ("undecided", "one seed")


def test_the_tables_show_rows_differences_and_the_paper() -> None:
    text = as_markdown(evaluate(SMALL, students(weak=(0.5, 0.6), strong=(0.52, 0.64), full=(0.8, 0.9))))
    assert text.startswith("| row | sets | seeds | masks | student | weak / full | paper: student |")
    assert "| weak |  | 2 | - | 55.0 ± 7.1 | 0.65 | 66.6 |" in text
    assert "| strong | `a=1` | 2 | - | 58.0 ± 8.5 | 0.68 | 70.8 |" in text
    assert "| weak < strong | student | +3.0 ± 1.4 | holds; aim +3.0 reached | +4.2 | Table 2 |" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orderings": (Ordering("weak", "stronger", "masks", ""),)}, "no row is called stronger"),
        ({"rows": ROWS[:2]}, "no row is called fully supervised; there are weak, strong"),
        (
            {"orderings": (Ordering("weak", "strong", "edges", ""),)},
            "no column is called edges; there are masks, student",
        ),
        ({"rows": (*ROWS, Row("more", paper={"two-step": 1.0}))}, "no column is called two-step"),
        ({"ceiling": "students"}, "no column is called students"),
    ],
)
def test_a_row_that_nobody_runs_and_a_column_that_nobody_scores_are_found_at_once(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_scores_are_those_of_the_splits_that_were_used() -> None:
    found = {
        "weak": {"masks (trainaug) mIoU": {0: 0.5}, "student (val) mIoU": {0: 0.4}, "cfs (trainaug) mIoU": {0: 0.1}}
    }
    scores = SMALL.scores_of(["weak"], found, train="trainaug", val="val")
    assert scores == {"weak": {"masks": {0: 0.5}, "student": {0: 0.4}}}


def test_a_flow_names_its_own_columns() -> None:
    """A method with two rounds and edges: none of it is known outside its claims."""
    columns = {"edges": "edges ({aux}) F", "one-step": "one-step ({val}) mIoU", "two-step": "two-step ({val}) mIoU"}
    paper = {"one-step": 60.0, "two-step": 63.5}
    rows = (Row("ours", paper=paper), Row("theirs", paper={"two-step": 61.0}), Row(SUPERVISED))
    claims_ = Claims(
        "lpg",
        "any",
        columns,
        rows,
        (Ordering("theirs", "ours", "two-step", "1"), Ordering("theirs", "ours", "edges", "2")),
        "two-step",
    )
    found = {
        "ours": {
            "edges (aux) F": {0: 0.5, 1: 0.6},
            "one-step (val) mIoU": {0: 0.6},
            "two-step (val) mIoU": {0: 0.62, 1: 0.64},
        },
        "theirs": {"edges (aux) F": {0: 0.4, 1: 0.3}, "two-step (val) mIoU": {0: 0.6, 1: 0.61}},
        SUPERVISED: {"two-step (val) mIoU": {0: 0.7}},
    }
    figures = evaluate(claims_, claims_.scores_of(list(found), found, train="train", val="val", aux="aux"))
    assert [(one["what"], one["verdict"], one["paper"]) for one in figures["orderings"]] == [
        ("two-step", "holds", 2.5),
        ("edges", "holds", None),
    ]
    text = as_markdown(figures)
    head = "| row | sets | seeds | edges | one-step | two-step | weak / full | paper: one-step | paper: two-step |"
    assert head in text
    assert "| ours |  | 2 | 55.0 ± 7.1 | 60.0 | 63.0 ± 1.4 | 0.89 | 60.0 | 63.5 |" in text


def test_a_flow_says_where_its_params_take_the_backbone() -> None:
    """One that has its network elsewhere, and two of them."""

    @dataclasses.dataclass(frozen=True)
    class Params:
        first: Any = DEMO_TINY
        other: Any = DEMO_TINY

    def takes(*given: str, params: Any = Params(), config: str = "mine", data: str | None = None) -> bool:
        args = argparse.Namespace(set=list(given), data=data)
        job = dataclasses.replace(configure("cfs", "demo-tiny", None, (), {}), params=params)
        return claims.takes_backbone(args, config, "mine", backbone, job)

    backbone = Backbone(DEMO_TINY, ("first.weights", "other.weights"))
    assert takes() and takes("params.other.iterations=3")
    assert not takes("params.other.weights=file") and not takes(config="other") and not takes(data="voc:here")
    assert not takes(params=Params(other=dataclasses.replace(DEMO_TINY, width=4)))


def test_all_rows_of_the_shipped_setting_start_from_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.pretrained.find_backbone", lambda params, options: Path("learnt.safetensors"))
    given = {"data": None, "config": None, "out": None, "budget": None, "device": "cpu", "workers": 0, "quiet": True}
    given |= {"seeds": "0,1", "secondary_seeds": None, "main_only": False, "rows": [], "flow": "cfs"}
    given |= {"table": None, "set": []}
    table = claims.prepare(argparse.Namespace(**given))
    assert table.to_learn is None and table.backbone.startswith("tiny, learnt from the masks of demo-auxiliary")
    assert {variant.params.deeplab.weights for variant in table.variants} == {"learnt.safetensors"}
    assert {variant.flow for variant in table.variants} == {"cfs", "cfs-supervised"}
    own = claims.prepare(argparse.Namespace(**given | {"set": ["params.deeplab.weights=mine"]}))
    assert own.backbone == "" and {variant.params.deeplab.weights for variant in own.variants} == {"mine"}


def test_some_rows_of_a_table_can_be_run_alone() -> None:
    def names(*texts: str, main_only: bool = False) -> list[str]:
        return [row.name for row in claims.chosen_rows(claims_bpg.CLAIMS, texts, main_only)]

    assert names("LAMBDA", "+prn") == ["+PRN", "BPG, lambda 0.1", "BPG, lambda 0.01"]
    assert names("lambda", "+prn", main_only=True) == ["+PRN"]
    assert len(names()) == len(claims_bpg.CLAIMS.rows)
    with pytest.raises(DataError, match="lamda: no row's name holds that; there are 'base', '[+]PRN'"):
        names("lamda")


@pytest.mark.parametrize(
    ("flow", "module"), [(name, module) for name, entry in FLOWS.items() for module in entry.claims.values()]
)
def test_claims_belong_to_their_flow(flow: str, module: str) -> None:
    found = importlib.import_module(module).CLAIMS
    assert found.flow == flow and configure(flow, None, found.config, (), {}).flow == flow


# -- the rows of CFS -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], list[Any]]:
    """Handles of a row's page, planned on the tiny demo data."""
    options = RunParams(cache=str(share_demo(tiny, tmp_path_factory.mktemp("cache"))))
    sets = read_sets(DataParams("demo-tiny"), options)
    shared = {"data": None, "config": CLAIMS.config, "sets": (), "options": {}}

    def handles(row: Row) -> list[Any]:
        variant = claims.variant_of(row, CLAIMS.flow, (0,), shared)
        kept: list[Any] = []

        def looked_at(run: Any, sets: Any, params: Any) -> Any:
            result = variant.page(run, sets, params)
            kept.extend(run.handles)
            return result

        plan_page(variant.flow, looked_at, sets, variant.params, options)
        return kept

    return handles


@pytest.fixture(scope="module")
def pages(planned: Callable[[Row], list[Any]]) -> dict[str, list[Any]]:
    """Row -> handles of its page."""
    return {row.name: planned(row) for row in CLAIMS.rows}


def test_the_shared_row_of_boxes_is_the_flows_own(
    pages: dict[str, list[Any]], planned: Callable[[Row], list[Any]]
) -> None:
    shared = planned(box_row(lambda params: params.deeplab, ("attention=none",)))
    assert [handle.address for handle in shared] == [handle.address for handle in pages["box"]]


def test_truth_is_read_by_the_supervised_row_alone_and_through_given_masks(pages: dict[str, list[Any]]) -> None:
    readers = {
        (name, handle.stage.name)
        for name, handles in pages.items()
        for handle in handles
        if "truth" in handle.stage.reads
    }
    assert readers == {(SUPERVISED, "given-masks")}


def test_the_ceiling_is_the_same_student_on_other_masks(pages: dict[str, list[Any]]) -> None:
    def student(name: str) -> tuple[Any, ...]:
        (fit,) = (h for h in pages[name] if isinstance(h, FitHandle) and h.label == "deeplab")
        (predict,) = (h for h in pages[name] if isinstance(h, MapHandle) and h.label == "student")
        return fit.stage, predict.stage, predict.records

    assert student(SUPERVISED) == student("GrabCut")


def test_every_row_is_a_student_or_masks_of_its_own(pages: dict[str, list[Any]]) -> None:
    students = {name: [h.address for h in handles if h.label == "deeplab"] for name, handles in pages.items()}
    last = {name: handles[-1].address for name, handles in pages.items()}
    assert len(set(last.values())) == len(last)
    alone = {name for name, found in students.items() if not found}
    assert alone == {row.name for row in CLAIMS.rows if ALONE in row.sets}
    assert not alone & {name for one in CLAIMS.orderings if one.what == "student" for name in (one.lower, one.higher)}


def test_papers_numbers_are_given_where_the_paper_has_them() -> None:
    papers = {row.name: row.paper.get("student") for row in CLAIMS.rows}
    assert [papers[name] for name in ("box", "GrabCut", "CFS refined", "non-local", "LGSA")] == [
        55.4,
        66.6,
        70.8,
        71.5,
        72.4,
    ]
    assert papers["alpha 20000, walk"] == 72.2 and papers["LGSA, modules 3"] == 72.6 and papers["CFS raw"] is None


# -- figures under a name --------------------------------------------------------------------------------------------


def figures(*, config: str = "demo", stages: str = "a", **rows: tuple[float, ...]) -> dict[str, Any]:
    scores = students(**rows)
    seeds = {name: list(found["student"]) for name, found in scores.items()}
    more = {"seeds": seeds, "complete": True, "stages": {"weak": stages}}
    return {"setting": {"config": config, "set": []}, **more, **evaluate(SMALL, scores)}


def keep(found: dict[str, Any], anyway: bool = False) -> str:
    return claims.keep_figures("mine", found, SMALL, anyway)


def kept_rows(folder: Path) -> dict[str, list[str]]:
    found = json.loads((folder / "mine.json").read_text())["figures"]["rows"]
    return {row["name"]: list(row["scores"]["student"]["seeds"]) for row in found if row["scores"]}


def test_a_table_is_filled_in_parts_while_its_stages_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    keep(figures(weak=(0.1, 0.2), strong=(0.3,)))
    message = keep(figures(weak=(0.15,), **{SUPERVISED: (0.7, 0.7)}))
    assert "mine.json: 3 finished trials, 5 with those before" in message
    saved = json.loads((tmp_path / "mine.json").read_text())
    found = saved["figures"]
    assert kept_rows(tmp_path) == {"weak": ["0", "1"], "strong": ["0"], SUPERVISED: ["0", "1"]}
    assert found["rows"][0]["scores"]["student"]["seeds"] == {"0": 0.15, "1": 0.2}, "what was run last counts"
    assert found["seeds"] == {"weak": [0, 1], "strong": [0], SUPERVISED: [0, 1]} and found["valid"]
    assert found["orderings"][0]["difference"]["mean"] == pytest.approx(0.15)
    assert [set(one) for one in found["earlier"]] == [{"commit", "time", "machine"}]
    whole = figures(weak=(0.15, 0.2), strong=(0.3,), **{SUPERVISED: (0.7, 0.7)})
    for part in ("rows", "orderings"):
        assert found[part] == json.loads(json.dumps(whole[part])), "as if all had been run at once"


def test_fuller_figures_of_other_stages_are_replaced_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    full = figures(weak=(0.1, 0.2), strong=(0.3,), stages="before")
    assert keep(full) == f"figures: {tmp_path / 'mine.json'}"
    message = keep(figures(weak=(0.5, 0.6)))
    assert "mine.json is kept: its 3 finished trials" in message and "more than these 2; --replace" in message
    assert kept_rows(tmp_path) == {"weak": ["0", "1"], "strong": ["0"]}
    keep(figures(weak=(0.5,), strong=(0.5, 0.6)))  # as many
    assert kept_rows(tmp_path) == {"weak": ["0"], "strong": ["0", "1"]}
    keep(figures(weak=(0.5,)), anyway=True)
    assert kept_rows(tmp_path) == {"weak": ["0"]}
    keep(full, anyway=True)
    keep(figures(config="voc", weak=(0.5,)))
    assert kept_rows(tmp_path) == {"weak": ["0"]}


def test_what_is_no_figures_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for text in ("<<<<<<< HEAD", "[]", '{"figures": {"rows": [1]}}'):
        (tmp_path / "mine.json").write_text(text)
        keep(figures(weak=(0.5,)))
        assert kept_rows(tmp_path) == {"weak": ["0"]}


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_runs_evaluates_and_keeps_its_figures(
    tiny: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("benchmarks.claims_cfs")
    rows = tuple(row for row in CLAIMS.rows if row.name in ("box", SUPERVISED))
    monkeypatch.setattr(module, "CLAIMS", Claims("cfs", "demo-tiny", COLUMNS, rows, (), "student"))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("tasks.evaluate.finish.SHEET_ROWS", 2)  # drawing eight takes longer than the fits
    out = tmp_path / "out"
    share_demo(tiny, out / "cache")
    given = ["cfs", "--out", str(out), "--seeds", "4", "--device", "cpu", "--workers", "0", "--quiet"]
    given += ["--set", "options.launch=inline", *ONE_THREAD, "--set", "params.deeplab.iterations=2"]
    assert claims.main([*given, "--dry-run"]) == 0
    assert (
        "given-masks 24" in " ".join(capsys.readouterr().out.split()) and not (tmp_path / "claims_here.json").exists()
    )
    assert claims.main([*given, "--set", "params.deeplab.iteration=2"]) == 2
    assert "did you mean 'iterations'" in capsys.readouterr().err
    assert claims.main([*given, "--name", "claims_here"]) == 0
    saved = json.loads((tmp_path / "claims_here.json").read_text())
    assert {"commit", "machine", "time"} <= set(saved)
    figures = saved["figures"]
    assert figures["complete"] and not figures["valid"], "two iterations reach no 60 mIoU"
    full = next(row for row in figures["rows"] if row["name"] == SUPERVISED)
    assert full["scores"]["masks"]["mean"] == 1.0 and set(full["scores"]["student"]["seeds"]) == {"4"}
    assert (out / "claims.md").read_text().startswith("**Not valid")
    replacements: list[bool] = []
    monkeypatch.setattr(claims, "run", lambda *given: [Attempt("box", 4, "done", 0.0)])
    monkeypatch.setattr(claims, "keep_figures", lambda name, figures, of, anyway: replacements.append(anyway) or "kept")
    assert claims.main([*given, "--name", "claims_here"]) == claims.main([*given, "--name", "a", "--replace"]) == 0
    assert replacements == [False, True]
    assert (out / "compare.png").exists() and json.loads((out / "compare.json").read_text())["complete"]
