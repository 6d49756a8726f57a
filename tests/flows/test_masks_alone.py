"""Boxes in, masks out: a run that ends at its masks, one that was stopped behind them, and what each of them gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from flow_runs import Done, copy_of, maskmill, run_cfs, share_demo

from artifacts.cache.runs import RunFolder
from artifacts.export.voc import DEVKIT
from benchmarks.soak_kill import fingerprint

ALONE = ("--set", "params.student=none")
NO_WEIGHTS = ("--set", "params.deeplab.weights=nowhere.pth")
"""A student that could not begin: nothing of it may be looked at."""


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / DEVKIT / "SegmentationClass").glob("*.png")}


@pytest.mark.parametrize("ending", [("--until", "grabcut"), ALONE])
def test_a_run_can_end_at_the_masks(tiny: Done, tmp_path: Path, ending: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    share_demo(tiny, out / "cache")
    plan = run_cfs(out, *ending, *NO_WEIGHTS, "--dry-run")
    assert plan.code == 0 and "grabcut" in plan.stdout and "deeplab" not in plan.stdout
    done = run_cfs(out, *ending, *NO_WEIGHTS)
    assert done.code == 0, done.printed
    assert done.computed == {"grabcut": 24}
    manifest = done.manifest
    assert (manifest["status"], manifest["masks"], manifest["predictions"]) == ("finished", "grabcut", {})
    assert manifest["scores"] == {"masks (train)": tiny.manifest["scores"]["masks (train)"]}
    assert pngs(out / "dataset-voc") == pngs(tiny.out / "dataset-voc") != {}
    assert {"contact_sheet.png", "index.html", "scores.json"} <= {path.name for path in out.iterdir()}
    again = maskmill(tmp_path, "attention", "--cache", str(out / "cache"), "--image", "demo_train_00002", "--at", "2,2")
    assert again.code == 2 and "(params.attention=none)" in again.printed


def test_the_student_can_be_the_end(tiny: Done, tmp_path: Path) -> None:
    done = run_cfs(copy_of(tiny, tmp_path / "run"), "--until", "student")
    assert done.code == 0 and set(done.computed) == set(tiny.computed)
    assert done.manifest["scores"] == tiny.manifest["scores"]


def test_an_unknown_last_stage_is_refused_before_any_work(tmp_path: Path) -> None:
    done = run_cfs(tmp_path, "--until", "grabcutt")
    assert done.code == 2
    assert "--until grabcutt: no such stage; this flow has grabcut, deeplab, student, student-shown" in done.printed
    assert done.manifest["status"] == "failed" and not (tmp_path / "cache" / "maps").exists()
    behind = run_cfs(tmp_path, "--set", "params.student=none", "--until", "student")
    assert behind.code == 2 and "this flow has grabcut" in behind.printed


def stopped(*_: Any, **__: Any) -> NoReturn:
    raise KeyboardInterrupt


def failed(*_: Any, **__: Any) -> NoReturn:
    raise ValueError("out of luck")


@pytest.mark.parametrize(("how", "code", "status"), [(stopped, 130, "interrupted"), (failed, 1, "failed")])
def test_what_a_run_left_that_did_not_end_can_be_scored_and_exported(
    tiny: Done,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[..., NoReturn],
    code: int,
    status: str,
) -> None:
    out = tmp_path / "run"
    cache = str(share_demo(tiny, out / "cache"))
    monkeypatch.setattr("tasks.deeplab.network.train_loop", how)
    done = run_cfs(out)
    assert (done.code, done.manifest["status"]) == (code, status), done.printed
    assert "scores" not in done.manifest and "masks" not in done.manifest

    numbers = tmp_path / "scores.json"
    scored = maskmill(tmp_path, "score", "--cache", cache, "--json", str(numbers))
    note = f"is {status}: taking 'grabcut', its last complete stage with masks"
    assert scored.code == 0 and note in scored.printed
    assert json.loads(numbers.read_text())["scores"] == tiny.manifest["scores"]["masks (train)"]
    exported = maskmill(tmp_path, "export", "--cache", cache, "--to", str(tmp_path / "masks"))
    assert exported.code == 0 and note in exported.printed
    assert pngs(tmp_path / "masks") == pngs(tiny.out / "dataset-voc")
    named = maskmill(tmp_path, "export", "--cache", cache, "--stage", "grabcut", "--to", str(tmp_path / "named"))
    assert named.code == 0 and "taking" not in named.printed
    for arguments, complaint in (
        (("score", "--stage", "student"), "no map stage 'student'; it has grabcut"),
        (("export", "--stage", "deeplab", "--to", str(tmp_path / "x")), "no map stage 'deeplab'; it has grabcut"),
        (("export", "--crf", "--to", str(tmp_path / "x")), "'grabcut' keeps no masks with a CRF; run it with --set"),
    ):
        wrong = maskmill(tmp_path, *arguments, "--cache", cache)
        assert wrong.code == 2 and complaint in wrong.printed, wrong.printed


def test_a_stage_that_was_cut_short_is_no_result(tiny: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(share_demo(tiny, tmp_path / "cache"))
    monkeypatch.setattr("tasks.grabcut.propose_object", stopped)
    assert run_cfs(tmp_path).code == 130
    for arguments in (("score",), ("export", "--to", str(tmp_path / "x"))):
        again = maskmill(tmp_path, *arguments, "--cache", cache)
        assert again.code == 2
        assert "is interrupted and has no complete stage with masks of the training images" in again.printed
    again = maskmill(tmp_path, "score", "--cache", cache, "--stage", "grabcut")
    assert again.code == 2 and "its stage 'grabcut' is not complete; it has none that is complete" in again.printed


def test_samples_for_the_picture_are_never_taken_for_the_masks(tiny: Done, tmp_path: Path) -> None:
    """They are masks of training images, and the last ones of all: of eight of them."""
    out = copy_of(tiny, tmp_path / "run")
    manifest = tiny.manifest
    for name in ("masks", "predictions", "scores"):
        del manifest[name]
    RunFolder(out / "cache", manifest["run"]).write_manifest({**manifest, "status": "interrupted"})
    again = maskmill(tmp_path, "export", "--cache", str(out / "cache"), "--to", str(tmp_path / "masks"))
    assert "taking 'grabcut'" in again.printed


def test_while_it_runs_the_manifest_says_what_is_complete(
    tiny: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    share_demo(tiny, out / "cache")
    seen: list[dict[str, Any]] = []

    def look(*_: Any, **__: Any) -> NoReturn:
        seen.append(Done(out, 0, "", "").manifest)
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.deeplab.network.train_loop", look)
    assert run_cfs(out).code == 130
    (running,) = seen
    assert running["status"] == "running"
    assert [(stage["label"], bool(stage["stamps"]), stage["set"]) for stage in running["stages"]] == [
        ("grabcut", True, "train")
    ]


def test_masks_alone_leave_no_fit(tiny: Done, tmp_path: Path) -> None:
    done = run_cfs(copy_of(tiny, tmp_path / "run"), *ALONE, "--set", "params.proposals=box")
    assert done.computed == {"box-masks": 24}
    assert {name.partition("-")[0] for name in fingerprint(done.out)} >= {"box"}
