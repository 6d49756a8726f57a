"""``maskmill crf``: a dense CRF for pictures with given probabilities (or labels). No cache, no run, no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from rich.markup import escape

from artifacts.records import UNDECIDED, DataError
from flows.cli.crf_files import Job, check_targets, check_writable, pair_folders, source_of
from flows.cli.picture_jobs import run_jobs, run_one, write_named
from flows.cli.stopping import Writes
from flows.cli.terminal import terminal
from tasks.crf.params import PRESETS, Backend, CRFParams, Normalisation, Preset

DEFAULT: Preset = "ahn-kwak-cam"


def _own(name: str) -> Parameter:
    """The option that sets one parameter; its help is the parameter's own."""
    (found,) = (item for item in dataclasses.fields(CRFParams) if item.name == name)
    return Parameter(help=f"{found.metadata['help']} [default: the preset's; {DEFAULT}: {found.default}]")


@dataclass(frozen=True)
class Settings:
    """The settings shared by all pictures of one command."""

    params: CRFParams
    from_labels: bool
    gt_prob: float
    floor: float


def crf(
    *,
    image: Annotated[Path, Parameter(help="a picture, or a folder of pictures")],
    out: Annotated[Path, Parameter(help="the mask to write (PNG of label numbers), or a folder for NAME.png")],
    probs: Annotated[
        Path | None,
        Parameter(help="(labels, height, width) probabilities as .npy, or a folder of NAME.npy; any grid, resized"),
    ] = None,
    labels: Annotated[
        Path | None, Parameter(help="instead: a mask PNG (255: unknown) of the picture's size, or a folder of NAME.png")
    ] = None,
    gt_prob: Annotated[float, Parameter(help="with --labels: probability that a label is right, 0 to 1")] = 0.5,
    floor: Annotated[float, Parameter(help="with --probs: floor; smaller probabilities are raised to it")] = 1e-5,
    preset: Annotated[Preset, Parameter(help="a named set of parameters")] = DEFAULT,
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
    """Sharpen label probabilities to a mask, with a dense CRF (Krähenbühl & Koltun 2011)."""
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
        params = dataclasses.replace(PRESETS[preset], **own)
    except ValueError as error:
        raise DataError(f"--{str(error).removeprefix('crf.').replace('_', '-', 1)}") from error
    for name, value in (("gt-prob", gt_prob), ("floor", floor)):
        if not 0 < value < 1:  # nan, too
            raise DataError(f"--{name} {value}: give a number between 0 and 1")
    if threads == 0 or threads < -1:
        raise DataError(f"--threads {threads}: give at least 1, or -1 for one per core")
    source = source_of(image, probs, labels)
    settings = Settings(params, labels is not None, gt_prob, floor)
    if image.is_dir():
        jobs, skips = pair_folders(image, source, out, overlay, marginals, ".png" if labels is not None else ".npy")
        check_writable(out=out, overlay=overlay, marginals=marginals)
        return run_jobs("crf", "masks", jobs, skips, partial(work, settings=settings), threads, out, quiet=quiet)
    job = Job(image, source, out, overlay, marginals)
    check_targets(job)
    run_one("masks", job, partial(work, settings=settings))
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
    size_hw = image_rgb.shape[0], image_rgb.shape[1]
    unary, numbers = read_labels(job, settings, size_hw) if settings.from_labels else read_probs(job, settings, size_hw)
    try:
        q_khw = dense_crf(image_rgb, unary, settings.params)
    except ValueError as error:
        raise DataError(f"{job.image}: {error}") from error
    mask_hw = numbers[q_khw.argmax(axis=0)]
    shown = picture(image_rgb, mask_hw, job.overlay.suffix) if job.overlay is not None else b""
    with writes.one():
        if job.marginals is not None:
            write_named(
                job.marginals, lambda path: write_atomic(path, lambda file: np.save(file, q_khw), durable=False)
            )
        if job.overlay is not None:
            write_named(job.overlay, lambda path: write_bytes_atomic(path, shown, durable=False))
        write_named(job.out, lambda path: write_class_mask(path, mask_hw))


def read_probs(job: Job, settings: Settings, size_hw: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Energies at the picture's size, and each label's number: its place in the file."""
    from tasks.crf.dense_crf import from_probabilities, resize_probabilities

    try:
        probs = np.load(job.source, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{job.source}: not an .npy file of plain numbers (numpy.save of one array)") from error
    if not isinstance(probs, np.ndarray) or probs.ndim != 3 or not 1 <= len(probs) <= UNDECIDED:
        shape = probs.shape if isinstance(probs, np.ndarray) else "an archive"
        raise DataError(
            f"{job.source}: expected (labels, height, width) with 1..{UNDECIDED} labels, not {shape};"
            " labels last? array.transpose(2, 0, 1)"
        )
    if np.issubdtype(probs.dtype, np.floating) and probs.size:
        _check_probs(job, probs)
    try:
        if np.issubdtype(probs.dtype, np.floating) and probs.size:
            probs = resize_probabilities(probs, size_hw)
        unary = from_probabilities(probs, settings.floor)
    except ValueError as error:
        raise DataError(f"{job.source}: {error}") from error
    return unary, np.arange(len(probs), dtype=np.uint8)


def _check_probs(job: Job, probs: NDArray[np.floating[Any]]) -> None:
    """Raise :class:`DataError` for nan and inf, and for labels along the last axis."""
    if not np.isfinite(probs).all():
        label, y, x = np.argwhere(~np.isfinite(probs))[0]
        raise DataError(f"{job.source}: holds {probs[label, y, x]} at label {label}, row {y}, column {x}")
    first, last = (np.abs(probs.sum(axis=axis, dtype=np.float64) - 1).max() for axis in (0, -1))
    if last < 0.01 < 0.1 < first:
        raise DataError(
            f"{job.source}: {probs.shape} sums up to 1 along its last axis, not its first: labels last?"
            " array.transpose(2, 0, 1)"
        )


def read_labels(
    job: Job, settings: Settings, size_hw: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Energies of the labels that the map holds, and their numbers."""
    from artifacts.datasets.voc_masks import read_index_png
    from tasks.crf.dense_crf import from_labels

    mask_hw = np.asarray(read_index_png(str(job.source), size_hw))
    numbers = np.unique(mask_hw)
    numbers = numbers[numbers != UNDECIDED]
    if not len(numbers):
        raise DataError(f"{job.source}: every pixel is {UNDECIDED}, unknown: there is no label to spread")
    places = np.full(256, UNDECIDED, dtype=np.int32)
    places[numbers] = np.arange(len(numbers))
    try:
        unary = from_labels(places[mask_hw], len(numbers), settings.gt_prob)
    except ValueError as error:
        raise DataError(f"{job.source}: {error}") from error
    return unary, numbers.astype(np.uint8)


def picture(image_rgb: NDArray[np.uint8], mask_hw: NDArray[np.uint8], suffix: str) -> bytes:
    """The mask in its PNG's own colours over the picture, as the bytes of a file."""
    import cv2

    from artifacts.datasets.voc_writer import voc_palette
    from artifacts.report.contact_sheet import overlay as draw

    good, data = cv2.imencode(suffix, np.ascontiguousarray(draw(image_rgb, mask_hw, voc_palette())[..., ::-1]))
    if not good:
        raise DataError(f"the overlay cannot be written as {suffix}")
    return data.tobytes()
