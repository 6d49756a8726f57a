"""Names of networks, and the output strides each can have. No torch: params are checked where it is not loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

OutputStride = Literal[4, 8, 16, 32]

TIMM = "timm:"
"""What the name of any of timm's models begins with here: ``timm:convnext_atto``."""

SEGMENTERS: dict[str, tuple[int, ...]] = {
    "tiny": (4, 8),
    "largefov": (8,),
    "resnet38": (8,),
    "resnet18": (8,),
    "resnet50": (8,),
    "resnet101": (8,),
    "lite0": (8, 16, 32),
    "timm:NAME": (8, 16, 32),
}
"""DeepLab's networks -> the output strides they can have (of timm's models, some have fewer)."""

ENCODERS = ("tiny", "resnet18", "resnet50", "lite0", "timm:NAME")
"""Encoders of CFS's U-Net."""

GENERATORS = ("hourglass", "hourglass-small", *ENCODERS, "resnet101")
"""LPG's mask generators: the paper's hourglass, a small one, and a U-Net on an encoder."""


def check_name(network: str, known: Iterable[str]) -> str:
    """``network`` as ``known`` lists it, any of timm's as ``timm:NAME``. ``ValueError`` that lists them otherwise."""
    kind = "timm:NAME" if is_timm(network) and network != TIMM else network
    if kind not in known or network == "timm:NAME":
        raise ValueError(f"network {network!r} is unknown; known: {', '.join(known)} (any of timm's models)")
    return kind


def check_stride(network: str, output_stride: int) -> None:
    """Raise ``ValueError`` for an unknown segmenter, or an output stride that it cannot have, naming those it can."""
    strides = SEGMENTERS[check_name(network, SEGMENTERS)]
    if output_stride not in strides:
        allowed = " or ".join(map(str, strides))
        raise ValueError(f"output_stride {output_stride} with network {network!r}: it can be {allowed}")


def check_choices(network: str, batch_norm: str, head_multipliers: tuple[float, float] | None) -> None:
    """Raise ``ValueError`` where a segmenter's batch norms or rates are not for the user to choose."""
    if is_free(network):
        return
    for name, value, printed in (("batch_norm", batch_norm, "frozen"), ("head_multipliers", head_multipliers, None)):
        if value != printed:
            raise ValueError(f"{name} {value!r} with network {network!r}: only lite0 and timm:NAME can choose it")


def is_free(network: str) -> bool:
    """Whether a segmenter's batch norms and rates can be chosen: those of the papers are as they are there."""
    return network == "lite0" or is_timm(network)


def is_timm(network: str) -> bool:
    """Whether this is one of timm's models."""
    return network.startswith(TIMM)
