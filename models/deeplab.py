"""DeepLab: LargeFOV on VGG-16, v2 on ResNet-18/50/101, v2's head on other backbones, and a tiny one, in one class.

``network(images)`` is ``head(features(images))``, so that a module (LGSA, say) can be put between the two. Logits
are given at the output grid (:data:`models.names.SEGMENTERS`); :mod:`models.losses` brings them to the labels' size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import (
    Atrous,
    BatchNorm,
    Pretrained,
    ResNetBackbone,
    TinyBackbone,
    VggBackbone,
    convolutions,
)
from models.groups import GroupRule
from models.lite0 import Lite0Backbone
from models.losses import LossAt, summed_loss
from models.names import OutputStride, check_choices, check_stride, is_free, is_timm
from models.network import Segmenter
from models.normalise import IMAGENET, Normalisation, Normalise
from models.resample import resize, scale_images, whole_cells
from models.resnet38 import ResNet38Backbone
from models.timm_backbone import TimmBackbone

Body = VggBackbone | TinyBackbone | Lite0Backbone | TimmBackbone | ResNet38Backbone | ResNetBackbone

ASPP_RATES = (6, 12, 18, 24)
"""DeepLab v2's, at output stride 8."""
TINY_RATES = (1, 2, 3, 4)
INPUT_SCALES = (1.0, 0.75, 0.5)
"""DeepLab v2's multi-scale inputs, the full one first."""


class Aspp(nn.Module):
    """Atrous spatial pyramid of DeepLab v2 (its Fig. 7): parallel 3x3 with bias, one per rate, logits summed."""

    def __init__(self, channels: int, outputs: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(channels, outputs, 3, padding=r, dilation=r) for r in rates)
        for convolution in convolutions(self):
            init_classifier(convolution)

    def forward(self, features_nchw: Tensor) -> Tensor:
        """``(N, channels, h, w)`` -> ``(N, outputs, h, w)``."""
        return torch.stack([branch(features_nchw) for branch in self.branches]).sum(0)


class LargeFovHead(nn.Module):
    """fc6 (3x3, dilation 12), fc7, fc8 of DeepLab-LargeFOV, each hidden layer 1,024 wide with dropout."""

    def __init__(self, channels: int, outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(channels, 1024, 3, padding=12, dilation=12)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.fc8 = nn.Conv2d(1024, outputs, 1)
        self.drop = nn.Dropout(dropout)
        for convolution in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, convolution.bias))
        init_classifier(self.fc8)

    def forward(self, features_nchw: Tensor) -> Tensor:
        """``(N, channels, h, w)`` -> ``(N, outputs, h, w)``."""
        x = self.drop(F.relu(self.fc6(features_nchw)))
        x = self.drop(F.relu(self.fc7(x)))
        return cast(Tensor, self.fc8(x))


def init_classifier(convolution: nn.Conv2d) -> None:
    """Gaussian of deviation 0.01 and zero bias, as the released DeepLab networks start their classifiers."""
    nn.init.normal_(convolution.weight, std=0.01)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


