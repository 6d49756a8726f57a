"""YOLO boxes: ``yolo:PATH`` or ``yolo:PATH,IMAGES``.

Layouts, the first that fits:

* ``PATH/images/<split>/*.jpg`` with ``PATH/labels/<split>/*.txt``,
* ``PATH/<split>/images/*.jpg`` with ``PATH/<split>/labels/*.txt``,
* ``PATH/images/*.jpg`` with ``PATH/labels/*.txt``; the split by ``PATH/train.txt`` and ``val.txt``, else by a stable
  hash of the image's path (``data.val_share``, a fifth).

``IMAGES`` names the image folder where it is not ``PATH/images``. Class names: ``data.classes``, else ``classes.txt``
(or ``labels/classes.txt``, ``obj.names``), else ``names`` in ``data.yaml`` (or ``dataset.yaml``). The label files count
these names from 0, so each line counts: ``background`` is a class as any other, an empty line between names an error.

A label line is ``class cx cy width height``, the class counted from 0, the rest as shares of the image as displayed
it (EXIF rotation applied; the size comes from the file's header, no pixel is decoded), or a polygon
``class x0 y0 x1 y1 x2 y2 ...``, which becomes its box. ``Box.id`` is the line's index among the non-empty lines. A line
that cannot be used is dropped, named in a warning (file, line, what is wrong, what to write), and the rest of the image
is read. An image without label file, or with an empty one, holds no object. Boxes are clipped to the image. Tags are
the boxes' classes.

Ids are relative paths without suffix, below the image folder; split folders stay in them (``train/a``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.paths import (
    Notes,
    dataset_name,
    image_ids,
    inside,
    list_images,
    read_skip,
    require_some,
    without_suffix,
)
from artifacts.datasets.splits import NO_LISTS, SplitRule, list_file, read_names, read_text, select
from artifacts.records import Box, DataError, Record, RecordSet, Skip

DROPPED = "label line dropped"
CLIPPED = "box that sticks out of the image by more than a pixel, clipped"


def read(spec: str, split: str, data: Any) -> RecordSet:
    """Read ``split`` of the source ``PATH`` or ``PATH,IMAGES`` with the knobs of ``DataParams``."""
    place = spec.removeprefix("yolo:")
    images: Path | None = None
    if not Path(place).expanduser().is_dir() and "," in place:
        place, _, folder = place.rpartition(",")
        images = Path(folder).expanduser()
    return read_yolo(
        Path(place).expanduser(),
        images,
        dataset=getattr(data, "name", "") or dataset_name(place),
        split=split,
        rule=SplitRule.of(data),
        classes=tuple(getattr(data, "classes", ())),
    )


def read_yolo(
    root: Path,
    images: Path | None = None,
    *,
    dataset: str,
    split: str = "train",
    rule: SplitRule | None = None,
    classes: tuple[str, ...] = (),
) -> RecordSet:
    """Read a YOLO tree, as described at the top of the module.

    Args:
        root: the folder with ``labels/``.
        images: the image folder, if it is not ``root/images``.
        dataset: name of the data set in the cache.
        split: name of the split that is wanted.
        rule: what splits are called, and the share of the hash.
        classes: class table, if not that of the tree. Its order is that of the numbers in the label files.

    Raises:
        DataError: no images, no class names, an unknown split, or not one image that can be used.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected yolo:PATH with images/, labels/ and classes.txt")
    notes = Notes()
    table = classes or class_names(root)
    layout = _find_layout(root, images, split, rule or SplitRule())
    notes.add_all(f"image in {split}.txt that {layout.images} does not hold", layout.unmatched)
    notes.add_all(NO_LISTS, layout.hashed)
    found: list[Record] = []
    skips: list[Skip] = [
        read_skip(dataset, ascii(name), layout.images / ascii(name), "the file name is not UTF-8; rename the file")
        for name in layout.unusable
    ]
    for relative, image_id in layout.chosen:
        path = layout.images / relative
        try:
            found.append(_record(path, layout.label_file(relative), image_id, len(table), notes))
        except DataError as error:
            skips.append(read_skip(dataset, image_id, path, str(error)))
        except OSError as error:
            skips.append(read_skip(dataset, image_id, path, str(error), permanent=False))
    notes.add_all("label file without an image", layout.stray_labels())
    result = RecordSet(
        dataset=dataset,
        split=split,
        classes=table,
        records=tuple(found),
        skips=tuple(skips),
        format="yolo",
        root=os.path.abspath(root),
        warnings=notes.lines(),
    )
    return require_some(result, len(layout.chosen), str(layout.images))


