"""Processes with the whole stack imported, a quarter of a second each: forked from one that did nothing else.

The zygote has imported, and has started no thread and done no tensor operation, so that a fork of it is as good as a
fresh process. It serves JSON lines: ``start`` forks and runs ``module:function(argv)``, ``wait`` gives the exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Zygote:
    """Starts the zygote; ``start`` gives pids, leaders of their own process groups. Use as a context manager."""

    def __init__(self, imports: Sequence[str], paths: Sequence[Path] = ()) -> None:
        there = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = os.pathsep.join(filter(None, (*map(str, (ROOT, *paths)), *there)))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self._started: set[int] = set()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def start(self, target: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, output: Path) -> int:
        """Fork and call ``target`` ("module:function") with ``argv``; stdout and stderr go to ``output``.out/.err."""
        pid: int = self._ask({"start": target, "argv": list(argv), "env": dict(env or {}), "output": str(output)})
        self._started.add(pid)
        return pid

    def wait(self, pid: int, timeout_s: float = 60.0) -> int:
        """Exit code as of subprocess (negative: the signal). Raises ``TimeoutError``."""
        code = self._ask({"wait": pid, "timeout_s": timeout_s})
        if code is None:
            raise TimeoutError(f"process {pid} still runs after {timeout_s} s")
        return int(code)

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve(imports: Sequence[str]) -> None:
    """The zygote's own main."""
    for name in imports:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _start(request) if "start" in request else _wait(request["wait"], request["timeout_s"])
        print(json.dumps(answer), flush=True)


def _start(request: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        for descriptor, ending in ((1, ".out"), (2, ".err")):
            file = os.open(request["output"] + ending, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, descriptor)
            os.close(file)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= request["env"]
        module, _, function = request["start"].partition(":")
        code = getattr(importlib.import_module(module), function)(request["argv"]) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, timeout_s: float) -> int | None:
    deadline = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


if __name__ == "__main__":
    serve(sys.argv[1:])
