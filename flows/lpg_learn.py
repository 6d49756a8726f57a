"""A mask generator learnt from masks of whatever classes (Xie et al., "Learning Class-Agnostic Pseudo Mask Generation
for Box-Supervised Semantic Segmentation", LPG, 2021), Fig. 1 as a page.

``data`` is the auxiliary set: boxes and masks. What it leaves is a bundle: generators of all rounds in one folder, for
:mod:`flows.lpg` on any machine and any set of other classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from prefect import State, flow

from artifacts.cache.runs import library_versions
from artifacts.datasets import DataParams
from artifacts.export.bundle import check_bundle_target, write_bundle
from artifacts.records import Sets
from flows.server.prefect_skin import run_flow, show_help, threads
from tasks import labels
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.lpg import em, stages
from tasks.lpg.em import LearnParams, Learnt
from tasks.stage import PARAMS_CONFIG, MapHandle

FOLDER = "generators"
"""Of the bundle, in ``--out``."""


@dataclass(frozen=True)
class LPGLearnParams(LearnParams):
    """Everything that decides what the flow ``lpg-learn`` gives."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    bundle: str = field(default="", metadata={"help": f"folder for the bundle; empty: {FOLDER}/ in --out"})
    half: bool = field(
        default=False,
        metadata={"help": "weights of the bundle as float16, half the bytes; the scores are of float32"},
    )
    licence: str = field(
        default="", metadata={"help": "what the licences of the data allow: text for the bundle's card"}
    )


def page(run: Runner, sets: Sets, params: LPGLearnParams) -> Result:
    """Rounds of EM on ``sets.train``; the prediction is masks of ``sets.val``, if any, which no generator has seen."""
    params.check(run.options)
    out = params.bundle or (str(Path(run.options.out) / FOLDER) if run.options.out else "")
    if out:
        check_bundle_target(Path(out).expanduser())
    learnt = em.learn(run, sets.train, params)
    unseen = {"generator": held_out(run, sets, params, learnt)} if len(sets.val) else {}
    # Not "generated": the sheet shows the first round's masks of the training images by that name.
    result = finish(run, sets, labels.prefer_corrected(run, learnt.masks[-1]), unseen)
    if run.planning:
        return result
    folder = Path(out).expanduser() if out else run.folder.path / FOLDER
    write_bundle(
        folder,
        card(sets, params, result),
        [Path(net.path) for net in learnt.generators],
        em.seen_images(run, sets.train).keys(),
        half=params.half,
    )
    return replace(result, files={**result.files, "generators": str(folder)})


def held_out(run: Runner, sets: Sets, params: LPGLearnParams, learnt: Learnt) -> MapHandle:
    """Masks of the evaluation images from their boxes, by each round's generator; the last round's."""
    generate = stages.generate(stages.net_of(params.generator), params.generate)
    found: list[MapHandle] = []
    for segmenter, net in zip(learnt.segmenters, learnt.generators, strict=True):
        probs = em.probabilities(run, sets.val, params.segmenter, segmenter, label="val-probs")
        found.append(run.map(generate, sets.val, label="val-generated", net=net, probs=probs))
    return found[-1]


def card(sets: Sets, params: LPGLearnParams, result: Result) -> dict[str, Any]:
    """What the bundle says of itself."""
    return {
        "network": asdict(stages.net_of(params.generator)),
        "network_version": stages.VERSION,
        "classes": list(sets.train.classes),
        "data": {"name": sets.train.dataset, "split": sets.train.split, "images": len(sets.train)},
        "learnt": as_learnt(params),
        "half": params.half,
        "scores": {name: {key: one[key] for key in ("miou", "images")} for name, one in result.scores.items()},
        "libraries": library_versions(),
        "licence": params.licence or "The licences of the data above decide who may use these weights for what.",
    }


def as_learnt(params: LPGLearnParams) -> dict[str, Any]:
    """The params that the generators came of, without what is said elsewhere on the card, and without folders."""
    found = asdict(params)
    for name in ("bundle", "licence", "half"):
        del found[name]
    for network in ("segmenter", "generator"):
        found[network]["weights"] = Path(found[network]["weights"]).name
    return found


show_help(DataParams, LPGLearnParams, RunParams)


@flow(name="lpg-learn", persist_result=False, task_runner=threads())
def lpg_learn(
    data: DataParams, params: LPGLearnParams = LPGLearnParams(), options: RunParams = RunParams()
) -> State[Any]:
    """Boxes and masks -> EM rounds of segmenter and mask generator -> a bundle, as a Prefect flow run."""
    return run_flow("lpg-learn", page, data, params, options)
