"""The training params of every fit: optimizer, length, precision, seed. A method's params inherit it and add their own.

No torch: params are described in processes that never load it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from artifacts.keys import OPERATIONAL
from artifacts.records import DataError
from tasks.bounds import bounded, number
from tasks.engine.gpus import has_gpu
from tasks.stage import PARAMS_CONFIG

if TYPE_CHECKING:
    from tasks.engine.options import RunParams


@dataclass(frozen=True)
class TrainParams:
    """How a network learns: optimizer, length, precision and seed."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    NAME: ClassVar[str] = "train"
    """What errors call these params."""
    DECAYS_BY_EPOCH: ClassVar[bool] = False
    """Whether ``epochs`` decide the learning rate, also where ``iterations`` decide the length."""

    optimizer: Literal["sgd", "adam", "adamw"] = field(
        default="sgd", metadata={"help": "sgd with momentum, adam, or adamw (weight decay decoupled from the gradient)"}
    )
    lr: float = number(2.5e-4, 1e-9, 10.0, "learning rate of groups with multiplier 1")
    momentum: float = number(0.9, 0.0, 0.9999, "momentum of sgd")
    betas: tuple[float, float] = number((0.9, 0.999), 0.0, 0.999999, "betas of adam and adamw")
    weight_decay: float = number(5e-4, 0.0, 1.0, "weight decay")
    batch: int = number(10, 1, 4096, "samples an iteration, over all devices")
    epochs: int = number(50, 1, 100_000, "passes over the data")
    iterations: int = number(0, 0, 10_000_000, "optimizer steps; 0: as many as the epochs need")
    precision: Literal["32", "bf16", "fp16"] = field(
        default="32", metadata={"help": "bf16: GPUs, and CPUs with AMX (half the time); fp16: GPUs"}
    )
    seed: int = number(0, 0, 2**31 - 1, "seed of initial weights, sample order and augmentation")
    compile: bool = field(default=False, metadata={**OPERATIONAL, "help": "torch.compile the training step"})
    channels_last: bool = field(default=True, metadata={**OPERATIONAL, "help": "faster memory format"})

    def __post_init__(self) -> None:
        bounded(self, self.NAME)

    def semantic(self) -> Self:
        """The same training with every value that has no effect at its default: equal fits have one address."""
        unused = {"betas" if self.optimizer == "sgd" else "momentum"}
        if self.iterations and not self.DECAYS_BY_EPOCH:
            unused.add("epochs")
        defaults: dict[str, Any] = {entry.name: entry.default for entry in fields(self) if entry.name in unused}
        return replace(self, **defaults)

    def total_iterations(self, samples: int) -> int:
        """Optimizer steps of a fit on ``samples`` samples: ``iterations`` if given, else enough for all epochs."""
        return self.iterations or math.ceil(self.epochs * samples / self.batch)

    def refusal(self, devices: int, name: str) -> str:
        """Why these params, set as ``params.<name>``, cannot be trained on ``devices``; empty if they can."""
        return ""


def check_run(params: TrainParams, options: RunParams, *, name: str) -> None:
    """Raises :class:`DataError` for params (``params.<name>``) that cannot run on what the options name.

    For a flow's page, before any work.
    """
    if params.batch % options.devices:
        raise DataError(
            f"params.{name}.batch={params.batch} cannot be shared by options.devices={options.devices};"
            f" set batch to a multiple of {options.devices}"
        )
    if refusal := params.refusal(options.devices, name):
        raise DataError(refusal)
    if params.precision == "fp16" and (options.device == "cpu" or not has_gpu()):
        raise DataError(f"params.{name}.precision=fp16 needs a GPU, and this run has none; set precision to 32 or bf16")
