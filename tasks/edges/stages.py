"""The stage that draws boundaries, as a description (no torch)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from tasks.bounds import bounded, number
from tasks.stage import IMAGES_AT_ONCE, PARAMS_CONFIG, MapStage
from tasks.training import weights as weights_files

KEY = "params.edges.weights"


@dataclass(frozen=True)
class EdgesParams:
    """Boundaries by HED."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    weights: str = field(default="hed", metadata={"help": "hed, or a file of HED's tensors under our names"})
    scales: tuple[float, ...] = number(
        (1.0,), 0.1, 4, "sizes at which the picture is seen; results are averaged. .5 1 1.5: ODS +.006, time x3.5"
    )

    def __post_init__(self) -> None:
        bounded(self, "edges")
        if not self.scales:
            raise ValueError("edges.scales is empty; give at least one, 1 say")
        if weights_files.parse(self.weights).kind == "none":
            raise ValueError("edges.weights is none: random weights draw nothing; give hed or a file")


def edges(params: EdgesParams = EdgesParams(), *, name: str = "edges") -> MapStage:
    """The stage: an image gives ``edges_hw (H, W) float16``, the probability of a boundary at each pixel.

    The packaged weights enter the address by the table's digest; a file is an input, known by its content.
    Raises :class:`tasks.training.weights.WeightsError` where the weights are not here or damaged.
    """
    source = weights_files.resolve(params.weights, "hed", KEY)
    return MapStage(
        name=name,
        version=1,
        params=dataclasses.replace(params, weights=source.semantic),
        reads=("image",),
        outputs=("edges_hw",),
        function="tasks.edges.inference:edges_item",
        inputs=source.inputs,
        uses_torch=True,
        batch_function="tasks.edges.inference:edges_items",
        images_at_once=IMAGES_AT_ONCE,
        heat=("edges_hw",),
    )
