"""One line of a YOLO label file: a box, a polygon, or a box with keypoints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from artifacts.records import Box, DataError

TASKS = ("detect", "segment", "pose", "obb")
MOST_CORNERS_ALIKE = 9
"""Fields (class and 4 corners) up to which lines of one length are polygons all the same: triangles, rotated boxes."""


@dataclass(frozen=True)
class LineKind:
    """What ``data.yaml`` declares of the label lines."""

    keypoints: tuple[int, int] | None = None
    """``kpt_shape``: number of keypoints, and numbers of each (2 or 3)."""
    task: str = ""
    """One of :data:`TASKS`, or "" where nothing is declared: boxes and polygons are told apart by their length."""

    def is_polygon(self, fields: Sequence[str]) -> bool:
        """Whether the line is a polygon, else a box. Raises :class:`DataError` where it is neither."""
        count = len(fields)
        if self.keypoints is not None:
            number, each = self.keypoints
            if count not in (5, 5 + number * each):
                raise DataError(
                    f"{count} fields; kpt_shape {list(self.keypoints)} has {5 + number * each} (class cx cy width"
                    f" height and {number} x {each} numbers of keypoints)"
                )
            return False
        if count == 5 and self.task not in ("segment", "obb"):
            return False
        if self.task == "obb" and count != 9:
            raise DataError(f"{count} fields; a rotated box (task: obb) has 9, a class and 4 corners x y")
        if self.task != "detect" and count >= 7 and count % 2 == 1:
            return True
        expected = "" if self.task == "detect" else ", or a class and at least 3 corner points x y"
        raise DataError(f"{count} fields; expected 5 (class cx cy width height){expected}")


def check_lengths(lengths: Counter[int], kind: LineKind, where: str) -> None:
    """Raise :class:`DataError` where long lines, all of one length, may be keypoints as well as polygons."""
    long = [length for length in lengths if length >= 7 and length % 2]
    if kind.task or kind.keypoints or len(long) != 1 or long[0] <= MOST_CORNERS_ALIKE or lengths[long[0]] < 2:
        return
    points = (long[0] - 5) // 2
    raise DataError(
        f"{where}: all {lengths[long[0]]} longer lines have {long[0]} fields: boxes with keypoints, or polygons of"
        f" {(long[0] - 1) // 2} corners? Say it in data.yaml: kpt_shape: [{points}, 2] for keypoints, or task: segment"
    )


def check_numbers(numbers: Collection[str], n_classes: int, where: str) -> None:
    """Raise :class:`DataError` where class numbers seem to count from 1: each would be the class after its own."""
    if str(n_classes) in numbers and "0" not in numbers:
        raise DataError(
            f"{where}: the class numbers are {', '.join(sorted(numbers)[:8])}, and {n_classes} names count from 0 to"
            f" {n_classes - 1}: do the lines count from 1? Give the names a first one for 0 (data.classes)"
        )


def parse_line(
    fields: Sequence[str], box_id: int, size_hw: tuple[int, int], n_classes: int, kind: LineKind = LineKind()
) -> tuple[Box, bool]:
    """One label line as a box in pixel edges, and whether more than a pixel of it was cut off.

    Raises :class:`DataError` with the fault and what to write; the caller adds file and line.
    """
    is_polygon = kind.is_polygon(fields)
    class_number = _class_number(fields[0], n_classes)
    try:
        numbers = [float(field) for field in (fields[1:] if is_polygon else fields[1:5])]
    except ValueError as error:
        raise DataError(f"{error}; expected numbers between 0 and 1, with a decimal point") from error
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{' '.join(fields[1:])} must be finite numbers between 0 and 1")
    height, width = size_hw
    if is_polygon:
        xs, ys = numbers[0::2], numbers[1::2]
        x0, y0, x1, y1 = min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
    else:
        cx, cy, w, h = numbers
        x0, y0, x1, y1 = (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
    if max(map(abs, numbers)) > 2:
        raise DataError(f"{' '.join(fields[1:])}: shares of the image size between 0 and 1 expected; are these pixels?")
    clipped = max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise DataError(f"box {x0:g} {y0:g} {x1:g} {y1:g} has no area inside the image of {width} x {height} pixels")
    sticks_out = max(abs(a - b) for a, b in zip(clipped, (x0, y0, x1, y1), strict=True)) > 1
    return Box(box_id, class_number + 1, *clipped), sticks_out


def _class_number(text: str, n_classes: int) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer() or not 0 <= number < n_classes:
        raise DataError(f"class {text}; expected a whole number from 0 to {n_classes - 1}")
    return int(number)


def format_line(box: Box, size_hw: tuple[int, int]) -> str:
    """``class cx cy width height`` of a box: 12 significant digits, far below a thousandth of a pixel."""
    height, width = size_hw
    numbers = (
        (box.x0 + box.x1) / 2 / width,
        (box.y0 + box.y1) / 2 / height,
        (box.x1 - box.x0) / width,
        (box.y1 - box.y0) / height,
    )
    return " ".join([str(box.class_id - 1), *(f"{number:.12g}" for number in numbers)])
