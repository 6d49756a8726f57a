"""The tables of a plain folder, ``tags.csv`` and ``boxes.csv``: read tolerantly, written to be read back the same."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.find import Names, child
from artifacts.datasets.paths import GENERIC_FOLDERS, Notes
from artifacts.datasets.splits import read_text
from artifacts.datasets.tag_cells import TAG_SEPARATOR, split_tags
from artifacts.datasets.voc_tree import NO_CLASS
from artifacts.inputs import has_control
from artifacts.records import DataError, Record

TAGS_HEADER = ("image", "tags")
BOXES_HEADER = ("image", "class", "x0", "y0", "x1", "y1")
FLAGS = ("difficult", "crowd")

ROW_DROPPED = "row dropped"
OUTSIDE = "box that lies outside its picture, dropped"
UNKNOWN_IMAGE = "row for an image that is not there"
TWO_NAMES = "row for an image that another row's name means, too"


@dataclass(frozen=True)
class BoxRow:
    """One line of ``boxes.csv``, not yet clipped to the picture."""

    place: str
    name: str
    xyxy: tuple[float, float, float, float]
    index: int
    difficult: bool
    crowd: bool


@dataclass
class Tables:
    """The content of the tables, by row of the picture list."""

    tags: dict[int, list[tuple[str, str]]] | None = None
    """row -> (place, class name); ``None`` without ``tags.csv`` and without folders of classes."""
    boxes: dict[int, list[BoxRow]] | None = None
    damaged: set[int] = field(default_factory=set)
    """Rows of pictures of which a box was dropped, as its numbers cannot be used."""
    labels: Counter[int] = field(default_factory=Counter)
    """row -> labels of its picture, lost ones included."""
    lost: list[tuple[int, str, str]] = field(default_factory=list)
    """(row, kind, example) of each of them that is lost."""
    splits: dict[int, str] = field(default_factory=dict)
    has_splits: bool = False

    @classmethod
    def read(
        cls, root: Path, pictures: Names, notes: Notes, *, separator: str = "", known: Collection[str] = ()
    ) -> Tables:
        """Read ``tags.csv`` and ``boxes.csv`` in ``root``, as far as they are there.

        ``separator`` and ``known`` as in :func:`artifacts.datasets.tag_cells.split_tags`.
        """
        tables = cls()
        rows = {relative: row for row, relative in enumerate(pictures.files)}
        if (path := child(root, "tags.csv", notes)).is_file():
            tables.tags = {}
            lines = list(tables._rows(path, TAGS_HEADER, pictures, rows, notes))
            found = split_tags([cells["tags"] for _, _, cells in lines], separator, known, str(path), notes)
            for (place, picture, _), names in zip(lines, found, strict=True):
                tables.tags.setdefault(picture, []).extend((place, name) for name in names)
                tables.labels[picture] += len(names)
        if (path := child(root, "boxes.csv", notes)).is_file():
            tables.boxes = {}
            counts: dict[int, int] = {}
            for place, picture, cells in tables._rows(path, BOXES_HEADER, pictures, rows, notes):
                boxes = tables.boxes.setdefault(picture, [])
                if not cells["class"]:
                    continue
                tables.labels[picture] += 1
                index = counts[picture] = counts.get(picture, -1) + 1
                try:
                    boxes.append(_parse_box(place, cells, index))
                except DataError as error:
                    tables.lost.append((picture, ROW_DROPPED, str(error)))
                    tables.damaged.add(picture)
        if tables.tags is None and tables.boxes is None:
            tables.tags = folder_tags(pictures.files, notes)
        return tables

    def _rows(
        self, path: Path, header: tuple[str, ...], pictures: Names, rows: Mapping[str, int], notes: Notes
    ) -> Iterator[tuple[str, int, dict[str, str]]]:
        """(``file:line``, row of the picture list, cells by column) of each usable line."""
        lines = list(read_csv(path, header, notes))
        found, refused = pictures.find_each(cells["image"] for _, cells in lines)
        for place, cells in lines:
            name = cells["image"]
            if name not in found:
                notes.labels += 1
                if name in refused:
                    notes.lose(TWO_NAMES, f"{place}: {refused[name]}")
                else:
                    notes.lose(UNKNOWN_IMAGE, f"{place}: {pictures.tried(name)!r}")
                continue
            picture = rows[found[name]]
            if "split" in cells:
                self.has_splits = True
                split = cells["split"]
                if self.splits.setdefault(picture, split) != split:
                    kept = self.splits[picture]
                    notes.add("split given twice, the first kept", f"{place}: {name!r} is {kept!r}")
            yield place, picture, cells

    def names(self) -> set[str]:
        """All class names in the tables."""
        tags = {name for row in (self.tags or {}).values() for _, name in row}
        return tags | {box.name for row in (self.boxes or {}).values() for box in row}

    def count(self, chosen: Collection[int], notes: Notes) -> None:
        """Count the labels of the chosen pictures, those that are lost among them: boxes are clipped for these only."""
        notes.labels += sum(number for row, number in self.labels.items() if row in chosen)
        for row, kind, example in self.lost:
            if row in chosen:
                notes.lose(kind, example)

    def forget_unknown_classes(self, numbers: Mapping[str, int]) -> None:
        """Drop what names a class that the class table does not have."""
        if self.names() <= numbers.keys():
            return
        kind = f"class that the class table does not have, dropped (it has {', '.join(numbers)})"
        for picture, tags in list((self.tags or {}).items()):
            for place, name in tags:
                if name not in numbers:
                    self.lost.append((picture, kind, f"{place}: {name!r}"))
            good = [(place, name) for place, name in tags if name in numbers]
            if self.tags is not None and tags and not good:
                del self.tags[picture]  # unknown, not "holds nothing"
            tags[:] = good
        for picture, boxes in (self.boxes or {}).items():
            for box in boxes:
                if box.name not in numbers:
                    self.lost.append((picture, kind, f"{box.place}: {box.name!r}"))
                    self.damaged.add(picture)
            boxes[:] = [box for box in boxes if box.name in numbers]


def folder_tags(every: Sequence[str], notes: Notes) -> dict[int, list[tuple[str, str]]] | None:
    """As :attr:`Tables.tags`, each picture's folder as its only tag; ``None`` where none lies in a folder of a class.

    The class is the first folder of the path whose name is not that of a split or of pictures in general (``train/``).
    A folder ``background`` holds pictures that show nothing.
    """
    found: dict[int, list[tuple[str, str]]] = {}
    outside = []
    for row, relative in enumerate(every):
        folders = relative.split("/")[:-1]
        name = next((folder for folder in folders if folder.lower() not in GENERIC_FOLDERS), None)
        if name is None:
            outside.append(relative)
        else:
            found[row] = [] if name.lower() in NO_CLASS else [(relative, name)]
    if not found:
        return None
    counts = Counter(name for tags in found.values() for _, name in tags)
    kind = "folder whose name was taken as its pictures' tag (tags.csv, with image,tags, says otherwise)"
    notes.add_all(kind, [f"{name} ({count})" for name, count in sorted(counts.items())])
    notes.add_all("picture without tags: in no class's folder", outside)
    return found


def read_csv(path: Path, header: tuple[str, ...], notes: Notes) -> Iterator[tuple[str, dict[str, str]]]:
    """(``file:line``, cells by column name) of each line; all cells but ``image`` are stripped.

    Raises :class:`DataError` if the header line lacks a column, or the text is not UTF-8 or not CSV.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = [cell.strip().lower() for cell in cells]
                if missing := [name for name in header if name not in columns]:
                    raise DataError(
                        f"{path}:{reader.line_num}: no column {', '.join(missing)}; "
                        f"the first line must hold {','.join(header)}, not {','.join(cells)!r}"
                    )
                continue
            place = f"{path}:{reader.line_num}"
            if len(cells) != len(columns):
                notes.labels += 1
                notes.lose(
                    ROW_DROPPED,
                    f"{place}: {len(cells)} cells, but the header has {len(columns)}; put names with commas in quotes",
                )
                continue
            named = dict(zip(columns, cells, strict=True))
            yield place, {name: cell if name == "image" else cell.strip() for name, cell in named.items()}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}; check the quotes there") from error
    if columns is None:
        raise DataError(f"{path} is empty; the first line must hold {','.join(header)}")


