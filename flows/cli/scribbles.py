"""``maskmill scribbles``: plausible scribbles drawn from masks, for experiments. No cache, no run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.markup import escape

from artifacts.cache.atomic import check_writable, write_text_atomic
from artifacts.datasets import DataParams, read_split
from artifacts.records import DataError, MaskRef, RecordSet, size_of
from flows.cli.picture_jobs import run_jobs, write_named
from flows.cli.stopping import Writes
from flows.cli.terminal import terminal

Format = Literal["xml", "png"]
MARK = ".maskmill-scribbles"
"""A file in folders of this command, with their format. Without it a tree's own masks, boxes or pictures, which have
the same names, would be replaced by scribbles."""


@dataclass(frozen=True)
class ScribbleJob:
    """One picture: whose truth is read, what is written."""

    image_id: str
    image: Path
    out: Path
    truth: MaskRef


def scribbles(
    *,
    from_: Annotated[
        str, Parameter(name="--from", help="data with masks: voc:PATH, coco:IMAGES,JSON, folder:PATH, demo ...")
    ],
    out: Annotated[
        Path,
        Parameter(help="folder for <image id>.xml or .png: a new one, or this command's own, whose files are replaced"),
    ],
    split: Annotated[str, Parameter(help="split to draw on")] = "train",
    format_: Annotated[
        Format, Parameter(name="--format", help="xml (ScribbleSup: strokes) or png (index masks, 255: nothing drawn)")
    ] = "xml",
    length: Annotated[float, Parameter(help="share of the longest stroke: 1, .8, .5, .3; 0 is a click")] = 1.0,
    width: Annotated[float, Parameter(help="png: thickness in pixels")] = 3.0,
    seed: Annotated[int, Parameter(help="another seed, other places of shorter strokes")] = 0,
    quiet: Annotated[bool, Parameter(help="no progress bar", negative=())] = False,
) -> int:
    """Draw a stroke along the middle of every part of every class, and of the background, from the truth masks.

    `--set data.scribble_files=OUT` (and `data.source`) gives them to a flow.
    """
    if not 0 <= length <= 1:
        raise DataError(f"--length {length:g} must lie in 0..1")
    if not 1 <= width <= 100:
        raise DataError(f"--width {width:g} must lie in 1..100")
    try:
        data = DataParams(source=from_)
    except ValueError as error:
        raise DataError(f"--from {from_}: {error}") from error
    records = read_split(data, split)
    jobs = jobs_of(records, out, format_)
    check_writable("out", out)
    check_own(out, format_)
    skips = [(Path(skip.path), skip.reason) for skip in records.skips]
    skips += [(Path(r.image), "no mask is known for it") for r in records if r.truth is None]
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out / MARK, format_)
    one = partial(work, classes=records.classes, length=length, width=width, seed=seed)
    code = run_jobs("scribbles", "files of scribbles", jobs, skips, one, -1, out, quiet=quiet)
    given = f"--data {from_} --set data.scribble_files={out}"
    terminal().print(f"scribbles: {escape(str(out))}; use: {escape(given)}", soft_wrap=True)
    return code


def check_own(out: Path, format_: Format) -> None:
    """Raise ``DataError`` for a folder that holds other things than this command's scribbles of the same format."""
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not inside:
        return
    if not (out / MARK).is_file():
        raise DataError(
            f"--out {out}: holds files that are not of `maskmill scribbles` ({inside[0]}, say); name a new folder"
        )
    if (there := (out / MARK).read_text().strip()) != format_:
        raise DataError(f"--out {out}: holds scribbles as .{there}; name another folder for .{format_}")


def jobs_of(records: RecordSet, out: Path, format_: Format) -> list[ScribbleJob]:
    """A job for every image that has a mask. Raises ``DataError`` where none has."""
    jobs = [
        ScribbleJob(record.image_id, Path(record.image), out / f"{record.image_id}.{format_}", record.truth)
        for record in records
        if record.truth is not None
    ]
    if not jobs:
        said = "".join(f"; {warning}" for warning in records.warnings)
        raise DataError(f"no image of split {records.split!r} of {records.format}:{records.root} has a mask{said}")
    return jobs


def work(job: ScribbleJob, writes: Writes, *, classes: tuple[str, ...], length: float, width: float, seed: int) -> None:
    """Read the mask, draw, write. Raises ``DataError`` naming the file, ``OSError`` where one cannot be written."""
    from artifacts.datasets.scribble_drawing import draw_scribbles
    from artifacts.datasets.scribblesup import BACKGROUND, rasterize, write_scribbles
    from artifacts.datasets.voc_writer import write_class_mask

    mask_hw = job.truth.load()
    size_hw = size_of(mask_hw)
    strokes = draw_scribbles(mask_hw, job.image_id, length=length, seed=seed)
    if not strokes:
        raise DataError(f"{job.truth.path}: is undecided everywhere, so there is nothing to draw on")
    names = (BACKGROUND, *classes)
    named = [(names[stroke.class_id], stroke.points_xy) for stroke in strokes]
    with writes.one():
        if job.out.suffix == ".png":
            write_named(job.out, lambda path: write_class_mask(path, rasterize(strokes, size_hw, width)))
        else:
            write_named(job.out, lambda path: write_scribbles(path, job.image.name, size_hw, named))
