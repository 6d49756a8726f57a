"""The input of an export format: images with masks, one at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.images import exif_orientation, read_image_rgb
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


@dataclass(frozen=True)
class Doubts:
    """What a run knows of how right its masks are."""

    confidence: Callable[[str], NDArray[np.uint8]] | None = None
    """Image id -> confidence of each pixel, ``(H, W) uint8``, 255 is certain."""
    confidence_from: str = ""
    """Digest of all that decides the confidence."""
    suspicion: Callable[[], Mapping[str, Any] | None] | None = None
    """A summary for the data card, made only when an export is written: ``pictures``, ``median``, ``tenth``,
    ``worst``."""


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


def copy_picture(image: Path, target: Path) -> None:
    """Copy a picture's file; upright, where its EXIF says that it is to be turned.

    Masks are of the picture as people see it. torchvision and pycocotools do not turn pictures, OpenCV and browsers do:
    of an upright one, all see the same. It is encoded anew then (a JPEG at quality 95).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if exif_orientation(image) == 1:
        shutil.copyfile(image, target)
    else:
        Image.fromarray(read_image_rgb(image)).save(target, quality=95)
