"""The two verbs: a MapStage makes arrays for one image, a FitStage learns from many.

A stage is a description, not work: name, version, params, what it reads, what it gives, and the
function that does it as ``"module:name"`` (so that a work unit is a plain picklable call, and nothing
heavy is imported before it is needed). ``tasks.engine.runner.Runner`` runs stages.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.records import KINDS, DataError, ImageRGB, Kind, Record, RecordSet, Skip

Arrays = dict[str, NDArray[Any]]
CRF_MASK = "mask_crf_hw"
"""Array of a stage that keeps its mask twice: ``mask_hw`` without, this one with a CRF."""
LABEL_PROB = "label_prob_hw"
"""Array of a stage that keeps how probable it found each pixel's label: ``(H, W) uint8``, in 255ths."""
IMAGES_AT_ONCE = 8
"""Images that a GPU stage is handed together; those of one size share a pass."""
CORRECTED = "corrected"
"""Name of the stage that prefers what people corrected (:func:`tasks.labels.corrected_masks`)."""
MASKS: Mapping[str, str] = {"mask_hw": "", CRF_MASK: " + CRF"}
"""Arrays that are label masks -> what follows the name of their stage in scores and pictures."""
PARAMS_CONFIG: dict[str, str] = {"extra": "forbid"}
"""``__pydantic_config__`` of every params class: without it pydantic swallows a misspelt key of a dataclass."""


class SkipImage(Exception):
    """Raised by a stage function: this image is skipped, the others are not. The message is the recorded reason."""


@dataclass(frozen=True)
class Item:
    """The input of a map function (or of a fit, image by image): only what its stage declares."""

    key: str
    record: Record
    """View with only the declared label kinds."""
    classes: tuple[str, ...]
    """Class table of the record set; ``classes[i]`` is class number ``i + 1``."""
    image_rgb: ImageRGB | None = None
    """``(H, W, 3) uint8``, EXIF-rotated, if ``"image"`` is declared."""
    up: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    """role -> array name -> array, from upstream map stages."""
    nets: Mapping[str, str] = field(default_factory=dict)
    """role -> path of a checkpoint's safetensors file (fits), or of an input file."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """role -> beginning of the names of the tensors that are meant, where ``net.part("x")`` was given."""
    device: str = "cpu"


def image_of(item: Item) -> ImageRGB:
    """The item's image. ``ValueError`` where its stage does not read it."""
    if item.image_rgb is None:
        raise ValueError(f"{item.key}: this needs the image, but the stage does not read it")
    return item.image_rgb


def by_size(items: Sequence[Item], of_one_size: Callable[[Sequence[Item]], list[Arrays]]) -> list[Arrays]:
    """Results in the items' order of a function that takes images of one size only: for a stage of several at once."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(image_of(item).shape, []).append(place)
    found: dict[int, Arrays] = {}
    for part in places.values():
        found |= zip(part, of_one_size([items[place] for place in part]), strict=True)
    return [found[place] for place in range(len(items))]


@dataclass(frozen=True)
class MapStage:
    """One image -> arrays, cached per image.

    ``function`` names ``def f(item: Item, params) -> dict[str, ndarray]``; it returns exactly the arrays in
    ``outputs``, or raises :class:`SkipImage`. With ``images_at_once`` it is a function of several images,
    ``def f(items: Sequence[Item], params) -> list[dict[str, ndarray]]``, in their order. (:func:`call`)
    """

    name: str
    version: int
    params: Any
    reads: tuple[Kind, ...]
    outputs: tuple[str, ...]
    function: str
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """role -> file that the function reads (weights, say); known by the digest of its content."""
    holds_classes: bool = False
    """Whether the output holds class numbers: the class table is then part of the address."""
    numbers_of_labels: bool = False
    """Whether these come from the labels alone, and ``Item.classes`` is not looked at: results of a shorter class table
    are then taken over (:mod:`tasks.engine.shorter_tables`). No part of the address."""
    uses_torch: bool = False
    """Runs where torch is imported, and under the GPU lock when the device is a GPU."""
    images_at_once: int = 0
    """Images of one call on a GPU, where the next ones are read meanwhile; elsewhere, and where a call fails, one. No
    part of the address: it may change the output by rounding only, as a GPU does anyway. 0: ``function`` takes one."""
    heat: tuple[str, ...] = ()
    """Outputs that the report draws as heat maps: float, or uint8 in 255ths; ``(h, w)``, or ``(c, h, w)`` with the
    class numbers of the channels in the output ``classes_c``, if there is one. Pictures only: no part of the
    address."""

    def __post_init__(self) -> None:
        _check_stage(self.name, self.reads)
        if unknown := set(self.heat) - set(self.outputs):
            raise ValueError(f"stage {self.name} declares heat maps {sorted(unknown)}, which are no outputs of it")


@dataclass(frozen=True)
class FitStage:
    """Many records -> one checkpoint.

    ``function`` names ``def f(context: tasks.training.context.FitContext) -> dict[str, torch.Tensor]``.
    """

    name: str
    version: int
    params: Any
    reads: tuple[Kind, ...]
    function: str
    seed: int = 0
    inputs: Mapping[str, Path] = field(default_factory=dict)
    holds_classes: bool = True

    def __post_init__(self) -> None:
        _check_stage(self.name, self.reads)


Stage = MapStage | FitStage


@dataclass(frozen=True, slots=True)
class Produced:
    """What a map stage left for one image: its stamp, and the digest of its arrays or a skip's reason."""

    stamp: str
    output: str | None
    """Digest of the arrays; ``None`` if the image was skipped."""
    reason: str | None = None
    address: str = ""
    """Where the arrays lie, if not at the handle's own address (:func:`first_of`)."""


