"""What a stage would have to do: stamps of all images against what the cache already holds.

Pure bookkeeping, shared by the run and by its plan (`--dry-run`): no image is decoded here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifacts import keys
from artifacts.cache.fit_store import Publication, tensor_digests
from artifacts.cache.store import Entry, MaskStore
from artifacts.images import ImageDigests
from artifacts.records import DataError, Kind, Record, RecordSet, Skip
from tasks.engine.image_task import ImageTask, stated_size
from tasks.stage import FitHandle, FitStage, Handle, MapHandle, MapStage, Produced, Stage

log = logging.getLogger("maskmill")


@dataclass
class PendingImages:
    """State of one map stage before any work."""

    pending: list[ImageTask] = field(default_factory=list)
    produced: dict[str, Produced] = field(default_factory=dict)
    """Known results: cached arrays, stored skips, absences."""
    skips: list[Skip] = field(default_factory=list)
    unknown: int = 0
    """Images whose upstream output is not known yet (only while planning)."""

    @property
    def cached(self) -> int:
        """Images that need no work."""
        return len(self.produced)


@dataclass
class FitMembers:
    """Members of one fit before any work, by image id."""

    members: list[tuple[str, str]] = field(default_factory=list)
    """Key and digest of each usable image."""
    skips: list[Skip] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Keys of images whose upstream output is not known yet (only while planning)."""
    records: list[Record] = field(default_factory=list)
    """Of the members, with all their labels."""
    reads: Collection[Kind] = ()
    maps: Mapping[str, MapHandle] = field(default_factory=dict)
    """role -> what the members' arrays are read from."""

    def tasks(self) -> list[ImageTask]:
        """What the fit is given of each member. Made when it is done: one that is published needs none of it."""
        found = []
        for (key, digest), record in zip(self.members, self.records, strict=True):
            up = {role: handle.place(handle.produced[key]) for role, handle in self.maps.items()}
            found.append(ImageTask(key, digest, record.view(self.reads), up, stated_size(record, self.reads)))
        return found


@dataclass(frozen=True)
class Cached:
    """A stage whose results were all there when it was planned, and what that was found for."""

    records: RecordSet
    weights: Mapping[str, str]
    above: Mapping[str, Mapping[str, Produced]]
    """role -> results of the upstream stage."""
    found: PendingImages | FitMembers

    @classmethod
    def of(
        cls,
        records: RecordSet,
        weights: Mapping[str, str],
        maps: Mapping[str, MapHandle],
        found: PendingImages | FitMembers,
    ) -> Cached:
        """``found``, for these."""
        return cls(records, weights, {role: handle.produced for role, handle in maps.items()}, found)

    def holds(self, records: RecordSet, weights: Mapping[str, str], maps: Mapping[str, MapHandle]) -> bool:
        """Whether it was found for just these."""
        same = records is self.records and weights == self.weights and maps.keys() == self.above.keys()
        return same and all(handle.produced is self.above[role] for role, handle in maps.items())


