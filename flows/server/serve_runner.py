"""``python -m flows.server.serve_runner SPEC.json``: starts flow runs when due.

It reports to its parent in JSON lines with the key ``maskmill``; every other line is log, its flow runs'
included. SIGTERM: its runs are cancelled, then it ends. (Prefect's own handler kills them hard and leaves them Running
in the server for ever.)
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, cast
from uuid import UUID

from prefect import Flow, State, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    FlowRun,
    StateType,
)
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import ParameterSchema

from flows.server.environment import SERVED_BY
from flows.server.turns import ALIVE, WAITS, tell, turns

TAKEN_EARLY = timedelta(minutes=1)
"""A runner takes runs 10 s before they are due, and puts back those that find no slot by 30 s."""
PAGE = 200


def main(arguments: Sequence[str]) -> None:
    """Serve what the specification says until SIGTERM."""
    os.dup2(1, 2)  # one stream to the parent: Prefect logs to stderr, and runs write to both
    os.environ[SERVED_BY] = str(os.getpid())
    # It logs at each poll that a run still waits for its turn.
    logging.getLogger("prefect.runner.state_proposer").setLevel(logging.WARNING)
    spec = json.loads(Path(arguments[0]).read_text())
    asyncio.run(serve(spec))


async def serve(spec: dict[str, Any]) -> None:
    """Clean up after earlier serves, register the deployments, run what becomes due."""
    owner: str = spec["owner"]
    deployments = [await build(item, owner) for item in spec["deployments"]]
    async with get_client() as client:
        stale = await reconcile(client, owner, [deployment.full_name for deployment in deployments])
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    runner = _Runner(lambda: loop.call_soon_threadsafe(stop.set), owner)
    ids = [await runner.aadd_deployment(deployment) for deployment in deployments]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(runner.start())
    stopping = asyncio.create_task(stop.wait())
    send_event("ready", deployments=[deployment.full_name for deployment in deployments], stale=stale)
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        await shut_down(runner, serving, ids, owner)
    stopping.cancel()
    await serving


class _Runner(Runner):
    """Prefect's runner, without its own way of ending at SIGTERM and its own order of runs."""

    def __init__(self, on_sigterm: Any, owner: str) -> None:
        super().__init__(name="maskmill", pause_on_shutdown=False)
        self._on_sigterm = on_sigterm
        self._owner = owner

    async def __aenter__(self) -> Self:
        """Take the order of runs over: Prefect has no public place for it."""
        await super().__aenter__()
        self._scheduled_run_poller._get_scheduled_flow_runs = self._due  # type: ignore[method-assign]
        return self

    async def _due(self) -> list[FlowRun]:
        """What is to be started now, of all that is due (:mod:`flows.server.turns`)."""
        poller = self._scheduled_run_poller
        now = datetime.now(UTC)
        soon = now + timedelta(seconds=self._prefetch_seconds)
        runs = await _runs(self._client, self._owner, [*ALIVE, StateType.SCHEDULED], before=soon)
        served = self._deployment_registry.get_deployment_ids()
        found = turns([run for run in runs if run.deployment_id in served], now, poller._submitting_flow_run_ids)
        await tell(self._client, found)
        return found.start

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Begin the orderly end."""
        self._on_sigterm()


async def shut_down(runner: Runner, serving: asyncio.Task[None], deployments: Sequence[UUID], owner: str) -> None:
    """No new runs, cancel those that are there, leave."""
    async with get_client() as client:
        for deployment in deployments:
            with suppress(Exception):  # the server may be gone: then there is nothing to pause
                await client.pause_deployment(deployment)
        dropping = asyncio.create_task(drop_missed(client, owner, served=True))  # beside the rest: there are seconds
        await runner.astop()
        with suppress(Exception):
            await dropping
    while not serving.done():
        # A run that was just being started is not among those that astop has seen.
        with suppress(Exception):
            await runner.cancel_all()
        await asyncio.wait({serving}, timeout=0.5)


async def build(item: dict[str, Any], owner: str) -> RunnerDeployment:
    """A deployment: one run at a time, later ones wait; parameters as the config file says."""
    module, _, name = item["flow"].partition(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), name)
    deployment = await flow.ato_deployment(
        item["name"],
        schedules=[schedule] if (schedule := build_schedule(item)) else [],
        paused=False,
        parameters=item["parameters"],
        tags=[owner],
        description=item.get("description", ""),
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    # Prefect's schema lets an unknown section pass, and the run fails when it starts. This one refuses it at once.
    known = deployment._parameter_openapi_schema.model_dump()
    deployment._parameter_openapi_schema = ClosedSchema(**known, additionalProperties=False)
    return deployment


class ClosedSchema(ParameterSchema):
    """A flow's parameters, and no others."""

    additionalProperties: bool


