"""Run, correct the worst pictures in an annotation tool, run again: their masks are the person's, no other changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flow_runs import Done, copy_of, demo_tree, maskmill, run_cfs, share_demo
from PIL import Image

from artifacts.datasets.voc_masks import read_index_png
from artifacts.export.datacard import CARD_JSON, CARD_TEXT
from artifacts.export.label_studio import encode_brush
from artifacts.export.voc import DEVKIT
from benchmarks import corrections
from flows.cli.export import score_run, worst_pictures
from tasks.evaluate.run_suspicion import suspects

ALONE = ("--set", "params.student=none")


def masks(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (out / "dataset-voc" / DEVKIT / "SegmentationClass").glob("*.png")}


def correct(tasks: Path, tree: Path, to: Path, count: int) -> list[str]:
    """Truth stands for the person, who submits the first ``count`` pictures."""
    given = json.loads(tasks.read_text())
    corrected = []
    for task in given:
        task["annotations"] = []
    for task in given[:count]:
        image_id = task["data"]["image_id"]
        result = task["predictions"][0]["result"]
        names = {one["value"]["brushlabels"][0] for one in result}
        size_hw = result[0]["original_height"], result[0]["original_width"]
        truth = read_index_png(str(tree / "SegmentationClass" / f"{image_id}.png"), size_hw)
        classes = (tree / "classes.txt").read_text().splitlines()
        drawn = [(name, truth == number) for number, name in enumerate(classes, 1) if (truth == number).any()]
        drawn += [("undecided", truth == 255)] if (truth == 255).any() else []
        assert names, "something was proposed"
        value = [{"format": "rle", "rle": encode_brush(part), "brushlabels": [name]} for name, part in drawn]
        task["annotations"] = [{"result": [result[0] | {"value": one} for one in value]}]
        corrected.append(image_id)
    to.write_text(json.dumps(given))
    return corrected


def test_corrected_pictures_keep_the_persons_mask_and_nothing_else_changes(tiny: Done, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run_cfs(copy_of(tiny, out), *ALONE)
    assert first.code == 0, first.printed
    scores = [first.manifest["scores"]["masks (train)"]]
    before, cache, done_json = masks(out), str(out / "cache"), str(tmp_path / "done.json")
    assert len(before) == 24 + 8, "and the pictures of val"
    exported = maskmill(
        *(tmp_path, "export", "--cache", cache, "--format", "label-studio", "--to", str(tmp_path / "tasks")),
        *("--worst", "5"),
    )
    assert exported.code == 0, exported.printed
    offered = [task["data"]["image_id"] for task in json.loads((tmp_path / "tasks" / "tasks.json").read_text())]
    tree = demo_tree(tiny)
    [wanted] = correct(tmp_path / "tasks" / "tasks.json", tree, tmp_path / "done.json", 1)
    folder = tmp_path / "people" / "corrections"
    done = maskmill(tmp_path, "import", done_json, "--cache", cache, "--to", str(folder))
    assert done.code == 0 and "1 stored" in done.stdout and "4 not looked at" in done.stdout, done.printed
    again = maskmill(tmp_path, "import", done_json, "--cache", cache, "--to", str(folder))
    assert "0 stored" in again.stdout and "1 there before" in again.stdout

    given = ("--set", f"data.corrections={folder}")
    second = run_cfs(out, *ALONE, *given)
    assert second.code == 0, second.printed
    assert second.computed == {"grabcut": 0, "corrected": 24}, "no proposal is made again"
    assert second.manifest["masks"] == "corrected"
    after = masks(out)
    assert {image_id for image_id in after if after[image_id] != before[image_id]} == {wanted}
    found, truth = (
        np.asarray(Image.open(root / "SegmentationClass" / f"{wanted}.png"))
        for root in (out / "dataset-voc" / DEVKIT, tree)
    )
    assert np.array_equal(found, truth)
    scores.append(second.manifest["scores"]["masks (train)"])
    short = run_cfs(out, "--until", "grabcut", *given)
    assert short.manifest["masks"] == "corrected" and masks(out) == after, "a run that ends before it exports the same"
    assert scores[1]["miou"] > scores[0]["miou"] and scores[1]["object_iou"]["mean"] > scores[0]["object_iou"]["mean"]

    key = f"demo-tiny/{wanted}"
    assert wanted == offered[0] and second.manifest["corrected"] == [key]
    for by in ("suspicion", "score"):
        assert key not in worst_pictures(out / "cache", second.manifest, "corrected", 24, by), "it is done"
    assert suspects(out / "cache", second.manifest, "corrected")[key].suspicion == 0
    card = json.loads((out / "dataset-voc" / CARD_JSON).read_text())
    assert card["splits"]["train"]["corrected"] == 1
    assert "1 of them corrected by a person" in (out / "dataset-voc" / CARD_TEXT).read_text()

    correct(tmp_path / "tasks" / "tasks.json", tree, tmp_path / "done.json", 5)
    assert maskmill(tmp_path, "import", done_json, "--cache", cache).code == 0, "the run knows the folder"
    third = run_cfs(out, *ALONE, *given)
    assert third.computed == {"grabcut": 0, "corrected": 4}, "only the pictures that were corrected since"
    assert third.manifest["corrected"] == sorted(f"demo-tiny/{image_id}" for image_id in offered)
    scores.append(third.manifest["scores"]["masks (train)"])
    assert scores[2]["miou"] > scores[1]["miou"]


def test_the_worst_buy_more_than_as_many_by_chance(tiny: Done, tmp_path: Path) -> None:
    """The benchmark's whole loop on masks alone: it shares the run's cache, and goes on where it was."""
    share_demo(tiny, tmp_path / "loop" / "cache")
    shutil.copytree(tiny.out / "cache" / "maps", tmp_path / "loop" / "cache" / "maps")
    given = ["--config", "demo-tiny", "--out", str(tmp_path / "loop"), "--no-student", "--seeds", "1"]
    given += [*("--counts", "6"), *("--orders", "suspicion", "score", "random")]
    given += [part for one in ("options.workers=0", "options.threads=1") for part in ("--set", one)]
    found = corrections.measure(corrections.parsed(given))
    masks = {order: one["masks"][0] for order, counts in found.items() for one in counts.values()}
    assert abs(masks["none"] - 100 * tiny.manifest["scores"]["masks (train)"]["miou"]) < 1e-9
    assert masks["score"] > masks["random"] > masks["none"] and masks["suspicion"] > masks["none"]
    assert f"| score | 6 | {masks['score']:.1f} |  | 1 |" in corrections.table(found)


def test_an_import_without_any_mask_is_refused(tiny: Done, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    cache = str(tiny.out / "cache")
    done = maskmill(tmp_path, "import", str(tmp_path / "none.json"), "--cache", cache, "--to", str(tmp_path / "c"))
    assert done.code == 2 and "no corrected mask" in done.printed and not (tmp_path / "c").exists()
    assert maskmill(tmp_path, "import", "--cache", cache).code == 2


def test_an_export_for_trainers_brings_back_no_truth(tiny: Done, tmp_path: Path) -> None:
    cache, exported, folder = str(tiny.out / "cache"), tmp_path / "voc", tmp_path / "corrections"
    assert maskmill(tmp_path, "export", "--cache", cache, "--format", "voc", "--to", str(exported)).code == 0
    done = maskmill(tmp_path, "import", str(exported), "--cache", cache, "--to", str(folder))
    assert done.code == 0 and "24 stored" in done.stdout, done.printed
    assert "8 of the evaluation pictures left alone" in done.stdout
    lists = exported / DEVKIT / "ImageSets" / "Segmentation"
    assert {path.stem for path in (folder / "masks").iterdir()} == set((lists / "train.txt").read_text().split())
    for image_id in (lists / "train.txt").read_text().split():
        (exported / DEVKIT / "SegmentationClass" / f"{image_id}.png").unlink()
    alone = maskmill(tmp_path, "import", str(exported), "--cache", cache, "--to", str(tmp_path / "other"))
    assert alone.code == 2 and "8 of evaluation pictures (data.val=val)" in alone.printed, alone.printed
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("by", ["suspicion", "score"])
def test_the_worst_pictures_can_be_exported_alone(tiny: Done, tmp_path: Path, by: str) -> None:
    cache, out = str(tiny.out / "cache"), tmp_path / "worst"
    given = ("export", "--cache", cache, "--format", "label-studio", "--to", str(out), "--no-images")
    done = maskmill(tmp_path, *given, "--worst", "4", "--by", by)
    assert done.code == 0, done.printed
    tasks = [task["data"]["image_id"] for task in json.loads((out / "tasks.json").read_text())]
    stage = tiny.manifest["masks"]
    order = worst_pictures(tiny.out / "cache", tiny.manifest, stage, 24, by)
    assert tasks == [key.partition("/")[2] for key in order[:4]] and len(set(order)) == 24
    if by == "score":
        scored = score_run(tiny.out / "cache", "latest", stage).masks["mask_hw"][1].image_miou
        assert [scored[i] for i in tasks] == sorted(value for value in scored.values() if value is not None)[:4]
    assert maskmill(tmp_path, *given).code == 0, "another choice replaces it, all pictures too"
    assert len(json.loads((out / "tasks.json").read_text())) == 24
