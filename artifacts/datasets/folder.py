"""A plain folder with tables: ``folder:PATH``.

``PATH`` (or ``PATH/images``, if there is one) holds pictures, in subfolders if you like. Beside them, all optional:

* ``tags.csv``: ``image,tags``, tags separated by ``;``,
* ``boxes.csv``: ``image,class,x0,y0,x1,y1`` in pixel edges of the picture as displayed; columns ``difficult``
  and ``crowd`` (0 or 1) if needed,
* ``masks/``: index PNGs as truth, named as the pictures (``sub/a.png`` for ``sub/a.jpg``); 0 background, 255 undecided,
* ``classes.txt``: one class a line, number 1 first (a line ``background`` is left out). Masks need it (or
  ``data.classes``): without it the numbers have no meaning. Without it and without masks, the class table is the
  sorted names in the tables.

Tables are UTF-8 with a header line; a byte order mark, CRLF, quotes, other columns and any order of columns are fine.
Without any table, pictures in folders of classes (``cat/1.jpg``) have the folder's name as their tag; those of a folder
``background`` show nothing, and those in no such folder have unknown tags.

``image`` is the relative path, with or without suffix. A row with an empty tag or class means "checked, holds
nothing"; a picture that no row names has unknown labels. Where only boxes are given, tags are the boxes' classes. A row
that cannot be used is dropped and named in a warning (file, line, fix). ``Box.id`` is the index among the picture's
rows. Boxes are clipped to the picture.

Splits: a column ``split`` in a table (a picture without one there is in no split, with a warning), else ``train.txt``
and ``val.txt``, else a stable hash of the relative path (``data.val_share``, a fifth). Ids are relative paths without
suffix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from artifacts.datasets.find import Folder, Names, child
from artifacts.datasets.folder_tables import OUTSIDE, BoxRow, Tables, write_boxes, write_folder_labels, write_tags
from artifacts.datasets.paths import (
    Notes,
    dataset_name,
    image_ids,
    read_skip,
    require_some,
)
from artifacts.datasets.splits import EVERYTHING, NO_LISTS, Selection, SplitRule, select
from artifacts.datasets.voc_masks import class_mask_ref, load_class_mask
from artifacts.datasets.voc_tree import read_classes
from artifacts.records import Box, DataError, MaskHW, MaskRef, Record, RecordSet

__all__ = ["load_index_mask", "read", "read_folder", "write_boxes", "write_folder_labels", "write_tags"]


def read(spec: str, split: str, data: Any, *, known: tuple[str, ...] = ()) -> RecordSet:
    """Read ``split`` of the source ``PATH`` with the knobs of ``DataParams``; ``known`` as in :func:`read_folder`."""
    place = spec.removeprefix("folder:")
    return read_folder(
        Path(place).expanduser(),
        dataset=getattr(data, "name", "") or dataset_name(place),
        split=split,
        rule=SplitRule.of(data),
        classes=tuple(getattr(data, "classes", ())),
        difficult=bool(getattr(data, "difficult", True)),
        include_crowd=bool(getattr(data, "include_crowd", False)),
        known=known,
        tag_separator=str(getattr(data, "tag_separator", "")),
    )


def read_folder(
    root: Path,
    *,
    dataset: str,
    split: str = "train",
    rule: SplitRule | None = None,
    classes: tuple[str, ...] = (),
    difficult: bool = True,
    include_crowd: bool = False,
    known: tuple[str, ...] = (),
    tag_separator: str = "",
) -> RecordSet:
    """Read a folder of pictures and its tables, as described at the top of the module.

    Args:
        root: the folder.
        dataset: name of the data set in the cache.
        split: name of the split that is wanted.
        rule: what splits are called, and the share of the hash.
        classes: class table to use instead of ``classes.txt``.
        difficult: keep boxes marked difficult.
        include_crowd: keep boxes marked crowd.
        known: class table of an earlier reading. Where no list fixes the order, its numbers stay and new names follow.

        tag_separator: what separates the tags of a cell; empty: ``;``, else what is found (and said).

    Raises:
        DataError: no pictures, a table without its columns, an unknown split, or not one picture that can be used.
    """
    notes = Notes()
    class_file = child(root, "classes.txt", notes)
    listed = classes or (read_classes(class_file) if class_file.is_file() else ())
    mask_folder = child(root, "masks")
    if not listed or mask_folder.name in listed:  # another case: it may be the folder of a class
        mask_folder = root / "masks"
    pictures = _pictures(root, mask_folder.name, notes)
    images = Path(pictures.where)
    tables = Tables.read(root, pictures, notes, separator=tag_separator, known=listed)
    class_table = listed or (*known, *sorted(tables.names() - set(known)))
    numbers = {name: number for number, name in enumerate(class_table, start=1)}
    tables.forget_unknown_classes(numbers)
    chosen = _choose(root, pictures, split, rule or SplitRule(), tables, notes)
    tables.count(frozenset(chosen.rows), notes)
    masks = _mask_folder(mask_folder, bool(listed), notes)
    mask_names = Names({name for file in pictures.files for name in _mask_names(file)}, pictures.where, (".png",))
    ids = image_ids(pictures.files)

    def keep(box: Box) -> bool:
        return (difficult or not box.difficult) and (include_crowd or not box.crowd)

    skips = [read_skip(dataset, name, images / name, reason) for name, reason in pictures.unusable]
    found: list[Record] = []
    for row in chosen.rows:
        path = images / pictures.files[row]
        try:
            truth = _truth(masks, pictures.files[row], mask_names, len(class_table), path)
            found.append(_record(row, path, ids[row], truth, tables, numbers, keep, notes))
        except (DataError, OSError) as error:
            skips.append(read_skip(dataset, ids[row], path, str(error), permanent=isinstance(error, DataError)))
    for names in (pictures, masks):
        if names is not None:
            names.say_respelled(notes)
    if masks is not None:
        masks.say_strays(pictures, notes)
    result = RecordSet(
        dataset=dataset,
        split=split,
        classes=class_table,
        records=tuple(found),
        skips=tuple(skips),
        format="folder",
        root=os.path.abspath(root),
        warnings=notes.lines(),
        counts=notes.counts(len(chosen.rows) + len(chosen.unmatched)),
    )
    return require_some(result, len(chosen.rows), str(images))


def _pictures(root: Path, masks: str, notes: Notes) -> Folder:
    """The pictures of the folder."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected folder:PATH with pictures in it")
    if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        raise DataError(f"{root} is a VOC tree, whose masks would count as pictures here; read it as voc:{root}")
    images = child(root, "images", notes)
    images = images if images.is_dir() else root
    pictures = Folder(images, leave_out=(masks,) if images == root else ())
    pictures.say_left_out(notes)
    if not pictures.files:
        raise DataError("; ".join([f"no pictures in {images}", *notes.lines()]))
    return pictures


