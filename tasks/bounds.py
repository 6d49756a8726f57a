"""Bounds of params: each number states its own in its field's metadata, one function checks them all."""

from __future__ import annotations

import dataclasses

BOUNDS = "bounds"
"""Key in a field's metadata of ``(least, most)``, both allowed."""


def bounded(params: object, name: str) -> None:
    """Raise ``ValueError``, as ``name.field``, where a field of ``params`` is outside of its ``bounds`` metadata.

    For ``__post_init__`` of a params dataclass. nan is outside; ``None`` is no number; each number of a tuple counts.
    """
    for field in dataclasses.fields(params):  # type: ignore[arg-type]
        if (bounds := field.metadata.get(BOUNDS)) is None:
            continue
        low, high = bounds
        value = getattr(params, field.name)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(low <= number <= high for number in numbers):  # nan, too
            each = "each of " if isinstance(value, tuple) else ""
            raise ValueError(f"{each}{name}.{field.name} must be {low:.10g}..{high:.10g}, not {value!r}")
