"""Fits on disk: checkpoints while one works, publications when it is done.

    fits/<address>/<stamp>/lock            held (flock) during the fit
                           work/           checkpoints and metrics.jsonl; resumed under this stamp, read by nobody else
                           pub-0001/       weights.safetensors, publication.json, metrics.jsonl, curve.png

A publication is written aside and appears by one rename; it is never changed. A fit done again publishes beside it
(``pub-0002``), and the newest whole one counts. It is known by its tensors (names, dtypes, shapes, bytes), not by its
file: training the same weights again makes nothing stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts import keys
from artifacts.cache import locks, sealed
from artifacts.cache.atomic import (
    kill_point,
    publish_folder,
    temporary_beside,
)
from artifacts.cache.cache_format import explained
from artifacts.cache.fit_work import METRICS, Work, remove_temporaries
from artifacts.records import DataError

log = logging.getLogger("maskmill")

WEIGHTS = "weights.safetensors"
PUBLICATION = "publication.json"
CURVE = "curve.png"
FORMAT = 2


# -- tensors in a safetensors file -----------------------------------------------------------------------------------


def tensor_digests(data: bytes | memoryview, name: str = "weights") -> dict[str, str]:
    """Digest of each tensor (dtype, shape, bytes) in the bytes of a safetensors file.

    Raises :class:`DataError` with ``name`` if the bytes are cut short or are something else.
    """
    view = memoryview(data)
    header, start = _header(view, name)
    found = {}
    for tensor, entry in header.items():
        begin, end = entry["data_offsets"]
        if start + end > len(view):
            raise DataError(
                f"{name}: cut short: tensor {tensor} ends at byte {start + end}, the file has {len(view)} bytes"
            )
        state = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
        state.update(view[start + begin : start + end])
        found[tensor] = state.hexdigest()[: keys.DIGEST_CHARS]
    return found


def _header(view: memoryview, name: str) -> tuple[dict[str, Any], int]:
    """Tensor name -> its entry, and the byte at which the data begin."""
    try:
        (length,) = struct.unpack("<Q", view[:8])
        header = json.loads(bytes(view[8 : 8 + length]))
        header.pop("__metadata__", None)
        for tensor, entry in header.items():
            begin, end = entry["data_offsets"]
            sizes = [begin, end, *entry["shape"]]
            if not isinstance(entry["dtype"], str) or any(type(size) is not int or size < 0 for size in sizes):
                raise ValueError(f"tensor {tensor} without dtype, shape or place")
            if begin > end:
                raise ValueError(f"tensor {tensor} ends before it begins")
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{name}: no safetensors file, or cut short ({error})") from error
    return header, 8 + length


def digest_of(tensors: Mapping[str, str]) -> str:
    """One digest of the named tensors' digests, whatever their order in the file."""
    return keys.digest(dict(tensors))


def part_digests(tensors: Mapping[str, str]) -> dict[str, str]:
    """Digest of each network in the file: tensors grouped by their name's first part, that part left off."""
    parts: dict[str, dict[str, str]] = {}
    for name, digest in tensors.items():
        part, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(part, {})[rest] = digest
    return {part: digest_of(members) for part, members in sorted(parts.items())}


# -- publications ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Publication:
    """A finished fit. ``path`` is its folder."""

    path: Path
    address: str
    stamp: str
    number: int
    digest: str
    """Of the tensors."""
    part_digests: Mapping[str, str] = field(repr=False)
    """First part of the tensors' names ("generator") -> digest of that network."""
    members: tuple[tuple[str, str], ...] = field(repr=False)
    """``(key, record digest)`` of the images it was trained on."""
    lineage: str = ""
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Seed, params, versions, thread count, seconds, iterations, skips, ... as the fit left them."""
    published: float = 0.0
    """Seconds since the epoch."""

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.path / WEIGHTS

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, loss, lr, ..."""
        return self.path / METRICS

    def verify(self) -> None:
        """Read the weights whole. Raises :class:`DataError` if they are not what was published."""
        try:
            data = self.weights.read_bytes()
        except OSError as error:
            raise DataError(f"{self.weights}: cannot be read ({error.strerror}); the next run fits again") from error
        if digest_of(tensor_digests(data, str(self.weights))) != self.digest:
            raise DataError(f"{self.weights}: the tensors are not those that were published; the next run fits again")


@dataclass(frozen=True)
class Difference:
    """How a list of records differs from the records that a fit was trained on, in numbers of records.

    A record counts as changed where its image, its labels or what stages made of it did. A renamed one is a removed and
    a new one: its id decides the seeds.
    """

    same: int
    new: int
    changed: int
    removed: int

    @classmethod
    def between(cls, publication: Publication, current: Collection[tuple[str, str]]) -> Difference:
        """From the publication's records to the ``(key, record digest)`` of ``current``."""
        before, now = dict(publication.members), dict(current)
        same = sum(now.get(key) == digest for key, digest in before.items())
        both = len(before.keys() & now.keys())
        return cls(same, len(now) - both, both - same, len(before) - both)

    @property
    def count(self) -> int:
        """Records that are new, changed or removed."""
        return self.new + self.changed + self.removed

    @property
    def trained_on(self) -> int:
        """Records of the fit."""
        return self.same + self.changed + self.removed

    @property
    def now(self) -> int:
        """Records of the list."""
        return self.same + self.new + self.changed

    @property
    def share(self) -> float:
        """:attr:`count` as a share of the fit's records: 0.1 is a tenth more; twice as many, all else equal, are 1."""
        return self.count / self.trained_on


Accept = Callable[[Publication], bool]


