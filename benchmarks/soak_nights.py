"""Many scheduled runs on one server: does anything grow? Processes, file handles, threads, memory, the database.

    python -m benchmarks.soak_nights [--runs 100] [--folder DIR] [--port 4290]      (make soak-nights)

``maskmill serve`` with a server of its own, on ``demo-tiny``; each run works on all pictures anew (``rerun``), in
worker processes. Runs come one after the other: a schedule of every few seconds waits behind the one at work. After
each run that ended, what ``serve``, its runner and its server hold is counted. The first :data:`WARM` runs fill caches
and are left out. Exit status 1 if a run did not complete, or if something grew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.results import machine

ROOT = Path(__file__).resolve().parents[1]
WARM = 5
START_S, RUN_S = 900.0, 900.0
"""For the server and the first run, for each further run, on a busy machine."""
PARTS = {"serve": "flows.cli.main", "runner": "flows.server.serve_runner", "server": "prefect server start"}
MOST_MB = 0.25
"""Megabytes a run that a part may grow: Python's memory is never quite still."""
RUN_HANDLES, RUN_THREADS = 3, 1
"""What the runner holds for each run at work."""
CACHED = 3.0
"""Megabytes that the server may grow for each of its database: its connections cache up to 20,000 pages each."""
CONFIG = {
    "flow": "cfs",
    "data": {"source": "demo-tiny"},
    "params": {"proposals": "grabcut", "student": "none", "grabcut": {"working_size": 64}},
    "options": {"workers": 1, "rerun": ["grabcut"]},
}


@dataclass(frozen=True)
class Held:
    """What a part holds at one moment."""

    files: int
    threads: int
    mb: float


@dataclass(frozen=True)
class Count:
    """After one run."""

    run: int
    seconds: float
    processes: int
    """Without those of the runs at work."""
    at_work: int
    """Runs: on a busy machine the next one has begun before this one is counted."""
    database_mb: float
    parts: dict[str, Held]
    """The runner without what it holds for the runs at work."""


def parts_of(serve: psutil.Process) -> dict[str, psutil.Process]:
    """The parts by name, by their command lines."""
    found = {"serve": serve}
    for child in serve.children():
        words = " ".join(child.cmdline())
        found |= {name: child for name, command in PARTS.items() if name != "serve" and command in words}
    return found


def held(process: psutil.Process) -> Held:
    """Open files and sockets, threads, resident memory."""
    with process.oneshot():
        return Held(process.num_fds(), process.num_threads(), round(process.memory_info().rss / 1e6, 1))


def count(run: int, began: float, parts: dict[str, psutil.Process], home: Path) -> Count:
    """Everything, now."""
    size = sum(path.stat().st_size for path in home.glob("prefect.db*"))
    working = parts["runner"].children(recursive=True)
    at_work = len(parts["runner"].children())
    every = parts["serve"].children(recursive=True)
    found = {name: held(process) for name, process in parts.items()}
    runner = found["runner"]
    found["runner"] = Held(runner.files - RUN_HANDLES * at_work, runner.threads - RUN_THREADS * at_work, runner.mb)
    return Count(
        run,
        round(time.monotonic() - began, 1),
        1 + len([process for process in every if process not in working]),
        at_work,
        round(size / 1e6, 1),
        found,
    )


