"""File names that come from a data set: which of them are images, which stay inside the data set's folder.

A name in an annotation is untrusted text. ``../../etc/passwd``, an absolute path or a NUL byte must not
leave the folder that the user named; :func:`inside` is the one place that checks this.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

from artifacts.records import DataError, RecordSet, Skip

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2"}
)
"""Suffixes, in lower case, by which a file in a folder counts as an image."""

GENERIC_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "labels", "train", "val", "valid", "test"})
"""Folder names that do not name their data set."""


def check_relative(name: str) -> str:
    """``name`` in POSIX form, without ``./``; it must stay below the folder it is relative to.

    Raises :class:`DataError` for an empty or absolute name, one with ``..`` or a NUL byte, or one that no UTF-8
    text can hold. The test is on the text alone: links inside the folder are allowed.
    """
    path = PurePosixPath(name)
    if not path.parts:
        raise DataError(f"file name {name!r} is empty")
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError(f"file name {name!r} leads out of the data set's folder; it must be a relative path without ..")
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


def list_images(root: Path, *, leave_out: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Relative POSIX paths of the images below ``root``, sorted, and the names that cannot be used.

    Hidden files and folders, and the folders of ``leave_out`` directly below ``root``, are passed over. Linked
    folders are entered, each real folder once, so that a link that leads back up ends nothing but itself.

    Raises :class:`DataError` if ``root`` is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    good: list[str] = []
    bad: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        top = os.path.relpath(folder, root) == "."
        folders[:] = (
            [] if real in seen else sorted(f for f in folders if not f.startswith(".") and not (top and f in leave_out))
        )
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                continue
            relative = name if top else f"{Path(os.path.relpath(folder, root)).as_posix()}/{name}"
            try:
                good.append(check_relative(relative))
            except DataError:
                bad.append(relative)
    return sorted(good), sorted(bad)


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
    """Complaints about data, gathered by kind so that 100,000 of them stay readable."""

    EXAMPLES = 5

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one complaint of ``kind``; the first few are kept word for word."""
        self._count[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < self.EXAMPLES:
            examples.append(example)

    def add_all(self, kind: str, examples: Iterable[str]) -> None:
        """:meth:`add` for each of ``examples``."""
        for example in examples:
            self.add(kind, example)

    def lines(self) -> tuple[str, ...]:
        """One line a kind, in order of first appearance: ``3 boxes without area: a; b; c``."""
        return tuple(self._line(kind) for kind in self._examples)

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
