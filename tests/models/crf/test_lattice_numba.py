"""The numba lattice: against a dictionary lattice in plain Python, and mean field against pydensecrf."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydensecrf.densecrf as dcrf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.crf import lattice_numba as lattices

Vertex = tuple[int, ...]


def random_features(n: int, d: int, seed: int, spread: float = 1.5) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(n, d)) * spread).astype(np.float32)


# -- The filter, written out ------------------------------------------------------------------------------------------


def simplex(feature: NDArray[np.float32]) -> list[tuple[Vertex, float]]:
    """Corners of the simplex around a point and its barycentric coordinates, from the definition (float64).

    y = E p; among the 0-coloured vertices x (all coordinates multiples of D + 1, sum 0) near y, the one whose simplex
    holds y: the differences y - x, in falling order, span less than D + 1.
    """
    d = len(feature)
    scaled = [float(feature[i]) * math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
    y = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0.0) for i in range(d + 1)]
    below = [math.floor(v / (d + 1)) for v in y]
    for up in itertools.product((0, 1), repeat=d + 1):
        multiples = [b + u for b, u in zip(below, up, strict=True)]
        away = [v - (d + 1) * m for v, m in zip(y, multiples, strict=True)]
        if sum(multiples) == 0 and max(away) - min(away) < d + 1:
            break
    order = sorted(range(d + 1), key=lambda i: -away[i])
    corners = []
    for colour in range(d + 1):
        sunk = set(order[d + 1 - colour :])
        corner = tuple((d + 1) * multiples[i] + colour - (d + 1) * (i in sunk) for i in range(d + 1))
        falling = [away[i] for i in order]
        share = (falling[d - colour] - falling[(d + 1 - colour) % (d + 1)]) / (d + 1) + (colour == 0)
        corners.append((corner, share))
    return corners


def dictionary_filter(features: NDArray[np.float32], values: NDArray[np.float64], reverse: bool) -> NDArray[np.float64]:
    """alpha * slice(blur(splat(values))) on a dictionary of the vertices that points touch."""
    d = features.shape[1]
    simplices = [simplex(feature) for feature in features]
    held: dict[Vertex, NDArray[np.float64]] = defaultdict(lambda: np.zeros(values.shape[1]))
    for corners, value in zip(simplices, values, strict=True):
        for corner, share in corners:
            held[corner] = held[corner] + share * value
    none = np.zeros(values.shape[1])
    for axis in reversed(range(d + 1)) if reverse else range(d + 1):
        step = [-1] * (d + 1)
        step[axis] = d
        held = {
            v: old
            + 0.5 * held.get(tuple(a + b for a, b in zip(v, step, strict=True)), none)
            + 0.5 * held.get(tuple(a - b for a, b in zip(v, step, strict=True)), none)
            for v, old in held.items()
        }
    return np.stack([sum(share * held[corner] for corner, share in corners) for corners in simplices]) / (1 + 2.0**-d)


@pytest.mark.parametrize("d", range(1, 8))
@pytest.mark.parametrize("reverse", [False, True])
def test_filter_equals_a_dictionary_lattice(d: int, reverse: bool) -> None:
    features = random_features(53, d, seed=d)
    values = np.random.default_rng(9).normal(size=(53, 3)).astype(np.float32)
    lattice = lattices.build(features)
    expected = dictionary_filter(features, values.astype(np.float64), reverse)
    np.testing.assert_allclose(lattices.apply(lattice, values, reverse), expected, atol=2e-5)
    assert lattice.vertices == len({corner for feature in features for corner, _ in simplex(feature)})
    assert (lattice.points, lattice.dimensions) == (53, d)


@pytest.mark.parametrize("k", [1, 4, 5, 21])
def test_columns_are_filtered_each_by_itself(k: int) -> None:
    lattice = lattices.build(random_features(40, 5, seed=0))
    values = np.random.default_rng(k).normal(size=(40, k)).astype(np.float32)
    together = lattices.apply(lattice, values)
    assert together.shape == (40, k)
    for column in range(k):
        alone = lattices.apply(lattice, values[:, column : column + 1])
        np.testing.assert_allclose(together[:, column : column + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_row_of_many_vertices_outgrows_the_first_hash_table() -> None:
    features = (np.arange(3000, dtype=np.float32) * 9)[:, None]
    lattice = lattices.build(features)
    assert lattice.vertices == 6000  # two ends each: no two points share an interval
    ones = np.ones((3000, 1), np.float32)
    expected = dictionary_filter(features[:60], ones[:60].astype(np.float64), False)
    np.testing.assert_allclose(lattices.apply(lattice, ones)[:60], expected, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(d=st.integers(1, 7), n=st.integers(1, 80), seed=st.integers(0, 999), spread=st.floats(0.0, 5.0))
def test_reverse_is_the_transpose(d: int, n: int, seed: int, spread: float) -> None:
    lattice = lattices.build(random_features(n, d, seed, spread))
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, n, 4)).astype(np.float32)
    left = np.sum(u * lattices.apply(lattice, v), dtype=np.float64)
    right = np.sum(lattices.apply(lattice, u, reverse=True) * v, dtype=np.float64)
    assert left == pytest.approx(right, abs=1e-5 * n, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_filter_is_linear(seed: int, a: float, b: float) -> None:
    lattice = lattices.build(random_features(60, 5, seed))
    u, v = np.random.default_rng(seed).normal(size=(2, 60, 4)).astype(np.float32)
    mixed = lattices.apply(lattice, (a * u + b * v).astype(np.float32))
    np.testing.assert_allclose(mixed, a * lattices.apply(lattice, u) + b * lattices.apply(lattice, v), atol=1e-4)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_diagonal_is_what_a_point_gets_back_on_the_complete_lattice(d: int) -> None:
    """The other vertices come from points laid closely around the first ones."""
    some = random_features(4, d, seed=3, spread=0.3)
    around = np.random.default_rng(4).uniform(-4, 4, size=(4000 if d < 5 else 40000, d)).astype(np.float32)
    lattice = lattices.build(np.concatenate([some, around]))
    unit = np.zeros((lattice.points, 4), np.float32)
    unit[range(4), range(4)] = 1
    back = np.diagonal(lattices.apply(lattice, unit)[:4])
    np.testing.assert_allclose(lattices.diagonal(lattice)[:4], back, rtol=1e-4)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((3, 2)), "float32"),
        (np.zeros(3, np.float32), "float32"),
        (np.zeros((0, 2), np.float32), "N >= 1"),
        (np.zeros((3, 8), np.float32), "D <= 7"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32), "NaN"),
        (np.array([[np.nan, 1.0], [0.0, 0.0]], np.float32), "NaN"),
        (np.array([[0.0, -np.inf], [0.0, 0.0]], np.float32), "infinity"),
        (np.array([[0.0] * 5, [1e4] * 5], np.float32), "too wide"),
        (np.array([[0.0], [1e30]], np.float32), "too wide"),
    ],
)
def test_features_that_cannot_be_are_refused(features: NDArray[np.float32], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lattices.build(features)


@pytest.mark.parametrize("shape", [(5,), (4, 2), (5, 0)])
def test_values_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    lattice = lattices.build(random_features(5, 2, seed=0))
    with pytest.raises(ValueError, match="values must be"):
        lattices.apply(lattice, np.zeros(shape, np.float32))


# -- Mean field -------------------------------------------------------------------------------------------------------


def picture(h: int, w: int) -> NDArray[np.uint8]:
    """Two regions of different colours, with noise."""
    y, x = np.mgrid[:h, :w]
    colour = np.where(
        ((x - w / 2) ** 2 + (y - h / 2) ** 2 < (min(h, w) / 3) ** 2)[..., None], (200, 90, 40), (60, 80, 120)
    )
    noise = np.random.default_rng(1).normal(0, 12, (h, w, 3))
    return np.ascontiguousarray((colour + noise).clip(0, 255).astype(np.uint8))


def pixel_features(image: NDArray[np.uint8], sxy: float, srgb: float | None) -> NDArray[np.float32]:
    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    planes = [x / np.float32(sxy), y / np.float32(sxy)]
    if srgb is not None:
        planes += [image[..., c].astype(np.float32) / np.float32(srgb) for c in range(3)]
    return np.stack(planes, axis=-1).reshape(h * w, -1)


def random_unary(labels: int, n: int, strength: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(labels).normal(size=(labels, n)) * strength).astype(np.float32)


def symmetric_terms(image: NDArray[np.uint8], compats: tuple[lattices.Compat, lattices.Compat]) -> list[lattices.Term]:
    terms: list[lattices.Term] = []
    for features, compat in zip((pixel_features(image, 3, None), pixel_features(image, 80, 13)), compats, strict=True):
        lattice = lattices.build(features)
        sums = lattices.apply(lattice, np.ones((lattice.points, 1), np.float32))[:, 0]
        scale = 1 / np.sqrt(sums + 1e-20)
        terms.append((lattice, scale, scale, compat))
    return terms


@pytest.mark.parametrize(("h", "w", "labels"), [(33, 47, 2), (60, 41, 4), (47, 33, 21), (64, 1, 3), (1, 64, 9)])
def test_mean_field_is_pydensecrfs(h: int, w: int, labels: int) -> None:
    """Marginals within 1e-4; the same label wherever the oracle's two best are more than 2e-4 apart."""
    image, unary = picture(h, w), random_unary(labels, h * w, strength=2.0)
    oracle = dcrf.DenseCRF2D(w, h, labels)
    oracle.setUnaryEnergy(unary)
    oracle.addPairwiseGaussian(sxy=3, compat=3)
    oracle.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    expected = np.array(oracle.inference(10))
    q = lattices.mean_field(unary, symmetric_terms(image, (3.0, 10.0)), 10)
    assert q.dtype == np.float32
    np.testing.assert_allclose(q, expected, atol=1e-4)
    best = np.sort(expected, axis=0)
    decided = best[-1] - best[-2] > 2e-4
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(q.argmax(0)[decided], expected.argmax(0)[decided])


