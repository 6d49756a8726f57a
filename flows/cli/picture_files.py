"""A folder of pictures, and where results may go: for the commands that go over pictures at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifacts.datasets.find import NO_ENDING, may_be_picture
from artifacts.images import IMAGE_SUFFIXES
from artifacts.records import DataError

PICTURE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
"""Endings of pictures that are written."""
Skipped = list[tuple[Path, str]]
"""(path, reason)."""


def pictures_in(folder: Path) -> tuple[list[Path], Skipped]:
    """The pictures of ``folder`` (not of its subfolders) by name, and the files that may be pictures and are not read.

    Hidden files are passed over.
    """
    found: list[Path] = []
    left_out: Skipped = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(path)
        elif path.is_file() and may_be_picture(path.name):
            left_out.append((path, NO_ENDING))
    return found, left_out


def not_looked_into(folder: Path) -> str:
    """What is said of the folders in ``folder``, whose pictures are not read; "" where there are none."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        return ""
    return f"{len(found)} {'folders' if len(found) > 1 else 'folder'} in {folder} not looked into: {found[0]}" + (
        ", ..." if len(found) > 1 else ""
    )


def no_pictures(folder: Path) -> DataError:
    """The error for a folder without any."""
    inside = not_looked_into(folder)
    kinds = ", ".join(sorted(IMAGE_SUFFIXES))
    return DataError(f"{folder}: holds no pictures ({kinds})" + (f"; {inside}" if inside else ""))


def of_one_name(path: Path) -> str:
    """Why a second picture of one name is a skip."""
    return f"another picture is called {path.stem}, too: both would be {path.stem}.png"


def check_folders(*written: Path | None) -> None:
    """Raise ``DataError`` where a file lies in the place of a folder of results."""
    for folder in written:
        if folder is None or folder.is_dir():
            continue
        if folder.exists():
            raise DataError(f"{folder} is a file; with a folder of pictures name a folder")
        if folder.suffix.lower() in PICTURE_SUFFIXES:
            raise DataError(f"{folder} is the name of a picture; with a folder of pictures name a folder")


def check_apart(read: Sequence[Path], *written: Path | None) -> None:
    """Raise ``DataError`` where a file or folder is written that is read too, or is written twice."""
    targets = [path for path in written if path is not None]
    if len({path.resolve() for path in targets}) < len(targets):
        raise DataError(f"{targets[0]}: two outputs of this command have this place; give each its own")
    for path in targets:
        if path.resolve() in (one.resolve() for one in read):
            raise DataError(f"{path}: would be overwritten, but it is read; name another place for the output")
