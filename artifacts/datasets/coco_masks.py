"""COCO segmentations as pixels: polygons, run-length codes as text, run-length codes as lists.

Run-length codes count down the columns, starting with background. They are decoded here in numpy, which checks whether
the runs fit the image, and works where pycocotools is not installed. Polygons are rasterised by pycocotools, because
its rounding *is* the definition of a COCO polygon mask.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.images import pixel_limit
from artifacts.records import DataError, MaskHW

MaskBool = NDArray[np.bool_]


def decode_segmentation(raw: bytes, size_hw: tuple[int, int]) -> MaskBool:
    """The ``(H, W) bool`` mask of one annotation's ``segmentation`` (JSON bytes).

    Accepts a list of polygons, one flat polygon, and run-length codes with ``counts`` as text (compressed) or as
    a list. Raises :class:`DataError` that describes the fault; the caller adds which annotation it is.
    """
    value = _decoded(raw)
    if isinstance(value, list):
        return polygons_mask(value, size_hw)
    counts, size = value
    if size != size_hw:
        raise DataError(f"segmentation: run-length code of size {list(size)}, but the image is {list(size_hw)}")
    return runs_mask(counts, size_hw)


def extent_xywh(raw: bytes) -> tuple[float, float, float, float] | None:
    """The box around a segmentation (JSON bytes), for an annotation that states none; ``None`` if there is none."""
    if len(raw) < 8:
        return None
    try:
        value = _decoded(raw)
    except DataError:
        return None
    if isinstance(value, list):
        numbers = [polygon for polygon in value if len(polygon) >= 6 and len(polygon) % 2 == 0]
        xs = [x for polygon in numbers for x in polygon[0::2]]
        ys = [y for polygon in numbers for y in polygon[1::2]]
        return (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)) if xs else None
    counts, (height, width) = value
    if min(height, width) < 1 or height * width > pixel_limit() or sum(counts) != height * width:
        return None
    y, x = np.nonzero(runs_mask(counts, (height, width)))
    if not len(x):
        return None
    return float(x.min()), float(y.min()), float(x.max() + 1 - x.min()), float(y.max() + 1 - y.min())


def _decoded(raw: bytes) -> list[list[float]] | tuple[list[int], tuple[int, int]]:
    """Polygons, or run lengths and the size that they are of."""
    import msgspec

    class Runs(msgspec.Struct):
        counts: str | list[int]
        size: tuple[int, int]

    try:
        value = msgspec.json.decode(raw, type=list[list[float]] | Runs)
    except msgspec.DecodeError as error:
        try:
            return [msgspec.json.decode(raw, type=list[float])]
        except msgspec.DecodeError:
            raise DataError(f"segmentation: {error}; expected polygons or run-length codes") from error
    except RecursionError as error:
        raise DataError("segmentation: nested too deeply; expected polygons or run-length codes") from error
    if isinstance(value, list):
        return value
    return (parse_counts(value.counts) if isinstance(value.counts, str) else value.counts), value.size


def runs_mask(counts: list[int], size_hw: tuple[int, int]) -> MaskBool:
    """``(H, W) bool`` from run lengths down the columns: background, object, background, ...

    Raises :class:`DataError` unless the runs are non-negative and fill the image exactly.
    """
    height, width = size_hw
    total = sum(counts)
    if min(counts, default=0) < 0 or total != height * width:
        raise DataError(f"segmentation: runs add up to {total} pixels, but {height} x {width} is {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def parse_counts(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers.

    Little-endian groups of 5 bits, each a character from ``chr(48)`` on; bit 5 says that more follow, bit 4 of the
    last group is the sign; from the fourth number on it is the difference to the number two before (``rleToString``
    in COCO's maskApi.c).
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise DataError(f"segmentation: {character!r} cannot stand in compressed counts")
        value |= (group & 0x1F) << shift
        shift += 5
        if shift > 60:  # such numbers make every further group slower, and fit no image
            raise DataError("segmentation: compressed counts hold a number of more than 60 bits")
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError("segmentation: compressed counts are cut off")
    return counts


def polygons_mask(polygons_xy: list[list[float]], size_hw: tuple[int, int]) -> MaskBool:
    """The union of polygons ``[x0, y0, x1, y1, ...]`` (pixel edges) as ``(H, W) bool``.

    Polygons of one or two points beside others have no area and are passed over; alone they are no object (four numbers
    are mostly a box), and an empty mask would say that nothing is there. Corners further out than one image size beyond
    the edge are moved there: pycocotools walks every edge pixel by pixel, and 1e9 pixels would take it for ever.
    Raises :class:`DataError` for those, and for an odd number of coordinates.
    """
    from pycocotools import mask as coco_mask

    height, width = size_hw
    solid = []
    for polygon in polygons_xy:
        if len(polygon) % 2 or not all(map(math.isfinite, polygon)):
            raise DataError(
                f"segmentation: a polygon has {len(polygon)} coordinates; expected x and y in pairs, finite"
            )
        if len(polygon) >= 6:
            points_xy = np.array(polygon, np.float64).reshape(-1, 2)
            solid.append(np.clip(points_xy, (-width, -height), (2 * width, 2 * height)).ravel().tolist())
    if not solid:
        raise DataError(
            f"segmentation: a polygon of {max(map(len, polygons_xy), default=0)} numbers; a corner is two, and a"
            " polygon has three at least. A box? It says not which pixels are the object: leave the segmentation out"
        )
    # One call a polygon: a list whose first member has 4 numbers would be taken for boxes.
    runs = [coco_mask.frPyObjects([polygon], height, width)[0] for polygon in solid]
    return runs_mask(parse_counts(coco_mask.merge(runs)["counts"].decode("ascii")), size_hw)


def encode_mask(mask_hw: NDArray[Any]) -> tuple[str, int, tuple[float, float, float, float]]:
    """Compressed counts, area in pixels and tight ``x, y, width, height`` of an ``(H, W)`` mask (non-zero = object)."""
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(mask_hw != 0, dtype=np.uint8))
    x, y, width, height = (float(v) for v in coco_mask.toBbox(code))
    return code["counts"].decode("ascii"), int(coco_mask.area(code)), (x, y, width, height)


def paint(layers: list[tuple[MaskBool, int]], size_hw: tuple[int, int], undecided: list[MaskBool]) -> MaskHW:
    """One ``(H, W) uint8`` class mask from possibly overlapping objects.

    ``undecided`` (crowds) goes down first as 255, then the ``(mask, class number)`` layers, larger areas first, so
    that the smaller lies on top (a cup on a table); of two of the same area the later in the list lies on top.
    """
    mask_hw = np.zeros(size_hw, np.uint8)
    for region in undecided:
        mask_hw[region] = 255
    for layer, class_id in sorted(layers, key=lambda item: -int(item[0].sum())):
        mask_hw[layer] = class_id
    return mask_hw
