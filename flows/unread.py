"""Which sections of a flow's params a run does not read: its report says so of them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

P = TypeVar("P")


def watched(params: P) -> tuple[P, set[str]]:
    """A copy of ``params``, and the names of its sections (fields that are dataclasses) that were not read from it yet.

    The copy's class has the name of the original's, so that stages of it have the same addresses. Of params that are no
    plain dataclass nothing is known: they are given back, with no names.
    """
    if not dataclasses.is_dataclass(params) or isinstance(params, type) or not hasattr(params, "__dict__"):
        return params, set()
    known = {item.name: getattr(params, item.name) for item in dataclasses.fields(params)}
    unread = {name for name, value in known.items() if dataclasses.is_dataclass(value)}

    def read(self: Any, name: str) -> Any:
        unread.discard(name)
        return object.__getattribute__(self, name)

    kind: Any = type(type(params).__name__, (type(params),), {"__getattribute__": read})
    copy = object.__new__(kind)
    object.__getattribute__(copy, "__dict__").update(vars(params))
    return copy, unread
