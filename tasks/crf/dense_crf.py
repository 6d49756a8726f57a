"""Dense CRF (Krähenbühl & Koltun 2011): unary energies and an image into marginals; and the stages that do so.

:func:`dense_crf` is the plain call, :class:`DenseCRF` the same for several CRFs on one image,
:func:`tasks.crf.batch.dense_crf_batch` for many images. Params are in :mod:`tasks.crf.params`, energies from
probabilities, labels and boxes in :mod:`tasks.crf.unary`. The filter and the mean field are in ``models``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from artifacts.records import DataError, ImageRGB, size_of
from tasks.bounds import bounded, number
from tasks.boxes import usable_boxes
from tasks.crf import crf_pydensecrf as crf_oracle
from tasks.crf.params import PRESETS, CRFParams, preset
from tasks.crf.unary import UnaryKHW, check_layout, from_box_prior, from_labels, from_probabilities
from tasks.stage import PARAMS_CONFIG, Arrays, Item, MapStage, image_of

if TYPE_CHECKING:
    from models.crf.gaussian import GaussianFilter
    from models.crf.mean_field import Term

__all__ = [
    "PRESETS",
    "BoxCRFParams",
    "CRFParams",
    "DenseCRF",
    "ProbsCRFParams",
    "dense_crf",
    "from_box_prior",
    "from_boxes",
    "from_labels",
    "from_probabilities",
    "from_probs",
    "preset",
]

MarginalsKHW = NDArray[np.float32]
Compat = float | Sequence[float] | NDArray[Any]
"""Label compatibility in pydensecrf's sense: a Potts weight w > 0, or penalties as (K,) (the diagonal) or (K, K)
(symmetric). ``w``, ``-w * ones(K)`` and ``-w * eye(K)`` are the same."""

SYMMETRY = 1e-6
"""How far a compatibility matrix may be from its transpose, as a share of its largest entry."""


def dense_crf(
    image_rgb: ImageRGB,
    unary_khw: NDArray[Any],
    params: CRFParams = CRFParams(),
    *,
    gaussian_compat: Compat | None = None,
    bilateral_compat: Compat | None = None,
    labels: Sequence[int] | NDArray[Any] | None = None,
    device: str = "cpu",
) -> MarginalsKHW:
    """Marginals of the dense CRF after ``params.iterations`` of mean field.

    Args:
        image_rgb: (H, W, 3) uint8.
        unary_khw: (K, H, W) floating, finite: energies, -log of probabilities (:mod:`tasks.crf.unary`).
        params: kernel widths, weights, iterations, normalisation, backend.
        gaussian_compat: :data:`Compat` of the position term instead of ``params.gaussian_compat``.
        bilateral_compat: the same for the colour term.
        labels: numbers of the labels that take part (the image's own classes); the others get probability 0.
        device: where a torch backend computes; changes nothing else.

    Returns (K, H, W) float32; a pixel's values sum to 1. Raises ``ValueError`` that shows what was expected and what
    was given, for shapes, dtypes, values that are not finite, compatibilities and labels.
    """
    crf = DenseCRF(image_rgb, params, device=device)
    return crf.marginals(unary_khw, gaussian_compat=gaussian_compat, bilateral_compat=bilateral_compat, labels=labels)


class DenseCRF:
    """CRFs on one image: the filters are built once, at the first call that needs them.

    >>> crf = DenseCRF(image_rgb, PRESETS["ahn-kwak-cam"])      # doctest: +SKIP
    >>> low, high = crf.marginals(unary_low), crf.marginals(unary_high)      # doctest: +SKIP
    """

    def __init__(self, image_rgb: ImageRGB, params: CRFParams = CRFParams(), *, device: str = "cpu") -> None:
        """Raises ``ValueError`` if ``image_rgb`` is no (H, W, 3) uint8 array with at least one pixel."""
        self.image_rgb = check_image(image_rgb)
        self.params = params
        self.device = device
        self._built: GaussianFilter | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.image_rgb.shape[0], self.image_rgb.shape[1]

    def marginals(
        self,
        unary_khw: NDArray[Any],
        *,
        iterations: int | None = None,
        gaussian_compat: Compat | None = None,
        bilateral_compat: Compat | None = None,
        labels: Sequence[int] | NDArray[Any] | None = None,
    ) -> MarginalsKHW:
        """As :func:`dense_crf`; ``iterations`` replaces the params'."""
        unary = check_unary(unary_khw, self.size_hw)
        k = len(unary)
        steps = self.params.iterations if iterations is None else iterations
        if steps < 0:
            raise ValueError(f"iterations must be at least 0, not {steps}")
        spatial = check_compat(gaussian_compat, self.params.gaussian_compat, k, "gaussian_compat")
        bilateral = check_compat(bilateral_compat, self.params.bilateral_compat, k, "bilateral_compat")
        if labels is None:
            return self._solve(unary, spatial, bilateral, steps)
        chosen = check_labels(labels, k)
        found = self._solve(unary[chosen], _part(spatial, chosen), _part(bilateral, chosen), steps)
        q_khw = np.zeros(unary.shape, dtype=np.float32)
        q_khw[chosen] = found
        return q_khw

    def _solve(
        self, unary: UnaryKHW, spatial: float | NDArray[np.float32], bilateral: float | NDArray[np.float32], steps: int
    ) -> MarginalsKHW:
        if len(unary) == 1:
            return np.ones_like(unary)
        if self.params.backend == "pydensecrf":
            return crf_oracle.mean_field(self.image_rgb, unary, self.params, spatial, bilateral, steps)
        from models.crf.mean_field import mean_field

        q_ln = mean_field(unary.reshape(len(unary), -1), self._terms(spatial, bilateral), steps)
        return np.asarray(q_ln, dtype=np.float32).reshape(unary.shape)

    def _terms(self, spatial: float | NDArray[np.float32], bilateral: float | NDArray[np.float32]) -> list[Term]:
        from models.crf.mean_field import Term

        terms = []
        if np.any(spatial):
            terms.append(Term(self._spatial, spatial, self.params.normalisation))
        if np.any(bilateral):
            terms.append(Term(self._bilateral, bilateral, self.params.normalisation))
        return terms

    @property
    def _spatial(self) -> GaussianFilter:
        from models.crf.gaussian import spatial_filter

        return spatial_filter(*self.size_hw, self.params.gaussian_sxy, self._backend, self.device)

    @property
    def _bilateral(self) -> GaussianFilter:
        from models.crf.gaussian import GaussianFilter, bilateral_features

        # No functools.cached_property: in Python 3.11 one lock of all images would let one thread build at a time.
        if self._built is None:
            features = bilateral_features(self.image_rgb, self.params.bilateral_sxy, self.params.bilateral_srgb)
            self._built = GaussianFilter(features, backend=self._backend, device=self.device)
        return self._built

    @property
    def _backend(self) -> str:
        # A filter's own "auto" would take another algorithm for small images on a GPU.
        return "lattice" if self.params.backend == "auto" else self.params.backend


# --- what is checked ------------------------------------------------------------------------------------------------


def check_image(image_rgb: Any) -> ImageRGB:
    """The image if it is (H, W, 3) uint8 with at least one pixel; raises ``ValueError``."""
    image = np.asarray(image_rgb)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image must be a (height, width, 3) uint8 array, not {image.shape} {image.dtype}")
    if not image.size:
        raise ValueError(f"the image has no pixels: {image.shape}")
    return image


def check_unary(unary_khw: Any, size_hw: tuple[int, int]) -> UnaryKHW:
    """The energies as contiguous float32; raises ``ValueError`` for another shape, size or dtype, NaN and inf."""
    unary = np.asarray(unary_khw)
    if unary.ndim == 2 and unary.shape[1] == size_hw[0] * size_hw[1]:
        raise ValueError(
            f"unaries must be (labels, height, width), not {unary.shape}; use unary.reshape(-1, {size_hw[0]},"
            f" {size_hw[1]})"
        )
    if unary.ndim != 3 or not len(unary):
        batch = ": unary[0] takes off the batch axis" if unary.ndim == 4 and len(unary) == 1 else ""
        raise ValueError(
            f"unaries must be a (labels, height, width) array of at least one label, not {unary.shape}{batch}"
        )
    if unary.shape[1:] != size_hw:
        check_layout(unary.shape, size_hw)
        raise ValueError(f"unaries are {unary.shape[1:]}, the image is {size_hw} (height, width)")
    if not np.issubdtype(unary.dtype, np.floating):
        raise ValueError(f"unaries must be floating energies, not {unary.dtype}; labels go through from_labels")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(unary, dtype=np.float32)
    if not np.isfinite(found.sum(dtype=np.float64)):
        label, y, x = np.argwhere(~np.isfinite(found))[0]
        raise ValueError(
            f"unaries hold {unary[label, y, x]} at label {label}, row {y}, column {x}: energies must be finite"
            " float32 (from_probabilities puts a floor under probabilities of 0)"
        )
    return found


def check_compat(given: Compat | None, default: float, k: int, name: str) -> float | NDArray[np.float32]:
    """A Potts weight, or a (k,) or symmetric (k, k) float32 array; raises ``ValueError`` for anything else."""
    compat = np.asarray(default if given is None else given)
    if not np.issubdtype(compat.dtype, np.number) or np.iscomplexobj(compat):
        raise ValueError(f"{name} must hold numbers, not {compat.dtype}")
    if compat.shape not in ((), (k,), (k, k)):
        raise ValueError(f"{name} must be a weight, ({k},) or ({k}, {k}) for {k} labels, not {compat.shape}")
    if not np.isfinite(compat).all():
        raise ValueError(f"{name} must be finite, not {compat.tolist()}")
    if compat.ndim == 0:
        return float(compat)
    if compat.ndim == 2 and np.abs(compat - compat.T).max() > SYMMETRY * np.abs(compat).max():
        raise ValueError(f"{name} must be symmetric; pydensecrf silently takes (M + M.T) / 2 of such a matrix")
    return np.ascontiguousarray(compat, dtype=np.float32)


def check_labels(labels: Any, k: int) -> NDArray[np.intp]:
    """Label numbers in the order given; raises ``ValueError`` if they are not distinct integers of 0..k-1."""
    chosen = np.asarray(labels)
    if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"labels must be a list of label numbers, not {labels!r}")
    if chosen.min() < 0 or chosen.max() >= k or len(np.unique(chosen)) != len(chosen):
        raise ValueError(f"labels must be distinct numbers of 0..{k - 1}, not {chosen.tolist()}")
    return chosen.astype(np.intp)


