"""Bringing images, score maps and labels to another grid, so that all still lie on the same picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(maps_nchw: Tensor, size_hw: tuple[int, int], share_hw: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Bilinear resize, ``align_corners=False``; the maps themselves where the size is right already.

    ``share_hw``: only this share of the maps' height and width, from the upper left corner, is wanted
    (:func:`whole_cells`).
    """
    if share_hw != (1.0, 1.0):
        return _resize_share(maps_nchw, size_hw, share_hw)
    if tuple(maps_nchw.shape[2:]) == tuple(size_hw):
        return maps_nchw
    return F.interpolate(maps_nchw, size=size_hw, mode="bilinear", align_corners=False)


def _resize_share(maps_nchw: Tensor, size_hw: tuple[int, int], share_hw: tuple[float, float]) -> Tensor:
    """The same by ``grid_sample``, which need not end where a cell ends."""
    ends = zip(size_hw, share_hw, strict=True)
    y, x = (
        (torch.arange(size, device=maps_nchw.device, dtype=torch.float32) + 0.5) * (2 * share / size) - 1
        for size, share in ends
    )
    at_hw2 = torch.stack([x.expand(size_hw), y[:, None].expand(size_hw)], -1)
    grid = at_hw2.to(maps_nchw.dtype).expand(len(maps_nchw), -1, -1, -1)
    return F.grid_sample(maps_nchw, grid, mode="bilinear", padding_mode="border", align_corners=False)


def scale_images(images_nchw: Tensor, scale: float) -> Tensor:
    """Float images at ``scale`` times their size, at least one pixel a side; bilinear, antialiased as augmentation is.

    A network that sees several scales must see the same pictures in training as at test time.
    """
    if scale == 1.0:
        return images_nchw
    size = tuple(max(1, round(side * scale)) for side in images_nchw.shape[2:])
    return F.interpolate(images_nchw, size=size, mode="bilinear", align_corners=False, antialias=True)


MIN_SIDE = 16
"""Smallest side of a network's input; a thinner image is extended by its border and the result cut back."""


def extend(images_nchw: Tensor, side: int) -> Tensor:
    """Images of at least ``side`` pixels a side: thinner ones go on below and on the right as their border is."""
    below = max(0, side - images_nchw.shape[2])
    right = max(0, side - images_nchw.shape[3])
    return F.pad(images_nchw, (0, right, 0, below), mode="replicate") if below or right else images_nchw


def whole_cells(images_nchw: Tensor, stride: int) -> tuple[Tensor, tuple[float, float]]:
    """Images whose sides are multiples of ``stride``, extended as by :func:`extend`; and the share that is picture.

    A network gives ``ceil(side / stride)`` cells. Spread over a side that is no multiple, they would lie up to most of
    a cell off at its end: 500 pixels have 32 cells of 16, which cover 512.
    """
    height, width = images_nchw.shape[2:]
    below, right = -height % stride, -width % stride
    if not (below or right):
        return images_nchw, (1.0, 1.0)
    extended = F.pad(images_nchw, (0, right, 0, below), mode="replicate")
    return extended, (height / (height + below), width / (width + right))


def sample_labels(labels_nhw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Labels at another grid by nearest sampling at the cells' centres: never a label that was not there."""
    if tuple(labels_nhw.shape[1:]) == tuple(size_hw):
        return labels_nhw
    # nearest-exact takes the pixel under the cell's centre, where bilinear logits lie; "nearest" is half a cell off.
    sampled = F.interpolate(labels_nhw[:, None].float(), size=size_hw, mode="nearest-exact")
    return sampled[:, 0].to(labels_nhw.dtype)
