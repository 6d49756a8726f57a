"""A flow's whole configuration: from a file, ``--set`` and options to checked params."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.datasets import DataParams
from flows.config import ConfigError, Layer, build, merge, parse_set, place_of, read_layers
from flows.registry import FLOWS
from flows.run_flow import Page, resolve_options, run_page
from tasks.engine.options import RunParams
from tasks.evaluate.finish import Result


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


def known_cache(config: str | None, sets: Sequence[str], options: Mapping[str, Any]) -> Path | None:
    """The cache of a configuration that may be wrong elsewhere, if it names one, or an ``out``; else ``None``."""
    found: dict[str, Any] = {}
    for source in (config, tuple(sets)):
        with contextlib.suppress(ConfigError):
            for layer in read_layers(source) if isinstance(source, str) else [parse_set(source or ())]:
                section = layer.values.get("options")
                found |= section if isinstance(section, dict) else {}
    found |= {name: value for name, value in options.items() if value is not None}
    if isinstance(cache := found.get("cache"), str) and cache:
        return Path(cache)
    return Path(out) / "cache" if isinstance(out := found.get("out"), str) and out else None


def configure(flow: str, data: str | None, config: str | None, sets: Sequence[str], options: Mapping[str, Any]) -> Job:
    """Everything from the file, ``--set`` and the options, checked. Raises :class:`ConfigError` before any work."""
    if config is None and data is not None:
        config = FLOWS[flow].demos.get(data)  # demo data come with parameters: VOC's schedule would take days on them
    layers: list[Layer] = read_layers(config) if config else []
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


def run(flow: str, data: str | None = None, *sets: str, config: str | None = None, **options: Any) -> Result:
    """A flow from Python, as ``maskmill FLOW --data DATA --config CONFIG --set SETS`` runs it; cached, resumable.

    ``run("cfs", "folder:photos", "params.student=none", out="results", until="grabcut")``. ``options`` are fields of
    :class:`~tasks.engine.options.RunParams`. Raises :class:`ConfigError` before any work for a fault in them.
    """
    job = configure(flow, data, config, sets, {"progress": False, **options})
    page, _, _ = load(flow)
    return run_page(flow, page, job.data, job.params, job.options)
