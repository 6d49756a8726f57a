"""PASCAL VOC trees as records, with SBD, tag files and ScribbleSup strokes where they lie in the tree.

Boxes: 1-based and inclusive in the XML, so ``x0 = xmin - 1``, ``x1 = xmax``. An ``<object>`` without ``<bndbox>`` is a
tag. Tags hold every class of the XML, difficult or not (``WeakTags/tags.csv`` is read instead where it is there; the
class lists of ``ImageSets/Main`` in a tree without ``Annotations``). Boxes of difficult objects are kept by default: an
object that is left out would be background, which is false; VOC's masks leave it undecided (``data.difficult``). No
image is decoded; truth stays a reference until it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.datasets import DataParams
from artifacts.datasets.find import Folder, Names, child
from artifacts.datasets.paths import (
    Notes,
    dataset_name,
    read_skip,
    require_some,
    without_suffix,
)
from artifacts.datasets.scribblesup import BEYOND, LOST, Strokes, WithStrokes, beyond, packed, read_scribbles
from artifacts.datasets.splits import SplitRule
from artifacts.datasets.voc_lists import OFFICIAL_COUNTS, Listed, listed_images, parse_line, read_class_lists
from artifacts.datasets.voc_masks import class_mask_ref, load_class_mask, load_objects, objects_ref, sbd_objects_ref
from artifacts.datasets.voc_tree import (
    LABELMAP,
    VOC_CLASSES,
    ClassTable,
    annotation_folder,
    class_table,
    find_root,
    find_sbd,
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
from artifacts.records import Box, DataError, MaskRef, Record, RecordSet, Skip, numbered

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
    tree = _Tree.open(root, data, class_table(root, data.classes, known, data.tag_separator))
    rule = SplitRule.of(data)
    listed, origin = listed_images(root, tree.sbd, sorted(tree.images), split, rule, tree.notes)
    records, skips = _records(tree, listed, origin, unlabelled=split == "test")
    tree.say_spellings()
    warnings = (*tree.warnings(), *_count_warning(tree, split, len(listed), origin), *tree.notes.lines())
    counts = tree.notes.counts(len(listed))
    found = RecordSet(tree.name, split, tree.table.names, records, tuple(skips), "voc", str(root), warnings, counts)
    return require_some(found, len(listed), f"voc:{root}, split {split!r}")


@dataclass(frozen=True)
class _Tree:
    """What is the same for all images of a tree: one listing of each folder instead of a look-up per image."""

    root: Path
    name: str
    data: DataParams
    table: ClassTable
    numbers: dict[str, int]
    files: Folder
    """The pictures below ``JPEGImages``."""
    images: dict[str, str]
    """Image id -> file below ``JPEGImages``."""
    tags: dict[str, tuple[str, ...]]
    tags_in: str
    """Where they are from, below the root."""
    xml: Names
    masks: dict[str, Names]
    """Folder -> its PNGs, and those of SBD's kind in folders that lists name."""
    own: dict[str, Names]
    """Ending -> the names of all images' files of labels."""
    sbd: Path | None
    notes: Notes

    @classmethod
    def open(cls, root: Path, data: DataParams, table: ClassTable) -> _Tree:
        """List the tree's folders."""
        notes = Notes()
        files = Folder(child(root, "JPEGImages", notes))
        images: dict[str, str] = {}
        for file in sorted(files.files, key=lambda f: not f.lower().endswith((".jpg", ".jpeg"))):
            images.setdefault(without_suffix(file), file)  # of a.jpg and a.png, VOC's own kind
        child(root, "Annotations", notes)
        xml = Folder.if_there(annotation_folder(root), (".xml",))
        masks = {
            name: Folder.if_there(child(root, name, notes), (".png",)) for name in (*MASK_FOLDERS, "SegmentationObject")
        }
        own = {end: Names((f"{name}{end}" for name in images), files.where, (end,)) for end in (".xml", ".png")}
        sbd = find_sbd(root, data.sbd) if table.names == VOC_CLASSES or data.sbd else None
        numbers = {name: number for number, name in enumerate(table.names, 1)}
        name = data.name or dataset_name(root)
        files.say_left_out(notes)
        notes.add_all("file whose name cannot be used", (f"{file}: {reason}" for file, reason in files.unusable))
        listed = read_tags(root, data.tag_separator, table.names if table.given else (), notes)
        tags_in = "WeakTags/tags.csv"
        if not listed and not xml.files:
            listed, tags_in = read_class_lists(root), "ImageSets/Main"
        tags = _tags_by_image(listed, tags_in, files, images, notes)
        return cls(root, name, data, table, numbers, files, images, tags, tags_in, xml, masks, own, sbd, notes)

    def image(self, listed: Listed) -> str:
        """Path of the image file. Raises ``FileNotFoundError`` if there is none of that id."""
        if listed.image is None:
            raise FileNotFoundError(f"no image {self.files.where}/{listed.image_id}.jpg (nor another suffix)")
        return f"{self.files.where}/{listed.image}"

    def below(self, names: Names, image_id: str, suffix: str) -> str | None:
        """Path of the file of an image's labels in ``names``."""
        found = names.find(f"{image_id}{suffix}", whole=True, of=self.own[suffix])
        return None if found is None else f"{names.where}/{found}"

    def say_spellings(self) -> None:
        """Name what was found in another spelling."""
        for names in (self.files, self.xml, *self.masks.values()):
            names.say_respelled(self.notes)

    def number(self, path: str, what: str, name: str) -> int:
        """Class number of ``name``. Raises :class:`DataError` that names its place and what to do."""
        if name not in self.numbers:
            raise DataError(
                f"{path}: {what} has the class {name!r}, which is not in the class table ({self.table.source}:"
                f" {', '.join(self.table.names)}); correct the name or add it to the table"
                " (data.only keeps some of a tree's classes, all others are background)"
            )
        return self.numbers[name]

    @property
    def labelmap(self) -> str:
        """CVAT's class table, if that is the one in use: masks are read by its colours."""
        path = str(child(self.root, LABELMAP))
        return path if self.table.source == path else ""

    def warnings(self) -> tuple[str, ...]:
        """Warnings about the tree as a whole."""
        if self.table.given or self.table.names == VOC_CLASSES or not any(self.masks[f].files for f in MASK_FOLDERS):
            return ()
        return (f"{self.root}: no classes.txt, so the masks' numbers are read as {numbered(self.table.names)}",)


