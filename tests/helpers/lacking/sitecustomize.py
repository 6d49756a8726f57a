"""A Python that has no Maskmill and no h5py: for a cluster's worker that lacks them."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

GONE = ("flows", "tasks", "models", "artifacts", "h5py")


class Gone:
    """Finds none of them."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


_version = importlib.metadata.version


def version(name: str) -> str:
    if name in GONE:
        raise importlib.metadata.PackageNotFoundError(name)
    return _version(name)


importlib.metadata.version = version
sys.meta_path.insert(0, Gone)  # type: ignore[arg-type]