def growth(counts: Sequence[Count]) -> list[str]:
    """What grew: the last third against the first, by their medians. Empty if nothing did."""
    third = max(1, len(counts) // 3)
    first, last = counts[:third], counts[-third:]
    between = max(1, len(counts) - third)
    found = []
    for name, least in (("processes", 0), ("at_work", 1)):
        medians = [int(statistics.median(getattr(one, name) for one in part)) for part in (first, last)]
        if medians[1] - medians[0] > least:
            found.append(f"{name}: {medians[0]} -> {medians[1]}")
    database = statistics.median(one.database_mb for one in last) - statistics.median(one.database_mb for one in first)
    for name in PARTS:
        cached = CACHED * database if name == "server" else 0.0
        for what, least in (("files", 3.0), ("threads", 3.0), ("mb", MOST_MB * between + 10.0 + cached)):
            values = [statistics.median(getattr(one.parts[name], what) for one in part) for part in (first, last)]
            if values[1] - values[0] > least:
                found.append(f"{name}: {what} {values[0]:g} -> {values[1]:g}")
    return found


def table(counts: Sequence[Count]) -> str:
    """A few of the rows, as Markdown."""
    shown = sorted({0, len(counts) // 4, len(counts) // 2, 3 * len(counts) // 4, len(counts) - 1})
    held_by = " | ".join(f"{name}: files, threads, MB" for name in PARTS)
    head = f"| run | processes | runs at work | {held_by} | database MB |"
    rows = [
        f"| {one.run} | {one.processes} | {one.at_work} | "
        + " | ".join(f"{h.files}, {h.threads}, {h.mb:.0f}" for h in (one.parts[name] for name in PARTS))
        + f" | {one.database_mb:g} |"
        for one in (counts[i] for i in shown)
    ]
    return "\n".join([head, "|---" * (len(PARTS) + 4) + "|", *rows])


class Api:
    """The served deployment, as the server has it."""

    def __init__(self, home: Path) -> None:
        lines = (home / "env").read_text().splitlines()
        env = {name: value.strip("'") for name, _, value in (line[len("export ") :].partition("=") for line in lines)}
        from prefect.client.orchestration import SyncPrefectClient

        self.client = SyncPrefectClient(env["PREFECT_API_URL"], auth_string=env["PREFECT_API_AUTH_STRING"])

    def states(self, *types: str) -> list[str]:
        """Names of the states of all runs in states of these types."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType

        wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
        found: list[str] = []
        while page := self.client.read_flow_runs(flow_run_filter=wanted, limit=200, offset=len(found)):
            found += [str(run.state_name) for run in page]
        return found


def soak(runs: int, folder: Path, port: int, interval: float) -> tuple[list[Count], list[str]]:
    """Serve until so many runs completed; counts and faults."""
    config, home = folder / "nightly.yaml", folder / "home"
    config.write_text(yaml.safe_dump({**CONFIG, "options": {**CONFIG["options"], "cache": str(folder / "cache")}}))
    command = ["serve", str(config), "--interval", f"{interval:g}", "--home", str(home), "--port", str(port)]
    env = {**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    counts: list[Count] = []
    parts: dict[str, psutil.Process] = {}
    with (
        (folder / "serve.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", PARTS["serve"], *command], cwd=ROOT, env=env, stdout=log, stderr=log
        ) as served,
    ):
        try:
            process = psutil.Process(served.pid)
            began = last = time.monotonic()
            while not (home / "env").exists() and served.poll() is None and time.monotonic() < began + START_S:
                time.sleep(0.5)
            if not (home / "env").exists():
                return counts, [f"no server (log: {folder / 'serve.log'})"]
            api = Api(home)
            while len(counts) < runs:
                if served.poll() is not None or time.monotonic() > last + RUN_S:
                    return counts, [f"no run ended within {RUN_S:g} s, or serve did (log: {folder / 'serve.log'})"]
                time.sleep(0.2)
                done = len(api.states("COMPLETED"))
                if done > len(counts):
                    last = time.monotonic()
                    parts = parts or parts_of(process)
                    counts.append(count(done, began, parts, home))
                    print(table(counts[-1:]).splitlines()[-1], flush=True)
            bad = api.states("FAILED", "CRASHED")
            family = process.children(recursive=True)
            served.send_signal(signal.SIGTERM)
            code = served.wait(60)
            _, alive = psutil.wait_procs(family, timeout=5)
        finally:
            served.kill()
    faults = [f"a run ended as {state}" for state in bad]
    faults += [f"serve ended with {code}"] if code else []
    faults += [f"{len(alive)} processes are left"] if alive else []
    return counts, faults + growth(counts[WARM:] or counts)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--interval", type=float, default=15.0, help="seconds between scheduled runs")
    parser.add_argument("--port", type=int, default=4290)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that serve is ended, too
    with tempfile.TemporaryDirectory(prefix="maskmill-soak-nights-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        counts, faults = soak(given.runs, folder, given.port, given.interval)
        if given.folder:
            rows: dict[str, Any] = {"machine": machine(), "counts": [asdict(one) for one in counts]}
            (folder / "soak_nights.json").write_text(json.dumps(rows, indent=1))
    if counts:
        print(table(counts))
    print("\n".join(faults) or f"{len(counts)} runs, nothing grew")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
