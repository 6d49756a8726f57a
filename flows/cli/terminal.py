"""The terminal that every command prints to."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def terminal(**options: Any) -> Console:
    """rich's console (``options`` are its own) that prints text as it is: ``:train:`` in a path is no emoji."""
    return Console(emoji=False, **options)
