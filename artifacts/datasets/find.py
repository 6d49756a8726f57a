"""Files below a folder, listed once, and found by the names that annotations give them.

Names come from other machines: backslashes and drive letters, the path of a folder that is elsewhere now, ``é`` as one
character or as two, another case of the ending, ``%20``. :meth:`Folder.find` knows all of it, for every reader.
"""

from __future__ import annotations

import os
import re
import unicodedata
import urllib.parse
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from artifacts.datasets.paths import Notes, check_relative, without_suffix
from artifacts.images import IMAGE_SUFFIXES, unreadable_suffixes
from artifacts.inputs import InputFault, check_link
from artifacts.records import DataError

NO_PICTURES = frozenset(
    (
        ".txt",
        ".xml",
        ".json",
        ".csv",
        ".tsv",
        ".yaml",
        ".yml",
        ".md",
        ".rst",
        ".names",
        ".data",
        ".cache",
        ".db",
        ".ini",
        ".html",
        ".npy",
        ".npz",
        ".mat",
        ".h5",
        ".hdf5",
        ".pkl",
        ".py",
        ".sh",
        ".log",
        ".lock",
        ".zip",
        ".tar",
        ".gz",
        ".pdf",
    )
)
"""Endings of files that lie in picture folders and are no pictures: not counted as left out."""
NO_PICTURE_NAMES = frozenset(("readme", "license", "copying", "makefile"))
NO_ENDING = "its ending is no picture's; rename it, or convert it to PNG or JPEG"
_DRIVE = re.compile(r"^[A-Za-z]:(?=[/\\])")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*/")


