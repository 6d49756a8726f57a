"""The permutohedral lattice (Adams, Baek, Davis 2010) in plain torch, for CUDA; it runs on any device.

The same numbers as the CPU lattices: only vertices that points touch exist, a missing neighbour counts as 0. Hashing
becomes sorting, so that every sum has one order and a result has the same bytes on every run (:func:`segment_sum`).
Not differentiable by itself: the transpose is ``reverse=True``, which :class:`models.crf.gaussian.GaussianFilter`
calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_DIMENSIONS = 7
PIECE = 64  # slots that one thread adds up in a row
TEMPORARY_BYTES = 256 << 20  # bound of the splat's one large temporary
WIDEST = float(1 << 24)  # from here on float32 has no unit digit left, so no simplex can be found


@dataclass(frozen=True)
class TorchLattice:
    """A built lattice on one device. ``S = points * (dimensions + 1)`` slots, ``V`` vertices."""

    points: int
    dimensions: int
    vertices: int
    weights: Tensor  # (N, D+1) float32: barycentric weights
    corners: Tensor  # (N, D+1) int64: the vertex of each weight
    order: Tensor  # (S,) int64: slots sorted by vertex; equal vertices by point
    pieces: tuple[Tensor, ...]  # lengths of the pieces to add up, level by level; the last level leaves V rows
    neighbours: Tensor  # (D+1, 2, V) int64 along each axis; V where there is none

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        tensors = (self.weights, self.corners, self.order, self.neighbours, *self.pieces)
        return sum(tensor.nbytes for tensor in tensors)


def build(features_nd: Tensor) -> TorchLattice:
    """The lattice of ``(N, D)`` features, D = 1..7; computed in float32 on the features' device.

    ``ValueError`` on another shape, on features that are not finite, or on features spread so widely that a vertex
    has no 63-bit name.
    """
    features = _checked(features_nd)
    base, rank, weights = _simplices(_elevate(features))
    keys, steps = _packed(base, rank)
    ordered, order = torch.sort(keys.flatten(), stable=True)
    vertices, vertex_of_slot, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    corners = torch.empty_like(order)
    corners[order] = vertex_of_slot
    return TorchLattice(
        points=len(features),
        dimensions=features.shape[1],
        vertices=len(vertices),
        weights=weights,
        corners=corners.view(weights.shape),
        order=order,
        pieces=_pieces(counts),
        neighbours=_neighbours(vertices, steps),
    )


def apply(lattice: TorchLattice, values_nk: Tensor, reverse: bool = False) -> Tensor:
    """``alpha * slice(blur(splat(values)))``: float32 ``(N, K)`` -> ``(N, K)``; ``reverse`` is the transpose.

    ``ValueError`` on another shape, dtype or device.
    """
    if values_nk.ndim != 2 or len(values_nk) != lattice.points:
        raise ValueError(f"values ({lattice.points}, K) expected, got {tuple(values_nk.shape)}")
    if values_nk.dtype != torch.float32 or values_nk.device != lattice.weights.device:
        wanted = f"float32 on {lattice.weights.device}"
        raise ValueError(f"values {wanted} expected, got {values_nk.dtype} on {values_nk.device}")
    with torch.no_grad():
        return _slice(lattice, _blur(lattice, _splat(lattice, values_nk), reverse))


def diagonal(lattice: TorchLattice) -> Tensor:
    """``K_ii`` ``(N,)`` float32 of the complete lattice, where every neighbour exists.

    ``alpha * sum_rs w_r w_s B[r, s]``: from corner r to corner s of one simplex lead ``|r - s|`` half-weighted steps
    or, the other way round, ``D + 1 - |r - s|``; from a corner to itself none, all or all backwards.
    """
    axes = lattice.dimensions + 1
    corner = torch.arange(axes, device=lattice.weights.device)
    apart = (corner[:, None] - corner[None, :]).abs().float()
    paths = torch.where(apart == 0, 1 + 2 * 0.5**axes, 0.5**apart + 0.5 ** (axes - apart))
    # Written as products and sums: a matmul may run in TF32.
    mixed = (lattice.weights[:, :, None] * paths[None]).sum(dim=1)
    return alpha(lattice.dimensions) * (mixed * lattice.weights).sum(dim=1)


def alpha(dimensions: int) -> float:
    """``1 / (1 + 2^-D)``: what splat, blur and slice add to a constant on a complete lattice, roughly taken back."""
    return 1 / (1 + 2.0**-dimensions)


def segment_sum(rows_sk: Tensor, pieces: tuple[Tensor, ...]) -> Tensor:
    """Sums of consecutive rows ``(S, K)``, level by level, each level adding up pieces of at most ``PIECE`` rows.

    One thread adds up one piece in order, so a sum has the same bytes on every run (atomics have not). One level
    alone would let a single thread walk all pixels of an even sky; it would also lose precision with the length
    (errors grow with the levels here), and so would differences of one running sum.
    """
    for lengths in pieces:
        rows_sk = torch.segment_reduce(rows_sk, "sum", lengths=lengths, axis=0, unsafe=True)
    return rows_sk


def _checked(features_nd: Tensor) -> Tensor:
    if features_nd.ndim != 2 or not len(features_nd) or not 1 <= features_nd.shape[1] <= MAX_DIMENSIONS:
        raise ValueError(f"features (N, 1..{MAX_DIMENSIONS}) expected, N > 0, got {tuple(features_nd.shape)}")
    if not features_nd.is_floating_point():
        raise ValueError(f"floating features expected, got {features_nd.dtype}")
    features = features_nd.detach().float()
    if not bool(features.isfinite().all()):
        raise ValueError("features hold NaN or infinity")
    return features


def _elevate(features_nd: Tensor) -> Tensor:
    """Features on the plane ``sum = 0`` of D+1 dimensions, ``(N, D+1)``, scaled so that the blur has deviation 1."""
    dimensions = features_nd.shape[1]
    elevated = features_nd.new_empty(len(features_nd), dimensions + 1)
    carried = torch.zeros_like(features_nd[:, 0])
    # Rounded as in Krähenbühl and Koltun's code: the last bit decides ties, and so which vertices exist.
    deviation = float(torch.tensor(math.sqrt(2 / 3) * (dimensions + 1), dtype=torch.float32))
    for axis in range(dimensions, 0, -1):
        scale = 1 / math.sqrt(axis * (axis + 1)) * deviation
        scaled = features_nd[:, axis - 1] * scale
        elevated[:, axis] = carried - axis * scaled
        carried = carried + scaled
    elevated[:, 0] = carried
    if float(elevated.abs().max()) >= WIDEST:
        raise ValueError(f"features are spread over more than {WIDEST:.0f} lattice cells; use larger sigmas")
    return elevated


def _simplices(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each point's simplex: the 0-coloured corner and the axes' ranks ``(N, D+1)`` int64, the weights float32."""
    axes = elevated.shape[1]
    nearest = (elevated * (1 / axes)).round()
    left = elevated - nearest * axes
    rank = torch.zeros_like(left, dtype=torch.int64)
    for i in range(axes):
        for j in range(i + 1, axes):
            less = (left[:, i] < left[:, j]).long()
            rank[:, i] += less
            rank[:, j] += 1 - less
    # A corner whose coordinates do not sum to 0 is pulled back into the plane.
    rank += nearest.sum(dim=1, keepdim=True).long()
    turn = axes * ((rank < 0).long() - (rank >= axes).long())
    rank += turn
    share = (left - turn) * (1 / axes)
    # Axis i adds its share to corner D - rank and takes it from the next one, so the weights are differences of the
    # shares in order of rank, largest first.
    place = axes - 1 - rank
    ordered = torch.empty_like(share).scatter_(1, place, share)
    weights = ordered.clone()
    weights[:, 1:] -= ordered[:, :-1]
    weights[:, 0] += 1 - ordered[:, -1]
    return nearest.long() * axes + turn, rank, weights


