"""Per-object masks of one image as five flat arrays, and their way back into the image.

An object's mask lies in a *window*: ``x0, y0, x1, y1`` in the image's pixels, half-open, which may stick out of the
image. Only the window is stored, in its own size (``object_hw_n2``), for pasted whole 200 boxes would take 75 MB.

``object_ids_n``     int64, = ``Box.id``
``windows_xyxy_n4``  int32
``object_hw_n2``     int32, size of each mask = size of its window
``offsets_n``        int64, first element of each mask in ``objects_flat``
``objects_flat``     uint8 masks (nonzero = object) or float16 probabilities, one after the other
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.records import MaskHW, shown

OBJECT_ARRAYS = ("object_ids_n", "windows_xyxy_n4", "object_hw_n2", "offsets_n", "objects_flat")
"""What a stage with per-object masks declares among its ``outputs``."""
THRESHOLD = 0.5
"""A probability above this belongs to the object; the default of :func:`paint_label_map`."""

_INT32_MAX = 2**31 - 1
ObjectHW = NDArray[np.uint8] | NDArray[np.float16]
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Object:
    """One object's mask: ``values_hw`` ``(y1 - y0, x1 - x0)`` uint8 or float16 in its window."""

    id: int
    window_xyxy: Window
    values_hw: ObjectHW

    @property
    def window_area(self) -> int:
        """Area of the window in pixels, the part outside the image included."""
        x0, y0, x1, y1 = self.window_xyxy
        return (x1 - x0) * (y1 - y0)

    @property
    def mask_hw(self) -> NDArray[np.bool_]:
        """Where the object is in its window: nonzero, or above :data:`THRESHOLD` where values are probabilities."""
        least = THRESHOLD if self.values_hw.dtype.kind == "f" else 0
        found: NDArray[np.bool_] = self.values_hw > least
        return found

    def _repr_png_(self) -> Any:
        return shown("object_png", self)