class DeepLab(Segmenter):
    """Normalisation, backbone, head. ``rules`` declare the learning-rate groups (:mod:`models.groups`)."""

    def __init__(
        self,
        backbone: Pretrained,
        head: nn.Module,
        rules: Sequence[GroupRule],
        normalisation: Normalisation,
        *,
        loss_at: LossAt = "crop",
    ) -> None:
        super().__init__()
        self.normalise = Normalise(normalisation)
        self.backbone = backbone
        self.head = head
        self.rules = tuple(rules)
        self.loss_at = loss_at

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """See :func:`load_backbone`."""
        load_backbone(self, state, source=source)

    def forward(self, images_nchw: Tensor, labels_nhw: Tensor | None = None) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255 -> logits ``(N, K+1, h, w)`` at the output stride, background first.

        Labels are for segmenters that are guided by them; this one is not.
        """
        return cast(Tensor, self.head(self.features(images_nchw)))

    def logits(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """The head's, brought to ``size_hw`` bilinearly."""
        images, share = self.whole(images_nchw)
        return resize(self(images).float(), size_hw, share)

    def probabilities(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Softmax of :meth:`logits`."""
        return self.logits(images_nchw, size_hw).softmax(1)

    def losses(self, output: Tensor | Sequence[Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss``: cross entropy, summed over the outputs where there are several."""
        return {"loss": summed_loss(output, batch["labels"], self.loss_at)}


def build(
    name: str,
    outputs: int,
    *,
    normalisation: Normalisation = IMAGENET,
    atrous: Atrous = "paper",
    dropout: float = 0.5,
    width: int = 16,
    output_stride: OutputStride = 8,
    batch_norm: BatchNorm = "frozen",
    head_multipliers: tuple[float, float] | None = None,
    loss_at: LossAt = "crop",
) -> DeepLab:
    """A DeepLab with ``outputs`` = K + 1 score maps, randomly initialised from torch's global generator.

    Sizes with 21 outputs: LargeFOV 20,505,429 parameters; ResNet-101 44,048,532, of which 105,344 are the frozen
    batch norms' affine ones; Lite0 3,200,852. ``atrous`` matters to the ResNets, ``dropout`` to LargeFOV, ``width`` to
    the tiny one, ``batch_norm`` and ``head_multipliers`` (10 and 20) to ``lite0`` and ``timm:NAME``. ``loss_at``: see
    :func:`models.losses.segmentation_loss`. Raises ``ValueError`` for an unknown name, fewer than 2 outputs or a
    stride that the network has not.
    """
    if outputs < 2:
        raise ValueError(f"a segmenter needs background and at least one class: outputs {outputs} must be >= 2")
    check_choices(name, batch_norm, head_multipliers)
    body = build_backbone(name, atrous=atrous, width=width, output_stride=output_stride, batch_norm=batch_norm)
    if name == "largefov":
        head = LargeFovHead(body.channels, outputs, dropout)
        return DeepLab(body, head, LARGEFOV_RULES, normalisation, loss_at=loss_at)
    rates = TINY_RATES if name == "tiny" else aspp_rates(output_stride)
    network = DeepLab(body, Aspp(body.channels, outputs, rates), RESNET_RULES, normalisation, loss_at=loss_at)
    network.rules = (*backbone_rules(name, network), *head_rules(*multipliers_of(name, head_multipliers)))
    return network


def build_backbone(
    name: str,
    *,
    atrous: Atrous = "paper",
    width: int = 16,
    output_stride: OutputStride = 8,
    batch_norm: BatchNorm = "frozen",
) -> Body:
    """The backbone alone, options as :func:`build`'s; any of :data:`models.names.SEGMENTERS`."""
    check_stride(name, output_stride)
    check_choices(name, batch_norm, None)
    if name == "largefov":
        return VggBackbone()
    if name == "tiny":
        return TinyBackbone(width, cast(Literal[4, 8], output_stride))
    if name == "lite0":
        return Lite0Backbone(cast(Literal[8, 16, 32], output_stride), batch_norm)
    if is_timm(name):
        return TimmBackbone(name, output_stride, batch_norm)
    if name == "resnet38":
        return ResNet38Backbone()
    return ResNetBackbone(cast(Literal[18, 50, 101], int(name.removeprefix("resnet"))), atrous)


def aspp_rates(output_stride: int) -> tuple[int, ...]:
    """DeepLab v2's rates, the same in pixels of the image: 6 to 24 at stride 8, half of them at 16."""
    return tuple(round(rate * 8 / output_stride) for rate in ASPP_RATES)


def _in(prefix: str, suffix: str = "") -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix) and name.endswith(suffix)


def _largefov_body(suffix: str) -> Callable[[str], bool]:
    return lambda name: not name.startswith("head.fc8.") and name.endswith(suffix)


def head_rules(weights: float, biases: float) -> tuple[GroupRule, ...]:
    """The head's groups with these multipliers of the learning rate; biases without decay."""
    return (
        GroupRule("head-weights", _in("head.", ".weight"), weights),
        GroupRule("head-biases", _in("head.", ".bias"), biases, decay=False),
    )


def multipliers_of(name: str, chosen: tuple[float, float] | None) -> tuple[float, float]:
    """What a head's weights and biases learn faster than the backbone ``name``: as chosen, else as printed.

    1 where everything starts from scratch, so that nothing has to catch up with a pretrained backbone.
    """
    return chosen or ((1.0, 1.0) if name == "tiny" else (10.0, 20.0))


RESNET_RULES = (GroupRule("backbone", _in("backbone."), 1.0), *head_rules(10.0, 20.0))
"""1/10/20: the backbone has no biases (its batch norms are frozen)."""


def flat_rules(name: str, network: nn.Module, prefixes: str | tuple[str, ...]) -> tuple[GroupRule, ...]:
    """Groups of a pretrained part of any family: weights, and norms and biases (all that is flat) without decay.

    Names differ from family to family, shapes do not. A group that would be empty is left out: with frozen batch norms
    there may be nothing flat to train. ``prefixes``: of the part's names in the network.
    """
    trained = {
        own: parameter.ndim
        for own, parameter in network.named_parameters()
        if parameter.requires_grad and own.startswith(prefixes)
    }
    weights = frozenset(own for own, ndim in trained.items() if ndim > 1)
    flat = frozenset(trained) - weights
    found = (
        GroupRule(name, weights.__contains__, 1.0),
        GroupRule(f"{name}-norms-and-biases", flat.__contains__, 1.0, decay=False),
    )
    return found if flat else found[:1]


def backbone_rules(name: str, network: nn.Module) -> tuple[GroupRule, ...]:
    """Groups of the part under ``backbone.`` of a network on the backbone ``name``; its heads add theirs."""
    if is_free(name):
        return flat_rules("backbone", network, "backbone.")
    if name == "largefov":
        return (
            GroupRule("backbone-weights", _in("backbone.", ".weight"), 1.0),
            GroupRule("backbone-biases", _in("backbone.", ".bias"), 2.0, decay=False),
        )
    return RESNET_RULES[:1]


