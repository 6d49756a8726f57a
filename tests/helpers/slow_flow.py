"""A flow without networks whose stages take as long, and fail as often, as a test wants."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from prefect import State, flow

from artifacts.datasets import DataParams
from artifacts.records import Sets
from flows.registry import FlowEntry
from flows.server.prefect_skin import run_flow, show_help, threads
from tasks.engine.runner import Runner, RunParams
from tasks.evaluate.finish import Result
from tasks.stage import PARAMS_CONFIG, FitStage, MapStage


@dataclass(frozen=True)
class Pace:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    level: int = field(default=0, metadata={"help": "milliseconds an image"})


@dataclass(frozen=True)
class SlowParams:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    stage: Literal["sleepy", "touchy"] = "sleepy"
    pace: Pace = field(default_factory=Pace)
    fit: bool = False


def page(run: Runner, sets: Sets, params: SlowParams) -> Result:
    stage = MapStage(params.stage, 1, params.pace, ("image",), ("mask_hw",), f"stage_functions:{params.stage}")
    masks = run.map(stage, sets.train)
    if params.fit:
        run.fit(FitStage("endless", 1, params.pace, ("image",), "slow_flow:endless"), sets.train, target=masks)
    if run.planning:
        return Result("", {}, {}, {"stages": [], "skips": [], "seconds": 0.0})
    return Result(run.folder.run_id, {}, {}, run.write_manifest("done"))


def endless(context: Any) -> dict[str, Any]:
    """A fit that never ends."""
    with Path(os.environ["MASKMILL_TEST_COUNT"]).open("a") as file:
        file.write("endless\n")
    time.sleep(600)
    return {}


show_help(DataParams, SlowParams, RunParams)


@flow(name="slow", persist_result=False, task_runner=threads())
def slow(data: DataParams, params: SlowParams = SlowParams(), options: RunParams = RunParams()) -> State[Any]:
    """Sleeps."""
    return run_flow("slow", page, data, params, options)


ENTRY = FlowEntry("slow", __name__, "SlowParams", "Sleeps.", labels=(), method="none")
