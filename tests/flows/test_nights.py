"""Nights on a folder that changes, on one cache: each computes what it has to, and nothing else changes a byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.demo.data import prepare_demo
from benchmarks.night_world import NIGHTS, World
from benchmarks.nights import Row, progress, simulate

STAGES = ("grabcut", "deeplab", "student", "student-shown")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Six pictures, and two that are scored."""
    return World(prepare_demo("demo-tiny", tmp_path), tmp_path / "pictures", first=6, val=2)


def wrong(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row.right]


def computed(rows: list[Row]) -> dict[str, tuple[int, ...]]:
    return {row.name: tuple(row.computed[label] for label in STAGES) for row in rows}


def test_ten_nights_compute_what_they_have_to(world: World, tmp_path: Path) -> None:
    """A night's numbers follow from what was done to the folder: worked out by hand here, by a model in ``wrong``."""
    rows = simulate("cfs", tmp_path, world, ["params.deeplab.iterations=3"], show=progress)
    assert wrong(rows) == []
    assert computed(rows) == {
        "the first night": (6, 1, 2, 6),
        "new pictures": (2, 1, 2, 8),
        "nothing new": (0, 0, 0, 0),
        "changed boxes": (1, 1, 2, 8),
        "a removed picture": (0, 1, 2, 7),
        "a renamed picture": (1, 1, 2, 7),
        "a broken picture": (1, 0, 0, 1),  # tried once; the network never sees it
        "it is mended": (1, 1, 2, 8),
        "killed, and run again": (1, 1, 2, 8),
        "a new class": (1, 1, 2, 8),  # its number is a new one, so that the others' masks stay
        "the same folder, an empty cache": (10, 1, 2, 8),
    }


def test_between_refits_the_last_network_makes_what_is_new(world: World, tmp_path: Path) -> None:
    nights = [NIGHTS[number] for number in (0, 1, 3, 4, 5)]
    few = ["params.deeplab.iterations=3"]
    rows = simulate("cfs", tmp_path, world, few, refit="never", nights=nights, show=progress)
    assert wrong(rows) == []
    assert computed(rows) == {
        "the first night": (6, 1, 2, 6),
        "new pictures": (2, 0, 0, 2),
        "changed boxes": (1, 0, 0, 0),  # the student does not look at boxes
        "a removed picture": (0, 0, 0, 0),
        "a renamed picture": (1, 0, 0, 1),
    }
    (said,) = rows[-1].pinned
    assert said.endswith("trained on 3 of now 7 records (3 new, 1 changed, 2 removed)"), "the renamed one counts twice"
    assert said in (tmp_path / "nights" / "index.html").read_text()
