"""``maskmill export`` and ``maskmill score``: the masks of a run as a dataset, or scored again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.cache.atomic import check_writable
from artifacts.cache.fit_store import FitStore, Publication
from artifacts.cache.runs import find_run, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.datasets import DataParams, read_split, remember_dataset
from artifacts.datasets.read import placed
from artifacts.datasets.voc_masks import read_index_png
from artifacts.export.dataset import WRITERS, check_target, export_run
from artifacts.export.val import WITH_VAL
from artifacts.records import UNDECIDED, DataError, MaskHW, Record, RecordSet
from artifacts.report import write_scores_json
from flows.cli.picture_jobs import reporting
from flows.config import ConfigError, Layer, build
from tasks.evaluate.confidence import doubts_of
from tasks.evaluate.object_iou import Window, windows
from tasks.evaluate.score import SetScores, score_set
from tasks.stage import CRF_MASK, MASKS

log = logging.getLogger("maskmill")


def export(
    cache: Path,
    run: str,
    stage: str,
    kind: str,
    to: Path,
    *,
    images: bool = True,
    crf: bool = False,
    worst: int = 0,
    by: str = "suspicion",
    confidence: bool = False,
    undecided_below: int = 0,
) -> tuple[Path, str]:
    """Export one stage of one run; returns the folder, and a note where the stage is not the run's own choice.

    ``stage=""``: the run's masks (:func:`complete_stage`). With ``crf`` the masks that a stage keeps with a dense CRF;
    ``stage=""`` is a prediction that does, then. Raises :class:`DataError` if it keeps none. ``worst``: only so many
    pictures, the worst first: by suspicion, which needs no truth, or by score. ``confidence``: a map beside every mask;
    ``undecided_below``: pixels of less confidence become 255 (:mod:`tasks.evaluate.confidence`).
    """
    if kind not in WRITERS:
        raise ConfigError(f"--format {kind}: expected one of {', '.join(WRITERS)}")
    check_writable("to", to.parent)
    check_target(to)
    manifest = find_run(cache, run).manifest()
    array = CRF_MASK if crf else "mask_hw"
    if crf and not stage:
        with_crf = [one["label"] for one in complete_maps(manifest) if CRF_MASK in one["outputs"]]
        predictions = [label for label in manifest.get("predictions", {}).values() if label in with_crf]
        stage = (predictions or with_crf or [*manifest.get("predictions", {}).values(), ""])[0]
    found, note = complete_stage(manifest, stage)
    if array not in found["outputs"]:
        having = [one["label"] for one in complete_maps(manifest) if array in one["outputs"]]
        there = f"name one that does with --stage: {', '.join(having)}" if having else "the run has none that does"
        if crf and not having:
            there = "run it with --set params.crf=NAME"
        what = "masks with a CRF" if crf else "masks"
        option = "--crf: " if crf else ""
        raise DataError(f"run {manifest['run']}: {option}its stage {found['label']!r} keeps no {what}; {there}")
    only = worst_pictures(cache, manifest, found["label"], worst, by) if worst else None
    try:
        options: dict[str, Any] = {"with_images": images, "array": array, "only": only}
        options |= {"confidence": confidence, "undecided_below": undecided_below}
        options["doubts"] = doubts_of(cache, manifest, found["label"], array)
        val = _val(cache, manifest) if kind in WITH_VAL and only is None and found["set"] == "train" else None
        return export_run(cache, manifest, found["label"], kind, to, val=val, **options), note
    except FileNotFoundError as error:
        if not images or str(error.filename) not in _images_of(cache, found):
            raise
        raise DataError(
            f"{error.filename}: the image is gone; if the data were moved, run the flow again with --data and the new"
            f" place (and --set data.name={found['dataset']} if the folder's name has changed): nothing is computed"
            " anew. Or export the masks alone, with --no-images"
        ) from error


def _val(cache: Path, manifest: Mapping[str, Any]) -> RecordSet | None:
    """The evaluation pictures of a run; a word where they cannot be had, since the training masks can do without."""
    split = manifest["recipe"].get("data", {}).get("val")
    try:
        return records_of(manifest, "val", split, cache) if split else None
    except DataError as error:
        log.warning("the evaluation pictures are not exported: %s", error)
        return None


def _images_of(cache: Path, stage: Mapping[str, Any]) -> set[str]:
    return {image for _, image in read_stamps(cache, stage["stamps"]).values()}


def worst_pictures(cache: Path, manifest: Mapping[str, Any], label: str, count: int, by: str) -> list[str]:
    """Keys of the ``count`` worst pictures of a stage, the worst first: by ``suspicion``, or by ``score`` (mIoU).

    Pictures that a person has corrected already are none of them. Raises :class:`DataError` where no picture has truth
    to be scored by.
    """
    if count < 0 or by not in ("suspicion", "score"):
        raise ConfigError(f"--worst {count} --by {by}: expected a number of pictures, and suspicion or score")
    done = set(manifest.get("corrected", ()))
    if by == "suspicion":
        from tasks.evaluate.run_suspicion import suspects

        stage, _ = complete_stage(manifest, label)
        total = sum(stamp is not None for stamp, _ in read_stamps(cache, stage["stamps"]).values())
        with reporting("suspicion", total, quiet=False) as advance:
            found = suspects(cache, manifest, label, advance=advance)
        return sorted(found.keys() - done, key=lambda key: (-found[key].suspicion, key))[:count]
    stage, _ = complete_stage(manifest, label)
    scored = score_run(cache, manifest["run"], label).masks["mask_hw"][1].image_miou
    known = {f"{stage['dataset']}/{image_id}": value for image_id, value in scored.items() if value is not None}
    return sorted(known.keys() - done, key=lambda key: (known[key], key))[:count]


def complete_maps(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The complete map stages of a run, in page order."""
    return [stage for stage in manifest["stages"] if stage["kind"] == "map" and stage["stamps"]]


