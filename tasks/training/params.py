"""What every fit is trained by: optimizer, length, precision, seed. A method's params inherit it and add their own.

No torch: params are described in processes that never load it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from artifacts.keys import OPERATIONAL
from artifacts.records import DataError
from tasks.bounds import bounded
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

    optimizer: Literal["sgd", "adam", "adamw"] = field(
        default="sgd", metadata={"help": "sgd with momentum, adam, or adamw (decay apart from the gradient)"}
    )
    lr: float = field(default=2.5e-4, metadata={"help": "learning rate of multiplier 1", "bounds": (1e-9, 10.0)})
    momentum: float = field(default=0.9, metadata={"help": "of sgd", "bounds": (0.0, 0.9999)})
    betas: tuple[float, float] = field(
        default=(0.9, 0.999), metadata={"help": "of adam and adamw", "bounds": (0.0, 0.999999)}
    )
    weight_decay: float = field(default=5e-4, metadata={"help": "on weights", "bounds": (0.0, 1.0)})
    batch: int = field(default=10, metadata={"help": "samples an iteration, over all devices", "bounds": (1, 4096)})
    epochs: int = field(
        default=50, metadata={"help": "how often every sample is seen, on average", "bounds": (1, 100_000)}
    )
    iterations: int = field(
        default=0, metadata={"help": "optimizer steps; 0: as many as the epochs need", "bounds": (0, 10_000_000)}
    )
    precision: Literal["32", "bf16", "fp16"] = field(default="32", metadata={"help": "bf16 and fp16 are for GPUs"})
    seed: int = field(
        default=0, metadata={"help": "of initial weights, order and augmentation", "bounds": (0, 2**31 - 1)}
    )
    compile: bool = field(default=False, metadata={**OPERATIONAL, "help": "torch.compile the training step"})
    channels_last: bool = field(default=True, metadata={**OPERATIONAL, "help": "memory format that is faster"})

    def __post_init__(self) -> None:
        bounded(self, self.NAME)

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
