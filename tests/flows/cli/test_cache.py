"""`maskmill cache` with fits in the cache: listed, checked, removed by the name that the list shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from artifacts.cache.fit_store import FitStore
from artifacts.cache.listing import resolve_all
from artifacts.cache.runs import RunFolder
from artifacts.cache.store import MaskStore
from flows.cli.main import main


def cache(root: Path, *arguments: str) -> int:
    return main(["cache", *arguments, "--cache", str(root)])


def test_a_fit_is_listed_verified_compacted_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FitStore(tmp_path)
    made = [store.publish("net-01", "ab", save({"w": np.ones(9)}), members=[], info={"label": "net"}) for _ in "12"]
    assert cache(tmp_path, "ls") == 0
    assert "net-01/ab" in capsys.readouterr().out
    assert cache(tmp_path, "verify") == 0
    assert "2 fits as published, 0 records as written, 0 problems" in capsys.readouterr().out
    data = made[0].weights.read_bytes()
    made[0].weights.write_bytes(data[:-1] + b"x")
    assert cache(tmp_path, "verify", "net") == 1
    output = capsys.readouterr().out
    assert "pub-0001/weights.safetensors : the tensors are not those that were published" in output
    assert cache(tmp_path, "compact") == 0
    assert "1 superseded publications and 0 abandoned checkpoints removed" in capsys.readouterr().out
    assert store.published("net-01", "ab") == made[1]
    assert cache(tmp_path, "rm", "net-01/ab", "--dry-run") == 0
    assert "would remove net-01/ab: 1 publications" in capsys.readouterr().out
    with store.lock("net-01", "ab"):
        assert cache(tmp_path, "rm", "net") == 1
    assert "net-01/ab is kept: a run is using it" in capsys.readouterr().out
    assert cache(tmp_path, "rm", "net") == 0
    assert store.published("net-01", "ab") is None


ONE, TWO, NET = (f"predict-student-attention-{digit * 32}" for digit in "abc")
FIT = "ab" * 16


def filled(root: Path) -> MaskStore:
    """Two stages of one name, a fit, a run."""
    store = MaskStore(root)
    for address in (ONE, TWO):
        store.write_segment(address, [("d/1", "s", {"mask_hw": np.ones((9, 9), np.uint8)})], meta={"stage": "x"})
    FitStore(root).publish(NET, FIT, save({"w": np.ones(9)}), members=[])
    run = RunFolder.create(root, "cfs")
    stage = {"label": "student", "address": ONE, "stamps": ""}
    scores = {"masks (train)": {"miou": 0.757}, "student (val)": {"miou": 0.5}, "grabcut (train)": {"miou": 0.1}}
    about = {"recipe": {"data": {"source": "voc:pets"}}, "predictions": {"student": "student"}, "scores": scores}
    run.write_manifest({"status": "finished", "seconds": 60.0, "stages": [stage], **about})
    return store


def test_at_80_columns_a_name_stands_on_one_line_and_names_what_it_stands_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert cache(tmp_path, "ls") == 0
    output = capsys.readouterr().out
    output = re.sub(r"\x1b\[[0-9;]*m", "", output)
    names = [word for line in output.splitlines() for word in line.split() if word.startswith("predict")]
    assert len(names) == 3 and all(len(line) <= 80 for line in output.splitlines() if not line.startswith("run"))
    assert [resolve_all(store, [name])[0] for name in sorted(names[:2])] == [[ONE], [TWO]]
    assert [fit.name for fit in resolve_all(store, names[2:])[1]] == [f"{NET}/{FIT}"]
    assert "done, 1 min 00 s, voc:pets, mIoU masks (train) 75.7, student (val) 50.0" in output, output


def test_whatever_is_listed_comes_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path)

    def printed(*arguments: str, code: int = 0) -> Any:
        assert cache(tmp_path, *arguments, "--json") == code
        return json.loads(capsys.readouterr().out)

    listed = printed("ls")
    assert sorted(stage["address"] for stage in listed["stages"]) == [ONE, TWO]
    assert (listed["fits"][0]["label"], listed["runs"][0]["data"]) == ("", "voc:pets")
    used = {stage["address"]: stage["used_by"] for stage in listed["stages"]}
    assert used == {ONE: [listed["runs"][0]["run"]], TWO: []}
    assert printed("show", ONE)["stages"][0]["entries"][0]["key"] == "d/1"
    assert printed("show", "student")["stages"][0]["info"]["address"] == ONE, "the label that a run gave it"
    assert printed("verify")["ok"] is True
    assert printed("compact")["segments"]["entries"] == 2
    assert printed("rm", "predict", "--dry-run")["fits"]["fits"] == [f"{NET}/{FIT}"]


def test_a_beginning_is_asked_about_before_anything_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    everything = store.addresses()
    for name in ("", " "):
        assert cache(tmp_path, "rm", name, "--yes") == 2
    assert cache(tmp_path, "rm", "predict") == 2
    captured = capsys.readouterr()
    assert f"would remove {ONE}" in captured.out and "used by" in captured.out
    assert "nothing was removed: give whole names, or --yes" in captured.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    assert cache(tmp_path, "rm", "predict") == 2
    assert store.addresses() == everything and FitStore(tmp_path).published(NET, FIT)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert cache(tmp_path, "rm", ONE) == 0, "a whole name is not asked about"
    assert store.addresses() == [TWO]
    assert cache(tmp_path, "rm", "predict") == 0
    assert store.addresses() == [] and FitStore(tmp_path).published(NET, FIT) is None


def test_an_empty_argument_is_a_variable_that_is_not_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("cache", "ls", "--cache", ""), ("cache", "ls", "--cache="), ("export", "--to", "")):
        assert main(arguments) == 2
        assert "is empty" in capsys.readouterr().err
