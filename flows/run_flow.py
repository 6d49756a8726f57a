"""Runs a flow page twice: once to plan (labels, addresses, counts), once for real.

A page is a plain function ``page(run, sets, params) -> Result``. Everything that a flow, the
command line and a script share lies here; Prefect's side is ``flows/server/prefect_skin.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from artifacts.cache.atomic import check_writable
from artifacts.cache.runs import last_seconds, write_origin
from artifacts.datasets import DataParams, read_split, remember_dataset
from artifacts.export.dataset import check_target
from artifacts.records import DataError, RecordSet, Sets
from flows.config import ConfigError
from flows.recording import recorded
from flows.unread import watched
from tasks.engine.options import RunParams
from tasks.engine.pending import Sources
from tasks.engine.progress import Reporter
from tasks.engine.runner import Runner, StageFailed, UntilReached
from tasks.engine.skin import Skin
from tasks.engine.stage_report import StageReport, skip_line
from tasks.engine.workers import Workers
from tasks.evaluate.finish import Result, dataset_folder, finish, so_far
from tasks.labels import prefer_corrected
from tasks.training.weights.files import WeightsError

P = TypeVar("P")
Page = Callable[[Runner, Sets, P], Result]
WHERE_LABELS = {
    "tags": "tags.csv (folder:), Annotations or WeakTags (voc:)",
    "boxes": "boxes.csv (folder:) or Annotations (voc:)",
    "scribbles": "ScribbleSup (voc:) or data.scribble_files (any)",
    "truth": "masks/ and classes.txt (folder:), SegmentationClass (voc:), segmentation (coco:)",
}
"""Label kind -> where readers look for it."""


@dataclass(frozen=True)
class Plan:
    """What a run would do, stage by stage, and its estimated time."""

    flow: str
    stages: tuple[StageReport, ...]
    estimates_s: dict[str, float]
    """label -> seconds, by the newest run that did the same work, scaled by its amount; without one, it is missing."""
    warnings: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    """``train``, ``val``, ``aux`` -> how many images and labels were read, and what was lost."""
    sources: Sources | None = field(default=None, repr=False)
    """Digests of images and labels that planning computed, for the run that follows."""
    unread: tuple[str, ...] = ()
    """Sections of the params that no stage of the run takes."""


def resolve_options(options: RunParams) -> RunParams:
    """``cache`` follows ``out`` unless it is named: ``--out DIR`` keeps everything in one place.

    Raises :class:`ConfigError` where one of them is, or lies below, a file.
    """
    for name, folder in (("out", options.out), ("cache", options.cache)):
        there = next((path for path in (Path(folder), *Path(folder).parents) if os.path.exists(path)), None)
        if there is not None and not os.path.isdir(there):
            raise ConfigError(f"--{name} {folder}: {there} is a file; name a folder")
    if options.out and options.cache == RunParams().cache:
        return replace(options, cache=str(Path(options.out) / "cache"))
    return options


def read_sets(data: DataParams, options: RunParams) -> Sets:
    """The train and the val split, and the auxiliary data's train split.

    Raises :class:`DataError` if there is nothing to learn from, if the splits' class tables differ, or if two data sets
    have one name.
    """
    cache = Path(options.cache)
    train = _learnable(data, "training", cache)
    val = read_split(data, data.val, cache=cache)
    if train.classes != val.classes:
        raise DataError(
            f"{data.source}: split {data.train!r} has classes {train.classes}, {data.val!r} has {val.classes}"
        )
    if not data.train_on_val:
        _check_apart(data, train, val)
    if data.aux is None:
        return Sets(train, val)
    aux = _learnable(data.aux, "auxiliary", cache)
    alike = replace(data.aux, name=data.name, train=data.train, val=data.val) == replace(data, aux=None)
    if aux.dataset == train.dataset and not alike:  # one key would stand for two images, or for two sets of labels
        raise DataError(
            f"the auxiliary data {aux.format}:{aux.root} have the name {aux.dataset!r} of {train.format}:{train.root},"
            " and are other data, or read otherwise; give them a name of their own:"
            f" --set data.aux.name={aux.dataset}-aux"
        )
    return Sets(train, val, aux)


def _check_apart(data: DataParams, train: RecordSet, val: RecordSet) -> None:
    """No picture is in both splits: a score on pictures that were learned from says nothing."""
    held_out = {record.image for record in val}
    both = [record.image_id for record in train if record.image in held_out]
    if both:
        raise DataError(
            f"{data.source}: {len(both)} of {len(val)} images of {data.val!r} (data.val) are in {data.train!r}"
            f" (data.train), too, e.g. {', '.join(both[:3])}: scores on them would say nothing. Name other splits, or"
            " allow it: --set data.train_on_val=true"
        )


def _learnable(data: DataParams, what: str, cache: Path) -> RecordSet:
    """The train split, with an image at least."""
    records = read_split(data, data.train, cache=cache)
    if not len(records):
        skips = records.skips
        broken = f" ({len(skips)} are broken; the first: {skip_line(skips[0].path, skips[0].reason)})" if skips else ""
        raise DataError(f"no {what} images: split {data.train!r} of {data.source} holds none{broken}")
    return records


def plan_page(
    name: str, page: Page[P], sets: Sets, params: P, options: RunParams, sources: Sources | None = None
) -> Plan:
    """Run the page with a planning Runner: no work, no run folder. Checks ``rerun``, ``until`` and the labels.

    ``sources``: digests that an earlier plan over the same sets has made (:attr:`Plan.sources`).

    The cache may be written to all the same: reading demo data, before, draws them into it. Raises
    :class:`DataError` where no image of a set has a label kind that the page needs of it.
    """
    with Runner(options, flow=name, planning=True, sets=sets, sources=sources) as run:
        try:
            own, unread = watched(params)
            _to_its_end(run, page, sets, own)
        except WeightsError as error:
            raise ConfigError(str(error)) from error
        run.check_until()
        run.check_rerun()
    _check_labels(name, run, sets)
    said = (*(warning for records in sets for warning in records.warnings), *_untagged(run, sets))
    warnings = tuple(dict.fromkeys(said))
    past = last_seconds(Path(options.cache), name)
    estimates: dict[str, float] = {}
    for report in run.reports:
        if report.like in past:
            share = (report.to_compute + report.unknown) / report.total if report.total else 0.0
            estimates[report.label] = past[report.like] * report.amount * share
    return Plan(name, tuple(run.reports), estimates, warnings, sets.said(), run.sources, tuple(sorted(unread)))


def _to_its_end(run: Runner, page: Page[P], sets: Sets, params: P) -> Result:
    """The whole page, or what of it comes up to the stage that ``until`` names; a person's masks are preferred either
    way."""
    try:
        return page(run, sets, params)
    except UntilReached:
        masks, predictions = so_far(run, sets)
        run.ending = True
        if masks is not None and "mask_hw" in masks.stage.outputs:
            masks = prefer_corrected(run, masks)
        return finish(run, sets, masks, predictions)


def _check_labels(name: str, run: Runner, sets: Sets) -> None:
    """Enough images of each set have each label kind that the page's stages declare over it, or over a part of it."""
    whole = {(records.dataset, records.split): records for records in sets}
    declared: dict[tuple[str, str], set[str]] = {}
    for handle in run.handles:
        if handle.records is not None:
            of_set = declared.setdefault((handle.records.dataset, handle.records.split), set())
            of_set.update(handle.stage.reads)
    for key, kinds in declared.items():
        records = whole.get(key)
        if records is None or not len(records):
            continue  # the page has put it together itself, or there is nothing to label
        for kind, where in WHERE_LABELS.items():
            if kind not in kinds:
                continue
            labelled = _labelled(records, kind)
            if labelled or records.counts.dropped(kind):
                _check_enough(name, records, kind)
            if not labelled:
                held = [one for one in WHERE_LABELS if one != "truth" and _labelled(records, one)]
                source = f"{records.format}:{records.root}" if records.root else records.dataset
                has = f" (it has {', '.join(held)})" if held else ""
                # A table whose names fit no picture is there, too: what reading complained about says so.
                said = "".join(f"; {warning}" for warning in records.warnings)
                raise DataError(
                    f"{name} needs {kind}, and split {records.split} of {source} has none{has}: add {where}{said}"
                )


