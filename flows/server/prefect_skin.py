"""The Runner's Prefect skin: work units and fits become task runs, so that a server shows and cancels them.

What Prefect is kept from, and why:

- its cache (its policies do not see our inputs) and result storage (results are pickled, and a raised
  exception would be written to disk as a pickle): task runs and the flow return states that hold one line;
- starting processes: task threads only wait for the Runner's pool. A signal reaches the main thread alone, so
  leaving the Runner sets STOP, the pool's futures fail, and the threads end.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

from prefect import Flow, State, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from artifacts.cache.locks import LockAborted
from artifacts.datasets import DataParams
from flows.run_flow import Page, run_page
from flows.server.environment import SERVED_BY
from flows.server.run_outcome import one_line, outcome, publish
from flows.server.run_parameters import with_deployments
from flows.server.run_progress import ServerProgress, all_lines
from tasks.engine.children import Stopped
from tasks.engine.options import RunParams
from tasks.engine.process_tree import die_with_parent
from tasks.engine.progress import Lines, Reporter, Silent
from tasks.engine.runner import StageFailed
from tasks.engine.skin import wait_interruptibly
from tasks.engine.work_unit import UnitResult, WorkUnit

log = logging.getLogger("maskmill")
P = TypeVar("P")
T = TypeVar("T")

_work: dict[int, Callable[[], str]] = {}
"""What a task run has to do, by number: Prefect gets the number, never the work (it would copy it)."""
_numbers = itertools.count()


def threads() -> TaskRunner[PrefectFuture[Any]]:
    """The task runner of every flow: threads that wait. More than the pool has workers, or workers would idle."""
    # The cast: mypy takes task runners as invariant in the type of their futures.
    return cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=2 * (os.cpu_count() or 1) + 8))


# -- task runs -------------------------------------------------------------------------------------------------------


@task(name="stage", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def cached_stage(label: str, count: int) -> State[None]:
    """The one task run of a stage that had nothing to do."""
    return cast("State[None]", Completed(name="Cached", message=f"{count} cached"))


@task(name="unit", task_run_name="{label} {number}/{total}", cache_policy=NO_CACHE, persist_result=False)
def work_unit(label: str, number: int, total: int, ticket: int) -> State[None]:
    """One segment's worth of images: waits for the pool."""
    return _do(ticket)


