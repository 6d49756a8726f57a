"""A data set without some of its classes, or a share of its images: an auxiliary set for a given target, say.

What belonged to a class that is left out becomes background; nothing else changes. Class names are compared as people
mean them: case, blanks, dashes and underscores do not count, nor how Unicode composes a letter, and COCO's names of
VOC's classes are VOC's.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.datasets.splits import hash_share
from artifacts.datasets.voc_tree import VOC_CLASSES
from artifacts.records import DataError, LazyRecords, MaskHW, MaskRef, Record, RecordSet

SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        "airplane": "aeroplane",
        "motorcycle": "motorbike",
        "couch": "sofa",
        "tv": "tvmonitor",
        "television": "tvmonitor",
        "table": "diningtable",
        "houseplant": "pottedplant",
    }
)
"""Another name of a class -> VOC's. COCO's "dining table" and "potted plant" differ from VOC's by a blank alone."""
TABLES: Mapping[str, tuple[str, ...]] = MappingProxyType({"voc": tuple(VOC_CLASSES)})
"""Names that stand for a table of classes."""


SEPARATORS = frozenset({"Zs", "Zl", "Zp", "Cc", "Pd", "Pc"})
"""Unicode categories of blanks, dashes and underscores. Vowel signs and symbols belong to a name: "C" is not "C++"."""


def meant(name: str) -> str:
    """What a class's name means: equal for names of one class."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    plain = "".join(character for character in folded if unicodedata.category(character) not in SEPARATORS)
    return SYNONYMS.get(plain, plain)


def shared(ours: Iterable[str], theirs: Iterable[str]) -> list[tuple[str, str]]:
    """``(our name, their name)`` of every class that both tables have, by whatever name."""
    by_meaning = {meant(name): name for name in theirs}
    return [(name, by_meaning[meant(name)]) for name in ours if meant(name) in by_meaning]


def without_classes(records: RecordSet, names: Sequence[str]) -> RecordSet:
    """``records`` without the classes ``names`` (or tables: :data:`TABLES`), which become background.

    A warning says which classes went, by name and by synonym, and which of the names the set does not have. Raises
    :class:`DataError` where no class would be left.
    """
    found, unknown = _found(records, names, "data.without")
    gone = {own for own, _ in found}
    classes = tuple(name for name in records.classes if name not in gone)
    if not classes:
        raise DataError(
            f"{records.dataset}: without {', '.join(names)} none of its classes {', '.join(records.classes)} is left;"
            " take fewer out of data.without"
        )
    by_name = [own for own, other in found if own == other]
    by_synonym = [f"{own} (= {other})" for own, other in found if own != other]
    line = (
        f"{records.dataset}: {len(gone)} of {len(records.classes)} classes left out by data.without, now background:"
        f" by name {', '.join(by_name) or 'none'}; by synonym {', '.join(by_synonym) or 'none'}"
    )
    return _of_classes(records, classes, line, *unknown)


def only_classes(records: RecordSet, names: Sequence[str]) -> RecordSet:
    """``records`` with the classes ``names`` (or tables: :data:`TABLES`) alone; all others become background.

    A warning says which of them went, and which of the names the set does not have. Raises :class:`DataError` where it
    has none.
    """
    found, unknown = _found(records, names, "data.only")
    kept = {own for own, _ in found}
    classes = tuple(name for name in records.classes if name in kept)
    if not classes:
        raise DataError(
            f"{records.dataset}: data.only names {', '.join(names)}, and none of them is one of its classes"
            f" {', '.join(records.classes)}"
        )
    gone = [name for name in records.classes if name not in kept]
    line = (
        f"{records.dataset}: {len(gone)} of {len(records.classes)} classes left out by data.only, now background:"
        f" {', '.join(gone) or 'none'}"
    )
    return _of_classes(records, classes, line, *unknown)


def _found(records: RecordSet, names: Sequence[str], option: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The set's classes that ``names`` mean, each with its name there; and a line on those that it has not."""
    wanted = [name for given in names for name in TABLES.get(given, (given,))]
    found = shared(records.classes, wanted)
    met = {meant(other) for _, other in found}
    unknown = [name for name in names if name not in TABLES and meant(name) not in met]
    said = [f"{records.dataset}: {option} names {', '.join(unknown)}, which it does not have"] if unknown else []
    return found, said


