"""What is run on a cluster's worker before anything of Maskmill can be: sent there as source, standard library only.

:func:`look` says what the worker has and sees; :func:`call` hands a unit over to :mod:`tasks.engine.guest` there;
:func:`end` ends a run there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

PACKAGES = ("flows", "tasks", "models", "artifacts")
LIBRARIES = (
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "scikit-image",
    "h5py",
    "hdf5plugin",
    "pycocotools",
    "pydensecrf2",
    "safetensors",
    "torch",
    "torchvision",
    "timm",
)
"""What arrays and their bytes depend on."""


def facts() -> dict[str, Any]:
    """Host, Python, digest of Maskmill's sources ("" without any), versions of the :data:`LIBRARIES` that there are."""
    versions = {"python": "{}.{}".format(*sys.version_info[:2])}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    digest, place, lattice = sources()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "executable": sys.executable,
        "sources": digest,
        "place": place,
        "lattice": lattice,
        "versions": versions,
    }


def sources() -> tuple[str, str, bool]:
    """Digest of the four packages' source files, the folder that holds them, whether the CRF is compiled there."""
    state, place, lattice = hashlib.sha256(), "", False
    for package in PACKAGES:
        spec = None
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return "", "", False
        folder = Path(next(iter(spec.submodule_search_locations)))
        place = str(folder.parent)
        for path in sorted(folder.rglob("*.py")):
            state.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode())
            state.update(hashlib.sha256(path.read_bytes()).digest())
        if package == "models":
            lattice = any((folder / "crf").glob("_lattice*.so"))
    return state.hexdigest()[:32], place, lattice


def look(shown: str, content: str) -> dict[str, Any]:
    """:func:`facts`, and whether this worker sees the file ``shown`` and can write another beside it (``"answer"``).

    ``"cache"`` of the result is empty, or why not. ``"locks"``: whether the lock that the asking process holds on
    ``shown`` holds here, too. The answer's name is that of a temporary file, too.
    """
    answer = f"{shown[:-12]}{uuid.uuid4().hex[:12]}"
    found = {**facts(), "cache": "", "locks": True, "answer": answer}
    try:
        with open(shown, encoding="utf-8") as file:
            if file.read() != content:
                found["cache"] = f"{shown} is another file there: the cache's path leads to another folder"
                return found
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError:
                found["locks"] = False
            else:
                found["locks"] = False
        with open(answer, "x", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        found["cache"] = f"{error.filename or shown}: {error.strerror}"
    return found


def call(sources_here: str, payload: bytes) -> bytes:
    """Run a unit (:func:`tasks.engine.guest.answer`) on a worker, if its Maskmill is the run's own.

    A worker that has come since the run began was not looked at.
    """
    guest = sys.modules.get("tasks.engine.guest")
    if guest is not None and sources_here in guest.same_sources:
        return guest.answer(payload)  # type: ignore[no-any-return]
    found, place, _ = sources()
    if found != sources_here:
        what = f"has another version of Maskmill ({place})" if found else "has no Maskmill"
        raise RuntimeError(
            f"the worker on {socket.gethostname()} ({sys.executable}) {what}; install there what runs here"
        )
    guest = importlib.import_module("tasks.engine.guest")
    guest.same_sources.add(sources_here)
    return guest.answer(payload)  # type: ignore[no-any-return]


def end(run: str) -> None:
    """End what this worker does for ``run``, and what it keeps for it."""
    guest = sys.modules.get("tasks.engine.guest")
    if guest is not None:
        guest.end(run)