def written_out(unary: NDArray[np.float32], terms: list[lattices.Term], iterations: int) -> NDArray[np.float64]:
    """Algorithm 1, step by step, in float64 on the filter alone."""

    def softmax(energy: NDArray[np.float64]) -> NDArray[np.float64]:
        mass = np.exp(energy - energy.max(axis=0))
        return mass / mass.sum(axis=0)

    q = softmax(-unary.astype(np.float64))
    for _ in range(iterations):
        energy = -unary.astype(np.float64)
        for lattice, scale_in, scale_out, compat in terms:
            given = (q * (1.0 if scale_in is None else scale_in)).T.astype(np.float32)
            message = lattices.apply(lattice, given).T * (1.0 if scale_out is None else scale_out)
            weights = np.asarray(compat)
            energy = energy + (weights @ message if weights.ndim == 2 else (weights.reshape(-1, 1) * message))
        q = softmax(energy)
    return q


@pytest.mark.parametrize("labels", [3, 11])
def test_scales_and_every_kind_of_compatibility_step_by_step(labels: int) -> None:
    image = picture(19, 23)
    rng = np.random.default_rng(5)
    first, second = symmetric_terms(image, (0.0, 0.0))
    unary = random_unary(labels, 19 * 23)
    kinds: list[lattices.Compat] = [2.5, rng.uniform(0, 3, labels), rng.normal(size=(labels, labels))]
    for one, other in itertools.product(kinds, kinds):
        terms: list[lattices.Term] = [(first[0], first[1], None, one), (second[0], None, second[2] ** 2, other)]
        for iterations in (0, 1, 3):
            q = lattices.mean_field(unary, terms, iterations)
            np.testing.assert_allclose(q, written_out(unary, terms, iterations), atol=1e-4)


