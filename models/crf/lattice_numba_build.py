"""What :mod:`models.crf.lattice_numba` compiles to build the lattice: simplices, vertices, neighbours.

Indices are trusted, so only the public module calls this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.crf.simd_numba import (
    Float32,
    Int32,
    Int64,
    Lanes,
    add,
    compiled,
    compiled_inside,
    fill,
    item,
    less,
    load,
    multiply,
    multiply_add,
    round_even,
    store,
    subtract,
    where_equal,
)


@compiled
def feature_ranges(features: Float32) -> tuple[Float32, Float32]:
    """Smallest and largest number of each column; NaN where there is one."""
    n, d = features.shape
    low, high = features[0].copy(), features[0].copy()
    for i in range(n):
        for j in range(d):
            value = features[i, j]
            low[j] = min(low[j], value)
            high[j] = max(high[j], value)
            if value != value:
                low[j] = value
                high[j] = value
                return low, high
    return low, high


@compiled_inside
def slot_of(table: Int64, bits: int, key: Any) -> Any:
    """Index of the pair (key, vertex) in the hash table, or of the free pair (key 0) where it belongs."""
    product = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    mask = (1 << bits) - 1
    slot = np.int64(product >> np.uint64(64 - bits))
    while item(table, 2 * slot) != key and item(table, 2 * slot) != 0:
        slot = (slot + 1) & mask
    return 2 * slot


@compiled_inside
def grown(keys: Int64, count: int, bits: int) -> tuple[Int64, Int64]:
    """Hash table of ``2**bits`` pairs with the first ``count`` vertices' keys, and their list with room for more."""
    table = np.zeros(2 << bits, np.int64)
    room = np.empty((1 << bits) // 2, np.int64)
    for vertex in range(count):
        slot = slot_of(table, bits, keys[vertex])
        table[slot] = keys[vertex]
        table[slot + 1] = vertex
        room[vertex] = keys[vertex]
    return table, room


@compiled_inside
def enclosing_simplices(
    point: Float32, scale: Float32, vertex: Float32, order: Float32, weight: Float32,
    away: Float32, rank: Float32, lanes: Lanes,
) -> None:  # fmt: skip
    """The simplex around each of 8 points (Adams et al. 2010, p. 5-7 and 10), all arrays in rows of 8.

    ``point`` (D, 8) features. Out: ``vertex`` (D + 1, 8) coordinates of the corner with remainder 0, ``order``
    (D + 1, 8) the coordinates by falling distance from it, ``weight`` (D + 1, 8) barycentric, by remainder.
    ``away`` and ``rank`` (D + 1, 8) are room to work in.
    """
    d, step = len(scale), len(lanes)
    rows = (d + 1) * step
    one, side, inverse = fill(1.0, lanes), fill(d + 1.0, lanes), fill(np.float32(1.0) / np.float32(d + 1), lanes)
    # Elevate: y = E p, from the last coordinate to the first (p. 5). Rounded as pydensecrf rounds, without fused
    # multiply-add: equal colours are ties, and which corner of weight 0 a tie touches decides which vertices exist.
    rest = fill(0.0, lanes)
    for j in range(d, 0, -1):
        scaled = multiply(load(point, (j - 1) * step, lanes), fill(scale[j - 1], lanes))
        store(away, j * step, subtract(rest, multiply(fill(j, lanes), scaled)))
        rest = add(rest, scaled)
    store(away, 0, rest)
    excess = fill(0.0, lanes)
    for i in range(0, rows, step):
        nearest = round_even(multiply(load(away, i, lanes), inverse))
        store(vertex, i, multiply(nearest, side))
        store(away, i, subtract(load(away, i, lanes), multiply(nearest, side)))
        excess = add(excess, nearest)
    for i in range(0, rows, step):
        store(rank, i, excess)
    for i in range(0, rows, step):
        mine = load(away, i, lanes)
        place = load(rank, i, lanes)
        for j in range(i + step, rows, step):
            behind = less(mine, load(away, j, lanes))
            place = add(place, behind)
            store(rank, j, add(load(rank, j, lanes), subtract(one, behind)))
        # A corner whose coordinates do not sum to 0 is brought back to the plane.
        back = subtract(add(less(place, fill(0.0, lanes)), less(place, side)), one)
        store(rank, i, multiply_add(back, side, place))
        store(vertex, i, multiply_add(back, side, load(vertex, i, lanes)))
        store(away, i, multiply(subtract(mine, multiply(back, side)), inverse))
    nearer = fill(0.0, lanes)
    for place in range(d + 1):
        here, coordinate = fill(0.0, lanes), fill(0.0, lanes)
        for i in range(d + 1):
            is_here = where_equal(load(rank, i * step, lanes), fill(place, lanes), one)
            here = multiply_add(is_here, load(away, i * step, lanes), here)
            coordinate = multiply_add(is_here, fill(i, lanes), coordinate)
        store(order, place * step, coordinate)
        if place == 0:
            store(weight, 0, subtract(one, here))
        else:
            store(weight, (d + 1 - place) * step, subtract(nearer, here))
        nearer = here
    store(weight, 0, add(load(weight, 0, lanes), nearer))


@compiled
def find_corners(
    features: Float32, scale: Float32, shifts: Int64, lowest: Int64, lanes: Lanes
) -> tuple[Int32, Float32, Int64, Int64, int]:
    """Corners and weights of all points, the vertices' keys in order of first touch, the hash table and its bits.

    ``features`` (N, D); ``shifts`` and ``lowest`` (D,): the bit fields of a key.
    """
    n, sides = len(features), len(scale) + 1
    corners, weights = np.empty(n * sides, np.int32), np.empty(n * sides, np.float32)
    ones, turns = key_steps(shifts)
    keys = np.zeros(0, np.int64)
    count: Any = np.int64(0)  # numpy's, for numba would compile all once more for the constant 0
    start: Any = np.int64(0)
    bits: Any = np.int64(11)
    while start < n:
        bits += 1
        table, keys = grown(keys, count, bits)
        start, count = _fill_corners(
            features.reshape(-1),
            scale,
            shifts,
            lowest,
            ones,
            turns,
            start,
            corners,
            weights,
            keys,
            count,
            table,
            bits,
            lanes,
        )
    return corners, weights, keys[:count].copy(), table, bits


@compiled_inside
def _fill_corners(
    features: Float32, scale: Float32, shifts: Int64, lowest: Int64, ones: int, turns: Int64, start: int,
    corners: Int32, weights: Float32, keys: Int64, count: int, table: Int64, bits: int, lanes: Lanes,
) -> tuple[int, int]:  # fmt: skip
    """:func:`find_corners` from point ``start`` until ``keys`` is full: the next point, and the vertices by then.

    (A function of its own because numba counts references in a loop that exchanges arrays: three times the time.)
    """
    d, sides, step = len(scale), len(scale) + 1, len(lanes)
    n = len(corners) // sides
    point, vertex = np.empty(d * step, np.float32), np.empty(sides * step, np.float32)
    order, weight = np.empty(sides * step, np.float32), np.empty(sides * step, np.float32)
    away, rank = np.empty(sides * step, np.float32), np.empty(sides * step, np.float32)
    last_keys, last_corners = np.zeros(sides, np.int64), np.zeros(sides, np.int32)
    for first in range(start, n, step):
        if count + step * sides > len(keys):
            return first, count
        for lane in range(step):
            row = min(first + lane, n - 1) * d
            for i in range(d):
                point[i * step + lane] = item(features, row + i)
        enclosing_simplices(point, scale, vertex, order, weight, away, rank, lanes)
        for lane in range(min(step, n - first)):
            key = np.int64(0)
            for i in range(d):
                key += (np.int64(item(vertex, i * step + lane)) - item(lowest, i)) << item(shifts, i)
            out = (first + lane) * sides
            for remainder in range(sides):
                if remainder > 0:
                    key += ones - item(turns, np.int64(item(order, (sides - remainder) * step + lane)))
                if key != item(last_keys, remainder):
                    slot = slot_of(table, bits, key)
                    if item(table, slot) == 0:
                        table[slot] = key
                        table[slot + 1] = count
                        keys[count] = key
                        count += 1
                    last_keys[remainder] = key
                    last_corners[remainder] = np.int32(item(table, slot + 1))
                corners[out + remainder] = item(last_corners, remainder)
                weights[out + remainder] = item(weight, remainder * step + lane)
    return n, count


@compiled_inside
def key_steps(shifts: Int64) -> tuple[Any, Int64]:
    """What is added to a key to add 1 to all coordinates, and D + 1 to each one (0 for the last: it has no field)."""
    turns = np.zeros(len(shifts) + 1, np.int64)
    ones = np.int64(0)
    for i in range(len(shifts)):
        ones += np.int64(1) << shifts[i]
        turns[i] = np.int64(len(shifts) + 1) << shifts[i]
    return ones, turns


@compiled
def find_neighbours(keys: Int64, table: Int64, bits: int, shifts: Int64) -> Int32:
    """The two vertices beside each along each axis, flat (D + 1, M, 2); M where there is none."""
    axes, count = len(shifts) + 1, len(keys)
    neighbours = np.full(axes * count * 2, np.int32(count))
    ones, turns = key_steps(shifts)
    for axis in range(axes):
        for vertex in range(count):
            slot = slot_of(table, bits, item(keys, vertex) + turns[axis] - ones)
            if table[slot] != 0:
                other = table[slot + 1]
                neighbours[(axis * count + vertex) * 2] = other
                neighbours[(axis * count + other) * 2 + 1] = vertex
    return neighbours
