"""What the whole suite needs before anything is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flow_runs import Done, Runs

# OpenMP's threads spin while they wait for each other. On cores that others use too, that made a training step
# 20 to 40 times slower than letting them sleep (measured). Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors of tests are too small for two

# Worker processes import stage functions by name: tests/helpers/ must be importable there, too.
HELPERS = str(Path(__file__).parent / "helpers")
sys.path.insert(0, HELPERS)
os.environ["PYTHONPATH"] = os.pathsep.join([HELPERS, *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """ONE undisturbed run of each flow on the tiny demo data, in this process. To change it, copy it."""
    from flow_runs import Runs

    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def tiny(runs: Runs) -> Done:
    """The run of ``cfs``."""
    return runs.tiny("cfs")
