"""Class activation maps: where in a picture a classifier that knows only its tags looks.

Zhang et al., "Reliability Does Matter" (RRM), AAAI 2020, eq. 1 to 3, after Zhou et al., CVPR 2016: global average
pooling and a linear classifier; the classifier on the feature map itself is the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import Atrous, BatchNorm, Pretrained
from models.deeplab import backbone_rules, build_backbone, init_classifier, load_part, multipliers_of
from models.groups import GroupRule
from models.names import OutputStride, check_choices
from models.network import BackboneNetwork
from models.normalise import IMAGENET, Normalisation, Normalise
from models.resample import MIN_SIDE, extend, resize, scale_images

SCALES = (0.5, 1.0, 1.5, 2.0)
"""The paper's."""


def activation(
    features_nchw: Tensor, weight_kc: Tensor, size_hw: tuple[int, int], share_hw: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """RRM, eq. 1: ``M_c = RS(sum_ch w_ch^c F_ch)``, resized bilinearly to ``size_hw``; ``(N, K, *size_hw)``.

    In float32, under autocast too. With a ReLU before the resizing, as the released code has it: what speaks against a
    class is no evidence for it. ``share_hw``: of a picture that ends inside the last cells.
    """
    with torch.autocast(
        features_nchw.device.type, enabled=False
    ):  # it would undo float(), and pixels are ranked by this
        maps = F.conv2d(features_nchw.float(), weight_kc.float()[:, :, None, None])
        return resize(F.relu(maps), size_hw, share_hw)


def mean_over_scales(maps: Sequence[Tensor]) -> Tensor:
    """RRM, eq. 2: the mean of the maps ``(N, K, H, W)`` of all scales."""
    return torch.stack(list(maps)).mean(0)


def normalised(maps_nkhw: Tensor, tags_nk: Tensor) -> Tensor:
    """RRM, eq. 3: ``P_c = M_c / max M_c`` of the image's tags, 0 for all other classes: ``(N, K, H, W)`` in 0..1.

    ``tags_nk``: 1 (or True) for a tag, 0 elsewhere. A map that is zero everywhere stays zero.
    """
    own = maps_nkhw * tags_nk[:, :, None, None].to(maps_nkhw.dtype)
    highest = own.amax((2, 3), keepdim=True)
    return torch.where(highest > 0, own / highest.clamp(min=torch.finfo(own.dtype).tiny), torch.zeros_like(own))


def multilabel_soft_margin(scores_nk: Tensor, tags_nk: Tensor) -> Tensor:
    """The classifier's loss (RRM's L_class): ``-mean(t log s(x) + (1 - t) log s(-x))``, s the logistic function.

    The text says "softmax loss"; the released code has this one, which several tags of an image need.
    """
    return F.multilabel_soft_margin_loss(scores_nk.float(), tags_nk.float())


def average_inside(features_nchw: Tensor, inside_nhw: Tensor | None = None) -> Tensor:
    """Global average pooling: ``(N, C, h, w)`` -> ``(N, C)``.

    ``inside_nhw`` ``(N, H, W)``: 0 on padding. A cell counts by the share of it that is picture.
    """
    if inside_nhw is None:
        return features_nchw.mean((2, 3))
    size = (features_nchw.shape[2], features_nchw.shape[3])
    share = F.adaptive_avg_pool2d(inside_nhw[:, None].to(features_nchw.dtype), size)
    return (features_nchw * share).sum((2, 3)) / share.sum((2, 3)).clamp(min=1e-6)


class CamNet(BackboneNetwork):
    """Backbone, global average pooling, 1x1 classifier of K classes (no background) without bias."""

    def __init__(self, backbone: Pretrained, channels: int, classes: int, normalisation: Normalisation) -> None:
        super().__init__()
        self.normalise = Normalise(normalisation)
        self.backbone = backbone
        self.classifier = nn.Conv2d(channels, classes, 1, bias=False)
        init_classifier(self.classifier)

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """See :func:`models.deeplab.load_part`."""
        assert isinstance(self.backbone, Pretrained)
        load_part(self.backbone, state, source=source)

    def forward(self, images_nchw: Tensor, inside_nhw: Tensor | None = None) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255 -> a score for each class ``(N, K)``; above 0: there rather than not."""
        return self.scores(self.features(images_nchw), inside_nhw)

    def scores(self, features_nchw: Tensor, inside_nhw: Tensor | None = None) -> Tensor:
        """Scores ``(N, K)`` of a feature map ``(N, C, h, w)``."""
        return class_scores(self.classifier, features_nchw, inside_nhw)

    def maps(
        self,
        images_nchw: Tensor,
        size_hw: tuple[int, int],
        scales: Sequence[float] = SCALES,
        flip: bool = False,
    ) -> Tensor:
        """:func:`multi_scale_maps` of this network."""
        return multi_scale_maps(self, self.classifier, images_nchw, size_hw, scales, flip)


def class_scores(classifier: nn.Conv2d, features_nchw: Tensor, inside_nhw: Tensor | None = None) -> Tensor:
    """The classifier on the pooled feature map: ``(N, C, h, w)`` -> ``(N, K)``."""
    return F.linear(average_inside(features_nchw, inside_nhw), classifier.weight[:, :, 0, 0])


def multi_scale_maps(
    network: BackboneNetwork,
    classifier: nn.Conv2d,
    images_nchw: Tensor,
    size_hw: tuple[int, int],
    scales: Sequence[float] = SCALES,
    flip: bool = False,
) -> Tensor:
    """Eq. 1 and 2 of whole images: ``(N, 3, H, W)`` RGB 0..255 -> maps ``(N, K, *size_hw)`` before eq. 3.

    ``flip``: mirror images, too. Raises ``ValueError`` without any scale.
    """
    if not scales:
        raise ValueError("class activation maps need at least one scale")
    weight_kc = classifier.weight[:, :, 0, 0]
    found = []
    for scale in scales:
        scaled = scale_images(images_nchw.float(), scale)
        height, width = scaled.shape[2:]
        scaled, _ = network.whole(extend(scaled, MIN_SIDE))
        # The maps of an extended image, the extension cut off again.
        share = (height / scaled.shape[2], width / scaled.shape[3])
        for mirrored in (False, True) if flip else (False,):
            features = network.features(scaled.flip(3) if mirrored else scaled)
            found.append(activation(features.flip(3) if mirrored else features, weight_kc, size_hw, share))
    return mean_over_scales(found)


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
) -> CamNet:
    """A classifier of ``classes`` K on any of DeepLab's backbones; options as :func:`models.deeplab.build`'s.

    Random numbers come from torch's global generator. Raises ``ValueError`` as it does, and without a class.
    """
    if classes < 1:
        raise ValueError(f"classes {classes} must be at least 1")
    check_choices(name, batch_norm, head_multipliers)
    body = build_backbone(name, atrous=atrous, width=width, output_stride=output_stride, batch_norm=batch_norm)
    network = CamNet(body, body.channels, classes, normalisation)
    network.rules = (*backbone_rules(name, network), classifier_rule(name, head_multipliers))
    return network


def classifier_rule(name: str, head_multipliers: tuple[float, float] | None) -> GroupRule:
    """The classifier's group: as a head's weights, 10 times the backbone's rate by default."""
    multiplier, _ = multipliers_of(name, head_multipliers)
    return GroupRule("classifier", lambda own: own.startswith("classifier."), multiplier)
