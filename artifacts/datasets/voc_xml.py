"""Reads one VOC annotation file, and untrusted XML in general."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from artifacts.images import pixel_limit
from artifacts.inputs import MOST_TEXT_BYTES, read_input
from artifacts.records import DataError

Corners = tuple[float, float, float, float]

OTHER_SHAPES = ("robndbox", "polygon", "segmentation")
"""Where an object is, as tools write it that have no box: an object with one of these is no mere tag."""


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One ``<object>``; exactly one of ``xyxy`` and ``problem`` may be set, neither if there is no ``<bndbox>``."""

    index: int
    """Place among the file's objects, from 0: ``Box.id``, and ``SegmentationObject`` value - 1."""
    name: str
    difficult: bool
    xyxy: Corners | None = None
    """Pixel edges, half-open, as written: not clipped to the image."""
    problem: str | None = None
    """Why the box cannot be used."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The content of one XML file."""

    size_hw: tuple[int, int] | None
    objects: tuple[AnnotatedObject, ...]


def read_xml(path: str | Path) -> Element:
    """The root element of an untrusted XML file.

    Raises:
        DataError: broken XML, or one that declares entities or refers to external ones (path and reason named).
        OSError: the file cannot be read.
    """
    data = read_input(path, MOST_TEXT_BYTES)
    parse, attacks, broken = _parser()
    try:
        return parse(data)
    except attacks as error:
        raise DataError(
            f"{path}: the XML declares entities or external references ({type(error).__name__}), which are not read;"
            " remove its <!DOCTYPE ...>"
        ) from error
    except broken as error:
        line, column = error.position
        raise DataError(
            f"{path}:{line}: broken XML at column {column + 1} ({error}); repair or re-export it"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: the XML is nested too deeply; repair or re-export it") from error
    except (ValueError, LookupError) as error:  # an encoding that Python does not know, or multi-byte
        raise DataError(f"{path}: unreadable XML ({error}); save it as UTF-8") from error


@functools.cache
def _parser() -> tuple[Callable[[bytes], Element], type[Exception], Any]:
    """defusedxml's parser and errors, imported when the first XML is read: machines that only train lack it."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    return fromstring, DefusedXmlException, ParseError


def read_annotation(path: str | Path) -> Annotation:
    """Read one VOC annotation. Raises as :func:`read_xml`, and :class:`DataError` for a nameless object."""
    root = read_xml(path)
    if root.tag != "annotation":
        raise DataError(f"{path}: the root element is <{root.tag}>, a VOC annotation has <annotation>")
    objects = tuple(_object(path, index, element) for index, element in enumerate(root.iterfind("object")))
    size_hw = stated_size(root)
    if size_hw is not None and size_hw[0] * size_hw[1] > pixel_limit():
        raise DataError(f"{path}: <size> states {size_hw[1]:,} x {size_hw[0]:,} pixels, more than {pixel_limit():,}")
    return Annotation(size_hw, objects)


def _object(path: str | Path, index: int, element: Element) -> AnnotatedObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: object {index} has no <name>; name its class, or remove the object")
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    box = element.find("bndbox")
    if box is None:
        other = next((tag for tag in OTHER_SHAPES if element.find(tag) is not None), None)
        return AnnotatedObject(index, name, difficult, problem=other and f"<{other}>, and no <bndbox>")
    try:
        return AnnotatedObject(index, name, difficult, xyxy=_corners(box))
    except ValueError as error:
        return AnnotatedObject(index, name, difficult, problem=str(error))


def _corners(box: Element) -> Corners:
    """1-based inclusive corners as pixel edges: ``x0 = xmin - 1``, ``x1 = xmax``."""
    xmin, ymin, xmax, ymax = (_number(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    for low, high, axis in ((xmin, xmax, "x"), (ymin, ymax, "y")):
        if low > high + 1:  # high + 1 is a box without area, which has its own message
            raise ValueError(f"{axis}min {low:g} > {axis}max {high:g}: inverted")
    return xmin - 1.0, ymin - 1.0, xmax, ymax


def _number(box: Element, tag: str) -> float:
    text = box.findtext(tag)
    if text is None:
        raise ValueError(f"<bndbox> has no <{tag}>")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{tag} is {text.strip()!r}, not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{tag} is {text.strip()}, not a finite number")
    return value


def stated_size(root: Element) -> tuple[int, int] | None:
    """Height and width as stated; ``None`` if missing or zero, which some tools write."""
    try:
        height, width = (int(float(root.findtext(f"size/{tag}") or 0)) for tag in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def place_box(box: AnnotatedObject, size_hw: tuple[int, int]) -> tuple[Corners | None, str | None]:
    """The object's box inside the image, and what had to be done to it.

    Returns ``(xyxy, None)`` for a good box, ``(xyxy clipped, "stick out ...")``, or ``(None, why it is left out)``.
    """
    if box.xyxy is None:
        return None, box.problem
    height, width = size_hw
    x0, y0, x1, y1 = box.xyxy
    inner = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if x1 <= x0 or y1 <= y0:
        return None, f"no area: {x1 - x0:g} x {y1 - y0:g} pixels"
    if inner[2] <= inner[0] or inner[3] <= inner[1]:
        return None, f"{_edges(box.xyxy)} lies outside the image of {width} x {height}"
    if inner != box.xyxy:
        return inner, f"{_edges(box.xyxy)} sticks out of the image of {width} x {height}"
    return inner, None


def _edges(xyxy: Corners) -> str:
    return "edges " + ", ".join(f"{v:g}" for v in xyxy)
