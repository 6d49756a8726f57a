"""Masks that people corrected: a folder beside the data, which no clean-up of a cache touches.

``classes.txt`` names the classes, number 1 first; ``masks/<image id>.png`` are palette PNGs, 0 background, 255
undecided. ``data.corrections=FOLDER`` gives the pictures of these ids the label kind ``corrected``; ids are found in
other spellings, too (:mod:`artifacts.datasets.find`). Numbers are those of the folder's own ``classes.txt``: they
follow the names, whatever the data set's table is later.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.find import Folder, Names
from artifacts.datasets.paths import Notes, without_suffix
from artifacts.datasets.voc_masks import class_mask_ref, load_class_mask
from artifacts.datasets.voc_tree import read_classes
from artifacts.datasets.voc_writer import write_class_mask
from artifacts.inputs import open_input
from artifacts.records import UNDECIDED, DataError, LazyRecords, MaskHW, MaskRef, Record, RecordSet

CLASSES = "classes.txt"
MASKS = "masks"
LOADER = "artifacts.datasets.corrections:load_corrected"


def with_corrections(
    records: RecordSet, folder: Path, others: Callable[[], Iterable[str]] = tuple, *, say_unused: bool = False
) -> RecordSet:
    """``records``, of which those that ``folder`` has a mask for have it as ``corrected``. Nothing is decoded.

    Args:
        records: one split of a data set.
        folder: of corrections; masks that are not of ``records`` may be those of other splits.
        others: gives the image ids of the other split. It is called where masks are left that no picture of
            ``records`` has by its id, if something hangs on it: most sets are read once.
        say_unused: warn of masks that no picture has, of ``records`` or of ``others``.

    Raises:
        DataError: ``folder`` is no folder of corrections, or names a class that the data set does not have.
    """
    ours = _classes(folder)
    if unknown := [name for name in ours if name not in records.classes]:
        raise DataError(
            f"data.corrections={folder}: {folder / CLASSES} names {', '.join(unknown)}, which is no class of"
            f" {records.dataset} ({', '.join(records.classes)}); correct one of the two lists"
        )
    numbers = [records.classes.index(name) + 1 for name in ours]
    masks = folder / MASKS
    if not masks.is_dir():
        return records
    notes = Notes()
    found = _found(Folder(masks), [record.image_id for record in records], others, notes if say_unused else None)
    paths = {image_id: masks / name for image_id, name in found.items()}
    together = _Corrected(records.records, paths, numbers) if paths else records.records
    return replace(records, records=together, warnings=(*records.warnings, *notes.lines()))


def _found(
    masks: Folder, image_ids: Sequence[str], others: Callable[[], Iterable[str]], notes: Notes | None
) -> dict[str, str]:
    """Image id -> file of its mask: the one of this very name, else one that no picture has, in another spelling.

    What is spelled otherwise, and what is no picture's, goes to ``notes``.
    """
    by_name = {without_suffix(name): name for name in masks.files}
    found = {image_id: by_name[image_id] for image_id in image_ids if image_id in by_name}
    left = [name for name in masks.files if without_suffix(name) not in found]
    alike = _alike(left, image_ids) if left else {}
    if left and (alike or notes is not None):
        elsewhere = dict.fromkeys(others())
        left = [name for name in left if without_suffix(name) not in elsewhere]
        alike = _alike(left, [*image_ids, *elsewhere])
    alike = {image_id: name for image_id, name in alike.items() if image_id not in by_name}
    here = {image_id: alike[image_id] for image_id in image_ids if image_id in alike}
    if notes is not None:
        for image_id, name in here.items():
            notes.add("name found in another spelling", f"{f'{image_id}.png'!a} is {f'{MASKS}/{name}'!a}")
        strays = sorted({*left, *masks.passed_over} - set(alike.values()))
        kind = "corrected mask that is not used: no picture has its name, or several may be meant"
        notes.add_all(kind, [f"{masks.where}/{name}" for name in strays])
    return found | here


def _alike(files: Sequence[str], image_ids: Iterable[str]) -> dict[str, str]:
    """Image id -> the file that is spelled otherwise; of a file that may be two pictures' nobody knows whose it is."""
    names = Names(files, MASKS)
    found = {i: name for i in dict.fromkeys(image_ids) if (name := names.find(f"{i}.png", whole=True)) is not None}
    times = Counter(found.values())
    return {image_id: name for image_id, name in found.items() if times[name] == 1}


