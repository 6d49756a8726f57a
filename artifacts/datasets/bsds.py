"""Boundaries that several people drew in each picture: BSDS500 as published, or as npz files; and maps to score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.records import DataError

SUFFIXES = (".mat", ".npz")
PLACES = ("annotators/{split}", "groundTruth/{split}", "data/groundTruth/{split}", "{split}", ".")
"""Where a folder may hold the files of a split; the published archive has ``BSDS500/data/groundTruth/val``."""


def boundary_files(root: Path, split: str) -> dict[str, Path]:
    """Name of the picture -> its file of boundaries. Raises :class:`DataError` where there are none."""
    for place in PLACES:
        folder = root / place.format(split=split)
        if folder.is_dir():
            found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}
            if found:
                return found
    places = ", ".join(place.format(split=split) for place in PLACES)
    raise DataError(f"{root}: no boundaries ({' or '.join(SUFFIXES)} files) of {split}; looked in {places}")


def read_boundaries(path: Path) -> NDArray[np.bool_]:
    """``(annotators, H, W)``: BSDS500's ``.mat`` (``groundTruth{i}.Boundaries``), or an npz's array ``boundaries``.

    Raises :class:`DataError` naming the file where it holds something else, ``OSError`` where it cannot be read.
    """
    path.stat()  # a missing file is an OSError, whatever scipy makes of it
    try:
        found = _from_mat(path) if path.suffix == ".mat" else np.load(path)["boundaries"]
    except Exception as error:  # scipy and numpy raise a different type for every way in which a file can be broken
        raise DataError(f"{path}: holds no boundaries as BSDS500 has them ({type(error).__name__}: {error})") from error
    if found.ndim != 3 or not len(found):
        raise DataError(f"{path}: boundaries are {found.shape}, expected (annotators, height, width)")
    return np.asarray(found, bool)


def _from_mat(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat

    cells = loadmat(path)["groundTruth"].ravel()
    return np.stack([cell["Boundaries"][0, 0] != 0 for cell in cells])


def read_edge_map(path: Path) -> NDArray[np.float32]:
    """A grey picture of 8 or 16 bits as (H, W) in 0..1. Raises :class:`DataError` for anything else."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    found = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if found is None:
        raise DataError(f"{path}: cannot be decoded as a picture")
    if found.ndim != 2 or found.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: an edge map is grey, of 8 or 16 bits; this is {found.shape}, {found.dtype}")
    return np.asarray(found / (255 if found.dtype == np.uint8 else 65535), np.float32)
