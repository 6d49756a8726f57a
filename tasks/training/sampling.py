"""Which samples a step gets, and which process makes them: the same for 0, 1 or 8 loader workers, 1 or 8 ranks.

Position ``p`` of the endless stream of samples is member ``order(epoch)[p mod n]`` of epoch ``p div n``; step ``s``
takes positions ``s * batch`` up to ``(s + 1) * batch``, of which rank ``r`` of ``w`` makes the ``r``-th of ``w`` parts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from artifacts.cache.store import CorruptSegment, MaskStore
from artifacts.records import DataError, Record, Skip
from tasks.engine.process_tree import die_with_parent
from tasks.stage import SkipImage
from tasks.training import rng
from tasks.training.context import FitContext

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Sample = Callable[[int, int, np.random.Generator], Mapping[str, Any]]
Collate = Callable[[list[Any]], dict[str, Any]]


class SampleData(Protocol):
    """What a fit draws its samples from; a member is an image, a box, an image with one of its classes."""

    def __len__(self) -> int:
        """Members; an epoch is each of them once."""

    def key(self, index: int) -> str:
        """``<dataset>/<image id>`` of the member's image: its skips name it."""

    def record(self, index: int) -> Record:
        """The record of the member's image. Its id seeds the member's draws: several members of one image have equal
        generators, and add what tells them apart (a box's id, a class)."""


PREFETCH = 4
"""Batches that each loader worker is ahead."""
TRIES = 3
RETRY_S = 0.5
"""An image that could not be read is read again after this long: a network drive may have failed briefly."""


@dataclass(frozen=True)
class _Made:
    """One position's sample, or why there is none at all; and the images that were left out on the way."""

    sample: Mapping[str, Any] | None
    skips: tuple[Skip, ...] = ()
    error: str = ""


class _Samples(Dataset[_Made]):
    """Position -> sample. A broken image is left out and the next one in the epoch's order takes its place."""

    def __init__(self, data: SampleData, sample: Sample, seed: int, label: str, cache: str) -> None:
        self._data = data
        self._sample = sample
        self._seed = seed
        self._label = label
        self._cache = cache
        self._broken: dict[int, str] = {}
        """Index -> reason: an undecodable image stays undecodable."""

    def __getitem__(self, position: int) -> _Made:
        count = len(self._data)
        epoch, within = divmod(position, count)
        order = rng.permutation(self._seed, epoch, count)
        skips: list[Skip] = []
        for attempt in range(count):
            index = int(order[(within + attempt) % count])
            if index in self._broken:
                continue
            try:
                return _Made(self._draw(index, epoch, attempt), tuple(skips))
            except CorruptSegment as error:
                # No skip: the cache can make these arrays again, and a fit without them would not be this fit.
                MaskStore(self._cache).quarantine(error.segment)
                return _Made(None, error=f"{error}; it was put aside, run again and its images are computed again")
            except OSError as error:
                # No skip either: what is published under this fit's stamp would stand for the whole set for ever.
                return _Made(None, error=self._unread(index, error))
            except (DataError, SkipImage) as error:
                if isinstance(error, DataError):
                    self._broken[index] = str(error)
                skips.append(self._skip(index, str(error), permanent=getattr(error, "permanent", True)))
        return _Made(None, tuple(skips), self._nothing(skips))

    def _draw(self, index: int, epoch: int, attempt: int) -> Mapping[str, Any]:
        """One sample; an image that cannot be read is tried again, with the same draws. Raises what is left."""
        # A replacement is drawn unlike the same image's own sample in this epoch.
        names = (self._seed, "sample", epoch, self._data.record(index).image_id, attempt)
        for left in reversed(range(TRIES)):
            try:
                with rng.sample_generators(*names) as generator:
                    return self._sample(index, epoch, generator)
            except OSError:
                if not left:
                    raise
                time.sleep(RETRY_S)
        raise AssertionError

    def _unread(self, index: int, error: OSError) -> str:
        return (
            f"{self._label}: {self._data.key(index)} cannot be read ({error.strerror or error}:"
            f" {error.filename or self._data.record(index).image}; tried {TRIES} times). Nothing was published:"
            " run again when it can be read, and the fit resumes from its checkpoint"
        )

    def _skip(self, index: int, reason: str, *, permanent: bool) -> Skip:
        return Skip(self._data.key(index), self._data.record(index).image, reason, permanent, self._label)

    def _nothing(self, skips: Sequence[Skip]) -> str:
        reason = next(iter(self._broken.values()), skips[0].reason if skips else "unknown")
        return f"{self._label}: no training images: all {len(self._data)} are broken; the first: {reason}"


