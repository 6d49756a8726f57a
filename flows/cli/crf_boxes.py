"""``maskmill crf --boxes``: the pictures of a data set, or of a folder with a table of boxes, as jobs of the CRF."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from artifacts.datasets.find import Names
from artifacts.records import Box, DataError, numbered
from flows.cli.crf_files import Job
from flows.cli.picture_files import Skipped, check_apart, check_folders, of_one_name, pictures_in
from flows.cli.terminal import terminal


def box_jobs(
    image: Path | None, boxes: str, split: str, out: Path, overlay: Path | None, marginals: Path | None
) -> tuple[list[Job], Skipped]:
    """A job per picture that boxes are known of (none of them, too), and skips.

    With ``image`` (a picture or a folder), ``boxes`` is a CSV file whose lines name the pictures. Without, it is a data
    set as ``--data`` takes it, or a folder with ``boxes.csv``. Prints the class table: the masks hold its numbers.
    """
    if image is None:
        return _of_data_set(boxes, split, out, overlay, marginals)
    table = Path(boxes)
    if not table.is_file():
        raise DataError(f"--boxes {boxes}: no such file; with --image give a table image,class,x0,y0,x1,y1 (CSV)")
    if not image.exists():
        raise DataError(f"--image {image}: no such file or folder")
    if image.is_file():
        found, _ = _table(table, [image])
        if image not in found:
            raise DataError(f"--boxes {boxes}: no line names {image.name}; one without class says: no object")
        return [Job(image, table, out, overlay, marginals, found[image])], []
    check_folders(out, overlay, marginals)
    check_apart([image], out, overlay)
    pictures, skips = pictures_in(image)
    found, unlisted = _table(table, pictures)
    skips += [(path, f"no line in {table}") for path in pictures if path not in found]
    skips += [(table, f"{name}: no picture of this name in {image}") for name in unlisted]
    jobs = [Job(path, table, *_targets(path.stem, out, overlay, marginals), boxes) for path, boxes in found.items()]
    return _of_different_names(jobs, skips)


def _targets(
    name: str, out: Path, overlay: Path | None, marginals: Path | None
) -> tuple[Path, Path | None, Path | None]:
    shown = overlay / f"{name}.png" if overlay is not None else None
    return out / f"{name}.png", shown, marginals / f"{name}.npy" if marginals is not None else None


def _of_different_names(jobs: list[Job], skips: Skipped) -> tuple[list[Job], Skipped]:
    taken: dict[Path, Job] = {}
    for job in jobs:
        if job.out in taken:
            skips.append((job.image, of_one_name(job.image)))
        else:
            taken[job.out] = job
    if not taken and not skips:
        raise DataError("there are no pictures with boxes")
    return list(taken.values()), skips


def _of_data_set(
    source: str, split: str, out: Path, overlay: Path | None, marginals: Path | None
) -> tuple[list[Job], Skipped]:
    from artifacts.datasets import DataParams, read_split

    if Path(source).is_file() and source.endswith(".csv"):
        raise DataError(f"--boxes {source}: a table needs --image, the picture or the folder of pictures that it names")
    try:
        data = DataParams(f"folder:{source}" if Path(source).is_dir() else source)
    except ValueError as error:
        raise DataError(f"--boxes {source}: {error}") from error
    records = read_split(data, split)
    for warning in records.warnings:
        terminal(stderr=True).print(f"warning: {warning}", soft_wrap=True, markup=False)
    skips: Skipped = [(Path(skip.path), skip.reason) for skip in records.skips]
    skips += [(Path(record.image), "no boxes are known of it") for record in records if record.boxes is None]
    known = [record for record in records if record.boxes is not None]
    if not known:
        raise DataError(f"--boxes {source}: split {split} has no boxes")
    _say_classes(records.classes)
    place = Path(records.root or source)
    check_apart([Path(record.image).parent for record in known[:1]], out, overlay)
    jobs = [
        Job(
            Path(record.image),
            place,
            *_targets(record.image_id, out, overlay, marginals),
            _without_crowds(record.boxes),
        )
        for record in known
    ]
    return _of_different_names(jobs, skips)


def _without_crowds(boxes: tuple[Box, ...] | None) -> tuple[Box, ...]:
    return tuple(box for box in boxes or () if not box.crowd)


def _say_classes(classes: tuple[str, ...]) -> None:
    terminal().print(f"classes: 0 background, {numbered(classes)}", soft_wrap=True, markup=False, highlight=False)


def _table(path: Path, pictures: list[Path]) -> tuple[dict[Path, tuple[Box, ...]], list[str]]:
    """Boxes of each picture that the table names (as the readers of data sets find names), and names of no picture.

    Classes are numbered as they are sorted. Raises :class:`DataError` with file and line for what is no box.
    """
    by_name = {picture.name: picture for picture in pictures}
    names = Names(by_name, "")
    rows = list(_rows(path))
    classes = tuple(sorted({name for _, name, _ in rows if name}))
    if len(classes) > 254:
        raise DataError(f"{path}: {len(classes)} classes; a mask holds 254")
    found: dict[Path, list[Box]] = {}
    unlisted: dict[str, None] = {}
    for named, name, xyxy in rows:
        spelled = names.find(named, any_ending=True)
        if spelled is None:
            unlisted[named] = None
            continue
        picture = by_name[spelled]
        of_picture = found.setdefault(picture, [])
        if name:
            of_picture.append(Box(len(of_picture), 1 + classes.index(name), *xyxy))
    _say_classes(classes)
    return {picture: tuple(boxes) for picture, boxes in found.items()}, list(unlisted)


def _rows(path: Path) -> Iterator[tuple[str, str, tuple[float, float, float, float]]]:
    """(picture's name, class or "" where the line says that there is no object, box)."""
    from artifacts.datasets.folder_tables import BOXES_HEADER, read_csv
    from artifacts.datasets.paths import Notes

    notes = Notes()
    for place, cells in read_csv(path, BOXES_HEADER, notes):
        if not cells["class"]:
            yield cells["image"].strip(), "", (0.0, 0.0, 0.0, 0.0)
            continue
        try:
            x0, y0, x1, y1 = (float(cells[name]) for name in ("x0", "y0", "x1", "y1"))
        except ValueError as error:
            raise DataError(f"{place}: {error}; a box is four numbers, x0,y0,x1,y1") from error
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x0 >= x1 or y0 >= y1:
            raise DataError(f"{place}: {x0:g},{y0:g},{x1:g},{y1:g} is no box: x0 < x1 and y0 < y1 are needed")
        yield cells["image"].strip(), cells["class"], (x0, y0, x1, y1)
    if dropped := notes.lines():
        raise DataError(f"{path}: {dropped[0]}")
