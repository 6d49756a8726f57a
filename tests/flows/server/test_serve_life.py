"""One life of a ``maskmill serve``, from a kill to an orderly end."""

from __future__ import annotations

import dataclasses
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from flow_servers import Server, Started, eventually

from flows.server.turns import WAITS

pytestmark = pytest.mark.usefixtures("slow_is_a_flow")
Start = Callable[..., Started]
WriteConfig = Callable[..., Path]
HOUR_MS = 3_600_000
QUICK = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}


@dataclasses.dataclass
class Served:
    """The deployment ``slow/NAME`` in the server."""

    server: Server
    name: str

    @property
    def deployment(self) -> Any:
        with self.server.client() as client:
            return client.read_deployment_by_name(f"slow/{self.name}")

    def runs(self, *types: str, name: str | None = None) -> list[Any]:
        """Runs in a state of these types (and of this name), the earliest due first."""
        from prefect.client.schemas.filters import (
            DeploymentFilter,
            DeploymentFilterName,
            FlowRunFilter,
            FlowRunFilterState,
            FlowRunFilterStateName,
            FlowRunFilterStateType,
        )
        from prefect.client.schemas.sorting import FlowRunSort

        state = FlowRunFilterState(
            type=FlowRunFilterStateType(any_=list(types)) if types else None,
            name=FlowRunFilterStateName(any_=[name]) if name else None,
        )
        with self.server.client() as client:
            found: list[Any] = client.read_flow_runs(
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[self.name])),
                flow_run_filter=FlowRunFilter(state=state),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            )
        return found

    def run(self, id_: Any) -> Any:
        with self.server.client() as client:
            return client.read_flow_run(id_)

    def create(self, **parameters: Any) -> Any:
        with self.server.client() as client:
            return client.create_flow_run_from_deployment(self.deployment.id, parameters=parameters)

    def log(self, id_: Any) -> list[tuple[int, str]]:
        """Level and text of a run's lines in the server."""
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

        with self.server.client() as client:
            lines = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[id_])))
        return [(line.level, line.message) for line in lines]

    def artifacts(self, id_: Any) -> dict[str, Any]:
        """Key -> description of a run's artifacts."""
        with self.server.client() as client:
            found = client.read_artifacts(limit=200)
        return {one.key: one.description for one in found if one.flow_run_id == id_}


def runner_of(one: Started) -> psutil.Process:
    """The process that starts flow runs."""
    (found,) = (child for child in one.family() if "flows.server.serve_runner" in " ".join(child.cmdline()))
    return found


