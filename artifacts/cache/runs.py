"""Run folders and manifests: ``<cache>/runs/<id>/manifest.json`` states what a run used and its results.

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
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import keys
from artifacts.cache import sealed
from artifacts.cache.atomic import write_bytes_atomic, write_text_atomic
from artifacts.records import DataError, shown

log = logging.getLogger("maskmill")
MANIFEST = "manifest.json"
LIBRARIES = ("maskmill", "torch", "torchvision", "numpy", "opencv-python-headless", "h5py", "prefect", "lightning")

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
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
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

    def write_manifest(self, manifest: Mapping[str, Any]) -> Path:
        """Write (or replace, atomically) the manifest."""
        path = self.path / MANIFEST
        write_bytes_atomic(path, sealed.seal(manifest, indent=1, sort_keys=True))
        return path

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
    folders = sorted((cache / "runs").glob(f"*/{MANIFEST}"))
    runs = [RunFolder(cache, path.parent.name) for path in folders]
    return [run for run in runs if flow is None or run.run_id.split("-")[2:-1] == flow.split("-")]


def find_run(cache: Path, run_id: str = "latest") -> RunFolder:
    """The run with this id, or the newest. Raises :class:`DataError` that lists what there is."""
    runs = list_runs(cache)
    if not runs:
        raise DataError(f"{cache}: no run here yet; run a flow first, e.g. `maskmill cfs --data demo --cache {cache}`")
    if run_id == "latest":
        return runs[-1]
    for run in runs:
        if run.run_id == run_id:
            return run
    raise DataError(f"{cache}: no run {run_id!r}; the newest are {', '.join(r.run_id for r in runs[-3:])}")


def write_stamps(cache: Path, stamps: Stamps) -> str:
    """Store a stage's stamps under their digest, once; returns the digest. A damaged copy is replaced."""
    return _write_named(cache / "stamps", stamps)


def _write_named(folder: Path, value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    name = keys.digest_bytes(text.encode())
    path = folder / f"{name}.json"
    try:
        there = path.read_bytes() == text.encode()
    except OSError:
        there = False
    if not there:
        write_text_atomic(path, text)
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