@dataclass(frozen=True)
class MapHandle:
    """The result of ``run.map``: where the arrays are, never the arrays."""

    label: str
    stage: MapStage
    address: str
    records: RecordSet
    produced: Mapping[str, Produced] = field(repr=False)
    """key -> what is stored. A planning run leaves out what is not known yet."""
    skips: tuple[Skip, ...] = ()
    upstream: Mapping[str, Handle] = field(default_factory=dict, repr=False)
    """role -> what the arrays were made from."""

    def place(self, produced: Produced) -> tuple[str, str]:
        """Address and stamp under which the store holds the arrays of one of :attr:`produced`."""
        return produced.address or self.address, produced.stamp


@dataclass(frozen=True)
class FitHandle:
    """The result of ``run.fit``: a published checkpoint (``digest`` is ``None`` while only planned); or a file's."""

    label: str
    stage: FitStage
    address: str
    stamp: str | None
    digest: str | None
    path: str
    """Path of ``weights.safetensors``."""
    prefix: str = ""
    pinned: bool = False
    part_digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    records: RecordSet | None = field(default=None, repr=False)
    """Its training records; ``None`` where they are not known (``run.load``)."""
    published: float = 0.0
    """Seconds since the epoch; 0 for a file's."""

    def part(self, name: str) -> FitHandle:
        """One of several networks in the checkpoint, by name prefix; known by its own tensors alone.

        Raises :class:`DataError` if it has none of this name.
        """
        if self.digest is None:
            return dataclasses.replace(self, prefix=f"{name}.")
        if name not in self.part_digests:
            raise DataError(f"{self.label} has networks {sorted(self.part_digests)}, not {name!r}")
        return dataclasses.replace(self, prefix=f"{name}.", digest=self.part_digests[name])


Handle = MapHandle | FitHandle


def fits_above(upstream: Mapping[str, Handle]) -> Iterator[FitHandle]:
    """The fits among ``upstream`` (role -> handle), and those with which its arrays were made."""
    for handle in upstream.values():
        if isinstance(handle, FitHandle):
            yield handle
        else:
            yield from fits_above(handle.upstream)


