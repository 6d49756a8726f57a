"""What the command prints: the plan of a dry run, and one summary at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from artifacts.report import score_table
from artifacts.report.html import duration
from artifacts.report.score_lines import percent
from flows.run_flow import Plan
from tasks.engine.stage_report import skip_line

SHOWN_SKIPS = 20
WITH_ADDRESSES = 100
"""Columns from which the plan shows addresses."""


def plan(planned: Plan, console: Console) -> None:
    """Per stage: cached, to compute, dependent on upstream, and the last run's time as the estimate.

    Addresses are left out where they would make the rest wrap.
    """
    table = Table(
        title=f"maskmill {planned.flow}: what would be done",
        caption="waits: depends on upstream",
        box=box.SIMPLE_HEAVY,
        title_justify="left",
        caption_justify="left",
    )
    wide = console.width >= WITH_ADDRESSES
    for name in ("stage", "kind", "cached", "to compute", "waits", "est.", *(["address"] if wide else [])):
        table.add_column(
            name, justify="left" if name in ("stage", "kind", "address") else "right", no_wrap=name == "stage"
        )
    for report in planned.stages:
        seconds = planned.estimates_s.get(report.label)
        nothing = not report.to_compute and not report.unknown
        estimate = "-" if nothing else "not run yet" if seconds is None else duration(seconds)
        table.add_row(
            escape(report.label),
            report.kind,
            str(report.cached),
            str(report.to_compute),
            str(report.unknown),
            estimate,
            *([report.address[-12:]] if wide else []),
        )
    console.print(table)
    pins([vars(report) for report in planned.stages], console)
    data(planned.data, console)
    for warning in planned.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def summary(result: dict[str, Any], console: Console, *, quiet: bool = False) -> None:
    """Scores, paths of the outputs, and the skipped images; ``quiet``: a line for each set of masks, no table."""
    for name, scores in result["scores"].items():
        if quiet:
            console.print(f"{escape(name)}: mIoU {percent(scores['miou'])}, {scores['images']} images", soft_wrap=True)
        else:
            console.print(score_table(scores, title=name))
    computed = ", ".join(f"{stage['label']} {stage['computed']}" for stage in result["stages"] if stage["computed"])
    console.print(f"computed: {computed or 'nothing, all was cached'}; {duration(result['seconds'])}")
    pins(result["stages"], console)
    data(result.get("data", {}), console)
    for name, path in result["files"].items():
        console.print(f"{name}: {escape(str(path))}", soft_wrap=True)
    for warning in result.get("warnings", []):
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    for failure in result.get("failures", []):
        console.print(f"[red]failed:[/] {escape(failure)}", soft_wrap=True)
    skips(result["skips"], result["files"].get("manifest", ""), console)


def pins(stages: Iterable[Mapping[str, Any]], console: Console) -> None:
    """The fits for which an older one stands in (``options.refit``), since when, and how much of the data it knows."""
    for stage in stages:
        if stage["pinned"]:
            console.print(f"{escape(stage['label'])}: {stage['pinned']}", soft_wrap=True, highlight=False)


def data(said: Mapping[str, str], console: Console) -> None:
    """How many images and labels of each set were read, and what was lost."""
    for name, line in said.items():
        console.print(f"{name}: {escape(line)}", soft_wrap=True, highlight=False)


def skips(items: list[dict[str, Any]], manifest: str, console: Console) -> None:
    """The skipped images with path and reason; a long list is cut, with the path of the whole one."""
    if not items:
        return
    console.print(f"[yellow]{len(items)} skipped:[/]")
    for item in items[:SHOWN_SKIPS]:
        console.print(f"  {escape(skip_line(item['path'] or item['key'], item['reason']))}", soft_wrap=True)
    if len(items) > SHOWN_SKIPS:
        console.print(f"  ... and {len(items) - SHOWN_SKIPS} more in {escape(manifest)}", soft_wrap=True)
