"""A COCO instances file as compact columns.

100,000 images are 390 MB of JSON. Python objects for all of it would be 2.3 GB; here each annotation exists as an
object for one chunk only, its segmentation is never decoded (its byte range is kept), and what stays is about
60 bytes an annotation.
"""

# No `from __future__ import annotations` here: msgspec resolves a struct's annotations by the module's globals, and
# msgspec is imported inside functions (a GPU box that trains on stored arrays need not have it).
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.datasets.coco_fields import (
    box_xywh,
    category_names,
    image_size,
    plain_id,
    plain_list,
    whole,
)
from artifacts.datasets.coco_masks import extent_xywh
from artifacts.datasets.paths import Notes
from artifacts.inputs import open_input
from artifacts.records import DataError

MOST_JSON_BYTES = 2**34
CHUNK = 20_000
NO_CATEGORY = 0
"""Class number of an annotation whose category the file does not define."""

_BOM = b"\xef\xbb\xbf"
_EMPTY_SEGMENTATIONS = (b"", b"[]", b"{}", b"null", b"[[]]")

# Python's json module writes NaN and Infinity, which are not JSON. Each is overwritten in place by a string of
# its own length: byte offsets stay true, and a string where a number belongs is a wrong type of that record alone.
_NOT_JSON = re.compile(rb"(?<=[\[,:\s])(?:NaN|-?Infinity)(?=[\s,\]}])")
_STAND_IN = {b"NaN": b'"N"', b"Infinity": b'"Infini"', b"-Infinity": b'"-Infini"'}


@dataclass(frozen=True)
class CocoTable:
    """One COCO file. ``n`` images, ``m`` annotations; annotations are sorted by image, in file order within it."""

    path: str
    file_size: int
    file_mtime_ns: int
    classes: tuple[str, ...]
    """The wanted class table, or the categories in order of their ids: ``classes[i]`` is class number ``i + 1``."""
    file_names: list[str]
    sizes_hw: NDArray[np.int32]
    """(n, 2); -1 where the file gives no size."""
    starts: NDArray[np.int64]
    """(n + 1,): image ``i`` has annotations ``starts[i] : starts[i + 1]``."""
    class_ids: NDArray[np.int16]
    """(m,) class numbers 1..K, or :data:`NO_CATEGORY`, or :data:`OTHER_CLASS`."""
    boxes_xywh: NDArray[np.float64]
    """(m, 4) as in the file; NaN where there is none that can be read."""
    crowd: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    """(m,) first byte of the segmentation in the file."""
    lengths: NDArray[np.int32]
    """(m,) bytes of the segmentation; 0 where there is none."""
    annotation_ids: NDArray[np.int64]
    """(m,) the file's ids; ``-1 - position in the file's list`` where the id is no whole number."""
    labelled: bool
    """Whether the file has an ``annotations`` list at all."""
    bad_images: tuple[tuple[str, str], ...] = ()
    """(place, reason) of image entries that cannot be used."""
    image_ids: list[int | str] = field(default_factory=list)
    """The file's own ids, and with :attr:`origin` what a writer gives back."""
    licences: dict[int, int] = field(default_factory=dict)
    """Row -> the number of its licence."""
    origin: dict[str, Any] = field(default_factory=dict)
    orphans: bool = False
    """Some annotations fit no image: an image without any may be the one that they belong to."""


def annotation_name(annotation_id: int) -> str:
    """How a message names an annotation: by its id, or by its place in the file where it has none."""
    return f"annotation id {annotation_id}" if annotation_id >= 0 else f"annotations[{-1 - annotation_id}]"


def read_table(path: Path, notes: Notes, wanted: tuple[str, ...] = ()) -> CocoTable:
    """Read the COCO instances file ``path``; ``wanted`` is the class table if the file's own is not to be used.

    What concerns one entry (a wrong type, an unknown image or category) goes to ``notes`` or ``bad_images``, and
    the rest is read. Raises :class:`DataError` for what concerns the file: cut off, not JSON, not an
    instances file, no usable category; ``OSError`` if it cannot be read.
    """
    try:
        return _read_table(path, notes, wanted)
    except RecursionError as error:
        raise DataError(f"{path}: a value is nested too deeply; make the file again") from error


def _read_table(path: Path, notes: Notes, wanted: tuple[str, ...]) -> CocoTable:
    with open_input(path, MOST_JSON_BYTES) as file:
        status = os.fstat(file.fileno())
        data, outer = _decode_outer(path, file.read())
    entries = _items(path, "categories", outer.categories)
    classes, class_by_category, categories = category_names(path, entries, outer.annotations, notes, wanted)
    images = _images(path, outer.images)
    columns = _annotations(path, data, outer.annotations, class_by_category, images.rows, notes)
    orphans = bool(columns.pop("orphans").any())
    order = np.argsort(columns.pop("rows"), kind="stable")
    return CocoTable(
        path=str(path),
        file_size=status.st_size,
        file_mtime_ns=status.st_mtime_ns,
        classes=classes,
        file_names=images.names,
        sizes_hw=images.sizes,
        starts=np.concatenate([[0], np.cumsum(columns.pop("per_image"))]).astype(np.int64),
        labelled=memoryview(outer.annotations).nbytes > 0,
        bad_images=tuple(images.bad),
        image_ids=list(images.rows),
        licences=images.licences,
        origin={"categories": categories, "licenses": plain_list(outer.licenses)},
        orphans=orphans,
        **{name: column[order] for name, column in columns.items()},
    )


