"""One unit of map work: up to a segment's worth of images, addresses in, addresses out.

A :class:`WorkUnit` is plain picklable data, so that a worker process (or a Dask worker on another
machine that sees the cache folder) can run it. It reads images and upstream arrays, calls the stage's function
image by image, and writes ONE segment. One image that cannot be done is a skip, never the unit's end.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifacts.cache.store import CorruptSegment, Entry, MaskStore, StoreError
from artifacts.images import read_image_rgb
from artifacts.records import DataError, ImageRGB, Record, Skip
from tasks.stage import Arrays, Item, MapStage, SkipImage, check_outputs, resolve

log = logging.getLogger("maskmill")


class WrongFrame(DataError):
    """Image and annotation have different sizes: positions of the one mean nothing in the other."""


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image of a unit."""

    key: str
    stamp: str
    record: Record
    """Only the declared label kinds."""
    up: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """role -> (address, stamp) of the upstream arrays."""
    stated_hw: tuple[int, int] | None = None
    """The image's size as its annotation states it, where the stage reads positions (boxes, scribbles)."""


@dataclass(frozen=True)
class UnitResult:
    """What a unit stored, and what it could not do."""

    entries: tuple[Entry, ...]
    skips: tuple[Skip, ...]
    seconds: float


@dataclass(frozen=True)
class WorkUnit:
    """Jobs of one stage, run in order and stored as one segment."""

    cache: str
    label: str
    address: str
    stage: MapStage
    classes: tuple[str, ...]
    jobs: tuple[ImageTask, ...]
    nets: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    """``cpu`` or ``cuda``: then whoever runs the unit holds the GPU's lock, and the worker sees no other."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the unit's images, in the order of work."""
        return tuple(job.key for job in self.jobs)

    def only(self, key: str) -> WorkUnit:
        """The same work for one image (the pool's quarantine)."""
        return replace(self, jobs=tuple(job for job in self.jobs if job.key == key))

    def prepare(self) -> None:
        """Import the stage's module, torch with it if need be: before any image's clock runs."""
        resolve(self.stage.function)

    def run(self, report: Callable[[str], None], poisoned: Mapping[str, str]) -> UnitResult:
        """Do the work. ``report(key)`` is called before each image; ``poisoned`` images are only recorded."""
        started = time.monotonic()
        store = _store(self.cache)
        done: list[tuple[str, str, Arrays | Skip]] = []
        skips: list[Skip] = []
        for job in self.jobs:
            report(job.key)
            if job.key in poisoned:
                skips.append(self._skip(job, poisoned[job.key], permanent=False))
                continue
            outcome = self._one(store, job)
            if isinstance(outcome, Skip):
                skips.append(outcome)
                if not outcome.permanent:
                    continue  # not stored, so that the next run tries it again
            done.append((job.key, job.stamp, outcome))
        report("")  # the images are done; what follows is not the last one's fault
        entries = store.write_segment(self.address, done, meta=self._meta()) if done else []
        return UnitResult(tuple(entries), tuple(skips), time.monotonic() - started)

    def _one(self, store: MaskStore, job: ImageTask) -> Arrays | Skip:
        """One image's arrays, or why there are none."""
        try:
            item = self._item(store, job)
            return check_outputs(self.stage, resolve(self.stage.function)(item, self.stage.params))
        except WrongFrame as error:
            return self._skip(job, str(error), permanent=False)
        except (SkipImage, DataError) as error:
            return self._skip(job, str(error), permanent=getattr(error, "permanent", True))
        except CorruptSegment as error:
            # The upstream segment is put aside, so that the next run makes its images anew.
            store.quarantine(error.segment)
            return self._skip(job, str(error), permanent=False)
        except StoreError:
            raise
        except (OSError, MemoryError) as error:
            return self._skip(job, f"{type(error).__name__}: {error}", permanent=False)
        except Exception as error:  # one image must not cost the other 9,999
            log.debug("%s failed on %s", self.label, job.key, exc_info=True)
            return self._skip(job, f"{type(error).__name__}: {error}", permanent=False)

    def _item(self, store: MaskStore, job: ImageTask) -> Item:
        up = {role: store.read(address, job.key, stamp) for role, (address, stamp) in job.up.items()}
        image_rgb: ImageRGB | None = None
        if "image" in self.stage.reads:
            image_rgb = read_image_rgb(Path(job.record.image))
            if job.stated_hw is not None and image_rgb.shape[:2] != job.stated_hw:
                raise WrongFrame(
                    f"{job.record.image}: the image is {image_rgb.shape[:2]} (height, width; turned as its EXIF data"
                    f" say), its annotation was made for {job.stated_hw}: boxes would lie elsewhere. Annotate it anew,"
                    " or give the image that was annotated"
                )
        return Item(job.key, job.record, self.classes, image_rgb, up, self.nets, self.prefixes, self.device)

    def _skip(self, job: ImageTask, reason: str, *, permanent: bool) -> Skip:
        return Skip(job.key, job.record.image, reason, permanent, self.label)

    def _meta(self) -> dict[str, str]:
        return {"stage": self.stage.name, "version": str(self.stage.version), "label": self.label}


SEGMENT_IMAGES = 64
"""Most images in one segment."""
SHARE = 4
"""A unit takes at most this part of a worker's share of the work that is left."""


def cut(pending: Sequence[ImageTask], workers: int) -> list[tuple[ImageTask, ...]]:
    """Jobs as units, such that ``workers`` processes end together: the costly ones first, units ever smaller.

    An image's cost is taken as one more than its number of boxes. Which image lies in which unit changes no result.
    """
    jobs = sorted(pending, key=_cost, reverse=True)
    left = sum(map(_cost, jobs))
    parts: list[tuple[ImageTask, ...]] = []
    start = 0
    while start < len(jobs):
        limit = left / (workers * SHARE)
        end, cost = start + 1, _cost(jobs[start])
        while end < len(jobs) and end - start < SEGMENT_IMAGES and cost + _cost(jobs[end]) <= limit:
            cost += _cost(jobs[end])
            end += 1
        parts.append(tuple(jobs[start:end]))
        left -= cost
        start = end
    return parts


def _cost(job: ImageTask) -> int:
    return 1 + len(job.record.boxes or ())


@functools.lru_cache(maxsize=4)
def _store(cache: str) -> MaskStore:
    """One store per process: its open handles are what makes reads cheap."""
    return MaskStore(Path(cache))
