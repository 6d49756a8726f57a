"""What ``maskmill runs`` prints: a table of runs, one run, and what changed between two."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from artifacts.cache.run_history import Comparison, PictureChanges, RunFacts, StageChange
from artifacts.report.html import duration
from artifacts.report.score_lines import percent
from flows.recording import go_on
from tasks.engine.stage_report import skip_line

SHOWN = 20
"""Lines of a long list."""
COLOURS = {"failed": "red", "killed": "red", "damaged": "red", "interrupted": "yellow", "running": "green"}


def ended_at(one: RunFacts) -> str:
    """When it ended (or last gave a sign of life), in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(one.started + one.seconds))


def scores_line(scores: Mapping[str, float]) -> str:
    """``mIoU masks (train) 75.7, student (val) 50.0``; empty without scores."""
    shown = ", ".join(f"{name} {percent(miou)}" for name, miou in scores.items())
    return f"mIoU {shown}" if shown else ""


def outcome_line(one: RunFacts) -> str:
    """One run in a line; of one that failed: what, where its log is, and the command that goes on."""
    skipped = f", {one.skips} skipped" if one.skips else ""
    parts = [f"{one.outcome}{skipped}", duration(one.seconds), one.data, scores_line(one.scores)]
    line = f"{one.run}: {', '.join(part for part in parts if part)}"
    if one.good or one.outcome == "running":
        return line
    what = "; ".join(one.failures) or " ".join(one.error.split())
    where = f" in {one.stage}" if one.stage else ""
    next_step = f"{go_on(one.outcome != 'failed' or bool(one.stage or one.failures))}: {again(one)}"
    return f"{line}{where}: {what or 'no message'}; log: {one.log or '-'}; {next_step}"


def again(one: RunFacts) -> str:
    """The command that goes on, for whoever stands in another folder, too."""
    if not one.command:
        return "the same command"
    moved = one.folder and os.path.realpath(one.folder) != os.path.realpath(os.getcwd())
    return (
        f"cd {shlex.quote(one.folder)} && {one.command}" if moved and not one.command.startswith("cd ") else one.command
    )


def runs_table(found: Sequence[RunFacts]) -> Table:
    """A row for each run, the newest last."""
    table = Table(box=box.SIMPLE_HEAVY)
    for name in ("run", "outcome", "took", "skipped", "computed", "mIoU"):
        side: Any = "right" if name in ("took", "skipped", "computed") else "left"
        table.add_column(name, justify=side, no_wrap=name == "run", overflow="fold")
    for one in found:
        colour = COLOURS.get(one.outcome)
        outcome = f"[{colour}]{one.outcome}[/]" if colour else one.outcome
        table.add_row(
            escape(one.run),
            outcome,
            duration(one.seconds),
            str(one.skips or "-"),
            f"{sum(one.computed.values()):,}",
            escape(scores_line(one.scores).removeprefix("mIoU ")),
        )
    return table


def run_lines(one: RunFacts, manifest: Mapping[str, Any], console: Console) -> None:
    """All that a person asks about one run."""
    console.print(f"[bold]{escape(outcome_line(one))}[/]")
    for name, value in (
        ("flow", one.flow),
        ("started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.started))),
        ("ended" if one.outcome != "running" else "last sign of life", ended_at(one)),
        ("process", one.process),
        ("command", again(one)),
        ("configuration", one.config),
        ("log", one.log),
        ("report", one.report),
        ("out", one.out),
    ):
        if value:
            console.print(f"  {name}: {escape(value)}")
    for name, line in manifest.get("data", {}).items():
        console.print(f"  {name}: {escape(line)}")
    for stage in manifest.get("stages", ()):
        of = f"{stage.get('computed', 0):,} of {stage.get('total', 0):,}"
        more = [f"{stage['skipped']} skipped"] if stage.get("skipped") else []
        more += [str(stage["pinned"])] if stage.get("pinned") else []
        took = duration(float(stage.get("seconds", 0.0)))
        console.print(f"  stage {escape(', '.join([str(stage['label']), f'{of} computed', took, *more]))}")
    for name, scores in manifest.get("scores", {}).items():
        console.print(f"  score {escape(name)}: mIoU {percent(scores['miou'])}, {scores['images']} images")
    _list("skipped", [skip_line(s["path"] or s["key"], s["reason"]) for s in manifest.get("skips", ())], console)
    for label, path in one.fit_logs.items():
        console.print(f"  log of {escape(label)}: {escape(path)}")


def comparison(found: Comparison, console: Console) -> None:
    """What changed, most of all first."""
    console.print(f"from {escape(outcome_line(found.before))}")
    console.print(f"to   {escape(outcome_line(found.after))}")
    for title, changed in (("parameters", found.parameters), ("options", found.options), ("versions", found.libraries)):
        _list(title, [f"{name}: {_value(a)} -> {_value(b)}" for name, (a, b) in changed.items()], console)
    for name, pictures in found.pictures.items():
        _pictures(name, pictures, console)
    scores = [f"{name}: mIoU {percent(a)} -> {percent(b)}{_gain(a, b)}" for name, (a, b) in found.scores.items()]
    _list("scores", scores, console)
    _list("new skips", [_skip(one) for one in found.skips_new], console)
    _list("skips that are gone", [_skip(one) for one in found.skips_gone], console)
    lines = [_stage(stage) for stage in found.stages]
    _list("stages", lines, console)
    console.print(f"fitted again: {escape(', '.join(found.refitted) or 'nothing')}")


def _stage(stage: StageChange) -> str:
    counts = " -> ".join("-" if count is None else f"{count:,}" for count in stage.computed)
    why = ["other parameters"] if stage.other_params else []
    why += [f"results: {stage.results}"] if stage.results else []
    why += ["pinned"] if stage.pinned[1] else []
    return f"{stage.label}: computed {counts}" + (f" ({', '.join(why)})" if why else "")


def _pictures(name: str, found: PictureChanges | None, console: Console) -> None:
    if found is None:
        console.print(f"{escape(name)} pictures: not known, one of the runs left no list of them")
        return
    if not (found.added or found.removed or found.renamed or found.changed):
        console.print(f"{escape(name)} pictures: the same {found.same:,}")
        return
    _list(f"{name} pictures added", list(found.added), console)
    _list(f"{name} pictures removed", list(found.removed), console)
    _list(f"{name} pictures renamed", [f"{old} -> {new}" for old, new in found.renamed.items()], console)
    _list(f"{name} pictures changed", [f"{key}: {', '.join(kinds)}" for key, kinds in found.changed.items()], console)
    console.print(f"{escape(name)} pictures: {found.same:,} as before")


def _list(title: str, lines: Sequence[str], console: Console) -> None:
    """A title with the number of lines, and the first of them; nothing without any."""
    if not lines:
        return
    console.print(f"[bold]{escape(title)}[/] ({len(lines):,}):")
    for line in lines[:SHOWN]:
        console.print(f"  {escape(line)}")
    if len(lines) > SHOWN:
        console.print(f"  ... and {len(lines) - SHOWN:,} more (--json has all)")


def _skip(one: Mapping[str, Any]) -> str:
    return skip_line(one.get("path") or one["key"], one["reason"])


def _value(value: Any) -> str:
    return "-" if value is None else str(value) or "''"


def _gain(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f" ({100 * (after - before):+.1f})"
