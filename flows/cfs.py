"""Boxes to masks (Xie et al., "Learning Effectively from Noisy Supervision", Fig. 1), first form.

GrabCut inside every box, the masks painted larger boxes first, DeepLab trained on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from prefect import State, flow

from artifacts.datasets import DataParams
from artifacts.records import RecordSet
from flows.engine import run_flow, show_help, threads
from tasks import deeplab, grabcut, labels
from tasks.crf_params import PRESETS, Preset
from tasks.deeplab import DeepLabParams
from tasks.finish import Result, finish
from tasks.grabcut import GrabCutParams
from tasks.options import RunParams
from tasks.run import Runner
from tasks.stage import PARAMS_CONFIG


@dataclass(frozen=True)
class CFSFlowParams:
    """Everything that decides what the flow ``cfs`` gives."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    proposals: Literal["box", "grabcut"] = field(
        default="grabcut", metadata={"help": "masks the student learns from: the boxes themselves, or GrabCut's"}
    )
    attention: Literal["none"] = field(default="none", metadata={"help": "attention after the student's backbone"})
    crf: Literal["off", Preset] = field(
        default="off",
        metadata={
            "help": f"dense CRF at test time, scored beside the student alone: off, {', '.join(get_args(Preset))}"
        },
    )
    grabcut: GrabCutParams = field(default_factory=GrabCutParams, metadata={"help": "GrabCut inside boxes"})
    deeplab: DeepLabParams = field(default_factory=DeepLabParams, metadata={"help": "the student"})


def page(run: Runner, train: RecordSet, val: RecordSet, params: CFSFlowParams) -> Result:
    """The whole method on one page."""
    deeplab.check_run(params.deeplab, run.options)
    if params.proposals == "grabcut":
        masks = run.map(grabcut.propose(params.grabcut), train)
    else:
        masks = run.map(labels.box_masks(), train)
    student = run.fit(deeplab.fit(params.deeplab), train, monitor=val, target=masks)
    crf = None if params.crf == "off" else PRESETS[params.crf]
    return finish(run, masks, student, val, deeplab.predict(params.deeplab, crf=crf))


show_help(DataParams, CFSFlowParams, RunParams)


@flow(name="cfs", persist_result=False, task_runner=threads())
def cfs(data: DataParams, params: CFSFlowParams = CFSFlowParams(), options: RunParams = RunParams()) -> State[Any]:
    """Boxes -> GrabCut -> masks -> DeepLab -> scores, as a Prefect flow run."""
    return run_flow("cfs", page, data, params, options)
