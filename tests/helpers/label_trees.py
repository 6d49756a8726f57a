"""Small data sets in every format, a cat and a dog in each picture, with what a test changes about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from artifacts.datasets import DataParams, read_split
from artifacts.records import RecordSet

SIZE = (64, 96)
CAT, DOG = (10, 12, 40, 40), (58, 20, 82, 40)


def picture(path: Path, size_hw: tuple[int, int] = SIZE, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_hw[::-1]).save(path, kind)


def shares(xyxy: tuple[int, int, int, int]) -> str:
    x0, y0, x1, y1 = xyxy
    parts = ((x0 + x1) / 2 / SIZE[1], (y0 + y1) / 2 / SIZE[0], (x1 - x0) / SIZE[1], (y1 - y0) / SIZE[0])
    return " ".join(f"{part:.6f}" for part in parts)


LINES = f"0 {shares(CAT)}\n1 {shares(DOG)}\n"


def yolo(
    root: Path, names: tuple[str, ...] = ("p1", "p2"), text: str = LINES, classes: str = "cat\ndog\n", **files: str
) -> Path:
    """Pictures in images/, their label files in labels/; ``files``: ``data_yaml`` is ``data.yaml``."""
    for name in names:
        picture(root / "images" / f"{name}.jpg")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(text)
    if classes:
        (root / "classes.txt").write_text(classes)
    for name, content in files.items():
        (root / name.replace("_", ".")).write_text(content)
    return root


def coco(root: Path, names: tuple[str, ...] = ("p1.jpg", "p2.jpg"), **changes: object) -> Path:
    """A cat and a dog in each picture. ``changes``: to every image, category, annotation by ``image_`` and so on."""

    def change(kind: str, entry: dict[str, object]) -> dict[str, object]:
        own = {k.removeprefix(f"{kind}_"): v for k, v in changes.items() if k.startswith(f"{kind}_")}
        entry |= {key: value(entry) if callable(value) else value for key, value in own.items()}
        return {key: value for key, value in entry.items() if value is not ...}

    images, annotations = [], []
    for number, name in enumerate(names, 1):
        if not (root / "images" / f"p{number}.jpg").exists():
            picture(root / "images" / f"p{number}.jpg")
        images.append(change("image", {"id": number, "file_name": name, "width": 96, "height": 64}))
        for category, (x0, y0, x1, y1) in ((1, CAT), (2, DOG)):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
            entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            annotations.append(change("annotation", entry))
    categories = [change("category", {"id": n, "name": name}) for n, name in ((1, "cat"), (2, "dog"))]
    categories += list(changes.get("more", ()))  # type: ignore[call-overload]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "i.json").write_text(json.dumps(content))
    return root


def voc(root: Path, names: tuple[str, ...] = ("p1", "p2"), mask: np.ndarray | None = None) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "SegmentationClass"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        picture(root / "JPEGImages" / f"{name}.jpg")
        annotate(root, name, (("cat", CAT), ("dog", DOG)))
        if mask is not None:
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def annotate(root: Path, name: str, objects: object, head: str = "") -> None:
    body = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for n, (x0, y0, x1, y1) in objects  # type: ignore[attr-defined]
    )
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size>"
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{head}{size}{body}</annotation>")


def sample_mask() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for number, (x0, y0, x1, y1) in ((1, CAT), (2, DOG)):
        mask[y0:y1, x0:x1] = number
    return mask


def read(source: str, root: Path, split: str = "all", **options: object) -> RecordSet:
    place = f"{root}/images,{root}/i.json" if source == "coco" else str(root)
    return read_split(DataParams(f"{source}:{place}", **options), split)  # type: ignore[arg-type]


def whole(found: RecordSet, images: int = 2) -> bool:
    """Every picture has the cat and the dog."""
    boxes = [[(box.class_id, *np.round(box.xyxy)) for box in record.boxes or ()] for record in found]
    return boxes == images * [[(1, *CAT), (2, *DOG)]] and not found.skips
