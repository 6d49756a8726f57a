"""Bounds of params: each number states its own in its field's metadata, one function checks them all."""

from __future__ import annotations

import dataclasses
from typing import Any

from artifacts.keys import OPERATIONAL


def number(default: Any, low: float, high: float, text: str, *, operational: bool = False) -> Any:
    """A params field for a number, or a tuple of them, within ``low..high``, both allowed; ``text`` is its help."""
    metadata = {"help": text, "bounds": (low, high), **(OPERATIONAL if operational else {})}
    return dataclasses.field(default=default, metadata=metadata)


def help_of(params: type, name: str) -> dict[str, Any]:
    """Metadata of a field of a params class: for a subclass with another default."""
    return dict(next(field.metadata for field in dataclasses.fields(params) if field.name == name))


def bounded(params: object, name: str) -> None:
    """Raise ``ValueError``, as ``name.field``, where a field of ``params`` is outside of its ``bounds`` metadata.

    For ``__post_init__`` of a params dataclass. nan is out of bounds. ``None`` passes. Every number of a tuple counts.
    """
    for field in dataclasses.fields(params):  # type: ignore[arg-type]
        if (bounds := field.metadata.get("bounds")) is None:
            continue
        low, high = bounds
        value = getattr(params, field.name)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(low <= one <= high for one in numbers):  # nan, too
            each = "each of " if isinstance(value, tuple) else ""
            raise ValueError(f"{each}{name}.{field.name} must be {low:.10g}..{high:.10g}, not {value!r}")
