"""Many images by threads: order, equal bytes, errors that stay with their image, memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crf_pictures import energies, picture

from models.crf import gaussian
from tasks.crf.batch import AHEAD, best_label, dense_crf_batch, in_threads
from tasks.crf.dense_crf import CRFParams, dense_crf

SIZES = [(20, 25), (7, 40), (31, 9), (1, 1), (16, 16), (24, 30)]
IMAGES = [picture(*size, seed=i) for i, size in enumerate(SIZES)]
UNARIES = [energies(2 + i % 3, *size, seed=i) for i, size in enumerate(SIZES)]
PARAMS = CRFParams(iterations=3)
NO_POSITION = CRFParams(iterations=3, gaussian_compat=0.0)


@pytest.mark.parametrize("threads", [1, 2, 4, -1])
def test_the_same_bytes_in_order_with_any_number_of_threads(threads: int) -> None:
    outcomes = list(dense_crf_batch(IMAGES, UNARIES, PARAMS, threads=threads))
    assert [one.index for one in outcomes] == list(range(len(IMAGES)))
    for one, image, unary in zip(outcomes, IMAGES, UNARIES, strict=True):
        assert one.get().tobytes() == dense_crf(image, unary, PARAMS).tobytes()


def test_labels_instead_of_marginals() -> None:
    for one, image, unary in zip(
        dense_crf_batch(IMAGES, UNARIES, PARAMS, threads=2, output="labels"), IMAGES, UNARIES, strict=True
    ):
        assert one.get().dtype == np.uint8
        np.testing.assert_array_equal(one.get(), dense_crf(image, unary, PARAMS).argmax(0))
    assert best_label(np.zeros((257, 1, 1), np.float32)).dtype == np.int32


def test_a_bad_image_is_an_entry_with_its_error_and_the_others_are_done() -> None:
    spoilt = [*UNARIES]
    spoilt[2] = np.full_like(UNARIES[2], np.nan)
    spoilt[4] = UNARIES[4][:, :-1]
    outcomes = list(dense_crf_batch(IMAGES, spoilt, PARAMS, threads=2))
    assert [one.index for one in outcomes if one.error is not None] == [2, 4]
    assert "nan at label 0" in str(outcomes[2].error)
    with pytest.raises(ValueError, match=r"unaries are \(15, 16\), the image is \(16, 16\)"):
        outcomes[4].get()
    assert all(one.value is not None for one in outcomes if one.error is None)


def test_images_and_unaries_that_do_not_pair_up_are_an_error_after_what_could_be_done() -> None:
    found = dense_crf_batch(IMAGES, UNARIES[:3], PARAMS, threads=2)
    assert [next(found).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="shorter"):
        next(found)


def test_a_generator_is_drawn_on_as_results_are_taken() -> None:
    drawn = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal drawn
        for _ in range(100):
            drawn += 1
            yield IMAGES[3]

    found = dense_crf_batch(images(), (UNARIES[3] for _ in range(100)), PARAMS, threads=2)
    assert drawn == 0
    for taken in range(1, 11):
        next(found)
        assert drawn <= taken + 2 * AHEAD
    found.close()  # type: ignore[attr-defined]
    assert drawn <= 10 + 2 * AHEAD
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("crf")]


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)
    assert [one.get() >= 0 for one in in_threads(lambda _: together.wait(), range(3), 3)] == [True] * 3


def test_lattices_and_row_sums_of_different_images_are_made_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for another image's lattice is a core that stands still."""
    building, summing = (threading.Barrier(2, timeout=20) for _ in range(2))

    class Together(gaussian.GaussianFilter):
        def __init__(self, features_nd: Any, backend: str = "auto", device: str = "cpu") -> None:
            building.wait()
            super().__init__(features_nd, backend, device)

        def apply(self, values_nk: Any, transpose: bool = False) -> Any:
            summing.wait()
            return super().apply(values_nk, transpose)

    expected = [dense_crf(image, unary, NO_POSITION) for image, unary in zip(IMAGES[:2], UNARIES[:2], strict=True)]
    monkeypatch.setattr(gaussian, "GaussianFilter", Together)
    found = [one.get() for one in dense_crf_batch(IMAGES[:2], UNARIES[:2], NO_POSITION, threads=2)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [0, -2])
def test_impossible_thread_counts_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1"):
        dense_crf_batch(IMAGES, UNARIES, threads=threads)


ENDS_WHILE_THREADS_COMPUTE = """
import threading, time
from crf_pictures import energies, picture
from tasks.crf.dense_crf import CRFParams, dense_crf

begun = threading.Barrier(4)

def work():
    image, unary, params = picture(100, 150), energies(4, 100, 150), CRFParams(iterations=5, backend="lattice-cpp")
    dense_crf(image, unary, params)
    begun.wait()
    while True:
        dense_crf(image, unary, params)

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(0.05)
"""


def test_a_program_that_ends_while_threads_compute_does_not_abort() -> None:
    """Two Ctrl-C are enough for it: the lattice then requested the lock of an interpreter that ends."""
    paths = map(str, (Path(__file__).parents[3], Path(__file__).parents[2] / "helpers"))
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WHILE_THREADS_COMPUTE],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
