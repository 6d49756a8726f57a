"""A morning after: what two nights left, asked by `maskmill runs`, `status` and `cache gc`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from flow_runs import Done, copy_of, demo_tree, maskmill, run_cfs

from artifacts.cache import gc, locks
from artifacts.cache.run_history import facts
from artifacts.cache.run_status import Status, status
from artifacts.cache.runs import IN_USE, RunFolder, all_runs, find_run
from artifacts.cache.store import MaskStore
from artifacts.records import Sets
from flows.configure import configure, load
from flows.run_flow import run_page
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result


def grown(tiny: Done, tree: Path) -> None:
    """The demo tree in which one picture is new, one gone, one renamed, one broken, and one has another box."""
    shutil.copytree(demo_tree(tiny), tree)
    images, notes = tree / "JPEGImages", tree / "Annotations"
    listed = tree / "ImageSets" / "Segmentation" / "train.txt"
    names = listed.read_text().split()
    box = notes / f"{names[0]}.xml"
    text = box.read_text()
    (xmin,) = (part.partition("</xmin>")[0] for part in text.split("<xmin>")[1:2])
    box.write_text(text.replace(f"<xmin>{xmin}</xmin>", f"<xmin>{int(xmin) + 1}</xmin>", 1))
    for old, new, move in ((names[1], "renamed", shutil.move), (names[2], "new", shutil.copy)):
        move(images / f"{old}.jpg", images / f"{new}.jpg")
        (notes / f"{new}.xml").write_text((notes / f"{old}.xml").read_text().replace(old, new))
    data = bytearray((images / "new.jpg").read_bytes())
    (images / "new.jpg").write_bytes(data + b"\0")  # other bytes, the same pixels
    (images / f"{names[4]}.jpg").write_bytes(b"")
    kept = [name for name in names if name not in (names[1], names[3])]
    listed.write_text("\n".join([*kept, "renamed", "new"]) + "\n")


def asked(out: Path, *command: str, code: int = 0) -> Any:
    done = maskmill(out, *command, "--cache", str(out / "cache"), "--json")
    assert done.code == code, done.printed
    return json.loads(done.stdout)


def test_the_morning_after(tiny: Done, tmp_path: Path) -> None:
    out = copy_of(tiny, tmp_path / "run")
    (first,) = all_runs(out / "cache")
    log = first.log.read_text()
    assert "grabcut: done in" in log and "score: masks (train): mIoU" in log and "\ndone" not in log
    assert "20 of 20 iterations loss" in (first.path / "deeplab.log").read_text()

    tree = tmp_path / "tree"
    grown(tiny, tree)
    moved = ("--data", f"voc:{tree}", "--set", "data.name=demo-tiny", "--until", "grabcut")
    night = run_cfs(out, *moved)
    assert night.code == 3, night.printed
    wrong = run_cfs(out, *moved, "--set", "params.nothing=1")
    assert wrong.code == 2

    runs = asked(out, "runs", "ls")["runs"]
    assert [run["outcome"] for run in runs] == ["done", "done with skips", "failed"]
    assert runs[1]["computed"] == {"grabcut": 3}, "the new, the renamed, the one with another box"
    assert runs[1]["skips"] == 1
    begun = all_runs(out / "cache")[1].progress()
    assert begun["source"] == f"voc:{tree}" in begun["named"] and begun["folder"], "for gc, before a stage has ended"

    changed = asked(out, "runs", "compare", "last~2", "last-good")
    names = [line.removeprefix("demo-tiny/") for line in changed["pictures"]["train"]["removed"]]
    train = demo_tree(tiny) / "ImageSets" / "Segmentation" / "train.txt"
    listed = train.read_text().split()
    assert names == [listed[3]]
    assert changed["pictures"]["train"]["added"] == ["demo-tiny/new"]
    assert changed["pictures"]["train"]["renamed"] == {f"demo-tiny/{listed[1]}": "demo-tiny/renamed"}
    others = {f"demo-tiny/{listed[0]}": ["boxes"], f"demo-tiny/{listed[4]}": ["image"]}
    assert changed["pictures"]["train"]["changed"] == others
    assert list(changed["parameters"]) == ["data.name", "data.source"]
    assert [skip["key"] for skip in changed["skips_new"]] == [f"demo-tiny/{listed[4]}"]
    assert changed["refitted"] == []
    said = maskmill(out, "runs", "compare", "last~2", "last-good", "--cache", str(out / "cache")).printed
    assert f"train pictures renamed (1): demo-tiny/{listed[1]} -> demo-tiny/renamed" in said

    found = asked(out, "status", code=1)
    assert (found["working"], found["good"]["run"], found["last"]["outcome"]) == ([], runs[1]["run"], "failed")
    said = maskmill(out, "status", "--cache", str(out / "cache")).printed
    assert "params.nothing" in said and f"log: {runs[2]['log']}; when that is mended: maskmill cfs" in said
    shown = maskmill(out, "runs", "show", runs[1]["run"], "--cache", str(out / "cache")).printed
    assert "skipped (1)" in shown and "stage grabcut, 3 of 24 computed" in shown
    assert "params.nothing" in maskmill(out, "runs", "log", "--cache", str(out / "cache")).stdout
    fit = asked(out, "runs", "log", "last~2", "--stage", "deeplab", "--lines", "1")
    assert len(fit["lines"]) == 1 and "published" in fit["lines"][0]

    again = maskmill(out, "cfs", "--config", runs[1]["config"], "--quiet")
    assert (again.code, Done(out, 0, "", "").computed) == (3, {"grabcut": 0}), "the configuration that a run leaves"

    assert maskmill(out, "cache", "gc", "--keep-runs", "1", "--yes", "--cache", str(out / "cache")).code == 0
    left = {run.run_id for run in all_runs(out / "cache")}
    assert runs[1]["run"] not in left and {first.run_id, runs[2]["run"]} < left, "of each data set the newest"
    store = MaskStore(out / "cache")
    stage = RunFolder(out / "cache", first.run_id).manifest()["stages"][0]
    assert len(store.entries(stage["address"])) >= 24


def test_while_it_runs_it_is_seen_and_nothing_of_its_plan_is_cleaned_up(tiny: Done, tmp_path: Path) -> None:
    out = copy_of(tiny, tmp_path / "run")
    cache = out / "cache"
    page, _, _ = load("cfs")
    seen: list[Status] = []

    def watched(run: Runner, sets: Sets, params: Any) -> Result:
        if run.planning:
            with pytest.raises(locks.LockTaken), locks.hold(cache / IN_USE, wait=False):
                pytest.fail("a clean-up began while a run read its data and planned")
        begun = find_run(cache, "last")
        manifest = begun.manifest()  # from the first moment on
        assert (manifest["status"], manifest["stages"]) == ("running", []) and "maskmill cfs" in facts(begun).command
        assert manifest["recipe"]["data"]["source"] == "demo-tiny"
        result = page(run, sets, params)
        seen.append(status(cache))
        if not run.planning:
            with gc.alone(cache):
                found = gc.find(MaskStore(cache), keep_runs=1)
            assert found.live == (run.folder.run_id,) and not [item for item in found.items if item.kind != "run"]
            raise KeyboardInterrupt
        return result

    job = configure("cfs", "demo-tiny", None, ("options.launch=inline", "options.workers=0"), {"out": str(out)})
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_page("cfs", watched, job.data, job.params, job.options)
    ((plans,), (works,)) = (one.working for one in seen)
    assert (plans.phase, plans.eta_s) == ("plans", None)
    assert (works.phase, works.stages, works.facts.outcome) == ("ends", (4, 4), "running")
    found = status(cache)
    assert (found.working, found.killed) == ((), ()) and found.last is not None
    assert (found.last.outcome, found.last.run) == ("interrupted", works.facts.run)
    (note,) = stopped.value.__notes__
    again = f"cd {shlex.quote(os.getcwd())} && maskmill cfs --config {shlex.quote(found.last.config)}"
    assert note == f"log: {found.last.log}; to go on: {again}"
    assert found.last.report == "", "its end was not reached"


def test_a_killed_run_goes_on_from_its_own_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "cache", "cfs")
    command = "maskmill cfs --data folder:photos --out run"
    run.write_manifest({"flow": "cfs", "status": "running", "command": command, "folder": "/home/me/my project"})
    for given in ("status", "runs ls"):
        said = maskmill(tmp_path, *given.split(), "--cache", str(tmp_path / "cache")).printed
        assert f"cd '/home/me/my project' && {command}" in said.replace("\n", " "), said


def test_a_name_of_no_run_lists_what_there_is(tiny: Done, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("show", "x"), ("log", "last~9"), ("compare", "last", "x"), ("log", "last", "--stage", "x")):
        done = maskmill(tiny.out, "runs", *command, "--cache", str(tiny.out / "cache"))
        assert done.code == 2 and ("no run" in done.printed or "there are" in done.printed), done.printed
    assert maskmill(tiny.out, "runs", "ls", "--cache", "/nowhere").code == 2
