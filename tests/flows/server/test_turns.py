"""Whose turn it is, what a stage's progress says, what a run's last state is: without a server."""

from __future__ import annotations

import datetime
import itertools
import logging
import threading
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flow_servers import eventually
from PIL import Image
from prefect.client.schemas.objects import FlowRun, StateType
from slow_flow import SlowParams

from artifacts.datasets import DataParams
from benchmarks import soak_nights
from flows.server import run_parameters
from flows.server import run_progress as progress
from flows.server.run_outcome import one_line, outcome, page
from flows.server.run_parameters import with_deployments
from flows.server.turns import turns
from tasks.engine.options import RunParams
from tasks.engine.progress import Lines, Silent

NOW = datetime.datetime(2026, 1, 1, 2, tzinfo=datetime.UTC)
ONE, OTHER = uuid.uuid4(), uuid.uuid4()


def run(name: str, minutes: float, deployment: uuid.UUID = ONE, state: StateType = StateType.SCHEDULED) -> FlowRun:
    """Due so many minutes from now; a name with ``cron`` is of the schedule."""
    return FlowRun(
        id=uuid.uuid4(),
        flow_id=uuid.uuid4(),
        name=name,
        deployment_id=deployment,
        auto_scheduled="cron" in name,
        expected_start_time=NOW + datetime.timedelta(minutes=minutes),
        state_type=state,
        state_name=state.value.title(),
    )


def names(runs: list[FlowRun]) -> list[str]:
    return sorted(one.name for one in runs)


@pytest.mark.parametrize("alive", [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
def test_behind_a_run_at_work_one_scheduled_run_waits_and_every_run_that_was_asked_for(alive: StateType) -> None:
    runs = [run("long", -60, state=alive), *(run(f"cron{i}", -i) for i in range(5)), run("a", -1), run("b", -2)]
    for order in (runs, runs[::-1]):
        found = turns(order, NOW)
        assert (names(found.start), names(found.waiting)) == ([], ["a", "b", "cron4"])
        assert names(found.spare) == ["cron0", "cron1", "cron2", "cron3"]


def test_what_was_asked_for_comes_before_what_is_scheduled_and_the_oldest_first() -> None:
    queue = [run("cron", -30), run("late", -1), run("early", -2)]
    begun = []
    while queue:
        (first,) = turns(queue, NOW).start
        begun.append(first.name)
        queue.remove(first)
    assert begun == ["early", "late", "cron"]


def test_a_run_is_begun_shortly_before_its_time_unless_another_is_due_or_at_work() -> None:
    soon = run("cron soon", 0.1)
    assert turns([soon], NOW).start == [soon]
    assert names(turns([soon, run("cron", -1)], NOW).start) == ["cron"]
    assert names(turns([soon, run("asked", 0)], NOW).start) == ["asked"]
    found = turns([soon, run("long", -1, state=StateType.RUNNING)], NOW)
    assert found.start == found.waiting == found.spare == []


def test_deployments_do_not_wait_for_each_other() -> None:
    runs = [run("long", -9, state=StateType.RUNNING), run("cron", -1), run("cron other", -1, OTHER)]
    found = turns(runs, NOW)
    assert (names(found.start), names(found.waiting)) == (["cron other"], ["cron"])


def test_a_run_that_was_told_to_start_counts_as_at_work_before_the_server_says_so() -> None:
    told, next_ = run("cron", -2), run("asked", -1)
    assert turns([told, next_], NOW).start == [next_]
    found = turns([told, next_], NOW, starting={told.id})
    assert (found.start, found.waiting) == ([], [next_])


# -- progress --------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the server was told: (key or id, percent, description)."""
    calls: list[tuple[Any, ...]] = []

    def create(percent: float, key: str, description: str) -> str:
        calls.append((key, percent, description))
        return f"id of {key}"

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(
        progress, "update_progress_artifact", lambda id_, p, description: calls.append((id_, p, description))
    )
    return calls


def test_a_stage_that_lasts_has_one_artifact_that_moves_and_a_short_one_has_none(told: list[tuple[Any, ...]]) -> None:
    shown = progress.ServerProgress(Silent(), "cfs", every_s=0.05)
    shown.stage("short", 3, 3, "images")
    shown.done("short", "cached")
    shown.stage("fit@2", 0, 0, "iterations")
    eventually(5, lambda: told, "it begins")
    shown.total("fit@2", 200)
    shown.advance("fit@2", 50, "loss 0.500")  # it resumes there: no time can be told from it
    eventually(5, lambda: len(told) == 2, "it resumes")
    for step in range(51, 100):
        shown.advance("fit@2", step, "loss 0.400")
    eventually(5, lambda: told[-1][1] == 49.5, "it moves")
    shown.done("fit@2", "cpu")
    shown.close()
    assert told[:2] == [
        ("maskmill-cfs-fit-2", 0.0, "fit@2: begins"),
        ("id of maskmill-cfs-fit-2", 25.0, "fit@2: 50 of 200 iterations, loss 0.500"),
    ]
    assert told[-1] == ("id of maskmill-cfs-fit-2", 100.0, "fit@2: 99 of 200 iterations, done, cpu")
    assert len(told) <= 6, "49 steps at once are one or two calls"
    assert {what for what, _, _ in told} == {"maskmill-cfs-fit-2", "id of maskmill-cfs-fit-2"}


def test_a_server_that_does_not_answer_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = itertools.count()

    def refuse(*_: Any, **__: Any) -> None:
        next(tried)
        raise OSError("no route")

    monkeypatch.setattr(progress, "create_progress_artifact", refuse)
    shown = progress.ServerProgress(Silent(), "cfs", every_s=0.02)
    shown.stage("fit", 9, 0, "iterations")
    eventually(5, lambda: next(tried) > 2, "it is tried again")
    shown.close()
    assert [one.getMessage() for one in caplog.records] == ["progress could not be shown in Prefect: OSError: no route"]


def test_lines_of_a_thread_without_context_belong_to_the_flow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        flow_run = run("night", 0)

        @classmethod
        def get(cls) -> Any:
            return cls if threading.current_thread() is threading.main_thread() else None

    monkeypatch.setattr(progress, "FlowRunContext", Context)
    seen: list[tuple[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), getattr(record, "flow_run_id", None)))

    handler = Handler()
    progress.log.addHandler(handler)
    before: Callable[[str], None] = Lines(every_s=0).done
    try:
        with progress.all_lines():
            thread = threading.Thread(target=before, args=("fit",))
            thread.start()
            thread.join()
        before("later")
    finally:
        progress.log.removeHandler(handler)
    assert seen == [("fit: done ", str(Context.flow_run.id)), ("later: done ", None)]


def test_a_cancel_is_no_error_and_leaves_no_line_that_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("calm")
    logger.addFilter(progress.calm_cancel)
    with caplog.at_level(logging.INFO):
        for state in ("Cancelled('the run was stopped')", "Failed('broken')"):
            logger.error("Finished in state %s", state)
        logger.info("Finished in state Running()")
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", "Finished in state Cancelled('the run was stopped')"),
        ("ERROR", "Finished in state Failed('broken')"),
    ]


