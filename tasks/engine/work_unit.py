"""One unit of map work: up to a segment's worth of images, addresses in, addresses out.

A :class:`WorkUnit` is plain picklable data, so that a worker process (or a Dask worker on another
machine that sees the cache folder) can run it. It reads images and upstream arrays, calls the stage's function
image by image, and writes ONE segment. One image that cannot be done is a skip, never the unit's end.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from artifacts.cache.store import CorruptSegment, Entry, MaskStore, StoreError
from artifacts.records import DataError, Skip
from tasks.engine.image_task import ImageTask, load_item
from tasks.engine.memory import out_of_memory
from tasks.stage import Arrays, Item, MapStage, SkipImage, call, resolve

if TYPE_CHECKING:
    from tasks.engine.pool_state import Report

log = logging.getLogger("maskmill")
T = TypeVar("T")


@dataclass(frozen=True)
class UnitResult:
    """What a unit stored, and what it skipped."""

    entries: tuple[Entry, ...]
    skips: tuple[Skip, ...]
    seconds: float


@dataclass(frozen=True)
class WorkUnit:
    """Image tasks of one stage, run in order and stored as one segment."""

    cache: str
    label: str
    address: str
    stage: MapStage
    classes: tuple[str, ...]
    tasks: tuple[ImageTask, ...]
    nets: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    """``cpu`` or ``cuda``: then the runner of the unit holds the GPU's lock, and the worker sees no other GPU."""
    singly: bool = False
    """One image at a time, whatever the stage can do."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the unit's images, in the order of work."""
        return tuple(task.key for task in self.tasks)

    def only(self, key: str) -> WorkUnit:
        """The same work for one image (the pool's quarantine)."""
        return replace(self, tasks=tuple(task for task in self.tasks if task.key == key))

    def prepare(self) -> None:
        """Import the stage's module, torch with it if need be: before any image's clock runs."""
        resolve(self.stage.function)

    def one_by_one(self) -> WorkUnit:
        """The same work without batches (after a worker's death in one)."""
        return replace(self, singly=True)

    @property
    def together(self) -> int:
        """Images of one call: several on a GPU alone, as cores would gain nothing and lose their exact results."""
        batches = self.device == "cuda" and not self.singly
        return max(1, self.stage.images_at_once) if batches else 1

    def run(self, report: Report, poisoned: Mapping[str, str]) -> UnitResult:
        """Do the work. ``report(key)`` is called before each image; ``poisoned`` images are only recorded."""
        started = time.monotonic()
        store = store_of(self.cache)
        done: list[tuple[str, str, Arrays | Skip]] = []
        skips: list[Skip] = []
        for task, outcome in self._outcomes(store, report, poisoned):
            if isinstance(outcome, Skip):
                skips.append(outcome)
                if not outcome.permanent:
                    continue  # not stored, so that the next run tries it again
            done.append((task.key, task.stamp, outcome))
        report("")  # the images are done; a later fault is not the last one's
        entries = store.write_segment(self.address, done, meta=self._meta()) if done else []
        return UnitResult(tuple(entries), tuple(skips), time.monotonic() - started)

    def _outcomes(
        self, store: MaskStore, report: Report, poisoned: Mapping[str, str]
    ) -> Iterator[tuple[ImageTask, Arrays | Skip]]:
        """Each image's arrays, or why there are none, in order."""
        if self.device == "cuda" and not self.singly and not poisoned:
            yield from self._read_ahead(store, report)
            return
        for task in self.tasks:
            report(task.key)
            if task.key in poisoned:
                yield task, self._skip(task, poisoned[task.key], permanent=False)
            else:
                yield task, self._guarded(store, task, partial(self._one, store, task))

    def _read_ahead(self, store: MaskStore, report: Report) -> Iterator[tuple[ImageTask, Arrays | Skip]]:
        """As :meth:`_outcomes`, perhaps several images in one call; a thread reads the next ones meanwhile."""

        def read(batch: Sequence[ImageTask]) -> list[Item | Skip]:
            return [self._guarded(store, task, partial(self._item, store, task)) for task in batch]

        size = self.together
        batches = [self.tasks[start : start + size] for start in range(0, len(self.tasks), size)]
        with ThreadPoolExecutor(1, "maskmill-reader") as reader:
            coming = reader.submit(read, batches[0])
            for number, batch in enumerate(batches):
                report(batch[0].key, len(batch))
                items = coming.result()
                if number + 1 < len(batches):
                    coming = reader.submit(read, batches[number + 1])
                yield from zip(batch, self._batch(store, batch, items, report), strict=True)

    def _batch(
        self, store: MaskStore, batch: Sequence[ImageTask], items: Sequence[Item | Skip], report: Report
    ) -> list[Arrays | Skip]:
        """One call for all items; one by one where it fails, so that a bad image costs no other."""
        if min(self.together, len(batch)) == 1:
            pairs = zip(batch, items, strict=True)
            return [i if isinstance(i, Skip) else self._guarded(store, t, partial(self._call, i)) for t, i in pairs]
        good = [item for item in items if isinstance(item, Item)]
        try:
            arrays = iter(call(self.stage, good) if good else [])
            return [item if isinstance(item, Skip) else next(arrays) for item in items]
        except StoreError:
            raise
        except Exception as error:
            failure = raised(error)
        outcomes: list[Arrays | Skip] = []
        for task, item in zip(batch, items, strict=True):
            report(task.key)
            if isinstance(item, Skip):
                outcomes.append(item)
            else:
                outcomes.append(self._guarded(store, task, partial(self._call, item)))
        if not any(isinstance(outcome, Skip) for outcome in outcomes):
            log.warning("%s: %d images at once failed (%s), one by one they did not", self.label, len(good), failure)
        return outcomes

    def _item(self, store: MaskStore, task: ImageTask) -> Item:
        surroundings = {"nets": self.nets, "prefixes": self.prefixes, "device": self.device}
        return load_item(store, task, self.stage.reads, self.classes, **surroundings)

    def _one(self, store: MaskStore, task: ImageTask) -> Arrays:
        return self._call(self._item(store, task))

    def _call(self, item: Item) -> Arrays:
        return call(self.stage, [item])[0]

    def _guarded(self, store: MaskStore, task: ImageTask, work: Callable[[], T]) -> T | Skip:
        """What ``work`` gives for an image, or why it gives nothing."""
        try:
            return work()
        except (SkipImage, DataError) as error:
            return self._skip(task, str(error), permanent=getattr(error, "permanent", True))
        except CorruptSegment as error:
            # The upstream segment is put aside, so that the next run computes its images again.
            store.quarantine(error.segment)
            return self._skip(task, str(error), permanent=False)
        except StoreError:
            raise
        except Exception as error:  # one image must not cost the other 9,999
            if memory := out_of_memory(error):
                return self._skip(task, memory, permanent=False)
            if isinstance(error, OSError):
                return self._skip(task, f"{type(error).__name__}: {error}", permanent=False)
            log.debug("%s failed on %s", self.label, task.key, exc_info=True)
            return self._skip(task, raised(error), permanent=False)

    def _skip(self, task: ImageTask, reason: str, *, permanent: bool) -> Skip:
        return Skip(task.key, task.record.image, reason, permanent, self.label)

    def _meta(self) -> dict[str, str]:
        return {"stage": self.stage.name, "version": str(self.stage.version), "label": self.label}


