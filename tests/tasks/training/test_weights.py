"""Weight files: what a string names, what a broken file says, what fits."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from models import deeplab
from tasks.training import weights
from tasks.training.networks import load_into
from tasks.training.weights import WeightsError


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = torchvision.models.resnet18().state_dict()
    return state


@pytest.mark.parametrize(
    ("text", "kind", "normalisation", "path", "semantic"),
    [
        ("none", "none", "imagenet", None, "none"),
        ("imagenet", "imagenet", "imagenet", None, "imagenet"),
        ("/data/r101.pth", "file", "imagenet", "/data/r101.pth", "file"),
        ("caffe:/data/v:16.pth", "file", "caffe", "/data/v:16.pth", "caffe:file"),
        ("imagenet:a.pth", "file", "imagenet", "a.pth", "file"),
        ("odd:name.pth", "file", "imagenet", "odd:name.pth", "file"),
    ],
)
def test_a_string_names_source_normalisation_and_no_path_in_the_address(
    text: str, kind: str, normalisation: str, path: str | None, semantic: str
) -> None:
    parsed = weights.parse(text)
    assert (parsed.kind, parsed.normalisation, parsed.semantic) == (kind, normalisation, semantic)
    assert parsed.path == (None if path is None else Path(path))


@pytest.mark.parametrize("text", ["", "  ", "caffe:"])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(WeightsError):
        weights.parse(text)


def test_presets_are_the_networks_normalisations() -> None:
    from models.normalise import NORMALISATIONS

    assert set(weights.PRESETS) == set(NORMALISATIONS)


def test_file_names_are_torchvisions() -> None:
    for enumeration, file in weights.TORCHVISION.values():
        assert getattr(torchvision.models, enumeration).IMAGENET1K_V1.url == weights.URL + file


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped.pth"])
def test_both_kinds_of_file_load_into_the_network(tmp_path: Path, resnet18: dict[str, torch.Tensor], form: str) -> None:
    file = tmp_path / f"r18.{form}"
    if form == "safetensors":
        save_file(resnet18, file)
    else:
        torch.save({"state_dict": resnet18} if form.startswith("wrapped") else resnet18, file)
    network = deeplab.build("resnet18", 3)
    load_into(network, weights.read_state(file), str(file))
    assert torch.equal(network.backbone.state_dict()["layer4.1.conv2.weight"], resnet18["layer4.1.conv2.weight"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_cut_short_says_so(tmp_path: Path, suffix: str) -> None:
    state = {"a": torch.zeros(10_000)}
    file = tmp_path / f"cut.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(WeightsError, match=rf"cut\.{suffix}.*cut short"):
        weights.read_state(file)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_torch_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match="bomb.pth.*holds code"):
        weights.read_state(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


def test_other_content_and_absence_are_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list\.pth holds list"):
        weights.read_state(tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"no\.pth does not exist; set deeplab\.weights="):
        weights.require_file(tmp_path / "no.pth", "deeplab.weights")
    with pytest.raises(WeightsError, match="is a folder"):
        weights.require_file(tmp_path, "deeplab.weights")


def test_weights_of_another_network_name_the_first_keys(resnet18: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"r18\.pth does not fit.*features\.0\.bias.*bn1\.bias"):
        load_into(deeplab.build("tiny", 3).__class__(*_vgg_parts()), resnet18, "r18.pth")


def _vgg_parts() -> Any:
    from models.backbones import VggBackbone
    from models.normalise import IMAGENET

    with torch.device("meta"):
        return VggBackbone(), deeplab.LargeFovHead(512, 3), deeplab.LARGEFOV_RULES, IMAGENET


def test_offline_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        weights.imagenet_state("resnet101", "deeplab.weights")
    message = str(caught.value)
    assert "no route to host" in message
    assert weights.URL + "resnet101-63fe2227.pth" in message
    assert str(tmp_path / "hub" / "checkpoints" / "resnet101-63fe2227.pth") in message
    assert "deeplab.weights=/path/to/resnet101-63fe2227.pth" in message
    with pytest.raises(WeightsError, match="no ImageNet weights for 'tiny'"):
        weights.imagenet_state("tiny")


def test_the_hub_file_is_used_where_torchvision_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights.hub_path("resnet18") == Path(torch.hub.get_dir()) / "checkpoints" / "resnet18-f37072fd.pth"
    weights.hub_path("resnet18").parent.mkdir(parents=True)
    torch.save(resnet18, weights.hub_path("resnet18"))
    with pytest.raises(
        WeightsError, match=r"resnet18-f37072fd\.pth is not what its name says.*expected f37072fd; .*w="
    ):
        weights.imagenet_state("resnet18", "w")
    content = hashlib.sha256(weights.hub_path("resnet18").read_bytes()).hexdigest()
    true_name = weights.hub_path("resnet18").with_name(f"resnet18-{content[:8]}.pth")
    weights.hub_path("resnet18").rename(true_name)
    monkeypatch.setitem(weights.TORCHVISION, "resnet18", ("ResNet18_Weights", true_name.name))
    assert torch.equal(weights.imagenet_state("resnet18")["conv1.weight"], resnet18["conv1.weight"])
