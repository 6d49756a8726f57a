"""What a flow run leaves in the server: its last state, and a page of scores, pictures and skips."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import Flow, State, get_client
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from artifacts.report.pictures import inline
from artifacts.report.score_lines import percent

log = logging.getLogger("maskmill")
SHOWN_SKIPS = 50
SHEET_SIDE = 1200
"""Longest side, in pixels, of the contact sheet on the page: what is larger than 1 MB makes no event in Prefect."""
WITH_SKIPS = "DoneWithSkips"
"""Name of the state of a run that is complete but for the pictures that it skipped."""


def one_line(error: BaseException) -> str:
    """An error for a state's message; with where a run's log is, and the command that goes on."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return "; ".join([what, *getattr(error, "__notes__", ())])


def outcome(summary: dict[str, Any]) -> State[Any]:
    """The last state: what was computed and skipped, in a line. The command's exit codes 0, 3 and 1 alike.

    Skips are seen in the state's name, to which an automation can listen. Where an export failed, the state is Failed.
    """
    computed = ", ".join(f"{stage['label']} {stage['computed']}" for stage in summary["stages"] if stage["computed"])
    words = f"computed: {computed}" if computed else "nothing to compute, all was cached"
    if skips := summary["skips"]:
        words += f"; {len(skips)} skipped, the first: {skips[0]['key']}: {skips[0]['reason']}"
    if failures := summary["failures"]:
        return Failed(message=f"{failures[0]}; masks and scores are complete ({words})", data=summary)
    if skips:
        return Completed(name=WITH_SKIPS, message=words, data=summary)
    return Completed(message=words, data=summary)


def report_failure(flow: Flow[..., Any], error: BaseException) -> None:
    """A Failed flow run for what failed before any could begin. A server that does not answer is a warning."""
    failed: State[Any] = Failed(message=one_line(error))
    try:
        with get_client(sync_client=True) as client:
            client.create_flow_run(flow, state=failed)
    except Exception as second:
        log.warning("the failure could not be reported to Prefect: %s", one_line(second))


def publish(name: str, summary: Mapping[str, Any]) -> None:
    """The page as a markdown artifact. The run is done: an error here is a warning."""
    try:
        create_markdown_artifact(page(name, summary), key=f"maskmill-{name}", description=f"maskmill {name}: scores")
    except Exception as error:
        log.warning("the scores could not be shown in Prefect: %s", one_line(error))


def page(name: str, summary: Mapping[str, Any]) -> str:
    """Scores, the contact sheet, stages, files and skips, in Markdown."""
    lines = [f"## maskmill {name}: {summary['run']}", "", "| masks | mIoU | pixel accuracy |", "|---|---|---|"]
    lines += [
        f"| {what} | {percent(s.get('miou'))} | {percent(s.get('pixel_accuracy'))} |"
        for what, s in summary["scores"].items()
    ]
    with suppress(OSError, KeyError):  # a picture that cannot be read is missing in the report, too
        sheet = inline(Path(summary["files"]["contact sheet"]), side=SHEET_SIDE)
        lines += ["", f"![contact sheet]({sheet})"]
    lines += ["", "| stage | images | computed | seconds |", "|---|---|---|---|"]
    lines += [f"| {s['label']} | {s['total']} | {s['computed']} | {s['seconds']:.1f} |" for s in summary["stages"]]
    lines += ["", *(f"- {s['label']}: {s['pinned']}" for s in summary["stages"] if s.get("pinned"))]
    lines += ["", *(f"- {what}: `{os.path.abspath(path)}`" for what, path in summary["files"].items())]
    lines += ["", *(f"- failed: {failure}" for failure in summary["failures"])]
    skips = summary["skips"]
    lines += ["", f"{len(skips)} skipped", ""]
    lines += [f"- `{skip['key']}`: {skip['reason']}" for skip in skips[:SHOWN_SKIPS]]
    lines += [f"- ... and {len(skips) - SHOWN_SKIPS} more in the manifest"] if len(skips) > SHOWN_SKIPS else []
    return "\n".join(lines)
