"""GrabCut inside boxes (Rother et al. 2004, OpenCV's implementation); :mod:`tasks.refine` cuts from probabilities.

The usual call ("plain": the whole image, the box as rectangle) collapses to almost nothing in 4 of 10 boxes of
real pictures: where the colours do not separate, the shortest cut is no object at all. The default ("crop") differs
in five ways, each chosen on pictures that are not those it is reported on (benchmarks/grabcut.py measures):

1. The box with some context is scaled to one working size. OpenCV's smoothness weight is fixed at 50 a pixel edge, so
   the size decides how much a long outline costs against the colours: small objects gain most from being enlarged.
2. A probe, a small cut with nothing certain inside the box, shows how far the colours separate. The less of the
   box it keeps, the larger the ellipse in the middle of the box that is certain foreground in the real cut.
3. A certain core is wrong where the middle of the box is background (an aeroplane's sky). So the cut has rivals of the
   probe's size: the probe, one with more context, and two with a small and a large core. The tightest wins
   (:func:`tightness`): a box is tight, so an object reaches into all of its rows and columns; of two that do, the one
   with fewer pixels is the likelier. Where next to nothing lies outside the box the inverted mask would win: no rivals.
4. A large box (``large_side``) holds detail that this size loses, and colours enough to do without a core: the cut is
   finer there, has no core, and takes two iterations.
5. Smaller objects that lie inside a box are in front of the larger one: its mask leaves out their pixels. (As certain
   background of the cut they would spoil the larger object's colours: the masks lose more than they gain.)

Elsewhere one iteration is enough: more of them move less than the difference between two seeds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.objects import Window
from artifacts.records import Box, ImageRGB, size_of
from tasks.bounds import bounded, number
from tasks.boxes import LABEL_OUTPUTS, label_arrays, pixel_window, usable_boxes
from tasks.crop import Crop, MaskBool
from tasks.overlap import Proposal, contested, without_inner
from tasks.stage import PARAMS_CONFIG, Arrays, Item, MapStage, image_of

Trimap = NDArray[np.uint8]
"""OpenCV's mask values: GC_BGD 0, GC_FGD 1 (certain), GC_PR_BGD 2, GC_PR_FGD 3 (to be decided)."""

PLAIN_ITERATIONS = 5
"""``variant="plain"`` is a named baseline: nothing of it is a parameter but the fallback."""

SCARCE = 0.05
"""Of a crop: with less than this share outside of the box there are no rivals."""


