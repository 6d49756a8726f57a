"""One configuration for a flow: YAML file, ``--set`` and options, checked whole before any work.

```yaml
flow: cfs
data: {source: "voc:/data/VOC2012"}
params: {grabcut: {working_size: 384}, deeplab: {network: resnet101}}
options: {cache: /data/cache, workers: 8}
```

``base: photo`` makes the file a change of another configuration, shipped or a path from the file's folder.

A misspelt name, a wrong type or an impossible value is one :class:`ConfigError` that names file, line, what was
expected and a name that may be meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from artifacts.inputs import MOST_TEXT_BYTES, read_input
from artifacts.plain_yaml import YamlFault, read_yaml
from artifacts.records import DataError

T = TypeVar("T")
SECTIONS = ("flow", "data", "params", "options")
BASE = "base"
"""Key of the configuration that a file changes: the name of a shipped one, or a path from the file's folder."""
KEYS = (*SECTIONS, BASE)
Lines = dict[tuple[str, ...], int]
SHOWN_INPUT = 60
"""Characters of a wrong list or mapping that an error repeats; of a longer one, its place is enough."""


class ConfigError(DataError):
    """A configuration that cannot be used; nothing has been done yet."""


@dataclass(frozen=True)
class Layer:
    """Plain values from one place (a file, ``--set``, an option) and where each stands."""

    values: dict[str, Any]
    origin: str
    lines: Lines


def packaged() -> list[str]:
    """Names of the configurations that ship with Maskmill."""
    return sorted(
        Path(entry.name).stem for entry in resources.files("flows.configs").iterdir() if entry.name.endswith(".yaml")
    )


def read_layers(name_or_path: str) -> list[Layer]:
    """A configuration and those below it (``base: NAME``), the lowest first: later layers win."""
    layers: list[Layer] = []
    wanted, asked_by, read = name_or_path, "--config", set[str]()
    while wanted:
        if wanted in read:
            raise ConfigError(f"{asked_by} {wanted}: a configuration cannot be its own base")
        read.add(wanted)
        layer = read_config(wanted, asked_by)
        layers.insert(0, layer)
        base = layer.values.get(BASE, "")
        asked_by = f"{place_of((BASE,), [layer])}: {BASE}:"
        if not isinstance(base, str):
            raise ConfigError(f"{asked_by} expected the name of a configuration or a path (got {base!r})")
        wanted = base if not base or base in packaged() else os.path.normpath(Path(wanted).parent / base)
    return layers


