"""Boxes to masks in a few lines: one picture after the other, without a cache, a data set or a run.

```python
predictor = BoxPredictor(classes=("cat", "dog"))
predictor.set_image("photo.jpg")
masks = predictor.predict([(30, 20, 200, 180)], ["cat"])
masks.save("photo.png")
```

A flow's stage gives the same masks for the same boxes and image id: the very function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.datasets.voc_writer import write_class_mask
from artifacts.images import read_image_rgb
from artifacts.objects import Object, paste_object, unpack_objects
from artifacts.records import MAX_CLASSES, Box, ImageRGB, MaskHW, Record
from artifacts.report.notebook import mask_png
from tasks.grabcut import propose
from tasks.stage import Item, MapStage, call

READS = frozenset({"image", "boxes"})
"""What a stage may read that this predictor can call."""


@dataclass(frozen=True)
class BoxMasks:
    """The masks of one picture. Jupyter shows them over it."""

    mask_hw: MaskHW
    """(H, W) uint8 class numbers; 0 background. Larger boxes first, smaller on top."""
    objects: tuple[Object, ...]
    """An object a box, before painting; ``id`` is the box's place."""
    boxes: tuple[Box, ...]
    classes: tuple[str, ...] = ()
    """Name of class ``i + 1``."""
    image_rgb: ImageRGB | None = field(default=None, repr=False)

    @property
    def masks_nhw(self) -> NDArray[np.bool_]:
        """(N, H, W) bool: each object's whole mask, in the order of the boxes."""
        found = [paste_object(one.mask_hw, one.window_xyxy, self.mask_hw.shape) for one in self.objects]
        return np.stack(found) if found else np.zeros((0, *self.mask_hw.shape), np.bool_)

    def save(self, path: str | Path) -> None:
        """Write the class mask as an 8-bit PNG with VOC's palette."""
        write_class_mask(Path(path), self.mask_hw)

    def _repr_png_(self) -> bytes:
        return mask_png(self.mask_hw, self.image_rgb, self.classes)


class BoxPredictor:
    """Masks for boxes in a picture, by GrabCut or another stage that reads the image and boxes alone."""

    def __init__(self, stage: MapStage | None = None, *, classes: Sequence[str] = ()) -> None:
        """Choose how masks are made.

        Args:
            stage: default :func:`tasks.grabcut.propose`; with params of one's own ``propose(GrabCutParams(...))``.
            classes: class table: name of class ``i + 1``.

        Raises ``ValueError`` for a stage that needs more than the image and boxes.
        """
        self.stage = propose() if stage is None else stage
        self.classes = tuple(classes)
        if not set(self.stage.reads) <= READS or self.stage.inputs or "objects_flat" not in self.stage.outputs:
            raise ValueError(
                f"stage {self.stage.name!r} reads {', '.join(self.stage.reads)} and gives"
                f" {', '.join(self.stage.outputs)}: a predictor calls stages from the image and boxes to objects"
            )
        self._image_rgb: ImageRGB | None = None
        self._image_id = ""

    def set_image(self, image: str | Path | ImageRGB, image_id: str = "") -> None:
        """Take the picture that :meth:`predict` works on.

        Args:
            image: path of any image file, or (H, W, 3) uint8 RGB.
            image_id: decides the seed of each object's cut; default: the file's name without its ending.

        Raises :class:`~artifacts.images.ImageError` or ``OSError`` for a file that is no image, ``ValueError`` for an
        array of another shape or type.
        """
        if isinstance(image, str | Path):
            self._image_rgb = read_image_rgb(Path(image))
            self._image_id = image_id or Path(image).stem
            return
        image_rgb = np.asarray(image)  # Pillow's images, too
        if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
            raise ValueError(f"an image is a (height, width, 3) uint8 array, not {image_rgb.shape} {image_rgb.dtype}")
        self._image_rgb, self._image_id = image_rgb, image_id

    def predict(self, boxes: Sequence[Sequence[float]], classes: Sequence[int | str] = ()) -> BoxMasks:
        """Masks of the objects in ``boxes``.

        Args:
            boxes: ``x0, y0, x1, y1`` each, in pixel edges, half-open.
            classes: class number or name of each box; default: class 1 for all.

        Raises ``ValueError`` before :meth:`set_image`, for another number of classes than boxes, a name that the table
        lacks, and an inverted or non-finite box.
        """
        if classes and len(classes) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes and {len(classes)} classes: give one for each box, or none")
        numbers = [self._number(one) for one in classes] or [1] * len(boxes)
        found = []
        for place, (box, number) in enumerate(zip(boxes, numbers, strict=True)):
            x0, y0, x1, y1 = map(float, box)
            found.append(Box(place, number, x0, y0, x1, y1))
        return self._masks(Record(self._image_id, "", boxes=tuple(found)))

    def predict_record(self, record: Record) -> BoxMasks:
        """Masks of a data set's picture with its own boxes; the same as a flow's.

        Raises as :meth:`set_image` does, and :class:`~tasks.stage.SkipImage` where its boxes are not known.
        """
        self.set_image(record.image, record.image_id)
        return self._masks(record)

    def _masks(self, record: Record) -> BoxMasks:
        if self._image_rgb is None:
            raise ValueError("no picture yet: call set_image first")
        item = Item(record.image_id, record.view(self.stage.reads), self.classes, self._image_rgb)
        (arrays,) = call(self.stage, [item])
        objects = tuple(unpack_objects(arrays))
        of_id = {box.id: box for box in record.boxes or ()}
        return BoxMasks(
            arrays["mask_hw"], objects, tuple(of_id[one.id] for one in objects), self.classes, self._image_rgb
        )

    def _number(self, given: int | str) -> int:
        if isinstance(given, str):
            if given not in self.classes:
                raise ValueError(
                    f"no class {given!r}; BoxPredictor(classes=...) has {', '.join(self.classes) or 'none'}"
                )
            return self.classes.index(given) + 1
        if not 1 <= given <= (len(self.classes) or MAX_CLASSES):
            raise ValueError(f"class numbers are 1..{len(self.classes) or MAX_CLASSES}, not {given}")
        return given
