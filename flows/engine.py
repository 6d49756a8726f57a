"""The Runner's Prefect skin: work units and fits become task runs, so that a server shows and cancels them.

What Prefect is kept from, and why:

- its cache (its policies do not see our inputs) and result storage (results are pickled, and a raised
  exception would be written to disk as a pickle): the task runs return ``None``, the flow returns plain data or
  ``Failed``;
- starting processes: task threads only wait for the Runner's pool. A signal reaches the main thread alone, so
  leaving the Runner sets STOP, the pool's futures fail, and the threads end.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from prefect import State, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from artifacts.datasets import DataParams
from artifacts.records import DataError
from flows.page import Page, run_page
from tasks.progress import Lines, Reporter
from tasks.run import RunParams, StageFailed, wait_interruptibly
from tasks.unit import UnitResult, WorkUnit

log = logging.getLogger("maskmill")
P = TypeVar("P")
T = TypeVar("T")

_work: dict[int, Callable[[], Any]] = {}
"""What a task run has to do, by number: Prefect is handed the number, never the work (it would copy it)."""
_numbers = itertools.count()
_lock = threading.Lock()


@task(name="stage", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def cached_stage(label: str, images: int) -> State[None]:
    """The one task run of a stage that had nothing to do."""
    return cast("State[None]", Completed(name="Cached", message=f"{images} cached"))


@task(name="unit", task_run_name="{label} {number}/{total}", cache_policy=NO_CACHE, persist_result=False)
def work_unit(label: str, number: int, total: int, ticket: int) -> State[None]:
    """One segment's worth of images: waits for the pool."""
    result: UnitResult = _work[ticket]()
    skipped = f", {len(result.skips)} skipped" if result.skips else ""
    return cast("State[None]", Completed(message=f"{len(result.entries)} stored{skipped}"))


@task(name="fit", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def fit_stage(label: str, ticket: int) -> None:
    """One fit: waits for its process."""
    _work[ticket]()


class PrefectSkin:
    """Shows a run's pieces to a Prefect server. Use inside a flow run only."""

    def cached(self, label: str, count: int) -> None:
        """One task run in the state ``Cached``, however many images the stage has."""
        cached_stage(label, count, return_state=True)

    def units(
        self, label: str, units: Sequence[WorkUnit], submit: Callable[[WorkUnit], Future[UnitResult]]
    ) -> list[UnitResult]:
        """A task run for each unit, in threads that wait for the pool."""
        results: dict[int, UnitResult] = {}

        def work(place: int, unit: WorkUnit) -> UnitResult:
            results[place] = wait_interruptibly(submit(unit))
            return results[place]

        futures: list[PrefectFuture[Any]] = []
        tickets = []
        for place, unit in enumerate(units):
            tickets.append(_ticket(lambda place=place, unit=unit: work(place, unit)))  # type: ignore[misc]
            futures.append(work_unit.submit(label, place + 1, len(units), tickets[-1]))
        try:
            for future in futures:
                future.result()
        finally:
            for ticket in tickets:
                _work.pop(ticket, None)
        return [results[place] for place in range(len(units))]

    def fit(self, label: str, work: Callable[[], T]) -> T:
        """One task run in a thread, while the main thread stays free for signals."""
        results: list[T] = []
        ticket = _ticket(lambda: results.append(work()))
        try:
            fit_stage.submit(label, ticket).result()
        finally:
            _work.pop(ticket, None)
        return results[0]


def _ticket(work: Callable[[], Any]) -> int:
    with _lock:
        number = next(_numbers)
    _work[number] = work
    return number


def run_flow(name: str, page: Page[P], data: DataParams, params: P, options: RunParams) -> dict[str, Any] | State[Any]:
    """A flow's body: run the page under this skin; the summary, or a ``Failed`` state that holds one line."""
    reporter: Reporter = Lines()
    try:
        result = run_page(name, page, data, params, options, skin=PrefectSkin(), reporter=reporter)
    except (DataError, StageFailed, OSError) as error:
        # Returned, not raised: a raised exception is pickled into Prefect's result storage.
        return Failed(message=f"{type(error).__name__}: {error}")
    summary = result.summary()
    create_markdown_artifact(_markdown(name, summary), key=f"maskmill-{name}", description=f"maskmill {name}: scores")
    return summary


def _markdown(name: str, summary: dict[str, Any]) -> str:
    """Scores, stages and skips for the server's artifact page."""
    lines = [f"## maskmill {name}: {summary['run']}", "", "| masks | mIoU | pixel accuracy |", "|---|---|---|"]
    lines += [
        f"| {what} | {_number(s.get('miou'))} | {_number(s.get('pixel_accuracy'))} |"
        for what, s in summary["scores"].items()
    ]
    lines += ["", "| stage | images | computed | seconds |", "|---|---|---|---|"]
    lines += [f"| {s['label']} | {s['total']} | {s['computed']} | {s['seconds']:.1f} |" for s in summary["stages"]]
    lines += ["", f"{len(summary['skips'])} skipped"]
    lines += [f"- `{skip['key']}`: {skip['reason']}" for skip in summary["skips"][:50]]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