@task(name="fit", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def fit_stage(label: str, ticket: int) -> State[None]:
    """One fit: waits for its process."""
    return _do(ticket)


def _do(ticket: int) -> State[None]:
    """The work behind ``ticket``; what it raises becomes a state, never an exception (it would be stored)."""
    try:
        work = _work.get(ticket)
        if work is None:
            raise Stopped("the run was stopped before this began")
        return cast("State[None]", Completed(message=work()))
    except (Stopped, LockAborted) as error:
        return cast("State[None]", Cancelled(message=str(error)))
    except Exception as error:
        if ticket not in _work:
            # The run was stopped, and no thread waits for this task run any more.
            return cast("State[None]", Cancelled(message=f"the run was stopped; {one_line(error)}"))
        return cast("State[None]", Failed(message=one_line(error)))


class PrefectSkin:
    """Shows a run's pieces to a Prefect server. Use inside a flow run only."""

    def cached(self, label: str, count: int) -> None:
        """One task run in the state ``Cached``, however many images the stage has."""
        cached_stage(label, count, return_state=True)

    def units(
        self, label: str, units: Sequence[WorkUnit], submit: Callable[[WorkUnit], Future[UnitResult]]
    ) -> list[UnitResult]:
        """A task run for each unit, in threads that wait for the pool. Raises the first unit's error."""

        def waiting(unit: WorkUnit) -> Callable[[], UnitResult]:
            return lambda: wait_interruptibly(submit(unit))

        with _tickets([waiting(unit) for unit in units], _unit_message) as (tickets, answers):
            runs = [work_unit.submit(label, i + 1, len(units), ticket) for i, ticket in enumerate(tickets)]
            return _collect(runs, answers)

    def fit(self, label: str, work: Callable[[], T]) -> T:
        """One task run in a thread, while the main thread stays free for signals."""
        with _tickets([work], lambda _: "published") as (tickets, answers):
            return _collect([fit_stage.submit(label, tickets[0])], answers)[0]


@contextmanager
def _tickets(
    works: Sequence[Callable[[], T]], message: Callable[[T], str]
) -> Iterator[tuple[list[int], list[Future[T]]]]:
    """Numbers under which task runs find their work, and where its results will be."""
    answers: list[Future[T]] = [Future() for _ in works]

    def carried(work: Callable[[], T], answer: Future[T]) -> Callable[[], str]:
        def carry() -> str:
            try:
                result = work()
            except BaseException as error:
                answer.set_exception(error)
                raise
            answer.set_result(result)
            return message(result)

        return carry

    tickets = [next(_numbers) for _ in works]
    for ticket, work, answer in zip(tickets, works, answers, strict=True):
        _work[ticket] = carried(work, answer)
    try:
        yield tickets, answers
    finally:
        for ticket in tickets:
            _work.pop(ticket, None)


def _collect(runs: Sequence[PrefectFuture[Any]], answers: Sequence[Future[T]]) -> list[T]:
    """Wait for all, in order; the first error is raised at once, and leaving the Runner then stops the others."""
    results = []
    for run, answer in zip(runs, answers, strict=True):
        run.wait()
        if not answer.done():
            # Prefect itself did not let the task run (its server answers with an error, say).
            raise StageFailed(f"Prefect did not run a task run: {run.state.name}: {run.state.message}")
        results.append(answer.result())
    return results


def _unit_message(result: UnitResult) -> str:
    skipped = f", {len(result.skips)} skipped" if result.skips else ""
    return f"{len(result.entries)} stored{skipped}"


# -- the flow's body -------------------------------------------------------------------------------------------------


@dataclass
class Caller:
    """Who called the flow in this process: gives it a progress bar, gets the result or the error itself."""

    reporter: Reporter | None
    summary: dict[str, Any] | None = None
    error: Exception | None = None


_caller: ContextVar[Caller | None] = ContextVar("maskmill_caller", default=None)


def run_flow(name: str, page: Page[P], data: DataParams, params: P, options: RunParams) -> State[Any]:
    """A flow's body: run the page under this skin.

    Returns ``Completed`` with the summary, or ``Failed`` with one line; never raises, since Prefect would pickle
    the exception into its result storage.
    """
    if server := os.environ.get(SERVED_BY):
        die_with_parent(int(server))
    caller = _caller.get() or Caller(_lines())
    try:
        data, params, options = with_deployments(data, params, options)
        progress = ServerProgress((caller.reporter if options.progress else None) or Silent(), name)
        with all_lines(), closing(progress):
            result = run_page(name, page, data, params, options, skin=PrefectSkin(), reporter=progress)
        caller.summary = result.summary()
    except Exception as error:
        caller.error = error
        log.debug("failed", exc_info=True)
        return Failed(message=one_line(error))
    publish(name, caller.summary)
    return outcome(caller.summary)


def call_flow(flow: Flow[..., Any], reporter: Reporter | None, **parameters: Any) -> dict[str, Any]:
    """Run ``flow`` here as a flow run; its summary. Raises what the page raised, as without Prefect."""
    caller = Caller(reporter)
    token = _caller.set(caller)
    try:
        state = cast("State[Any]", flow(**parameters, return_state=True))
    finally:
        _caller.reset(token)
    if caller.error is not None:
        raise caller.error
    if caller.summary is None:
        raise StageFailed(f"the flow run ended as {state.name}: {state.message}")
    return caller.summary


def show_help(*kinds: type[Any]) -> None:
    """Put the help texts of params classes (and of those inside) into the schema that Prefect's form is made from.

    Call it before ``@flow``. The classes themselves do not import pydantic.
    """
    for kind in _params_classes(kinds):
        kind.__pydantic_config__ = {**kind.__pydantic_config__, "json_schema_extra": _add_help}


def _add_help(schema: dict[str, Any], kind: type[Any]) -> None:
    """Pydantic's hook: the fields' help as descriptions."""
    for item in fields(kind):
        if item.name in schema["properties"] and (text := item.metadata.get("help")):
            schema["properties"][item.name]["description"] = text


def _params_classes(kinds: Any) -> list[type[Any]]:
    """``kinds`` and the params classes inside them."""
    found: list[type[Any]] = []
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if is_dataclass(kind) and kind not in found:
            found.append(cast("type[Any]", kind))
            waiting += get_type_hints(kind).values()
    return found


def _lines() -> Reporter:
    """Progress as log lines: PREFECT_LOGGING_EXTRA_LOGGERS=maskmill takes them to the server's log."""
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    return Lines()