def _of_classes(records: RecordSet, classes: tuple[str, ...], *lines: str) -> RecordSet:
    """``records`` with these of its classes; what belongs to others is background."""
    numbers = [0, *(classes.index(name) + 1 if name in classes else 0 for name in records.classes)]
    left = Renumbered(records.records, numbers)
    return dataclasses.replace(
        records,
        classes=classes,
        records=left,
        warnings=(*records.warnings, *lines),
        own_classes=records.own_classes or records.classes,
    )


def share_of(records: RecordSet, share: float, seed: int, *, rest: bool = False) -> RecordSet:
    """About this share of the images, by a hash of seed and id: a larger share of one seed holds the smaller ones.

    ``rest``: the others. So the two are folds, also of two data sets whose images have the same ids.
    """
    kept = [record.image_id for record in records if (hash_share(f"{seed}/{record.image_id}") < share) is not rest]
    part = records.only(kept)
    return dataclasses.replace(part, counts=records.counts.of_part(len(part), len(records)))


class Renumbered(LazyRecords):
    """Records whose classes are renumbered on access, so that lazy records stay lazy."""

    def __init__(self, records: Sequence[Record], numbers: list[int]) -> None:
        self._records = records
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._records)

    def _record(self, index: int) -> Record:
        record, number = self._records[index], self._numbers
        changed: dict[str, Any] = {}
        if record.tags is not None:
            changed["tags"] = tuple(sorted({number[tag] for tag in record.tags} - {0}))
        gone: list[int] = []
        if record.boxes is not None:
            gone = [box.id for box in record.boxes if not number[box.class_id]]
            changed["boxes"] = tuple(
                dataclasses.replace(box, class_id=number[box.class_id]) for box in record.boxes if number[box.class_id]
            )
        if isinstance(record.scribbles, MaskRef):
            changed["scribbles"] = _renumbered(record.scribbles, load_truth, number)
        elif record.scribbles is not None:
            changed["scribbles"] = tuple(
                dataclasses.replace(stroke, class_id=number[stroke.class_id]) for stroke in record.scribbles
            )
        for kind, load, told in (
            ("truth", load_truth, number),
            ("corrected", load_truth, number),
            ("truth_objects", load_truth_objects, gone),
        ):
            if (reference := getattr(record, kind)) is not None:
                changed[kind] = _renumbered(reference, load, told)
        return dataclasses.replace(record, **changed)


def _renumbered(reference: MaskRef, load: Callable[[MaskRef], Any], told: list[int]) -> MaskRef:
    detail = json.dumps([reference.loader, reference.detail, told])
    return MaskRef(f"{__name__}:{load.__name__}", reference.path, detail)


def load_truth(reference: MaskRef) -> MaskHW:
    """The class mask with its numbers changed; 255 stays. Raises what the set's own loader raises."""
    inner, numbers = _inner(reference)
    table = np.arange(256, dtype=np.uint8)  # a number of no class stays, and so is still found to be none
    table[: len(numbers)] = numbers
    changed: MaskHW = table[inner.load()]
    return changed


def load_truth_objects(reference: MaskRef) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The object masks without those of classes that are left out."""
    inner, gone = _inner(reference)
    masks_nhw, ids_n = inner.load()
    kept_n = ~np.isin(ids_n, gone)
    return masks_nhw[kept_n], ids_n[kept_n]


def _inner(reference: MaskRef) -> tuple[MaskRef, list[int]]:
    loader, detail, told = json.loads(reference.detail)
    return MaskRef(loader, reference.path, detail), told