def read_config(name_or_path: str, asked_by: str = "--config") -> Layer:
    """A packaged configuration by name, or a YAML file by path; not what is below it."""
    if name_or_path in packaged():
        text = (resources.files("flows.configs") / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return parse_yaml(text, f"config {name_or_path}")
    path = Path(name_or_path)
    try:
        return parse_yaml(read_input(path, MOST_TEXT_BYTES).decode(), str(path))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text: byte 0x{error.object[error.start]:02x}") from error
    except OSError as error:
        raise ConfigError(
            f"{asked_by} {name_or_path}: {error.strerror or error}{_meant(name_or_path, packaged())}; give a YAML"
            f" file or one of {', '.join(packaged())}"
        ) from error


def parse_yaml(text: str, origin: str) -> Layer:
    """YAML text as a layer. Raises :class:`ConfigError` with the line of a syntax error or of a repeated key."""
    values, lines = load_yaml(text, origin)
    if values is None:
        return Layer({}, origin, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected sections {', '.join(KEYS)}, found {type(values).__name__}")
    if unknown := [key for key in values if key not in KEYS]:
        name = str(unknown[0])
        raise ConfigError(f"{origin}, line {lines.get((name,), 1)}: unknown section {name!r}{_meant(name, KEYS)}")
    return Layer(values, origin, lines)


def load_yaml(text: str, origin: str) -> tuple[Any, Lines]:
    """YAML text as plain values, and the line of every key. Only ``true`` and ``false`` are booleans.

    Raises :class:`ConfigError` with ``origin`` and line for a syntax error and for a key that is given twice.
    """
    lines: Lines = {}
    try:
        values, node = read_yaml(text)
    except YamlFault as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{origin}{line}: not YAML: {error.problem}") from error
    _collect_lines(node, (), lines, origin)
    return values, lines


def parse_set(assignments: Iterable[str]) -> Layer:
    """``--set params.deeplab.iterations=100`` as a layer; the value is read as YAML."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {assignment}: expected NAME=VALUE, e.g. --set params.deeplab.iterations=100")
        path = name.strip().split(".")
        if path[0] not in SECTIONS:
            raise ConfigError(
                f"--set {assignment}: a name starts with {', '.join(SECTIONS[1:])}{_meant(path[0], SECTIONS)}"
            )
        try:
            value, _ = read_yaml(text)
        except YamlFault as error:
            raise ConfigError(f"--set {assignment}: the value is not YAML: {error.problem}") from error
        place = values
        for step in path[:-1]:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {assignment}: {step!r} was set to a value before")
        place.update(_merged(place, {path[-1]: value}))  # a mapping joins what was set below its name before
    return Layer(values, "--set", {})


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], list[Layer]]:
    """Later layers win, key by key (nested mappings are merged, lists replaced).

    Raises :class:`ConfigError` where a section of a layer is no mapping.
    """
    kept = list(layers)
    merged: dict[str, Any] = {}
    for layer in kept:
        for section in SECTIONS[1:]:
            if not isinstance(layer.values.get(section), dict | None):
                raise ConfigError(f"{place_of((section,), [layer])}: {_no_mapping(section, layer.values[section])}")
        merged = _merged(merged, layer.values)
    return merged, kept


def build(kind: type[T], section: str, merged: Mapping[str, Any], layers: Iterable[Layer]) -> T:
    """The params object of one section, checked by pydantic. Raises :class:`ConfigError`, one line per fault."""
    given = merged.get(section)
    given = {} if given is None else given
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        faults = [_fault(kind, section, fault, list(layers)) for fault in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from None


def as_yaml(flow: str, sections: Mapping[str, object]) -> str:
    """The whole configuration as YAML, each value with its help text: what ``--show-config`` prints."""
    parts = [f"flow: {flow}"]
    for section, value in sections.items():
        parts.append(f"{section}:")
        parts.extend(_yaml_lines(value, 1))
    return "\n".join(parts) + "\n"


def _yaml_lines(value: object, depth: int) -> list[str]:
    lines = []
    for item in dataclasses.fields(cast("Any", value)):
        inner = getattr(value, item.name)
        pad = "  " * depth
        if dataclasses.is_dataclass(inner):
            lines.append(f"{pad}{item.name}:")
            lines.extend(_yaml_lines(inner, depth + 1))
            continue
        plain = list(inner) if isinstance(inner, tuple) else inner
        text = (
            yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True).replace("\n...", "").strip()
        )
        line = f"{pad}{item.name}: {text}"
        if help_text := item.metadata.get("help"):
            line = f"{line:<48}  # {help_text}"
        lines.append(line)
    return lines


def _no_mapping(section: str, value: object) -> str:
    """What to write instead of ``data: voc:/x``."""
    if section == "data":
        source = value if isinstance(value, str) else "voc:PATH"
        return f'data: expected a mapping; write data: {{source: "{source}"}}'
    return f"{section}: expected a mapping, found {type(value).__name__}; write {section}: {{NAME: VALUE}}"


def _collect_lines(node: yaml.Node | None, path: tuple[str, ...], lines: Lines, origin: str) -> None:
    """Line numbers of all keys; a key given twice is an error (YAML would silently take the last)."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        place = (*path, str(key_node.value))
        if place in lines:
            line = key_node.start_mark.line + 1
            raise ConfigError(f"{origin}, line {line}: {'.'.join(place)} is given twice (first in line {lines[place]})")
        lines[place] = key_node.start_mark.line + 1
        _collect_lines(value_node, place, lines, origin)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def _fault(kind: type[Any], section: str, fault: Any, layers: list[Layer]) -> str:
    """One of pydantic's errors as a Maskmill message, with its place."""
    steps = [str(step) for step in fault["loc"] if not str(step).startswith(("function-", "dataclass"))]
    message = str(fault["msg"]).removeprefix("Value error, ")
    # A check of the whole object begins with the field's name, alone or behind a dot, so that its place is known.
    named = message.partition("=")[0].partition(" ")[0].rpartition(".")[2]
    path = (section, *steps, *([named] if named in field_names(kind, steps) else []))
    where = f"{place_of(path, layers)}: {'.'.join(path)}"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = field_names(kind, steps[:-1])
        return f"{where}: no such parameter{_meant(steps[-1], names)}; there are {', '.join(names)}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{where}: is required and not given"
    given = fault.get("input")
    shown = bool(steps) and not (isinstance(given, dict | list | tuple) and len(repr(given)) > SHOWN_INPUT)
    return f"{where}: {message} (got {given!r})" if shown else f"{where}: {message}"


def place_of(path: tuple[str, ...], layers: Iterable[Layer]) -> str:
    """Origin and line of the last layer that sets ``path`` (or the nearest section above it)."""
    kept = list(layers)
    for depth in range(len(path), 0, -1):
        for layer in reversed(kept):
            if _holds(layer.values, path[:depth]):
                line = layer.lines.get(path[:depth])
                return f"{layer.origin}, line {line}" if line else layer.origin
    return "defaults"


def _holds(values: Any, path: tuple[str, ...]) -> bool:
    for step in path:
        if not isinstance(values, dict) or step not in values:
            return False
        values = values[step]
    return True


def field_names(kind: Any, steps: Iterable[str] = ()) -> list[str]:
    """Names of a params class's fields, ``steps`` below it."""
    for step in steps:
        if not dataclasses.is_dataclass(kind):
            return []
        kind = typing.get_type_hints(kind).get(step)
        kind = next((one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)), kind)  # X | None
    return [item.name for item in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
