"""Optimizers: what the params name, over the groups that the network declares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models.groups import GroupRule
from models.network import Network
from tasks.training.optim import make_optimizer
from tasks.training.params import TrainParams


class Pair(Network):
    rules = (
        GroupRule("weights", lambda name: name.endswith("weight"), 1.0),
        GroupRule("biases", lambda name: name.endswith("bias"), 2.0, decay=False),
    )

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("name", "kind", "own"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8}),
        ("adam", torch.optim.Adam, {"betas": (0.5, 0.99)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.5, 0.99)}),
    ],
)
def test_the_named_optimizer_over_named_groups(name: Any, kind: type, own: dict[str, Any]) -> None:
    params = TrainParams(optimizer=name, lr=0.01, momentum=0.8, betas=(0.5, 0.99), weight_decay=0.02)
    network = Pair()
    optimizer = make_optimizer(network, params)
    assert type(optimizer) is kind
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "weights": (0.01, 0.02),
        "biases": (0.02, 0.0),
    }
    assert groups["weights"]["params"] == [network.layer.weight] and groups["biases"]["params"] == [network.layer.bias]
    assert all(group[key] == value for group in groups.values() for key, value in own.items())
    assert "names" not in groups["weights"], "checkpoints hold tensors and numbers"


def test_a_parameter_in_no_group_is_an_error() -> None:
    network = Pair()
    network.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="extra"):
        make_optimizer(network, TrainParams())
