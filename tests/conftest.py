"""What the whole suite needs before anything is imported."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flow_runs import Done, Runs
    from xdist.scheduler import LoadScopeScheduling

# OpenMP's threads spin while they wait for each other. On cores that others use too, that made a training step
# 20 to 40 times slower than letting them sleep (measured). Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors of tests are too small for two

# Ray reads these when it is imported, which any package may do that a test imports.
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", "0123456789abcdef0123456789abcdef"

# Worker processes import stage functions by name: tests/helpers/ and the toy method must be importable there, too.
FOLDERS = [str(Path(__file__).parent / name) for name in ("helpers", "frame")]
sys.path[:0] = FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
# The toy is a flow like the shipped ones: every test that takes its flows from the registry runs it.
os.environ["MASKMILL_FLOWS"] = "toy:ENTRY"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Two workers share the suite file by file, in the order of collection: a file's fixtures are made once.

    All files that need the Prefect server go to one worker, so that there is ONE server.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "server" if file.startswith("tests/flows/server/") else file

    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before a test's fixtures: random weights are the same on every machine, and in any order of tests.

    A test failed in CI alone: random weights that saturated a sigmoid.
    """
    import numpy as np

    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):  # slow to import; a test file that needs it has
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """ONE undisturbed run of each flow on the tiny demo data, for all workers of this suite. To change it, copy it."""
    from flow_runs import Runs

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "runs"
    folder.mkdir(exist_ok=True)
    return Runs(folder)


@pytest.fixture(scope="session")
def tiny(runs: Runs) -> Done:
    """The run of ``cfs``."""
    return runs.tiny("cfs")
