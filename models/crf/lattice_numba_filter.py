"""What :mod:`models.crf.lattice_numba` compiles to use the lattice: splat, blur and slice, one pass of mean field.

Arrays are flat. ``corners`` int32 and ``weights`` float32 have D + 1 numbers a point; ``values`` holds M + 1 rows of
``width`` float32 (one row a vertex, its labels side by side, ``width`` a multiple of the lanes of a vector), and the
last row is 0: it stands for vertices that are not there. Indices are trusted, so only the public module calls this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.crf.simd_numba import (
    Float32,
    Int32,
    Lanes,
    add,
    compiled,
    compiled_inside,
    divide,
    exp,
    fill,
    item,
    largest,
    load,
    maximum,
    multiply,
    multiply_add,
    store,
    subtract,
    total,
)

BLOCK = 16384
"""Numbers a block of points takes: 64 KB stay in the second cache; a quarter of it would be 8 % slower."""

NO_LABEL = -1e30
"""Energy of the lanes that fill up a vector: their probability is exactly 0."""


@compiled_inside
def _splat_corners(
    source: Float32, first: int, stop: int, corners: Int32, weights: Float32, sides: Any, scale: Float32,
    values: Float32, width: int, lanes: Lanes,
) -> None:  # fmt: skip
    for point in range(first, stop):
        row, corner = (point - first) * width, point * len(sides)
        factor = item(scale, point) if len(scale) > 0 else np.float32(1.0)
        for lane in range(0, width, len(lanes)):
            given = multiply(load(source, row + lane, lanes), fill(factor, lanes))
            for k in range(len(sides)):
                place = np.int64(item(corners, corner + k)) * width + lane
                share = fill(item(weights, corner + k), lanes)
                store(values, place, multiply_add(given, share, load(values, place, lanes)))


@compiled_inside
def _slice_corners(
    target: Float32, first: int, stop: int, corners: Int32, weights: Float32, sides: Any, scale: Float32,
    values: Float32, width: int, lanes: Lanes,
) -> None:  # fmt: skip
    for point in range(first, stop):
        row, corner = (point - first) * width, point * len(sides)
        factor = item(scale, point) if len(scale) > 0 else np.float32(1.0)
        for lane in range(0, width, len(lanes)):
            taken = fill(0.0, lanes)
            for k in range(len(sides)):
                place = np.int64(item(corners, corner + k)) * width + lane
                taken = multiply_add(fill(item(weights, corner + k), lanes), load(values, place, lanes), taken)
            store(target, row + lane, multiply_add(taken, fill(factor, lanes), load(target, row + lane, lanes)))


@compiled
def splat(
    source: Float32, first: int, stop: int, corners: Int32, weights: Float32, sides: int, scale: Float32,
    values: Float32, width: int, lanes: Lanes,
) -> None:  # fmt: skip
    """values[corner] += weight * scale * source, for the points from ``first`` to ``stop``.

    ``source`` begins at the first of them; ``scale`` is (N,), or empty for 1.
    """
    if sides == 3:  # images: position, and position with colour; a loop of constant length is half the time
        _splat_corners(source, first, stop, corners, weights, (0, 0, 0), scale, values, width, lanes)
    elif sides == 6:
        _splat_corners(source, first, stop, corners, weights, (0, 0, 0, 0, 0, 0), scale, values, width, lanes)
    else:
        _splat_corners(source, first, stop, corners, weights, range(sides), scale, values, width, lanes)


@compiled
def slice_values(
    target: Float32, first: int, stop: int, corners: Int32, weights: Float32, sides: int, scale: Float32,
    values: Float32, width: int, lanes: Lanes,
) -> None:  # fmt: skip
    """target += scale * sum of weight * values[corner], for the points from ``first`` to ``stop`` as in ``splat``."""
    if sides == 3:
        _slice_corners(target, first, stop, corners, weights, (0, 0, 0), scale, values, width, lanes)
    elif sides == 6:
        _slice_corners(target, first, stop, corners, weights, (0, 0, 0, 0, 0, 0), scale, values, width, lanes)
    else:
        _slice_corners(target, first, stop, corners, weights, range(sides), scale, values, width, lanes)


@compiled
def blur(
    values: Float32, scratch: Float32, neighbours: Int32, axes: int, reverse: bool, gain: Float32, lanes: Lanes
) -> tuple[Float32, Float32]:
    """Along each axis in turn, new = old + (before + after) / 2 (Adams et al. 2010, p. 6); the last one times ``gain``.

    ``gain`` (width,). Returns the array that holds the result, and the other one.
    """
    count = len(neighbours) // (2 * axes)
    width, half, one = len(gain), fill(0.5, lanes), fill(1.0, lanes)
    for turn in range(axes):
        axis = axes - 1 - turn if reverse else turn
        for vertex in range(count):
            row = (axis * count + vertex) * 2
            before, after = np.int64(item(neighbours, row)) * width, np.int64(item(neighbours, row + 1)) * width
            for lane in range(0, width, len(lanes)):
                pair = add(load(values, before + lane, lanes), load(values, after + lane, lanes))
                blurred = multiply_add(pair, half, load(values, vertex * width + lane, lanes))
                factor = load(gain, lane, lanes) if turn == axes - 1 else one
                store(scratch, vertex * width + lane, multiply(blurred, factor))
        values, scratch = scratch, values
    return values, scratch


@compiled
def packed_energies(unary_ln: Float32, width: int) -> tuple[Float32, bool]:
    """Minus the unary energies, flat (N, width), ``NO_LABEL`` where there is no label; and whether all are finite."""
    labels, n = unary_ln.shape
    packed = np.full(n * width, np.float32(NO_LABEL))
    bad = np.float32(0.0)
    for start in range(0, n, 64):
        for label in range(labels):
            for point in range(start, min(n, start + 64)):
                packed[point * width + label] = -unary_ln[label, point]
                bad += np.float32(0.0) * unary_ln[label, point]
    return packed, bad == 0


@compiled_inside
def softmax(block: Float32, points: int, width: int, lanes: Lanes) -> None:
    """exp and normalise (algorithm 1, initialisation and step 5) of each row of ``block``, in place."""
    for row in range(0, points * width, width):
        top = load(block, row, lanes)
        for lane in range(row + len(lanes), row + width, len(lanes)):
            top = maximum(top, load(block, lane, lanes))
        top, sums = largest(top), fill(0.0, lanes)
        for lane in range(row, row + width, len(lanes)):
            mass = exp(subtract(load(block, lane, lanes), top))
            store(block, lane, mass)
            sums = add(sums, mass)
        share = divide(fill(1.0, lanes), total(sums))
        for lane in range(row, row + width, len(lanes)):
            store(block, lane, multiply(load(block, lane, lanes), share))


@compiled
def update(packed: Float32, q_ln: Float32, terms: Any, sliced: bool, splatted: bool, width: int, lanes: Lanes) -> None:
    """One pass over the points: energies, softmax, and the messages of the next iteration on their way.

    ``terms``: (corners, weights, sides, scale in, scale out, vertices to slice, vertices to splat to) each.
    ``sliced`` is false before the first iteration, ``splatted`` after the last, where Q goes to ``q_ln`` instead.
    """
    labels, n = q_ln.shape
    points = max(1, BLOCK // width)
    block = np.empty(points * width, np.float32)
    for first in range(0, n, points):
        stop = min(n, first + points)
        for lane in range((stop - first) * width):
            block[lane] = item(packed, first * width + lane)
        if sliced:
            for corners, weights, sides, _, scale, values, _ in terms:
                slice_values(block, first, stop, corners, weights, sides, scale, values, width, lanes)
        softmax(block, stop - first, width, lanes)
        if splatted:
            for corners, weights, sides, scale, _, _, values in terms:
                splat(block, first, stop, corners, weights, sides, scale, values, width, lanes)
        else:
            for label in range(labels):
                for point in range(stop - first):
                    q_ln[label, first + point] = item(block, point * width + label)


@compiled
def mix(values: Float32, matrix: Float32, width: int, lanes: Lanes) -> None:
    """Each row v of ``values`` becomes sum_l v[l] * matrix[l], flat (width, width); in place."""
    row = np.empty(width, np.float32)
    for start in range(0, len(values), width):
        for label in range(width):
            row[label] = values[start + label]
        for lane in range(0, width, len(lanes)):
            mixed = fill(0.0, lanes)
            for label in range(width):
                mixed = multiply_add(fill(row[label], lanes), load(matrix, label * width + lane, lanes), mixed)
            store(values, start + lane, mixed)
