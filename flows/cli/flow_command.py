"""What ``maskmill <flow>`` does: resolve the configuration, plan or run, print the result."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from artifacts.records import DataError
from flows.cli import console as show
from flows.cli.terminal import terminal
from flows.config import as_yaml
from flows.configure import Job, configure, known_cache, load
from flows.recording import recorded_if_it_fails
from flows.registry import FLOWS
from flows.run_flow import plan_page, read_sets, run_page
from flows.server.environment import api_configured
from tasks.engine.options import RunParams
from tasks.engine.progress import Bars, Lines, Reporter


def run_flow_command(
    flow: str,
    *,
    data: str | None,
    config: str | None,
    sets: Sequence[str],
    options: Mapping[str, Any],
    dry_run: bool,
    show_config: bool,
    prefect: bool,
) -> int:
    """The command's body; returns the exit code."""
    if show_config and data is None and config is None:
        data = "demo"
    command = as_given(flow, data, config, sets, options)
    place = None if dry_run or show_config else known_cache(config, sets, options)
    reports = not (dry_run or show_config) and (prefect or api_configured())
    try:
        with recorded_if_it_fails(flow, place, command):
            job = configure(flow, data, config, sets, options)
    except DataError as error:
        if reports:
            _report_failure(flow, error)
        raise
    if show_config:
        sys.stdout.write(as_yaml(flow, {"data": job.data, "params": job.params, "options": job.options}))
        return 0
    page, _, prefect_flow = load(flow)
    if dry_run:
        plan = plan_page(flow, page, read_sets(job.data, job.options), job.params, job.options)
        show.plan(plan, terminal())
        return 0
    if reports:
        summary = _as_flow_run(prefect_flow, job)
    else:
        reporter = _reporter(job.options)
        summary = run_page(flow, page, job.data, job.params, job.options, reporter=reporter, command=command).summary()
    show.summary(summary, terminal(), quiet=not job.options.progress)
    if summary["failures"]:
        return 1
    return 3 if summary["skips"] else 0


def as_given(flow: str, data: str | None, config: str | None, sets: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command, as somebody would type it again."""
    words = ["maskmill", flow]
    words += [word for name, value in (("--data", data), ("--config", config)) if value for word in (name, value)]
    words += [word for one in sets for word in ("--set", one)]
    for name, value in options.items():
        if name == "progress":
            words += ["--quiet"] if value is False else []
        elif isinstance(value, list):
            words += [word for one in value for word in (f"--{name}", str(one))]
        elif value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _as_flow_run(prefect_flow: Any, job: Job) -> dict[str, Any]:
    """The same page as a flow run, reported to the API; data that cannot be read are a Failed run there."""
    from flows.server.prefect_skin import call_flow

    reporter = _reporter(job.options)
    return call_flow(prefect_flow, reporter, data=job.data, params=job.params, options=job.options)


def _report_failure(flow: str, error: DataError) -> None:
    """A configuration that is wrong is a Failed run in the server, too: at night nobody reads the terminal."""
    from flows.server.run_outcome import report_failure

    report_failure(FLOWS[flow].prefect_flow, error)


def _reporter(options: RunParams) -> Reporter | None:
    if not options.progress:
        return None
    return Bars() if sys.stderr.isatty() else Lines()
