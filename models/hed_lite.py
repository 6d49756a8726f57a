"""hed-lite: boundaries by the first stages of EfficientNet-Lite0, with side outputs and a learnt fusion as HED has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.deeplab import load_part
from models.groups import GroupRule
from models.hed import EdgeNetwork
from models.lite0 import LEVELS, Lite0Body
from models.normalise import LITE0, Normalise

STAGES = 5
"""Of Lite0's seven: as far as stride 16."""
WIDTHS = (16, 24, 32, 48)
"""Channels of the decoder at strides 2, 4, 8, 16."""


class Lite0Start(Lite0Body):
    """Lite0's first stages: maps at strides 2, 4, 8, 16 with 16, 24, 40, 112 channels."""

    def __init__(self) -> None:
        super().__init__(32, "frozen", STAGES)

    def left_out(self, provided: Iterable[str]) -> set[str]:
        """The classifier's, and the later blocks'."""
        later = tuple(f"_blocks.{number}." for number in range(len(self._blocks), 16))
        return {name for name in provided if name.startswith((*self.EXTRA, *later))}


class HEDLite(EdgeNetwork):
    """Lite0's maps, from coarse to fine: each is joined to what comes from below by a sum and a 3 x 3 convolution.

    A 1 x 1 convolution makes a logit of each of the four (the sides, fine first), and another fuses them. 748,825
    parameters, of which 700,768 are Lite0's. Its figures are in docs/hed-lite.md.
    """

    PRETRAINED: ClassVar[str] = "body."
    CONTEXT: ClassVar[int] = 256
    """Lite0's cells at stride 16 see 339 pixels; the cells beside and the decoder's 3 x 3 at all strides add to it."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise(LITE0)
        self.body = Lite0Start()
        channels = list(LEVELS.values())[: len(WIDTHS)]
        self.across = nn.ModuleList(nn.Conv2d(own, width, 1) for own, width in zip(channels, WIDTHS, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in itertools.pairwise(WIDTHS))
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in WIDTHS)
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in WIDTHS)
        self.fuse = nn.Conv2d(len(WIDTHS), 1, 1)
        for convolution in (*self.across, *self.down, *self.mix):
            nn.init.kaiming_normal_(cast(Tensor, convolution.weight), nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, convolution.bias))
        for side in self.sides:
            nn.init.normal_(cast(Tensor, side.weight), std=0.01)
            nn.init.zeros_(cast(Tensor, side.bias))
        nn.init.constant_(self.fuse.weight, 1 / len(WIDTHS))
        nn.init.zeros_(cast(Tensor, self.fuse.bias))
        self.rules = (
            GroupRule("pretrained", lambda name: name.startswith("body."), 0.2),
            GroupRule("new", lambda name: not name.startswith("body."), 1.0),
        )

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Load Lite0's ImageNet weights into the body; later blocks and the classifier are left out.

        Raises ``ValueError`` naming ``source`` and the keys that do not fit.
        """
        load_part(self.body, state, source=source)

    def logits(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` normalised, ``H`` and ``W`` multiples of 16 -> ``(N, 5, H, W)``: 4 sides, the fused one."""
        maps = [cast(Tensor, one(level)) for one, level in zip(self.across, self.body.maps(images_nchw), strict=True)]
        sides: list[Tensor] = []
        x: Tensor | None = None
        for level in reversed(range(len(WIDTHS))):
            joined = maps[level] if x is None else maps[level] + refine(cast(Tensor, self.down[level](x)), 2)
            x = F.relu(cast(Tensor, self.mix[level](F.relu(joined))))
            sides.insert(0, refine(cast(Tensor, self.sides[level](x)), 2 ** (level + 1)))
        together = torch.cat(sides, dim=1)
        return torch.cat([together, self.fuse(together)], dim=1)


def refine(maps_nchw: Tensor, factor: int) -> Tensor:
    """Maps on a grid ``factor`` times as fine, bilinearly, for grids that end together: ``(N, C, f h, f w)``.

    Lite0's "same" padding puts cell i of a stride s on pixel ``s i + s - 1``, its last one: on even sides the cells
    of all strides end at the same pixel. (The usual resizing takes cells to be centred on their pixels, and would shift
    the coarsest by 7.5 pixels.) Before the first cell the map goes on as it begins.
    """
    height, width = maps_nchw.shape[2:]
    begun = F.pad(maps_nchw, (1, 0, 1, 0), mode="replicate")
    size_hw = (height * factor + 1, width * factor + 1)
    return F.interpolate(begun, size=size_hw, mode="bilinear", align_corners=True)[:, :, 1:, 1:]
