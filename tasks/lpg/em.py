"""LPG's rounds: generators learnt by EM on an auxiliary set (Fig. 1), and deployed on a set with boxes alone (Fig. 2).

Loops over the two verbs, like a flow's page. Xie et al., "Learning Class-Agnostic Pseudo Mask Generation for
Box-Supervised Semantic Segmentation", 2021, sections III-B and III-C.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from artifacts.records import RecordSet
from tasks import labels
from tasks.bounds import bounded, number
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.labels import BoxMaskParams
from tasks.lpg import stages
from tasks.lpg.stages import GenerateParams, GeneratorNet, GeneratorParams
from tasks.stage import PARAMS_CONFIG, FitHandle, MapHandle, first_of
from tasks.training.params import check_run


@dataclass(frozen=True)
class LearnParams:
    """How generators are learnt. The defaults are the paper's, with a segmenter on ResNet-50."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    rounds: int = number(3, 1, 9, "rounds of EM, each with a generator of its own; the paper finds 3 or 4 sufficient")
    start: Literal["fresh", "previous"] = field(
        default="fresh",
        metadata={"help": "what a round's generator starts from: its initial weights, or the round before"},
    )
    segmenter: DeepLabParams = field(
        default_factory=DeepLabParams, metadata={"help": "the segmenter of the rounds; trained further in each"}
    )
    generator: GeneratorParams = field(default_factory=GeneratorParams, metadata={"help": "the mask generator"})
    generate: GenerateParams = field(
        default_factory=GenerateParams, metadata={"help": "inference of the generators that are learnt"}
    )

    def __post_init__(self) -> None:
        bounded(self, "learn")
        same_boxes({"generator": self.generator.difficult, "generate": self.generate.difficult})

    def check(self, options: RunParams, *, within: str = "") -> None:
        """Raises ``DataError`` for what cannot run on what the options name. ``within``: ``"learn."``, say."""
        check_run(self.segmenter, options, name=f"{within}segmenter")
        check_run(self.generator, options, name=f"{within}generator")


def seen_images(run: Runner, records: RecordSet) -> dict[str, str]:
    """Digest -> path of every image that can be read. The stages skip the others, so no network sees them."""
    found: dict[str, str] = {}
    for record in records:
        with contextlib.suppress(OSError):
            found[run.image_digest(record)] = record.image
    return found


def same_boxes(difficult: dict[str, bool]) -> None:
    """``ValueError`` where stages that must cover the same boxes do not."""
    if len(set(difficult.values())) > 1:
        found = ", ".join(f"{name}.difficult={value}" for name, value in difficult.items())
        raise ValueError(f"{found} must be alike: these stages must cover the same boxes")


@dataclass(frozen=True)
class Learnt:
    """What the rounds of :func:`learn` leave, round by round."""

    segmenters: tuple[FitHandle, ...]
    """The segmenter that round r's generator was learnt beside."""
    generators: tuple[FitHandle, ...]
    masks: tuple[MapHandle, ...]
    """Of round r's generator, over the auxiliary set."""


def learn(run: Runner, aux: RecordSet, params: LearnParams, *, prefix: str = "", within: str = "params.") -> Learnt:
    """Stage-wise generators by EM (Fig. 1, eq. 6): the constraint is the M-step, the objective the E-step.

    Round r's M-step trains the segmenter further (schedule and rates start again) on the masks of round r - 1: the
    boxes, then the generators'. Its E-step trains generator r on the truth of ``aux`` (of pictures that people have
    corrected, on that mask), with that segmenter's probabilities as input. The M-step behind the last generator would
    train a segmenter that nothing reads: it is left out. ``prefix``: of the stages' labels;
    ``within``: where in the config ``params`` lie, for messages.
    """
    difficult = params.generate.difficult
    truth = labels.known_masks(run, aux, label=f"{prefix}truth")
    masks = run.map(labels.box_masks(BoxMaskParams(difficult)), aux, label=f"{prefix}box-masks")
    segmenters: list[FitHandle] = []
    generators: list[FitHandle] = []
    generated: list[MapHandle] = []
    for _ in range(params.rounds):
        segmenter = m_step(run, aux, params.segmenter, segmenters, masks, label=f"{prefix}segmenter", within=within)
        probs = probabilities(run, aux, params.segmenter, segmenter, label=f"{prefix}probs")
        init = generators[-1] if generators and params.start == "previous" else None
        fit = stages.fit(params.generator, within=within)
        net = run.fit(fit, aux, init=init, label=f"{prefix}generator", target=truth, probs=probs)
        generate = stages.generate(stages.net_of(params.generator), params.generate)
        masks = run.map(generate, aux, label=f"{prefix}generated", net=net, probs=probs)
        segmenters.append(segmenter)
        generators.append(net)
        generated.append(masks)
    return Learnt(tuple(segmenters), tuple(generators), tuple(generated))


@dataclass(frozen=True)
class Deployed:
    """What the rounds of :func:`deploy` leave."""

    target: MapHandle
    """Masks of the last round's generator, or given or corrected ones: what a student learns from."""
    segmenters: tuple[FitHandle, ...]
    """Before the first round (boxes), after it, and so on."""


def deploy(
    run: Runner,
    train: RecordSet,
    generators: Sequence[FitHandle],
    net: GeneratorNet,
    segmenter: DeepLabParams,
    generate: GenerateParams,
    *,
    monitor: RecordSet | None = None,
    given: MapHandle | None = None,
    last_m_step: bool = True,
) -> Deployed:
    """Box-supervised segmentation under learnt generators (section III-C, Fig. 2): one round for each of them.

    The segmenter begins on boxes. Round r's generator makes masks of boxes, image and the segmenter's probabilities;
    the segmenter is trained further on them. ``given``: masks of a part of the images, which it learns from instead
    (section IV-A, semi-supervised). Masks that people corrected take the place of the last round's alone, which they
    were made from. ``last_m_step``: whether the last masks are learnt from, too.
    """
    masks = run.map(labels.box_masks(BoxMaskParams(generate.difficult)), train)
    target = masks if given is None else first_of(given, masks)
    made: list[FitHandle] = [m_step(run, train, segmenter, [], target, monitor=monitor)]
    for number_of_round, generator in enumerate(generators, start=1):
        probs = probabilities(run, train, segmenter, made[-1])
        masks = run.map(stages.generate(net, generate), train, net=generator, probs=probs)
        target = masks if given is None else first_of(given, masks)
        last = number_of_round == len(generators)
        if last:
            target = labels.prefer_corrected(run, target)
        if last_m_step or not last:
            made.append(m_step(run, train, segmenter, made, target, monitor=monitor))
    return Deployed(target, tuple(made))


def m_step(
    run: Runner,
    records: RecordSet,
    params: DeepLabParams,
    before: Sequence[FitHandle],
    masks: MapHandle,
    *,
    monitor: RecordSet | None = None,
    label: str = "segmenter",
    within: str = "params.",
) -> FitHandle:
    """Eq. 4: the segmenter learns from the masks; from the last of those ``before`` it, if there is one."""
    init = before[-1] if before else None
    stage = deeplab.fit(params, name="segmenter", within=within)
    return run.fit(stage, records, monitor=monitor, init=init, label=label, target=masks)


def probabilities(
    run: Runner, records: RecordSet, params: DeepLabParams, segmenter: FitHandle, *, label: str = "probs"
) -> MapHandle:
    """f(x; theta) of the classes that an image has boxes of: what a generator is given of the segmenter."""
    stage = deeplab.predict_probs(params, name="probs", keep="boxes")
    return run.map(stage, records, label=label, net=segmenter)
