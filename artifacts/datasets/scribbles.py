"""Scribbles for the images of any data set: ``data.scribble_files``.

Three kinds, told by what is there:

* a folder of ScribbleSup files, ``<image id>.xml`` (:mod:`artifacts.datasets.scribblesup`),
* a folder of index masks, ``<image id>.png``: 0 background, 1..K by the class table, 255 not scribbled on,
* a JSON of COCO-style polylines: lists ``images`` (``id``, ``file_name``), ``categories`` (``id``, ``name``) and
  ``annotations`` with ``image_id``, ``category_id`` and ``scribble``, a list of strokes ``[x, y, x, y, ...]`` in
  COCO's frame, where 0.5 is the centre of the first pixel. The category ``background``, or the id 0, is background. An
  ordinary instances file may hold them beside its boxes; annotations without ``scribble`` are passed over.

Files and entries are found by the image's id, else by the end of its path; one that may be several images' is nobody's,
and said. An image without a file (or an entry) has no scribbles. One whose file cannot be used has none either, and a
warning says why: strokes drawn on a picture of another size, as their file states it, too. Strokes that leave their
image are cut off there, with a warning.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.datasets.find import Folder, Names
from artifacts.datasets.paths import Notes, without_suffix
from artifacts.datasets.scribblesup import (
    BACKGROUND,
    BEYOND,
    LOST,
    Strokes,
    WithStrokes,
    beyond,
    check_frame,
    packed,
    read_scribbles,
)
from artifacts.datasets.voc_masks import class_mask_ref
from artifacts.images import image_size_hw
from artifacts.inputs import read_input
from artifacts.records import UNDECIDED, DataError, MaskRef, Record, RecordSet, Scribble

Found = tuple[Scribble, ...] | MaskRef | None
"""Scribbles of one image."""
Numbers = Mapping[str, int]
"""Class name -> class number."""

SAMPLE = 8
"""Index masks that are looked at before any work."""
SHARED = "scribbles that may be several images', taken for none"
UNUSED = "scribbles that are no image's"


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
    names, drawn, load = _reader(path, numbers, origin, notes)
    strokes: list[Strokes | MaskRef | None] = []
    for record, name in zip(records, _names_of(records, names, drawn, notes), strict=True):
        found = None if name is None else _found(functools.partial(load, name), record, path, notes)
        strokes.append(packed(found) if isinstance(found, tuple) else found)
    _say_whole([found for found in strokes if isinstance(found, MaskRef)], path, notes)
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


def _say_whole(masks: Sequence[MaskRef], path: Path, notes: Notes) -> None:
    """Say it where a sample of the index masks leaves no pixel open: drawn on zeros, they would be all background."""
    looked = 0
    for mask in masks[:: max(1, -(-len(masks) // SAMPLE))]:
        try:
            if (mask.load() == UNDECIDED).any():
                return
            looked += 1
        except (DataError, OSError):
            continue  # reported by the stage that draws it
    if looked:
        notes.add(
            "scribbles that may be whole masks",
            f"{path}: {looked} index masks looked at have no pixel 255 (nothing drawn), so all their pixels are labels,"
            " and 0 is background",
        )


def _reader(
    path: Path, numbers: Numbers, origin: int, notes: Notes
) -> tuple[Names, Collection[str], Callable[[str, Record], Found]]:
    """The names at ``path``, those of them that have scribbles, and what reads those of a name and its record."""
    if path.is_file():
        sizes, by_image = read_polylines(path, numbers, notes)

        def strokes(name: str, record: Record) -> Found:
            check_frame(f"{path}: {name}", sizes[name], record)
            return by_image[name]

        return Names([*sizes], str(path)), by_image.keys(), strokes
    if not path.is_dir():
        raise DataError(f"data.scribble_files {path}: no such file or folder")
    both = Folder(path, (".xml", ".png"))
    there = {os.path.splitext(name)[1].lower() for name in both.files}
    if len(there) > 1 or not (there or both.unusable):
        what = "both .xml and .png files" if there else "no .xml and no .png files"
        raise DataError(
            f"data.scribble_files {path}: {what}; expected ScribbleSup files, or index masks, named as images"
        )
    notes.add_all("entry of a folder of scribbles that is not used", [reason for _, reason in both.unusable])
    if there == {".xml"}:
        return both, both.files, lambda name, record: read_scribbles(path / name, numbers, origin=origin, of=record)
    return both, both.files, lambda name, record: _mask(path / name, len(numbers), record)


def _mask(path: Path, count: int, record: Record) -> Found:
    """The reference to an index mask; nothing is decoded here."""
    return class_mask_ref(str(path), count, record.size_hw or image_size_hw(Path(record.image)))


def _names_of(records: RecordSet, names: Names, drawn: Collection[str], notes: Notes) -> list[str | None]:
    """For each record the one of ``drawn`` that its scribbles have; says what is found otherwise, and what is not used.

    The image's id, else the end of its path, as much of it as a name has. Names that are left, with folders that the
    images lack, are found by their ends.
    """
    images = [(record.image_id, record.image) for record in records]
    by_id: dict[str, list[str]] = {}
    for name in names.files:
        by_id.setdefault(names.bare(name), []).append(name)
    found: list[str | None] = []
    for image_id, image in images:
        own = by_id.get(image_id) or by_id.get(without_suffix(image_id)) or ()
        found.append(own[0] if len(own) == 1 else names.find(image, any_ending=True))
    count = Counter(found)
    shared = []
    for row, (one, (image_id, _)) in enumerate(zip(tuple(found), images, strict=True)):
        if one is not None and count[one] > 1 and names.bare(one) != image_id:
            shared.append((one, f"{one!r} fits {image_id!r} and others"))
            found[row] = None
    shared += _find_by_ends(found, [image for _, image in images], names)
    notes.add_all(SHARED, [f"{names.where}: {reason}" for name, reason in shared if name in drawn])
    found = [name if name in drawn else None for name in found]
    for (image_id, image), one in zip(images, found, strict=True):
        bare = "" if one is None else names.bare(one)
        same = f"/{bare}".endswith(f"/{without_suffix(image_id)}") and without_suffix(image).endswith(f"/{bare}")
        if one is not None and bare != image_id and not same:
            notes.add("name found in another spelling", f"{image_id!a} is {one!a} in {names.where}")
    unused = set(drawn) - set(found) - {name for name, _ in shared}
    _say_unused(sorted(unused), Path(records.root), [image for _, image in images], names, notes)
    return found


def _find_by_ends(found: list[str | None], images: Sequence[str], names: Names) -> list[tuple[str, str]]:
    """Give images without a name those that, without leading folders, are theirs alone; (name, reason) of others."""
    taken = set(found)
    left = [name for name in names.files if name not in taken]
    bare = {image: row for row, image in enumerate(images) if found[row] is None}
    if not left or not bare:
        return []
    top = os.path.commonpath([os.path.dirname(image) for image in bare])
    rows = {os.path.relpath(image, top): row for image, row in bare.items()}
    own, refused = Names(rows, top).find_each(left)
    for name, image in own.items():
        found[rows[image]] = name
    return list(refused.items())


def _say_unused(unused: Sequence[str], root: Path, images: Sequence[str], names: Names, notes: Notes) -> None:
    """Say which names are no image's, but for those that are called as an image of another split."""
    every = Folder(root).files if unused and root.is_dir() else []
    others = {_stem(without_suffix(file)) for file in every} - {_stem(without_suffix(image)) for image in images}
    notes.add_all(
        UNUSED, [f"{names.where}: {name!r}" for name in unused if _stem(without_suffix(names.bare(name))) not in others]
    )


def _stem(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].casefold()


def read_polylines(
    path: Path, numbers: Numbers, notes: Notes
) -> tuple[dict[str, tuple[int, int] | None], dict[str, tuple[Scribble, ...]]]:
    """Of all images of a JSON of COCO-style polylines: file name (with slashes) -> stated size, and -> strokes.

    An image with a stroke that cannot be used (unknown category, odd or no finite coordinates) is left out and goes to
    ``notes``. Raises :class:`DataError` for a file without any polylines, ``OSError`` if it cannot be read.
    """
    try:
        document = json.loads(read_input(path))
        images = {one["id"]: str(one["file_name"]).replace("\\", "/") for one in document["images"]}
        sizes = {images[one["id"]]: _stated(one) for one in document["images"]}
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
            lost.setdefault(image, f"{where} ({without_suffix(image)}): {error}")
    notes.add_all(LOST, lost.values())
    usable = {image: tuple(strokes) for image, strokes in found.items() if image not in lost}
    return sizes, usable


def _stated(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of an entry; ``None`` if they are no numbers of pixels."""
    height, width = image.get("height"), image.get("width")
    if not (isinstance(height, int) and isinstance(width, int)) or height < 1 or width < 1:
        return None
    return height, width


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
