"""Training samples: random colours, scale, crop and flip of an image together with its label map.

Built on torchvision's ``transforms.v2``, which knows a mask from an image by its type (tv_tensors), so that labels
are moved, never interpolated, and padded with 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

UNDECIDED = 255


class RandomScale(v2.Transform):  # type: ignore[misc]
    """Resize by one factor drawn from ``[low, high]``: images bilinear with antialiasing, masks at cell centres."""

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
        if isinstance(inpt, tv_tensors.Mask):
            # v2's own mask kernel takes the pixel left above the cell's centre: half a pixel off the bilinear image.
            plain = torch.nn.functional.interpolate(inpt[None, None].as_subclass(Tensor), size, mode="nearest-exact")
            return tv_tensors.wrap(plain[0, 0], like=inpt)
        return F.resize(inpt, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every sample."""

    crop: int
    """Side of the square crop, pixels; smaller images are padded (image: ``fill_rgb``, labels: 255)."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    colour: float = 0.0
    """Brightness, contrast and saturation each times a factor from ``[1 - colour, 1 + colour]``, in random order."""
    fill_rgb: tuple[int, int, int] = (124, 116, 104)
    """Colour of the padding: the normalisation's mean, so that a network sees zeros."""

    def build(self) -> v2.Transform:
        """The transform; it draws from torch's global generator (see :func:`augment`)."""
        fill = {tv_tensors.Image: list(self.fill_rgb), tv_tensors.Mask: UNDECIDED}
        steps: list[v2.Transform] = []
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        if self.scale_range != (1.0, 1.0):
            steps.append(RandomScale(*self.scale_range))
        steps.append(v2.RandomCrop(self.crop, pad_if_needed=True, fill=fill))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(0.5))
        return v2.Compose(steps)


def augment(
    transform: v2.Transform, image_rgb: NDArray[np.uint8], mask_hw: NDArray[np.uint8], seed: int
) -> tuple[Tensor, Tensor]:
    """One training sample: ``(3, crop, crop) uint8`` image and ``(crop, crop) uint8`` labels.

    The same ``seed`` gives the same sample in any process; the global generator, from which v2 draws, is left as it
    was. Raises ``ValueError`` if the two sizes differ.
    """
    if image_rgb.shape[:2] != mask_hw.shape:
        raise ValueError(f"label map is {mask_hw.shape}, its image {image_rgb.shape[:2]} (height, width)")
    image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1))))
    mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask_hw)))
    # Not torch.manual_seed: that would also reset the GPU's generator, and with it dropout, at every sample.
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        image_out, mask_out = transform(image, mask)
    finally:
        torch.default_generator.set_state(before)
    return image_out.as_subclass(Tensor), mask_out.as_subclass(Tensor)
