"""Optimizers over a network's declared groups."""

from __future__ import annotations

import logging
from typing import Any

import torch

from models.groups import parameter_groups
from models.network import Network
from tasks.training.params import TrainParams

log = logging.getLogger("maskmill")


def make_optimizer(network: Network, params: TrainParams) -> torch.optim.Optimizer:
    """The optimizer that ``params`` name, over the groups that the network's ``rules`` declare; each keeps its name.

    Raises ``ValueError`` where a trainable parameter is in no group or in two, or a group is empty
    (:func:`models.groups.parameter_groups`). Groups and frozen parameters are logged by name.
    """
    found = parameter_groups(network, network.rules, lr=params.lr, weight_decay=params.weight_decay)
    for group in found.groups:
        log.debug("group %(name)s: lr %(lr)g, decay %(weight_decay)g, %(names)s", group)
    log.debug("frozen: %s", ", ".join(found.frozen) or "nothing")
    groups: list[dict[str, Any]] = [{k: v for k, v in group.items() if k != "names"} for group in found.groups]
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=params.lr, betas=params.betas)
    if params.optimizer == "adam":
        return torch.optim.Adam(groups, lr=params.lr, betas=params.betas)
    return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum)
