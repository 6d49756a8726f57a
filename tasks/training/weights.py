"""Pretrained weights: where they come from, how their file is opened, what normalisation belongs to them.

A user names them by one string: ``none``, ``imagenet`` (torchvision's own loader), or a file, with the normalisation
that the file was trained with before it if it is not torchvision's: ``caffe:/data/vgg16_bgr.safetensors``.

Torch is imported inside the functions: stages are described in processes that never load it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PRESETS = ("imagenet", "caffe")
"""Names of :data:`models.normalise.NORMALISATIONS`."""

TORCHVISION = {
    "largefov": ("VGG16_Weights", "vgg16-397923af.pth"),
    "resnet18": ("ResNet18_Weights", "resnet18-f37072fd.pth"),
    "resnet50": ("ResNet50_Weights", "resnet50-0676ba61.pth"),
    "resnet101": ("ResNet101_Weights", "resnet101-63fe2227.pth"),
}
"""network -> (torchvision's enumeration, its IMAGENET1K_V1 file; the name holds the content's SHA-256)."""

URL = "https://download.pytorch.org/models/"


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Weights:
    """A parsed ``weights`` string."""

    kind: str
    """``none``, ``imagenet`` or ``file``."""
    normalisation: str = "imagenet"
    path: Path | None = None

    @property
    def semantic(self) -> str:
        """The string as it may enter an address: the path left out (a file is known by its content)."""
        if self.kind != "file":
            return self.kind
        return "file" if self.normalisation == "imagenet" else f"{self.normalisation}:file"


def parse(text: str) -> Weights:
    """Read a ``weights`` string. Raises :class:`WeightsError` for an empty one."""
    if not text.strip():
        raise WeightsError("weights is empty; give none, imagenet, a file, or caffe:FILE")
    if text in ("none", "imagenet"):
        return Weights(text)
    preset, colon, rest = text.partition(":")
    if colon and preset in PRESETS:
        if not rest:
            raise WeightsError(f"weights {text!r} names no file after the colon")
        return Weights("file", preset, Path(rest).expanduser())
    return Weights("file", "imagenet", Path(text).expanduser())


def require_file(path: Path, key: str) -> Path:
    """``path``, if it is a file; else :class:`WeightsError` naming it and the config key to set."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights file {path} {what}; set {key}= to a .safetensors or .pth file, imagenet or none")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a ``.safetensors`` file, or in a torch file opened with ``weights_only=True``, on the CPU.

    ``{"state_dict": ...}`` around them is taken off. Raises :class:`WeightsError` where the file is cut short, is
    something else, or holds more than tensors (nothing in it is ever executed).
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_file(path, "weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path} is cut short or is no safetensors file ({error}); get it again") from error
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for every way in which a file can be broken
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a weights-only torch file ({first}); it is cut short, of another kind, or "
            "holds code: get it again or convert it to safetensors"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} holds {type(loaded).__name__}, expected a mapping of names to tensors")
    return dict(loaded)


def read_part(path: Path, prefix: str) -> dict[str, Tensor]:
    """Tensors of :func:`read_state` whose names begin with ``prefix``, that taken off; an error if there are none."""
    state = read_state(path)
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not found:
        first = ", ".join(sorted(state)[:3])
        raise WeightsError(f"{path}: no tensor's name begins with {prefix!r}; the first are {first}")
    return found


def hub_path(network: str) -> Path:
    """Where torchvision's loader keeps the ImageNet file of ``network`` (``$TORCH_HOME/hub/checkpoints``)."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints" / TORCHVISION[network][1]


def check_content(path: Path, key: str) -> None:
    """Raises :class:`WeightsError` unless the file's SHA-256 begins with the hash in its name."""
    wanted = path.stem.rpartition("-")[2]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise WeightsError(
            f"{path} is not what its name says: its SHA-256 begins with {found[: len(wanted)]}, expected {wanted}; it"
            f" is cut short or another file: delete it and get it again ({URL}{path.name}), or name it with {key}=FILE"
        )


def imagenet_state(network: str, key: str = "weights") -> dict[str, Tensor]:
    """torchvision's IMAGENET1K_V1 tensors for ``network``, from its cache or downloaded by its own loader.

    The word ``imagenet`` stands for one content: a cached file is checked against the hash in its name before use.
    Raises :class:`WeightsError` saying which file to put where, or which config key (``key``) to set, if it cannot.
    """
    if network not in TORCHVISION:
        raise WeightsError(f"there are no ImageNet weights for {network!r}; set {key}=none (known: {[*TORCHVISION]})")
    import torchvision

    enumeration, file = TORCHVISION[network]
    cached = hub_path(network)
    if cached.is_file():
        check_content(cached, key)
        return read_state(cached)
    try:
        member = getattr(torchvision.models, enumeration).IMAGENET1K_V1
        state: dict[str, Tensor] = member.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, refused, wrong hash
        raise WeightsError(
            f"cannot download {URL}{file} ({error}). On a machine without network: download that file elsewhere, then "
            f"put it at {cached} or set {key}=/path/to/{file}; {key}=none starts from random weights"
        ) from error
    return state
