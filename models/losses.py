"""Losses of a segmenter on ``(N, K+1, h, w)`` logits and ``(N, H, W)`` integer labels, 255 = undecided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from models.resample import resize, sample_labels

UNDECIDED = 255
LossAt = Literal["crop", "output"]


def cross_entropy(logits_nkhw: Tensor, labels_nhw: Tensor, ignore: int = UNDECIDED) -> Tensor:
    """Mean cross entropy over the pixels that are not ``ignore``; 0 (with zero gradient) where there is none.

    Computed in float32 whatever the logits' dtype. Both sizes must be equal.
    """
    labels = labels_nhw.long()
    total = F.cross_entropy(logits_nkhw.float(), labels, ignore_index=ignore, reduction="sum")
    return total / (labels != ignore).sum().clamp(min=1)


def rank_mean(values: Tensor) -> Tensor:
    """Mean of ``values`` (floating) over the ranks' parts of a batch; as they are on one rank.

    Every rank must call it at the same place; where no gradient is wanted (a monitor, on one rank alone) nothing is
    gathered.
    """
    if not _is_shared():
        return values
    whole = values.clone()
    dist.all_reduce(whole)
    return whole / dist.get_world_size()


def rank_share(labels_nhw: Tensor, ignore: int = UNDECIDED) -> Tensor | float:
    """Labelled pixels of this rank's part of a batch over the mean of all ranks' parts; 1 on one rank.

    Gradients are averaged over ranks. A mean over a rank's own labelled pixels, times this, adds up to the mean over
    all labelled pixels of the whole batch, however they are spread. To be called as :func:`rank_mean`.
    """
    if not _is_shared():
        return 1.0
    count = (labels_nhw != ignore).sum().float()
    return count / rank_mean(count).clamp(min=1 / dist.get_world_size())


def _is_shared() -> bool:
    return bool(torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def segmentation_loss(logits_nkhw: Tensor, labels_nhw: Tensor, at: LossAt = "crop") -> Tensor:
    """Cross entropy at the crop's size (logits upsampled bilinearly) or at the output grid (labels sampled).

    The mean is over the labelled pixels of the whole batch, those of other ranks included (:func:`rank_share`).
    """
    if at == "crop":
        logits, labels = resize(logits_nkhw.float(), (labels_nhw.shape[1], labels_nhw.shape[2])), labels_nhw
    else:
        logits, labels = logits_nkhw, sample_labels(labels_nhw, (logits_nkhw.shape[2], logits_nkhw.shape[3]))
    return cross_entropy(logits, labels) * rank_share(labels)


def balanced_cross_entropy(logits_nkhw: Tensor, labels_nhw: Tensor, ignore: int = UNDECIDED) -> Tensor:
    """RRM, eq. 9: mean over the background's pixels + mean over all other labelled pixels, in float32.

    "Cross entropy loss is computed for background and foreground individually" (Zhang et al., AAAI 2020). Both means
    are over the whole batch, other ranks' pixels included; a half without a pixel is 0. Sizes must be equal.
    """
    labels = labels_nhw.long()
    each = F.cross_entropy(logits_nkhw.float(), labels, ignore_index=ignore, reduction="none")
    halves = []
    for half in (labels == 0, (labels != 0) & (labels != ignore)):
        counted = torch.where(half, 0, ignore)
        halves.append((each * half).sum() / half.sum().clamp(min=1) * rank_share(counted, ignore))
    return halves[0] + halves[1]


def summed_loss(logits: Tensor | Sequence[Tensor], labels_nhw: Tensor, at: LossAt = "crop") -> Tensor:
    """:func:`segmentation_loss`, summed over the outputs where there are several (multi-scale inputs)."""
    outputs = [logits] if isinstance(logits, Tensor) else list(logits)
    return torch.stack([segmentation_loss(output, labels_nhw, at) for output in outputs]).sum()
