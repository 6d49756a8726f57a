"""The dense CRF against pydensecrf and against a loop over all pairs; its properties; what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from crf_pictures import cam_like, energies, labelled_photographs, photographs, picture, scene
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.images import read_image_rgb
from tasks.crf.dense_crf import PRESETS, CRFParams, DenseCRF, dense_crf, from_labels, preset, resize_probabilities

AHN_KWAK = PRESETS["ahn-kwak-cam"]
NORMALISATIONS = ("symmetric", "before", "after", "none")


def oracle(image: Any, unary: Any, params: CRFParams, **more: Any) -> np.ndarray:
    """What pydensecrf says."""
    return dense_crf(image, unary, dataclasses.replace(params, backend="pydensecrf"), **more)


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Marginals to 1e-4, labels wherever the oracle's two best differ by more than 2e-4."""
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    assert float(np.abs(ours - theirs).max()) <= 1e-4
    if len(ours) > 1:
        second, best = np.sort(theirs, axis=0)[-2:]
        clear = best - second > 2e-4
        np.testing.assert_array_equal(ours.argmax(0)[clear], theirs.argmax(0)[clear])


# Against pydensecrf


@pytest.mark.parametrize("k", range(1, 22))
def test_any_number_of_labels(k: int) -> None:
    image, unary = picture(37, 53, k), energies(k, 37, 53, k)
    agree(dense_crf(image, unary), oracle(image, unary, AHN_KWAK))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 61), (61, 1), (2, 2), (3, 97), (33, 31), (64, 64)])
def test_any_size(size: tuple[int, int]) -> None:
    image, unary = picture(*size, seed=3), energies(3, *size, seed=4)
    agree(dense_crf(image, unary), oracle(image, unary, AHN_KWAK))


