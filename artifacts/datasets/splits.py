"""Which images are training images where the data set has no split of its own.

In this order: a list file ``<split>.txt``, else a stable hash of the image's relative path. The hash depends on
nothing but the name, so an image keeps its side when others are added, removed or moved about in the file.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.datasets.find import Names, child
from artifacts.datasets.paths import without_suffix
from artifacts.inputs import MOST_TEXT_BYTES, read_input
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


_SPLIT_FOLDER = re.compile(r"(train|val|test)(?:ing|id|idation)?[-_]?\d*")

NO_LISTS = "split without a list of its images"
"""Kind of the complaint that :attr:`Selection.hashed` is."""


def folder_split(name: str) -> str:
    """``train``, ``val`` or ``test`` where a folder of this name looks like that split; else empty."""
    found = _SPLIT_FOLDER.fullmatch(name.lower())
    return found[1] if found else ""


def hash_share(name: str) -> float:
    """A number in [0, 1) that depends on ``name`` alone (first 8 bytes of its SHA-256, big endian, / 2^64)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def select(names: Names, split: str, rule: SplitRule, folder: Path | None) -> Selection:
    """The rows of ``names.files`` (image paths or ids) that belong to ``split``.

    ``folder`` is where list files may lie (``None``: nowhere). Raises :class:`DataError` for a split name that
    neither a list nor the rule knows, and where one of the two lists exists without the other.
    """
    listed = list_file(folder, split, rule) if folder else None
    if listed:
        if listed.name != f"{split}.txt":
            names.respelled[f"{split}.txt"] = listed.name
        return select_listed(names, listed)
    relatives = names.files
    if split in EVERYTHING:
        return Selection(list(range(len(relatives))), "every image")
    tops = {relative.partition("/")[0] for relative in relatives if "/" in relative}
    if split in tops and {rule.train, rule.val} <= tops:
        rows = [i for i, relative in enumerate(relatives) if relative.startswith(f"{split}/")]
        return Selection(rows, f"folder {split}")
    if split not in (rule.train, rule.val):
        where = f"no {split}.txt in {folder}, and " if folder else ""
        raise DataError(
            f"unknown split {split!r}: {where}the split names are {rule.train!r} (data.train), "
            f"{rule.val!r} (data.val), {' and '.join(map(repr, EVERYTHING))} for every image"
        )
    looks = {found for top in tops if (found := folder_split(top))}
    if looks >= {"train", "val"}:
        raise DataError(
            f"the folders {', '.join(sorted(tops))} look like splits, and nothing says which is which; write"
            f" {split}.txt (one image a line), or name them: data.train=, data.val="
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
    path = child(folder, f"{split}.txt")
    if path.is_file():
        return path
    others = [child(folder, f"{name}.txt") for name in (rule.train, rule.val) if name != split]
    own = split in (rule.train, rule.val) and split not in EVERYTHING
    if own and (other := next((o for o in others if o.is_file()), None)):
        raise DataError(f"{other} exists but {path} does not; write it (one image a line), or remove {other.name}")
    return None


def select_listed(names: Names, path: Path) -> Selection:
    """The rows of ``names.files`` that the list file ``path`` names.

    One image a line: a relative path with or without suffix; leading folders that the set does not have
    (``./images/train/a.jpg``, absolute paths, those of Windows) are passed over, so that other tools' lists work.
    """
    rows_by_name = {relative: row for row, relative in enumerate(names.files)}
    rows: set[int] = set()
    unmatched = []
    for entry in read_lines(path):
        named = names.find(entry, any_ending=True)
        if named is None:
            unmatched.append(names.tried(entry))
        else:
            rows.add(rows_by_name[named])
    return Selection(sorted(rows), f"list {path}", tuple(unmatched))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank (byte order mark and CRLF allowed), blanks at their ends kept.

    A file's name may end in a blank: the reader of the list tries the line as it is first.
    """
    return [line for _, line in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """:func:`read_lines` with the number of each line, from 1."""
    # Not str.splitlines, which also breaks at U+2028 and the like: a name may hold them.
    lines = enumerate(io.StringIO(read_text(path), newline=None), 1)
    return [(number, line.rstrip("\n")) for number, line in lines if line.strip()]


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
    data = read_input(path, MOST_TEXT_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte {error.start}: 0x{data[error.start]:02x}); save it as UTF-8"
        ) from error
