"""`maskmill cache verify`: is everything in the cache as written? If not, what can be recovered?"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts import keys
from artifacts.cache import atomic, sealed
from artifacts.cache.compact import Problem, Progress, item_of, no_progress, write_after
from artifacts.cache.reseal import CHANGED, with_footer
from artifacts.cache.segment_index import read_index, segment_names, write_index
from artifacts.cache.segments import Content, CorruptSegment, Segment, StoreError
from artifacts.cache.store import MaskStore


@dataclass(frozen=True)
class VerifyReport:
    """What ``cache verify`` found, and with ``repair`` did."""

    segments: int
    images: int
    """Images whose arrays are as written."""
    problems: tuple[Problem, ...] = ()
    quarantined: tuple[Path, ...] = ()
    saved: int = 0
    """Sound images of damaged segments that were written anew."""
    indexes: int = 0
    """Indexes beside segments that were missing or wrong, and were written again."""
    swept: int = 0
    """Temporary files of killed writers that were removed."""
    resealed: tuple[Path, ...] = ()
    """Sound segments whose footer another program had cut off, and that have one again."""
    busy: tuple[Path, ...] = ()
    """Segments that another program has open for writing: their arrays are as written, plain HDF5 cannot look now."""

    @property
    def ok(self) -> bool:
        """No fault is left (what repair put aside is only missing)."""
        aside = {path.name.removesuffix(".corrupt") for path in self.quarantined}
        return all(problem.segment.name in aside for problem in self.problems)


def verify(
    store: MaskStore,
    addresses: Iterable[str] | None = None,
    *,
    repair: bool = False,
    progress: Progress = no_progress,
) -> VerifyReport:
    """Read every array of every segment, against its checksum and against the digest of the image's arrays.

    A segment that another program had open for writing is told from a damaged one (:mod:`artifacts.cache.reseal`).
    ``repair`` gives it its footer again. It puts damaged segments aside (``<name>.corrupt``) after writing their sound
    images anew, so that the next run computes the damaged images and no other; indexes are rebuilt and temporary files
    swept.
    """
    segments = images = saved = indexes = swept = 0
    problems: list[Problem] = []
    quarantined: list[Path] = []
    resealed: list[Path] = []
    busy: list[Path] = []
    for address in store.addresses() if addresses is None else list(addresses):
        folder = store.folder(address)
        swept += atomic.sweep_temporaries(folder) if repair else 0
        names = segment_names(folder)
        for done, name in enumerate(names):
            progress(address, done, len(names))
            sound, found = _verify_segment(folder / name)
            if sound is None and found and (whole := _only_footer_lost(folder / name)) is not None:
                found = [Problem(folder / name, None, f"{CHANGED}; --repair seals it again", damaged=False)]
                if repair:
                    atomic.write_bytes_atomic(folder / name, whole)
                    resealed.append(folder / name)
                    sound, found = _verify_segment(folder / name)
            if sound is None and not found:
                continue  # compacted meanwhile
            busy += [folder / name for problem in found if problem is _BUSY]
            found = [problem for problem in found if problem is not _BUSY]
            segments += 1
            images += len(sound or ())
            problems += found
            if repair and any(problem.damaged for problem in found):
                saved += _save_sound(store, address, folder / name, sound or ())
                if (aside := store.quarantine(folder / name)) is not None:
                    quarantined.append(aside)
            elif repair and sound is not None:
                indexes += _mend_index(folder / name)
        progress(address, len(names), len(names))
        store.refresh(address)
    lists = tuple(problems), tuple(quarantined), saved, indexes, swept, tuple(resealed), tuple(busy)
    return VerifyReport(segments, images, *lists)


def _verify_segment(path: Path) -> tuple[list[Content] | None, list[Problem]]:
    """Sound images and problems of one segment; ``(None, [])`` if it is gone."""
    try:
        segment = Segment(path)
    except FileNotFoundError:
        return None, []
    except CorruptSegment as error:
        return None, [Problem(path, None, error.what)]
    except (OSError, StoreError) as error:
        return None, [Problem(path, None, str(error), damaged=False)]
    sound: list[Content] = []
    problems: list[Problem] = []
    for content in segment.contents:
        try:
            if content.output is not None and keys.digest_arrays(segment.read_content(content)) != content.output:
                raise CorruptSegment(path, "the arrays' digest differs", content.key)
            sound.append(content)
        except CorruptSegment as error:
            problems.append(Problem(path, content.key, error.what))
        except (OSError, StoreError) as error:
            problems.append(Problem(path, content.key, str(error), damaged=False))
    return sound, problems or _not_plain_hdf5(segment)


def _only_footer_lost(path: Path) -> bytes | None:
    """The segment's bytes with a footer, if nothing else is wrong with it."""
    try:
        data = with_footer(path)
    except OSError:
        return None
    if data is None:
        return None
    with tempfile.TemporaryDirectory() as place:  # not in the cache, which may be read-only
        copy = Path(place, path.parent.name, path.name)
        os.mkdir(copy.parent)
        copy.write_bytes(data)
        return None if _verify_segment(copy)[1] else data


