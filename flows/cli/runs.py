"""``maskmill runs ls | show | log | compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape

from artifacts.records import DataError
from flows.cli.cache_tables import UNFOLDED, print_json
from flows.cli.terminal import terminal

app = App(name="runs", help="List the runs of a cache, show one, read its log, compare two.")
Root = Annotated[Path, Parameter(name="--cache", help="folder of the mask cache")]
Json = Annotated[bool, Parameter(name="--json", help="print JSON", negative=())]
Name = Annotated[str, Parameter(help="a run's id, a beginning that no other has, last, last~1, last-good")]
DEFAULT = Path("maskmill-cache")
SHOWN = 30


@app.command
def ls(
    *,
    cache: Root = DEFAULT,
    flow: Annotated[str, Parameter(help="only runs of this flow")] = "",
    limit: Annotated[int, Parameter(help="the newest so many; 0: all")] = SHOWN,
    json: Json = False,
) -> int:
    """List runs, the newest last: how they ended, what they took, computed and skipped, their scores."""
    from artifacts.cache.run_history import facts
    from artifacts.cache.runs import all_runs
    from flows.cli.runs_tables import outcome_line, runs_table

    runs = [run for run in all_runs(_there(cache)) if not flow or run.run_id.split("-")[2:-1] == flow.split("-")]
    found = [facts(run) for run in (runs[-limit:] if limit > 0 else runs)]
    if json:
        print_json({"runs": found})
        return 0
    console = terminal(highlight=False, width=None if sys.stdout.isatty() else UNFOLDED)
    if not found:
        console.print("no run here yet")
        return 0
    console.print(runs_table(found))
    if len(runs) > len(found):
        console.print(f"{len(runs) - len(found):,} older ones: --limit 0")
    if not found[-1].good and found[-1].outcome != "running":
        console.print(escape(outcome_line(found[-1])), soft_wrap=True)
    return 0


@app.command
def show(name: Name = "last", /, *, cache: Root = DEFAULT, json: Json = False) -> int:
    """Show one run: outcome, times, command, configuration, stages, scores, skips, where its logs and report are."""
    from artifacts.cache.run_history import facts
    from artifacts.cache.runs import MANIFEST, all_runs, named
    from flows.cli.runs_tables import run_lines

    run = named(all_runs(_there(cache)), name)
    one = facts(run)
    manifest = {} if one.outcome == "damaged" or not (run.path / MANIFEST).exists() else run.manifest()
    if json:
        print_json({"run": one, "manifest": manifest})
    else:
        run_lines(one, manifest, terminal(highlight=False, soft_wrap=True))
    return 0


@app.command
def log(
    name: Name = "last",
    /,
    *,
    cache: Root = DEFAULT,
    stage: Annotated[str, Parameter(help="label of a fit: its own log, with all that it printed")] = "",
    lines: Annotated[int, Parameter(help="only the last so many; 0: all")] = 0,
    json: Json = False,
) -> int:
    """Print a run's log, or that of one of its fits."""
    from artifacts.cache.run_history import facts
    from artifacts.cache.runs import all_runs, named

    one = facts(named(all_runs(_there(cache)), name))
    if stage and stage not in one.fit_logs:
        raise DataError(f"{one.run}: no log of {stage!r}; there are {', '.join(one.fit_logs) or 'none of fits'}")
    path = one.fit_logs[stage] if stage else one.log
    if not path:
        raise DataError(f"{one.run}: it left no log")
    text = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    text = text[-lines:] if lines > 0 else text
    if json:
        print_json({"run": one.run, "log": path, "fit_logs": one.fit_logs, "lines": text})
        return 0
    console = terminal(highlight=False, soft_wrap=True)
    for line in text:
        console.print(escape(line))
    if one.fit_logs and not stage:
        console.print(f"(logs of fits: --stage {' | '.join(map(escape, one.fit_logs))})")
    return 0


@app.command
def compare(
    before: Name = "last~1",
    after: Name = "last",
    /,
    *,
    cache: Root = DEFAULT,
    json: Json = False,
) -> int:
    """Say what changed from one run to another: parameters, pictures, scores, skips, what was computed and refitted."""
    from artifacts.cache.run_history import compare as changes
    from artifacts.cache.runs import all_runs, named
    from flows.cli.runs_tables import comparison

    runs = all_runs(_there(cache))
    found = changes(named(runs, before), named(runs, after))
    if json:
        print_json(found)
    else:
        comparison(found, terminal(highlight=False, soft_wrap=True))
    return 0


def _there(cache: Path) -> Path:
    if not cache.is_dir():
        raise DataError(f"--cache {cache}: no such folder; a run makes it, e.g. `maskmill cfs --data demo`")
    return cache
