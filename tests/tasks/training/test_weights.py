"""Weight files: what a string names, what a broken file says, what fits."""

from __future__ import annotations

import dataclasses
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
from tasks.training.weights import WeightsError, table
from tasks.training.weights.here import hub_file


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = torchvision.models.resnet18().state_dict()
    return state


@pytest.mark.parametrize(
    ("text", "network", "kind", "normalisation", "path", "semantic"),
    [
        ("none", "resnet18", "none", "imagenet", None, "none"),
        ("/data/r101.pth", "resnet18", "file", "imagenet", "/data/r101.pth", "file"),
        ("caffe:/data/v:16.pth", "resnet18", "file", "caffe", "/data/v:16.pth", "caffe:file"),
        ("imagenet:a.pth", "resnet18", "file", "imagenet", "a.pth", "file"),
        ("lite0:a.pth", "tiny", "file", "lite0", "a.pth", "lite0:file"),
        ("odd:name.pth", "tiny", "file", "imagenet", "odd:name.pth", "file"),
        ("./resnet50", "resnet50", "file", "imagenet", "./resnet50", "file"),
        ("a.pth", "lite0", "file", "lite0", "a.pth", "file"),
        ("lite0:a.pth", "lite0", "file", "lite0", "a.pth", "file"),
        ("imagenet:a.pth", "lite0", "file", "imagenet", "a.pth", "imagenet:file"),
        ("a.pth", "timm:mixer_s32_224", "file", "half", "a.pth", "file"),
        ("none", "lite0", "none", "lite0", None, "none"),
        ("none", "timm:dpn68", "none", "dpn", None, "none"),
        ("imagenet:a.pth", "timm:dpn68", "file", "imagenet", "a.pth", "imagenet:file"),
    ],
)
def test_a_string_names_source_normalisation_and_no_path_in_the_address(
    text: str, network: str, kind: str, normalisation: str, path: str | None, semantic: str
) -> None:
    """A file has the normalisation of the network's ImageNet weights, unless it names another."""
    parsed = weights.parse(text)
    assert (parsed.kind, parsed.path) == (kind, None if path is None else Path(path))
    source = weights.resolve(text, network, "w", given="there.pth")
    assert (source.normalisation, source.semantic) == (normalisation, semantic)
    assert source.inputs == ({} if path is None else {"weights": Path("there.pth")})
    again = weights.resolve(source.semantic, network, "w", given="there.pth")
    assert again == weights.resolve(text, network, "w", given="there.pth"), "the fit sees this string alone"


def test_a_mean_without_a_name_is_refused_only_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.timm_backbone.normalisation_of", lambda _network: None)
    for text, normalisation, semantic in (("none", "imagenet", "none"), ("half:a.pth", "half", "half:file")):
        source = weights.resolve(text, "timm:resnet18", "w", given="there.pth")
        assert (source.normalisation, source.semantic) == (normalisation, semantic)
    (tmp_path / "a.pth").touch()
    message = r"params\.x\.weights '.*a\.pth' with network 'timm:resnet18': mean .* params\.x\.weights=imagenet:FILE"
    with pytest.raises(WeightsError, match=message):
        weights.resolve(str(tmp_path / "a.pth"), "timm:resnet18", "params.x.weights")


@pytest.mark.parametrize("text", ["", "  ", "caffe:"])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(WeightsError):
        weights.parse(text)


def test_presets_are_the_networks_normalisations() -> None:
    from models.normalise import NORMALISATIONS

    assert set(weights.PRESETS) == set(NORMALISATIONS)


def test_file_names_and_sizes_are_torchvisions() -> None:
    rows = [row for row in table.ROWS if row.origin == "torchvision"]
    assert {network for row in rows for network in row.networks} == {"largefov", "resnet18", "resnet50", "resnet101"}
    for row in rows:
        member = getattr(torchvision.models, row.enumeration).IMAGENET1K_V1
        assert member.url == table.URL + row.file
        assert row.bytes / 2**20 == pytest.approx(member.meta["_file_size"], abs=1e-3)
        assert row.file.endswith(f"-{row.sha256}.pth") and len(row.sha256) == 8


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
    source = weights.resolve("imagenet", "resnet101", "deeplab.weights")
    with pytest.raises(WeightsError) as caught:
        source.state()
    message = str(caught.value)
    assert "no route to host" in message
    assert table.URL + "resnet101-63fe2227.pth" in message
    assert str(tmp_path / "hub" / "checkpoints" / "resnet101-63fe2227.pth") in message
    assert "deeplab.weights=/path/to/resnet101-63fe2227.pth" in message


def test_a_download_to_come_is_said_once_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for _ in "12":
        weights.resolve("imagenet", "resnet50", "once.weights")
    (told,) = [record.getMessage() for record in caplog.records]
    for part in ("once.weights", "resnet50-0676ba61.pth (103 MB)", "`maskmill weights get resnet50`", str(tmp_path)):
        assert part in told


def test_the_hub_file_is_used_where_torchvision_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (row,) = [row for row in table.ROWS if row.name == "resnet18"]
    path = hub_file(row)
    assert path == Path(torch.hub.get_dir()) / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save(resnet18, path)
    with pytest.raises(
        WeightsError, match=r"resnet18-f37072fd\.pth is not the file.*expected f37072fd; .*get resnet18`.* w=FILE"
    ):
        weights.resolve("imagenet", "resnet18", "w")
    monkeypatch.setattr(
        table, "ROWS", (dataclasses.replace(row, sha256=hashlib.sha256(path.read_bytes()).hexdigest()[:8]),)
    )
    for name in ("imagenet", "resnet18"):
        source = weights.resolve(name, "resnet18", "w")
        assert (source.semantic, source.normalisation, source.inputs) == ("imagenet", "imagenet", {})
        assert torch.equal(source.state()["conv1.weight"], resnet18["conv1.weight"])