class FitStore:
    """The fits of one cache folder."""

    def __init__(self, root: Path) -> None:
        self.root = root / "fits"

    def folder(self, address: str, stamp: str) -> Path:
        """``fits/<address>/<stamp>``."""
        return self.root / address / stamp

    @contextlib.contextmanager
    def lock(
        self,
        address: str,
        stamp: str,
        *,
        stop: locks.Stop | None = None,
        on_wait: Callable[[str], None] | None = None,
        on_missing: Callable[[str], None] = log.warning,
    ) -> Iterator[None]:
        """The right to fit, checkpoint and publish here (see :func:`artifacts.cache.locks.hold`).

        Where the file system has no locks the work is done without, and ``on_missing`` is told so. Raises
        ``StoreError`` where the cache cannot be written.
        """
        path = self.folder(address, stamp) / "lock"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locks.hold(path, stop=stop, on_wait=on_wait))
            except locks.NoLocks as error:
                on_missing(f"{error}; never let two runs fit the same on this cache at a time")
            except OSError as error:
                raise explained(error, path, "written") from error
            yield

    def work(self, address: str, stamp: str) -> Work:
        """The work folder, made if missing. For the holder of the lock."""
        return Work(self.folder(address, stamp) / "work")

    def publications(self, address: str, stamp: str) -> list[Publication]:
        """All whole publications, oldest first. A damaged one is left out with a warning."""
        found = (self._read(path) for path in sorted(self.folder(address, stamp).glob("pub-*")))
        return [publication for publication in found if publication is not None]

    def published(
        self, address: str, stamp: str, *, newer_than: int = 0, accept: Accept = lambda _: True
    ) -> Publication | None:
        """The newest publication that is accepted and whose number is above ``newer_than``, if there is one."""
        for path in sorted(self.folder(address, stamp).glob("pub-*"), reverse=True):
            if _number(path) <= newer_than:
                break
            if (publication := self._read(path)) is not None and accept(publication):
                return publication
        return None

    def newest_number(self, address: str, stamp: str) -> int:
        """The number of the newest publication, whole or not; 0 if there is none."""
        return max((_number(path) for path in self.folder(address, stamp).glob("pub-*")), default=0)

    def last_of_lineage(self, address: str, lineage: str) -> Publication | Path | None:
        """The publication of this lineage that was published last, under whatever stamp.

        The folder of one that cannot be read (a warning) if it is younger: it may be the one that is meant.
        """
        lasts: list[tuple[float, str, Publication | Path]] = []
        for path in (self.root / address).glob("*/pub-*"):
            publication = self._read(path)
            if publication is None:
                lasts.append((path.stat().st_mtime, str(path), path))
            elif publication.lineage == lineage:
                lasts.append((publication.published, str(path), publication))
        return max(lasts, key=lambda last: last[:2])[2] if lasts else None

    def publish(
        self,
        address: str,
        stamp: str,
        weights: bytes,
        *,
        members: Sequence[tuple[str, str]],
        lineage: str = "",
        info: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Publication:
        """Publish the bytes of a safetensors file, and clear the work folder. For the holder of the lock.

        ``files`` go beside the weights (metrics, curve). What is there already is never touched. Raises
        ``StoreError`` where the cache cannot be written; nothing half-written is left.
        """
        tensors = tensor_digests(weights)
        record = {
            "format": FORMAT,
            "address": address,
            "stamp": stamp,
            "digest": digest_of(tensors),
            "part_digests": part_digests(tensors),
            "tensors": len(tensors),
            "bytes": len(weights),
            "lineage": lineage,
            "published": time.time(),
            "members": sorted(members),
            "info": dict(info or {}),
        }
        folder = self.folder(address, stamp)
        text = sealed.seal(record, indent=1, sort_keys=True)
        temporary = temporary_beside(folder / "pub")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporaries(folder)
            temporary.mkdir()
            for name, content in {WEIGHTS: weights, **(files or {}), PUBLICATION: text}.items():
                (temporary / name).write_bytes(content)
            kill_point("fit.mid_publish")
            final = self._rename(temporary, folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise explained(error, folder, "published in") from error
        shutil.rmtree(folder / "work", ignore_errors=True)
        publication = self._read(final)
        if publication is None:
            raise DataError(f"{final}: cannot be read back just after it was written; is the disk failing?")
        return publication

    def _rename(self, temporary: Path, folder: Path) -> Path:
        number = self.newest_number(folder.parent.name, folder.name) + 1
        while True:
            final = folder / f"pub-{number:04d}"
            try:
                publish_folder(temporary, final)
            except FileExistsError:
                number += 1
            else:
                return final

    def _read(self, path: Path) -> Publication | None:
        try:
            record = sealed.unseal((path / PUBLICATION).read_bytes())
            size = (path / WEIGHTS).stat().st_size
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
            here = path.parent.parent.name, path.parent.name
            if (record["address"], record["stamp"]) != here:
                raise ValueError(f"it belongs to {record['address']}/{record['stamp']}, and was copied here by mistake")
            if size != record["bytes"]:
                raise ValueError(f"{WEIGHTS} has {size} bytes, {record['bytes']} were published")
            return Publication(
                path=path,
                address=path.parent.parent.name,
                stamp=path.parent.name,
                number=_number(path),
                digest=record["digest"],
                part_digests=record["part_digests"],
                members=tuple((key, digest) for key, digest in record["members"]),
                lineage=record["lineage"],
                info=record["info"],
                published=record["published"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is left out: %s: %s", path, type(error).__name__, error)
            return None


def _number(path: Path) -> int:
    text = path.name.removeprefix("pub-")
    return int(text) if text.isdigit() else 0