# -- parameters ------------------------------------------------------------------------------------------------------


class Deployed:
    """A deployment, and the client that reads it."""

    def __init__(self, run: FlowRun | None, **schedule: Any) -> None:
        self.flow_run = run
        self.parameters = {"params": {"pace": {"level": 1}}, "options": {"cache": "/c", "workers": 2}}
        self.schedules = [SimpleNamespace(parameters=schedule)]
        self.written: list[dict[str, Any]] = []

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_parameters, "FlowRunContext", SimpleNamespace(get=lambda: self))
        monkeypatch.setattr(run_parameters, "get_client", lambda sync_client: nullcontext(self))

    def read_deployment(self, id_: uuid.UUID) -> Deployed:
        assert id_ == ONE
        return self

    def update_flow_run(self, id_: uuid.UUID, parameters: dict[str, Any]) -> None:
        self.written.append(parameters)


@pytest.mark.parametrize(
    ("name", "given", "schedule", "level", "workers"),
    [
        ("asked", {"options": {"workers": 5}}, {}, 1, 5),
        ("asked", {"params": {"pace": {"level": 9}}}, {}, 9, 2),
        ("cron, planned with an older config", {"params": {"pace": {"level": 9}}}, {}, 1, 2),
        ("cron with values of its own", {"params": {"pace": {"level": 9}}}, {"params": {}}, 9, 2),
    ],
)
def test_a_runs_own_values_join_the_deployments(
    monkeypatch: pytest.MonkeyPatch, name: str, given: Any, schedule: Any, level: int, workers: int
) -> None:
    deployed = Deployed(run(name, 0).model_copy(update={"parameters": given}), **schedule)
    deployed.patch(monkeypatch)
    _, params, options = with_deployments(DataParams(), SlowParams(), RunParams())
    assert (params.pace.level, options.cache, options.workers) == (level, "/c", workers)
    assert [one["options"] for one in deployed.written] == [{"cache": "/c", "workers": workers}]


