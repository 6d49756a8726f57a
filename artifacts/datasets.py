"""Where data comes from: one parameter class, one front for all readers.

``DataParams.source`` names a format and a place (``voc:PATH``, ``coco:IMAGES,JSON``, ...); :func:`read_split` reads
one of its splits into a ``RecordSet``; :func:`remember_dataset` keeps data set names unique in a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

DEMO_PREFIX = "demo"
READERS: Mapping[str, str] = MappingProxyType(
    {
        "voc": "artifacts.voc:read",
        "coco": "artifacts.coco:read",
        "yolo": "artifacts.yolo:read",
        "folder": "artifacts.folder:read",
    }
)
"""format -> ``"module:function"`` of ``def read(place: str, split: str, data: DataParams) -> RecordSet``."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DataParams:
    """Which data, which splits, and how its labels are to be read."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: str = _option(
        "demo", "voc:PATH | coco:IMAGES,JSON | folder:PATH | yolo:PATH | demo | demo-tiny: format and place of the data"
    )
    name: str = _option("", "the data set's name in the cache; empty: the folder's name")
    train: str = _option("train", "split to learn from")
    val: str = _option("val", "split to score on")
    classes: tuple[str, ...] = _option(
        (), "class table, number 1 first; empty: the format's own list, else the names found, sorted"
    )
    difficult: bool = _option(True, "keep the boxes of objects marked difficult (tags always hold them)")
    include_crowd: bool = _option(False, "coco, folder: boxes of crowd regions too (their truth stays undecided)")
    val_share: float = _option(0.2, "share of images for val where the data has no lists (a hash of the name decides)")
    sbd: str = _option("", "voc: SBD folder (with cls/ and inst/); empty: SBD/ in or beside the tree, if there is one")
    scribbles: bool = _option(True, "voc: read ScribbleSup/ if the tree has it")
    scribble_origin: int = _option(0, "voc: number of the first pixel in ScribbleSup files, 0 or 1")

    def __post_init__(self) -> None:
        known = (*READERS, DEMO_PREFIX)
        form, _, place = self.source.partition(":")
        if form not in READERS and form.partition("-")[0] != DEMO_PREFIX:
            raise ValueError(f"source must start with one of {', '.join(known)}, not {self.source!r}")
        if form in READERS and not place:
            raise ValueError(f"source {self.source!r} names no place; write {form}:PATH")
        if any(c in self.name for c in "/\\\0"):
            raise ValueError(f"name {self.name!r} must not hold slashes")
        for split in ("train", "val"):
            if not getattr(self, split):
                raise ValueError(f"{split} must name a split, not {getattr(self, split)!r}")
        if len(set(self.classes)) != len(self.classes) or not all(self.classes):
            raise ValueError(f"classes must be different, non-empty names, not {self.classes}")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share must be in [0, 1), not {self.val_share}")
        if self.scribble_origin not in (0, 1):
            raise ValueError(f"scribble_origin must be 0 or 1, not {self.scribble_origin}")
