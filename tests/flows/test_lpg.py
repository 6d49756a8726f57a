"""What is LPG's own: the order of its rounds, its bundle in another place, and what it refuses to learn from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flow_runs import Done, Runs, copy_of, demo_tree, run_flow

from artifacts.datasets import DataParams, read_split
from artifacts.datasets.corrections import write_corrections
from artifacts.export.bundle import read_bundle
from artifacts.export.voc import DEVKIT
from artifacts.records import DataError, MaskRef, Record, RecordSet, Sets
from flows.configure import configure
from flows.lpg import given_masks
from flows.lpg_learn import as_learnt
from flows.lpg_learn import page as learn_page
from flows.registry import FLOWS
from flows.run_flow import plan_page, read_sets
from tasks.engine.runner import Runner
from tasks.lpg.stages import SHIPPED
from tasks.stage import FitHandle, FitStage, Handle, MapHandle, MapStage

LEARN, DEPLOY = "lpg-learn", "lpg"
AUX = "demo-tiny-auxiliary"


@pytest.fixture(scope="module")
def deployed(runs: Runs) -> Done:
    return runs.tiny(DEPLOY)


@pytest.fixture(scope="module")
def learnt(deployed: Done, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """``lpg-learn`` on what the tiny ``lpg`` has learnt from, in a copy of its cache."""
    out = copy_of(deployed, tmp_path_factory.mktemp("learnt") / "run")
    given = (f"data.source={AUX}", "params.rounds=1", "params.licence=free")
    return run_flow(LEARN, out, *(part for one in given for part in ("--set", one)))


# -- the order of the rounds -----------------------------------------------------------------------------------------


@dataclass
class Traced(Runner):
    """A planning runner that keeps what every stage is given, by address."""

    seen: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """Label -> its address, and role -> the address that it reads; ``on`` is the set of images."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.seen = {}

    def _keep(self, handle: Any, records: RecordSet, above: dict[str, Handle | None]) -> None:
        read = {role: one.address for role, one in above.items() if one is not None}
        self.seen[handle.label] = handle.address, {"on": records.dataset, **read}

    def map(self, stage: MapStage, records: RecordSet, *, label: str | None = None, **up: Handle) -> MapHandle:
        handle = super().map(stage, records, label=label, **up)
        self._keep(handle, records, dict(up))
        return handle

    def fit(self, stage: FitStage, train: RecordSet, *, init: FitHandle | None = None, **more: Any) -> FitHandle:
        handle = super().fit(stage, train, init=init, **more)
        up = {role: one for role, one in more.items() if role not in ("monitor", "label")}
        self._keep(handle, train, {"init": init, **up})
        return handle


def trace(flow: str, *given: str, cache: Path) -> dict[str, dict[str, str]]:
    """Label -> role -> label of the stage whose address is read there (``first``: of two); nothing is computed."""
    job = configure(flow, None, FLOWS[flow].tiny, given, {"cache": str(cache)})
    sets = read_sets(job.data, job.options)
    with Traced(job.options, planning=True, sets=sets) as run:
        FLOWS[flow].page(run, sets, job.params)
    shown = {label for label in run.seen if label.endswith("-shown")}
    label_at: dict[str, str] = {}
    for label, (address, _) in run.seen.items():
        if label not in shown:
            label_at.setdefault(address, label)  # the same stage over the evaluation set has the same address
    return {
        label: {role: read if role == "on" else label_at.get(read, read.split("-")[0]) for role, read in above.items()}
        for label, (_, above) in run.seen.items()
        if label not in shown
    }


@pytest.fixture(scope="module")
def cache(deployed: Done) -> Path:
    """Demo data that are drawn already."""
    return deployed.out / "cache"


def learning(prefix: str, dataset: str, start: str) -> dict[str, dict[str, str]]:
    """Section III-B, written out: who reads what in three rounds."""
    own = {"on": dataset}
    truth = {"target": f"{prefix}truth"}
    before = {"init": f"{prefix}generator"}, {"init": f"{prefix}generator@2"}
    second, third = before if start == "previous" else ({}, {})
    found = {
        "truth": own,
        "box-masks": own,
        # Round 1: f on boxes; g1 on truth given f; masks of g1.
        "segmenter": {**own, "target": f"{prefix}box-masks"},
        "probs": {**own, "net": f"{prefix}segmenter"},
        "generator": {**own, **truth, "probs": f"{prefix}probs"},
        "generated": {**own, "net": f"{prefix}generator", "probs": f"{prefix}probs"},
        # Round 2: f trained further on g1's masks; g2 on truth given that f.
        "segmenter@2": {**own, "init": f"{prefix}segmenter", "target": f"{prefix}generated"},
        "probs@2": {**own, "net": f"{prefix}segmenter@2"},
        "generator@2": {**own, **second, **truth, "probs": f"{prefix}probs@2"},
        "generated@2": {**own, "net": f"{prefix}generator@2", "probs": f"{prefix}probs@2"},
        "segmenter@3": {**own, "init": f"{prefix}segmenter@2", "target": f"{prefix}generated@2"},
        "probs@3": {**own, "net": f"{prefix}segmenter@3"},
        "generator@3": {**own, **third, **truth, "probs": f"{prefix}probs@3"},
        "generated@3": {**own, "net": f"{prefix}generator@3", "probs": f"{prefix}probs@3"},
    }
    return {f"{prefix}{label}": above for label, above in found.items()}


