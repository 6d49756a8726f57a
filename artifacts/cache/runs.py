"""Run folders and manifests: ``<cache>/runs/<id>/manifest.json`` states what a run used and its results.

A run holds ``run.lock`` while it lives, says in ``run.log`` what it does, and in ``progress.json`` how far it is.
The stamps of a map stage go to ``<cache>/stamps/<digest>.json``: shared by all runs in which they are
the same, so that a nightly run over an unchanged folder adds one small manifest.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import json
import logging
import platform
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import keys
from artifacts.cache import locks, sealed
from artifacts.cache.atomic import write_bytes_atomic
from artifacts.records import DataError, shown

log = logging.getLogger("maskmill")
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
IN_USE = "gc.lock"
"""In the cache folder: shared by whoever is about to rely on what is stored, held alone by ``maskmill cache gc``."""
LIBRARIES = (
    "maskmill",
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "h5py",
    "prefect",
    "lightning-fabric",
)

Stamps = dict[str, tuple[str | None, str]]
"""key -> (stamp, or None for an absence; path of the image)."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder in the cache."""

    cache: Path
    run_id: str

    @classmethod
    def create(cls, cache: Path, flow: str) -> RunFolder:
        """A new, empty folder whose name sorts by time."""
        # To the microsecond: by the second, two cached runs in a row had the same, and either could be the latest.
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S%f")
        folder = cls(cache, f"{now}-{flow}-{secrets.token_hex(2)}")
        try:
            folder.path.mkdir(parents=True)
        except OSError as error:
            raise DataError(
                f"{folder.path}: the run's folder cannot be made ({error.strerror}); is the cache full or read-only?"
                " Free some space, or name another folder with --cache"
            ) from error
        return folder

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.cache / "runs" / self.run_id

    @property
    def lock(self) -> Path:
        """Held while the run lives."""
        return self.path / "run.lock"

    @property
    def live(self) -> bool:
        """Whether a living process holds the run's lock."""
        return locks.held(self.lock)

    @property
    def log(self) -> Path:
        """What the run said, for people."""
        return self.path / "run.log"

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Replace ``progress.json``. A failure costs the progress, not the run."""
        with contextlib.suppress(OSError):
            write_bytes_atomic(self.path / PROGRESS, sealed.seal(progress), durable=False)

    def progress(self) -> dict[str, Any]:
        """What :meth:`write_progress` wrote last; empty where there is nothing readable."""
        with contextlib.suppress(OSError, ValueError):
            return sealed.unseal((self.path / PROGRESS).read_bytes())
        return {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> Path:
        """Write (or replace, atomically) the manifest."""
        path = self.path / MANIFEST
        write_bytes_atomic(path, sealed.seal(manifest, indent=1, sort_keys=True))
        return path

    def finished(self, manifest: Mapping[str, Any]) -> bool:
        """Whether it came to its end. Its manifest is complete before exports and report are; these it names last."""
        return manifest.get("status") == "finished" and ("files" in manifest or not self.progress())

    def manifest(self) -> dict[str, Any]:
        """Read the manifest. Raises :class:`DataError` if the run left none."""
        path = self.path / MANIFEST
        try:
            return sealed.unseal(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: no readable manifest ({error}); name another run with --run (`maskmill cache ls` lists them),"
                " or put it aside with `maskmill cache verify --repair`"
            ) from error

    def _repr_html_(self) -> Any:
        return shown("run_html", self)


def list_runs(cache: Path, flow: str | None = None) -> list[RunFolder]:
    """Runs that left a manifest, oldest first; of one flow if named."""
    folders = sorted((cache / "runs").glob(f"[0-9]*/{MANIFEST}"))
    runs = [RunFolder(cache, path.parent.name) for path in folders]
    return [run for run in runs if flow is None or run.run_id.split("-")[2:-1] == flow.split("-")]


def all_runs(cache: Path) -> list[RunFolder]:
    """Every run's folder, oldest first; one that was killed at once has no manifest."""
    names = sorted(path.name for path in (cache / "runs").glob("[0-9]*") if path.is_dir())
    return [RunFolder(cache, name) for name in names]


