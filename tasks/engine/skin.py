"""How a run's pieces are waited for and shown: plainly here, by Prefect in ``flows/server/prefect_skin.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from tasks.engine.work_unit import UnitResult, WorkUnit

T = TypeVar("T")


class Skin(Protocol):
    """How a run's pieces are waited for and shown to the outside."""

    def cached(self, label: str, count: int) -> None:
        """A stage was cached whole."""

    def units(
        self, label: str, units: Sequence[WorkUnit], submit: Callable[[WorkUnit], Future[UnitResult]]
    ) -> list[UnitResult]:
        """Submit all units, wait for all."""

    def fit(self, label: str, work: Callable[[], T]) -> T:
        """Do one fit."""


class PlainSkin:
    """No server: submit, wait."""

    def cached(self, label: str, count: int) -> None:
        """Nothing to show."""

    def units(
        self, label: str, units: Sequence[WorkUnit], submit: Callable[[WorkUnit], Future[UnitResult]]
    ) -> list[UnitResult]:
        """Submit all, wait in order (in short steps, so that a signal is seen at once)."""
        futures = [submit(unit) for unit in units]
        return [wait_interruptibly(future) for future in futures]

    def fit(self, label: str, work: Callable[[], T]) -> T:
        """In this thread."""
        return work()


def wait_interruptibly(future: Future[T]) -> T:
    """``future.result()`` that lets the main thread run its signal handlers."""
    while True:
        try:
            return future.result(timeout=0.2)
        except TimeoutError:
            if future.done():
                return future.result()
