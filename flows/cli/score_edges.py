"""``maskmill score --edges``: a folder of edge maps against boundaries that people drew."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table
from skimage.morphology import thin as skeleton

from artifacts.datasets.bsds import boundary_files, read_edge_map
from artifacts.records import DataError
from artifacts.report import write_scores_json
from flows.cli.cache_tables import print_json
from flows.cli.picture_jobs import reporting
from flows.cli.terminal import terminal
from tasks.edges.score import MapJob, count_files
from tasks.evaluate.boundary import QUICK, THRESHOLDS, BoundaryScores, Counts, boundary_scores, thresholds


def score_edges(
    maps: Path, truth: Path, split: str, *, quick: bool, thinned: bool, workers: int, json: Path | None, quiet: bool
) -> int:
    """Score ``maps/NAME.png`` against the boundaries of NAME in ``truth``. Returns the exit code: 3 with skips.

    Raises ``DataError`` where there is nothing to score.
    """
    if not maps.is_dir():
        raise DataError(f"--edges {maps}: no such folder; expected grey pictures named <image>.png")
    if workers < -1:
        raise DataError(f"--workers {workers}: give a number of processes, or -1 for one per core")
    drawn = boundary_files(truth, split)
    count = QUICK if quick else THRESHOLDS
    jobs = [MapJob(maps / f"{name}.png", path, count, thinned) for name, path in drawn.items()]
    missing = [job.map.name for job in jobs if not job.map.exists()]
    jobs = [job for job in jobs if job.map.exists()]
    if not jobs:
        raise DataError(f"--edges {maps}: none of its files is a map of {split}'s {len(drawn)} ({missing[0]}, say)")
    begun = time.monotonic()
    counts: list[Counts] = []
    skips: list[tuple[Path, str]] = []
    with reporting("score", len(jobs), quiet=quiet) as advance:
        for job, found in zip(jobs, count_files(jobs, workers), strict=True):
            if isinstance(found, str):
                skips.append((job.map, found))
            else:
                counts.append(found)
            advance()
    as_json = str(json) == "-"  # on stdout then, and what is said beside on stderr
    console = terminal(stderr=as_json)
    for path, why in skips:
        console.print(f"skipped {escape(str(path))}: {escape(why.removeprefix(f'{path}: '))}", soft_wrap=True)
    if not counts:
        raise DataError(f"--edges {maps}: none of its {len(jobs)} maps could be scored")
    if not thinned and (thin := sum(map(is_thin, (job.map for job in jobs[:3])))):
        console.print(
            f"[yellow]{thin} of the first {min(3, len(jobs))} maps are lines, thinned already as it seems, and were"
            " thinned again: --thinned scores them as they are[/]",
            soft_wrap=True,
        )
    scores = boundary_scores(np.stack(counts), thresholds(count))
    console.print(_table(scores, str(maps)))
    seconds = time.monotonic() - begun
    console.print(f"pictures: {scores.images}, thresholds: {count}, {seconds:.1f} s", soft_wrap=True)
    if missing:
        console.print(f"without a map, not scored: {len(missing)} (the first: {escape(missing[0])})")
    if as_json:
        print_json({"boundaries": scores.as_dict()})
    elif json is not None:
        write_scores_json(json, {"boundaries": scores.as_dict()})
    return 3 if skips or missing else 0


def is_thin(path: Path) -> bool:
    """Whether a map is nothing but lines: a network's has some value nearly everywhere."""
    try:
        drawn_hw = read_edge_map(path) > 0
    except (DataError, OSError):
        return False
    return bool(skeleton(drawn_hw).sum() > drawn_hw.sum() / 2)  # type: ignore[no-untyped-call]


def _table(scores: BoundaryScores, title: str) -> Table:
    table = Table("score", "", "meaning", title=escape(title))
    table.add_row(
        "ODS",
        f"{scores.ods:.3f}",
        f"F at one threshold for all, {scores.threshold:.2f}: precision {scores.precision:.3f}, recall"
        f" {scores.recall:.3f}",
    )
    table.add_row("OIS", f"{scores.ois:.3f}", "F where each picture has its own best threshold")
    table.add_row("AP", f"{scores.ap:.3f}", "mean precision over all recalls")
    return table
