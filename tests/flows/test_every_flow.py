"""Every flow of the registry from end to end on the tiny demo data: everything there, and nothing done twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flow_runs import ROOT, Done, Runs, copy_of, maskmill, run_flow
from PIL import Image

from artifacts.cache.runs import read_stamps
from artifacts.cache.store import MaskStore
from artifacts.export.voc import DEVKIT
from benchmarks.soak_kill import differences, fingerprint
from flows.config import packaged, read_config
from flows.configure import configure
from flows.registry import FLOWS, PLUG_INS, SHIPPED
from flows.run_flow import read_sets
from tasks.engine.runner import Runner


def stages(done: Done, kind: str = "map") -> list[dict[str, Any]]:
    """A run's stages, in page order."""
    return [stage for stage in done.manifest["stages"] if stage["kind"] == kind]


def nothing(done: Done) -> dict[str, int]:
    return dict.fromkeys(done.computed, 0)


# -- what it leaves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "whole"])
def test_it_ends_with_scores_pictures_and_a_dataset(flow: str, runs: Runs, kind: str) -> None:
    done = getattr(runs, kind)(flow)
    scores = json.loads((done.out / "scores.json").read_text())
    assert scores == done.manifest["scores"]
    assert scores["masks (train)"]["images"] == 24 and scores["masks (train)"]["miou"] > 0
    predicted = [one for name, one in scores.items() if name.endswith(" (val)")]
    assert predicted and all(one["images"] == 8 and one["miou"] > 0 for one in predicted)
    sheet = cv2.imread(str(done.out / "contact_sheet.png"))
    assert min(sheet.shape[:2]) > 400 and sheet.std() > 20
    page = (done.out / "index.html").read_text()
    assert "contact_sheet" in page and "demo-tiny" in page
    assert all(stage["label"] in page for stage in done.manifest["stages"])
    assert "contact sheet:" in done.stdout


def test_the_exported_masks_are_the_stored_ones(flow: str, runs: Runs) -> None:
    done = runs.tiny(flow)
    (stage,) = (stage for stage in stages(done) if stage["label"] == done.manifest["masks"])
    store = MaskStore(done.out / "cache", readonly=True)
    stamps = read_stamps(done.out / "cache", stage["stamps"])
    assert len(stamps) == 24
    for key, (stamp, _) in stamps.items():
        assert stamp is not None
        mask_hw = store.read(stage["address"], key, stamp, ["mask_hw"])["mask_hw"]
        path = done.out / "dataset-voc" / DEVKIT / "SegmentationClass" / f"{key.partition('/')[2]}.png"
        with Image.open(path) as exported:
            assert exported.mode == "P"
            assert np.array_equal(np.asarray(exported), mask_hw)


def test_the_manifest_says_what_was_done_with_what(flow: str, runs: Runs) -> None:
    done = runs.tiny(flow)
    manifest = done.manifest
    assert (manifest["flow"], manifest["status"], manifest["skips"]) == (flow, "finished", [])
    assert manifest["recipe"]["data"]["source"] == "demo-tiny"
    assert {"torch", "numpy", "python", "opencv-python-headless"} <= set(manifest["libraries"])
    assert manifest["threads"] >= 1
    fits = stages(done, "fit")
    assert fits and all(fit["output"] and fit["stamps"] and not fit["pinned"] for fit in fits)
    for fit in fits:
        (published,) = (done.out / "cache" / "fits" / fit["address"]).glob("*/pub-*")
        lines = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] > 0 and {"loss", "lr"} <= set().union(*lines)
        assert (published / "curve.png").stat().st_size > 1000


def test_the_score_command_says_what_the_run_says(flow: str, runs: Runs, tmp_path: Path) -> None:
    done = runs.tiny(flow)
    again = maskmill(tmp_path, "score", "--cache", str(done.out / "cache"), "--json", str(tmp_path / "scores.json"))
    assert again.code == 0, again.printed
    written = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert written == done.manifest["scores"]["masks (train)"]


# -- what is not done again ------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_changes_no_file(flow: str, runs: Runs, tmp_path: Path) -> None:
    out = copy_of(runs.tiny(flow), tmp_path / "run")
    stored = {path: path.stat().st_mtime_ns for kind in ("maps", "fits") for path in (out / "cache" / kind).rglob("*")}
    exported = fingerprint(out)
    again = run_flow(flow, out)
    assert (again.code, again.computed) == (0, nothing(runs.tiny(flow)))
    assert "computed: nothing, all was cached" in again.printed
    after = {path: path.stat().st_mtime_ns for kind in ("maps", "fits") for path in (out / "cache" / kind).rglob("*")}
    assert {path: at for path, at in after.items() if path.name != "lock"} == {
        path: at for path, at in stored.items() if path.name != "lock"
    }
    assert fingerprint(out) == exported


def test_rerun_of_the_first_stage_with_the_same_result_recomputes_nothing_behind_it(
    flow: str, runs: Runs, tmp_path: Path
) -> None:
    tiny = runs.tiny(flow)
    first = stages(tiny)[0]
    out = copy_of(tiny, tmp_path / "run")
    again = run_flow(flow, out, "--rerun", first["label"])
    assert (again.code, again.computed) == (0, {**nothing(tiny), first["label"]: first["total"]})
    assert differences(fingerprint(out), fingerprint(tiny.out)) == []


