"""HED: boundaries of a photograph, from five depths of a VGG-16 (Xie & Tu, ICCV 2015, arXiv 1504.06375)."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from models.backbones import EXTRA_KEYS
from models.deeplab import check_same_keys
from models.groups import GroupRule
from models.network import Network
from models.normalise import HED as HED_NORMALISATION
from models.normalise import Normalise
from models.resample import resize

MULTIPLE = 16
"""Input sides are brought to a multiple of this: the coarsest side then covers exactly the input, and resizing it moves
nothing. At 481 pixels its 31 cells would be squeezed by 15 of 496: an edge near the right moves by most of a pixel."""
WHOLE_PIXELS = 2048 * 2048
"""A picture of more pixels is drawn in tiles: HED's first block keeps 256 bytes a pixel, several times."""
TILE = 2048
"""Longest side of a tile, its overlap included; a multiple of 16."""
SIDES = 5
UNDECIDED = 255


class EdgeNetwork(Network):
    """A network that gives logits of a boundary at every pixel: of its sides, then of their fusion, the result."""

    CONTEXT: ClassVar[int]
    """Pixels further away than this, a multiple of 16, have no part in a pixel's logits."""

    @abstractmethod
    def logits(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised, ``H`` and ``W`` multiples of 16 -> ``(N, maps, H, W)``."""

    def forward(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255 -> ``(N, maps, H, W)`` logits: the sides, then the fused one. Any size from 1.

        The input is extended on the right and below to a multiple of 16 by repeating its last pixels, the result
        cropped: with the edge repeated no new boundary begins there, and it works for pictures of one pixel.
        """
        height, width = images_nchw.shape[2:]
        x = self.normalise(images_nchw)
        x = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        return self.logits(x)[:, :, :height, :width]

    def edges(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255 -> ``(N, H, W)`` probabilities of a boundary: the fused logit's sigmoid.

        Above :data:`WHOLE_PIXELS` tile by tile, so that memory does not grow with the picture. Tiles begin where the
        whole picture's coarsest cells do and overlap by twice the context: the result differs by rounding alone.
        """
        height, width = images_nchw.shape[2:]
        if height * width <= WHOLE_PIXELS:
            return torch.sigmoid(self(images_nchw)[:, -1])
        found = images_nchw.new_empty(len(images_nchw), height, width)
        cuts = itertools.product(range(len(found)), tile_sides(height, self.CONTEXT), tile_sides(width, self.CONTEXT))
        for number, (rows, own_rows), (columns, own_columns) in cuts:
            drawn = torch.sigmoid(self(images_nchw[number : number + 1, :, rows, columns])[0, -1])
            inside = (
                slice(own_rows.start - rows.start, own_rows.stop - rows.start),
                slice(own_columns.start - columns.start, own_columns.stop - columns.start),
            )
            found[number, own_rows, own_columns] = drawn[inside]
        return found


def tile_sides(length: int, context: int) -> Iterator[tuple[slice, slice]]:
    """A side of ``length`` pixels in parts: what a tile sees, :data:`TILE` pixels at most, and what of it is kept.

    All begin at multiples of 16, and what is seen ends at one, or with the picture.
    """
    step = length if length <= TILE else TILE - 2 * context
    for start in range(0, length, step):
        stop = min(length, start + step)
        yield slice(max(0, start - context), min(length, stop + context)), slice(start, stop)


class HED(EdgeNetwork):
    """VGG-16's 13 convolutions (padding 1, ReLU; 2 x 2 maxima between blocks, odd rows kept), five sides, their fusion.

    Each side is a 1 x 1 convolution of a block's last features to one logit, resized bilinearly to the input
    (``align_corners=False``). A 1 x 1 convolution of the five is the sixth logit, the network's result. As the released
    weights were converted: other HEDs pad the picture by 35 pixels and crop.

    To be trained: sides begin at 0, the fusion at 1/5 each (paper, 4.1), the convolutions from ImageNet's VGG-16.
    :attr:`rules` are one learning rate for all, biases at twice it and without decay as was usual in Caffe; the
    released solver's own multipliers per layer belong to its unnormalised loss and are not copied.
    """

    PRETRAINED: ClassVar[str] = "features."
    CONTEXT: ClassVar[int] = 128
    """A cell of the last convolution sees 196 pixels, and a pixel lies between two cells: 114 to one side."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise(HED_NORMALISATION)
        self.features = make_layers(cfgs["D"][:-1])
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
        channels = [64, 128, 256, 512, 512]
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in channels)
        self.fuse = nn.Conv2d(SIDES, 1, 1)
        for side in self.sides:
            nn.init.zeros_(cast(Tensor, side.weight))
            nn.init.zeros_(cast(Tensor, side.bias))
        nn.init.constant_(self.fuse.weight, 1 / SIDES)
        nn.init.zeros_(cast(Tensor, self.fuse.bias))
        self.rules = (
            GroupRule("weights", lambda name: name.endswith(".weight"), 1.0),
            GroupRule("biases", lambda name: name.endswith(".bias"), 2.0, decay=False),
        )

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Load torchvision's ImageNet VGG-16 (``features.N.weight``) into the convolutions, its classifier left out.

        Raises ``ValueError`` naming ``source`` and the keys that do not fit.
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith(self.PRETRAINED)}
        check_same_keys(own, state, {name for name in state if name.startswith(EXTRA_KEYS)}, source)
        self.load_state_dict({name: state[name] for name in own}, strict=False)

    def logits(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised, ``H`` and ``W`` multiples of 16 -> ``(N, 6, H, W)``: 5 sides, the fused one."""
        x = images_nchw
        size_hw = (x.shape[2], x.shape[3])
        blocks: list[Tensor] = []
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                blocks.append(x)
            x = module(x)
        blocks.append(x)
        joined = torch.cat([resize(side(block), size_hw) for side, block in zip(self.sides, blocks, strict=True)], 1)
        return torch.cat([joined, self.fuse(joined)], dim=1)


def hed_loss(logits_nchw: Tensor, labels_nhw: Tensor) -> Tensor:
    """Equations 2 to 4 of the paper: class-balanced cross-entropy, of every side and of the fusion, summed.

    For each picture and map ``-b sum_{y=1} log p - (1 - b) sum_{y=0} log(1 - p)`` with ``b`` the share of the decided
    pixels that are no boundary. Sums over pixels and maps as printed, so it grows with the picture; mean over pictures.

    Args:
        logits_nchw: (N, maps, H, W) floating, as :meth:`EdgeNetwork.forward` gives.
        labels_nhw: (N, H, W) integers: 1 boundary, 0 none, 255 undecided (in no sum, nor in ``b``).

    Returns:
        A scalar, 0 where all is undecided or of one kind.
    """
    positive, negative = labels_nhw == 1, labels_nhw == 0
    if not bool((positive | negative | (labels_nhw == UNDECIDED)).all()):
        raise ValueError("boundary labels are 0, 1 and 255 (undecided)")
    counts = positive.sum((1, 2)), negative.sum((1, 2))
    b = (counts[1] / (counts[0] + counts[1]).clamp(min=1))[:, None, None]
    weights = torch.where(positive, b, torch.where(negative, 1 - b, 0.0))
    wanted = positive.to(logits_nchw.dtype)[:, None].expand_as(logits_nchw)
    losses = F.binary_cross_entropy_with_logits(logits_nchw, wanted, reduction="none")
    return (losses * weights[:, None]).sum() / len(logits_nchw)
