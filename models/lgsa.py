"""Loss-guided self-attention (LGSA) and the random walk: the equations, W in pieces, one module.

Xie et al., "Learning Effectively from Noisy Supervision for Weakly Supervised Semantic Segmentation", BMVC 2020,
section 3.3; equations 4 to 10 are one function each. Without the loss (``alpha`` 0) a module is the non-local one of
Wang et al., CVPR 2018. :mod:`models.lgsa_deeplab` puts them into DeepLab.

Shapes: ``b`` images, ``c`` channels, ``n`` = h w pixels of the feature map in row-major order, ``r`` <= n of its rows.
W's first pixel index is the one that attends, the last the one attended to.

Memory: an N x N map in float32 takes 4 N^2 bytes an image: 11.3 MB at 41 x 41, 71.4 MB at 65 x 65, so 0.11 GB and
0.71 GB for a batch of 10. Between forward and backward a module keeps W alone, never W_gt or the error. Where W is
larger than :data:`PIECE` it keeps none at all: rows are computed in pieces, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from models.losses import UNDECIDED

PAPER_PIXELS = 41 * 41
"""N of the papers' crop (321) at output stride 8, to which alpha belongs."""

PIECE = 2**25
"""Largest piece of W that is computed at once, in numbers (of 4 bytes), the batch's images together."""

ALL = slice(None)
"""Every row of W."""

EPSILON = 1e-7
"""Added to probabilities under the logarithm of equation 9. A clamp would have no gradient below it."""


# The equations


def affinity(theta_bcr: Tensor, phi_bcn: Tensor) -> Tensor:
    """Equation 4: W = softmax(theta(X)^T phi(X)) over the last index -> ``(B, r, N)``, each row sums to 1."""
    return torch.bmm(theta_bcr.transpose(1, 2), phi_bcn).softmax(-1)


def reweight(weights_brn: Tensor, values_bcn: Tensor) -> Tensor:
    """Equation 5's W g(X) and equation 8's W M: ``(B, r, N)`` and ``(B, C, N)`` -> ``(B, C, r)``.

    Pixel i's result is the mean of all pixels' values by row i's weights: constant maps stay as they are.
    """
    return torch.bmm(values_bcn, weights_brn.transpose(1, 2))


def target_affinity(labels_bn: Tensor, share_bn: Tensor, rows: slice = ALL) -> Tensor:
    """Equation 6, normalised: the given rows of W_gt, ``(B, r, N)`` in ``share_bn``'s dtype.

    1 where M(i) = M(j), divided by its column's sum, the pixels of j's class; ``share_bn`` is :func:`class_share`.
    Undecided pixels have neither row nor column: all 0.
    """
    return (labels_bn[:, rows, None] == labels_bn[:, None, :]) * share_bn[:, None, :]


def class_share(labels_bn: Tensor) -> Tensor:
    """One over the number of pixels of each pixel's own class, 0 for undecided ones: ``(B, N)`` float32.

    Labels are integers 0..254, or 255.
    """
    labels = labels_bn.long()
    counts = torch.zeros(labels.shape[0], UNDECIDED + 1, device=labels.device)
    counts = counts.scatter_add(1, labels, torch.ones_like(labels, dtype=torch.float32))
    return (labels != UNDECIDED) / counts.gather(1, labels)


def attention_loss(weights_brn: Tensor, labels_bn: Tensor, share_bn: Tensor, rows: slice = ALL) -> Tensor:
    """Equation 7: L_att = MSE(W, W_gt), the given rows' part of the mean over N x N and over the batch; a scalar.

    Pairs with an undecided pixel (255) count as no error [infer]: the sum over valid pairs is divided by N^2. With
    all rows it is the loss; pieces of the rows add up to it. ``share_bn`` is :func:`class_share`. Keeps W alone for
    the backward pass.
    """
    error = _SquaredError.apply(weights_brn, labels_bn, share_bn, rows)
    return cast(Tensor, error) / (labels_bn.shape[0] * labels_bn.shape[1] ** 2)


def random_walk(w: Affinity, segments_bkhw: Tensor, piece: int = PIECE) -> Tensor:
    """Equation 8: M_rw = W M at every pixel, ``(B, K+1, h, w)`` -> the same, float32.

    Distributions stay distributions. ``piece`` as in :func:`make_affinity`.
    """
    return attend(w, segments_bkhw.flatten(2), piece=piece)[0].view_as(segments_bkhw)


def log_probability(probabilities: Tensor) -> Tensor:
    """log(p + :data:`EPSILON`) in float32: finite at 0, and so is its gradient, which is not zero there."""
    return (probabilities.float() + EPSILON).log()


def walked_cross_entropy(probabilities_bkhw: Tensor, labels_bhw: Tensor) -> Tensor:
    """Equation 9: L_seg = CE(M_rw, M) = mean of -log(p + 1e-7) over decided pixels; 0 where there is none.

    Takes probabilities (the walk mixes those), not logits; float32 whatever comes in. Both sizes must be equal.
    """
    logs = log_probability(probabilities_bkhw)
    total = nn.functional.nll_loss(logs, labels_bhw.long(), ignore_index=UNDECIDED, reduction="sum")
    return total / (labels_bhw != UNDECIDED).sum().clamp(min=1)


def total_loss(segmentation: Tensor, attention: Tensor, alpha: float) -> Tensor:
    """Equation 10: L_total = L_seg + alpha L_att."""
    return segmentation + alpha * attention


def effective_alpha(alpha: float, pixels: int) -> float:
    """``alpha (N / 1681)^2`` [infer]: L_att falls as 1/N^2, and the paper's alpha belongs to maps of 41 x 41."""
    return alpha * (pixels / PAPER_PIXELS) ** 2


# W whole, or in pieces


