"""The torch lattice against a dictionary of vertices in plain Python, and against the compiled one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.crf import lattice_torch as lt


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The oracle: Adams, Baek, Davis 2010 point by point, vertices as tuples in a dictionary, float64.


def _simplex(feature: list[float]) -> list[tuple[tuple[int, ...], float]]:
    """The D+1 (vertex, weight) of one feature."""
    d = len(feature)
    scaled = [f * math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i, f in enumerate(feature)]
    point = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0.0) for i in range(d + 1)]
    # The enclosing simplex by search instead of by ranks: the vertices of colour 0..d nearest to the point such that
    # the point is their convex combination. Colour 0 = all coordinates multiples of d + 1, sum 0.
    zero = [round(p / (d + 1)) * (d + 1) for p in point]
    axes = sorted(range(d + 1), key=lambda i: point[i] - zero[i])  # smallest difference first
    excess = sum(zero) // (d + 1)
    for i in axes[:excess] if excess > 0 else axes[::-1][:-excess] if excess < 0 else []:
        zero[i] -= int(math.copysign(d + 1, excess))
    left = [p - z for p, z in zip(point, zero, strict=True)]
    descending = sorted(range(d + 1), key=lambda i: -left[i])
    found = []
    for colour in range(d + 1):
        # The vertex of this colour: + colour everywhere, and - (d+1) on the `colour` axes that lie lowest.
        vertex = [z + colour for z in zero]
        for i in descending[d + 1 - colour :]:
            vertex[i] -= d + 1
        # Its weight: the gap between consecutive differences; colour 0 gets what the others leave.
        gap = left[descending[d - colour]] - left[descending[d - colour + 1]] if colour else 0.0
        found.append((tuple(vertex), gap / (d + 1)))
    found[0] = (found[0][0], 1 - sum(weight for _, weight in found[1:]))
    return found


def _filter(features: torch.Tensor, values: torch.Tensor, reverse: bool = False) -> np.ndarray:
    simplices = [_simplex([float(x) for x in feature]) for feature in features]
    rows = values.double().numpy()
    d = features.shape[1]
    grid: dict[tuple[int, ...], np.ndarray] = {}
    for simplex, row in zip(simplices, rows, strict=True):
        for vertex, weight in simplex:
            grid[vertex] = grid.get(vertex, 0) + weight * row
    for axis in range(d, -1, -1) if reverse else range(d + 1):
        step = [-1] * (d + 1)
        step[axis] = d
        old = dict(grid)
        for vertex in old:
            up = tuple(v + s for v, s in zip(vertex, step, strict=True))
            down = tuple(v - s for v, s in zip(vertex, step, strict=True))
            grid[vertex] = old[vertex] + 0.5 * (old.get(up, 0) + old.get(down, 0))
    sliced = [sum(weight * grid[vertex] for vertex, weight in simplex) for simplex in simplices]
    return np.stack(sliced) / (1 + 2.0**-d)


# What it computes


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dimensions", range(1, 8))
def test_it_is_the_dictionary(dimensions: int, reverse: bool) -> None:
    features, values = _normal(60, dimensions, seed=dimensions), _normal(60, 3, seed=99)
    lattice = lt.build(features)
    wanted = _filter(features, values, reverse)
    np.testing.assert_allclose(
        lt.apply(lattice, values, reverse).numpy(), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
    )
    vertices = {vertex for feature in features for vertex, _ in _simplex(feature.tolist())}
    assert (lattice.points, lattice.dimensions, lattice.vertices) == (60, dimensions, len(vertices))


@pytest.mark.parametrize("shape", [(37, 53), (1, 200), (200, 1), (1, 1)])
def test_it_is_the_compiled_lattice_on_a_picture(shape: tuple[int, int]) -> None:
    compiled = pytest.importorskip("models.crf._lattice")
    height, width = shape
    y, x = np.mgrid[:height, :width]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    spatial = np.stack([x / 3, y / 3], -1).reshape(-1, 2).astype(np.float32)
    bilateral = np.concatenate([np.stack([x, y], -1) / 80, image / 13], -1).reshape(-1, 5).astype(np.float32)
    values = _normal(height * width, 5).numpy()
    for features in (spatial, bilateral):
        ours, theirs = lt.build(torch.from_numpy(features)), compiled.build(features)
        assert ours.vertices == theirs.vertices
        for reverse in (False, True):
            wanted = compiled.apply(theirs, values, reverse)
            found = lt.apply(ours, torch.from_numpy(values), reverse).numpy()
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        np.testing.assert_allclose(lt.diagonal(ours).numpy(), compiled.diagonal(theirs), rtol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_diagonal_is_the_matrix_diagonal_where_the_lattice_is_complete(dimensions: int) -> None:
    # Points so dense that every vertex around the centre is touched; those near the border lack neighbours.
    steps = {1: 200, 2: 40, 3: 17}[dimensions]
    ticks = torch.linspace(-6, 6, steps)
    features = torch.tensor(list(itertools.product(ticks.tolist(), repeat=dimensions)))
    lattice = lt.build(features)
    inner = (features.abs() < 1.2).all(dim=1).nonzero()[:, 0][::7][:40]
    basis = torch.zeros(len(features), len(inner))
    basis[inner, torch.arange(len(inner))] = 1
    wanted = lt.apply(lattice, basis)[inner].diagonal()
    torch.testing.assert_close(lt.diagonal(lattice)[inner], wanted, rtol=1e-5, atol=1e-6)


def test_one_point_by_hand() -> None:
    # D = 1, at the origin: vertex (0, 0) holds everything; (1, -1) is touched with weight 0, so each of the two blurs
    # brings half of it back to where it came from: 1 * alpha and nothing else until the second axis.
    lattice = lt.build(torch.zeros(1, 1))
    assert lattice.vertices == 2
    # First axis: w1 = .5 * w0; second axis: w0 = 1 + .5 * w1 = 1.25. alpha = 1 / 1.5.
    assert float(lt.apply(lattice, torch.ones(1, 1))) == pytest.approx(1.25 / 1.5)


# Properties


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 60), dimensions=st.integers(1, 7), a=st.floats(-3, 3))
def test_linear_and_reverse_is_the_transpose(seed: int, count: int, dimensions: int, a: float) -> None:
    lattice = lt.build(_normal(count, dimensions, seed=seed) * 2)
    u, v = _normal(count, 1, seed=seed + 1), _normal(count, 1, seed=seed + 2)
    ku, kv = lt.apply(lattice, u), lt.apply(lattice, v)
    torch.testing.assert_close(lt.apply(lattice, u + a * v), ku + a * kv, rtol=1e-4, atol=1e-4)
    scale = float(u.norm() * kv.norm()) + 1e-6
    assert float((u * kv).sum()) == pytest.approx(
        float((lt.apply(lattice, u, reverse=True) * v).sum()), abs=1e-5 * scale
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), counts=st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_segment_sum_is_the_sum_of_each_segment(seed: int, counts: list[int]) -> None:
    rows = _normal(sum(counts), 2, seed=seed)
    wanted = torch.stack([part.double().sum(0) for part in rows.split(counts)])
    found = lt.segment_sum(rows, lt._pieces(torch.tensor(counts)))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


def test_no_thread_adds_up_more_than_a_piece() -> None:
    counts = torch.tensor([1, 64, 65, 300_000])
    levels = lt._pieces(counts)
    assert all(int(lengths.max()) <= lt.PIECE for lengths in levels)
    assert int(levels[0].sum()) == int(counts.sum())
    assert [len(lengths) for lengths in levels] == [1 + 1 + 2 + 4688, 1 + 1 + 1 + 74, 1 + 1 + 1 + 2, 4]


def test_a_long_sum_keeps_its_precision() -> None:
    # One after the other in float32, a million tenths are 958 off the 100,000.
    rows = torch.full((1_000_000, 1), 0.1)
    found = float(lt.segment_sum(rows, lt._pieces(torch.tensor([1_000_000]))))
    assert found == pytest.approx(1_000_000 * float(torch.tensor(0.1)), rel=1e-6)


def test_same_bytes_whatever_the_channels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lattice, values = lt.build(_normal(500, 3)), _normal(500, 7, seed=1)
    whole = lt.apply(lattice, values)
    monkeypatch.setattr(lt, "TEMPORARY_BYTES", 1)
    assert torch.equal(lt.apply(lattice, values), whole)
    assert torch.equal(lt.apply(lattice, values[:, 4:5]), whole[:, 4:5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_the_cpu_and_the_same_bytes_every_time() -> None:
    features, values = _normal(20_000, 5), _normal(20_000, 22, seed=1)
    features[:10_000] = 0  # an even half: one long segment
    ours = lt.build(features.cuda())
    first = lt.apply(ours, values.cuda())
    wanted = lt.apply(lt.build(features), values)
    torch.testing.assert_close(first.cpu(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    for _ in range(5):
        again = lt.build(features.cuda())
        assert torch.equal(lt.apply(again, values.cuda()), first)


# What it refuses


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite(bad: float) -> None:
    features = _normal(5, 2)
    features[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        lt.build(features)


def test_features_spread_too_widely() -> None:
    with pytest.raises(ValueError, match="larger sigmas"):
        lt.build(torch.tensor([[0.0], [1e9]]))
    with pytest.raises(ValueError, match=r"2\^63; use larger sigmas or fewer features"):
        lt.build(_normal(10, 7) * 1e4)


def test_wrong_shapes_and_dtypes() -> None:
    for features in (torch.ones(5), torch.ones(0, 2), torch.ones(5, 0), torch.ones(5, 8)):
        with pytest.raises(ValueError, match=r"features \(N, 1..7\) expected"):
            lt.build(features)
    with pytest.raises(ValueError, match="floating features"):
        lt.build(torch.ones(5, 2, dtype=torch.int64))
    lattice = lt.build(_normal(5, 2))
    with pytest.raises(ValueError, match=r"values \(5, K\) expected, got \(4, 1\)"):
        lt.apply(lattice, torch.ones(4, 1))
    with pytest.raises(ValueError, match="float32"):
        lt.apply(lattice, torch.ones(5, 1, dtype=torch.float64))


def test_bytes_held_are_counted() -> None:
    lattice = lt.build(_normal(100, 5))
    slots = 100 * 6
    pieces = sum(len(lengths) for lengths in lattice.pieces)
    assert lattice.nbytes == slots * (4 + 8 + 8) + 8 * (6 * 2 * lattice.vertices + pieces)