@dataclass(frozen=True)
class Sources:
    """Digests of images, labels and files, kept over the stages of one run."""

    digests: ImageDigests
    store: MaskStore
    labels: dict[tuple[str, Kind], str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    """Key -> digest of its image."""
    files: dict[str, str] = field(default_factory=dict)
    loaded: dict[str, dict[str, str]] = field(default_factory=dict)
    """Weights file -> digests of its tensors."""
    fits: dict[Path, bool] = field(default_factory=dict)
    """Publication -> whether its weights are those that were published."""
    cached: dict[tuple[str, str], Cached] = field(default_factory=dict)
    """Label and address of a stage -> what the plan found of it, if there was nothing to do: the run need not walk
    through all images again. What changes between plan and run is the next run's."""

    _keys: list[tuple[RecordSet, Sequence[str]]] = field(default_factory=list)

    def keys_of(self, records: RecordSet) -> Sequence[str]:
        """The records' keys, in their order; the same texts for every stage."""
        known = next((found for of, found in self._keys if of is records), None)
        if known is None:
            known = [records.key(record) for record in records]
            self._keys.append((records, known))
        return known

    def label(self, key: str, record: Record, kind: Kind) -> str:
        """Digest of one label kind of one record."""
        if (key, kind) not in self.labels:
            self.labels[key, kind] = record.label_digest(kind)
        return self.labels[key, kind]

    def image(self, key: str, path: Path | str) -> str:
        """Digest of an image file. Raises :class:`DataError` or ``OSError`` if it cannot be read."""
        self.images[key] = found = self.digests.digest(path)
        return found

    def pictures(self, records: RecordSet) -> dict[str, dict[str, str]]:
        """Key -> the beginnings of all digests that are known of its image and labels (``runs.Pictures``)."""
        found = {key: {"image": self.images[key][:16]} if key in self.images else {} for key in self.keys_of(records)}
        for (key, kind), digest in self.labels.items():
            if key in found:
                found[key][kind] = digest[:16]
        return found

    def file(self, path: Path) -> str:
        """Digest of an input file's content. Raises :class:`DataError` if it cannot be read."""
        name = str(path)
        if name not in self.files:
            try:
                self.files[name] = keys.digest_file(path)
            except OSError as error:
                raise DataError(
                    f"input file {path}: {error.strerror or error}; check the path in the config"
                ) from error
        return self.files[name]

    def tensors(self, path: Path) -> dict[str, str]:
        """Digests of the tensors in a safetensors file. Raises :class:`DataError` if it cannot be read."""
        name = str(path)
        if name not in self.loaded:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DataError(f"weights file {path}: {error.strerror or error}; check the path") from error
            self.loaded[name] = tensor_digests(data, f"weights file {path}")
        return self.loaded[name]

    def sound(self, publication: Publication) -> bool:
        """Whether the weights are what was published; read whole, once per run, and a warning if they are not."""
        if publication.path not in self.fits:
            try:
                publication.verify()
            except DataError as error:
                log.warning("%s; this fit is left out", error)
                self.fits[publication.path] = False
            else:
                self.fits[publication.path] = True
        return self.fits[publication.path]


def weights_digests(stage: Stage, upstream: Mapping[str, Handle], sources: Sources) -> dict[str, str] | None:
    """role -> digest of every checkpoint and input file; ``None`` if a checkpoint is only planned."""
    found = {role: sources.file(path) for role, path in stage.inputs.items()}
    for role, handle in upstream.items():
        if isinstance(handle, FitHandle):
            if handle.digest is None:
                return None
            found[role] = handle.digest
    return found


def pending_images(
    stage: MapStage,
    address: str,
    label: str,
    records: RecordSet,
    upstream: Mapping[str, Handle],
    sources: Sources,
    *,
    rerun: bool,
) -> PendingImages:
    """Sort ``records`` into cached, pending, absent and unknown."""
    images = PendingImages()
    weights = weights_digests(stage, upstream, sources)
    maps = map_handles(stage.name, records, upstream)
    known_before = sources.cached.pop((label, address), None)
    if known_before is not None and not rerun and weights is not None and known_before.holds(records, weights, maps):
        assert isinstance(known_before.found, PendingImages)
        return replace(known_before.found, skips=list(known_before.found.skips))
    entries = sources.store.entries(address)
    for key, record in zip(sources.keys_of(records), records, strict=True):
        above = {role: handle.produced.get(key) for role, handle in maps.items()}
        if weights is None or any(produced is None for produced in above.values()):
            images.unknown += 1
            continue
        known = {role: produced for role, produced in above.items() if produced is not None}
        member = _member(stage, label, key, record, known, sources, images.skips)
        if member is None:
            images.produced[key] = Produced("", None, images.skips[-1].reason)
            continue
        image, labels = member
        outputs = {role: produced.output for role, produced in known.items()}
        stamp = keys.image_stamp(image=image, labels=labels, upstream=outputs, weights=weights)
        if absent := [role for role, output in outputs.items() if output is None]:
            images.produced[key] = Produced(stamp, None, f"skipped upstream ({', '.join(absent)})")
            continue
        entry = entries.get((key, stamp))
        if entry is not None and not rerun:
            images.produced[key] = remembered(entry, stamp)
            if entry.output is None:
                images.skips.append(Skip(key, record.image, entry.reason or "", True, label))
            continue
        up = {role: handle.place(known[role]) for role, handle in maps.items()}
        task = ImageTask(key, stamp, record.view(stage.reads), up, stated_size(record, stage.reads))
        images.pending.append(task)
    if weights is not None and not images.pending and not images.unknown:
        sources.cached[label, address] = Cached.of(records, weights, maps, images)
    return images


def fit_members(
    stage: FitStage, address: str, label: str, records: RecordSet, upstream: Mapping[str, Handle], sources: Sources
) -> FitMembers:
    """Members of a fit over ``records``, by image id: those whose image, labels and upstream arrays are all there.

    The stamp knows them as a set; a fit draws its order from places in this list, which must not be the records' own.
    """
    maps = map_handles(stage.name, records, upstream)
    known_before = sources.cached.pop((label, address), None)
    if known_before is not None and known_before.holds(records, {}, maps):
        assert isinstance(known_before.found, FitMembers)
        return replace(known_before.found, skips=list(known_before.found.skips))
    usable = FitMembers(reads=stage.reads, maps=maps)
    found: list[tuple[str, str, str, Record]] = []
    for key, record in zip(sources.keys_of(records), records, strict=True):
        above = {role: handle.produced.get(key) for role, handle in maps.items()}
        if any(produced is None for produced in above.values()):
            usable.unknown.append(key)
            continue
        known = {role: produced for role, produced in above.items() if produced is not None}
        if any(produced.output is None for produced in known.values()):
            continue  # listed by the upstream stage already
        member = _member(stage, label, key, record, known, sources, usable.skips)
        if member is None:
            continue
        image, labels = member
        outputs = {role: produced.output for role, produced in known.items()}
        digest = keys.image_stamp(image=image, labels=labels, upstream=outputs, weights={})
        found.append((record.image_id, key, digest, record))
    found.sort(key=lambda one: one[0])
    usable.members = [(key, digest) for _, key, digest, _ in found]
    usable.records = [record for *_, record in found]
    if not usable.unknown:
        sources.cached[label, address] = Cached.of(records, {}, maps, usable)
    return usable


def map_handles(name: str, records: RecordSet, upstream: Mapping[str, Handle]) -> dict[str, MapHandle]:
    """The map handles of ``upstream``, checked to be about the same data set."""
    maps = {role: handle for role, handle in upstream.items() if isinstance(handle, MapHandle)}
    for role, handle in maps.items():
        other = handle.records
        if other is records:
            continue
        if missing := {records.key(r) for r in records} - {other.key(r) for r in other}:
            raise DataError(
                f"stage {name} runs over {records.dataset}:{records.split}, but its upstream {role!r} ({handle.label},"
                f" over {other.dataset}:{other.split}) lacks {len(missing)} of its {len(records)} images"
            )
    return maps


def remembered(entry: Entry, stamp: str) -> Produced:
    """A cache entry as a stage's result."""
    return Produced(stamp, entry.output, entry.reason)


def in_order(records: RecordSet, produced: dict[str, Produced], skips: list[Skip]) -> None:
    """Results in the records' order, in whatever order the units ended."""
    place = {records.key(record): number for number, record in enumerate(records)}
    found = dict(produced)
    produced.clear()
    produced.update((key, found[key]) for key in place if key in found)
    skips.sort(key=lambda skip: place.get(skip.key, -1))


def stamps_of(records: RecordSet, produced: Mapping[str, Produced]) -> dict[str, tuple[str | None, str]]:
    """A stage's list of stamps for the manifest, in key order."""
    return {
        key: (produced[key].stamp if produced[key].output else None, record.image)
        for record in records
        if (key := records.key(record)) in produced
    }


def _member(
    stage: Stage,
    label: str,
    key: str,
    record: Record,
    above: Mapping[str, Produced],
    sources: Sources,
    skips: list[Skip],
) -> tuple[str | None, dict[str, str]] | None:
    """Digests of the image and of the declared labels; ``None`` (and a skip) if one cannot be read.

    The stated size counts as a label where it is checked: correcting it gives another result.
    """
    if any(produced.output is None for produced in above.values()):
        return None, {}
    try:
        image = sources.image(key, record.image) if "image" in stage.reads else None
        labels: dict[str, str] = {kind: sources.label(key, record, kind) for kind in stage.reads if kind != "image"}
        if (size_hw := stated_size(record, stage.reads)) is not None:
            labels["size_hw"] = "{} {}".format(*size_hw)
    except DataError as error:
        skips.append(Skip(key, record.image, str(error), True, label))
    except OSError as error:
        skips.append(
            Skip(key, record.image, f"{error.strerror or error}: {error.filename or record.image}", False, label)
        )
    else:
        return image, labels
    return None