def _packed(base: Tensor, rank: Tensor) -> tuple[Tensor, list[int]]:
    """Corners as one integer each, ``(N, D+1)`` int64, and what a step along each axis adds to it.

    The last coordinate is implied by the sum 0. Mixed radix with room for a step beyond the outermost vertices.
    """
    axes = base.shape[1]
    dimensions = axes - 1
    # Corner r adds r to an axis, or r - (D+1) where the axis' rank is above D - r: within -D..D.
    low = (base[:, :dimensions].amin(dim=0) - 2 * axes).tolist()
    high = (base[:, :dimensions].amax(dim=0) + 2 * axes).tolist()
    units = [1]
    for least, most in zip(low, high, strict=True):
        units.append(units[-1] * (most - least + 1))
    if units[-1] >= 1 << 63:
        raise ValueError(
            f"features are spread over {units[-1]:.1e} lattice cells, over 2^63; use larger sigmas or fewer features"
        )
    colour = torch.arange(axes, device=base.device)
    keys = torch.zeros_like(base)
    for axis in range(dimensions):
        wrapped = rank[:, axis, None] > dimensions - colour
        keys += (base[:, axis, None] - low[axis] + colour - axes * wrapped.long()) * units[axis]
    ones = sum(units[:dimensions])
    return keys, [axes * units[axis] * (axis < dimensions) - ones for axis in range(axes)]


