"""What ``maskmill crf`` reads of one picture: energies, and each label's number. What cannot be meant is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from artifacts.records import UNDECIDED, Box, DataError

log = logging.getLogger("maskmill")

Sums = Literal["refuse", "divide", "keep"]
Energies = tuple[NDArray[np.float32], NDArray[np.uint8], set[int]]
"""Energies (K, H, W), the number of each label, and the labels other than background that the input holds."""

SUM_ROUNDING = 0.02
"""How far from 1 a pixel's probabilities may sum up: 255 float16 values do."""


def read_probs(path: Path, image: Path, size_hw: tuple[int, int], floor: float, sums: Sums) -> Energies:
    """Energies at the picture's size; each label's number is its place in the file."""
    from tasks.crf.dense_crf import from_probabilities, resize_probabilities

    try:
        probs = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not an .npy file of plain numbers (numpy.save of one array)") from error
    if not isinstance(probs, np.ndarray):
        raise DataError(f"{path}: an archive of arrays; save one array as .npy")
    turned = _turn(image)
    try:
        _check_layout(probs, size_hw, turned)
        if np.issubdtype(probs.dtype, np.floating):
            probs = _summing_to_one(probs, sums)
            probs = resize_probabilities(probs, size_hw)
        unary = from_probabilities(probs, floor)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    _say_turned(path, image, turned, size_hw)
    numbers = np.arange(len(probs), dtype=np.uint8)
    return unary, numbers, set(np.unique(unary.argmin(axis=0)).tolist()) - {0}


def _turn(image: Path) -> int:
    from artifacts.images import exif_orientation

    return exif_orientation(image)


def _say_turned(path: Path, image: Path, turned: int, size_hw: tuple[int, int]) -> None:
    """A warning where sizes cannot tell whether ``path`` is of the picture as it is shown, or as it is stored."""
    if turned in (2, 3, 4) or (turned > 4 and size_hw[0] == size_hw[1]):
        log.warning(
            "%s is shown turned (EXIF orientation %d): %s must be of the picture as it is shown", image, turned, path
        )


def _how_to_turn(turned: int, axes: str) -> str:
    """What an array of the picture as stored needs."""
    how = {6: f"np.rot90(array, -1{axes})", 8: f"np.rot90(array, 1{axes})"}
    return (
        f"it is of the picture as stored, which is shown turned (EXIF orientation {turned}): turn it, too:"
        f" {how.get(turned, 'as PIL.ImageOps.exif_transpose turns the picture')}"
    )


def _check_layout(probs: NDArray[Any], size_hw: tuple[int, int], turned: int) -> None:
    """Raise ``ValueError`` for axes in another order, batches, single maps, and NaN."""
    from tasks.crf.unary import check_layout

    if probs.ndim == 3 and np.issubdtype(probs.dtype, np.floating):
        # The values say more than the shape, whose proportions may look like those of another order of axes.
        first, last = (np.abs(probs.sum(axis=axis, dtype=np.float64) - 1).max() for axis in (0, -1))
        if last < 0.01 < 0.1 < first:
            turned_too = probs.shape[:2] == size_hw[::-1] != size_hw
            order = " and transposed? array.transpose(2, 1, 0)" if turned_too else "? array.transpose(2, 0, 1)"
            raise ValueError(f"{probs.shape} sums up to 1 along its last axis, not its first: labels last{order}")
    try:
        check_layout(probs.shape, size_hw)
    except ValueError as error:
        if turned > 4 and probs.ndim == 3 and probs.shape[:0:-1] == size_hw:
            raise ValueError(_how_to_turn(turned, ", axes=(1, 2)")) from error
        raise
    if not 2 <= len(probs) <= UNDECIDED:
        raise ValueError(
            f"{len(probs)} labels; expected 2..{UNDECIDED}, background first"
            + ("" if len(probs) > 1 else ": with one label all pixels get it; np.concatenate([1 - array, array])")
        )
    if not np.issubdtype(probs.dtype, np.floating):
        return
    if not np.isfinite(probs).all():
        label, y, x = np.argwhere(~np.isfinite(probs))[0]
        raise ValueError(f"holds {probs[label, y, x]} at label {label}, row {y}, column {x}")


