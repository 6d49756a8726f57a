"""``maskmill cam``: where in a picture a run's classifier of tags sees a class (RRM, Zhang et al. 2020, eq. 1 to 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from rich.markup import escape

from artifacts.cache.atomic import check_file_writable, write_bytes_atomic
from artifacts.cache.runs import find_run, list_runs
from artifacts.images import read_image_rgb
from artifacts.records import DataError, ImageRGB
from artifacts.report.heat_sheet import heat_overlay
from flows.cli.edges import encoded
from flows.cli.export import published_fit
from flows.cli.picture_files import PICTURE_SUFFIXES, check_apart
from flows.cli.terminal import terminal
from flows.config import Layer, build
from tasks.rrm.stages import RRMParams

FITS = ("classifier", RRMParams.NAME)
"""Fits that hold a classifier of tags, the plain one first."""


def cam(
    image: Annotated[Path, Parameter(help="a picture")],
    *,
    class_: Annotated[str, Parameter(name="--class", help="name of the class to look for, one of the run's")],
    out: Annotated[Path, Parameter(help="the heat map to write over the picture: PNG or JPEG")] = Path("cam.png"),
    cache: Annotated[Path, Parameter(help="folder of the mask cache")] = Path("maskmill-cache"),
    run: Annotated[str, Parameter(help="a run's id; latest: the newest with a classifier of tags")] = "latest",
) -> int:
    """Draw a class activation map: bright where the classifier of a run of rrm sees the class.

    The classifier is the one that the run has trained before (params.start=classifier), else the branch of its network.
    The brightest place is the map's maximum, however sure the classifier is: its probability is printed.
    """
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise DataError(f"--out {out}: name a .png or .jpg file")
    check_apart([image], out, None)
    check_file_writable("out", out)
    manifest, stage = trained(cache, run)
    classes = manifest["classes"][stage["dataset"]]
    if class_ not in classes:
        raise DataError(f"--class {class_}: the classifier of run {manifest['run']} knows {', '.join(classes)}")
    image_rgb = read_image_rgb(image)
    heat_hw, probability = seen(manifest, stage, cache, image_rgb, classes.index(class_) + 1)
    write_bytes_atomic(out, encoded(heat_overlay(image_rgb, heat_hw), out.suffix), durable=False)
    console = terminal()
    nowhere = "" if heat_hw.any() else ": the map is zero everywhere"
    console.print(f"{escape(class_)}: probability {probability:.2f}{nowhere}", soft_wrap=True, highlight=False)
    console.print(f"heat map: {escape(str(out))}", soft_wrap=True)
    return 0


def trained(cache: Path, run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of ``run`` and its fit of :data:`FITS`. Raises :class:`DataError` where there is none."""
    runs = list(reversed(list_runs(cache))) if run == "latest" else [find_run(cache, run)]
    for one in runs or [find_run(cache, run)]:
        manifest = one.manifest()
        fits = {stage["label"]: stage for stage in manifest["stages"] if stage["kind"] == "fit" and stage["output"]}
        for label in FITS:
            if label in fits:
                return manifest, fits[label]
    where = f"{cache}: no run here" if run == "latest" else f"run {run}: it"
    raise DataError(f"{where} has trained a classifier of tags; run `maskmill rrm` first, with --cache {cache}")


def seen(
    manifest: dict[str, Any], stage: dict[str, Any], cache: Path, image_rgb: ImageRGB, number: int
) -> tuple[NDArray[np.float32], float]:
    """Map ``(H, W)`` of one class by a run's classifier, and its probability: :func:`tasks.cam.network.class_map`."""
    from flows.configure import load
    from tasks.cam import network as classifier
    from tasks.cam.stages import maps
    from tasks.rrm import network as both
    from tasks.rrm.stages import predict
    from tasks.training.networks import load_network

    recipe, run = manifest["recipe"], manifest["run"]
    params = build(load(manifest["flow"])[1], "params", recipe, [Layer(recipe, f"run {run}", {})])
    weights = str(published_fit(manifest, stage, cache, "classifier").weights)
    count = len(manifest["classes"][stage["dataset"]])
    network: Any
    if stage["label"] == "classifier":
        network = load_network(weights, classifier.build_network, maps(params.cam).params, count, "cpu")
    else:
        network = load_network(weights, both.build_network, predict(params.rrm).params, count + 1, "cpu")
    return classifier.class_map(network, image_rgb, number, params.cam.maps)
