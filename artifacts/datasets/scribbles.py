"""Scribbles for the images of any data set: ``data.scribble_files``.

Three kinds, told by what is there:

* a folder of ScribbleSup files, ``<image id>.xml`` (:mod:`artifacts.datasets.scribblesup`),
* a folder of index masks, ``<image id>.png``: 0 background, 1..K by the class table, 255 not scribbled on,
* a JSON of COCO-style polylines: lists ``images`` (``id``, ``file_name``), ``categories`` (``id``, ``name``) and
  ``annotations`` with ``image_id``, ``category_id`` and ``scribble``, a list of strokes ``[x, y, x, y, ...]`` in
  COCO's frame, where 0.5 is the centre of the first pixel. The category ``background``, or the id 0, is background. An
  ordinary instances file may hold them beside its boxes; annotations without ``scribble`` are passed over.

An image without a file (or an entry) has no scribbles. One whose file cannot be used has none either, and a warning
says why. Strokes that leave their image are cut off there, with a warning.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.datasets.paths import Notes, without_suffix
from artifacts.datasets.scribblesup import (
    BACKGROUND,
    BEYOND,
    LOST,
    Strokes,
    WithStrokes,
    beyond,
    packed,
    read_scribbles,
)
from artifacts.datasets.voc_masks import class_mask_ref
from artifacts.images import image_size_hw
from artifacts.inputs import read_input
from artifacts.records import DataError, MaskRef, Record, RecordSet, Scribble

Found = tuple[Scribble, ...] | MaskRef | None
"""Scribbles of one image."""
Numbers = Mapping[str, int]
"""Class name -> class number."""


def with_scribbles(records: RecordSet, place: str, *, origin: int = 0) -> RecordSet:
    """The same images, which have no scribbles of their own, with those that lie at ``place``.

    Args:
        records: of any format.
        place: a folder or a JSON file, see the top of the module.
        origin: number of the first pixel in ScribbleSup files.

    Raises:
        DataError: nothing there, both kinds of files in the folder, or a JSON that holds no polylines.
        OSError: the place cannot be read.
    """
    path = Path(place).expanduser()
    numbers = {name: number for number, name in enumerate(records.classes, 1)}
    notes = Notes()
    find = _reader(path, numbers, origin, notes)
    strokes: list[Strokes | MaskRef | None] = []
    for record in records:
        found = _found(find, record, path, notes)
        strokes.append(packed(found) if isinstance(found, tuple) else found)
    together = WithStrokes(records.records, strokes)
    return replace(records, records=together, warnings=(*records.warnings, *notes.lines()))


def _found(find: Callable[[Record], Found], record: Record, path: Path, notes: Notes) -> Found:
    try:
        found = find(record)
        size_hw = record.size_hw or image_size_hw(Path(record.image)) if found else None
    except (DataError, OSError) as error:  # costs this image its scribbles; its other labels may be good
        notes.add(LOST, str(error))
        return None
    if isinstance(found, tuple) and size_hw is not None and (where := beyond(found, size_hw)):
        notes.add(BEYOND, f"{path}: {record.image_id}: {where}")
    return found


def _reader(path: Path, numbers: Numbers, origin: int, notes: Notes) -> Callable[[Record], Found]:
    if path.is_file():
        by_image = read_polylines(path, numbers, notes)
        return lambda record: by_image.get(record.image_id, by_image.get(record.image_id.rpartition("/")[2]))
    if not path.is_dir():
        raise DataError(f"data.scribble_files {path}: no such file or folder")
    there = {os.path.splitext(name)[1] for _, _, names in os.walk(path) for name in names} & {".xml", ".png"}
    if len(there) != 1:
        what = "both .xml and .png files" if there else "no .xml and no .png files"
        raise DataError(
            f"data.scribble_files {path}: {what}; expected ScribbleSup files, or index masks, named as images"
        )
    if there == {".xml"}:
        return lambda record: _strokes(path / f"{record.image_id}.xml", numbers, origin)
    return lambda record: _mask(path / f"{record.image_id}.png", len(numbers), record)


def _strokes(path: Path, numbers: Numbers, origin: int) -> Found:
    return read_scribbles(path, numbers, origin=origin) if path.is_file() else None


def _mask(path: Path, count: int, record: Record) -> Found:
    """The reference to an index mask; nothing is decoded here."""
    if not path.is_file():
        return None
    return class_mask_ref(str(path), count, record.size_hw or image_size_hw(Path(record.image)))


def read_polylines(path: Path, numbers: Numbers, notes: Notes | None = None) -> dict[str, tuple[Scribble, ...]]:
    """Image (its file name without suffix) -> strokes, of a JSON of COCO-style polylines.

    An image with a stroke that cannot be used (unknown category, odd or no finite coordinates) is left out and goes to
    ``notes``. Raises :class:`DataError` for a file without any polylines, ``OSError`` if it cannot be read.
    """
    notes = notes or Notes()
    try:
        document = json.loads(read_input(path))
        images = {one["id"]: without_suffix(str(one["file_name"])) for one in document["images"]}
        names = {one["id"]: str(one["name"]) for one in document.get("categories", ())}
        annotations = [one for one in document["annotations"] if "scribble" in one]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: no JSON of COCO-style polylines ({error!r}): images, categories, annotations"
        ) from None
    if not annotations:
        raise DataError(f"{path}: none of its annotations has a scribble")
    found: dict[str, list[Scribble]] = {}
    lost: dict[str, str] = {}
    for place, annotation in enumerate(annotations):
        where = f"{path}: annotation {annotation.get('id', place)}"
        image_id = annotation.get("image_id")
        image = images.get(image_id) if isinstance(image_id, (int, str)) else None
        if image is None:
            notes.add("scribbles of an image that the file does not list", f"{where}: {image_id!r}")
            continue
        try:
            found.setdefault(image, []).extend(_polylines(annotation, names, numbers))
        except ValueError as error:
            lost.setdefault(image, f"{where} ({image}): {error}")
    notes.add_all(LOST, lost.values())
    return {image: tuple(strokes) for image, strokes in found.items() if image not in lost}


def _polylines(annotation: Mapping[str, Any], names: Mapping[Any, str], numbers: Numbers) -> list[Scribble]:
    category = annotation.get("category_id")
    if not isinstance(category, (int, str)):
        raise ValueError(f"category_id must be a category's id, not {category!r}")
    name = names.get(category, BACKGROUND if category == 0 else None)
    number = 0 if name == BACKGROUND else numbers.get(str(name))
    if number is None:
        raise ValueError(f"the unknown class {name or category!r}; the classes are {', '.join(numbers) or 'none'}")
    strokes = annotation["scribble"]
    if not isinstance(strokes, list) or not all(isinstance(stroke, list) for stroke in strokes):
        raise ValueError("scribble must be a list of strokes [x, y, x, y, ...]")
    found = []
    for stroke in strokes:
        if len(stroke) % 2 or not all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in stroke):
            raise ValueError(f"a stroke must be finite numbers x, y, x, y, ..., not {stroke}")
        points = zip(stroke[::2], stroke[1::2], strict=True)
        if stroke:
            found.append(Scribble(number, tuple((x - 0.5, y - 0.5) for x, y in points)))
    return found
