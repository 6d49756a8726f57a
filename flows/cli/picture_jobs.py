"""Work on picture after picture, without a cache: one that fails is a skip, a signal leaves whole files."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from rich.markup import escape

from flows.cli.stopping import Writes, stopping
from flows.cli.terminal import terminal
from tasks.engine.memory import out_of_memory
from tasks.engine.progress import Bars, Lines, Reporter, Silent


class PictureJob(Protocol):
    """What every job has."""

    @property
    def image(self) -> Path: ...  # noqa: D102
    @property
    def out(self) -> Path: ...  # noqa: D102


J = TypeVar("J", bound=PictureJob)


def write_named(path: Path, write: Callable[[Path], None]) -> None:
    """Raises ``OSError`` that names ``path``: the system's own names the temporary file, or none (a full disk)."""
    try:
        write(path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def run_jobs(
    name: str,
    what: str,
    jobs: Sequence[J],
    skips: Iterable[tuple[Path, str]],
    work: Callable[[J, Writes], None],
    threads: int,
    out: Path,
    *,
    quiet: bool,
) -> int:
    """All pictures; one that fails is a skip. Returns the exit code: 0, 3 with skips, 1 if nothing was done.

    Args:
        name: the command's, for its progress bar.
        what: what is written, plural: masks, say.
        jobs: a picture each.
        skips: pictures that are no job, and why.
        work: of one picture, in a thread; its errors name the file.
        threads: pictures at once; -1: one per core.
        out: where the results lie, for messages.
        quiet: no progress bar.
    """
    from tasks.crf.batch import in_threads

    left = list(skips)
    reporter = _reporter(name, len(jobs), quiet=quiet)
    try:
        with _stoppable(what, out, len(jobs), reporter) as writes:
            for outcome in in_threads(lambda job: work(job, writes), jobs, threads):
                if (error := outcome.error) is not None:
                    if not (isinstance(error, ValueError | OSError) or out_of_memory(error)):
                        raise error
                    path = jobs[outcome.index].image
                    left.append((path, reason(error, path)))
                reporter.advance(name, outcome.index + 1)
        reporter.done(name)
    finally:
        reporter.close()
    console = terminal()
    console.print(f"{what}: {writes.done}, skipped: {len(left)}")
    for path, why in left:
        console.print(f"skipped {escape(str(path))}: {escape(why)}", soft_wrap=True)
    return (3 if left else 0) if writes.done else 1


@contextmanager
def reporting(name: str, total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A progress bar of ``total`` pictures; what is yielded says that one more is done."""
    reporter = _reporter(name, total, quiet=quiet)
    done = itertools.count(1)
    try:
        yield lambda: reporter.advance(name, next(done))
        reporter.done(name)
    finally:
        reporter.close()


def _reporter(name: str, total: int, *, quiet: bool) -> Reporter:
    reporter: Reporter = Silent() if quiet else Bars() if sys.stderr.isatty() else Lines()
    reporter.stage(name, 0, 0, "pictures")  # nothing is cached here
    reporter.total(name, total)
    return reporter


def run_one(what: str, job: J, work: Callable[[J, Writes], None]) -> None:
    """One picture, in a thread as well: the main one hears signals while it computes."""
    from tasks.crf.batch import in_threads

    with _stoppable(what, job.out, 1, Silent()) as writes:
        for outcome in in_threads(lambda job: work(job, writes), [job], 1):
            outcome.get()


@contextmanager
def _stoppable(what: str, out: Path, total: int, reporter: Reporter) -> Iterator[Writes]:
    """Within, a signal ends the command with a message on what was written."""
    writes = Writes()

    def on_stop(name: str) -> None:
        reporter.close()
        message = f"{out} holds {writes.done} of {total} complete {what}; the same command computes all of them again"
        if not writes.done:
            message = "nothing was written; the same command starts from the beginning"
        elif total == 1:
            message = f"{out} was written"
        terminal(stderr=True, highlight=False, soft_wrap=True).print(
            f"[bold red]maskmill:[/] stopped ({name}); {escape(message)}"
        )

    with stopping(writes, on_stop):
        yield writes


def reason(error: Exception, path: Path) -> str:
    """The error, for a line that begins with ``path``: the path is not repeated."""
    if memory := out_of_memory(error):
        return memory
    if isinstance(error, OSError) and error.strerror:
        other = error.filename is not None and str(error.filename) != str(path)
        return f"{error.filename}: {error.strerror}" if other else error.strerror
    return str(error).removeprefix(f"{path}: ") or type(error).__name__