def test_a_dry_run_counts(flow: str, runs: Runs) -> None:
    tiny = runs.tiny(flow)
    plan = run_flow(flow, tiny.out, "--dry-run")
    rows = {line.split()[0]: line.split()[1:5] for line in plan.stdout.splitlines() if line.split()}
    for stage in tiny.manifest["stages"]:
        done = 1 if stage["kind"] == "fit" else stage["total"]
        assert rows[stage["label"]] == [stage["kind"], str(done), "0", "0"]


def test_a_comparison_takes_its_runs_from_the_cache(flow: str, runs: Runs, tmp_path: Path) -> None:
    out = copy_of(runs.tiny(flow), tmp_path / "run")
    given = ("--config", FLOWS[flow].tiny, "--workers", "0", "--set", "options.launch=inline", "--quiet")
    given += ("--set", "options.threads=1")
    done = maskmill(out, "compare", flow, *given, "--out", str(out), "--variant", "as it is:")
    assert done.code == 0, done.printed
    assert "computed: nothing, all was cached" in done.printed
    output = json.loads((out / "compare.json").read_text())
    assert output["flow"] == flow and output["complete"]
    (variant,) = output["variants"]
    miou = runs.tiny(flow).manifest["scores"]["masks (train)"]["miou"]
    assert variant["scores"]["masks (train) mIoU"]["mean"] == pytest.approx(miou)
    assert cv2.imread(str(out / "compare.png")).std() > 20


# -- labels and configurations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", [False, True])
def test_no_stage_reads_more_of_the_training_images_than_the_entry_says(flow: str, runs: Runs, figure: bool) -> None:
    given = FLOWS[flow].figure if figure else ()
    job = configure(flow, None, FLOWS[flow].tiny, given, {"cache": str(runs.tiny(flow).out / "cache")})
    sets = read_sets(job.data, job.options)
    with Runner(replace(job.options, rerun=()), planning=True) as run:
        FLOWS[flow].page(run, sets, job.params)
    own = {sets.train.dataset}
    declared = {h.label: set(h.stage.reads) for h in run.handles if getattr(h, "records", sets.train).dataset in own}
    read = set().union(*declared.values())
    assert read <= {"image", *FLOWS[flow].labels}, declared
    if figure:
        assert read >= set(FLOWS[flow].labels), "an entry that declares too much hides what its flow reads"


def test_its_configurations_are_for_it(flow: str) -> None:
    entry = FLOWS[flow]
    for data, config in entry.demos.items():
        assert configure(flow, data, None, (), {}) == configure(flow, None, config, (), {}), "demo data bring their own"
        assert configure(flow, None, config, (), {}).data.source == data
    for given in (entry.figure, ()):
        job = configure(flow, None, entry.tiny, given, {})
        assert isinstance(job.params, entry.params_class)


@pytest.mark.parametrize("config", packaged())
def test_a_packaged_configuration_is_of_a_flow_and_builds(config: str) -> None:
    flow = read_config(config).values["flow"]
    assert configure(flow, None, config, (), {}).flow == flow


# -- start-up --------------------------------------------------------------------------------------------------------


def loaded(code: str, forbidden: Sequence[str]) -> str:
    """What a fresh process says that runs ``code``; its last line is the ``forbidden`` modules that it has loaded."""
    text = f"import sys\n{code}\nprint(sorted(set({tuple(forbidden)}) & set(sys.modules)))"
    env = {name: value for name, value in os.environ.items() if name != PLUG_INS}  # a plug-in may load what it likes
    found = subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.parametrize(
    ("imports", "forbidden"),
    [
        (
            f"flows.cli.main, flows.cli.flow_command, {', '.join(entry.module for entry in FLOWS.values())},"
            " tasks.engine.runner, tasks.grabcut, tasks.evaluate.score, tasks.labels",
            ("torch", "torchvision", "lightning_fabric", "matplotlib", "pycocotools", "jinja2"),
        ),
        (
            "tasks.engine.runner, tasks.grabcut, tasks.refine, tasks.labels, tasks.deeplab.stages",
            ("prefect", "pydantic", "torch", "msgspec", "defusedxml"),
        ),
        ("flows.registry", ("prefect", "pydantic", "torch", "cv2", "h5py", "matplotlib", "PIL", "yaml")),
    ],
)
def test_import_budget(imports: str, forbidden: tuple[str, ...]) -> None:
    """12 seconds and 850 MB otherwise, in every worker; and boxes with a GPU have no Prefect."""
    assert loaded(f"import {imports}", forbidden) == "[]"


def test_help_loads_next_to_nothing_and_names_every_flow() -> None:
    heavy = ("prefect", "pydantic", "torch", "cv2", "h5py", "jinja2", "matplotlib", "PIL")
    output = loaded("from flows.cli.main import main\nprint(main(['--help']))", heavy)
    assert output.endswith("0\n[]")
    plain = words(output)
    for entry in SHIPPED:
        assert f" {entry.name} {words(entry.help)}" in plain
    assert " export " in plain


def words(text: str) -> str:
    """Without the frames and line breaks of a table."""
    return re.sub(r"[^\w>.-]+", " ", text)


def test_help_of_the_flow_shows_defaults_and_names(flow: str) -> None:
    output = maskmill(Path(), flow, "--help").printed
    for word in ("--data", "--config", "--set", "--dry-run", "--rerun", "--export", "voc:PATH", "demo-tiny"):
        assert word in output
    shown = maskmill(Path(), flow, "--config", FLOWS[flow].tiny, "--show-config").stdout
    assert shown.startswith(f"flow: {flow}\n") and re.search(r"# \w", shown), "values with their help texts"
