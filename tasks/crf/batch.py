"""Dense CRFs of many images by threads: the lattice releases the GIL, so that every core works."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from artifacts.records import ImageRGB
from tasks.crf.dense_crf import dense_crf
from tasks.crf.params import CRFParams

S = TypeVar("S")
T = TypeVar("T")

AHEAD = 2
"""Items in flight for each thread: enough that none waits, few enough that memory does not grow with the batch."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """One item of a batch: its result, or the error that it ended with."""

    index: int
    value: T | None
    error: Exception | None = None

    def get(self) -> T:
        """The result; raises the item's own error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None only beside an error


def dense_crf_batch(
    images_rgb: Iterable[ImageRGB],
    unaries_khw: Iterable[NDArray[Any]],
    params: CRFParams = CRFParams(),
    *,
    threads: int = -1,
    output: Literal["marginals", "labels"] = "marginals",
) -> Iterator[Outcome[NDArray[Any]]]:
    """:func:`tasks.crf.dense_crf.dense_crf` of image after image, in the order given.

    Results do not depend on ``threads``.

    Args:
        images_rgb: (H, W, 3) uint8 each, of any sizes; may be a generator, which is drawn on as results are taken.
        unaries_khw: (K, H, W) floating each.
        params: of every CRF.
        threads: images at once; -1: one per core that this process may use.
        output: ``marginals`` (K, H, W) float32, or ``labels`` (H, W): the most probable one's number, uint8 up to 256
            labels, else int32.

    Yields an :class:`Outcome` per image: an image that cannot be done is an entry with its error, never a lost batch.
    Raises ``ValueError`` at the end if there are more images than unaries or the reverse, and what the two iterables
    themselves raise.
    """

    def one(pair: tuple[ImageRGB, NDArray[Any]]) -> NDArray[Any]:
        q_khw = dense_crf(pair[0], pair[1], params)
        return q_khw if output == "marginals" else best_label(q_khw)

    return in_threads(one, zip(images_rgb, unaries_khw, strict=True), threads)


def best_label(q_khw: NDArray[np.float32]) -> NDArray[Any]:
    """Number of each pixel's most probable label (the lowest of equal ones), ``(H, W)`` uint8 up to 256 labels."""
    best: NDArray[Any] = q_khw.argmax(axis=0).astype(np.uint8 if len(q_khw) <= 256 else np.int32)
    return best


def in_threads(work: Callable[[S], T], items: Iterable[S], threads: int = -1) -> Iterator[Outcome[T]]:
    """``work`` of every item in ``threads`` threads (-1: one per core), outcomes in the items' order.

    At most :data:`AHEAD` items per thread are in flight. An exception of ``work`` is its item's outcome.
    """
    if threads == 0 or threads < -1:
        raise ValueError(f"threads must be at least 1, or -1 for one per core, not {threads}")
    count = len(os.sched_getaffinity(0)) if threads == -1 else threads
    return _in_threads(work, items, count)


def _in_threads(work: Callable[[S], T], items: Iterable[S], count: int) -> Iterator[Outcome[T]]:
    flying: deque[tuple[int, Future[T]]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="crf")
    failure: Exception | None = None
    source = enumerate(items)
    try:
        while True:
            try:
                index, item = next(source)
            except StopIteration:
                break
            except Exception as error:  # raised by the iterable itself: outcomes in flight come first
                failure = error
                break
            flying.append((index, pool.submit(work, item)))
            if len(flying) >= AHEAD * count:
                yield _outcome(*flying.popleft())
        while flying:
            yield _outcome(*flying.popleft())
        if failure is not None:
            raise failure
    finally:
        # Also where the caller stops early: what has not begun is dropped.
        pool.shutdown(wait=True, cancel_futures=True)


def _outcome(index: int, future: Future[T]) -> Outcome[T]:
    error = future.exception()
    if error is None:
        return Outcome(index, future.result())
    if not isinstance(error, Exception):
        raise error
    return Outcome(index, None, error)
