"""Fixtures of the flow tests: flows forked from one zygote, ONE Prefect server, ONE run of the paper's whole figure."""

from __future__ import annotations

import pytest
from flow_runs import FIGURE, Done, copy_of, run_cfs
from flow_servers import server, start, write_config, zygote

__all__ = ["server", "start", "whole", "write_config", "zygote"]


@pytest.fixture(scope="session")
def whole(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """ONE undisturbed run of the whole figure, on top of the frame's run. To change it, copy it."""
    out = copy_of(tiny, tmp_path_factory.mktemp("whole") / "run")
    done = run_cfs(out, *FIGURE)
    assert done.code == 0, done.said
    return done
