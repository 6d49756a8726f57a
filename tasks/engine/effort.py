"""How much work a stage is, so that the seconds of an earlier run foretell those of the next, or nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from artifacts import keys
from tasks.engine.options import RunParams
from tasks.stage import FitStage, MapStage

SCALED = {"iterations": 1, "batch": 1, "crop": 2}
"""Params of a fit with which its time grows, and by which power."""
FREE = frozenset({"epochs", "lr", "momentum", "betas", "weight_decay", "seed", "optimizer"})
"""Params of a fit that change what it learns, not how long it takes (``epochs`` count as iterations)."""


class Effort(NamedTuple):
    """``amount`` of work (images, or pixels that a fit sees), comparable where ``like`` is the same."""

    like: str
    amount: float


def of_map(stage: MapStage, options: RunParams, images: int, dataset: str) -> Effort:
    """An image costs what one of its data set (of its size) cost before, if the params are the same and the machine is
    used in the same way.
    """
    how: list[int | str] = [options.worker_count, options.device if stage.uses_torch else "cpu"]
    how += [options.engine] if options.engine != "local" else []
    return Effort(keys.digest([stage.name, stage.version, stage.params, dataset, how]), images)


def of_fit(stage: FitStage, options: RunParams, samples: int) -> Effort:
    """A fit costs as many samples of their size as it sees, if the network and all else are the same."""
    amount = 1.0

    def rest(value: Any) -> Any:
        """``value`` without what is scaled or free."""
        nonlocal amount
        if not isinstance(value, Mapping):
            return value
        for name, power in SCALED.items():
            number = value.get(name)
            if isinstance(number, (int, float)) and not isinstance(number, bool) and number > 0:
                amount *= float(number) ** power
        return {name: rest(item) for name, item in value.items() if name not in SCALED and name not in FREE}

    params = keys.canonical(stage.params)
    left = rest(params)
    if isinstance(params, Mapping) and not params.get("iterations") and "epochs" in params:
        # An epoch sees every sample once, in batches: iterations x batch.
        amount *= params["epochs"] * max(1, samples) / max(1, params.get("batch", 1))
    how = [options.device, options.devices, options.thread_count, options.loader_workers]
    return Effort(keys.digest([stage.name, stage.version, left, how]), amount)
