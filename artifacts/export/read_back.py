"""Corrected masks out of the files of annotation tools: which tool's a file is, which pictures it means.

Pictures are found by what the file calls them: an image id, a path, a file name; a name that two pictures have is
refused. What cannot be used of one picture costs that picture only, with the reason. Masks of the evaluation pictures
are passed over: exports for trainers hold their truth, which no stage may learn from.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.datasets.coco_masks import decode_segmentation
from artifacts.datasets.find import Folder
from artifacts.datasets.paths import without_suffix
from artifacts.datasets.splits import folder_split
from artifacts.datasets.voc_masks import class_mask_ref, load_class_mask
from artifacts.datasets.voc_tree import read_classes
from artifacts.export.cvat import ANNOTATIONS, read_cvat
from artifacts.export.datacard import CARD_JSON
from artifacts.export.label_studio import TASKS, read_label_studio
from artifacts.export.labelme import read_labelme
from artifacts.export.regions import Drawn, Layer, MaskBool, class_labels, stated_size
from artifacts.export.voc import DEVKIT
from artifacts.export.yolo_seg import read_yolo_seg
from artifacts.images import image_size_hw
from artifacts.inputs import read_input
from artifacts.records import UNDECIDED, DataError, MaskHW, Record, RecordSet

NOTES = ("maskmill-export.json", CARD_JSON)
"""What an export says of itself beside a tool's files."""
EXPECTED = (
    "a Label Studio JSON, CVAT's annotations.xml, a COCO instances file, a labelme JSON, or a folder of labelme files,"
    " of YOLO labels with data.yaml, or of a VOC tree (SegmentationClass)"
)


@dataclass
class ReadBack:
    """What files of corrections hold for a data set. Iterate over :meth:`masks` first: the rest is then known."""

    records: RecordSet
    held_out: Iterable[Record] = ()
    """The evaluation pictures; those of ``records`` among them are none."""
    without: int = 0
    """Pictures that nobody has submitted an annotation for (Label Studio)."""
    of_held_out: int = 0
    """Masks of evaluation pictures: left alone."""
    problems: list[str] = field(default_factory=list)
    """Pictures that could not be used, and why."""
    _by_name: dict[str, list[Record]] = field(default_factory=dict, repr=False)
    _held_out_ids: set[str] = field(default_factory=set, repr=False)
    _folders: set[str] = field(default_factory=set, repr=False)
    """Names of the folders that pictures lie in, of either split."""

    def masks(self, paths: Iterable[Path]) -> Iterator[tuple[str, MaskHW]]:
        """``(image id, (H, W) uint8)``, one a picture: of two files the later one counts.

        Raises :class:`DataError` for a file that is no tool's, and ``OSError`` where one cannot be read.
        """
        numbers = {name: number for number, name in class_labels(self.records.classes).items()}
        found: dict[str, tuple[Drawn, Record, Path]] = {}
        for path in paths:
            for record, drawn in self._of_file(path):
                found[record.image_id] = drawn, record, path
        for image_id, (drawn, record, path) in sorted(found.items()):
            try:
                mask_hw = drawn.paint(numbers, image_size_hw(Path(record.image)))
            except (DataError, OSError) as error:
                self.problems.append(f"{path}: {image_id}: {error}")
                continue
            yield image_id, mask_hw

    def _of_file(self, path: Path) -> Iterator[tuple[Record, Drawn]]:
        """The pictures of one file or folder, in which a picture has one name."""
        found: dict[str, tuple[Record, dict[str, Drawn]]] = {}
        for drawn in read_file(path):
            if drawn is None:
                self.without += 1
                continue
            if isinstance(drawn, DataError):
                self.problems.append(str(drawn))
                continue
            try:
                record = self._record(drawn.names)
            except DataError as error:
                self.problems.append(f"{path}: {drawn.fault or error}")
                continue
            if record.image_id in self._held_out_ids:
                self.of_held_out += 1
            else:
                found.setdefault(record.image_id, (record, {}))[1][drawn.names[0]] = drawn
        for record, by_name in found.values():
            sure = [name for name in by_name if len(by_name) == 1 or without_suffix(name) == record.image_id]
            if sure:
                yield record, by_name[sure[-1]]
            if unsure := [repr(name) for name in by_name if name not in sure]:
                why = f"which {sure[0]!r} is" if sure else "and one picture has one name in a file"
                self.problems.append(f"{path}: {' and '.join(unsure[:3])} may be {record.image_id}, {why}")

    def _record(self, names: Iterable[str]) -> Record:
        """The picture of these names, of either split: its id, else its path's end, else its file's name.

        Raises :class:`DataError` where no picture or several may be meant, or where a name's folders are another
        picture's.
        """
        if not self._by_name:
            train = {record.image_id for record in self.records}
            held_out = [record for record in self.held_out if record.image_id not in train]
            self._held_out_ids.update(record.image_id for record in held_out)
            for record in (*self.records, *held_out):
                self._folders.update(record.image_id.split("/")[-2:-1])
                for name in {record.image_id, Path(record.image).stem, Path(record.image_id).name}:
                    self._by_name.setdefault(name, []).append(record)
        tried = [name for name in dict.fromkeys(names) if name]
        for name in tried:
            plain = without_suffix(name)
            parts = plain.split("/")
            for wanted in dict.fromkeys([name, *("/".join(parts[start:]) for start in range(len(parts)))]):
                here = self._by_name.get(wanted, [])
                exact = [record for record in here if record.image_id == wanted]
                if len(exact or here) > 1:
                    raise DataError(f"{wanted!r} may be {', '.join(record.image_id for record in here[:3])}")
                if here:
                    record = (exact or here)[0]
                    self._check_folders(tried, record)
                    return record
        raise DataError(f"no picture of {self.records.dataset} is called {' or '.join(map(repr, tried)) or 'nothing'}")

    def _check_folders(self, names: Sequence[str], record: Record) -> None:
        """A picture that was found by its name's end does not lie in another folder of the data, or of another split.

        Folders that the data do not know say nothing: tools have their own.
        """
        if any(without_suffix(name) == record.image_id for name in names):
            return
        folder, split = record.image_id.split("/")[-2:-1], _split_of(record.image_id)
        for name in names:
            said = name.split("/")[-2:-1]
            elsewhere = said != folder and self._folders.issuperset(said) and said
            if elsewhere or (split and _split_of(name) not in ("", split)):
                raise DataError(f"{name!r} lies in another folder than {record.image_id}, and is no known picture")