def _summing_to_one(probs: NDArray[Any], sums: Sums) -> NDArray[Any]:
    """The probabilities, or what ``sums`` says where a pixel's do not sum to 1."""
    if float(probs.min()) < -SUM_ROUNDING or float(probs.max()) > 1 + SUM_ROUNDING:
        return probs  # no probabilities at all: from_probabilities says so
    total_hw = probs.sum(axis=0, dtype=np.float64)
    off = np.abs(total_hw - 1) > SUM_ROUNDING
    if sums == "keep" or not off.any():
        return probs
    if sums == "refuse":
        raise ValueError(
            f"the probabilities of {off.mean():.0%} of the pixels do not sum to 1 (but to {total_hw.min():.3g}.."
            f"{total_hw.max():.3g}): sigmoid outputs, or activations? Say what to do: --sums divide (by their sum), or"
            " --sums keep (as they are)"
        )
    even = np.full(probs.shape, 1 / len(probs), np.float32)
    np.divide(probs, total_hw[None], out=even, where=total_hw[None] > 0, casting="unsafe")
    return even


def read_labels(path: Path, image: Path, size_hw: tuple[int, int], gt_prob: float | None) -> Energies:
    """Energies of the labels that the map holds, and their numbers."""
    from artifacts.datasets.voc_masks import read_index_png
    from tasks.crf.dense_crf import from_labels

    turned = _turn(image)
    try:
        mask_hw = np.asarray(read_index_png(str(path), size_hw))
    except DataError as error:
        if turned > 4 and size_hw[0] != size_hw[1] and _is_of_size(path, size_hw[::-1]):
            raise DataError(f"{path}: {_how_to_turn(turned, '')}") from error
        raise
    _say_turned(path, image, turned, size_hw)
    numbers = np.unique(mask_hw)
    numbers = numbers[numbers != UNDECIDED]
    if not len(numbers):
        raise DataError(f"{path}: every pixel is {UNDECIDED}, unknown: there is no label to spread")
    if len(numbers) == 1:
        only = int(numbers[0])
        hint = f"; {UNDECIDED} means unknown: is it meant as a label? Save it as another number, 1 say"
        raise DataError(
            f"{path}: holds one label, {only}, so that every pixel would get it"
            + (hint if (mask_hw == UNDECIDED).any() else "")
        )
    places = np.full(256, UNDECIDED, dtype=np.int32)
    places[numbers] = np.arange(len(numbers))
    try:
        unary = from_labels(places[mask_hw], len(numbers), gt_prob)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return unary, numbers.astype(np.uint8), set(numbers.tolist()) - {0}


def _is_of_size(path: Path, size_hw: tuple[int, ...]) -> bool:
    from artifacts.images import image_size_hw

    try:
        return image_size_hw(path) == size_hw
    except (DataError, OSError):
        return False


def read_boxes(boxes: tuple[Box, ...], source: Path, image: Path, size_hw: tuple[int, int], core: float) -> Energies:
    """Energies of boxes (Bbox-Seg): outside background, the middle of each box certain, the CRF decides the rest.

    ``source``: the table, or the data set, whose reader knows how its boxes lie. Raises ``DataError`` for a box that
    does not lie in the picture, and for shares of its size.
    """
    from tasks.crf.unary import from_box_prior

    if source.is_file() and boxes:
        _check_boxes(boxes, source, image, size_hw)
    present = sorted({box.class_id for box in boxes})
    numbers = [1 + present.index(box.class_id) for box in boxes]
    unary = from_box_prior([box.xyxy for box in boxes], numbers, size_hw, len(present), core)
    return unary, np.array([0, *present], np.uint8), set(present)


def _check_boxes(boxes: tuple[Box, ...], table: Path, image: Path, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    turned = _turn(image)
    if all(max(box.xyxy) <= 1 for box in boxes):
        raise DataError(f"{table}: all boxes of {image.name} lie in its first pixel: shares of its size? Give pixels")
    hint = f"; it is shown turned (EXIF orientation {turned}): are the boxes of the picture as stored?" * (turned > 1)
    for x0, y0, x1, y1 in (box.xyxy for box in boxes):
        where = f"{table}: the box {x0:g},{y0:g},{x1:g},{y1:g} of {image.name} ({width} x {height} pixels)"
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise DataError(f"{where} lies outside of it{hint}")
        if min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1:
            log.warning("%s sticks out by more than a pixel, clipped%s", where, hint)
            return
    if turned > 1:
        log.warning("%s is shown turned (EXIF orientation %d): %s must hold its boxes as shown", image, turned, table)
