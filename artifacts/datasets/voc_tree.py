"""The parts of a VOC tree: the root, the class table, tags, SBD beside it."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from artifacts.datasets.find import Folder, child
from artifacts.datasets.paths import Notes
from artifacts.datasets.splits import numbered_lines, read_names, read_text
from artifacts.datasets.tag_cells import split_tags
from artifacts.datasets.voc_lists import read_class_lists
from artifacts.datasets.voc_xml import read_annotation
from artifacts.inputs import MOST_TEXT_BYTES, read_input
from artifacts.records import UNDECIDED, DataError

VOC_CLASSES: tuple[str, ...] = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

CLASS_FILES = ("classes.txt", "labels.txt", "class_names.txt")
LABELMAP = "labelmap.txt"
"""CVAT's class table: ``name:red,green,blue:parts:actions`` a line; its masks are colours, in any order."""
NO_CLASS = frozenset({"background", "_background_", "__background__", "__ignore__", "_ignore_"})
"""Lines of a class file that name no class, in lower case."""

_ANY_CASE = "".join(f"[{letter}{letter.swapcase()}]" for letter in "JPEGImages")

EXPECTED = """\
  JPEGImages/<id>.jpg
  Annotations/<id>.xml
  ImageSets/Segmentation/<split>.txt
  SegmentationClass/<id>.png          (masks, if there are any)"""


def find_root(place: str) -> Path:
    """The folder that holds ``JPEGImages``: ``place``, or the only such folder one or two levels below.

    Raises :class:`DataError` that shows what was expected, what was found, and the likely fix.
    """
    start = Path(os.path.abspath(os.path.expanduser(place)))
    if not start.is_dir():
        raise DataError(f"voc:{place}: {start} is {'a file, not' if start.exists() else 'not there, or not'} a folder")
    if child(start, "JPEGImages").is_dir():
        return start
    found = sorted({folder.parent for up in ("*/", "*/*/") for folder in start.glob(f"{up}{_ANY_CASE}")})
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder) for folder in found)
        raise DataError(f"voc:{place}: several VOC trees lie in it ({names}); name one of them: voc:{found[-1]}")
    above = next((folder for folder in start.parents if (folder / "JPEGImages").is_dir()), None)
    hint = f"; did you mean voc:{above}?" if above else ""
    there = ", ".join(sorted(os.listdir(start))[:8]) or "nothing"
    raise DataError(f"voc:{place} is no VOC tree{hint}\nexpected in {start}:\n{EXPECTED}\nfound: {there}")


def find_sbd(root: Path, wanted: str) -> Path | None:
    """The SBD folder (the one that holds ``cls``): ``wanted``, else ``SBD`` in or beside the tree, else ``None``."""
    places = [Path(wanted).expanduser()] if wanted else [up / "SBD" for up in (root, root.parent, root.parent.parent)]
    for place in places:
        for inner in ("", "dataset", "benchmark_RELEASE/dataset"):
            if (place / inner / "cls").is_dir():
                return place / inner
    if wanted:
        raise DataError(f"sbd {wanted!r}: no folder cls/ in it, nor in its dataset/ or benchmark_RELEASE/dataset/")
    return None


# --- class table


@dataclass(frozen=True)
class ClassTable:
    """Class names, number 1 first, and where they come from."""

    names: tuple[str, ...]
    source: str
    given: bool
    """The table is given explicitly: a name that is not in it is a mistake, not a new class."""


