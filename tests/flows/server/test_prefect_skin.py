"""Does a flow run show what happened, store nothing, and end on request, in every way that there is?"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import slow_flow
from flow_runs import ROOT
from flow_servers import Server, Started, eventually

from flows import configure as configuration
from flows.run_flow import run_page
from flows.server import prefect_skin as engine
from flows.server.prefect_skin import PrefectSkin, _do, _tickets, call_flow, threads
from tasks.engine.runner import StageFailed
from tasks.engine.work_unit import WorkUnit

pytestmark = pytest.mark.usefixtures("slow_is_a_flow")
Start = Callable[..., Started]
WriteConfig = Callable[..., Path]


def job(config: Path, **options: Any) -> configuration.Job:
    found = configuration.configure("slow", None, str(config), (), {})
    return replace(found, options=replace(found.options, workers=0, **options))


def run_here(config: Path, **options: Any) -> dict[str, Any]:
    one = job(config, **options)
    return call_flow(slow_flow.slow, None, data=one.data, params=one.params, options=one.options)


def runs_of_slow(server: Server) -> list[Any]:
    """Runs of ``slow`` that no deployment made, newest first."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterDeploymentId
    from prefect.client.schemas.sorting import FlowRunSort

    with server.client() as client:
        named = FlowFilter(name=FlowFilterName(any_=["slow"]))
        alone = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(is_null_=True))
        found: list[Any] = client.read_flow_runs(
            flow_filter=named, flow_run_filter=alone, sort=FlowRunSort.START_TIME_DESC, limit=50
        )
    return found


def last_run(server: Server) -> Any:
    return runs_of_slow(server)[0]


def task_states(server: Server, run: Any) -> list[tuple[str, str, str]]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with server.client() as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return sorted((task.name, task.state_name or "", task.state.message or "") for task in tasks)


# -- what a run shows ------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_units_are_task_runs_then_one_cached_run_and_nothing_is_stored(
    server: Server, write_config: WriteConfig
) -> None:
    config = write_config("three")
    with server.settings():
        first = run_here(config)
        run = last_run(server)
        assert (run.state.type.value, run.state.message) == ("COMPLETED", "computed: sleepy 3")
        units = [(f"sleepy {i}/3", "Completed", "1 stored") for i in (1, 2, 3)]
        eventually(10, lambda: task_states(server, run) == units, "three task runs")
        second = run_here(config)
        run = last_run(server)
        assert run.state.message == "nothing to compute, all was cached"
        eventually(10, lambda: task_states(server, run) == [("sleepy", "Cached", "3 cached")], "one cached task run")
    assert [stage["computed"] for stage in first["stages"] + second["stages"]] == [3, 0]
    with server.client() as client:
        artifacts = [a for a in client.read_artifacts() if a.flow_run_id == run.id]
    assert [a.key for a in artifacts] == ["maskmill-slow"]
    assert "| sleepy | 3 | 0 |" in str(artifacts[0].data)
    assert not list(Path(os.environ["PREFECT_HOME"]).glob("storage/*"))


@pytest.mark.server
def test_skips_are_counted_in_the_state_and_a_failure_is_a_failed_state_without_a_pickle(
    server: Server, write_config: WriteConfig
) -> None:
    with server.settings():
        run_here(write_config("some", pictures=("a", "skip me"), stage="touchy"))
        state = last_run(server).state
        assert (state.type.value, state.name) == ("COMPLETED", "DoneWithSkips")
        assert (
            state.message.startswith("computed: touchy 1; 1 skipped, the first: ") and "nothing to see" in state.message
        )
        with pytest.raises(StageFailed, match="all 1 images were skipped"):
            run_here(write_config("none", pictures=("skip me",), stage="touchy"))
        state = last_run(server).state
        assert state.type.value == "FAILED" and state.message.startswith("StageFailed: touchy: all 1 images")
    assert not list(Path(os.environ["PREFECT_HOME"]).glob("storage/*"))


