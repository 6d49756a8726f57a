"""A mask as what annotation tools hold: named regions, as bit masks or as polygons, and back.

The regions of a picture do not overlap, so that painting them in any order gives the mask again to the byte. A polygon
runs a quarter of a pixel inside of its region's pixel edges: which pixels it means follows from the pixels' centres,
here (:func:`fill_polygon`) as in any tool. Simplified polygons are for people to edit; what they lose is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.export.items import ExportImage, Source, copy_picture
from artifacts.objects import clip_window
from artifacts.records import UNDECIDED, DataError, MaskHW, size_of

MaskBool = NDArray[np.bool_]
PolygonXY = NDArray[np.float64]
"""``(N, 2)``: x and y in pixel edges."""
EDITABLE = 1.0
"""Pixels that a simplified outline may lie beside the exact one."""


@dataclass(frozen=True)
class Region:
    """One object, or all of one class that no object is known for."""

    class_id: int
    """1..K, or 255 for undecided pixels."""
    object_id: int | None
    mask_hw: MaskBool


def class_labels(classes: Sequence[str]) -> dict[int, str]:
    """Class number -> its name in a tool, 255 (``undecided``) last."""
    names = dict(enumerate(classes, start=1))
    undecided = "undecided"
    while undecided in classes:
        undecided += "_"
    return {**names, UNDECIDED: undecided}


def regions(image: ExportImage) -> list[Region]:
    """The regions of a picture that can be seen in its mask: objects by their ids' order, then what is in no object."""
    mask_hw = image.mask_hw
    owner_hw = np.full(mask_hw.shape, -1, np.int32)
    objects = list(image.objects or ())
    for place in sorted(range(len(objects)), key=lambda i: (-objects[i][0].window_area, i)):
        item, _ = objects[place]
        inside, part = clip_window(item.window_xyxy, size_of(mask_hw))
        owner_hw[inside][item.mask_hw[part]] = place
    rest_hw = mask_hw.copy()
    found = []
    for place, (item, class_id) in enumerate(objects):
        part_hw = (owner_hw == place) & (mask_hw == class_id)
        if part_hw.any():
            found.append(Region(class_id, item.id, part_hw))
            rest_hw[part_hw] = 0
    found += [Region(int(number), None, rest_hw == number) for number in np.unique(rest_hw) if number]
    return found


