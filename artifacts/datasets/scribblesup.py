"""ScribbleSup's XML: strokes drawn on images (Lin et al., ScribbleSup, CVPR 2016).

``annotation/polygon/{tag, point/{X, Y}}``: one polyline a polygon. The coordinates of the published files are read as
0-based by some code and as 1-based by other, so the number of the first pixel is a parameter (``origin``, default 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.voc_writer import number_text, xml_text
from artifacts.datasets.voc_xml import read_xml, stated_size
from artifacts.images import image_size_hw
from artifacts.records import UNDECIDED, DataError, LazyRecords, MaskHW, MaskRef, Record, Scribble

BACKGROUND = "background"

SHORT_NAMES = MappingProxyType(
    {"plane": "aeroplane", "bike": "bicycle", "table": "diningtable", "plant": "pottedplant", "monitor": "tvmonitor"}
)
"""The annotators' names of VOC's classes, as a converter of the published files lists them, and VOC's.

A class that is called so itself goes before.
"""

StrokeToWrite = tuple[str, Sequence[tuple[float, float]]]
"""``(class name or "background", points x, y)``."""


def read_scribbles(
    path: str | Path, numbers: Mapping[str, int], *, origin: int = 0, of: Record | None = None
) -> tuple[Scribble, ...]:
    """Read one file's strokes, in file order.

    Args:
        path: the XML file.
        numbers: class name -> class number; ``background`` is 0 and need not be listed. See :data:`SHORT_NAMES`.
        origin: number of the first pixel in the file, 0 or 1.
        of: the image that they are of, see :func:`check_frame`.

    Returns:
        Strokes in 0-based pixel positions (integers are pixel centres). A polygon without points is left out.

    Raises:
        DataError: broken XML, an unknown class, a coordinate that is no finite number, another ``<size>`` than the
            image's.
        OSError: the file, or the image's header, cannot be read.
    """
    strokes = []
    root = read_xml(path)
    if of is not None:
        check_frame(str(path), stated_size(root), of)
    for place, polygon in enumerate(root.iterfind("polygon")):
        name = (polygon.findtext("tag") or "").strip()
        number = 0 if name == BACKGROUND else numbers.get(name, numbers.get(SHORT_NAMES.get(name, name)))
        if number is None:
            known = ", ".join(numbers) or "none"
            raise DataError(f"{path}: stroke {place} has the unknown class {name!r}; the classes are {known}")
        points = tuple(
            (_coordinate(path, place, p.findtext("X"), origin), _coordinate(path, place, p.findtext("Y"), origin))
            for p in polygon.iterfind("point")
        )
        if points:
            strokes.append(Scribble(number, points))
    return tuple(strokes)


def _coordinate(path: str | Path, place: int, text: str | None, origin: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: stroke {place} has the coordinate {text!r}, which is not a finite number")
    return value - origin


def write_scribbles(
    path: Path, filename: str, size_hw: tuple[int, int], strokes: Iterable[StrokeToWrite], *, origin: int = 0
) -> None:
    """Write one file; :func:`read_scribbles` with the same ``origin`` reads the same strokes back."""
    height, width = size_hw
    lines = [
        "<annotation>",
        f"\t<filename>{xml_text(filename)}</filename>",
        f"\t<size><width>{width}</width><height>{height}</height></size>",
    ]
    for name, points in strokes:
        lines += ["\t<polygon>", f"\t\t<tag>{xml_text(name)}</tag>"]
        lines += [
            f"\t\t<point><X>{number_text(x + origin)}</X><Y>{number_text(y + origin)}</Y></point>" for x, y in points
        ]
        lines.append("\t</polygon>")
    write_text_atomic(path, "\n".join([*lines, "</annotation>", ""]), durable=False)


def rasterize(scribbles: Iterable[Scribble], size_hw: tuple[int, int], width: float = 3.0) -> MaskHW:
    """Strokes as ``(H, W) uint8`` class numbers, 255 where there is no stroke.

    A pixel belongs to a stroke if its centre is at most ``width / 2`` away from the polyline (from the point, if there
    is one only), so 3 is three pixels wide on a straight line. The pixel in the middle of a segment always belongs to
    it, so 1 leaves no gap. OpenCV's lines are not used: they come out two pixels wider than requested, and single
    points not at all.

    Args:
        scribbles: strokes; where two meet, an object's lies over the background's, a later over an earlier one.
        size_hw: height and width of the image; what lies outside is cut off.
        width: thickness in pixels, >= 1.
    """
    if not width >= 1:
        raise ValueError(f"width must be at least 1 pixel, not {width}")
    mask = np.full(size_hw, UNDECIDED, np.uint8)
    for stroke in sorted(scribbles, key=lambda s: s.class_id != 0):  # stable: the order within each kind stays
        points = np.asarray(stroke.points_xy, np.float64)
        for start, end in zip(points, points[1:] if len(points) > 1 else points, strict=False):
            _draw_segment(mask, start, end, width / 2, stroke.class_id)
    return mask


def shortened(
    points_xy: Sequence[tuple[float, float]], share: float, at: float = 0.5
) -> tuple[tuple[float, float], ...]:
    """``share`` of a stroke's length: 1 is all of it, 0 the one point at ``at`` (0..1) of its length, a click.

    The part lies so that this point is in it, and a shorter part in every longer one (Lin et al., Fig. 7).
    """
    if not (0 <= share <= 1 and 0 <= at <= 1):
        raise ValueError(f"share {share} and at {at} must lie in 0..1")
    if share == 1 or len(points_xy) < 2:
        return tuple(points_xy)
    points = np.asarray(points_xy, np.float64)
    reached = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    start = at * (1 - share) * reached[-1]
    end = start + share * reached[-1]
    within = points[(reached > start) & (reached < end)]
    ends = np.array([[np.interp(place, reached, column) for column in points.T] for place in (start, end)])
    found = np.concatenate([ends[:1], within, ends[1:]]) if share else ends[:1]
    return tuple((float(x), float(y)) for x, y in found)


def _draw_segment(
    mask: MaskHW, start_xy: NDArray[np.float64], end_xy: NDArray[np.float64], radius: float, value: int
) -> None:
    """Paint pixels with centres at most ``radius`` from the segment, in its surroundings only."""
    limit_xy = (mask.shape[1], mask.shape[0])
    if radius**2 < 0.5:  # a short segment between the centres would leave nothing
        x, y = np.rint((start_xy + end_xy) / 2).astype(int)
        if 0 <= x < limit_xy[0] and 0 <= y < limit_xy[1]:
            mask[y, x] = value
    low = np.ceil(np.minimum(start_xy, end_xy) - radius).clip(0, limit_xy).astype(int)
    high = (np.floor(np.maximum(start_xy, end_xy) + radius) + 1).clip(0, limit_xy).astype(int)
    if (high <= low).any():
        return
    dx = np.arange(low[0], high[0])[None, :] - start_xy[0]
    dy = np.arange(low[1], high[1])[:, None] - start_xy[1]
    along = end_xy - start_xy
    length2 = float(along @ along)
    share = ((dx * along[0] + dy * along[1]) / length2).clip(0, 1) if length2 else np.zeros((len(dy), dx.shape[1]))
    near = (dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2 <= radius**2 + 1e-9
    mask[low[1] : high[1], low[0] : high[0]][near] = value


def check_frame(where: str, stated_hw: tuple[int, int] | None, record: Record) -> None:
    """Raise :class:`DataError` if strokes were drawn on a picture of another size than the image has.

    Before its EXIF rotation, say, or before it was scaled: they would label pixels elsewhere. ``stated_hw`` is what the
    file says; without it nothing is known.
    """
    if stated_hw is None or stated_hw == record.size_hw:
        return
    real = image_size_hw(Path(record.image))  # the record's may be stated as well
    if stated_hw != real:
        raise DataError(
            f"{where}: drawn on {stated_hw[1]} x {stated_hw[0]} pixels, but {record.image} has {real[1]} x {real[0]}"
            " (EXIF rotation applied): the strokes lie elsewhere. Draw them on this picture, or correct the stated size"
        )


def beyond(scribbles: Iterable[Scribble], size_hw: tuple[int, int]) -> str:
    """The first point that lies more than a pixel off the image, for a warning; "" if there is none."""
    height, width = size_hw
    for stroke in scribbles:
        for x, y in stroke.points_xy:
            if not (-1 <= x <= width and -1 <= y <= height):
                return f"x {x:g}, y {y:g} in an image of {width} x {height} pixels"
    return ""


BEYOND = "images whose scribbles leave them by more than a pixel, cut off there"
LOST = "images without scribbles"
"""Kinds of complaints."""

Strokes = tuple[tuple[int, NDArray[np.float64]], ...]
"""Of one image: class number and points ``(n, 2)`` of each stroke."""


def packed(scribbles: Iterable[Scribble]) -> Strokes:
    """As :class:`WithStrokes` keeps them."""
    return tuple((stroke.class_id, np.array(stroke.points_xy, np.float64)) for stroke in scribbles)


class WithStrokes(LazyRecords):
    """Records whose strokes are kept as arrays and unpacked on access: 16 bytes a point instead of 110.

    ``records`` may be lazy. Where there is neither a stroke nor a mask, the record's own scribbles stay.
    """

    def __init__(self, records: Sequence[Record], strokes: Sequence[Strokes | MaskRef | None]) -> None:
        self._records = records
        self._strokes = strokes

    def __len__(self) -> int:
        return len(self._records)

    def _record(self, index: int) -> Record:
        return _unpacked(self._records[index], self._strokes[index])


def _unpacked(record: Record, strokes: Strokes | MaskRef | None) -> Record:
    if strokes is None:
        return record
    if isinstance(strokes, MaskRef):
        return replace(record, scribbles=strokes)
    scribbles = tuple(Scribble(number, tuple(map(tuple, points.tolist()))) for number, points in strokes)
    return replace(record, scribbles=scribbles)
