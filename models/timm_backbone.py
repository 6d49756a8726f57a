"""Any of timm's models as a backbone (``timm:NAME``), under the names of its own ``state_dict()``.

timm is imported when such a network is built. Nothing is downloaded here: weights are read elsewhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import BatchNorm, Pretrained
from models.names import TIMM
from models.normalise import NORMALISATIONS, Normalisation

PROBE = 128
"""Side of the picture without numbers that a model's maps are measured with."""


WHOLE = 32
"""Sides that are multiples of this are halved without a rest."""


class TimmBody(Pretrained):
    """A model's maps at the levels ``indices`` (all: ``None``).

    ``batch_norm="frozen"``: batch norms are fixed affine maps at the loaded statistics. Norms without statistics of
    their own (layer and group norms) do not depend on the batch: they are trained either way. Raises ``ValueError``
    for an unknown name, an output stride that the model cannot have, or a model that takes one picture size only.
    """

    def __init__(
        self, network: str, output_stride: int, indices: Sequence[int] | None, batch_norm: BatchNorm = "frozen"
    ) -> None:
        super().__init__()
        self.network = network
        self.net = _features(network, output_stride, indices)
        self.frozen = [m for m in self.net.modules() if _is_batch_norm(m)] if batch_norm == "frozen" else []
        for parameter in (p for module in self.frozen for p in module.parameters()):
            parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TimmBody:
        """Frozen norms stay in eval mode, whatever ``mode`` is."""
        super().train(mode)
        for module in self.frozen:
            module.train(False)
        return self

    def maps(self, images_nchw: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` normalised -> the levels' maps, ``(N, C, h, w)``."""
        return _maps(self.net, images_nchw)

    def provider_names(self) -> dict[str, str]:
        """timm's names: its feature extractors write other dots and underscores than the whole model."""
        own = {_plain(name.removeprefix("net.").removeprefix("model.")): name for name in self.state_dict()}
        whole = {_plain(name): name for name in _whole_names(self.network)}
        return {name: whole.get(plain, name) for plain, name in own.items()}

    def left_out(self, provided: Iterable[str]) -> set[str]:
        """What the whole model has and its maps do not need: the classifier, say."""
        return set(provided) & set(_whole_names(self.network)) - set(self.provider_names().values())


class TimmBackbone(TimmBody):
    """DeepLab's: the last map at ``output_stride``. The picture is padded to whole cells, so that any side fits."""

    def __init__(self, network: str, output_stride: int = 16, batch_norm: BatchNorm = "frozen") -> None:
        super().__init__(network, output_stride, (len(reductions(network, output_stride)) - 1,), batch_norm)
        self.output_stride = output_stride
        self.channels = int(_info(self.net).channels()[-1])

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised -> ``(N, channels, ceil(H/stride), ceil(W/stride))``."""
        return self.maps(pad_to(images_nchw, self.output_stride))[-1]

    def cells(self, side: int) -> int:
        """Cells of the map along ``side`` pixels."""
        return -(-side // self.output_stride)


class TimmEncoder(TimmBody):
    """The U-Net's: one map per halving, from stride 2 or 4 on. Sides must be multiples of :data:`WHOLE`.

    Raises ``ValueError`` as :func:`levels`, and for a model whose first layer is no convolution.
    """

    def __init__(self, network: str, batch_norm: BatchNorm = "trained") -> None:
        super().__init__(network, 32, levels(network), batch_norm)
        self.channels = tuple(int(channels) for channels in _info(self.net).channels())
        self.first = self._first_convolution()

    def _first_convolution(self) -> str:
        first = _plain(str(_config(self.network).first_conv))
        for name, module in self.net.named_modules():
            if _plain(name.removeprefix("model.")) == first and isinstance(module, nn.Conv2d):
                return str(name)
        raise ValueError(f"network {self.network!r} does not begin with a convolution; set network to one that does")

    @property
    def conv1(self) -> nn.Conv2d:
        """The first convolution, whose further input channels the priors are."""
        return cast(nn.Conv2d, self.net.get_submodule(self.first))

    def forward(self, images_nchw: Tensor, prior_nchw: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` normalised, and what the priors add to conv1's output -> one map per halving."""
        # Models name and use their first layer each in its own way: the sum is made where its output comes out.
        hook = self.conv1.register_forward_hook(lambda _module, _inputs, output: output + prior_nchw)
        try:
            return self.maps(images_nchw)
        finally:
            hook.remove()


def pad_to(images_nchw: Tensor, multiple: int) -> Tensor:
    """Zeros below and on the right, up to sides that are multiples of this."""
    below, right = (-side % multiple for side in images_nchw.shape[2:])
    return F.pad(images_nchw, (0, right, 0, below)) if below or right else images_nchw


def reductions(network: str, output_stride: int) -> list[int]:
    """Strides of a model's maps, the last of which is ``output_stride``. No weights are made.

    ``ValueError`` as :class:`TimmBody`'s, and for maps that do not divide the picture into whole cells.
    """
    with torch.device("meta"):
        net = _features(network, output_stride, None).eval()
        found = [int(stride) for stride in _info(net).reduction()]
        sides = [int(x.shape[2]) for x in _maps(net, torch.zeros(1, 3, PROBE, PROBE))]
    if found[-1] != output_stride:
        raise ValueError(_no_stride(network, output_stride, found[-1]))
    if sides != [PROBE // stride for stride in found]:
        raise ValueError(f"network {network!r} crops the picture's rim from its maps; set network to another model")
    return found


def levels(network: str) -> list[int]:
    """Which of a model's maps a U-Net takes: one per halving. ``ValueError`` for a model that has no such maps."""
    strides = reductions(network, 32)
    found = [level for level, stride in enumerate(strides) if stride > 1]
    if strides[found[0]] > 4 or any(strides[b] != 2 * strides[a] for a, b in pairwise(found)):
        raise ValueError(
            f"network {network!r} has no map per halving (strides {', '.join(map(str, strides))}), which a U-Net needs;"
            " set network to a model with a feature pyramid, timm:resnet18 say"
        )
    return found


def normalisation_of(network: str) -> Normalisation:
    """What ``timm:NAME``'s pretrained weights were trained with. ``ValueError`` where that has no name here."""
    config = _config(network)
    mean, std = (tuple(255.0 * value for value in values) for values in (config.mean, config.std))
    for one in NORMALISATIONS.values():
        pairs = zip((*one.mean_rgb, *one.std_rgb), (*mean, *std), strict=True)
        if not one.bgr and all(abs(a - b) < 1e-3 for a, b in pairs):
            return one
    raise ValueError(f"network {network!r}: mean {config.mean}, std {config.std} of its weights is no known one")


def _maps(net: nn.Module, images_nchw: Tensor) -> list[Tensor]:
    channels_behind = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
    return [x.permute(0, 3, 1, 2) if channels_behind else x for x in cast(Sequence[Tensor], net(images_nchw))]


def _features(network: str, output_stride: int, indices: Sequence[int] | None) -> nn.Module:
    import timm

    name = _known(network)
    options: dict[str, Any] = {} if indices is None else {"out_indices": tuple(indices)}
    if output_stride != 32:  # what every model has anyway; many do not know the word
        options["output_stride"] = output_stride
    try:
        net: nn.Module = timm.create_model(name, pretrained=False, features_only=True, **options)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        if output_stride != 32:
            raise ValueError(_no_stride(network, output_stride)) from error
        raise ValueError(
            f"network {network!r} gives no feature maps ({error}); set network to another model"
        ) from error
    if _config(network).fixed_input_size:
        raise ValueError(f"network {network!r} takes pictures of one size only; set network to another model")
    kept = set(net.state_dict())
    if constants := [key for key, _ in net.named_buffers() if key not in kept]:
        # A checkpoint would not hold them, and networks are built empty before one is read.
        raise ValueError(
            f"network {network!r} has constants outside of its state ({constants[0]}); set network to another"
        )
    return net


def _known(network: str) -> str:
    """timm's own name of the model. ``ValueError`` with close matches if it has none."""
    import timm

    name = network.removeprefix(TIMM)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(
            f"network {network!r}: timm has no such model; close: {', '.join(TIMM + one for one in near) or 'none'}"
        )
    tagged = timm.list_pretrained(f"{architecture}.*") if tag else []
    if tag and name not in tagged:
        raise ValueError(
            f"network {network!r}: timm has no such weights, only {', '.join(TIMM + one for one in tagged) or 'none'}"
        )
    return name


def _config(network: str) -> Any:
    import timm

    if (found := timm.get_pretrained_cfg(_known(network))) is None:
        raise ValueError(f"timm says nothing about the pictures that {network!r} takes; set network to another model")
    return found


def _no_stride(network: str, output_stride: int, own: int = 32) -> str:
    change = f"output_stride to {own}, or " if own in (8, 16, 32) else ""
    return f"network {network!r} cannot give output_stride {output_stride}; set {change}network to one that can"


def _whole_names(network: str) -> list[str]:
    import timm

    with torch.device("meta"):
        return list(timm.create_model(network.removeprefix(TIMM), pretrained=False).state_dict())


def _info(net: nn.Module) -> Any:
    return cast(Any, net).feature_info


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