def _choose(root: Path, pictures: Names, split: str, rule: SplitRule, tables: Tables, notes: Notes) -> Selection:
    if tables.has_splits and split not in EVERYTHING:
        rows = sorted(row for row, name in tables.splits.items() if name == split)
        if not rows:
            names = sorted({name for name in tables.splits.values() if name})
            raise DataError(f"{root}: no picture has split {split!r}; the split column holds {names}")
        without = [relative for row, relative in enumerate(pictures.files) if not tables.splits.get(row)]
        notes.add_all("picture that the split column gives no split, left out of every split", without)
        return Selection(rows, "column split")
    chosen = select(pictures, split, rule, root)
    notes.add_all(f"image in {split}.txt that is not there", chosen.unmatched)
    notes.add_all(NO_LISTS, chosen.hashed)
    return chosen


def _mask_folder(masks: Path, has_list: bool, notes: Notes) -> Folder | None:
    if not masks.is_dir():
        return None
    if not has_list:
        notes.add(
            "mask folder ignored",
            f"{masks}: the meaning of its numbers is unknown; write {masks.parent / 'classes.txt'}, number 1 first",
        )
        return None
    return Folder(masks, (".png",))


def _record(
    row: int,
    path: Path,
    image_id: str,
    truth: MaskRef | None,
    tables: Tables,
    numbers: Mapping[str, int],
    keep: Callable[[Box], bool],
    notes: Notes,
) -> Record:
    size_hw: tuple[int, int] | None = None
    boxes: tuple[Box, ...] | None = None
    tags: set[int] | None = None
    if tables.boxes is not None and row in tables.boxes:
        from artifacts.images import image_size_hw

        size_hw = image_size_hw(path)
        clipped = (_clip(box, numbers[box.name], size_hw, notes) for box in tables.boxes[row])
        every = [box for box in clipped if box is not None]
        if not every and (row in tables.damaged or tables.boxes[row]):
            # Without any of its boxes the whole picture would become background.
            raise DataError(f"{path}: none of its rows in boxes.csv can be used; correct them")
        boxes = tuple(box for box in every if keep(box))
        tags = {box.class_id for box in every}
    if tables.tags is not None:
        tags = {numbers[name] for _, name in tables.tags[row]} if row in tables.tags else None
    return Record(
        image_id=image_id,
        image=os.path.abspath(path),
        size_hw=size_hw,
        tags=None if tags is None else tuple(sorted(tags)),
        boxes=boxes,
        truth=truth,
    )


def _clip(box: BoxRow, class_id: int, size_hw: tuple[int, int], notes: Notes) -> Box | None:
    height, width = size_hw
    x0, y0, x1, y1 = box.xyxy
    inside = max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        where = f"box {x0:g} {y0:g} {x1:g} {y1:g} lies outside the image of {width} x {height} pixels"
        notes.lose(OUTSIDE, f"{box.place}: {where}", of="boxes")
        return None
    if max(abs(a - b) for a, b in zip(inside, box.xyxy, strict=True)) > 1:
        notes.add("box that sticks out of the image by more than a pixel, clipped", box.place)
    return Box(box.index, class_id, *inside, difficult=box.difficult, crowd=box.crowd)


def _mask_names(relative: str) -> tuple[str, str]:
    """``sub/a.png`` and ``sub/a.jpg.png``."""
    return f"{os.path.splitext(relative)[0]}.png", f"{relative}.png"


def _truth(masks: Names | None, relative: str, every: Names, n_classes: int, image: Path) -> MaskRef | None:
    """The reference to ``masks/<relative>.png``, without or with the picture's ending; its path compares sizes."""
    if masks is None:
        return None
    matches = (masks.find(name, whole=True, of=every) for name in _mask_names(relative))
    found = next((file for file in matches if file is not None), None)
    if found is None:
        return None
    detail = json.dumps([n_classes, str(image)])
    return MaskRef("artifacts.datasets.folder:load_index_mask", f"{masks.where}/{found}", detail)


def load_index_mask(reference: MaskRef) -> MaskHW:
    """An index PNG as ``(H, W) uint8``: 0 background, 1..K classes, 255 undecided.

    The image's size is read from its header, now and not while labels are read. Raises as
    :func:`artifacts.datasets.voc_masks.load_class_mask`.
    """
    from artifacts.images import image_size_hw

    n_classes, image = json.loads(reference.detail)
    return load_class_mask(class_mask_ref(reference.path, n_classes, image_size_hw(Path(image))))