LARGEFOV_RULES = (
    GroupRule("weights", _largefov_body(".weight"), 1.0),
    GroupRule("biases", _largefov_body(".bias"), 2.0, decay=False),
    GroupRule("classifier-weights", _in("head.fc8.", ".weight"), 10.0),
    GroupRule("classifier-biases", _in("head.fc8.", ".bias"), 20.0, decay=False),
)
"""1/2/10/20, biases without decay, fc6 and fc7 among the body: the released LargeFOV solver's ``lr_mult``."""


class MultiScaleInputs(nn.Module):
    """DeepLab v2's multi-scale inputs: the same network at scales 1, .75, .5, fused by the maximum.

    A module of its own (no loop around calls), so that DDP and ``torch.compile`` see one forward. The network's
    own weights are ``self.network``'s.
    """

    def __init__(self, network: nn.Module, output_stride: int, scales: Sequence[float] = INPUT_SCALES) -> None:
        super().__init__()
        self.network = network
        self.output_stride = output_stride
        self.scales = tuple(scales)

    def forward(self, images_nchw: Tensor, labels_nhw: Tensor | None = None) -> list[Tensor]:
        """``(N, 3, H, W)`` -> ``[fused, *one per scale]``; each gets a loss. The fused one is at the largest grid."""
        images = images_nchw.float()
        logits = [self._over_the_picture(scale_images(images, scale)) for scale in self.scales]
        return [fuse_max(logits), *logits]

    def _over_the_picture(self, images_nchw: Tensor) -> Tensor:
        """Logits whose cells cover the picture evenly, however many pixels of it a cell has."""
        images, share = whole_cells(images_nchw, self.output_stride)
        logits = self.network(images)
        return resize(logits, (logits.shape[2], logits.shape[3]), share)


def fuse_max(logits: Sequence[Tensor]) -> Tensor:
    """Element-wise maximum of ``(N, K+1, h_i, w_i)`` logits, brought to the first one's grid bilinearly."""
    size = (logits[0].shape[2], logits[0].shape[3])
    # max over a new dimension, not amax: under ties the gradient goes to one scale, whole.
    return torch.stack([resize(item, size) for item in logits]).max(dim=0).values


def load_backbone(network: Segmenter, state: Mapping[str, Tensor], *, source: str) -> None:
    """:func:`load_part` of ``network.backbone``; VGG's fc6/fc7 go into LargeFOV's head, too."""
    load_part(cast(Pretrained, network.backbone), state, source=source)
    if isinstance(network.head, LargeFovHead) and "classifier.0.weight" in state:
        decimate_fc(network.head, state)


def load_part(part: Pretrained, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load the ImageNet state dict of the part's provider: torchvision's names, Lite0's package's, or timm's.

    The classifier's keys are left out, everything else must match. Raises ``ValueError`` naming ``source`` and
    the first missing, surplus or differently shaped keys.
    """
    own = part.state_dict()
    names = part.provider_names()
    left_out = part.left_out(state)
    found = {name: value for name, value in state.items() if name not in left_out}
    # Old torchvision files lack this counter; with torch's fixed momentum it changes nothing.
    counters = {name for name in names.values() if name.endswith("num_batches_tracked")}
    expected = {names[name]: value for name, value in own.items() if names[name] not in counters}
    check_same_keys(expected, found, counters, source)
    part.load_state_dict({**own, **{name: found[theirs] for name, theirs in names.items() if theirs in found}})


def decimate_fc(head: LargeFovHead, state: Mapping[str, Tensor]) -> None:
    """fc6 and fc7 from VGG-16's 4,096-wide ones: every 4th filter, and of fc6's 7x7 positions 0, 3, 6.

    DeepLab v1 (sec. 3.1) starts from such a subsampled VGG; the filter responses keep their meaning.
    """
    fc6 = state["classifier.0.weight"].view(-1, head.fc6.in_channels, 7, 7)[::4, :, ::3, ::3]
    fc7 = state["classifier.3.weight"][::4, ::4, None, None]
    with torch.no_grad():
        head.fc6.weight.copy_(fc6)
        head.fc7.weight.copy_(fc7)
        cast(Tensor, head.fc6.bias).copy_(state["classifier.0.bias"][::4])
        cast(Tensor, head.fc7.bias).copy_(state["classifier.3.bias"][::4])


def check_same_keys(
    expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], optional: set[str], source: str
) -> None:
    """Raise ``ValueError`` naming ``source`` and the first keys that are missing, surplus or of another shape."""
    problems = []
    if missing := sorted(set(expected) - set(actual)):
        problems.append(f"{len(missing)} keys missing, first {missing[:3]}")
    if surplus := sorted(set(actual) - set(expected) - optional):
        problems.append(f"{len(surplus)} keys unknown to this network, first {surplus[:3]}")
    shapes = [
        f"{name}: file {tuple(actual[name].shape)}, network {tuple(value.shape)}"
        for name, value in expected.items()
        if name in actual and actual[name].shape != value.shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} shapes differ, first {shapes[:3]}")
    if problems:
        raise ValueError(f"{source} does not fit this network: " + "; ".join(problems))