def complete_stage(manifest: Mapping[str, Any], label: str) -> tuple[Mapping[str, Any], str]:
    """A complete map stage of a run in any state, and a note where it is not the run's own choice.

    ``label=""``: the run's masks or, if it has none yet, its last complete stage with masks of the training
    images. Raises :class:`DataError` that lists the complete stages.
    """
    stages = {stage["label"]: stage for stage in complete_maps(manifest)}
    run, status = manifest["run"], manifest["status"]
    if status == "running":
        status = "running, or was killed"  # a killed process cannot set the status
    wanted = label or manifest.get("masks", "")
    if wanted in stages:
        return stages[wanted], ""
    masks = [stage for stage in stages.values() if stage["set"] == "train" and "mask_hw" in stage["outputs"]]
    if not label and masks:
        found = masks[-1]
        return found, f"run {run} is {status}: taking {found['label']!r}, its last complete stage with masks"
    there = f"it has {', '.join(stages)}" if stages else "it has none that is complete"
    if label and label in [stage["label"] for stage in manifest["stages"] if stage["kind"] == "map"]:
        raise DataError(f"run {run} is {status}: its stage {label!r} is not complete; {there}")
    if label:
        raise DataError(f"run {run}: no map stage {label!r}; {there}")
    raise DataError(
        f"run {run} is {status} and has no complete stage with masks of the training images; {there};"
        " name a stage with --stage or another run with --run"
    )


def finished(cache: Path, run: str) -> dict[str, Any]:
    """The manifest of a finished run."""
    manifest = find_run(cache, run).manifest()
    if manifest["status"] != "finished":
        raise DataError(
            f"run {manifest['run']} is {manifest['status']} ({manifest['error'] or 'no error noted'});"
            " run the flow again, or name a finished run with --run"
        )
    return manifest


def published_fit(manifest: Mapping[str, Any], stage: Mapping[str, Any], cache: Path, what: str) -> Publication:
    """The checkpoint of a run's fit: exactly that one, also if it was trained again since (``--rerun``).

    Raises :class:`DataError` that calls it ``what`` where it is gone.
    """
    published = FitStore(cache).published(
        stage["address"], stage["stamps"], accept=lambda one: one.digest == stage["output"]
    )
    if published is None:
        raise DataError(
            f"run {manifest['run']}: its {what}'s checkpoint is not in {cache} any more; run the flow again"
        )
    return published


@dataclass(frozen=True)
class RunScores:
    """Scores of one stage of a run."""

    run: str
    """Its id, whatever it was asked for by."""
    stage: str
    masks: Mapping[str, tuple[dict[str, Any], SetScores]]
    """Array of the stage -> its scores: of its masks and, where it keeps them, those with a CRF."""
    note: str = ""
    """Names the stage, where it is not the run's own choice."""


def score_run(cache: Path, run: str, stage: str, moved: str = "") -> RunScores:
    """Scores of one complete stage of a run in any state, from the current cache and data set.

    ``moved``: where the run's data lie now, as ``--data`` takes it. Raises :class:`DataError` if other data lie there.
    """
    manifest = find_run(cache, run).manifest()
    found, note = complete_stage(manifest, stage)
    arrays = [array for array in MASKS if array in found["outputs"]]
    if not arrays:
        raise DataError(f"run {manifest['run']}: its stage {found['label']!r} keeps no masks: {found['outputs']}")
    records = records_of(manifest, found["set"], found["split"], cache, moved)
    stamps = read_stamps(cache, found["stamps"])
    store = MaskStore(cache, readonly=True)

    def stored(record: Record, names: tuple[str, ...] | None) -> dict[str, Any] | None:
        stamp, _ = stamps.get(records.key(record), (None, ""))
        return None if stamp is None else store.read(found["address"], records.key(record), stamp, names)

    def windows_of(record: Record) -> dict[int, Window]:
        return windows(stored(record, None) or {})

    scores = {}
    for array in arrays:

        def mask_of(record: Record, array: str = array) -> MaskHW | None:
            arrays = stored(record, (array,))
            return None if arrays is None else arrays[array]

        with_objects = array == "mask_hw" and "objects_flat" in found["outputs"]
        scores[array] = _scored(records, mask_of, windows_of if with_objects else None)
    return RunScores(manifest["run"], found["label"], scores, note)


