"""What one fit is: plain data that the Runner writes and ``python -m tasks.training.fit_process SPEC.json`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.cache import sealed
from artifacts.cache.atomic import write_bytes_atomic
from artifacts.cache.codec import from_plain, to_plain, type_name, type_named
from artifacts.records import DataError, Kind
from tasks.engine.image_task import ImageTask


@dataclass(frozen=True)
class FitSpec:
    """One fit in full: where, what, from which images, and how the work is done."""

    cache: str
    label: str
    address: str
    stamp: str
    function: str
    """``"module:name"`` of ``def f(context: FitContext) -> dict[str, Tensor]``."""
    params_type: str
    """``"module:Class"`` of the params (``artifacts.cache.codec.type_name``)."""
    params: Mapping[str, Any]
    """The params as plain data (``artifacts.cache.codec.to_plain``)."""
    train: tuple[ImageTask, ...]
    """Members; ``ImageTask.stamp`` is the record's digest."""
    classes: tuple[str, ...] = ()
    reads: tuple[Kind, ...] = ()
    seed: int = 0
    monitor: tuple[ImageTask, ...] = ()
    """Operational: for monitoring only, never for training. Its records may hold truth."""
    monitor_reads: tuple[Kind, ...] = ("image", "truth")
    inputs: Mapping[str, str] = field(default_factory=dict)
    """role -> path of an input file, or of an upstream checkpoint's weights."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """role -> name prefix of the network meant in a checkpoint of several ("generator."); also for ``init``."""
    init: str = ""
    """Path of the checkpoint to start from, if any."""
    lineage: str = ""
    newer_than: int = 0
    """A publication with a higher number is taken as the result; to fit again, the last one's number."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Goes into ``publication.json`` as it is (data sets, splits, ...)."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    devices: int = 1
    threads: int = 1
    """CPU threads of the whole fit, shared by its ranks. On CPUs the last bits of the result depend on it."""
    loader_workers: int = 0
    """Per rank; -1: none on a CPU, up to 8 on a GPU. The result does not depend on it."""
    checkpoint_every_s: float = 60.0
    progress_every_s: float = 0.5

    @property
    def typed_params(self) -> Any:
        """The params object. Raises ``ValueError`` naming the field that does not fit."""
        return from_plain(type_named(self.params_type), self.params, "params")

    def write(self, path: Path) -> None:
        """Write the spec as JSON."""
        write_bytes_atomic(path, sealed.seal(to_plain(self)), durable=False)

    @staticmethod
    def read(path: Path) -> FitSpec:
        """Read a spec. Raises :class:`DataError` naming file and place."""
        try:
            spec: FitSpec = from_plain(FitSpec, sealed.unseal(path.read_bytes()), "spec")
        except OSError as error:
            raise DataError(f"fit specification {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise DataError(f"fit specification {path}: {error}") from error
        return spec


def plain_params(params: Any) -> tuple[str, dict[str, Any]]:
    """``(params_type, params)`` for a :class:`FitSpec`."""
    return type_name(type(params)), to_plain(params)
