"""Where a fit's tensors live: Lightning Fabric for GPUs, several devices and low precision; nothing for one CPU.

Importing Fabric costs four seconds more than torch and an optimizer (it loads torchmetrics to see its version), which
a small CPU fit feels. So one CPU in float32 gets :class:`PlainFabric`, which does the same by calling torch.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Precision = Literal["32", "bf16", "fp16"]
_FABRIC_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Fabric(Protocol):
    """The part of ``lightning.fabric.Fabric`` that the training loop uses."""

    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def world_size(self) -> int: ...  # noqa: D102
    @property
    def global_rank(self) -> int: ...  # noqa: D102
    def setup_module(self, module: nn.Module) -> Any: ...  # noqa: D102
    def setup_optimizers(self, optimizer: Optimizer) -> Any: ...  # noqa: D102
    def backward(self, tensor: Tensor) -> None: ...  # noqa: D102
    def clip_gradients(  # noqa: D102
        self, module: nn.Module, optimizer: Any, *, max_norm: float, error_if_nonfinite: bool
    ) -> Any: ...
    def all_reduce(self, data: Tensor, *, reduce_op: str) -> Any: ...  # noqa: D102
    def barrier(self) -> None: ...  # noqa: D102


class PlainFabric:
    """One CPU, float32: every call is torch's own."""

    device = torch.device("cpu")
    world_size = 1
    global_rank = 0

    def setup_module(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def setup_optimizers(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer itself."""
        return optimizer

    def backward(self, tensor: Tensor) -> None:
        """Gradients of ``tensor``."""
        torch.autograd.backward(tensor)

    def clip_gradients(
        self, module: nn.Module, optimizer: Optimizer, *, max_norm: float, error_if_nonfinite: bool
    ) -> Tensor:
        """Scale the gradients of the optimizer's parameters to at most ``max_norm`` (L2) together."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, max_norm, error_if_nonfinite=error_if_nonfinite)

    def all_reduce(self, data: Tensor, *, reduce_op: str) -> Tensor:
        """``data`` itself: there is one rank."""
        return data

    def barrier(self) -> None:
        """Nobody to wait for."""


def make_fabric(accelerator: str, devices: int, precision: Precision, *, machines: int = 1) -> Fabric:
    """A launched fabric. With several devices this process is one rank, started by torchrun.

    Args:
        accelerator: ``cpu`` or ``cuda``.
        devices: ranks of the fit.
        machines: over which they are spread evenly.
        precision: ``32``, ``bf16`` or ``fp16`` (mixed: weights stay float32). fp16 needs a GPU (gradient scaler).
    """
    if precision not in _FABRIC_PRECISION:
        raise ValueError(f"precision {precision!r} must be one of {', '.join(_FABRIC_PRECISION)}")
    if precision == "fp16" and accelerator == "cpu":
        raise ValueError("precision='fp16' needs a GPU; on CPUs set precision='32' or 'bf16'")
    if accelerator == "cpu" and devices == 1 and precision == "32":
        return PlainFabric()
    from lightning.fabric import Fabric as LightningFabric

    fabric = LightningFabric(
        accelerator=accelerator,
        devices=devices // machines,
        num_nodes=machines,
        strategy="ddp" if devices > 1 else "auto",
        precision=_FABRIC_PRECISION[precision],
    )
    fabric.launch()
    return cast(Fabric, fabric)


def scaler_of(fabric: Fabric) -> Any:
    """The gradient scaler, where the precision has one."""
    strategy = getattr(fabric, "strategy", None)
    return getattr(getattr(strategy, "precision", None), "scaler", None)
