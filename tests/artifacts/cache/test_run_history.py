"""What runs left, as facts: outcomes, names, what changed between two; and how far a running one is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from artifacts.cache import locks
from artifacts.cache.run_history import PictureChanges, compare, facts, picture_changes
from artifacts.cache.run_status import status, working
from artifacts.cache.runs import RunFolder, all_runs, find_run, list_runs, named, write_pictures, write_stamps
from artifacts.records import DataError

SKIP = {"key": "d/9", "path": "9.jpg", "reason": "truncated", "permanent": True, "stage": "grabcut"}


def run_of(cache: Path, day: int, status: str = "finished", **more: Any) -> RunFolder:
    run = RunFolder(cache, f"202601{day:02d}-020000-cfs-aaaa")
    run.path.mkdir(parents=True)
    run.write_manifest({"flow": "cfs", "status": status, "started": 1000.0, "seconds": 60.0, **more})
    return run


def test_how_a_run_ended(tmp_path: Path) -> None:
    good, skipped = run_of(tmp_path, 1), run_of(tmp_path, 2, skips=[SKIP])
    unexported, stopped = run_of(tmp_path, 3, failures=["export failed"]), run_of(tmp_path, 4, "interrupted")
    failed, killed = run_of(tmp_path, 5, "failed", error="no", stage="net"), run_of(tmp_path, 6, "running")
    damaged, nothing = run_of(tmp_path, 7), RunFolder(tmp_path, "20260108-020000250000-lpg-learn-aaaa")
    (damaged.path / "manifest.json").write_text("{")
    nothing.path.mkdir()
    runs = [good, skipped, unexported, stopped, failed, killed, damaged, nothing]
    assert all_runs(tmp_path) == runs and list_runs(tmp_path) == runs[:-1]
    outcomes = ["done", "done with skips", "done with failures", "interrupted", "failed", "killed", "damaged", "killed"]
    assert [facts(run).outcome for run in runs] == outcomes
    assert [run for run in runs if facts(run).good] == [good, skipped]
    assert (facts(failed).stage, facts(failed).error, facts(nothing).flow) == ("net", "no", "lpg-learn")
    assert facts(nothing).started == datetime(2026, 1, 8, 2, 0, 0, 250_000, UTC).timestamp()
    assert facts(damaged).started == datetime(2026, 1, 7, 2, tzinfo=UTC).timestamp(), "older names end with the second"
    skipped.write_progress({"phase": "works"})
    assert facts(skipped).outcome == "killed", "in the middle of an export"
    skipped.write_manifest({**skipped.manifest(), "files": {}})
    assert facts(skipped).good
    with locks.hold(killed.lock), locks.hold(nothing.lock):
        assert [facts(run).outcome for run in (killed, nothing)] == ["running", "running"]
        assert [one.facts.run for one in status(tmp_path).working] == [killed.run_id, nothing.run_id]
    found = status(tmp_path)
    assert found.working == () and [one.run for one in found.killed] == [nothing.run_id]
    assert found.good is not None and found.good.run == skipped.run_id
    assert found.last is not None and found.last.run == nothing.run_id


def test_a_run_is_named_by_id_beginning_or_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run here yet"):
        named([], "last")
    one, two, bad = run_of(tmp_path, 1, stages=[{}]), run_of(tmp_path, 12, stages=[{}]), run_of(tmp_path, 13, "failed")
    runs = [one, two, bad]
    names = ("last", "last~1", "last~2", "last-good", "20260101", two.run_id)
    assert [named(runs, name) for name in names] == [bad, two, one, two, one, two]
    for name, words in (("last~3", "the number of runs is 3"), ("2026011", "several runs begin"), ("x", "no run 'x'")):
        with pytest.raises(DataError, match=words):
            named(runs, name)
    assert find_run(tmp_path) == two, "the failed one did nothing: there is nothing in it to export"
    assert find_run(tmp_path, "last-good") == two


def test_pictures_are_told_apart_by_name_and_by_content() -> None:
    """By hand: a stays, b's boxes are others, c's image too, d becomes e, f goes, g comes; h, i, k share one image."""
    before = {
        "a": {"image": "1", "boxes": "1"},
        "b": {"image": "2", "boxes": "1"},
        "c": {"image": "3", "boxes": "1", "tags": "1"},
        "d": {"image": "4"},
        "f": {"image": "5"},
        "h": {"image": "6"},
        "i": {"image": "6"},
        "l": {},
    }
    after = {
        "a": {"image": "1", "boxes": "1", "truth": "1"},
        "b": {"image": "2", "boxes": "2"},
        "c": {"image": "7", "boxes": "2"},
        "e": {"image": "4"},
        "g": {"image": "8"},
        "k": {"image": "6"},
        "m": {},
    }
    changed = {"b": ("boxes",), "c": ("boxes", "image")}
    assert picture_changes(before, after) == PictureChanges(
        ("g", "m"), ("f", "i", "l"), {"d": "e", "h": "k"}, changed, 1
    )


def test_what_changed_between_two_runs(tmp_path: Path) -> None:
    stamps = [{"d/1": ("s", "1"), "d/2": ("s", "2"), "d/3": ("s", "3")}, {"d/1": ("t", "1"), "d/2": ("s", "2")}]
    lists = [write_stamps(tmp_path, one) for one in stamps]
    pictures = [write_pictures(tmp_path, one) for one in ({"d/1": {"image": "a"}}, {"d/1": {"image": "b"}})]

    def night(day: int, kernel: int, computed: int, output: str, **more: Any) -> RunFolder:
        which = day - 1
        stages = [
            {"label": "cut", "kind": "map", "address": "cut-1", "stamps": lists[which], "computed": 2 + which},
            {"label": "net", "kind": "fit", "address": "net-1", "stamps": "s", "computed": computed, "output": output},
            *more.pop("stages", []),
        ]
        recipe = {"data": {"source": "voc:a"}, "params": {"cut": {"kernel": kernel, "same": 1}}}
        return run_of(tmp_path, day, stages=stages, recipe=recipe, pictures={"train": pictures[which]}, **more)

    crf = {"label": "crf", "kind": "map", "address": "crf-1", "stamps": "", "computed": 5}
    first = night(1, 3, 1, "w1", skips=[SKIP], scores={"masks (train)": {"miou": 0.5}})
    new = {**SKIP, "key": "d/7"}
    second = night(2, 5, 1, "w2", skips=[new], scores={"masks (train)": {"miou": 0.75}}, stages=[crf])
    found = compare(first, second)
    assert found.parameters == {"params.cut.kernel": (3, 5)}
    assert found.scores == {"masks (train)": (0.5, 0.75)}
    assert (found.skips_new, found.skips_gone) == ((new,), (SKIP,))
    assert found.pictures["train"] == PictureChanges((), (), {}, {"d/1": ("image",)}, 0)
    stages = {one.label: (one.computed, one.other_params, one.results) for one in found.stages}
    assert stages == {
        "cut": ((2, 3), False, "1 other"),
        "net": ((1, 1), False, "other"),
        "crf": ((None, 5), False, ""),
    }
    assert found.refitted == ("net",)
    same = compare(first, first)
    assert not same.parameters and {one.results for one in same.stages} == {"same"}
    (tmp_path / "pictures" / f"{pictures[1]}.json").write_text("{}")
    assert compare(first, second).pictures == {"train": None}, "a damaged list tells nothing"


def progress(**more: Any) -> dict[str, Any]:
    """At 1,000 s: grabcut took its 100 s; of deeplab's iterations 30 are done, the first 10 by 800 s."""
    done = {"unit": "images", "total": 9, "cached": 0, "began": 0.0, "ended": 100.0, "done": 9, "first": [1.0, 1]}
    net = {"unit": "iterations", "total": 50, "began": 700.0, "ended": None, "done": 30, "first": [800.0, 10], **more}
    plan = [
        {"label": "grabcut", "to_do": 9, "estimate_s": 55.0},
        {"label": "deeplab", "to_do": 1, "estimate_s": 400.0},
        {"label": "student", "to_do": 4, "estimate_s": 20.0},
        {"label": "shown", "to_do": 0, "estimate_s": None},
        {"label": "crf", "to_do": 4, "estimate_s": None},
    ]
    stages = {"grabcut": done, "deeplab": net}
    return {"phase": "works", "stage": "deeplab", "plan": plan, "stages": stages, "updated": 990.0, "started": 0.0}


