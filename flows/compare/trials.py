"""Trials: each variant with each of its seeds, one after the other in ONE cache, so that what they share is done once.

A trial is an ordinary run of its flow's page. No state is kept here about earlier trials: it is in the cache.
Only the worker processes are kept from trial to trial: new ones would import torch again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from artifacts.cache.fit_store import FitStore
from artifacts.cache.locks import LockAborted
from artifacts.cache.runs import list_runs
from artifacts.datasets import DataParams
from artifacts.records import DataError, Kind, Sets
from artifacts.report.comparison import Line, flat_scores
from artifacts.report.html import duration
from flows.compare.variants import SeedPath, Variant, seed_paths, shared_options, with_seed, without_seeds
from flows.config import ConfigError
from flows.run_flow import Plan, plan_page, run_page
from tasks.engine.children import Stopped
from tasks.engine.options import RunParams
from tasks.engine.pending import Sources
from tasks.engine.progress import Reporter
from tasks.engine.runner import Runner
from tasks.engine.stage_report import StageReport
from tasks.engine.workers import Workers
from tasks.evaluate.finish import Result, read_of
from tasks.stage import FitHandle, Handle

AROUND = ""
"""In :class:`History`: what a run takes beside its stages (scores, pictures)."""
LOOKED_AT = 300
"""Newest runs that an estimate may come from."""


@dataclass(frozen=True)
class Trial:
    """One variant with one seed."""

    variant: Variant
    seed: int
    params: Any = field(repr=False)
    """The variant's, with the seed in every fit."""

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.variant.name}, seed {self.seed}"


@dataclass(frozen=True)
class Attempt:
    """The outcome of a trial."""

    variant: str
    seed: int
    status: Literal["done", "failed"]
    seconds: float
    run: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """As :func:`artifacts.report.comparison.flat_scores` and :func:`curve_ends` give them."""
    shown: tuple[str, ...] = ("masks",)
    """Names of the flow's masks and predictions in its scores."""
    computed: Mapping[str, int] = field(default_factory=dict)
    """Stage -> images (or fits) worked on; stages that were cached are left out."""
    skipped: int = 0
    report: str = ""
    error: str = ""
    work_s: float | None = None
    """What its stages have taken, or took when they were computed; ``None`` where that is not known of all."""


@dataclass(frozen=True)
class Forecast:
    """What a trial has to do, and how long it may take."""

    stages: tuple[StageReport, ...]
    seconds: float
    unknown: tuple[str, ...] = ()
    """Stages with work to do that no run in the cache has timed: not in ``seconds``."""

    def shown(self) -> str:
        """``3 min 10 s``, ``at least 3 min 10 s``, ``time unknown``."""
        if not self.unknown:
            return duration(self.seconds)
        return f"at least {duration(self.seconds)}" if self.seconds >= 1 else "time unknown"


