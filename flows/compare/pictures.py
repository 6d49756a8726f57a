"""The pictures of a comparison: every variant's masks of the same images, as one sheet and on the page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import report
from artifacts.cache.runs import RunFolder, read_stamps
from artifacts.cache.store import MaskStore
from artifacts.images import read_image_rgb
from artifacts.objects import unpack_objects
from artifacts.records import DataError, Kind, MaskHW, Record, RecordSet, Sets
from artifacts.report.contact_sheet import Panel, SheetRow
from artifacts.report.picture_list import PICTURES
from artifacts.report.pictures import Layer, ReportPicture
from flows.compare.trials import Attempt, weak_kinds
from flows.compare.variants import Variant
from flows.configure import Job
from tasks.evaluate.finish import shown_label, shown_records
from tasks.evaluate.score import image_miou
from tasks.stage import MASKS

log = logging.getLogger("maskmill")
MOST_COLUMNS = 6
"""Panels side by side on the sheet: a picture that is wider than a screen is not looked at."""
DIFFERENT = 12
"""Pictures of each set that the page shows because the variants differ most on them."""


@dataclass(frozen=True)
class Column:
    """One column of the picture: where its masks lie."""

    panel: str
    address: str
    stamps: str
    array: str = "mask_hw"
    objects: bool = False
    """Whether the stage keeps its objects, too."""


def first_runs(variants: Sequence[Variant], attempts: Sequence[Attempt]) -> list[tuple[Variant, Attempt]]:
    """Each variant with its first seed's run; one whose first seed is not done is left out."""
    done = {(a.variant, a.seed): a for a in attempts if a.status == "done"}
    return [(v, done[v.name, v.seeds[0]]) for v in variants if (v.name, v.seeds[0]) in done]


def draw(path: Path, variants: Sequence[Variant], attempts: Sequence[Attempt], sets: Sets, job: Job) -> dict[str, str]:
    """One row an image, a column a variant: its masks, right of the truth its predictions; by its first seed.

    Masks that several variants share are one column. Of many columns each image takes several lines.
    """
    cache = Path(job.options.cache)
    done = first_runs(variants, attempts)
    if not done:
        return {}
    manifests = {variant.name: RunFolder(cache, attempt.run).manifest() for variant, attempt in done}
    masks, students = _mask_columns(manifests), _prediction_columns(manifests, shown=True)
    kinds: set[Kind] = set()
    for variant, _ in done:
        kinds |= weak_kinds(variant, sets, job.options)[0]
    train, rows = sets.train, []
    kept = _Kept(cache, [*masks, *students])
    for record in shown_records(train):
        try:
            found = [(column.panel, arrays[column.array]) for column, arrays in kept.of(train.key(record))]
            rows.append(_row(record, found, kinds, len(train.classes)))
        except (DataError, OSError) as error:  # a broken image: its stages have skipped it, and its run has reported it
            log.warning("%s: %s left out: %s", path.name, record.image_id, error)
    if not rows:
        return {}
    last = [column.panel for column in students]
    pages = report.contact_sheet(rows, train.classes, path, last=last, most_columns=MOST_COLUMNS)
    return {"picture": ", ".join(str(page) for page in pages)}


def compared_pictures(
    variants: Sequence[Variant], attempts: Sequence[Attempt], sets: Sets, job: Job
) -> report.ReportPictures:
    """The page's pictures: the sheet's, and those on which the variants' own mIoU differ most.

    ``suspicion`` of a picture is that difference, ``score`` the lowest, ``worst`` each variant's.
    """
    cache = Path(job.options.cache)
    done = first_runs(variants, attempts)
    manifests = {variant.name: RunFolder(cache, attempt.run).manifest() for variant, attempt in done}
    scores = {variant.name: _own_scores(attempt) for variant, attempt in done}
    last = {variant.name: attempt.shown[-1] for variant, attempt in done if attempt.shown[-1] != "masks"}
    shown: list[ReportPicture] = []
    counts: dict[str, int] = {}
    parts = (
        (f"masks ({sets.train.split})", sets.train, _mask_columns(manifests), dict.fromkeys(manifests, "masks")),
        (f"students ({sets.val.split})", sets.val, _prediction_columns(manifests), last),
    )
    for of, records, columns, name_of in parts:
        own = _by_image(scores, name_of)
        spread = {image: max(one.values()) - min(one.values()) for image, one in own.items() if len(one) > 1}
        chosen = set(sorted(spread, key=lambda image: (-spread[image], image))[:DIFFERENT])
        if records is sets.train:
            chosen |= {record.image_id for record in shown_records(records)}
        kept = _Kept(cache, columns)
        found = list(_shown(of, records, chosen, kept, own, spread))
        if found:
            shown += found
            counts[of] = len(records)
    return report.ReportPictures(shown, dict.fromkeys(counts, sets.train.classes), counts)


