"""The embedded demo data: pictures with truth, boxes, tags and scribbles, as an ordinary VOC tree.

:func:`write_demo` writes a tree that ``artifacts.datasets.voc`` reads like any other; each picture is a function of
``(seed, family, split, index)`` alone. Body colours and materials are shared by all classes, a small patterned part
(a striped head, a checked wheel) is the class's own. Filled boxes reach 54 mIoU, plain GrabCut 67 (training
images of :data:`DEMO`), a small DeepLab on the true masks a little over 60 after 800 iterations.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.cache.atomic import naming, temporary_beside, write_bytes_atomic, write_text_atomic
from artifacts.demo.geometry import Layer, Rng
from artifacts.demo.scene import make_scene
from artifacts.demo.shapes import TARGET_SHAPES
from artifacts.demo.shapes_aux import AUX_SHAPES
from artifacts.demo.strokes import background_strokes, object_stroke
from artifacts.records import DataError, ImageRGB, MaskHW, size_of

Family = Literal["target", "auxiliary"]

DEMO_CLASSES = tuple(TARGET_SHAPES)
"""Class table of the target family: grazer, kettle, cart, fish, plant."""
AUX_CLASSES = tuple(AUX_SHAPES)
"""Class table of the auxiliary family, disjoint from the target's."""

DEMO_VERSION = 2
"""Raise it when the same params give other pictures."""
MARKER = "demo.json"
"""Written into every tree: what it was made from."""
AUXILIARY_FOLDER = "auxiliary"
MAX_IMAGES = 100_000

_SHAPES: Mapping[Family, Mapping[str, Callable[[Rng], list[Layer]]]] = MappingProxyType(
    {"target": TARGET_SHAPES, "auxiliary": AUX_SHAPES}
)
_SPLITS = ("train", "val")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DemoParams:
    """What a demo tree holds. The same params give the same bytes."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    train: int = _option(240, "training images")
    val: int = _option(60, "validation images")
    size: int = _option(96, "height and width of an image in pixels")
    seed: int = _option(0, "seed of all pictures")
    family: Family = field(default="target", metadata={"help": "classes in the pictures: target or auxiliary"})
    auxiliary: int = _option(0, "auxiliary images with masks beside them: a tree of its own in auxiliary/")

    def __post_init__(self) -> None:
        bounds = {
            "train": (1, MAX_IMAGES),
            "val": (0, MAX_IMAGES),
            "size": (48, 512),
            "seed": (0, 2**63 - 1),
            "auxiliary": (0, MAX_IMAGES),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie in {low}..{high}")
        if self.family not in _SHAPES:
            raise ValueError(f"family={self.family!r} must be one of {', '.join(_SHAPES)}")
        if self.auxiliary and self.family == "auxiliary":
            raise ValueError(f"auxiliary={self.auxiliary} must be 0 where the tree itself is of the auxiliary family")

    @property
    def classes(self) -> tuple[str, ...]:
        """The tree's class table; class ``i + 1`` is ``classes[i]``."""
        return tuple(_SHAPES[self.family])


DEMO = DemoParams()
DEMO_TINY = DemoParams(train=24, val=8, size=64)
DEMO_AUXILIARY = DemoParams(train=2000, val=100, family="auxiliary")
DEMO_AUXILIARY_600 = DemoParams(train=600, val=60, family="auxiliary")
"""The first of them: drawing all takes a minute, which a demo feels."""
DEMO_TINY_AUXILIARY = DemoParams(train=12, val=4, size=64, family="auxiliary")
DEMO_CLAIMS = DemoParams(train=720, val=200, seed=1)
"""Of another seed: settings are chosen on :data:`DEMO`, methods are compared on pictures that nothing was chosen on."""


