"""``maskmill crf``: a dense CRF for pictures with given probabilities, labels or boxes. No cache, no run, no torch."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from rich.markup import escape

from artifacts.cache.atomic import check_writable
from artifacts.records import DataError, size_of
from flows.cli.crf_files import Job, check_targets, pair_folders, source_of
from flows.cli.crf_input import Energies, Sums, read_boxes, read_labels, read_probs
from flows.cli.picture_jobs import run_jobs, run_one, write_named
from flows.cli.stopping import Writes
from flows.cli.terminal import terminal
from tasks.crf.params import PRESETS, Backend, CRFParams, Normalisation, Preset

DEFAULT: Preset = "ahn-kwak-cam"
OF_BOXES: Preset = "bbox-seg"
log = logging.getLogger("maskmill")


def _own(name: str) -> Parameter:
    """The option that sets one parameter; its help is the parameter's own."""
    (found,) = (item for item in dataclasses.fields(CRFParams) if item.name == name)
    return Parameter(help=f"{found.metadata['help']} [default: the preset's; {DEFAULT}: {found.default}]")


@dataclass(frozen=True)
class Settings:
    """The settings shared by all pictures of one command."""

    params: CRFParams
    from_labels: bool
    gt_prob: float | None
    floor: float
    sums: Sums
    core: float


def crf(
    *,
    image: Annotated[Path | None, Parameter(help="a picture, or a folder of pictures")] = None,
    out: Annotated[Path, Parameter(help="the mask to write (PNG of label numbers), or a folder for NAME.png")],
    probs: Annotated[
        Path | None,
        Parameter(help="(labels, height, width) probabilities as .npy, or a folder of NAME.npy; any grid, resized"),
    ] = None,
    labels: Annotated[
        Path | None, Parameter(help="instead: a mask PNG (255: unknown) of the picture's size, or a folder of NAME.png")
    ] = None,
    boxes: Annotated[
        str | None,
        Parameter(
            help="instead: a table image,class,x0,y0,x1,y1 (CSV) of --image's boxes; or, without --image, a data set:"
            " folder:PATH, voc:PATH, coco:IMAGES,JSON, yolo:PATH"
        ),
    ] = None,
    split: Annotated[str, Parameter(help="with --boxes and a data set: the split, or all")] = "all",
    core: Annotated[float, Parameter(help="with --boxes: certain share of a box, in its middle, 0 to 1")] = 0.2,
    gt_prob: Annotated[
        float | None,
        Parameter(help="with --labels: probability that a label is right; default: 20 times each other's"),
    ] = None,
    floor: Annotated[float, Parameter(help="with --probs: floor; smaller probabilities are raised to it")] = 1e-5,
    sums: Annotated[
        Sums, Parameter(help="with --probs that do not sum to 1: refuse them, divide by their sum, or keep them")
    ] = "refuse",
    preset: Annotated[
        Preset | None, Parameter(help=f"a named set of parameters [default: {DEFAULT}; with --boxes: {OF_BOXES}]")
    ] = None,
    iterations: Annotated[int | None, _own("iterations")] = None,
    gaussian_sxy: Annotated[float | None, _own("gaussian_sxy")] = None,
    gaussian_compat: Annotated[float | None, _own("gaussian_compat")] = None,
    bilateral_sxy: Annotated[float | None, _own("bilateral_sxy")] = None,
    bilateral_srgb: Annotated[float | None, _own("bilateral_srgb")] = None,
    bilateral_compat: Annotated[float | None, _own("bilateral_compat")] = None,
    normalisation: Annotated[Normalisation | None, _own("normalisation")] = None,
    backend: Annotated[Backend | None, _own("backend")] = None,
    overlay: Annotated[Path | None, Parameter(help="also the mask over the picture: PNG or JPEG, or a folder")] = None,
    marginals: Annotated[
        Path | None, Parameter(help="also the result's probabilities, float32 .npy, or a folder")
    ] = None,
    threads: Annotated[int, Parameter(help="pictures at once; -1: one per core")] = -1,
    quiet: Annotated[bool, Parameter(help="no progress bar", negative=())] = False,
) -> int:
    """Sharpen label probabilities, rough labels or boxes to a mask, with a dense CRF (Krähenbühl & Koltun 2011)."""
    given = {
        "iterations": iterations,
        "gaussian_sxy": gaussian_sxy,
        "gaussian_compat": gaussian_compat,
        "bilateral_sxy": bilateral_sxy,
        "bilateral_srgb": bilateral_srgb,
        "bilateral_compat": bilateral_compat,
        "normalisation": normalisation,
        "backend": backend,
    }
    try:
        own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        chosen = preset or (DEFAULT if boxes is None else OF_BOXES)
        params = dataclasses.replace(PRESETS[chosen], **own)
    except ValueError as error:
        raise DataError(f"--{str(error).removeprefix('crf.').replace('_', '-', 1)}") from error
    for name, value in (("gt-prob", gt_prob), ("floor", floor)):
        if value is not None and not 0 < value < 1:  # nan, too
            raise DataError(f"--{name} {value}: give a number between 0 and 1")
    if not 0 <= core <= 1:
        raise DataError(f"--core {core}: give a number from 0 to 1")
    if threads == 0 or threads < -1:
        raise DataError(f"--threads {threads}: give at least 1, or -1 for one per core")
    settings = Settings(params, labels is not None, gt_prob, floor, sums, core)
    if boxes is not None:
        from flows.cli.crf_boxes import box_jobs

        if probs is not None or labels is not None:
            raise DataError("give --probs, --labels or --boxes, one of them")
        jobs, skips = box_jobs(image, boxes, split, out, overlay, marginals)
    else:
        source = source_of(image, probs, labels)
        assert image is not None
        jobs, skips = [Job(image, source, out, overlay, marginals)], []
        if image.is_dir():
            suffix = ".png" if labels is not None else ".npy"
            jobs, skips = pair_folders(image, source, out, overlay, marginals, suffix)
    one = partial(work, settings=settings)
    if image is None or image.is_dir():
        for option, folder in (("out", out), ("overlay", overlay), ("marginals", marginals)):
            check_writable(option, folder)
        return run_jobs("crf", "masks", jobs, skips, one, threads, out, quiet=quiet)
    check_targets(jobs[0])
    run_one("masks", jobs[0], one)
    terminal().print(f"mask: {escape(str(out))}", soft_wrap=True)
    return 0


