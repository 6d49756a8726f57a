"""Pretrained weights: where they come from, how their file is opened, what normalisation belongs to them.

A user names them by one string: ``none``, ``imagenet`` (those of the chosen network), a name of the table
(:mod:`tasks.training.weights.table`), or a file. A file has the normalisation of the network's ImageNet weights, unless
another is named before it: ``caffe:/data/vgg16_bgr.safetensors``.

No torch here, but for networks of timm: stages are described in processes that never load it.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from models.names import is_timm
from tasks.stage import resolve as function_named
from tasks.training.weights import here, table
from tasks.training.weights.files import WeightsError, read_part, read_state, require_file
from tasks.training.weights.here import package_file
from tasks.training.weights.table import Row

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HELP",
    "PRESETS",
    "Source",
    "Weights",
    "WeightsError",
    "check_fits",
    "known_row",
    "package_file",
    "parse",
    "read_part",
    "read_state",
    "require_file",
    "resolve",
    "state_of",
]

PRESETS = ("imagenet", "caffe", "hed", "lite0", "half", "clip", "unit", "dpn")
"""Names of :data:`models.normalise.NORMALISATIONS`."""
HELP = (
    "none, imagenet (those of the network), a name of `maskmill weights`, a file, or a file with another normalisation"
    " before it: caffe:FILE (BGR, mean subtracted), imagenet:FILE, lite0:FILE"
)
"""What a params field says of itself."""

log = logging.getLogger("maskmill")


@dataclass(frozen=True)
class Weights:
    """A parsed ``weights`` string."""

    kind: Literal["none", "imagenet", "row", "file"]
    name: str = ""
    """Of the row."""
    preset: str = ""
    """The normalisation named before a file; empty: the network's."""
    path: Path | None = None


@dataclass(frozen=True)
class Source:
    """Where the initial weights of one network come from."""

    normalisation: str
    """Name in :data:`models.normalise.NORMALISATIONS`."""
    semantic: str
    """The string as it enters an address: no path, and it can be resolved again in the fit."""
    description: str
    path: Path | None = None
    """A file that is known by its content: an input of the stage."""
    row: Row | None = None
    key: str = "weights"
    """Config key, for messages."""

    @property
    def inputs(self) -> dict[str, Path]:
        """What the stage declares as ``inputs``."""
        return {} if self.path is None else {"weights": self.path}

    def state(self) -> dict[str, Tensor]:
        """The tensors, under the provider's names. ``none`` has none.

        Raises :class:`WeightsError` where they are missing, damaged, or cannot be downloaded.
        """
        if self.path is not None:
            return read_state(self.path)
        return {} if self.row is None else _state(self.row, self.key)


def parse(text: str) -> Weights:
    """Read a ``weights`` string; no file is looked at. Raises :class:`WeightsError` for an empty one.

    A name of the table goes before a file of that name in the current folder: write ``./lite0`` for it.
    """
    if not text.strip():
        raise WeightsError("weights is empty; give none, imagenet, a name of `maskmill weights`, or a file")
    if text == "none":
        return Weights("none")
    if text == "imagenet":
        return Weights("imagenet")
    name = re.sub(r"@[0-9a-f]{12}$", "", text)
    if (row := table.find(name)) is not None and text in (row.name, row.fingerprint):
        return Weights("row", row.name)
    preset, colon, rest = text.partition(":")
    if colon and preset in PRESETS:
        if not rest:
            raise WeightsError(f"weights {text!r} names no file after the colon")
        return Weights("file", preset=preset, path=Path(rest).expanduser())
    return Weights("file", path=Path(text).expanduser())


def check_fits(weights: str, network: str, key: str) -> None:
    """Raises :class:`WeightsError` if the string is empty or names a row that is not ``network``'s; for params."""
    _row(parse(weights), network, key)