def test_how_long_it_takes_yet(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "20260101-020000-cfs-aaaa")
    run.path.mkdir(parents=True)
    run.write_progress(progress())
    found = working(run, now=1000.0)
    # 20 iterations in the 200 s since the first report, so 200 s for the 20 that are left; then 20 s.
    assert (found.stage, found.done, found.total, found.stages) == ("deeplab", 30, 50, (1, 5))
    assert (found.eta_s, found.unknown, found.silent_s) == (pytest.approx(220.0), ("crf",), 10.0)
    run.write_progress(progress(first=None, done=0))
    assert working(run, now=1000.0).eta_s == pytest.approx(400.0 - 300.0 + 20.0), "by the last run's time"
    ended = progress(ended=900.0)
    for name in ("student", "shown", "crf"):
        ended["stages"][name] = {"ended": 950.0, "total": 1, "done": 1}
    run.write_progress({**ended, "stage": ""})
    assert (working(run, now=1000.0).phase, working(run, now=1000.0).eta_s) == ("ends", 0.0)
    run.write_progress({"phase": "plans", "updated": 1.0})
    assert (working(run, now=2.0).phase, working(run, now=2.0).eta_s) == ("plans", None)
    (run.path / "progress.json").write_text("{")
    assert working(run, now=time.time()).phase == "begins", "a damaged file tells nothing"