def in_use(cache: Path) -> Callable[[str], bool]:
    """Whether a run that works now has a stage of this address in its plan; all are, while one has no plan yet."""
    plans = [run.progress().get("plan", ()) for run in all_runs(cache) if run.live]
    planned = {str(stage.get("address", "")) for plan in plans for stage in plan}
    return lambda address: address in planned or not all(plans)


def users(cache: Path) -> dict[str, list[str]]:
    """Address of a stage, and ``address/stamp`` of a fit -> ids of the runs whose manifest names it, oldest first."""
    found: dict[str, list[str]] = {}
    for run in list_runs(cache):
        with contextlib.suppress(DataError):  # an unreadable manifest names nothing
            for stage in run.manifest().get("stages", ()):
                address = stage.get("address", "")
                for name in (address, f"{address}/{stage.get('stamps', '')}"):
                    of_name = found.setdefault(name, [])
                    if run.run_id not in of_name[-1:]:
                        of_name.append(run.run_id)
    return found


def find_run(cache: Path, name: str = "latest") -> RunFolder:
    """The run that :func:`named` finds, or the latest that did anything. Raises :class:`DataError`: what there is."""
    runs = all_runs(cache)
    if not runs:
        raise DataError(f"{cache}: no run here yet; run a flow first, e.g. `maskmill cfs --data demo --cache {cache}`")
    if name != "latest":
        return named(runs, name)
    runs = list_runs(cache)
    for run in reversed(runs):
        with contextlib.suppress(DataError):
            if not run.manifest().get("stages"):
                continue  # it failed before it began: there is nothing in it
        return run
    raise DataError(f"{cache}: every run here failed before its first stage; `maskmill runs show last` says why")


