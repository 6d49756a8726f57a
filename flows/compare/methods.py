"""Different flows on one data set: read from a file, checked to be comparable, and their table.

```yaml
boxes: {flow: cfs, config: demo}
"boxes, masks of other classes": {flow: lpg, config: demo-lpg, data: {aux: {source: demo-auxiliary}}}
tags: {flow: rrm, params: {crf: deeplab-v2}}
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.datasets import DataParams
from artifacts.records import Kind, RecordSet, Sets
from artifacts.report.comparison import Line, ScoreTable
from artifacts.report.html import duration
from artifacts.report.score_lines import DASH
from flows.compare.trials import Attempt, as_lines, weak_kinds
from flows.compare.variants import SEED, Variant, assignments, check_variants, read_mappings
from flows.config import ConfigError
from flows.configure import Job, configure, load
from flows.registry import FLOWS
from flows.run_flow import read_sets
from tasks.engine.options import RunParams

PARTS = ("flow", "config", "params", "data")
ITS_OWN = frozenset({"aux", "scribbles", "scribble_files", "scribble_origin", "tag_separator"})
"""Fields of ``DataParams`` in which flows may differ: the pictures, their classes and their truth stay the same."""
COUNTED: Mapping[Kind, str] = {"tags": "tags", "boxes": "boxes", "scribbles": "scribbles", "truth": "masks"}
"""Label kind that a person makes -> its name in the table and in ``--minutes``."""


@dataclass(frozen=True)
class Method:
    """One entry of the file."""

    name: str
    flow: str
    config: str | None
    sets: tuple[str, ...]


def read_methods(path: Path) -> list[Method]:
    """The file's entries. Raises :class:`ConfigError` that names the entry and what is wrong with it."""
    found = []
    for name, given in read_mappings(path).items():
        where = f"{path}: variant {name!r}"
        if unknown := [key for key in given if key not in PARTS]:
            raise ConfigError(f"{where}: unknown {unknown[0]!r}; there are {', '.join(PARTS)}")
        flow = given.get("flow")
        if flow not in list(FLOWS):  # a list: whatever YAML gives may be compared, not all of it hashed
            raise ConfigError(f"{where}: flow: expected one of {', '.join(FLOWS)}, found {flow!r}")
        config = given.get("config")
        if not isinstance(config, str | None):
            raise ConfigError(f"{where}: config: expected a YAML file or a shipped name, found {config!r}")
        parts = {part: given[part] for part in ("params", "data") if given.get(part) is not None}
        if wrong := [part for part, value in parts.items() if not isinstance(value, dict)]:
            raise ConfigError(f"{where}: {wrong[0]}: expected {{KEY: VALUE}}, found {parts[wrong[0]]!r}")
        sets = tuple(assignments(parts))
        keys = (one.partition("=")[0] for one in sets)
        if seeds := [key for key in keys if key.startswith("params.") and key.rpartition(".")[2] == SEED]:
            raise ConfigError(f"{where}: {seeds[0]}: seeds are given by --seeds, the same ones to every variant")
        found.append(Method(name, flow, config, sets))
    return found


