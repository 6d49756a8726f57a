"""A class is appended: what the labels alone decide is taken over from the shorter table, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from artifacts.cache.segments import Segment
from artifacts.cache.store import MaskStore
from artifacts.records import Record, RecordSet
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.stage import PARAMS_CONFIG, MapHandle, MapStage


@dataclass(frozen=True)
class Level:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    level: int = 100


STAGE = MapStage(
    "threshold",
    1,
    Level(),
    ("image", "tags"),
    ("mask_hw",),
    "stage_functions:touchy_threshold",
    holds_classes=True,
    numbers_of_labels=True,
)
INVERT = replace(STAGE, name="invert", function="stage_functions:invert", reads=())


@pytest.fixture
def records(tmp_path: Path) -> RecordSet:
    found = []
    for number, name in enumerate(("a", "b", "skip")):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8))
        found.append(Record(name, str(path), tags=(1,)))
    return RecordSet("set", "train", ("cat",), tuple(found))


Run = Callable[..., tuple[MapHandle, int]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_one(records: RecordSet, stage: MapStage = STAGE, **options: Any) -> tuple[MapHandle, int]:
        """The stage's handle, and how many images were tried; a plan foretells as many."""
        given = RunParams(cache=str(tmp_path / "cache"), workers=0, **options)
        with Runner(given, planning=True) as plan:
            plan.map(stage, records)
        with Runner(given) as run:
            handle = run.map(stage, records)
        tried = run.reports[0].total - run.reports[0].cached
        assert plan.reports[0].to_compute == tried
        return handle, tried

    return run_one


def with_classes(records: RecordSet, *classes: str) -> RecordSet:
    return replace(records, classes=classes)


def test_results_are_taken_over_and_lie_at_the_new_address(run: Run, records: RecordSet, tmp_path: Path) -> None:
    first, tried = run(records)
    assert tried == 3
    for classes in (("cat", "dog", "cow"), ("cat", "dog", "cow", "ant")):
        found, tried = run(with_classes(records, *classes))
        assert tried == 1, "the one that was skipped: a longer table may allow it"
        assert found.address != first.address
        assert list(found.produced.items()) == list(first.produced.items()), "in the records' order, too"
    store = MaskStore(tmp_path / "cache", readonly=True)
    for key in ("set/a", "set/b"):
        stamp = first.produced[key].stamp
        one, other = (store.read(h.address, key, stamp)["mask_hw"] for h in (first, found))
        assert np.array_equal(one, other)
    assert run(with_classes(records, *classes))[1] == 0


def test_what_is_another_picture_or_label_is_computed(run: Run, records: RecordSet) -> None:
    run(records.only(["a", "b"]))
    changed = replace(records.records[1], tags=(1, 2))
    grown = replace(with_classes(records, "cat", "dog"), records=(records.records[0], changed))
    assert run(grown)[1] == 1


@pytest.mark.parametrize("classes", [("dog", "cat"), ("feline",), ("feline", "dog")])
def test_a_table_that_numbers_otherwise_gives_nothing(run: Run, records: RecordSet, classes: tuple[str, ...]) -> None:
    run(records)
    assert run(with_classes(records, *classes))[1] == 3


def test_neither_does_a_stage_that_looks_at_the_table(run: Run, records: RecordSet) -> None:
    stage = replace(STAGE, numbers_of_labels=False)
    run(records, stage)
    assert run(with_classes(records, "cat", "dog"), stage)[1] == 3


def test_rerun_computes_all(run: Run, records: RecordSet) -> None:
    run(records)
    assert run(with_classes(records, "cat", "dog"), rerun=("threshold",))[1] == 3


def test_a_stage_behind_another_takes_nothing_over(records: RecordSet, tmp_path: Path) -> None:
    computed = []
    for one in (records, with_classes(records, "cat", "dog")):
        with Runner(RunParams(cache=str(tmp_path / "cache"), workers=0)) as run:
            run.map(INVERT, one, source=run.map(STAGE, one))
        computed.append([report.computed for report in run.reports])
    assert computed == [[2, 2], [0, 2]]


def test_a_damaged_result_is_computed(run: Run, records: RecordSet, tmp_path: Path) -> None:
    first, _ = run(records.only(["a"]))
    (segment,) = (tmp_path / "cache" / "maps" / first.address).glob("*.h5")
    data = bytearray(segment.read_bytes())
    data[Segment(segment).header.packed["mask_hw"].chunks[0].offset] ^= 0xFF
    segment.write_bytes(data)
    with Runner(RunParams(cache=str(tmp_path / "cache"), workers=0)) as again:
        handle = again.map(STAGE, with_classes(records.only(["a"]), "cat", "dog"))
        read = again.store.read(handle.address, "set/a", handle.produced["set/a"].stamp)["mask_hw"]
    assert again.reports[0].computed == 1
    assert np.array_equal(read, cv2.imread(records.records[0].image).mean(2) > 100)
    assert [path.name for path in segment.parent.glob("*.corrupt")] == [f"{segment.name}.corrupt"]
