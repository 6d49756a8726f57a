"""BPG: DeepLab with a refinement of its scores (PRN) and a regression of boundaries from them (BRN).

Wang et al., "Boundary Perception Guidance: A Scribble-Supervised Semantic Segmentation Approach", IJCAI 2019, Fig. 2.
Both parts are optional: without PRN the scores are upsampled at once, without BRN nothing is learnt from edges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import deeplab
from models.backbones import Atrous, BatchNorm, convolutions
from models.groups import GroupRule
from models.losses import UNDECIDED, rank_mean
from models.names import OutputStride
from models.network import Segmenter
from models.normalise import IMAGENET, Normalisation
from models.resample import resize

Channels = Literal["two", "all"]
"""What BRN reads: background and foreground (C = 2), or every score map (C = K + 1)."""

LOW_LEVEL_CONVOLUTIONS = 5
"""[paper]: "low-level features which pass through the given image with 5 convolutional operations"."""

EDGE_SHARE = 0.1
"""What BRN predicts everywhere at first, between the means of Canny's maps (.05) and HED's (.25): else the first steps
would only lower it from .5 [ours]."""

LEAST_SHARE = 1e-3
"""The losses' sums are divided by the scribbled pixels, but never by fewer than this share of the picture's, or than a
tenth of what is scribbled on average, if that is less (clicks).

A batch whose crops happen to miss the scribbles would else multiply its edge loss a thousandfold.
"""


@dataclass(frozen=True)
class Refinement:
    """PRN. The paper prints none of these numbers."""

    width: int = 8
    """Channels of the convolutions that refine, for each score map."""
    depth: int = 3
    """Convolutions at each step."""
    grouped: bool = False
    """Each score map has convolutions of its own; else all share them."""
    low_width: int = 16
    """Channels of the low-level network."""
    low_shared: bool = False
    """One low-level channel for all score maps of a step; else each has its own."""


@dataclass(frozen=True)
class Regression:
    """BRN. The paper prints the channels alone."""

    channels: Channels = "two"
    width: int = 16
    depth: int = 3


class Output(NamedTuple):
    """What the network says of a batch, at the images' size."""

    scores_nkhw: Tensor
    """``(N, K+1, H, W)`` logits."""
    boundary_nhw: Tensor | None
    """``(N, H, W)`` logits of a boundary; ``None`` without BRN."""


def stack(inputs: int, width: int, outputs: int, depth: int, groups: int = 1) -> nn.Sequential:
    """``depth`` 3x3 with ReLU between. Outside of the picture lies what lies at its rim: zeros would be an edge there.

    Channels are counted for each group.
    """
    sides = [inputs, *[width] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sides):
        layers += [
            nn.Conv2d(before * groups, after * groups, 3, padding=1, padding_mode="replicate", groups=groups),
            nn.ReLU(inplace=True),
        ]
    found = nn.Sequential(*layers[:-1])
    for convolution in convolutions(found):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
    return found


class PRN(nn.Module):
    """Prediction refinement (section 3.1): twofold upsampling, step by step, each with low-level details.

    At a step the score maps are upsampled; beside each one low-level channel is laid; convolutions refine the pair,
    and their result is added to the upsampled map. The last convolution of a step starts near zero, so PRN starts as
    plain upsampling. Fig. 2 adds "the corresponding feature maps of deeplab": here those are DeepLab's as refined by
    the steps before [infer].
    """

    def __init__(self, maps: int, stride: int, params: Refinement) -> None:
        super().__init__()
        steps = round(math.log2(stride))
        if 2**steps != stride:
            raise ValueError(f"PRN doubles its maps: output stride {stride} must be a power of two")
        self.grouped = params.grouped
        self.low_maps = 1 if params.low_shared else maps
        self.low = stack(3, params.low_width, self.low_maps * steps, LOW_LEVEL_CONVOLUTIONS)
        groups = maps if params.grouped else 1
        self.steps = nn.ModuleList(stack(2, params.width, 1, params.depth, groups) for _ in range(steps))
        for step in self.steps:
            deeplab.init_classifier([*convolutions(step)][-1])

    def forward(self, scores_nkhw: Tensor, images_nchw: Tensor) -> Tensor:
        """``(N, K+1, h, w)``, and the normalised images ``(N, 3, H, W)`` -> ``(N, K+1, H, W)``."""
        size = (images_nchw.shape[2], images_nchw.shape[3])
        lows = self.low(images_nchw).split(self.low_maps, 1)
        scores = scores_nkhw
        for number, (step, low) in enumerate(zip(self.steps, lows, strict=True), start=1):
            scores = resize(scores, step_size(size, 2 ** (len(self.steps) - number)))
            scores = scores + self.refined(step, scores, low)
        return scores

    def refined(self, step: nn.Module, scores_nkhw: Tensor, low_nchw: Tensor) -> Tensor:
        """What one step adds: ``(N, K+1, h, w)`` scores and the low-level map(s) of any size -> ``(N, K+1, h, w)``."""
        n, maps, h, w = scores_nkhw.shape
        low = low_nchw if low_nchw.shape[2:] == (h, w) else F.adaptive_avg_pool2d(low_nchw, (h, w))
        # Laid side by side: the memory format in which convolutions of few channels are quick, without a copy.
        pairs = torch.stack([scores_nkhw, low.expand(n, maps, h, w)], -1).movedim(-1, 2)
        found: Tensor = step(pairs.flatten(1, 2) if self.grouped else pairs.flatten(0, 1))
        return found.reshape(n, maps, h, w)


