"""The stage that draws boundaries, as a description (no torch)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tasks.bounds import bounded, number
from tasks.stage import IMAGES_AT_ONCE, PARAMS_CONFIG, MapStage
from tasks.training import weights as weights_files

KEY = "params.edges.weights"
PACKAGED = "packaged"


@dataclass(frozen=True)
class EdgesParams:
    """Boundaries by a network, or by Canny's filter."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    network: Literal["hed", "hed-lite", "canny"] = field(
        default="hed",
        metadata={"help": "hed (VGG-16), hed-lite (ours, small, ships with Maskmill) or canny (no network)"},
    )
    weights: str = field(
        default=PACKAGED,
        metadata={"help": "packaged (the network's own), or a file of its tensors; HED's in any known layout"},
    )
    scales: tuple[float, ...] = number(
        (1.0,), 0.1, 4, "sizes at which the picture is seen; results are averaged. .5 1 1.5: ODS +.006, time x3.5"
    )
    flip: bool = field(default=False, metadata={"help": "average with what the mirrored picture gives: twice the time"})

    def __post_init__(self) -> None:
        bounded(self, "edges")
        if not self.scales:
            raise ValueError("edges.scales is empty; give at least one, 1 say")
        if self.network == "canny":
            if (self.weights, self.scales, self.flip) != (PACKAGED, (1.0,), False):
                raise ValueError("edges.network canny takes no weights, scales or flip: it is a filter of one scale")
        elif self.weights != PACKAGED:
            self._check_weights(weights_files.parse(self.weights))

    def _check_weights(self, named: weights_files.Weights) -> None:
        """Raises ``ValueError`` for what cannot be this network's: ImageNet's weights do not draw."""
        instead = f"give {PACKAGED} or a file"
        if named.kind == "none":
            raise ValueError(f"edges.weights is none: random weights draw nothing; {instead}")
        if named.kind == "imagenet" or (named.kind == "row" and named.name != self.network):
            raise ValueError(f"edges.weights {self.weights} are not those of {self.network}; {instead}")
        if named.preset:
            raise ValueError(
                f"edges.weights {self.weights}: {self.network} has one normalisation, and takes no other with a file;"
                f" give {named.path}"
            )


def edges(params: EdgesParams = EdgesParams(), *, name: str = "edges") -> MapStage:
    """The stage: an image gives ``edges_hw (H, W) uint8``, 255 times the probability of a boundary at each pixel.

    The packaged weights enter the address by the table's digest; a file is an input, known by its content.
    Raises :class:`tasks.training.weights.WeightsError` where the weights are not here or damaged.
    """
    stage = MapStage(
        name=name,
        version=2,
        params=params,
        reads=("image",),
        outputs=("edges_hw",),
        function="tasks.edges.canny:edges_item",
        heat=("edges_hw",),
    )
    if params.network == "canny":
        return stage
    check_file(params, KEY)
    source = weights_files.resolve(named_weights(params.network, params.weights), params.network, KEY)
    return dataclasses.replace(
        stage,
        params=dataclasses.replace(params, weights=source.semantic),
        function="tasks.edges.inference:edges_items",
        inputs=source.inputs,
        uses_torch=True,
        images_at_once=IMAGES_AT_ONCE,
    )


def check_file(params: EdgesParams, key: str) -> None:
    """Raises :class:`tasks.training.weights.WeightsError` where the weights are a file that is not there.

    ``key``: where they were named. (ImageNet's, which other networks may have instead, are of no use here.)
    """
    file = weights_files.parse(params.weights).path
    if params.weights != PACKAGED and file is not None and not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise weights_files.WeightsError(f"weights file {file} {what}; set {key} to {PACKAGED} or to a file of tensors")


def named_weights(network: str, weights: str) -> str:
    """What ``packaged`` stands for: the row of the table that has the network's name."""
    return network if weights == PACKAGED else weights
