"""Pictures for the report page: a photograph and its masks, small enough for one file of many, or beside it.

Masks are palette PNGs whose background is transparent, so that one photograph serves them all and a slider fades them.
Regions have a white outline; the page writes their classes' names upon them: colours alone need not be told apart.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.cache.atomic import write_bytes_atomic
from artifacts.objects import Object, clip_window
from artifacts.records import UNDECIDED, ImageRGB, MaskHW
from artifacts.report import drawing

SIDE = 640
"""Longest side of a photograph in the page, in pixels: the whole of one of VOC or COCO."""
OUTLINE = 254
"""Palette index of outlines; a class of this number has the same colour."""
SMALL, LARGE = 32**2, 96**2
LARGE_FILE = 200_000
"""Bytes from which a PNG is put into the page as a JPEG."""
NAMED_SHARE = 0.004
"""Of the picture, the least share of a region that is named."""


@dataclass(frozen=True)
class Layer:
    """One mask over a photograph."""

    name: str
    mask_hw: MaskHW
    objects: Sequence[Object] = ()
    """Its objects, to tell instances of one class apart."""


@dataclass(frozen=True)
class ReportPicture:
    """One picture of the report."""

    image_id: str
    of: str
    """The set of masks that is judged: ``masks (train)``."""
    image_rgb: ImageRGB
    layers: Sequence[Layer]
    """The judged mask first, then other stages, truth last."""
    path: str = ""
    score: float | None = None
    """The picture's own mIoU; ``None`` without truth."""
    suspicion: float | None = None
    worst: Sequence[tuple[str, float]] = ()
    """``(class name, suspicion)`` of its most suspicious objects."""

    def without_pixels(self) -> ReportPicture:
        """What is said of it: a page of thousands holds no image in memory."""
        return replace(self, image_rgb=np.zeros((0, 0, 3), np.uint8), layers=())


@dataclass(frozen=True)
class Card:
    """A picture as the template takes it."""

    picture: ReportPicture
    photo: str
    width: int
    height: int
    layers: Sequence[dict[str, Any]]
    """``name``, ``uri``, ``names``: ``(class name, left, top)`` in per cent."""
    classes: Sequence[str]
    sizes: Sequence[str] = field(default=())
    """``small``, ``medium``, ``large``: of its regions."""


Keep = Callable[[str, bytes], str]
"""``keep(kind, data)``: where the page finds a picture, ``jpeg`` or ``png``."""


