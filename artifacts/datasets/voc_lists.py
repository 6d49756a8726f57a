"""The lists of a VOC tree: images of a split, with or without endings or flags; tags out of the lists of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.datasets.find import Names, child
from artifacts.datasets.paths import Notes, check_relative, without_suffix
from artifacts.datasets.splits import SplitRule, list_file, numbered_lines, read_lines, select
from artifacts.records import DataError

OFFICIAL_COUNTS = {"train": 1_464, "val": 1_449, "trainval": 2_913, "test": 1_456, "trainaug": 10_582}
"""Images in VOC2012's segmentation lists; ``trainaug`` is train and SBD without val."""
LIST_FOLDERS = ("Segmentation", "SegmentationAug", "Main", "")
_AUGMENTED = ("trainaug", "train_aug")


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


def list_path(root: Path, split: str, notes: Notes | None = None) -> Path | None:
    """The list file of ``split``; ``None`` if the tree has none of that name."""
    check_relative(split)
    names = _AUGMENTED if split in _AUGMENTED else (split,)
    for folder in LIST_FOLDERS:
        for name in sorted(names, key=lambda n: n != split):
            path = child(child(child(root, "ImageSets"), folder), f"{name}.txt", notes)
            if path.is_file():
                return path
    return None


def listed_images(
    root: Path, sbd: Path | None, ids: list[str], split: str, rule: SplitRule, notes: Notes
) -> tuple[list[tuple[int, str]], str]:
    """``(line number, line)`` of every image of ``split``, and where that is listed; ``ids`` are those of the tree.

    A list in ``ImageSets``; else, said, ``<split>.txt`` in the tree itself, the images of ``ImageSets/Main``'s class
    lists, or a hash of each name. Raises :class:`DataError` for a split that the lists do not have.
    """
    path = list_path(root, split, notes)
    if path is not None:
        return numbered_lines(path), str(path)
    if split in _AUGMENTED and sbd is not None:
        return list(enumerate(augmented_ids(root, sbd), 1)), f"{sbd} and VOC's lists"
    lists = known_splits(root)
    if not lists and (beside := list_file(root, split, rule)) is not None:
        notes.add("list of images that is not in ImageSets, taken all the same", str(beside))
        return numbered_lines(beside), str(beside)
    of_classes = {} if lists else class_list_images(root)
    if split in of_classes:
        places = f"{root}/ImageSets/Main/*_{split}.txt"
        notes.add("no list of images in ImageSets, but of classes: a split is what these list", places)
        return list(enumerate(of_classes[split], 1)), places
    if (lists or of_classes) and split != "all":
        there = ", ".join([*lists, *(f"{name} (class lists)" for name in of_classes)])
        raise DataError(
            f"voc:{root} has no split {split!r}: no ImageSets/Segmentation/{split}.txt; it has {there}"
            " (set data.train, data.val)"
        )
    selection = select(Names(ids, f"{root}/JPEGImages", ()), split, rule, None)
    if not lists and not of_classes:
        said = selection.hashed or (f"split {split!r} is {selection.how}",)
        notes.add_all("no list of images in ImageSets", said)
    return [(row + 1, ids[row]) for row in selection.rows], f"{root}/JPEGImages ({selection.how})"


def known_splits(root: Path) -> list[str]:
    """Names of the lists that the tree has (per-class lists of ``Main`` left out)."""
    folders = [child(child(root, "ImageSets"), folder) for folder in LIST_FOLDERS]
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


# --- lists of classes

_CLASS_LIST_SPLITS = ("train", "val", "trainval", "test")
_CLASS_LIST_LINE = re.compile(r"(?P<image>.+?)\s+(?P<flag>-1|0|1)")


def _class_lists(root: Path) -> list[tuple[str, str, Path, list[str]]]:
    """(class, split, file, lines) of every ``ImageSets/Main/<class>_<split>.txt`` that begins as one."""
    found = []
    for path in sorted(child(child(root, "ImageSets"), "Main").glob("*_*.txt")):
        name, _, split = path.stem.rpartition("_")
        lines = [line.strip() for line in read_lines(path)]
        if split in _CLASS_LIST_SPLITS and lines and _CLASS_LIST_LINE.fullmatch(lines[0]):
            found.append((name, split, path, lines))
    return found


def class_list_images(root: Path) -> dict[str, list[str]]:
    """Split -> the images that its class lists name, sorted."""
    found: dict[str, set[str]] = {}
    for _, split, _, lines in _class_lists(root):
        found.setdefault(split, set()).update(
            match["image"] for match in map(_CLASS_LIST_LINE.fullmatch, lines) if match
        )
    return {split: sorted(images) for split, images in found.items()}


def read_class_lists(root: Path) -> dict[str, tuple[str, ...]]:
    """``ImageSets/Main/<class>_<split>.txt`` (``image flag``; 1 there, -1 not, 0 difficult alone) as
    :func:`artifacts.datasets.voc_tree.read_tags`.

    0 is a tag, as in the XML. An image that the lists of one class lack is left out: nobody has looked for that class.
    Raises :class:`DataError` for a line of another form in a list that begins as one.
    """
    shown: dict[str, set[str]] = {}
    listed: dict[str, set[str]] = {}
    names: set[str] = set()
    for name, _, path, lines in _class_lists(root):
        names.add(name)
        for number, line in enumerate(lines, 1):
            match = _CLASS_LIST_LINE.fullmatch(line)
            if match is None:
                raise DataError(f"{path}: line {number}: {line!r}; expected an image and -1, 0 or 1")
            listed.setdefault(match["image"], set()).add(name)
            if match["flag"] != "-1":
                shown.setdefault(match["image"], set()).add(name)
    return {image: tuple(sorted(shown.get(image, ()))) for image, found in listed.items() if found == names}