# --- one picture ----------------------------------------------------------------------------------------------------


def work(job: Job, writes: Writes, *, settings: Settings) -> None:
    """Read, compute, write. Raises ``DataError`` naming the file, ``OSError`` where one cannot be read or written."""
    from artifacts.cache.atomic import write_atomic, write_bytes_atomic
    from artifacts.datasets.voc_writer import write_class_mask
    from artifacts.images import read_image_rgb
    from tasks.crf.dense_crf import dense_crf

    image_rgb = read_image_rgb(job.image)
    unary, numbers, given = energies(job, settings, size_of(image_rgb))
    try:
        q_khw = dense_crf(image_rgb, unary, settings.params)
    except ValueError as error:
        raise DataError(f"{job.image}: {error}") from error
    mask_hw = numbers[q_khw.argmax(axis=0)]
    if given and not given & set(np.unique(mask_hw).tolist()):
        log.warning(
            "%s: the mask has lost every label of the input (%s): all is %s. A lighter --preset (deeplab-v2) or fewer"
            " --iterations keep small objects",
            job.image,
            ", ".join(map(str, sorted(given))),
            ", ".join(map(str, np.unique(mask_hw))),
        )
    shown = picture(image_rgb, mask_hw, job.overlay.suffix) if job.overlay is not None else b""
    with writes.one():
        if job.marginals is not None:
            write_named(
                job.marginals, lambda path: write_atomic(path, lambda file: np.save(file, q_khw), durable=False)
            )
        if job.overlay is not None:
            write_named(job.overlay, lambda path: write_bytes_atomic(path, shown, durable=False))
        write_named(job.out, lambda path: write_class_mask(path, mask_hw))


def energies(job: Job, settings: Settings, size_hw: tuple[int, int]) -> Energies:
    """What the picture comes with, as energies."""
    if job.boxes is not None:
        return read_boxes(job.boxes, job.source, job.image, size_hw, settings.core)
    if settings.from_labels:
        return read_labels(job.source, job.image, size_hw, settings.gt_prob)
    return read_probs(job.source, job.image, size_hw, settings.floor, settings.sums)


def picture(image_rgb: NDArray[np.uint8], mask_hw: NDArray[np.uint8], suffix: str) -> bytes:
    """The mask in its PNG's own colours over the picture, as the bytes of a file."""
    import cv2

    from artifacts.datasets.voc_writer import voc_palette
    from artifacts.report.contact_sheet import overlay as draw

    good, data = cv2.imencode(suffix, np.ascontiguousarray(draw(image_rgb, mask_hw, voc_palette())[..., ::-1]))
    if not good:
        raise DataError(f"the overlay cannot be written as {suffix}")
    return data.tobytes()