PRESETS: Mapping[str, DemoParams] = MappingProxyType(
    {
        "demo": DEMO,
        "demo-tiny": DEMO_TINY,
        "demo-claims": DEMO_CLAIMS,
        "demo-auxiliary": DEMO_AUXILIARY,
        "demo-auxiliary-600": DEMO_AUXILIARY_600,
        "demo-tiny-auxiliary": DEMO_TINY_AUXILIARY,
    }
)
"""What ``data.source`` calls them."""


@dataclass(frozen=True)
class DemoSample:
    """One picture with all its labels."""

    image_id: str
    image_rgb: ImageRGB
    mask_hw: MaskHW
    """Class numbers by the family's table, 0 = background."""
    objects_hw: MaskHW
    """Number of the visible object, from 1 in the order of ``boxes``; 0 = background."""
    classes: tuple[str, ...]
    """Class name of each object."""
    boxes_xyxy: tuple[tuple[float, float, float, float], ...]
    """Tight around what is visible; pixel edges, half-open."""
    scribbles: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    """``(class name or "background", points)``."""


def make_sample(params: DemoParams, split: str, index: int) -> DemoSample:
    """Picture ``index`` of ``split``: depends on nothing else of ``params`` than size, seed and family."""
    rng = np.random.default_rng([params.seed, list(_SHAPES).index(params.family), _SPLITS.index(split), index])
    table = params.classes
    scene = make_scene(rng, params.size, table[index % len(table)], _SHAPES[params.family])
    regions = [scene.objects_hw == number for number in range(1, len(scene.names) + 1)]
    number_of = np.array([0, *(table.index(name) + 1 for name in scene.names)], np.uint8)
    strokes = [(name, object_stroke(rng, region)) for name, region in zip(scene.names, regions, strict=True)]
    nothing = scene.objects_hw == 0
    strokes += [("background", path) for path in background_strokes(rng, nothing, int(rng.integers(1, 4)))]
    return DemoSample(
        image_id=_image_id(params, split, index),
        image_rgb=scene.image_rgb,
        mask_hw=number_of[scene.objects_hw],
        objects_hw=scene.objects_hw,
        classes=scene.names,
        boxes_xyxy=tuple(_tight_box(region) for region in regions),
        scribbles=tuple(strokes),
    )


def _tight_box(region_hw: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    x, y, width, height = cv2.boundingRect(region_hw.astype(np.uint8))
    return float(x), float(y), float(x + width), float(y + height)


def samples(params: DemoParams, split: str) -> Iterator[DemoSample]:
    """All pictures of a split, one by one."""
    for index in range(getattr(params, split)):
        yield make_sample(params, split, index)


# -- on disk ---------------------------------------------------------------------------------------------------------


def prepare_demo(source: str, folder: Path) -> Path:
    """The tree of one of :data:`PRESETS` below ``folder``, written if it is not there.

    The folder's name holds a digest of params and version, so that another generator's pictures are another tree.
    Raises :class:`DataError` for another name.
    """
    if source not in PRESETS:
        raise DataError(f"there is no demo data {source!r}; there is {', '.join(PRESETS)}")
    params = PRESETS[source]
    root = folder / f"{source}-{keys.digest(_signature(params))[:8]}"
    if root.exists() and not _is_whole(root, params):
        aside = temporary_beside(root)
        os.rename(root, aside)  # cut by a deleted cache, or damaged: it is the cache's own, and drawn again
        shutil.rmtree(aside)
    write_demo(root, params)
    return root


def write_demo(root: Path, params: DemoParams = DEMO) -> None:
    """Write a VOC tree at ``root``: whole or not at all; a tree of the same params is left as it is.

    Raises :class:`DataError` if ``root`` holds anything else.
    """
    if _is_there(root, params):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_beside(root)
    tree = aside / "demo"  # a VOC annotation names its folder: the same bytes need the same name
    try:
        with naming(root):
            _write_tree(tree, params)
            if params.auxiliary:
                only = dataclasses.replace(params, family="auxiliary", train=params.auxiliary, val=0, auxiliary=0)
                _write_tree(tree / AUXILIARY_FOLDER, only)
        try:
            os.rename(tree, root)  # onto nothing or an empty folder
        except OSError:
            if not _is_there(root, params):  # else another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _signature(params: DemoParams) -> dict[str, Any]:
    return {"generator": "maskmill demo", "version": DEMO_VERSION, "params": dataclasses.asdict(params)}


def _is_there(root: Path, params: DemoParams) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MARKER).read_bytes())
    except (OSError, ValueError):
        raise DataError(f"{root} exists and is no demo data; choose another folder") from None
    if found != _signature(params):
        raise DataError(f"{root} holds demo data of other params: {found}, not {_signature(params)}; remove the folder")
    return True


