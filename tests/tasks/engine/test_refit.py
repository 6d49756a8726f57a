"""When fits are done again: the policies, and chains of fits over nights of a growing list."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import refit_stages
from refit_stages import FAIL, LABELS, page
from safetensors.numpy import save_file

from artifacts.cache.fit_store import Difference
from artifacts.images import ImageDigests
from artifacts.records import Record, RecordSet, Sets
from benchmarks.soak_kill import fingerprint
from tasks.engine.options import RunParams
from tasks.engine.refit import Refit, made_with, pin_text
from tasks.engine.runner import Runner
from tasks.engine.stage_report import StageReport
from tasks.stage import MapHandle


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("changed", Refit("changed")),
        ("never", Refit("never")),
        ("share:0.1", Refit("share", 0.1)),
        ("share:.5", Refit("share", 0.5)),
        ("days:7", Refit("days", 7)),
    ],
)
def test_policies_by_name(text: str, expected: Refit) -> None:
    assert Refit.parse(text) == expected


@pytest.mark.parametrize("text", ["", "Never", "share", "share:", "share:0", "share:-1", "share:nan", "days:1e9x", "7"])
def test_another_name_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"there are changed, never, share:X .* days:N"):
        RunParams(refit=text)


@pytest.mark.parametrize(
    ("text", "same", "new", "changed", "removed", "doubtful", "due"),
    [
        ("never", 1, 99, 99, 99, 0, False),
        ("share:0.3", 8, 0, 1, 1, 0, False),
        ("share:0.3", 8, 1, 1, 1, 0, True),
        ("share:0.3", 10, 2, 0, 0, 0, False),
        ("share:0.3", 10, 3, 0, 0, 0, True),
        ("share:0.3", 10, 2, 0, 0, 1, None),
        ("share:0.3", 10, 1, 0, 0, 1, False),
        ("share:0.3", 10, 3, 0, 0, 5, True),
        ("days:2", 10, 1, 0, 0, 1, False),
        ("days:0.5", 10, 1, 0, 0, 1, True),
    ],
)
def test_whether_a_fit_is_due_a_day_later(
    text: str, same: int, new: int, changed: int, removed: int, doubtful: int, due: bool | None
) -> None:
    assert Refit.parse(text).due(Difference(same, new, changed, removed), 86400.0, doubtful) is due


def test_what_is_said_of_a_pinned_fit() -> None:
    time_s = 1795744920.0  # date -u -d @1795744920
    assert pin_text(time_s, Difference(1200, 0, 0, 0)) == (
        "pinned since 2026-11-27 02:02 UTC, trained on 1,200 of now 1,200 records"
    )
    assert pin_text(time_s, Difference(8, 2, 1, 3), doubtful=4).endswith(
        "trained on 4 of now 11 records (2 new, 1 changed, 4 perhaps changed, 3 removed)"
    )


# -- nights of a chain: first -> shade -> second (from first) -> shaded -> third --------------------------------------


Night = Callable[..., list[StageReport]]


@pytest.fixture
def pictures(tmp_path: Path) -> RecordSet:
    """Sixteen; the nights take as many of them as they want."""
    generator = np.random.default_rng(0)
    records = []
    for number in range(16):
        path = tmp_path / f"{number:02d}.png"
        cv2.imwrite(str(path), generator.integers(0, 256, (4, 4, 3), np.uint8))
        records.append(Record(f"{number:02d}", str(path)))
    return RecordSet("d", "train", ("cat",), tuple(records))


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Plans, runs, and compares: a dry run foretells what is pinned, and every count that is known by then."""

    def run_night(records: RecordSet, refit: str, cache: str = "cache") -> list[StageReport]:
        options = RunParams(
            cache=str(tmp_path / cache / "cache"), workers=0, device="cpu", launch="inline", threads=1, refit=refit
        )
        with Runner(options, planning=True) as plan:
            page(plan, records)
        with Runner(options) as run:
            page(run, records)
        assert [report.label for report in run.reports] == list(LABELS)
        for planned, done in zip(plan.reports, run.reports, strict=True):
            assert done.computed == done.total - done.cached
            if not planned.unknown:
                assert (planned.to_compute, bool(planned.pinned)) == (done.computed, bool(done.pinned))
        return run.reports

    return run_night


def first(records: RecordSet, count: int) -> RecordSet:
    return replace(records, records=records.records[:count])


def counts(reports: Sequence[StageReport]) -> list[int]:
    """Of each stage, in the order of :data:`LABELS`."""
    return list(refit_stages.computed(reports).values())


