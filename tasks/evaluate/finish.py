"""The end of every flow: predict on the evaluation split, score, draw, export, write the manifest.

Scoring is no stage: it enters no stamp, and is the only place where truth is read without being declared.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from artifacts import report
from artifacts.cache.store import CorruptSegment
from artifacts.export.dataset import export_run
from artifacts.images import read_image_rgb
from artifacts.objects import unpack_objects
from artifacts.records import DataError, MaskHW, Record, RecordSet
from artifacts.report.contact_sheet import STUDENT, STUDENT_CRF
from tasks.crf.params import CRF_MASK
from tasks.engine.runner import Runner, unique_skips
from tasks.evaluate.object_iou import Window
from tasks.evaluate.score import SetScores, image_miou, score_set
from tasks.stage import FitHandle, Handle, MapHandle, MapStage

log = logging.getLogger("maskmill")
SHEET_ROWS = 8
"""Pictures on the contact sheet: the first train images with objects, the same ones in every run."""


@dataclass(frozen=True)
class Result:
    """What a run gives back: numbers and places, no arrays."""

    run_id: str
    scores: Mapping[str, Mapping[str, Any]]
    """Set of masks -> numbers as in ``Scores.as_dict``: ``"masks (train)"``, what the student learnt from; stages
    before it by their labels, ``"grabcut (train)"``; ``"student (val)"``, ``"student + CRF (val)"``."""
    files: Mapping[str, str]
    manifest: Mapping[str, Any]
    failures: tuple[str, ...] = ()
    """What could not be done at the end (an export to a folder that is not ours, say); the rest stands."""

    def summary(self) -> dict[str, Any]:
        """Plain data for the command's last page and for a flow run's result."""
        return {
            "run": self.run_id,
            "scores": dict(self.scores),
            "files": dict(self.files),
            "stages": self.manifest["stages"],
            "skips": self.manifest["skips"],
            "warnings": self.manifest.get("warnings", []),
            "failures": list(self.failures),
            "seconds": self.manifest["seconds"],
        }


def finish(run: Runner, masks: MapHandle, student: FitHandle, val: RecordSet, predict: MapStage) -> Result:
    """Predict on ``val``, score masks and predictions, draw the contact sheet, export, write the manifest.

    The other stages that gave masks of the training images are scored and drawn beside ``masks``. Where ``predict``
    gives two masks (without and with a CRF), both are scored and shown.
    """
    train = masks.records
    shown = _shown(train)
    predictions = run.map(predict, val, label="student", net=student)
    samples = run.map(predict, shown, label="student-shown", net=student)
    if run.planning:
        return Result("", {}, {}, {"stages": [], "skips": [], "seconds": 0.0})
    out = Path(run.options.out) if run.options.out else run.folder.path
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    before = {f"{h.label} ({train.split})": score_handle(run, h) for h in _mask_stages(run, train) if h is not masks}
    scored = {
        f"masks ({train.split})": score_handle(run, masks),
        **{f"{panel} ({val.split})": score_handle(run, predictions, array) for panel, array in _students(predictions)},
    }
    all_scored = {**before, **scored}
    scores = {name: one.scores.as_dict(train.classes) for name, one in all_scored.items() if one.scores.images}
    for one in all_scored.values():
        run.skips.extend(one.skips)
    files = _draw(run, out, shown, masks, samples, scores)
    warnings = [*train.warnings, *val.warnings, *_unscored(scored)]
    manifest = run.write_manifest(
        "finished", scores=scores, warnings=warnings, masks=masks.label, classes=list(train.classes)
    )
    failures: list[str] = []
    for kind in run.options.export:
        try:
            with mending(run):
                folder = export_run(run.cache, manifest, masks.label, kind, dataset_folder(out, kind))
        except (DataError, OSError) as error:
            # Masks, student and scores are there: an export that fails must not turn them into a failed run.
            failures.append(f"export to {kind} failed: {error}")
            continue
        files[f"dataset ({kind})"] = str(folder)
    files["manifest"] = str(run.folder.path / "manifest.json")
    log.debug("scores, pictures and export took %.1f s", time.monotonic() - started)
    files["report"] = str(_html(run, out, manifest, scores, files))
    return Result(run.folder.run_id, scores, files, manifest, tuple(failures))


def dataset_folder(out: Path, kind: str) -> Path:
    """Where a run's export of one format goes."""
    return out / f"dataset-{kind}"


def _students(predictions: MapHandle) -> list[tuple[str, str]]:
    """Name and array of each mask that the student's stage gives: without a CRF, and with one where there is one."""
    both = [(STUDENT, "mask_hw"), (STUDENT_CRF, CRF_MASK)]
    return [(panel, array) for panel, array in both if array in predictions.stage.outputs]


def score_handle(run: Runner, handle: MapHandle, array: str = "mask_hw") -> SetScores:
    """Scores of a map stage's masks (``array``) over its own records; objects too, where the stage keeps them."""
    with_objects = "objects_flat" in handle.stage.outputs

    def arrays(record: Record, names: tuple[str, ...] | None) -> dict[str, Any] | None:
        key = handle.records.key(record)
        produced = handle.produced.get(key)
        if produced is None or produced.output is None:
            return None
        return read_stored(run, handle, key, produced.stamp, names)

    def mask_of(record: Record) -> MaskHW | None:
        found = arrays(record, (array,))
        return None if found is None else found[array]

    def windows_of(record: Record) -> dict[int, Window]:
        return windows(arrays(record, None) or {})

    return score_set(handle.records, len(handle.records.classes), mask_of, windows_of if with_objects else None)


