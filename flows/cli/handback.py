"""``maskmill import``: masks that people corrected, out of their tool's file into the folder of corrections."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.markup import escape

from artifacts.cache.atomic import check_writable
from artifacts.cache.runs import find_run
from artifacts.datasets import DataParams
from artifacts.datasets.corrections import load_stored, write_corrections
from artifacts.datasets.read import placed
from artifacts.export.read_back import ReadBack
from artifacts.records import DataError, MaskHW
from flows.cli.export import records_of
from flows.cli.terminal import terminal
from flows.config import ConfigError, Layer, build


def import_(
    *corrections: Annotated[
        Path,
        Parameter(
            help="files or folders of Label Studio (JSON), CVAT (XML 1.1), labelme, YOLO-seg, COCO or VOC; at least one"
        ),
    ],
    cache: Annotated[Path, Parameter(help="folder of the mask cache")] = Path("maskmill-cache"),
    run: Annotated[str, Parameter(help="the run whose data set it is: its id, or latest")] = "latest",
    to: Annotated[
        Path | None, Parameter(help="folder of corrections; default: the run's, else DATASET-corrections")
    ] = None,
) -> int:
    """Store masks that people corrected; every flow then prefers them to its own (data.corrections)."""
    if not corrections:
        raise ConfigError("import: name a file of corrections, e.g. `maskmill import project-1.json`")
    done = import_corrections(corrections, cache, run, to)
    console = terminal()
    folder = escape(str(done.folder))
    console.print(
        f"corrected: {len(done.stored)} stored in {folder}, {done.unchanged} there before"
        + (f", {done.without} not looked at by anybody" if done.without else "")
        + (f", {done.of_val} of the evaluation pictures left alone" if done.of_val else ""),
        soft_wrap=True,
    )
    for problem in done.problems:
        console.print(f"left out: {escape(problem)}", soft_wrap=True)
    if not done.known:
        console.print(f"the next run takes them with --set data.corrections={folder}", soft_wrap=True)
    return 3 if done.problems else 0


@dataclass(frozen=True)
class Imported:
    """What :func:`import_corrections` did."""

    folder: Path
    stored: tuple[str, ...]
    """Image ids with a new or changed mask."""
    unchanged: int
    """Pictures whose mask was stored before, the same to the byte."""
    without: int
    """Pictures that nobody has submitted an annotation for."""
    of_val: int
    """Masks of evaluation pictures, which no stage may learn from: not stored."""
    problems: tuple[str, ...]
    """Pictures that could not be used, and why."""
    known: bool
    """Whether the run that was named takes its corrections from this folder already."""


def import_corrections(files: Sequence[Path], cache: Path, run: str, to: Path | None) -> Imported:
    """Read ``files`` of annotation tools and store their masks for the training pictures of a run's data set.

    ``to``: the folder of corrections; default: the run's ``data.corrections``, else ``<data set>-corrections`` in the
    working directory. Raises :class:`DataError` where a file is no tool's, or holds no mask that can be used.
    """
    manifest = find_run(cache, run).manifest()
    if not manifest["recipe"]:
        raise DataError(f"run {manifest['run']} is a script's: its data are not known; name a flow's run with --run")
    data = build(DataParams, "data", manifest["recipe"], [Layer(manifest["recipe"], f"run {manifest['run']}", {})])
    data = placed(data, manifest.get("folder", ""))
    records = records_of(manifest, "train", data.train, cache)
    val = records_of(manifest, "val", data.val, cache)
    folder = to or Path(data.corrections or f"{records.dataset}-corrections").expanduser()
    check_writable("to", folder)
    found = ReadBack(records, val)
    unchanged = 0

    def changed() -> Iterator[tuple[str, MaskHW]]:
        nonlocal unchanged
        for image_id, mask_hw in found.masks(files):
            before = load_stored(folder, image_id, records.classes)
            if before is not None and np.array_equal(before, mask_hw):
                unchanged += 1
            else:
                yield image_id, mask_hw

    stored = write_corrections(folder, changed(), records.classes)
    if not stored and not unchanged:
        unused = [f"nobody has submitted an annotation for its {found.without} pictures"] if found.without else []
        unused += [f"{found.of_held_out} of evaluation pictures (data.val={data.val})"] if found.of_held_out else []
        reasons = "; ".join([*found.problems[:3], *unused]) or "no picture"
        raise DataError(f"{', '.join(map(str, files))}: no corrected mask: {reasons}")
    known = bool(data.corrections) and os.path.abspath(folder) == os.path.abspath(Path(data.corrections).expanduser())
    return Imported(folder, tuple(stored), unchanged, found.without, found.of_held_out, tuple(found.problems), known)
