"""Truth masks of VOC trees and SBD, decoded on access. A ``MaskRef.detail`` holds what the check needs."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.datasets.voc_tree import VOC_CLASSES, read_labelmap
from artifacts.datasets.voc_writer import voc_palette
from artifacts.datasets.voc_xml import read_annotation
from artifacts.inputs import InputFault, open_input, read_input
from artifacts.records import UNDECIDED, DataError, MaskHW, MaskRef

ObjectMasks = tuple[NDArray[np.bool_], NDArray[np.int64]]
"""``(masks (N, H, W) bool, ids (N,) int64)``, ids as in ``Box.id``, ascending."""

_LEAST_BOX_IOU = 0.5
_PNG = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH = 24
"""Place of the bits of a sample in a PNG file (its first chunk is the header)."""


def class_mask_ref(path: str, class_count: int, size_hw: tuple[int, int], labelmap: str = "") -> MaskRef:
    """A class mask: a PNG of a VOC tree, or an SBD ``cls/*.mat``; with ``labelmap`` (CVAT's file) by its colours."""
    detail = f"{class_count},{size_hw[0]},{size_hw[1]},{labelmap}"
    return MaskRef("artifacts.datasets.voc_masks:load_class_mask", path, detail)


def objects_ref(path: str, object_count: int | None, size_hw: tuple[int, int]) -> MaskRef:
    """A ``SegmentationObject`` PNG; ``object_count`` is the XML's, ``None`` without an XML."""
    count = -1 if object_count is None else object_count
    return MaskRef("artifacts.datasets.voc_masks:load_objects", path, f"{count},{size_hw[0]},{size_hw[1]}")


def sbd_objects_ref(path: str, xml: str, size_hw: tuple[int, int]) -> MaskRef:
    """An SBD ``inst/*.mat``, whose objects are those of the VOC annotation ``xml`` in another order."""
    return MaskRef("artifacts.datasets.voc_masks:load_sbd_objects", path, f"{size_hw[0]},{size_hw[1]},{xml}")


def load_class_mask(ref: MaskRef) -> MaskHW:
    """``(H, W) uint8``: 0 background, 1..K classes, 255 undecided.

    Raises :class:`DataError` for an unreadable file, another size than the image's, or a number that is no class.
    """
    *numbers_text, labelmap = ref.detail.split(",", 3)
    count, height, width = (int(part) for part in numbers_text)
    if ref.path.lower().endswith(".mat"):
        mask = _sbd_field(ref.path, "GTcls", "Segmentation")
        _check_size(ref.path, mask.shape, (height, width))
    else:
        mask = read_index_png(ref.path, (height, width), _labelmap(labelmap) if labelmap else None)
    numbers = np.bincount(mask.reshape(-1), minlength=256)
    numbers[UNDECIDED] = 0
    wrong = np.flatnonzero(numbers[count + 1 :]) + count + 1
    if len(wrong):
        listed = ", ".join(f"{value} ({numbers[value]:,} pixels)" for value in wrong[:5])
        raise DataError(
            f"{ref.path}: holds the number {listed}; the class table has 1..{count}, 0 is background, 255 undecided."
            " Correct the mask, or the class table (classes.txt, data.classes; to keep some classes alone: data.only)"
        )
    return mask.astype(np.uint8, copy=False)


def load_objects(ref: MaskRef) -> ObjectMasks:
    """Object masks of a ``SegmentationObject`` PNG: value ``i + 1`` is the XML's object ``i``.

    Raises :class:`DataError` as :func:`load_class_mask`, and for a value without an object in the XML.
    """
    count, height, width = (int(part) for part in ref.detail.split(","))
    mask = read_index_png(ref.path, (height, width))
    values = np.unique(mask)
    values = values[(values != 0) & (values != UNDECIDED)]
    if count >= 0 and len(values) and values[-1] > count:
        raise DataError(
            f"{ref.path}: holds object {values[-1]}, but the annotation has {count}; value i is the XML's i-th object"
        )
    return mask[None] == values[:, None, None], values.astype(np.int64) - 1


def load_sbd_objects(ref: MaskRef) -> ObjectMasks:
    """Object masks of SBD, each under the id of the VOC box that it fits best.

    SBD counts its objects on its own: they are assigned to the annotation's boxes one to one, same class, largest sum
    of box IoU, least IoU 0.5; what fits none is left out.
    """
    height, width, xml = ref.detail.split(",", 2)
    mask = _sbd_field(ref.path, "GTinst", "Segmentation")
    _check_size(ref.path, mask.shape, (int(height), int(width)))
    numbers = [int(value) for value in np.unique(mask) if value]
    class_of = _sbd_field(ref.path, "GTinst", "Categories").reshape(-1)
    boxes = [(item.index, item.name, item.xyxy) for item in read_annotation(xml).objects if item.xyxy is not None]
    gain = np.zeros((len(numbers), len(boxes)))
    for row, value in enumerate(numbers):
        tight = _tight_box(mask == value)
        for column, (_, name, xyxy) in enumerate(boxes):
            if VOC_CLASSES[int(class_of[value - 1]) - 1] == name:
                gain[row, column] = _iou(tight, xyxy)
    from scipy.optimize import linear_sum_assignment

    pairs = [
        (boxes[c][0], numbers[r])
        for r, c in zip(*linear_sum_assignment(-gain), strict=True)
        if gain[r, c] >= _LEAST_BOX_IOU
    ]
    pairs.sort()
    values = np.array([value for _, value in pairs], mask.dtype)
    return mask[None] == values[:, None, None], np.array([box_id for box_id, _ in pairs], np.int64)


def read_index_png(
    path: str, size_hw: tuple[int, int], colours: Mapping[tuple[int, int, int], int] | None = None
) -> NDArray[Any]:
    """The numbers of a palette or grey PNG, ``(H, W)``; VOC's colours in an RGB file are turned into them.

    Grey of 2 or 4 bits holds the numbers as they are stored, not spread over 0..255. ``colours`` (colour -> number)
    are those of a palette or RGB file instead of VOC's. Raises :class:`DataError` for another size (by its header) or
    kind of file (a JPEG called ``.png`` has lost its numbers), ``OSError`` where it cannot be read.
    """
    data = read_input(path)
    if not data.startswith(_PNG):
        raise DataError(
            f"{path}: not a PNG file (it begins with {data[:8]!r}); other formats do not keep class numbers"
        )
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            _check_size(path, image.size[::-1], size_hw)
            as_colours = colours is not None and image.mode == "P"
            mode = "RGB" if as_colours else image.mode
            pixels = np.asarray(image.convert("RGB") if as_colours else image)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not a readable mask ({type(error).__name__}: {error})") from error
    if mode == "P":
        return pixels
    if mode == "L":
        bits = data[_BIT_DEPTH]
        return np.asarray(pixels // (255 // (2**bits - 1)), np.uint8) if bits < 8 else pixels
    if mode == "1" or (mode.startswith("I") and pixels.min() >= 0 and pixels.max() <= 255):
        return pixels.astype(np.uint8)
    if mode == "RGB":
        if colours is not None:
            return _from_colours(path, pixels, colours, "labelmap.txt")
        table = {(red, green, blue): number for number, (red, green, blue) in enumerate(voc_palette().tolist())}
        return _from_colours(path, pixels, table, "VOC's palette")
    raise DataError(f"{path}: a mask must be a palette or grey PNG of 8 bits, this one has mode {mode}")


def other_numbers(path: str) -> dict[int, int]:
    """Number that a palette PNG holds -> the number that VOC has for its colour, where that is another one.

    Empty for other files: grey has no colours, and RGB is read by its colours. Raises as :func:`read_index_png`.
    """
    with Image.open(io.BytesIO(read_input(path)), formats=("PNG",)) as image:
        if image.mode != "P":
            return {}
        flat = image.getpalette("RGB") or []
        held = np.unique(np.asarray(image)).tolist()
    colours = [tuple(flat[start : start + 3]) for start in range(0, len(flat), 3)]
    vocs = {tuple(voc_palette()[number].tolist()): number for number in (*range(len(VOC_CLASSES) + 1), UNDECIDED)}
    said = {number: vocs.get(colours[number], number) for number in held if number < len(colours)}
    return {number: other for number, other in said.items() if other != number}


def _from_colours(
    path: str, pixels: NDArray[np.uint8], colours: Mapping[tuple[int, int, int], int], where: str
) -> NDArray[np.uint8]:
    weights = np.array([65536, 256, 1])
    codes = np.array(list(colours)) @ weights
    numbers = np.array(list(colours.values()), np.uint8)
    order = np.argsort(codes)
    wanted = pixels.astype(np.int64) @ weights
    place = np.searchsorted(codes[order], wanted).clip(max=len(codes) - 1)
    unknown = codes[order][place] != wanted
    if unknown.any():
        y, x = np.argwhere(unknown)[0]
        colour = tuple(int(v) for v in pixels[y, x])
        raise DataError(
            f"{path}: the colour {colour} at x {x}, y {y} is not in {where}; save the mask as a palette or grey"
            " PNG, one number a pixel"
        )
    return np.asarray(numbers[order][place], np.uint8)


@functools.cache
def _labelmap(path: str) -> dict[tuple[int, int, int], int]:
    return read_labelmap(Path(path))[1]


def _sbd_field(path: str, struct: str, name: str) -> NDArray[Any]:
    """One field of an SBD file. Raises :class:`DataError` if it is another kind of file."""
    from scipy.io import loadmat

    try:
        with open_input(path) as file:
            field = np.asarray(loadmat(file)[struct][0, 0][name])
    except OSError as error:
        if isinstance(error, InputFault) or error.errno is not None:
            raise
        raise DataError(f"{path}: no {struct}.{name} as SBD has it ({error})") from error
    except Exception as error:
        raise DataError(f"{path}: no {struct}.{name} as SBD has it ({type(error).__name__}: {error})") from error
    return field


def _check_size(path: str, shape_hw: tuple[int, ...], size_hw: tuple[int, int]) -> None:
    if shape_hw != size_hw:
        shape = " x ".join(str(n) for n in shape_hw[::-1])
        raise DataError(f"{path}: the mask is {shape} (width x height), its image {size_hw[1]} x {size_hw[0]}")


def _tight_box(mask_hw: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    y, x = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    return float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
