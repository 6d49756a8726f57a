"""Which images are training images where the data set has no split of its own.

In this order: a list file ``<split>.txt``, else a stable hash of the image's relative path. The hash depends on
nothing but the name, so an image keeps its side when others are added, removed or moved about in the file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.datasets.paths import without_suffix
from artifacts.records import DataError

EVERYTHING = ("all", "trainval")
"""Split names that mean every image (unless a list of that name exists)."""


@dataclass(frozen=True)
class SplitRule:
    """What the two splits are called, and how much of an unsplit set is for validation."""

    train: str = "train"
    val: str = "val"
    val_share: float = 0.2

    @classmethod
    def of(cls, data: Any) -> SplitRule:
        """The rule that ``DataParams`` holds."""
        return cls(
            train=getattr(data, "train", "") or cls.train,
            val=getattr(data, "val", "") or cls.val,
            val_share=float(getattr(data, "val_share", cls.val_share)),
        )


@dataclass(frozen=True)
class Selection:
    """The chosen rows in file order, how they were chosen, and listed names without an image."""

    rows: list[int]
    how: str
    unmatched: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    """Which part a hash of the names chose, and how to have all; empty if nothing was left out by a hash."""


NO_LISTS = "split without a list of its images"
"""Kind of the complaint that :attr:`Selection.hashed` is."""


def hash_share(name: str) -> float:
    """A number in [0, 1) that depends on ``name`` alone (first 8 bytes of its SHA-256, big endian, / 2^64)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def select(relatives: Sequence[str], split: str, rule: SplitRule, folder: Path | None) -> Selection:
    """The rows of ``relatives`` (image paths, POSIX) that belong to ``split``.

    ``folder`` is where list files may lie (``None``: nowhere). Raises :class:`DataError` for a split name that
    neither a list nor the rule knows, and where one of the two lists exists without the other.
    """
    listed = list_file(folder, split, rule) if folder else None
    if listed:
        return select_listed(relatives, listed)
    if split in EVERYTHING:
        return Selection(list(range(len(relatives))), "every image")
    if split not in (rule.train, rule.val):
        where = f"no {split}.txt in {folder}, and " if folder else ""
        raise DataError(
            f"unknown split {split!r}: {where}the split names are {rule.train!r} (data.train), "
            f"{rule.val!r} (data.val), {' and '.join(map(repr, EVERYTHING))} for every image"
        )
    wants_val = split == rule.val
    rows = [i for i, r in enumerate(relatives) if (hash_share(without_suffix(r)) < rule.val_share) == wants_val]
    share = rule.val_share if wants_val else 1 - rule.val_share
    hashed: tuple[str, ...] = ()
    if not wants_val and len(rows) < len(relatives):  # said once, of the training images
        hashed = (
            f"{split!r} is {len(rows)} of {len(relatives)} images, by a hash of each name, and {rule.val!r}"
            " the others; data.val_share=0 makes all of them training images",
        )
    elif not wants_val and rule.val_share > 0 and relatives:
        hashed = (
            f"the hash of names gives {rule.val!r} none of the {len(relatives)} images: nothing says how good the"
            f" network is; write {rule.train}.txt and {rule.val}.txt, or raise data.val_share",
        )
    return Selection(rows, f"hash of the image name, share {share:g}", hashed=hashed)


def list_file(folder: Path, split: str, rule: SplitRule) -> Path | None:
    """``folder/<split>.txt`` if it exists; an error if only the other split's list does."""
    path = folder / f"{split}.txt"
    if path.is_file():
        return path
    others = [folder / f"{name}.txt" for name in (rule.train, rule.val) if name != split]
    if split in (rule.train, rule.val) and (other := next((o for o in others if o.is_file()), None)):
        raise DataError(f"{other} exists but {path} does not; write it (one image a line), or remove {other.name}")
    return None


def select_listed(relatives: Sequence[str], path: Path) -> Selection:
    """The rows that the list file ``path`` names.

    One image a line: a relative path with or without suffix; leading folders that the set does not have
    (``./images/train/a.jpg``, absolute paths) are passed over, so that lists written for other tools work.
    """
    rows_by_name: dict[str, int] = {}
    for row, relative in enumerate(relatives):
        rows_by_name.setdefault(relative, row)
    for row, relative in enumerate(relatives):
        rows_by_name.setdefault(without_suffix(relative), row)
    rows: set[int] = set()
    unmatched = []
    for entry in read_lines(path):
        named = _longest_tail(entry, rows_by_name)
        if named is None:
            unmatched.append(entry)
        else:
            rows.add(named)
    return Selection(sorted(rows), f"list {path}", tuple(unmatched))


def _longest_tail(entry: str, rows_by_name: dict[str, int]) -> int | None:
    parts = PurePosixPath(entry).parts
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        for name in (tail, without_suffix(tail)):
            if name in rows_by_name:
                return rows_by_name[name]
    return None


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file, stripped (byte order mark and CRLF allowed)."""
    # Not str.splitlines, which also breaks at U+2028 and the like: a name may hold them.
    return [line for line in (raw.strip() for raw in io.StringIO(read_text(path), newline=None)) if line]


def read_names(path: Path) -> list[str]:
    """Names, one a line, whose order gives them their numbers.

    Empty lines at the end are passed over. Raises :class:`DataError` for one before a name: it would shift all numbers
    that follow, or leave one without a name, and nothing says which.
    """
    lines = [line.strip() for line in io.StringIO(read_text(path), newline=None)]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        place = f"{path}:{lines.index('') + 1}"
        raise DataError(f"{place}: empty line between names, whose order gives them their numbers; remove or name it")
    return lines


def read_text(path: Path) -> str:
    """A UTF-8 text file, byte order mark allowed. Raises :class:`DataError` naming the first byte that is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte {error.start}: 0x{data[error.start]:02x}); save it as UTF-8"
        ) from error
