"""Are one stage's arrays taken where there are any, and another's elsewhere, in planning as in work?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fit_stages import TinyParams
from safetensors.numpy import load_file

from artifacts.records import DataError, Record, RecordSet
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.stage import FitHandle, FitStage, MapHandle, MapStage, first_of


@dataclass(frozen=True)
class Level:
    level: int = 100


STRONG = ["a", "skip"]
"""Images with something better; the better stage skips one of them."""
FIT = FitStage("targets", 1, TinyParams(), ("image",), "fit_stages:targets")


@pytest.fixture
def records(tmp_path: Path) -> RecordSet:
    found = []
    for name in ("a", "b", "skip", "d"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((4, 4, 3), ord(name[0]), np.uint8))
        found.append(Record(name, str(tmp_path / f"{name}.png")))
    return RecordSet("set", "train", ("thing",), tuple(found))


def runner(folder: Path, *, planning: bool = False) -> Runner:
    options = RunParams(cache=str(folder / "cache"), workers=0, device="cpu", launch="inline")
    return Runner(options, planning=planning)


def stage(function: str, level: int = 100, outputs: tuple[str, ...] = ("mask_hw",), **fields: Any) -> MapStage:
    return MapStage(f"{function}-stage", 1, Level(level), ("image",), outputs, f"stage_functions:{function}", **fields)


def masks(run: Runner, handle: MapHandle) -> dict[str, np.ndarray]:
    found = {}
    for key, produced in handle.produced.items():
        address, stamp = handle.place(produced)
        found[key] = run.store.read(address, key, stamp)["mask_hw"]
    return found


def page(run: Runner, records: RecordSet, level: int = 5) -> tuple[MapHandle, MapHandle, FitHandle]:
    better = run.map(stage("touchy"), records.only(STRONG))
    weak = run.map(stage("level", level), records)
    both = first_of(better, weak)
    return both, run.map(stage("twice"), records, source=both), run.fit(FIT, records, target=both)


def test_a_map_and_a_fit_read_the_better_arrays_where_there_are_any(tmp_path: Path, records: RecordSet) -> None:
    with runner(tmp_path) as run:
        both, twice, fit = page(run, records)
        found, chosen = masks(run, twice), masks(run, both)
    assert {key: (mask.shape, int(mask[0, 0])) for key, mask in found.items()} == {
        "set/a": ((2, 2), 2),
        "set/b": ((2, 3), 10),
        "set/skip": ((2, 3), 10),
        "set/d": ((2, 3), 10),
    }
    assert all((2 * chosen[key] == mask).all() for key, mask in found.items())
    assert list(both.produced) == ["set/a", "set/b", "set/skip", "set/d"]
    assert load_file(fit.path)["targets"].tolist() == [1, 5, 5, 5]
    assert [skip.key for skip in run.skips] == ["set/skip"], "the better stage's own skip"


def test_a_second_run_has_nothing_to_do_and_a_change_below_is_seen(tmp_path: Path, records: RecordSet) -> None:
    with runner(tmp_path) as run:
        first, _, fit = page(run, records)
    with runner(tmp_path) as run:
        second, _, again = page(run, records)
    assert [report.to_compute for report in run.reports] == [0, 0, 0, 0]
    assert (second.address, second.produced, again.stamp) == (first.address, first.produced, fit.stamp)
    with runner(tmp_path) as run:
        other, _, changed = page(run, records, level=6)
    assert other.address != first.address and changed.stamp != fit.stamp
    assert [report.computed for report in run.reports] == [0, 4, 4, 1], "another address above, so all of it anew"


def test_a_plan_knows_what_it_can_know(tmp_path: Path, records: RecordSet) -> None:
    with runner(tmp_path, planning=True) as run:
        both, _, fit = page(run, records)
    assert both.produced == {} and fit.stamp is None
    assert [(report.label, report.to_compute, report.unknown) for report in run.reports] == [
        ("touchy-stage", 2, 0),
        ("level-stage", 4, 0),
        ("twice-stage", 0, 4),
        ("targets", 0, 1),
    ]
    with runner(tmp_path) as run:
        run.map(stage("level", 5), records)
    with runner(tmp_path, planning=True) as run:
        both, _, _ = page(run, records)
    assert set(both.produced) == {"set/b", "set/d"}, "of the others the better stage may have arrays"
    with runner(tmp_path) as run:
        done, _, _ = page(run, records)
    with runner(tmp_path, planning=True) as run:
        planned, _, fit = page(run, records)
    assert (planned.address, planned.produced) == (done.address, done.produced) and fit.digest is not None


def test_it_may_be_one_of_the_two_again(tmp_path: Path, records: RecordSet) -> None:
    with runner(tmp_path) as run:
        best = run.map(stage("level", 9), records.only(["b"]))
        both, _, _ = page(run, records)
        three = first_of(best, both)
        twice = run.map(stage("twice"), records, source=three)
        found = [int(mask[0, 0]) for mask in masks(run, twice).values()]
    assert found == [2, 18, 10, 10]
    assert len({best.address, both.address, three.address}) == 3


def test_what_does_not_fit_together_is_refused(tmp_path: Path, records: RecordSet) -> None:
    with runner(tmp_path, planning=True) as run:
        weak, better = run.map(stage("level"), records), run.map(stage("touchy"), records.only(STRONG))
        with pytest.raises(DataError, match="2 of the 4 images of level-stage are none of touchy-stage"):
            first_of(weak, better)
        foreign = run.map(stage("level", holds_classes=True), replace(records, classes=("other",)))
        with pytest.raises(DataError, match=r"classes \('thing',\) are not \('other',\)"):
            first_of(better, foreign)
        with pytest.raises(DataError, match="no array of"):
            first_of(better, run.map(stage("level", outputs=("probs_chw",)), records))
        one = first_of(better, weak)
        with pytest.raises(DataError, match="lacks 4 of its 4 images"):
            run.map(stage("twice"), replace(records, dataset="copy"), source=one)
