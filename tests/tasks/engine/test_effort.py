"""Is an estimate scaled by what changed, and not made where something else did?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tasks import grabcut
from tasks.cfs import stages as cfs
from tasks.deeplab import stages as deeplab
from tasks.engine import effort
from tasks.engine.options import RunParams

OPTIONS = RunParams(workers=2, device="cpu")
BASE = deeplab.DeepLabParams(network="tiny", weights="none", iterations=100, batch=4, crop=40)


def of(options: RunParams = OPTIONS, **changed: Any) -> effort.Effort:
    return effort.of_fit(deeplab.fit(dataclasses.replace(BASE, **changed)), options, 50)


@pytest.mark.parametrize(
    ("changed", "factor"),
    [
        ({}, 1),
        ({"iterations": 3000}, 30),
        ({"batch": 8}, 2),
        ({"crop": 80}, 4),
        ({"iterations": 50, "crop": 20}, 1 / 8),
        ({"lr": 0.1, "seed": 7, "weight_decay": 0.0}, 1),
        ({"iterations": 0, "epochs": 16}, 2),
    ],
)
def test_a_fit_is_scaled_by_what_it_sees(changed: dict[str, Any], factor: float) -> None:
    """16 epochs of 50 samples are 800 samples: twice 100 batches of 4."""
    before, now = of(), of(**changed)
    assert now.like == before.like
    assert now.amount == pytest.approx(factor * before.amount)


@pytest.mark.parametrize("changed", [{"network": "resnet18"}, {"loss_at": "output"}, {"precision": "bf16"}])
def test_another_network_or_loss_foretells_nothing(changed: dict[str, Any]) -> None:
    assert of(**changed).like != of().like
    assert of(RunParams(device="cuda", workers=2)).like != of().like
    one_core = dataclasses.replace(OPTIONS, threads=1 if OPTIONS.thread_count != 1 else 2)
    assert of(one_core).like != of().like


def test_a_map_stage_is_foretold_by_the_same_params_on_the_same_workers() -> None:
    stage, other = grabcut.propose(), grabcut.propose(grabcut.GrabCutParams(working_size=64))
    known = effort.of_map(stage, OPTIONS, 7, "set")
    assert effort.of_map(stage, OPTIONS, 14, "set") == known._replace(amount=14)
    assert effort.of_map(other, OPTIONS, 7, "set").like != known.like
    assert effort.of_map(stage, RunParams(workers=1), 7, "set").like != known.like
    assert effort.of_map(stage, OPTIONS, 7, "large pictures").like != known.like


def test_the_samples_of_cfs_are_counted_too() -> None:
    one, two = (effort.of_fit(cfs.fit(cfs.CFSParams(weights="none", batch=b)), OPTIONS, 40) for b in (8, 32))
    assert one.like == two.like and one.amount == two.amount, "an epoch sees the same, in batches of any size"
