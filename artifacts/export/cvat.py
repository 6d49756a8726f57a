"""CVAT for images 1.1: ``annotations.xml`` with masks (exact) or polygons, and back.

In CVAT make a task of the export's ``images/`` with the labels of ``labels.json`` (Raw), then upload
``annotations.xml`` as "CVAT 1.1". A mask's ``rle`` counts along the rows of its window, pixels outside of it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.voc_writer import voc_palette, xml_text
from artifacts.export.items import Source
from artifacts.export.regions import (
    EDITABLE,
    Drawn,
    Layer,
    MaskBool,
    PolygonLoss,
    class_labels,
    copy_image,
    fill_polygon,
    refuse,
    regions,
    stated_size,
)
from artifacts.objects import tight_window
from artifacts.records import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

ANNOTATIONS = "annotations.xml"


def encode_runs(mask_hw: MaskBool) -> list[int]:
    """Run lengths along the rows of a mask: outside first (0 where the first pixel is inside)."""
    flat = np.concatenate([[False], np.asarray(mask_hw, np.bool_).ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.concatenate([[0], starts, [flat.size - 1]]))]


def decode_runs(text: str, height: int, width: int) -> MaskBool:
    """``(height, width) bool`` of run lengths as text. Raises :class:`DataError` unless they fill it exactly."""
    try:
        runs = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise DataError(f"mask: rle must be whole numbers ({error})") from error
    if min(runs) < 0 or sum(runs) != height * width:
        raise DataError(f"mask: the runs add up to {sum(runs)}, but {width} x {height} is {width * height}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def write_cvat(folder: Path, source: Source, *, polygons: bool = False) -> dict[str, int]:
    """``annotations.xml``, ``labels.json``, ``images/``. Equal masks give equal bytes."""
    labels = class_labels(source.classes)
    loss = PolygonLoss()
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>", "  <meta><task>"]
    lines.append("    <labels>")
    lines += [f"      <label><name>{xml_text(name)}</name></label>" for name in labels.values()]
    lines += ["    </labels>", "  </task></meta>"]
    images = count = 0
    for image in source:
        height, width = image.mask_hw.shape
        name = copy_image(folder / "images", image, source)
        lines.append(f'  <image id="{images}" name={_attribute(name)} width="{width}" height="{height}">')
        for region in regions(image):
            head = f'label={_attribute(labels[region.class_id])} source="auto" occluded="0"'
            if polygons:
                for points_xy in loss.outlines(region, EDITABLE):
                    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in points_xy.tolist())
                    lines.append(f'    <polygon {head} points="{points}" z_order="0"/>')
            else:
                lines.append(f'    <mask {head} {_mask_attributes(region.mask_hw)} z_order="0"/>')
            count += 1
        lines.append("  </image>")
        images += 1
    write_text_atomic(folder / ANNOTATIONS, "\n".join([*lines, "</annotations>", ""]))
    colours = voc_palette()
    shown = [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colours[number]), "attributes": []}
        for number, name in labels.items()
    ]
    write_text_atomic(folder / "labels.json", json.dumps(shown, ensure_ascii=False, indent=1) + "\n")
    return {"images": images, "regions": count, **(loss.counts() if polygons else {})}


def _attribute(text: str) -> str:
    xml_text(text)  # refuses what XML cannot hold
    return quoteattr(text)


def _mask_attributes(mask_hw: MaskBool) -> str:
    """The mask in its tight window."""
    left, top, right, bottom = tight_window(mask_hw)
    runs = ", ".join(map(str, encode_runs(mask_hw[top:bottom, left:right])))
    return f'rle="{runs}" left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'


def read_cvat(path: Path) -> Iterator[Drawn]:
    """Pictures of a CVAT file, in its order. Raises :class:`DataError` for a file that is none (or a video's)."""
    from defusedxml import DefusedXmlException, ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise DataError(f"{path}: not readable XML ({error})") from error
    if root is None or root.tag != "annotations" or root.find("image") is None:
        raise DataError(f"{path}: no <annotations> with <image>; export from CVAT as 'CVAT for images 1.1'")
    for image in root.iter("image"):
        shapes = [one for one in image if one.tag not in ("tag",)]
        names = [image.get("name") or ""]
        try:
            shapes.sort(key=_z_order)
            size_hw = stated_size(image.get("height"), image.get("width"))
        except DataError as error:
            yield Drawn(names, (), fault=str(error))
        else:
            yield Drawn(names, [(one.get("label") or "", _layer(one)) for one in shapes], size_hw)


def _z_order(shape: Element) -> int:
    given = shape.get("z_order") or 0
    try:
        return int(given)
    except ValueError as error:
        raise DataError(f"<{shape.tag}>: z_order must be a whole number, not {given!r}") from error


def _layer(shape: Element) -> Layer:
    if (draw := {"mask": _mask, "polygon": _polygon}.get(shape.tag)) is not None:
        return partial(draw, dict(shape.attrib))
    return partial(refuse, f"<{shape.tag}> is no mask; draw with the brush or as a polygon")


def _mask(given: dict[str, str], size_hw: tuple[int, int]) -> MaskBool:
    try:
        left, top, width, height = (int(given[name]) for name in ("left", "top", "width", "height"))
    except (KeyError, ValueError) as error:
        raise DataError(f"mask: left, top, width and height must be whole numbers ({error})") from error
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size_hw[1] or top + height > size_hw[0]:
        raise DataError(f"mask: {width} x {height} at {left}, {top} lies outside of {size_hw[1]} x {size_hw[0]} pixels")
    mask_hw = np.zeros(size_hw, np.bool_)
    mask_hw[top : top + height, left : left + width] = decode_runs(given.get("rle", ""), height, width)
    return mask_hw


def _polygon(given: dict[str, str], size_hw: tuple[int, int]) -> MaskBool:
    try:
        pairs = [tuple(map(float, point.split(","))) for point in given.get("points", "").split(";")]
        points_xy: NDArray[np.float64] = np.array(pairs, np.float64).reshape(-1, 2)
    except ValueError as error:
        raise DataError(f"polygon: points must be pairs of numbers ({error})") from error
    return fill_polygon(points_xy, size_hw)
