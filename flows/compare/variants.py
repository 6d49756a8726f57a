"""Variants of one flow: what they are called, what they set, and the seeds they are run with."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from artifacts.datasets import DataParams
from artifacts.records import Sets
from flows.config import ConfigError, load_yaml
from flows.configure import configure, load
from flows.run_flow import Page
from tasks.engine.options import RunParams

PREFIX = "params."
SEED = "seed"
UNITS_S = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Variant:
    """One configuration of one flow, to be run with each of ``seeds``."""

    name: str
    flow: str
    page: Page[Any] = field(repr=False)
    params: Any
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()
    """What it sets, e.g. ``deeplab.iterations=100``; shown below the table."""
    data: DataParams | None = None
    """Its own where methods are compared: another flow may need auxiliary data, or scribbles."""
    sets: Sets | None = field(default=None, repr=False)
    """``data``, read."""


def parse_variant(text: str) -> tuple[str, tuple[str, ...]]:
    """``"name: key=value key=value"`` as name and assignments; keys are the flow's params. Quotes as in a shell."""
    name, colon, rest = text.partition(":")
    if not colon or not name.strip():
        raise ConfigError(f'--variant "{text}": expected "NAME: KEY=VALUE KEY=VALUE", e.g. "box: proposals=box"')
    try:
        return name.strip(), tuple(shlex.split(rest))
    except ValueError as error:
        raise ConfigError(f'--variant "{text}": {error}') from error