def _split_of(name: str) -> str:
    """The split that the innermost folder of its kind names; empty without one."""
    return next((split for part in reversed(name.split("/")[:-1]) if (split := folder_split(part))), "")


def read_file(path: Path) -> Iterator[Drawn | DataError | None]:
    """The pictures in a file or folder of any tool, and why a part of it is none, which costs that part only.

    Raises :class:`DataError` for a file or folder that is no tool's.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix.lower() == ".xml":
        yield from read_cvat(path)
    elif path.suffix.lower() == ".json":
        yield from _read_json(path, path)
    else:
        raise DataError(f"{path}: expected {EXPECTED}; unpack an archive first")


def _read_folder(folder: Path) -> Iterator[Drawn | DataError | None]:
    trees = [tree for tree in (folder, folder / DEVKIT) if (tree / "SegmentationClass").is_dir()]
    if trees:
        yield from _read_voc(trees[0])
    elif (folder / "data.yaml").is_file():
        yield from read_yolo_seg(folder)
    elif named := [path for name in (TASKS, ANNOTATIONS) if (path := folder / name).is_file()]:
        yield from read_file(named[0])
    elif (folder / "annotations").is_dir():
        yield from _read_each(sorted((folder / "annotations").glob("*.json")))
    else:
        paths = [path for path in sorted(folder.rglob("*.json")) if path.name not in NOTES]
        if not paths:
            raise DataError(f"{folder}: expected {EXPECTED}")
        yield from _read_each(paths, folder)


def _read_each(paths: Iterable[Path], root: Path | None = None) -> Iterator[Drawn | DataError | None]:
    """The pictures of a folder's JSON files; one that cannot be read, or is no tool's, costs that file only."""
    for path in paths:
        try:
            yield from _read_json(path, root or path)
        except (DataError, OSError) as error:
            yield DataError(str(error))


def _read_json(path: Path, root: Path) -> Iterator[Drawn | DataError | None]:
    try:
        content = json.loads(read_input(path).decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({error})") from error
    if isinstance(content, list):
        yield from read_label_studio(content, path)
    elif isinstance(content, dict) and "shapes" in content:
        yield read_labelme(content, path, root)
    elif isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        yield from _read_coco(content, path)
    else:
        raise DataError(f"{path}: expected {EXPECTED}")


def _read_coco(content: Mapping[str, Any], path: Path) -> Iterator[Drawn | DataError]:
    """Pictures of an instances file; crowds are undecided, smaller objects lie on top, as in COCO's own data.

    Raises :class:`DataError` where categories, or the pictures that annotations belong to, are not known.
    """
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        of_image: dict[Any, list[Mapping[str, Any]]] = {}
        for one in content["annotations"]:
            of_image.setdefault(one["image_id"], []).append(one)
        images = list(content["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a COCO instances file ({type(error).__name__}: {error})") from error
    for number, image in enumerate(images):
        try:
            name, drawn = str(image["file_name"]), of_image.get(image["id"], [])
        except (KeyError, TypeError) as error:
            yield DataError(f"{path}: images[{number}] is no picture ({type(error).__name__}: {error})")
            continue
        try:
            size_hw = stated_size(image.get("height"), image.get("width"))
            if size_hw is None:
                raise DataError("height and width are not there")
            layers = [_coco_layer(one, names) for one in drawn]
        except DataError as error:
            yield Drawn([name], (), fault=str(error))
        else:
            yield Drawn([name], layers, size_hw, sort_by_area=True)


def _coco_layer(annotation: Mapping[str, Any], names: Mapping[Any, str]) -> tuple[str | None, Layer]:
    """Raises :class:`DataError` for an annotation whose category the file does not define."""
    if annotation.get("iscrowd"):
        return None, partial(_segmentation, annotation)
    category = annotation.get("category_id")
    if not isinstance(category, Hashable) or category not in names:
        raise DataError(f"annotation {annotation.get('id')}: the file defines no category {category!r}")
    return names[category], partial(_segmentation, annotation)


def _segmentation(annotation: Mapping[str, Any], size_hw: tuple[int, int]) -> MaskBool:
    if not annotation.get("segmentation"):
        raise DataError(f"annotation {annotation.get('id')} has no segmentation: a box is no mask")
    if annotation.get("iscrowd") and not isinstance(annotation["segmentation"], dict):
        raise DataError(f"annotation {annotation.get('id')} is a crowd without run-length code")
    return decode_segmentation(json.dumps(annotation["segmentation"]).encode(), size_hw)


def _read_voc(folder: Path) -> Iterator[Drawn]:
    """Masks of a VOC tree; ``classes.txt`` says what its numbers mean."""
    table = folder / "classes.txt"
    if not table.is_file():
        raise DataError(f"{table} is not there: it says what the masks' numbers mean, one class a line, number 1 first")
    classes = read_classes(table)
    masks = folder / "SegmentationClass"
    for name in Folder(masks).files:
        yield Drawn([without_suffix(name)], (), mask=partial(_class_mask, str(masks / name), classes))


def _class_mask(path: str, classes: tuple[str, ...], numbers: Mapping[str, int], size_hw: tuple[int, int]) -> MaskHW:
    mask_hw = load_class_mask(class_mask_ref(path, len(classes), size_hw))
    table = np.zeros(256, np.uint8)
    table[UNDECIDED] = UNDECIDED
    for number in np.unique(mask_hw[(mask_hw > 0) & (mask_hw != UNDECIDED)]).tolist():
        if classes[number - 1] not in numbers:
            raise DataError(f"{classes[number - 1]!r} is no class of the data set; it has {', '.join(numbers)}")
        table[number] = numbers[classes[number - 1]]
    return table[mask_hw]
