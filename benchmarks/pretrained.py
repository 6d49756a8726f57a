"""A backbone trained on drawn pictures of other classes: what ImageNet is to the papers' students.

The papers start from ImageNet's weights. Small networks on drawn pictures have none that fit, and from scratch they
show little of methods that need good features (a random walk over random ones mixes all pixels). So a
DeepLab learns the auxiliary family of the demo data, whose classes are in no picture that is compared on, with its
masks; its backbone, and nothing else of it, is the file that all rows of a table start from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from artifacts.cache.atomic import write_bytes_atomic
from artifacts.datasets import DataParams, read_split
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.options import RunParams
from tasks.engine.progress import Reporter
from tasks.engine.runner import Runner
from tasks.labels import given_masks
from tasks.stage import FitHandle

SOURCE = "demo-auxiliary"


def find_backbone(params: DeepLabParams, options: RunParams) -> Path | None:
    """The file, if it was trained on the current data and params; nothing is computed."""
    with _runner(options, planning=True) as run:
        fit = _fit(run, params, options)
    file = _file(options, fit)
    return file if file is not None and file.is_file() else None


def make_backbone(params: DeepLabParams, options: RunParams, reporter: Reporter | None = None) -> Path:
    """Train it, or find it trained. The same params give the same bytes on the same machine."""
    from safetensors.torch import load_file, save

    with _runner(options, reporter=reporter) as run:
        fit = _fit(run, params, options)
        run.write_manifest("finished")
    file = _file(options, fit)
    assert file is not None, "a fit that has been run has a digest"
    if not file.is_file():
        tensors = load_file(fit.path)
        own = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(file, save(own))
    return file


def _runner(options: RunParams, *, planning: bool = False, reporter: Reporter | None = None) -> Runner:
    return Runner(replace(options, out="", rerun=()), flow="pretrained", planning=planning, reporter=reporter)


def _fit(run: Runner, params: DeepLabParams, options: RunParams) -> FitHandle:
    records = read_split(DataParams(SOURCE), "train", cache=Path(options.cache))
    return run.fit(deeplab.fit(params, name="pretrained"), records, target=run.map(given_masks(), records))


def _file(options: RunParams, fit: FitHandle) -> Path | None:
    """Named after the tensors: pictures, stages or params that gave others have another file."""
    return None if fit.digest is None else Path(options.cache) / "pretrained" / f"{fit.digest[:16]}.safetensors"
