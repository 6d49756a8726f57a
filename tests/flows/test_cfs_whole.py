"""The flow `cfs` as the paper's whole figure: GrabCut -> CFS -> refinement -> DeepLab with LGSA, and its switches."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flow_runs import FIGURE, Done, copy_of, demo_tree, maskmill, run_cfs
from PIL import Image

from artifacts.cache.store import MaskStore
from artifacts.export.voc import DEVKIT
from artifacts.objects import unpack_objects
from benchmarks.soak_kill import differences, fingerprint
from flows.cfs import CFSFlowParams, page
from flows.config import ConfigError
from flows.configure import configure
from flows.run_flow import plan_page, read_sets
from tasks.cfs import stages as cfs
from tasks.cfs.stages import CFSParams
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams, TestTimeParams
from tasks.engine.runner import Runner
from tasks.grabcut import GrabCutParams
from tasks.refine import RefineParams

TRAIN, VAL = 24, 8
STAGES = {
    "grabcut": TRAIN,
    "cfs": 1,
    "cfs-predict": TRAIN,
    "refine": TRAIN,
    "deeplab": 1,
    "student": VAL,
    "student-shown": 8,
}
NOTHING = dict.fromkeys(STAGES, 0)


def stage_of(done: Done, label: str) -> dict[str, Any]:
    (found,) = (stage for stage in done.manifest["stages"] if stage["label"] == label)
    return dict(found)


# -- what it leaves --------------------------------------------------------------------------------------------------


def test_every_stage_is_cached_scored_and_drawn(whole: Done) -> None:
    assert whole.computed == {**STAGES, "grabcut": 0}, "GrabCut's masks are those of the run without CFS"
    scores = json.loads((whole.out / "scores.json").read_text())
    assert set(scores) == {"grabcut (train)", "cfs-predict (train)", "masks (train)", "student (val)"}
    for name in ("grabcut (train)", "cfs-predict (train)", "masks (train)"):
        assert (scores[name]["images"], scores[name]["object_iou"]["count"]) == (TRAIN, 45), name
    assert len({scores[name]["miou"] for name in scores}) == 4
    assert whole.manifest["masks"] == "refine"
    html = (whole.out / "index.html").read_text()
    for label in ("cfs-predict", "refine", "grabcut (train)", "cfs-predict (train)"):
        assert label in html
    curves = list((whole.out / "cache" / "fits").glob("cfs-*/*/pub-*/curve.png"))
    assert len(curves) == 1 and curves[0].stat().st_size > 1000
    sheet = cv2.imread(str(whole.out / "contact_sheet.png"))
    assert sheet.shape[1] > 6 * 216, "weak label, three stages' masks, truth, student"
    lines = [
        json.loads(line)
        for path in (whole.out / "cache" / "fits").glob("deeplab-*/*/pub-*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert any({"loss", "segmentation", "attention"} <= set(line) for line in lines)


def test_the_raw_masks_are_where_the_probabilities_exceed_a_half_and_their_score_says_so(whole: Done) -> None:
    stage = stage_of(whole, "cfs-predict")
    store = MaskStore(whole.out / "cache", readonly=True)
    for key, stamp in list(store.entries(stage["address"]))[:4]:
        arrays = store.read(stage["address"], key, stamp)
        assert arrays["objects_flat"].dtype == np.float16
        inside = sum(int((one.values_hw > 0.5).sum()) for one in unpack_objects(arrays))
        assert (arrays["mask_hw"] > 0).sum() <= inside
    again = maskmill(whole.out, "score", "--cache", str(whole.out / "cache"), "--stage", "cfs-predict")
    scores = json.loads((whole.out / "scores.json").read_text())["cfs-predict (train)"]
    assert again.code == 0
    assert re.search(rf"object IoU \(45\) +{100 * scores['object_iou']['mean']:.1f}", again.stdout), again.stdout
    # Read as "not zero", nearly all of each box would be object.
    assert 0.0 < scores["object_iou"]["mean"] < 0.9


@pytest.mark.parametrize("stage", ["grabcut", "cfs-predict", "refine"])
def test_every_stage_can_be_exported(whole: Done, tmp_path: Path, stage: str) -> None:
    where = ("export", "--cache", str(whole.out / "cache"), "--stage", stage)
    for form in ("voc", "coco", "hdf5"):
        done = maskmill(tmp_path, *where, "--format", form, "--to", str(tmp_path / form))
        assert done.code == 0, done.printed
    store = MaskStore(whole.out / "cache", readonly=True)
    address = stage_of(whole, stage)["address"]
    key, stamp = next(iter(store.entries(address)))
    arrays, image_id = store.read(address, key, stamp), key.partition("/")[2]
    with Image.open(tmp_path / "voc" / DEVKIT / "SegmentationClass" / f"{image_id}.png") as exported:
        assert np.array_equal(np.asarray(exported), arrays["mask_hw"])
    with Image.open(tmp_path / "voc" / DEVKIT / "SegmentationObject" / f"{image_id}.png") as exported:
        assert (np.asarray(exported) > 0).sum() == (arrays["mask_hw"] > 0).sum(), "objects as they are painted"
    (listing,) = (tmp_path / "coco").rglob("instances_train.json")
    coco = json.loads(listing.read_text())
    number = {image["file_name"].partition(".")[0]: image["id"] for image in coco["images"]}[image_id]
    areas = sorted(one["area"] for one in coco["annotations"] if one["image_id"] == number)
    expected = sorted(float(one.mask_hw.sum()) for one in unpack_objects(arrays))
    assert areas == [area for area in expected if area], "the masks before painting"


# -- what is not done again ------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_rerun_only_what_changes(whole: Done, tmp_path: Path) -> None:
    out = copy_of(whole, tmp_path / "run")
    assert run_cfs(out, *FIGURE).computed == NOTHING
    again = run_cfs(out, *FIGURE, "--rerun", "cfs", "--rerun", "cfs-predict")
    assert (again.code, again.computed) == (0, {**NOTHING, "cfs": 1, "cfs-predict": TRAIN})
    # The same weights and arrays once more: nothing behind them has to be made anew.
    twice = {name for name in fingerprint(out) if "/pub-0002/" in name}
    assert len(twice) == 2 and all(name.startswith("fit cfs-") for name in twice)
    assert differences({k: v for k, v in fingerprint(out).items() if k not in twice}, fingerprint(whole.out)) == []


def test_a_change_is_felt_from_its_stage_on(whole: Done) -> None:
    for change, kept in (
        ("refine.trimap_low=0.2", ["grabcut", "cfs", "cfs-predict"]),
        ("cfs.test_flip=false", ["grabcut", "cfs"]),
        ("cfs.deep_refeed=false", ["grabcut"]),
        ("lgsa.alpha=5000", ["grabcut", "cfs", "cfs-predict", "refine"]),
        ("grabcut.core=0.5", []),
        ("cfs.predict_batch=1", list(STAGES)),
    ):
        plan = run_cfs(whole.out, *FIGURE, "--dry-run", "--set", f"params.{change}")
        rows = [line.split() for line in plan.stdout.splitlines() if line.split()[:1] and line.split()[0] in STAGES]
        assert [row[0] for row in rows] == list(STAGES), plan.printed
        assert [row[0] for row in rows if (row[3], row[4]) == ("0", "0")] == kept, change


def test_a_broken_picture_is_left_out_by_all_stages(whole: Done, tmp_path: Path) -> None:
    tree = tmp_path / demo_tree(whole).name
    shutil.copytree(demo_tree(whole), tree)
    broken = tree / "JPEGImages" / "demo_train_00017.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    out = copy_of(whole, tmp_path / "run")
    moved = ("--data", f"voc:{tree}", "--set", "data.name=demo-tiny", "--set", "params.deeplab.iterations=1")
    done = run_cfs(out, *FIGURE, *moved)
    assert done.code == 3, done.printed
    assert {skip["key"] for skip in done.manifest["skips"]} == {"demo-tiny/demo_train_00017"}
    counts = {stage["label"]: (stage["total"], stage["skipped"]) for stage in done.manifest["stages"]}
    assert counts["cfs-predict"] == counts["refine"] == counts["grabcut"] == (TRAIN, 1)
    # The one picture's absence makes another fit; that fit's masks are new for all the others.
    assert (done.computed["grabcut"], done.computed["cfs"], done.computed["deeplab"]) == (0, 1, 1)
    assert run_cfs(out, *FIGURE, *moved).computed["cfs"] == 0


# -- switches --------------------------------------------------------------------------------------------------------


def planned(tiny: Done, params: CFSFlowParams) -> Runner:
    job = configure("cfs", None, "demo-tiny", (), {})
    options = dataclasses.replace(job.options, cache=str(tiny.out / "cache"))
    with Runner(options, planning=True) as run:
        page(run, read_sets(job.data, options), params)
    return run


BEFORE = {
    "box": ["box-masks"],
    "grabcut": ["grabcut"],
    "cfs": ["grabcut", "cfs", "cfs-predict"],
    "cfs-refined": ["grabcut", "cfs", "cfs-predict", "refine"],
}


@pytest.mark.parametrize("proposals", list(BEFORE))
def test_each_source_of_masks_gives_its_stages_and_none_may_see_truth(tiny: Done, proposals: Any) -> None:
    run = planned(tiny, CFSFlowParams(proposals=proposals))
    assert [handle.label for handle in run.handles] == [*BEFORE[proposals], "deeplab", "student", "student-shown"]
    declared = {handle.label: set(handle.stage.reads) for handle in run.handles}
    assert all(kinds <= {"image", "boxes"} for kinds in declared.values()), declared


def test_every_ablation_of_the_paper_is_a_run_of_its_own(tiny: Done) -> None:
    """Tables 2, 3 and 5: fits of different addresses, and shared stages where nothing before them differs."""
    first = CFSFlowParams()

    def address(label: str, **changes: Any) -> str:
        lgsa, cfs_ = (changes.pop(name, {}) for name in ("lgsa", "cfs"))
        params = dataclasses.replace(
            first,
            lgsa=dataclasses.replace(first.lgsa, **lgsa),
            cfs=dataclasses.replace(first.cfs, **cfs_),
            **changes,
        )
        return next(handle.address for handle in planned(tiny, params).handles if handle.label == label)

    students = [address("deeplab", proposals=proposals) for proposals in BEFORE]
    students += [address("deeplab", attention="none"), address("deeplab", attention="nonlocal")]
    students += [address("deeplab", lgsa={"modules": modules}) for modules in (1, 3)]
    students += [
        address("deeplab", lgsa={"alpha": alpha, "walk": walk})
        for alpha in (5e3, 1.5e4, 2e4)
        for walk in ("off", "probabilities")
    ]
    assert len(set(students)) == len(students)
    networks = [address("cfs", cfs=change) for change in ({}, {"class_channel": False}, {"deep_refeed": False})]
    assert len(set(networks)) == 3
    assert address("refine", attention="none") == address("refine", crf="deeplab-v2") == address("refine")


def test_each_grabcut_has_params_of_its_own(tiny: Done) -> None:
    """The usual whole-image call comes first, and the refinement stays as it was set; or the other way round."""
    first = CFSFlowParams()
    plain, other = GrabCutParams(variant="plain", fallback="none"), RefineParams(working_size=96, fallback="sdi")
    before, coarse, fine = (
        {handle.label: handle for handle in planned(tiny, params).handles}
        for params in (first, dataclasses.replace(first, grabcut=plain), dataclasses.replace(first, refine=other))
    )
    assert (coarse["grabcut"].stage.params, coarse["refine"].stage) == (plain, before["refine"].stage)
    assert (fine["grabcut"].stage, fine["refine"].stage.params) == (before["grabcut"].stage, other)
    same = [label for label in STAGES if fine[label].address == before[label].address]
    assert same == ["grabcut", "cfs", "cfs-predict"]
    assert coarse["grabcut"].address != before["grabcut"].address


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("params.attention=lgsa", "params.deeplab.multi_scale_inputs=true"), "attention.*multi_scale_inputs"),
        (
            ("params.proposals=cfs", "params.cfs.difficult=false"),
            "grabcut.difficult=True, cfs.difficult=False must be alike",
        ),
        (
            ("params.proposals=cfs-refined", "params.refine.difficult=false"),
            "grabcut.difficult=True, cfs.difficult=True, refine.difficult=False must be alike",
        ),
        (("params.refine.trimap_low=0.7",), "refine.trimap_low must be <= trimap_high"),
        (("params.refine.trimap_lo=0.3",), "did you mean 'trimap_low'"),
        (("params.grabcut.trimap_low=0.3",), "params.grabcut.trimap_low: no such parameter"),
        (("params.proposals=cfs-refind",), "params.proposals.*cfs-refined"),
        (("params.lgsa.modules=0",), "lgsa.modules must be 1..8"),
        (("params.lgsa.modulez=2",), "did you mean 'modules'"),
        (("params.cfs.crops=2",), "did you mean 'crop'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(change: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure("cfs", None, "demo-tiny", change, {})
    CFSFlowParams(proposals="grabcut", attention="none", cfs=CFSParams(difficult=False), grabcut=GrabCutParams())
    CFSFlowParams(proposals="cfs", refine=RefineParams(difficult=False))


def test_packaged_configurations_of_the_whole_figure() -> None:
    demo, claims, voc = (configure("cfs", None, name, (), {}).params for name in ("demo-cfs", "claims-cfs", "voc-cfs"))
    for params in (demo, claims, voc, CFSFlowParams()):
        assert (params.proposals, params.attention) == ("cfs-refined", "lgsa")
    assert demo.cfs == cfs.PRESETS["demo"]
    assert demo.deeplab == dataclasses.replace(deeplab.PRESETS["demo"], iterations=1600)
    assert claims.cfs == dataclasses.replace(demo.cfs, iterations=200)
    assert claims.deeplab == dataclasses.replace(demo.deeplab, output_stride=4, iterations=400)
    assert (claims.grabcut.variant, claims.refine) == ("plain", RefineParams(working_size=192)), "the paper's trimap"
    assert configure("cfs", None, "demo-tiny", (), {}).params.cfs == cfs.PRESETS["demo-tiny"]
    assert voc.cfs == cfs.PRESETS["voc"]
    assert demo.grabcut == GrabCutParams(variant="plain")
    assert demo.refine == RefineParams(working_size=192, trimap_low=0.2, trimap_high=0.8)
    # Section 3.2: GrabCut is the usual one. Its trimap is printed.
    assert (voc.grabcut, voc.refine) == (GrabCutParams(variant="plain"), RefineParams(trimap_low=0.4, trimap_high=0.6))
    v2: DeepLabParams = deeplab.PRESETS["voc-resnet101"]
    # Section 4.1: 15 epochs of the 10,582 images, ten at a time; a dense CRF at test, and no scales or mirror images.
    assert voc.deeplab == dataclasses.replace(v2, iterations=0, epochs=15, test=TestTimeParams())
    assert voc.deeplab.total_iterations(10_582) == 15_873
    assert (voc.lgsa, voc.crf) == (CFSFlowParams().lgsa, "deeplab-v2")


def test_the_best_configuration_differs_from_the_papers_where_measured_or_inferred() -> None:
    paper, best = (configure("cfs", None, name, (), {}).params for name in ("voc-cfs", "voc-cfs-best"))
    assert best == dataclasses.replace(
        paper,
        attention="nonlocal",
        refine=RefineParams(trimap_low=0.2, trimap_high=0.8),
        deeplab=dataclasses.replace(paper.deeplab, test=deeplab.VOC_TEST),
    )


@pytest.mark.parametrize("name", ["voc-cfs", "voc-cfs-best"])
def test_every_value_of_a_voc_configuration_says_what_it_is(name: str) -> None:
    lines = resources.files("flows.configs").joinpath(f"{name}.yaml").read_text().split("params:\n")[1].splitlines()
    values = [line for line in lines if not re.fullmatch(r" *\w+:", line)]
    kinds = r"# .*(section \d|DeepLab v2|inferred|measured|as in voc-cfs)"
    assert len(values) > 20 and [line for line in values if not re.search(kinds, line)] == []


def test_the_demo_of_the_whole_figure_plans_all_its_stages(tiny: Done) -> None:
    job = configure("cfs", None, "demo-cfs", (), {})
    sets = read_sets(configure("cfs", None, "demo-tiny", (), {}).data, planned(tiny, job.params).options)
    plan = plan_page("cfs", page, sets, job.params, dataclasses.replace(job.options, cache=str(tiny.out / "cache")))
    assert [(stage.label, stage.kind) for stage in plan.stages] == [
        ("grabcut", "map"),
        ("cfs", "fit"),
        ("cfs-predict", "map"),
        ("refine", "map"),
        ("deeplab", "fit"),
        ("student", "map"),
        ("student-shown", "map"),
    ]
