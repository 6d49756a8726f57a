"""What ``maskmill cache`` prints: tables that fit the terminal, lines of runs, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from artifacts.cache.fit_listing import FitInfo
from artifacts.cache.listing import AddressInfo
from artifacts.report.html import duration

WIDE = 150
"""Columns from which whole addresses are shown; below, their beginnings."""
UNFOLDED = 200
"""Columns of output that goes to no terminal."""
SHORT_DIGEST = 8


def size(count: float) -> str:
    """A byte count in readable units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def used_by(name: str, users: Mapping[str, Sequence[str]], console: Console) -> str:
    """How many runs use it; on a wide terminal the newest, too. What no run that is kept uses goes by `cache gc`."""
    runs = users.get(name, ())
    newest = f", {runs[-1]}" if runs and console.width >= WIDE else ""
    return f"{len(runs)}{newest}"


def stages_table(found: Sequence[AddressInfo], users: Mapping[str, Sequence[str]], console: Console) -> Table:
    """A row for each address; its label only where that is not the beginning of the address."""
    shown = beginnings([info.address for info in found], console)
    table = _table(
        {"stage": "left", "images": "right", "skipped": "right", "size": "right", "age": "right", "runs": "left"}
    )
    for info in found:
        label = f" ({info.label})" if info.label and info.label != info.stage else ""
        damaged = f" [red]({info.corrupt} damaged, put aside)[/]" if info.corrupt else ""
        numbers = str(info.images), str(info.skipped), size(info.bytes), duration(info.age_s)
        table.add_row(shown[info.address] + escape(label) + damaged, *numbers, used_by(info.address, users, console))
    return table


def fits_table(found: Sequence[FitInfo], users: Mapping[str, Sequence[str]], console: Console) -> Table:
    """Publications of each fit, and bytes of checkpoints: an open fit resumes when a run needs it."""
    addresses = beginnings([fit.address for fit in found], console)
    stamps = beginnings([fit.stamp for fit in found], console)
    table = _table({"fit": "left", "done": "right", "open": "right", "size": "right", "age": "right", "runs": "left"})
    for fit in found:
        unfinished = size(fit.work_bytes) + (", stale" if fit.stale_work else "") if fit.work_bytes else ""
        name = f"{addresses[fit.address]}/{stamps[fit.stamp]}"
        label = f" ({fit.label})" if fit.label and not fit.address.startswith(f"{fit.label}-") else ""
        numbers = str(len(fit.publications)), unfinished, size(fit.bytes), duration(fit.age_s)
        table.add_row(name + escape(label), *numbers, used_by(fit.name, users, console))
    return table


def _table(columns: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAVY)
    for number, (name, side) in enumerate(columns.items()):
        table.add_column(name, justify=side, no_wrap=number > 0, overflow="fold")
    return table


def beginnings(names: Sequence[str], console: Console) -> dict[str, str]:
    """Name -> its shortest beginning that means no other and has 8 digits of the digest; whole on a wide terminal."""
    whole = sorted(set(names))
    if console.width >= WIDE:
        return {name: name for name in whole}
    found = {}
    for at, name in enumerate(whole):
        beside = (*whole[at - 1 : at], *whole[at + 1 : at + 2])
        needed = name.rfind("-") + 1 + SHORT_DIGEST
        while any(other.startswith(name[:needed]) for other in beside) and needed < len(name):
            needed += 1
        found[name] = name[:needed]
    return found


def print_json(value: Any) -> None:
    """``value`` (dataclasses, mappings, sequences, paths) as JSON on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """``value`` as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
