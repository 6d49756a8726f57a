"""Do means, spreads and verdicts of several runs agree with sums by hand?"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.report.comparison import (
    Line,
    flat_scores,
    markdown,
    paired,
    score_table,
    shown_columns,
    spread,
    spread_dict,
)

SHARES = st.dictionaries(st.integers(0, 9), st.floats(0, 1), min_size=2, max_size=6)


def test_mean_and_sample_deviation_by_hand() -> None:
    found = spread([0.70, 0.72, 0.77])
    assert found.mean == pytest.approx(0.73)
    assert found.std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2)), "divided by n - 1"
    assert found.shown() == "73.0 ± 3.6" and found.n == 3


def test_one_number_has_no_spread_and_none_has_no_mean() -> None:
    assert spread([0.5]).std is None and spread([0.5]).shown() == "50.0"
    with pytest.raises(ValueError, match="no number"):
        spread([])


@pytest.mark.parametrize(
    ("lower", "higher", "mean", "std", "verdict", "why"),
    [
        # differences .10 .12 .14: mean .12, deviation .02
        ((0.5, 0.5, 0.5), (0.60, 0.62, 0.64), 0.12, 0.02, "holds", ""),
        ((0.60, 0.62, 0.64), (0.5, 0.5, 0.5), -0.12, 0.02, "reversed", ""),
        # .01 .03 -.01: mean .01, deviation .02
        ((0.5, 0.5, 0.5), (0.51, 0.53, 0.49), 0.01, 0.02, "undecided", "within the spread"),
        # the numbers spread by .1, their differences not at all: paired by seed, not by set
        ((0.4, 0.5, 0.6), (0.42, 0.52, 0.62), 0.02, 0.0, "holds", ""),
        ((0.4, 0.5, 0.6), (0.4, 0.5, 0.6), 0.0, 0.0, "undecided", "no difference"),
    ],
)
def test_verdicts_by_hand(
    lower: tuple[float, ...], higher: tuple[float, ...], mean: float, std: float, verdict: str, why: str
) -> None:
    found = paired(dict(enumerate(lower)), dict(enumerate(higher)))
    assert found.difference is not None and found.difference.std is not None
    assert found.difference.mean == pytest.approx(mean)
    assert found.difference.std == pytest.approx(std, abs=1e-12)
    assert (found.verdict, found.why) == (verdict, why)


def test_a_difference_that_only_equals_its_deviation_is_undecided() -> None:
    # differences 0, .25, .5: mean .25, deviation sqrt((.25**2 + 0 + .25**2) / 2) = .25
    found = paired(dict.fromkeys(range(3), 0.25), {0: 0.25, 1: 0.5, 2: 0.75})
    assert found.difference is not None and found.difference.mean == found.difference.std == 0.25
    assert found.verdict == "undecided"


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired({0: 0.1, 1: 0.2, 2: 0.9}, {0: 0.2, 1: 0.3, 7: 0.0})
    assert found.difference is not None and found.difference.n == 2
    assert found.difference.mean == pytest.approx(0.1) and found.verdict == "holds"


@pytest.mark.parametrize(("lower", "why"), [({}, "not run"), ({1: 0.2}, "not run"), ({0: 0.2}, "one seed")])
def test_too_little_is_undecided_however_large_the_difference(lower: dict[int, float], why: str) -> None:
    found = paired(lower, {0: 0.9})
    assert (found.verdict, found.why) == ("undecided", why)


@given(SHARES, SHARES)
def test_the_verdict_turns_round_with_the_question(a: dict[int, float], b: dict[int, float]) -> None:
    there, back = paired(a, b).verdict, paired(b, a).verdict
    turned = {"holds": "reversed", "reversed": "holds", "undecided": "undecided"}
    assert back == turned[there]


SIZES = {"small": {"mean": 0.3, "count": 2}, "large": {"mean": None, "count": 0}}


def test_scores_of_a_run_become_columns() -> None:
    scores = {
        "masks (train)": {"miou": 0.7, "object_iou": {"mean": 0.6, "count": 5}, "by_size": SIZES},
        "student (val)": {"miou": 0.5, "object_iou": {"mean": None, "count": 0}},
    }
    assert flat_scores(scores) == {
        "masks (train) mIoU": 0.7,
        "masks (train) object IoU": 0.6,
        "masks (train) object IoU, small": 0.3,
        "student (val) mIoU": 0.5,
    }
    line = Line("one", {column: {0: value} for column, value in flat_scores(scores).items()}, 1, 1)
    assert shown_columns([line]) == ["masks (train) mIoU", "masks (train) object IoU"], "sizes are for tables that ask"


LINES = (
    Line(
        "a|b",
        {
            "two-step + CRF (val) mIoU": {0: 0.2},
            "two-step (val) mIoU": {0: 0.1},
            "masks (train) mIoU": {0: 0.5},
            "cfs (train) mIoU": {0: 0.4},
            "two-step-old (val) mIoU": {0: 0.3},
        },
        1,
        3,
        1,
        ("masks", "two-step"),
    ),
    Line("none", {}, 0, 3),
)


def test_the_table_shows_masks_then_predictions_and_how_many_runs() -> None:
    assert shown_columns(LINES) == ["masks (train) mIoU", "two-step + CRF (val) mIoU", "two-step (val) mIoU"]
    assert score_table(LINES).markdown().splitlines() == [
        "| variant | masks (train) mIoU | two-step + CRF (val) mIoU | two-step (val) mIoU | runs |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a\\|b | 50.0 | 20.0 | 10.0 | 1 of 3, 1 failed |",
        "| none | - | - | - | 0 of 3 |",
    ]


def test_a_cell_of_several_lines_stays_in_its_row() -> None:
    assert markdown([["a"], ["x\ny"]]) == "| a |\n| --- |\n| x y |\n"


def test_numbers_of_a_column_keep_their_seeds() -> None:
    assert spread_dict({3: 0.5, 4: 0.7}) == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(math.sqrt(0.02)),
        "seeds": {"3": 0.5, "4": 0.7},
    }
    with pytest.raises(ValueError, match="not a number"):
        spread_dict({0: math.nan})
