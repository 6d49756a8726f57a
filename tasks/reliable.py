"""Reliable regions: the few pixels whose class a class activation map and the picture's own edges agree about.

Zhang et al., "Reliability Does Matter" (RRM), AAAI 2020, eq. 4 to 7, each a plain function of arrays; and the stage
that applies them to stored maps. No torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from artifacts.records import UNDECIDED, DataError, ImageRGB, MaskHW, size_of
from tasks.bounds import bounded, number
from tasks.crf.dense_crf import dense_crf, from_probabilities, resize_probabilities
from tasks.crf.params import PRESETS, CRFParams
from tasks.stage import PARAMS_CONFIG, Arrays, Item, MapStage, SkipImage, image_of

MapsKHW = NDArray[np.float32]
Ties = Literal["none", "all"]


@dataclass(frozen=True)
class ReliableParams:
    """Which pixels are taken for certain. The defaults are the paper's; the released code's values are named."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    share: float = number(0.4, 0.01, 1.0, "share of each class's pixels that is kept: those of the highest score")
    gamma: float = number(4.0, 1.0, 1000.0, "power of the background score: larger makes less background")
    label_gamma: float | None = number(
        None, 1.0, 1000.0, "the same where the map's own labels are decided (released code: 32); null: gamma"
    )
    agreement: bool = field(
        default=True, metadata={"help": "keep a pixel only where the CRF gives it the same class; false: no CRF at all"}
    )
    crf: CRFParams = field(default_factory=lambda: PRESETS["ahn-kwak-cam"], metadata={"help": "the CRF"})
    floor: float = number(1e-5, 1e-30, 0.99, "floor of the probabilities that enter the CRF")
    crf_scale: float = number(1.0, 0.05, 1.0, "scale at which the CRF works: .5 takes about a quarter of the time")
    crf_certain: float = number(
        0.0, 0.0, 1.0, "undecided where the CRF's probability is below this (released code: .8); 0: never"
    )
    rank_above: float = number(
        0.0, 0.0, 1.0, "scores of a class up to this are neither ranked nor kept (released code: .1); 0: all are ranked"
    )
    background_above: float | None = number(
        None, 0.0, 1.0, "background is kept where its score is above this (released code: .8); null: by its share, too"
    )

    ties: Ties = field(
        default="none",
        metadata={
            "help": "where more than the share of a class's pixels have its highest score (a background of score 1,"
            " say): none of them is kept, as the paper's rule has it, or all"
        },
    )

    def __post_init__(self) -> None:
        bounded(self, "reliable")
        if self.ties not in get_args(Ties):
            raise ValueError(f"reliable.ties must be one of {', '.join(get_args(Ties))}, not {self.ties!r}")

    def semantic(self) -> ReliableParams:
        """The same regions with every value that has no effect at its default: equal regions have one address."""
        changed: dict[str, Any] = {}
        if not self.agreement:
            default = ReliableParams()
            names = ("crf", "floor", "crf_scale", "crf_certain")
            changed = {name: getattr(default, name) for name in names}
        if self.label_gamma == self.gamma:
            changed["label_gamma"] = None
        return dataclasses.replace(self, **changed)


def normalised_maps(maps_khw: NDArray[Any]) -> MapsKHW:
    """RRM, eq. 3: each class's map divided by its maximum ``(K, H, W)``; a map of zeros stays one."""
    maps = np.asarray(maps_khw, np.float32)
    highest = maps.max(axis=(1, 2), keepdims=True, initial=0.0)
    found = np.zeros_like(maps)
    np.divide(maps, highest, out=found, where=highest > 0)
    return found


def background_score(maps_khw: MapsKHW, gamma: float) -> NDArray[np.float32]:
    """RRM, eq. 4: ``P_bg(i) = (1 - max_c P_c(i)) ** gamma``; ``(H, W)``, 1 everywhere without any class."""
    highest = maps_khw.max(axis=0, initial=0.0)
    return np.asarray(np.clip(1.0 - highest, 0.0, 1.0) ** gamma, np.float32)


def with_background(maps_khw: MapsKHW, gamma: float) -> MapsKHW:
    """``P_fg,bg``: the background's score before those of the classes, ``(1 + K, H, W)``."""
    return np.concatenate([background_score(maps_khw, gamma)[None], maps_khw])


