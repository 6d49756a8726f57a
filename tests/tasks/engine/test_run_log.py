"""Does a run's log hold what a person needs, and does progress cost next to nothing?"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from artifacts.cache.runs import RunFolder
from tasks.engine.progress import Lines, Silent
from tasks.engine.run_log import RunLog
from tasks.engine.stage_report import StageReport


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "cfs")


def test_the_log_tells_plan_stages_warnings_and_the_error(folder: RunFolder) -> None:
    inner = Lines(every_s=0.0)
    with RunLog(folder, inner, line_s=0.0, progress_s=0.0) as run_log:
        run_log.planned([StageReport("net", "fit", "net-1", 1)], {"net": 90.0})
        assert folder.progress()["plan"][0]["address"] == "net-1"
        run_log.stage("net", 0, 0, "iterations")
        run_log.total("net", 50)
        run_log.advance("net", 10, "loss 0.5")
        assert (folder.progress()["stage"], run_log.stage_now) == ("net", "net")
        assert folder.progress()["stages"]["net"]["done"] == 10
        logging.getLogger("maskmill").warning("the disk is %s", "full")
        run_log.done("net", "cpu")
        try:
            raise ValueError("broken\nin two lines")
        except ValueError as error:
            run_log.failed(error)
    logging.getLogger("maskmill").warning("after the run")
    lines = [line.split("  ", 1)[1] for line in folder.log.read_text().splitlines()]
    assert lines[:4] == [
        "plan: net (fit): 1 of 1 to do, about 90 s",
        "net: begins",
        "net: 10 of 50 iterations loss 0.5",
        "warning: the disk is full",
    ]
    assert lines[4].startswith("net: done in 0.0 s cpu") and "in two lines" in lines[-1]
    assert any("test_run_log.py" in line for line in lines), "the traceback"
    assert folder.progress()["stage"] == "", "no stage is under way"


def test_a_thousand_reports_are_one_write(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    writes: list[float] = []
    monkeypatch.setattr(RunFolder, "write_progress", lambda self, progress: writes.append(now[0]))
    with RunLog(folder, Silent()) as run_log:
        run_log.stage("cut", 5000, 0, "images")
        before = len(writes)
        for image in range(5000):
            now[0] += 0.001
            run_log.advance("cut", image)
    assert len(writes) - before == 2, "five seconds: one every two"
    assert len(folder.log.read_text().splitlines()) == 1


def test_a_full_disk_costs_the_log_and_not_the_run(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("artifacts.cache.runs.write_bytes_atomic", full)
    monkeypatch.setattr("builtins.open", full)
    with RunLog(folder) as run_log:
        run_log.stage("cut", 1, 0, "images")
        run_log.done("cut")
