"""Image tags to masks (Zhang et al., "Reliability Does Matter: An End-to-End Weakly Supervised Semantic Segmentation
Approach", RRM, AAAI 2020), Fig. 1 as a page.

One network with two branches: the classifier's maps say which few pixels are certain, the segmentation branch learns
from those and from all pixels that look alike. One step: that branch is the segmenter. Two steps: DeepLab learns from
its masks. Each of the paper's ablations is a value of one parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from prefect import State, flow

from artifacts.datasets import DataParams
from artifacts.records import Sets
from flows.server.prefect_skin import run_flow, show_help, threads
from tasks import labels, reliable
from tasks.cam import stages as cam
from tasks.cam.stages import CamParams
from tasks.crf import params as crf_params
from tasks.crf.params import Preset
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.rrm import stages as rrm_stage
from tasks.rrm.stages import RRMParams
from tasks.stage import PARAMS_CONFIG, FitHandle, MapHandle
from tasks.training.params import check_run


@dataclass(frozen=True)
class RRMFlowParams:
    """Everything that decides the result of the flow ``rrm``. The defaults are the paper's, on a light backbone."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    start: Literal["weights", "classifier"] = field(
        default="weights",
        metadata={
            "help": "what the network starts from: rrm.weights, or a classifier of tags that is trained before (cam);"
            " rrm.mining=offline needs that classifier either way"
        },
    )
    student: Literal["deeplab", "none"] = field(
        default="deeplab",
        metadata={"help": "two steps: DeepLab learns from the masks; none: one step, the network itself is the result"},
    )
    crf: Literal["off", Preset] = field(
        default="rrm-test",
        metadata={
            "help": "dense CRF on the network's probabilities, for the masks and at test time: off, "
            f"{', '.join(get_args(Preset))}"
        },
    )
    confidence: bool = field(
        default=False,
        metadata={"help": "keep each pixel's probability of its label with the masks, for export --confidence"},
    )
    cam: CamParams = field(default_factory=CamParams, metadata={"help": "the classifier, where one is trained before"})
    rrm: RRMParams = field(default_factory=RRMParams, metadata={"help": "the network with two branches"})
    deeplab: DeepLabParams = field(default_factory=DeepLabParams, metadata={"help": "the student of the second step"})

    def __post_init__(self) -> None:
        body = ("network", "width") if self.rrm.network == "tiny" else ("network",)
        differing = [name for name in body if getattr(self.cam, name) != getattr(self.rrm, name)]
        if self.start == "classifier" and differing:
            found = ", ".join(
                f"{part}.{n}={getattr(getattr(self, part), n)}" for n in differing for part in ("cam", "rrm")
            )
            raise ValueError(f"{found} must be alike: rrm starts from the classifier's weights (start=classifier)")


def page(run: Runner, sets: Sets, params: RRMFlowParams) -> Result:
    """The whole method on one page (Fig. 1): one step, and its masks as a second step's labels."""
    masks, predicted = one_step(run, sets, params)
    if params.student == "none":
        return finish(run, sets, masks, {"one-step": predicted})
    student = two_step(run, sets, params, masks)
    return finish(run, sets, masks, {"one-step": predicted, "two-step": student})


def one_step(run: Runner, sets: Sets, params: RRMFlowParams, label: str = "one-step") -> tuple[MapHandle, MapHandle]:
    """Both branches, trained together: the masks of the training images, and what the network makes of the others.

    With ``rrm.mining=offline`` the first half is :func:`mined`. ``label``: of the predictions.
    """
    check_run(params.rrm, run.options, name="rrm")
    offline = params.rrm.mining == "offline"
    classifier: FitHandle | None = None
    given: dict[str, MapHandle] = {}
    if offline or params.start == "classifier":
        classifier, regions = mined(run, sets, params)
        given = {"target": regions} if offline else {}
    init = classifier if params.start == "classifier" else None
    stage = rrm_stage.fit(params.rrm)
    net = run.fit(stage, sets.train, monitor=sets.val, init=init, label=None, **given)
    crf = crf_params.chosen(params.crf)
    made = rrm_stage.masks(params.rrm, crf=crf, confidence=params.confidence)
    masks = labels.prefer_corrected(run, run.map(made, sets.train, net=net))
    return masks, run.map(rrm_stage.predict(params.rrm, crf=crf), sets.val, label=label, net=net)


def two_step(run: Runner, sets: Sets, params: RRMFlowParams, masks: MapHandle, label: str = "two-step") -> MapHandle:
    """DeepLab, taught by the masks: its predictions, called ``label``."""
    check_run(params.deeplab, run.options, name="deeplab")
    student = run.fit(deeplab.fit(params.deeplab), sets.train, monitor=sets.val, target=masks)
    return run.map(
        deeplab.predict(params.deeplab, crf=crf_params.chosen(params.crf)), sets.val, label=label, net=student
    )


def mined(run: Runner, sets: Sets, params: RRMFlowParams) -> tuple[FitHandle, MapHandle]:
    """A classifier of tags, and the reliable regions of its maps (eq. 1 to 7): each step cached, drawn and scored."""
    check_run(params.cam, run.options, name="cam")
    classifier = run.fit(cam.fit(params.cam), sets.train)
    maps = run.map(cam.maps(params.cam), sets.train, net=classifier)
    return classifier, run.map(reliable.reliable(params.rrm.reliable), sets.train, cam=maps)


show_help(DataParams, RRMFlowParams, RunParams)


@flow(name="rrm", persist_result=False, task_runner=threads())
def rrm(data: DataParams, params: RRMFlowParams = RRMFlowParams(), options: RunParams = RunParams()) -> State[Any]:
    """Tags -> reliable regions -> a network of two branches -> masks -> DeepLab -> scores, as a Prefect flow run."""
    return run_flow("rrm", page, data, params, options)
