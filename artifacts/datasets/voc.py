"""PASCAL VOC trees as records, with SBD, tag files and ScribbleSup strokes where they lie in the tree.

Boxes: 1-based and inclusive in the XML, so ``x0 = xmin - 1``, ``x1 = xmax``. An ``<object>`` without ``<bndbox>`` is a
tag. Tags hold every class of the XML, difficult or not (``WeakTags/tags.csv`` is read instead where it is there; the
class lists of ``ImageSets/Main`` in a tree without ``Annotations``). Boxes of difficult objects are kept by default: an
object that is left out would be background, which is false; VOC's masks leave it undecided (``data.difficult``). No
image is decoded; truth stays a reference until it is loaded.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.datasets import DataParams
from artifacts.datasets.paths import (
    Notes,
    check_relative,
    dataset_name,
    list_images,
    read_skip,
    require_some,
    without_suffix,
)
from artifacts.datasets.scribblesup import BEYOND, LOST, Strokes, WithStrokes, beyond, packed, read_scribbles
from artifacts.datasets.splits import SplitRule, read_text, select
from artifacts.datasets.voc_masks import class_mask_ref, load_class_mask, load_objects, objects_ref, sbd_objects_ref
from artifacts.datasets.voc_tree import (
    OFFICIAL_COUNTS,
    VOC_CLASSES,
    ClassTable,
    Listed,
    augmented_ids,
    class_table,
    find_root,
    find_sbd,
    known_splits,
    list_path,
    parse_line,
    read_class_lists,
    read_tags,
)
from artifacts.datasets.voc_writer import (
    voc_palette,
    write_annotation,
    write_class_mask,
    write_classes,
    write_image_set,
    write_tags,
)
from artifacts.datasets.voc_xml import Annotation, place_box, read_annotation
from artifacts.images import image_size_hw
from artifacts.records import Box, DataError, MaskRef, Record, RecordSet, Skip

__all__ = [
    "VOC_CLASSES",
    "load_class_mask",
    "load_objects",
    "read",
    "voc_palette",
    "write_annotation",
    "write_class_mask",
    "write_classes",
    "write_image_set",
    "write_tags",
]

MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")
SIZE_SAMPLE = 200
"""Images whose header is compared with the XML's size before any is trusted."""


def read(place: str, split: str, data: DataParams, *, known: tuple[str, ...] = ()) -> RecordSet:
    """Read one split of the VOC tree at ``place``.

    Args:
        place: the tree, or a folder with one tree in it (``VOCdevkit``).
        split: a list in ``ImageSets``, or ``all``; in a tree without lists, images are split by a hash of their name.
        data: ``name``, ``classes``, ``difficult``, ``sbd``, ``scribbles``, ``scribble_origin``.
        known: class table that the cache remembers; new names are appended to it.

    Raises:
        DataError: no VOC tree, no such split, or not one usable image. Single images that cannot be used are skips.
    """
    root = find_root(place)
    tree = _Tree.open(root, data, class_table(root, data.classes, known))
    listed, origin = _listed(tree, split, data)
    records, skips = _records(tree, listed, origin, unlabelled=split == "test")
    warnings = (*tree.warnings(), *_count_warning(tree, split, len(listed), origin), *tree.notes.lines())
    found = RecordSet(tree.name, split, tree.table.names, records, tuple(skips), "voc", str(root), warnings)
    return require_some(found, len(listed), f"voc:{root}, split {split!r}")


