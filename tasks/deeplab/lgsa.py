"""Self-attention in a student: what a user can set, and what of it decides a fit and a prediction.

Xie et al., "Learning Effectively from Noisy Supervision", BMVC 2020, sections 3.3 and 4.1. The equations are
:mod:`models.lgsa`, the network is :mod:`models.lgsa_deeplab`. Params only, no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from artifacts.records import UNDECIDED, MaskHW
from tasks.bounds import bounded, number
from tasks.stage import PARAMS_CONFIG

Attention = Literal["none", "nonlocal", "lgsa"]
"""none: the plain network; nonlocal: modules without guidance or walk (Wang et al., CVPR 2018); lgsa: the paper's."""
Walk = Literal["off", "probabilities", "logits"]
Schedule = Callable[[int], float]


@dataclass(frozen=True)
class LGSAParams:
    """The self-attention modules between backbone and head, their loss, and the random walk."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    modules: int = number(2, 1, 8, "self-attention modules in cascade after the backbone")
    embedding: int = number(0, 0, 4096, "channels C' within a module; 0: 512, or the backbone's if those are fewer")
    alpha: float | None = number(
        None, 0.0, 1e9, "weight of the attention loss; null: 10,000, or 1,000 with one module; nonlocal: always 0"
    )
    alpha_scaled: bool = field(
        default=True, metadata={"help": "alpha is for maps of 41 x 41; maps of N cells: times (N/1681)^2"}
    )
    walk: Walk = field(
        default="probabilities",
        metadata={"help": "the random walk is over probabilities or logits, or off; nonlocal: always off"},
    )
    guided: Literal["all", "last"] = field(default="all", metadata={"help": "modules that have an attention loss"})
    warmup_epochs: float = number(
        1.0, 0.0, 1e6, "epochs at the start with a lower learning rate (an epoch: every image once)"
    )
    warmup_factor: float = number(0.1, 1e-6, 1.0, "factor of the learning rate in these epochs")

    def __post_init__(self) -> None:
        bounded(self, "lgsa")


@dataclass(frozen=True)
class AttentionNet:
    """The part of :class:`LGSAParams` that decides a network and its inference."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    modules: int
    embedding: int
    walk: Walk


def chosen(attention: Attention, params: LGSAParams) -> LGSAParams | None:
    """What ``attention`` makes of the params: ``None``, or all numbers resolved, so that equal fits have one address.

    ``nonlocal`` is ``lgsa`` with alpha 0 and without walk, which are Table 5's first column. Without a weight it does
    not matter how the loss would be weighted, nor for which modules.
    """
    if attention == "none":
        return None
    if attention == "nonlocal":
        params = dataclasses.replace(params, alpha=0.0, walk="off")
    alpha = paper_alpha(params.modules) if params.alpha is None else float(params.alpha)
    return dataclasses.replace(
        params,
        alpha=alpha,
        alpha_scaled=params.alpha_scaled if alpha else True,
        guided=params.guided if alpha and params.modules > 1 else "all",
    )


def paper_alpha(modules: int) -> float:
    """Section 4.1: 10,000 with two modules or more, 1,000 with one."""
    return 10_000.0 if modules >= 2 else 1_000.0


def net_of(params: LGSAParams) -> AttentionNet:
    """The part that decides the network and its inference."""
    return AttentionNet(params.modules, params.embedding, params.walk)


def share_on_class(weights_hw: NDArray[np.float32], truth_hw: MaskHW, xy: tuple[float, float]) -> float | None:
    """Share of a heat map's weight that lies on the class of pixel ``x, y``, of all on decided cells.

    The truth is sampled at the cells' centres. ``None`` where the pixel, or all weight, is undecided.
    """
    own = truth_hw[int(xy[1]), int(xy[0])]
    rows, columns = (
        np.minimum(((np.arange(cells) + 0.5) * side / cells).astype(int), side - 1)
        for cells, side in zip(weights_hw.shape, truth_hw.shape, strict=True)
    )
    labels_hw = truth_hw[np.ix_(rows, columns)]
    decided = float(weights_hw[labels_hw != UNDECIDED].sum())
    return None if own == UNDECIDED or decided <= 0 else float(weights_hw[labels_hw == own].sum()) / decided


def warmed_up(schedule: Schedule, params: LGSAParams, images: int, batch: int) -> Schedule:
    """``schedule`` (step, from 0 -> factor) with its first steps times ``warmup_factor`` (section 4.1: an epoch, .1).

    An epoch is ``images / batch`` steps; a share of a step counts as one.
    """
    steps = math.ceil(params.warmup_epochs * images / batch)
    return lambda step: schedule(step) * (params.warmup_factor if step < steps else 1.0)
