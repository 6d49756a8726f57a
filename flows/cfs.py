"""Boxes to masks (Xie et al., "Learning Effectively from Noisy Supervision", BMVC 2020), Fig. 1 as a page.

GrabCut inside every box, a network (CFS) that learns from its masks what is foreground, GrabCut again from the
network's probabilities, the masks painted larger boxes first; DeepLab with loss-guided self-attention (LGSA) learns
from them. Each of the paper's ablations is a value of one parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from prefect import State, flow

from artifacts.datasets import DataParams
from artifacts.records import RecordSet, Sets
from flows.server.prefect_skin import run_flow, show_help, threads
from tasks import grabcut, labels, refine
from tasks.cfs import stages as cfs_stage
from tasks.cfs.stages import CFSParams
from tasks.crf import dense_crf
from tasks.crf import params as crf_params
from tasks.crf.dense_crf import BoxCRFParams
from tasks.crf.params import Preset
from tasks.deeplab import lgsa
from tasks.deeplab import stages as deeplab
from tasks.deeplab.lgsa import Attention, LGSAParams
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.grabcut import GrabCutParams
from tasks.refine import RefineParams
from tasks.stage import PARAMS_CONFIG, MapHandle
from tasks.training.params import check_run

Proposals = Literal["box", "box-crf", "grabcut", "cfs", "cfs-refined"]


@dataclass(frozen=True)
class CFSFlowParams:
    """Everything that decides the result of the flow ``cfs``. The defaults are the paper's whole figure."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    proposals: Proposals = field(
        default="cfs-refined",
        metadata={
            "help": "masks the student learns from: box (the boxes themselves), box-crf (Bbox-Seg: a dense CRF decides"
            " inside the boxes), grabcut, cfs (above .5), cfs-refined"
        },
    )
    attention: Attention = field(
        default="lgsa",
        metadata={"help": "self-attention in the student: none, nonlocal (no guidance, no walk), lgsa"},
    )
    student: Literal["deeplab", "none"] = field(
        default="deeplab", metadata={"help": "the network that learns from the masks; none: the masks are the result"}
    )
    crf: Literal["off", Preset] = field(
        default="off",
        metadata={
            "help": f"dense CRF at test time, scored beside the student alone: off, {', '.join(get_args(Preset))}"
        },
    )
    box_crf: BoxCRFParams = field(
        default_factory=BoxCRFParams, metadata={"help": "boxes as the unaries of a CRF (Papandreou et al. 2015)"}
    )
    grabcut: GrabCutParams = field(default_factory=GrabCutParams, metadata={"help": "the first GrabCut, inside boxes"})
    cfs: CFSParams = field(default_factory=CFSParams, metadata={"help": "the network that segments each box"})
    refine: RefineParams = field(
        default_factory=RefineParams, metadata={"help": "GrabCut again, from the network's probabilities"}
    )
    deeplab: DeepLabParams = field(default_factory=DeepLabParams, metadata={"help": "the student"})
    lgsa: LGSAParams = field(default_factory=LGSAParams, metadata={"help": "the student's self-attention"})

    def __post_init__(self) -> None:
        if self.student != "none" and self.attention != "none" and self.deeplab.multi_scale_inputs:
            raise ValueError("attention needs deeplab.multi_scale_inputs=false: its fusion is of logits")
        difficult = {"grabcut": self.grabcut.difficult, "cfs": self.cfs.difficult, "refine": self.refine.difficult}
        looking = {"cfs": ("grabcut", "cfs"), "cfs-refined": ("grabcut", "cfs", "refine")}.get(self.proposals, ())
        if len({difficult[name] for name in looking}) > 1:
            found = ", ".join(f"{name}.difficult={difficult[name]}" for name in looking)
            raise ValueError(f"{found} must be alike: these stages must cover the same boxes")


def page(run: Runner, sets: Sets, params: CFSFlowParams) -> Result:
    """The whole method on one page (Fig. 1): a1 to a4 are :func:`proposals`, b is the student, if there is one."""
    masks = labels.prefer_corrected(run, proposals(run, sets.train, params))
    if params.student == "none":
        return finish(run, sets, masks)
    check_run(params.deeplab, run.options, name="deeplab")
    attention = lgsa.chosen(params.attention, params.lgsa)
    student = run.fit(deeplab.fit(params.deeplab, lgsa=attention), sets.train, monitor=sets.val, target=masks)
    crf = crf_params.chosen(params.crf)
    predict = deeplab.predict(params.deeplab, crf=crf, lgsa=attention)
    return finish(run, sets, masks, {"student": run.map(predict, sets.val, label="student", net=student)})


def proposals(run: Runner, train: RecordSet, params: CFSFlowParams) -> MapHandle:
    """The student's training masks (section 3.2), by the steps of the figure up to ``params.proposals``."""
    if params.proposals == "box":
        return run.map(labels.box_masks(), train)
    if params.proposals == "box-crf":
        return run.map(dense_crf.from_boxes(params.box_crf), train)
    coarse = run.map(grabcut.propose(params.grabcut), train)
    if params.proposals == "grabcut":
        return coarse
    check_run(params.cfs, run.options, name="cfs")
    net = run.fit(cfs_stage.fit(params.cfs), train, coarse=coarse)
    dense = run.map(cfs_stage.predict(params.cfs), train, net=net)
    if params.proposals == "cfs":
        return dense
    return run.map(refine.refine(params.refine), train, dense=dense)


show_help(DataParams, CFSFlowParams, RunParams)


@flow(name="cfs", persist_result=False, task_runner=threads())
def cfs(data: DataParams, params: CFSFlowParams = CFSFlowParams(), options: RunParams = RunParams()) -> State[Any]:
    """Boxes -> GrabCut -> CFS -> GrabCut -> masks -> DeepLab with LGSA -> scores, as a Prefect flow run."""
    return run_flow("cfs", page, data, params, options)
