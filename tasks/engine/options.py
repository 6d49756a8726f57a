"""How a run is done: every operational option, none of which changes results."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from artifacts import keys
from artifacts.export.items import FORMATS
from tasks.bounds import bounded, number
from tasks.engine.refit import Refit
from tasks.stage import PARAMS_CONFIG

ENGINES = ("local", "dask", "ray")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={**keys.OPERATIONAL, "help": text})


def _number(default: Any, low: float, high: float, text: str) -> Any:
    return number(default, low, high, text, operational=True)


@dataclass(frozen=True)
class RunParams:
    """How a flow is run: where the cache is, what is run again, with how many workers. No option changes results."""

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    cache: str = _option("maskmill-cache", "folder of the mask cache")
    out: str = _option("", "folder for report, pictures and exports; default: the run's folder in the cache")
    workers: int = _number(-1, -1, 1024, "worker processes of map stages; -1: one per core, 0: in this process")
    engine: str = _option(
        "local", "who does map stages: local, dask, dask:ADDRESS, ray or ray:ADDRESS (docs/engines.md)"
    )
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "where networks run; auto: a GPU if there is one")
    devices: int = _number(1, 1, 1024, "GPUs (or CPU ranks) that one fit uses")
    threads: int = _number(-1, -1, 4096, "CPU threads of one fit; -1: one per core")
    launch: Literal["process", "inline"] = _option("process", "each fit in a process of its own, or inline")
    rerun: tuple[str, ...] = _option((), "labels of stages to run again although they are cached")
    until: str = _option("", "label of the last stage; the results up to it are scored, drawn and exported")
    refit: str = _option(
        "changed",
        "when a network is trained again: changed (its data changed), never, share:X (X of the last fit's pictures are"
        " new, changed or gone, e.g. share:0.1), days:N (its data changed and the last fit is N days old, e.g. days:7);"
        " until then new pictures use the last one",
    )
    loader_workers: int = _number(-1, -1, 1024, "loader processes of one fit; -1: none on a CPU, up to 8 on a GPU")
    checkpoint_every_s: float = _number(60.0, 0.0, 1e9, "seconds between a fit's checkpoints")
    image_timeout_s: float = _number(
        120.0, 0.1, 1e6, "seconds for an image of a map stage; slower ones are retried alone, then skipped"
    )
    verify_inputs: bool = _option(False, "read every image's bytes again instead of trusting size and time")
    export: tuple[str, ...] = _option((), f"dataset formats to export at the end: {', '.join(FORMATS)}")
    report_pictures: int = _number(
        12,
        0,
        10**6,
        "pictures of each set of masks that the report shows for their score, and as many for their suspicion; the"
        " first 24 are in the page, further ones beside it, in report-pictures/",
    )
    progress: bool = _option(True, "show progress")

    def __post_init__(self) -> None:
        bounded(self, "options")
        if self.cluster[0] not in ENGINES or self.engine.endswith(":") or self.engine.startswith("local:"):
            raise ValueError(f"engine={self.engine}: there are local, dask, dask:ADDRESS, ray and ray:ADDRESS")
        Refit.parse(self.refit)
        if unknown := [name for name in self.export if name not in FORMATS]:
            raise ValueError(f"export {', '.join(unknown)}: there are {', '.join(FORMATS)}")

    @property
    def cluster(self) -> tuple[str, str]:
        """``engine`` as its name and its address ("": one is started on this machine)."""
        name, _, address = self.engine.partition(":")
        return name, address

    @property
    def worker_count(self) -> int:
        """``workers`` with -1 resolved."""
        return _cores() if self.workers < 0 else self.workers

    @property
    def thread_count(self) -> int:
        """``threads`` with -1 resolved."""
        return _cores() if self.threads < 0 else max(1, self.threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
