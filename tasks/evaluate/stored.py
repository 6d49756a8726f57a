"""Reading back what a run's stages have stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from artifacts.cache.store import CorruptSegment
from artifacts.records import Record
from tasks.engine.runner import Runner
from tasks.stage import MapHandle


def read_stored(
    run: Runner, handle: MapHandle, record: Record, names: tuple[str, ...] | None
) -> dict[str, NDArray[Any]] | None:
    """Arrays of one image, ``None`` if it has none. A damaged segment ends the run; the next one computes it again."""
    key = handle.records.key(record)
    produced = handle.produced.get(key)
    if produced is None or produced.output is None:
        return None
    address, stamp = handle.place(produced)
    with mending(run):
        return run.store.read(address, key, stamp, names)


@contextlib.contextmanager
def mending(run: Runner) -> Iterator[None]:
    """Put a segment that turns out to be damaged aside before the error is raised."""
    try:
        yield
    except CorruptSegment as error:
        run.store.quarantine(error.segment)
        raise
