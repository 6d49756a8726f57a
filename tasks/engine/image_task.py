"""One image of a stage's work, and how it is read: the same for map stages and for fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.cache.store import MaskStore
from artifacts.images import read_image_rgb
from artifacts.records import DataError, ImageRGB, Record
from tasks.stage import Item

POSITIONS = frozenset({"boxes", "scribbles", "truth", "truth_objects"})
"""Label kinds that say where something is: they mean nothing in an image of another size."""


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image of a map unit or of a fit."""

    key: str
    stamp: str
    """Of the result (map), or the member's digest (fit)."""
    record: Record
    """Only the declared label kinds."""
    up: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """role -> (address, stamp) of the upstream arrays."""
    stated_hw: tuple[int, int] | None = None
    """As :func:`stated_size` gives it."""


def stated_size(record: Record, reads: Collection[str]) -> tuple[int, int] | None:
    """Height and width that the image must have: as the annotation states them, where image and positions are read."""
    return record.size_hw if "image" in reads and POSITIONS & set(reads) else None


def load_item(
    store: MaskStore, task: ImageTask, reads: Collection[str], classes: tuple[str, ...], **surroundings: Any
) -> Item:
    """Image (if ``reads`` has it), record and upstream arrays of ``task``; ``surroundings``: other fields of the item.

    Raises :class:`DataError` for a broken image and for one of another size than its annotation states, ``OSError``
    for a file that cannot be read, and what ``store.read`` raises.
    """
    up = {role: store.read(address, task.key, stamp) for role, (address, stamp) in task.up.items()}
    image_rgb: ImageRGB | None = None
    if "image" in reads:
        image_rgb = read_image_rgb(Path(task.record.image))
        if task.stated_hw is not None and image_rgb.shape[:2] != task.stated_hw:
            raise DataError(
                f"{task.record.image}: the image is {image_rgb.shape[:2]} (height, width; turned as its EXIF data"
                f" say), its annotation was made for {task.stated_hw}: its positions would be wrong. Annotate it"
                " again, or give the image that was annotated"
            )
    return Item(task.key, task.record, classes, image_rgb, up, **surroundings)