@dataclass(frozen=True)
class _Corrected(LazyRecords):
    """The records one by one, each with its corrected mask: a data set's records may be lazy."""

    records: Sequence[Record]
    masks: Mapping[str, Path]
    numbers: Sequence[int]
    """Class number of the data set for each of the folder's."""

    def __len__(self) -> int:
        return len(self.records)

    def _record(self, index: int) -> Record:
        record = self.records[index]
        path = self.masks.get(record.image_id)
        if path is None:
            return record
        detail = json.dumps([list(self.numbers), record.image])
        return replace(record, corrected=MaskRef(LOADER, os.path.abspath(path), detail))


def load_corrected(reference: MaskRef) -> MaskHW:
    """A corrected mask, ``(H, W) uint8`` in the data set's class numbers.

    Raises :class:`DataError` for another size than the image's, an unreadable file, or a number that is no class.
    """
    from artifacts.images import image_size_hw

    numbers, image = json.loads(reference.detail)
    mask_hw = load_class_mask(class_mask_ref(reference.path, len(numbers), image_size_hw(Path(image))))
    return _numbered(mask_hw, numbers)


def _numbered(mask_hw: MaskHW, numbers: Sequence[int]) -> MaskHW:
    """``numbers[i]`` in place of class number ``i + 1``."""
    table = np.zeros(256, np.uint8)
    table[1 : len(numbers) + 1] = numbers
    table[UNDECIDED] = UNDECIDED
    return table[mask_hw]


def load_stored(folder: Path, image_id: str, classes: Sequence[str]) -> MaskHW | None:
    """The mask that ``folder`` holds for a picture, in numbers of ``classes``; ``None`` without a readable one."""
    from PIL import Image

    try:
        with open_input(folder / MASKS / f"{image_id}.png") as file, Image.open(file, formats=("PNG",)) as image:
            stored = np.asarray(image, np.uint8)
        there = _classes(folder)
    except (OSError, ValueError, DataError):
        return None
    return _numbered(stored, [classes.index(name) + 1 for name in there]) if set(there) <= set(classes) else None


def write_corrections(folder: Path, masks: Iterable[tuple[str, MaskHW]], classes: Sequence[str]) -> list[str]:
    """Store ``(image id, mask)`` pairs in ``folder``, over earlier ones of the same pictures; returns the ids.

    Each file is written whole or not at all, and nothing is made before the first mask. ``classes[i]``
    names number ``i + 1`` of the masks. Classes that the folder does not know are appended to its own, whose numbers
    stay: its other masks hold them. Raises :class:`DataError` where it knows a class that is none of ``classes``.
    """
    table = folder / CLASSES
    there = _classes(folder) if table.exists() else ()
    if gone := [name for name in there if name not in classes]:
        raise DataError(
            f"{folder}: its corrections have the classes {', '.join(there)}, of which these ({', '.join(classes)}) lack"
            f" {', '.join(gone)}; name another folder with --to"
        )
    names = (*there, *(name for name in classes if name not in there))
    numbers = [names.index(name) + 1 for name in classes]
    ids: list[str] = []
    for image_id, mask_hw in masks:
        if not ids and names != there:
            write_text_atomic(table, "".join(f"{name}\n" for name in names))
        write_class_mask(folder / MASKS / f"{image_id}.png", _numbered(mask_hw, numbers), durable=True)
        ids.append(image_id)
    return ids


def _classes(folder: Path) -> tuple[str, ...]:
    try:
        return read_classes(folder / CLASSES)
    except OSError as error:
        raise DataError(
            f"data.corrections={folder}: no {CLASSES} there ({error.strerror}); name a folder that `maskmill import`"
            " has written, or leave data.corrections out"
        ) from error