@dataclass(frozen=True)
class _Layout:
    images: Path
    labels: Path
    every: list[str]
    """Relative paths of all images below ``images``."""
    chosen: list[tuple[str, str]]
    """(relative path, image id) of those in the split."""
    unusable: list[str]
    unmatched: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    """As :attr:`artifacts.datasets.splits.Selection.hashed`."""

    def label_file(self, relative: str) -> Path:
        return self.labels / f"{without_suffix(relative)}.txt"

    def stray_labels(self) -> list[str]:
        known = {without_suffix(relative) for relative in self.every}
        files = sorted(self.labels.rglob("*.txt")) if self.labels.is_dir() else []
        strays = (f for f in files if f.relative_to(self.labels).with_suffix("").as_posix() not in known)
        return [str(f) for f in strays if f.name != "classes.txt"]


def _find_layout(root: Path, images: Path | None, split: str, rule: SplitRule) -> _Layout:
    top = images or root / "images"
    _check_split_folders(root, split, rule)
    if images is None and (root / split / "images").is_dir():
        top, labels, prefix = root / split / "images", root / split / "labels", f"{split}/"
    elif images is None and (top / split).is_dir() and not list_file(root, split, rule):
        top, labels, prefix = top / split, root / "labels" / split, f"{split}/"
    else:
        every, unusable = list_images(top) if top.is_dir() else ([], [])
        if not every:
            raise DataError(f"no images in {top}; expected {root}/images, or yolo:PATH,IMAGES to name another folder")
        selection = select(every, split, rule, root)
        ids = image_ids(every)
        chosen = [(every[row], ids[row]) for row in selection.rows]
        return _Layout(top, root / "labels", every, chosen, unusable, selection.unmatched, selection.hashed)
    every, unusable = list_images(top)
    ids = [prefix + image_id for image_id in image_ids(every)]
    return _Layout(top, labels, every, list(zip(every, ids, strict=True)), unusable)


def _check_split_folders(root: Path, split: str, rule: SplitRule) -> None:
    """With a folder for one split only, the other would be drawn from the first one's images: an error instead."""
    if split not in (rule.train, rule.val) or list_file(root, split, rule):
        return
    for wanted, other in ((f"images/{split}", "images/{}"), (f"{split}/images", "{}/images")):
        theirs = other.format(rule.train if split == rule.val else rule.val)
        if (root / theirs).is_dir() and not (root / wanted).is_dir():
            raise DataError(
                f"{root / theirs} exists but {root / wanted} does not; make it, or name the split that you have"
            )


def class_names(root: Path) -> tuple[str, ...]:
    """The class table of a YOLO tree, in the order of the numbers 0, 1, ... of its label files."""
    for path in (root / "classes.txt", root / "labels" / "classes.txt", root / "obj.names"):
        if path.is_file():
            return _checked_names(read_names(path), path)
    for path in (root / "data.yaml", root / "dataset.yaml"):
        if path.is_file():
            return _checked_names(_yaml_names(path), path)
    raise DataError(f"{root}: no class names; write {root / 'classes.txt'}, one name a line in the order 0, 1, 2, ...")


def _yaml_names(path: Path) -> list[str]:
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: names must be a list, or a mapping from 0, 1, 2, ... to names, not {names!r}")
    return [str(name) for name in names]


def _checked_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    if not names or len(set(names)) != len(names):
        twice = sorted({n for n in names if list(names).count(n) > 1})
        raise DataError(f"{path}: {'these names stand there twice: ' + ', '.join(twice) if twice else 'no names'}")
    return tuple(names)


