"""`maskmill compare` on the tiny demo data: is what variants share done once, is the table what the runs say?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from flow_runs import HERE, ONE_THREAD, Done, maskmill, share_demo

from artifacts.datasets import DataParams
from flows.compare.pictures import MOST_COLUMNS
from flows.compare.trials import Attempt, Forecast, History, as_lines, fit_seeds, make_trials, run_trials
from flows.compare.variants import Variant
from flows.config import ConfigError
from flows.configure import load
from flows.run_flow import read_sets
from tasks import labels
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.children import Stopped
from tasks.engine.options import RunParams
from tasks.evaluate.finish import Result
from tasks.stage import MapStage

VARIANTS = ("box: proposals=box", "grabcut: proposals=grabcut", "grab & more: proposals=grabcut deeplab.iterations=4")
SHARED = ("compare", "cfs", "--config", "demo-tiny", "--quiet", *HERE, *ONE_THREAD)
SHARED += ("--set", "params.deeplab.iterations=3")
SHARED += ("--set", "params.attention=none", "--set", "options.report_pictures=1")
SEEDS = (0, 3)
COLUMN = {"masks (train) mIoU": ("masks (train)", "miou"), "student (val) mIoU": ("student (val)", "miou")}


ROWS = 2
"""Pictures on a contact sheet: drawing the usual eight takes longer than all else that a run this small does."""


@pytest.fixture(scope="module", autouse=True)
def short_sheets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.evaluate.finish.SHEET_ROWS", ROWS)
        patch.setattr("flows.compare.pictures.DIFFERENT", 2)
        yield


def compare(out: Path, *more: str, variants: tuple[str, ...] = VARIANTS, seeds: str = "0,3") -> Done:
    given = [part for variant in variants for part in ("--variant", variant)]
    return maskmill(out, *SHARED, *given, "--seeds", seeds, "--out", str(out), *more)


def summary(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A variant that can be planned and fails at work: its weights are no weights."""
    path = tmp_path_factory.mktemp("weights") / "no.safetensors"
    path.write_text("no weights")
    return f"broken: proposals=box deeplab.weights={path}"


@pytest.fixture(scope="module")
def done(tiny: Done, tmp_path_factory: pytest.TempPathFactory, broken: str) -> Done:
    out = tmp_path_factory.mktemp("compare")
    share_demo(tiny, out / "cache")
    return compare(out, variants=(VARIANTS[0], broken, *VARIANTS[1:]))


def test_a_variant_that_fails_is_said_and_the_others_are_done(done: Done) -> None:
    assert done.code == 1
    found = {variant["name"]: variant for variant in summary(done.out)["variants"]}
    assert [run["status"] for run in found["broken"]["runs"]] == ["failed", "failed"]
    assert "no.safetensors" in found["broken"]["runs"][0]["error"] and found["broken"]["scores"] == {}
    others = [run["status"] for name in ("box", "grabcut", "grab & more") for run in found[name]["runs"]]
    assert others == ["done"] * 6
    assert not summary(done.out)["complete"]
    assert "failed: broken, seed 0" in done.printed
    assert "| broken | - | - | - | 0 of 2, 2 failed |" in (done.out / "compare.md").read_text()


def test_what_variants_and_seeds_share_is_computed_once(done: Done) -> None:
    computed: dict[str, int] = {}
    for variant in summary(done.out)["variants"]:
        for run in variant["runs"]:
            for stage, count in run["computed"].items():
                computed[stage] = computed.get(stage, 0) + count
    assert computed == {"box-masks": 24, "grabcut": 24, "deeplab": 6, "student": 6 * 8, "student-shown": 6 * ROWS}


def test_the_table_says_what_the_runs_say(done: Done) -> None:
    page = (done.out / "compare.md").read_text()
    for variant in summary(done.out)["variants"]:
        if variant["name"] == "broken":
            continue
        for column, (name, key) in COLUMN.items():
            own = [json.loads((Path(run["report"]).parent / "scores.json").read_text()) for run in variant["runs"]]
            values = [scores[name][key] for scores in own]
            found = variant["scores"][column]
            assert found["seeds"] == dict(zip(map(str, SEEDS), values, strict=True))
            assert found["mean"] == pytest.approx(np.mean(values))
            assert found["std"] == pytest.approx(np.std(values, ddof=1))
            assert f" {100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f} |" in page
    students = [v["scores"]["student (val) mIoU"] for v in summary(done.out)["variants"] if v["scores"]]
    assert any(len(set(one["seeds"].values())) == 2 for one in students), "each seed has its own network"


