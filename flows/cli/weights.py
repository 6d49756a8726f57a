"""``maskmill weights`` and ``maskmill weights get NAME``."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape

from artifacts.records import DataError
from flows.cli.cache_tables import size
from flows.cli.terminal import terminal
from models.names import TIMM
from tasks.training.weights import WeightsError, known_row, table
from tasks.training.weights.here import cache_folder, look
from tasks.training.weights.table import Row, timm_row

app = App(name="weights", help="List the pretrained weights that there are, and get them.")


@app.default
def ls(*, json: Annotated[bool, Parameter(help="as JSON, for programs", negative=())] = False) -> int:
    """List all weights: whether they are on this machine and sound, else how to get them. Exit code 1 if one is not.

    ``params.*.weights`` takes these names; ``imagenet`` stands for those of the chosen network.
    """
    entries = [_entry(row) for row in _rows()]
    if json:
        print(json_format.dumps([*entries, _OPEN], indent=2))
    else:
        _print(entries)
    return 1 if any(entry["problem"] for entry in entries) else 0


@app.command
def get(name: Annotated[str, Parameter(help="a name of `maskmill weights`; timm:NAME for timm's")], /) -> int:
    """Get weights onto this machine: downloaded, checked against the table's digest, kept for all later runs."""
    from tasks.training.weights.get import get as get_row

    console = terminal(highlight=False, soft_wrap=True)
    try:
        row = known_row(name)
        found = look(row)
        if found is not None and not found.problem:
            console.print(escape(f"{name} is here: {found.path}"))
            return 0
    except WeightsError as error:
        raise DataError(str(error)) from error
    if row.get:  # what is part of Maskmill is refused below
        if found is not None:
            console.print(escape(f"{found.path} {found.problem}: it is replaced"))
        bytes_ = f", {size(row.bytes)}" if row.bytes else ""
        console.print(escape(f"getting {row.what}{bytes_}; licence: {row.licence}"))
    console.print(escape(f"{name}: {get_row(row).path}"))
    return 0


_OPEN: dict[str, Any] = {
    "name": f"{TIMM}NAME",
    "what": "any pretrained network of timm",
    "for": [f"{TIMM}NAME"],
    "origin": "timm",
    "licence": "see its page on timm's hub",
    "normalisation": "timm's",
    "bytes": None,
    "sha256": None,
    "path": None,
    "verified": False,
    "problem": "",
    "get": f"maskmill weights get {TIMM}NAME",
}
"""The open-ended row."""


def _rows() -> list[Row]:
    """The table's, then those of timm's networks that are here."""
    files = sorted((cache_folder() / "timm").glob("*.safetensors"))
    return [*table.ROWS, *(timm_row(f"{TIMM}{file.stem}") for file in files)]


def _entry(row: Row) -> dict[str, Any]:
    found = look(row)
    return {
        "name": row.name,
        "what": row.what,
        "for": list(row.networks),
        "origin": row.origin,
        "licence": row.licence,
        "normalisation": row.normalisation,
        "bytes": row.bytes or (None if found is None else found.path.stat().st_size),
        "sha256": row.sha256 or None,
        "path": None if found is None else str(found.path),
        "verified": found is not None and not found.problem,
        "problem": "" if found is None else found.problem,
        "get": row.get,
    }


def _print(entries: list[dict[str, Any]]) -> None:
    console = terminal(highlight=False, soft_wrap=True)
    for entry in [*entries, _OPEN]:
        if entry["problem"]:
            remedy = known_row(entry["name"]).remedy
            state = f"[red]{escape(entry['path'])} {escape(entry['problem'])}[/]: {escape(remedy)}"
        elif entry["path"]:
            state = f"[green]here, verified[/]: {escape(entry['path'])}"
        else:
            state = f"not here: `{entry['get']}`"
        bytes_ = "" if entry["bytes"] is None else f"; {size(entry['bytes'])}"
        console.print(f"[bold]{entry['name']}[/]: {escape(entry['what'])}")
        console.print(f"    network {', '.join(entry['for'])}{bytes_}; licence: {escape(entry['licence'])}")
        console.print(f"    {state}")
    console.print("params.*.weights takes these names; `imagenet` stands for those of the chosen network")