def test_a_large_picture() -> None:
    """Millions of pixels meet a tie sooner or later: elevation a last bit off was .01 apart here."""
    size = (1500, 2000)
    rng = np.random.default_rng(6)
    ground = cv2.resize(rng.normal(128, 90, (5, 6, 3)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    image = np.clip(ground + rng.normal(0, 3, ground.shape), 0, 255).astype(np.uint8)
    unary, params = energies(2, *size, seed=6), CRFParams(iterations=1)
    agree(dense_crf(image, unary, params), oracle(image, unary, params))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("kind", ["potts", "diagonal", "full"])
def test_normalisations_and_compatibilities(normalisation: Any, kind: str) -> None:
    k = 4
    image, unary = picture(29, 41, 1), energies(k, 29, 41, 2)
    # Unnormalised messages are sums over hundreds of pixels: with weights for normalised ones all labels saturate.
    scale = 0.02 if normalisation == "none" else 1.0
    rng = np.random.default_rng(5)
    part = rng.uniform(0, 1, (k, k))
    compats: dict[str, Any] = {
        "potts": (3.0 * scale, 10.0 * scale),
        "diagonal": (-scale * rng.uniform(1, 4, k), -scale * rng.uniform(5, 10, k)),
        "full": (-scale * (3 * np.eye(k) - part - part.T), -scale * (8 * np.eye(k) + part + part.T)),
    }
    spatial, bilateral = compats[kind]
    params = CRFParams(iterations=5, normalisation=normalisation)
    more = {"gaussian_compat": spatial, "bilateral_compat": bilateral}
    found = dense_crf(image, unary, params, **more)
    agree(found, oracle(image, unary, params, **more))
    assert len(np.unique(found.argmax(0))) > 1, "a picture on which something is to be decided"


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_named_set(name: Any) -> None:
    image, unary = picture(40, 50, 8), energies(4, 40, 50, 9)
    agree(dense_crf(image, unary, preset(name)), oracle(image, unary, preset(name)))


@pytest.mark.skipif(not photographs(1), reason="no photographs at hand")
@pytest.mark.parametrize(("number", "k"), [(0, 2), (1, 4), (2, 21)])
def test_real_photographs(number: int, k: int) -> None:
    image = read_image_rgb(photographs(3)[number])
    unary = energies(k, *image.shape[:2], seed=number)
    agree(dense_crf(image, unary), oracle(image, unary, AHN_KWAK))


@pytest.mark.parametrize(("gaussian", "bilateral"), [(0.0, 10.0), (3.0, 0.0), (0.0, 0.0)])
def test_a_weight_of_zero_leaves_its_term_out(gaussian: float, bilateral: float) -> None:
    image, unary = picture(20, 25), energies(3, 20, 25)
    params = CRFParams(gaussian_compat=gaussian, bilateral_compat=bilateral)
    agree(dense_crf(image, unary, params), oracle(image, unary, params))


def test_no_iteration_is_the_unaries_own_distribution() -> None:
    unary = energies(3, 9, 8)
    expected = np.exp(-unary) / np.exp(-unary).sum(0)
    np.testing.assert_allclose(dense_crf(picture(9, 8), unary, CRFParams(iterations=0)), expected, atol=1e-6)


# Against a loop over all pairs


def all_pairs(image: np.ndarray, unary: np.ndarray, params: CRFParams, spatial: Any, bilateral: Any) -> np.ndarray:
    """Mean field (Krähenbühl & Koltun 2011, algorithm 1) in float64 over every pair; matrices as penalties."""
    k, height, width = unary.shape
    ys, xs = np.mgrid[:height, :width]
    place = np.stack([xs.ravel(), ys.ravel()], 1).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    kernels = []
    for features in (
        place / params.gaussian_sxy,
        np.concatenate([place / params.bilateral_sxy, colour / params.bilateral_srgb], 1),
    ):
        kernel = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
        sums = kernel.sum(1)
        if params.normalisation == "symmetric":
            kernel = kernel / np.sqrt(sums[:, None] * sums[None])
        elif params.normalisation == "before":
            kernel = kernel / sums[None]
        elif params.normalisation == "after":
            kernel = kernel / sums[:, None]
        kernels.append(kernel)
    energy = unary.reshape(k, -1).astype(float)
    q = np.exp(-energy) / np.exp(-energy).sum(0)
    for _ in range(params.iterations):
        total = energy + spatial @ (q @ kernels[0].T) + bilateral @ (q @ kernels[1].T)
        q = np.exp(total.min(0) - total)
        q /= q.sum(0)
    return q.reshape(unary.shape)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_the_exact_form_is_mean_field_over_all_pairs(normalisation: Any) -> None:
    image, unary = picture(7, 9, 1), energies(3, 7, 9, 2)
    rng = np.random.default_rng(0)
    spatial, bilateral = (m + m.T for m in rng.normal(0, 0.5, (2, 3, 3)))
    for backend in ("brute", "exact"):
        params = CRFParams(4, 2.0, 1.0, 5.0, 20.0, 1.0, normalisation, backend)  # type: ignore[arg-type]
        found = dense_crf(image, unary, params, gaussian_compat=spatial, bilateral_compat=bilateral)
        expected = all_pairs(image, unary, params, spatial, bilateral)
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=backend)


def test_the_lattice_agrees_with_the_exact_form_on_nearly_all_labels() -> None:
    image, unary = picture(48, 60, 4), energies(4, 48, 60, 6)
    exact = dense_crf(image, unary, CRFParams(backend="exact")).argmax(0)
    assert (dense_crf(image, unary).argmax(0) == exact).mean() > 0.97


# Labels of the image alone, and several CRFs on one image


def test_a_subset_of_labels_is_the_crf_over_these_alone() -> None:
    image, unary = picture(25, 30, 2), energies(5, 25, 30, 3)
    matrix = -10 * np.eye(5) + np.diag([1.0] * 4, 1) + np.diag([1.0] * 4, -1)
    found = dense_crf(image, unary, labels=[4, 0, 2], bilateral_compat=matrix, gaussian_compat=-np.arange(5.0))
    chosen = [4, 0, 2]
    small = matrix[np.ix_(chosen, chosen)]
    alone = dense_crf(image, unary[chosen], bilateral_compat=small, gaussian_compat=-np.arange(5.0)[chosen])
    np.testing.assert_array_equal(found[chosen], alone)
    assert not found[[1, 3]].any() and found.shape == unary.shape


def test_crfs_that_share_an_image_are_those_done_alone() -> None:
    image = picture(30, 35, 5)
    crf = DenseCRF(image, AHN_KWAK)
    first, second = energies(3, 30, 35, 1), energies(4, 30, 35, 2)
    np.testing.assert_array_equal(crf.marginals(first), dense_crf(image, first))
    np.testing.assert_array_equal(
        crf.marginals(second, iterations=3, bilateral_compat=4.0),
        dense_crf(image, second, CRFParams(iterations=3, bilateral_compat=4.0)),
    )
    np.testing.assert_array_equal(crf.marginals(first), dense_crf(image, first))


# Properties


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 6), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_labels_have_no_order(k: int, height: int, width: int, seed: int) -> None:
    image, unary = picture(height, width, seed), energies(k, height, width, seed)
    order = np.random.default_rng(seed).permutation(k)
    # Each iteration multiplies the last bit of sums in another order: by 10, one picture of 250 is 1e-5 apart.
    params = CRFParams(iterations=3)
    plain, mixed = dense_crf(image, unary, params), dense_crf(image, unary[order], params)
    np.testing.assert_allclose(plain[order], mixed, atol=1e-5)
    second, best = np.sort(plain, axis=0)[-2:]
    clear = best - second > 1e-4
    np.testing.assert_array_equal(plain.argmax(0)[clear], order[mixed.argmax(0)][clear])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 255))
