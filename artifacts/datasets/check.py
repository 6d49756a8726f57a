"""What a whole set of labels shows and no single one does: masks that mean something else, boxes in other units."""

from __future__ import annotations

import itertools

import numpy as np

from artifacts.datasets.voc_masks import other_numbers
from artifacts.datasets.voc_tree import VOC_CLASSES
from artifacts.records import UNDECIDED, DataError, MaskHW, Record, RecordSet

SAMPLE = 8
"""Truth masks that are decoded before a run."""
LEAST_BOXES = 3


def check_set(records: RecordSet, *, only_undecided: bool) -> tuple[str, ...]:
    """Raise :class:`DataError` where the labels cannot mean what they would be read as. Decodes up to 8 masks.

    Returns warnings: most of these masks cannot be read (there would be no scores), or the boxes say otherwise.
    """
    _check_units(records)
    looked_at, broken = _masks(records)
    numbers = [(record, set(np.unique(mask_hw).tolist())) for record, mask_hw in looked_at]
    said = _alike(records.classes)
    if records.format != "coco":  # run-length codes and polygons carry their class
        _check_masks(records, numbers, only_undecided)
        said += _binary(records, numbers)
    said += _misplaced(looked_at)
    said += _recoloured(records, [record for record, _ in looked_at])
    if len(broken) > len(numbers):
        looked = len(broken) + len(numbers)
        said.append(f"{len(broken)} of {looked} truth masks looked at cannot be read: {broken[0]}")
    return tuple(said)


def _alike(classes: tuple[str, ...]) -> list[str]:
    """A warning where names differ in nothing but case: one class that was written in two ways?"""
    first: dict[str, str] = {}
    pairs = [(first[name.casefold()], name) for name in classes if first.setdefault(name.casefold(), name) != name]
    return [f"classes whose names differ in case alone: {' and '.join(pair)}; one class?" for pair in pairs[:3]]


def _check_units(records: RecordSet) -> None:
    boxes = list(itertools.islice((box for record in records for box in record.boxes or ()), LEAST_BOXES * 10))
    if len(boxes) >= LEAST_BOXES and all(max(box.xyxy) <= 1 for box in boxes):
        raise DataError(
            f"{records.format}:{records.root}: all boxes lie in the first pixel, e.g. {boxes[0].xyxy}: shares of the"
            " image's size? Boxes are in pixels here (shares are what yolo: reads)"
        )


def _check_masks(records: RecordSet, numbers: list[tuple[Record, set[int]]], only_undecided: bool) -> None:
    held: set[int] = set().union(*(found for _, found in numbers)) if numbers else set()
    if UNDECIDED in held and held <= {0, UNDECIDED} and not only_undecided:
        raise DataError(
            f"{records.format}:{records.root}: the masks ({len(numbers)} looked at) hold only 0 and 255, and 255 means"
            " undecided: if it is the object, write its class number (1, 2, ...) into the masks; if undecided is meant,"
            " say data.only_undecided=true"
        )
    told = [(record, found - {0, UNDECIDED}) for record, found in numbers if record.tags is not None]
    wrong = [(record, found - set(record.tags or ())) for record, found in told if found - set(record.tags or ())]
    with_objects = sum(bool(found) for _, found in told)
    if wrong and 2 * len(wrong) > with_objects:
        record, other = wrong[0]
        shown = ", ".join(_named(records, number) for number in sorted(other)[:3])
        tags = ", ".join(_named(records, number) for number in record.tags or ()) or "nothing"
        table = ", ".join(_named(records, number) for number in range(1, min(len(records.classes), 4) + 1))
        raise DataError(
            f"{records.format}:{records.root}: masks and labels disagree in {len(wrong)} of {with_objects} images"
            f" looked at: the mask of {record.image_id} holds {shown}, its labels say {tags}. The masks' numbers are"
            f" read as {table}{', ...' if len(records.classes) > 4 else ''}; write classes.txt (one name a line, number"
            " 1 first), or give data.classes"
        )


