"""Is a wrong configuration refused before any work, with a message that says where and what to do?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from flows.config import (
    ConfigError,
    Layer,
    as_yaml,
    build,
    merge,
    packaged,
    parse_set,
    parse_yaml,
    place_of,
    read_config,
    read_layers,
)
from tasks.stage import PARAMS_CONFIG

ALIAS_BOMB = "params: {a: &a [x, x, x, x, x, x, x, x, x], " + ", ".join(
    f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ALIAS_BOMB += "}\n"


@dataclass(frozen=True)
class Inner:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    rate: float = field(default=0.5, metadata={"help": "how fast"})
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Params:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    steps: int = 3
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")


def built(text: str, *sets: str) -> Params:
    merged, layers = merge([parse_yaml(text, "my.yaml"), parse_set(sets)])
    return build(Params, "params", merged, layers)


def test_file_and_set_are_merged_key_by_key() -> None:
    params = built("params:\n  steps: 5\n  inner: {mode: b}\n", "params.inner.rate=2", "params.names=[x, 'y z']")
    assert params == Params(5, ("x", "y z"), Inner(2.0, "b"))


def test_a_mapping_that_is_set_joins_what_was_set_before() -> None:
    assert built("", "params.inner.rate=2", "params.inner={mode: b}", "params.inner={}").inner == Inner(2.0, "b")


def test_a_merged_mappings_own_keys_win_and_have_their_lines() -> None:
    text = "params:\n  a: {<<: &b {x: 1, y: 2}, y: 3}\n  c: {<<: *b, x: 4}\n  d: {<<: [*b, {z: 5}]}\n"
    layer = parse_yaml(text, "my.yaml")
    assert layer.values["params"] == {"a": {"x": 1, "y": 3}, "c": {"x": 4, "y": 2}, "d": {"x": 1, "y": 2, "z": 5}}
    assert layer.lines["params", "c", "x"] == 3
    with pytest.raises(ConfigError, match=r"params\.c\.x is given twice"):
        parse_yaml(text.replace("x: 4", "x: 4, x: 5"), "my.yaml")


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (
            "params:\n  inner:\n    rat: 1\n",
            (),
            r"my.yaml, line 3: params.inner.rat: no such parameter \(did you mean 'rate'\?\); there are rate, mode",
        ),
        ("params:\n  stepz: 1\n", (), r"my.yaml, line 2: params.stepz: no such parameter \(did you mean 'steps'"),
        ("params: {steps: many}\n", (), r"my.yaml, line 1: params.steps: .*integer.*got 'many'"),
        ("params: {inner: {mode: c}}\n", (), r"my.yaml, line 1: params.inner.mode: .*'a' or 'b'.*got 'c'"),
        ("params: {steps: 0}\n", (), r"steps=0 must be at least 1"),
        ("params: 7\n", (), r"my.yaml, line 1: params: "),
        ("", ("params.inner.rat=1",), r"--set: params.inner.rat: no such parameter"),
        ("", ("params.steps=x",), r"--set: params.steps"),
        ("parms: {}\n", (), r"my.yaml, line 1: unknown section 'parms' \(did you mean 'params'\?\)"),
        ("", ("parms.steps=1",), r"--set parms.steps=1: .*did you mean 'params'"),
        ("", ("params.steps",), r"expected NAME=VALUE"),
        ("params:\n  steps: 1\n  steps: 2\n", (), r"my.yaml, line 3: params.steps is given twice \(first in line 2\)"),
        ("params: {steps: 1\n", (), r"my.yaml, line 2: not YAML"),
        ("- 1\n", (), r"my.yaml: expected sections"),
        ("data: voc:/x\n", (), r'my.yaml, line 1: data: expected a mapping; write data: {source: "voc:/x"}'),
        ("", ("data=[1]",), r'--set: data: expected a mapping; write data: {source: "voc:PATH"}'),
        ("\noptions: [1]\n", (), r"my.yaml, line 2: options: expected a mapping, found list"),
        ("params:\n  steps: \x07\n", (), r"my.yaml, line 2: not YAML: the character '\\x07' is not allowed"),
        ("", ("params.steps=\x07",), r"--set params.steps=.*not YAML: the character '\\x07' is not allowed"),
        ("params: {steps: 2024-13-45}\n", (), r"my.yaml, line 1: params.steps: .*'2024-13-45'"),
        ("params: {steps: " + 6_000 * "9" + "}\n", (), r"my.yaml, line 1: not YAML: a number of 6,000 characters"),
        (ALIAS_BOMB, (), r"my.yaml, line 1: not YAML: its aliases stand for more than 200,000 values"),
        ("params: " + 60 * "[" + 60 * "]", (), r"my.yaml, line 1: not YAML: it is nested too deeply"),
        ("params: &p {inner: *p}\n", (), r"my.yaml, line 1: not YAML: it is nested too deeply, or within itself"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(text, *sets)


def test_words_that_yaml_1_1_takes_for_booleans_stay_words() -> None:
    assert built("params: {names: [off, on, yes, no, Off]}\n").names == ("off", "on", "yes", "no", "Off")
    assert parse_set(["params.crf=off"]).values == {"params": {"crf": "off"}}
    assert parse_set(["params.a=true", "params.b=False"]).values == {"params": {"a": True, "b": False}}


def test_a_file_that_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"params:\n  names: [\xff]\n")
    with pytest.raises(ConfigError, match=r"my.yaml, line 2: not UTF-8 text: byte 0xff"):
        read_config(str(tmp_path / "my.yaml"))


def test_a_long_wrong_value_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"params.steps: .*got \[1\]"):
        built("params: {steps: [1]}\n")
    with pytest.raises(ConfigError) as caught:
        built(f"params: {{steps: {list(range(100))}}}\n")
    assert "got" not in str(caught.value)


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        built("params:\n  stepz: 1\n  inner: {rate: x}\n")
    assert len(str(caught.value).splitlines()) == 2


def test_the_printed_configuration_reads_back_to_itself() -> None:
    params = Params(7, ("ü", "b: c"), Inner(1e-4, "b"))
    text = as_yaml("cfs", {"params": params})
    assert "# how fast" in text
    assert built(text) == params


def test_a_file_changes_its_base_and_errors_name_the_file_at_fault(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "own.yaml").write_text("base: photo\nparams: {deeplab: {epochs: 3}}\noptions: {workers: 2}\n")
    (tmp_path / "deep" / "nightly.yaml").write_text("base: ../own.yaml\noptions: {workers: 1, cache: c}\n")
    layers = read_layers(str(tmp_path / "deep" / "nightly.yaml"))
    merged, _ = merge(layers)
    photo = read_config("photo").values
    assert merged["flow"] == "cfs" and merged["options"] == {"workers": 1, "cache": "c"}
    assert merged["params"]["deeplab"] == photo["params"]["deeplab"] | {"epochs": 3}
    assert place_of(("params", "deeplab", "epochs"), layers) == f"{tmp_path}/own.yaml, line 2"
    assert place_of(("params", "deeplab", "crop"), layers).startswith("config photo, line ")

    (tmp_path / "deep" / "other.yaml").write_text("flow: cfs\nbase: ../missing.yaml\n")
    with pytest.raises(ConfigError, match=r"other.yaml, line 2: base: .*missing.yaml: No such file"):
        read_layers(str(tmp_path / "deep" / "other.yaml"))
    (tmp_path / "own.yaml").write_text("base: deep/nightly.yaml\n")
    with pytest.raises(ConfigError, match=r"own.yaml, line 1: base: .*cannot be its own base"):
        read_layers(str(tmp_path / "deep" / "nightly.yaml"))
    (tmp_path / "own.yaml").write_text("base: [photo]\n")
    with pytest.raises(ConfigError, match=r"own.yaml, line 1: base: expected the name"):
        read_layers(str(tmp_path / "own.yaml"))


def test_an_unknown_config_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a YAML file or one of .*demo"):
        read_config(str(tmp_path / "nothing.yaml"))
    assert "demo" in packaged()


def test_a_later_layer_wins_and_is_named_in_errors() -> None:
    layers = [parse_yaml("params: {steps: 1}", "my.yaml"), Layer({"params": {"steps": "x"}}, "command line", {})]
    merged, kept = merge(layers)
    with pytest.raises(ConfigError, match="^command line: params.steps"):
        build(Params, "params", merged, kept)
