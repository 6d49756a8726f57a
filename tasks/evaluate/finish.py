"""The end of every flow: evaluate, draw, export, write the manifest. :func:`finish` does all; each works alone.

Scoring is no stage: it enters no stamp, and is the only place where truth is read without being declared.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts import report
from artifacts.cache.runs import run_before
from artifacts.export.dataset import export_run
from artifacts.images import read_image_rgb
from artifacts.records import DataError, Kind, MaskHW, Record, RecordSet, Sets, shown
from tasks.engine.runner import Runner
from tasks.engine.stage_report import plain_skip, unique_skips
from tasks.evaluate.confidence import doubts_of
from tasks.evaluate.object_iou import Window, windows
from tasks.evaluate.report_pictures import report_pictures
from tasks.evaluate.score import SetScores, image_miou, score_set
from tasks.evaluate.stored import mending, read_stored
from tasks.stage import MASKS, FitHandle, Handle, MapHandle, first_of

log = logging.getLogger("maskmill")
SHEET_ROWS = 8
"""Pictures on the contact sheet: the first train images with objects, the same ones in every run."""


@dataclass(frozen=True)
class Result:
    """What a run gives back: numbers and places, no arrays."""

    run_id: str
    scores: Mapping[str, Mapping[str, Any]]
    """Set of masks -> numbers as in ``Scores.as_dict``: other stages by their labels, ``"grabcut (train)"``,
    ``"generator@2 (train)"``; the flow's masks, ``"masks (train)"``; predictions by their names, ``"student (val)"``,
    ``"student + CRF (val)"``."""
    files: Mapping[str, str]
    manifest: Mapping[str, Any]
    failures: tuple[str, ...] = ()
    """What failed at the end (e.g. an export to a foreign folder); all other results are valid."""

    def summary(self) -> dict[str, Any]:
        """Plain data for the command's summary and for a flow run's result."""
        return {
            "run": self.run_id,
            "scores": dict(self.scores),
            "files": dict(self.files),
            "stages": self.manifest["stages"],
            "skips": self.manifest["skips"],
            "warnings": self.manifest.get("warnings", []),
            "data": self.manifest.get("data", {}),
            "failures": list(self.failures),
            "seconds": self.manifest["seconds"],
        }

    def _repr_html_(self) -> Any:
        return shown("manifest_html", self.manifest)


@dataclass(frozen=True)
class Evaluation:
    """Scores of all masks of a run."""

    scores: Mapping[str, Mapping[str, Any]]
    """As in :class:`Result`; sets of masks without any truth are left out."""
    warnings: tuple[str, ...] = ()
    """What the numbers of masks and predictions leave out, as text."""
    judged: Mapping[str, MapHandle] = field(default_factory=dict, repr=False)
    """Name in the scores -> the flow's masks and predictions, with truth or without."""
    sets: Mapping[str, SetScores] = field(default_factory=dict, repr=False)
    """Name in the scores -> matrix, and scores image by image."""


def finish(
    run: Runner,
    sets: Sets,
    masks: MapHandle | None = None,
    predictions: Mapping[str, MapHandle] | None = None,
    *,
    warnings: Sequence[str] = (),
) -> Result:
    """Score, draw and export what a flow made; write its manifest and report.

    Args:
        run: its other map stages over a whole set are scored and drawn, too.
        sets: the flow's.
        masks: of the training images, to be exported. ``None``: the run ended before there were any.
        predictions: name -> masks of the evaluation images. One that keeps a second mask with a CRF is scored in both.
        warnings: what a reader of the scores has to know.

    Raises ``ValueError`` where two sets of masks would have one name in the scores, or ``masks`` are of no stage.
    """
    predictions = predictions or {}
    if masks is not None and not any(masks is handle for handle in run.handles):
        raise ValueError(f"{masks.label!r} is no stage of this run, so it cannot be exported: name one that is")
    run.ending = True
    _scored(run, sets, masks, predictions)
    samples = sample(run, sets, predictions)
    if run.planning:
        return Result("", {}, {}, {"stages": [], "skips": [], "seconds": 0.0})
    out = Path(run.options.out) if run.options.out else run.folder.path
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found = evaluate(run, sets, masks, predictions)
    found = replace(found, warnings=(*warnings, *found.warnings))
    files = draw(run, sets, samples, out)
    files["scores"] = str(out / "scores.json")
    report.write_scores_json(out / "scores.json", found.scores)
    manifest = write_manifest(run, sets, masks, predictions, found)
    exported, failures = export(run, manifest, out)
    files |= exported
    files["manifest"] = str(run.folder.path / "manifest.json")
    log.debug("scores, pictures and export took %.1f s", time.monotonic() - started)
    files["report"] = str(_html(run, out, manifest, found, files))
    return Result(run.folder.run_id, found.scores, files, manifest, failures)