@pytest.mark.server
def test_the_automation_of_the_docs_calls_a_webhook_for_a_run_with_skips(
    server: Server, write_config: WriteConfig
) -> None:
    heard: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    page = (Path(ROOT) / "docs/prefect.md").read_text()
    (script,) = (block for block in re.findall("```python\n(.*?)```", page, re.S) if "CallWebhook" in block)
    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver, server.settings():
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{receiver.server_port}/"
        exec(re.sub('https://[^"]+', url, script), {})
        run_here(write_config("well", pictures=("a",), stage="touchy"))
        run_here(write_config("some", pictures=("a", "skip me"), stage="touchy"))
        run = last_run(server)
        eventually(60, lambda: heard, "the webhook is called")
        receiver.shutdown()
    (told,) = heard
    assert told["text"].startswith(f"slow {run.name}: DoneWithSkips: computed: touchy 1; 1 skipped, the first: ")


@pytest.mark.server
def test_a_unit_that_fails_is_a_failed_task_run_and_its_error_comes_out(server: Server) -> None:
    from prefect import State, flow
    from prefect.states import Completed

    def submit(unit: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_exception(OSError(28, "No space left on device"))
        return answer

    @flow(name="slow", task_runner=threads())
    def full_disk() -> State[Any]:
        with pytest.raises(OSError, match="No space left"):
            PrefectSkin().units("u", [cast("WorkUnit", None)], submit)
        return Completed()

    with server.settings():
        full_disk(return_state=True)
    run = last_run(server)
    failed = [("u 1/1", "Failed", "OSError: [Errno 28] No space left on device")]
    eventually(10, lambda: task_states(server, run) == failed, "the unit's task run Failed")
    assert not list(Path(os.environ["PREFECT_HOME"]).glob("storage/*"))


def test_what_fails_because_the_run_was_stopped_is_cancelled() -> None:
    def work() -> None:
        engine._work.clear()  # the main thread has left, as at a signal
        raise RuntimeError("the fit ended with exit code -15")

    with _tickets([work], lambda _: "done") as (tickets, _):
        state = _do(tickets[0])
    assert (state.type.value, state.message) == (
        "CANCELLED",
        "the run was stopped; RuntimeError: the fit ended with exit code -15",
    )
    assert _do(tickets[0]).message == "the run was stopped before this began"


def test_a_flow_and_the_plain_page_share_addresses_and_manifest(write_config: WriteConfig) -> None:
    one = job(write_config("plain"))
    plain = run_page("slow", slow_flow.page, one.data, one.params, one.options).summary()
    assert [stage["computed"] for stage in plain["stages"]] == [3]
    assert plain["stages"][0]["address"].startswith("sleepy")


def test_the_form_shows_help_texts_and_defaults() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.cfs import cfs

    schema = parameter_schema(cfs).model_dump()
    pace = parameter_schema(slow_flow.slow).definitions["Pace"]["properties"]["level"]
    assert pace["description"] == "milliseconds an image" and pace["default"] == 0
    run = schema["definitions"]["RunParams"]["properties"]
    assert run["device"]["enum"] == ["auto", "cpu", "cuda"] and run["device"]["default"] == "auto"
    assert run["rerun"]["type"] == "array" and run["rerun"]["description"].startswith("labels of stages")
    for name, definition in schema["definitions"].items():
        assert definition["additionalProperties"] is False, name
        missing = [key for key, value in definition["properties"].items() if "description" not in value]
        assert not missing, f"{name}: no help for {missing}"


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_plain_command_starts_no_server_and_leaves_no_trace_of_prefect(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    home = tmp_path / "prefect-home"
    one = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "slow", "--quiet", "--config", str(write_config("a", workers=0))],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert one.returncode == 0, one.stderr
    assert not list(home.rglob("*"))
    assert one.stderr == "" and "computed: sleepy 3" in one.stdout


@pytest.mark.server
def test_the_command_with_an_api_keeps_its_exit_codes_and_every_failure_is_a_failed_run(
    server: Server, start: Start, write_config: WriteConfig
) -> None:
    touchy = {"stage": "touchy", "workers": 0}
    skipping = write_config("k", pictures=("a", "skip b"), **touchy)
    failing = write_config("f", pictures=("skip b",), **touchy)
    misspelt, absent = write_config("w", paces={"level": 1}), write_config("x")
    shutil.rmtree(tmp := absent.with_name("x-data"))
    before = runs_of_slow(server)
    expected = ((skipping, 3), (failing, 1), (misspelt, 2), (absent, 2))
    started = [
        (start("slow", "--quiet", "--config", str(config), **server.client_env), code) for config, code in expected
    ]
    for one, code in started:
        assert one.wait() == code, one.printed
    outputs = [one.printed for one, _ in started]
    assert "1 skipped" in outputs[0] and "INFO" not in outputs[0] and "flow run" not in outputs[0]
    assert "all 1 images were skipped" in outputs[1]
    assert "params.paces: no such parameter (did you mean 'pace'?)" in outputs[2]
    assert str(tmp) in outputs[3]
    assert "; log: " not in outputs[0] and all("; log: " in output for output in outputs[1:])
    for name, words in (("k", "done with 1 skipped"), ("f", "maskmill slow --config"), ("x", str(tmp))):
        (log,) = skipping.parent.glob(f"{name}-cache/runs/*/run.log")
        assert words in log.read_text(), "what a person needs, with a server as without"
    new = [run.state for run in runs_of_slow(server) if run.id not in {old.id for old in before}]
    assert sorted(state.name for state in new) == ["DoneWithSkips", "Failed", "Failed", "Failed"]
    for said in ("StageFailed: touchy: all 1 images", "ConfigError: ", f"DataError: {tmp}"):
        assert sum(said in (state.message or "") for state in new) == 1, new


# -- signals ---------------------------------------------------------------------------------------------------------

HOUR_MS = 3_600_000


@pytest.mark.kills
def test_signals_end_the_plain_command_its_pool_and_its_fit(start: Start, write_config: WriteConfig) -> None:
    mapping, fitting = write_config("m", pace={"level": HOUR_MS}), write_config("f", fit=True)
    ends = [
        (start("slow", "--quiet", "--config", str(config)), number, word)
        for config, word, number in (
            (fitting, "endless", signal.SIGTERM),  # first: it takes longest to get there
            (mapping, "sleepy", signal.SIGTERM),
            (mapping, "sleepy", signal.SIGINT),
        )
    ]
    ends.append(ends.pop(0))
    for one, number, word in ends:
        family = one.wait_for_work(2 if word == "sleepy" else 1, word)
        assert len(family) >= 2
        assert one.end(number) == 128 + number
        assert "the same command resumes" in one.printed
    manifests = list(mapping.parent.glob("*-cache/runs/*/manifest.json"))
    assert {json.loads(path.read_text())["status"] for path in manifests} == {"interrupted"}


@pytest.mark.kills
@pytest.mark.server
def test_signals_end_the_command_in_flow_mode_and_the_server_says_crashed(
    server: Server, start: Start, write_config: WriteConfig
) -> None:
    config = write_config("s", pace={"level": HOUR_MS})
    signals = (signal.SIGTERM, signal.SIGINT)
    started = [start("slow", "--quiet", "--config", str(config), **server.client_env) for _ in signals]
    for one in started:
        one.wait_for_work(2)
    running = [run for run in runs_of_slow(server) if run.state.type.value == "RUNNING"]
    assert len(running) == 2
    for one, number in zip(started, signals, strict=True):
        assert one.end(number) == 128 + number, one.printed
    with server.client() as client:
        assert {client.read_flow_run(run.id).state.type.value for run in running} == {"CRASHED"}
