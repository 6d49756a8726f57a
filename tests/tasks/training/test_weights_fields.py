"""Does every params field that takes weights take the table's names, and are old addresses where they were?"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import toy_net
import toy_stage
from safetensors.torch import save_file

from artifacts.records import Box, Record, RecordSet, Sets
from flows.configure import configure
from flows.registry import FLOWS
from models.names import ENCODERS, GENERATORS, SEGMENTERS
from models.normalise import Normalisation
from tasks.cfs import stages as cfs
from tasks.deeplab import stages as deeplab
from tasks.edges.stages import EdgesParams
from tasks.engine.runner import Runner
from tasks.stage import FitStage, stage_address
from tasks.training import weights
from tasks.training.networks import initial_network
from tasks.training.weights import WeightsError, here, table
from tasks.training.weights.get import store
from tasks.training.weights.table import Row

NETWORKS = ("toy", *SEGMENTERS, *ENCODERS, *GENERATORS)
ROW = Row("fake", "", "package", NETWORKS, "CC0-1.0", "lite0", "net.pth", "ab" * 32, package="no-such", imagenet=False)
FAKE = "fake@abababababab"
WHOLE = {"rrm": ("params.start=classifier",), "lpg": ("params.student=deeplab",)}
"""What brings a flow's stages with weights onto its page, beside its figure."""


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(table, "ROWS", (ROW, *table.ROWS))
    return ROW


def address(stage: FitStage) -> str:
    return stage_address(stage, ("a", "b"), {})


def fields_of(params: Any, place: str = "params") -> Iterator[tuple[str, Any]]:
    """Key and params of every section with a field ``weights``, sections within sections included."""
    for entry in dataclasses.fields(params):
        value = getattr(params, entry.name)
        if entry.name == "weights":
            yield f"{place}.weights", params
        elif dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{place}.{entry.name}")


FIELDS = {(flow, key): params for flow, entry in FLOWS.items() for key, params in fields_of(entry.params_class())}


def planned(flow: str, given: tuple[str, ...], folder: Path) -> list[Any]:
    """The parameters of all stages of a flow's page, planned for one picture a set."""
    job = configure(flow, None, FLOWS[flow].tiny, (*FLOWS[flow].figure, *WHOLE.get(flow, ()), *given), {})
    made = []
    for value, (split, name) in enumerate((("train", "own"), ("val", "own"), ("aux", "other"))):
        path = folder / f"{split}.png"
        cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8))
        made.append(RecordSet(name, split, (name,), (Record(split, str(path), boxes=(Box(0, 1, 1, 1, 5, 5),)),)))
    sets = Sets(made[0], made[1], made[2] if job.data.aux is not None else None)
    options = dataclasses.replace(job.options, cache=str(folder / "cache"))
    with Runner(options, planning=True) as run:
        FLOWS[flow].page(run, sets, job.params)
        return [handle.stage.params for handle in run.handles]


def test_the_fields_of_all_methods_are_looked_at() -> None:
    keys = {f"{flow} {key}" for flow, key in FIELDS}
    assert keys >= {
        *("cfs params.cfs.weights", "cfs params.deeplab.weights", "toy params.toy.weights"),
        *("rrm params.cam.weights", "rrm params.rrm.weights", "rrm params.deeplab.weights"),
        *("bpg params.edges.weights", "bpg params.bpg.weights", "bpg params.deeplab.weights"),
        *("lpg params.learn.generator.weights", "lpg params.learn.segmenter.weights", "lpg params.segmenter.weights"),
        *("lpg-learn params.generator.weights", "lpg-learn params.segmenter.weights"),
    }


@pytest.mark.parametrize(("flow", "key"), [one for one in FIELDS if not isinstance(FIELDS[one], EdgesParams)])
def test_every_weights_field_takes_the_names(flow: str, key: str, row: Row, tmp_path: Path) -> None:
    """Named by the key that the user has set, wherever the section lies; known by the table's digest."""
    (field,) = [entry for entry in dataclasses.fields(FIELDS[flow, key]) if entry.name == "weights"]
    assert field.metadata["help"].startswith(weights.HELP)
    with pytest.raises(WeightsError, match=rf"^{re.escape(key)}: .*`maskmill weights get fake`"):
        planned(flow, (f"{key}=fake",), tmp_path)
    store(row, {"w": torch.ones(1)}, row.sha256)
    found = planned(flow, (f"{key}=fake",), tmp_path)
    assert FAKE in [getattr(params, "weights", "") for params in found]


