"""What the training kit and the stages need of a network: its groups, its pretrained part; of a segmenter, its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor, nn

from models.groups import GroupRule
from models.losses import LossAt
from models.normalise import Normalise
from models.resample import whole_cells


class Network(nn.Module, ABC):
    """A network that starts from ImageNet weights or a checkpoint and is trained in declared groups."""

    PRETRAINED: ClassVar[str]
    """Beginning of the names of the part that an ImageNet file fills, ``"backbone."`` say."""
    ADDED: ClassVar[str] = ""
    """Beginning of the names of what was added to a published network: a checkpoint without it is a start, too."""

    normalise: Normalise
    rules: Sequence[GroupRule]
    """The learning-rate groups (:mod:`models.groups`)."""

    def load_pretrained(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Load an ImageNet state dict, its provider's own, into the pretrained part.

        Raises ``ValueError`` naming ``source`` and the first missing, surplus or differently shaped keys; also where
        the network has no such part.
        """
        raise ValueError(f"{source}: {type(self).__name__} has no part that starts from pretrained weights")


class Backbone(Protocol):
    """What such a network needs of its backbone."""

    output_stride: int
    """Pixels of the image to a cell of the feature map."""

    def cells(self, side: int) -> int:
        """Cells of the feature map along ``side`` pixels of the image."""


class BackboneNetwork(Network):
    """A network whose heads stand on the feature map of one backbone."""

    PRETRAINED = "backbone."

    backbone: nn.Module

    def features(self, images_nchw: Tensor) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255 -> ``(N, C, h, w)`` at the output grid."""
        return cast(Tensor, self.backbone(self.normalise(images_nchw)))

    def whole(self, images_nchw: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Images of whole cells, and which share of them is picture: :func:`models.resample.whole_cells`."""
        return whole_cells(images_nchw, cast(Backbone, self.backbone).output_stride)

    def grid(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output grid for images of ``size_hw``, at least one cell."""
        backbone = cast(Backbone, self.backbone)
        return max(1, backbone.cells(size_hw[0])), max(1, backbone.cells(size_hw[1]))


class Segmenter(BackboneNetwork):
    """A network that gives each pixel a class, background first; called with images and, to be trained, labels.

    ``network(images, labels)`` gives what :meth:`losses` takes. Labels are no input of a prediction: only networks
    that are guided by them in training use them.
    """

    head: nn.Module
    loss_at: LossAt
    """Where the loss is taken, see :func:`models.losses.segmentation_loss`."""

    @abstractmethod
    def logits(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255 -> ``(N, K+1, *size_hw)`` float32, whose softmax are the probabilities."""

    @abstractmethod
    def probabilities(self, images_nchw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """``(N, 3, H, W)`` RGB 0..255 -> ``(N, K+1, *size_hw)`` float32; each pixel's sum to 1."""

    @abstractmethod
    def losses(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss``, with gradient, and its parts without gradient, to be logged.

        ``output`` is the network's own, or :class:`models.deeplab.MultiScaleInputs`' of it; of ``batch`` the
        ``labels`` are used, ``(N, H, W)`` integers with 255 = undecided.
        """
