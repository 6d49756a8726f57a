"""The input of an export format: images with masks, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from artifacts.objects import Object
from artifacts.records import MaskHW

FORMATS = (
    "voc",
    "voc-server",
    "coco",
    "hdf5",
    "label-studio",
    "label-studio-polygons",
    "cvat",
    "cvat-polygons",
    "labelme",
    "labelme-polygons",
    "yolo-seg",
)
"""What can be exported to; :data:`artifacts.export.dataset.WRITERS` holds how."""


@dataclass(frozen=True)
class ExportImage:
    """One image of an export."""

    image_id: str
    image: Path
    mask_hw: MaskHW
    """``(H, W) uint8``: 0 background, 1..K, 255 undecided."""
    objects: Sequence[tuple[Object, int]] | None
    """Objects before painting with their class numbers, where the stage keeps them."""


class Source(Protocol):
    """The images of an export, in the order of their keys."""

    @property
    def split(self) -> str:
        """Name of the split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """``classes[i]`` is class number ``i + 1``."""

    @property
    def with_images(self) -> bool:
        """Whether the images are to be copied."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """As ``RecordSet.origin``: what the data set's own format says beside the labels."""

    def __iter__(self) -> Iterator[ExportImage]: ...
