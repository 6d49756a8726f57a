"""Is the registry the only list of flows, and is one line enough for a flow of one's own?"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flow_runs import ROOT, Done, maskmill
from flow_servers import SLOW

from flows.registry import FLOWS, PLUG_INS, SHIPPED, FlowEntry

WriteConfig = Callable[..., Path]
PICTURES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def shipped_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLUG_INS, raising=False)


def in_a_process(*arguments: str) -> Done:
    """The command as a user runs it, with the flow ``slow`` in its environment."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, PLUG_INS: SLOW, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Done(Path(), done.returncode, done.stdout, done.stderr)


def test_a_flow_of_ones_own_is_a_command(write_config: WriteConfig) -> None:
    output = in_a_process("--help").printed
    assert " slow Sleeps." in output and " cfs " in output
    done = in_a_process("slow", "--quiet", "--config", str(write_config("mine", PICTURES, workers=0)))
    assert (done.code, "computed: sleepy 3" in done.printed) == (0, True), done.printed


def test_it_is_known_wherever_flows_are_named(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLUG_INS, SLOW)
    config = str(write_config("mine", PICTURES, workers=0))
    given = ("--quiet", "--workers", "0", "--out", str(tmp_path / "out"))
    done = maskmill(tmp_path, "compare", "slow", "--config", config, *given, "--variant", "as it is:", "--dry-run")
    assert (done.code, "sleepy 3" in done.printed) == (0, True), done.printed
    there = ", ".join([*(entry.name for entry in SHIPPED), "slow"])
    for wrong, message in (
        (("cfs", "--config", config), "this is for the flow 'slow': run `maskmill slow` instead of `maskmill cfs`"),
        (("compare", "csf", "--config", config), f"no flow 'csf'; there are {there}"),
        (("slow", "--config", config, "--set", "flow=odd"), f"no flow 'odd'; there are {there}"),
    ):
        done = maskmill(tmp_path, *wrong)
        assert (done.code, message in done.printed) == (2, True), done.printed


def test_without_the_variable_there_are_the_shipped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUG_INS, SLOW)
    assert list(FLOWS) == [*(entry.name for entry in SHIPPED), "slow"]
    assert FLOWS["slow"].entrypoint == "slow_flow:slow" and FLOWS["slow"].demos == {}
    monkeypatch.delenv(PLUG_INS)
    assert list(FLOWS) == [entry.name for entry in SHIPPED] and "slow" not in FLOWS


AGAIN = FlowEntry("cfs", "slow_flow", "SlowParams", "Another.", (), "none")
SCORE = FlowEntry("score", "slow_flow", "SlowParams", "A command's name.", (), "none")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:ENTRY", "MASKMILL_FLOWS=no_such_module:ENTRY: No module named 'no_such_module'"),
        ("slow_flow:ENTRIES", "MASKMILL_FLOWS=slow_flow:ENTRIES: module 'slow_flow' has no attribute 'ENTRIES'"),
        ("slow_flow", "MASKMILL_FLOWS=slow_flow: expected MODULE:ENTRY"),
        ("slow_flow:SlowParams", "names a FlowEntry"),
        (f"{SLOW},{SLOW}", "there is a flow 'slow' already"),
        (f"{__name__}:AGAIN", "there is a flow 'cfs' already"),
        (f"{__name__}:SCORE", "the flow 'score' cannot be run: a command of maskmill has this name"),
    ],
)
def test_a_wrong_plug_in_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv(PLUG_INS, value)
    done = maskmill(Path(), "score")
    assert (done.code, message in done.printed) == (2, True), done.printed


def test_the_registry_is_the_only_list() -> None:
    """A string that is a flow's name stands in its page and in the registry; elsewhere it would be another list."""
    names = {entry.name for entry in SHIPPED}
    own = {ROOT / f"{entry.module.replace('.', '/')}.py" for entry in SHIPPED}
    benchmarks = [ROOT / "benchmarks" / f"{name}.py" for name in ("claims", "claim_table", "claim_rows", "soak_kill")]
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*(ROOT / "flows").rglob("*.py"), *benchmarks]
        if path not in {*own, ROOT / "flows" / "registry.py"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == set()
