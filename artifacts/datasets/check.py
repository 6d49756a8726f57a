"""What a whole set of labels shows and no single one does: masks that mean something else, boxes in other units."""

from __future__ import annotations

import itertools

import numpy as np

from artifacts.records import UNDECIDED, DataError, Record, RecordSet

SAMPLE = 8
"""Truth masks that are decoded before a run."""
LEAST_BOXES = 3


def check_set(records: RecordSet, *, only_undecided: bool) -> tuple[str, ...]:
    """Raise :class:`DataError` where the labels cannot mean what they would be read as. Decodes up to 8 masks.

    Returns a warning where most of these masks cannot be read: there would be no scores.
    """
    _check_units(records)
    numbers, broken = _numbers(records)
    said = []
    if records.format != "coco":  # run-length codes and polygons carry their class
        _check_masks(records, numbers, only_undecided)
        said += _binary(records, numbers)
    if len(broken) > len(numbers):
        looked = len(broken) + len(numbers)
        said.append(f"{len(broken)} of {looked} truth masks looked at cannot be read: {broken[0]}")
    return tuple(said)


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


def _numbers(records: RecordSet) -> tuple[list[tuple[Record, set[int]]], list[str]]:
    """Numbers in the masks of a few images, spread over the set, and why others of them cannot be read."""
    with_truth = [record for record in records if record.truth is not None]
    found, broken = [], []
    for record in with_truth[:: max(1, -(-len(with_truth) // SAMPLE))]:
        assert record.truth is not None
        try:
            found.append((record, set(np.unique(record.truth.load()).tolist())))
        except (DataError, OSError) as error:
            broken.append(str(error))
    return found, broken


def _named(records: RecordSet, number: int) -> str:
    return f"{number} {records.classes[number - 1]}" if number <= len(records.classes) else str(number)
