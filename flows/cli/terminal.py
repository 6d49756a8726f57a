"""The terminal that every command prints to."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from artifacts.inputs import shown


class _Plain(Console):
    """A console that writes the control characters of a text as escapes: a file's name must not steer the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_plain(one) if isinstance(one, str) else one for one in objects), **options)


def _plain(text: str) -> str:
    return "\n".join("\t".join(map(shown, line.split("\t"))) for line in text.split("\n"))


def terminal(**options: Any) -> Console:
    """rich's console (``options`` are its own) that prints text as it is: ``:train:`` in a path is no emoji."""
    return _Plain(emoji=False, **options)
