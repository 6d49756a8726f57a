"""Any of timm's models as a backbone (``timm:NAME``), under the names of its own ``state_dict()``.

timm is imported when such a network is built. Nothing is downloaded here: weights are read elsewhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import BatchNorm, Pretrained, further_channels, geometry_of
from models.names import SEGMENTERS, TIMM
from models.normalise import NORMALISATIONS, Normalisation

PROBE = 128
"""Side of the picture without numbers that a model's maps are measured with."""

ODD = (7, 9)
"""Cells of a second such picture: a model that takes it takes every number of cells (windows divide no odd one)."""

WHOLE = 32
"""Sides that are multiples of this are halved without a rest."""


class TimmBody(Pretrained):
    """A model's maps at the levels ``indices``, by timm's numbers (``None``: those that it gives by itself).

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
        measured, _ = _measured(network, output_stride)
        super().__init__(network, output_stride, _indices(measured)[-1:], batch_norm)
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

    Raises ``ValueError`` as :func:`levels`.
    """

    def __init__(self, network: str, batch_norm: BatchNorm = "trained") -> None:
        super().__init__(network, 32, levels(network), batch_norm)
        self.channels = tuple(int(channels) for channels in _info(self.net).channels())
        self.first = _first_convolution(network, self.net)

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

    ``ValueError`` as :class:`TimmBody`'s, for maps that do not divide the picture into whole cells, and for a model
    that takes only some pictures of whole cells.
    """
    return _measured(network, output_stride)[1]


def levels(network: str) -> list[int]:
    """Which of a model's maps a U-Net takes, by timm's numbers: one per halving. No weights are made.

    ``ValueError`` as :func:`reductions`, for a model that has no such maps, and for one whose first layer is no
    convolution of the picture as it is: the priors enter there.
    """
    net, strides = _measured(network, WHOLE, chosen=False)
    found = [level for level, stride in enumerate(strides) if stride > 1]
    if strides[found[0]] > 4 or any(strides[b] != 2 * strides[a] for a, b in pairwise(found)):
        raise ValueError(
            f"network {network!r} has no map per halving (strides {', '.join(map(str, strides))}), which a U-Net needs;"
            " set network to a model with a feature pyramid, timm:resnet18 say"
        )
    _check_prior(network, net)
    return [_indices(net)[level] for level in found]


@dataclass(frozen=True)
class Said:
    """What timm says of pretrained weights. ``mean`` and ``std`` are on 0..1."""

    name: str
    """``timm:NAME.TAG``, although a name without a tag may be what was asked for."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


def said_of(network: str) -> Said:
    """What timm says of the weights that ``timm:NAME`` means today. ``ValueError`` for an unknown name."""
    config = _config(network)
    tag = f".{config.tag}" if config.tag else ""
    name = network.removeprefix(TIMM).partition(".")[0]
    return Said(f"{TIMM}{name}{tag}", tuple(config.mean), tuple(config.std))


def normalisation_of(network: str) -> Normalisation | None:
    """What ``timm:NAME``'s pretrained weights were trained with; ``None`` where that has no name here.

    ``ValueError`` for an unknown name.
    """
    said = said_of(network)
    return normalisation_with(said.mean, said.std)


def normalisation_with(mean: Iterable[float], std: Iterable[float]) -> Normalisation | None:
    """The normalisation with this mean and deviation, on 0..1 and in RGB; ``None``: it has no name here."""
    wanted = [255.0 * value for value in (*mean, *std)]
    for one in NORMALISATIONS.values():
        known = (*one.mean_rgb, *one.std_rgb)
        if one.bgr or len(wanted) != len(known):  # timm has models of one channel, too
            continue
        if all(abs(a - b) < 1e-3 for a, b in zip(known, wanted, strict=True)):
            return one
    return None


def _maps(net: nn.Module, images_nchw: Tensor) -> list[Tensor]:
    channels_behind = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
    return [x.permute(0, 3, 1, 2) if channels_behind else x for x in cast(Sequence[Tensor], net(images_nchw))]


