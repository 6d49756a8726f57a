"""Export as a COCO instances file with one run-length-encoded mask per object."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from artifacts.datasets.coco_writer import CocoImage, CocoObject, write_coco
from artifacts.export.items import Source
from artifacts.objects import paste_object


def write_coco_export(folder: Path, source: Source) -> dict[str, int]:
    """``annotations/instances_<split>.json`` and ``images/``.

    A stage without objects gives one annotation per class and image; the file's ``info`` says which it is.
    """

    def images() -> Iterator[CocoImage]:
        for image in source:
            size_hw = (image.mask_hw.shape[0], image.mask_hw.shape[1])
            objects = None
            if image.objects is not None:
                objects = [
                    CocoObject(class_id, paste_object(item.values_hw, item.window_xyxy, size_hw))
                    for item, class_id in image.objects
                ]
            name = f"{image.image_id}{image.image.suffix}"
            if source.with_images:
                target = folder / "images" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(image.image, target)
            yield CocoImage(name, size_hw, objects, image.mask_hw)

    path = folder / "annotations" / f"instances_{source.split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = write_coco(path, images(), source.classes, info={"description": "pseudo-masks made by maskmill"})
    return {"images": counts.images, "annotations": counts.annotations, "empty_objects": counts.empty_objects}