def outlines(mask_hw: MaskBool, tolerance: float = 0.0) -> list[PolygonXY]:
    """A polygon for each connected part (corners connect); holes are joined to it by a cut without width.

    Exact with ``tolerance`` 0: :func:`fill_polygon` of all gives the mask again. Else simplified by up to so many
    pixels (Douglas and Peucker), and a part that nothing is left of is left out.
    """
    # Twice as large, the contour of pixel centres is a quarter of a pixel inside of the edges.
    double = np.repeat(np.repeat(mask_hw.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    loops: dict[int, PolygonXY] = {}
    holes: list[tuple[int, PolygonXY]] = []
    for place, contour in enumerate(contours):
        if tolerance:
            contour = cv2.approxPolyDP(contour, 2 * tolerance, True)
        points_xy = (contour.reshape(-1, 2).astype(np.float64) + 0.5) / 2
        if len(points_xy) < 3:
            continue
        parent = int(tree[0][place][3])
        if parent < 0:
            loops[place] = points_xy
        else:
            holes.append((parent, points_xy))
    for parent, hole_xy in holes:
        if parent in loops:
            loops[parent] = _joined(loops[parent], hole_xy)
    return list(loops.values())


def _joined(outer_xy: PolygonXY, hole_xy: PolygonXY) -> PolygonXY:
    """One loop around both: to the hole along the shortest line between corners, around it, and back."""
    squares = ((outer_xy[:, None] - hole_xy[None]) ** 2).sum(axis=2)
    i, j = np.unravel_index(int(squares.argmin()), squares.shape)
    return np.concatenate([outer_xy[: i + 1], hole_xy[j:], hole_xy[: j + 1], outer_xy[i:]])


def fill_polygon(points_xy: PolygonXY, size_hw: tuple[int, int]) -> MaskBool:
    """Pixels whose centres lie in a polygon, by the even-odd rule; ``(H, W) bool``.

    Raises :class:`DataError` for fewer than three points and for numbers that are not finite.
    """
    if points_xy.ndim != 2 or points_xy.shape[1] != 2 or len(points_xy) < 3 or not np.isfinite(points_xy).all():
        raise DataError(f"a polygon needs three or more points x, y, not {points_xy.shape[0]} of them, all finite")
    height, width = size_hw
    after_xy = np.roll(points_xy, -1, axis=0)
    swap = (points_xy[:, 1] > after_xy[:, 1])[:, None]
    # Every edge from top to bottom: a cut that is walked both ways crosses a row at equal places, and cancels out.
    top_xy, bottom_xy = np.where(swap, after_xy, points_xy), np.where(swap, points_xy, after_xy)
    first = np.ceil(top_xy[:, 1] - 0.5).clip(0, height).astype(np.int64)
    count = np.ceil(bottom_xy[:, 1] - 0.5).clip(0, height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = first[edge] + np.arange(len(edge)) - (np.cumsum(count) - count)[edge]
    (x0, y0), (x1, y1) = top_xy[edge].T, bottom_xy[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    toggled = np.zeros((height, width + 1), np.int64)
    np.add.at(toggled, (row, column), 1)
    return np.asarray(np.cumsum(toggled, axis=1)[:, :width] % 2 == 1)


def fill_polygons(polygons_xy: Sequence[PolygonXY], size_hw: tuple[int, int]) -> MaskBool:
    """The union of polygons as ``(H, W) bool``."""
    mask_hw = np.zeros(size_hw, np.bool_)
    for points_xy in polygons_xy:
        mask_hw |= fill_polygon(points_xy, size_hw)
    return mask_hw


@dataclass
class PolygonLoss:
    """What polygons lose: counted by drawing them again."""

    pixels: int = 0
    """Pixels of all regions."""
    changed: int = 0
    """Pixels that are in a region or in its polygons, and not in both."""

    def outlines(self, region: Region, tolerance: float) -> list[PolygonXY]:
        """:func:`outlines` of a region, counted."""
        polygons_xy = outlines(region.mask_hw, tolerance)
        height, width = region.mask_hw.shape
        self.pixels += int(region.mask_hw.sum())
        self.changed += int((fill_polygons(polygons_xy, (height, width)) != region.mask_hw).sum())
        return polygons_xy

    def counts(self) -> dict[str, int]:
        """For the export's manifest."""
        return {"region_pixels": self.pixels, "pixels_changed_by_polygons": self.changed}


def copy_image(folder: Path, image: ExportImage, source: Source) -> str:
    """Copy an image to ``folder``, if images are wanted; returns its name there, with its suffix."""
    name = f"{image.image_id}{image.image.suffix}"
    if source.with_images:
        copy_picture(image.image, folder / name)
    return name


# -- back from a tool's file

Layer = Callable[[tuple[int, int]], MaskBool]
"""Draws one shape at the picture's size; raises :class:`DataError` where it cannot be drawn."""


def refuse(reason: str, size_hw: tuple[int, int]) -> MaskBool:
    """The layer of a shape that is no mask."""
    raise DataError(reason)


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """The size that a file states, ``None`` where it states none. Raises :class:`DataError` for no whole numbers."""
    if not height or not width:
        return None
    try:
        return int(height), int(width)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"height and width must be whole numbers, not {height!r} and {width!r}") from error


@dataclass(frozen=True)
class Drawn:
    """One picture of a tool's file: what was drawn, in the order in which it lies on top of each other."""

    names: Sequence[str]
    """What the file calls the picture, the surest first: an image id, a path, a file name."""
    layers: Sequence[tuple[str | None, Layer]]
    """``(class name, its shape)``; the later lies on top. ``None``: undecided, below all others."""
    size_hw: tuple[int, int] | None = None
    """The picture's size as the file states it."""
    mask: Callable[[Mapping[str, int], tuple[int, int]], MaskHW] | None = None
    """Gives the whole class mask, where the format holds that; no layers then."""
    sort_by_area: bool = False
    """Larger layers first, where the format has no order."""
    fault: str = ""
    """Why nothing of it can be used, where the file is at fault in this picture."""

    def paint(self, numbers: Mapping[str, int], size_hw: tuple[int, int]) -> MaskHW:
        """``(H, W) uint8``. Raises :class:`DataError` for an unknown class, another size, a shape that is none."""
        if self.fault:
            raise DataError(self.fault)
        if self.size_hw is not None and self.size_hw != size_hw:
            stated, real = (" x ".join(map(str, hw[::-1])) for hw in (self.size_hw, size_hw))
            raise DataError(f"the file says that the picture is {stated} (width x height), but it is {real}")
        if self.mask is not None:
            return self.mask(numbers, size_hw)
        parts = []
        for name, layer in self.layers:
            if name is not None and name not in numbers:
                raise DataError(f"{name!r} is no class of the data set; it has {', '.join(numbers)}")
            parts.append((layer(size_hw), UNDECIDED if name is None else numbers[name]))
        if self.sort_by_area:
            parts.sort(key=lambda part: (part[1] != UNDECIDED, -int(part[0].sum())))
        mask_hw = np.zeros(size_hw, np.uint8)
        for part_hw, number in parts:
            mask_hw[part_hw] = number
        return mask_hw
