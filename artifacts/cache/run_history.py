"""What runs left behind, as facts: one run's, and what changed between two.

All of it is read from the runs' folders; no array and no picture is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from artifacts.cache.runs import MANIFEST, RunFolder, Stamps, read_pictures, read_stamps
from artifacts.records import DataError

OUTCOMES = ("running", "done", "done with skips", "done with failures", "failed", "interrupted", "killed", "damaged")
"""How a run stands. *interrupted*: by a signal that it could answer. *killed*: it could not. *damaged*: unreadable."""


@dataclass(frozen=True)
class RunFacts:
    """One run, as `maskmill runs ls | show` tells it."""

    run: str
    flow: str
    outcome: str
    started: float
    """Seconds since the epoch."""
    seconds: float
    """What it took; of one that runs or was killed: until its last sign of life."""
    data: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Masks and predictions -> mIoU (0..1)."""
    skips: int = 0
    computed: Mapping[str, int] = field(default_factory=dict)
    """Stage -> images (or fits) that were worked on; stages that were cached are left out."""
    pinned: tuple[str, ...] = ()
    """Fits for which an older network stood in."""
    stage: str = ""
    """The one in which it failed, or is."""
    error: str = ""
    failures: tuple[str, ...] = ()
    """What failed at the end of a run whose masks are complete."""
    log: str = ""
    fit_logs: Mapping[str, str] = field(default_factory=dict)
    report: str = ""
    out: str = ""
    config: str = ""
    """The whole configuration of the run, as YAML."""
    folder: str = ""
    """In which it was started: relative paths of its configuration begin there."""
    command: str = ""
    """Does the same again, or goes on where it ended."""
    process: str = ""

    @property
    def good(self) -> bool:
        """Whether it came to its end and failed in nothing."""
        return self.outcome in ("done", "done with skips")


def facts(run: RunFolder) -> RunFacts:
    """What is known of one run; a damaged manifest is an outcome, not an error."""
    live = run.live
    progress = run.progress()
    flow, started = _from_name(run)
    common: dict[str, Any] = {
        "run": run.run_id,
        "log": str(run.log) if run.log.exists() else "",
        "fit_logs": {path.stem: str(path) for path in sorted(run.path.glob("*.log")) if path != run.log},
        "process": str(progress.get("process", "")),
    }
    seen = max(0.0, float(progress.get("updated", started)) - started)
    try:
        manifest = run.manifest()
    except DataError:
        damaged = (run.path / MANIFEST).exists()
        outcome = "running" if live else "damaged" if damaged else "killed"
        return RunFacts(
            flow=flow, outcome=outcome, started=started, seconds=seen, stage=progress.get("stage", ""), **common
        )
    status, skips, failures = manifest.get("status", ""), manifest.get("skips", []), manifest.get("failures", [])
    ended = not live and (status in ("failed", "interrupted") or run.finished(manifest))
    outcome = "running" if live else status if ended else "killed"
    if ended and status == "finished":
        outcome = "done with failures" if failures else "done with skips" if skips else "done"
    wanted = tuple(f"{name} (" for name in ("masks", *manifest.get("predictions", {})))
    stages = manifest.get("stages", [])
    return RunFacts(
        flow=str(manifest.get("flow", flow)),
        outcome=outcome,
        started=float(manifest.get("started", started)),
        seconds=float(manifest.get("seconds", 0.0)) if ended else max(seen, float(manifest.get("seconds", 0.0))),
        data=str((manifest.get("recipe") or {}).get("data", {}).get("source", "")),
        scores={name: one["miou"] for name, one in manifest.get("scores", {}).items() if name.startswith(wanted)},
        skips=len(skips),
        computed={stage["label"]: stage["computed"] for stage in stages if stage.get("computed")},
        pinned=tuple(stage["label"] for stage in stages if stage.get("pinned")),
        stage=str(manifest.get("stage", "") if ended else progress.get("stage", "")),
        error=str(manifest.get("error", "")),
        failures=tuple(failures),
        report=str(manifest.get("files", {}).get("report", "")),
        out=str(manifest.get("options", {}).get("out", "")),
        config=str(run.path / CONFIG) if (run.path / CONFIG).exists() else "",
        folder=str(manifest.get("folder", "")),
        command=str(manifest.get("command", "")),
        **common,
    )


CONFIG = "config.yaml"