@dataclass(frozen=True)
class _Tree:
    """What is the same for all images of a tree: one listing of each folder instead of a look-up per image."""

    root: Path
    name: str
    data: DataParams
    table: ClassTable
    numbers: dict[str, int]
    images: dict[str, str]
    """Image id -> file below ``JPEGImages``."""
    tags: dict[str, tuple[str, ...]]
    tags_in: str
    """Where they are from, below the root."""
    masks: dict[str, frozenset[str]]
    """Folder -> ids for which it holds a PNG."""
    sbd: Path | None
    notes: Notes

    @classmethod
    def open(cls, root: Path, data: DataParams, table: ClassTable) -> _Tree:
        """List the tree's folders."""
        files, _ = list_images(root / "JPEGImages")
        images: dict[str, str] = {}
        for file in sorted(files, key=lambda f: not f.lower().endswith((".jpg", ".jpeg"))):
            images.setdefault(without_suffix(file), file)  # of a.jpg and a.png, VOC's own kind
        masks = {folder: _ids_below(root / folder, ".png") for folder in (*MASK_FOLDERS, "SegmentationObject")}
        sbd = find_sbd(root, data.sbd) if table.names == VOC_CLASSES or data.sbd else None
        numbers = {name: number for number, name in enumerate(table.names, 1)}
        name = data.name or dataset_name(root)
        tags, tags_in, notes = read_tags(root), "WeakTags/tags.csv", Notes()
        if not tags and not (root / "Annotations").is_dir():
            tags, tags_in = read_class_lists(root), "ImageSets/Main"
        return cls(root, name, data, table, numbers, images, tags, tags_in, masks, sbd, notes)

    def line(self, number: int, text: str) -> Listed:
        """One line of a list. Where é is one character in the list and two in the file's name, the file's counts."""
        line = parse_line(number, text)
        if line.image is None and line.image_id not in self.images and not line.image_id.isascii():
            wanted = unicodedata.normalize("NFC", line.image_id)
            same = (found for found in self.images if unicodedata.normalize("NFC", found) == wanted)
            return replace(line, image_id=next(same, line.image_id))
        return line

    def image(self, listed: Listed) -> str:
        """Path of the image file. Raises ``FileNotFoundError`` if there is none of that id."""
        relative = self.images.get(listed.image_id)
        path = self.root / listed.image if listed.image else self.root / "JPEGImages" / (relative or listed.image_id)
        if relative is None and not (listed.image and path.is_file()):
            raise FileNotFoundError(f"no image {path}{'' if listed.image else '.jpg (nor another suffix)'}")
        return str(path)

    def number(self, path: str, what: str, name: str) -> int:
        """Class number of ``name``. Raises :class:`DataError` that names its place and what to do."""
        if name not in self.numbers:
            raise DataError(
                f"{path}: {what} has the class {name!r}, which is not in the class table ({self.table.source}:"
                f" {', '.join(self.table.names)}); correct the name or add it to the table"
            )
        return self.numbers[name]

    def warnings(self) -> tuple[str, ...]:
        """Warnings about the tree as a whole."""
        if self.table.given or self.table.names == VOC_CLASSES or not any(self.masks[f] for f in MASK_FOLDERS):
            return ()
        listed = ", ".join(f"{number} {name}" for name, number in self.numbers.items())
        return (f"{self.root}: no classes.txt, so the masks' numbers are read as {listed}",)


def _ids_below(folder: Path, suffix: str) -> frozenset[str]:
    """Ids of the files with ``suffix`` below ``folder``, which need not exist."""
    ids = set()
    for parent, _, files in os.walk(folder):
        below = "" if Path(parent) == folder else Path(parent).relative_to(folder).as_posix() + "/"
        ids |= {below + name[: -len(suffix)] for name in files if name.endswith(suffix)}
    return frozenset(ids)


def _listed(tree: _Tree, split: str, data: DataParams) -> tuple[list[tuple[int, str]], str]:
    """``(line number, line)`` of every listed image, and where the list is."""
    path = list_path(tree.root, split)
    if path is not None:
        lines = enumerate(read_text(path).splitlines(), 1)
        return [(number, line.strip()) for number, line in lines if line.strip()], str(path)
    if split in ("trainaug", "train_aug") and tree.sbd is not None:
        return list(enumerate(augmented_ids(tree.root, tree.sbd), 1)), f"{tree.sbd} and VOC's lists"
    lists = known_splits(tree.root)
    if lists and split != "all":
        raise DataError(
            f"voc:{tree.root} has no split {split!r}: no ImageSets/Segmentation/{split}.txt; it has {', '.join(lists)}"
            " (set data.train, data.val)"
        )
    ids = sorted(tree.images)
    selection = select(ids, split, SplitRule.of(data), None)
    if not lists:
        said = selection.hashed or (f"split {split!r} is {selection.how}",)
        tree.notes.add_all("no list of images in ImageSets", said)
    return [(row + 1, ids[row]) for row in selection.rows], f"{tree.root}/JPEGImages ({selection.how})"


