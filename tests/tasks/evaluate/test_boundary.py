"""Boundary scores: hand-made pictures with known answers, matchings as large as scipy's, thinning as scikit-image's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.morphology import thin as skeleton

from artifacts.records import DataError
from tasks.evaluate import boundary
from tasks.evaluate.boundary import boundary_counts, boundary_scores, precision_recall, thresholds
from tasks.evaluate.matching import match

BSDS = Path(__file__).parents[3] / "../shared/data/bsds"
SIZE = (160, 120)
"""Its diagonal is 200: pixels match within 1.5, neighbours across a corner included."""


def line(x: int, value: float = 1.0) -> NDArray[np.float64]:
    """A vertical line of 100 pixels."""
    made = np.zeros(SIZE)
    made[30:130, x] = value
    return made


def counts_of(found: NDArray[np.float64], *drawn: NDArray[np.float64], at: float = 0.5) -> list[int]:
    truths = np.stack([one > 0 for one in drawn])
    return [int(value) for value in boundary_counts(found, truths, np.array([at]))[0]]


def test_what_is_near_is_found_and_what_is_far_is_not() -> None:
    assert counts_of(line(60), line(60)) == [100, 100, 100, 100]
    assert counts_of(line(61), line(60)) == [100, 100, 100, 100]
    assert counts_of(line(62), line(60)) == [0, 100, 0, 100]
    assert counts_of(line(60, 0.4), line(60)) == [0, 0, 0, 100]
    assert counts_of(line(60, 0.5), line(60)) == [100, 100, 100, 100], "at least the threshold"
    assert counts_of(line(60), line(20)) == [0, 100, 0, 100]
    assert counts_of(line(60), np.zeros(SIZE)) == [0, 100, 0, 0]


def test_one_drawn_pixel_takes_one_found_one() -> None:
    """Of two lines beside the drawn one each pixel could be right, but not both."""
    assert counts_of(line(59) + line(61), line(60)) == [100, 200, 100, 100]
    assert counts_of(line(60), line(59) + line(61)) == [100, 100, 100, 200]


def test_annotators_are_summed_for_recall_and_joined_for_precision() -> None:
    assert counts_of(line(60), line(60), line(60), line(90)) == [100, 100, 200, 300]
    assert counts_of(line(60) + line(90) + line(20), line(60), line(90)) == [200, 300, 200, 200]


def test_a_matching_gives_way_where_the_nearest_pixel_is_wanted_by_another() -> None:
    """Two found pixels in a row, drawn ones on the second and beyond it: nearest first leaves one without."""
    found, drawn = np.zeros(SIZE), np.zeros(SIZE)
    found[50, [60, 61]] = 1
    drawn[50, [61, 62]] = 1
    assert counts_of(found, drawn) == [2, 2, 2, 2]


def test_other_sizes_are_refused() -> None:
    with pytest.raises(DataError, match=r"the map is \(160, 120\) \(height, width\), its boundaries \(120, 160\)"):
        boundary_counts(line(3), np.zeros((1, 120, 160), bool), thresholds(3))


def scene(seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Levels 0..5 and three annotators, crowded enough that many pixels compete."""
    draw = np.random.default_rng(seed)
    levels = draw.integers(1, 6, (60, 80)) * (draw.random((60, 80)) < draw.choice([0.1, 0.3]))
    return levels, draw.random((3, 60, 80)) < draw.choice([0.05, 0.2])


@pytest.mark.parametrize("seed", range(8))
def test_every_threshold_has_as_many_pairs_as_scipys_matching_from_scratch(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "RADIUS", 0.023 if seed % 2 else 0.01)  # of a diagonal of 100
    levels, drawn = scene(seed)
    at = thresholds(5)
    found = boundary_counts(np.concatenate([[0], at])[levels], drawn, at)
    for place in range(5):
        pixels = np.argwhere(skeleton(levels > place))
        pairs = 0
        for one in drawn:
            truth = np.argwhere(one)
            near = np.hypot(*(pixels[:, None] - truth[None]).transpose(2, 0, 1)) <= boundary.RADIUS * 100
            pairs += (maximum_bipartite_matching(coo_matrix(near).tocsr(), perm_type="column") >= 0).sum()
        assert found[place].tolist() == [found[place, 0], len(pixels), pairs, drawn.sum()]
        assert pairs / 3 <= found[place, 0] <= min(pairs, len(pixels))


