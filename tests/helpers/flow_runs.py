"""Flows on the tiny demo data, in this process or forked from a zygote, and what they left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests/helpers")) if path not in sys.path]

from zygote import Zygote  # noqa: E402

from benchmarks.soak_kill import MARK, survivors  # noqa: E402
from flows.registry import FLOWS  # noqa: E402

ONE_THREAD = ("--set", "options.threads=1")
"""Of two, one waits for the other in networks this small: steps took five times as long, on two cores (measured)."""
HERE = ("--workers", "0", "--set", "options.launch=inline")
"""Map stages and fits in the process itself: the cheapest way, with the same result."""


def tiny_of(flow: str) -> tuple[str, ...]:
    """The flow on its tiny configuration; it ends with an export."""
    return (flow, "--config", FLOWS[flow].tiny, "--export", "voc", "--quiet", *ONE_THREAD)


def figure_of(flow: str) -> tuple[str, ...]:
    """Makes the tiny configuration the paper's whole figure."""
    return tuple(part for given in FLOWS[flow].figure for part in ("--set", given))


FIGURE = figure_of("cfs")


def stack() -> list[str]:
    """Modules that a flow may need: what a zygote imports."""
    names = ["cv2", "lightning_fabric", "matplotlib.figure", "flows.cli.main", "flows.cli.flow_command"]
    names += [entry.module for entry in FLOWS.values()]
    names += ["tasks.training.fit_process", "tasks.training.loop", "tasks.deeplab.network", "artifacts.report"]
    return [*names, "benchmarks.soak_kill"]


@dataclass(frozen=True)
class Done:
    """A finished command: where, exit code, output."""

    out: Path
    code: int
    stdout: str
    stderr: str

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the newest run."""
        newest = max((self.out / "cache" / "runs").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
        loaded: dict[str, Any] = json.loads(newest.read_text())
        return loaded

    @property
    def computed(self) -> dict[str, int]:
        """Stage -> images (or fits) that were worked on."""
        return {stage["label"]: stage["computed"] for stage in self.manifest["stages"]}

    @property
    def printed(self) -> str:
        """Both streams with every run of white space as one blank: rich breaks lines where it likes."""
        return " ".join((self.stdout + " " + self.stderr).split())


def maskmill(out: Path, *arguments: str) -> Done:
    """The command in this process; its signal handler is put back. ``out`` is only where to look afterwards."""
    from flows.cli.main import main

    stdout, stderr = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # A server that other tests have started must not see these runs.
        with (
            patch("flows.cli.flow_command.api_configured", return_value=False),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            code = main(list(arguments))
    finally:
        signal.signal(signal.SIGTERM, handler)
    return Done(out, code, stdout.getvalue(), stderr.getvalue())


def run_flow(flow: str, out: Path, *more: str) -> Done:
    """``maskmill FLOW --config TINY --out OUT`` in this process, no worker, no child."""
    return maskmill(out, *tiny_of(flow), *HERE, "--out", str(out), *more)


def run_cfs(out: Path, *more: str) -> Done:
    """:func:`run_flow` for tests of what any flow does, shown by ``cfs``, and of ``cfs`` itself."""
    return run_flow("cfs", out, *more)


class Runs:
    """ONE undisturbed run of each flow, and of its whole figure, made when first wanted. To change one, copy it.

    Processes that test side by side share ``folder`` and its runs: one makes a run, the others wait for it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[tuple[str, str], Done] = {}

    def tiny(self, flow: str) -> Done:
        """The flow as its tiny configuration has it."""
        return self._once(flow, "tiny", lambda out: run_flow(flow, out))

    def whole(self, flow: str) -> Done:
        """The whole figure, on top of a copy of the tiny run; that very run where there is no more to the figure."""
        if not FLOWS[flow].figure:
            return self.tiny(flow)
        tiny = self.tiny(flow)
        return self._once(flow, "whole", lambda out: run_flow(flow, copy_of(tiny, out), *figure_of(flow)))

    def _once(self, flow: str, kind: str, make: Callable[[Path], Done]) -> Done:
        if (flow, kind) not in self._done:
            folder = self._folder / f"{flow}-{kind}"
            said = folder / "done.json"
            with FileLock(f"{folder}.lock"):
                if not said.exists():
                    shutil.rmtree(folder, ignore_errors=True)  # what a failed attempt left
                    done = make(folder / "run")
                    assert done.code == 0, done.printed
                    said.write_text(json.dumps([done.stdout, done.stderr]))
            self._done[flow, kind] = Done(folder / "run", 0, *json.loads(said.read_text()))
        return self._done[flow, kind]


def copy_of(run: Done, to: Path) -> Path:
    """A copy of a run's folder to be changed. Digests go by content, so that nothing is stale in it."""
    shutil.copytree(run.out, to)
    return to


def demo_tree(run: Done) -> Path:
    """The VOC tree of ``demo-tiny`` that a run made."""
    (found,) = (tree for tree in (run.out / "cache" / "demo-data").glob("demo-tiny*") if "auxiliary" not in tree.name)
    return found


def share_demo(run: Done, cache: Path) -> Path:
    """``cache``, with the demo data that a run drew: drawing them anew takes half a second."""
    shutil.copytree(demo_tree(run).parent, cache / "demo-data")
    return cache


STARTED: list[Started] = []


def end_all() -> None:
    """Kill what is left of all started runs: a failed test must not leave processes to the others."""
    while STARTED:
        for pid in survivors(STARTED.pop().mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass
class Started:
    """A flow in a process of its own, forked from the zygote; the leader of its group."""

    zygote: Zygote
    flow: str
    out: Path
    arguments: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        STARTED.append(self)
        self.out.mkdir(parents=True, exist_ok=True)
        self.output = self.out / f"log-{self.mark[:6]}"
        self.pid = self.zygote.start(
            "benchmarks.soak_kill:flow_main",
            [*tiny_of(self.flow), "--out", str(self.out), *self.arguments],
            env={**self.env, MARK: self.mark},
            output=self.output,
        )

    def wait(self, timeout_s: float = 100.0) -> int:
        """Exit code; negative is a signal."""
        return self.zygote.wait(self.pid, timeout_s)

    def kill(self) -> None:
        """``kill -9`` of the flow alone: its children have to notice."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def printed(self) -> str:
        """What it printed, for messages of failed assertions."""
        paths = [self.output.with_name(self.output.name + ending) for ending in (".out", ".err")]
        return "\n".join(path.read_text()[-2000:] for path in paths if path.exists())