@dataclass(frozen=True)
class CutParams:
    """What the first cut and the refinement both have, each with values of its own.

    Lengths in pixels, shares as fractions of the box.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    NAME: ClassVar[str] = "cut"
    """What errors call these params."""

    working_size: int = number(384, 16, 4096, "longest side of the scaled crop, pixels")
    context: float = number(0.3, 0.0, 4.0, "context on each side of the box, fraction of its side")
    fallback: Literal["share", "sdi", "none"] = field(
        default="share",
        metadata={"help": "replace a cut that keeps too little: by share, by SDI's rule, or only an empty one"},
    )
    fallback_share: float = number(0.05, 0.0, 1.0, "share: replace a cut that keeps less than this share of the box")
    sdi_iou: float = number(0.15, 0.0, 1.0, "sdi: replace a cut whose bounding box has a smaller IoU with the box")
    sdi_area: float = number(0.5, 0.0, 1.0, "sdi: replace a cut that keeps less than this share of the box")
    difficult: bool = field(default=True, metadata={"help": "difficult objects get masks, too"})
    seed: int = number(0, 0, 2**31 - 1, "seed of OpenCV's colour clustering")

    def __post_init__(self) -> None:
        bounded(self, self.NAME)


@dataclass(frozen=True)
class GrabCutParams(CutParams):
    """How boxes become masks. Cores as fractions of the box's sides."""

    NAME: ClassVar[str] = "grabcut"

    variant: Literal["crop", "plain"] = field(
        default="crop",
        metadata={"help": "crop: scaled crop, probe, core; plain: whole image, rectangle start, 5 iterations"},
    )
    iterations: int = number(1, 1, 100, "GrabCut iterations (variant crop)")
    core: float = number(0.35, 0.0, 1.0, "certain foreground: ellipse of this share of the box's sides")
    probe_size: int = number(
        192, 0, 4096, "working size of the probe, pixels, 16 or more (at most working_size); 0: no probe"
    )
    probe_share: float = number(0.2, 0.0, 1.0, "a probe that keeps less than this share of the box enlarges the core")
    core_collapsed: float = number(0.8, 0.0, 1.0, "core where the probe keeps nothing")
    rivals: bool = field(
        default=True,
        metadata={
            "help": "small cuts from other starts stand against the cut, the tightest wins (needs the probe);"
            " without them large boxes are cut as any"
        },
    )
    rival_context: float = number(1.0, 0.0, 4.0, "context of the wide rival, fraction of the box's side")
    share_weight: float = number(0.6, 0.0, 4.0, "tightness: rows and columns reached, less this times the share kept")
    rival_margin: float = number(0.02, 0.0, 2.0, "a rival must be tighter than the cut by this much")
    large_side: int = number(
        160, 0, 2**31 - 1, "boxes from this size on (root of the area, pixels) are cut finer, without a core; 0: none"
    )
    large_size: int = number(512, 16, 4096, "working size of their cut, pixels, or working_size if that is larger")
    large_iterations: int = number(2, 1, 100, "GrabCut iterations of their cut")
    inner_boxes: bool = field(
        default=True, metadata={"help": "a mask leaves out smaller objects that lie inside its box"}
    )
    compete: bool = field(
        default=False,
        metadata={
            "help": "a pixel that two masks of one class share goes to the nearest box's middle, unless one box lies"
            " inside the other, or nothing would be left of a mask"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.probe_size < 16:
            raise ValueError(f"grabcut.probe_size must be 0 (no probe) or 16..4096, not {self.probe_size}")


# --- one object -------------------------------------------------------------------------------------------------


def propose_object(
    image_rgb: ImageRGB,
    box_xyxy: Sequence[float],
    params: GrabCutParams,
    seed: int,
) -> Proposal:
    """Mask of the object in one box.

    Args:
        image_rgb: (H, W, 3) uint8.
        box_xyxy: pixel edges, half-open; may stick out.
        params: variant, sizes, fallback.
        seed: of OpenCV's RNG, which is global: equal seeds give equal masks.

    Returns the window (the box's pixels in the image), the mask in it, and whether it is the box that was taken
    because the cut failed or kept too little. Raises ``ValueError`` for an inverted or non-finite box.
    """
    window_xyxy = pixel_window(box_xyxy, size_of(image_rgb))
    if window_xyxy[0] == window_xyxy[2]:
        return window_xyxy, np.zeros((0, 0), dtype=np.bool_), True
    if params.variant == "plain":
        mask_hw = _plain(image_rgb, window_xyxy, seed)
    else:
        mask_hw = _cropped(image_rgb, window_xyxy, params, seed)
    if mask_hw is None or keeps_too_little(mask_hw, params):
        return window_xyxy, whole_box(window_xyxy), True
    return window_xyxy, mask_hw, False


def _plain(image_rgb: ImageRGB, window_xyxy: Window, seed: int) -> MaskBool | None:
    """The baseline: the whole image, the box as rectangle."""
    x0, y0, x1, y1 = window_xyxy
    trimap = np.zeros(size_of(image_rgb), dtype=np.uint8)
    trimap[y0:y1, x0:x1] = cv2.GC_PR_FGD
    cut_hw = cut(image_rgb, trimap, PLAIN_ITERATIONS, seed)
    return None if cut_hw is None else cut_hw[y0:y1, x0:x1]


def _cropped(image_rgb: ImageRGB, window_xyxy: Window, params: GrabCutParams, seed: int) -> MaskBool | None:
    """The cut, or a rival that is tighter; none without a probe, nor where the box is nearly all of its crop."""

    def cropped(size: int, core: float, context: float = params.context) -> MaskBool | None:
        return _cut_crop(image_rgb, window_xyxy, context, size, core, params.iterations, seed)

    size = min(params.probe_size, params.working_size)  # a probe never costs more than the cut
    if not size:
        return cropped(params.working_size, params.core)
    probe = cropped(size, 0.0)
    core = core_for(0.0 if probe is None else float(probe.mean()), params)
    if not params.rivals or share_outside(window_xyxy, size_of(image_rgb), params.context) < SCARCE:
        return cropped(params.working_size, core)
    if is_large(window_xyxy, params):
        large = max(params.large_size, params.working_size)
        found = _cut_crop(image_rgb, window_xyxy, params.context, large, 0.0, params.large_iterations, seed)
    else:
        found = cropped(params.working_size, core)
    cores = [cropped(size, params.core), cropped(size, params.core_collapsed)]
    return tightest([found, probe, cropped(size, 0.0, params.rival_context), *cores], params)


def is_large(window_xyxy: Window, params: GrabCutParams) -> bool:
    """Whether the root of a window's area is ``large_side`` or more; never where that is 0."""
    x0, y0, x1, y1 = window_xyxy
    return 0 < params.large_side**2 <= (x1 - x0) * (y1 - y0)


def share_outside(window_xyxy: Window, size_hw: tuple[int, int], context: float) -> float:
    """Share of the crop around a box that is certain background: what lies outside the box."""
    x0, y0, x1, y1 = window_xyxy
    height, width = Crop.around(window_xyxy, size_hw, context, 1).size_hw
    return 1 - (x1 - x0) * (y1 - y0) / (height * width)


def core_for(share: float, params: GrabCutParams) -> float:
    """Size of the certain core after a probe that kept ``share`` of the box.

    ``core`` from ``probe_share`` on, ``core_collapsed`` at 0, straight in between.
    """
    doubt = max(0.0, 1.0 - share / params.probe_share) if params.probe_share else 0.0
    return params.core + doubt * (params.core_collapsed - params.core)


def tightest(masks: Sequence[MaskBool | None], params: GrabCutParams) -> MaskBool | None:
    """The mask of the highest :func:`tightness` among those that keep enough, the first of equals; else the first.

    The first is the cut itself: it is finer, so a rival must be tighter by ``rival_margin``.
    """
    scores = [
        -math.inf if mask is None or keeps_too_little(mask, params) else tightness(mask, params.share_weight)
        for mask in masks
    ]
    scores[0] += params.rival_margin
    return masks[scores.index(max(scores))]


def tightness(mask_hw: MaskBool, share_weight: float) -> float:
    """Share of the box's rows that the mask reaches, plus that of its columns, less ``share_weight`` x share of pixels.

    Tight boxes as a cue for the cut: Lempitsky et al. 2009, "Image segmentation with a bounding box prior".
    """
    reached = float(mask_hw.any(axis=0).mean()) + float(mask_hw.any(axis=1).mean())
    return reached - share_weight * float(mask_hw.mean())


def _cut_crop(
    image_rgb: ImageRGB, window_xyxy: Window, context: float, size: int, core: float, iterations: int, seed: int
) -> MaskBool | None:
    """Cut on the box with context, longest side scaled to ``size``; the mask comes back in the window's pixels."""
    crop = Crop.around(window_xyxy, size_of(image_rgb), context, size)
    trimap = box_trimap(crop.scaled_hw, crop.scaled(window_xyxy), core)
    cut_hw = cut(crop.scale(image_rgb), trimap, iterations, seed)
    return None if cut_hw is None else crop.back(cut_hw, window_xyxy)


def box_trimap(size_hw: tuple[int, int], box_xyxy: Window, core: float) -> Trimap:
    """Start of a cut: certain background outside the box, probable foreground inside, a certain core.

    ``core``: the ellipse in the middle of the box with this share of its sides (0: none). Where nothing is outside the
    box, its corners outside the inscribed ellipse start as probable background: GrabCut needs samples of both.
    """
    x0, y0, x1, y1 = box_xyxy
    trimap = np.full(size_hw, cv2.GC_BGD, dtype=np.uint8)
    inner = trimap[y0:y1, x0:x1]
    inner[:] = cv2.GC_PR_FGD
    if not (trimap == cv2.GC_BGD).any():
        inner[~ellipse(inner.shape, 1.0)] = cv2.GC_PR_BGD
    if core > 0:
        inner[ellipse(inner.shape, core)] = cv2.GC_FGD
    return trimap


def ellipse(size_hw: tuple[int, ...], share: float) -> MaskBool:
    """(h, w) bool: the centred ellipse whose axes are ``share`` of the sides; at least the middle pixel."""
    height, width = size_hw
    y = (np.arange(height) + 0.5) * 2 / height - 1
    x = (np.arange(width) + 0.5) * 2 / width - 1
    inside: MaskBool = y[:, None] ** 2 + x[None, :] ** 2 <= share**2
    inside[height // 2, width // 2] = True
    return inside


def whole_box(window_xyxy: Window) -> MaskBool:
    """``(h, w) bool``: every pixel of the window."""
    x0, y0, x1, y1 = window_xyxy
    return np.ones((y1 - y0, x1 - x0), dtype=np.bool_)


def keeps_too_little(mask_hw: MaskBool, params: CutParams) -> bool:
    """Whether the fallback replaces a cut: the mask is empty, or the fallback's rule holds.

    ``sdi`` is the rule of Simple Does It (Khoreva et al. 2017) as used with CFS: below 15 % IoU (of the mask's own
    bounding box with the box) or below 50 % of the box's area.
    """
    share = float(mask_hw.mean())
    if share == 0.0:
        return True
    if params.fallback == "none":
        return False
    if params.fallback == "share":
        return share < params.fallback_share
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    extent = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return bool(extent / mask_hw.size < params.sdi_iou or share < params.sdi_area)


# --- the cut ---------------------------------------------------------------------------------------


def cut(image_rgb: ImageRGB, trimap: Trimap, iterations: int, seed: int) -> MaskBool | None:
    """OpenCV's GrabCut from a trimap; ``None`` where it cannot work (no sample of one side, all of one colour)."""
    start = foreground(trimap)
    if start.all() or not start.any():
        return None
    decided = trimap.copy()
    no_rectangle = (0, 0, 0, 0)
    background, foreground_model = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(seed)
    try:
        pixels = np.ascontiguousarray(image_rgb)
        cv2.grabCut(pixels, decided, no_rectangle, background, foreground_model, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    return foreground(decided)


def foreground(trimap: Trimap) -> MaskBool:
    """(H, W) bool: certain and probable foreground."""
    found: MaskBool = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    return found


# --- one image, and the stages ----------------------------------------------------------------------------------

OUTPUTS = (*LABEL_OUTPUTS, "fell_back_n")
"""Label map, objects before painting (uint8) with their classes, and per object whether the cut was replaced."""


def propose(params: GrabCutParams = GrabCutParams()) -> MapStage:
    """Boxes -> coarse masks."""
    return MapStage(
        name="grabcut",
        version=5,
        params=params,
        reads=("image", "boxes"),
        outputs=OUTPUTS,
        function="tasks.grabcut:propose_item",
        holds_classes=True,
        numbers_of_labels=True,
    )


def object_seed(seed: int, image_id: str, object_id: int) -> int:
    """Seed of one object: the same whichever worker cuts it, whatever was cut before, whatever the data set's name."""
    text = f"{seed}\0{image_id}\0{object_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1


def propose_item(item: Item, params: GrabCutParams) -> Arrays:
    """Map function of :func:`propose`."""
    image_rgb = image_of(item)
    one_thread()
    boxes = usable_boxes(item.record, difficult=params.difficult)
    found = {
        box.id: propose_object(image_rgb, box.xyxy, params, object_seed(params.seed, item.record.image_id, box.id))
        for box in boxes
    }
    if params.inner_boxes and params.variant == "crop":
        found = without_inner(boxes, found)
    if params.compete and params.variant == "crop":
        found = contested(boxes, found)
    return object_arrays(boxes, found, size_of(image_rgb))


def object_arrays(boxes: Sequence[Box], found: Mapping[int, Proposal], size_hw: tuple[int, int]) -> Arrays:
    """The arrays of :data:`OUTPUTS` for one image of ``size_hw``, from what was found by the boxes' ids."""
    ordered = [found[box.id] for box in boxes]
    arrays = label_arrays(boxes, [one[0] for one in ordered], [one[1] for one in ordered], size_hw)
    arrays["fell_back_n"] = np.array([one[2] for one in ordered], dtype=np.bool_)
    return arrays


def one_thread() -> None:
    """One OpenCV thread: workers already share the cores by image."""
    cv2.setNumThreads(1)