@pytest.mark.parametrize("start", ["fresh", "previous"])
def test_each_round_reads_the_networks_and_masks_of_its_own_round(cache: Path, start: str) -> None:
    found = trace(LEARN, "params.rounds=3", f"params.start={start}", cache=cache)
    own = {label: above for label, above in found.items() if not label.startswith("val-")}
    assert own == learning("", "demo-tiny", start)
    for number in ("", "@2", "@3"):
        assert found[f"val-generated{number}"]["net"] == f"generator{number}"
        assert found[f"val-probs{number}"]["net"] == f"segmenter{number}"


def deploying(generators: tuple[str, str, str]) -> dict[str, dict[str, str]]:
    """Section III-C, written out."""
    own = {"on": "demo-tiny"}
    first, second, third = (f"aux-{one}" for one in generators)
    return {
        "box-masks": own,
        "segmenter": {**own, "target": "box-masks"},
        "probs": {**own, "net": "segmenter"},
        "generated": {**own, "net": first, "probs": "probs"},
        "segmenter@2": {**own, "init": "segmenter", "target": "generated"},
        "probs@2": {**own, "net": "segmenter@2"},
        "generated@2": {**own, "net": second, "probs": "probs@2"},
        "segmenter@3": {**own, "init": "segmenter@2", "target": "generated@2"},
        "probs@3": {**own, "net": "segmenter@3"},
        "generated@3": {**own, "net": third, "probs": "probs@3"},
        "segmenter@4": {**own, "init": "segmenter@3", "target": "generated@3"},
        "segmented-by-boxes": {**own, "net": "segmenter"},
        "segmented": {**own, "net": "segmenter@2"},
        "segmented@2": {**own, "net": "segmenter@3"},
        "segmented@3": {**own, "net": "segmenter@4"},
    }


STAGEWISE = ("generator", "generator@2", "generator@3")


@pytest.mark.parametrize(
    ("kind", "generators"), [("stage-wise", STAGEWISE), ("fixed", ("generator@3", "generator@3", "generator@3"))]
)
def test_it_is_deployed_round_by_round_and_no_network_of_the_auxiliary_set_is_trained_further(
    cache: Path, kind: str, generators: tuple[str, str, str]
) -> None:
    found = trace(DEPLOY, "params.learn.rounds=3", f"params.generators={kind}", cache=cache)
    assert found == {**learning("aux-", AUX, "fresh"), **deploying(generators)}


def test_fewer_rounds_and_other_students(cache: Path) -> None:
    two = trace(DEPLOY, "params.learn.rounds=3", "params.rounds=2", "params.student=deeplab", cache=cache)
    assert two["deeplab"] == {"on": "demo-tiny", "target": "generated@2"}, "afresh, from the last masks"
    assert "segmenter@3" not in two and "generated@3" not in two, "an M-step that nothing would read"
    alone = trace(DEPLOY, "params.student=none", cache=cache)
    assert (
        "generated" in alone
        and "segmenter@2" not in alone
        and not [label for label in alone if label.startswith(("segmented", "deeplab"))]
    )


@pytest.mark.parametrize("masks", ["none", "all"])
def test_the_last_m_step_and_the_student_learn_from_corrected_masks(cache: Path, tmp_path: Path, masks: str) -> None:
    write_corrections(tmp_path / "people", [("demo_train_00000", np.zeros((64, 64), np.uint8))], ("grazer",))
    given = ("params.learn.rounds=2", f"data.corrections={tmp_path / 'people'}", f"params.masks={masks}")
    found = trace(DEPLOY, *given, cache=cache)
    assert found["segmenter@3"]["target"] == "corrected", "the last; the rounds before stay as they were"
    plain = trace(DEPLOY, *given[::2], cache=cache)
    assert {label for label in found if found[label] != plain.get(label)} == {"corrected", "segmenter@3"} | (
        {"chosen-masks"} if masks == "all" else set()
    )
    student = trace(DEPLOY, *given, "params.student=deeplab", cache=cache)
    assert student["deeplab"]["target"] == "corrected"