def _measured(network: str, output_stride: int, *, chosen: bool = True) -> tuple[nn.Module, list[int]]:
    """A model on the meta device, and the strides of its maps. ``ValueError`` as :func:`reductions`.

    ``chosen``: whether the stride is the user's to choose, so that a message may name another.
    """
    with torch.device("meta"):
        net = _features(network, output_stride, None, chosen=chosen).eval()
        found = [int(stride) for stride in _info(net).reduction()]
        if found[-1] != output_stride:
            raise ValueError(_no_stride(network, output_stride, chosen))
        for height, width in ((PROBE, PROBE), (ODD[0] * output_stride, ODD[1] * output_stride)):
            try:
                maps = _maps(net, torch.zeros(1, 3, height, width))
            except Exception as error:  # each model says in its own way, if at all, what it wants
                raise ValueError(
                    f"network {network!r} takes only some picture sizes (not {width} x {height}: {_told(error)}); set"
                    f" {_instead(network, output_stride, chosen)}network to another model"
                ) from error
            if [x.shape[2:] for x in maps] != [(height // stride, width // stride) for stride in found]:
                raise ValueError(
                    f"network {network!r} crops the picture's rim from its maps; set network to another model"
                )
    return net, found


def _features(network: str, output_stride: int, indices: Sequence[int] | None, *, chosen: bool = True) -> nn.Module:
    if _config(network).fixed_input_size:
        raise ValueError(f"network {network!r} takes pictures of one size only; set network to another model")
    try:
        # What every model has anyway is not asked for: many do not know the word.
        net = _create(network, indices, **({} if output_stride == WHOLE else {"output_stride": output_stride}))
    except Exception as error:  # the models' own ways to refuse have types of all kinds
        if output_stride == WHOLE:
            raise ValueError(_no_maps(network, error)) from error
        if _own_stride(network) != output_stride:
            raise ValueError(_no_stride(network, output_stride, chosen)) from error
        net = _create(network, indices)
    kept = set(net.state_dict())
    if constants := [key for key, _ in net.named_buffers() if key not in kept]:
        # A checkpoint would not hold them, and networks are built empty before one is read.
        raise ValueError(
            f"network {network!r} has constants outside of its state ({constants[0]}); set network to another"
        )
    return net


def _create(network: str, indices: Sequence[int] | None, **options: Any) -> nn.Module:
    import timm

    if indices is not None:
        options["out_indices"] = tuple(indices)
    net: nn.Module = timm.create_model(_known(network), pretrained=False, features_only=True, **options)
    return net


def _own_stride(network: str) -> int:
    """Stride of a model's last map, as it is built without a word of it. ``ValueError`` for one without maps."""
    try:
        with torch.device("meta"):
            return int(_info(_create(network, None)).reduction()[-1])
    except Exception as error:
        raise ValueError(_no_maps(network, error)) from error


def _instead(network: str, output_stride: int, chosen: bool) -> str:
    """The model's own stride as advice, with " or" behind it; "" if the model would be refused there, too."""
    try:
        own = _own_stride(network)
        if not chosen or own == output_stride or own not in SEGMENTERS["timm:NAME"]:
            return ""
        _measured(network, own)
    except ValueError:
        return ""
    return f"output_stride to {own}, or "


def _no_stride(network: str, output_stride: int, chosen: bool) -> str:
    change = _instead(network, output_stride, chosen)
    return f"network {network!r} cannot give output_stride {output_stride}; set {change}network to one that can"


def _no_maps(network: str, error: Exception) -> str:
    return f"network {network!r} gives no feature maps ({_told(error)}); set network to another model"


def _told(error: Exception) -> str:
    """An error's first line; its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _first_convolution(network: str, net: nn.Module) -> str:
    """Name of the first convolution in ``net``. ``ValueError`` if a model does not begin with one."""
    named = _config(network).first_conv
    # A stem of branches side by side, whose outputs are added up, has several: the first is the widest kernel.
    first = _plain(named if isinstance(named, str) else next(iter(named or ()), ""))
    for name, module in net.named_modules():
        if _plain(name.removeprefix("model.")) == first and isinstance(module, nn.Conv2d):
            return str(name)
    raise ValueError(f"network {network!r} does not begin with a convolution; set network to one that does")


def _check_prior(network: str, net: nn.Module) -> None:
    """``ValueError`` unless the first convolution of ``net`` (meta) and the priors see the same, and give the same."""
    name = _first_convolution(network, net)
    first = cast(nn.Conv2d, net.get_submodule(name))
    seen: list[tuple[torch.Size, torch.Size]] = []
    with torch.device("meta"):
        images = torch.zeros(1, 3, ODD[0] * WHOLE, ODD[1] * WHOLE)
        kernel, stride, padding = geometry_of(first)
        prior = further_channels(images[:, :1], torch.zeros(first.out_channels, 1, *kernel), stride, padding)
        hook = first.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].shape, output.shape)))
        try:
            _maps(net, images)
        finally:
            hook.remove()
    if seen != [(images.shape, prior.shape)]:
        raise ValueError(
            f"network {network!r} does not begin with a plain convolution of the picture ({name}), to which a U-Net's"
            " box and class could be added; set network to another model"
        )


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


def _whole_names(network: str) -> list[str]:
    import timm

    with torch.device("meta"):
        return list(timm.create_model(network.removeprefix(TIMM), pretrained=False).state_dict())


def _info(net: nn.Module) -> Any:
    return cast(Any, net).feature_info


def _indices(net: nn.Module) -> tuple[int, ...]:
    """timm's numbers of the maps: not their places, where a model leaves out its first ones (DLA, transformers)."""
    return tuple(int(index) for index in _info(net).out_indices)


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
