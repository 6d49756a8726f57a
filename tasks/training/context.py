"""The input of a fit's function: params, data, initial weights, a log; nothing about disk layout."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from artifacts.cache.fit_work import Work
from artifacts.cache.locks import Stop
from artifacts.cache.store import MaskStore
from artifacts.records import Kind, Record, Skip
from tasks.engine.children import Stopped
from tasks.engine.fit_spec import FitSpec
from tasks.engine.image_task import ImageTask, load_item
from tasks.stage import Item

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from tasks.training.fabric import Precision

log = logging.getLogger("maskmill")
Event = dict[str, Any]
Emit = Callable[[Event], None]


class FitData(Sequence[ImageTask]):
    """The members of a fit, read one at a time. A member is ``(key, stamp, record, up)``."""

    def __init__(
        self, cache: str, members: Sequence[ImageTask], reads: Sequence[Kind], classes: tuple[str, ...]
    ) -> None:
        self.cache = cache
        self.members = members
        self.reads = tuple(reads)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, index: int) -> ImageTask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageTask]: ...
    def __getitem__(self, index: int | slice) -> ImageTask | Sequence[ImageTask]:
        return self.members[index]

    def key(self, index: int) -> str:
        """``<dataset>/<image id>`` of a member."""
        return self.members[index].key

    def record(self, index: int) -> Record:
        """The member's record, only the declared label kinds in it."""
        return self.members[index].record

    def item(self, index: int) -> Item:
        """Image (if declared), record and upstream arrays of one member.

        Raises as :func:`tasks.engine.image_task.load_item`; the training loop turns a ``DataError`` into a recorded
        skip.
        """
        return load_item(_store(self.cache, os.getpid()), self.members[index], self.reads, self.classes)

    def items(self) -> Iterator[Item]:
        """All members in order."""
        return (self.item(index) for index in range(len(self)))


@functools.lru_cache(maxsize=2)
def _store(cache: str, pid: int) -> MaskStore:
    """One store per process: ``pid`` is there so that a forked loader worker opens files of its own."""
    return MaskStore(Path(cache), readonly=True)


@dataclass(frozen=True)
class Hardware:
    """What a fit runs on."""

    accelerator: str = "cpu"
    """``cpu`` or ``cuda``."""
    devices: int = 1
    """Of all machines together."""
    rank: int = 0
    threads: int = 1
    """CPU threads of this rank."""
    place: int = 0
    """This rank among those of its machine."""
    machines: int = 1


