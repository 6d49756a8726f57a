"""YOLO boxes: ``yolo:PATH`` or ``yolo:PATH,IMAGES``.

*Pictures of a split*: the folders and lists that ``train``, ``val`` and ``test`` of ``data.yaml`` (or ``obj.data``)
name; else the first that fits of

* ``PATH/images/<split>/*.jpg``, ``PATH/<split>/images/*.jpg``,
* ``PATH/images/*.jpg`` (or ``obj_train_data/``, or ``PATH`` itself); the split by ``PATH/train.txt`` and ``val.txt``,
  else by a stable hash of the image's path (``data.val_share``, a fifth).

``IMAGES`` names the image folder where it is none of these. Label files lie in the path with ``labels`` for ``images``,
in ``PATH/labels`` or beside the pictures. Class names: ``data.classes``, else ``classes.txt``, ``obj.names`` and
``names`` in ``data.yaml``, which must not disagree. The label files count these names from 0, so each line counts:
``background`` is a class as any other, an empty line between names an error. Names are kept as written.

A label line is ``class cx cy width height``, the class counted from 0, the rest as shares of the image as displayed
it (EXIF rotation applied; the size comes from the file's header, no pixel is decoded), or a polygon
``class x0 y0 x1 y1 x2 y2 ...``, which becomes its box; with ``kpt_shape`` in ``data.yaml``, keypoints follow the box.
``Box.id`` is the line's index among the non-empty lines. A line that cannot be used is dropped, named in a warning
(file, line, what is wrong, what to write), and the rest of the image is read; an image without one usable line is a
skip. An image without label file, or with an empty one, holds no object. Boxes are clipped to the image. Tags are the
boxes' classes.

Ids are relative paths without suffix, below the image folder; split folders stay in them (``train/a``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.paths import Notes, dataset_name, inside, read_skip, require_some
from artifacts.datasets.splits import SplitRule, read_text
from artifacts.datasets.yolo_lines import LineKind, check_lengths, check_numbers, format_line, parse_line
from artifacts.datasets.yolo_tree import checked_names, class_names, declared, find_layout
from artifacts.records import Box, DataError, Record, RecordSet

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
    said = declared(root)
    table = classes or class_names(root, said)
    layout = find_layout(root, images, split, rule or SplitRule(), said, notes)
    found: list[Record] = []
    skips = [read_skip(dataset, path.name, path, reason) for path, reason in layout.unusable]
    lengths: Counter[int] = Counter()
    numbers: set[str] = set()
    for path, image_id, labels in layout.chosen:
        try:
            found.append(_record(path, labels, image_id, len(table), said.kind, lengths, numbers, notes))
        except DataError as error:
            skips.append(read_skip(dataset, image_id, path, str(error)))
        except OSError as error:
            skips.append(read_skip(dataset, image_id, path, str(error), permanent=False))
    check_numbers(numbers, len(table), f"{root}, split {split!r}")
    check_lengths(lengths, said.kind, f"{root}, split {split!r}")
    without = sum(labels is None for _, _, labels in layout.chosen)
    if without > len(layout.chosen) // 2:  # a few are background; most of them are a missing folder
        notes.add_all("image without a label file: taken as empty", _unlabelled(layout.chosen, layout.looked))
    result = RecordSet(
        dataset=dataset,
        split=split,
        classes=table,
        records=tuple(found),
        skips=tuple(skips),
        format="yolo",
        root=os.path.abspath(root),
        warnings=notes.lines(),
        counts=notes.counts(len(layout.chosen) + layout.missing, without_label=without),
    )
    return require_some(result, len(layout.chosen), str(images or root))


def _unlabelled(chosen: Sequence[tuple[Path, str, Path | None]], looked: Sequence[str]) -> list[str]:
    where = f" (looked in {', '.join(dict.fromkeys(looked))})"
    names = [str(path) for path, _, labels in chosen if labels is None]
    return [names[0] + where, *names[1:]]


def _record(
    image: Path,
    labels: Path | None,
    image_id: str,
    n_classes: int,
    kind: LineKind,
    lengths: Counter[int],
    numbers: set[str],
    notes: Notes,
) -> Record:
    from artifacts.images import image_size_hw

    size_hw = image_size_hw(image)
    boxes: list[Box] = []
    if labels is not None:
        lines = [(n, line.split()) for n, line in enumerate(read_text(labels).splitlines(), 1) if line.strip()]
        notes.labels += len(lines)
        lengths.update(len(fields) for _, fields in lines)
        numbers.update(fields[0].removesuffix(".0") for _, fields in lines)
        reason = ""
        for box_id, (number, fields) in enumerate(lines):
            try:
                box, sticks_out = parse_line(fields, box_id, size_hw, n_classes, kind)
            except DataError as error:
                reason = reason or f"line {number}: {error}"
                notes.lose(DROPPED, f"{labels}:{number}: {error}")
                continue
            if sticks_out:
                notes.add(CLIPPED, f"{labels}:{number}")
            boxes.append(box)
        if lines and not boxes:  # the whole picture would become background
            raise DataError(f"{labels}: none of its {len(lines)} lines can be used; {reason}")
    tags = tuple(sorted({box.class_id for box in boxes}))
    return Record(image_id=image_id, image=os.path.abspath(image), size_hw=size_hw, tags=tags, boxes=tuple(boxes))


def write_labels(path: Path, boxes: Iterable[Box], size_hw: tuple[int, int]) -> None:
    """Write one label file; no boxes make an empty file ("checked, holds nothing")."""
    write_text_atomic(path, "".join(f"{format_line(box, size_hw)}\n" for box in boxes), durable=False)


def write_yolo(root: Path, records: Iterable[tuple[Record, tuple[int, int]]], classes: Sequence[str]) -> int:
    """Write ``labels/<image id>.txt`` and ``classes.txt`` below ``root``; returns the number of label files.

    ``records`` are pairs of a record and its image's height and width. A record whose boxes are unknown (``None``)
    gets no file. Crowd regions have no place in the format and are left out.
    """
    checked_names(classes, root / "classes.txt")
    written = 0
    for record, size_hw in records:
        if record.boxes is not None:
            path = inside(root / "labels", f"{record.image_id}.txt")
            write_labels(path, (box for box in record.boxes if not box.crowd), size_hw)
            written += 1
    write_text_atomic(root / "classes.txt", "".join(f"{name}\n" for name in classes))
    return written
