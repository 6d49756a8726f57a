"""`maskmill doctor`: a line for each check, a fix for each problem, and the exit code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.cache import file_system
from flows.cli import doctor
from flows.cli.main import main

NAMES = ["compiled parts", "GPU", "weights", "Prefect server", "engines"]


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.server.environment.api_configured", lambda: False)


def test_all_is_well_and_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    checks: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in checks[-5:]] == NAMES and len(checks) == len(lines)


def test_a_problem_has_its_fix_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_system, "LEAST_BYTES", 1 << 62)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["doctor", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.count("problem ") == out.count("fix: ") == 2 and "pip install -e ." in out


def test_a_server_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    prefect = pytest.importorskip("prefect.settings")
    monkeypatch.setattr("flows.server.environment.api_configured", lambda: True)
    with prefect.temporary_settings({prefect.PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        check = doctor._prefect()
    assert not check.ok and "http://127.0.0.1:9/api does not answer" in check.found and "unset" in check.fix