def _decode_outer(path: Path, data: bytes) -> tuple[bytes | bytearray, Any]:
    """The three lists of the file as raw views into the returned buffer."""
    import msgspec

    class Outer(msgspec.Struct):
        images: msgspec.Raw
        categories: msgspec.Raw
        annotations: msgspec.Raw = msgspec.Raw(b"")
        licenses: msgspec.Raw = msgspec.Raw(b"[]")

    body: memoryview = memoryview(data)[len(_BOM) if data.startswith(_BOM) else 0 :]
    decoder = msgspec.json.Decoder(Outer)
    try:
        try:
            return data, decoder.decode(body)
        except msgspec.DecodeError as error:
            if "malformed" not in str(error) or not _NOT_JSON.search(data):
                raise
            patched = bytearray(data)
            for found in _NOT_JSON.finditer(data):
                patched[found.start() : found.end()] = _STAND_IN[found.group()]
            return patched, decoder.decode(memoryview(patched)[len(data) - len(body) :])
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path}: not a COCO instances file: {error}; expected an object with the lists images, categories and "
            "annotations"
        ) from error
    except msgspec.DecodeError as error:
        if "truncated" in str(error):
            raise DataError(
                f"{path}: cut off at byte {len(data)}, in the middle of a JSON value; copy or download the file again"
            ) from error
        raise DataError(f"{path}: {error}; the file is not JSON there, make it again") from error


