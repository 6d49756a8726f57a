"""Drawn boundaries as BSDS500 publishes them, and grey maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from artifacts.datasets.bsds import boundary_files, read_boundaries, read_edge_map
from artifacts.records import DataError


def test_published_files_and_npz_are_read_alike(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).random((3, 5, 7)) < 0.3
    cells = np.empty((1, 3), object)
    for number, one in enumerate(drawn):
        cells[0, number] = {"Segmentation": np.ones((5, 7), np.uint16), "Boundaries": one.astype(np.uint8)}
    folder = tmp_path / "BSDS500/data/groundTruth/val"
    folder.mkdir(parents=True)
    savemat(folder / "a.mat", {"groundTruth": cells})
    np.savez(folder / "b.npz", boundaries=drawn)
    for root in (tmp_path / "BSDS500", tmp_path / "BSDS500/data", folder):
        found = boundary_files(root, "val")
        assert list(found) == ["a", "b"]
        assert all(np.array_equal(read_boundaries(path), drawn) for path in found.values())
    with pytest.raises(DataError, match=r"no boundaries \(.mat or .npz files\) of test; looked in annotators/test"):
        boundary_files(tmp_path / "BSDS500", "test")


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_what_is_broken_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(FileNotFoundError):
        read_boundaries(path)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=rf"a{suffix}: holds no boundaries as BSDS500 has them"):
        read_boundaries(path)
    np.savez(tmp_path / "b.npz", boundaries=np.zeros((4, 5), bool))
    with pytest.raises(DataError, match=r"b.npz: boundaries are \(4, 5\), expected \(annotators"):
        read_boundaries(tmp_path / "b.npz")


def test_grey_maps_of_8_and_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for maximum, dtype in ((255, np.uint8), (65535, np.uint16)):
        Image.fromarray(np.array([[0, maximum // 5, maximum]], dtype)).save(path)
        np.testing.assert_allclose(read_edge_map(path), [[0, 0.2, 1]])
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"a.png: an edge map is grey, of 8 or 16 bits; this is \(2, 3, 3\), uint8"):
        read_edge_map(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_edge_map(path)