def _parse_box(place: str, cells: Mapping[str, str], index: int) -> BoxRow:
    values = []
    for name in BOXES_HEADER[2:]:
        try:
            value = float(cells[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{place}: {name} is {cells[name]!r}; write a number of pixels, with a decimal point")
        values.append(value)
    flags = {}
    for name in FLAGS:
        text = cells.get(name, "") or "0"
        if text not in ("0", "1"):
            raise DataError(f"{place}: {name} is {text!r}; write 0 or 1")
        flags[name] = text == "1"
    x0, y0, x1, y1 = values
    if x1 <= x0 or y1 <= y0:
        raise DataError(f"{place}: box {x0:g} {y0:g} {x1:g} {y1:g} has no area; expected x0 < x1 and y0 < y1")
    return BoxRow(place, cells["class"], (x0, y0, x1, y1), index, **flags)


def write_tags(path: Path, tags: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Write ``tags.csv`` from (image, class names); no names write "checked, holds nothing"."""
    lines = []
    for image, names in tags:
        _check_names(path, names, TAG_SEPARATOR)
        lines.append([image, TAG_SEPARATOR.join(names)])
    _write_csv(path, TAGS_HEADER, lines)


def write_boxes(path: Path, records: Iterable[Record], classes: Sequence[str]) -> None:
    """Write ``boxes.csv`` of the records whose boxes are known, images by id; flags only if one is set.

    Numbers are written so that they are read back to the same bits. Rows keep the order of the boxes.
    """
    _check_names(path, classes)
    known = [record for record in records if record.boxes is not None]
    flagged = any(box.difficult or box.crowd for record in known for box in record.boxes or ())
    header = (*BOXES_HEADER, *FLAGS) if flagged else BOXES_HEADER
    lines: list[list[str]] = []
    for record in known:
        for box in record.boxes or ():
            flags = [str(int(box.difficult)), str(int(box.crowd))] if flagged else []
            lines.append([record.image_id, classes[box.class_id - 1], *map(_number, box.xyxy), *flags])
        if not record.boxes:
            lines.append([record.image_id] + [""] * (len(header) - 1))
    _write_csv(path, header, lines)


def write_folder_labels(root: Path, records: Iterable[Record], classes: Sequence[str]) -> None:
    """Write ``classes.txt``, and ``tags.csv`` and ``boxes.csv`` of the records' known labels, below ``root``."""
    every = list(records)
    _check_names(root / "classes.txt", classes)
    if left_out := [name for name in classes if name.lower() in NO_CLASS]:
        raise DataError(f"{root / 'classes.txt'}: {left_out} would be left out on reading: no class is called that")
    write_text_atomic(root / "classes.txt", "".join(f"{name}\n" for name in classes))
    tagged = [(r.image_id, [classes[t - 1] for t in r.tags]) for r in every if r.tags is not None]
    if tagged:
        write_tags(root / "tags.csv", tagged)
    if any(record.boxes is not None for record in every):
        write_boxes(root / "boxes.csv", every, classes)


def _check_names(path: Path, names: Iterable[str], forbidden: str = "\n") -> None:
    """Class names must come back as they were: lines and cells are stripped, lists are split."""
    if wrong := [n for n in names if not n or n != n.strip() or has_control(n) or any(c in n for c in forbidden)]:
        raise DataError(
            f"{path}: {wrong} cannot be class names here: empty, with spaces around, or holding {forbidden!r}"
        )


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    write_text_atomic(path, text.getvalue())