def test_the_picture_has_a_column_for_each_variant_and_shared_masks_once(done: Done) -> None:
    picture = cv2.imread(str(done.out / "compare.png"))
    panels = 1 + 2 + 1 + 3  # image, masks (box; GrabCut's of two variants), truth, three students
    lines, side = -(-panels // MOST_COLUMNS), 216 + 30 + 30 + 12  # panel, its names, caption, gap
    assert picture.shape[1] == 2 * 28 + MOST_COLUMNS * (216 + 12) - 12
    assert ROWS * lines * side <= picture.shape[0] <= ROWS * lines * (side + 40) + 100
    assert picture.std() > 20


def test_the_page_has_the_table_and_every_variants_masks(done: Done) -> None:
    page = (done.out / "compare.html").read_text()
    assert "<title>cfs on demo-tiny, compared</title>" in page and "grab &amp; more" in page
    assert "masks: grabcut (+1), mIoU" in page and "student: grab &amp; more, mIoU" in page
    assert 'href="runs/box/seed-3/index.html"' in page and "no.safetensors" in page


def test_again_nothing_is_computed_and_a_new_seed_is_all_that_a_plan_names(done: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done.out / "cache" / "fits").rglob("*.safetensors")}
    plan = compare(done.out, "--dry-run", seeds="0,3,5", variants=VARIANTS[:2])
    assert plan.code == 0
    rows = [line.split() for line in plan.stdout.splitlines() if line.split()[:1] in (["box"], ["grabcut"])]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (name, seed, "deeplab" if seed == "5" else "nothing") for seed in ("0", "3", "5") for name in ("box", "grabcut")
    ]
    assert "time: about" in plan.printed, "earlier runs tell how long"
    again = compare(done.out, variants=VARIANTS[:1])
    assert again.code == 0 and again.printed.count("computed: nothing, all was cached") == 2
    after = {path: path.stat().st_mtime_ns for path in (done.out / "cache" / "fits").rglob("*.safetensors")}
    assert after == before
    assert summary(done.out)["complete"] and [v["name"] for v in summary(done.out)["variants"]] == ["box"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--variant", "a: proposals=box", "--variant", "a: proposals=grabcut"), "two variants are called 'a'"),
        (("--variant", "a: porposals=box"), "did you mean 'proposals'"),
        (("--variant", "a: proposals=box", "--budget", "soon"), "--budget soon"),
        (("--variant", "a: proposals=box", "--seeds", "1,1"), "--seeds 1,1"),
        ((), "no variants"),
    ],
)
def test_a_wrong_command_does_nothing(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    out = tmp_path / "out"
    found = maskmill(out, *SHARED, "--out", str(out), *arguments)
    assert found.code == 2 and words in found.printed
    assert not out.exists()


def test_a_flow_that_is_none_is_named(tmp_path: Path) -> None:
    found = maskmill(tmp_path, "compare", "csf", "--data", "demo-tiny", "--variant", "a: proposals=box")
    assert found.code == 2 and "no flow 'csf'; there are cfs" in found.printed


# -- budgets and times -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the demo data and nothing else."""
    return share_demo(tiny, tmp_path_factory.mktemp("cache"))


def scripted(cache: Path, results: dict[str, float | Exception], budget_s: float | None) -> tuple[list[Attempt], str]:
    """Trials of a page without stages that gives these numbers, or fails so; its runs leave manifests as others do."""

    def page(run: Any, sets: Any, params: Any) -> Result:
        if run.planning:
            return Result("", {}, {}, {})
        outcome = results[params.proposals]
        if isinstance(outcome, Exception):
            raise outcome
        manifest = run.write_manifest("finished")
        return Result(run.folder.run_id, {"student (val)": {"miou": outcome, "images": 8}}, {}, manifest)

    _, params_class, _ = load("cfs")
    variants = [Variant(name, "cfs", page, params_class(proposals=name), (0,)) for name in results]
    options = RunParams(cache=str(cache), out=str(cache.parent / "out"), workers=0, progress=False)
    data = DataParams("demo-tiny")
    sets = read_sets(data, options)
    history = History(Path(options.cache), ["cfs"])
    return run_trials(make_trials(variants, sets, options), data, sets, options, history, budget_s=budget_s)


def test_no_time_means_no_work_and_says_so(cache: Path) -> None:
    attempts, left = scripted(cache, {"box": 0.5, "grabcut": 0.6}, 0.0)
    assert attempts == [] and left.startswith("2 of 2 trials are left: box, seed 0")


def test_with_time_all_is_done(cache: Path) -> None:
    attempts, left = scripted(cache, {"box": 0.5, "grabcut": RuntimeError("out of luck")}, 600.0)
    assert left == "" and [(a.status, dict(a.scores)) for a in attempts] == [
        ("done", {"student (val) mIoU": 0.5}),
        ("failed", {}),
    ]
    assert attempts[1].error == "out of luck"


def test_being_told_to_stop_is_no_result(cache: Path) -> None:
    with pytest.raises(Stopped):
        scripted(cache, {"box": Stopped("stop"), "grabcut": 0.6}, None)


def test_a_run_that_would_not_fit_is_not_begun(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"box": 5.0, "grabcut": 5000.0}

    def foretold(trial: Any, *_: Any) -> Forecast:
        return Forecast((), expected[trial.variant.name])

    monkeypatch.setattr("flows.compare.trials.forecast", foretold)
    attempts, left = scripted(cache, {"box": 0.5, "grabcut": 0.6}, 1000.0)
    assert [attempt.variant for attempt in attempts] == ["box"]
    assert "grabcut, seed 0 would take 1 h 23 min" in left


# -- workers ---------------------------------------------------------------------------------------------------------


def workers_left() -> list[psutil.Process]:
    """Pool workers of this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "tasks.engine.worker_process" in child.cmdline():
                found.append(child)
    return found


def working(cache: Path, name: str, ends: dict[str, Exception | None]) -> tuple[list[Attempt], list[int]]:
    """Trials whose page asks one worker for its number, then ends so; the numbers of those begun.

    ``name``: of the stage, so that no other test's results are found.
    """
    pids: list[int] = []

    def page(run: Any, sets: Any, params: Any) -> Result:
        stage = MapStage(f"{name}-{params.proposals}", 1, None, ("boxes",), ("mask_hw",), "stage_functions:worker_pid")
        handle = run.map(stage, sets.train)
        if run.planning:
            return Result("", {}, {}, {})
        (pid,) = {run.store.read(handle.address, k, p.stamp)["mask_hw"].item() for k, p in handle.produced.items()}
        pids.append(pid)
        if (error := ends[params.proposals]) is not None:
            raise error
        return Result(run.folder.run_id, {}, {}, run.write_manifest("finished"))

    _, params_class, _ = load("cfs")
    variants = [Variant(one, "cfs", page, params_class(proposals=one), (0,)) for one in ends]
    options = RunParams(cache=str(cache), out=str(cache.parent / "out"), workers=1, device="cpu", progress=False)
    data = DataParams("demo-tiny")
    sets = read_sets(data, options)
    try:
        attempts, _ = run_trials(make_trials(variants, sets, options), data, sets, options, History(cache, ["cfs"]))
        return attempts, pids
    finally:
        assert workers_left() == []


def test_trials_share_their_workers(cache: Path) -> None:
    attempts, pids = working(cache, "shared", {"box": None, "grabcut": None, "cfs": None})
    assert [attempt.status for attempt in attempts] == ["done"] * 3
    assert len(set(pids)) == 1


def test_a_trial_that_fails_costs_the_others_no_more_than_new_workers(cache: Path) -> None:
    failure = RuntimeError("out of luck")
    attempts, pids = working(cache, "failing", {"box": None, "grabcut": failure, "cfs": None, "cfs-refined": None})
    assert [attempt.status for attempt in attempts] == ["done", "failed", "done", "done"]
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize("stop", [Stopped("stop"), KeyboardInterrupt()])
def test_a_comparison_that_is_stopped_leaves_no_worker(cache: Path, stop: Any) -> None:
    with pytest.raises(type(stop)):  # working() looks for what is left
        working(cache, f"stopped-{type(stop).__name__}", {"box": None, "grabcut": stop, "cfs": None})


def manifest(seconds: float, computed: int, params: Any, **stages: float) -> dict[str, Any]:
    found = [{"label": label, "seconds": took, "computed": computed} for label, took in stages.items()]
    return {"flow": "cfs", "status": "finished", "seconds": seconds, "stages": found, "recipe": {"params": params}}


def test_an_estimate_is_of_the_same_configuration_whatever_its_seed_else_of_any(tmp_path: Path) -> None:
    _, params_class, _ = load("cfs")
    short, long = params_class(proposals="box"), params_class(proposals="grabcut")
    history = History(tmp_path, ["cfs"])
    assert history.seconds("cfs", short, "deeplab") is None
    history.add(manifest(14.0, 1, dataclasses.asdict(short), deeplab=10.0))
    history.add(manifest(60.0, 4, dataclasses.asdict(long), deeplab=40.0, grabcut=8.0))
    other_seed = dataclasses.replace(short, deeplab=dataclasses.replace(short.deeplab, seed=9))
    assert history.seconds("cfs", other_seed, "deeplab") == 10.0
    assert history.seconds("cfs", other_seed, "") == 4.0, "scores and pictures"
    assert history.seconds("cfs", short, "grabcut") == 2.0, "an image's share, of another configuration"
    assert history.seconds("cfs", dataclasses.replace(short, crf="off", proposals="box"), "deeplab") == 10.0
    assert history.seconds("cfs-supervised", short, "deeplab") == 40.0 / 4, "another page, the same stage"


def test_an_estimate_of_another_configuration_is_scaled_by_its_work(tmp_path: Path) -> None:
    _, params_class, _ = load("cfs")
    short, long = params_class(proposals="box"), params_class(proposals="grabcut")
    history = History(tmp_path, ["cfs"])
    done = manifest(14.0, 1, dataclasses.asdict(short), deeplab=10.0)
    done["stages"][0] |= {"amount": 20.0, "total": 1}
    history.add(done)
    assert history.seconds("cfs", long, "deeplab", 20_000.0) == 10_000.0, "a thousand times the iterations"
    assert history.seconds("cfs", short, "deeplab", 20.0) == 10.0


def test_what_was_measured_replaces_what_was_believed(tmp_path: Path) -> None:
    _, params_class, _ = load("cfs")
    params = params_class(proposals="box")
    history = History(tmp_path, ["cfs"], {"deeplab": 99.0})
    assert history.seconds("cfs", params, "deeplab") == 99.0
    history.add(manifest(14.0, 1, dataclasses.asdict(params), deeplab=10.0))
    assert history.seconds("cfs", params_class(proposals="grabcut"), "deeplab") == 10.0


def planned_variant(page: Any = None, seeds: tuple[int, ...] = (0, 1), **params: Any) -> Variant:
    own_page, params_class, _ = load("cfs")
    return Variant("a", "cfs", page or own_page, params_class(**params), seeds)


@pytest.mark.parametrize(
    ("proposals", "attention", "paths"),
    [
        ("grabcut", "none", [("deeplab", "seed")]),
        ("grabcut", "lgsa", [("deeplab", "seed")]),
        ("cfs-refined", "none", [("cfs", "seed"), ("deeplab", "seed")]),
    ],
)
def test_a_seed_goes_to_every_fit_and_to_no_map_stage(
    cache: Path, proposals: str, attention: str, paths: list[tuple[str, ...]]
) -> None:
    options = RunParams(cache=str(cache))
    sets = read_sets(DataParams("demo-tiny"), options)
    variant = planned_variant(seeds=(2, 5), proposals=proposals, attention=attention)
    assert fit_seeds(variant, sets, options) == paths
    first, second = make_trials([variant], sets, options)
    assert (first.params.deeplab.seed, second.params.deeplab.seed) == (2, 5)
    assert second.params.cfs.seed == (5 if ("cfs", "seed") in paths else 0)
    assert second.params.grabcut == variant.params.grabcut


def test_several_seeds_for_a_fit_that_takes_none_are_refused(cache: Path) -> None:
    def deaf(run: Any, sets: Any, params: Any) -> Result:
        run.fit(deeplab.fit(DeepLabParams(seed=3)), sets.train, target=run.map(labels.box_masks(), sets.train))
        return Result("", {}, {}, {})

    options = RunParams(cache=str(cache))
    sets = read_sets(DataParams("demo-tiny"), options)
    with pytest.raises(ConfigError, match="takes a seed"):
        make_trials([planned_variant(deaf)], sets, options)
    without_fits = make_trials([planned_variant(lambda *_: Result("", {}, {}, {}))], sets, options)
    assert len({repr(trial.params) for trial in without_fits}) == 1, "the same under every seed"
    (trial,) = make_trials([planned_variant(deaf, seeds=(0,))], sets, options)
    assert trial.params == planned_variant().params


def test_a_variant_of_which_nothing_is_done_has_its_line() -> None:
    variant = Variant("a", "cfs", lambda *_: Result("", {}, {}, {}), None, (0, 1))
    (line,) = as_lines([variant], [])
    assert (line.name, line.state, line.cell("student (val) mIoU")) == ("a", "0 of 2", "-")