def data_uri(kind: str, data: bytes) -> str:
    """In the page itself."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


class Beside:
    """In files beside the page, numbered: a browser reads them when they come into view."""

    def __init__(self, folder: Path) -> None:
        """``folder``: made when needed, beside the page; pictures of an earlier page in it go."""
        self._folder = folder
        self._count = 0
        for path in self._folder.glob("[0-9]*"):
            if _NUMBERED.fullmatch(path.name):
                path.unlink()

    def __call__(self, kind: str, data: bytes) -> str:
        """Write one more; its address from the page."""
        name = f"{self._count:06d}.{kind}"
        self._count += 1
        write_bytes_atomic(self._folder / name, data, durable=False)
        return f"{self._folder.name}/{name}"


_NUMBERED = re.compile(r"\d{6,}\.(jpeg|png)")


def card(picture: ReportPicture, classes: Sequence[str], side: int = SIDE, keep: Keep = data_uri) -> Card:
    """The picture made small, its longest side ``side`` pixels at most, and encoded.

    Raises ``ValueError`` where a mask is not of the image's size.
    """
    height, width = picture.image_rgb.shape[:2]
    scale = min(1.0, side / max(height, width))
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(picture.image_rgb, size_wh, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, format="JPEG", quality=80)
    layers = []
    for layer in picture.layers:
        if layer.mask_hw.shape != (height, width):
            raise ValueError(f"{picture.image_id}: the mask {layer.name} is {layer.mask_hw.shape}, not {height, width}")
        layers.append(
            {
                "name": layer.name,
                "uri": keep("png", _overlay(layer, size_wh)),
                "names": region_names(layer.mask_hw, classes),
            }
        )
    shown = picture.layers[0].mask_hw if picture.layers else np.zeros((0, 0), np.uint8)
    _, counts = np.unique(shown[(shown > 0) & (shown != UNDECIDED)], return_counts=True)
    named = {_name(int(n), classes) for layer in picture.layers for n in np.unique(layer.mask_hw) if 0 < n < UNDECIDED}
    sizes = {"small" if n < SMALL else "large" if n > LARGE else "medium" for n in counts.tolist()}
    return Card(picture, keep("jpeg", buffer.getvalue()), *size_wh, layers, sorted(named), sorted(sizes))


def inline(path: Path, side: int | None = None) -> str:
    """A picture file as a data URI; a large one as a JPEG, which is a third of a contact sheet's PNG.

    ``side``: pixels that the longer side of a large one has at most.
    """
    data = path.read_bytes()
    if len(data) <= LARGE_FILE:
        return data_uri("png", data)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        if side is not None:
            image.thumbnail((side, side))
        image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return data_uri("jpeg", buffer.getvalue())


def _overlay(layer: Layer, size_wh: tuple[int, int]) -> bytes:
    """The mask as a palette PNG: background transparent, undecided hatched, regions with a white outline."""
    mask_hw = cv2.resize(layer.mask_hw, size_wh, interpolation=cv2.INTER_NEAREST)
    parts = _instances(layer, size_wh) if layer.objects else mask_hw
    across = np.zeros(mask_hw.shape, np.bool_)
    for array in (mask_hw, parts):
        across[:, 1:] |= array[:, 1:] != array[:, :-1]
        across[1:] |= array[1:] != array[:-1]
    indices = mask_hw.copy()
    indices[across & (min(size_wh) >= 64)] = OUTLINE
    rows, columns = np.indices(mask_hw.shape)
    indices[(mask_hw == UNDECIDED) & ((rows + columns) // 3 % 2 == 0)] = 0
    palette = np.full((256, 3), 255, np.uint8)
    for number in np.unique(mask_hw):
        if 0 < number < OUTLINE:
            palette[number] = drawing.class_colour(int(number))
    palette[UNDECIDED] = drawing.UNDECIDED_GREY
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=0, optimize=True)
    return buffer.getvalue()


def _instances(layer: Layer, size_wh: tuple[int, int]) -> NDArray[np.int32]:
    """The number of the object on top of each pixel, larger windows below; 0 where there is none."""
    height, width = layer.mask_hw.shape
    numbers = np.zeros((height, width), np.int32)
    order = sorted(range(len(layer.objects)), key=lambda i: (-layer.objects[i].window_area, i))
    for place in order:
        item = layer.objects[place]
        inside, part = clip_window(item.window_xyxy, (height, width))
        numbers[inside][item.mask_hw[part]] = place + 1
    return np.asarray(cv2.resize(numbers, size_wh, interpolation=cv2.INTER_NEAREST), np.int32)


def region_names(mask_hw: MaskHW, classes: Sequence[str]) -> list[tuple[str, float, float]]:
    """``(class name, left, top)`` in per cent: the innermost pixel of the largest part of each class."""
    found = []
    for number in np.unique(mask_hw).tolist():
        if not 0 < number < UNDECIDED:
            continue
        _, marks, stats, _ = cv2.connectedComponentsWithStats((mask_hw == number).astype(np.uint8), connectivity=4)
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        if stats[largest, cv2.CC_STAT_AREA] < NAMED_SHARE * mask_hw.size:
            continue
        depth = cv2.distanceTransform(np.pad((marks == largest).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), mask_hw.shape)
        height, width = mask_hw.shape
        found.append((_name(number, classes), 100 * (x + 0.5) / width, 100 * (y + 0.5) / height))
    return found


def _name(number: int, classes: Sequence[str]) -> str:
    return classes[number - 1] if number <= len(classes) else f"class {number}"
