"""Single values of a COCO file, read as they are meant: ids, sizes and boxes as text, categories named twice."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts.datasets.paths import Notes
from artifacts.images import pixel_limit
from artifacts.inputs import shown
from artifacts.records import MAX_CLASSES, DataError

OTHER_CLASS = -1
"""Class number of an annotation whose category the wanted class table leaves out: background."""

Box4 = tuple[float, float, float, float]


def plain_id(value: int | str | float) -> int | str:
    """``"1"`` and ``1.0`` are the id 1; any other text stays."""
    if type(value) is int:
        return value
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else value
    return int(value) if float(value).is_integer() else repr(value)


def whole(raw: Any) -> int | None:
    """The whole number that JSON bytes hold, also as text or with ``.0``; ``None`` for anything else."""
    value = _value(raw)
    if isinstance(value, str | float | int):
        found = plain_id(value)
        return found if isinstance(found, int) and abs(found) < 2**63 else None
    return None


def box_xywh(raw: Any) -> Box4 | None:
    """Four finite numbers, also as text, or one text of four; ``None`` for anything else."""
    value = _value(raw)
    if isinstance(value, str):
        value = [part for part in re.split(r"[,;\s]+", value.strip(" []()")) if part]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list) or len(value) != 4:
        return None
    try:
        x, y, width, height = (float(one) for one in value if not isinstance(one, bool))
    except (TypeError, ValueError):
        return None
    return (x, y, width, height) if all(map(math.isfinite, (x, y, width, height))) else None


def image_size(height: Any, width: Any) -> tuple[int, int]:
    """Stated height and width, -1 for what is not stated (null, 0, missing): the picture's header says it.

    Raises :class:`DataError` for a size that no picture has, before anything of that size is made.
    """
    found = []
    for name, raw in (("height", height), ("width", width)):
        value = whole(raw)
        if value is None and _value(raw) is not None:
            raise DataError(f"{name} is {shown(bytes(raw)[:60].decode(errors='replace'))}; expected a number of pixels")
        if value is not None and value < 0:
            raise DataError(f"an image cannot be {value} pixels in {name}")
        found.append(value or -1)
    if max(found) > 2**31 - 1 or found[0] * found[1] > pixel_limit():
        raise DataError(f"states {found[1]:,} x {found[0]:,} pixels, more than {pixel_limit():,}; correct it")
    return found[0], found[1]


def category_names(
    path: Path, items: Sequence[Any], annotations: Any, notes: Notes, wanted: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[int, int], list[dict[str, Any]]]:
    """The class table, category id -> class number, and the entries of the table's classes as the file has them.

    Two ids of one name are one class. The root category that Roboflow writes (the project's name, no annotations, above
    all others) is left out. A category that cannot be read is left out, and its annotations are undecided.
    """
    import msgspec

    class Category(msgspec.Struct):
        id: int | str | float
        name: str
        supercategory: str | None = None

    found: dict[int, Category] = {}
    for index, item in enumerate(items):
        try:
            category = msgspec.json.decode(item, type=Category)
            if not isinstance(number := plain_id(category.id), int):
                raise DataError(f"id {category.id!r} is no whole number")
        except (msgspec.DecodeError, DataError) as error:
            notes.add("category that cannot be read, left out", f"{path}: categories[{index}]: {error}")
            continue
        if number in found:
            notes.add("category id defined twice, the first kept", f"id {number} ({category.name!r})")
        else:
            found[number] = category
    if (root := _root(found, annotations)) is not None:
        notes.add("category above the others, without annotations: left out", f"id {root} ({found[root].name!r})")
        del found[root]
    if not found:
        raise DataError(f"{path}: categories is empty; an instances file names at least one class")
    first: dict[str, int] = {}
    for number in sorted(found):
        name = found[number].name
        if first.setdefault(name, number) != number:
            notes.add("categories of one name, taken as one class", f"{name!r}: ids {first[name]} and {number}")
    classes = wanted or tuple(first)
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{path}: {len(classes)} categories, but a uint8 mask holds at most {MAX_CLASSES}; name those that count"
            " in data.classes"
        )
    if not set(classes) & first.keys():
        raise DataError(f"{path}: not one of its categories {sorted(first)[:20]} is in data.classes {list(classes)}")
    class_of = {name: n for n, name in enumerate(classes, start=1)}
    notes.add_all("category that data.classes leaves out: background", sorted(first.keys() - set(classes)))
    notes.add_all("class of data.classes that the file does not define", [n for n in classes if n not in first])
    entries = []
    for name in classes:
        entry: dict[str, Any] = {"id": first.get(name), "name": name}
        if name in first and (above := found[first[name]].supercategory) is not None:
            entry["supercategory"] = above
        entries.append(entry)
    return classes, {number: class_of.get(c.name, OTHER_CLASS) for number, c in found.items()}, entries


def plain_list(raw: Any) -> list[Any]:
    """A JSON list as it is; an empty one for anything else."""
    value = _value(raw)
    return value if isinstance(value, list) else []


def _root(found: dict[int, Any], annotations: Any) -> int | None:
    """The id of Roboflow's root category: the first, with no category above it and no annotations, and named as
    that of all others, or (with the id 0) as one of them.
    """
    if len(found) < 2:
        return None
    number = min(found)
    root, others = found[number], [c for i, c in found.items() if i != number]
    if root.supercategory not in (None, "", "none"):
        return None
    project = number == 0 and root.name in {c.name for c in others}
    if not project and not all(c.supercategory == root.name for c in others):
        return None
    used = re.compile(rb'"category_id"\s*:\s*"?%d(?:\.0)?"?\s*[,}]' % number)
    return None if used.search(annotations) else number


def _value(raw: Any) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(raw) if memoryview(raw).nbytes else None
    except msgspec.DecodeError:
        return None