def so_far(run: Runner, sets: Sets) -> tuple[MapHandle | None, dict[str, MapHandle]]:
    """For a page that ended early: the last masks of the training images; predictions by the labels of their stages."""
    maps = [h for h in run.handles if isinstance(h, MapHandle) and MASKS.keys() & set(h.stage.outputs)]
    masks = [handle for handle in maps if handle.records is sets.train]
    return masks[-1] if masks else None, {handle.label: handle for handle in maps if handle.records is sets.val}


def evaluate(
    run: Runner, sets: Sets, masks: MapHandle | None = None, predictions: Mapping[str, MapHandle] | None = None
) -> Evaluation:
    """Score all masks that the run made of a whole set. Images that cannot be scored are entered into ``run.skips``."""
    named = {id(masks), *(id(handle) for handle in (predictions or {}).values())}
    scores: dict[str, Mapping[str, Any]] = {}
    judged: dict[str, MapHandle] = {}
    sets_scored: dict[str, SetScores] = {}
    warnings: list[str] = []
    for name, (handle, array) in _scored(run, sets, masks, predictions or {}).items():
        found = score_handle(run, handle, array)
        run.skips.extend(found.skips)
        if found.scores.images:
            scores[name] = found.scores.as_dict(handle.records.classes)
            sets_scored[name] = found
        if id(handle) in named:
            warnings += _unscored(name, found) + _nothing_found(name, found)
            if array == "mask_hw":
                judged[name] = handle
    return Evaluation(scores, tuple(warnings), judged, sets_scored)


def _scored(
    run: Runner, sets: Sets, masks: MapHandle | None, predictions: Mapping[str, MapHandle]
) -> dict[str, tuple[MapHandle, str]]:
    """Name in the scores -> where the masks are: other stages of the run in page order, the masks, predictions."""
    given = [*([("masks", masks)] if masks is not None else []), *predictions.items()]
    ids = {id(handle) for _, handle in given}
    maps = [handle for handle in run.handles if isinstance(handle, MapHandle) and id(handle) not in ids]
    found: dict[str, tuple[MapHandle, str]] = {}
    for name, handle in [*((h.label, h) for h in maps if sets.name_of(h.records)), *given]:
        for array, ending in MASKS.items():
            if array in handle.stage.outputs:
                split = "aux" if handle.records is sets.aux else handle.records.split
                full = f"{name}{ending} ({split})"
                if full in found:
                    raise ValueError(f"two sets of masks are called {full!r}: a prediction needs a name of its own")
                found[full] = handle, array
    return found


def sample(run: Runner, sets: Sets, predictions: Mapping[str, MapHandle]) -> dict[str, MapHandle]:
    """The predictions for the contact sheet's images: the same stages, as labels with ``-shown``."""
    shown = shown_records(sets.train)
    done: dict[int, MapHandle] = {}

    def over_shown(handle: MapHandle) -> MapHandle:
        if id(handle) not in done:
            above = {role: over_shown(h) if isinstance(h, MapHandle) else h for role, h in handle.upstream.items()}
            if handle.stage.function:
                done[id(handle)] = run.map(handle.stage, shown, label=shown_label(handle.label), **above)
            else:
                done[id(handle)] = first_of(*(h for h in above.values() if isinstance(h, MapHandle)))
        return done[id(handle)]

    return {name: over_shown(handle) for name, handle in predictions.items()}


def shown_label(label: str) -> str:
    """Label of a prediction's stage -> label of the stage that predicts the contact sheet's images."""
    return f"{label}-shown"