def test_equal_energies_on_a_constant_image_stay_equal(k: int, height: int, width: int, grey: int) -> None:
    image = np.full((height, width, 3), grey, np.uint8)
    found = dense_crf(image, np.full((k, height, width), 0.7, np.float32))
    np.testing.assert_allclose(found, 1 / k, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 6), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_strong_energies_win(k: int, height: int, width: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, k, (height, width))
    unary = np.full((k, height, width), 200.0, np.float32)
    np.put_along_axis(unary, labels[None], 0, axis=0)
    np.testing.assert_array_equal(dense_crf(picture(height, width, seed), unary).argmax(0), labels)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(PRESETS)), st.integers(1, 5), st.integers(0, 2**31))
def test_every_pixel_holds_a_distribution(name: Any, k: int, seed: int) -> None:
    found = dense_crf(picture(11, 13, seed), 30 * energies(k, 11, 13, seed), preset(name))
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_mirror_image_has_the_mirror_images_labels(axis: int) -> None:
    for image, labels in [*labelled_photographs(1), scene(120, 160, 1), scene(150, 110, 2)]:
        unary = cam_like(labels)
        plain = dense_crf(image, unary).argmax(0)
        mirrored = dense_crf(np.flip(image, axis), np.flip(unary, axis + 1)).argmax(0)
        assert (np.flip(mirrored, axis) == plain).mean() >= 0.99
        assert (plain != unary.argmin(0)).any(), "a picture on which the CRF changes something"


def test_the_same_bytes_on_every_run() -> None:
    image, unary = picture(60, 70, 1), energies(5, 60, 70, 1)
    assert len({dense_crf(image, unary).tobytes() for _ in range(4)}) == 1


def test_unknown_pixels_follow_their_surroundings() -> None:
    labels = np.full((20, 30), 255, np.uint8)
    labels[:, :5], labels[:, -5:] = 0, 1
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 12:] = 200
    found = dense_crf(image, from_labels(labels, 2, 0.9)).argmax(0)
    assert not found[:, :11].any() and found[:, 13:].all()


