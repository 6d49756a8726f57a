"""Whose turn it is: one run of a deployment works, runs that people asked for are next, one scheduled run waits.

Prefect's limit (``ConcurrencyLimitConfig``, strategy ENQUEUE) keeps runs from working side by side, and nothing more:
what waits piles up, and is taken in any order. With a schedule of each minute behind a run of an hour, sixty runs would
follow it, and a run that somebody asks for would wait for all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from uuid import UUID

from prefect import State
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Scheduled

ALIVE = (StateType.RUNNING, StateType.CANCELLING, StateType.PENDING)
"""States that only a living runner's runs can be in."""
WAITS = "AwaitingConcurrencySlot"
"""Name of the state of a run that waits for its turn, Prefect's own."""


@dataclass
class Turns:
    """What to do with the runs of some deployments."""

    start: list[FlowRun] = field(default_factory=list)
    waiting: list[FlowRun] = field(default_factory=list)
    """Due, and another one is at work or comes before."""
    spare: list[FlowRun] = field(default_factory=list)
    """Scheduled runs behind one that waits already and does the same."""


def turns(runs: Sequence[FlowRun], now: datetime, starting: Collection[UUID] = ()) -> Turns:
    """Decide about ``runs``: those that are scheduled and (almost) due, and those that are :data:`ALIVE`.

    ``starting``: runs that were told to start, and of which the server may not know it yet.
    """
    found = Turns()
    for _, group in groupby(sorted(runs, key=lambda run: str(run.deployment_id)), key=lambda run: run.deployment_id):
        of_one = sorted(group, key=lambda run: (run.expected_start_time or now, str(run.id)))
        alive = [run for run in of_one if run.state_type in ALIVE or run.id in starting]
        queued = [run for run in of_one if run not in alive]
        due = [run for run in queued if (run.expected_start_time or now) <= now]
        asked_for = [run for run in due if not run.auto_scheduled]
        scheduled = [run for run in due if run.auto_scheduled]
        found.spare += scheduled[1:]
        queue = asked_for + scheduled[:1]
        if not alive:
            # A run that will be due in a moment is begun early (its process takes seconds), unless one is due now.
            found.start += (queue or queued)[:1]
            queue = queue[1:]
        found.waiting += queue
    return found


async def tell(client: PrefectClient, found: Turns) -> None:
    """Let the server say which runs wait, and drop the spare ones."""
    for run in found.waiting:
        if run.state_name != WAITS:
            state: State[None] = Scheduled(name=WAITS, scheduled_time=run.expected_start_time)
            await client.set_flow_run_state(run.id, state)
    for run in found.spare:
        spare: State[None] = Cancelled(
            name="Coalesced", message="a scheduled run waits already, and does this one's work"
        )
        await client.set_flow_run_state(run.id, spare, force=True)