def pack_objects(
    object_ids: Sequence[int], windows_xyxy: Sequence[Sequence[int]], masks: Sequence[NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The five arrays for ``masks[i]`` of object ``object_ids[i]`` in ``windows_xyxy[i]``.

    Masks are bool or uint8 (stored as uint8), or all float16, and as large as their windows.

    Raises:
        ValueError: lengths differ, an id occurs twice, a mask is not as large as its window, or dtypes are mixed.
    """
    if not len(object_ids) == len(windows_xyxy) == len(masks):
        raise ValueError(f"{len(object_ids)} ids, {len(windows_xyxy)} windows and {len(masks)} masks: must be equal")
    if len(set(map(int, object_ids))) != len(object_ids):
        raise ValueError(f"an object id occurs twice in {sorted(map(int, object_ids))}")
    windows = np.array([_whole(window) for window in windows_xyxy], np.int64).reshape(-1, 4)
    hw = np.stack([windows[:, 3] - windows[:, 1], windows[:, 2] - windows[:, 0]], axis=1)
    for object_id, window, size, mask in zip(object_ids, windows.tolist(), hw.tolist(), masks, strict=True):
        if mask.shape != tuple(size):
            raise ValueError(f"object {object_id}: window {window} needs a mask of {tuple(size)}, got {mask.shape}")
    flats = [_storable(mask).reshape(-1) for mask in masks]
    if len(dtypes := {flat.dtype for flat in flats}) > 1:
        raise ValueError(f"masks of one image must share a dtype, got {sorted(map(str, dtypes))}")
    sizes = np.array([flat.size for flat in flats], np.int64)
    return {
        "object_ids_n": np.array(object_ids, np.int64).reshape(-1),
        "windows_xyxy_n4": windows.astype(np.int32),
        "object_hw_n2": hw.astype(np.int32),
        "offsets_n": np.cumsum(sizes) - sizes,
        "objects_flat": np.concatenate(flats) if flats else np.zeros(0, np.uint8),
    }


def _whole(window: Sequence[int]) -> list[int]:
    whole = [int(value) for value in window]
    if len(whole) != 4 or any(a != b or abs(a) > _INT32_MAX for a, b in zip(whole, window, strict=True)):
        raise ValueError(f"window {tuple(window)} must be four whole pixel edges x0, y0, x1, y1 within int32")
    return whole


def _storable(mask: NDArray[Any]) -> ObjectHW:
    if mask.dtype == np.bool_:
        return mask.view(np.uint8) if mask.flags.c_contiguous else mask.astype(np.uint8)
    if mask.dtype == np.uint8 or mask.dtype == np.float16:
        return mask
    raise ValueError(f"object masks are bool, uint8 or float16, got {mask.dtype}")


def unpack_objects(arrays: Mapping[str, NDArray[Any]]) -> list[Object]:
    """The objects that :func:`pack_objects` packed, in the same order; masks are views of ``objects_flat``.

    Raises ``ValueError`` if the arrays do not fit each other.
    """
    ids, windows, hw, offsets, flat = (arrays[name] for name in OBJECT_ARRAYS)
    if not len(ids) == len(windows) == len(hw) == len(offsets):
        raise ValueError(
            f"{len(ids)} ids, {len(windows)} windows, {len(hw)} sizes, {len(offsets)} offsets: not one set"
        )
    objects = []
    for object_id, (x0, y0, x1, y1), (height, width), offset in zip(
        ids.tolist(), windows.tolist(), hw.tolist(), offsets.tolist(), strict=True
    ):
        if (height, width) != (y1 - y0, x1 - x0) or not 0 <= offset <= offset + height * width <= flat.size:
            raise ValueError(
                f"object {object_id}: size {(height, width)} at {offset} does not fit window {(x0, y0, x1, y1)} "
                f"and {flat.size} stored elements"
            )
        values_hw = flat[offset : offset + height * width].reshape(height, width)
        objects.append(Object(object_id, (x0, y0, x1, y1), values_hw))
    return objects


def paste_object(values_hw: NDArray[Any], window_xyxy: Sequence[int], size_hw: tuple[int, int]) -> NDArray[Any]:
    """``values_hw`` at its window in an image of ``size_hw``, zero elsewhere; what sticks out is cut off."""
    image_hw = np.zeros(size_hw, values_hw.dtype)
    inside, part = clip_window(window_xyxy, size_hw)
    image_hw[inside] = values_hw[part]
    return image_hw


def tight_window(mask_hw: NDArray[np.bool_]) -> Window:
    """``x0, y0, x1, y1`` around all that is set, half-open; without area where nothing is."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def clip_window(
    window_xyxy: Sequence[int], size_hw: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a window lies in the image, and which part of the window's array that is (both as row, column slices).

    A window wholly outside gives empty slices.
    """
    x0, y0, x1, y1 = window_xyxy
    rows = _clip(y0, y1, size_hw[0])
    columns = _clip(x0, x1, size_hw[1])
    inside = slice(*rows), slice(*columns)
    part = slice(rows[0] - y0, rows[1] - y0), slice(columns[0] - x0, columns[1] - x0)
    return inside, part


def _clip(low: int, high: int, size: int) -> tuple[int, int]:
    """``low..high`` within ``0..size``; empty where they do not meet."""
    first = min(max(low, 0), size)
    return first, max(min(high, size), first)


def paint_label_map(
    objects: Sequence[Object],
    class_of_id: Mapping[int, int],
    size_hw: tuple[int, int],
    *,
    area_of_id: Mapping[int, float] | None = None,
    threshold: float = THRESHOLD,
) -> MaskHW:
    """``(H, W) uint8`` class map: larger objects first, smaller on top.

    Large and small by ``area_of_id`` (the boxes' areas, say; windows may hold context around the box), by default
    by the windows' areas. Equal areas: the higher id lies on top. The order of ``objects`` does not matter. Uint8
    masks: nonzero is the object; float16 probabilities: above ``threshold``.

    Raises ``ValueError`` for an object whose class ``class_of_id`` does not name.
    """
    label_hw = np.zeros(size_hw, np.uint8)
    if unknown := sorted(o.id for o in objects if o.id not in class_of_id):
        raise ValueError(f"objects {unknown} have no class; classes are known for ids {sorted(class_of_id)}")
    area = {o.id: o.window_area if area_of_id is None else area_of_id[o.id] for o in objects}
    for item in sorted(objects, key=lambda o: (-area[o.id], o.id)):
        inside, part = clip_window(item.window_xyxy, size_hw)
        values_hw = item.values_hw[part]
        object_hw = values_hw > threshold if values_hw.dtype.kind == "f" else values_hw != 0
        label_hw[inside][object_hw] = class_of_id[item.id]
    return label_hw