def class_table(root: Path, wanted: tuple[str, ...], known: tuple[str, ...], separator: str = "") -> ClassTable:
    """The same table for every split of a tree.

    ``wanted`` (``data.classes``), else a class file in the tree, else the names found in the whole tree: VOC's 20 if
    there are no others, else ``known`` (what the cache remembers) with new names appended, else sorted.
    """
    if wanted:
        return ClassTable(wanted, "data.classes", given=True)
    for name in CLASS_FILES:
        if (path := child(root, name)).is_file():
            return ClassTable(read_classes(path), str(path), given=True)
    if (path := child(root, LABELMAP)).is_file():
        return ClassTable(tuple(read_labelmap(path)[0]), str(path), given=True)
    found = names_found(root, separator)
    if known:
        return ClassTable((*known, *sorted(found - set(known))), "the cache and the names found", given=False)
    if found <= set(VOC_CLASSES):
        return ClassTable(VOC_CLASSES, "PASCAL VOC" if found else "no name found: PASCAL VOC's 20", given=False)
    return ClassTable(tuple(sorted(found)), "the names found, sorted", given=False)


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one a line, number 1 first; lines for background and "ignore" are left out.

    Raises :class:`DataError` for a name that stands there twice and for an empty line between names.
    """
    names = tuple(name for name in read_names(path) if name.lower() not in NO_CLASS)
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"{path}: {', '.join(map(repr, twice))} stands in it twice; class names must differ")
    return names


def read_labelmap(path: Path) -> tuple[list[str], dict[tuple[int, int, int], int]]:
    """Class names in the order of CVAT's ``labelmap.txt``, and colour -> number in masks."""
    names: list[str] = []
    numbers: dict[tuple[int, int, int], int] = {(0, 0, 0): 0}
    for line, text in numbered_lines(path):
        if text.lstrip().startswith("#"):
            continue
        parts = text.strip().split(":")
        try:
            red, green, blue = (int(part) for part in parts[1].split(","))
        except (IndexError, ValueError):
            raise DataError(f"{path}:{line}: {text!r}: expected name:red,green,blue:parts:actions") from None
        colour = (red, green, blue)
        if parts[0].lower() in NO_CLASS | {"ignored"}:
            number = 0 if "background" in parts[0].lower() else UNDECIDED
        else:
            names.append(parts[0])
            number = len(names)
        if numbers.setdefault(colour, number) != number:
            raise DataError(f"{path}:{line}: {parts[0]!r} has the colour of another class, or background's black")
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}: {'a class stands in it twice' if names else 'names no class'}")
    return names, numbers


_NAME = re.compile(rb"<name>\s*([^<]*?)\s*</name>")


def names_found(root: Path, separator: str = "") -> set[str]:
    """Class names in all annotations and in ``WeakTags/tags.csv``; files that cannot be read are passed over.

    Without annotations those of ``ImageSets/Main``'s class lists count.

    A file is parsed only if its text shows a name that no parsed file has confirmed: 17,125 files take a second.
    """
    names = {name for tags in read_tags(root, separator).values() for name in tags}
    seen: set[bytes] = {name.encode() for name in names}
    folder = annotation_folder(root)
    annotations = Folder.if_there(folder, (".xml",)).files
    if not annotations:
        return names | {name for tags in read_class_lists(root).values() for name in tags}
    for relative in annotations:
        path = folder / relative
        try:
            data = read_input(path, MOST_TEXT_BYTES)
            plain = b"<annotation" in data and b"&" not in data and b"CDATA" not in data
            if plain and seen.issuperset(_NAME.findall(data)):
                continue
            fresh = {item.name for item in read_annotation(path).objects}
        except (OSError, DataError):
            continue
        names |= fresh
        seen |= {name.encode() for name in fresh}
    return names


def annotation_folder(root: Path) -> Path:
    """``Annotations``, or the pictures' folder where the XML files lie beside them."""
    folder = child(root, "Annotations")
    return folder if folder.is_dir() else child(root, "JPEGImages")


def read_tags(
    root: Path, separator: str = "", known: Collection[str] = (), notes: Notes | None = None
) -> dict[str, tuple[str, ...]]:
    """``WeakTags/tags.csv`` (``image,tags``, joined by ``;``): image as written -> class names; ``{}`` if missing.

    An image may have several rows, of which each adds its names.

    ``separator`` and ``known`` as in :func:`artifacts.datasets.tag_cells.split_tags`.
    """
    path = child(child(root, "WeakTags"), "tags.csv")
    if not path.is_file():
        return {}
    rows = list(csv.reader(read_text(path).splitlines()))
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["image", "tags"]:
        raise DataError(f"{path}:1: the first line must be image,tags, not {','.join(rows[0]) if rows else 'empty'!r}")
    for number, row in enumerate(rows[1:], 2):
        if row and len(row) != 2:
            raise DataError(f"{path}:{number}: {len(row)} columns, expected 2 (image,tags; names joined by ';')")
    rows = [row for row in rows[1:] if row]
    tags: dict[str, tuple[str, ...]] = {}
    for row, names in zip(rows, split_tags([row[1] for row in rows], separator, known, str(path), notes), strict=True):
        tags[row[0]] = tuple(dict.fromkeys((*tags.get(row[0], ()), *names)))
    return tags
