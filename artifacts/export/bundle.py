"""A bundle: learnt mask generators as one folder that can be taken elsewhere, and used without their training data.

    card.json              what they are: network, rounds, classes and data they have seen, scores, versions, licence
    generators.safetensors tensors of all rounds, ``generator1.*`` the first
    images.txt             digests of the images that they have seen, a line each: no target may hold one of them

The card names size and SHA-256 of the other two and begins with its own checksum (:mod:`artifacts.cache.sealed`), and
nothing in a bundle is ever executed. Equal content is equal bytes: there is no time, no place and no run in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.cache import sealed
from artifacts.cache.atomic import publish_folder, temporary_beside
from artifacts.records import DataError

CARD = "card.json"
GENERATORS = "generators.safetensors"
IMAGES = "images.txt"
KIND = "maskmill mask generators"
FORMAT = 1
SEAL = b'{"crc32"'
"""How a card begins; one that was written before cards had a checksum does not."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read, and found whole."""

    path: Path
    card: Mapping[str, Any] = field(repr=False)
    images: frozenset[str] = field(repr=False)
    """Digests of the images that its generators have seen."""

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.path / GENERATORS

    @property
    def rounds(self) -> int:
        """Number of generators; round r's tensors begin with :func:`part_name`."""
        return int(self.card["rounds"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that they have seen."""
        return tuple(self.card["classes"])


def part_name(number_of_round: int) -> str:
    """``generator1`` for the first round: the beginning of its tensors' names."""
    return f"generator{number_of_round}"


def check_bundle_target(folder: Path) -> None:
    """Raises :class:`DataError` where :func:`write_bundle` would: something else than a bundle is there, or in it."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        _card(folder)
    except DataError:
        raise DataError(f"{folder} exists and is no bundle of Maskmill; name another folder") from None
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in (CARD, GENERATORS, IMAGES)):
        raise DataError(
            f"{folder} holds {', '.join(foreign[:3])}, which no bundle has and a new one would replace; move it, or"
            " name another folder"
        )


def write_bundle(
    folder: Path, card: Mapping[str, Any], weights: Sequence[Path], images: Collection[str], *, half: bool = False
) -> Path:
    """Write the generators in ``weights`` (safetensors, the first round first) as a bundle; an earlier one is replaced.

    ``card`` says what a reader has to know; kind, format, rounds and digests are added. ``half`` stores the weights as
    float16. Raises :class:`DataError` where something else is there, ``OSError`` if the folder cannot be written: the
    earlier bundle is there then.
    """
    from safetensors.numpy import load_file, save

    check_bundle_target(folder)
    tensors = {
        f"{part_name(number)}.{name}": as_half(array) if half else array
        for number, path in enumerate(weights, start=1)
        for name, array in load_file(path).items()
    }
    files = {GENERATORS: save(tensors), IMAGES: "".join(f"{one}\n" for one in sorted(images)).encode()}
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    whole = {"kind": KIND, "format": FORMAT, **card, "rounds": len(weights), "files": listed}
    text = sealed.seal(whole, indent=1)
    if folder.is_dir() and (folder / CARD).is_file() and (folder / CARD).read_bytes() == text:
        return folder  # the same already
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = temporary_beside(folder), temporary_beside(folder)
    try:
        temporary.mkdir()
        for name, data in {**files, CARD: text}.items():
            (temporary / name).write_bytes(data)
        if folder.exists():
            os.rename(folder, old)
        try:
            publish_folder(temporary, folder)
        except BaseException:
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def as_half(array: NDArray[Any]) -> NDArray[Any]:
    """float32 as float16. Whole numbers (counts) stay as they are, and so does what has a value beyond 65,504."""
    if array.dtype != np.float32 or np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        return array
    return array.astype(np.float16)


def read_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``, whole, or a :class:`DataError` that says what is wrong with it."""
    card = _card(folder)
    for name, entry in card["files"].items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}; the bundle is not whole, copy it again") from error
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise DataError(
                f"{path}: {len(data)} bytes that are not the {entry['bytes']} of which {CARD} tells; the bundle is"
                " damaged or was changed, copy it again"
            )
    return Bundle(folder, card, frozenset((folder / IMAGES).read_text(encoding="ascii").split()))


def _card(folder: Path) -> dict[str, Any]:
    """The card. Raises :class:`DataError` for a folder that holds none, or one of another kind or format."""
    path = folder / CARD
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"bundle {folder} {what}; expected the folder that `maskmill lpg-learn` has left")
    try:
        data = path.read_bytes()
        card = sealed.unseal(data) if data.startswith(SEAL) else json.loads(data)
    except FileNotFoundError:
        raise DataError(f"{folder} is no bundle: it has no {CARD}; expected what `maskmill lpg-learn` leaves") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); the bundle is damaged, copy it again") from error
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise DataError(f"{path}: this is no card of a bundle of mask generators")
    if card.get("format") != FORMAT:
        raise DataError(
            f"{path}: a bundle of format {card.get('format')}, this version reads {FORMAT}; learn it again, or take the"
            " version of Maskmill that wrote it"
        )
    if wrong := [name for name, fits in _FITS.items() if not fits(card.get(name))]:
        raise DataError(f"{path}: {', '.join(wrong)} missing or not what it should be; the bundle is damaged")
    return card


def _are_files(given: Any) -> bool:
    return (
        isinstance(given, dict)
        and set(given) == {GENERATORS, IMAGES}
        and all(isinstance(entry, dict) and set(entry) == {"bytes", "sha256"} for entry in given.values())
    )


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "rounds": lambda given: type(given) is int and given > 0,
    "classes": lambda given: isinstance(given, list) and all(isinstance(name, str) for name in given),
    "files": _are_files,
    "network": lambda given: isinstance(given, dict) and isinstance(given.get("network"), str),
    "network_version": lambda given: type(given) is int,
}
"""What a card has to hold -> whether it is of the right kind."""
