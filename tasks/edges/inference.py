"""The networks that draw edges, on pictures. Imports torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.records import ImageRGB
from models.hed import HED, EdgeNetwork
from models.hed_lite import HEDLite
from models.resample import resize, scale_images
from tasks.edges.hed_weights import read_hed
from tasks.edges.stages import KEY, EdgesParams, named_weights
from tasks.edges.thin import to_uint8
from tasks.stage import Arrays, Item, by_size, image_of
from tasks.training import weights as weights_files
from tasks.training.networks import load_into

NETWORKS = {"hed": HED, "hed-lite": HEDLite}
"""Of :attr:`EdgesParams.network`."""


def edges_items(items: Sequence[Item], params: EdgesParams) -> list[Arrays]:
    """Map function of :func:`tasks.edges.stages.edges`: ``edges_hw (H, W) uint8``, images of one size together."""

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        network = load_network(params, part[0].nets.get("weights"), part[0].device)
        found = draw(network, [image_of(item) for item in part], params.scales, flip=params.flip)
        return [{"edges_hw": to_uint8(one)} for one in found]

    return by_size(items, of_one_size)


def draw(
    network: EdgeNetwork, images_rgb: Sequence[ImageRGB], scales: Sequence[float] = (1.0,), *, flip: bool = False
) -> NDArray[np.float32]:
    """``(N, H, W) float32`` probabilities of a boundary, for images ``(H, W, 3) uint8`` of one size.

    At several scales the picture is resized and the maps resized back, bilinearly; their mean is taken. With ``flip``
    the mean includes what the mirrored picture gives, mirrored back.
    """
    device = next(network.parameters()).device
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(images_rgb)).to(device).permute(0, 3, 1, 2).float()
        size_hw = (images.shape[2], images.shape[3])
        total = torch.zeros(len(images), *size_hw, device=device)
        for scale in scales:
            scaled = scale_images(images, scale)
            total += resize(network.edges(scaled)[:, None], size_hw)[:, 0]
            if flip:
                total += resize(network.edges(scaled.flip(3))[:, None], size_hw)[:, 0].flip(2)
        found: NDArray[np.float32] = (total / (len(scales) * (1 + flip))).cpu().numpy()
    return found


def load_network(params: EdgesParams, given: str | None = None, device: str = "cpu") -> EdgeNetwork:
    """The network in eval mode on ``device``; kept for the process's next images.

    Args:
        params: the stage's, or with the semantic form of its weights.
        given: place of the weights' file where the stage has it as an input.
        device: ``cpu`` or ``cuda``.

    Raises :class:`tasks.training.weights.WeightsError` where the weights are not here or are of another network.
    """
    weights = named_weights(params.network, params.weights)
    # By the file's state, too: another file in its place must not be answered with the old network.
    file = Path(given or weights)
    state = file.stat() if file.is_file() else None
    return _load(params.network, weights, given, device, None if state is None else (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=2)
def _load(name: str, weights: str, given: str | None, device: str, _file: tuple[int, int] | None) -> EdgeNetwork:
    source = weights_files.resolve(weights, name, KEY, given=given)
    network = NETWORKS[name]()
    try:
        state = read_hed(source.path) if name == "hed" and source.path is not None else source.state()
    except ValueError as error:
        raise weights_files.WeightsError(str(error)) from error
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("normalise.")}
    try:
        load_into(network, {**own, **state}, source.description)
    except weights_files.WeightsError as error:
        with torch.device("meta"):
            fitting = [other for other, build in NETWORKS.items() if set(build().state_dict()) == {*own, *state}]
        if not fitting:
            raise
        raise weights_files.WeightsError(
            f"{source.description}: these are tensors of {fitting[0]}, not of {name}; set edges.network (--network) to"
            f" {fitting[0]}"
        ) from error
    return network.eval().requires_grad_(False).to(device)
