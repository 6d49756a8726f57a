"""Do images that are worked on at once fare as they would alone, whatever one of them does?"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from artifacts.cache.store import MaskStore
from artifacts.records import Record
from tasks.engine import work_unit
from tasks.engine.children import Supervisor
from tasks.engine.image_task import ImageTask
from tasks.engine.pool import Pool
from tasks.engine.work_unit import UnitResult, WorkUnit
from tasks.stage import Item, MapStage

AT_ONCE = 3


@dataclass(frozen=True)
class Level:
    level: int = 100


def unit(folder: Path, names: list[str], cache: str = "cache") -> WorkUnit:
    """As the Runner makes one for a GPU, which the toy stage does not need."""
    folder.mkdir(exist_ok=True)
    image_tasks = []
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        if "broken" in name:
            path.write_text("not an image")
        else:
            cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, (5, 7 + number, 3), np.uint8))
        image_tasks.append(ImageTask(f"d/{name}", f"s-{name}", Record(name, str(path))))
    stage = MapStage(
        "toy",
        1,
        Level(),
        ("image",),
        ("mask_hw",),
        "stage_functions:at_once",
        images_at_once=AT_ONCE,
    )
    return WorkUnit(str(folder / cache), "toy", "toy-0", stage, (), tuple(image_tasks), device="cuda")


def alone(given: WorkUnit) -> WorkUnit:
    """The same work in a cache of its own, as on a CPU."""
    return replace(given, device="cpu", cache=f"{given.cache}-alone")


def outcome(given: WorkUnit, result: UnitResult) -> tuple[Mapping[str, object], list[tuple[str, str, bool]]]:
    """What is stored, and the skips in order."""
    store = MaskStore(Path(given.cache))
    arrays = {}
    for entry in result.entries:
        found = None if entry.output is None else store.read(given.address, entry.key, entry.stamp)["mask_hw"].tolist()
        arrays[entry.key] = (entry.reason, entry.output, found)
    return arrays, [(skip.key, skip.reason, skip.permanent) for skip in result.skips]


def together(count: Path) -> int:
    """Calls for several images."""
    return sum(line.startswith("at_once") and line.count("d/") > 1 for line in count.read_text().splitlines())


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKMILL_TEST_COUNT", str(tmp_path / "count"))
    return tmp_path / "count"


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c", "d", "e", "f", "g"],
        ["a", "skip", "c", "d", "e"],
        ["a", "b", "c", "d", "fault", "f"],
        ["a", "b", "memory", "d"],
        ["broken1", "b", "c", "broken2", "broken3", "broken4", "d"],
        ["a"],
    ],
)
def test_results_and_skips_are_those_of_the_images_alone(tmp_path: Path, names: list[str]) -> None:
    given = unit(tmp_path, names)
    reports: list[str] = []
    result = given.run(lambda key, together=1: reports.append(f"{key} {together}"), {})
    assert outcome(given, result) == outcome(alone(given), alone(given).run(lambda key, together=1: None, {}))
    assert reports[0] == f"d/{names[0]} {min(AT_ONCE, len(names))}" and reports[-1] == " 1"


def test_each_batch_is_one_call_and_a_bad_image_costs_the_others_a_call_each(tmp_path: Path, counted: Path) -> None:
    given = unit(tmp_path, ["a", "b", "c", "d", "skip", "f", "g"])
    given.run(lambda key, together=1: None, {})
    calls = counted.read_text().splitlines()
    assert [call.removeprefix("at_once ") for call in calls if call.startswith("at_once")] == [
        "d/a d/b d/c",
        "d/d d/skip d/f",
        *("d/d", "d/skip", "d/f"),
        "d/g",
    ]


def test_a_call_that_gives_too_few_results_is_made_image_by_image_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = unit(tmp_path, ["a", "short", "c"])
    with caplog.at_level(logging.WARNING, "maskmill"):
        result = given.run(lambda key, together=1: None, {})
    assert len(result.entries) == 3 and result.skips == ()
    assert "stage_functions:at_once returned 2 results for 3 images" in caplog.text


def test_the_next_images_are_read_while_these_are_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = {f"d/{name}": threading.Event() for name in "abcdefg"}
    load = work_unit.load_item

    def loading(store: MaskStore, task: ImageTask, *rest: object, **more: object) -> Item:
        item = load(store, task, *rest, **more)  # type: ignore[arg-type]
        read[task.key].set()
        return item

    monkeypatch.setattr(work_unit, "load_item", loading)
    late: list[str] = []

    def working(items: list[Item], params: object) -> list[dict[str, np.ndarray]]:
        coming = {"d/a": "d/d", "d/d": "d/g"}.get(items[0].key)
        if coming is not None and not read[coming].wait(10):
            late.append(coming)
        return [{"mask_hw": np.zeros((1, 1), np.uint8)} for _ in items]

    given = unit(tmp_path, list("abcdefg"))
    monkeypatch.setattr("tasks.stage.resolve", lambda name: working)
    given.run(lambda key, together=1: None, {})
    assert late == []


def test_a_stage_of_single_images_reads_ahead_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = unit(tmp_path, ["a", "broken", "c"])
    given = replace(given, stage=replace(given.stage, images_at_once=0))
    read = {f"d/{name}": threading.Event() for name in ("a", "broken", "c")}
    load = work_unit.load_item

    def loading(store: MaskStore, task: ImageTask, *rest: object, **more: object) -> Item:
        try:
            return load(store, task, *rest, **more)  # type: ignore[arg-type]
        finally:
            read[task.key].set()

    monkeypatch.setattr(work_unit, "load_item", loading)
    reported: list[tuple[str, int]] = []
    late: list[str] = []

    def working(item: Item, params: object) -> dict[str, np.ndarray]:
        if item.key == "d/a" and not read["d/broken"].wait(10):
            late.append("d/broken")
        return {"mask_hw": np.zeros((1, 1), np.uint8)}

    monkeypatch.setattr("tasks.stage.resolve", lambda name: working)
    result = given.run(lambda key, together=1: reported.append((key, together)), {})
    assert late == [] and [skip.key for skip in result.skips] == ["d/broken"]
    assert reported == [("d/a", 1), ("d/broken", 1), ("d/c", 1), ("", 1)]


def test_a_crash_in_a_batch_costs_the_one_image_that_crashes(tmp_path: Path, counted: Path) -> None:
    stop = threading.Event()
    given = unit(tmp_path, ["a", "b", "abort", "d", "e"])
    done: list[int] = []
    with (
        Supervisor(stop) as supervisor,
        Pool(1, supervisor=supervisor, stop=stop) as pool,
        pool.reporting("toy", done.append),
    ):
        result = pool.submit(given).result(120)
    assert {entry.key for entry in result.entries} == {"d/a", "d/b", "d/d", "d/e"}
    assert [(skip.key, skip.reason) for skip in result.skips] == [("d/abort", "worker died with signal SIGABRT twice")]
    assert together(counted) == 1, "after the first death images are tried one by one"
    assert done == sorted(done) and done[-1] == 5


def test_a_batch_has_the_time_of_its_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    with (
        Supervisor(stop) as supervisor,
        Pool(1, supervisor=supervisor, stop=stop, image_timeout_s=1.2) as pool,
    ):
        result = pool.submit(unit(tmp_path, ["nap1", "nap2", "nap3"])).result(120)
    assert (len(result.entries), caplog.text) == (3, ""), "1.8 s of 3.6"


def test_an_image_that_hangs_in_a_batch_is_given_up(tmp_path: Path) -> None:
    stop = threading.Event()
    slow = unit(tmp_path, ["a", "b", "hang"])
    with (
        Supervisor(stop) as supervisor,
        Pool(1, supervisor=supervisor, stop=stop, image_timeout_s=0.7) as pool,
    ):
        result = pool.submit(slow).result(120)
    assert {entry.key for entry in result.entries} == {"d/a", "d/b"}
    assert [(skip.key, skip.reason) for skip in result.skips] == [
        ("d/hang", "no result within 0.7 s (image_timeout_s)")
    ]


def test_on_a_cpu_images_stay_alone(tmp_path: Path, counted: Path) -> None:
    alone(unit(tmp_path, ["a", "b"])).run(lambda key, together=1: None, {})
    assert counted.read_text().count("at_once") == 2 and together(counted) == 0