def records_of(manifest: Mapping[str, Any], of_set: str, split: str, cache: Path, moved: str = "") -> RecordSet:
    """The current records of a set (``train``, ``val`` or ``aux``) of a run; ``moved`` as in :func:`score_run`."""
    run, recipe = manifest["run"], manifest["recipe"]
    if not recipe:
        raise DataError(f"run {run} is a script's and does not record its data; score it there")
    data = build(DataParams, "data", recipe, [Layer(recipe, f"run {run}", {})])
    data = placed(data.aux if of_set == "aux" and data.aux is not None else data, manifest.get("folder", ""))
    if moved:
        # Keys begin with the data set's name, which is the folder's unless it was named.
        name = _name(manifest, of_set)
        given = {"data": {"source": moved}}
        data = replace(data, source=build(DataParams, "data", given, [Layer(given, "--data", {})]).source, name=name)
    try:
        records = read_split(data, split, cache=cache)
    except (DataError, OSError) as error:
        raise DataError(
            f"run {run}: its data {data.source} cannot be read ({error}); if they were moved, run the flow again with"
            f" --data {data.source.partition(':')[0]}:PATH --set data.name={_name(manifest, of_set)}: nothing is"
            " computed anew. `maskmill score` takes --data itself"
        ) from error
    if moved:
        remember_dataset(cache, records)  # where it says that these are the same images
    return records


def _name(manifest: Mapping[str, Any], of_set: str) -> str:
    """The data set's name in the cache."""
    return next((str(stage["dataset"]) for stage in manifest["stages"] if stage["set"] == of_set), "NAME")


def score_folder(data: DataParams, split: str, masks: Path, cache: Path) -> tuple[dict[str, Any], SetScores]:
    """Scores of a folder of index PNGs named ``<image id>.png`` against the data set's truth."""
    if not masks.is_dir():
        raise DataError(f"--masks {masks}: no such folder; expected index PNGs named <image id>.png")
    records = read_split(data, split, cache=cache)
    held: set[int] = set()

    def mask_of(record: Record) -> MaskHW | None:
        path = masks / f"{record.image_id}.png"
        if record.truth is None or not path.exists():
            return None
        height, width = record.truth.load().shape
        mask_hw = np.asarray(read_index_png(str(path), (height, width)))
        held.update(np.unique(mask_hw).tolist())
        return mask_hw

    def expected(image_id: str) -> str:
        """The name that a mask must have, and what is there instead."""
        there = sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*") if path.is_file())
        alike = [name for name in there if Path(name).name.lower().startswith(Path(image_id).name.lower())] or there
        holds = f"holds {', '.join(alike[:3])}{', ...' if len(alike) > 3 else ''}" if there else "is empty"
        return f"; expected {masks / image_id}.png, the folder {holds}"

    scored = _scored(records, mask_of, expected=expected)
    if UNDECIDED in held and held <= {0, UNDECIDED} and not data.only_undecided:
        log.warning("%s: the masks hold only 0 and 255, and 255 means undecided: is it meant as an object?", masks)
    return scored


def _scored(
    records: RecordSet,
    mask_of: Callable[[Record], MaskHW | None],
    windows_of: Callable[[Record], dict[int, Window]] | None = None,
    expected: Callable[[str], str] = lambda image_id: "",
) -> tuple[dict[str, Any], SetScores]:
    """Scores, or a :class:`DataError` that says why there are none; ``expected`` says what a missing mask is called."""
    scored = score_set(records, len(records.classes), mask_of, windows_of)
    if not scored.scores.images:
        reasons = "".join(f"; {skip.reason}" for skip in scored.skips[:3])
        hint = expected(scored.without_mask[0]) if scored.without_mask else ""
        raise DataError(
            f"{records.dataset}:{records.split}: nothing to score: of {len(records)} images"
            f" {len(scored.without_truth)} have no truth, {len(scored.without_mask)} no mask, and"
            f" {len(scored.skips)} cannot be used{reasons}{hint}"
        )
    return scored.scores.as_dict(records.classes), scored


def save_scores(path: Path, scores: dict[str, Any], with_crf: dict[str, Any] | None = None) -> None:
    """Write scores as JSON; those of the same masks with a CRF beside them as ``scores_crf``."""
    write_scores_json(path, {"scores": scores} if with_crf is None else {"scores": scores, "scores_crf": with_crf})
