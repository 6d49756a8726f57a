"""Fixtures of the flow tests: every flow, flows forked from one zygote, ONE Prefect server, ONE run of cfs's figure."""

from __future__ import annotations

import pytest
from flow_runs import Done, Runs
from flow_servers import server, slow_is_a_flow, start, write_config, zygote

from flows.registry import FLOWS

__all__ = ["flow", "server", "slow_is_a_flow", "start", "whole", "write_config", "zygote"]


@pytest.fixture(scope="session", params=list(FLOWS))
def flow(request: pytest.FixtureRequest) -> str:
    """Each flow of the registry."""
    return str(request.param)


@pytest.fixture(scope="session")
def whole(runs: Runs) -> Done:
    """The whole figure of ``cfs``, on top of the tiny run. To change it, copy it."""
    return runs.whole("cfs")
