"""What an export does to its pictures on their way to any writer: uncertain pixels, confidence maps, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.cache.atomic import write_bytes_atomic
from artifacts.export.items import ExportImage, Source
from artifacts.images import exif_orientation
from artifacts.objects import Object, clip_window
from artifacts.records import UNDECIDED, DataError, size_of

FOLDER = "confidence"
"""Of an export: ``<image id>.png``, 8 bits of grey, 255 is certain."""


@dataclass
class Passing:
    """A source that hands on another's pictures."""

    source: Source

    @property
    def split(self) -> str:
        """As the source's."""
        return self.source.split

    @property
    def classes(self) -> tuple[str, ...]:
        """As the source's."""
        return self.source.classes

    @property
    def with_images(self) -> bool:
        """As the source's."""
        return self.source.with_images

    @property
    def origin(self) -> Mapping[str, Any]:
        """As the source's."""
        return self.source.origin

    def __iter__(self) -> Iterator[ExportImage]:
        return iter(self.source)


@dataclass
class WithConfidence(Passing):
    """A source whose pictures get a confidence map beside them, or lose the pixels that are too uncertain, or both."""

    confidence: Callable[[str], NDArray[np.uint8]]
    folder: Path | None = None
    """Where the maps go; ``None``: they are not wanted."""
    undecided_below: int = 0
    """Pixels of less confidence become 255, and leave their objects."""

    def __iter__(self) -> Iterator[ExportImage]:
        for image in self.source:
            confidence_hw = self.confidence(image.image_id)
            if confidence_hw.shape != image.mask_hw.shape:
                raise DataError(
                    f"{image.image_id}: confidence of {confidence_hw.shape} for a mask of {image.mask_hw.shape}"
                )
            if self.folder is not None:
                write_confidence(self.folder / f"{image.image_id}.png", confidence_hw)
            yield without_uncertain(image, confidence_hw < self.undecided_below) if self.undecided_below else image


def write_confidence(path: Path, confidence_hw: NDArray[np.uint8]) -> None:
    """Write ``(H, W) uint8`` as a grey PNG; the same map gives the same bytes."""
    done, data = cv2.imencode(".png", confidence_hw)
    if not done:
        raise DataError(f"{path}: {confidence_hw.shape} cannot be written as a PNG")
    write_bytes_atomic(path, data.tobytes(), durable=False)


def without_uncertain(image: ExportImage, uncertain_hw: NDArray[np.bool_]) -> ExportImage:
    """The picture with 255 where it is uncertain; its objects lose these pixels: no format has a place for both."""
    mask_hw = np.where(uncertain_hw, np.uint8(UNDECIDED), image.mask_hw)
    objects = image.objects
    if objects is not None:
        objects = [(_cut(item, uncertain_hw), class_id) for item, class_id in objects]
    return replace(image, mask_hw=mask_hw, objects=objects)


def _cut(item: Object, uncertain_hw: NDArray[np.bool_]) -> Object:
    values_hw = item.values_hw.copy()
    inside, part = clip_window(item.window_xyxy, size_of(uncertain_hw))
    values_hw[part][uncertain_hw[inside]] = 0
    return replace(item, values_hw=values_hw)


@dataclass
class Counted(Passing):
    """A source that counts what passes: for the data card."""

    pictures: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    """Class number -> pixels; 0 background, 255 undecided."""
    shown: Counter[int] = field(default_factory=Counter)
    """Class number -> pictures that show it."""
    objects: Counter[int] = field(default_factory=Counter)
    """Class number -> objects, of the pictures whose objects are known."""
    with_objects: int = 0
    """Pictures whose objects are known."""
    turned: int = 0
    """Pictures that were turned upright."""
    licences: Counter[int] = field(default_factory=Counter)
    """Number of a licence -> pictures."""

    def __iter__(self) -> Iterator[ExportImage]:
        licence_of = self.origin.get("image_licenses", {})
        for image in self.source:
            found = np.bincount(image.mask_hw.ravel(), minlength=256)
            present = np.flatnonzero(found).tolist()
            self.pictures += 1
            self.pixels.update({number: int(found[number]) for number in present})
            self.shown.update(present)
            if image.objects is not None:
                self.with_objects += 1
                self.objects.update(class_id for item, class_id in image.objects if item.mask_hw.any())
            self.turned += self.with_images and exif_orientation(image.image) != 1
            if image.image_id in licence_of:
                self.licences[licence_of[image.image_id]] += 1
            yield image
