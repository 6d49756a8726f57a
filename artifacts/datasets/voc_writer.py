"""Writes PASCAL VOC trees: annotations, palette masks, image lists, tags, class lists.

A box of pixel edges ``x0, y0, x1, y1`` (half-open) is written 1-based and inclusive:
``xmin = x0 + 1``, ``xmax = x1``; ``artifacts.datasets.voc`` reads it back to the same numbers.
"""

from __future__ import annotations

import csv
import functools
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.cache.atomic import write_bytes_atomic, write_text_atomic
from artifacts.inputs import has_control

ObjectToWrite = tuple[str, tuple[float, float, float, float] | None, bool]
"""``(class name, xyxy or None, difficult)``; ``None`` writes an object without a box, which is a tag."""

_FORBIDDEN_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@functools.cache
def _palette() -> NDArray[np.uint8]:
    table = np.zeros((256, 3), np.uint8)
    for index in range(256):
        bits = index
        for shift in range(7, -1, -1):
            for channel in range(3):
                table[index, channel] |= (bits >> channel & 1) << shift
            bits >>= 3
    table.flags.writeable = False
    return table


def voc_palette() -> NDArray[np.uint8]:
    """VOC's colours, ``(256, 3) uint8`` RGB: the index's bits spread over the channels (VOClabelcolormap)."""
    return _palette().copy()


def write_annotation(path: Path, filename: str, size_hw: tuple[int, int], objects: Iterable[ObjectToWrite]) -> None:
    """Write one VOC XML annotation.

    Args:
        path: the XML file.
        filename: the image's file name, as ``<filename>`` states it.
        size_hw: height and width of the image.
        objects: ``(class name, xyxy, difficult)`` in the order of their ``Box.id``.
    """
    height, width = size_hw
    lines = [
        "<annotation>",
        f"\t<folder>{xml_text(path.parent.parent.name)}</folder>",
        f"\t<filename>{xml_text(filename)}</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "\t<segmented>1</segmented>",
    ]
    for name, xyxy, difficult in objects:
        lines += _object_lines(name, xyxy, difficult, size_hw)
    write_text_atomic(path, "\n".join([*lines, "</annotation>", ""]), durable=False)


def _object_lines(
    name: str, xyxy: tuple[float, float, float, float] | None, difficult: bool, size_hw: tuple[int, int]
) -> list[str]:
    lines = ["\t<object>", f"\t\t<name>{xml_text(name)}</name>"]
    if xyxy is not None:
        x0, y0, x1, y1 = xyxy
        at_edge = x0 <= 0 or y0 <= 0 or x1 >= size_hw[1] or y1 >= size_hw[0]
        lines.append(f"\t\t<truncated>{int(at_edge)}</truncated>")
    lines.append(f"\t\t<difficult>{int(difficult)}</difficult>")
    if xyxy is not None:
        corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
        inner = "".join(f"<{tag}>{number_text(value)}</{tag}>" for tag, value in corners.items())
        lines.append(f"\t\t<bndbox>{inner}</bndbox>")
    return [*lines, "\t</object>"]


def number_text(value: float) -> str:
    """``value`` in full precision, without a needless ``.0``."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)


def xml_text(text: str) -> str:
    """``text`` escaped for XML. Raises ``ValueError`` for characters that XML 1.0 cannot hold."""
    if bad := _FORBIDDEN_IN_XML.search(text):
        raise ValueError(f"{text!r} holds the character {bad.group()!r}, which XML cannot hold; rename it")
    return escape(text)


def write_class_mask(path: Path, mask_hw: NDArray[Any], *, durable: bool = False) -> None:
    """Write ``(H, W) uint8`` as an 8-bit PNG with VOC's palette: class masks and object masks alike.

    The same mask gives the same bytes. ``durable``: for what nothing can make again.
    Raises ``ValueError`` for another shape or type.
    """
    if mask_hw.dtype != np.uint8 or mask_hw.ndim != 2:
        raise ValueError(f"{path}: a mask must be (H, W) uint8, not {mask_hw.shape} {mask_hw.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask_hw))  # mode L; the palette makes it P, the numbers stay
    image.putpalette(_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes_atomic(path, buffer.getvalue(), durable=durable)


def write_image_set(path: Path, ids: Iterable[str]) -> None:
    """Write a list of image ids, one a line (``ImageSets/Segmentation/<split>.txt``).

    Raises ``ValueError`` for an id with a line break: it would be read back as two.
    """
    ids = list(ids)
    if wrong := [image_id for image_id in ids if has_control(image_id)]:
        raise ValueError(f"{path}: {wrong[0]!r} cannot stand in a list of images; rename its file")
    write_text_atomic(path, "".join(f"{image_id}\n" for image_id in ids), durable=False)


def write_classes(path: Path, names: Iterable[str]) -> None:
    """Write ``classes.txt``: name ``i`` (from 1) is class number ``i`` of masks; background is not listed."""
    write_text_atomic(path, "".join(f"{name}\n" for name in names), durable=False)


def write_tags(path: Path, rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Write ``WeakTags/tags.csv`` from ``(image file name, class names)``: two columns, names joined by ``;``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("image", "tags"))
    writer.writerows((image, ";".join(names)) for image, names in rows)
    write_text_atomic(path, buffer.getvalue(), durable=False)
