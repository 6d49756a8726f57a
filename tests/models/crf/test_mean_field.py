"""Mean field, step by step: does each step compute what algorithm 1 says, and the compiled loop the same?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from crf_pictures import energies, picture

from models.crf.exact import brute_kernel
from models.crf.gaussian import GaussianFilter, bilateral_features, position_features
from models.crf.mean_field import LARGEST, Term, compatibility, initial, mean_field, message, normalise, scales, step

NORMALISATIONS: Any = ["none", "before", "after", "symmetric"]


def small(labels: int = 3, height: int = 7, width: int = 9) -> tuple[Any, Any, Any]:
    """Unaries (L, N), and features of a position and a bilateral kernel."""
    image = picture(height, width)
    unary = energies(labels, height, width).reshape(labels, -1)
    return unary, position_features(height, width, 1.5), bilateral_features(image, 3.0, 40.0)


def test_initial_by_hand() -> None:
    unary = np.array([[0.0, 1.0], [np.log(3.0), 1.0]], np.float32)
    np.testing.assert_allclose(initial(unary), [[0.75, 0.5], [0.25, 0.5]], rtol=1e-6)


def test_normalise_survives_large_energies() -> None:
    found = normalise(np.array([[1000.0, -1000.0], [0.0, -1000.0]], np.float32))
    np.testing.assert_allclose(found, [[1, 0.5], [0, 0.5]], atol=1e-6)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_messages_are_sums_over_all_pairs(normalisation: Any) -> None:
    unary, features, _ = small()
    kernel = brute_kernel(features)
    sums = kernel.sum(axis=1)
    q = initial(unary).astype(np.float64)
    expected = np.zeros_like(q)
    for i in range(q.shape[1]):
        for j in range(q.shape[1]):
            weight = {
                "none": 1.0,
                "before": 1 / sums[j],
                "after": 1 / sums[i],
                "symmetric": 1 / np.sqrt(sums[i] * sums[j]),
            }[normalisation]
            expected[:, i] += weight * kernel[i, j] * q[:, j]
    found = message(q.astype(np.float32), Term(GaussianFilter(features, "brute"), 1.0, normalisation))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_compatibilities_by_hand() -> None:
    sent = np.array([[1.0], [2.0]], np.float32)
    np.testing.assert_allclose(compatibility(sent, 3.0), [[-3], [-6]])
    np.testing.assert_allclose(compatibility(sent, np.array([5.0, 7.0])), [[5], [14]])
    np.testing.assert_allclose(compatibility(sent, np.array([[0.0, 2.0], [4.0, 0.0]])), [[4], [4]])


def test_a_step_is_unary_minus_the_transformed_messages() -> None:
    unary, position, bilateral = small()
    terms = [Term(GaussianFilter(position, "brute"), 3.0), Term(GaussianFilter(bilateral, "brute"), 10.0, "after")]
    q = initial(unary)
    energy = -unary + 3 * message(q, terms[0]) + 10 * message(q, terms[1])
    np.testing.assert_allclose(step(unary, q, terms), normalise(energy), rtol=1e-5)


@pytest.mark.parametrize("backend", ["lattice-cpp", "lattice-torch", "exact"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("kind", ["number", "diagonal", "full"])
def test_whole_loops_are_the_steps(backend: str, normalisation: Any, kind: str) -> None:
    labels = 5
    unary, position, bilateral = small(labels, 12, 15)
    mu = np.random.default_rng(0).normal(size=(labels, labels))
    compat: Any = {"number": 0.6, "diagonal": mu[0] / 3, "full": (mu + mu.T) / 9}[kind]
    terms = [
        Term(GaussianFilter(position, backend), compat, normalisation),
        Term(GaussianFilter(bilateral, backend), compat, normalisation),
    ]
    q = initial(unary)
    for _ in range(4):
        q = step(unary, q, terms)
    np.testing.assert_allclose(mean_field(unary, terms, 4), q, atol=2e-5)


@pytest.mark.parametrize("labels", [1, 2, 4, 7, 8, 9, 16, 17, 24, 31, 32, 33, 100])
def test_any_number_of_labels(labels: int) -> None:
    unary, position, bilateral = small(labels, 9, 15)
    terms = [Term(GaussianFilter(position, "lattice-cpp"), 3.0), Term(GaussianFilter(bilateral, "lattice-cpp"), 5.0)]
    q = initial(unary)
    for _ in range(3):
        q = step(unary, q, terms)
    found = mean_field(unary, terms, 3)
    np.testing.assert_allclose(found, q, atol=2e-5)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)


def test_terms_of_different_backends_and_none_at_all() -> None:
    unary, position, bilateral = small()
    mixed = [Term(GaussianFilter(position, "brute"), 3.0), Term(GaussianFilter(bilateral, "lattice-cpp"), 2.0)]
    np.testing.assert_allclose(mean_field(unary, mixed, 1), step(unary, initial(unary), mixed))
    np.testing.assert_allclose(mean_field(unary, [], 5), initial(unary), rtol=1e-5)
    np.testing.assert_allclose(mean_field(unary, mixed, 0), initial(unary), rtol=1e-5)


@pytest.mark.parametrize("backend", ["lattice-cpp", "lattice-torch", "exact", "brute"])
def test_the_largest_energies_still_give_distributions(backend: str) -> None:
    unary, position, bilateral = small()
    unary = np.full_like(unary, LARGEST)
    unary[0, :9] = -LARGEST
    q = mean_field(unary, [Term(GaussianFilter(features, backend), 3.0) for features in (position, bilateral)], 2)
    np.testing.assert_allclose(q.sum(axis=0), 1, rtol=1e-5)
    assert (q[0, :9] == 1).all()


def test_energies_far_apart_leave_no_denormals() -> None:
    """A padded or hopeless label is exactly 0: denormal numbers would cost more than the labels themselves."""
    unary, position, _ = small(3)
    unary = unary.copy()
    unary[2] += 500
    q = mean_field(unary, [Term(GaussianFilter(position, "lattice-cpp"), 3.0)], 3)
    assert (q[2] == 0).all()


def test_scales_are_the_row_sums() -> None:
    _, features, _ = small()
    kernel = GaussianFilter(features, "lattice-cpp")
    sums = kernel.apply(np.ones((kernel.points, 1), np.float32))[:, 0]
    before, after = scales(Term(kernel, 1.0, "before"))
    assert after is None and before is not None
    np.testing.assert_allclose(before, 1 / sums, rtol=1e-6)
    both, same = scales(Term(kernel, 1.0, "symmetric"))
    assert both is same and both is not None
    np.testing.assert_allclose(both, sums**-0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unary": np.zeros((3, 4, 5), np.float32)}, r"\(labels, points\)"),
        ({"unary": np.zeros((3, 63), np.int32)}, "not int32"),
        ({"unary": np.full((3, 63), np.nan, np.float32)}, "NaN or infinity"),
        ({"unary": np.full((3, 63), 3e38, np.float32)}, "energies within 7.92282e\\+28 expected"),
        ({"unary": np.full((3, 63), -3e38, np.float32)}, "energies within 7.92282e\\+28 expected"),
        ({"unary": np.zeros((3, 62), np.float32)}, "63 points, the unaries have 62"),
        ({"compat": np.zeros(4)}, r"shape \(4,\) with 3 labels"),
        ({"compat": np.full((3, 3), np.inf)}, "compat holds NaN"),
        ({"normalisation": "both"}, "'both' is none of"),
        ({"iterations": -1}, "at least 0, not -1"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    unary, features, _ = small()
    given = {"unary": unary, "compat": 1.0, "normalisation": "symmetric", "iterations": 2} | change
    term = Term(GaussianFilter(features, "lattice-cpp"), given["compat"], given["normalisation"])
    with pytest.raises(ValueError, match=message):
        mean_field(given["unary"], [term], given["iterations"])
