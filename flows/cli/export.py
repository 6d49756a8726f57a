"""``maskmill export`` and ``maskmill score``: what a finished run left, handed on or measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.cache.runs import find_run, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.datasets import DataParams, read_split
from artifacts.datasets.voc_masks import read_index_png
from artifacts.export.dataset import WRITERS, export_run
from artifacts.records import DataError, MaskHW, Record, RecordSet
from artifacts.report import write_scores_json
from artifacts.report.contact_sheet import STUDENT
from flows.config import ConfigError, Layer, build
from tasks.crf.params import CRF_MASK
from tasks.evaluate.finish import windows
from tasks.evaluate.object_iou import Window
from tasks.evaluate.score import SetScores, score_set


def export(cache: Path, run: str, stage: str, kind: str, to: Path, *, images: bool = True, crf: bool = False) -> Path:
    """Export one stage of one run. ``stage=""``: the masks that the run's student learnt from.

    With ``crf`` the masks that a stage keeps with a dense CRF; ``stage=""`` is the student's then. Raises
    :class:`DataError` if it keeps none.
    """
    if kind not in WRITERS:
        raise ConfigError(f"--format {kind}: expected one of {', '.join(WRITERS)}")
    manifest = finished(cache, run)
    if not crf:
        return export_run(cache, manifest, stage or manifest["masks"], kind, to, with_images=images)
    label = stage or STUDENT
    stages = [one for one in manifest["stages"] if one["kind"] == "map"]
    having = [one["label"] for one in stages if CRF_MASK in kept_arrays(cache, one)]
    if label not in having and label in [one["label"] for one in stages]:
        there = (
            f"name one that does with --stage: {', '.join(having)}" if having else "run it with --set params.crf=NAME"
        )
        raise DataError(f"run {manifest['run']}: --crf: its stage {label!r} keeps no masks with a CRF; {there}")
    return export_run(cache, manifest, label, kind, to, with_images=images, array=CRF_MASK)


def kept_arrays(cache: Path, stage: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the arrays that a map stage keeps for an image."""
    stamps = read_stamps(cache, stage["stamps"])
    one = next(((key, stamp) for key, (stamp, _) in stamps.items() if stamp is not None), None)
    return () if one is None else tuple(MaskStore(cache, readonly=True).read(stage["address"], *one))


def finished(cache: Path, run: str) -> dict[str, Any]:
    """The manifest of a run that came to its end."""
    manifest = find_run(cache, run).manifest()
    if manifest["status"] != "finished":
        raise DataError(
            f"run {manifest['run']} is {manifest['status']} ({manifest['error'] or 'no error noted'});"
            " run the flow again, or name a finished run with --run"
        )
    return manifest


def score_run(
    cache: Path, run: str, stage: str, *, array: str = "mask_hw"
) -> tuple[dict[str, Any], SetScores, tuple[str, ...]]:
    """Scores of one stage of a finished run, by the cache and the data set as they are now.

    ``array`` is which of the stage's masks is scored. The third value names all arrays that the stage keeps.
    """
    manifest = finished(cache, run)
    found = next(
        (s for s in manifest["stages"] if s["label"] == (stage or manifest["masks"]) and s["kind"] == "map"), None
    )
    if found is None:
        labels = ", ".join(s["label"] for s in manifest["stages"] if s["kind"] == "map")
        raise DataError(f"run {manifest['run']}: no map stage {stage!r}; it has {labels}")
    data = build(DataParams, "data", manifest["recipe"], [Layer(manifest["recipe"], f"run {manifest['run']}", {})])
    records = read_split(data, found["split"], cache=cache)
    stamps = read_stamps(cache, found["stamps"])
    store = MaskStore(cache, readonly=True)

    def mask_of(record: Record) -> MaskHW | None:
        stamp, _ = stamps.get(records.key(record), (None, ""))
        if stamp is None:
            return None
        return store.read(found["address"], records.key(record), stamp, (array,))[array]

    def windows_of(record: Record) -> dict[int, Window]:
        stamp, _ = stamps.get(records.key(record), (None, ""))
        arrays = {} if stamp is None else store.read(found["address"], records.key(record), stamp)
        return windows(arrays)

    kept = kept_arrays(cache, found)
    return *_scored(records, mask_of, windows_of if "objects_flat" in kept else None), kept


def score_folder(data: DataParams, split: str, masks: Path, cache: Path) -> tuple[dict[str, Any], SetScores]:
    """Scores of a folder of index PNGs named ``<image id>.png`` against the data set's truth."""
    if not masks.is_dir():
        raise DataError(f"--masks {masks}: no such folder; expected index PNGs named <image id>.png")
    records = read_split(data, split, cache=cache)

    def mask_of(record: Record) -> MaskHW | None:
        path = masks / f"{record.image_id}.png"
        if record.truth is None or not path.exists():
            return None
        height, width = record.truth.load().shape
        return np.asarray(read_index_png(str(path), (height, width)))

    return _scored(records, mask_of)


def _scored(
    records: RecordSet,
    mask_of: Callable[[Record], MaskHW | None],
    windows_of: Callable[[Record], dict[int, Window]] | None = None,
) -> tuple[dict[str, Any], SetScores]:
    scored = score_set(records, len(records.classes), mask_of, windows_of)
    if not scored.scores.images:
        raise DataError(
            f"{records.dataset}:{records.split}: nothing to score: of {len(records)} images"
            f" {len(scored.without_truth)} have no truth and {len(scored.without_mask)} no mask"
        )
    return scored.scores.as_dict(records.classes), scored


def save_scores(path: Path, scores: dict[str, Any], with_crf: dict[str, Any] | None = None) -> None:
    """Write scores as JSON; those of the same masks with a CRF beside them as ``scores_crf``."""
    write_scores_json(path, {"scores": scores} if with_crf is None else {"scores": scores, "scores_crf": with_crf})
