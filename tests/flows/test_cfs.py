"""The flow `cfs` from end to end on the tiny demo data: everything there, and nothing done twice."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flow_runs import ROOT, Done, copy_of, demo_tree, maskmill, run_cfs
from PIL import Image

from artifacts.cache.store import MaskStore
from benchmarks.soak_kill import differences, fingerprint
from flows.cfs import CFSFlowParams
from flows.cli.flow_command import configure, load
from flows.config import packaged
from flows.run_flow import plan_page, read_sets
from tasks.deeplab.stages import PRESETS
from tasks.stage import MapStage

STAGES = {"grabcut": 24, "deeplab": 1, "student": 8, "student-shown": 8}
NOTHING = dict.fromkeys(STAGES, 0)


# -- what it leaves --------------------------------------------------------------------------------------------------


def test_it_ends_with_scores_pictures_and_a_dataset(tiny: Done) -> None:
    assert tiny.computed == STAGES
    scores = json.loads((tiny.out / "scores.json").read_text())
    masks, student = (find(scores, what) for what in ("masks (train)", "student (val)"))
    assert masks["images"] == 24 and student["images"] == 8
    assert masks["miou"] > 0.6, "GrabCut's masks of the drawn objects"
    assert 0 < student["miou"] < 1
    sheet = cv2.imread(str(tiny.out / "contact_sheet.png"))
    assert min(sheet.shape[:2]) > 400 and sheet.std() > 20
    page = (tiny.out / "index.html").read_text()
    assert "contact_sheet" in page and "demo-tiny" in page
    assert "contact sheet:" in tiny.stdout and "computed: grabcut 24, deeplab 1" in tiny.stdout


def find(scores: Any, name: str) -> Any:
    """The numbers of one set of masks, wherever the file's outer mapping keeps them."""
    return scores[name] if name in scores else find(scores["scores"], name)


def test_the_exported_masks_are_the_stored_ones(tiny: Done) -> None:
    (stage,) = (s for s in tiny.manifest["stages"] if s["label"] == "grabcut")
    store = MaskStore(tiny.out / "cache", readonly=True)
    entries = store.entries(stage["address"])
    assert len(entries) == 24
    for key, stamp in entries:
        mask_hw = store.read(stage["address"], key, stamp, ["mask_hw"])["mask_hw"]
        path = tiny.out / "dataset-voc" / "SegmentationClass" / f"{key.partition('/')[2]}.png"
        with Image.open(path) as exported:
            assert exported.mode == "P"
            assert np.array_equal(np.asarray(exported), mask_hw)


def test_the_manifest_says_what_was_done_with_what(tiny: Done) -> None:
    manifest = tiny.manifest
    assert manifest["status"] == "finished" and manifest["skips"] == []
    assert manifest["recipe"]["data"]["source"] == "demo-tiny"
    assert manifest["recipe"]["params"]["deeplab"]["iterations"] == 20
    assert {"torch", "numpy", "python", "opencv-python-headless"} <= set(manifest["libraries"])
    assert manifest["threads"] >= 1
    (fit,) = (stage for stage in manifest["stages"] if stage["kind"] == "fit")
    assert fit["output"] and fit["stamps"] and not fit["pinned"]
    (published,) = (tiny.out / "cache" / "fits").glob("*/*/pub-*")
    lines = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20
    assert {"loss", "lr"} <= set().union(*lines) and any("miou" in name for line in lines for name in line)
    assert (published / "curve.png").stat().st_size > 1000


# -- what is not done again ------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_changes_no_file(tiny: Done, tmp_path: Path) -> None:
    out = copy_of(tiny, tmp_path / "run")
    stored = {path: path.stat().st_mtime_ns for kind in ("maps", "fits") for path in (out / "cache" / kind).rglob("*")}
    exported = fingerprint(out)
    again = run_cfs(out)
    assert (again.code, again.computed) == (0, NOTHING)
    assert "computed: nothing, all was cached" in again.said
    after = {path: path.stat().st_mtime_ns for kind in ("maps", "fits") for path in (out / "cache" / kind).rglob("*")}
    assert {path: at for path, at in after.items() if path.name != "lock"} == {
        path: at for path, at in stored.items() if path.name != "lock"
    }
    assert fingerprint(out) == exported


def test_rerun_of_one_stage_with_the_same_result_recomputes_nothing_behind_it(tiny: Done, tmp_path: Path) -> None:
    out = copy_of(tiny, tmp_path / "run")
    again = run_cfs(out, "--rerun", "grabcut")
    assert (again.code, again.computed) == (0, {**NOTHING, "grabcut": 24})
    assert differences(fingerprint(out), fingerprint(tiny.out)) == []