def crf_marginals(image_rgb: ImageRGB, probs_khw: MapsKHW, params: ReliableParams) -> MapsKHW:
    """RRM, eq. 5 before its arg max: the dense CRF's marginals of ``P_fg,bg``, ``(1 + K, H, W)``.

    At ``params.crf_scale``, lengths in pixels with it.
    """
    height, width = image_rgb.shape[:2]
    size = tuple(max(1, round(side * params.crf_scale)) for side in (height, width))
    if size == (height, width):
        return dense_crf(image_rgb, from_probabilities(probs_khw, params.floor), params.crf)
    import cv2

    small = np.asarray(cv2.resize(image_rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)
    crf = dataclasses.replace(
        params.crf,
        gaussian_sxy=params.crf.gaussian_sxy * params.crf_scale,
        bilateral_sxy=params.crf.bilateral_sxy * params.crf_scale,
    )
    unary = from_probabilities(resize_probabilities(probs_khw, (size[0], size[1])), params.floor)
    return resize_probabilities(dense_crf(small, unary, crf), (height, width))


def share_threshold(values_n: NDArray[np.floating[Any]], share: float) -> float:
    """The value above which a class's scores are kept: that at position ``floor((1 - share) n)`` in ascending order.

    Values equal to it are not kept: a class of one pixel keeps none, nor does one whose best scores are all alike.
    ``share`` 1 keeps all (minus infinity); no values: infinity.
    """
    if not len(values_n):
        return math.inf
    if share >= 1:
        return -math.inf
    # Not int(): (1 - .8) * 10 is a little less than 2.
    position = min(len(values_n) - 1, math.floor((1 - share) * len(values_n) + 1e-9))
    return float(np.partition(values_n, position)[position])


def reliable_labels(
    probs_khw: MapsKHW,
    share: float,
    *,
    rank_above: float = 0.0,
    background_above: float | None = None,
    ties: Ties = "none",
) -> MaskHW:
    """RRM, eq. 6 with the 40 % rule: the arg max of ``P_fg,bg`` where it is above its class's own threshold, else 255.

    Args:
        probs_khw: (1 + K, H, W), background first; labels are numbers of its channels.
        share: of the pixels of each class that is kept, see :func:`share_threshold`.
        rank_above: scores of a class (not of the background) up to this are neither ranked nor kept.
        background_above: the background's threshold instead of the one by share.
        ties: whether the pixels of a class's highest score are kept where none is above the threshold.

    A class with no pixel has no label, never an error.
    """
    best = probs_khw.argmax(axis=0)
    score = np.take_along_axis(probs_khw, best[None], axis=0)[0]
    labels = np.full(best.shape, UNDECIDED, np.uint8)
    for label in range(len(probs_khw)):
        own = best == label
        if label and rank_above:
            own &= score > rank_above
        if not label and background_above is not None:
            threshold = background_above
        else:
            threshold = share_threshold(score[own], share)
            if ties == "all" and len(values := score[own]) and values.max() == threshold:
                threshold = np.nextafter(np.float32(threshold), np.float32(-1))
        labels[own & (score > threshold)] = label
    return labels


def agreeing(cam_labels_hw: MaskHW, crf_labels_hw: NDArray[np.integer[Any]]) -> MaskHW:
    """RRM, eq. 7: a label where map and CRF give the same class, 255 elsewhere (the released code asks for less)."""
    return np.where(cam_labels_hw == crf_labels_hw, cam_labels_hw, np.uint8(UNDECIDED)).astype(np.uint8)


def reliable_regions(
    image_rgb: ImageRGB, maps_khw: NDArray[Any], classes_k: Sequence[int], params: ReliableParams
) -> MaskHW:
    """RRM, eq. 3 to 7 of one image.

    Args:
        image_rgb: (H, W, 3) uint8.
        maps_khw: (K, H, W) class activation maps of the image's tags, at its size, none negative.
        classes_k: class numbers of the maps.
        params: which pixels are kept.

    Returns (H, W) uint8: 0 background, class numbers, 255 undecided.
    """
    maps = normalised_maps(maps_khw)
    probs = with_background(maps, params.gamma)
    own = probs if params.label_gamma is None else with_background(maps, params.label_gamma)
    labels = reliable_labels(
        own,
        params.share,
        rank_above=params.rank_above,
        background_above=params.background_above,
        ties=params.ties,
    )
    if params.agreement:
        marginals = crf_marginals(image_rgb, probs, params)
        labels = agreeing(labels, marginals.argmax(axis=0))
        if params.crf_certain:
            labels[marginals.max(axis=0) < params.crf_certain] = UNDECIDED
    table = np.full(256, UNDECIDED, np.uint8)
    table[: len(probs)] = [0, *classes_k]
    return np.asarray(table[labels], np.uint8)


def reliable(params: ReliableParams = ReliableParams()) -> MapStage:
    """The stage: role ``cam`` gives the tags' maps (``probs_chw``, ``classes_c``), the output is ``mask_hw``."""
    return MapStage(
        name="reliable",
        version=1,
        params=params.semantic(),
        reads=("image", "tags"),
        outputs=("mask_hw",),
        function="tasks.reliable:reliable_item",
        holds_classes=True,
        uses_torch=params.agreement and params.crf.uses_torch,
    )


def reliable_item(item: Item, params: ReliableParams) -> Arrays:
    """Map function of :func:`reliable`. Raises ``DataError`` for a tag that has no map."""
    image_rgb = image_of(item)
    if item.record.tags is None:
        raise SkipImage(f"{item.key}: no tags are known for this image")
    tags = sorted(set(item.record.tags))
    stored, classes = item.up["cam"]["probs_chw"], item.up["cam"]["classes_c"].tolist()
    if missing := set(tags) - set(classes):
        raise DataError(f"{item.key}: tags {sorted(missing)} have no class activation map, only {classes} have")
    size_hw = size_of(image_rgb)
    maps = np.zeros((0, *size_hw), np.float32)
    if tags:
        maps = resize_probabilities(stored[[classes.index(tag) for tag in tags]], size_hw)
    return {"mask_hw": reliable_regions(image_rgb, maps, tags, params)}