def _is_whole(root: Path, params: DemoParams) -> bool:
    """Whether the tree states these params and has each file of each picture."""
    try:
        if json.loads((root / MARKER).read_bytes()) != _signature(params):
            return False
        ids = [_image_id(params, split, index) for split in _SPLITS for index in range(getattr(params, split))]
        lists = [f"{split}.txt" for split in _SPLITS if getattr(params, split)]
        wanted = {folder: {f"{i}{suffix}" for i in ids} for folder, suffix in _FOLDERS.items()}
        wanted |= {"ImageSets/Segmentation": set(lists), "WeakTags": {"tags.csv"}, "": {"classes.txt"}}
        return all(names <= set(os.listdir(root / folder)) for folder, names in wanted.items())
    except (OSError, ValueError):
        return False


_FOLDERS = {
    "JPEGImages": ".jpg",
    "Annotations": ".xml",
    "SegmentationClass": ".png",
    "SegmentationObject": ".png",
    "ScribbleSup": ".xml",
}


def _image_id(params: DemoParams, split: str, index: int) -> str:
    return f"{'aux' if params.family == 'auxiliary' else 'demo'}_{split}_{index:05d}"


def _write_tree(root: Path, params: DemoParams) -> None:
    from artifacts.datasets.voc_writer import write_classes, write_image_set, write_tags

    tags: list[tuple[str, tuple[str, ...]]] = []
    for split in _SPLITS:
        ids = []
        for sample in samples(params, split):
            _write_sample(root, sample)
            ids.append(sample.image_id)
            tags.append((f"{sample.image_id}.jpg", tuple(c for c in params.classes if c in sample.classes)))
        if ids:
            write_image_set(root / "ImageSets" / "Segmentation" / f"{split}.txt", ids)
    write_tags(root / "WeakTags" / "tags.csv", tags)
    write_classes(root / "classes.txt", params.classes)
    write_text_atomic(root / MARKER, json.dumps(_signature(params), indent=1, sort_keys=True) + "\n", durable=False)


def _write_sample(root: Path, sample: DemoSample) -> None:
    from artifacts.datasets.scribblesup import write_scribbles
    from artifacts.datasets.voc_writer import write_annotation, write_class_mask

    name = f"{sample.image_id}.jpg"
    size_hw = size_of(sample.mask_hw)
    write_bytes_atomic(root / "JPEGImages" / name, _jpeg(sample.image_rgb), durable=False)
    boxes = zip(sample.classes, sample.boxes_xyxy, strict=True)
    xml = f"{sample.image_id}.xml"
    write_annotation(root / "Annotations" / xml, name, size_hw, [(c, xyxy, False) for c, xyxy in boxes])
    write_class_mask(root / "SegmentationClass" / f"{sample.image_id}.png", sample.mask_hw)
    write_class_mask(root / "SegmentationObject" / f"{sample.image_id}.png", sample.objects_hw)
    write_scribbles(root / "ScribbleSup" / xml, name, size_hw, sample.scribbles)


def _jpeg(image_rgb: ImageRGB) -> bytes:
    """JPEG, quality 95, colours at full resolution (half of it would smear the small patterns)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_rgb).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
