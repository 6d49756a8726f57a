"""Does every params field that takes weights take the table's names, and are old addresses where they were?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy_net
import toy_stage
from safetensors.torch import save_file

from models.normalise import Normalisation
from tasks.cfs import stages as cfs
from tasks.deeplab import stages as deeplab
from tasks.stage import FitStage, stage_address
from tasks.training import weights
from tasks.training.networks import initial_network
from tasks.training.weights import WeightsError, here, table
from tasks.training.weights.get import store
from tasks.training.weights.table import Row

FITS: dict[str, tuple[Any, Any]] = {
    "deeplab": (deeplab.DeepLabParams(network="resnet18", weights="none"), deeplab.fit),
    "cfs": (cfs.CFSParams(network="resnet18", weights="none"), cfs.fit),
    "toy": (toy_stage.ToyParams(), toy_stage.prior),
}
ROW = Row("fake", "", "package", ("resnet18", "toy"), "CC0-1.0", "lite0", "net.pth", "ab" * 32, package="no-such")


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(table, "ROWS", (ROW, *table.ROWS))
    return ROW


def address(stage: FitStage) -> str:
    return stage_address(stage, ("a", "b"), {})


@pytest.mark.parametrize("name", FITS)
def test_every_weights_field_takes_the_names(name: str, row: Row) -> None:
    params, fit = FITS[name]
    (field,) = [entry for entry in dataclasses.fields(params) if entry.name == "weights"]
    assert field.metadata["help"] == weights.HELP
    chosen = dataclasses.replace(params, weights="fake")
    with pytest.raises(WeightsError, match=rf"params\.{name}\.weights: .*`maskmill weights get fake`"):
        fit(chosen)
    store(row, {"w": torch.ones(1)}, row.sha256)
    stage = fit(chosen)
    assert (stage.params.weights, stage.inputs) == ("fake@abababababab", {}), "known by the table's digest"
    assert address(stage) != address(fit(params))


def test_a_fit_starts_from_a_row_with_its_normalisation(row: Row) -> None:
    params, _ = FITS["toy"]
    torch.manual_seed(5)
    wanted = toy_net.build(params, 3).state_dict()
    chosen = dataclasses.replace(params, weights="fake@abababababab")
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
    params, _ = FITS["toy"]
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