def _records(
    tree: _Tree, listed: list[tuple[int, str]], origin: str, *, unlabelled: bool
) -> tuple[Sequence[Record], list[Skip]]:
    """One record or one skip for every line."""
    first_line: dict[str, int] = {}
    records: list[Record] = []
    strokes: list[Strokes | None] = []
    skips: list[Skip] = []
    reader = _Reader(tree, unlabelled or not (tree.root / "Annotations").is_dir())
    for number, text in listed:
        name, path = text, origin
        try:
            line = tree.line(number, text)
            name = line.image_id
            if name in first_line:
                lines = f"lines {first_line[name]} and {number}"
                raise DataError(f"{origin}: image {name!r} is listed twice, {lines}; the first is kept")
            first_line[name] = number
            path = str(tree.root / "JPEGImages" / tree.images.get(name, name))
            records.append(record := reader.record(line))
            strokes.append(reader.strokes(record))
        except (DataError, OSError) as error:
            where = f"{origin}, line {number}: " if path == origin and str(origin) not in str(error) else ""
            skips.append(read_skip(tree.name, name, path, f"{where}{error}", permanent=isinstance(error, DataError)))
    wrong = _wrong_sizes(records)
    for place, reason in sorted(wrong.items(), reverse=True):
        skips.append(read_skip(tree.name, records[place].image_id, records[place].image, reason))
        del records[place], strokes[place]
    if any(stroke is not None for stroke in strokes):
        return WithStrokes(tuple(records), tuple(strokes)), skips
    return tuple(records), skips


class _Reader:
    """Labels of one image after the other."""

    def __init__(self, tree: _Tree, without_xml: bool) -> None:
        self.tree = tree
        self._may_lack_xml = without_xml
        self._scribbles = _ids_below(tree.root / "ScribbleSup", ".xml") if tree.data.scribbles else frozenset[str]()

    def record(self, listed: Listed) -> Record:
        """Everything but the strokes. Raises :class:`DataError` or ``OSError`` if the image cannot be used."""
        tree, image_id = self.tree, listed.image_id
        image = tree.image(listed)
        xml = f"{tree.root}/Annotations/{image_id}.xml"
        annotation = self._annotation(xml)
        size_hw = (annotation.size_hw if annotation else None) or image_size_hw(Path(image))
        return Record(
            image_id,
            image,
            size_hw,
            tags=self._tags(image_id, xml, annotation),
            boxes=self._boxes(xml, annotation, size_hw),
            truth=self._truth(listed, size_hw),
            truth_objects=self._objects(image_id, xml, annotation, size_hw),
        )

    def _annotation(self, xml: str) -> Annotation | None:
        try:
            annotation = read_annotation(xml)
        except FileNotFoundError:
            if self._may_lack_xml:
                return None
            raise FileNotFoundError(f"no annotation {xml}; take the image off the list if it has none") from None
        if annotation.filename:
            try:
                check_relative(annotation.filename)
            except DataError as error:
                raise DataError(f"{xml}: <filename>: {error}") from None
        for item in annotation.objects:
            self.tree.number(xml, f"object {item.index}", item.name)
        return annotation

    def _tags(self, image_id: str, xml: str, annotation: Annotation | None) -> tuple[int, ...] | None:
        tree = self.tree
        if tree.tags:
            names = tree.tags.get(image_id)
            if names is not None:
                try:
                    return tuple(sorted({tree.number(f"{tree.root}/{tree.tags_in}", image_id, n) for n in names}))
                except DataError as error:  # costs this image its tags; its other labels may be good
                    tree.notes.add("images without tags", str(error))
                    return None
            if annotation is not None:
                tree.notes.add(f"images that {tree.tags_in} lacks, tags taken from the XML", image_id)
        if annotation is None:
            if tree.tags:
                tree.notes.add(
                    "images without tags", f"{image_id}: not in {tree.tags_in} (class lists: in those of every class)"
                )
            return None
        return tuple(sorted({tree.numbers[item.name] for item in annotation.objects}))

    def _boxes(self, xml: str, annotation: Annotation | None, size_hw: tuple[int, int]) -> tuple[Box, ...] | None:
        """Boxes inside the image; ``None`` if there are objects, but no position of any of them is known."""
        if annotation is None:
            return None
        boxes, located = [], not annotation.objects
        for item in annotation.objects:
            located |= item.xyxy is not None
            if item.difficult and not self.tree.data.difficult:
                continue
            xyxy, remark = place_box(item, size_hw)
            if remark:
                kind = "boxes that stick out of their image, clipped" if xyxy else "boxes left out"
                self.tree.notes.add(kind, f"{xml}: object {item.index} ({item.name}): {remark}")
            if xyxy:
                boxes.append(Box(item.index, self.tree.numbers[item.name], *xyxy, difficult=item.difficult))
        return tuple(boxes) if located else None

    def _truth(self, listed: Listed, size_hw: tuple[int, int]) -> MaskRef | None:
        tree, count = self.tree, len(self.tree.table.names)
        if listed.mask is not None:
            path = tree.root / listed.mask
            if path.is_file():
                return class_mask_ref(str(path), count, size_hw)
            tree.notes.add("listed masks that do not exist", str(path))
            return None
        for folder in MASK_FOLDERS:
            if listed.image_id in tree.masks[folder]:
                return class_mask_ref(f"{tree.root}/{folder}/{listed.image_id}.png", count, size_hw)
        if tree.sbd is not None and os.path.isfile(path := tree.sbd / "cls" / f"{listed.image_id}.mat"):
            return class_mask_ref(str(path), count, size_hw)
        return None

    def _objects(
        self, image_id: str, xml: str, annotation: Annotation | None, size_hw: tuple[int, int]
    ) -> MaskRef | None:
        tree = self.tree
        if image_id in tree.masks["SegmentationObject"]:
            count = len(annotation.objects) if annotation else None
            return objects_ref(f"{tree.root}/SegmentationObject/{image_id}.png", count, size_hw)
        if tree.sbd is not None and annotation:
            path = tree.sbd / "inst" / f"{image_id}.mat"
            return sbd_objects_ref(str(path), xml, size_hw) if path.is_file() else None
        return None

    def strokes(self, record: Record) -> Strokes | None:
        """The image's scribbles, packed; ``None`` if there are none or they cannot be read (a warning, not a skip)."""
        if record.image_id not in self._scribbles:
            return None
        path = f"{self.tree.root}/ScribbleSup/{record.image_id}.xml"
        try:
            read = read_scribbles(path, self.tree.numbers, origin=self.tree.data.scribble_origin)
        except (DataError, OSError) as error:  # costs this image its scribbles; its other labels may be good
            self.tree.notes.add(LOST, str(error))
            return None
        if record.size_hw is not None and (where := beyond(read, record.size_hw)):
            self.tree.notes.add(BEYOND, f"{path}: {where}")
        return packed(read)


