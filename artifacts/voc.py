"""PASCAL VOC trees, SBD, WeakTags and ScribbleSup beside them."""

from __future__ import annotations

from artifacts.voc_write import (
    voc_palette,
    write_annotation,
    write_class_mask,
    write_classes,
    write_image_set,
    write_tags,
)

__all__ = ["voc_palette", "write_annotation", "write_class_mask", "write_classes", "write_image_set", "write_tags"]