class History:
    """Seconds per image (or fit) of earlier runs in a cache: of the same configuration if there is one, else of any,
    scaled by how much more or less work it is.
    """

    def __init__(self, cache: Path, flows: Iterable[str], prior_s: Mapping[str, float] | None = None) -> None:
        """``prior_s``: stage -> seconds of one image or fit, used until a run in the cache has measured it."""
        wanted = set(flows)
        self._same: dict[tuple[str, str, str], float] = {}
        self._like: dict[str, float] = {}
        self._any = dict(prior_s or {})
        self._amounts: dict[str, float] = {}
        """Stage -> work of one image or fit (:mod:`tasks.engine.effort`) where ``_any`` was measured."""
        for run in list_runs(cache)[-LOOKED_AT:]:
            try:
                manifest = run.manifest()
            except DataError:
                continue  # only an estimate is lost
            if manifest.get("flow") in wanted:
                self.add(manifest)

    def add(self, manifest: Mapping[str, Any]) -> None:
        """Take the times of a run; newer ones replace older ones."""
        flow, params = manifest["flow"], _identity(manifest.get("recipe", {}).get("params", {}))
        times = {s["label"]: s["seconds"] / s["computed"] for s in manifest["stages"] if s.get("computed")}
        if manifest["status"] == "finished":
            times[AROUND] = max(0.0, manifest["seconds"] - sum(stage["seconds"] for stage in manifest["stages"]))
        for label, seconds in times.items():
            self._same[flow, params, label] = seconds
            self._any[label] = seconds
        self._amounts |= {s["label"]: s.get("amount", 0.0) / (s.get("total") or 1) for s in manifest["stages"]}
        for stage in manifest["stages"]:
            if stage.get("like") and stage["computed"]:
                share = stage["computed"] / stage["total"] if stage["kind"] == "map" else 1.0
                self._like[stage["like"]] = stage["seconds"] / (stage["amount"] * share)

    def work_seconds(self, manifest: Mapping[str, Any]) -> float | None:
        """What a run's stages take from nothing, by the runs that computed them; ``None`` if one was never timed."""
        worked = [stage for stage in manifest["stages"] if stage["amount"]]
        found = [self._like.get(stage["like"], math.nan) * stage["amount"] for stage in worked]
        return None if any(map(math.isnan, found)) else math.fsum(found)

    def seconds(self, flow: str, params: Any, label: str, amount: float = 0.0) -> float | None:
        """Of one image or fit of so much work (0: not known); ``None`` if no run in the cache has done that stage."""
        same = self._same.get((flow, _identity(asdict(params)), label))
        if same is not None or label not in self._any:
            return same
        known = self._amounts.get(label, 0.0)
        return self._any[label] * (amount / known if amount and known else 1.0)


def _identity(plain_params: Any) -> str:
    return json.dumps(without_seeds(plain_params), sort_keys=True)


# -- before ----------------------------------------------------------------------------------------------------------


class Planned:
    """Digests of the images and labels that several plans in a row read, by the sets: labels are decoded once."""

    def __init__(self) -> None:
        """None yet."""
        self._known: list[tuple[Sets, Sources]] = []

    def plan(self, variant: Variant, page: Any, params: Any, sets: Sets, options: RunParams) -> Plan:
        """The plan of one variant's page."""
        own = variant.sets or sets
        sources = next((known for of, known in self._known if of is own), None)
        plan = plan_page(variant.flow, page, own, params, replace(options, rerun=()), sources)
        if sources is None and plan.sources is not None:
            self._known.append((own, plan.sources))
        return plan


def make_trials(variants: Sequence[Variant], sets: Sets, options: RunParams) -> list[Trial]:
    """All trials, the first seed of every variant before the second of any: a run cut short leaves whole columns.

    Every page is planned, so that what cannot run is refused here. Raises :class:`ConfigError` where several seeds are
    requested and a fit of the flow has no seed parameter.
    """
    planned = Planned()
    paths = {variant.name: fit_seeds(variant, sets, options, planned) for variant in variants}
    trials = []
    for place in range(max(len(variant.seeds) for variant in variants)):
        for variant in (variant for variant in variants if place < len(variant.seeds)):
            seed = variant.seeds[place]
            trials.append(Trial(variant, seed, with_seed(variant.params, seed, paths[variant.name])))
    return trials


def fit_seeds(variant: Variant, sets: Sets, options: RunParams, planned: Planned | None = None) -> list[SeedPath]:
    """Where the seeds of the variant's fits stand in its params, found by trying.

    Seeds of map stages are none of them: a stage that all seeds share is computed once. Raises :class:`ConfigError`
    for a fit whose seed no parameter decides.
    """
    planned = planned or Planned()
    every = seed_paths(variant.params)
    probe = 1 + max((operator.attrgetter(".".join(path))(variant.params) for path in every), default=0)
    found = [
        path
        for path in every
        if probe in _seeds(variant, with_seed(variant.params, probe, [path]), sets, options, planned)
    ]
    seeds = _seeds(variant, with_seed(variant.params, probe, found), sets, options, planned)
    if len(variant.seeds) > 1 and seeds - {probe}:  # a page without a fit is the same under every seed
        raise ConfigError(f"variant {variant.name!r}: not every fit of its flow takes a seed; give one seed")
    return found


