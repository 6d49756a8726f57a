"""The permutohedral lattice in numba: Gaussian filtering and mean field on the CPU where no compiled extension is.

Adams, Baek, Davis: Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010. Scale, rounding,
blur and alpha are those of Krähenbühl and Koltun's code, so that answers agree with pydensecrf's. All numbers are
float32. Calls release the GIL and use one thread each; any number of them may use one lattice at the same time.

What makes it fast:

1. A vertex is one integer (its coordinates in bit fields): a look-up in the hash table compares one number, and the
   next corner of a simplex or the neighbour along an axis is one addition away. A corner that the previous point had
   too is not looked up.
2. Labels lie side by side and are computed as vectors of 1, 4 or 8 lanes; lanes without a label hold exact zeros.
   Building computes 8 points side by side.
3. Mean field reads a point's corners once an iteration: slice, softmax and splat go over blocks of points that stay in
   the nearest cache. Probabilities below 1e-27 become zero.
4. Compatibilities are applied at the vertices, of which there are several times fewer than points.

The first call of all compiles for some seconds; the machine code is kept beside this file in ``__pycache__``, or in
``NUMBA_CACHE_DIR`` where that is set, or, where neither can be written, in the user's cache folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.crf import lattice_numba_build as building
from models.crf import lattice_numba_filter as kernels
from models.crf.simd_numba import Float32, Int32, Int64, Lanes

Compat = float | NDArray[Any]
MAX_DIMENSIONS = 7
KEY_BITS = 62
_BUILD_LANES: Lanes = (0,) * 8
_NO_SCALE = np.empty(0, np.float32)
_NO_TERMS = ((np.empty(0, np.int32), _NO_SCALE, 0, _NO_SCALE, _NO_SCALE, _NO_SCALE, _NO_SCALE),) * 2
"""numba cannot loop over an empty tuple. Without a term nothing iterates, so that this is never read."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where each of N points lies on the lattice of D dimensions, and how its M vertices are connected.

    ``corners`` int32 and ``weights`` float32, both (N * (D + 1),): the vertices of the simplex around each point and
    the point's barycentric coordinates in it. ``neighbours`` int32, flat (D + 1, M, 2): the two vertices beside each
    one along each axis; M where there is none.
    """

    corners: Int32
    weights: Float32
    neighbours: Int32
    dimensions: int

    @property
    def points(self) -> int:
        """N."""
        return len(self.corners) // (self.dimensions + 1)

    @property
    def vertices(self) -> int:
        """M: vertices that a point touches."""
        return len(self.neighbours) // (2 * (self.dimensions + 1))

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.corners.nbytes + self.weights.nbytes + self.neighbours.nbytes

    @property
    def alpha(self) -> float:
        """The constant that follows the blur, 1 / (1 + 2**-D) (Krähenbühl and Koltun's code)."""
        return 1.0 / (1.0 + 2.0**-self.dimensions)


def elevation_scale(dimensions: int) -> Float32:
    """Diagonal of E (Adams et al. 2010, p. 5) times the standard deviation of the blur, (D + 1) sqrt(2/3) (p. 6).

    Rounded as in Krähenbühl and Koltun's code: the last bit decides ties, and so which vertices exist.
    """
    deviation = float(np.float32(math.sqrt(2 / 3) * (dimensions + 1)))
    i = np.arange(dimensions)
    return np.asarray(1 / np.sqrt((i + 1.0) * (i + 2.0)) * deviation, np.float32)


def _key_fields(features_nd: Float32, scale: Float32) -> tuple[Int64, Int64]:
    """Shift and lowest coordinate of each of the D bit fields of a key (the last coordinate is minus their sum).

    The range of a coordinate comes from the ranges of the features. Corners lie up to 2 D + 1 beside a point, their
    neighbours up to D further: with that margin no field can run over into the next.
    """
    d = len(scale)
    low, high = building.feature_ranges(features_nd)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("features must be finite, there is NaN or infinity among them")
    ends = np.sort(np.stack([low, high]).astype(np.float64) * scale, axis=0)
    lowest, shifts, used = np.zeros(d, np.int64), np.zeros(d, np.int64), 0
    for i in range(d):
        lower, upper = ends[:, i:].sum(axis=1) - (i * ends[::-1, i - 1] if i else 0)
        lowest[i] = math.floor(lower) - (3 * d + 3)
        shifts[i] = used
        used += (math.ceil(upper) + 3 * d + 3 - int(lowest[i])).bit_length()
    if used > KEY_BITS or np.abs(ends).max(initial=0) * (d + 1) > 2**22:
        raise ValueError(
            f"features spread too wide for the lattice: {used} bits a vertex, at most {KEY_BITS}; "
            "use larger standard deviations"
        )
    return shifts, lowest


def build(features_nd: Float32) -> Lattice:
    """Lattice of ``features_nd`` float32 (N, D), D = 1..7, in units of the Gaussian's standard deviation.

    Raises ``ValueError`` on another dtype or shape, no point, NaN, infinity, or features that spread too wide for the
    integer keys (D = 5: some hundred standard deviations along each dimension; D = 7: some ten).
    """
    if features_nd.dtype != np.float32 or features_nd.ndim != 2:
        raise ValueError(f"features must be float32 (N, D), not {features_nd.dtype} {features_nd.shape}")
    n, d = features_nd.shape
    if n == 0 or not 1 <= d <= MAX_DIMENSIONS:
        raise ValueError(f"features must be (N, D) with N >= 1 and 1 <= D <= {MAX_DIMENSIONS}, not {features_nd.shape}")
    features = np.ascontiguousarray(features_nd)
    scale = elevation_scale(d)
    shifts, lowest = _key_fields(features, scale)
    corners, weights, keys, table, bits = building.find_corners(features, scale, shifts, lowest, _BUILD_LANES)
    return Lattice(corners, weights, building.find_neighbours(keys, table, bits, shifts), d)


def _lanes_for(labels: int) -> tuple[Lanes, int]:
    """Lanes of the vectors and the width of a row, a multiple of them, for so many labels."""
    lanes = 1 if labels == 1 else 4 if labels <= 4 else 8
    return (0,) * lanes, -(-labels // lanes) * lanes


def _padded(values_nk: Float32, width: int) -> Float32:
    n, k = values_nk.shape
    if k == width:
        return np.ascontiguousarray(values_nk).reshape(-1)
    padded = np.zeros((n, width), np.float32)
    padded[:, :k] = values_nk
    return padded.reshape(-1)


def apply(lattice: Lattice, values_nk: Float32, reverse: bool = False) -> Float32:
    """alpha * slice(blur(splat(values))), float32 (N, K) to (N, K), K >= 1; NaN spreads.

    ``reverse`` blurs along the axes in reverse order, which is the transpose: <u, K v> = <K' u, v>. Raises
    ``ValueError`` on another dtype or shape.
    """
    if values_nk.dtype != np.float32 or values_nk.ndim != 2:
        raise ValueError(f"values must be float32 (N, K), not {values_nk.dtype} {values_nk.shape}")
    if values_nk.shape[0] != lattice.points or values_nk.shape[1] == 0:
        raise ValueError(f"values must be (N, K) with N = {lattice.points} and K >= 1, not {values_nk.shape}")
    n, k = values_nk.shape
    lanes, width = _lanes_for(k)
    values, scratch = (np.zeros((lattice.vertices + 1) * width, np.float32) for _ in range(2))
    simplices = (lattice.corners, lattice.weights, lattice.dimensions + 1)
    kernels.splat(_padded(values_nk, width), 0, n, *simplices, _NO_SCALE, values, width, lanes)
    gain = np.full(width, lattice.alpha, np.float32)
    values, _ = kernels.blur(values, scratch, lattice.neighbours, lattice.dimensions + 1, reverse, gain, lanes)
    out = np.zeros(n * width, np.float32)
    kernels.slice_values(out, 0, n, *simplices, _NO_SCALE, values, width, lanes)
    return np.ascontiguousarray(out.reshape(n, width)[:, :k])


def return_paths(dimensions: int) -> Float32:
    """B (D + 1, D + 1): what the blur leads from corner r of a simplex to corner s on the complete lattice.

    The two are joined by |r - s| steps along as many axes, or by D + 1 - |r - s| steps back along the others: B[r, s] =
    .5**|r-s| + .5**(D+1-|r-s|). A corner meets itself without a step or once around: B[r, r] = 1 + 2 * .5**(D+1).
    """
    corner = np.arange(dimensions + 1)
    steps = np.abs(corner[:, None] - corner)
    there, around = 0.5**steps, 0.5 ** (dimensions + 1 - steps)
    paths: Float32 = np.where(steps == 0, there + 2 * around, there + around).astype(np.float32)
    return paths


def diagonal(lattice: Lattice) -> Float32:
    """K_ii of every point, float32 (N,): what a point gets back of its own value on the COMPLETE lattice.

    alpha * sum over r, s of w_r w_s B[r, s]. The lattice that is built leaves out vertices that no point touches, so
    that its own diagonal is a little smaller.
    """
    weights = lattice.weights.reshape(lattice.points, -1)
    sums: Float32 = np.einsum("nr,nr->n", weights @ return_paths(lattice.dimensions), weights)
    sums *= np.float32(lattice.alpha)
    return sums


Term = tuple[Lattice, Float32 | None, Float32 | None, Compat]
"""Lattice, scale of the input (N,) or None, scale of the output (N,) or None, what is added per label."""


class _Message:
    """One term of the energy on its way: its lattice, scales, compatibility, and the values at the vertices."""

    def __init__(self, term: Term, labels: int, lanes: Lanes, width: int) -> None:
        self.lattice, scale_in, scale_out, compat = term
        self.lanes, self.width = lanes, width
        self.scales = [_scale(scale, self.lattice.points) for scale in (scale_in, scale_out)]
        self.gain = np.zeros(width, np.float32)
        self.matrix: Float32 | None = None
        weights = np.asarray(compat, dtype=np.float32)
        if weights.shape == (labels, labels):
            self.gain[:labels] = self.lattice.alpha
            padded = np.zeros((width, width), np.float32)
            padded[:labels, :labels] = weights.T
            self.matrix = padded.reshape(-1)
        elif weights.shape in ((), (labels,)):
            self.gain[:labels] = self.lattice.alpha * weights
        else:
            raise ValueError(f"compat must be a number, ({labels},) or ({labels}, {labels}), not {weights.shape}")
        rows = (self.lattice.vertices + 1) * width
        self.values, self.scratch = np.zeros(rows, np.float32), np.zeros(rows, np.float32)

    def arrays(self) -> tuple[Any, ...]:
        """What :func:`kernels.update` takes: Q is splatted into ``scratch``, which has to be 0."""
        lattice = self.lattice
        return lattice.corners, lattice.weights, lattice.dimensions + 1, *self.scales, self.values, self.scratch

    def blur(self) -> None:
        """From what was splatted to what will be sliced."""
        self.values, self.scratch = kernels.blur(
            self.scratch,
            self.values,
            self.lattice.neighbours,
            self.lattice.dimensions + 1,
            False,
            self.gain,
            self.lanes,
        )
        if self.matrix is not None:
            kernels.mix(self.values, self.matrix, self.width, self.lanes)
        self.scratch.fill(0.0)


def _scale(scale: Float32 | None, points: int) -> Float32:
    if scale is None:
        return _NO_SCALE
    if scale.shape != (points,):
        raise ValueError(f"a scale must be ({points},), not {scale.shape}")
    return np.ascontiguousarray(scale, dtype=np.float32)


def mean_field(unary_ln: Float32, terms: Sequence[Term], iterations: int) -> Float32:
    """Mean field of a fully connected CRF (Krähenbühl and Koltun 2011, algorithm 1): Q, float32 (L, N).

    ``unary_ln`` float32 (L, N) finite energies. Each iteration: m_k = scale_out * apply(lattice_k, scale_in * Q),
    then Q = softmax(-unary + sum of compat_k . m_k); it starts at softmax(-unary). ``terms``: (lattice, scale_in (N,)
    or None, scale_out (N,) or None, compat). ``compat`` is what is ADDED: a weight (Potts: +w m), (L,) weights of the
    labels, or (L, L) with out_l = sum over l' of M[l, l'] m_l'. Raises ``ValueError`` on wrong dtypes and shapes, NaN,
    infinity. The first call with another number of terms compiles once more.
    """
    if unary_ln.dtype != np.float32 or unary_ln.ndim != 2 or 0 in unary_ln.shape:
        raise ValueError(f"unary must be float32 (L, N), not {unary_ln.dtype} {unary_ln.shape}")
    if iterations < 0:
        raise ValueError(f"iterations must be 0 or more, not {iterations}")
    labels, n = unary_ln.shape
    for term in terms:
        if term[0].points != n:
            raise ValueError(f"unary has {n} points, the lattice {term[0].points}")
    lanes, width = _lanes_for(labels)
    packed, finite = kernels.packed_energies(np.ascontiguousarray(unary_ln), width)
    if not finite:
        raise ValueError("unary must be finite, there is NaN or infinity in it")
    messages = [_Message(term, labels, lanes, width) for term in terms]
    if not messages:
        iterations = 0
    q_ln = np.empty((labels, n), np.float32)
    for iteration in range(iterations + 1):
        arrays = tuple(message.arrays() for message in messages) or _NO_TERMS
        kernels.update(packed, q_ln, arrays, iteration > 0, iteration < iterations, width, lanes)
        if iteration < iterations:
            for message in messages:
                message.blur()
    return q_ln
