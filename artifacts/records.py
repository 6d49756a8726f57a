"""One image and its labels.

Frames and numbers, the same everywhere: boxes are ``x0, y0, x1, y1`` in pixel edges, half-open, float
allowed, in the frame of the image as displayed (EXIF rotation applied); class numbers are
1..K by the set's class table, 0 is background, 255 is undecided.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from artifacts import keys
from artifacts.inputs import has_control

Kind = Literal["image", "tags", "boxes", "scribbles", "truth", "truth_objects", "corrected"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LABEL_KINDS: tuple[Kind, ...] = KINDS[1:]

MaskHW = NDArray[np.uint8]
ImageRGB = NDArray[np.uint8]

UNDECIDED = 255
MAX_CLASSES = 254


def size_of(array_hw: NDArray[Any]) -> tuple[int, int]:
    """Height and width of an image (H, W, 3) or a mask (H, W)."""
    return array_hw.shape[0], array_hw.shape[1]


class DataError(ValueError):
    """Data that cannot be used at all; the message names file, place and fix."""


def numbered(classes: Iterable[str]) -> str:
    """``1 cat, 2 dog``: how a class table is said."""
    return ", ".join(f"{number} {name}" for number, name in enumerate(classes, 1))


@dataclass(frozen=True, slots=True)
class Box:
    """One object's box in pixel edges, half-open. ``id`` is its index in the annotation, and stable."""

    id: int
    class_id: int
    x0: float
    y0: float
    x1: float
    y1: float
    difficult: bool = False
    crowd: bool = False

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """``(x0, y0, x1, y1)``."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)


@dataclass(frozen=True, slots=True)
class Scribble:
    """One stroke: a polyline of pixel positions ``x, y`` (0-based pixel centres at integers)."""

    class_id: int
    points_xy: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class MaskRef:
    """Where a mask is: ``loader`` is ``"module:function"``, called with this reference.

    The function returns a ``(H, W) uint8`` class mask (kinds ``truth``, ``corrected``), or
    ``(object_masks_nhw bool, object_ids_n int64)`` (kind ``truth_objects``, ids as in ``Box.id``).
    Nothing is decoded before :meth:`load`.
    """

    loader: str
    path: str
    detail: str = ""

    def load(self) -> Any:
        """Decode now. Raises :class:`DataError` or ``OSError`` with the path in the message."""
        return _loader(self.loader)(self)

    def _repr_png_(self) -> Any:
        return shown("mask_ref_png", self)


@functools.cache
def _loader(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def shown(how: str, what: object) -> Any:
    """``what`` as Jupyter shows it, by a function of ``artifacts/report/notebook.py``; imported when it is called."""
    return _loader(f"artifacts.report.notebook:{how}")(what)


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its labels; a kind that is unknown, or not declared by the reader of it, is ``None``.

    ``boxes == ()`` means "checked, holds no object"; ``None`` means "unknown".
    """

    image_id: str
    image: str
    """Path of the image file. Kept also where the image itself is not declared."""
    size_hw: tuple[int, int] | None = None
    """Height and width as the annotation states them, if it does."""
    tags: tuple[int, ...] | None = None
    boxes: tuple[Box, ...] | None = None
    scribbles: tuple[Scribble, ...] | MaskRef | None = None
    """Strokes, or a mask of what is scribbled on (255: nothing), whose strokes are not known."""
    truth: MaskRef | None = None
    truth_objects: MaskRef | None = None
    corrected: MaskRef | None = None
    """A class mask that a person made from a run's mask (``data.corrections``): a label, not truth."""

    @property
    def strokes(self) -> tuple[Scribble, ...]:
        """The scribbles that are strokes; none where they are unknown, or a mask."""
        return self.scribbles if isinstance(self.scribbles, tuple) else ()

    def view(self, kinds: Iterable[str]) -> Record:
        """The same image with only the declared label kinds: the input of a stage."""
        hidden: dict[str, Any] = {kind: None for kind in LABEL_KINDS if kind not in set(kinds)}
        return dataclasses.replace(self, size_hw=None, **hidden)

    def label_digest(self, kind: Kind) -> str:
        """Digest of one label kind. Truth is known by its decoded pixels, not by its file."""
        value = getattr(self, kind)
        if isinstance(value, MaskRef):
            loaded = value.load()
            arrays = loaded if isinstance(loaded, tuple) else (loaded,)
            return keys.digest([keys.digest_array(np.asarray(array)) for array in arrays])
        return keys.digest(value)

    def _repr_html_(self) -> Any:
        return shown("record_html", self)


@dataclass(frozen=True, slots=True)
class Skip:
    """One image that was left out, and why. ``permanent``: its content cannot be used; do not try again."""

    key: str
    path: str
    reason: str
    permanent: bool = True
    stage: str = ""


