"""Training of hed-lite on pictures whose boundaries several people drew (BSDS500). Imports torch.

``python -m benchmarks.train_hed_lite`` runs it: nothing else needs it, the weights ship with Maskmill.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from artifacts.records import ImageRGB
from models.hed import UNDECIDED, hed_loss
from models.hed_lite import HEDLite
from tasks.bounds import number
from tasks.stage import image_of
from tasks.training import weights as weights_files
from tasks.training.context import FitContext
from tasks.training.loop import poly, train_loop
from tasks.training.networks import initial_network
from tasks.training.optim import make_optimizer
from tasks.training.params import TrainParams


@dataclass(frozen=True)
class LiteFitParams(TrainParams):
    """How hed-lite learns."""

    NAME: ClassVar[str] = "hed-lite"

    optimizer: Literal["sgd", "adam", "adamw"] = field(default="adamw", metadata={"help": "sgd, adam or adamw"})
    lr: float = number(1e-3, 1e-9, 10.0, "learning rate of the decoder; the body's is a fifth")
    weight_decay: float = number(1e-4, 0.0, 1.0, "weight decay")
    batch: int = number(4, 1, 4096, "samples an iteration")
    iterations: int = number(3000, 1, 10_000_000, "optimizer steps")
    network: str = field(default="lite0", metadata={"help": "whose weights the body starts from"})
    weights: str = field(default="imagenet", metadata={"help": weights_files.HELP})
    crop: int = number(256, 16, 4096, "side of the square that is seen, pixels")
    scale_range: tuple[float, float] = number((0.6, 1.5), 0.1, 4, "factors between which a sample's size is drawn")
    gain: float = number(0.15, 0.0, 0.9, "each colour channel is multiplied by 1 - gain to 1 + gain")
    drawn_by: float = number(0.3, 0.01, 1.0, "share of the annotators that makes a boundary; fewer are undecided")


def fit(context: FitContext) -> dict[str, Tensor]:
    """Function of the fit: members are pictures ``images/SPLIT/NAME.jpg`` beside ``annotators/SPLIT/NAME.npz``."""
    params: LiteFitParams = context.params

    def build(_: object) -> HEDLite:
        return HEDLite()

    network = initial_network(context, params, build, key="weights").train()
    network = network.to(memory_format=torch.channels_last)

    def sample(index: int, epoch: int, generator: np.random.Generator) -> Mapping[str, Any]:
        item = context.train.item(index)
        image, labels = draw_sample(image_of(item), consensus(item.record.image), params, generator)
        return {"image": torch.from_numpy(image.transpose(2, 0, 1).copy()), "labels": torch.from_numpy(labels)}

    def step(nets: Mapping[str, Any], batch: dict[str, Any], index: int) -> Mapping[str, Tensor]:
        labels = batch["labels"]
        images = batch["image"].float().contiguous(memory_format=torch.channels_last)
        return {"loss": hed_loss(nets["hed-lite"](images), labels) / labels[0].numel()}

    return train_loop(
        context,
        modules={"hed-lite": network},
        optimizers={"hed-lite": make_optimizer(network, params)},
        sample=sample,
        step=step,
        iterations=params.iterations,
        batch_size=params.batch,
        schedule=poly(params.iterations),
        precision=params.precision,
        clip_norm=5.0,
    )


@functools.lru_cache(maxsize=512)
def consensus(image: str) -> NDArray[np.float32]:
    """(H, W): the share of annotators that drew a boundary through each pixel of a picture of BSDS500."""
    path = Path(image)
    drawn = np.load(path.parents[2] / "annotators" / path.parent.name / f"{path.stem}.npz")["boundaries"]
    return np.asarray(drawn.mean(axis=0), np.float32)


def draw_sample(
    image_rgb: ImageRGB, share_hw: NDArray[np.float32], params: LiteFitParams, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A square of the turned, scaled, perhaps mirrored picture, and its labels: 1 boundary, 0 none, 255 undecided.

    Beyond the border both go on mirrored. Lines are widened by a pixel before a picture is made smaller: else they
    would tear.
    """
    height, width = share_hw.shape
    low, high = params.scale_range
    scale, angle = np.exp(generator.uniform(np.log(low), np.log(high))), generator.uniform(0, 2 * np.pi)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= generator.choice([-1, 1])
    centre = generator.uniform(0, 1, 2) * (width - 1, height - 1)
    matrix = np.column_stack([turn, (params.crop - 1) / 2 - turn @ centre])
    if scale < 1:
        share_hw = np.asarray(cv2.dilate(share_hw, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))), np.float32)
    size = (params.crop, params.crop)
    image, share = (
        cv2.warpAffine(one, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        for one in (image_rgb, share_hw)
    )
    gains = generator.uniform(1 - params.gain, 1 + params.gain, 3)
    coloured: NDArray[np.uint8] = np.clip(np.rint(image * gains), 0, 255).astype(np.uint8)
    labels = np.where(share >= params.drawn_by, 1, np.where(share < 0.01, 0, UNDECIDED)).astype(np.uint8)
    return coloured, labels


# --- calibration ----------------------------------------------------------------------------------------------------


def platt(logits_n: NDArray[np.float64], hits_n: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and shift with which the logits' sigmoid is the share of hits: the least cross entropy (Platt, 1999)."""
    logits, hits = torch.from_numpy(logits_n), torch.from_numpy(hits_n.astype(np.float64))
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(line[0] * logits + line[1], hits)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    scale, shift = line.tolist()
    return scale, shift


def calibrated(state: Mapping[str, Tensor], scale: float, shift: float) -> dict[str, Tensor]:
    """hed-lite's tensors with ``scale`` and ``shift`` of the fused logit in the fusion's own numbers."""
    weight, bias = state["fuse.weight"], state["fuse.bias"]
    fuse = {"fuse.weight": weight.double() * scale, "fuse.bias": bias.double() * scale + shift}
    return {**state, **{name: tensor.to(weight.dtype) for name, tensor in fuse.items()}}
