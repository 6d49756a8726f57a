"""Parameters of one run over those of its deployment, value by value: Prefect replaces whole sections."""

from __future__ import annotations

from typing import TypeVar

from prefect import get_client
from prefect.context import FlowRunContext

from artifacts.datasets import DataParams
from flows.config import Layer, build, merge
from tasks.engine.options import RunParams

P = TypeVar("P")


def with_deployments(data: DataParams, params: P, options: RunParams) -> tuple[DataParams, P, RunParams]:
    """The three sections of this flow run, with its deployment's values where the run's own name none.

    Without this, ``{"options": {"rerun": ["grabcut"]}}`` would move the run to the cache of the defaults. A scheduled
    run has no values of its own, only a copy of what the deployment had when the server planned it: it takes what the
    deployment has now. What was merged is also written into the run, which shows it. Raises :class:`ConfigError`.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    if run is None or run.deployment_id is None:
        return data, params, options
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment(run.deployment_id)
        copied = run.auto_scheduled and not any(schedule.parameters for schedule in deployment.schedules)
        own = {} if copied else run.parameters
        merged, layers = merge(
            [Layer(deployment.parameters, "the deployment", {}), Layer(own, "this run's parameters", {})]
        )
        if merged == run.parameters:
            return data, params, options
        client.update_flow_run(run.id, parameters=merged)
    return (
        build(DataParams, "data", merged, layers),
        build(type(params), "params", merged, layers),
        build(RunParams, "options", merged, layers),
    )