def _wrong_sizes(records: list[Record]) -> dict[int, str]:
    """Place of each record whose XML states another size than its image has, and the warning.

    Boxes drawn on an image before its EXIF rotation, or before it was scaled, lie in another frame and would spoil
    all later stages. A sample shows whether a tree has such images; only then every header is read.
    """

    def wrong(places: Sequence[int]) -> dict[int, str]:
        found = {}
        for place in places:
            stated = records[place].size_hw
            try:
                real = image_size_hw(Path(records[place].image))
            except (DataError, OSError):
                continue  # a broken image is reported by its stages
            if stated is not None and stated != real:
                found[place] = (
                    f"{records[place].image}: XML says {stated[1]} x {stated[0]}, the image is {real[1]} x {real[0]}"
                    " (EXIF rotation applied), so the boxes are in another frame; label it again or correct <size>"
                )
        return found

    everywhere = range(len(records))
    sample = everywhere[:: max(1, -(-len(records) // SIZE_SAMPLE))]
    return wrong(everywhere) if wrong(sample) else {}


def _count_warning(tree: _Tree, split: str, count: int, origin: str) -> Iterator[str]:
    """A warning if this looks like VOC2012's own list, but differs in length."""
    wanted = OFFICIAL_COUNTS.get(split.replace("_", ""))
    official = tree.table.names == VOC_CLASSES and f"{os.sep}Main{os.sep}" not in origin
    looks_whole = tree.root.name.upper() == "VOC2012" or count > 500 or split in ("trainaug", "train_aug")
    if wanted is not None and official and looks_whole and count != wanted:
        yield f"{origin}: {count:,} images; VOC2012's {split} has {wanted:,}"
