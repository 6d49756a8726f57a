"""What ``maskmill <flow>`` does: resolve the configuration, plan or run, print the result."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from artifacts.datasets import DataParams
from flows.cli import console as show
from flows.config import ConfigError, Layer, as_yaml, build, merge, parse_set, place_of, read_config
from flows.registry import FLOWS
from flows.run_flow import Page, plan_page, read_sets, resolve_options, run_page
from tasks.engine.options import RunParams
from tasks.engine.progress import Bars, Lines, Reporter


@dataclass(frozen=True)
class Job:
    """A checked configuration of one flow."""

    flow: str
    data: DataParams
    params: Any
    options: RunParams


def load(flow: str) -> tuple[Page[Any], type[Any], Any]:
    """The flow's page, its params class and its Prefect flow."""
    entry = FLOWS[flow]
    return entry.page, entry.params_class, entry.prefect_flow


def configure(flow: str, data: str | None, config: str | None, sets: Sequence[str], options: Mapping[str, Any]) -> Job:
    """Everything from the file, ``--set`` and the options, checked. Raises :class:`ConfigError` before any work."""
    if config is None and data is not None:
        config = FLOWS[flow].demos.get(data)  # demo data come with parameters: VOC's schedule would take days on them
    layers: list[Layer] = [read_config(config)] if config else []
    layers.append(parse_set(sets))
    given: dict[str, Any] = {"options": {name: value for name, value in options.items() if value is not None}}
    if data is not None:
        given["data"] = {"source": data}
    layers.append(Layer(given, "command line", {}))
    merged, layers = merge(layers)
    named = merged.get("flow")
    if named is not None and named != flow:
        meant = f"{place_of(('flow',), layers)}: this is for the flow {named!r}"
        if named not in list(FLOWS):  # a list: whatever YAML gives may be compared, not all of it hashed
            raise ConfigError(f"{meant}: no flow {named!r}; there are {', '.join(FLOWS)}")
        raise ConfigError(f"{meant}: run `maskmill {named}` instead of `maskmill {flow}`")
    if not (merged.get("data") or {}).get("source"):
        raise ConfigError(
            "no data: give --data voc:PATH (or coco:, folder:, yolo:, demo), or data.source in the config"
        )
    aux = merged["data"].get("aux")
    if isinstance(aux, dict) and not aux.get("source"):
        raise ConfigError(f"{place_of(('data', 'aux'), layers)}: data.aux: no data: give data.aux.source")
    _, params_class, _ = load(flow)
    return Job(
        flow,
        build(DataParams, "data", merged, layers),
        build(params_class, "params", merged, layers),
        resolve_options(build(RunParams, "options", merged, layers)),
    )


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
    job = configure(flow, data, config, sets, options)
    if show_config:
        sys.stdout.write(as_yaml(flow, {"data": job.data, "params": job.params, "options": job.options}))
        return 0
    page, _, prefect_flow = load(flow)
    if dry_run:
        plan = plan_page(flow, page, read_sets(job.data, job.options), job.params, job.options)
        show.plan(plan, Console())
        return 0
    if prefect or api_configured():
        summary = _as_flow_run(page, prefect_flow, job)
    else:
        summary = run_page(flow, page, job.data, job.params, job.options, reporter=_reporter(job.options)).summary()
    show.summary(summary, Console())
    if summary["failures"]:
        return 1
    return 3 if summary["skips"] else 0


def api_configured() -> bool:
    """Whether a Prefect API is set, by the environment or by the active profile."""
    from prefect.settings import get_current_settings

    return bool(get_current_settings().api.url)


def _as_flow_run(page: Page[Any], prefect_flow: Any, job: Job) -> dict[str, Any]:
    """The same page as a flow run, reported to the API. Faults in data or ``rerun`` are reported before."""
    from flows.server.prefect_skin import call_flow

    plan_page(job.flow, page, read_sets(job.data, job.options), job.params, job.options)
    reporter = _reporter(job.options)
    return call_flow(prefect_flow, reporter, data=job.data, params=job.params, options=job.options)


def _reporter(options: RunParams) -> Reporter | None:
    if not options.progress:
        return None
    return Bars() if sys.stderr.isatty() else Lines()