def _neighbours(vertices: Tensor, steps: list[int]) -> Tensor:
    """Index of each vertex' two neighbours along each axis, ``(D+1, 2, V)`` int64; V where there is none."""
    missing = len(vertices)
    found = torch.empty(len(steps), 2, missing, dtype=torch.int64, device=vertices.device)
    for axis, step in enumerate(steps):
        for side, wanted in enumerate((vertices + step, vertices - step)):
            place = torch.searchsorted(vertices, wanted).clamp_(max=missing - 1)
            found[axis, side] = torch.where(vertices[place] == wanted, place, missing)
    return found


def _pieces(counts: Tensor) -> tuple[Tensor, ...]:
    """Lengths for :func:`segment_sum`: segments of ``counts`` rows cut into pieces, then the pieces, and so on."""
    levels = []
    while int(counts.max()) > PIECE:
        cuts = (counts + (PIECE - 1)) // PIECE
        lengths = torch.full((int(cuts.sum()),), PIECE, dtype=torch.int64, device=counts.device)
        lengths[cuts.cumsum(0) - 1] = counts - (cuts - 1) * PIECE
        levels.append(lengths)
        counts = cuts
    return (*levels, counts)


def _splat(lattice: TorchLattice, values_nk: Tensor) -> Tensor:
    """Every vertex' weighted sum of its points: ``(V+1, K)``, the last row 0 in place of missing neighbours."""
    slots = len(lattice.order)
    sources = lattice.order // (lattice.dimensions + 1)
    weights = lattice.weights.flatten()[lattice.order, None]
    splatted = values_nk.new_zeros(lattice.vertices + 1, values_nk.shape[1])
    columns = max(1, TEMPORARY_BYTES // (slots * values_nk.element_size()))
    for start in range(0, values_nk.shape[1], columns):
        part = values_nk[:, start : start + columns].contiguous()
        rows = part.index_select(0, sources).mul_(weights)
        splatted[:-1, start : start + columns] = segment_sum(rows, lattice.pieces)
    return splatted


def _blur(lattice: TorchLattice, splatted: Tensor, reverse: bool) -> Tensor:
    """``[.5, 1, .5]`` along each axis in turn; backwards for the transpose."""
    axes = range(lattice.dimensions + 1)
    for axis in reversed(axes) if reverse else axes:
        sides = lattice.neighbours[axis]
        around = splatted.index_select(0, sides[0]).add_(splatted.index_select(0, sides[1]))
        splatted[:-1].add_(around, alpha=0.5)
    return splatted


def _slice(lattice: TorchLattice, blurred: Tensor) -> Tensor:
    """Every point's weighted mean of its corners, times alpha: ``(N, K)``."""
    out = blurred.new_zeros(lattice.points, blurred.shape[1])
    for corner in range(lattice.dimensions + 1):
        out.addcmul_(blurred.index_select(0, lattice.corners[:, corner]), lattice.weights[:, corner, None])
    return out.mul_(alpha(lattice.dimensions))
