"""Scores of masks against truth: one confusion matrix over the whole set, and IoU object by object.

The matrix has a row for each true class (background first) and a column for each predicted class plus a
last one for a predicted 255 ("undecided"). Pixels whose truth is 255 are in no row. Everything about classes
is read off the matrix at the end, so memory does not grow with the set, and parts scored apart can be added.

mIoU here is the mean over classes of the IoU of the whole set's matrix (the PASCAL VOC measure). A mean of
every image's own mIoU is another number; :func:`image_miou` exists for the contact sheet only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.records import MAX_CLASSES, UNDECIDED, DataError, MaskHW, Record, Skip, shown
from tasks.evaluate.object_iou import SIZES, ObjectIoU, Window, object_ious

BACKGROUND = "background"

MatrixTP = NDArray[np.int64]
"""``(K + 1, K + 2)``: truth x prediction, last column = predicted 255."""


def confusion(pred_hw: MaskHW, truth_hw: MaskHW, k: int, *, where: str = "") -> MatrixTP:
    """Confusion matrix ``(k + 1, k + 2) int64`` of two ``(H, W) uint8`` masks with classes 0..k and 255.

    ``where`` names the image in error messages. Raises :class:`DataError` for another dtype, sizes that differ,
    and values that are neither a class number nor 255.
    """
    if not 0 <= k <= MAX_CLASSES:
        raise ValueError(f"number of classes must be 0..{MAX_CLASSES}, not {k}")
    at = f"{where}: " if where else ""
    for name, mask in (("prediction", pred_hw), ("truth", truth_hw)):
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise DataError(f"{at}{name} must be a (height, width) uint8 mask, not {mask.shape} {mask.dtype}")
    if pred_hw.shape != truth_hw.shape:
        raise DataError(
            f"{at}wrong mask size: the prediction is {_by(pred_hw)}, the truth {_by(truth_hw)} (height x width);"
            " masks are scored at the image's own size"
        )
    # Every value has a place: classes 0..k, 255 at k + 1, anything else at k + 2. One look-up and one
    # bincount then count and check at once, with no boolean indexing.
    side = k + 3
    place = np.full(256, k + 2, dtype=np.intp)
    place[: k + 1] = np.arange(k + 1)
    place[UNDECIDED] = k + 1
    cells = (place * side)[truth_hw]
    cells += place[pred_hw]
    counts = np.bincount(cells.ravel(), minlength=side * side).reshape(side, side)
    if counts[k + 2].any() or counts[:, k + 2].any():
        raise DataError(at + _foreign(pred_hw, truth_hw, k))
    return counts[: k + 1, : k + 2].astype(np.int64)


def _by(mask_hw: MaskHW) -> str:
    return f"{mask_hw.shape[0]} x {mask_hw.shape[1]}"


def _foreign(pred_hw: MaskHW, truth_hw: MaskHW, k: int) -> str:
    """The error message for a value that is no class."""
    for name, mask in (("prediction", pred_hw), ("truth", truth_hw)):
        bad = (mask > k) & (mask != UNDECIDED)
        if bad.any():
            y, x = np.argwhere(bad)[0]
            return (
                f"the {name} holds {mask[y, x]} at row {y}, column {x} ({int(bad.sum())} such pixels);"
                f" allowed are 0..{k} and {UNDECIDED}. Is it another class table?"
            )
    raise AssertionError("unreachable: called without a foreign value")


@dataclass(frozen=True)
class Reading:
    """The numbers of a matrix under one reading of a predicted 255. A number without any pixel is ``None``."""

    miou: float | None
    """Mean of ``iou_c`` over the classes that are not absent; background counts as a class."""
    iou_c: tuple[float | None, ...]
    """IoU by class number, background first; ``None`` = absent from both truth and prediction."""
    pixel_accuracy: float | None
    precision: float | None
    """Of the pixels called foreground, the share with the right class."""
    recall: float | None
    """Of the pixels that are foreground, the share with the right class."""

    @property
    def absent(self) -> tuple[int, ...]:
        """Class numbers in neither truth nor prediction: not part of the mean."""
        return tuple(number for number, iou in enumerate(self.iou_c) if iou is None)

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """JSON-ready; ``classes[i]`` names class ``i + 1``."""
        names = class_names(classes, len(self.iou_c) - 1)
        return {
            "miou": self.miou,
            "per_class": dict(zip(names, self.iou_c, strict=True)),
            "pixel_accuracy": self.pixel_accuracy,
            "absent": [names[number] for number in self.absent],
            "precision": self.precision,
            "recall": self.recall,
        }


def class_names(classes: Sequence[str], k: int) -> tuple[str, ...]:
    """``("background", *classes)``; raises ``ValueError`` if that is not one name for each of ``k + 1`` rows."""
    if len(classes) != k:
        raise ValueError(f"the scores are about {k} classes, the class table has {len(classes)}: {list(classes)}")
    return (BACKGROUND, *classes)


def read_as_wrong(matrix: MatrixTP) -> Reading:
    """A predicted 255 is a miss of the true class: it enlarges that class's union and no intersection."""
    return _reading(matrix[:, :-1], matrix.sum(axis=1))


