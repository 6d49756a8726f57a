"""Codec: what comes back is what went in, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.cache.codec import from_plain, to_plain, type_name, type_named
from artifacts.records import Box, MaskRef, Record, Scribble


@dataclass(frozen=True)
class Inner:
    scales: tuple[float, ...] = (1.0,)
    mode: Literal["mean", "max"] = "mean"


@dataclass(frozen=True)
class Outer:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    count: int
    path: Path
    inner: Inner = field(default_factory=Inner)
    pair: tuple[int, str] = (1, "a")
    names: list[str] = field(default_factory=list)
    table: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    maybe: Inner | None = None
    anything: Any = None


numbers = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, st.lists(numbers, max_size=3).map(tuple), st.sampled_from(["mean", "max"]))
outers = st.builds(
    Outer,
    count=st.integers(),
    path=st.text("ab/é", min_size=1).map(Path),
    inner=inners,
    pair=st.tuples(st.integers(), st.text()),
    names=st.lists(st.text(), max_size=3),
    table=st.dictionaries(st.text(), st.lists(numbers, max_size=2).map(tuple), max_size=3),
    maybe=st.none() | inners,
    anything=st.none() | st.booleans() | st.integers() | st.text(),
)


@given(outers)
@settings(max_examples=60, deadline=None)
def test_round_trip_through_json_text(value: Outer) -> None:
    assert from_plain(Outer, json.loads(json.dumps(to_plain(value)))) == value


def test_records_come_back_whole() -> None:
    record = Record(
        image_id="a b/é",
        image="/x/ä b.jpg",
        size_hw=(3, 4),
        tags=(1, 2),
        boxes=(Box(0, 1, -1.5, 0, 3, 4, difficult=True), Box(1, 2, 0, 0, 1, 1)),
        scribbles=(Scribble(1, ((0.5, 1.0), (2.0, 3.0))),),
        truth=MaskRef("m:f", "/t.png", "x"),
    )
    assert from_plain(Record, json.loads(json.dumps(to_plain(record)))) == record
    empty = Record("a", "a.jpg", boxes=())
    assert from_plain(Record, to_plain(empty)).boxes == ()  # not None: "looked at, holds no object"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cout": 1}, r"spec: unknown cout; Outer has anything, count"),
        ({"count": "3"}, r"spec.count: expected int, not str '3'"),
        ({"count": True}, r"spec.count: expected int, not bool"),
        ({"count": 1.0}, r"spec.count: expected int, not float"),
        ({"inner": {"scales": [1, "x"]}}, r"spec.inner.scales\[1\]: expected float, not str 'x'"),
        ({"inner": {"mode": "median"}}, r"spec.inner.mode: expected .*'mean', 'max'.* not str 'median'"),
        ({"inner": {"scale": [1]}}, r"spec.inner: unknown scale"),
        ({"pair": [1, "a", 2]}, r"spec.pair: expected tuple\[int, str\]"),
        ({"names": "abc"}, r"spec.names: expected list\[str\], not str"),
        ({"table": []}, r"spec.table: expected .*Mapping"),
        ({"maybe": 3}, r"spec.maybe: expected Inner, not int"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(Outer, {"count": 1, "path": "p", **change}, "spec")


def test_missing_fields_are_named() -> None:
    with pytest.raises(ValueError, match="spec: Outer lacks count, path"):
        from_plain(Outer, {}, "spec")


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    value = from_plain(Inner, {"scales": [1, 2]})
    assert value.scales == (1.0, 2.0)
    assert all(type(scale) is float for scale in value.scales)


def test_classes_by_name() -> None:
    assert type_named(type_name(Record)) is Record
    with pytest.raises(ValueError, match=r"no class 'artifacts.records:Recrod'.*written as module:Class"):
        type_named("artifacts.records:Recrod")


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="set has no plain form"):
        to_plain({"a": {1, 2}})
