"""Parameter groups that cannot silently match nothing.

Papers state learning rates per kind of parameter (1/10/20, say). A rule here names the kind; a parameter that no
rule or two rules want, or a rule that wants none, is an error: an untrained head would look like a bad method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class GroupRule:
    """One declared group: ``matches(name)`` picks trainable parameters, ``multiplier`` scales the learning rate."""

    name: str
    matches: Callable[[str], bool]
    multiplier: float
    decay: bool = True
    """Whether weight decay applies."""


@dataclass(frozen=True)
class ParameterGroups:
    """``groups`` go to a torch optimizer as they are; ``frozen`` names every parameter that is in none, on purpose."""

    groups: list[dict[str, Any]]
    frozen: tuple[str, ...]


def parameter_groups(
    network: nn.Module, rules: Sequence[GroupRule], *, lr: float, weight_decay: float
) -> ParameterGroups:
    """Sort ``network``'s trainable parameters into ``rules``' groups.

    Each group is ``{"name", "params", "names", "lr", "weight_decay"}`` with ``lr`` times the multiplier.
    Raises ``ValueError`` naming the parameters that are in no group or in two, or the group that is empty.
    """
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    wanted = {name: [rule.name for rule in rules if rule.matches(name)] for name in trainable}
    if lost := [name for name, found in wanted.items() if not found]:
        raise ValueError(f"{len(lost)} trainable parameters are in no declared group, first: {lost[:5]}")
    if twice := [(name, found) for name, found in wanted.items() if len(found) > 1]:
        raise ValueError(f"{len(twice)} trainable parameters are in more than one group, first: {twice[:5]}")
    groups: list[dict[str, Any]] = []
    for rule in rules:
        names = [name for name, found in wanted.items() if found == [rule.name]]
        if not names:
            raise ValueError(f"group {rule.name!r} of {[r.name for r in rules]} matches no trainable parameter")
        groups.append(
            {
                "name": rule.name,
                "params": [trainable[name] for name in names],
                "names": names,
                "lr": lr * rule.multiplier,
                "weight_decay": weight_decay if rule.decay else 0.0,
            }
        )
    return ParameterGroups(groups, tuple(n for n, p in network.named_parameters() if not p.requires_grad))
