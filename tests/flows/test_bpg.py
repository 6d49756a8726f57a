"""What is the flow `bpg`'s own: its switches, the stages that each needs, its configurations."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from flow_runs import Done, Runs, share_demo

from artifacts.datasets import DataParams
from artifacts.records import DataError, MaskRef, Sets
from benchmarks.claims_bpg import CLAIMS
from flows.bpg import BPGFlowParams, page
from flows.compare.trials import curve_ends
from flows.configure import configure
from flows.run_flow import plan_page, read_sets
from tasks.bpg import stages
from tasks.bpg.stages import PartsParams
from tasks.deeplab import stages as deeplab
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.scribbles import ScribbleParams

TINY: BPGFlowParams = configure("bpg", None, "demo-tiny-bpg", (), {}).params
LABELS = ["scribbles", "edges", "bpg", "bpg-masks", "guided", "deeplab", "student"]


@pytest.fixture(scope="module")
def sets(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sets, RunParams]:
    """The tiny demo data in a cache that holds nothing else. ``tiny`` is any run that has drawn them."""
    options = RunParams(cache=str(share_demo(tiny, tmp_path_factory.mktemp("cache"))), device="cpu")
    return read_sets(DataParams("demo-tiny"), options), options


def planned(sets: tuple[Sets, RunParams], params: BPGFlowParams) -> dict[str, Any]:
    """Label -> handle of a planned page, without the pictures' stages."""
    with Runner(sets[1], planning=True) as run:
        page(run, sets[0], params)
    return {handle.label: handle for handle in run.handles if not handle.label.endswith("-shown")}


def with_parts(**changed: Any) -> BPGFlowParams:
    return dataclasses.replace(TINY, bpg=dataclasses.replace(TINY.bpg, parts=PartsParams(**changed)))


def test_masks_that_cannot_be_shortened_are_said_before_any_work(sets: tuple[Sets, RunParams]) -> None:
    half = dataclasses.replace(TINY, scribbles=ScribbleParams(length=0.5))
    planned(sets, half)
    drawn = MaskRef("module:load", "s.png")
    train = sets[0].train
    masked = dataclasses.replace(train.records[3], scribbles=drawn)
    given = dataclasses.replace(train, records=(*train.records[:3], masked))
    with pytest.raises(DataError, match=r"s.png: an index mask has no strokes to be shortened; set params.scribbles"):
        planned((dataclasses.replace(sets[0], train=given), sets[1]), half)


def test_each_switch_leaves_out_what_it_does_not_need(sets: tuple[Sets, RunParams]) -> None:
    whole = planned(sets, TINY)
    assert list(whole) == LABELS
    assert whole["bpg-masks"].stage.heat == whole["guided"].stage.heat == ("boundary_hw",)
    assert list(planned(sets, with_parts(brn="off"))) == [label for label in LABELS if label != "edges"]
    assert list(planned(sets, dataclasses.replace(TINY, student="none"))) == LABELS[:5]
    full = planned(sets, dataclasses.replace(TINY, labels="masks"))
    assert list(full) == ["given-masks", *LABELS[1:]] and full["given-masks"].stage.reads == ("image", "truth")
    with_crf = planned(sets, dataclasses.replace(TINY, crf="deeplab-v2"))
    assert "mask_crf_hw" in with_crf["guided"].stage.outputs and "mask_crf_hw" in with_crf["student"].stage.outputs
    assert with_crf["bpg"].address == whole["bpg"].address, "a CRF at test changes no fit"


def test_each_switch_is_another_fit(sets: tuple[Sets, RunParams]) -> None:
    changed = [
        TINY,
        with_parts(prn=False),
        with_parts(brn="off"),
        with_parts(prn=False, brn="off"),
        with_parts(brn="all"),
        dataclasses.replace(TINY, labels="masks"),
        dataclasses.replace(TINY, scribbles=ScribbleParams(length=0.5)),
        dataclasses.replace(TINY, scribbles=ScribbleParams(width=5.0)),
        dataclasses.replace(TINY, edges=dataclasses.replace(TINY.edges, network="hed")),
    ]
    try:
        addresses = [planned(sets, params)["bpg"].address for params in changed]
    except DataError as error:  # HED's weights are no part of a plain set-up
        pytest.skip(str(error))
    assert len(set(addresses)) == len(changed)


def test_data_without_scribbles_are_refused_with_a_hint(sets: tuple[Sets, RunParams]) -> None:
    records = tuple(dataclasses.replace(record, scribbles=None) for record in sets[0].train)
    bare = dataclasses.replace(sets[0], train=dataclasses.replace(sets[0].train, records=records))
    with pytest.raises(DataError, match=r"bpg needs scribbles, .* add ScribbleSup \(voc:\) or data.scribble_files"):
        plan_page("bpg", page, bare, TINY, sets[1])


def test_claims_read_the_edge_loss_from_the_curve(runs: Runs) -> None:
    done = runs.tiny("bpg")
    ends = curve_ends(done.manifest, done.out / "cache")
    assert 0 < ends["bpg: edge"] < 1 and {"bpg: loss", "deeplab: loss"} <= ends.keys()
    assert CLAIMS.columns["edge"] in ends


# -- configurations --------------------------------------------------------------------------------------------------


def test_the_voc_configuration_is_the_papers() -> None:
    job = configure("bpg", None, "voc-bpg", (), {})
    voc: BPGFlowParams = job.params
    assert (job.data.train, voc.labels, voc.edges.network, voc.crf) == ("trainaug", "scribbles", "hed", "deeplab-v2")
    assert voc.bpg == stages.PRESETS["voc-bpg"] and voc.deeplab == deeplab.PRESETS["voc-resnet101"]
    assert voc.bpg.total_iterations(10_582) == 26_455
    assert voc == dataclasses.replace(BPGFlowParams(), crf="deeplab-v2", bpg=voc.bpg, deeplab=voc.deeplab)


def test_every_value_of_the_voc_configuration_says_what_it_is() -> None:
    text = resources.files("flows.configs").joinpath("voc-bpg.yaml").read_text()
    values = [line for line in text.split("params:\n")[1].splitlines() if not re.fullmatch(r" *\w+:", line)]
    kinds = r"# .*(section \d|DeepLab v2|inferred)"
    assert len(values) > 25 and [line for line in values if not re.search(kinds, line)] == []


def test_the_demos_are_their_presets() -> None:
    for name, preset in (("demo-bpg", stages.DEMO), ("demo-tiny-bpg", stages.DEMO_TINY)):
        assert configure("bpg", None, name, (), {}).params.bpg == preset
    assert configure("bpg", None, "demo-bpg", (), {}).params.edges.network == "hed-lite"


def test_rows_differ_in_one_thing_each_and_share_the_rest() -> None:
    shipped = Path(resources.files("flows.configs").joinpath("claims-bpg.yaml"))  # type: ignore[arg-type]
    assert "student: none" in shipped.read_text(), "the guided network is what is compared"
    sets_of = {row.name: row.sets for row in CLAIMS.rows}
    assert len(set(sets_of.values())) == len(sets_of)
    main = [row.name for row in CLAIMS.rows if row.main]
    assert main == ["base", "+PRN", "+BRN", "BPG", "BPG, C = K + 1", "fully supervised"]
    papers = [row.paper["guided"] for row in CLAIMS.rows if row.main]
    assert papers == [69.9, 71.4, 72.4, 73.2, 70.8, 75.8]
    for name, given in sets_of.items():
        configure("bpg", None, CLAIMS.config, tuple(f"params.{one}" for one in given), {})
        assert name == "BPG" or given
