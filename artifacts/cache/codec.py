"""Dataclasses to plain JSON data and back, by their type hints. Standard library only.

A fit's specification is written by one process and read by another. Strict both ways: an unknown or missing field, or a
value of another type, is a ``ValueError`` that names the place.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin


def to_plain(value: Any) -> Any:
    """``value`` as what JSON can hold: dataclasses and mappings as objects, sequences as arrays, paths as text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name, _, _ in _fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no plain form: {value!r}")


def from_plain(expected: Any, data: Any, where: str = "") -> Any:
    """The value of type ``expected`` that :func:`to_plain` gave as ``data``; ``where`` names the place in errors.

    Known: None, bool, int, float, str, Path, Any, Literal, dataclasses, unions, ``tuple[X, ...]``,
    ``tuple[X, Y]``, lists, sequences (as tuples) and mappings with text keys. Raises ``ValueError`` where data
    and type differ.
    """
    return _decoder(expected)(data, where or _name(expected))


def type_name(cls: type) -> str:
    """``"module:Class"``, as :func:`type_named` takes it."""
    return f"{cls.__module__}:{cls.__qualname__}"


def type_named(name: str) -> Any:
    """The class that ``"module:Class"`` names. Raises ``ValueError`` if there is none."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no class {name!r} ({error}); it is written as module:Class") from error
    return found


Decode = Callable[[Any, str], Any]


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    """``(name, type, required)`` of each field."""
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return tuple(
        (f.name, hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    )


@functools.cache
def _decoder(expected: Any) -> Decode:
    """Built once per type, so that ten thousand records do not resolve hints again."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any or expected is object:
        return lambda data, where: data
    if dataclasses.is_dataclass(expected):
        return _dataclass(typing.cast(type, expected))
    if origin is Literal:
        return lambda data, where: data if data in arguments else _refuse(expected, data, where)
    if origin in (Union, types.UnionType):
        return _union(expected, arguments)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _fixed_tuple(expected, arguments)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence(expected, arguments[0], list if origin is list else tuple)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(expected, arguments[1])
    return _scalar(expected)


def _scalar(expected: Any) -> Decode:
    def decode(data: Any, where: str) -> Any:
        if expected in (None, type(None)):
            return data if data is None else _refuse("None", data, where)
        if expected is Path and isinstance(data, str):
            return Path(data)
        if expected is float and isinstance(data, int) and not isinstance(data, bool):
            return float(data)
        if type(data) is expected:
            return data
        return _refuse(expected, data, where)

    return decode


def _dataclass(cls: type) -> Decode:
    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, Mapping):
            return _refuse(cls, data, where)
        fields = _fields(cls)
        names = {name for name, _, _ in fields}
        if unknown := sorted(set(data) - names):
            raise ValueError(f"{where}: unknown {', '.join(unknown)}; {cls.__name__} has {', '.join(sorted(names))}")
        if absent := [name for name, _, required in fields if required and name not in data]:
            raise ValueError(f"{where}: {cls.__name__} lacks {', '.join(absent)}")
        return cls(**{name: _decoder(hint)(data[name], f"{where}.{name}") for name, hint, _ in fields if name in data})

    return decode


def _union(expected: Any, members: tuple[Any, ...]) -> Decode:
    def decode(data: Any, where: str) -> Any:
        if data is None and type(None) in members:
            return None
        reasons = []
        for member in members:
            if member is type(None):
                continue
            try:
                return _decoder(member)(data, where)
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError("; ".join(reasons) or f"{where}: expected {_name(expected)}, not {data!r}")

    return decode


def _sequence(expected: Any, member: Any, build: Callable[[Any], Any]) -> Decode:
    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, (list, tuple)):
            return _refuse(expected, data, where)
        one = _decoder(member)
        return build([one(item, f"{where}[{i}]") for i, item in enumerate(data)])

    return decode


def _fixed_tuple(expected: Any, members: tuple[Any, ...]) -> Decode:
    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, (list, tuple)) or len(data) != len(members):
            return _refuse(expected, data, where)
        pairs = enumerate(zip(members, data, strict=True))
        return tuple(_decoder(member)(item, f"{where}[{i}]") for i, (member, item) in pairs)

    return decode


def _mapping(expected: Any, member: Any) -> Decode:
    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, Mapping):
            return _refuse(expected, data, where)
        one = _decoder(member)
        return {str(key): one(item, f"{where}.{key}") for key, item in data.items()}

    return decode


def _refuse(expected: Any, data: Any, where: str) -> Any:
    raise ValueError(f"{where}: expected {_name(expected)}, not {type(data).__name__} {str(data)[:80]!r}")


def _name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) and not get_args(expected) else str(expected)