def named(runs: Sequence[RunFolder], name: str) -> RunFolder:
    """A run by its id, a beginning that no other has, ``last``, ``last~1`` (the one before), or ``last-good``.

    ``runs``: oldest first. Raises :class:`DataError` that lists what there is.
    """
    if not runs:
        raise DataError("no run here yet; run a flow first, e.g. `maskmill cfs --data demo`")
    cache = runs[0].cache
    if (back := _LAST.fullmatch(name)) is not None:
        if (number := int(back[1] or 0)) >= len(runs):
            raise DataError(f"{cache}: no run {name}: the number of runs is {len(runs)}")
        return runs[-1 - number]
    if name == "last-good":
        if (good := last_good(runs)) is None:
            raise DataError(f"{cache}: no run came to a good end yet; `maskmill runs ls` lists them")
        return good
    found = [run for run in runs if run.run_id == name] or [run for run in runs if name and run.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(run.run_id for run in (found or runs)[-3:])
    raise DataError(f"{cache}: {'several runs begin' if found else 'no run'} {name!r}; the newest are {there}")


_LAST = re.compile(r"last(?:~(\d{1,6}))?")


def last_good(runs: Sequence[RunFolder]) -> RunFolder | None:
    """The newest of ``runs`` (oldest first) that finished, with skips or without, and failed in nothing."""
    for run in reversed(runs):
        with contextlib.suppress(DataError):
            manifest = run.manifest()
            if run.finished(manifest) and not manifest.get("failures"):
                return run
    return None


def run_before(run: RunFolder, flow: str, source: str | None) -> dict[str, Any] | None:
    """The manifest of the newest finished run of ``flow`` before this one on the same data, among the last 20."""
    for folder in reversed(list_runs(run.cache, flow)[-20:]):
        with contextlib.suppress(DataError):  # only a comparison is lost
            found = folder.manifest()
            same = (found.get("recipe") or {}).get("data", {}).get("source") == source
            if folder.run_id < run.run_id and found.get("status") == "finished" and same:
                return found
    return None


def write_stamps(cache: Path, stamps: Stamps) -> str:
    """Store a stage's stamps under their digest, once; returns the digest. A damaged copy is replaced."""
    return _write_named(cache / "stamps", stamps)


def _write_named(folder: Path, value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    data = text.encode(errors="backslashreplace")  # a path that is no text: as JSON itself escapes it
    name = keys.digest_bytes(data)
    path = folder / f"{name}.json"
    try:
        there = path.read_bytes() == data
    except OSError:
        there = False
    if not there:
        write_bytes_atomic(path, data)
    return name


def read_stamps(cache: Path, name: str) -> Stamps:
    """Read what :func:`write_stamps` stored. Raises :class:`DataError` if it is gone or changed."""
    path = cache / "stamps" / f"{name}.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the run's list of stamps is gone ({error}); run the flow again") from error
    if keys.digest_bytes(text) != name:
        raise DataError(f"{path}: the content does not match its name; run the flow again, which writes it anew")
    return {key: (stamp, image) for key, (stamp, image) in json.loads(text).items()}


Pictures = Mapping[str, Mapping[str, str]]
"""Key -> ``image`` and each label kind that a stage read -> the first digits of its digest."""


def write_pictures(cache: Path, pictures: Pictures) -> str:
    """Store what a set's pictures were made of, as :func:`write_stamps` does."""
    return _write_named(cache / "pictures", pictures)


def read_pictures(cache: Path, name: str) -> Pictures | None:
    """What :func:`write_pictures` stored; ``None`` if it is gone or damaged."""
    try:
        data = (cache / "pictures" / f"{name}.json").read_bytes()
    except OSError:
        return None
    if keys.digest_bytes(data) != name:
        return None
    found: dict[str, dict[str, str]] = json.loads(data)
    return found


def write_origin(cache: Path, origin: Mapping[str, Any]) -> str:
    """Store what a data set's format says beside its labels, as :func:`write_stamps` does; "" for nothing."""
    return _write_named(cache / "origins", origin) if origin else ""


def read_origin(cache: Path, manifest: Mapping[str, Any], of_set: str) -> dict[str, Any]:
    """What :func:`write_origin` stored for a set of a run; empty if there is nothing, or (a warning) it is damaged."""
    name = manifest.get("origins", {}).get(of_set)
    if not name:
        return {}
    path = cache / "origins" / f"{name}.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        log.warning("%s cannot be read (%s): numbers of the data set's own format are not kept", path, error.strerror)
        return {}
    if keys.digest_bytes(data) != name:
        log.warning("%s is damaged: numbers of the data set's own format are not kept; run the flow again", path)
        return {}
    found: dict[str, Any] = json.loads(data)
    return found


def last_classes(cache: Path, dataset: str) -> list[str]:
    """The class table of ``dataset`` in the newest run that used it; empty if none of the last 100 did."""
    for run in reversed(list_runs(cache)[-100:]):
        with contextlib.suppress(DataError):  # a damaged manifest tells nothing
            if found := run.manifest().get("classes", {}).get(dataset):
                return [str(name) for name in found]
    return []


def last_seconds(cache: Path, flow: str) -> dict[str, float]:
    """Kind of work (``StageReport.like``) -> seconds for an amount of 1, by the newest run that did such work whole."""
    found: dict[str, float] = {}
    for run in reversed(list_runs(cache, flow)[-20:]):
        try:
            stages = run.manifest().get("stages", [])
        except DataError:
            continue  # only an estimate is lost
        for stage in stages:
            like, done = stage.get("like"), stage.get("computed")
            if like and done and stage["stamps"]:
                amount = stage["amount"] * (done / stage["total"] if stage["kind"] == "map" else 1)
                found.setdefault(like, float(stage["seconds"]) / amount)
    return found


@functools.cache  # a manifest is written after every stage, and versions do not change within a process
def library_versions() -> dict[str, str]:
    """Versions of what the result depends on (by metadata: nothing heavy is imported)."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