def test_a_run_without_a_deployment_keeps_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    Deployed(None).patch(monkeypatch)
    given = (DataParams("demo"), SlowParams(), RunParams(workers=7))
    assert with_deployments(*given) == given


# -- the end ---------------------------------------------------------------------------------------------------------


STAGE: dict[str, Any] = {"label": "grabcut", "total": 3, "computed": 2, "seconds": 1.26}


def summary(**more: Any) -> dict[str, Any]:
    return {"run": "r1", "scores": {}, "files": {}, "stages": [STAGE], "skips": [], "failures": [], **more}


def test_the_last_state_tells_done_from_done_with_skips_and_from_failed() -> None:
    skips = [{"key": "d/1", "reason": "broken"}]
    done, skipping = outcome(summary()), outcome(summary(skips=skips))
    failed = outcome(summary(skips=skips, failures=["export to coco failed: full"]))
    assert (done.type, done.name, done.message) == ("COMPLETED", "Completed", "computed: grabcut 2")
    assert (skipping.type, skipping.name) == ("COMPLETED", "DoneWithSkips")
    assert skipping.message == "computed: grabcut 2; 1 skipped, the first: d/1: broken"
    assert failed.type == "FAILED" and str(failed.message).startswith(
        "export to coco failed: full; masks and scores are"
    )


def test_the_page_lists_scores_stages_files_and_skips() -> None:
    text = page(
        "cfs",
        summary(
            scores={"masks (train)": {"miou": 0.5, "pixel_accuracy": None}},
            files={"report": "/r/index.html"},
            stages=[STAGE, STAGE | {"label": "cfs", "pinned": "pinned since then"}],
            skips=[{"key": f"d/{i}", "reason": "broken"} for i in range(60)],
        ),
    )
    for part in ("| masks (train) | 50.0 | - |", "| grabcut | 3 | 2 | 1.3 |", "`/r/index.html`", "60 skipped"):
        assert part in text
    assert text.endswith("- `d/49`: broken\n- ... and 10 more in the manifest")
    assert "- cfs: pinned since then" in text and "grabcut: " not in text and "contact sheet" not in text
    assert one_line(KeyError()) == "KeyError"


def test_the_page_holds_the_contact_sheet_as_a_small_picture(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    noise = np.random.default_rng(0).integers(0, 255, (900, 2400, 3), np.uint8)  # the worst for a JPEG
    Image.fromarray(noise).save(sheet)
    text = page("cfs", summary(files={"contact sheet": str(sheet)}))
    assert "![contact sheet](data:image/jpeg;base64," in text and len(text) < 1_000_000 < sheet.stat().st_size


# -- the soak --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "mb", "processes", "at_work", "server_mb", "found"),
    [
        (0, 0.0, 0, 0, 0, []),
        (1, 0.0, 0, 0, 0, ["runner: files 24.5 -> 44.5"]),
        (0, 1.0, 0, 0, 0, ["runner: mb 104.5 -> 124.5"]),
        (0, 0.2, 0, 0, 3, []),
        (0, 0.0, 1, 0, 0, ["processes: 7 -> 27"]),
        (0, 0.0, 0, 1, 0, ["at_work: 4 -> 24"]),
        (0, 0.0, 0, 0, 4, ["server: mb 118 -> 198"]),
    ],
)
def test_the_soak_sees_what_grows_with_each_run(
    files: int, mb: float, processes: int, at_work: int, server_mb: float, found: list[str]
) -> None:
    still = soak_nights.Held(20, 5, 100.0)
    counts = [
        soak_nights.Count(
            i,
            float(i),
            3 + processes * i,
            at_work * i,
            1.0 + i,
            {
                "serve": still,
                "runner": soak_nights.Held(20 + files * i, 5, 100 + mb * i),
                "server": soak_nights.Held(20, 5, 100.0 + server_mb * i),  # its database: 1 MB a run
            },
        )
        for i in range(30)
    ]
    assert soak_nights.growth(counts) == found
    assert soak_nights.table(counts).count("\n") == 6
