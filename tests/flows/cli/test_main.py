"""Are wrong arguments distinguished from failures, and do help and plan fit a terminal?"""

from __future__ import annotations

import io
import logging
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from flows.cli import console as show
from flows.cli.main import _Once, main
from flows.run_flow import Plan
from tasks.engine.stage_report import StageReport


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "--data", "demo-tiny"), "no run here yet"),
        (("score", "--split", "train"), "--split needs --masks"),
        (("score", "--masks", "m", "--data", "demo-tiny", "--run", "latest"), "give one or the other"),
        (("score", "--masks", "m", "--data", "demo-tiny", "--stage", "student"), "give one or the other"),
        (("cache", "show", "x", "--key", "set/1"), "--key and --out go together"),
        (("cache", "show", "x", "--out", "x.png"), "--key and --out go together"),
        (("cache", "show", "x"), "no address begins with 'x'"),
        (("cache", "verify", "x"), "no address begins with 'x'"),
        (("cache", "compact", "x", "y"), "no address begins with 'x'"),
        (("cache", "rm", "x", "y"), "no address begins with 'x'"),
        (("cfs", "--data", "demo-tiny", "--out", "FILE"), "FILE is a file; name a folder"),
    ],
)
def test_wrong_usage_has_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    (tmp_path / "maskmill-cache").mkdir()
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_the_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.strip() == project["version"]


def test_help_keeps_what_looks_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--help"]) == 0
    assert "<image id>.png" in capsys.readouterr().out


def test_gpu_is_a_name_of_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cfs", "--device", "gpu", "--show-config"]) == 0
    assert "device: cuda" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.run_flow.read_sets", lambda *_: pytest.fail("the work began"))
    assert main(["cfs", "--data", "demo-tiny", "--out", "/proc/none/out"]) == 2
    assert "--out /proc/none/out: nothing can be written in /proc" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--to", "PLACE", "--cache", "none"],
        ["compare", "cfs", "--out", "PLACE", "--variant", "a: proposals=box"],
        ["attention", "--out", "PLACE/a.png", "--image", "a", "--at", "1,1", "--cache", "none"],
        ["score", "--json", "PLACE/a.json", "--cache", "none"],
        ["cache", "show", "a", "--key", "a/b", "--out", "PLACE/a.png", "--cache", "none"],
        ["cam", "a.jpg", "--class", "dog", "--out", "PLACE/a.png", "--cache", "none"],
        ["crf", "--image", "a.png", "--labels", "b.png", "--out", "PLACE/a.png"],
        ["edges", "a.png", "--network", "canny", "--out", "PLACE/a.png"],
        ["scribbles", "--from", "folder:set", "--out", "PLACE"],
    ],
)
def test_every_command_asks_before_its_work_whether_its_results_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "set/images/a.png", "set/masks/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 1).save(tmp_path / name)
    (tmp_path / "set/classes.txt").write_text("cat\n")
    (tmp_path / "file").write_text("")
    for place, words in (("/proc/none/out", "nothing can be written in /proc"), ("file/out", "file is no folder")):
        assert main([argument.replace("PLACE", place) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said


def test_a_warning_is_shown_once_and_by_an_iso_date() -> None:
    shown = _Once()
    _Once.seen.clear()
    records = [logging.LogRecord("maskmill", level, "", 0, "m %d", (1,), None) for level in (30, 30, 20, 20, 40, 40)]
    assert [shown.filter(record) for record in records] == [True, False, True, True, True, True]


def test_an_exception_of_nobodys_says_where_it_was_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.cli.main.add_flows", lambda: {}["gone"])
    assert main(["cfs"]) == 1
    assert "KeyError at" in capsys.readouterr().err and __file__.endswith("test_main.py")


def test_a_word_that_yaml_1_1_takes_for_a_boolean_needs_no_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cfs", "--set", "params.crf=off", "--show-config"]) == 0
    assert "crf: 'off'" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("cfs",), ("cache", "rm"), ("cache", "verify"), ("cache", "compact")])
def test_help_shows_no_option_that_nobody_wants(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert main([*arguments, "--help"]) == 0
    output = capsys.readouterr().out
    assert "--empty" not in output and "--names" not in output
    assert "130 and 143" in " ".join(output.split())


@pytest.mark.parametrize(("width", "address"), [(80, False), (120, True)])
def test_the_plan_fits_its_terminal(width: int, address: bool) -> None:
    stages = (
        StageReport("grabcut", "map", "grabcut-0123456789ab", 10582, cached=10000),
        StageReport("predict-student-attention", "map", "predict-0123456789ab", 1449, unknown=1449),
    )
    console = Console(file=io.StringIO(), width=width)
    show.plan(Plan("cfs", stages, {"grabcut": 4000.0}, ("a [b] c",)), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    output = "\n".join(lines)
    row = next(line for line in lines if "predict-student-attention" in line)
    assert row.split()[:5] == ["predict-student-attention", "map", "0", "0", "1449"]
    assert ("0123456789ab" in row) == address
    assert "not run yet" in row
    assert "waits: depends on upstream" in output and "warning: a [b] c" in output
