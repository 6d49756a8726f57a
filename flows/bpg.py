"""Scribbles to masks (Wang et al., "Boundary Perception Guidance: A Scribble-Supervised Semantic Segmentation
Approach", BPG, IJCAI 2019), Fig. 2 as a page.

A network draws the edges of every picture. DeepLab, whose scores are refined step by step (PRN), learns from the
scribbles, and from the edges where its own regions should end (BRN). It is the result; its masks of the training images
are a data set, from which a plain DeepLab can learn. Each of the paper's ablations is a value of one parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from prefect import State, flow

from artifacts.datasets import DataParams
from artifacts.records import MaskRef, Sets
from flows.server.prefect_skin import run_flow, show_help, threads
from tasks import labels, scribbles
from tasks.bpg import stages as bpg_stage
from tasks.bpg.stages import BPGParams
from tasks.crf import params as crf_params
from tasks.crf.params import Preset
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.edges import stages as edges
from tasks.edges.stages import EdgesParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.scribbles import ScribbleParams
from tasks.stage import PARAMS_CONFIG, FitHandle, MapHandle
from tasks.training.params import check_run


@dataclass(frozen=True)
class BPGFlowParams:
    """Everything that decides the result of the flow ``bpg``. The configuration ``voc-bpg`` is the paper's.

    The defaults are it on ImageNet's ResNet-50, with inference at one scale and without a CRF.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    labels: Literal["scribbles", "masks"] = field(
        default="scribbles",
        metadata={"help": "what bpg learns from: scribbles, or the truth masks (Table 1's full supervision)"},
    )
    student: Literal["deeplab", "none"] = field(
        default="deeplab",
        metadata={
            "help": "a plain DeepLab that learns from bpg's masks; none: bpg itself is the result, as in the paper"
        },
    )
    crf: Literal["off", Preset] = field(
        default="off",
        metadata={
            "help": "dense CRF on the masks of the training images, and at test time, scored beside the network alone:"
            f" off, {', '.join(get_args(Preset))}"
        },
    )
    confidence: bool = field(
        default=False,
        metadata={"help": "keep each pixel's probability of its label with the masks, for export --confidence"},
    )
    edges: EdgesParams = field(default_factory=EdgesParams, metadata={"help": "the edges that bpg learns from"})
    scribbles: ScribbleParams = field(default_factory=ScribbleParams, metadata={"help": "how strokes become pixels"})
    bpg: BPGParams = field(default_factory=BPGParams, metadata={"help": "DeepLab with PRN and BRN"})
    deeplab: DeepLabParams = field(default_factory=DeepLabParams, metadata={"help": "the student"})


def learn(run: Runner, sets: Sets, params: BPGFlowParams) -> tuple[MapHandle, FitHandle]:
    """Scribbles and edges -> the network; what it learnt from, and itself."""
    check_run(params.bpg, run.options, name="bpg")
    stage = labels.given_masks() if params.labels == "masks" else scribbles.scribbles(params.scribbles)
    if params.labels == "scribbles" and params.scribbles.length != 1:  # before any work, not a skip of every image
        for record in sets.train:
            if isinstance(record.scribbles, MaskRef):
                scribbles.check_length(record.scribbles, params.scribbles, within="params.")
    known = run.map(stage, sets.train)
    drawn = {"edges": run.map(edges.edges(params.edges), sets.train)} if params.bpg.learns_edges else {}
    net = run.fit(bpg_stage.fit(params.bpg), sets.train, monitor=sets.val, init=None, label=None, target=known, **drawn)
    return known, net


def predict(run: Runner, sets: Sets, params: BPGFlowParams, net: FitHandle) -> MapHandle:
    """The network's masks of the evaluation images."""
    return run.map(bpg_stage.predict(params.bpg, crf=crf_params.chosen(params.crf)), sets.val, label="guided", net=net)


def page(run: Runner, sets: Sets, params: BPGFlowParams) -> Result:
    """The whole method on one page (Fig. 2)."""
    known, net = learn(run, sets, params)
    crf = crf_params.chosen(params.crf)
    made = bpg_stage.masks(params.bpg, crf=crf, confidence=params.confidence)
    masks = run.map(made, sets.train, net=net, known=known)
    masks = labels.prefer_corrected(run, masks)
    guided = predict(run, sets, params, net)
    if params.student == "none":
        return finish(run, sets, masks, {"guided": guided})
    check_run(params.deeplab, run.options, name="deeplab")
    student = run.fit(deeplab.fit(params.deeplab), sets.train, monitor=sets.val, target=masks)
    predicted = run.map(deeplab.predict(params.deeplab, crf=crf), sets.val, label="student", net=student)
    return finish(run, sets, masks, {"guided": guided, "student": predicted})


show_help(DataParams, BPGFlowParams, RunParams)


@flow(name="bpg", persist_result=False, task_runner=threads())
def bpg(data: DataParams, params: BPGFlowParams = BPGFlowParams(), options: RunParams = RunParams()) -> State[Any]:
    """Scribbles and edges -> DeepLab with PRN and BRN -> masks -> DeepLab -> scores, as a Prefect flow run."""
    return run_flow("bpg", page, data, params, options)