def read_variants(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """A YAML file of variants: ``name: {key: value}``, keys nested or with dots; an empty mapping changes nothing."""
    return [(name, tuple(assignments(given))) for name, given in read_mappings(path).items()]


def read_mappings(path: Path) -> dict[str, dict[Any, Any]]:
    """A YAML file ``name: {key: value}``.

    Raises :class:`ConfigError` with file and line for what is no such mapping, and for a name that stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--variants {path}: {error}") from error
    values, _ = load_yaml(text, str(path))
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{path}: expected NAME: {{KEY: VALUE}} for each variant")
    for name, given in values.items():
        if not isinstance(given, dict | None):
            raise ConfigError(f"{path}: variant {name!r}: expected {{KEY: VALUE}}, found {given!r}")
    return {str(name): given or {} for name, given in values.items()}


def assignments(given: Mapping[Any, Any], above: str = "") -> Iterable[str]:
    """``{"a": {"b": 1}}`` as ``a.b=1``: what ``--set`` takes."""
    for key, value in given.items():
        if isinstance(value, dict) and value:
            yield from assignments(value, f"{above}{key}.")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
            yield f"{above}{key}={text.replace(chr(10) + '...', '').strip()}"


def build_variants(
    flow: str,
    given: Sequence[tuple[str, tuple[str, ...]]],
    seeds: tuple[int, ...],
    *,
    data: str | None,
    config: str | None,
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> list[Variant]:
    """The variants on top of one configuration, all checked. Raises :class:`ConfigError` before any work.

    Refused: a name twice, two names for one configuration, a key that the flow lacks, and a seed among the keys.
    """
    configure(flow, data, config, sets, options or {})  # faults in the shared values come first
    page, _, _ = load(flow)
    found: list[Variant] = []
    for name, wanted in given:
        where = f"variant {name!r}"
        own = [one for assignment in wanted for one in _own_sets(where, assignment)]
        keys = [assignment.partition("=")[0] for assignment in own]
        if twice := [key for place, key in enumerate(keys) if _within(keys[:place] + keys[place + 1 :], key)]:
            raise ConfigError(f"{where}: {twice[0].removeprefix(PREFIX)} is given twice")
        try:
            params = configure(flow, data, config, [*sets, *own], options or {}).params
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).replace('--set: ', '')}") from error
        settings = tuple(assignment.removeprefix(PREFIX) for assignment in own)
        found.append(Variant(name, flow, page, params, seeds, settings))
    check_variants(found)
    return found


def check_variants(variants: Sequence[Variant]) -> None:
    """At least one; no name twice, no configuration twice. Raises :class:`ConfigError`."""
    if not variants:
        raise ConfigError('no variants: give --variant "NAME: KEY=VALUE", or --variants FILE.yaml')
    for place, variant in enumerate(variants):
        for other in variants[:place]:
            if other.name == variant.name:
                raise ConfigError(f"two variants are called {variant.name!r}; give each its own name")
            if (other.flow, other.params) == (variant.flow, variant.params):
                raise ConfigError(f"variants {other.name!r} and {variant.name!r} are the same configuration")


def _own_sets(where: str, assignment: str) -> list[str]:
    """``KEY=VALUE`` as it is set, ``params.KEY=VALUE``; of a nested value each leaf, that none passes unseen."""
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"{where}: {assignment!r}: expected KEY=VALUE, e.g. deeplab.iterations=100")
    value, _ = load_yaml(text, f"{where}: {assignment!r}")
    leaves = assignments({key: value}) if isinstance(value, dict) else [f"{key}={text}"]
    return [_own_set(where, leaf) for leaf in leaves]


def _own_set(where: str, assignment: str) -> str:
    key = assignment.partition("=")[0]
    if key.startswith(("data.", "options.")):
        raise ConfigError(f"{where}: {key}: variants share data and options; only the flow's params differ")
    if key.rpartition(".")[2] == SEED:
        raise ConfigError(f"{where}: {key}: seeds are given by --seeds, the same ones to every variant")
    return assignment if key.startswith(PREFIX) else PREFIX + assignment


def _within(keys: Iterable[str], above: str) -> bool:
    """Whether one of ``keys`` is ``above`` or a key below it."""
    return any(f"{key}.".startswith(f"{above}.") for key in keys)


SeedPath = tuple[str, ...]
"""Where a seed stands in a flow's params: ``("deeplab", "seed")``."""


def seed_paths(params: Any) -> list[SeedPath]:
    """Every field called ``seed`` in a params dataclass and those below it, of map stages too."""
    found: list[SeedPath] = []
    for item in dataclasses.fields(params):
        value = getattr(params, item.name)
        if item.name == SEED:
            found.append((SEED,))
        elif dataclasses.is_dataclass(value):
            found.extend((item.name, *path) for path in seed_paths(value))
    return found


def with_seed(params: Any, seed: int, paths: Iterable[SeedPath]) -> Any:
    """``params`` with ``seed`` in each of ``paths``."""
    for first, *rest in paths:
        value = with_seed(getattr(params, first), seed, [tuple(rest)]) if rest else seed
        params = dataclasses.replace(params, **{first: value})
    return params


def without_seeds(plain: Any) -> Any:
    """Params as plain data (a manifest's recipe, say) with every seed taken out: the same for all seeds."""
    if isinstance(plain, Mapping):
        return {str(key): without_seeds(value) for key, value in plain.items() if key != SEED}
    if isinstance(plain, list | tuple):
        return [without_seeds(value) for value in plain]
    return plain


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"0,1,2"``. Raises :class:`ConfigError` for anything else, and for a seed given twice."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected whole numbers with commas, e.g. 0,1,2") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {text}: expected different numbers, none below 0")
    return seeds


def parse_budget(text: str) -> float:
    """``30m``, ``1h30m``, ``90s`` or ``90`` in seconds. Raises :class:`ConfigError`."""
    given = text.strip()
    # Only a number alone may lack its unit: "1h30" was taken for an hour and 30 seconds.
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", f"{given}s" if given.isdecimal() else given)
    if not given or found is None:
        raise ConfigError(f"--budget {text}: expected a time, e.g. 30m, 1h30m or 90s")
    return float(sum(int(part or 0) * unit for part, unit in zip(found.groups(), UNITS_S.values(), strict=True)))


def shared_options(options: RunParams, out: Path) -> RunParams:
    """Options of one run among several: its report below ``out``, the cache of all, nothing exported or done again."""
    return dataclasses.replace(options, out=str(out), export=(), rerun=())