def with_one_more(tiny: Done, to: Path) -> Path:
    """The demo tree with one more train image: another's mirror image, so that it is no copy of any."""
    tree = to / demo_tree(tiny).name
    shutil.copytree(demo_tree(tiny), tree)
    first, new = "demo_train_00000", "one more ü"
    image = cv2.imread(str(tree / "JPEGImages" / f"{first}.jpg"))
    (tree / "JPEGImages" / f"{new}.jpg").write_bytes(cv2.imencode(".jpg", image[::-1])[1].tobytes())
    text = (tree / "Annotations" / f"{first}.xml").read_text()
    (tree / "Annotations" / f"{new}.xml").write_text(text.replace(first, new))
    with open(tree / "ImageSets" / "Segmentation" / "train.txt", "a") as list_file:
        list_file.write(f"{new}\n")
    return tree


def test_one_added_image_computes_one_image_in_each_stage_before_the_fit(tiny: Done, tmp_path: Path) -> None:
    tree = with_one_more(tiny, tmp_path)
    out = copy_of(tiny, tmp_path / "run")
    moved = ("--data", f"voc:{tree}", "--set", "data.name=demo-tiny", "--set", "options.refit=never")
    plan = run_cfs(out, *moved, "--dry-run")
    assert row(plan, "grabcut")[1:4] == ["24", "1", "0"]
    again = run_cfs(out, *moved)
    assert (again.code, again.computed) == (0, {**NOTHING, "grabcut": 1})
    (fit,) = (stage for stage in again.manifest["stages"] if stage["kind"] == "fit")
    assert fit["pinned"], "the manifest says that an older fit stood in"
    assert (again.out / "dataset-voc" / "SegmentationClass" / "one more ü.png").exists()


def row(plan: Done, label: str) -> list[str]:
    """Kind, cached, to compute, depends, ... of one line of a dry run's table."""
    (line,) = (line for line in plan.stdout.splitlines() if line.split()[:1] == [label])
    return line.split()[1:]


def test_a_dry_run_counts_and_creates_no_run(tiny: Done, tmp_path: Path) -> None:
    assert [row(run_cfs(tiny.out, "--dry-run"), label)[:4] for label in ("grabcut", "deeplab", "student")] == [
        ["map", "24", "0", "0"],
        ["fit", "1", "0", "0"],
        ["map", "8", "0", "0"],
    ]
    changed = run_cfs(tiny.out, "--dry-run", "--set", "params.grabcut.iterations=2")
    assert row(changed, "grabcut")[:4] == ["map", "0", "24", "0"]
    assert row(changed, "deeplab")[:4] == ["fit", "0", "0", "1"]
    assert row(changed, "student")[:4] == ["map", "0", "0", "8"]
    assert re.search(r"grabcut .* \d+\.\d s ", changed.stdout), "the last run's time is the estimate"
    fresh = run_cfs(tmp_path / "new", "--dry-run", "--rerun", "grabcutt")
    assert fresh.code == 2
    assert "--rerun grabcutt: no such stage; this flow has deeplab, grabcut, student" in fresh.said
    assert not (tmp_path / "new" / "cache" / "runs").exists()
    assert not (tmp_path / "new" / "cache" / "maps").exists()


# -- configurations --------------------------------------------------------------------------------------------------


def configured(name: str) -> Any:
    return configure("cfs", None, name, (), {})


def test_the_demo_is_and_stays_boxes_grabcut_deeplab(tiny: Done) -> None:
    """`make demo` is the frame's flow for ever: nothing is added to it."""
    for name in ("demo", "demo-tiny"):
        job = configured(name)
        assert (job.params.proposals, job.params.attention, job.params.crf) == ("grabcut", "none", "off")
        assert (job.data.source, job.options.export) == (name, ("voc",))
    assert configured("demo").params.grabcut.working_size == 96
    page, *_ = load("cfs")
    job = configured("demo")
    # The stage list does not depend on the data: the tiny tree is at hand.
    sets = read_sets(configured("demo-tiny").data, dataclasses.replace(job.options, cache=str(tiny.out / "cache")))
    plan = plan_page("cfs", page, sets, job.params, job.options)
    assert [(stage.label, stage.kind) for stage in plan.stages] == [
        ("grabcut", "map"),
        ("deeplab", "fit"),
        ("student", "map"),
        ("student-shown", "map"),
    ]


