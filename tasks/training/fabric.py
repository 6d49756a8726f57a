"""Where a fit's tensors live: Lightning Fabric for devices, ranks and low precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32", "bf16", "fp16"]
_FABRIC_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


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
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    fabric = Fabric(
        accelerator=accelerator,
        devices=devices // machines,
        num_nodes=machines,
        strategy="ddp" if devices > 1 else "auto",
        precision=_FABRIC_PRECISION[precision],
        # Else a cluster's variables decide how many ranks there are, also where a job of many runs a fit of one.
        plugins=[LightningEnvironment()] if devices == 1 else None,
    )
    fabric.launch()
    return fabric


def scaler_of(fabric: Fabric) -> Any:
    """The gradient scaler, where the precision has one."""
    return getattr(fabric.strategy.precision, "scaler", None)