@pytest.mark.parametrize(("flow", "key"), [one for one in FIELDS if isinstance(FIELDS[one], EdgesParams)])
def test_edges_take_their_own_row_alone(flow: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = dataclasses.replace(ROW, name="hed", networks=("hed",))
    monkeypatch.setattr(table, "ROWS", (own,))
    given = ("params.edges.network=hed",)
    for named in ("packaged", "hed"):
        with pytest.raises(WeightsError, match=rf"^{re.escape(key)}: .*`maskmill weights get hed`"):
            planned(flow, (*given, f"{key}={named}"), tmp_path)
    store(own, {"w": torch.ones(1)}, own.sha256)
    for named in ("packaged", "hed"):
        found = planned(flow, (*given, f"{key}={named}"), tmp_path)
        assert "hed@abababababab" in [getattr(params, "weights", "") for params in found]


def test_a_fit_starts_from_a_row_with_its_normalisation(row: Row) -> None:
    params = toy_stage.ToyParams()
    torch.manual_seed(5)
    wanted = toy_net.build(params, 3).state_dict()
    chosen = dataclasses.replace(params, weights=FAKE)
    context: Any = SimpleNamespace(inputs={}, seed=1, initial_weights=lambda: None)
    asked: list[str] = []

    def build(normalisation: Normalisation) -> toy_net.Toy:
        asked.append(normalisation.name)
        return toy_net.build(params, 3, normalisation)

    store(row, wanted, row.sha256)
    network = initial_network(context, chosen, build, key="params.toy.weights")
    assert asked == ["lite0"]
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in wanted.items())
    here.cached_file(row).unlink()
    with pytest.raises(WeightsError, match=r"params\.toy\.weights: .*`maskmill weights get fake`"):
        initial_network(context, chosen, build, key="params.toy.weights")


def test_the_toys_weights_file_reaches_its_network(tmp_path: Path) -> None:
    params = toy_stage.ToyParams()
    state = toy_net.build(params, 2).state_dict()
    save_file(state, tmp_path / "toy.safetensors")
    stage = toy_stage.prior(dataclasses.replace(params, weights=str(tmp_path / "toy.safetensors")))
    assert stage.inputs == {"weights": tmp_path / "toy.safetensors"} and stage.params.weights == "file"


@pytest.mark.parametrize(
    ("params", "text", "wanted"),
    [
        (deeplab.VOC_RESNET101, "imagenet", "deeplab-8a5fafecd0a0f43e3369b68ebf0ee73f"),
        (deeplab.VOC_RESNET101, "resnet101", "deeplab-8a5fafecd0a0f43e3369b68ebf0ee73f"),
        (deeplab.VOC_RESNET101, "none", "deeplab-259c0d7ac909ae30976282d0261c20e9"),
        (deeplab.VOC_RESNET101, "FILE", "deeplab-61ed025b2a113cd42cf98734a6db6bb2"),
        (deeplab.VOC_RESNET101, "imagenet:FILE", "deeplab-61ed025b2a113cd42cf98734a6db6bb2"),
        (deeplab.VOC_RESNET101, "caffe:FILE", "deeplab-70f7a80bac1dfe189bf5f54b3768e2c2"),
        (deeplab.VOC_LARGEFOV, "imagenet", "deeplab-0b51a0f15cbb0f9cbffc434336a45086"),
        (deeplab.VOC_LARGEFOV, "vgg16", "deeplab-0b51a0f15cbb0f9cbffc434336a45086"),
        (deeplab.DEMO, "none", "deeplab-2dc8c1cbe4f66072f642b64da7485ec0"),
        (cfs.VOC, "imagenet", "cfs-fec10b2684d5b8d15960196a51fe1b8d"),
        (cfs.VOC, "caffe:FILE", "cfs-83e41284594cedf78009da0bebc9fe34"),
        (cfs.DEMO, "FILE", "cfs-01d8b6fa96915ebc1c765f42b01aacc6"),
    ],
)
def test_old_strings_have_their_old_addresses(
    params: Any, text: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were before there was a table; a name of it is the same as ``imagenet`` with that network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "w.pth").write_bytes(b"x")
    chosen = dataclasses.replace(params, weights=text.replace("FILE", str(tmp_path / "w.pth")))
    assert address((cfs if isinstance(params, cfs.CFSParams) else deeplab).fit(chosen)) == wanted
