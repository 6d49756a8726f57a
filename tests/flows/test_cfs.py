"""What is the flow `cfs`'s own of its run on the tiny demo data (test_every_flow.py has what all flows share)."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
from flow_runs import ROOT, Done, copy_of, demo_tree, run_cfs

from artifacts.cache.store import MaskStore
from artifacts.export.voc import DEVKIT
from flows.configure import configure, load
from flows.run_flow import plan_page, read_sets
from tasks.deeplab.stages import PRESETS

STAGES = {"grabcut": 24, "deeplab": 1, "student": 8, "student-shown": 8}
NOTHING = dict.fromkeys(STAGES, 0)


# -- what it leaves --------------------------------------------------------------------------------------------------


def test_it_does_its_stages_and_masks_are_better_than_nothing(tiny: Done) -> None:
    assert tiny.computed == STAGES
    assert "computed: grabcut 24, deeplab 1" in tiny.stdout
    assert tiny.manifest["scores"]["masks (train)"]["miou"] > 0.6, "GrabCut's masks of the drawn objects"
    assert 0 < tiny.manifest["scores"]["student (val)"]["miou"] < 1


# -- what is not done again ------------------------------------------------------------------------------------------


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
    assert row(plan, "deeplab")[1:4] == ["1", "0", "0"] and "deeplab: pinned since" in plan.printed
    again = run_cfs(out, *moved)
    assert (again.code, again.computed) == (0, {**NOTHING, "grabcut": 1})
    (fit,) = (stage for stage in again.manifest["stages"] if stage["kind"] == "fit")
    assert fit["pinned"].endswith("UTC, trained on 24 of now 25 records (1 new)")
    assert fit["pinned"] in again.printed
    assert (again.out / "dataset-voc" / DEVKIT / "SegmentationClass" / "one more ü.png").exists()


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
    assert "not run yet" in changed.stdout, "other params, other seconds: nothing is foretold"
    again = run_cfs(tiny.out, "--dry-run", "--rerun", "grabcut")
    assert re.search(r"grabcut .* \d+\.\d s ", again.stdout), "the last run's time is the estimate"
    fresh = run_cfs(tmp_path / "new", "--dry-run", "--rerun", "grabcutt")
    assert fresh.code == 2
    assert "--rerun grabcutt: no such stage; this flow has deeplab, grabcut, student" in fresh.printed
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
    for name, preset in PRESETS.items():
        assert configured(name).params.deeplab == preset, name


def test_boxes_themselves_can_be_the_masks(tiny: Done) -> None:
    plan = run_cfs(tiny.out, "--dry-run", "--set", "params.proposals=box")
    assert "grabcut" not in plan.stdout
    assert row(plan, "deeplab")[:4] == ["fit", "0", "0", "1"]


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


# -- the house --------------------------------------------------------------------------------------------------------


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
