"""``maskmill attention``: how much one pixel attends to every place, as a picture (Xie et al., BMVC 2020, Fig. 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from artifacts.cache.atomic import check_file_writable
from artifacts.cache.fit_store import Publication
from artifacts.datasets import DataParams
from artifacts.images import read_image_rgb
from artifacts.records import DataError, Record
from artifacts.report.heat_sheet import HeatPanel, heat_sheet
from flows.cli.export import finished, published_fit, records_of
from flows.cli.terminal import terminal
from flows.config import Layer, build
from tasks.deeplab import lgsa
from tasks.deeplab import stages as deeplab


def attention(
    *,
    image: Annotated[str, Parameter(help="an image id of the run's data, or a picture file")],
    at: Annotated[str, Parameter(help="the pixel: X,Y from 0, in the picture's own size")],
    run: Annotated[tuple[str, ...], Parameter(help="a run's id, or latest; repeatable: one map each", negative=())] = (
        "latest",
    ),
    cache: Annotated[Path, Parameter(help="folder of the mask cache")] = Path("maskmill-cache"),
    out: Annotated[Path, Parameter(help="the PNG to write")] = Path("attention.png"),
) -> int:
    """The attention of one pixel as a heat map: the pixel's row of the attention matrix W.

    W is the last self-attention module's, of each run's student; give a run with params.attention=nonlocal and one
    with lgsa to see them side by side. Where the image has a truth mask, the share of the weight that comes from the
    pixel's own class is written below.
    """
    xy = pixel(at)
    check_file_writable("out", out)
    runs = [finished(cache, one) for one in run]
    picture, record = find_image(image, runs[0], cache)
    rgb = read_image_rgb(picture)
    height, width = rgb.shape[:2]
    if not (0 <= xy[0] < width and 0 <= xy[1] < height):
        raise DataError(f"--at {at}: outside of {picture}, which is {width} x {height} pixels")
    truth = record.truth.load() if record is not None and record.truth is not None else None
    panels = []
    for manifest in runs:
        weights_hw = maps(manifest, cache, rgb, xy)[-1]
        share = None if truth is None else lgsa.share_on_class(weights_hw, truth, xy)
        caption = "" if share is None else f"{100 * share:.0f} % of the weight on the pixel's class"
        panels.append(HeatPanel(title_of(manifest), weights_hw, caption))
    heat_sheet(rgb, xy, panels, out)
    console = terminal()
    for panel in panels:
        console.print(escape(f"{panel.title}: {panel.caption or 'no truth mask'}"), soft_wrap=True)
    console.print(f"heat map: {escape(str(out))}", soft_wrap=True)
    return 0


def pixel(text: str) -> tuple[float, float]:
    """``X,Y`` as numbers. Raises :class:`DataError` for anything else."""
    parts = text.split(",")
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        raise DataError(f"--at {text}: expected X,Y, e.g. --at 120,80") from None
    return x, y


def find_image(name: str, manifest: dict[str, Any], cache: Path) -> tuple[Path, Record | None]:
    """The picture's file and, where it belongs to the run's data, its record. An id wins over a file of that name."""
    recipe = manifest["recipe"]
    data = build(DataParams, "data", recipe, [Layer(recipe, f"run {manifest['run']}", {})])
    for of_set, split in (("val", data.val), ("train", data.train)):
        for record in records_of(manifest, of_set, split, cache):
            if record.image_id == name:
                return Path(record.image), record
    if Path(name).is_file():
        return Path(name), None
    raise DataError(f"--image {name}: no such image in {data.source} ({data.val}, {data.train}), and no file")


def maps(manifest: dict[str, Any], cache: Path, image_rgb: Any, xy: tuple[float, float]) -> list[Any]:
    """Of each self-attention module of a run's student, W's row of the pixel as ``(h, w) float32``; they sum to 1.

    Raises :class:`DataError` for a run whose student has none, or whose checkpoint is gone.
    """
    from flows.configure import load
    from tasks.deeplab.build import build_network
    from tasks.deeplab.inference import attention_maps
    from tasks.training.networks import load_network

    recipe, run = manifest["recipe"], manifest["run"]
    _, params_class, _ = load(manifest["flow"])
    params = build(params_class, "params", recipe, [Layer(recipe, f"run {run}", {})])
    chosen = lgsa.chosen(getattr(params, "attention", "none"), getattr(params, "lgsa", lgsa.LGSAParams()))
    if chosen is None:
        raise DataError(f"run {run}: its student has no self-attention (params.attention=none); name one with --run")
    predict_params = deeplab.predict(params.deeplab, lgsa=chosen).params
    weights = student_of(manifest, cache).weights
    classes = manifest["classes"][_student_fit(manifest)["dataset"]]
    network = load_network(str(weights), build_network, predict_params, len(classes) + 1, "cpu")
    return list(attention_maps(network, image_rgb, xy))


def student_of(manifest: dict[str, Any], cache: Path) -> Publication:
    """The fit that a run's student was: exactly that one, also if it was trained again since (``--rerun deeplab``).

    Raises :class:`DataError` where it is gone.
    """
    return published_fit(manifest, _student_fit(manifest), cache, "student")


def _student_fit(manifest: dict[str, Any]) -> dict[str, Any]:
    for stage in manifest["stages"]:
        if stage["kind"] == "fit" and stage["label"] == "deeplab":
            found: dict[str, Any] = stage
            return found
    raise DataError(f"run {manifest['run']}: it has no student (params.student=none, or --until); name one with --run")


def title_of(manifest: dict[str, Any]) -> str:
    """What distinguishes a run's student from another's, and the run."""
    params = manifest["recipe"]["params"]
    details = ""
    if params["attention"] == "lgsa":
        details += "" if params["lgsa"]["alpha"] is None else f", alpha {params['lgsa']['alpha']:g}"
        details += ", no walk" if params["lgsa"]["walk"] == "off" else ""
    return f"{params['attention']}{details} ({manifest['run']})"