def _part(compat: float | NDArray[np.float32], chosen: NDArray[np.intp]) -> float | NDArray[np.float32]:
    """The compatibility among the chosen labels."""
    if isinstance(compat, float):
        return compat
    return np.ascontiguousarray(compat[chosen] if compat.ndim == 1 else compat[np.ix_(chosen, chosen)])


# --- the stages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbsCRFParams:
    """Class probabilities made into masks by a CRF."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    crf: CRFParams = field(default_factory=lambda: PRESETS["ahn-kwak-cam"], metadata={"help": "the CRF"})
    floor: float = number(1e-5, 1e-30, 0.99, "floor of the probabilities; smaller ones are raised to it")

    def __post_init__(self) -> None:
        bounded(self, "crf")


@dataclass(frozen=True)
class BoxCRFParams:
    """Boxes made into masks by a CRF (Papandreou et al. 2015, section 3.2)."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    crf: CRFParams = field(default_factory=lambda: PRESETS["bbox-seg"], metadata={"help": "the CRF"})
    core: float = number(0.2, 0.0, 1.0, "share of a box's area, in its middle, that is certain")
    difficult: bool = field(default=True, metadata={"help": "give difficult objects masks too"})

    def __post_init__(self) -> None:
        bounded(self, "crf")


def from_probs(params: ProbsCRFParams = ProbsCRFParams()) -> MapStage:
    """Class probabilities -> mask. Role ``probs``: ``probs_chw`` float16 at any grid, ``classes_c`` uint8."""
    return MapStage(
        name="crf",
        version=1,
        params=params,
        reads=("image",),
        outputs=("mask_hw",),
        function="tasks.crf.dense_crf:probs_item",
        holds_classes=True,
        uses_torch=params.crf.uses_torch,
    )


