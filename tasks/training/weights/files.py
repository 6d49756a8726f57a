"""Files of weights: opened without running anything in them, refused with a message that names file and remedy.

Torch is imported inside the functions: stages are described in processes that never load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.training.weights import table

if TYPE_CHECKING:
    from torch import Tensor


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and what to do."""


def require_file(path: Path, key: str) -> Path:
    """``path``, if it is a file; else :class:`WeightsError` naming it and the config key to set."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(
            f"weights file {path} {what}; set {key}= to a .safetensors or .pth file, imagenet, none, or a name of"
            f" `maskmill weights`{table.meant(str(path))}"
        )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a ``.safetensors`` file, or in a torch file opened with ``weights_only=True``, on the CPU.

    ``{"state_dict": ...}`` or ``{"net": ...}`` around them is taken off. Raises :class:`WeightsError` where the file is
    cut short, is something else, or holds more than tensors (nothing in it is ever executed).
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
        if "weights_only" in first:  # it advises to execute what is in the file
            first = type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a weights-only torch file ({first}); it is cut short, of another kind, or "
            "holds code: get it again or convert it to safetensors"
        ) from error
    for around in ("state_dict", "net"):
        if isinstance(loaded, dict) and isinstance(loaded.get(around), Mapping):
            loaded = loaded[around]
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