def windows(arrays: Mapping[str, NDArray[Any]]) -> dict[int, Window]:
    """Object id -> window and mask before painting; empty for an image (or a stage) without objects.

    Of probabilities, those above .5 are the mask.
    """
    if "objects_flat" not in arrays:
        return {}
    return {item.id: (item.window_xyxy, item.mask_hw) for item in unpack_objects(arrays)}


def read_stored(
    run: Runner, handle: MapHandle, key: str, stamp: str, names: tuple[str, ...] | None
) -> dict[str, NDArray[Any]]:
    """Arrays of one image. A damaged segment ends the run, and is put aside so that the next one makes it anew."""
    with mending(run):
        return run.store.read(handle.address, key, stamp, names)


@contextlib.contextmanager
def mending(run: Runner) -> Iterator[None]:
    """Put a segment that turns out to be damaged aside before the error goes on."""
    try:
        yield
    except CorruptSegment as error:
        run.store.quarantine(error.segment)
        raise


def _mask_stages(run: Runner, records: RecordSet) -> list[MapHandle]:
    """The run's stages that gave these records masks, in page order."""
    maps = (handle for handle in run.handles if isinstance(handle, MapHandle))
    return [handle for handle in maps if handle.records is records and "mask_hw" in handle.stage.outputs]


def _shown(train: RecordSet) -> RecordSet:
    """The first records that hold objects: the contact sheet's rows."""
    with_objects = (record for record in train if record.boxes or record.tags or record.scribbles)
    found = list(itertools.islice(with_objects, SHEET_ROWS)) or list(itertools.islice(train, SHEET_ROWS))
    return train.only(record.image_id for record in found)


def _draw(
    run: Runner, out: Path, shown: RecordSet, masks: MapHandle, samples: MapHandle, scores: Mapping[str, Any]
) -> dict[str, str]:
    """Contact sheet, scores.json and the fits' curves; a picture that fails costs a warning, not the run."""
    stages = _mask_stages(run, masks.records)
    rows = []
    for record in shown:
        try:
            rows.append(_row(run, record, stages, samples))
        except (DataError, OSError) as error:
            log.warning("contact sheet: %s left out: %s", record.image_id, error)
    files = {}
    if rows:
        sheet = out / "contact_sheet.png"
        report.contact_sheet(rows, shown.classes, sheet)
        files["contact sheet"] = str(sheet)
    report.write_scores_json(out / "scores.json", scores)
    files["scores"] = str(out / "scores.json")
    return files


def _row(run: Runner, record: Record, stages: list[MapHandle], samples: MapHandle) -> report.SheetRow:
    """One picture: the weak labels that this flow's stages declare, each stage's mask, truth, prediction."""
    truth_hw = record.truth.load() if record.truth is not None else None
    panels = []
    shown = [(handle, handle.label, "mask_hw") for handle in stages]
    for handle, panel, array in [*shown, *((samples, panel, array) for panel, array in _students(samples))]:
        key = handle.records.key(record)
        produced = handle.produced.get(key)
        if produced is None or produced.output is None:
            continue
        mask_hw = read_stored(run, handle, key, produced.stamp, (array,))[array]
        own = None if truth_hw is None else image_miou(mask_hw, truth_hw, len(handle.records.classes))
        panels.append((panel, mask_hw, own))
    seen = record.view({kind for handle in run.handles for kind in handle.stage.reads})
    return report.SheetRow(
        title=record.image_id,
        image_rgb=read_image_rgb(Path(record.image)),
        panels=panels,
        truth=truth_hw,
        boxes=seen.boxes or (),
        scribbles=seen.scribbles or (),
        tags=seen.tags or (),
    )


def _unscored(scored: Mapping[str, SetScores]) -> list[str]:
    """What the numbers leave out, in words."""
    found = []
    for name, one in scored.items():
        if one.without_truth:
            found.append(f"{name}: {len(one.without_truth)} images have no truth mask and are not scored")
        if one.without_mask:
            found.append(f"{name}: {len(one.without_mask)} images with truth got no mask and are not scored")
    return found


def _html(
    run: Runner, out: Path, manifest: Mapping[str, Any], scores: Mapping[str, Any], files: Mapping[str, str]
) -> Path:
    """The report page beside the pictures."""
    curves = {handle.label: Path(handle.path).parent / "curve.png" for handle in _fits(run.handles)}
    return report.html_report(
        out,
        title=f"maskmill {run.flow}",
        manifest=manifest,
        scores=scores,
        files=files,
        curves={label: path for label, path in curves.items() if path.exists()},
        skips=[vars_of(skip) for skip in unique_skips(run.skips)],
    )


def _fits(handles: list[Handle]) -> list[FitHandle]:
    return [handle for handle in handles if isinstance(handle, FitHandle)]


def vars_of(skip: Any) -> dict[str, Any]:
    """A skip as plain data."""
    return {"key": skip.key, "path": skip.path, "reason": skip.reason, "stage": skip.stage}