def from_boxes(params: BoxCRFParams = BoxCRFParams()) -> MapStage:
    """Boxes -> mask: outside background, the middle certain, the rest decided by the CRF."""
    return MapStage(
        name="crf-boxes",
        version=1,
        params=params,
        reads=("image", "boxes"),
        outputs=("mask_hw",),
        function="tasks.crf.dense_crf:boxes_item",
        holds_classes=True,
        numbers_of_labels=True,
        uses_torch=params.crf.uses_torch,
    )


def probs_item(item: Item, params: ProbsCRFParams) -> Arrays:
    """Map function of :func:`from_probs`: ``mask_hw`` over the classes that ``classes_c`` names."""
    image_rgb = image_of(item)
    probs, classes = item.up["probs"]["probs_chw"], item.up["probs"]["classes_c"]
    if probs.ndim != 3 or classes.shape != (len(probs),) or not len(probs):
        raise DataError(f"{item.key}: probs_chw {probs.shape} and classes_c {classes.shape} do not fit each other")
    if len(np.unique(classes)) != len(classes) or classes.max() > len(item.classes):
        raise DataError(f"{item.key}: classes_c {classes.tolist()} must be distinct numbers of 0..{len(item.classes)}")
    unary = from_probabilities(resize_probabilities(probs, size_of(image_rgb)), params.floor)
    q_khw = dense_crf(image_rgb, unary, params.crf, device=stage_device(params.crf, item.device))
    return {"mask_hw": classes.astype(np.uint8)[q_khw.argmax(axis=0)]}


