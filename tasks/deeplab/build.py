"""A segmenter from params, plain or with self-attention."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from models import deeplab, lgsa_deeplab
from models.backbones import BatchNorm
from models.losses import LossAt
from models.names import OutputStride
from models.network import Segmenter
from models.normalise import IMAGENET, Normalisation
from tasks.deeplab.lgsa import AttentionNet, LGSAParams


class NetworkParams(Protocol):
    """The part of a params class that decides the architecture."""

    @property
    def network(self) -> str: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def output_stride(self) -> OutputStride: ...  # noqa: D102
    @property
    def atrous(self) -> Literal["paper", "exact"]: ...  # noqa: D102
    @property
    def attention(self) -> AttentionNet | None: ...  # noqa: D102


def build_network(
    params: NetworkParams,
    outputs: int,
    normalisation: Normalisation = IMAGENET,
    *,
    loss_at: LossAt = "crop",
    batch_norm: BatchNorm = "frozen",
    head_multipliers: tuple[float, float] | None = None,
    guidance: LGSAParams | None = None,
) -> Segmenter:
    """The network that ``params`` describe, randomly initialised from torch's global generator.

    Backbone and head are the same numbers with self-attention and without. What follows
    ``normalisation`` is for a network that is to learn; ``guidance`` is the attention loss.
    """
    shared: dict[str, Any] = {
        "normalisation": normalisation,
        "atrous": params.atrous,
        "width": params.width,
        "output_stride": params.output_stride,
        "batch_norm": batch_norm,
        "head_multipliers": head_multipliers,
        "loss_at": loss_at,
    }
    attention = params.attention
    if attention is None:
        return deeplab.build(params.network, outputs, **shared)
    if guidance is not None:
        shared |= {"guided": guidance.guided, "alpha": guidance.alpha or 0.0, "alpha_scaled": guidance.alpha_scaled}
    return lgsa_deeplab.build(
        params.network,
        outputs,
        modules=attention.modules,
        embedding=attention.embedding or None,
        walk=attention.walk,
        **shared,
    )
