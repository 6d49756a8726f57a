"""The pictures of the report: the worst by score and the most suspicious of each set of masks, and a list of all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.images import read_image_rgb
from artifacts.objects import Object, unpack_objects
from artifacts.records import DataError, Record
from artifacts.report.picture_list import PictureRow
from artifacts.report.pictures import Layer, ReportPicture
from tasks.engine.runner import Runner
from tasks.evaluate.run_suspicion import Suspect, sampled, suspects
from tasks.evaluate.score import SetScores
from tasks.evaluate.stored import mending, read_stored
from tasks.stage import MapHandle

log = logging.getLogger("maskmill")


def report_pictures(
    run: Runner, judged: Mapping[str, MapHandle], scored: Mapping[str, SetScores], manifest: Mapping[str, Any]
) -> tuple[Iterator[ReportPicture], dict[str, list[PictureRow]]]:
    """Pictures to show, and for each set of masks a row of every picture.

    How many are shown is the run's option ``report_pictures``.

    Args:
        run: ended, its manifest written.
        judged: name in the scores (``masks (train)``) -> handle.
        scored: name in the scores -> scores, image by image.
        manifest: the run's.
    """
    chosen: list[tuple[str, MapHandle, Record, float | None, Suspect | None]] = []
    rows: dict[str, list[PictureRow]] = {}
    for name, handle in judged.items():
        of_key = {handle.records.key(record): record for record in handle.records}
        own = scored[name].image_miou if name in scored else {}
        keys = [key for key, made in handle.produced.items() if made.output is not None and key in of_key]
        sample = sampled(keys)
        try:
            with mending(run):
                doubt = suspects(run.store, manifest, handle.label, only=sample)
        except (DataError, OSError, KeyError) as error:
            log.warning("%s: no suspicion: %s", name, error)
            doubt = {}
        score = {key: own.get(of_key[key].image_id) for key in keys}
        rows[name] = [
            (of_key[key].image_id, score[key], round(doubt[key].suspicion, 4) if key in doubt else None) for key in keys
        ]
        by_score = sorted((value, key) for key, value in score.items() if value is not None)
        by_doubt = sorted((-one.suspicion, key) for key, one in doubt.items())
        each = run.options.report_pictures
        worst = dict.fromkeys([key for _, key in by_score[:each]] + [key for _, key in by_doubt[:each]])
        chosen += [(name, handle, of_key[key], score[key], doubt.get(key)) for key in worst]
    return _shown(run, chosen), rows


def _shown(
    run: Runner, chosen: Iterable[tuple[str, MapHandle, Record, float | None, Suspect | None]]
) -> Iterator[ReportPicture]:
    """The pictures one by one; what cannot be read is said and left out."""
    for name, handle, record, score, doubt in chosen:
        try:
            yield _picture(run, name, handle, record, score, doubt)
        except (DataError, OSError) as error:
            log.warning("report: %s left out: %s", handle.records.key(record), error)


def _picture(
    run: Runner, name: str, handle: MapHandle, record: Record, score: float | None, doubt: Suspect | None
) -> ReportPicture:
    others = [
        other
        for other in run.handles
        if isinstance(other, MapHandle) and other is not handle and other.records is handle.records
    ]
    layers = [
        Layer(one.label, stored["mask_hw"], _objects(stored))
        for one in [handle, *others]
        if "mask_hw" in one.stage.outputs and (stored := read_stored(run, one, record, None)) is not None
    ]
    if record.truth is not None:
        layers.append(Layer("truth", record.truth.load()))
    classes = handle.records.classes
    worst = [(classes[class_id - 1], value) for _, class_id, value, _ in (doubt.objects if doubt else ())[:3]]
    return ReportPicture(
        image_id=record.image_id,
        of=name,
        image_rgb=read_image_rgb(Path(record.image)),
        layers=layers,
        path=record.image,
        score=score,
        suspicion=None if doubt is None else doubt.suspicion,
        worst=worst,
    )


def _objects(stored: Mapping[str, Any]) -> Sequence[Object]:
    return unpack_objects(stored) if "objects_flat" in stored else ()