@pytest.mark.timeout(900)
@pytest.mark.kills
@pytest.mark.server
def test_a_serve_from_its_kill_to_its_orderly_end(
    server: Server, start: Start, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config("nightly", pace={"level": HOUR_MS})
    served = Served(server, "nightly")
    arguments = ("serve", str(config), "--no-server", "--home", str(tmp_path / "home"))

    # Behind a scheduled run that lasts, ONE scheduled run waits; the others are dropped.
    killed = start(*arguments, "--interval", "3", **server.client_env, **QUICK)
    killed.wait_for_work(2)
    eventually(90, lambda: len(served.runs(name="Coalesced")) >= 2, "two are dropped")
    (waits,) = served.runs(name=WAITS)
    assert waits.auto_scheduled and {run.auto_scheduled for run in served.runs(name="Coalesced")} == {True}

    # Killed in the middle: nothing of it lives on, but the server does not know.
    family = killed.family()
    assert len(family) >= 4, "runner, flow run, two workers"
    psutil.Process(killed.pid).kill()
    assert not psutil.wait_procs(family, timeout=5)[1]
    (stale,) = served.runs("RUNNING")
    assert stale.auto_scheduled

    # The next one puts that right at its start, and what is due is done: a scheduled run really fires.
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "params": {"pace": {"level": 0}}}))
    again = start(*arguments, "--interval", "3", **server.client_env, **QUICK)
    done = eventually(300, lambda: served.runs("COMPLETED"), "a scheduled run completed")
    assert done[0].auto_scheduled and done[0].state.message == "computed: sleepy 3"
    assert served.run(stale.id).state.type.value == "CRASHED"
    assert f"{stale.name} was left running by an earlier serve" in again.printed
    missed = served.run(waits.id).state
    assert (missed.name, missed.message) == ("Missed", "maskmill serve ended before its turn")

    # The soak's short form: after each run the runner is as it was before.
    with server.client() as client:
        client.pause_deployment(served.deployment.id)
    runner = runner_of(again)

    def idle() -> bool:
        return not served.runs("RUNNING", "PENDING", "CANCELLING") and len(runner.children()) == 0

    eventually(120, idle, "quiet")
    files, threads = runner.num_fds(), runner.num_threads()
    for _ in range(2):
        asked = served.create()
        eventually(300, lambda run=asked: served.run(run.id).state.name == "Completed", "a run that was asked for")
        eventually(60, idle, "its process is gone")
    eventually(60, lambda: runner.num_fds() <= files + 1 and runner.num_threads() <= threads + 1, "as before")

    # Parameters of a run join the deployment's, value by value. While it works the server shows how far it is.
    with server.client() as client:
        client.resume_deployment(served.deployment.id)
    begun = again.begun.read_text().count("\n")
    first = served.create(params={"pace": {"level": HOUR_MS}}, options={"image_timeout_s": 7200})
    family = again.wait_for_work(begun + 2)
    options = served.run(first.id).parameters["options"]
    assert (options["cache"], options["image_timeout_s"]) == (str(tmp_path / "nightly-cache"), 7200)
    assert len(list((tmp_path / "nightly-cache" / "runs").glob("*"))) > 4, "no other cache was made"
    eventually(60, lambda: (20, "sleepy: 0 of 3 images cached, 3 to do") in served.log(first.id), "its lines")
    eventually(60, lambda: "maskmill-slow-sleepy" in served.artifacts(first.id), "its progress")
    assert served.artifacts(first.id)["maskmill-slow-sleepy"].startswith("sleepy: 0 of 3 images")

    # What people ask for waits, too, but before what is scheduled.
    eventually(60, lambda: served.runs(name=WAITS), "a scheduled run waits")
    second = served.create(params={"pace": {"level": HOUR_MS + 1}})
    eventually(60, lambda: served.run(second.id).state.name == WAITS, "the second waits")
    assert served.run(first.id).state.name == "Running"

    # Cancelled as the UI does it: soon nothing of it is left (a second on an idle machine), then the next has its turn.
    from prefect.states import Cancelling

    before = {child for child in family if "serve_runner" not in " ".join(child.cmdline())}
    assert len(before) >= 3, "flow run, two workers"
    with server.client() as client:
        client.set_flow_run_state(first.id, Cancelling())
    eventually(30, lambda: not any(child.is_running() for child in before), "its processes have ended")
    eventually(10, lambda: served.run(first.id).state.name == "Cancelled", "Cancelled")
    lines = served.log(first.id)
    assert not [line for line in lines if line[0] >= 40 or "Running()" in line[1]], lines
    eventually(300, lambda: served.run(second.id).state.name == "Running", "the second runs")
    (waits,) = eventually(60, lambda: served.runs(name=WAITS), "a scheduled run still waits")

    # Told to end: its run is cancelled, nothing is left, nothing new is scheduled; what was asked for is kept.
    kept = served.create()
    assert again.end(signal.SIGTERM, within_s=15) == 0, again.printed
    assert served.run(second.id).state.name == "Cancelled"
    assert served.deployment.paused and not served.runs("RUNNING", "PENDING", "CANCELLING")
    assert [run.id for run in served.runs("SCHEDULED")] == [kept.id]
    assert served.run(waits.id).state.name == "Missed"
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
