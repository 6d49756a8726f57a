"""``maskmill edges``: boundaries of pictures at hand, by a network or Canny's filter. No cache, no run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from rich.markup import escape

from artifacts.cache.atomic import check_file_writable, check_writable
from artifacts.records import DataError, ImageRGB
from flows.cli.picture_files import (
    PICTURE_SUFFIXES,
    Skipped,
    check_apart,
    check_folders,
    no_pictures,
    not_looked_into,
    of_one_name,
    pictures_in,
)
from flows.cli.picture_jobs import run_jobs, run_one, write_named
from flows.cli.stopping import Writes
from flows.cli.terminal import terminal
from tasks.edges.stages import KEY, PACKAGED, EdgesParams, check_file
from tasks.training.weights import WeightsError, known_row
from tasks.training.weights.here import look


@dataclass(frozen=True)
class EdgeJob:
    """One picture: what is read, what is written."""

    image: Path
    out: Path
    overlay: Path | None = None


def edges(
    image: Annotated[Path, Parameter(help="a picture, or a folder of pictures")],
    *,
    out: Annotated[Path, Parameter(help="the edge map to write (8-bit grey PNG), or a folder for NAME.png")],
    overlay: Annotated[
        Path | None, Parameter(help="also the edges in red over the picture: PNG or JPEG, or a folder")
    ] = None,
    thin: Annotated[bool, Parameter(help="smooth the map, then keep only its crests", negative=())] = False,
    scales: Annotated[
        tuple[float, ...],
        Parameter(
            help="sizes at which the picture is seen; results are averaged: .5 1 1.5",
            consume_multiple=True,
            negative=(),
        ),
    ] = (1.0,),
    flip: Annotated[bool, Parameter(help="average with what the mirrored picture gives", negative=())] = False,
    network: Annotated[
        Literal["hed", "hed-lite", "canny"] | None, Parameter(help="default: hed where its weights are, else hed-lite")
    ] = None,
    weights: Annotated[str, Parameter(help="packaged (the network's own), or a file: docs/edges.md")] = PACKAGED,
    quiet: Annotated[bool, Parameter(help="no progress bar", negative=())] = False,
) -> int:
    """Draw the boundaries in pictures: by HED (Xie & Tu 2015), our small hed-lite, or Canny's filter.

    255 is certain; what lies at OUT is replaced.
    """
    try:
        params = EdgesParams(network or default_network(weights), weights, scales, flip)
    except ValueError as error:
        raise DataError(f"--{str(error).partition('edges.')[2] or error}") from error
    if not image.exists():
        raise DataError(f"{image}: no such file or folder")
    if image.is_dir():
        jobs, skips = folder_jobs(image, out, overlay)
        for option, folder in (("out", out), ("overlay", overlay)):
            check_writable(option, folder)
        if inside := not_looked_into(image):
            terminal(stderr=True).print(escape(inside), soft_wrap=True)
    else:
        jobs, skips = [file_job(image, out, overlay)], []
    try:
        check_file(params, "--weights")
        drawing_of(params)  # missing weights are one error, not a skip of every picture
    except WeightsError as error:
        raise DataError(str(error).replace(KEY, "--weights")) from error
    one = partial(work, params=params, thinned=thin)
    if image.is_dir():  # the network itself uses all cores
        return run_jobs("edges", "edge maps", jobs, skips, one, 1, out, quiet=quiet)
    run_one("edge maps", jobs[0], one)
    terminal().print(f"edges: {escape(str(out))}", soft_wrap=True)
    return 0


def default_network(weights: str) -> Literal["hed", "hed-lite"]:
    """``hed`` where its weights are on this machine (or a file is named), else ``hed-lite``, which always is."""
    if weights != PACKAGED or look(known_row("hed")) is not None:
        return "hed"
    terminal(stderr=True).print("HED's weights are not here (`maskmill weights get hed`): drawing with hed-lite")
    return "hed-lite"


def drawing_of(params: EdgesParams) -> Callable[[ImageRGB], NDArray[np.float32]]:
    """``(H, W, 3) uint8 -> (H, W) float32`` in 0..1. Raises ``WeightsError`` where the weights are missing."""
    if params.network == "canny":
        from tasks.edges.canny import canny

        return canny
    from tasks.edges.inference import draw, load_network

    network = load_network(params)
    return lambda image_rgb: draw(network, [image_rgb], params.scales, flip=params.flip)[0]


def file_job(image: Path, out: Path, overlay: Path | None) -> EdgeJob:
    """The job of one picture. Raises ``DataError`` for targets that cannot be."""
    if out.suffix.lower() != ".png":
        raise DataError(f"--out {out}: an edge map is a .png file ({image} is one picture)")
    if overlay is not None and overlay.suffix.lower() not in PICTURE_SUFFIXES:
        raise DataError(f"--overlay {overlay}: name a .png or .jpg file")
    check_apart([image], out, overlay)
    for name, path in (("out", out), ("overlay", overlay)):
        check_file_writable(name, path)
    return EdgeJob(image, out, overlay)


def folder_jobs(images: Path, out: Path, overlay: Path | None) -> tuple[list[EdgeJob], Skipped]:
    """A job per picture of the folder; a second picture of one name is a skip (path, reason)."""
    check_folders(out, overlay)
    check_apart([images], out, overlay)
    jobs: dict[str, EdgeJob] = {}
    pictures, skips = pictures_in(images)
    for path in pictures:
        name = path.stem
        if name in jobs:
            skips.append((path, of_one_name(path)))
        else:
            jobs[name] = EdgeJob(path, out / f"{name}.png", None if overlay is None else overlay / f"{name}.png")
    if not jobs:
        raise no_pictures(images)
    return list(jobs.values()), skips


def work(job: EdgeJob, writes: Writes, *, params: EdgesParams, thinned: bool) -> None:
    """Read, compute, write. Raises ``DataError`` naming the file, ``OSError`` where one cannot be read or written."""
    from artifacts.cache.atomic import write_bytes_atomic
    from artifacts.images import read_image_rgb
    from tasks.edges.thin import smooth, to_uint8
    from tasks.edges.thin import thin as crests

    image_rgb = read_image_rgb(job.image)
    edges_hw = drawing_of(params)(image_rgb)
    if thinned:
        edges_hw = crests(smooth(edges_hw))
    grey = encoded(to_uint8(edges_hw), ".png")
    shown = encoded(over(image_rgb, edges_hw), job.overlay.suffix) if job.overlay is not None else b""
    with writes.one():
        if job.overlay is not None:
            write_named(job.overlay, lambda path: write_bytes_atomic(path, shown, durable=False))
        write_named(job.out, lambda path: write_bytes_atomic(path, grey, durable=False))


def over(image_rgb: NDArray[np.uint8], edges_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The edges in red over the picture in pale grey, (H, W, 3) uint8."""
    grey = 127.5 + image_rgb.mean(axis=2, keepdims=True) / 2
    share = edges_hw[..., None]
    return np.asarray(np.rint(grey * (1 - share) + np.array([200.0, 0, 0]) * share), np.uint8)


def encoded(picture: NDArray[np.uint8], suffix: str) -> bytes:
    """The bytes of a picture file, grey or RGB."""
    import cv2

    good, data = cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]) if picture.ndim == 3 else picture)
    if not good:
        raise DataError(f"a picture cannot be written as {suffix}")
    return data.tobytes()