def _untagged(run: Runner, sets: Sets) -> list[str]:
    """What is said of images whose tags are unknown, where a stage needs them and reading has said nothing of it."""
    needed = {
        (records.dataset, records.split)
        for handle in run.handles
        if (records := handle.records) is not None and "tags" in handle.stage.reads
    }
    found = []
    for records in sets:
        if (records.dataset, records.split) not in needed or any("without tags" in said for said in records.warnings):
            continue
        if unknown := [record.image_id for record in records if record.tags is None]:
            examples = "; ".join(unknown[:3]) + ("; ..." if len(unknown) > 3 else "")
            found.append(f"{records.split}: {len(unknown)} x image whose tags are unknown, to be skipped: {examples}")
    return found


def _check_enough(name: str, records: RecordSet, kind: str) -> None:
    """Raise :class:`DataError` where most labels are lost: the rest would be learned as background."""
    counts = records.counts
    labelled = sum(getattr(record, kind) is not None for record in records)
    if kind in ("tags", "boxes"):
        labelled -= counts.without_label
    lost = counts.dropped(kind)
    few_images = labelled < counts.least * counts.listed
    if not few_images and (not counts.labels or counts.labels - lost >= counts.least * counts.labels):
        return
    source = f"{records.format}:{records.root}"
    what = (
        f"{labelled:,} of {counts.listed:,} images have {kind}"
        if few_images
        else (f"{counts.labels - lost:,} of {counts.labels:,} labels can be used as {kind}")
    )
    reasons = [*counts.first, *(skip.reason for skip in records.skips[:3])][:3] or list(records.warnings[:3])
    raise DataError(
        f"{name} needs {kind}, and of split {records.split} of {source} only {what}: fewer than"
        f" data.min_labelled={counts.least:g} allows. Found: {counts.line(len(records))}."
        + (" The first reasons: " + "; ".join(reasons) + "." if reasons else "")
        + " Correct the labels, or set data.min_labelled=0 to go on with what there is"
    )