def first_samples(sample: Sample, count: int, wanted: int) -> list[Mapping[str, Any]]:
    """Up to ``wanted`` samples of members spread over all ``count``, always the same, to measure before a fit.

    Broken images are left out; the fit says so when it comes to them. No generator is changed.
    """
    found = []
    with rng.preserved():
        for index in np.unique(np.linspace(0, count - 1, wanted).round().astype(int)).tolist():
            with contextlib.suppress(DataError, SkipImage):
                found.append(sample(index, 0, np.random.default_rng(index)))
    return found


def batches(
    context: FitContext,
    fabric: Fabric,
    data: SampleData,
    sample: Sample,
    start: int,
    iterations: int,
    batch_size: int,
    collate: Collate | None,
) -> Generator[dict[str, Any], None, None]:
    """This rank's part of the batches of steps ``start .. iterations``, on the device.

    Raises :class:`DataError` if there is no usable image. Closing the iterator ends the loader workers.
    """
    if not len(data):
        raise DataError(
            f"{context.label}: no training images: the split is empty, or every image was skipped upstream; "
            "check data.train and the list of skipped images"
        )
    share = batch_size // fabric.world_size
    first = fabric.global_rank * share
    positions = [
        range(step * batch_size + first, step * batch_size + first + share) for step in range(start, iterations)
    ]
    dataset = _Samples(data, sample, context.seed, context.label, context.train.cache)
    workers = context.loader_workers
    loader = DataLoader(
        dataset,
        batch_sampler=positions,  # type: ignore[arg-type]  # a range is a list to it
        num_workers=workers,
        collate_fn=_Collator(collate or default_collate),
        pin_memory=fabric.device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_WorkerStart(os.getpid()) if workers else None,
        generator=torch.Generator(),  # otherwise it draws from the global one
    )
    iterator = iter(loader)
    try:
        for made in iterator:
            for skip in made.skips:
                context.skip(skip)
            if made.error:
                raise DataError(made.error)
            yield {name: _moved(value, fabric.device) for name, value in made.batch.items()}
    finally:
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


@dataclass
class _Batch:
    batch: dict[str, Any]
    skips: list[Skip]
    error: str = ""

    def pin_memory(self) -> _Batch:
        """Called by the loader where the batch goes to a GPU."""
        pinned = {name: v.pin_memory() if isinstance(v, torch.Tensor) else v for name, v in self.batch.items()}
        return _Batch(pinned, self.skips, self.error)


class _Collator:
    """Samples -> batch, with the skips beside it (errors travel as text: the loader would bury them)."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, made: list[_Made]) -> _Batch:
        skips = [skip for one in made for skip in one.skips]
        if error := next((one.error for one in made if one.error), ""):
            return _Batch({}, skips, error)
        return _Batch(self._collate([one.sample for one in made]), skips)


class _WorkerStart:
    """First acts of a loader worker: die with the fit, and no threads of OpenCV (its pool does not survive a fork)."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def __call__(self, worker: int) -> None:
        die_with_parent(self._parent)
        # The loader ends its workers by SIGTERM; a handler inherited from the run's process would make that an error.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(0)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
