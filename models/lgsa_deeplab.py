"""DeepLab with self-attention modules between its backbone and its head, and the random walk after it (LGSA).

Xie et al., BMVC 2020, section 3.3 and Fig. 3; the equations are in :mod:`models.lgsa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from models import deeplab
from models.backbones import Atrous, BatchNorm
from models.deeplab import DeepLab, load_backbone
from models.groups import GroupRule
from models.lgsa import (
    PIECE,
    Affinity,
    SelfAttention,
    at_least_float32,
    attention_row,
    effective_alpha,
    log_probability,
    random_walk,
    total_loss,
    walked_cross_entropy,
)
from models.losses import LossAt, rank_share, segmentation_loss
from models.names import OutputStride
from models.network import Segmenter
from models.normalise import IMAGENET, Normalisation
from models.resample import resize, sample_labels

Walk = Literal["off", "probabilities", "logits"]
Guided = Literal["all", "last"]


class LGSAOutput(NamedTuple):
    """What :class:`LGSADeepLab` gives, at its output grid."""

    logits_bkhw: Tensor
    """M, before the walk."""
    walked_bkhw: Tensor | None
    """M_rw, float32: probabilities or logits as ``walk`` says; ``None`` without a walk."""
    attention: Tensor
    """L_att, summed over the guided modules; 0 without labels."""


class LGSADeepLab(Segmenter):
    """A DeepLab with self-attention modules after its backbone; its tensors keep DeepLab's names.

    ``walk``: over probabilities [infer], over logits, or none; the last module's W is used (section 4.1). ``guided``:
    the modules that have a loss, all [infer] or the last. ``alpha``: the loss's weight, brought to the grid's N by
    :func:`effective_alpha` if ``alpha_scaled``; with 0 no N x N error is computed. Without modules it is the plain
    network. ``rules`` as DeepLab's.

    A training step of ResNet-101 at batch 10 in float32, gradients and momentum included, needs at its peak (counted
    on tensors without storage, in 10^9 bytes; the libraries' workspaces come on top) without a module, with 1, 2, 3:

    =========  =====  =====  =====  =====
    crop 321    8.5    9.1    9.5    9.9   maps of 41 x 41
    crop 513   20.6   21.5   22.3   23.0   maps of 65 x 65
    =========  =====  =====  =====  =====

    A GPU of 24 GiB has 25.8. Two modules under bf16 autocast: 5.5 and 12.2; with every W kept, at crop 513: 24.6.
    """

    ADDED: ClassVar[str] = "attention."

    def __init__(
        self,
        plain: DeepLab,
        channels: int,
        modules: int,
        *,
        embedding: int,
        walk: Walk,
        guided: Guided,
        multipliers: tuple[float, float],
        alpha: float = 10_000.0,
        alpha_scaled: bool = True,
        piece: int = PIECE,
    ) -> None:
        super().__init__()
        self.normalise, self.backbone, self.head = plain.normalise, plain.backbone, plain.head
        self.loss_at = plain.loss_at
        self.alpha, self.alpha_scaled = alpha, alpha_scaled
        self.attention = nn.ModuleList(SelfAttention(channels, embedding, piece) for _ in range(modules))
        self.walk, self.guided, self.piece = walk, guided, piece
        self.rules = (*map(_not_attention, plain.rules), *(_attention_rules(multipliers) if modules else ()))

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """See :func:`models.deeplab.load_backbone`; the modules stay as they are."""
        load_backbone(self, state, source=source)

    @torch.no_grad()
    def scale_attention(self, images_nchw: Tensor) -> None:
        """Divide the initial weights of theta, phi and g by the features' root mean square over these images [ours].

        Their deviation is meant for features of about 1. EfficientNet-Lite0's are 2.6: products of theta and phi are
        then 7 times as large, the softmax begins saturated on a few cells, and W never learns. Images are
        ``(N, 3, H, W)`` RGB 0..255. Modules that have learnt, whose h is not zero any more, stay as they are.
        """
        statistics = {name: buffer.clone() for name, buffer in self.backbone.named_buffers()}
        scale = self.features(images_nchw).square().mean().sqrt()
        for name, buffer in self.backbone.named_buffers():
            buffer.copy_(statistics[name])
        for module in cast(Iterable[SelfAttention], self.attention):
            if scale > 0 and not module.h.weight.any():
                for convolution in (module.theta, module.phi, module.g):
                    convolution.weight.div_(scale)

    def forward(self, images_nchw: Tensor, labels_nhw: Tensor | None = None) -> LGSAOutput:
        """``(N, 3, H, W)`` RGB 0..255, and for L_att ``(N, H, W)`` labels (255 = undecided), sampled at the grid."""
        x = self.features(images_nchw)
        size = (x.shape[2], x.shape[3])
        guide = labels_nhw if self.alpha else None
        labels = None if guide is None else sample_labels(guide, size).flatten(1)
        attention = x.new_zeros((), dtype=torch.float32)
        w: Affinity | None = None
        for number, module in enumerate(self.attention, start=1):
            guided = self.guided == "all" or number == len(self.attention)
            x, w, loss = module(x, labels if guided else None)
            attention = attention + loss
        logits = cast(Tensor, self.head(x))
        return LGSAOutput(logits, self._walked(w, logits), attention)

    def _walked(self, w: Affinity | None, logits_bkhw: Tensor) -> Tensor | None:
        if w is None or self.walk == "off":
            return None
        with torch.autocast(logits_bkhw.device.type, enabled=False):
            segments = at_least_float32(logits_bkhw)
            segments = segments.softmax(1) if self.walk == "probabilities" else segments
            return random_walk(w, segments, self.piece)

    def logits(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Logarithms of the walked probabilities where the walk is over those."""
        images, share = self.whole(images_nchw)
        output = self(images)
        if self._gives_probabilities(output):
            return log_probability(self.spread(output, size_hw, share))
        return resize(at_least_float32(_scores(output)), size_hw, share)

    def probabilities(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """After the walk, brought to ``size_hw`` bilinearly."""
        images, share = self.whole(images_nchw)
        return self.spread(self(images), size_hw, share)

    def spread(
        self, output: LGSAOutput, size_hw: tuple[int, int], share_hw: tuple[float, float] = (1.0, 1.0)
    ) -> Tensor:
        """Probabilities ``(N, K+1, *size_hw)`` float32 of the network's output; each pixel's sum to 1.

        ``share_hw``: of a picture that ends inside the output's last cells (:func:`models.resample.whole_cells`).
        """
        if self._gives_probabilities(output):
            return resize(cast(Tensor, output.walked_bkhw), size_hw, share_hw)
        return resize(at_least_float32(_scores(output)), size_hw, share_hw).softmax(1)

    def _gives_probabilities(self, output: LGSAOutput) -> bool:
        return output.walked_bkhw is not None and self.walk == "probabilities"

    def losses(self, output: LGSAOutput, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss`` (equation 10), ``segmentation`` (9) and ``attention`` (7, without alpha).

        Without a walk L_seg is DeepLab's own.
        """
        labels = batch["labels"]
        grid = (output.logits_bkhw.shape[2], output.logits_bkhw.shape[3])
        if self._gives_probabilities(output):
            target = sample_labels(labels, grid) if self.loss_at == "output" else labels
            probabilities = self.spread(output, (target.shape[1], target.shape[2]))
            segmentation = walked_cross_entropy(probabilities, target) * rank_share(target)
        else:
            segmentation = segmentation_loss(_scores(output), labels, self.loss_at)
        alpha = effective_alpha(self.alpha, grid[0] * grid[1]) if self.alpha_scaled else self.alpha
        loss = total_loss(segmentation, output.attention, alpha)
        return {"loss": loss, "segmentation": segmentation.detach(), "attention": output.attention.detach()}

    def attention_rows(self, images_nchw: Tensor, yx: tuple[float, float]) -> list[Tensor]:
        """For each module, ``(N, h, w)``: W's row of the cell under pixel ``y, x`` of the images (Fig. 6).

        The images are extended to whole cells. Raises ``ValueError`` for a pixel outside the images.
        """
        images, share = self.whole(images_nchw)
        x = self.features(images)
        size = (x.shape[2], x.shape[3])
        pixel = cell_under(yx, (images_nchw.shape[2], images_nchw.shape[3]), size, share)
        rows = []
        for module in self.attention:
            x, w, _ = module(x)
            rows.append(attention_row(w.theta_bcn, w.phi_bcn, pixel).view(-1, *size))
        return rows


def _scores(output: LGSAOutput) -> Tensor:
    return output.logits_bkhw if output.walked_bkhw is None else output.walked_bkhw


def cell_under(
    yx: tuple[float, float],
    image_hw: tuple[int, int],
    grid_hw: tuple[int, int],
    share_hw: tuple[float, float] = (1.0, 1.0),
) -> int:
    """Row-major index of the grid's cell that covers pixel ``y, x`` (0-based). ``ValueError`` if it is outside.

    ``share_hw``: of the grid that is image (:func:`models.resample.whole_cells`).
    """
    if not all(0 <= at < side for at, side in zip(yx, image_hw, strict=True)):
        raise ValueError(f"pixel y={yx[0]}, x={yx[1]} is outside the image of {image_hw} (height, width)")
    covered = (share * cells / side for share, cells, side in zip(share_hw, grid_hw, image_hw, strict=True))
    y, x = (int((at + 0.5) * cells_a_pixel) for at, cells_a_pixel in zip(yx, covered, strict=True))
    return min(y, grid_hw[0] - 1) * grid_hw[1] + min(x, grid_hw[1] - 1)


def build(
    name: str,
    outputs: int,
    *,
    modules: int = 2,
    embedding: int | None = None,
    walk: Walk = "probabilities",
    guided: Guided = "all",
    multipliers: tuple[float, float] | None = None,
    alpha: float = 10_000.0,
    alpha_scaled: bool = True,
    piece: int = PIECE,
    normalisation: Normalisation = IMAGENET,
    atrous: Atrous = "paper",
    dropout: float = 0.5,
    width: int = 16,
    output_stride: OutputStride = 8,
    batch_norm: BatchNorm = "frozen",
    head_multipliers: tuple[float, float] | None = None,
    loss_at: LossAt = "crop",
) -> LGSADeepLab:
    """A DeepLab (see :func:`models.deeplab.build`) with ``modules`` >= 0 self-attention modules in cascade.

    ``embedding``: C', 512 or the backbone's channels if those are fewer [infer]. ``multipliers``: of the
    learning rate for the modules' weights and biases; by default the classifier's (10 and 20, or ``head_multipliers``;
    1 and 1 for the tiny network) [infer]. ``alpha``, ``alpha_scaled``: see :class:`LGSADeepLab`. ``piece``: the largest
    part of W computed at once, in numbers; changes memory and time only. A module on ResNet-101 has 4,197,888
    parameters. Raises ``ValueError`` for impossible numbers and names.
    """
    if modules < 0:
        raise ValueError(f"modules {modules} must not be negative")
    if walk not in ("off", "probabilities", "logits") or guided not in ("all", "last"):
        raise ValueError(f"unknown walk {walk!r} (off, probabilities, logits) or guided {guided!r} (all, last)")
    plain = deeplab.build(
        name,
        outputs,
        normalisation=normalisation,
        atrous=atrous,
        dropout=dropout,
        width=width,
        output_stride=output_stride,
        batch_norm=batch_norm,
        head_multipliers=head_multipliers,
        loss_at=loss_at,
    )
    channels = int(cast(int, plain.backbone.channels))
    if multipliers is None:
        multipliers = (1.0, 1.0) if name == "tiny" else head_multipliers or (10.0, 20.0)
    return LGSADeepLab(
        plain,
        channels,
        modules,
        embedding=min(512, channels) if embedding is None else embedding,
        walk=walk,
        guided=guided,
        multipliers=multipliers,
        alpha=alpha,
        alpha_scaled=alpha_scaled,
        piece=piece,
    )


def _not_attention(rule: GroupRule) -> GroupRule:
    """DeepLab's rule, for DeepLab's parameters only: some of them take whatever is no classifier."""
    return GroupRule(
        rule.name, lambda name: not name.startswith("attention.") and rule.matches(name), rule.multiplier, rule.decay
    )


def _attention_rules(multipliers: tuple[float, float]) -> Sequence[GroupRule]:
    def ends(suffix: str) -> Callable[[str], bool]:
        return lambda name: name.startswith("attention.") and name.endswith(suffix)

    return (
        GroupRule("attention-weights", ends(".weight"), multipliers[0]),
        GroupRule("attention-biases", ends(".bias"), multipliers[1], decay=False),
    )