class FitContext:
    """One running fit, as its function sees it."""

    def __init__(self, spec: FitSpec, *, work: Work, hardware: Hardware, emit: Emit, stop: Stop | None = None) -> None:
        self.params: Any = spec.typed_params
        self.classes = spec.classes
        self.seed = spec.seed
        self.label = spec.label
        self.train = FitData(spec.cache, spec.train, spec.reads, spec.classes)
        self.monitor = FitData(spec.cache, spec.monitor, spec.monitor_reads, spec.classes) if spec.monitor else None
        """Records for monitoring, with truth where there is any; ``None`` without a monitor."""
        self.inputs: Mapping[str, str] = spec.inputs
        """role -> path of an input file, or of an upstream checkpoint (see :meth:`input_weights`)."""
        self.prefixes = spec.prefixes
        self.init = Path(spec.init) if spec.init else None
        self.hardware = hardware
        self.loader_workers = _loader_workers(spec.loader_workers, hardware)
        self.checkpoint_every_s = spec.checkpoint_every_s
        self.work = work
        self.skips: list[Skip] = []
        self.iterations = 0
        """Iterations done, for the publication."""
        self.seconds = 0.0
        """Seconds spent by the runs before this one (a resumed fit counts them all)."""
        self._emit = emit
        self._stop = stop
        self._progress_every_s = spec.progress_every_s
        self._progress_at = 0.0
        self._fabrics: dict[str, Fabric] = {}
        self._told: set[str] = set()

    @property
    def folder(self) -> Path:
        """The fit's work folder; checkpoints in it belong to the training loop."""
        return self.work.path

    @property
    def is_main(self) -> bool:
        """Whether this rank logs, checkpoints and publishes."""
        return self.hardware.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors live."""
        import torch

        if self.hardware.accelerator == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", self.hardware.place)

    def fabric(self, precision: Precision = "32") -> Fabric:
        """Device, precision and ranks; made on first use."""
        from tasks.training.fabric import make_fabric

        if precision not in self._fabrics:
            hardware = self.hardware
            self._fabrics[precision] = make_fabric(
                hardware.accelerator, hardware.devices, precision, machines=hardware.machines
            )
        return self._fabrics[precision]

    def initial_weights(self) -> dict[str, torch.Tensor] | None:
        """Tensors of ``init`` (its prefix taken off), or ``None``."""
        return None if self.init is None else self._tensors(self.init, self.prefixes.get("init", ""))

    def input_weights(self, role: str) -> dict[str, torch.Tensor]:
        """Tensors of an input file or upstream checkpoint (its prefix taken off), on the CPU."""
        return self._tensors(Path(self.inputs[role]), self.prefixes.get(role, ""))

    def _tensors(self, path: Path, prefix: str) -> dict[str, torch.Tensor]:
        from tasks.training.weights import read_part

        return read_part(path, prefix)

    def log(self, step: int, **values: float) -> None:
        """One line of ``metrics.jsonl``: values after ``step`` iterations. Only the main rank writes."""
        if self.is_main:
            line = {"step": step, **{name: float(value) for name, value in values.items()}}
            with self.insured("a line of the curve was not written"):
                self.work.append_metrics(line)
            self._emit({"event": "log", **line})

    def progress(self, step: int, total: int, **values: float) -> None:
        """``step`` of ``total`` iterations are done; passed on a few times a second at most."""
        now = time.monotonic()
        if self.is_main and (now - self._progress_at >= self._progress_every_s or step >= total):
            self._progress_at = now
            self._emit({"event": "progress", "step": step, "total": total, **values})

    @contextlib.contextmanager
    def insured(self, message: str) -> Iterator[None]:
        """For files that training can do without (checkpoints, curves): a full disk is a warning, training goes on."""
        try:
            yield
        except OSError as error:
            if message not in self._told:
                self._told.add(message)
                self.warn(f"{message} ({error.strerror or error}: {error.filename or self.folder}); the fit goes on")

    def skip(self, skip: Skip) -> None:
        """Record that an image could not be used in training; once per image."""
        if any(known.key == skip.key for known in self.skips):
            return
        self.skips.append(skip)
        event = {"event": "skip", "key": skip.key, "path": skip.path, "reason": skip.reason}
        if self.is_main:
            self._emit({**event, "permanent": skip.permanent, "stage": skip.stage})

    def warn(self, message: str) -> None:
        """Send a warning to the run; the fit goes on."""
        log.warning("%s: %s", self.label, message)
        if self.is_main:
            self._emit({"event": "warning", "message": message})

    def check_stop(self) -> None:
        """Raise ``Stopped`` if the run was stopped (inline fits; processes get a signal)."""
        if self._stop is not None and self._stop.is_set():
            raise Stopped(f"{self.label} was stopped")


def _loader_workers(wanted: int, hardware: Hardware) -> int:
    """Resolves -1: none on a CPU, whose cores compute; enough to keep a GPU busy, and no more than there are cores."""
    if wanted >= 0:
        return wanted
    return 0 if hardware.accelerator == "cpu" else min(8, max(1, len(os.sched_getaffinity(0)) // hardware.devices))


@contextlib.contextmanager
def torch_settings(threads: int, *, deterministic: bool) -> Iterator[None]:
    """Threads and deterministic algorithms of torch for one fit; put back afterwards (inline fits share a process).

    Where the result need not be the same to the last bit (GPUs), cuDNN may try which of its kernels is fastest: a
    resumed fit then agrees with an undisturbed one as two undisturbed ones agree, to rounding.
    """
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    # Otherwise every new tensor is filled first, which costs time and shows nothing here.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=True)
        torch.backends.cudnn.benchmark = before[2]
        memory.fill_uninitialized_memory = fill