def test_corrected_masks_are_truth_to_the_generators_and_given_masks_to_the_segmenter(
    cache: Path, tmp_path: Path
) -> None:
    write_corrections(tmp_path / "people", [("demo_train_00000", np.zeros((64, 64), np.uint8))], ("grazer",))
    given = f"data.corrections={tmp_path / 'people'}"
    learnt, plain = (trace(LEARN, "params.rounds=2", *more, cache=cache) for more in ((given,), ()))
    assert {learnt[f"generator{number}"]["target"] for number in ("", "@2")} == {"first"}, "the person's, else truth"
    assert learnt["corrected"] == {"on": "demo-tiny", "masks": "generated@2"}, "and they are exported"
    changed = {label for label in learnt if learnt[label] != plain.get(label)}
    assert changed == {"people-masks", "corrected", "generator", "generator@2"}

    found = trace(DEPLOY, "params.learn.rounds=2", given, "params.masks=corrected", cache=cache)
    assert [found[one]["target"] for one in ("segmenter", "segmenter@2")] == ["first", "first"], (
        "from the first round on"
    )
    assert found["segmenter@3"]["target"] == "corrected"
    with pytest.raises(DataError, match="nobody has corrected a mask of demo-tiny"):
        trace(DEPLOY, "params.masks=corrected", cache=cache)


def test_masks_that_are_given_are_learnt_from_instead(deployed: Done, tmp_path: Path) -> None:
    ids = ("demo_train_00000", "demo_train_00003")
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    out = copy_of(deployed, tmp_path / "run")
    given = ("params.student=none", f"params.masks={tmp_path / 'ids.txt'}")
    done = run_flow(DEPLOY, out, *(part for one in given for part in ("--set", one)))
    assert done.code == 0, done.printed
    assert {label: n for label, n in done.computed.items() if n} == {
        **{"given-masks": 2, "segmenter": 1, "probs": 24, "generated": 24, "chosen-masks": 24}
    }, "learning on the auxiliary set has nothing to do with it"
    for image_id in ids:
        masks = [
            cv2.imread(str(place / "SegmentationClass" / f"{image_id}.png"))
            for place in (out / "dataset-voc" / DEVKIT, demo_tree(deployed))
        ]
        assert np.array_equal(*masks)
    assert done.manifest["masks"] == "chosen-masks"
    assert any(
        one.startswith("the masks of 2 of 24 training images are given ones") for one in done.manifest["warnings"]
    )


def test_an_id_is_a_line_blanks_in_it_and_a_mark_before_it_too(tmp_path: Path) -> None:
    class Maps:
        def map(self, stage: MapStage, records: RecordSet) -> list[str]:
            return [record.image_id for record in records]

    truth = MaskRef("module:load", "mask.png")
    train = RecordSet("set", "train", ("a",), tuple(Record(one, one, truth=truth) for one in ("my dog", "b", "c")))
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbfmy dog\r\n\r\nb \r\n")
    assert given_masks(Maps(), train, str(tmp_path / "ids.txt")) == ["my dog", "b"]  # type: ignore[arg-type, comparison-overlap]
    bare = replace(train, records=(*train.records[:1], replace(train.records[1], truth=None)))
    with pytest.raises(DataError, match=r"ids.txt: 1 of its images have no given mask, the first: b; add"):
        given_masks(Maps(), bare, str(tmp_path / "ids.txt"))  # type: ignore[arg-type]


def test_on_photographs_both_flows_learn_alike_on_a_network_that_starts_from_imagenet() -> None:
    learning = configure(LEARN, "demo-tiny-auxiliary", "photo-lpg-learn", (), {}).params
    for config in ("photo-lpg", "claims-lpg-photo"):
        params = configure(DEPLOY, "demo-tiny", config, (), {}).params
        for name in ("rounds", "start", "segmenter", "generator", "generate"):
            assert getattr(params.learn, name) == getattr(learning, name), f"{config}: {name}"
        assert params.segmenter == learning.segmenter and params.generate == learning.generate
        assert {params.segmenter.weights, learning.generator.weights} == {"imagenet"}
    assert params.deeplab.network == "lite0"


# -- what it gives ---------------------------------------------------------------------------------------------------


def test_its_masks_are_better_than_the_boxes_on_classes_that_it_never_saw(deployed: Done) -> None:
    scores = deployed.manifest["scores"]
    assert scores["masks (train)"]["miou"] > scores["box-masks (train)"]["miou"] + 0.02
    assert scores["aux-truth (aux)"]["miou"] == 1.0


