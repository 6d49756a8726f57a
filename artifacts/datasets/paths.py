"""File names that come from a data set: which of them are images, which stay inside the data set's folder.

A name in an annotation is untrusted text. ``../../etc/passwd``, an absolute path or a NUL byte must not
leave the folder that the user named; :func:`inside` is the one place that checks this.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from artifacts.images import IMAGE_SUFFIXES
from artifacts.inputs import has_control, shown
from artifacts.records import Counts, DataError, RecordSet, Skip

GENERIC_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "labels", "train", "val", "valid", "test"})
"""Folder names that do not name their data set."""


def check_relative(name: str) -> str:
    """``name`` in POSIX form, without ``./``; it must stay below the folder it is relative to.

    Raises :class:`DataError` for an empty or absolute name, one with ``..``, a line break or another control
    character (lists and terminals cannot hold them), or one that no UTF-8 text can hold. The test is on the text alone.
    """
    path = PurePosixPath(name)
    if not path.parts:
        raise DataError(f"file name {name!r} is empty")
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"file name {name!r} leads out of the data set's folder; it must be a relative path without ..")
    if has_control(name):
        raise DataError(f"file name {name!r} holds a line break or another control character; rename the file")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"file name {name!r} is not UTF-8; rename the file") from None
    return path.as_posix()


def inside(root: Path, name: str) -> Path:
    """``root / name``, if that cannot leave ``root``; raises as :func:`check_relative`."""
    return root / check_relative(name)


def without_suffix(relative: str) -> str:
    """``sub/a.b.jpg`` -> ``sub/a.b``; a suffix that is no image's stays (``sub/a.b`` -> ``sub/a.b``)."""
    stem, dot, suffix = relative.rpartition(".")
    return stem if dot and stem and f".{suffix.lower()}" in IMAGE_SUFFIXES else relative


def image_ids(relatives: Sequence[str], *, prefer_stem: bool = False) -> list[str]:
    """The id of each image in the cache: its relative path without suffix.

    ``prefer_stem=True`` takes the file's stem alone where no other image of the set has it. Two images that
    differ in nothing but the suffix (``a.jpg``, ``a.png``) keep their suffix. Order as given.
    """
    paths = [without_suffix(r) for r in relatives]
    path_count = Counter(paths)
    stem_count = Counter(p.rpartition("/")[2] for p in paths) if prefer_stem else Counter[str]()
    ids = []
    for relative, path in zip(relatives, paths, strict=True):
        stem = path.rpartition("/")[2]
        if stem_count[stem] == 1:
            ids.append(stem)
        else:
            ids.append(path if path_count[path] == 1 else relative)
    return ids


def dataset_name(path: str | Path) -> str:
    """A data set's default name: the last telling part of ``path`` (``coco/{split}/images`` -> ``coco``)."""
    parts = Path(os.path.abspath(os.path.expanduser(path))).parts
    for part in reversed(parts[1:]):
        if part.lower() not in GENERIC_FOLDERS and "{split}" not in part:
            return part
    return parts[-1] if len(parts) > 1 else "data"


class Notes:
    """Complaints about data, gathered by kind so that 100,000 of them stay readable; and how many labels there were."""

    EXAMPLES = 5

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._lost: dict[str, str] = {}
        """Kinds of which each complaint is a label lost -> of which labels ("": all)."""
        self.labels = 0
        """Labels that the files hold (lines, rows, objects, annotations), lost ones included."""

    def add(self, kind: str, example: str) -> None:
        """Count one complaint of ``kind``; the first few are kept word for word."""
        self._count[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < self.EXAMPLES:
            examples.append(shown(example))

    def add_all(self, kind: str, examples: Iterable[str]) -> None:
        """:meth:`add` for each of ``examples``."""
        for example in examples:
            self.add(kind, example)

    def lose(self, kind: str, example: str, *, of: str = "") -> None:
        """:meth:`add`, of a label that is there and cannot be used; ``of``: as the named kind of label alone."""
        self._lost.setdefault(kind, of)
        self.add(kind, example)

    def lines(self) -> tuple[str, ...]:
        """One line a kind, in order of first appearance: ``3 boxes without area: a; b; c``."""
        return tuple(self._line(kind) for kind in self._examples)

    def counts(self, listed: int, *, without_label: int = 0) -> Counts:
        """What was found: ``listed`` images of the split, of which ``without_label`` have no label file or entry."""
        return Counts(
            listed,
            without_label,
            self.labels,
            tuple((kind, self._count[kind], of) for kind, of in self._lost.items()),
            tuple(example for kind in self._lost for example in self._examples[kind])[:3],
        )

    def _line(self, kind: str) -> str:
        more = self._count[kind] - len(self._examples[kind])
        tail = f"; and {more} more" if more else ""
        return f"{self._count[kind]} x {kind}: " + "; ".join(self._examples[kind]) + tail


def read_skip(dataset: str, name: str, path: Path | str, reason: str, *, permanent: bool = True) -> Skip:
    """A :class:`Skip` made while reading labels (``stage`` is ``"read"``)."""
    return Skip(key=f"{dataset}/{name}", path=str(path), reason=reason, permanent=permanent, stage="read")


def require_some(records: RecordSet, wanted: int, where: str) -> RecordSet:
    """``records``, or a :class:`DataError` if each of the ``wanted`` images of it had to be skipped."""
    if wanted and not len(records):
        first = records.skips[0].reason if records.skips else "no reason recorded"
        raise DataError(f"{where}: none of the {wanted} images can be used; the first: {first}")
    return records