def _not_plain_hdf5(segment: Segment) -> list[Problem]:
    """What plain h5py does not see as it is: HDF5's own structures are damaged, which no read would notice."""
    try:
        for content, seen in segment.read_by_h5py():
            if isinstance(seen, Exception):
                return [Problem(segment.path, content.key, f"plain HDF5 cannot read it: {seen}")]
            if content.output is not None and keys.digest_arrays(seen) != content.output:
                return [Problem(segment.path, content.key, "plain HDF5 gives other arrays")]
    except FileNotFoundError:
        return []
    except BlockingIOError:
        return [_BUSY]
    except Exception as error:  # damaged metadata makes h5py raise nearly anything
        return [Problem(segment.path, None, f"plain HDF5 cannot open it: {error}")]
    return []


_BUSY = Problem(Path(), None, "open for writing in another program", damaged=False)


def verify_records(root: Path, *, repair: bool = False) -> tuple[int, list[Problem], list[Path]]:
    """Check the JSON files of the cache ``root``: how many are as written, what is wrong, what ``repair`` put aside.

    A run makes them again, but for the manifest and the fits' specifications of a past run.
    """
    sound, problems, aside = 0, [], []
    for pattern in _RECORDS:
        for path in sorted(root.glob(pattern)):
            try:
                _check_record(path)
                sound += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append(Problem(path, None, str(error), damaged=False))
            except ValueError as error:
                problems.append(Problem(path, None, str(error)))
                if repair and (gone := sealed.put_aside(path, error)) is not None:
                    aside.append(gone)
    return sound, problems, aside


_RECORDS = (
    "maskmill.json",
    "stamps/*.json",
    "origins/*.json",
    "pictures/*.json",
    "datasets/*.json",
    "digests/*.json",
    "runs/*/manifest.json",
    "runs/*/*.spec.json",
)


def _check_record(path: Path) -> None:
    data = path.read_bytes()
    if path.parent.name in ("stamps", "origins", "pictures"):
        if keys.digest_bytes(data) != path.stem:
            raise ValueError("the content does not match its name")
    elif sealed.unseal(data).get("name", path.stem) != path.stem and path.parent.name == "datasets":
        raise ValueError("it is of another data set")


def _save_sound(store: MaskStore, address: str, path: Path, sound: Sequence[Content]) -> int:
    """Write the sound images of a damaged segment as a new one in its place."""
    if not sound:
        return 0
    segment = Segment(path)
    items = [item_of(segment, content) for content in sound]
    write_after(store, address, items, segment.header.meta, path.name)
    return len(items)


def _mend_index(path: Path) -> int:
    """Write the index beside ``path`` again if it differs from the segment; returns how many (0 or 1)."""
    with contextlib.suppress(FileNotFoundError):
        header = Segment(path).header
        index = read_index(path)
        listed = [(e.key, e.stamp, e.output, e.reason) for e in index[1]] if index else None
        if listed != [(c.key, c.stamp, c.output, c.reason) for c in header.contents]:
            write_index(path, header)
            return 1
    return 0