@pytest.mark.parametrize("seed", range(4))
def test_no_matching_has_more_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    # A permutation a column: no truth is twice in one.
    near = np.stack([draw.permutation(300) for _ in range(3)], axis=1).astype(np.int32)
    near[draw.random(near.shape) < 0.5] = -1
    near[near > 200] = -1
    rows, columns = np.nonzero(near >= 0)
    graph = coo_matrix((np.ones(len(rows)), (rows, near[rows, columns])), shape=(300, 201)).tocsr()
    assert match(near, 201).sum() == (maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()


@pytest.mark.parametrize("count", [3, 33, 99, 255])
def test_a_threshold_counts_the_same_whichever_others_there_are(count: int) -> None:
    """A line of two pixels' width and of many heights is one of one pixel at each of them."""
    found = np.zeros(SIZE)
    found[30:130, 60:62] = np.random.default_rng(0).uniform(0.5, 0.9, (100, 2))
    at = thresholds(count)
    place = int(np.abs(at - 0.5).argmin())
    row = boundary_counts(found, line(60)[None] > 0, at)[place]
    assert row.tolist() == boundary_counts(found, line(60)[None] > 0, at[place : place + 1])[0].tolist()
    assert row[1] == skeleton(found >= at[place]).sum() and 98 <= row[1] <= 100


def test_scores_of_two_pictures_by_hand() -> None:
    """Precision and recall of the set: .5 and .8, then .9 and .6 at the higher threshold."""
    counts = np.array([[[60, 100, 80, 100], [40, 40, 60, 100]], [[40, 100, 80, 100], [50, 60, 60, 100]]])
    found = boundary_scores(counts, np.array([0.25, 0.75]))
    shares = np.linspace(0, 1, 101)
    precision, recall = 0.5 + 0.4 * shares, 0.8 - 0.2 * shares
    f = 2 * precision * recall / (precision + recall)
    assert found.ods == pytest.approx(f.max()) and found.threshold == pytest.approx(0.25 + 0.5 * shares[f.argmax()])
    assert (found.precision, found.recall) == pytest.approx((precision[f.argmax()], recall[f.argmax()]))
    own = (40 + 50) / (40 + 60), (60 + 60) / 200
    assert found.ois == pytest.approx(2 * own[0] * own[1] / sum(own)) and found.images == 2
    # Recalls of .60 to .80 are on the curve; outside of them the benchmark counts 0.
    assert found.ap == pytest.approx(sum(0.9 - 0.02 * step for step in range(21)) / 100)
    nothing = boundary_scores(np.zeros((1, 2, 4), int), np.array([0.25, 0.75]))
    assert (nothing.ods, nothing.ois, nothing.ap) == (0, 0, 0)


@pytest.mark.skipif(not BSDS.is_dir(), reason="BSDS500 is not beside the checkout")
def test_people_agree_with_each_other_about_as_the_benchmark_says() -> None:
    total = np.zeros((1, 4), np.int64)
    for path in sorted((BSDS / "annotators/val").glob("*.npz"))[:2]:
        drawn = np.load(path)["boundaries"]
        for left_out in range(len(drawn)):
            others = np.delete(drawn, left_out, axis=0)
            total += boundary_counts(drawn[left_out].astype(float), others, np.array([0.5]))
    precision, recall = precision_recall(total[0])
    # On all of val .787; these two are clearer than most (benchmarks.edges --people).
    assert 2 * precision * recall / (precision + recall) == pytest.approx(0.900, abs=2e-3)