def _seeds(variant: Variant, params: Any, sets: Sets, options: RunParams, planned: Planned) -> set[int]:
    """The seeds of the fits that the variant's page plans with ``params``."""
    handles = _handles(replace(variant, params=params), sets, options, planned)
    return {handle.stage.seed for handle in handles if isinstance(handle, FitHandle)}


def weak_kinds(variant: Variant, sets: Sets, options: RunParams) -> tuple[set[Kind], set[Kind]]:
    """The label kinds that the variant's stages read of the training images, and of its auxiliary ones."""
    handles = _handles(variant, sets, options, Planned())
    aux = (variant.sets or sets).aux
    return read_of(handles, sets.train), set() if aux is None else read_of(handles, aux)


def addresses(variants: Sequence[Variant], sets: Sets, options: RunParams) -> dict[str, list[str]]:
    """Variant -> addresses of its stages, without seeds other than its params' own."""
    planned = Planned()
    return {
        variant.name: sorted({handle.address for handle in _handles(variant, sets, options, planned)})
        for variant in variants
    }


def _handles(variant: Variant, sets: Sets, options: RunParams, planned: Planned) -> list[Handle]:
    """The handles of the variant's page, planned only."""
    kept: list[Handle] = []

    def recorded(run: Runner, sets: Sets, params: Any) -> Result:
        try:
            return variant.page(run, sets, params)
        finally:  # options.until ends the page early
            kept.extend(run.handles)

    planned.plan(variant, recorded, variant.params, sets, options)
    return kept


def forecast(
    trial: Trial,
    sets: Sets,
    options: RunParams,
    history: History,
    seen: set[str] | None = None,
    planned: Planned | None = None,
) -> Forecast:
    """What is left to do for a trial. Stages in ``seen`` count as done, and those found here are entered into it."""
    flow = trial.variant.flow
    plan = (planned or Planned()).plan(trial.variant, trial.variant.page, trial.params, sets, options)
    known = set() if seen is None else seen
    total, unknown, stages = history.seconds(flow, trial.params, AROUND) or 0.0, [], []
    for stage in plan.stages:
        identity = f"{stage.label} {stage.address}"
        items = stage.to_compute + stage.unknown
        if not items or identity in known:
            stages.append(replace(stage, cached=stage.total, unknown=0))
            continue
        known.add(identity)
        stages.append(stage)
        each = history.seconds(flow, trial.params, stage.label, stage.amount / max(1, stage.total))
        if each is None:
            unknown.append(stage.label)
        else:
            total += each * items
    return Forecast(tuple(stages), total, tuple(unknown))


# -- the work --------------------------------------------------------------------------------------------------------


def run_trials(
    trials: Sequence[Trial],
    data: DataParams,
    sets: Sets,
    options: RunParams,
    history: History,
    *,
    budget_s: float | None = None,
    reporter: Callable[[], Reporter | None] = lambda: None,
    write_line: Callable[[str], None] = lambda text: None,
    after: Callable[[list[Attempt]], None] = lambda attempts: None,
) -> tuple[list[Attempt], str]:
    """Run the trials in order; one that fails is recorded and the others are done.

    Args:
        trials: as :func:`make_trials` gives them.
        data: what they learn from.
        sets: the same, read.
        options: cache and workers of all; reports go to ``out/runs/<variant>/seed-<n>``.
        history: of the cache; what is done here is added to it.
        budget_s: before a trial that would not end within so many seconds from now, by the times of earlier runs, the
            work ends. A trial without such a time is begun while any time is left.
        reporter: a new progress reporter for each trial.
        write_line: called with one line at the start and one at the end of each trial.
        after: called with all attempts so far, after each.

    Returns:
        The attempts, and why the rest was not done ("" if all were).
    """
    started = time.monotonic()
    attempts: list[Attempt] = []
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers())
        for number, trial in enumerate(trials, 1):
            expected = forecast(trial, sets, options, history)
            spent = time.monotonic() - started
            if budget_s is not None and spent + expected.seconds > budget_s:
                return attempts, (
                    f"{len(trials) - number + 1} of {len(trials)} trials are left: {trial.name} would take"
                    f" {expected.shown()}, and {duration(max(0.0, budget_s - spent))} of {duration(budget_s)} are left"
                )
            write_line(f"[{number}/{len(trials)}] {trial.name} ({expected.shown()})")
            attempts.append(run_trial(trial, data, options, history, reporter(), workers))
            if workers.stop.is_set():  # the trial failed, and has ended its processes
                workers = stack.enter_context(Workers())
            write_line(_summary(attempts[-1]))
            after(attempts)
    return attempts, ""


