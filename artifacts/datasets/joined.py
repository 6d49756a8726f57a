"""Several data sets as one: an auxiliary set of whatever has masks, say. Classes of one meaning are one class."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from artifacts.datasets.without import Renumbered, meant
from artifacts.records import Counts, DataError, LazyRecords, Record, RecordSet


def joined(parts: Sequence[RecordSet], name: str) -> RecordSet:
    """All images of ``parts`` (one split of each) as the set ``name``; an id begins with its own set's name.

    The class table is the first set's, and behind it what the others have besides; names are compared as in
    :func:`artifacts.datasets.without.meant`. Warnings say how many images are whose, and which classes became one
    although they are written in two ways. Raises :class:`DataError` where two sets have one name.
    """
    if double := [dataset for dataset, count in Counter(part.dataset for part in parts).items() if count > 1]:
        raise DataError(
            f"data.source and data.more: two sets are called {double[0]!r}, by their folders; an image's id begins with"
            " that name, so rename a folder"
        )
    classes: list[str] = []
    for part in parts:
        known = {meant(one) for one in classes}
        classes += [one for one in part.classes if meant(one) not in known]
    number = {meant(one): place for place, one in reversed([*enumerate(classes, start=1)])}
    counts = [part.counts for part in parts]
    one_class = [
        f"{own} of {part.dataset} (= {first})"
        for part in parts
        for own in part.classes
        if (first := classes[number[meant(own)] - 1]) != own
    ]
    renamed = (f"{name}: taken as one class: {', '.join(one_class)}",) if one_class else ()
    line = f"{name}: joined of " + ", ".join(f"{part.dataset} ({len(part):,} images)" for part in parts)
    return RecordSet(
        name,
        parts[0].split,
        tuple(classes),
        _Joined([_Part(part, [0, *(number[meant(one)] for one in part.classes)]) for part in parts]),
        skips=tuple(skip for part in parts for skip in part.skips),
        format=parts[0].format,
        root=", ".join(part.root for part in parts),
        warnings=(*(warning for part in parts for warning in part.warnings), line, *renamed),
        counts=Counts(
            sum(one.listed for one in counts),
            sum(one.without_label for one in counts),
            sum(one.labels for one in counts),
            tuple(lost for one in counts for lost in one.lost),
            tuple(text for one in counts for text in one.first)[:3],
            counts[0].least,
        ),
    )


class _Part(Renumbered):
    """The records of one set, under the joined set's numbers and with its name in their ids."""

    def __init__(self, part: RecordSet, numbers: list[int]) -> None:
        super().__init__(part.records, numbers)
        self._name = part.dataset

    def _record(self, index: int) -> Record:
        record = super()._record(index)
        return dataclasses.replace(record, image_id=f"{self._name}/{record.image_id}")


class _Joined(LazyRecords):
    """One sequence behind the other; lazy ones stay lazy."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def _record(self, index: int) -> Record:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
