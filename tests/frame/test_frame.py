"""Is the frame open? A method in three files and one line is a flow like the shipped ones.

Every test of tests/flows that takes its flows from the registry (end to end, compared, served, killed, weak means
weak) runs the toy, too. Here is what only the toy has: auxiliary data, a soft target, rounds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flow_runs import Done, Runs, copy_of, run_flow
from toy import ENTRY

from artifacts import report
from artifacts.cache.runs import read_stamps
from artifacts.cache.store import MaskStore
from flows.registry import FLOWS

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@pytest.fixture(scope="module")
def toy(runs: Runs) -> Done:
    return runs.tiny("toy")


def stored(run: Done, label: str) -> list[dict[str, np.ndarray]]:
    stage = next(stage for stage in run.manifest["stages"] if stage["label"] == label)
    store = MaskStore(run.out / "cache", readonly=True)
    stamps = read_stamps(run.out / "cache", stage["stamps"])
    return [store.read(stage["address"], key, stamp) for key, (stamp, _) in stamps.items() if stamp is not None]


def test_it_is_three_files_and_a_line() -> None:
    assert {path.name for path in FOLDER.glob("toy*.py")} == {"toy.py", "toy_flow.py", "toy_net.py", "toy_stage.py"}
    assert FLOWS["toy"] is ENTRY
    elsewhere = [path for room in ("flows", "tasks", "models", "artifacts") for path in (ROOT / room).rglob("*.py")]
    assert not [path for path in elsewhere if "toy_" in path.read_text()]


def test_each_round_is_a_stage_of_its_own_and_has_its_scores(toy: Done) -> None:
    labels = [stage["label"] for stage in toy.manifest["stages"]]
    assert labels == [
        *("given-masks", "prior", "objectness", "strokes", "segmenter", "predict", "keep-strokes"),
        *("segmenter@2", "predict@2", "keep-strokes@2", "segmented", "segmented-shown"),
    ]
    assert set(toy.manifest["scores"]) == {
        *("given-masks (aux)", "strokes (train)", "predict (train)", "keep-strokes (train)", "predict@2 (train)"),
        *("masks (train)", "segmented (val)"),
    }
    assert toy.manifest["scores"]["given-masks (aux)"]["miou"] == 1.0


def test_the_rounds_learn_from_different_targets_and_say_more_than_background(toy: Done) -> None:
    first, second = (np.concatenate([a["mask_hw"].ravel() for a in stored(toy, n)]) for n in ("predict", "predict@2"))
    assert (first != second).any() and len(np.unique(second)) > 1


def test_the_soft_target_is_learnt_on_auxiliary_classes_and_drawn_as_a_heat_map(
    toy: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = [arrays["object_hw"] for arrays in stored(toy, "objectness")]
    assert len(maps) == 24 and all(one.dtype == np.float16 and 0 <= one.min() < one.max() <= 1 for one in maps)
    sheets = []
    monkeypatch.setattr(report, "contact_sheet", lambda rows, *_, **__: sheets.append(rows) or [])
    assert run_flow("toy", copy_of(toy, tmp_path / "run")).code == 0
    (rows,) = sheets
    drawn = {panel.name: panel.array.dtype.kind for panel in rows[0].panels}
    assert drawn["objectness: object"] == "f" and drawn["predict@2"] == "u"
    assert len(rows[0].scribbles) > 0 and not rows[0].boxes and not rows[0].tags


def test_one_round_shares_all_that_comes_before_the_second(toy: Done) -> None:
    plan = run_flow("toy", toy.out, "--dry-run", "--set", "params.rounds=1")
    assert plan.code == 0 and "segmenter@2" not in plan.printed
    rows = [line.split() for line in plan.stdout.splitlines() if line.strip()]
    left = {row[0]: row[3] for row in rows if len(row) > 4 and row[1] in ("map", "fit")}
    assert {label: count for label, count in left.items() if count != "0"} == {"segmented": "8"}, (
        "training images were predicted in the first round"
    )


def test_without_auxiliary_data_it_says_what_to_set(tmp_path: Path) -> None:
    done = run_flow("toy", tmp_path, "--set", "data.aux=null")
    assert done.code == 2 and "toy needs auxiliary data: set data.aux.source" in done.printed
