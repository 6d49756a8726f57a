"""Boxes to masks by a learnt mask generator (Xie et al., "Learning Class-Agnostic Pseudo Mask Generation for
Box-Supervised Semantic Segmentation", LPG, 2021), Fig. 2 as a page.

The generators come from a bundle (:mod:`flows.lpg_learn`), or are learnt first on ``data.aux``: masks of other classes.
A segmenter is trained round by round on the masks that they make of boxes. Each of the paper's ablations is a value of
one parameter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from prefect import State, flow

from artifacts.datasets import DataParams
from artifacts.datasets.without import shared
from artifacts.export.bundle import CARD, part_name, read_bundle
from artifacts.records import DataError, RecordSet, Sets
from flows.server.prefect_skin import run_flow, show_help, threads
from tasks import labels
from tasks.bounds import bounded, number
from tasks.crf import params as crf_params
from tasks.crf.params import Preset
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.lpg import em, stages
from tasks.lpg.em import LearnParams
from tasks.lpg.stages import GenerateParams, GeneratorNet
from tasks.stage import PARAMS_CONFIG, FitHandle, MapHandle, resolve
from tasks.training.params import check_run


@dataclass(frozen=True)
class LPGFlowParams:
    """Everything that decides the result of the flow ``lpg``. The defaults are the paper's, on ResNet-50."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    generator: str = field(
        default="",
        metadata={
            "help": "a bundle: the folder that `maskmill lpg-learn` left, or the name of one that comes with Maskmill"
            f" ({', '.join(stages.SHIPPED)}); empty: learn on data.aux"
        },
    )
    learn: LearnParams = field(
        default_factory=LearnParams, metadata={"help": "with data.aux: how generators are learnt on it first"}
    )
    overlap: Literal["refuse", "allow"] = field(
        default="refuse", metadata={"help": "classes that the generators have seen among the target's"}
    )
    rounds: int = number(0, 0, 9, "rounds, each with its generator; 0: as many as there are generators")
    generators: Literal["stage-wise", "fixed"] = field(
        default="stage-wise", metadata={"help": "each round its own generator, or the last one in all (Table II)"}
    )
    masks: str = field(
        default="none",
        metadata={
            "help": "training images whose given masks are used instead of boxes (semi-supervised): none, all that have"
            " one, corrected (those that people corrected), or a file of image ids, one a line"
        },
    )
    student: Literal["segmenter", "deeplab", "none"] = field(
        default="segmenter",
        metadata={
            "help": "the network that is the result: the rounds' segmenter after the last (the paper's), a DeepLab that"
            " learns from the last masks alone; none: the masks are the result"
        },
    )
    crf: Literal["off", Preset] = field(
        default="off",
        metadata={
            "help": f"dense CRF at test time, scored beside the student alone: off, {', '.join(get_args(Preset))}"
        },
    )
    segmenter: DeepLabParams = field(
        default_factory=DeepLabParams, metadata={"help": "the segmenter of the rounds; trained further in each"}
    )
    generate: GenerateParams = field(default_factory=GenerateParams, metadata={"help": "inference of the generators"})
    deeplab: DeepLabParams = field(default_factory=DeepLabParams, metadata={"help": "the student, if it is deeplab"})

    def __post_init__(self) -> None:
        bounded(self, "lpg")
        if not self.masks:
            raise ValueError("masks is empty; give none, all, corrected, or a file of image ids")


def page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
    """The whole method on one page: where the generators come from, the rounds under them (Fig. 2), the student."""
    nets, net = generators(run, sets, params)
    check_run(params.segmenter, run.options, name="segmenter")
    given = given_masks(run, sets.train, params.masks)
    deployed = em.deploy(
        run,
        sets.train,
        of_rounds(nets, params),
        net,
        params.segmenter,
        params.generate,
        monitor=sets.val,
        given=given,
        last_m_step=params.student == "segmenter",
    )
    masks = deployed.target
    if given is not None:  # chosen among two stages' masks: to be exported they must be those of one
        masks = run.map(labels.chosen_masks(), sets.train, masks=masks)
    said = () if given is None else (scored_with(given, sets.train),)
    if params.student == "none":
        return finish(run, sets, masks, warnings=said)
    crf = crf_params.chosen(params.crf)
    first, *later = deployed.segmenters
    segment = deeplab.predict(params.segmenter, name="segmented", crf=crf)
    found = [run.map(segment, sets.val, label="segmented-by-boxes", net=first)]
    found += [run.map(segment, sets.val, label="segmented", net=segmenter) for segmenter in later]
    if params.student == "deeplab":
        check_run(params.deeplab, run.options, name="deeplab")
        student = run.fit(deeplab.fit(params.deeplab), sets.train, monitor=sets.val, target=deployed.target)
        found.append(run.map(deeplab.predict(params.deeplab, crf=crf), sets.val, label="student", net=student))
    return finish(run, sets, masks, {"student": found[-1]}, warnings=said)


