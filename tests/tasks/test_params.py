"""Every params class in one table: each number has bounds and keeps them, each field has help."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import types
import typing
from typing import Any, Literal

import pytest

import tasks
from tasks.bounds import bounded
from tasks.bpg import stages as bpg
from tasks.cfs import stages as cfs
from tasks.deeplab import stages as deeplab
from tasks.lpg import stages as lpg
from tasks.stage import PARAMS_CONFIG, stage_address

EXAMPLES: dict[type, Any] = {
    deeplab.PredictParams: deeplab.predict(deeplab.DEMO).params,
    bpg.BPGPredictParams: bpg.predict(bpg.DEMO).params,
    lpg.GeneratorNet: lpg.GeneratorNet("hourglass"),
    lpg.GenerateStageParams: lpg.GenerateStageParams(network="hourglass", width=16),
}
"""Of the classes that cannot be made without arguments."""


def params_classes() -> list[type]:
    """All params classes of ``tasks``, :class:`RunParams` among them."""
    found: dict[type, None] = {}
    for module in pkgutil.walk_packages(tasks.__path__, "tasks."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "__pydantic_config__"):
                found[value] = None
    return sorted(found, key=lambda cls: cls.__name__)


def kinds(hint: Any) -> set[type]:
    """The plain types in a hint."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return set().union(*(kinds(part) for part in typing.get_args(hint)))
    return {hint} if isinstance(hint, type) else set()


def numbers() -> list[tuple[type, str]]:
    """Class and name of every number that has a default; those without are copies of checked ones."""
    return [
        (cls, field.name)
        for cls in params_classes()
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING and kinds(typing.get_type_hints(cls)[field.name]) & {int, float}
    ]


def test_the_table_is_whole() -> None:
    names = {cls.__name__ for cls in params_classes()}
    assert {"TrainParams", "DeepLabParams", "TestTimeParams", "LGSAParams", "CFSParams"} <= names
    assert {"GrabCutParams", "RefineParams", "CRFParams", "PredictParams"} <= names
    assert len(numbers()) > 60
    # flows add to it what Prefect's form shows
    assert all(PARAMS_CONFIG.items() <= cls.__pydantic_config__.items() for cls in params_classes())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("cls", "name"), numbers(), ids=lambda value: getattr(value, "__name__", value))
def test_a_number_outside_its_bounds_is_refused_by_name(cls: Any, name: str) -> None:
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    low, high = field.metadata["bounds"]
    example = EXAMPLES.get(cls) or cls()
    for wrong in (low - 1, high * 2 + 1, math.nan):
        value = getattr(example, name)
        tuples = (
            [tuple(wrong if i == j else one for j, one in enumerate(value)) for i in range(len(value))]
            if (isinstance(value, tuple))
            else [wrong]
        )
        for given in tuples:
            with pytest.raises(ValueError, match=rf"\.{name} must be "):
                dataclasses.replace(example, **{name: given})


@pytest.mark.parametrize("cls", params_classes(), ids=lambda cls: cls.__name__)
def test_every_field_that_a_user_sets_has_help(cls: Any) -> None:
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if not required:
        shown = [f for f in dataclasses.fields(cls) if not f.metadata.get("when_set")]
        assert [f.name for f in shown if not f.metadata.get("help")] == []


@dataclasses.dataclass(frozen=True)
class Sample:
    count: int = dataclasses.field(default=2, metadata={"bounds": (1, 10_000_000)})
    maybe: float | None = dataclasses.field(default=None, metadata={"bounds": (0.0, 1.0)})
    pair: tuple[float, ...] = dataclasses.field(default=(), metadata={"bounds": (0.5, 1.0)})
    free: int = -5
    word: Literal["a"] = "a"

    def __post_init__(self) -> None:
        bounded(self, "sample")


def test_both_bounds_are_allowed_and_nothing_is_no_number() -> None:
    Sample(count=1), Sample(count=10_000_000), Sample(maybe=0.0), Sample(maybe=1.0), Sample(pair=(0.5, 1.0, 0.7))
    for wrong, message in (
        ({"count": 0}, r"^sample\.count must be 1\.\.10000000, not 0$"),
        ({"maybe": math.nan}, r"^sample\.maybe must be 0\.\.1, not nan$"),
        ({"pair": (0.5, 2.0)}, r"^each of sample\.pair must be 0\.5\.\.1, not \(0\.5, 2\.0\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            Sample(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "change", "same"),
    [
        (deeplab.DEMO, {"epochs": 3}, True),  # iterations are given
        (deeplab.DEMO, {"momentum": 0.5}, True),  # AdamW has none
        (deeplab.DEMO, {"betas": (0.5, 0.9)}, False),
        (deeplab.VOC_RESNET101, {"momentum": 0.5}, False),
        (deeplab.VOC_RESNET101, {"betas": (0.5, 0.9)}, True),
        (dataclasses.replace(deeplab.DEMO, iterations=0), {"epochs": 3}, False),
        (cfs.DEMO, {"epochs": 3}, False),  # they decide the learning rate's decay
    ],
)
def test_a_value_without_effect_makes_no_fit_stale(params: Any, change: dict[str, Any], same: bool) -> None:
    changed = dataclasses.replace(params, **change)
    assert (params.semantic() == changed.semantic()) == same
    describe = cfs.fit if isinstance(params, cfs.CFSParams) else deeplab.fit
    assert (stage_address(describe(params), ("a",), {}) == stage_address(describe(changed), ("a",), {})) == same