def raised(error: BaseException) -> str:
    """An error that nobody foresaw: what, and where in the code. The whole traceback is in the debug log."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({frame.filename}:{frame.lineno} in {frame.name}: {frame.line})" for frame in last)
    return f"{type(error).__name__}: {error}{where}; MASKMILL_LOG=debug shows the whole traceback"


SEGMENT_IMAGES = 64
"""Most images in one segment."""
SHARE = 4
"""A unit takes at most this part of a worker's share of the work that is left."""


def cut(pending: Sequence[ImageTask], workers: int) -> list[tuple[ImageTask, ...]]:
    """Image tasks as units, such that ``workers`` processes end together: the costly ones first, units ever smaller.

    An image's cost is taken as one more than its number of boxes. Which image lies in which unit changes no result.
    """
    tasks = sorted(pending, key=_cost, reverse=True)
    left = sum(map(_cost, tasks))
    parts: list[tuple[ImageTask, ...]] = []
    start = 0
    while start < len(tasks):
        limit = left / (workers * SHARE)
        end, cost = start + 1, _cost(tasks[start])
        while end < len(tasks) and end - start < SEGMENT_IMAGES and cost + _cost(tasks[end]) <= limit:
            cost += _cost(tasks[end])
            end += 1
        parts.append(tuple(tasks[start:end]))
        left -= cost
        start = end
    return parts


def _cost(task: ImageTask) -> int:
    return 1 + len(task.record.boxes or ())


@lru_cache(maxsize=4)
def store_of(cache: str) -> MaskStore:
    """One store per process: its open handles are what makes reads cheap."""
    return MaskStore(Path(cache))
