"""Edge maps in files against drawn boundaries, by many processes. No torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2

from artifacts.datasets.bsds import read_boundaries, read_edge_map
from artifacts.records import DataError
from tasks.edges.thin import smooth, thin
from tasks.engine.process_tree import die_with_parent
from tasks.evaluate.boundary import Counts, boundary_counts, thresholds


@dataclass(frozen=True)
class MapJob:
    """One map to score."""

    map: Path
    truth: Path
    thresholds: int
    thinned: bool
    """The map has been thinned to its crests already: it is taken as it is."""


def count_file(job: MapJob) -> Counts | str:
    """What the score of one picture is made of; or why it cannot be scored."""
    try:
        edges_hw = read_edge_map(job.map)
        crests_hw = edges_hw if job.thinned else thin(smooth(edges_hw))
        return boundary_counts(crests_hw, read_boundaries(job.truth), thresholds(job.thresholds))
    except (DataError, OSError) as error:
        return str(error)


def count_files(jobs: Sequence[MapJob], workers: int) -> Iterator[Counts | str]:
    """:func:`count_file` of each, in order, by ``workers`` processes (-1: one per core)."""
    count = min(len(jobs), len(os.sched_getaffinity(0)) if workers == -1 else workers)
    if count <= 1:
        yield from map(count_file, jobs)
        return
    # Not forked: the parent may have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        yield from pool.map(count_file, jobs)


def _begin(parent: int) -> None:
    """A worker's first act. Ctrl-C is the parent's to hear."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
