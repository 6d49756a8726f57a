"""Bringing images, score maps and labels to another grid, so that all still lie on the same picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(maps_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear resize, ``align_corners=False``; the maps themselves where the size is right already."""
    if tuple(maps_nchw.shape[2:]) == tuple(size_hw):
        return maps_nchw
    return F.interpolate(maps_nchw, size=size_hw, mode="bilinear", align_corners=False)


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


def sample_labels(labels_nhw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Labels at another grid by nearest sampling at the cells' centres: never a label that was not there."""
    if tuple(labels_nhw.shape[1:]) == tuple(size_hw):
        return labels_nhw
    # nearest-exact takes the pixel under the cell's centre, where bilinear logits lie; "nearest" is half a cell off.
    sampled = F.interpolate(labels_nhw[:, None].float(), size=size_hw, mode="nearest-exact")
    return sampled[:, 0].to(labels_nhw.dtype)