def resolve(weights: str, network: str, key: str, *, given: Path | str | None = None) -> Source:
    """What ``weights`` means for ``network``, checked: what is not here, or not what it should be, is an error now.

    torchvision's files alone may be missing: its loader gets them when the fit starts, which is said once.

    Args:
        weights: the string of the config, or a :attr:`Source.semantic`.
        network: name of the network (``resnet50``, ``lite0``, ``timm:NAME``, ``hed``).
        key: config key of the weights, for messages.
        given: in a fit, its input ``weights``: the file's place.

    Raises :class:`WeightsError` naming the file, and the command or the key that helps.
    """
    parsed = parse(weights)
    own = _own_normalisation(network, key)
    if parsed.kind == "none":
        return Source(own or "imagenet", "none", "random weights")
    if parsed.path is not None:
        path = Path(given) if given is not None else require_file(parsed.path, key)
        normalisation = parsed.preset or own or _unknown_normalisation(weights, network, key)
        semantic = "file" if normalisation == own else f"{normalisation}:file"
        return Source(normalisation, semantic, str(path), path)
    row = _row(parsed, network, key)
    assert row is not None, "neither none nor a file"
    if row.origin == "torchvision":
        found = here.look(row)
        if found is None:
            _say_download(row, key)
        elif found.problem:
            here.require(row, key)
        return Source(row.normalisation, "imagenet", f"torchvision's {network}", row=row, key=key)
    if row.origin == "timm":
        path = Path(given) if given is not None else here.require(row, key).path
        found_normalisation = _recorded_normalisation(path, own, key) or _unknown_normalisation(weights, network, key)
        return Source(found_normalisation, "imagenet", str(path), path, row, key)
    found = here.require(row, key)
    # The table's digest, not the file's: the package and the file converted from it hold the same weights.
    return Source(row.normalisation, row.fingerprint, f"{row.name} ({found.path})", row=row, key=key)


def state_of(name: str, key: str = "weights") -> dict[str, Tensor]:
    """The tensors of a row, as its reader names them: from the user's cache, else from the installed package.

    Raises :class:`WeightsError` for an unknown name, and for what is missing or is not what the table says.
    """
    return _state(known_row(name), key)


def known_row(name: str) -> Row:
    """The row of the table. Raises :class:`WeightsError` with the names that there are, the closest first."""
    if (row := table.find(name)) is None:
        raise WeightsError(f"there are no weights {name!r}{table.meant(name)}; known: {', '.join(table.names())}")
    return row


def _row(parsed: Weights, network: str, key: str) -> Row | None:
    """The row that is meant; ``None`` for ``none`` and files."""
    if parsed.kind == "imagenet":
        row = table.imagenet_row(network)
        if row is None:
            raise WeightsError(f"{key} 'imagenet' with network {network!r}: there are none for it; set weights='none'")
        return row
    if parsed.kind == "row":
        row = known_row(parsed.name)
        if network not in row.networks:
            raise WeightsError(
                f"{key} {parsed.name!r} with network {network!r}: they fit {', '.join(row.networks)}; set weights to"
                " imagenet, none or a file"
            )
        return row
    return None


def _own_normalisation(network: str, key: str) -> str:
    """That of the network's ImageNet weights; empty where it has no name here. :class:`WeightsError`: no such model."""
    if is_timm(network):
        from models.timm_backbone import normalisation_of  # timm brings torch

        try:
            found = normalisation_of(network)
        except ValueError as error:
            raise WeightsError(f"{key}: {error}") from error
        return "" if found is None else found.name
    row = table.imagenet_row(network)
    return "imagenet" if row is None else row.normalisation


def _recorded_normalisation(path: Path, own: str, key: str) -> str:
    """That of a file of timm's weights, as it was when they were got; ``own`` where the file says nothing.

    A name without a tag means other weights, perhaps with another normalisation, once timm prefers another tag.
    Empty where it has no name here.
    """
    from models.timm_backbone import normalisation_with  # timm brings torch

    try:
        said = here.metadata_of(path)
        if here.MEAN not in said or here.STD not in said:
            return own
        found = normalisation_with(json.loads(said[here.MEAN]), json.loads(said[here.STD]))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{key}: {path} does not say its normalisation ({error}); get it again") from error
    return "" if found is None else found.name


def _unknown_normalisation(weights: str, network: str, key: str) -> NoReturn:
    raise WeightsError(
        f"{key} {weights!r} with network {network!r}: mean and deviation of its weights are no known ones; name others"
        f" before a file, {key}=imagenet:FILE ({', '.join(PRESETS)}), or set {key}=none"
    )


def _state(row: Row, key: str) -> dict[str, Tensor]:
    if row.origin == "torchvision":
        from tasks.training.weights.get import torchvision_state

        found = here.look(row)
        return torchvision_state(row, key) if found is None else read_state(here.require(row, key).path)
    found = here.require(row, key)
    if found.place == "cache":
        return read_state(found.path)
    state: dict[str, Tensor] = function_named(row.reader)(found.path)
    return state


@functools.cache
def _say_download(row: Row, key: str) -> None:
    """Once a process, before any work: a machine without network would fail hours later."""
    log.warning(
        "%s: %s (%.0f MB) is not on this machine; torchvision downloads it when the fit starts. Without network, run"
        " `%s` on another machine and copy its file to %s",
        key,
        row.file,
        row.bytes / 1e6,
        row.get,
        here.hub_file(row),
    )