def run_trial(
    trial: Trial,
    data: DataParams,
    options: RunParams,
    history: History,
    reporter: Reporter | None = None,
    workers: Workers | None = None,
) -> Attempt:
    """One ordinary run. An error in it is its result; a request to stop is not.

    ``workers``: lent to the run; if it fails, they are spent.
    """
    out = Path(options.out) / "runs" / slug(trial.variant.name) / f"seed-{trial.seed}"
    started = time.monotonic()
    try:
        result = run_page(
            trial.variant.flow,
            trial.variant.page,
            trial.variant.data or data,
            trial.params,
            shared_options(options, out),
            reporter=reporter,
            workers=workers,
        )
    except (Stopped, LockAborted):
        raise
    except Exception as error:
        seconds = time.monotonic() - started
        return Attempt(
            trial.variant.name, trial.seed, "failed", seconds, error=f"{str(error).strip() or type(error).__name__}"
        )
    history.add(result.manifest)
    return Attempt(
        trial.variant.name,
        trial.seed,
        "done",
        time.monotonic() - started,
        run=result.run_id,
        scores=flat_scores(result.scores) | curve_ends(result.manifest, Path(options.cache)),
        shown=("masks", *result.manifest.get("predictions", ())),
        computed={stage["label"]: stage["computed"] for stage in result.manifest["stages"] if stage["computed"]},
        skipped=len(result.manifest["skips"]),
        report=result.files.get("report", ""),
        work_s=history.work_seconds(result.manifest),
    )


def curve_ends(manifest: Mapping[str, Any], cache: Path) -> dict[str, float]:
    """The last numbers that a run's fits have logged: ``"bpg: edge"``, say; of no table but the claims'."""
    found: dict[str, float] = {}
    for stage in manifest["stages"]:
        if stage["kind"] == "fit" and isinstance(stage["stamps"], str):
            for one in FitStore(cache).publications(stage["address"], stage["stamps"]):
                if one.digest == stage["output"] and one.metrics.is_file():
                    lines = map(json.loads, one.metrics.read_text().splitlines())
                    last = [line for line in lines if "loss" in line][-1:]
                    found |= {f"{stage['label']}: {name}": number for line in last for name, number in line.items()}
    return found


def slug(name: str) -> str:
    """A variant's name as a folder name; where characters were replaced, a digest distinguishes "a b" and "a/b"."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return plain if plain == name else f"{plain or 'variant'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _summary(attempt: Attempt) -> str:
    if attempt.status == "failed":
        return f"  failed after {duration(attempt.seconds)}: {attempt.error}"
    worked = ", ".join(f"{label} {count}" for label, count in attempt.computed.items())
    return f"  {duration(attempt.seconds)}; computed: {worked or 'nothing, all was cached'}"


def as_lines(variants: Sequence[Variant], attempts: Sequence[Attempt]) -> list[Line]:
    """The rows of the table: every variant, also one of which nothing is done."""
    lines = []
    for variant in variants:
        own = [attempt for attempt in attempts if attempt.variant == variant.name]
        done = [attempt for attempt in own if attempt.status == "done"]
        columns = dict.fromkeys(column for attempt in done for column in attempt.scores)
        scores = {
            column: {attempt.seed: attempt.scores[column] for attempt in done if column in attempt.scores}
            for column in columns
        }
        shown = tuple(dict.fromkeys(name for attempt in done for name in attempt.shown))
        lines.append(Line(variant.name, scores, len(done), len(variant.seeds), len(own) - len(done), shown))
    return lines