def test_probabilities_too_small_to_matter_are_zero_and_sums_are_one() -> None:
    unary = np.array([[0.0, 0.0, 300.0], [61.0, 70.0, 0.0], [1.0, 5000.0, 300.5]], np.float32)
    q = lattices.mean_field(unary, [], 3)
    expected = np.exp(-unary.astype(np.float64) - (-unary.astype(np.float64)).max(axis=0))
    expected /= expected.sum(axis=0)
    np.testing.assert_allclose(q, np.where(expected < 1e-27, 0.0, expected), rtol=1e-6)
    assert q[1, 1] == 0.0 and q[1, 0] > 0.0


def test_threads_change_no_byte() -> None:
    image = picture(40, 30)
    terms = symmetric_terms(image, (3.0, 10.0))
    unary = random_unary(4, 1200)
    alone = lattices.mean_field(unary, terms, 5).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert {q.tobytes() for q in pool.map(lambda _: lattices.mean_field(unary, terms, 5), range(12))} == {alone}


@pytest.mark.parametrize(
    ("unary", "compat", "iterations", "message"),
    [
        (np.zeros((2, 5)), 1.0, 1, "float32"),
        (np.zeros((2, 4), np.float32), 1.0, 1, "4 points, the lattice 5"),
        (np.full((2, 5), np.nan, np.float32), 1.0, 1, "finite"),
        (np.full((2, 5), np.inf, np.float32), 1.0, 1, "finite"),
        (np.zeros((2, 5), np.float32), np.zeros(3), 1, r"compat must be a number, \(2,\)"),
        (np.zeros((2, 5), np.float32), np.zeros((3, 3)), 1, r"compat must be a number, \(2,\)"),
        (np.zeros((2, 5), np.float32), 1.0, -1, "iterations"),
    ],
)
def test_wrong_arguments_are_refused(
    unary: NDArray[np.float32], compat: lattices.Compat, iterations: int, message: str
) -> None:
    lattice = lattices.build(random_features(5, 2, seed=0))
    with pytest.raises(ValueError, match=message):
        lattices.mean_field(unary, [(lattice, None, None, compat)], iterations)


def test_a_scale_of_another_size_is_refused() -> None:
    lattice = lattices.build(random_features(5, 2, seed=0))
    with pytest.raises(ValueError, match="a scale must be"):
        lattices.mean_field(np.zeros((2, 5), np.float32), [(lattice, np.ones(4, np.float32), None, 1.0)], 1)