def defaults_left(data: DataParams, params: object) -> dict[str, Any]:
    """Dotted name -> default of each field of ``data`` and ``params`` that has another value in this run.

    Params of a flow of one's own that cannot be made without arguments have no defaults: none of them is listed.
    """
    given = {"data": asdict(data), "params": asdict(params)}  # type: ignore[call-overload]
    plain: dict[str, Any] = {"data": asdict(DataParams())}
    try:
        plain["params"] = asdict(type(params)())  # type: ignore[call-overload]
    except TypeError:
        plain["params"] = given["params"]
    found: dict[str, Any] = {}

    def compare(name: str, value: Any, default: Any) -> None:
        if isinstance(value, dict) and isinstance(default, dict):
            for key in value:
                compare(f"{name}.{key}", value[key], default.get(key))
        elif value != default:
            found[name] = default

    for part, values in given.items():
        compare(part, values, plain[part])
    return found


def _labelled(records: RecordSet, kind: str) -> bool:
    return any(getattr(record, kind) is not None for record in records)


def run_page(
    name: str,
    page: Page[P],
    data: DataParams,
    params: P,
    options: RunParams,
    *,
    skin: Skin | None = None,
    reporter: Reporter | None = None,
    workers: Workers | None = None,
    command: str = "",
) -> Result:
    """Read, plan (so that a wrong ``rerun`` fails before any work), run. Returns the page's result.

    However it ends, it leaves a run (:mod:`flows.recording`). ``workers``: lent to the run, for runs one after the
    other that are to share their workers. ``command``: does the same again, as text; default: by the configuration
    that the run leaves.
    """
    options = resolve_options(options)
    for option, folder in (("out", options.out), ("cache", options.cache)):
        check_writable(option, Path(folder) if folder else None)
    with recorded(name, data, params, options, reporter=reporter, command=command) as recording:
        sets = read_sets(data, options)
        recording.log.phase("plans")
        plan = plan_page(name, page, sets, params, options)
        for kind in options.export if options.out else ():
            check_target(dataset_folder(Path(options.out), kind))
        for records in sets:
            remember_dataset(Path(options.cache), records)
        recording.planned(list(plan.stages), plan.estimates_s, sets.said())
        recipe: dict[str, Any] = {"data": asdict(data), "params": asdict(params)}  # type: ignore[call-overload]
        try:
            with Runner(
                options,
                flow=name,
                skin=skin,
                reporter=recording.log,
                recipe=recipe,
                sets=sets,
                sources=plan.sources,
                workers=workers,
                folder=recording.folder,
            ) as run:
                run.started = recording.started
                run.facts["defaults"] = defaults_left(data, params)
                run.facts["unread"] = [f"params.{name}" for name in plan.unread]
                origins = {sets.name_of(records): write_origin(run.cache, records.origin) for records in sets}
                run.facts |= {"data": sets.said(), "origins": origins, "command": recording.command}
                run.skips.extend(skip for records in sets for skip in records.skips)
                result = _to_its_end(run, page, sets, params)
                run.facts |= {"files": dict(result.files), "failures": list(result.failures)}
                run.write_manifest("finished")
        except DataError as error:
            # From here on work was done: no longer a matter of wrong usage.
            raise StageFailed(str(error)) from error
        recording.finished(result)
    return result
