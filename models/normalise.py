"""From a stored image to the numbers a network was trained on.

The normalisation belongs to the pretrained weights, so it lives *in* the network (as buffers) and is saved
with it: a checkpoint cannot be read with another normalisation than the one it was trained with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Normalisation:
    """``(value - mean) / std`` per channel on the 0..255 scale, channels in RGB order; ``bgr`` swaps them after."""

    name: str
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    bgr: bool = False


IMAGENET = Normalisation("imagenet", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision's: RGB, on 0..1 mean .485 .456 .406 and standard deviation .229 .224 .225."""

CAFFE = Normalisation("caffe", (122.679, 116.669, 104.008), (1.0, 1.0, 1.0), bgr=True)
"""Caffe's: BGR on 0..255, the mean subtracted (the weights that the DeepLab papers started from)."""

HED = Normalisation("hed", (122.67892, 116.66877, 104.00699), (1.0, 1.0, 1.0), bgr=True)
"""HED's, of its released solver: Caffe's with two digits more."""

LITE0 = Normalisation("lite0", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
"""EfficientNet-Lite's, from TensorFlow."""

HALF = Normalisation("half", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""To -1..1: a quarter of timm's models."""

CLIP = Normalisation("clip", (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305))
"""OpenAI CLIP's: timm's models that were trained with it."""

UNIT = Normalisation("unit", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
"""To 0..1: a few of timm's models."""

DPN = Normalisation("dpn", (124.0, 117.0, 104.0), (1 / 0.0167, 1 / 0.0167, 1 / 0.0167))
"""Of timm's dual path networks, from MXNet: RGB minus the mean, times 0.0167."""

NORMALISATIONS = {preset.name: preset for preset in (IMAGENET, CAFFE, HED, LITE0, HALF, CLIP, UNIT, DPN)}


class Normalise(nn.Module):
    """``(N, 3, H, W)`` RGB 0..255 (uint8 or float) -> float, normalised; see :class:`Normalisation`."""

    mean: Tensor
    std: Tensor
    bgr: Tensor

    def __init__(self, normalisation: Normalisation = IMAGENET) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalisation.mean_rgb).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std_rgb).view(1, 3, 1, 1))
        # Where output channel c is read from; a buffer, so that the order is saved with the weights too.
        self.register_buffer("bgr", torch.tensor([2, 1, 0] if normalisation.bgr else [0, 1, 2]))

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Normalised float images, same shape."""
        return ((images_nchw.to(self.mean.dtype) - self.mean) / self.std)[:, self.bgr]