class _SquaredError(torch.autograd.Function):
    """Sum of (W - W_gt)^2; the error is computed again in the backward pass, so that of N x N only W is kept."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, labels_bn: Tensor, share_bn: Tensor, rows: slice) -> Tensor:
        ctx.save_for_backward(weights, labels_bn, share_bn)
        ctx.rows = rows
        return _error(weights, labels_bn, share_bn, rows).square_().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weights, labels_bn, share_bn = ctx.saved_tensors
        return _error(weights, labels_bn, share_bn, ctx.rows).mul_(2.0 * gradient), None, None, None


def _error(weights: Tensor, labels_bn: Tensor, share_bn: Tensor, rows: slice) -> Tensor:
    """W - W_gt, 0 where row or column is undecided."""
    error = target_affinity(labels_bn, share_bn.to(weights.dtype), rows).neg_().add_(weights)
    decided = labels_bn != UNDECIDED
    return error.mul_(decided[:, rows, None]).mul_(decided[:, None, :])


class Affinity(NamedTuple):
    """W of one module: ``(B, C', N)`` theta and phi, and W itself where it is small enough to be kept."""

    theta_bcn: Tensor
    phi_bcn: Tensor
    whole_bnn: Tensor | None


def make_affinity(theta_bcn: Tensor, phi_bcn: Tensor, piece: int = PIECE) -> Affinity:
    """W from ``(B, C', N)`` embeddings, in float32 (a softmax over thousands of pixels); whole if within ``piece``."""
    theta, phi = at_least_float32(theta_bcn), at_least_float32(phi_bcn)
    batch, _, pixels = theta.shape
    whole = affinity(theta, phi) if batch * pixels * pixels <= piece else None
    return Affinity(theta, phi, whole)


def attend(
    w: Affinity, values_bcn: Tensor, labels_bn: Tensor | None = None, piece: int = PIECE
) -> tuple[Tensor, Tensor]:
    """``(W values, L_att)``: ``(B, C, N)`` float32 and a scalar, 0 without labels."""
    values = at_least_float32(values_bcn)
    guide = None if labels_bn is None else (labels_bn, class_share(labels_bn))
    if w.whole_bnn is not None:
        return _attend(w.whole_bnn, values, guide, ALL)
    batch, _, pixels = w.theta_bcn.shape
    step = max(1, piece // (batch * pixels))
    results = [
        _again(_attend_rows, w.theta_bcn[:, :, rows], w.phi_bcn, values, guide, rows)
        for rows in (slice(start, start + step) for start in range(0, pixels, step))
    ]
    return torch.cat([out for out, _ in results], 2), torch.stack([loss for _, loss in results]).sum()


Guide = tuple[Tensor, Tensor]


def _attend(weights_brn: Tensor, values: Tensor, guide: Guide | None, rows: slice) -> tuple[Tensor, Tensor]:
    out = reweight(weights_brn, values)
    return out, out.new_zeros(()) if guide is None else attention_loss(weights_brn, *guide, rows)


def _attend_rows(
    theta_bcr: Tensor, phi_bcn: Tensor, values: Tensor, guide: Guide | None, rows: slice
) -> tuple[Tensor, Tensor]:
    return _attend(affinity(theta_bcr, phi_bcn), values, guide, rows)


def _again(function: Callable[..., tuple[Tensor, Tensor]], *arguments: object) -> tuple[Tensor, Tensor]:
    """Call it; where a gradient is wanted, keep nothing and compute it again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def attention_row(theta_bcn: Tensor, phi_bcn: Tensor, pixel: int) -> Tensor:
    """W's row of one pixel, ``(B, N)`` float32: its attention to every pixel (Fig. 6), without the rest of W."""
    return affinity(at_least_float32(theta_bcn[:, :, pixel : pixel + 1]), at_least_float32(phi_bcn))[:, 0]


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it is of half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


# The module


class Attended(NamedTuple):
    """A module's result: features, W, and L_att (0 without labels)."""

    features_bchw: Tensor
    affinity: Affinity
    attention: Tensor


class SelfAttention(nn.Module):
    """One module (Fig. 3): Z = h(W g(X)) + X, equation 5; theta, phi, g and h are 1x1 convolutions."""

    def __init__(self, channels: int, embedding: int, piece: int = PIECE) -> None:
        super().__init__()
        self.piece = piece
        self.theta = nn.Conv2d(channels, embedding, 1)
        self.phi = nn.Conv2d(channels, embedding, 1)
        self.g = nn.Conv2d(channels, embedding, 1)
        self.h = nn.Conv2d(embedding, channels, 1)
        for convolution in (self.theta, self.phi, self.g):
            # The non-local networks' deviation, 0.01, at 2,048 channels; with fewer the same products.
            nn.init.normal_(convolution.weight, std=0.01 * (2048 / channels) ** 0.5)
            nn.init.zeros_(cast(Tensor, convolution.bias))
        # Zero, so that the module starts as the identity.
        nn.init.zeros_(self.h.weight)
        nn.init.zeros_(cast(Tensor, self.h.bias))

    def forward(self, features_bchw: Tensor, labels_bn: Tensor | None = None) -> Attended:
        """``(B, C, h, w)`` and, for the loss, ``(B, N)`` labels at the features' grid; see :class:`Attended`."""
        height, width = features_bchw.shape[2:]
        theta, phi, g = (layer(features_bchw).flatten(2) for layer in (self.theta, self.phi, self.g))
        with torch.autocast(features_bchw.device.type, enabled=False):
            w = make_affinity(theta, phi, self.piece)
            mixed, attention = attend(w, g, labels_bn, self.piece)
        return Attended(self.h(mixed.view(*mixed.shape[:2], height, width)) + features_bchw, w, attention)
