"""A toy method, file 3 of 3: the whole of it on one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import toy_stage
from prefect import State, flow
from toy_stage import ToyParams

from artifacts.datasets import DataParams
from artifacts.records import DataError, Sets
from flows.server.prefect_skin import run_flow, show_help, threads
from tasks import labels
from tasks.bounds import bounded
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.stage import PARAMS_CONFIG
from tasks.training.params import check_run


@dataclass(frozen=True)
class ToyFlowParams:
    """Everything that decides what the flow ``toy`` gives."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    rounds: int = field(default=2, metadata={"help": "times that the segmenter learns", "bounds": (1, 9)})
    toy: ToyParams = field(default_factory=ToyParams, metadata={"help": "the networks"})

    def __post_init__(self) -> None:
        bounded(self, "toy-flow")


def page(run: Runner, sets: Sets, params: ToyFlowParams) -> Result:
    """Objectness from auxiliary masks; then rounds of learning from strokes, and from the last round's masks."""
    if sets.aux is None:
        raise DataError("toy needs auxiliary data: set data.aux.source to a data set with masks")
    check_run(params.toy, run.options, name="toy")
    known = run.map(labels.given_masks(), sets.aux)
    prior = run.fit(toy_stage.prior(params.toy), sets.aux, target=known)
    soft = run.map(toy_stage.objectness(params.toy), sets.train, net=prior)
    strokes = target = run.map(toy_stage.strokes(), sets.train)
    net = None
    for _ in range(params.rounds):
        net = run.fit(toy_stage.segmenter(params.toy), sets.train, init=net, target=target, soft=soft)
        masks = run.map(toy_stage.predict(params.toy), sets.train, net=net)
        target = run.map(toy_stage.keep_strokes(), sets.train, masks=masks, strokes=strokes)
    last = run.map(toy_stage.predict(params.toy), sets.val, label="segmented", net=net)
    return finish(run, sets, target, {"segmented": last})


show_help(DataParams, ToyFlowParams, RunParams)


@flow(name="toy", persist_result=False, task_runner=threads())
def toy(data: DataParams, params: ToyFlowParams = ToyFlowParams(), options: RunParams = RunParams()) -> State[Any]:
    """Scribbles and auxiliary masks -> masks, as a Prefect flow run."""
    return run_flow("toy", page, data, params, options)
