"""labelme: a JSON file beside each image, with masks (exact) or polygons, and back.

A mask's points are its window's first and last pixel; the mask itself is a PNG in base64.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from artifacts.cache.atomic import write_text_atomic
from artifacts.export.items import Source
from artifacts.export.regions import (
    EDITABLE,
    Drawn,
    MaskBool,
    PolygonLoss,
    class_labels,
    copy_image,
    fill_polygon,
    regions,
    stated_size,
)
from artifacts.objects import tight_window
from artifacts.records import DataError

VERSION = "5.3.0"
"""The first version with masks."""


def write_labelme(folder: Path, source: Source, *, polygons: bool = False) -> dict[str, int]:
    """``<image id>.json`` beside the images, and ``labels.txt``. Equal masks give equal bytes."""
    labels = class_labels(source.classes)
    loss = PolygonLoss()
    images = count = 0
    for image in source:
        height, width = image.mask_hw.shape
        shapes: list[dict[str, Any]] = []
        for region in regions(image):
            rest: dict[str, Any] = {
                "label": labels[region.class_id],
                "group_id": region.object_id,
                "description": "",
                "flags": {},
            }
            if polygons:
                shapes += [
                    {**rest, "shape_type": "polygon", "points": points_xy.tolist(), "mask": None}
                    for points_xy in loss.outlines(region, EDITABLE)
                ]
            else:
                left, top, right, bottom = tight_window(region.mask_hw)
                png = _png(region.mask_hw[top:bottom, left:right])
                points = [[left, top], [right - 1, bottom - 1]]
                shapes.append({**rest, "shape_type": "mask", "points": points, "mask": png})
            count += 1
        name = copy_image(folder, image, source)
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(name).name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path = folder / f"{image.image_id}.json"
        write_text_atomic(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n", durable=False)
        images += 1
    write_text_atomic(folder / "labels.txt", "".join(f"{name}\n" for name in labels.values()))
    return {"images": images, "regions": count, **(loss.counts() if polygons else {})}


def _png(mask_hw: MaskBool) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.where(mask_hw, 255, 0).astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def read_labelme(content: Mapping[str, Any], path: Path, root: Path) -> Drawn:
    """The picture of one labelme file ``path``, given to import as ``root`` (itself, or a folder above it).

    Raises :class:`DataError` for a file without shapes that names no picture either.
    """
    relative = path.relative_to(root).with_suffix("").as_posix() if path != root else path.stem
    names = [relative, str(content.get("imagePath") or "").replace("\\", "/")]
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        fault = f"{path}: 'shapes' must be a list of labelme's shapes"
        if not names[1]:
            raise DataError(fault)
        return Drawn(names, (), fault=fault)
    try:
        size_hw = stated_size(content.get("imageHeight"), content.get("imageWidth"))
    except DataError as error:
        return Drawn(names, (), fault=f"{path}: {error}")
    return Drawn(names, [(str(shape.get("label")), partial(_draw, shape)) for shape in shapes], size_hw)


def _draw(shape: Mapping[str, Any], size_hw: tuple[int, int]) -> MaskBool:
    kind = shape.get("shape_type", "polygon")
    try:
        points_xy = np.asarray(shape.get("points"), np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{kind}: points must be pairs of numbers ({error})") from error
    if kind == "polygon":
        return fill_polygon(points_xy, size_hw)
    if kind != "mask":
        raise DataError(f"{kind!r} is no mask; draw a polygon or a mask")
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(shape.get("mask") or "", validate=True)), formats=("PNG",)
        ) as image:
            part_hw = np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError, ValueError, TypeError) as error:
        raise DataError(f"mask: not a PNG in base64 ({error})") from error
    (left, top), (right, bottom) = points_xy.astype(int).tolist() if len(points_xy) == 2 else ((0, 0), (-1, -1))
    if part_hw.shape != (bottom - top + 1, right - left + 1):
        raise DataError(f"mask: {part_hw.shape[::-1]} pixels do not fit its points {points_xy.tolist()}")
    if min(left, top) < 0 or right >= size_hw[1] or bottom >= size_hw[0]:
        raise DataError(f"mask: its points {points_xy.tolist()} lie outside of the picture")
    mask_hw = np.zeros(size_hw, np.bool_)
    mask_hw[top : bottom + 1, left : right + 1] = part_hw
    return mask_hw