def _shown(
    of: str,
    records: RecordSet,
    chosen: set[str],
    kept: _Kept,
    own: Mapping[str, Mapping[str, float]],
    spread: Mapping[str, float],
) -> Iterator[ReportPicture]:
    k = len(records.classes)
    for record in records.only(chosen):
        try:
            truth_hw = record.truth.load() if record.truth is not None else None
            layers = []
            for column, arrays in kept.of(records.key(record)):
                mask_hw = arrays[column.array]
                score = None if truth_hw is None else image_miou(mask_hw, truth_hw, k)
                name = column.panel if score is None else f"{column.panel}, mIoU {100 * score:.1f}"
                layers.append(Layer(name, mask_hw, unpack_objects(arrays) if column.objects else ()))
            if truth_hw is not None:
                layers.append(Layer("truth", truth_hw))
            scores = own.get(record.image_id, {})
            yield ReportPicture(
                image_id=record.image_id,
                of=of,
                image_rgb=read_image_rgb(Path(record.image)),
                layers=layers,
                path=record.image,
                score=min(scores.values(), default=None),
                suspicion=spread.get(record.image_id),
                worst=sorted(scores.items(), key=lambda one: (one[1], one[0])),
            )
        except (DataError, OSError) as error:
            log.warning("the comparison's page: %s left out: %s", record.image_id, error)


class _Kept:
    """What the columns' stages have left in the cache, image by image."""

    def __init__(self, cache: Path, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.store = MaskStore(cache, readonly=True)
        self.stamps = {column.stamps: read_stamps(cache, column.stamps) for column in columns}

    def of(self, key: str) -> Iterator[tuple[Column, Mapping[str, Any]]]:
        """The columns that have arrays of this image, with these."""
        for column in self.columns:
            stamp, _ = self.stamps[column.stamps].get(key, (None, ""))
            if stamp is not None:
                names = None if column.objects else (column.array,)
                yield column, self.store.read(column.address, key, stamp, names)


def _own_scores(attempt: Attempt) -> dict[str, list[dict[str, Any]]]:
    """Set of masks -> ``image``, ``score`` of each picture, as the run's report has listed them."""
    with suppress(OSError, ValueError):
        found: dict[str, list[dict[str, Any]]] = json.loads((Path(attempt.report).parent / PICTURES).read_text())
        return found
    return {}


def _by_image(
    scores: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], name_of: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Image -> variant -> own mIoU of what ``name_of`` the variant names."""
    found: dict[str, dict[str, float]] = {}
    for variant, name in name_of.items():
        for of, rows in scores[variant].items():
            if of.startswith(f"{name} ("):
                for row in (row for row in rows if row["score"] is not None):
                    found.setdefault(row["image"], {})[variant] = row["score"]
    return found


def _mask_columns(manifests: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The flows' masks; equal ones once, under the first name and the number of the others."""
    names: dict[tuple[str, str, bool], list[str]] = {}
    for name, manifest in manifests.items():
        stage = next((stage for stage in manifest["stages"] if stage["label"] == manifest.get("masks")), None)
        if stage is not None:
            place = stage["address"], stage["stamps"], "objects_flat" in stage["outputs"]
            names.setdefault(place, []).append(name)
    return [
        Column(f"masks: {first}{f' (+{len(others)})' if others else ''}", address, stamps, objects=objects)
        for (address, stamps, objects), (first, *others) in names.items()
    ]


def _prediction_columns(manifests: Mapping[str, Mapping[str, Any]], *, shown: bool = False) -> list[Column]:
    """The predictions without and (where there is one) with a CRF; of the sheet's images if ``shown``."""
    return [
        Column(f"{prediction}{ending}: {name}", stage["address"], stage["stamps"], array)
        for name, manifest in manifests.items()
        for prediction, label in manifest.get("predictions", {}).items()
        for stage in manifest["stages"]
        if stage["label"] == (shown_label(label) if shown else label)
        for array, ending in MASKS.items()
        if array in stage["outputs"]
    ]


def _row(record: Record, masks: Sequence[tuple[str, MaskHW]], kinds: set[Kind], k: int) -> SheetRow:
    truth_hw = record.truth.load() if record.truth is not None else None
    seen = record.view(kinds)
    return SheetRow(
        title=record.image_id,
        image_rgb=read_image_rgb(Path(record.image)),
        panels=[Panel(n, mask, None if truth_hw is None else image_miou(mask, truth_hw, k)) for n, mask in masks],
        truth=truth_hw,
        boxes=seen.boxes or (),
        scribbles=seen.strokes,
        tags=seen.tags or (),
    )
