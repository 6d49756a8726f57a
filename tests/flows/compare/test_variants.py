"""Are variants, seeds and times that cannot be meant refused before any work, and the others understood?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flows.cfs import CFSFlowParams
from flows.compare.trials import slug
from flows.compare.variants import (
    Variant,
    build_variants,
    parse_budget,
    parse_seeds,
    parse_variant,
    read_variants,
    seed_paths,
    with_seed,
    without_seeds,
)
from flows.config import ConfigError
from tasks.cfs.stages import CFSParams
from tasks.deeplab.stages import DeepLabParams


def build(*texts: str, **more: Any) -> list[Variant]:
    return build_variants("cfs", [parse_variant(text) for text in texts], (0,), data=None, config="demo-tiny", **more)


def test_a_variant_is_the_shared_configuration_and_what_it_sets() -> None:
    base, other = build(
        "as it is:",
        "two: deeplab.iterations=7 params.deeplab.test.scales='[0.5, 1.0]'",
        sets=["params.deeplab.lr=0.5"],
    )
    assert base.name == "as it is" and base.settings == () and base.params.deeplab.iterations == 20
    assert other.name == "two" and other.settings == ("deeplab.iterations=7", "deeplab.test.scales=[0.5, 1.0]")
    assert (other.params.deeplab.iterations, other.params.deeplab.test.scales) == (7, (0.5, 1.0))
    assert base.params.deeplab.lr == other.params.deeplab.lr == 0.5


def test_a_nested_value_sets_its_leaves_and_leaves_the_rest_as_all_have_it() -> None:
    (one,) = build("a: 'deeplab={iterations: 7, test: {scales: [0.5, 1]}}'", sets=["params.deeplab.lr=0.5"])
    assert one.settings == ("deeplab.iterations=7", "deeplab.test.scales=[0.5, 1]")
    assert (one.params.deeplab.iterations, one.params.deeplab.test.scales) == (7, (0.5, 1.0))
    assert one.params.deeplab.lr == 0.5


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "no variants"),
        (["proposals=box"], 'expected "NAME: KEY=VALUE'),
        ([": proposals=box"], 'expected "NAME: KEY=VALUE'),
        (["a: 'open"], "No closing quotation"),
        (["a: proposals=box", "a: proposals=grabcut"], "two variants are called 'a'"),
        (["a: proposals=box", "b: proposals=box deeplab.iterations=20"], "'a' and 'b' are the same configuration"),
        (["a: porposals=box"], r"variant 'a': params.porposals: no such parameter \(did you mean 'proposals'"),
        (["a: deeplab.iteration=5"], "did you mean 'iterations'"),
        (["a: proposals=bx"], "variant 'a': params.proposals: Input should be"),
        (["a: proposals"], "expected KEY=VALUE"),
        (["a: proposals=box params.proposals=box"], "variant 'a': proposals is given twice"),
        (["a: deeplab.seed=3"], "seeds are given by --seeds"),
        (["a: data.source=demo"], "share data and options"),
        (["a: 'deeplab={seed: 4}'"], r"variant 'a': deeplab\.seed: seeds are given by --seeds"),
        (["a: 'params={deeplab: {seed: 4}}'"], "seeds are given by --seeds"),
        (["a: 'deeplab.seed =4'"], "seeds are given by --seeds"),
        (["a: 'data={source: demo}'"], "share data and options"),
        (["a: 'deeplab={iterations: 4}' deeplab.iterations=5"], "variant 'a': deeplab.iterations is given twice"),
        (["a: deeplab.iterations=5 'deeplab={}'"], "variant 'a': deeplab is given twice"),
        (["a: 'deeplab={iterations: 4, iterations: 5}'"], "iterations is given twice"),
        (["a: 'deeplab={iterations: 4'"], r"variant 'a': 'deeplab={iterations: 4', line 1: not YAML"),
        (["a: 'proposals={}'"], "variant 'a': params.proposals: Input should be"),
    ],
)
def test_what_cannot_be_meant_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(*texts)


def test_a_fault_that_all_share_is_not_put_on_a_variant() -> None:
    with pytest.raises(ConfigError, match=r"^--set: params.porposals"):
        build("a: proposals=box", sets=["params.porposals=box"])


def test_a_file_of_variants_nested_or_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(
        "base:\nbox: {proposals: box, crf: off}\n"
        "'small, fast': {deeplab: {test: {scales: [0.5, 1]}}, deeplab.lr: 1.0e-3}\n"
    )
    found = read_variants(path)
    assert found == [
        ("base", ()),
        ("box", ("proposals=box", "crf='off'")),
        ("small, fast", ("deeplab.test.scales=[0.5, 1]", "deeplab.lr=0.001")),
    ]
    built = build_variants("cfs", found, (0,), data=None, config="demo-tiny")
    assert built[1].params.crf == "off" and built[2].params.deeplab.test.scales == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {proposals: box}\nb: {}\na: {}\n", r"v.yaml, line 3: a is given twice \(first in line 1\)"),
        ("a: {proposals: box, proposals: grabcut}\n", "a.proposals is given twice"),
        ("a: [1, 2\n", "v.yaml, line 2: not YAML"),
        ("- a\n", "expected NAME: {KEY: VALUE}"),
        ("", "expected NAME: {KEY: VALUE}"),
        ("a: 3\n", "variant 'a': expected {KEY: VALUE}, found 3"),
    ],
)
def test_a_file_that_is_none_says_where(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_variants(tmp_path / "v.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml"):
        read_variants(tmp_path / "none.yaml")


def test_a_seed_goes_where_it_is_sent_and_nowhere_else() -> None:
    params = CFSFlowParams()
    found = with_seed(params, 7, [("deeplab", "seed")])
    assert found.deeplab.seed == 7 and found.grabcut.seed == params.grabcut.seed == 0
    assert dataclasses.replace(found, deeplab=params.deeplab) == params
    assert with_seed(params, 7, []) == params


def test_seeds_are_found_however_deep() -> None:
    @dataclasses.dataclass(frozen=True)
    class Outer:
        seed: int = 4
        both: tuple[int, ...] = ()
        cfs: CFSParams = dataclasses.field(default_factory=CFSParams)
        flow: CFSFlowParams = dataclasses.field(default_factory=CFSFlowParams)

    paths = seed_paths(Outer())
    assert {("seed",), ("cfs", "seed"), ("flow", "deeplab", "seed"), ("flow", "grabcut", "seed")} <= set(paths)
    found = with_seed(Outer(), 5, paths)
    assert found.seed == found.cfs.seed == found.flow.deeplab.seed == found.flow.grabcut.seed == 5


def test_params_without_seeds_are_the_same_for_all_seeds() -> None:
    one, two = (with_seed(CFSFlowParams(), seed, [("deeplab", "seed")]) for seed in (1, 2))
    plain = without_seeds(dataclasses.asdict(one))
    assert plain == without_seeds(dataclasses.asdict(two)) and "iterations" in plain["deeplab"]
    assert plain != without_seeds(dataclasses.asdict(CFSFlowParams(deeplab=DeepLabParams(iterations=3))))


@pytest.mark.parametrize(("text", "seeds"), [("0", (0,)), ("0,1,2", (0, 1, 2)), (" 7, 3", (7, 3))])
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "0..2", "1.5"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("90", 90), ("2h", 7200), ("1m5s", 65), ("0", 0)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "m", "30 min", "-5m", "1.5h", "1h30", "1m5"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        parse_budget(text)


def test_folders_of_variants_are_plain_and_their_own() -> None:
    names = ["box", "GrabCut & more", "GrabCut + more", "a/b", "a b", "..", "ü", "é"]
    slugs = [slug(name) for name in names]
    assert slugs[0] == "box" and len(set(slugs)) == len(names)
    assert all(one and "/" not in one and not one.startswith(".") for one in slugs)
