"""Export as a COCO instances file with one run-length-encoded mask per object."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.datasets.coco_writer import CocoImage, CocoObject, write_coco
from artifacts.export.items import Source, copy_picture
from artifacts.objects import paste_object
from artifacts.records import size_of


def write_coco_export(folder: Path, source: Source) -> dict[str, int]:
    """``annotations/instances_<split>.json`` and ``images/``.

    A stage without objects gives one annotation per class and image; the file's ``info`` says which it is. Masks of a
    COCO set keep its ids of images and categories, its supercategories and licences: both files can be joined by id.
    """
    origin = source.origin
    image_ids: Mapping[str, int | str] = origin.get("image_ids", {})

    def images() -> Iterator[CocoImage]:
        for image in source:
            size_hw = size_of(image.mask_hw)
            objects = None
            if image.objects is not None:
                objects = [
                    CocoObject(class_id, paste_object(item.values_hw, item.window_xyxy, size_hw))
                    for item, class_id in image.objects
                ]
            name = f"{image.image_id}{image.image.suffix}"
            if source.with_images:
                copy_picture(image.image, folder / "images" / name)
            licence = origin.get("image_licenses", {}).get(image.image_id)
            yield CocoImage(name, size_hw, objects, image.mask_hw, image_ids.get(image.image_id), licence)

    path = folder / "annotations" / f"instances_{source.split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = write_coco(
        path,
        images(),
        source.classes,
        info={"description": "pseudo-masks made by maskmill"},
        categories=_categories(origin.get("categories", []), source.classes),
        licenses=origin.get("licenses", []),
    )
    return {"images": counts.images, "annotations": counts.annotations, "empty_objects": counts.empty_objects}


def _categories(own: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[Mapping[str, Any]]:
    """The entries of ``classes`` as the data set's file has them; a class that it lacks gets an id that is free.

    Empty where it has none of them: the writer numbers them then.
    """
    known = {entry["name"]: entry for entry in own if entry.get("id") is not None}
    if not known.keys() & set(classes):
        return []
    free = itertools.count(1 + max(entry["id"] for entry in known.values()))
    return [known.get(name) or {"id": next(free), "name": name} for name in classes]
