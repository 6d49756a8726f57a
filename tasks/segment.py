"""What every segmenter needs: build it from params, train it, ask it at the image's own size. Torch lives here."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models import deeplab
from models.normalise import NORMALISATIONS
from models.resample import resize
from tasks import weights as weights_files

log = logging.getLogger("maskmill")

MIN_SIDE = 16
"""Smallest side that a network is shown; a thinner image is extended by its border and the result cut back."""


class NetworkParams(Protocol):
    """The part of a params class that decides the architecture."""

    @property
    def network(self) -> deeplab.NetworkName: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def atrous(self) -> Literal["paper", "exact"]: ...  # noqa: D102


def build_network(params: NetworkParams, outputs: int, normalisation: str = "imagenet") -> deeplab.DeepLab:
    """The network that ``params`` describe, randomly initialised from torch's global generator."""
    return deeplab.build(
        params.network,
        outputs,
        normalisation=NORMALISATIONS[normalisation],
        atrous=params.atrous,
        width=params.width,
    )


def load_network(path: str, params: NetworkParams, outputs: int, device: str) -> deeplab.DeepLab:
    """The trained network of a checkpoint, in eval mode on ``device``; kept for the process's next images.

    Raises :class:`tasks.weights.WeightsError` if the file is cut short or of another network.
    """
    file = Path(weights_files.require_file(Path(path), "the run's fit")).stat()
    return _load(path, file.st_mtime_ns, file.st_size, (params.network, params.width, params.atrous), outputs, device)


@functools.lru_cache(maxsize=2)
def _load(path: str, mtime_ns: int, size: int, shape: tuple[Any, ...], outputs: int, device: str) -> deeplab.DeepLab:
    name, width, atrous = shape
    if device == "cpu":
        # One process per core does the work already; more threads would only wait for each other.
        torch.set_num_threads(1)
    with torch.device("meta"):
        network = deeplab.build(name, outputs, width=width, atrous=atrous)
    network.to_empty(device="cpu")
    weights_files.load_into(network, weights_files.read_state(Path(path)), path)
    network = network.eval().requires_grad_(False).to(device)
    return network.to(memory_format=torch.channels_last)


def predict_scores(
    network: nn.Module,
    image_rgb: NDArray[np.uint8],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fusion: Literal["mean", "max"] = "mean",
) -> Tensor:
    """Scores ``(K+1, H, W) float32`` at the image's own size, which is never cropped.

    For each scale (and mirror image) the resized image's logits are brought to the image's size, then fused:
    ``mean`` averages probabilities, ``max`` takes the larger logit (DeepLab v2's fusion).
    """
    device = next(network.parameters()).device
    height, width = image_rgb.shape[:2]
    image = torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))[None].to(device).float()
    image = _extend(image, math.ceil(MIN_SIDE / min(1.0, *scales)))
    size = (image.shape[2], image.shape[3])
    fused: Tensor | None = None
    count = 0
    with torch.inference_mode():
        for scale in scales:
            scaled = _scaled(image, scale)
            for mirrored in (False, True) if flip else (False,):
                logits = network(scaled.flip(3) if mirrored else scaled).float()
                logits = resize(logits.flip(3) if mirrored else logits, size)
                scores = logits if fusion == "max" else logits.softmax(1)
                count += 1
                if fused is None:
                    fused = scores
                else:
                    fused = torch.maximum(fused, scores) if fusion == "max" else fused.add_(scores)
    if fused is None:
        raise ValueError("predict_scores needs at least one scale")
    fused = fused[0, :, :height, :width]
    return fused if fusion == "max" else fused / count


def _scaled(image_nchw: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return image_nchw
    size = (max(1, round(image_nchw.shape[2] * scale)), max(1, round(image_nchw.shape[3] * scale)))
    # Antialiased, as training's random scale is.
    return F.interpolate(image_nchw, size=size, mode="bilinear", align_corners=False, antialias=True)


def _extend(image_nchw: Tensor, side: int) -> Tensor:
    below = max(0, side - image_nchw.shape[2])
    right = max(0, side - image_nchw.shape[3])
    return F.pad(image_nchw, (0, right, 0, below), mode="replicate") if below or right else image_nchw