def step_size(size_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of the grid at ``stride`` of an image of ``size_hw``; part cells count."""
    return -(-size_hw[0] // stride), -(-size_hw[1] // stride)


class BRN(nn.Module):
    """Boundary regression (section 3.2): convolutions from score maps to one map of boundaries."""

    def __init__(self, maps: int, params: Regression) -> None:
        super().__init__()
        self.channels = params.channels
        self.layers = stack(2 if params.channels == "two" else maps, params.width, 1, params.depth)
        last = [*convolutions(self.layers)][-1]
        deeplab.init_classifier(last)
        nn.init.constant_(cast(Tensor, last.bias), math.log(EDGE_SHARE / (1 - EDGE_SHARE)))

    def forward(self, scores_nkhw: Tensor) -> Tensor:
        """``(N, K+1, H, W)`` scores -> ``(N, H, W)`` logits of a boundary."""
        read = background_foreground(scores_nkhw) if self.channels == "two" else scores_nkhw
        found: Tensor = self.layers(read)
        return found[:, 0]


def foreground(scores_nkhw: Tensor) -> Tensor:
    """BPG, eq. 1 and Fig. 3: the largest foreground score at each pixel, ``(N, K+1, H, W)`` -> ``(N, 1, H, W)``.

    The whole gradient goes to the one channel that gave the value, under ties to one of them: ``amax`` would share it.
    """
    return scores_nkhw[:, 1:].max(dim=1, keepdim=True).values


def background_foreground(scores_nkhw: Tensor) -> Tensor:
    """The two class-agnostic maps of section 3.2 (C = 2): ``(N, K+1, H, W)`` -> ``(N, 2, H, W)``.

    Edges reach both of them, as Table 2's C = 2 says. Section 3.2 also has "only the resultant foreground channel".
    """
    return torch.cat([scores_nkhw[:, :1], foreground(scores_nkhw)], 1)


def scribbled_pixels(labels_nhw: Tensor, inside_nhw: Tensor, least_share: float = LEAST_SHARE) -> Tensor:
    """What both losses' sums are divided by: the labelled pixels of the batch, on average over the ranks.

    The paper's losses are sums (eq. 2, 3). Divided by one number, lambda 1 means what is printed; by the mean over
    ranks, since gradients are averaged over them. At least ``least_share`` of the picture's pixels ``inside_nhw``.
    """
    counts = torch.stack([(labels_nhw != UNDECIDED).sum(), inside_nhw.sum()]).float()
    labelled, inside = rank_mean(counts).unbind()
    return torch.maximum(labelled, least_share * inside).clamp(min=1)


def semantic_loss(scores_nkhw: Tensor, labels_nhw: Tensor, count: Tensor) -> Tensor:
    """BPG, eq. 2: partial cross entropy, summed over the scribbled pixels (not 255), over ``count``."""
    total = F.cross_entropy(scores_nkhw.float(), labels_nhw.long(), ignore_index=UNDECIDED, reduction="sum")
    return total / count


def boundary_loss(boundary_nhw: Tensor, edges_nhw: Tensor, inside_nhw: Tensor, count: Tensor) -> Tensor:
    """BPG, eq. 3: squared difference of predicted and given edge probability, summed over the picture, over ``count``.

    ``boundary_nhw`` are logits, ``edges_nhw`` 0..1; padding, where ``inside_nhw`` is False, is left out.
    """
    return ((boundary_nhw.float().sigmoid() - edges_nhw).square() * inside_nhw).sum() / count


def total_loss(semantic: Tensor, boundary: Tensor, weight: float) -> Tensor:
    """BPG, eq. 4: ``weight`` is lambda."""
    return semantic + weight * boundary


class BPG(Segmenter):
    """DeepLab and what the paper adds to it, which a DeepLab's checkpoint need not hold to be a start."""

    ADDED: ClassVar[str] = "added."

    def __init__(self, base: deeplab.DeepLab, prn: PRN | None, brn: BRN | None) -> None:
        super().__init__()
        self.normalise = base.normalise
        self.backbone = base.backbone
        self.head = base.head
        self.loss_at = "crop"
        self.added = nn.ModuleDict()
        if prn is not None:
            self.added["prn"] = prn
        if brn is not None:
            self.added["brn"] = brn
        self.boundary_weight = 1.0
        """Lambda of eq. 4."""
        self.least_share = LEAST_SHARE
        self.boundary_last = False
        """Whether :meth:`logits` and :meth:`probabilities` have one more channel, the boundary's, behind the classes':
        one inference gives both."""

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """See :func:`models.deeplab.load_backbone`."""
        deeplab.load_backbone(self, state, source=source)

    def forward(self, images_nchw: Tensor, labels_nhw: Tensor | None = None) -> Output:
        """``(N, 3, H, W)`` RGB 0..255 -> scores and boundary at the images' size. Labels are not used."""
        images = self.normalise(images_nchw)
        scores = self.head(self.backbone(images))
        if "prn" in self.added:
            scores = self.added["prn"](scores, images)
        else:
            scores = resize(scores, (images.shape[2], images.shape[3]))
        return Output(scores, self.added["brn"](scores) if "brn" in self.added else None)

    def logits(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """The scores, brought to ``size_hw`` bilinearly; see :attr:`boundary_last`."""
        return self._at(images_nchw, size_hw, probable=False)

    def probabilities(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Softmax of the scores, sigmoid of the boundary."""
        return self._at(images_nchw, size_hw, probable=True)

    def _at(self, images_nchw: Tensor, size_hw: tuple[int, int], *, probable: bool) -> Tensor:
        images, share = self.whole(images_nchw)
        output = self(images)
        scores = resize(output.scores_nkhw.float(), size_hw, share)
        maps = scores.softmax(1) if probable else scores
        if not self.boundary_last or output.boundary_nhw is None:
            return maps
        boundary = resize(output.boundary_nhw[:, None].float(), size_hw, share)
        return torch.cat([maps, boundary.sigmoid() if probable else boundary], 1)

    def losses(self, output: Output, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss`` (eq. 4), and without gradient ``semantic``, ``boundary`` and ``edge``, a pixel's mean of it.

        Of ``batch``: ``labels`` ``(N, H, W)`` integers, 255 off the scribbles; ``inside`` ``(N, H, W)``, False on
        padding; with BRN ``edges`` ``(N, H, W)`` in 0..1.
        """
        labels, inside = batch["labels"], batch["inside"]
        count = scribbled_pixels(labels, inside, self.least_share)
        semantic = semantic_loss(output.scores_nkhw, labels, count)
        if output.boundary_nhw is None:
            return {"loss": semantic, "semantic": semantic.detach()}
        boundary = boundary_loss(output.boundary_nhw, batch["edges"], inside, count)
        return {
            "loss": total_loss(semantic, boundary, self.boundary_weight),
            "semantic": semantic.detach(),
            "boundary": boundary.detach(),
            "edge": boundary.detach() * count / inside.sum().clamp(min=1),
        }


def build(
    name: str,
    outputs: int,
    *,
    refinement: Refinement | None = Refinement(),
    regression: Regression | None = Regression(),
    normalisation: Normalisation = IMAGENET,
    atrous: Atrous = "paper",
    width: int = 16,
    output_stride: OutputStride = 8,
    batch_norm: BatchNorm = "frozen",
    head_multipliers: tuple[float, float] | None = None,
) -> BPG:
    """BPG with ``outputs`` = K + 1 score maps on any of DeepLab's networks; options as :func:`models.deeplab.build`'s.

    ``refinement``, ``regression``: PRN, BRN, or ``None`` to leave it out. DeepLab's own numbers are the same with both,
    one or none of them. What is added learns as fast as DeepLab's classifier [infer]. Raises ``ValueError`` as there.
    """
    base = deeplab.build(
        name,
        outputs,
        normalisation=normalisation,
        atrous=atrous,
        width=width,
        output_stride=output_stride,
        batch_norm=batch_norm,
        head_multipliers=head_multipliers,
    )
    prn = None if refinement is None else PRN(outputs, output_stride, refinement)
    brn = None if regression is None else BRN(outputs, regression)
    network = BPG(base, prn, brn)
    network.rules = tuple(of_base(rule) for rule in base.rules)
    if network.added:
        weights, biases = deeplab.multipliers_of(name, head_multipliers)
        network.rules += (
            GroupRule("added-weights", _added(".weight"), weights),
            GroupRule("added-biases", _added(".bias"), biases, decay=False),
        )
    return network


def of_base(rule: GroupRule) -> GroupRule:
    """A DeepLab's group without what is added to it: LargeFOV's groups are "all weights" and "all biases"."""
    return replace(rule, matches=lambda name: not name.startswith(BPG.ADDED) and rule.matches(name))


def _added(suffix: str) -> Any:
    return lambda name: name.startswith(BPG.ADDED) and name.endswith(suffix)