def _binary(records: RecordSet, numbers: list[tuple[Record, set[int]]]) -> list[str]:
    """A warning where masks seem to say "object" alone, and labels several classes."""
    held = set().union(*(found for _, found in numbers)) - {0, UNDECIDED} if numbers else set()
    named = {tag for record, _ in numbers for tag in record.tags or ()}
    if held != {1} or named <= {1}:
        return []
    classes = ", ".join(_named(records, number) for number in sorted(named)[:4])
    return [
        f"the masks looked at ({len(numbers)}) hold no class but {_named(records, 1)}, and the labels of these images"
        f" name {classes}: if 1 means any object, scores against them say nothing"
    ]


def _misplaced(looked_at: list[tuple[Record, MaskHW]]) -> list[str]:
    """A warning where the objects of most masks are elsewhere than the boxes of their class: classes in another order,
    a palette whose first colour is not background, polygons in shares of the size, masks of other pictures.
    """
    empty, astray, compared = [], [], 0
    for record, mask_hw in looked_at:
        if not record.boxes:
            continue
        outside_hw = (mask_hw != 0) & (mask_hw != UNDECIDED)
        objects = int(outside_hw.sum())
        if not objects and (mask_hw == UNDECIDED).any():  # the objects may be what is undecided
            continue
        compared += 1
        for box in record.boxes:
            x0, y0, x1, y1 = (max(0, int(edge)) for edge in (box.x0 - 1, box.y0 - 1, box.x1 + 2, box.y1 + 2))
            outside_hw[y0:y1, x0:x1] &= mask_hw[y0:y1, x0:x1] != box.class_id
        outside = int(outside_hw.sum())
        if not objects:
            empty.append(record.image_id)
        elif 2 * outside > objects:
            astray.append(f"{record.image_id}: {outside:,} of {objects:,} pixels")
    said = []
    if 2 * len(empty) > compared:
        said.append(
            f"the truth of {len(empty)} of {compared} images looked at is all background, and their labels have boxes"
            f" (the first: {empty[0]}): scores against it say nothing"
        )
    if 2 * len(astray) > compared:
        said.append(
            f"the objects in the truth of {len(astray)} of {compared} images looked at lie mostly outside the boxes of"
            f" their class (the first: {astray[0]}): classes in another order, or masks of other pictures?"
        )
    return said


def _recoloured(records: RecordSet, looked_at: list[Record]) -> list[str]:
    """A warning where VOC's masks have VOC's colours under other numbers: a program has made their palette anew.

    The only sign of it where no boxes say where the objects are.
    """
    if records.classes != VOC_CLASSES:
        return []
    wrong = []
    for record in looked_at:
        truth = record.truth
        by_colours = truth is None or (":load_class_mask" in truth.loader and not truth.detail.endswith(","))
        if truth is None or by_colours or not truth.path.lower().endswith(".png"):
            continue
        if found := other_numbers(truth.path):
            number, other = next(iter(found.items()))
            wrong.append(f"{record.image_id}: {_named(records, number)} has the colour of {_named(records, other)}")
    if not wrong:
        return []
    return [
        f"{len(wrong)} of {len(looked_at)} truth masks looked at hold VOC's colours under other numbers (the first:"
        f" {wrong[0]}): a palette made anew? Numbers count here; as RGB files, the colours would"
    ]


def _masks(records: RecordSet) -> tuple[list[tuple[Record, MaskHW]], list[str]]:
    """The masks of a few images, spread over the set, and why others of them cannot be read."""
    with_truth = [record for record in records if record.truth is not None]
    found, broken = [], []
    for record in with_truth[:: max(1, -(-len(with_truth) // SAMPLE))]:
        assert record.truth is not None
        try:
            found.append((record, record.truth.load()))
        except (DataError, OSError) as error:
            broken.append(str(error))
    return found, broken


def _named(records: RecordSet, number: int) -> str:
    name = records.classes[number - 1] if 0 < number <= len(records.classes) else {0: "background"}.get(number)
    return f"{number} {name}" if name else str(number)
