"""RRM: one backbone, a classifier of tags and a segmentation head, trained together.

Zhang et al., "Reliability Does Matter: An End-to-End Weakly Supervised Semantic Segmentation Approach", AAAI 2020.
The classifier's maps (:mod:`models.cam`) say which pixels are certain; the head learns from those (eq. 9) and from all
pixels that look alike (eq. 10 to 14, :mod:`models.crf.energy`). The backbone learns from all three losses, the
classifier from its own alone, the head from the other two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import Atrous, BatchNorm, Pretrained
from models.cam import class_scores, classifier_rule, multi_scale_maps, multilabel_soft_margin
from models.crf.energy import dense_energy_loss
from models.deeplab import backbone_rules, build_backbone, head_rules, init_classifier, load_part, multipliers_of
from models.losses import UNDECIDED, balanced_cross_entropy
from models.names import OutputStride, check_choices
from models.network import Segmenter
from models.normalise import IMAGENET, Normalisation, Normalise
from models.resample import resize

HIDDEN, RATE = 512, 12
"""Channels [code] and dilation [paper] of the head's first convolution, at output stride 8."""


class Output(NamedTuple):
    """What both branches say of a batch."""

    scores_nk: Tensor
    """The classifier's, of K classes."""
    logits_nkhw: Tensor
    """The head's, of K + 1 labels at the output grid."""


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts, and the energy's kernel (:func:`models.crf.energy.dense_energy_loss`)."""

    classes: float = 1.0
    labels: float = 1.0
    energy: float = 1e-7
    """[code]: of the unnormalised sum on 160 x 160 pixels, carried to other sizes. 0: no energy."""
    sigma_xy: float = 100.0
    sigma_rgb: float = 15.0
    scale: float = 0.5
    threads: int = 1


class Head(nn.Module):
    """Two 3x3 of the same dilation with a ReLU between: 12 at output stride 8 ("Implementation Details")."""

    def __init__(self, channels: int, hidden: int, outputs: int, rate: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate)
        self.conv2 = nn.Conv2d(hidden, outputs, 3, padding=rate, dilation=rate)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(cast(Tensor, self.conv1.bias))
        init_classifier(self.conv2)

    def forward(self, features_nchw: Tensor) -> Tensor:
        """``(N, channels, h, w)`` -> ``(N, outputs, h, w)``."""
        return cast(Tensor, self.conv2(F.relu(self.conv1(features_nchw))))


class RRM(Segmenter):
    """Both branches. As a segmenter it is its head. A trained :class:`models.cam.CamNet` is a start for it, too."""

    ADDED: ClassVar[str] = "head."

    def __init__(
        self, backbone: Pretrained, channels: int, classes: int, hidden: int, rate: int, normalisation: Normalisation
    ) -> None:
        super().__init__()
        self.normalise = Normalise(normalisation)
        self.backbone = backbone
        self.classifier = nn.Conv2d(channels, classes, 1, bias=False)
        self.head = Head(channels, hidden, classes + 1, rate)
        self.loss_at = "crop"
        self.weights = LossWeights()
        init_classifier(self.classifier)

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """See :func:`models.deeplab.load_part`."""
        load_part(cast(Pretrained, self.backbone), state, source=source)

    def forward(self, images_nchw: Tensor, inside_nhw: Tensor | None = None) -> Output:
        """``(N, 3, H, W)`` RGB 0..255, and ``(N, H, W)``: 0 on padding -> what both branches say."""
        features = self.features(images_nchw)
        return Output(class_scores(self.classifier, features, inside_nhw), self.head(features))

    def logits(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """The head's, brought to ``size_hw`` bilinearly."""
        images, share = self.whole(images_nchw)
        return resize(self.head(self.features(images)).float(), size_hw, share)

    def probabilities(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Softmax of :meth:`logits`."""
        return self.logits(images_nchw, size_hw).softmax(1)

    def maps(self, images_nchw: Tensor, size_hw: tuple[int, int], scales: Sequence[float]) -> Tensor:
        """The classifier's maps before eq. 3 (:func:`models.cam.multi_scale_maps`): ``(N, K, *size_hw)``."""
        return multi_scale_maps(self, self.classifier, images_nchw, size_hw, scales)

    def losses(self, output: Output, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss``, and its parts without gradient. ``batch``: see :func:`joint_losses`."""
        return joint_losses(output, batch, self.weights)


def joint_losses(output: Output, batch: Mapping[str, Any], weights: LossWeights) -> dict[str, Tensor]:
    """L = L_class + L_joint_seg (Algorithm 1, eq. 8), and its parts ``class``, ``ce``, ``energy``, without gradient.

    Of ``batch``: ``image`` ``(N, 3, H, W)`` RGB 0..255, ``tags`` ``(N, K)``, ``labels`` ``(N, H, W)`` with 255 where
    no label is reliable, ``inside`` ``(N, H, W)``: False on padding, which is in no loss. Without any label the head
    has no gradient but the energy's.
    """
    images, labels, inside = batch["image"], batch["labels"], batch["inside"]
    labels = torch.where(inside, labels, torch.full_like(labels, UNDECIDED))
    of_class = multilabel_soft_margin(output.scores_nk, batch["tags"])
    logits = resize(output.logits_nkhw.float(), (labels.shape[1], labels.shape[2]))
    of_labels = balanced_cross_entropy(logits, labels)
    parts = {"class": of_class, "ce": of_labels}
    loss = weights.classes * of_class + weights.labels * of_labels
    if weights.energy:
        parts["energy"] = dense_energy_loss(
            logits.softmax(1),
            images,
            labels != UNDECIDED,
            inside,
            sigma_xy=weights.sigma_xy,
            sigma_rgb=weights.sigma_rgb,
            scale=weights.scale,
            weight=weights.energy,
            threads=weights.threads,
        )
        loss = loss + parts["energy"]
    return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


def build(
    name: str,
    classes: int,
    *,
    normalisation: Normalisation = IMAGENET,
    atrous: Atrous = "paper",
    width: int = 16,
    output_stride: OutputStride = 8,
    batch_norm: BatchNorm = "frozen",
    head_multipliers: tuple[float, float] | None = None,
) -> RRM:
    """RRM of ``classes`` K on any of DeepLab's backbones; options as :func:`models.deeplab.build`'s.

    The head's dilation is the same in pixels at every stride, 96. On the tiny backbone, whose maps are 12 cells wide,
    it is 3, and the hidden layer as wide as the map. Rates are 1 for the backbone, 10 for weights and 20 for biases of
    the rest [code]. Random numbers come from torch's global generator.
    """
    if classes < 1:
        raise ValueError(f"classes {classes} must be at least 1")
    check_choices(name, batch_norm, head_multipliers)
    body = build_backbone(name, atrous=atrous, width=width, output_stride=output_stride, batch_norm=batch_norm)
    hidden, rate = (body.channels, 3) if name == "tiny" else (HIDDEN, round(RATE * 8 / output_stride))
    network = RRM(body, body.channels, classes, hidden, rate, normalisation)
    heads = (classifier_rule(name, head_multipliers), *head_rules(*multipliers_of(name, head_multipliers)))
    network.rules = (*backbone_rules(name, network), *heads)
    return network
