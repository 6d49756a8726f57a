"""Content addresses: a result's name is a digest of all that it was made from.

*Address* of a stage: how the result is made (name, version, semantic params, class table, upstream
addresses); no data, no paths. *Stamp* of one image in it, or of one fit: what it was made from
(digests of the image, of the declared labels, of the upstream outputs, of weights). Equal stamp,
nothing to do.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.inputs import open_input

DIGEST_CHARS = 32
"""128 bits in hexadecimal: short enough for a file name, far from any chance collision."""

OPERATIONAL = {"operational": True}
"""``field(metadata=OPERATIONAL)``: this param changes how the work is done, not its result."""

WHEN_SET = {"when_set": True}
"""``field(metadata=WHEN_SET)``: an optional part; at its default it is left out, as if the class did not have it."""


def digest_bytes(data: bytes | memoryview) -> str:
    """Digest of raw bytes."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARS]


def digest_file(path: Path | str) -> str:
    """Digest of a file's content, read in blocks."""
    with open_input(path, sys.maxsize) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARS]


def digest_array(array: NDArray[Any]) -> str:
    """Digest of an array: dtype, shape and bytes (C order, little endian)."""
    contiguous = np.ascontiguousarray(array)
    little = contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False)
    state = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    flat = little.reshape(-1).view(np.uint8)
    if little.itemsize == 1 and flat.size >= _MIN_RUNS_SIZE:
        _update_by_runs(state, flat)
    else:
        state.update(flat.data)
    return state.hexdigest()[:DIGEST_CHARS]


_MIN_RUNS_SIZE = 4096


def _update_by_runs(state: Any, flat: NDArray[np.uint8]) -> None:
    """Digest a mask by its runs where they are few: twice as fast as its bytes, which is a third of storing it.

    As good as the bytes: which form is taken, and the form itself, follow from the content, and no run form is as
    long as its array (9 bytes a run, at most one run in 16 elements).
    """
    changes = flat[1:] != flat[:-1]
    if np.count_nonzero(changes) * 16 > flat.size:
        state.update(flat.data)
        return
    ends = np.flatnonzero(changes)
    for part in (b"runs", ends.astype("<i8", copy=False).data, flat[ends].data, flat[-1:].data):
        state.update(part)


def digest_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Digest of named arrays, whatever their order."""
    return digest({name: digest_array(array) for name, array in arrays.items()})


def digest(value: object) -> str:
    """Digest of plain data: dataclasses (operational fields and unset parts left out), mappings, sequences, scalars.

    Raises ``TypeError`` for anything whose text would not be the same on every run.
    """
    return digest_bytes(_as_text(canonical(value)).encode())


_as_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


_PLAIN = frozenset({str, int, bool, type(None)})


def canonical(value: object) -> Any:
    """``value`` as JSON-ready data in which equal content has equal text."""
    if type(value) in _PLAIN:  # nearly all there is, hundreds of thousands of times in a run
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {"__params__": type(value).__name__}
        for name, unset in _content(type(value)):
            part = getattr(value, name)
            if unset is None or part != unset():
                found[name] = canonical(part)
        return found
    if isinstance(value, (dict, Mapping)):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(canonical(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, float):
        # repr is exact; JSON has no inf or nan, and 1.0 must not equal 1.
        return f"float:{value!r}" if math.isfinite(value) else f"float:{value}"
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no stable digest: {value!r}")


@functools.cache
def _content(kind: type) -> tuple[tuple[str, Callable[[], Any] | None], ...]:
    """Fields of a dataclass that are its content, operational ones left out; of a part that counts only when it is set,
    what gives the value that it has when it is not."""
    return tuple(
        (item.name, _default(item) if item.metadata.get("when_set") else None)
        for item in dataclasses.fields(kind)
        if not item.metadata.get("operational")
    )


def _default(field: dataclasses.Field[Any]) -> Callable[[], Any]:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return lambda: field.default


def address(
    name: str,
    version: int,
    params: object,
    *,
    classes: Iterable[str] | None = None,
    upstream: Mapping[str, str] | None = None,
    source: str | None = None,
) -> str:
    """Address of a stage: ``<name>-<digest>``.

    ``classes`` is the class table if the output holds class numbers, else ``None``; ``upstream``
    maps each role to the upstream stage's address (a file input's role maps to ``"file"``). ``source``: digest of the
    code, for stages that no version stands for.
    """
    parts = {
        "name": name,
        "version": version,
        "params": params,
        "classes": None if classes is None else list(classes),
        "upstream": dict(sorted((upstream or {}).items())),
    }
    if source is not None:
        parts["source"] = source
    return f"{name}-{digest(parts)}"


def image_stamp(
    *,
    image: str | None,
    labels: Mapping[str, str],
    upstream: Mapping[str, str | None],
    weights: Mapping[str, str],
) -> str:
    """Stamp of one image in a map stage.

    Args:
        image: digest of the image's bytes, or ``None`` if the stage does not read it.
        labels: declared label kind -> digest.
        upstream: role -> output digest, ``None`` for an absence (the upstream stage skipped it).
        weights: role -> weights digest of a checkpoint, or content digest of an input file.
    """
    # Made for every image in every stage: as `digest` of it, for texts are what they are in canonical form.
    plain = {"image": image, "labels": dict(labels), "upstream": dict(upstream), "weights": dict(weights)}
    return digest_bytes(_as_text(plain).encode())


def fit_stamp(
    *,
    members: Iterable[tuple[str, str]],
    inputs: Mapping[str, str],
    init: str | None,
    seed: int,
) -> str:
    """Stamp of a fit: its sorted ``(key, member digest)``, inputs, initial weights and seed."""
    return digest({"members": sorted(members), "inputs": inputs, "init": init, "seed": seed})