def shown_records(train: RecordSet) -> RecordSet:
    """The first records that hold objects: the contact sheet's rows."""
    with_objects = (record for record in train if record.boxes or record.tags or record.scribbles)
    found = list(itertools.islice(with_objects, SHEET_ROWS)) or list(itertools.islice(train, SHEET_ROWS))
    return train.only(record.image_id for record in found)


def write_manifest(
    run: Runner,
    sets: Sets,
    masks: MapHandle | None = None,
    predictions: Mapping[str, MapHandle] | None = None,
    found: Evaluation | None = None,
) -> dict[str, Any]:
    """The manifest of a finished run; one written after a later error or signal says the same."""
    warnings = list(dict.fromkeys(warning for records in sets for warning in records.warnings))
    if masks is None and run.options.export:
        warnings.append("no dataset was exported: the run ended before there were masks of the training images")
    run.facts |= {
        "masks": "" if masks is None else masks.label,
        "predictions": {name: handle.label for name, handle in (predictions or {}).items()},
        "scores": {} if found is None else found.scores,
        "corrected": sorted(sets.train.key(record) for record in sets.train if record.corrected is not None),
        "warnings": [*warnings, *(found.warnings if found is not None else ())],
    }
    return run.write_manifest("finished")


def export(
    run: Runner, manifest: Mapping[str, Any], out: Path, label: str = ""
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Export the masks (or stage ``label``) in the formats that the run's options name, each to a folder in ``out``.

    Returns name -> path of each export, and the failures. Masks and scores are complete by then: a failed export must
    not turn them into a failed run.
    """
    files: dict[str, str] = {}
    failures: list[str] = []
    label = label or manifest["masks"]
    for kind in run.options.export if label else ():
        try:
            with mending(run):
                to, doubts = dataset_folder(out, kind), doubts_of(run.store, manifest, label)
                folder = export_run(run.cache, manifest, label, kind, to, val=run.val, doubts=doubts)
        except (DataError, OSError) as error:
            failures.append(f"export to {kind} failed: {error}")
            continue
        files[f"dataset ({kind})"] = str(folder)
    return files, tuple(failures)


def dataset_folder(out: Path, kind: str) -> Path:
    """Where a run's export of one format goes."""
    return out / f"dataset-{kind}"


def score_handle(run: Runner, handle: MapHandle, array: str = "mask_hw") -> SetScores:
    """Scores of a map stage's masks (``array``) over its own records; objects too, where the stage keeps them."""
    with_objects = array == "mask_hw" and "objects_flat" in handle.stage.outputs

    def arrays(record: Record, names: tuple[str, ...] | None) -> dict[str, Any] | None:
        return read_stored(run, handle, record, names)

    def mask_of(record: Record) -> MaskHW | None:
        found = arrays(record, (array,))
        return None if found is None else found[array]

    def windows_of(record: Record) -> dict[int, Window]:
        return windows(arrays(record, None) or {})

    return score_set(handle.records, len(handle.records.classes), mask_of, windows_of if with_objects else None)


def draw(run: Runner, sets: Sets, samples: Mapping[str, MapHandle], out: Path) -> dict[str, str]:
    """Write ``out/contact_sheet.png``: masks and heat maps of all stages over the training images, and predictions.

    ``samples`` are predictions as :func:`sample` gives them; they stand right of the truth. A picture that fails costs
    a warning, not the run. Returns name -> path of what was written.
    """
    stages = [h for h in run.handles if isinstance(h, MapHandle) and h.records is sets.train]
    columns = [column for handle in stages for column in _columns(handle, handle.label)]
    last = [column for name, handle in samples.items() for column in _columns(handle, name)]
    kinds = read_of(run.handles, sets.train)
    rows = []
    for record in shown_records(sets.train):
        try:
            rows.append(_row(run, record, [*columns, *last], kinds))
        except (DataError, OSError) as error:
            log.warning("contact sheet: %s left out: %s", record.image_id, error)
    if not rows:
        return {}
    sheet = out / "contact_sheet.png"
    report.contact_sheet(rows, sets.train.classes, sheet, last=[panel for _, panel, _ in last])
    return {"contact sheet": str(sheet)}


Column = tuple[MapHandle, str, str]
"""Where a panel's arrays are, its name, which of the stage's arrays."""


def _columns(handle: MapHandle, name: str) -> list[Column]:
    masks = [(handle, f"{name}{ending}", array) for array, ending in MASKS.items() if array in handle.stage.outputs]
    return masks + [(handle, f"{name}: {array.rpartition('_')[0] or array}", array) for array in handle.stage.heat]


def read_of(handles: Iterable[Handle], records: RecordSet) -> set[Kind]:
    """The label kinds that stages read of a set, or of a part of it: what its pictures may show."""
    whole = (records.dataset, records.split)
    of_set = (h for h in handles if h.records is not None and (h.records.dataset, h.records.split) == whole)
    return {kind for handle in of_set for kind in handle.stage.reads}


def _row(run: Runner, record: Record, columns: list[Column], kinds: Collection[Kind]) -> report.SheetRow:
    """One picture: the weak labels that this flow's stages declare, each stage's masks and heat maps, truth."""
    truth_hw = record.truth.load() if record.truth is not None else None
    panels = []
    for handle, name, array in columns:
        with_classes = array in handle.stage.heat and "classes_c" in handle.stage.outputs
        stored = read_stored(run, handle, record, (array, "classes_c") if with_classes else (array,))
        if stored is None:
            continue
        own = None
        if truth_hw is not None and array in MASKS:
            own = image_miou(stored[array], truth_hw, len(handle.records.classes))
        shown = stored[array]
        if array in handle.stage.heat and shown.dtype.kind == "u":
            shown = shown / 255
        panels.append(report.Panel(name, shown, own, tuple(stored.get("classes_c", ()))))
    seen = record.view(kinds)
    return report.SheetRow(
        title=record.image_id,
        image_rgb=read_image_rgb(Path(record.image)),
        panels=panels,
        truth=truth_hw,
        boxes=seen.boxes or (),
        scribbles=seen.strokes,
        tags=seen.tags or (),
    )


def _unscored(name: str, one: SetScores) -> list[str]:
    """What the numbers leave out, as text."""
    counts = (
        (len(one.without_truth), "images have no truth mask and are not scored"),
        (len(one.without_mask), "images with truth got no mask and are not scored"),
    )
    return [f"{name}: {count} {what}" for count, what in counts if count]


def _nothing_found(name: str, one: SetScores) -> list[str]:
    """A word where every mask is background and the truth is not: a number alone would look like a poor network."""
    matrix = one.scores.matrix
    if matrix[:, 1:].any() or not matrix[1:].any():
        return []
    return [f"{name}: all masks are background; no class of the labels is left in any"]


def _html(run: Runner, out: Path, manifest: Mapping[str, Any], found: Evaluation, files: dict[str, str]) -> Path:
    """The report page beside the pictures; every picture's score and suspicion in ``pictures.json``."""
    curves = {handle.label: Path(handle.path).parent / "curve.png" for handle in _fits(run.handles)}
    pictures, every = report_pictures(run, found.judged, found.sets, manifest)
    if any(every.values()):
        report.write_picture_list(out / report.PICTURES, every)
        files["pictures"] = str(out / report.PICTURES)
    return report.html_report(
        out,
        title=f"maskmill {run.flow}",
        manifest=manifest,
        scores=found.scores,
        files=files,
        curves={label: path for label, path in curves.items() if path.exists()},
        skips=[plain_skip(skip) for skip in unique_skips(run.skips)],
        pictures=report.ReportPictures(
            pictures,
            {name: handle.records.classes for name, handle in found.judged.items()},
            {name: len(rows) for name, rows in every.items()},
        ),
        matrices={
            name: report.Confusion(handle.records.classes, found.sets[name].scores.matrix.tolist())
            for name, handle in found.judged.items()
            if name in found.sets
        },
        before=run_before(run.folder, run.flow, run.recipe.get("data", {}).get("source")),
    )


def _fits(handles: list[Handle]) -> list[FitHandle]:
    return [handle for handle in handles if isinstance(handle, FitHandle)]
