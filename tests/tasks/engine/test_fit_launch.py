"""Fits as the Runner sees them: which publication counts, which may stand in, and what is said of it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parents[2] / "helpers"
from fit_stages import TinyParams, write_images  # noqa: E402

from artifacts.cache.fit_store import FitStore  # noqa: E402
from artifacts.records import Kind, MaskRef, Record, RecordSet, Scribble  # noqa: E402
from tasks.engine.children import Stopped  # noqa: E402
from tasks.engine.options import RunParams  # noqa: E402
from tasks.engine.runner import Runner  # noqa: E402
from tasks.stage import FitStage  # noqa: E402

PARAMS = TinyParams(iterations=3, batch=2)


@pytest.fixture
def records(tmp_path: Path) -> RecordSet:
    jobs = write_images(tmp_path / "images", 5)
    return RecordSet("d", "train", ("cat",), tuple(Record(job.record.image_id, job.record.image) for job in jobs))


@dataclass(frozen=True)
class Fitted:
    """What one run made of its only stage."""

    digest: str
    stamp: str
    pinned: bool
    computed: int
    publication: str
    skips: tuple[str, ...]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Fitted]:
    def run_one(records: RecordSet, cache: str = "cache", seed: int = 0, **options: Any) -> Fitted:
        reads: tuple[Kind, ...] = ("image",)
        stage = FitStage("tiny", 1, PARAMS, reads, "fit_stages:fit", seed=seed)
        given = {"workers": 0, "device": "cpu", "launch": "inline", "threads": 1, **options}
        with Runner(RunParams(cache=str(tmp_path / cache), **given)) as run:
            handle = run.fit(stage, records)
        (report,) = run.reports
        assert handle.digest is not None and handle.stamp is not None
        assert (report.output, report.stamps, bool(report.pinned)) == (handle.digest, handle.stamp, handle.pinned)
        skips = tuple(skip.key for skip in run.skips)
        folder = Path(handle.path).parent
        assert folder.parent.name == handle.stamp, "the stamp is the one under which the weights lie"
        return Fitted(handle.digest, handle.stamp, handle.pinned, report.computed, folder.name, skips)

    return run_one


def first(records: RecordSet, count: int) -> RecordSet:
    return replace(records, records=records.records[:count])


# -- the stamp says what is learnt -----------------------------------------------------------------------------------


def test_the_order_of_the_list_is_not_learnt_from(records: RecordSet, fit: Callable[..., Fitted]) -> None:
    backwards = replace(records, records=records.records[::-1])
    assert fit(records) == fit(backwards, "other")
    assert fit(backwards).computed == 0


def test_a_skip_in_a_cached_fit_is_told_again(records: RecordSet, fit: Callable[..., Fitted]) -> None:
    Path(records.records[1].image).write_text("not an image")
    made, cached = fit(records), fit(records)
    assert (made.computed, cached.computed) == (1, 0)
    assert made.skips == cached.skips == ("d/1",)


@pytest.mark.parametrize("positions", ["scribbles", "truth"])
def test_an_image_of_another_size_than_annotated_is_not_learnt_from(tmp_path: Path, positions: Kind) -> None:
    found = []
    for name, (height, width) in {"right": (100, 120), "small": (50, 60)}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((height, width, 3), 7, np.uint8))
        stroke = Scribble(1, ((100.0, 90.0),))
        found.append(Record(name, str(tmp_path / f"{name}.png"), size_hw=(100, 120), scribbles=(stroke,)))
    records = RecordSet("d", "train", ("cat",), tuple(found))
    stage = FitStage("scribbled", 1, PARAMS, ("image", "scribbles"), "fit_stages:scribbled")
    if positions == "truth":
        stage = replace(stage, reads=("image", "truth", "scribbles"))
    options = RunParams(cache=str(tmp_path / "cache"), workers=0, device="cpu", launch="inline")
    with Runner(options) as run:
        handle = run.fit(stage, records)
    (skip,) = run.skips
    assert (skip.key, skip.permanent) == ("d/small", True)
    assert "the image is (50, 60)" in skip.reason and "made for (100, 120)" in skip.reason
    assert load_file(handle.path)["seen"].tolist() == [7.0]
    with Runner(options, planning=True) as run:
        sized = replace(records, records=(found[0], replace(found[1], size_hw=(50, 60))))
        assert run.fit(stage, sized).stamp not in (None, handle.stamp), "the size that is stated is learnt from, too"
    mended = replace(records, records=(found[0], replace(found[1], size_hw=(50, 60), scribbles=())))
    with Runner(options) as run:
        assert run.fit(stage, mended).stamp != handle.stamp, "who mends the annotation gets another fit"
    assert run.skips == []


def test_what_the_monitor_sees_is_checked_too(records: RecordSet, tmp_path: Path) -> None:
    stage = FitStage("watched", 1, PARAMS, ("image",), "fit_stages:watched")
    truth = MaskRef("nowhere:load", "")
    watched = [replace(record, truth=truth, size_hw=(8, 8 + n)) for n, record in enumerate(records.records[:2])]
    options = RunParams(cache=str(tmp_path / "cache"), workers=0, device="cpu", launch="inline")
    with Runner(options) as run:
        handle = run.fit(stage, records, monitor=replace(records, records=tuple(watched)))
    assert load_file(handle.path)["refused"].tolist() == [1]


def test_a_renamed_and_moved_copy_is_learnt_alike(
    records: RecordSet, fit: Callable[..., Fitted], tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "else" / "where")
    moved = [replace(r, image=str(tmp_path / "else" / "where" / Path(r.image).name)) for r in records]
    copy = replace(records, dataset="another-name", records=tuple(moved[::-1]))
    assert fit(copy).digest == fit(records).digest


# -- refit and rerun -------------------------------------------------------------------------------------------------


def test_never_pins_the_older_fit_and_rerun_makes_the_own(
    records: RecordSet, fit: Callable[..., Fitted], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "maskmill")
    few = fit(first(records, 3))
    pinned = fit(records, refit="never")
    assert pinned == replace(few, pinned=True, computed=0)
    said = r"tiny: pinned since \d{4}-\d\d-\d\d \d\d:\d\d UTC, trained on 3 of now 5 records \(2 new\)"
    assert re.search(said, caplog.text)
    again = fit(records, refit="never", rerun=("tiny",))
    assert (again.pinned, again.computed, again.publication) == (False, 1, "pub-0001")
    assert again.stamp != few.stamp and again.digest != few.digest
    assert fit(records) == replace(again, computed=0), "it is what refit=changed finds"
    twice = fit(records, refit="never", rerun=("tiny",))
    assert (twice.publication, twice.digest) == ("pub-0002", again.digest)
    assert fit(records, refit="never").publication == "pub-0002", "its own publication is no pin"


@pytest.mark.parametrize(("refit", "pinned"), [("share:0.67", True), ("share:0.66", False), ("share:2", True)])
def test_share_is_the_least_share_of_the_last_fits_records_that_is_fitted_again(
    records: RecordSet, fit: Callable[..., Fitted], refit: str, pinned: bool
) -> None:
    fit(first(records, 3))
    found = fit(records, refit=refit)
    assert (found.pinned, found.computed) == (pinned, int(not pinned))
    assert fit(records, refit=refit, rerun=("tiny",)).computed == 1


def test_changed_and_removed_records_count_like_new_ones(records: RecordSet, fit: Callable[..., Fitted]) -> None:
    fit(records)
    assert fit(first(records, 4), refit="share:0.3").pinned, "one of five is gone"
    Path(records.records[0].image).write_bytes(Path(records.records[4].image).read_bytes())
    assert fit(first(records, 4), refit="share:0.41").pinned
    found = fit(first(records, 4), refit="share:0.4")
    assert (found.pinned, found.computed) == (False, 1), "one of five is gone, another is changed"


@pytest.mark.parametrize(("days", "pinned"), [(6.9, True), (7.1, False)])
def test_days_are_those_since_the_last_fit_was_published(
    records: RecordSet, fit: Callable[..., Fitted], monkeypatch: pytest.MonkeyPatch, days: float, pinned: bool
) -> None:
    made = fit(first(records, 3))
    later = time.time() + 86400 * days
    monkeypatch.setattr("tasks.engine.fit_launch.time", SimpleNamespace(**{**vars(time), "time": lambda: later}))
    found = fit(records, refit="days:7")
    assert (found.pinned, found.computed) == (pinned, int(not pinned))
    assert fit(first(records, 3), refit="days:7") == replace(made, computed=0), "nothing changed: nothing to do"


@pytest.mark.parametrize(("refit", "level"), [("never", "WARNING"), ("share:1", "INFO"), ("days:1", "INFO")])
def test_none_to_pin_is_fitted_and_said(
    records: RecordSet, fit: Callable[..., Fitted], caplog: pytest.LogCaptureFixture, refit: str, level: str
) -> None:
    caplog.set_level(logging.INFO, "maskmill")
    fit(first(records, 4), seed=1)
    fit(replace(first(records, 4), dataset="other"))
    found = fit(records, refit=refit)
    assert (found.pinned, found.computed) == (False, 1), "another seed or data set is another lineage"
    said = [record for record in caplog.records if f"refit={refit}, but there is no earlier fit" in record.message]
    assert [record.levelname for record in said] == [level]


# -- what was published and is no more -------------------------------------------------------------------------------


def flip(records: RecordSet, tmp_path: Path, found: Fitted) -> None:
    (path,) = (tmp_path / "cache" / "fits").glob(f"*/{found.stamp}/{found.publication}/weights.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)


def test_damaged_weights_are_left_out_and_learnt_again(
    records: RecordSet, fit: Callable[..., Fitted], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = fit(records)
    flip(records, tmp_path, made)
    again = fit(records)
    assert (again.computed, again.publication, again.digest) == (1, "pub-0002", made.digest)
    assert caplog.text.count("pub-0001/weights.safetensors: the tensors are not those that were published") == 1
    assert fit(records) == replace(again, computed=0)


def test_a_pinned_fit_reports_no_skip_of_a_picture_that_was_mended(
    records: RecordSet, fit: Callable[..., Fitted]
) -> None:
    broken = Path(records.records[1].image)
    whole = broken.read_bytes()
    broken.write_text("not an image")
    assert fit(first(records, 4)).skips == fit(records, refit="never").skips == ("d/1",)
    broken.write_bytes(whole)
    assert fit(records, refit="never").skips == ()


def test_damaged_weights_of_a_fit_done_twice_and_of_a_pin(
    records: RecordSet, fit: Callable[..., Fitted], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, second = fit(records), fit(records, rerun=("tiny",))
    flip(records, tmp_path, second)
    assert fit(records) == replace(made, computed=0), "the older publication is as good"
    assert fit(records, rerun=("tiny",)).publication == "pub-0003"
    assert fit(first(records, 3), refit="never").publication == "pub-0003", "a sound one of the same records"
    few = fit(first(records, 4))
    flip(records, tmp_path, few)
    found = fit(first(records, 3), refit="never")
    assert (found.pinned, found.computed) == (False, 1), "an older one would make all masks stale"
    assert re.search("refit=never, but the fit to pin is damaged .*pub-0001.: it is fitted", caplog.text)


# -- the process -----------------------------------------------------------------------------------------------------


class _Child:
    error_tail = "Terminated"

    def wait(self, stop: threading.Event) -> int:
        stop.set()
        return -15


class _Supervisor:
    """Records what it has to start."""

    def __init__(self) -> None:
        self.argv: list[str] = []
        self.env: dict[str, str] = {}

    def start_lines(self, argv: list[str], *, env: dict[str, str], **_: Any) -> _Child:
        self.argv, self.env = argv, env
        return _Child()

    def stop_all(self) -> None:
        """Nothing was started."""


def test_a_fit_that_is_stopped_by_hand_says_from_where_it_goes_on(
    records: RecordSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def by_hand(child: _Child, stop: threading.Event) -> int:
        (work,) = (tmp_path / "cache" / "fits").glob("*/*")
        (work / "work").mkdir()
        (work / "work" / "step-000000340.ckpt").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(_Child, "wait", by_hand)
    run = Runner(RunParams(cache=str(tmp_path / "cache"), workers=0, device="cpu"))
    run._workers._supervisor = _Supervisor()  # type: ignore[assignment]
    (tmp_path / "cache" / "fits" / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(FitStore, "folder", lambda *_: tmp_path / "cache" / "fits" / "a" / "b")
    with pytest.raises(KeyboardInterrupt), run:
        run.fit(FitStage("tiny", 1, PARAMS, ("image",), "fit_stages:fit"), records)
    assert "tiny was stopped; the next run resumes from its checkpoint of iteration 340" in caplog.text


def test_a_stopped_fit_is_stopped_and_the_folder_of_the_start_is_not_its_path(
    records: RecordSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    supervisor: Any = _Supervisor()
    stage = FitStage("tiny", 1, PARAMS, ("image",), "fit_stages:fit")
    run = Runner(RunParams(cache=str(tmp_path / "cache"), workers=0, device="cpu"))
    run._workers._supervisor = supervisor
    with pytest.raises(Stopped, match=r"before its first checkpoint \(one every 60 s.*begins this fit anew"), run:
        run.fit(stage, records)
    assert '"interrupted"' in (run.folder.path / "manifest.json").read_text()
    settings = [supervisor.env[name] for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")]
    assert settings == ["0", "1000"], "freed arrays stay with the process, unless the user says otherwise"
    foreign = tmp_path / "foreign"
    for package in ("tasks", "artifacts"):
        (foreign / package).mkdir(parents=True)
        (foreign / package / "__init__.py").write_text("raise SystemExit('of the user')")
    begin = supervisor.argv[: supervisor.argv.index("-m")]
    done = subprocess.run(
        [*begin, "-c", "import tasks.training.fit_process, fit_stages; print(tasks.training.fit_process.__file__)"],
        cwd=foreign,
        env={**os.environ, **supervisor.env},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(HERE.parents[1] / "tasks" / "training" / "fit_process.py"), done.stderr