def first_of(a: MapHandle, b: MapHandle) -> MapHandle:
    """``a``'s arrays for the images of which there are any, ``b``'s for the others: for use as an upstream of a stage.

    ``b`` is over the records of ``a``, or over more; so is the result. Nothing is computed or copied. Both must have
    an array name in common; only such names are the same for all images.

    Raises :class:`DataError` if the two are about other images or classes, or have no array in common.
    """
    where = f"first_of({a.label}, {b.label})"
    ours = {a.records.key(record) for record in a.records}
    if missing := ours - {b.records.key(record) for record in b.records}:
        raise DataError(f"{where}: {len(missing)} of the {len(ours)} images of {a.label} are none of {b.label}'s")
    holds_classes = a.stage.holds_classes or b.stage.holds_classes
    if holds_classes and a.records.classes != b.records.classes:
        raise DataError(f"{where}: classes {a.records.classes} are not {b.records.classes}")
    outputs = tuple(name for name in a.stage.outputs if name in b.stage.outputs)
    if not outputs:
        raise DataError(f"{where}: no array of {a.stage.outputs} is one of {b.stage.outputs}")
    produced: dict[str, Produced] = {}
    for record in b.records:
        key = b.records.key(record)
        handle, found = a, a.produced.get(key)
        if key not in ours or (found is not None and found.output is None):
            handle, found = b, b.produced.get(key)
        if found is not None:  # else not known yet
            produced[key] = dataclasses.replace(found, address=handle.place(found)[0])
    stage = MapStage("first-of", 1, None, reads=(), outputs=outputs, function="", holds_classes=holds_classes)
    address = stage_address(stage, b.records.classes, {"a": a, "b": b})
    return MapHandle(f"{a.label} or {b.label}", stage, address, b.records, produced, upstream={"a": a, "b": b})


def resolve(function: str) -> Callable[..., Any]:
    """The function that ``"module:name"`` names, imported on first use."""
    return _resolve(function)


@functools.cache
def _resolve(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def stage_address(stage: Stage, classes: tuple[str, ...], upstream: Mapping[str, Handle]) -> str:
    """Address of ``stage`` on top of ``upstream`` (role -> handle)."""
    above = {role: handle.address for role, handle in upstream.items()}
    above |= dict.fromkeys(stage.inputs, "file")
    return keys.address(
        stage.name,
        stage.version,
        stage.params,
        classes=classes if stage.holds_classes else None,
        upstream=above,
        source=_source(stage.function),
    )


OWN_PACKAGES = frozenset({"tasks", "models", "artifacts", "flows"})
"""Their stages state a version, which golden tests hold them to."""
DEVELOPING = "MASKMILL_SOURCES"
"""Set in the environment: the source of these packages' stages counts, too, while one is written."""


def _source(function: str) -> str | None:
    """Digest of the module that holds a stage's function; ``None`` for the packages of Maskmill.

    Who writes a stage of one's own edits it more often than its ``version``: an old result would come silently.
    """
    module = function.partition(":")[0]
    if not module or (module.partition(".")[0] in OWN_PACKAGES and not os.environ.get(DEVELOPING)):
        return None
    return _module_digest(module)


@functools.cache
def _module_digest(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
        return None if found is None or not found.origin else keys.digest_file(found.origin)
    except (ImportError, ValueError, OSError):
        return None  # running the stage says so


def call(stage: MapStage, items: Sequence[Item]) -> list[Arrays]:
    """What the stage's function gives for the items, in their order, checked by :func:`check_outputs`."""
    function = resolve(stage.function)
    if not stage.images_at_once:
        return [check_outputs(stage, function(item, stage.params)) for item in items]
    found = function(items, stage.params)
    if len(found) != len(items):
        raise ValueError(f"{stage.function} returned {len(found)} results for {len(items)} images")
    return [check_outputs(stage, arrays) for arrays in found]


def check_outputs(stage: MapStage, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays that ``stage`` declared, or a ``ValueError`` that shows declared and returned names."""
    if set(arrays) != set(stage.outputs):
        raise ValueError(
            f"stage {stage.name} declares outputs {sorted(stage.outputs)}, {stage.function} returned {sorted(arrays)}"
        )
    return {name: np.asarray(arrays[name]) for name in stage.outputs}


def _check_stage(name: str, reads: tuple[Kind, ...]) -> None:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"stage name {name!r} must be letters, digits, '-' and '_'")
    if unknown := set(reads) - set(KINDS):
        raise ValueError(f"stage {name} reads {sorted(unknown)}; known kinds are {KINDS}")
