"""Scores as lines of text: one place decides names, order and digits for the console and the HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "-"

Line = tuple[str, str, str]
"""Label, value, and what it means."""


def number_of(value: Any) -> float | None:
    """A finite number, or ``None``; ``(mean, count)`` and ``{"mean": ..}`` give their mean."""
    if isinstance(value, Mapping):
        value = value.get("mean")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    if value is None or isinstance(value, (str, bool)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def count_of(value: Any) -> int | None:
    """How many objects are behind a mean, if given."""
    if isinstance(value, Mapping):
        count = value.get("count")
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1:
        count = value[1]
    else:
        count = None
    return None if count is None else int(count)


def percent(value: float | None) -> str:
    """A share as ``71.3``; a dash where there is none."""
    return DASH if value is None else f"{100 * value:.1f}"


def summary_lines(scores: Mapping[str, Any]) -> list[Line]:
    """The means of one set, mIoU first; what is not there is left out."""
    plain_keys = (
        ("miou", "mIoU", "mean of the classes' IoU, background counted; a predicted 255 is wrong"),
        ("pixel_accuracy", "pixel accuracy", "share of scored pixels with the right class"),
        ("precision", "precision", "of the pixels called foreground, the share with the right class"),
        ("recall", "recall", "of the foreground pixels, the share with the right class"),
        ("coverage", "coverage", "share of scored pixels that got a class"),
    )
    lines = [(label, percent(number_of(scores[key])), text) for key, label, text in plain_keys if key in scores]
    left_out = scores.get("left_out") or {}
    coverage = number_of(scores.get("coverage"))
    if "miou" in left_out and coverage is not None and coverage < 1:
        lines.append(("mIoU, undecided left out", percent(number_of(left_out["miou"])), "read beside the coverage"))
    if number_of(scores.get("object_iou")) is not None:
        lines.append(_objects("object IoU", scores["object_iou"], "mean over objects, before painting"))
        for size, value in (scores.get("by_size") or {}).items():
            if count_of(value) != 0:
                lines.append(_objects(f"object IoU, {size}", value, "objects of this size"))
    if "images" in scores:
        lines.append(("images", str(scores["images"]), "images scored"))
    return lines


def _objects(label: str, value: Any, text: str) -> Line:
    count = count_of(value)
    return (label if count is None else f"{label} ({count})", percent(number_of(value)), text)