def test_packaged_configurations_are_the_presets() -> None:
    whole = {"demo-cfs", "claims-cfs", "voc-cfs", "voc-cfs-best"}  # test_cfs_whole.py's
    assert set(packaged()) == set(PRESETS) | whole
    for name, preset in PRESETS.items():
        assert configured(name).params.deeplab == preset, name


def test_boxes_themselves_can_be_the_masks(tiny: Done) -> None:
    plan = run_cfs(tiny.out, "--dry-run", "--set", "params.proposals=box")
    assert "grabcut" not in plan.stdout
    assert row(plan, "deeplab")[:4] == ["fit", "0", "0", "1"]


def test_no_stage_of_the_flow_may_see_truth(tiny: Done) -> None:
    page, *_ = load("cfs")
    from tasks.engine.runner import Runner

    job = configured("demo-tiny")
    options = dataclasses.replace(job.options, cache=str(tiny.out / "cache"))
    sets = read_sets(job.data, options)
    for proposals in ("grabcut", "box"):
        with Runner(options, planning=True) as run:
            page(run, sets, CFSFlowParams(proposals=proposals))  # type: ignore[arg-type]
        declared = {handle.label: set(handle.stage.reads) for handle in run.handles}
        assert all(kinds <= {"image", "boxes"} for kinds in declared.values()), declared
        assert any(isinstance(handle.stage, MapStage) and "boxes" in handle.stage.reads for handle in run.handles)


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_renamed_and_moved_copy_gives_the_same_bytes(tiny: Done, tmp_path: Path) -> None:
    """Masks, student and predictions; the cache's keys alone know the name."""
    (root,) = (tiny.out / "cache" / "demo-data").glob("demo-tiny-*")
    shutil.copytree(root, tmp_path / "far" / "another name")
    moved = run_cfs(tmp_path / "out", "--set", f"data.source=voc:{tmp_path}/far/another name")
    assert (moved.code, moved.computed) == (0, tiny.computed)
    assert content(moved) == content(tiny)


def content(run: Done) -> dict[tuple[str, ...], str]:
    """Digest of each image's arrays by address and image id, and of each fit's weights."""
    store = MaskStore(run.out / "cache", readonly=True)
    found = {("fit", stage["label"]): stage["output"] for stage in run.manifest["stages"] if stage["kind"] == "fit"}
    for address in {stage["address"] for stage in run.manifest["stages"] if stage["kind"] == "map"}:
        for (key, _), entry in store.entries(address).items():
            found["map", address, key.partition("/")[2]] = str(entry.output)
    return found


# -- start-up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imports", "forbidden"),
    [
        (
            "flows.cli.main, flows.cfs, flows.cli.flow_command, tasks.engine.runner, tasks.grabcut,"
            " tasks.evaluate.score, tasks.labels",
            ("torch", "torchvision", "torchmetrics", "lightning", "matplotlib", "pycocotools", "jinja2"),
        ),
        (
            "tasks.engine.runner, tasks.grabcut, tasks.refine, tasks.labels, tasks.deeplab.stages",
            ("prefect", "pydantic", "torch", "msgspec", "defusedxml"),
        ),
    ],
)
def test_import_budget(imports: str, forbidden: tuple[str, ...]) -> None:
    """12 seconds and 850 MB otherwise, in every worker; and boxes with a GPU have no Prefect."""
    code = f"import sys, {imports}; print(sorted(set({forbidden}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_module_imports_what_another_keeps_to_itself() -> None:
    """A private name may change without a look at its users: there must be none."""
    packages = ("flows", "tasks", "models", "artifacts", "benchmarks")
    found = {
        (path.stem, name.name)
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.name.startswith("_") and name.name != "_lattice"  # the compiled module
    }
    assert not found


def test_help_loads_next_to_nothing() -> None:
    code = """
import sys
from flows.cli.main import main
code = main(["--help"])
heavy = {"prefect", "pydantic", "torch", "cv2", "h5py", "jinja2", "matplotlib", "PIL"} & set(sys.modules)
print(code, sorted(heavy))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("0 []")
    assert "cfs" in found.stdout and "export" in found.stdout


def test_help_of_the_flow_shows_defaults_and_names() -> None:
    said = maskmill(Path(), "cfs", "--help").said
    for word in ("--data", "--config", "--set", "--dry-run", "--rerun", "--export", "voc:PATH", "demo-tiny"):
        assert word in said
    shown = maskmill(Path(), "cfs", "--config", "demo-tiny", "--show-config").stdout
    assert re.search(r"iterations: 20 +# ", shown), "every value with its help text"
    assert np.isclose(float(re.findall(r"lr: ([\d.e-]+)", shown)[0]), 2e-3)
