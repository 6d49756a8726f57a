"""The parts of a VOC tree: the root, the image lists, the class table, SBD beside it."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.datasets.find import Folder, Names
from artifacts.datasets.paths import Notes, check_relative, without_suffix
from artifacts.datasets.splits import numbered_lines, read_lines, read_names, read_text
from artifacts.datasets.tag_cells import split_tags
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
OFFICIAL_COUNTS = {"train": 1_464, "val": 1_449, "trainval": 2_913, "test": 1_456, "trainaug": 10_582}
"""Images in VOC2012's segmentation lists; ``trainaug`` is train and SBD without val."""

CLASS_FILES = ("classes.txt", "labels.txt", "class_names.txt")
LABELMAP = "labelmap.txt"
"""CVAT's class table: ``name:red,green,blue:parts:actions`` a line; its masks are colours, in any order."""
LIST_FOLDERS = ("Segmentation", "SegmentationAug", "Main", "")
NO_CLASS = frozenset({"background", "_background_", "__background__", "__ignore__", "_ignore_"})
"""Lines of a class file that name no class, in lower case."""
_AUGMENTED = ("trainaug", "train_aug")

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
    if (start / "JPEGImages").is_dir():
        return start
    found = sorted({folder.parent for pattern in ("*/JPEGImages", "*/*/JPEGImages") for folder in start.glob(pattern)})
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder) for folder in found)
        raise DataError(f"voc:{place}: several VOC trees lie in it ({names}); name one of them: voc:{found[-1]}")
    above = next((folder for folder in start.parents if (folder / "JPEGImages").is_dir()), None)
    hint = f"; did you mean voc:{above}?" if above else ""
    there = ", ".join(sorted(os.listdir(start))[:8]) or "nothing"
    raise DataError(f"voc:{place} is no VOC tree{hint}\nexpected in {start}:\n{EXPECTED}\nfound: {there}")


# --- image lists


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of an image list."""

    line: int
    image_id: str
    image: str | None = None
    """The file below ``JPEGImages``; ``None`` if there is none."""
    mask: str | None = None
    """The mask's path as written, if the line is a pair."""


_PAIR = re.compile(r"^(?P<image>.+\.[A-Za-z0-9]{2,5})\s+(?P<label>.+\.(?:png|mat|xml))$", re.IGNORECASE)
_FLAGGED = re.compile(r"^(?P<image>.*\S)\s+(?:-1|0|1)$")


def parse_line(number: int, text: str, images: Names, by_id: Mapping[str, str]) -> Listed:
    """One line of a list: ``<id>``, an image's path, the pair of it and a mask or annotation, ``<id>  1`` (per class).

    ``images`` are the files of ``JPEGImages``, ``by_id`` those of each id: of ``a.jpg`` and ``a.png``, VOC's own kind.
    Ids may hold spaces. Raises :class:`DataError` for names that lead out of the tree.
    """
    pair, flagged = _PAIR.match(text), _FLAGGED.match(text)
    names = [match["image"] for match in (pair, flagged) if match]
    names += [text.strip()[: -len(".xml")]] if text.strip().lower().endswith(".xml") and not pair else []
    for name in [text, *names] if text in by_id else [*names, text]:
        file = by_id.get(name) or by_id.get(name.strip()) or images.find(name, any_ending=True)
        if file is not None:
            mask = pair["label"] if pair and name == pair["image"] else None
            return Listed(number, without_suffix(file), file, None if mask and mask.lower().endswith(".xml") else mask)
    return Listed(number, without_suffix(check_relative(text.strip())))


def list_path(root: Path, split: str) -> Path | None:
    """The list file of ``split``; ``None`` if the tree has none of that name."""
    check_relative(split)
    names = _AUGMENTED if split in _AUGMENTED else (split,)
    for folder in LIST_FOLDERS:
        for name in sorted(names, key=lambda n: n != split):
            path = root / "ImageSets" / folder / f"{name}.txt"
            if path.is_file():
                return path
    return None


def known_splits(root: Path) -> list[str]:
    """Names of the lists that the tree has (per-class lists of ``Main`` left out)."""
    folders = [root / "ImageSets" / folder for folder in LIST_FOLDERS]
    names = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.txt")}
    return sorted(name for name in names if "_" not in name or name in _AUGMENTED)


def augmented_ids(root: Path, sbd: Path) -> list[str]:
    """VOC train and SBD train and val, without VOC val, sorted: the 10,582 where there is no list of them."""
    parts: dict[str, set[str]] = {}
    for role, path in {
        "train": root / "ImageSets" / "Segmentation" / "train.txt",
        "val": root / "ImageSets" / "Segmentation" / "val.txt",
        "sbd train": sbd / "train.txt",
        "sbd val": sbd / "val.txt",
    }.items():
        if not path.is_file():
            raise DataError(f"split 'trainaug' has no list, and {path} is missing, from which it could be made")
        parts[role] = {line.strip() for line in read_lines(path)}
    return sorted((parts["train"] | parts["sbd train"] | parts["sbd val"]) - parts["val"])


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
        if (path := root / name).is_file():
            return ClassTable(read_classes(path), str(path), given=True)
    if (path := root / LABELMAP).is_file():
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
    folder = root / "Annotations"
    return folder if folder.is_dir() else root / "JPEGImages"


def read_tags(
    root: Path, separator: str = "", known: Collection[str] = (), notes: Notes | None = None
) -> dict[str, tuple[str, ...]]:
    """``WeakTags/tags.csv`` (``image,tags``, joined by ``;``): image as written -> class names; ``{}`` if missing.

    ``separator`` and ``known`` as in :func:`artifacts.datasets.tag_cells.split_tags`.
    """
    path = root / "WeakTags" / "tags.csv"
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
        tags.setdefault(row[0], tuple(names))
    return tags


_CLASS_LIST_SPLITS = ("train", "val", "trainval", "test")
_CLASS_LIST_LINE = re.compile(r"(?P<image>.+?)\s+(?P<flag>-1|0|1)")


def read_class_lists(root: Path) -> dict[str, tuple[str, ...]]:
    """``ImageSets/Main/<class>_<split>.txt`` (``image flag``; 1 there, -1 not, 0 difficult alone) as :func:`read_tags`.

    0 is a tag, as in the XML. An image that the lists of one class lack is left out: nobody has looked for that class.
    Raises :class:`DataError` for a line of another form in a list that begins as one.
    """
    shown: dict[str, set[str]] = {}
    listed: dict[str, set[str]] = {}
    names: set[str] = set()
    for path in sorted((root / "ImageSets" / "Main").glob("*_*.txt")):
        name, _, split = path.stem.rpartition("_")
        lines = [line.strip() for line in read_lines(path)]
        if split not in _CLASS_LIST_SPLITS or not lines or not _CLASS_LIST_LINE.fullmatch(lines[0]):
            continue  # a list of images
        names.add(name)
        for number, line in enumerate(lines, 1):
            match = _CLASS_LIST_LINE.fullmatch(line)
            if match is None:
                raise DataError(f"{path}: line {number}: {line!r}; expected an image and -1, 0 or 1")
            listed.setdefault(match["image"], set()).add(name)
            if match["flag"] != "-1":
                shown.setdefault(match["image"], set()).add(name)
    return {image: tuple(sorted(shown.get(image, ()))) for image, found in listed.items() if found == names}