def build_schedule(item: dict[str, Any]) -> Schedule | None:
    """The deployment's schedule, if it has one."""
    if cron := item.get("cron"):
        return Cron(cron, timezone=item.get("timezone") or "UTC")
    if seconds := item.get("interval"):
        return Interval(timedelta(seconds=seconds))
    return None


# -- what earlier serves left behind ---------------------------------------------------------------------------------


async def reconcile(client: PrefectClient, owner: str, served: Sequence[str]) -> list[str]:
    """Runs of this owner that no process works on any more become Crashed; their names.

    A serve that was killed leaves its runs Running and their slots taken, for ever: the next night's run would wait
    for a dead one. Nobody else serves under this owner's name (the home's lock), so what is alive in the server is
    dead here. Scheduled runs that were due meanwhile are dropped, deployments that are not ``served`` any more stop
    scheduling.
    """
    stale = []
    for run in await _runs(client, owner, ALIVE):
        crashed: State[Any] = Crashed(message="maskmill serve ended while this ran; its cache holds what was done")
        await client.set_flow_run_state(run.id, crashed, force=True)
        stale.append(run.name)
    await drop_missed(client, owner)
    for deployment in await client.read_deployments(
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[owner]))
    ):
        await _free_slots(client, deployment.id)
        flow = await client.read_flow(deployment.flow_id)
        if f"{flow.name}/{deployment.name}" not in served and not deployment.paused:
            await client.pause_deployment(deployment.id)
    return stale


async def drop_missed(client: PrefectClient, owner: str, *, served: bool = False) -> None:
    """Scheduled runs that nobody began become Missed, and say why. Those that people asked for stay in the queue.

    ``served``: they were due while serve was there. Of those that an earlier serve left, their state tells.
    """
    now = datetime.now(UTC)
    for run in await _runs(client, owner, [StateType.SCHEDULED], before=now + TAKEN_EARLY):
        if not run.auto_scheduled:
            continue
        if run.expected_start_time is None or run.expected_start_time > now:
            # Scheduled with the config of then, and kept by Prefect if it was touched. It is made anew.
            await client.delete_flow_run(run.id)
        else:
            # As cron has it: what was missed is missed. All of them at once, when it comes back, would not help.
            why = "ended before its turn" if served or run.state_name == WAITS else "was not running at its time"
            missed: State[Any] = Cancelled(name="Missed", message=f"maskmill serve {why}")
            await client.set_flow_run_state(run.id, missed, force=True)


async def _runs(
    client: PrefectClient, owner: str, types: Sequence[StateType], before: datetime | None = None
) -> list[FlowRun]:
    """This owner's runs in one of these states, due ``before``."""
    filters = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[owner]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=cast("Any", before)) if before else None,
    )
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(flow_run_filter=filters, limit=PAGE, offset=len(found)):
        found += page
    return found


async def _free_slots(client: PrefectClient, deployment: UUID) -> None:
    """Give back what a dead run still holds (a forced state change gives back its own, a lost lease does not)."""
    name = f"deployment:{deployment}"
    with suppress(ObjectNotFound):
        limit = await client.read_global_concurrency_limit_by_name(name)
        if limit.active_slots:
            await client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))


def send_event(event: str, **values: Any) -> None:
    """Send one event to the parent."""
    sys.stdout.write(json.dumps({"maskmill": event, **values}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