def test_in_a_chain_each_fit_is_decided_and_the_next_builds_on_it(pictures: RecordSet, night: Night) -> None:
    assert counts(night(first(pictures, 10), "share:0.3")) == [1, 10, 1, 10, 1], "nothing published: fitted"
    made = night(first(pictures, 10), "share:0.3")
    assert counts(made) == [0, 0, 0, 0, 0] and not any(report.pinned for report in made)
    grown = night(first(pictures, 11), "share:0.3")
    assert counts(grown) == [0, 1, 0, 1, 0], "the new picture alone, by the pinned networks"
    assert [report.pinned.partition(", ")[2] for report in grown if report.kind == "fit"] == [
        "trained on 10 of now 11 records (1 new)"
    ] * 3, "behind a pinned fit the data alone has changed"
    assert [report.stamps for report in grown[::2]] == [report.stamps for report in made[::2]]
    assert counts(night(first(pictures, 11), "share:0.3")) == [0, 0, 0, 0, 0], "a night with nothing new"
    assert counts(night(first(pictures, 13), "share:0.3")) == [1, 13, 1, 13, 1], "the last fit is of ten"
    assert counts(night(first(pictures, 14), "share:0.3")) == [0, 1, 0, 1, 0], "and now of thirteen"


def test_a_network_whose_data_a_younger_one_makes_is_not_pinned(
    pictures: RecordSet, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A week after the first was published, and less than a week after the third: both are done, and foretold."""
    night(first(pictures, 10), "days:7")
    published = {report.label: report for report in night(first(pictures, 11), "days:7")}
    assert all(published[label].pinned for label in ("first", "second", "third"))
    monkeypatch.setattr(Refit, "due", lambda self, difference, age_s, doubtful=0: next(due))
    due = iter([True, False] * 2)  # of the first and, if it is asked, of others: the plan, then the run
    assert counts(night(first(pictures, 12), "days:7")) == [1, 12, 1, 12, 1]


def test_a_dry_run_shows_a_pin_although_what_is_above_it_is_not_made(
    pictures: RecordSet, night: Night, tmp_path: Path
) -> None:
    night(first(pictures, 10), "changed")
    for refit, expected in (("never", [0, 1, 0, 1, 0]), ("share:0.2", [0, 1, 0, 1, 0]), ("changed", [1, 0, 0, 0, 0])):
        options = RunParams(cache=str(tmp_path / "cache" / "cache"), refit=refit)
        with Runner(options, planning=True) as plan:
            page(plan, first(pictures, 11))
        assert [report.to_compute for report in plan.reports] == expected
        pinned = [report.label for report in plan.reports if report.pinned]
        assert pinned == ([] if refit == "changed" else ["first", "second", "third"])
        assert [report.unknown for report in plan.reports] == ([0, 11, 1, 11, 1] if refit == "changed" else [0] * 5)


def test_a_fit_that_learned_from_what_is_scored_now_is_not_pinned(
    pictures: RecordSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``data.val_share`` was raised: two pictures that the network knows are the evaluation images now."""
    given = RunParams(cache=str(tmp_path / "cache"), workers=0, device="cpu", launch="inline", threads=1, refit="never")

    def computed(train: slice, val: slice) -> list[int]:
        parts = (replace(pictures, records=pictures.records[part]) for part in (train, val))
        train_set, val_set = (replace(part, split=name) for part, name in zip(parts, ("train", "val"), strict=True))
        found = []
        for planning in (True, False):
            with Runner(given, planning=planning, sets=Sets(train_set, val_set)) as run:
                page(run, train_set)
            found.append([report.to_compute if planning else report.computed for report in run.reports])
        assert found[0][0] == found[1][0], "the dry run says so"
        return found[1]

    assert computed(slice(10), slice(10, 12)) == [1, 10, 1, 10, 1]
    assert computed(slice(9), slice(10, 12)) == [0, 0, 0, 0, 0], "one is gone, and is not scored"
    with caplog.at_level(logging.WARNING, "maskmill"):
        assert computed(slice(8), slice(8, 12)) == [1, 8, 1, 8, 1]
    assert "first: refit=never, but the last fit learned from 2 of what are evaluation images now, e.g. d/08" in (
        caplog.text
    )


def test_other_pictures_of_a_pinned_fit_keep_their_bytes(pictures: RecordSet, night: Night, tmp_path: Path) -> None:
    night(first(pictures, 10), "never")
    before = fingerprint(tmp_path / "cache")
    cv2.imwrite(pictures.records[3].image, np.zeros((4, 4, 3), np.uint8))
    changed = night(first(pictures, 11), "never")
    assert counts(changed) == [0, 2, 0, 2, 0]
    assert "trained on 9 of now 11 records (1 new, 1 changed)" in changed[0].pinned
    after = fingerprint(tmp_path / "cache")
    assert before.items() < after.items() and len(after) - len(before) == 4


def test_other_params_are_fitted_whatever_the_policy(
    pictures: RecordSet, night: Night, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    night(pictures, "never")
    monkeypatch.setattr(refit_stages, "SECOND", replace(refit_stages.SECOND, version=2))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "maskmill"):
        assert counts(night(pictures, "never")) == [0, 0, 1, 16, 1]
    assert "second: refit=never, but there is no earlier fit to pin" in caplog.text


def test_a_fit_does_not_stand_in_where_the_data_are_made_with_another_file_or_seed(
    pictures: RecordSet, tmp_path: Path
) -> None:
    """No address tells them: a student of other masks must not stand in, however old that network is."""
    save_file({"level": np.array([7.0])}, tmp_path / "a")
    save_file({"level": np.array([9.0])}, tmp_path / "b")
    given = RunParams(cache=str(tmp_path / "cache"), workers=0, device="cpu", launch="inline", threads=1, refit="never")

    def pinned(count: int, file: str) -> bool:
        with Runner(given) as run:
            records = first(pictures, count)
            shade = run.map(refit_stages.SHADE, records, net=run.load(tmp_path / file))
            return run.fit(refit_stages.THIRD, records, shade=shade).pinned

    nights = [(3, "a"), (4, "a"), (4, "b"), (5, "b"), (5, "a")]
    assert [pinned(*one) for one in nights] == [False, True, False, True, True]
    with Runner(given, planning=True) as plan:
        net = plan.fit(replace(refit_stages.FIRST, seed=3), pictures)
        shade = plan.map(refit_stages.SHADE, pictures, net=net)
        inverted = plan.map(refit_stages.SHADE, pictures, label="inverted", shade=shade)
        assert made_with({"init": net, "shade": inverted}, plan.sources) == ["first 3"]


def test_a_night_that_died_between_two_fits_is_gone_on_with(
    pictures: RecordSet, night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first network was published: the second has none of its lineage to pin, and is fitted."""
    night(first(pictures, 10), "share:0.3")
    FAIL.append("second")
    try:
        with pytest.raises(RuntimeError, match="as if it were killed"):
            night(first(pictures, 13), "share:0.3")
    finally:
        FAIL.clear()
    found = night(first(pictures, 14), "share:0.3")
    assert counts(found) == [0, 1, 1, 14, 1]
    assert "trained on 13 of now 14" in found[0].pinned and not found[2].pinned


def test_the_same_nights_leave_the_same_bytes(pictures: RecordSet, night: Night, tmp_path: Path) -> None:
    for cache in ("cache", "other"):
        for count in (10, 11, 14, 15):
            night(first(pictures, count), "share:0.3", cache)
    assert fingerprint(tmp_path / "cache") == fingerprint(tmp_path / "other")


def test_a_run_does_not_walk_through_what_its_plan_found_complete(
    pictures: RecordSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = RunParams(cache=str(tmp_path / "cache"), workers=0, device="cpu", launch="inline", threads=1)
    read: list[str] = []
    digest = ImageDigests.digest

    def counted(self: ImageDigests, path: Path | str) -> str:
        read.append(str(path))
        return digest(self, path)

    monkeypatch.setattr(ImageDigests, "digest", counted)

    def night(records: RecordSet) -> tuple[list[int], int]:
        with Runner(given, planning=True) as plan:
            page(plan, records)
        read.clear()
        with Runner(given, sources=plan.sources) as run:
            page(run, records)
        again = [dict(handle.produced) for handle in run.handles if isinstance(handle, MapHandle)]
        with Runner(given) as alone:
            page(alone, records)
        assert again == [dict(handle.produced) for handle in alone.handles if isinstance(handle, MapHandle)]
        return counts(run.reports), len(read)

    assert night(first(pictures, 8))[0] == [1, 8, 1, 8, 1]
    assert night(first(pictures, 8)) == ([0, 0, 0, 0, 0], 5 * 8), "the five stages of the run without a plan"
    assert night(first(pictures, 9))[0] == [1, 9, 1, 9, 1], "what is above was made since: all is looked at"