def build_methods(
    given: Sequence[Method],
    seeds: tuple[int, ...],
    *,
    data: str | None,
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[list[Variant], Job]:
    """The flows as variants with data of their own, all checked, and the first one's job (options, data).

    Raises :class:`ConfigError` before any work, also where they would not see the same pictures or be run alike.
    """
    found: list[Variant] = []
    jobs: list[Job] = []
    read: dict[DataParams, Sets] = {}
    for method in given:
        try:
            job = configure(method.flow, data, method.config, [*sets, *method.sets], options or {})
        except ConfigError as error:
            raise ConfigError(f"variant {method.name!r}: {str(error).replace('--set: ', '')}") from error
        if jobs:
            _check_alike(given[0].name, jobs[0], method.name, job)
        jobs.append(job)
        if job.data not in read:
            read[job.data] = read_sets(job.data, jobs[0].options)
        page, _, _ = load(method.flow)
        settings = (f"flow={method.flow}", *([f"config={method.config}"] if method.config else []), *method.sets)
        found.append(Variant(method.name, method.flow, page, job.params, seeds, settings, job.data, read[job.data]))
    check_variants(found)
    return found, jobs[0]


def _check_alike(first: str, job: Job, name: str, other: Job) -> None:
    """Raise :class:`ConfigError` unless two flows see the same pictures and are run alike."""
    one, two = asdict(job.data), asdict(other.data)
    for key in (key for key in one if key not in ITS_OWN and one[key] != two[key]):
        raise ConfigError(
            f"variant {name!r} has data.{key}={two[key]!r}, {first!r} has {one[key]!r}: flows are compared on the same"
            f" pictures; give all of them the same, by --data or --set data.{key}=..."
        )
    one, two = (asdict(replace(j.options, export=(), rerun=(), until="")) for j in (job, other))
    for key in (key for key in one if one[key] != two[key]):
        raise ConfigError(
            f"variant {name!r} has options.{key}={two[key]!r}, {first!r} has {one[key]!r}: all are run alike; give"
            f" --set options.{key}=..."
        )


def parse_minutes(text: str) -> dict[str, float]:
    """``"tags=0.3,boxes=0.6"``: minutes a picture of each kind of label. Raises :class:`ConfigError`."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, number = part.partition("=")
        try:
            found[kind] = float(number)
        except ValueError:
            found[kind] = -1.0
        if kind not in COUNTED.values() or not 0 <= found[kind] < float("inf"):
            kinds = ", ".join(COUNTED.values())
            raise ConfigError(f"--minutes {part}: expected KIND=MINUTES of {kinds}, e.g. boxes=0.6,tags=0.1")
    return found


@dataclass(frozen=True)
class Methods:
    """What the table of flows needs beside the runs' results."""

    labels: Mapping[str, str]
    """Variant -> the labels that its stages read, counted."""
    hours: Mapping[str, float | None]
    """Variant -> hours to make these labels; ``None`` where ``--minutes`` lacks one of their kinds."""
    minutes: Mapping[str, float]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, variants: Sequence[Variant], sets: Sets, options: RunParams, minutes: Mapping[str, float]) -> Methods:
        """Count the labels that each variant's page, planned, reads."""
        labels: dict[str, str] = {}
        hours: dict[str, float | None] = {}
        for variant in variants:
            own = variant.sets or sets
            used = zip((own.train, own.aux), weak_kinds(variant, own, options), strict=True)
            parts = [(records, kind) for records, kinds in used if records for kind in COUNTED if kind in kinds]
            labels[variant.name] = ", ".join(_counted(records, kind, own.aux) for records, kind in parts) or DASH
            known = all(COUNTED[kind] in minutes for _, kind in parts)
            total = sum(len(records) * minutes[COUNTED[kind]] for records, kind in parts) if known else 0.0
            hours[variant.name] = total / 60 if known else None
        said = [f"Labels' cost: {cost}" for v in variants if (cost := FLOWS[v.flow].label_cost)]
        notes = [
            "Student: the flow's last network on the evaluation pictures, named where it is called otherwise.",
            "Time: of all stages from nothing, as measured when they were computed; cached work is not free.",
            *dict.fromkeys(said),
        ]
        if minutes:
            given = ", ".join(f"{kind} {number:g}" for kind, number in minutes.items())
            notes.append(f"Labelling: minutes a picture as given by --minutes ({given}), times pictures.")
        else:
            notes.append("With your own times the table has a column for labelling: --minutes tags=...,boxes=...")
        return cls(labels, hours, minutes, tuple(notes))

    def table(self, variants: Sequence[Variant], attempts: Sequence[Attempt]) -> ScoreTable:
        """One row a variant: masks, objects, student, seconds, labels."""
        rows = []
        for variant, line in zip(variants, as_lines(variants, attempts), strict=True):
            hours = self.hours[variant.name]
            rows.append(
                [
                    variant.name,
                    variant.flow,
                    line.cell(_column(line, "masks", "mIoU")),
                    line.cell(_column(line, "masks", "object IoU")),
                    _student(line),
                    _seconds([a for a in attempts if a.variant == variant.name]),
                    self.labels[variant.name],
                    *([DASH if hours is None else duration(3600 * hours)] if self.minutes else []),
                    line.state,
                ]
            )
        labelling = ["labelling"] if self.minutes else []
        head = ["variant", "flow", "masks mIoU", "object IoU", "student mIoU", "time", "labels", *labelling, "runs"]
        return ScoreTable("Methods, per cent", head, rows, ("variant", "flow", "labels"))


def _counted(records: RecordSet, kind: Kind, aux: RecordSet | None) -> str:
    """``446 boxes``, ``12 auxiliary masks``."""
    values = [getattr(record, kind) for record in records]
    # A mask (of truth, or of what is scribbled on) is one label.
    count = sum(len(value) if isinstance(value, tuple) else value is not None for value in values)
    other = "auxiliary " if records is aux else ""
    return f"{count:,} {other}{COUNTED[kind]}"


def _column(line: Line, name: str, what: str) -> str:
    """The column of ``name``'s score, in whatever split; a name of none where there is none."""
    return next((one for one in line.scores if one.startswith(f"{name} (") and one.endswith(f") {what}")), "")


def _student(line: Line) -> str:
    name = next(reversed(line.shown), "masks")
    if name == "masks" or not (column := _column(line, name, "mIoU")):
        return DASH
    return line.cell(column) + ("" if name == "student" else f" ({name})")


def _seconds(attempts: Sequence[Attempt]) -> str:
    known = [attempt.work_s for attempt in attempts if attempt.work_s is not None]
    return duration(sum(known) / len(known)) if known else DASH