def test_nothing_that_is_handed_in_is_changed() -> None:
    image, unary = picture(12, 14), energies(3, 12, 14)
    before = image.copy(), unary.copy()
    for backend in ("auto", "pydensecrf"):
        dense_crf(image, unary, CRFParams(backend=backend))  # type: ignore[arg-type]
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(unary, before[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_views_and_other_float_types_are_taken(dtype: Any) -> None:
    image, unary = picture(20, 24, 1), energies(3, 20, 24, 1).astype(dtype)
    plain = dense_crf(image, unary)
    np.testing.assert_array_equal(plain, dense_crf(image, unary.astype(np.float32)))
    wide = np.concatenate([image, image], axis=1)[:, : image.shape[1]]
    rows = np.asfortranarray(unary)
    np.testing.assert_array_equal(plain, dense_crf(wide, rows))


# What is refused

IMAGE, UNARY = picture(6, 5), energies(3, 6, 5)


def spoilt(value: float) -> np.ndarray:
    unary = UNARY.copy()
    unary[1, 2, 3] = value
    return unary


@pytest.mark.parametrize("backend", ["auto", "pydensecrf"])
@pytest.mark.parametrize(
    ("image", "unary", "more", "message"),
    [
        (IMAGE[..., 0], UNARY, {}, r"\(height, width, 3\) uint8 array, not \(6, 5\) uint8"),
        (IMAGE.astype(np.float32), UNARY, {}, r"uint8 array, not \(6, 5, 3\) float32"),
        (IMAGE[:0], UNARY[:, :0], {}, r"no pixels: \(0, 5, 3\)"),
        (IMAGE, UNARY.reshape(3, -1), {}, r"not \(3, 30\); use unary\.reshape\(-1, 6, 5\)"),
        (IMAGE, UNARY[0], {}, r"\(labels, height, width\)"),
        (IMAGE, UNARY[:0], {}, r"at least one label, not \(0, 6, 5\)"),
        (IMAGE, UNARY[:, :, :4], {}, r"unaries are \(6, 4\), the image is \(6, 5\)"),
        (IMAGE, UNARY.astype(np.int64), {}, r"floating energies, not int64"),
        (IMAGE, spoilt(np.nan), {}, r"nan at label 1, row 2, column 3"),
        (IMAGE, spoilt(np.inf), {}, r"inf at label 1, row 2, column 3.*finite"),
        (IMAGE, spoilt(-np.inf), {}, r"-inf at label 1"),
        (IMAGE, np.where(UNARY == UNARY, 1e300, 0), {}, r"1e\+300 at label 0, .*finite float32"),
        (
            IMAGE,
            UNARY,
            {"gaussian_compat": np.ones(2)},
            r"gaussian_compat .*\(3,\) or \(3, 3\) for 3 labels, not \(2,\)",
        ),
        (IMAGE, UNARY, {"bilateral_compat": np.ones((4, 4))}, r"bilateral_compat .*not \(4, 4\)"),
        (IMAGE, UNARY, {"bilateral_compat": np.triu(np.ones((3, 3)))}, r"must be symmetric"),
        (IMAGE, UNARY, {"bilateral_compat": np.nan}, r"bilateral_compat must be finite"),
        (IMAGE, UNARY, {"bilateral_compat": "ten"}, r"bilateral_compat must hold numbers"),
        (IMAGE, UNARY, {"labels": []}, r"labels must be a list of label numbers"),
        (IMAGE, UNARY, {"labels": [0, 3]}, r"distinct numbers of 0\.\.2, not \[0, 3\]"),
        (IMAGE, UNARY, {"labels": [1, 1]}, r"distinct numbers of 0\.\.2, not \[1, 1\]"),
        (IMAGE, UNARY, {"labels": [0.0, 1.0]}, r"labels must be a list of label numbers"),
    ],
)
def test_errors_show_what_was_expected_and_given(
    image: Any, unary: Any, more: dict[str, Any], message: str, backend: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        dense_crf(image, unary, CRFParams(backend=backend), **more)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalisation", "both"),
        ("backend", "gpu"),
    ],
)
def test_impossible_values_name_their_field(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        CRFParams(**{name: value})


def test_negative_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0, not -1"):
        DenseCRF(IMAGE).marginals(UNARY, iterations=-1)


def test_named_sets_are_the_published_ones() -> None:
    assert {name: dataclasses.astuple(params)[:7] for name, params in PRESETS.items()} == {
        "ahn-kwak-cam": (10, 3, 3, 80, 13, 10, "symmetric"),
        "deeplab-largefov": (10, 3, 3, 140, 5, 5, "after"),
        "deeplab-v2": (10, 1, 3, 67, 3, 4, "after"),
        "rrm-test": (10, 3, 3, 83, 5, 4, "symmetric"),
        "bbox-seg": (10, 3, 15, 37, 3, 45, "after"),
    }
    with pytest.raises(ValueError, match="no CRF parameter set 'deeplab'; there are ahn-kwak-cam"):
        preset("deeplab")


def test_torch_is_not_imported(tmp_path: Path) -> None:
    """A pool of CRF workers would otherwise cost seconds and hundreds of MB each."""
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from tasks.crf.dense_crf import dense_crf\n"
        "from tasks.crf.batch import dense_crf_batch\n"
        "dense_crf(np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5), np.float32))\n"
        "print(sorted({'torch', 'prefect', 'pydantic', 'cv2'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_is_tested_covers_all_choices() -> None:
    """Names and normalisations above are all there are."""
    from typing import get_args

    from tasks.crf.params import Normalisation, Preset

    assert set(NORMALISATIONS) == set(get_args(Normalisation))
    assert list(itertools.chain(PRESETS)) == list(get_args(Preset))


@pytest.mark.parametrize("shape", [(2, 0, 5), (0, 3, 3), (4, 4)])
def test_probabilities_of_no_grid_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(labels, height, width\)"):
        resize_probabilities(np.zeros(shape, np.float32), (6, 7))