def _from_name(run: RunFolder) -> tuple[str, float]:
    """Flow and start, as the folder's name has them."""
    day, clock, *parts = [*run.run_id.split("-"), "", ""]
    with contextlib.suppress(ValueError):
        begun = datetime.strptime(f"{day}-{clock[:6]}", "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        return "-".join(parts[:-3]), begun.timestamp() + int(clock[6:] or 0) / 1e6
    with contextlib.suppress(OSError):
        return "", run.path.stat().st_mtime
    return "", 0.0


# -- two runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PictureChanges:
    """What became of one set's pictures, by key."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Old key -> new key of the same image."""
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key -> what is other: ``image``, or label kinds that both runs read."""
    same: int = 0


@dataclass(frozen=True)
class StageChange:
    """One stage in both runs; a number is ``None`` where a run had no such stage."""

    label: str
    kind: str
    computed: tuple[int | None, int | None]
    """Images (or fits) that each run worked on."""
    other_params: bool
    """Its address is another: by its params, its version, or those of a stage above."""
    results: str
    """``same``, ``other``, or of a map stage how many results differ (added and removed pictures left out)."""
    pinned: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Comparison:
    """What changed from one run to another."""

    before: RunFacts
    after: RunFacts
    parameters: Mapping[str, tuple[Any, Any]]
    """Dotted name of data and params -> values; ``None`` where a run had none."""
    options: Mapping[str, tuple[Any, Any]]
    libraries: Mapping[str, tuple[Any, Any]]
    scores: Mapping[str, tuple[float | None, float | None]]
    """Every set of masks -> mIoU (0..1)."""
    skips_new: tuple[Mapping[str, Any], ...]
    skips_gone: tuple[Mapping[str, Any], ...]
    pictures: Mapping[str, PictureChanges | None]
    """Set -> changes; ``None`` where a run left no list (it was killed, or the list was removed)."""
    stages: tuple[StageChange, ...]
    refitted: tuple[str, ...]
    """Fits that the second run did itself."""


def compare(before: RunFolder, after: RunFolder) -> Comparison:
    """What changed from ``before`` to ``after``. Raises :class:`DataError` where one left no manifest."""
    old, new = before.manifest(), after.manifest()
    recipes = [flat({name: m.get("recipe", {}).get(name) or {} for name in ("data", "params")}) for m in (old, new)]
    skips = [{(one["key"], one["reason"]): one for one in m.get("skips", [])} for m in (old, new)]
    sets = dict.fromkeys([*old.get("pictures", {}), *new.get("pictures", {})])
    stages = stage_changes(before.cache, after.cache, old.get("stages", []), new.get("stages", []))
    scores = [{name: float(one["miou"]) for name, one in m.get("scores", {}).items()} for m in (old, new)]
    return Comparison(
        facts(before),
        facts(after),
        parameters=differing(*recipes),
        options=differing(flat(old.get("options", {})), flat(new.get("options", {}))),
        libraries=differing(old.get("libraries", {}), new.get("libraries", {})),
        scores={name: (scores[0].get(name), scores[1].get(name)) for name in dict.fromkeys([*scores[0], *scores[1]])},
        skips_new=tuple(one for name, one in skips[1].items() if name not in skips[0]),
        skips_gone=tuple(one for name, one in skips[0].items() if name not in skips[1]),
        pictures={name: _pictures(before.cache, after.cache, name, old, new) for name in sets},
        stages=stages,
        refitted=tuple(stage.label for stage in stages if stage.kind == "fit" and stage.computed[1]),
    )


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as ``{"a.b": leaf}``."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{name}.{key}" if name else str(key))
    return found


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> both values, where they are not equal."""
    names = dict.fromkeys([*before, *after])
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _pictures(
    cache: Path, other: Path, name: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> PictureChanges | None:
    names = [manifest.get("pictures", {}).get(name) for manifest in (old, new)]
    before = read_pictures(cache, names[0]) if names[0] else None
    after = read_pictures(other, names[1]) if names[1] else None
    return None if before is None or after is None else picture_changes(before, after)


def picture_changes(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> PictureChanges:
    """Of two lists of pictures (``artifacts.cache.runs.Pictures``). A removed and an added one of equal image: renamed.

    Where several share an image, they are paired in the order of their keys.
    """
    removed = {key: before[key].get("image") for key in sorted(before.keys() - after.keys())}
    added = sorted(after.keys() - before.keys())
    by_image: dict[str, list[str]] = {}
    for key, image in reversed(removed.items()):
        if image:
            by_image.setdefault(image, []).append(key)
    renamed: dict[str, str] = {}
    for key in added:
        if old := by_image.get(after[key].get("image", "")):
            renamed[old.pop()] = key
    both = before.keys() & after.keys()
    changed = {key: _other(before[key], after[key]) for key in sorted(both)}
    changed = {key: kinds for key, kinds in changed.items() if kinds}
    names = set(renamed.values())
    return PictureChanges(
        tuple(key for key in added if key not in names),
        tuple(key for key in removed if key not in renamed),
        renamed,
        changed,
        len(both) - len(changed),
    )


def _other(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(kind for kind in before.keys() & after.keys() if before[kind] != after[kind]))


def stage_changes(
    cache: Path, other: Path, before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]
) -> tuple[StageChange, ...]:
    """Stages of two manifests by their labels, those of the second run first."""
    old, new = ({stage["label"]: stage for stage in stages} for stages in (before, after))
    found = []
    for label in dict.fromkeys([*new, *old]):
        pair = old.get(label), new.get(label)
        here, there = pair
        one: Mapping[str, Any] = there or here or {}
        found.append(
            StageChange(
                label,
                str(one.get("kind", "")),
                (_computed(here), _computed(there)),
                here is not None and there is not None and here.get("address") != there.get("address"),
                "" if here is None or there is None else _results(cache, other, here, there),
                (bool(here and here.get("pinned")), bool(there and there.get("pinned"))),
            )
        )
    return tuple(found)


def _computed(stage: Mapping[str, Any] | None) -> int | None:
    return None if stage is None else int(stage.get("computed", 0))


def _results(cache: Path, other: Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Whether a stage's results are the same: known by weights, or by address and stamps."""
    if here.get("kind") == "fit":
        outputs = here.get("output"), there.get("output")
        return "" if not all(outputs) else "same" if outputs[0] == outputs[1] else "other"
    if here.get("address") != there.get("address"):
        return "other"
    if here.get("stamps") == there.get("stamps"):
        return "same"
    lists: list[Stamps] = []
    for folder, stage in ((cache, here), (other, there)):
        try:
            lists.append(read_stamps(folder, str(stage.get("stamps"))))
        except (DataError, ValueError):
            return ""
    both = lists[0].keys() & lists[1].keys()
    count = sum(lists[0][key][0] != lists[1][key][0] for key in both)
    return f"{count} other" if count else "same"