def read_left_out(matrix: MatrixTP) -> Reading:
    """Pixels predicted 255 are not scored; to be read beside :func:`coverage`."""
    decided = matrix[:, :-1]
    return _reading(decided, decided.sum(axis=1))


def coverage(matrix: MatrixTP) -> float | None:
    """Share of the scored pixels that got a class."""
    return _ratio(int(matrix[:, :-1].sum()), int(matrix.sum()))


def coverage_of_classes(matrix: MatrixTP) -> tuple[float | None, ...]:
    """By true class, background first: the share of its pixels that got any class; ``None`` without such pixels."""
    rows = zip(matrix[:, :-1].sum(axis=1), matrix.sum(axis=1), strict=True)
    return tuple(_ratio(int(decided), int(whole)) for decided, whole in rows)


def precision_of_classes(matrix: MatrixTP) -> tuple[float | None, ...]:
    """By class, background first: of the pixels called so, the share that is; ``None`` where none is called so."""
    columns = zip(np.diagonal(matrix), matrix[:, :-1].sum(axis=0), strict=True)
    return tuple(_ratio(int(hit), int(called)) for hit, called in columns)


def _reading(decided: MatrixTP, truth_c: NDArray[np.int64]) -> Reading:
    """``decided``: (K+1, K+1) truth x prediction; ``truth_c``: pixels of each true class, missed ones included."""
    hit_c = np.diagonal(decided)
    called_c = decided.sum(axis=0)
    union_c = truth_c + called_c - hit_c
    iou_c = tuple(_ratio(int(hit), int(union)) for hit, union in zip(hit_c, union_c, strict=True))
    present = [iou for iou in iou_c if iou is not None]
    right = int(hit_c[1:].sum())
    return Reading(
        miou=sum(present) / len(present) if present else None,
        iou_c=iou_c,
        pixel_accuracy=_ratio(int(hit_c.sum()), int(truth_c.sum())),
        precision=_ratio(right, int(called_c[1:].sum())),
        recall=_ratio(right, int(truth_c[1:].sum())),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def image_miou(pred_hw: MaskHW, truth_hw: MaskHW, k: int) -> float | None:
    """One image's own mIoU (255 as wrong): for captions. Its mean over images is NOT the set's mIoU.

    ``None`` where nothing but background is to be seen and was called: no object was right or wrong.
    """
    return _own_miou(confusion(pred_hw, truth_hw, k))


def _own_miou(matrix: MatrixTP) -> float | None:
    return None if matrix.sum() == matrix[0, 0] else read_as_wrong(matrix).miou


@dataclass(frozen=True)
class Scores:
    """All numbers of one set of masks. The plain names are the strict reading: a predicted 255 is wrong."""

    matrix: MatrixTP
    images: int
    as_wrong: Reading
    left_out: Reading
    coverage: float | None
    by_size: Mapping[str, tuple[float | None, int]]
    """small, medium, large -> (mean object IoU, objects)."""
    object_iou: float | None
    """Mean over objects; ``None`` if no object was scored."""
    objects: int

    @property
    def miou(self) -> float | None:
        """mIoU over the set; a predicted 255 is wrong."""
        return self.as_wrong.miou

    @property
    def iou_c(self) -> tuple[float | None, ...]:
        """IoU by class number, background first."""
        return self.as_wrong.iou_c

    @property
    def absent(self) -> tuple[int, ...]:
        """Class numbers in neither truth nor prediction."""
        return self.as_wrong.absent

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of the scored pixels with the right class."""
        return self.as_wrong.pixel_accuracy

    @property
    def precision(self) -> float | None:
        """Of the pixels called foreground, the share with the right class."""
        return self.as_wrong.precision

    @property
    def recall(self) -> float | None:
        """Of the pixels that are foreground, the share with the right class."""
        return self.as_wrong.recall

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """JSON-ready; ``classes[i]`` names class ``i + 1``."""
        return {
            **self.as_wrong.as_dict(classes),
            "coverage": self.coverage,
            "precision_per_class": self._named(precision_of_classes(self.matrix), classes),
            "coverage_per_class": self._named(coverage_of_classes(self.matrix), classes),
            "images": self.images,
            "as_wrong": self.as_wrong.as_dict(classes),
            "left_out": self.left_out.as_dict(classes),
            "object_iou": {"mean": self.object_iou, "count": self.objects},
            "by_size": {size: {"mean": mean, "count": count} for size, (mean, count) in self.by_size.items()},
        }

    def _named(self, values: Sequence[float | None], classes: Sequence[str]) -> dict[str, float | None]:
        return dict(zip(class_names(classes, len(self.matrix) - 1), values, strict=True))

    def _repr_html_(self) -> Any:
        return shown("scores_html", self.as_dict([f"class {number}" for number in range(1, len(self.matrix))]))


@dataclass
class Scorer:
    """Adds image after image; holds one matrix and six sums, however many there are."""

    k: int
    images: int = 0
    matrix: MatrixTP = field(init=False)
    _iou_sum: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SIZES, 0.0))
    _objects: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIZES, 0))

    def __post_init__(self) -> None:
        self.matrix = np.zeros((self.k + 1, self.k + 2), dtype=np.int64)

    def add(self, pred_hw: MaskHW, truth_hw: MaskHW, *, where: str = "") -> MatrixTP:
        """Count one image; returns its own matrix. Errors as in :func:`confusion`, nothing counted then."""
        matrix = confusion(pred_hw, truth_hw, self.k, where=where)
        self.matrix += matrix
        self.images += 1
        return matrix

    def add_objects(self, ious: Iterable[ObjectIoU]) -> None:
        """Count objects (:func:`object_ious`)."""
        for found in ious:
            self._iou_sum[found.size] += found.iou
            self._objects[found.size] += 1

    def merge(self, other: Scorer) -> None:
        """Add what another scorer has counted. Raises ``ValueError`` for another number of classes."""
        if other.k != self.k:
            raise ValueError(f"cannot add scores of {other.k} classes to scores of {self.k}")
        self.matrix += other.matrix
        self.images += other.images
        for size in SIZES:
            self._iou_sum[size] += other._iou_sum[size]
            self._objects[size] += other._objects[size]

    def scores(self) -> Scores:
        """The numbers so far."""
        objects = sum(self._objects.values())
        return Scores(
            matrix=self.matrix.copy(),
            images=self.images,
            as_wrong=read_as_wrong(self.matrix),
            left_out=read_left_out(self.matrix),
            coverage=coverage(self.matrix),
            by_size={size: (_mean(self._iou_sum[size], self._objects[size]), self._objects[size]) for size in SIZES},
            object_iou=_mean(sum(self._iou_sum.values()), objects),
            objects=objects,
        )


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


@dataclass(frozen=True)
class SetScores:
    """Scores of a record set, and what could not be scored."""

    scores: Scores
    image_miou: Mapping[str, float | None]
    """Image id -> its own mIoU (captions only)."""
    without_truth: tuple[str, ...]
    """Ids of images that have no truth mask."""
    without_mask: tuple[str, ...]
    """Ids of images that have truth but no mask (skipped by a stage): they are in no score, so they are named."""
    skips: tuple[Skip, ...]
    """Images whose truth cannot be read or does not fit the mask: in no number either."""


def score_set(
    records: Iterable[Record],
    k: int,
    mask_of: Callable[[Record], MaskHW | None],
    windows_of: Callable[[Record], Mapping[int, Window]] | None = None,
) -> SetScores:
    """Score the masks of ``records`` one by one, memory flat; a truth mask that cannot be used is a skip.

    Args:
        records: with ``truth`` (and ``truth_objects``, ``boxes`` for object IoU) still attached.
        k: number of classes.
        mask_of: the image's (H, W) uint8 mask, or ``None`` if there is none.
        windows_of: object id -> window and mask before painting; ``None`` leaves object IoU out.
    """
    scorer = Scorer(k)
    own: dict[str, float | None] = {}
    without_truth: list[str] = []
    without_mask: list[str] = []
    skips: list[Skip] = []
    for record in records:
        if record.truth is None:
            without_truth.append(record.image_id)
            continue
        try:
            pred_hw = mask_of(record)
            if pred_hw is None:
                without_mask.append(record.image_id)
                continue
            windows = windows_of(record) if windows_of is not None else None
            truth_hw = record.truth.load()
            ious = _record_ious(record, windows, truth_hw)
            matrix = scorer.add(pred_hw, truth_hw, where=record.image_id)
        except (DataError, OSError) as error:
            skips.append(Skip(record.image_id, record.truth.path, str(error), isinstance(error, DataError), "score"))
            continue
        scorer.add_objects(ious)
        own[record.image_id] = _own_miou(matrix)
    return SetScores(scorer.scores(), own, tuple(without_truth), tuple(without_mask), tuple(skips))


def _record_ious(record: Record, windows: Mapping[int, Window] | None, truth_hw: MaskHW) -> list[ObjectIoU]:
    if windows is None or record.truth_objects is None or not record.boxes:
        return []
    return object_ious(windows, record.boxes, record.truth_objects.load(), truth_hw)
