"""The report of a run on its stages and on skipped images: in the plan, the summary and the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from artifacts.records import Skip


@dataclass
class StageReport:
    """One stage of one run, for the plan, the summary and the manifest."""

    label: str
    kind: Literal["map", "fit"]
    address: str
    total: int
    cached: int = 0
    computed: int = 0
    unknown: int = 0
    """Images that depend on an upstream stage which is not done (planning only)."""
    seconds: float = 0.0
    skipped: int = 0
    pinned: str = ""
    """Fit: since when an older one stands in for it, and for how much of the data; else empty."""
    stamps: str = ""
    """Map: digest of the list of stamps; fit: its stamp."""
    output: str = ""
    """Fit: digest of the weights."""
    split: str = ""
    dataset: str = ""
    set: str = ""
    """``train``, ``val`` or ``aux``, if the stage went over a whole set of the run."""
    outputs: tuple[str, ...] = ()
    """Map: names of its arrays."""
    like: str = ""
    """Digest of all that decides how long an ``amount`` of this work takes (:mod:`tasks.engine.effort`)."""
    amount: float = 0.0
    """Work of the whole stage."""

    @property
    def to_compute(self) -> int:
        """Images (or one fit) known to be pending."""
        return self.total - self.cached - self.unknown


def unique_skips(skips: Sequence[Skip]) -> list[Skip]:
    """Each (key, reason) once, where several stages met the same broken image."""
    seen: dict[tuple[str, str], Skip] = {}
    for skip in skips:
        seen.setdefault((skip.key, skip.reason), skip)
    return list(seen.values())


def skip_line(path: str, reason: str) -> str:
    """``path: reason``; a reason that begins with the path does not repeat it."""
    return f"{path}: {reason.removeprefix(f'{path}: ')}"


def plain_skip(skip: Skip) -> dict[str, Any]:
    """A skip as plain data."""
    return {"key": skip.key, "path": skip.path, "reason": skip.reason, "permanent": skip.permanent, "stage": skip.stage}