class Names:
    """Relative POSIX paths, and what finds one of them by another's spelling of it."""

    def __init__(self, files: Iterable[str], where: str, suffixes: Collection[str] | None = IMAGE_SUFFIXES) -> None:
        self.files = list(files)
        self.where = where
        self._suffixes = suffixes
        self.respelled: dict[str, str] = {}
        """Name asked for -> file, where they differ in more than separators, leading folders and the ending."""
        self._exact = frozenset(self.files)
        self._by_key: dict[str, list[str]] | None = None
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, name: str, *, any_ending: bool = False, whole: bool = False, of: Names | None = None) -> str | None:
        """The file that ``name`` means; ``None`` if there is none, or if it may mean several.

        In this order: the name as it is, its other spellings, the same without its leading folders, one after another,
        and each below ``images/``. ``any_ending``: a name without ending, or with another picture's, will do.
        ``whole``: with all its folders, as a label file has its picture's. ``of``: all names that are looked for; what
        is another one's own name, or differs from two of them in case alone, is not this one's.
        """
        if name in self._exact:
            return name
        matches = self._matches(name, any_ending, whole)
        found = next((file for file in matches if of is None or not of._has_or_may_mean(file)), None)
        if found is not None and not _ends_alike(self.bare(found) if any_ending else found, name):
            self.respelled.setdefault(name, found)
        return found

    def find_each(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The files that the names of one table mean, with any ending, and why a file is not given to some of them.

        Two names that differ in more than the ending stand for two files. If only one is there, both may be found as
        that one, without their leading folders: then it is the one's that is its name, or nobody's.
        """
        found = {name: file for name in dict.fromkeys(names) if (file := self.find(name, any_ending=True)) is not None}
        spelled: dict[str, dict[str, None]] = {}
        for name, file in found.items():
            spelled.setdefault(file, {})[self._plain(name, file)] = None
        refused = {}
        for name, file in list(found.items()):
            same = spelled[file]
            if len(same) == 1 or (own := self._plain(name, file)) == self._plain(file, file):
                continue
            if self.bare(file) in same:
                refused[name] = f"{own!r} is not there, and {file!r} has rows of its own"
            else:
                refused[name] = f"{', '.join(map(repr, list(same)[:3]))} would all be {file!r}; correct the names"
            del found[name]
        return found, refused

    def _plain(self, name: str, file: str) -> str:
        """``name`` with slashes, without ``./`` and without the ending of ``file``: two spellings of one name alike."""
        plain = os.path.normpath(name.strip().replace("\\", "/"))
        stem, suffix = os.path.splitext(plain)
        return stem if suffix and suffix.lower() == file[len(self.bare(file)) :].lower() else plain

    def _has_or_may_mean(self, name: str) -> bool:
        """Whether ``name`` is one of these, or differs from several of them in case alone."""
        return name in self._exact or len(self._keys().get(_key(name), ())) > 1

    def _keys(self) -> dict[str, list[str]]:
        if self._by_key is None:
            self._by_key = {}
            for file in self.files:
                self._by_key.setdefault(_key(file), []).append(file)
        return self._by_key

    def _stems(self) -> dict[str, list[str]]:
        if self._by_stem is None:
            self._by_stem = {}
            for file in self.files:
                self._by_stem.setdefault(_key(self.bare(file)), []).append(file)
        return self._by_stem

    def _matches(self, name: str, any_ending: bool, whole: bool) -> Iterator[str]:
        for tail in _tails(name):
            if whole and tail.count("/") != name.count("/"):
                continue
            if tail in self._exact:
                yield tail
            for spelling in (tail,) if whole else (tail, f"images/{tail}"):
                if found := self._unique(spelling, any_ending):
                    yield found

    def say_respelled(self, notes: Notes) -> None:
        """Name the files that were found although their names are spelled otherwise."""
        for name, found in self.respelled.items():
            notes.add("name found in another spelling", f"{name!a} is {found!a}")

    def _unique(self, name: str, any_ending: bool) -> str | None:
        found = self._keys().get(_key(name), [])
        if not found and any_ending:
            found = self._stems().get(_key(name), []) or self._stems().get(_key(without_suffix(name)), [])
            found = [file for file in found if self.bare(file) in (name, without_suffix(name))] or found
        return found[0] if len(found) == 1 else None

    def bare(self, file: str) -> str:
        """``sub/a.b.txt`` -> ``sub/a.b``: without its ending, if that is one of these names'."""
        stem, suffix = os.path.splitext(file)
        return stem if self._suffixes is None or suffix.lower() in self._suffixes else file

    def tried(self, name: str) -> str:
        """``name`` and, for a message, the other spellings that were looked for."""
        tails = [repr(tail) for tail in dict.fromkeys(_tails(name)) if tail != name]
        return f"{name.strip()} (nor {', '.join(tails[:3])})" if tails else name.strip()


class Folder(Names):
    """All files below ``root``, in subfolders too; each real folder is entered once.

    Hidden files and folders are passed over, and so are the folders of ``leave_out`` directly below ``root``. Links out
    of the data set are not followed (:func:`artifacts.inputs.confined`). Raises :class:`DataError` for no folder.
    """

    def __init__(
        self, root: Path, suffixes: Collection[str] | None = IMAGE_SUFFIXES, *, leave_out: Collection[str] = ()
    ) -> None:
        self.unusable: list[tuple[str, str]] = []
        """(relative path, reason): a name that no list can hold, a link out of the data set."""
        self.passed_over: list[str] = []
        """Relative paths of files that may be pictures, and have no ending of ``suffixes`` (``None``: any will do)."""
        good = []
        for relative in _walk(root, leave_out, self.unusable):
            suffix = os.path.splitext(relative)[1].lower()
            if suffixes is not None and suffix not in suffixes:
                if may_be_picture(relative):
                    self.passed_over.append(relative.encode(errors="backslashreplace").decode())  # it may be no text
                continue
            try:
                good.append(check_relative(relative))
            except DataError as error:
                self.unusable.append((ascii(relative), str(error)))
        super().__init__(sorted(good), str(root), suffixes)

    def say_strays(self, pictures: Names, notes: Notes) -> None:
        """Name the files of masks that are no picture's, or have no ending of a mask's."""
        strays = [file for file in self.files if pictures.find(self.bare(file), any_ending=True, whole=True) is None]
        kind = "mask that is not used: no picture has its name, or it is no PNG"
        notes.add_all(kind, [f"{self.where}/{file}" for file in sorted((*strays, *self.passed_over))])

    @classmethod
    def if_there(cls, root: Path, suffixes: Collection[str]) -> Names:
        """The folder, or one without files where there is none."""
        return cls(root, suffixes) if root.is_dir() else Names((), str(root), suffixes)

    def say_left_out(self, notes: Notes) -> None:
        """Name the files that may be pictures and are not read, by ending; and those whose format is not known here."""
        how = unreadable_suffixes()
        for file in self.passed_over:
            notes.add(f"file left out: {NO_ENDING}", file)
        for file in self.files if how else ():
            if reason := how.get(os.path.splitext(file)[1].lower()):
                notes.add(f"picture that is not read here: {reason}", file)


def child(root: Path, name: str, notes: Notes | None = None) -> Path:
    """``root / name``: where there is none, the only entry of ``root`` whose name differs in case alone (said)."""
    path = root / name
    if path.exists():
        return path
    try:
        alike = [entry for entry in os.listdir(root) if entry.casefold() == name.casefold()]
    except OSError:
        return path
    if len(alike) != 1:
        return path
    if notes is not None:
        notes.add("name found in another spelling", f"{str(path)!a} is {alike[0]!a}")
    return root / alike[0]


def may_be_picture(name: str) -> bool:
    """Whether a file that has no picture's ending may be one all the same, so that it is named where it is left out."""
    stem, suffix = os.path.splitext(name.rpartition("/")[2].lower())
    return suffix not in NO_PICTURES and stem not in NO_PICTURE_NAMES


def _walk(root: Path, leave_out: Collection[str], refused: list[tuple[str, str]]) -> Iterator[str]:
    """Relative POSIX paths of all files but hidden ones."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    check_link(root)
    seen: set[str] = set()
    waiting = [("", str(root))]
    while waiting:
        prefix, place = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(place) as listed:
            for entry in sorted(listed, key=lambda entry: entry.name):
                if entry.name.startswith(".") or (not prefix and entry.name in leave_out):
                    continue
                relative = prefix + entry.name
                if entry.is_symlink():
                    try:
                        check_link(entry.path)
                    except InputFault as error:
                        refused.append((relative, str(error)))
                        continue
                if entry.is_dir():
                    waiting.append((f"{relative}/", entry.path))
                else:
                    yield relative


def _tails(name: str) -> Iterator[str]:
    """The name's spellings without leading folders, longest first."""
    for text in dict.fromkeys((name, name.strip(), urllib.parse.unquote(name), urllib.parse.unquote(name).strip())):
        plain = _SCHEME.sub("", _DRIVE.sub("", text)).replace("\\", "/").replace("?d=", "/")
        parts = [part for part in PurePosixPath(plain).parts if part not in ("/", ".", "..", "//")]
        for start in range(len(parts)):
            yield "/".join(parts[start:])


def _ends_alike(found: str, name: str) -> bool:
    """Whether a name ends as the file's, the case of its ending aside."""
    stem, suffix = os.path.splitext(name.strip().replace("\\", "/"))
    return any(plain.endswith(found) for plain in (stem, stem + suffix, stem + suffix.lower(), stem + suffix.upper()))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
