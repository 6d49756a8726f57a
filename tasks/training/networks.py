"""A network's way into a fit and out of it: initial weights, checkpoints of earlier fits, the padding's colour."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from models.backbones import has_frozen_norms
from models.deeplab import check_same_keys
from models.network import Network
from models.normalise import NORMALISATIONS, Normalisation
from tasks.training import rng
from tasks.training import weights as weights_files
from tasks.training.context import FitContext

N = TypeVar("N", bound=Network)
P = TypeVar("P", bound=Hashable)


class InitialParams(Protocol):
    """The part of a fit's params that names its initial weights."""

    @property
    def network(self) -> str: ...  # noqa: D102
    @property
    def weights(self) -> str: ...  # noqa: D102


def initial_network(context: FitContext, params: InitialParams, build: Callable[[Normalisation], N], *, key: str) -> N:
    """The network to train: the fit's ``init`` if it has one, else the weights that ``params.weights`` names.

    Args:
        context: the fit. A weights file is its input ``weights``.
        params: name of the network, and its weights (:func:`tasks.training.weights.resolve`).
        build: makes the network with a normalisation, random weights from torch's global generator. They come from
            the fit's seed alone; the generator is left as it was.
        key: config key of the weights, for messages: ``params.deeplab.weights``, say.

    Raises :class:`tasks.training.weights.WeightsError` where the weights are of another network or cannot be had.
    """
    source = weights_files.resolve(params.weights, params.network, key, given=context.inputs.get("weights"))
    with rng.preserved():
        rng.seed_all(context.seed, "weights")
        network = build(NORMALISATIONS[source.normalisation])
    if (state := context.initial_weights()) is not None:
        load_into(network, state, str(context.init), start=True)
    elif "weights" in context.inputs:
        load_into(network, context.input_weights("weights"), context.inputs["weights"], start=True)
    elif source.row is not None:
        load_into(network, source.state(), source.description)
    elif has_frozen_norms(network):
        context.warn(
            f"{params.network} starts from random weights although its batch norms are frozen, and will train badly; "
            f"set {key}=imagenet or to a file"
        )
    return network


def load_into(network: Network, state: Mapping[str, Tensor], source: str, *, start: bool = False) -> None:
    """Load an ImageNet backbone, or a whole network that Maskmill wrote, into ``network``.

    ``start``: to be trained on, so a whole network may lack what was added to it (``network.ADDED``), which then
    keeps its own numbers.
    Raises :class:`tasks.training.weights.WeightsError` naming ``source`` and the first keys or shapes that differ.
    """
    try:
        if not any(name.startswith(network.PRETRAINED) for name in state):
            network.load_pretrained(state, source=source)
            return
        own = network.state_dict()
        added = {name: tensor for name, tensor in own.items() if network.ADDED and name.startswith(network.ADDED)}
        whole = {**added, **state} if start and not added.keys() & state.keys() else dict(state)
        check_same_keys(own, whole, set(), source)
        network.load_state_dict(whole)
    except ValueError as error:
        raise weights_files.WeightsError(str(error)) from error


def load_network(
    path: str,
    build: Callable[[P, int], N],
    params: P,
    outputs: int,
    device: str,
    prefix: str = "",
    *,
    channels_last: bool = True,
) -> N:
    """The trained network of a checkpoint, in eval mode on ``device``; cached for the process's next images.

    Args:
        path: the checkpoint, a safetensors file.
        build: ``(params, outputs) -> network``, a function of a module; its weights are replaced.
        params: what decides the network; hashable.
        outputs: number of classes, or of score maps, as ``build`` counts.
        device: ``cpu`` or ``cuda``.
        prefix: the beginning of its tensors' names where the checkpoint holds several networks.
        channels_last: memory format.

    Raises :class:`tasks.training.weights.WeightsError` if the file is cut short or of another network.
    """
    file = Path(weights_files.require_file(Path(path), "the run's fit")).stat()
    network: N = _load(path, file.st_mtime_ns, file.st_size, build, params, outputs, device, prefix, channels_last)
    return network


@functools.lru_cache(maxsize=2)
def _load(
    path: str,
    mtime_ns: int,
    size: int,
    build: Callable[[Any, int], Network],
    params: Any,
    outputs: int,
    device: str,
    prefix: str,
    channels_last: bool,
) -> Any:
    if device == "cpu":
        # One process per core does the work already; more threads would only wait for each other.
        torch.set_num_threads(1)
    with torch.device("meta"):
        network = build(params, outputs)
    network.to_empty(device="cpu")
    load_into(network, weights_files.read_part(Path(path), prefix), path)
    network = network.eval().requires_grad_(False).to(device)
    return network.to(memory_format=torch.channels_last) if channels_last else network


def fill_rgb(network: Network) -> tuple[int, int, int]:
    """The colour that the network's normalisation maps to zero, as near as whole numbers come: fills the padding."""
    red, green, blue = (round(value) for value in network.normalise.mean.flatten().tolist())
    return red, green, blue
