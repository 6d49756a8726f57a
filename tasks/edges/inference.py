"""HED on pictures. Imports torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.records import ImageRGB
from models.hed import HED
from models.resample import resize, scale_images
from tasks.edges.stages import KEY, EdgesParams
from tasks.stage import Arrays, Item, by_size, image_of
from tasks.training import weights as weights_files
from tasks.training.networks import load_into


def edges_item(item: Item, params: EdgesParams) -> Arrays:
    """Map function of :func:`tasks.edges.stages.edges`: ``edges_hw (H, W) float16`` in 0..1."""
    return edges_items([item], params)[0]


def edges_items(items: Sequence[Item], params: EdgesParams) -> list[Arrays]:
    """Batch form of :func:`edges_item`: images of one size go through the network together."""

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        network = load_hed(params.weights, part[0].nets.get("weights"), part[0].device)
        found = draw(network, [image_of(item) for item in part], params.scales)
        return [{"edges_hw": one.astype(np.float16)} for one in found]

    return by_size(items, of_one_size)


def draw(network: HED, images_rgb: Sequence[ImageRGB], scales: Sequence[float] = (1.0,)) -> NDArray[np.float32]:
    """``(N, H, W) float32`` probabilities of a boundary, for images ``(H, W, 3) uint8`` of one size.

    At several scales the picture is resized and the maps resized back, bilinearly; their mean is taken.
    """
    device = next(network.parameters()).device
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(images_rgb)).to(device).permute(0, 3, 1, 2).float()
        size_hw = (images.shape[2], images.shape[3])
        total = torch.zeros(len(images), *size_hw, device=device)
        for scale in scales:
            total += resize(network.edges(scale_images(images, scale))[:, None], size_hw)[:, 0]
        found: NDArray[np.float32] = (total / len(scales)).cpu().numpy()
    return found


def load_hed(weights: str, given: str | None, device: str) -> HED:
    """The network in eval mode on ``device``; kept for the process's next images.

    Args:
        weights: as in :class:`EdgesParams`, or a stage's semantic form of it.
        given: place of the weights' file where the stage has it as an input.
        device: ``cpu`` or ``cuda``.

    Raises :class:`tasks.training.weights.WeightsError` where the weights are not here or are of another network.
    """
    # By the file's state, too: another file in its place must not be answered with the old network.
    file = Path(given or weights)
    state = file.stat() if file.is_file() else None
    return _load(weights, given, device, None if state is None else (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=1)
def _load(weights: str, given: str | None, device: str, _file: tuple[int, int] | None) -> HED:
    source = weights_files.resolve(weights, "hed", KEY, given=given)
    network = HED()
    state = source.state()
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("normalise.")}
    load_into(network, {**own, **state}, source.description)
    return network.eval().requires_grad_(False).to(device)
