"""Exports in PASCAL VOC's forms: the palette tree, and the tree that the evaluation server takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from artifacts.datasets.voc_writer import write_class_mask, write_image_set
from artifacts.export.items import ExportImage, Source, copy_picture
from artifacts.export.mmseg import write_mmseg_config
from artifacts.objects import Object, paste_object
from artifacts.records import UNDECIDED, MaskHW

SERVER_COMPETITION = "comp6"
"""Segmentation trained on data of one's own (comp5: on the challenge's data only)."""


DEVKIT = Path("VOCdevkit", "VOC2012")
"""Where torchvision's ``VOCSegmentation`` looks below its root."""


def write_voc_export(folder: Path, source: Source) -> dict[str, int]:
    """A VOC tree in ``VOCdevkit/VOC2012``, as torchvision's ``VOCSegmentation(folder, year="2012")`` reads it.

    ``JPEGImages/``, ``SegmentationClass/``, ``SegmentationObject/``, ``ImageSets/Segmentation/<split>.txt`` and
    ``trainval.txt``. Masks are PNGs with VOC's palette; 255 is undecided. ``classes.txt`` holds the class table, number
    1 first. torchvision takes ``<id>.jpg`` alone: JPEGs get that ending, other pictures keep theirs and are counted.
    ``mmseg.py`` describes the tree to mmsegmentation.
    """
    tree = folder / DEVKIT
    ids = []
    objects = 0
    suffixes: Counter[str] = Counter()
    for image in source:
        ids.append(image.image_id)
        write_class_mask(tree / "SegmentationClass" / f"{image.image_id}.png", image.mask_hw)
        if image.objects is not None:
            write_class_mask(tree / "SegmentationObject" / f"{image.image_id}.png", object_mask(image))
            objects += len(image.objects)
        suffix = voc_suffix(image)
        suffixes[suffix] += 1
        if source.with_images:
            copy_picture(image.image, tree / "JPEGImages" / f"{image.image_id}{suffix}")
    lists = tree / "ImageSets" / "Segmentation"
    write_image_set(lists / f"{source.split}.txt", ids)
    write_image_set(lists / "trainval.txt", ids)
    (tree / "classes.txt").write_text("".join(f"{name}\n" for name in source.classes))
    write_mmseg_config(folder, DEVKIT, (source.split, source.split), source.classes, suffixes)
    others = sum(suffixes.values()) - suffixes[".jpg"] if source.with_images else 0
    return {"images": len(ids), "objects": objects, "images_that_are_no_jpeg": others}


JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


def voc_suffix(image: ExportImage) -> str:
    """The ending of a picture's copy: ``.jpg`` of all JPEGs, which is all that torchvision looks for."""
    return ".jpg" if image.image.suffix.lower() in JPEG else image.image.suffix


def write_trainval(folder: Path, train: Source, val: Source) -> None:
    """What names both splits: ``trainval.txt``, the ids of both lists, sorted; mmsegmentation's configuration."""
    lists = folder / DEVKIT / "ImageSets" / "Segmentation"
    lines = [line for split in (train.split, val.split) for line in (lists / f"{split}.txt").read_text().splitlines()]
    write_image_set(lists / "trainval.txt", sorted(lines))
    copied = (folder / DEVKIT / "JPEGImages").rglob("*")
    suffixes = Counter(path.suffix for path in copied if path.is_file())
    write_mmseg_config(folder, DEVKIT, (train.split, val.split), train.classes, suffixes)


def write_voc_server_export(folder: Path, source: Source) -> dict[str, int]:
    """``results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png``; undecided pixels become background."""
    target = folder / "results" / "VOC2012" / "Segmentation" / f"{SERVER_COMPETITION}_{source.split}_cls"
    images = undecided = 0
    for image in source:
        # The server knows no "undecided": it counts 255 as one more wrong class.
        unsure = image.mask_hw == UNDECIDED
        undecided += int(unsure.sum())
        write_class_mask(target / f"{image.image_id}.png", np.where(unsure, 0, image.mask_hw).astype(np.uint8))
        images += 1
    return {"images": images, "undecided_pixels_as_background": undecided}


def object_mask(image: ExportImage) -> MaskHW:
    """Object numbers, 1 for the first, larger objects first and smaller on top; 255 where the class is undecided."""
    height, width = image.mask_hw.shape
    size_hw = (height, width)
    mask_hw = np.zeros(size_hw, np.uint8)
    found: Sequence[tuple[Object, int]] = image.objects or ()
    order = sorted(range(len(found)), key=lambda i: (-found[i][0].window_area, i))
    for i in order:
        if i + 1 >= UNDECIDED:
            continue  # a palette PNG holds 254 objects
        mask_hw[paste_object(found[i][0].values_hw, found[i][0].window_xyxy, size_hw) > 0] = i + 1
    mask_hw[image.mask_hw == UNDECIDED] = UNDECIDED
    return mask_hw
