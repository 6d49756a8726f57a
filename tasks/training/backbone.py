"""The params of every network on one of DeepLab's backbones: which one, from what weights, and its training crops."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from artifacts.keys import WHEN_SET
from models.names import SEGMENTERS, OutputStride, check_choices, check_stride, is_timm
from tasks.bounds import number
from tasks.training import weights as weights_files
from tasks.training.params import TrainParams


@dataclass(frozen=True)
class BackboneParams(TrainParams):
    """A backbone (:data:`models.names.SEGMENTERS`), its weights, and the crops that the network learns from."""

    NAME: ClassVar[str] = "network"

    network: str = field(
        default="resnet50",
        metadata={
            "help": f"{', '.join(SEGMENTERS)}; largefov is VGG-16, resnet38 RRM's wide one, other resnet* are "
            "DeepLab v2's, lite0 is EfficientNet-Lite0 (light: for CPUs), timm:NAME any of timm's models"
        },
    )
    width: int = number(16, 4, 256, "channels of the tiny network's stem")
    output_stride: OutputStride = field(
        default=8,
        metadata={
            "help": "pixels of the image to a cell of the network's map: 8; tiny also 4; lite0 and timm:NAME also 16 "
            "(several times faster on a CPU) and 32"
        },
    )
    batch_norm: Literal["trained", "frozen"] = field(
        default="frozen",
        metadata={
            **WHEN_SET,
            "help": "batch norms of lite0 and timm:NAME: frozen as loaded, or trained; those of resnet* are frozen, "
            "tiny's trained",
        },
    )
    head_multipliers: tuple[float, float] | None = field(
        default=None,
        metadata={
            **WHEN_SET,
            "bounds": (0.0, 1000.0),
            "help": "lite0 and timm:NAME: factors of the learning rate for the head's weights and biases; "
            "null: 10, 20; take 1, 1 with adamw",
        },
    )
    atrous: Literal["paper", "exact"] = field(
        default="paper",
        metadata={
            "help": "dilation of the first 3x3 of layer3/4: as all others (DeepLab v2), or the stage's before, "
            "which leaves torchvision's features unchanged"
        },
    )
    weights: str = field(default="imagenet", metadata={"help": weights_files.HELP})
    crop: int = number(321, 16, 4096, "side of the training crop, pixels")
    scale_range: tuple[float, float] = number((0.5, 1.5), 0.1, 4.0, "random scale before the crop")
    flip: bool = field(default=True, metadata={"help": "mirror every second crop"})
    colour_jitter: float = number(0.0, 0.0, 1.0, "random brightness, contrast and saturation, up to this much; 0: none")
    batch: int = number(10, 1, 4096, "crops an iteration, over all devices")
    poly_power: float = number(0.9, 0.0, 10.0, "the learning rate falls as (1 - iteration/iterations)**poly_power")

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale_range
        if low > high:
            raise ValueError(f"{self.NAME}.scale_range {self.scale_range!r} must be low <= high")
        check_stride(self.network, self.output_stride)
        check_choices(self.network, self.batch_norm, self.head_multipliers)
        weights_files.check_fits(self.weights, self.network, f"{self.NAME}.weights")

    def refusal(self, devices: int, name: str) -> str:
        """One of timm's models that does not exist, or cannot have this output stride."""
        if not is_timm(self.network):
            return ""
        from models.timm_backbone import reductions  # timm brings torch

        try:
            reductions(self.network, self.output_stride)
        except ValueError as error:
            return f"params.{name}: {error}"
        return ""

    @property
    def backbone_options(self) -> dict[str, Any]:
        """What decides a network on this backbone beside its name, and its groups."""
        names = ("atrous", "width", "output_stride", "batch_norm", "head_multipliers")
        return {name: getattr(self, name) for name in names}


def encoder_refusal(network: str, name: str, *, batch: int, crop: int, smallest: int, devices: int) -> str:
    """Why a U-Net's fit cannot be run, or "": ``network`` is a timm model that is no encoder, or crops are too small.

    ``smallest``: side of the smallest crop that may be alone on a device; batch norm has to see two values.
    """
    if is_timm(network):
        from models.timm_backbone import levels  # timm brings torch

        try:
            levels(network)
        except ValueError as error:
            return f"params.{name}: {error}"
    if batch != devices or crop >= smallest:
        return ""
    return (
        f"params.{name}.batch={batch} gives each of options.devices={devices} one crop, and of"
        f" params.{name}.crop={crop} batch norm would see a map of 1 x 1; set batch to {2 * devices} or more,"
        f" or crop to {smallest} or more"
    )