def generators(run: Runner, sets: Sets, params: LPGFlowParams) -> tuple[Sequence[FitHandle], GeneratorNet]:
    """The generators of all rounds, out of the bundle or learnt on the auxiliary set, and their network.

    Raises :class:`DataError` where there is neither or both, where a bundle is not what it should be, and where the
    generators have seen the target's classes or images.
    """
    if bool(params.generator) == (sets.aux is not None):
        remedy = (
            'both are set: take one away (--set data.aux=null or --set params.generator="")'
            if params.generator
            else f"set params.generator to a bundle ({', '.join(stages.SHIPPED)}, or what `maskmill lpg-learn` makes),"
            " or data.aux.source to a data set with masks"
        )
        raise DataError(f"the mask generators come from a bundle or from data.aux; {remedy}")
    if sets.aux is not None:
        check_unseen(run, sets, sets.aux.classes, em.seen_images(run, sets.aux), params)
        params.learn.check(run.options, within="learn.")
        learnt = em.learn(run, sets.aux, params.learn, prefix="aux-", within="params.learn.")
        return learnt.generators, stages.net_of(params.learn.generator)
    folder = Path(params.generator).expanduser()
    if params.generator in stages.SHIPPED and os.path.lexists(folder / CARD):
        raise DataError(
            f"params.generator={params.generator}: a bundle of that name comes with Maskmill, and the folder"
            f" {folder.absolute()} is one, too; write ./{params.generator} for the folder, or rename it"
        )
    bundle = read_bundle(stages.SHIPPED.get(params.generator, folder))
    if bundle.card["network_version"] != stages.VERSION:
        raise DataError(
            f"{bundle.path}: its network is version {bundle.card['network_version']}, this Maskmill has"
            f" {stages.VERSION}; learn it again, or take the version of Maskmill that wrote it"
        )
    try:
        net = GeneratorNet(**bundle.card["network"])
        resolve("tasks.lpg.network:check_generators")(bundle.weights, net, bundle.rounds)
    except (TypeError, ValueError) as error:
        raise DataError(f"{bundle.path}: its generators cannot be used here ({error})") from error
    check_unseen(run, sets, bundle.classes, dict.fromkeys(bundle.images, f"an image of {bundle.path}"), params)
    loaded = run.load(bundle.weights)
    return [loaded.part(part_name(one)) for one in range(1, bundle.rounds + 1)], net


def check_unseen(
    run: Runner, sets: Sets, classes: Sequence[str], images: dict[str, str], params: LPGFlowParams
) -> None:
    """Raises :class:`DataError` where the generators saw a class or an image (digest -> what it is) of the target."""
    if (both := shared(sets.train.classes, classes)) and params.overlap == "refuse":
        listed = ", ".join(own if own == other else f"{own} ({other} there)" for own, other in both)
        if sets.aux is not None:
            names, option = [other for _, other in both], "data.aux"
        else:
            names, option = [own for own, _ in both], "data"
        remedy = f"add {', '.join(names)} to {option}.without, or take them out of {option}.only if that is set"
        raise DataError(
            f"{len(both)} classes of the target are among those that the generators learn from: {listed}. Leave them"
            f" out: {remedy}; or say --set params.overlap=allow"
        )
    for records in (sets.train, sets.val):
        for digest, image in em.seen_images(run, records).items():
            if digest in images:
                raise DataError(
                    f"{image} of {records.dataset} is also {images[digest]}, from whose masks the generators"
                    " learn: an auxiliary set may hold no image of the target"
                )


def of_rounds(nets: Sequence[FitHandle], params: LPGFlowParams) -> list[FitHandle]:
    """A generator for each round. Raises :class:`DataError` for more rounds than there are."""
    rounds = params.rounds or len(nets)
    if params.generators == "fixed":
        return [nets[-1]] * rounds
    if rounds > len(nets):
        raise DataError(
            f"params.rounds={rounds}, but there are generators of {len(nets)} alone; learn more, or set fewer"
        )
    return list(nets[:rounds])


def given_masks(run: Runner, train: RecordSet, which: str) -> MapHandle | None:
    """The given masks of the images that ``params.masks`` names. Raises :class:`DataError` where there are none."""
    if which == "none":
        return None
    if which == "corrected":
        if (people := labels.corrected_alone(run, train)) is None:
            raise DataError(f"params.masks=corrected: nobody has corrected a mask of {train.dataset}; set it to none")
        return people
    if which == "all":
        strong = train.only(record.image_id for record in train if record.truth is not None)
    else:
        try:
            lines = Path(which).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"params.masks={which}: not all, corrected or none, and no file of image ids ({error})"
            ) from error
        listed = {line.strip() for line in lines} - {""}
        strong = train.only(listed)
        if missing := sorted(listed - {record.image_id for record in strong}):
            raise DataError(f"{which}: {len(missing)} ids are none of {train.dataset}'s, the first: {missing[0]}")
        if bare := sorted(record.image_id for record in strong if record.truth is None):
            raise DataError(
                f"{which}: {len(bare)} of its images have no given mask, the first: {bare[0]}; add their masks, or take"
                " their ids out"
            )
    if not len(strong):
        raise DataError(f"params.masks={which}: no training image of {train.dataset} has a mask; set it to none")
    return run.map(labels.given_masks(), strong)


def scored_with(given: MapHandle, train: RecordSet) -> str:
    """What a reader of the scores has to know where masks were given."""
    return (
        f"the masks of {len(given.records)} of {len(train)} training images are given ones, which the score masks"
        " (train) counts, too; what the generators make of all images is generated (train)"
    )


show_help(DataParams, LPGFlowParams, RunParams)


@flow(name="lpg", persist_result=False, task_runner=threads())
def lpg(data: DataParams, params: LPGFlowParams = LPGFlowParams(), options: RunParams = RunParams()) -> State[Any]:
    """Boxes -> rounds of learnt masks and a segmenter that learns from them -> scores, as a Prefect flow run."""
    return run_flow("lpg", page, data, params, options)
