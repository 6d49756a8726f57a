"""A map stage on a GPU: any free one, under its lock, and no worker is started while all are busy."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from artifacts.cache import locks
from artifacts.records import Record, RecordSet
from tasks.engine import gpus
from tasks.engine.options import RunParams
from tasks.engine.progress import Silent
from tasks.engine.runner import Runner
from tasks.stage import MapStage


@dataclass(frozen=True)
class Level:
    level: int = 100


RECORDS = RecordSet("d", "train", ("cat",), (Record("a", "a.png"), Record("b", "b.png")))
STAGE = MapStage("seen", 1, None, (), ("mask_hw",), "stage_functions:seen_gpus", uses_torch=True)


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKMILL_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "has_gpu", lambda: True)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(gpus, "_cuda_in_use", lambda: False)
    monkeypatch.setattr(gpus, "_bound", [])


class Notes(Silent):
    """Keeps what is said while waiting; then gives the second GPU back, or stops the run."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.then: Any = None

    def advance(self, label: str, done: int, note: str = "") -> None:
        if note.startswith("waits"):
            self.notes.append(note)
            self.then()


def seen(run: Runner) -> set[str]:
    handle = run.map(STAGE, RECORDS)
    arrays = [run.store.read(handle.address, key, made.stamp)["mask_hw"] for key, made in handle.produced.items()]
    return {array.tobytes().decode() for array in arrays}


def options(tmp_path: Path, **changes: Any) -> RunParams:
    return RunParams(**{"cache": str(tmp_path / "cache"), "workers": 0, **changes})


@pytest.mark.parametrize("workers", [0, 2])
def test_the_free_gpu_is_the_only_one_that_is_seen(tmp_path: Path, workers: int) -> None:
    with locks.hold(locks.gpu_lock_path("GPU-a")), Runner(options(tmp_path, workers=workers)) as run:
        assert seen(run) == {"cuda GPU-b PCI_BUS_ID"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with locks.hold(locks.gpu_lock_path("GPU-b"), wait=False):
        """Free again when the stage is done."""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_gpu_gets_several_images_at_once_and_a_cpu_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """With the same results, skips included, and under one address."""
    monkeypatch.setenv("MASKMILL_TEST_COUNT", str(tmp_path / "count"))
    records = []
    for number, name in enumerate(["a", "skip", *"bcdefghijk"]):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((4, 5, 3), 20 * number, np.uint8))
        records.append(Record(name, str(tmp_path / f"{name}.png")))
    one = RecordSet("d", "train", ("cat",), tuple(records))
    function = "stage_functions:at_once"
    stage = replace(STAGE, name="toy", params=Level(), reads=("image",), function=function, images_at_once=2)
    found, counts = [], []
    for device in ("cuda", "cpu"):
        made = options(tmp_path, workers=workers, device=device, cache=str(tmp_path / device))
        with Runner(made) as run:
            handle = run.map(stage, one)
        found.append((handle.address, handle.produced, run.skips))
        calls = [line for line in (tmp_path / "count").read_text().splitlines() if line.startswith("at_once")]
        counts.append({line.count("d/") for line in calls})
        (tmp_path / "count").unlink()
    assert found[0] == found[1] and len(found[0][2]) == 1
    assert counts == [{1, 2}, {1}]


def test_a_process_that_computes_on_a_gpu_already_waits_for_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locks.hold(locks.gpu_lock_path("GPU-a")), Runner(options(tmp_path)) as run:
        seen(run)
    monkeypatch.setattr(gpus, "_cuda_in_use", lambda: True)
    with Runner(options(tmp_path, rerun=("seen",))) as run:
        assert seen(run) == {"cuda GPU-b PCI_BUS_ID"}, "not the first one, which it cannot see"


def test_all_busy_is_said_and_waited_for_before_any_worker_is_started(tmp_path: Path) -> None:
    notes = Notes()
    with locks.hold(locks.gpu_lock_path("GPU-a")):
        busy = locks.hold(locks.gpu_lock_path("GPU-b"))
        busy.__enter__()
        with Runner(options(tmp_path, workers=1), reporter=notes) as run:

            def free() -> None:
                assert run._workers._supervisor is None, "nothing was started"
                busy.__exit__(None, None, None)

            notes.then = free
            assert seen(run) == {"cuda GPU-b PCI_BUS_ID"}
    assert notes.notes == [f"waits for GPU GPU-a, held by pid {os.getpid()} on {os.uname().nodename}"]


def test_a_waiting_stage_is_stopped_at_once(tmp_path: Path) -> None:
    notes = Notes()
    with locks.hold(locks.gpu_lock_path("GPU-a")), locks.hold(locks.gpu_lock_path("GPU-b")):
        run = Runner(options(tmp_path, workers=1), reporter=notes)
        notes.then = lambda: threading.Timer(0.1, run.stop.set).start()
        started = time.monotonic()
        with pytest.raises(locks.LockAborted, match="stopped while waiting for a GPU"), run:
            seen(run)
    assert time.monotonic() - started < 2
    assert '"interrupted"' in (run.folder.path / "manifest.json").read_text()


def test_without_a_visible_gpu_the_cpu_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", list)
    with Runner(options(tmp_path)) as run:
        assert seen(run) == {"cpu None None"}
    with pytest.raises(gpus.NoDevice, match="no GPU is visible"):
        Runner(options(tmp_path, device="cuda"))