@dataclass(frozen=True)
class Counts:
    """How much of a split's labels could be read."""

    listed: int = 0
    """Images that the split lists, those that are not there included."""
    without_label: int = 0
    """Of these, images for which no label file (or entry) was found: taken as "holds nothing", or as unknown."""
    labels: int = 0
    """Labels that the files hold: lines, rows, objects, annotations."""
    lost: tuple[tuple[str, int, str], ...] = ()
    """(why, how many, of which kind of label; "": tags and boxes) of the labels that could not be used."""
    first: tuple[str, ...] = ()
    """The first of them word for word, three at most."""
    least: float = 0.0
    """``data.min_labelled``: the least share of images, and of labels, that must be readable."""

    def dropped(self, kind: str) -> int:
        """Labels that could not be used as ``kind``. Other kinds than tags and boxes are files of their own."""
        own = ("", kind) if kind in ("tags", "boxes") else (kind,)
        return sum(number for _, number, of in self.lost if of in own)

    def of_part(self, images: int, whole: int) -> Counts:
        """For ``images`` of the ``whole`` that were read: as many are listed fewer, and the others as likely so."""
        without = round(self.without_label * images / max(whole, 1))
        return dataclasses.replace(self, listed=self.listed - whole + images, without_label=without)

    def line(self, images: int) -> str:
        """One line for a person; ``images`` is the number of those that were read."""
        parts = [f"{images:,} of {self.listed:,} images"]
        if self.without_label:
            parts.append(f"{self.without_label:,} without a label file or entry")
        if self.labels and self.listed:
            parts.append(f"{self.labels:,} labels in the files")
        return ", ".join(parts) + "".join(f"; lost: {number:,} x {why}" for why, number, _ in self.lost)


class LazyRecords(Sequence[Record], abc.ABC):
    """Records that are made on access, by :meth:`_record`, so that the set's memory does not hold them."""

    @abc.abstractmethod
    def _record(self, index: int) -> Record:
        """The record at ``index``, from 0 to the length."""

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        found = range(len(self))[index]
        return self._record(found) if isinstance(found, int) else tuple(map(self._record, found))


@dataclass(frozen=True)
class RecordSet:
    """An immutable set of records of one data set and split.

    ``classes[i]`` is the name of class number ``i + 1``. ``records`` may be lazy (COCO builds each record
    on access); it is a sequence all the same.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    records: Sequence[Record]
    skips: tuple[Skip, ...] = ()
    format: str = ""
    root: str = ""
    warnings: tuple[str, ...] = ()
    counts: Counts = Counts()
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the format says beside the labels and a writer of the same format gives back (COCO: ids, licences)."""
    own_classes: tuple[str, ...] = ()
    """The data set's own class table, where some of it were left out (``data.without``); else empty."""

    def __post_init__(self) -> None:
        if not self.dataset or any(c in self.dataset for c in "/\\\0"):
            raise DataError(f"data set name {self.dataset!r} must be non-empty, without slashes; set data.name=")
        if len(self.classes) > MAX_CLASSES:
            raise DataError(
                f"{self.dataset}: {len(self.classes)} classes, but a uint8 mask holds at most {MAX_CLASSES}"
            )
        if wrong := [name for name in self.classes if has_control(name)]:
            place = self.root or self.dataset
            raise DataError(f"{place}: class names hold control characters: {wrong[:3]}; rename them")

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def key(self, record: Record) -> str:
        """``<dataset>/<image id>``: the record's name in the cache. Splits are not part of it."""
        return f"{self.dataset}/{record.image_id}"

    def only(self, image_ids: Iterable[str]) -> RecordSet:
        """The subset with these ids, in this set's order."""
        wanted = set(image_ids)
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.image_id in wanted))

    def _repr_html_(self) -> Any:
        return shown("records_html", self)


@dataclass(frozen=True)
class Sets:
    """What a flow page works on. Iteration gives the sets that are present."""

    train: RecordSet
    """The training set."""
    val: RecordSet
    """The evaluation set; of the same classes as ``train``."""
    aux: RecordSet | None = None
    """Auxiliary data, with a class table of its own."""

    def __iter__(self) -> Iterator[RecordSet]:
        return (records for records in (self.train, self.val, self.aux) if records is not None)

    def said(self) -> dict[str, str]:
        """``train``, ``val``, ``aux`` -> how many images and labels there are, and what was lost, in a line."""
        return {self.name_of(records): records.counts.line(len(records)) for records in self}

    def name_of(self, records: RecordSet) -> str:
        """``train``, ``val`` or ``aux``; "" for any other set of records, such as a part of these."""
        return next((name for name in ("train", "val", "aux") if getattr(self, name) is records), "")