def _items(path: Path, name: str, raw: Any) -> list[Any]:
    import msgspec

    try:
        return msgspec.json.decode(raw, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {name}: {error}; expected a list of objects") from error


@dataclass
class _Images:
    names: list[str]
    sizes: NDArray[np.int32]
    rows: dict[int | str, int]
    """Image id -> row."""
    bad: list[tuple[str, str]]
    licences: dict[int, int]


def _images(path: Path, raw: Any) -> _Images:
    """File names, sizes, image id -> row, and the entries that cannot be used."""
    import msgspec

    class Image(msgspec.Struct):
        id: int | str | float
        file_name: str
        height: msgspec.Raw = msgspec.Raw(b"null")
        width: msgspec.Raw = msgspec.Raw(b"null")
        license: msgspec.Raw = msgspec.Raw(b"null")

    decoder = msgspec.json.Decoder(Image)
    found = _Images([], np.zeros((0, 2), np.int32), {}, [], {})
    sizes: list[tuple[int, int]] = []
    for index, item in enumerate(_items(path, "images", raw)):
        place = f"images[{index}]"
        try:
            image = decoder.decode(item)
            size_hw = image_size(image.height, image.width)
        except (msgspec.DecodeError, DataError) as error:
            found.bad.append((place, f"{path}: {place}: {error}"))
            continue
        image_id = plain_id(image.id)
        if image_id in found.rows:
            first = found.names[found.rows[image_id]]
            reason = f"image id {image.id!r} of {image.file_name!r} belongs to {first!r}"
            found.bad.append((place, f"{path}: {place}: {reason}"))
            continue
        if (licence := whole(image.license)) is not None:
            found.licences[len(found.names)] = licence
        found.rows[image_id] = len(found.names)
        found.names.append(image.file_name)
        sizes.append(size_hw)
    found.sizes = np.array(sizes, np.int32).reshape(-1, 2)
    return found


def _annotations(
    path: Path,
    data: bytes | bytearray,
    raw: Any,
    class_by_category: dict[int, int],
    row_by_image: dict[int | str, int],
    notes: Notes,
) -> dict[str, NDArray[Any]]:
    items = _items(path, "annotations", raw) if memoryview(raw).nbytes else []
    base = _address(data)
    parts: list[dict[str, NDArray[Any]]] = [_columns([], base, {}, {}, notes)]
    first_error = ""
    readable = 0
    for start in range(0, len(items), CHUNK):
        chunk = []
        for position, annotation in enumerate(_decode_chunk(items[start : start + CHUNK], notes, start), start):
            if isinstance(annotation, str):
                first_error = first_error or f"annotations[{position}]: {annotation}"
                notes.lose("annotation that cannot be read, left out", f"annotations[{position}]: {annotation}")
            else:
                chunk.append((position, annotation))
        readable += len(chunk)
        parts.append(_columns(chunk, base, class_by_category, row_by_image, notes))
    notes.labels += len(items)
    if items and not readable:
        raise DataError(f"{path}: none of the {len(items)} annotations can be read; the first error: {first_error}")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["per_image"] = np.bincount(columns["rows"], minlength=len(row_by_image))
    return columns


def _decode_chunk(items: Sequence[Any], notes: Notes, start: int) -> Iterator[Any]:
    """Each annotation as an object, or the reason why it cannot be one."""
    import msgspec

    class Annotation(msgspec.Struct):
        image_id: int | str | float
        category_id: int | None
        id: int | str | float | None = None
        bbox: tuple[float, float, float, float] | None = None
        iscrowd: int | bool = 0
        segmentation: msgspec.Raw = msgspec.Raw(b"")

    class Parts(msgspec.Struct):
        image_id: int | str | float
        category_id: msgspec.Raw = msgspec.Raw(b"")
        id: msgspec.Raw = msgspec.Raw(b"")
        bbox: msgspec.Raw = msgspec.Raw(b"null")
        iscrowd: msgspec.Raw = msgspec.Raw(b"0")
        segmentation: msgspec.Raw = msgspec.Raw(b"")

    def salvage(item: Any, position: int) -> Any:
        # One wrong field must not take the rest of the entry along: a category that cannot be read still covers
        # pixels, and a box that cannot be read still has a class. Numbers written as text are numbers.
        try:
            return decoder.decode(item)
        except msgspec.DecodeError as error:
            reason = str(error)
        try:
            found = msgspec.json.decode(item, type=Parts)
        except msgspec.DecodeError:
            return reason
        category, bbox, crowd = whole(found.category_id), box_xywh(found.bbox), whole(found.iscrowd)
        if category is None or (bbox is None and bytes(found.bbox) not in (b"null", b"[]")) or crowd is None:
            notes.add("annotation with a wrong type, the field left out", f"annotations[{position}]: {reason}")
        return Annotation(
            image_id=found.image_id,
            category_id=category,
            id=whole(found.id),
            bbox=bbox,
            iscrowd=crowd or 0,
            segmentation=found.segmentation,
        )

    decoder = msgspec.json.Decoder(Annotation)
    try:
        yield from [decoder.decode(item) for item in items]
    except msgspec.DecodeError:
        yield from [salvage(item, position) for position, item in enumerate(items, start)]


def _columns(
    chunk: Sequence[tuple[int, Any]],
    base: int,
    class_by_category: dict[int, int],
    row_by_image: dict[int | str, int],
    notes: Notes,
) -> dict[str, NDArray[Any]]:
    kept = []
    orphans = 0
    for position, a in chunk:
        if plain_id(a.image_id) not in row_by_image:
            orphans += 1
            notes.lose(
                "annotation for an image that the file does not list, left out", f"{_name(position, a)}: {a.image_id!r}"
            )
            continue
        if a.category_id not in class_by_category:
            notes.lose(
                "annotation of a category that the file does not define, undecided (255) in the truth",
                f"{_name(position, a)}: category {a.category_id!r}",
            )
        if a.iscrowd not in (0, 1):
            notes.add(
                "annotation whose iscrowd is neither 0 nor 1, taken as a crowd", f"{_name(position, a)}: {a.iscrowd}"
            )
        if not any(a.bbox or ()) and (extent := extent_xywh(bytes(a.segmentation))) is not None:
            a.bbox = extent
            notes.add("annotation without a box: that of its segmentation", _name(position, a))
        kept.append((position, a))
    segmentations = [_segmentation(a.segmentation, base) for _, a in kept]
    missing = (float("nan"),) * 4
    return {
        "rows": np.array([row_by_image[plain_id(a.image_id)] for _, a in kept], np.int32),
        "class_ids": np.array([class_by_category.get(a.category_id, NO_CATEGORY) for _, a in kept], np.int16),
        "boxes_xywh": np.array([a.bbox or missing for _, a in kept], np.float64).reshape(-1, 4),
        "crowd": np.array([bool(a.iscrowd) for _, a in kept], np.bool_),
        "offsets": np.array([offset for offset, _ in segmentations], np.int64),
        "lengths": np.array([length for _, length in segmentations], np.int32),
        "annotation_ids": np.array([_number(position, a) for position, a in kept], np.int64),
        "orphans": np.array([orphans > 0], np.bool_),
    }


def _number(position: int, annotation: Any) -> int:
    known = type(annotation.id) is int and 0 <= annotation.id < 2**63
    return annotation.id if known else -1 - position


def _name(position: int, annotation: Any) -> str:
    return annotation_name(_number(position, annotation))


def _segmentation(raw: Any, base: int) -> tuple[int, int]:
    """Offset and length of a segmentation in the file; length 0 for an empty one."""
    length = memoryview(raw).nbytes
    if length < 8 and bytes(raw).translate(None, b" \t\r\n") in _EMPTY_SEGMENTATIONS:
        return 0, 0
    return _address(raw) - base, length


def _address(buffer: Any) -> int:
    """Where a buffer lies in memory: the difference of two is an offset in the file."""
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address