def pngs(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "dataset-voc" / DEVKIT / "SegmentationClass").glob("*.png")}


def test_the_learning_flow_shares_its_stages_with_a_run_that_learns_first(learnt: Done) -> None:
    assert learnt.code == 0, learnt.printed
    worked_on = {label for label, count in learnt.computed.items() if count}
    assert worked_on == {"val-probs", "val-generated"}
    bundle = learnt.out / "generators"
    assert f"generators: {bundle}" in learnt.printed
    card = json.loads((bundle / "card.json").read_text())
    assert card["network"] == {"network": "hourglass-small", "width": 4} and card["rounds"] == 1
    assert card["classes"] == list(learnt.manifest["classes"][AUX])
    assert card["data"] == {"name": AUX, "split": "train", "images": 12} and card["licence"] == "free"
    assert card["scores"]["generator (val)"]["images"] == 4 and card["libraries"]["torch"]
    assert len((bundle / "images.txt").read_text().split()) == 12


def test_a_bundle_in_another_place_gives_the_same_masks_without_what_it_was_learnt_from(
    deployed: Done, learnt: Done, tmp_path: Path
) -> None:
    bundle = shutil.copytree(learnt.out / "generators", tmp_path / "elsewhere" / "mine")
    out = tmp_path / "run"
    given = ("--set", "data.aux=null", "--set", f"params.generator={bundle}")
    done = run_flow(DEPLOY, out, *given)
    assert done.code == 0, done.printed
    assert not [label for label in done.computed if label.startswith("aux-")]
    assert pngs(out) == pngs(deployed.out) != {}
    assert done.manifest["scores"]["student (val)"] == deployed.manifest["scores"]["student (val)"]
    (loaded,) = {one["path"] for one in done.manifest["loaded"]}
    assert loaded == str(bundle / "generators.safetensors")
    (bundle / "generators.safetensors").write_bytes(b"cut")
    again = run_flow(DEPLOY, out, *given)
    assert again.code == 2 and "the bundle is damaged or was changed, copy it again" in again.printed


def test_its_card_says_what_was_learnt_and_no_place(learnt: Done) -> None:
    card = read_bundle(learnt.out / "generators").card
    assert card["half"] is False and card["licence"] == "free" and "generator (val)" in card["scores"]
    assert not {"bundle", "half", "licence"} & card["learnt"].keys()
    params = configure(LEARN, AUX, "demo-tiny-lpg-learn", ("params.segmenter.weights=/data/net.pth",), {}).params
    assert as_learnt(params)["segmenter"]["weights"] == "net.pth"


def test_without_evaluation_images_it_is_learnt_all_the_same(learnt: Done, tmp_path: Path) -> None:
    """A COCO file is one split, and ``val_share=0`` makes all of it training images."""
    records = read_split(DataParams(AUX), "train", cache=learnt.out / "cache")
    none = Sets(records, replace(records, split="val", records=()))
    params = configure(LEARN, AUX, "demo-tiny-lpg-learn", ("params.rounds=1",), {})
    plan = plan_page("lpg-learn", learn_page, none, params.params, replace(params.options, cache=str(tmp_path)))
    assert [report.label for report in plan.stages][-1] == "generated"


def test_the_bundle_that_ships_makes_masks_at_once(deployed: Done, tmp_path: Path) -> None:
    bundle = read_bundle(SHIPPED["drawn"])
    assert bundle.rounds == 3 and sum(path.stat().st_size for path in bundle.path.iterdir()) < 8e6
    assert "no rights of others" in bundle.card["licence"]
    given = ("data.aux=null", "params.generator=drawn", "params.rounds=1", "params.student=none")
    done = run_flow(DEPLOY, copy_of(deployed, tmp_path / "run"), *(part for one in given for part in ("--set", one)))
    assert done.code == 0, done.printed
    scores = done.manifest["scores"]
    assert scores["masks (train)"]["miou"] > scores["box-masks (train)"]["miou"] + 0.1