def _tags_by_image(
    listed: dict[str, tuple[str, ...]], where: str, files: Folder, images: dict[str, str], notes: Notes
) -> dict[str, tuple[str, ...]]:
    """Image id -> class names, those of all its rows; rows that are no image's are said."""
    found, refused = files.find_each(images.get(cell, cell) for cell in listed)
    tags: dict[str, tuple[str, ...]] = {}
    for cell, names in listed.items():
        name = images.get(cell, cell)
        file = found.get(name)
        if name in refused:
            notes.add(f"row of {where} for an image that another row's name means, too", refused[name])
        elif file is None:
            notes.add(f"row of {where} for an image that is not there", files.tried(cell))
        elif images[image_id := without_suffix(file)] != file:
            notes.add(f"row of {where} for an image whose twin with another ending is read", cell)
        else:
            tags[image_id] = tuple(dict.fromkeys((*tags.get(image_id, ()), *names)))
    return tags


def _records(
    tree: _Tree, listed: list[tuple[int, str]], origin: str, *, unlabelled: bool
) -> tuple[Sequence[Record], list[Skip]]:
    """One record or one skip for every line."""
    first_line: dict[str, int] = {}
    records: list[Record] = []
    strokes: list[Strokes | None] = []
    skips: list[Skip] = []
    without_xml = not tree.xml.files and not child(tree.root, "Annotations").is_dir()
    reader = _Reader(tree, unlabelled or without_xml)
    for number, text in listed:
        name, path = text, origin
        try:
            line = parse_line(number, text, tree.files, tree.images)
            name = line.image_id
            if name in first_line:
                lines = f"lines {first_line[name]} and {number}"
                raise DataError(f"{origin}: image {name!r} is listed twice, {lines}; the first is kept")
            first_line[name] = number
            path = f"{tree.files.where}/{tree.images.get(name, name)}"
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
        place = child(tree.root, "ScribbleSup", tree.notes)
        self._scribbles = Folder.if_there(place, (".xml",)) if tree.data.scribbles else Names((), str(place))

    def record(self, listed: Listed) -> Record:
        """Everything but the strokes. Raises :class:`DataError` or ``OSError`` if the image cannot be used."""
        tree, image_id = self.tree, listed.image_id
        image = tree.image(listed)
        xml = tree.below(tree.xml, image_id, ".xml") or f"{tree.xml.where}/{image_id}.xml"
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
        self.tree.notes.labels += len(annotation.objects)
        for item in annotation.objects:
            self.tree.number(xml, f"object {item.index}", item.name)
        return annotation

    def _tags(self, image_id: str, xml: str, annotation: Annotation | None) -> tuple[int, ...] | None:
        tree = self.tree
        if tree.tags:
            names = tree.tags.get(image_id)
            if names is not None:
                if annotation is None:
                    tree.notes.labels += len(names)
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
        """Boxes inside the image; ``None`` if there are objects, and the position of none can be used."""
        if annotation is None:
            return None
        boxes: list[Box] = []
        located, damaged = not annotation.objects or any(item.xyxy for item in annotation.objects), False
        for item in annotation.objects:
            if item.difficult and not self.tree.data.difficult:
                continue
            xyxy, remark = place_box(item, size_hw)
            if xyxy is None and located:
                remark = remark or "no <bndbox>, and others have one"
            where = f"{xml}: object {item.index} ({item.name}): {remark}"
            if xyxy:
                boxes.append(Box(item.index, self.tree.numbers[item.name], *xyxy, difficult=item.difficult))
                if remark:
                    self.tree.notes.add("boxes that stick out of their image, clipped", where)
            elif remark:
                damaged = True
                self.tree.notes.lose("boxes left out", where, of="boxes")
        # Without any of its boxes the whole picture would become background.
        return tuple(boxes) if located and (boxes or not damaged) else None

    def _truth(self, listed: Listed, size_hw: tuple[int, int]) -> MaskRef | None:
        tree, count = self.tree, len(self.tree.table.names)
        if listed.mask is not None:
            folder, _, name = listed.mask.replace("\\", "/").lstrip("/").partition("/")
            if folder not in tree.masks:
                tree.masks[folder] = Folder.if_there(tree.root / folder, (".png", ".mat"))
            masks = tree.masks[folder]
            if (mask := masks.find(name)) is not None:
                return class_mask_ref(f"{masks.where}/{mask}", count, size_hw, tree.labelmap)
            tree.notes.add("listed masks that do not exist", f"{tree.root}/{folder}/{name}")
            return None
        for folder in MASK_FOLDERS:
            if (own := tree.below(tree.masks[folder], listed.image_id, ".png")) is not None:
                return class_mask_ref(own, count, size_hw, tree.labelmap)
        if tree.sbd is not None and os.path.isfile(path := tree.sbd / "cls" / f"{listed.image_id}.mat"):
            return class_mask_ref(str(path), count, size_hw)
        return None

    def _objects(
        self, image_id: str, xml: str, annotation: Annotation | None, size_hw: tuple[int, int]
    ) -> MaskRef | None:
        tree = self.tree
        if (own := tree.below(tree.masks["SegmentationObject"], image_id, ".png")) is not None:
            return objects_ref(own, len(annotation.objects) if annotation else None, size_hw)
        if tree.sbd is not None and annotation:
            path = tree.sbd / "inst" / f"{image_id}.mat"
            return sbd_objects_ref(str(path), xml, size_hw) if path.is_file() else None
        return None

    def strokes(self, record: Record) -> Strokes | None:
        """The image's scribbles, packed; ``None`` if there are none or they cannot be read (a warning, not a skip)."""
        path = self.tree.below(self._scribbles, record.image_id, ".xml")
        if path is None:
            return None
        try:
            read = read_scribbles(path, self.tree.numbers, origin=self.tree.data.scribble_origin, of=record)
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
