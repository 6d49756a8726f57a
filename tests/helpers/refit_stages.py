"""A chain of fits that cost nothing: a network is one number, and what it makes of a picture depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from safetensors.numpy import load_file

from artifacts.records import RecordSet
from tasks.engine.runner import Runner
from tasks.stage import Arrays, FitStage, Item, MapStage, image_of

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.training.fit_process import FitContext


@dataclass(frozen=True)
class Nothing:
    """No parameters."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


FAIL: list[str] = []
"""Labels of fits that fail."""


def learn(context: FitContext) -> dict[str, Tensor]:
    """The sum of all that the pictures (or their shades) and the network before hold."""
    import torch

    if context.label in FAIL:
        raise RuntimeError("as if it were killed")
    start = load_file(context.init)["level"] if context.init else np.zeros(1)
    items = list(context.train.items())
    seen = sum(int((item.up["shade"]["mask_hw"] if item.up else image_of(item)).sum()) for item in items)
    return {"level": torch.tensor(start + seen, dtype=torch.float64)}


def shade_item(item: Item, params: Nothing) -> Arrays:
    """The picture's brightness on top of the network's number: as many values as pixels."""
    level = int(load_file(item.nets["net"])["level"][0])
    return {"mask_hw": ((image_of(item).mean(2).astype(np.int64) + level) % 251).astype(np.uint8)}


FIRST = FitStage("first", 1, Nothing(), ("image",), "refit_stages:learn")
SECOND = replace(FIRST, name="second")
THIRD = replace(FIRST, name="third")
SHADE = MapStage("shade", 1, Nothing(), ("image",), ("mask_hw",), "refit_stages:shade_item")
LABELS = ("first", "shade", "second", "shaded", "third")


def page(run: Runner, records: RecordSet) -> None:
    """A network, what it makes of the pictures, a second one that starts from it and learns that, what it makes.

    A third one learns that, and starts from none.
    """
    first = run.fit(FIRST, records)
    shade = run.map(SHADE, records, net=first)
    second = run.fit(SECOND, records, init=first, shade=shade)
    shaded = run.map(SHADE, records, label="shaded", net=second)
    run.fit(THIRD, records, shade=shaded)


def computed(reports: Any) -> Mapping[str, int]:
    """Label -> images or fits that were worked on."""
    return {report.label: report.computed for report in reports}