def test_one_more_image_of_the_target_leaves_the_learning_alone(deployed: Done, tmp_path: Path) -> None:
    tree = shutil.copytree(demo_tree(deployed), tmp_path / demo_tree(deployed).name)
    new, first = "one-more", "demo_train_00000"
    image = cv2.imread(str(tree / "JPEGImages" / f"{first}.jpg"))
    (tree / "JPEGImages" / f"{new}.jpg").write_bytes(cv2.imencode(".jpg", image[::-1])[1].tobytes())
    text = (tree / "Annotations" / f"{first}.xml").read_text()
    (tree / "Annotations" / f"{new}.xml").write_text(text.replace(first, new))
    with open(tree / "ImageSets" / "Segmentation" / "train.txt", "a") as list_file:
        list_file.write(f"{new}\n")
    out = copy_of(deployed, tmp_path / "run")
    moved = ("--data", f"voc:{tree}", "--set", "data.name=demo-tiny", "--set", "params.student=none")
    plan = run_flow(DEPLOY, out, *moved, "--dry-run")
    rows = {row[0]: row[2:5] for row in (line.split() for line in plan.stdout.splitlines()) if len(row) > 4}
    assert rows["box-masks"] == ["24", "1", "0"] and rows["segmenter"] == ["0", "0", "1"], "another training set"
    assert all(row[1:] == ["0", "0"] for label, row in rows.items() if label.startswith("aux-"))
    kept = run_flow(DEPLOY, out, *moved, "--set", "options.refit=never")
    assert (kept.code, {label: count for label, count in kept.computed.items() if count}) == (
        0,
        dict.fromkeys(("box-masks", "probs", "generated"), 1),
    )


def test_a_bundle_has_an_option_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli.main import main

    given = ["lpg", "--config", "demo-tiny-lpg", "--generator", "mine", "--set", "params.rounds=2", "--show-config"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "generator: mine" in shown and "rounds: 2" in shown


# -- what it refuses -------------------------------------------------------------------------------------------------


def refused(out: Path, *given: str) -> str:
    done = run_flow(DEPLOY, out, *(part for one in given for part in ("--set", one)))
    assert done.code == 2, done.printed
    return done.printed


@pytest.fixture(scope="module")
def empty(deployed: Done, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for runs that must not begin: nothing but drawn data is in its cache afterwards."""
    out = tmp_path_factory.mktemp("refused")
    shutil.copytree(deployed.out / "cache" / "demo-data", out / "cache" / "demo-data")
    yield out
    assert not (out / "cache" / "maps").exists() and not (out / "cache" / "fits").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("data.aux=null",), "set params.generator to a bundle (drawn, or what `maskmill lpg-learn` makes), or"),
        (("params.generator=x",), "come from a bundle or from data.aux; both are set"),
        (("data.aux=null", "params.generator=nowhere"), "bundle nowhere does not exist"),
        (("params.rounds=3",), "params.rounds=3, but there are generators of 1 alone"),
        (
            ("params.masks=nowhere.txt",),
            "params.masks=nowhere.txt: not all, corrected or none, and no file of image ids",
        ),
        (('params.masks=""',), "masks is empty"),
        (
            ("params.learn.generator.difficult=false",),
            "generator.difficult=False, generate.difficult=True must be alike",
        ),
    ],
)
def test_what_cannot_be_is_said_before_any_work(empty: Path, given: tuple[str, ...], message: str) -> None:
    assert message in refused(empty, *given)


def test_a_bundle_beside_the_shipped_one_of_its_name_is_not_passed_over(
    empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "card.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    said = refused(empty, "data.aux=null", "params.generator=drawn")
    assert "a bundle of that name comes with Maskmill" in said and "write ./drawn for the folder" in said
    assert "this is no card of a bundle" in refused(empty, "data.aux=null", "params.generator=./drawn")


def test_ids_that_are_not_there_are_named(empty: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("demo_train_00001\ntypo\n")
    assert "1 ids are none of demo-tiny's, the first: typo" in refused(empty, f"params.masks={tmp_path / 'ids.txt'}")


def test_a_class_or_an_image_of_the_target_is_no_auxiliary_one(empty: Path, learnt: Done) -> None:
    same = ("data.aux.source=demo-tiny", "data.aux.name=others")
    message = refused(empty, *same)
    assert "5 classes of the target are among those" in message and "grazer, kettle, cart, fish, plant" in message
    assert "add grazer, kettle, cart, fish, plant to data.aux.without" in message
    some = refused(empty, *same, "data.aux.without=[grazer,fish,plant]")
    assert "2 classes of the target" in some and "kettle, cart" in some
    image = refused(empty, *same, "params.overlap=allow")
    assert "demo_train_00000.jpg of demo-tiny is also" in image and "may hold no image of the target" in image
    # The bundle remembers both.
    bundle = f"params.generator={learnt.out / 'generators'}"
    target = (f"data.source={AUX}", "data.aux=null", bundle)
    assert "6 classes of the target are among those" in refused(empty, *target)
    assert f"is also an image of {learnt.out / 'generators'}" in refused(empty, *target, "params.overlap=allow")