def boxes_item(item: Item, params: BoxCRFParams) -> Arrays:
    """Map function of :func:`from_boxes`: ``mask_hw`` over background and the boxes' classes."""
    image_rgb = image_of(item)
    boxes = usable_boxes(item.record, difficult=params.difficult)
    present = sorted({box.class_id for box in boxes})
    numbers = [1 + present.index(box.class_id) for box in boxes]
    size_hw = size_of(image_rgb)
    unary = from_box_prior([box.xyxy for box in boxes], numbers, size_hw, len(present), params.core)
    q_khw = dense_crf(image_rgb, unary, params.crf, device=stage_device(params.crf, item.device))
    return {"mask_hw": np.array([0, *present], dtype=np.uint8)[q_khw.argmax(axis=0)]}


def stage_device(params: CRFParams, device: str) -> str:
    """Where a stage's CRF computes: on the run's device for a torch backend, else on the CPU.

    So that masks under one address are the same whether the network beside the CRF ran on a GPU or not.
    """
    return device if params.uses_torch else "cpu"


def resize_probabilities(probs_chw: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """``(C, H, W) float32`` at another grid: bilinear between cell centres (``align_corners=False``).

    Raises ``ValueError`` for anything but three dimensions with something in them, and for axes in another order
    (:func:`tasks.crf.unary.check_layout`).
    """
    import cv2

    probs = np.ascontiguousarray(probs_chw, dtype=np.float32)
    check_layout(probs.shape, size_hw)
    if probs.shape[1:] == size_hw:
        return probs
    height, width = size_hw
    # A plane at a time: OpenCV takes few channels at once, and has them last.
    planes = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in probs]
    return np.stack(planes).astype(np.float32, copy=False)
