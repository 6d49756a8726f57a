"""Child processes that end on request, and never outlive the run.

One :class:`Supervisor` per run starts every child from ONE thread of its own. The reason is the kernel's
parent-death signal (:mod:`tasks.engine.process_tree`): it fires when the starting *thread* ends, and threads of a task
runner come and go. Every child leads a session of its own, inherits no descriptor but those passed on purpose
(so no lock), and is ended with its whole process tree: its group, its session and its descendants.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO

from tasks.engine import process_tree
from tasks.engine.process_tree import family, group_of, signal_members, wait_until_gone

log = logging.getLogger("maskmill")

GRACE_S = 1.5
"""Seconds between SIGTERM and SIGKILL."""
TAIL_LINES = 40
"""Lines of stderr that are kept for an error message."""
_TAIL_LINE_CHARS = 2000
_POLL_S = 0.1
_DRAIN_S = 2.0
ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds the four packages."""
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
"""For glibc: freed arrays of any size stay with the process. It would else give their memory back to the system and get
it page by page again: a quarter of the time of a network at a picture's full size."""


class Stopped(Exception):
    """The run was stopped before this was done."""


# -- one child -------------------------------------------------------------------------------------------------------


class Child:
    """One started process, leader of its own session. Made by :class:`Supervisor` only."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        argv: Sequence[str],
        *,
        graceful: bool,
        on_line: Callable[[str], None] | None,
        on_exit: Callable[[], None] | None,
        log_file: Path | None,
    ) -> None:
        self.argv = tuple(argv)
        self.pid = popen.pid
        self.graceful = graceful
        """Ended by SIGTERM first, with all of its descendants; otherwise by SIGKILL to its group."""
        self.exited = threading.Event()
        """The process and its descendants are gone."""
        self.ended = threading.Event()
        """... and all that it wrote was delivered."""
        self.returncode: int | None = None
        """As of subprocess: negative is the signal that ended it."""
        self._popen = popen
        self._lock = threading.RLock()
        self._known: dict[int, int] = {}
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._error: BaseException | None = None
        self._on_exit = on_exit
        readers: list[threading.Thread] = []
        if on_line is not None and popen.stdout is not None:
            readers.append(self._thread(self._read_lines, popen.stdout, on_line))
        if popen.stderr is not None:
            readers.append(self._thread(self._read_errors, popen.stderr, log_file))
        self._thread(self._keep, readers)

    @property
    def error_tail(self) -> str:
        """The last lines of its stderr."""
        return "\n".join(self._tail)

    def wait(self, stop: threading.Event | None = None, timeout_s: float | None = None) -> int:
        """Its return code, once it has ended and its output is delivered.

        If ``stop`` is set meanwhile, the child is terminated first. Raises ``TimeoutError`` after ``timeout_s``,
        and what ``on_line`` raised (the child was terminated for it).
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.ended.wait(_POLL_S):
            if stop is not None and stop.is_set():
                self.terminate()
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.argv[0]} (pid {self.pid}) still runs after {timeout_s} s")
        if self._error is not None:
            raise self._error
        assert self.returncode is not None
        return self.returncode

    def terminate(self, grace_s: float = GRACE_S) -> None:
        """SIGTERM to the child and its descendants, SIGKILL after ``grace_s``. Returns when they are gone."""
        self.signal(signal.SIGTERM)
        if not self.exited.wait(grace_s):
            self.kill()
            self.exited.wait(_DRAIN_S)

    def kill(self) -> None:
        """SIGKILL to the child and its descendants, without waiting."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to the child and its descendants, unless it has ended."""
        with self._lock:  # not reaped inside: the number still is this child's
            if self.returncode is None:
                self._signal_family(number)

    def _signal_family(self, number: int) -> None:
        """The group; for programs that start sessions of their own (torchrun) all descendants, too."""
        if self.graceful:
            self._known |= family(self.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        signal_members({pid: at for pid, at in self._known.items() if group_of(pid) != self.pid}, number)

    def _thread(self, function: Callable[..., None], *arguments: object) -> threading.Thread:
        name = f"maskmill-child-{self.pid}"
        thread = threading.Thread(target=function, args=arguments, daemon=True, name=name)
        thread.start()
        return thread

    def _keep(self, readers: list[threading.Thread]) -> None:
        """Wait for the end, end processes that the child left behind, reap it, notify the waiters."""
        # WNOWAIT: until it is reaped its number cannot be given to another process (or group).
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._signal_family(signal.SIGKILL)
            self.returncode = self._popen.wait()
        wait_until_gone(self._known, _DRAIN_S)
        self.exited.set()
        if self._on_exit is not None:
            self._on_exit()
        for reader in readers:
            # A process that left the tree may hold the pipe open for ever.
            reader.join(_DRAIN_S)
        self.ended.set()

    def _read_lines(self, stream: IO[bytes], on_line: Callable[[str], None]) -> None:
        with stream:
            for raw in stream:
                if self._error is None:
                    try:
                        on_line(raw.decode(errors="replace").rstrip("\r\n"))
                    except BaseException as error:
                        self._error = error
                        # Keep reading, or the child would block on a full pipe while it is being ended.
                        self._thread(self.terminate)

    def _read_errors(self, stream: IO[bytes], log_file: Path | None) -> None:
        with stream, contextlib.ExitStack() as stack:
            copy = stack.enter_context(open(log_file, "ab", buffering=0)) if log_file else None
            while raw := stream.readline(1 << 16):
                if copy is not None:
                    with contextlib.suppress(OSError):  # a full disk must not stop the child
                        copy.write(raw)
                # A progress bar rewrites one line: only its last state is worth keeping.
                line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
                self._tail.append(line[-_TAIL_LINE_CHARS:])


# -- the one that starts them ----------------------------------------------------------------------------------------


class Supervisor:
    """Starts every child of a run from one daemon thread, and ends them all.

    ``stop`` is shared with the run: once it is set nothing is started (:class:`Stopped`), and every child is
    ended within about two seconds, whether or not somebody waits for it. Leaving the context does the same.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop if stop is not None else threading.Event()
        self._children: set[Child] = set()
        self._requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def start_lines(
        self,
        argv: Sequence[str],
        *,
        on_line: Callable[[str], None],
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        log_file: Path | None = None,
    ) -> Child:
        """Start ``argv``; each line of its stdout goes to ``on_line``, in order, from a thread of the child's own.

        ``env`` is added to this process's environment. The last lines of stderr are kept (``Child.error_tail``)
        and all of it is appended to ``log_file``. The command dies with this process
        (:mod:`tasks.engine.process_tree`), whatever it is. A command that cannot be started ends with 127.
        """
        wrapper = [sys.executable, "-I", "-S", str(process_tree.__file__), str(os.getpid())]
        return self._start(
            [*wrapper, *argv],
            env=env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            shown=argv,
            on_line=on_line,
            log_file=log_file,
        )

    def start_python(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        output: int | None = None,
        on_exit: Callable[[], None] | None = None,
    ) -> Child:
        """Start ``python -m module`` of this project, which calls ``die_with_parent`` itself; SIGKILL ends it.

        ``output`` is the descriptor for its stdout and stderr; ``on_exit`` is called when it is gone, from a
        thread of its own. The folder of this process's start is not on its path (``-P``).
        """
        argv = [sys.executable, "-P", "-m", module, *arguments]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return self._start(
            argv,
            env={"PYTHONPATH": path, **(env or {})},
            cwd=None,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            graceful=False,
            on_exit=on_exit,
        )

    def stop_all(self) -> None:
        """End every child within about two seconds. Nothing can be started afterwards."""
        with self._lock:
            self._closed = True
            children = list(self._children)
            thread = self._thread
        end_all(children)
        if thread is not None:
            self._requests.put(None)
            thread.join(_DRAIN_S)

    def _start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: Path | str | None,
        stdout: int | None,
        stderr: int | None,
        shown: Sequence[str] | None = None,
        pass_fds: Sequence[int] = (),
        graceful: bool = True,
        on_line: Callable[[str], None] | None = None,
        on_exit: Callable[[], None] | None = None,
        log_file: Path | None = None,
    ) -> Child:
        answer: Future[Child] = Future()

        def work() -> None:
            try:
                with self._lock:
                    if self._closed or self.stop.is_set():
                        raise Stopped("the run is stopping; no process is started any more")
                    popen = subprocess.Popen(
                        argv,
                        env={**os.environ, **(env or {})},
                        cwd=cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=stdout,
                        stderr=stderr,
                        pass_fds=tuple(pass_fds),
                        start_new_session=True,
                    )
                    child = Child(
                        popen, shown or argv, graceful=graceful, on_line=on_line, on_exit=on_exit, log_file=log_file
                    )
                    self._children.add(child)
                answer.set_result(child)
            except BaseException as error:
                answer.set_exception(error)

        with self._lock:
            if self._closed:
                raise Stopped("the run has ended; no process is started any more")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="maskmill-supervisor")
                self._thread.start()
            self._requests.put(work)
        return answer.result()

    def _run(self) -> None:
        """The supervisor's thread: start what is requested, end everything when ``stop`` is set."""
        while True:
            try:
                # With no child there is nothing to end: sleep until the next request.
                request = self._requests.get(timeout=_POLL_S if self._children else None)
            except queue.Empty:
                with self._lock:
                    self._children = {child for child in self._children if not child.ended.is_set()}
                    children = list(self._children)
                if self.stop.is_set():
                    end_all(children)
                continue
            if request is None:
                return
            request()


def end_all(children: Sequence[Child], grace_s: float = GRACE_S) -> None:
    """SIGTERM (SIGKILL for those that have nothing to save), SIGKILL after ``grace_s``, all at the same time."""
    alive = [child for child in children if not child.exited.is_set()]
    for child in alive:
        child.signal(signal.SIGTERM if child.graceful else signal.SIGKILL)
    deadline = time.monotonic() + grace_s
    for child in alive:
        if not child.exited.wait(max(0.0, deadline - time.monotonic())):
            child.kill()
    for child in alive:
        child.exited.wait(_DRAIN_S)
