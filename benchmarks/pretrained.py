"""A backbone that has seen drawn pictures of other classes: what ImageNet is to the papers' students.

The papers start from ImageNet's weights. Small networks on drawn pictures have none that fit, and from scratch they
show little of what is built on good features (a random walk over random ones mixes everything with everything). So a
DeepLab learns the auxiliary family of the demo data, whose classes are in no picture that is compared on, with its
masks; its backbone, and nothing else of it, is the file that all rows of a table start from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from artifacts.atomic import write_bytes_atomic
from artifacts.datasets import DataParams, read_split
from artifacts.keys import digest
from tasks import deeplab
from tasks.deeplab import DeepLabParams
from tasks.labels import given_masks
from tasks.options import RunParams
from tasks.progress import Reporter
from tasks.run import Runner

SOURCE = "demo-auxiliary"


def backbone_file(cache: Path, params: DeepLabParams) -> Path:
    """Where :func:`make_backbone` puts the backbone that is learnt with these params."""
    return cache / "pretrained" / f"{params.network}-{digest(repr(params))[:12]}.safetensors"


def make_backbone(params: DeepLabParams, options: RunParams, reporter: Reporter | None = None) -> Path:
    """Learn it, if its file is not there yet. The same params give the same bytes on the same machine."""
    from safetensors.torch import load_file, save

    file = backbone_file(Path(options.cache), params)
    if file.is_file():
        return file
    records = read_split(DataParams(SOURCE), "train", cache=Path(options.cache))
    with Runner(replace(options, out="", rerun=()), flow="pretrained", reporter=reporter) as run:
        fit = run.fit(deeplab.fit(params, name="pretrained"), records, target=run.map(given_masks(), records))
        run.write_manifest("finished")
    tensors = load_file(fit.path)
    own = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(file, save(own))
    return file
