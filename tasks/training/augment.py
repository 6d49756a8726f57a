"""Training samples: random colours, scale, crop and flip of an image together with its label maps and soft maps.

Built on torchvision's ``transforms.v2``, which knows a mask from an image by its type (tv_tensors), so that labels
are moved, never interpolated, and padded with 255; soft maps are interpolated as the image is, and keep its colours
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from artifacts.records import UNDECIDED, DataError


class SoftMap(tv_tensors.Mask):  # type: ignore[misc]
    """Values per pixel that may be interpolated (edges, probabilities): ``(H, W)`` or ``(C, H, W)`` floating."""


class RandomScale(v2.Transform):  # type: ignore[misc]
    """Resize by one factor drawn from ``[low, high]``: labels at cell centres, all else bilinear with antialiasing."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor; ``{"size": (height, width)}`` of at least 2 x 2 (torch's uint8 resize fails at 1 x 1)."""
        factor = self.low + (self.high - self.low) * float(torch.rand(()))
        height, width = v2.query_size(flat_inputs)
        return {"size": (max(2, round(height * factor)), max(2, round(width * factor)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one input."""
        size = params["size"]
        if tuple(inpt.shape[-2:]) == size:
            return inpt
        if isinstance(inpt, SoftMap):
            maps = inpt.as_subclass(Tensor).reshape(1, -1, *inpt.shape[-2:])
            plain = torch.nn.functional.interpolate(maps, size, mode="bilinear", antialias=True)
            return tv_tensors.wrap(plain.reshape(*inpt.shape[:-2], *size), like=inpt)
        if isinstance(inpt, tv_tensors.Mask):
            # v2's own mask kernel takes the pixel left above the cell's centre: half a pixel off the bilinear image.
            plain = torch.nn.functional.interpolate(inpt[None, None].as_subclass(Tensor), size, mode="nearest-exact")
            return tv_tensors.wrap(plain[0, 0], like=inpt)
        return F.resize(inpt, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for every sample."""

    crop: int
    """Side of the square crop, pixels; smaller images are padded (image: ``fill_rgb``, labels: 255, soft maps: 0)."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    colour: float = 0.0
    """Brightness, contrast and saturation each times a factor from ``[1 - colour, 1 + colour]``, in random order."""
    fill_rgb: tuple[int, int, int] = (124, 116, 104)
    """Colour of the padding: the normalisation's mean (:func:`tasks.training.networks.fill_rgb`), so that a network
    sees zeros."""
    cell: int = 1
    """The network's output stride. Crops are padded on the right and below to whole cells of it, so that cells lie
    where they do at test time (:func:`models.resample.whole_cells`); a crop of 321 becomes 328 at stride 8."""

    def build(self) -> v2.Transform:
        """The transform; it draws from torch's global generator (see :func:`augment`)."""
        fill = {tv_tensors.Image: list(self.fill_rgb), tv_tensors.Mask: UNDECIDED, SoftMap: 0.0}
        steps: list[v2.Transform] = []
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        if self.scale_range != (1.0, 1.0):
            steps.append(RandomScale(*self.scale_range))
        steps.append(v2.RandomCrop(self.crop, pad_if_needed=True, fill=fill))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(0.5))
        if behind := -self.crop % self.cell:
            steps.append(v2.Pad([0, 0, behind, behind], fill=fill))
        return v2.Compose(steps)


class Augmented(NamedTuple):
    """One training sample; all of it has seen the same scale, crop and flip. ``side`` is the crop, in whole cells."""

    image: Tensor
    """``(3, side, side) uint8``."""
    labels: dict[str, Tensor]
    """``(side, side) uint8`` each, 255 in the padding."""
    soft: dict[str, Tensor]
    """``(side, side)`` or ``(C, side, side) float32`` each, 0 in the padding."""
    inside: Tensor
    """``(side, side) bool``: picture, not padding."""


def augment(
    transform: v2.Transform,
    image_rgb: NDArray[np.uint8],
    labels: Mapping[str, NDArray[np.uint8]] | None = None,
    soft: Mapping[str, NDArray[np.floating[Any]]] | None = None,
    *,
    seed: int,
) -> Augmented:
    """One training sample of an image ``(H, W, 3) uint8`` and any number of maps of its size, by name.

    ``labels`` are ``(H, W) uint8`` and moved to the nearest pixel, ``soft`` are floating, ``(H, W)`` or ``(C, H, W)``,
    and interpolated bilinearly. The same ``seed`` gives the same sample in any process, whichever maps there are; the
    global generator, from which v2 draws, is left as it was. Raises :class:`DataError` naming a map of another size,
    which leaves the image out.
    """
    size = image_rgb.shape[:2]
    for name, array in {**(labels or {}), **(soft or {})}.items():
        if array.shape[-2:] != size:
            raise DataError(f"{name} is {array.shape[-2:]}, its image {size} (height, width)")
    masks = {name: _mask(array) for name, array in (labels or {}).items()}
    maps = {name: SoftMap(torch.from_numpy(np.asarray(array, np.float32))) for name, array in (soft or {}).items()}
    image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1))))
    # Not torch.manual_seed: that would also reset the GPU's generator, and with it dropout, at every sample.
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        image, masks, maps, padding = transform(image, masks, maps, _mask(np.zeros(size, np.uint8)))
    finally:
        torch.default_generator.set_state(before)
    return Augmented(
        image.as_subclass(Tensor),
        {name: mask.as_subclass(Tensor) for name, mask in masks.items()},
        {name: values.as_subclass(Tensor) for name, values in maps.items()},
        padding.as_subclass(Tensor) == 0,
    )


def check_labels(mask_hw: NDArray[np.uint8], image_rgb: NDArray[np.uint8], k: int, key: str) -> None:
    """Raise ``DataError`` naming ``key`` if the label map has another size, or a value that is no class and not 255.

    On a GPU a label out of range is an assertion without a name that takes the process along.
    """
    if mask_hw.shape != image_rgb.shape[:2]:
        raise DataError(f"{key}: label map is {mask_hw.shape}, its image {image_rgb.shape[:2]} (height, width)")
    foreign = (mask_hw > k) & (mask_hw != UNDECIDED)
    if foreign.any():
        y, x = np.argwhere(foreign)[0]
        raise DataError(f"{key}: label {mask_hw[y, x]} at x={x}, y={y}, but classes are 0..{k} and {UNDECIDED}")


def _mask(mask_hw: NDArray[np.uint8]) -> tv_tensors.Mask:
    return tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask_hw, np.uint8)))