def _record(image: Path, labels: Path, image_id: str, n_classes: int, notes: Notes) -> Record:
    from artifacts.images import image_size_hw

    size_hw = image_size_hw(image)
    boxes: list[Box] = []
    if labels.is_file():
        lines = [(n, line.split()) for n, line in enumerate(read_text(labels).splitlines(), 1) if line.strip()]
        for box_id, (number, fields) in enumerate(lines):
            try:
                box, sticks_out = parse_line(fields, box_id, size_hw, n_classes)
            except DataError as error:
                notes.add(DROPPED, f"{labels}:{number}: {error}")
                continue
            if sticks_out:
                notes.add(CLIPPED, f"{labels}:{number}")
            boxes.append(box)
    tags = tuple(sorted({box.class_id for box in boxes}))
    return Record(image_id=image_id, image=os.path.abspath(image), size_hw=size_hw, tags=tags, boxes=tuple(boxes))


def parse_line(fields: Sequence[str], box_id: int, size_hw: tuple[int, int], n_classes: int) -> tuple[Box, bool]:
    """One label line as a box in pixel edges, and whether more than a pixel of it was cut off.

    Raises :class:`DataError` with the fault and what to write; the caller adds file and line.
    """
    is_polygon = len(fields) >= 7 and len(fields) % 2 == 1
    if len(fields) != 5 and not is_polygon:
        raise DataError(
            f"{len(fields)} fields; expected 5 (class cx cy width height), or a class and at least 3 corner points x y"
        )
    class_number = _class_number(fields[0], n_classes)
    try:
        numbers = [float(field) for field in fields[1:]]
    except ValueError as error:
        raise DataError(f"{error}; expected numbers between 0 and 1") from error
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{' '.join(fields[1:])} must be finite numbers between 0 and 1")
    height, width = size_hw
    if is_polygon:
        xs, ys = numbers[0::2], numbers[1::2]
        x0, y0, x1, y1 = min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
    else:
        cx, cy, w, h = numbers
        x0, y0, x1, y1 = (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
    if max(map(abs, numbers)) > 2:
        raise DataError(f"{' '.join(fields[1:])}: shares of the image size between 0 and 1 expected; are these pixels?")
    clipped = max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise DataError(f"box {x0:g} {y0:g} {x1:g} {y1:g} has no area inside the image of {width} x {height} pixels")
    sticks_out = max(abs(a - b) for a, b in zip(clipped, (x0, y0, x1, y1), strict=True)) > 1
    return Box(box_id, class_number + 1, *clipped), sticks_out


def _class_number(text: str, n_classes: int) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer() or not 0 <= number < n_classes:
        raise DataError(f"class {text}; expected a whole number from 0 to {n_classes - 1}")
    return int(number)


def format_line(box: Box, size_hw: tuple[int, int]) -> str:
    """``class cx cy width height`` of a box: 12 significant digits, far below a thousandth of a pixel."""
    height, width = size_hw
    numbers = (
        (box.x0 + box.x1) / 2 / width,
        (box.y0 + box.y1) / 2 / height,
        (box.x1 - box.x0) / width,
        (box.y1 - box.y0) / height,
    )
    return " ".join([str(box.class_id - 1), *(f"{number:.12g}" for number in numbers)])


def write_labels(path: Path, boxes: Iterable[Box], size_hw: tuple[int, int]) -> None:
    """Write one label file; no boxes make an empty file ("checked, holds nothing")."""
    write_text_atomic(path, "".join(f"{format_line(box, size_hw)}\n" for box in boxes), durable=False)


def write_yolo(root: Path, records: Iterable[tuple[Record, tuple[int, int]]], classes: Sequence[str]) -> int:
    """Write ``labels/<image id>.txt`` and ``classes.txt`` below ``root``; returns the number of label files.

    ``records`` are pairs of a record and its image's height and width. A record whose boxes are unknown (``None``)
    gets no file. Crowd regions have no place in the format and are left out.
    """
    _checked_names(classes, root / "classes.txt")
    written = 0
    for record, size_hw in records:
        if record.boxes is not None:
            path = inside(root / "labels", f"{record.image_id}.txt")
            write_labels(path, (box for box in record.boxes if not box.crowd), size_hw)
            written += 1
    write_text_atomic(root / "classes.txt", "".join(f"{name}\n" for name in classes))
    return written
