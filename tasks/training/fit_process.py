"""Run one fit: ``python -m tasks.training.fit_process SPEC.json`` in its own process, :func:`run_spec` in this one.

The process reports in JSON lines on stdout, one object each with ``event``: ``waiting``, ``progress``,
``log``, ``skip``, ``warning``, ``done``, ``error``. Everything else that is printed goes to stderr. It may be killed at
any moment: signals simply end it, its loader workers die with it, and the next run resumes from the checkpoint.

On several machines that see the cache, torchrun starts it once for each rank (docs/engines.md): such a process joins
the others. The ranks are then as many as torchrun says.

Exit codes: 0 published (or found published), 1 failed, 2 the specification is wrong, 69 the device is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from artifacts.cache.fit_store import CURVE, FitStore, Publication
from artifacts.cache.fit_work import METRICS, read_metrics
from artifacts.cache.locks import Stop
from artifacts.cache.runs import library_versions
from artifacts.records import DataError
from tasks.engine.children import Stopped
from tasks.engine.fit_spec import FitSpec, plain_params
from tasks.engine.gpus import NoDevice, hold_gpus, only_visible
from tasks.engine.memory import out_of_memory
from tasks.engine.process_tree import die_with_parent
from tasks.stage import resolve
from tasks.training.context import Emit, Event, FitContext, FitData, Hardware, torch_settings

__all__ = ["FitContext", "FitData", "FitSpec", "NoDevice", "plain_params", "run_spec"]

EXIT_FAILED, EXIT_USAGE, EXIT_NO_DEVICE = 1, 2, 69


# -- one fit ---------------------------------------------------------------------------------------------------------


def run_spec(spec: FitSpec, emit: Emit, stop: Stop | None = None) -> Publication:
    """Fit what ``spec`` says in this process, or find it published; one device.

    ``emit`` gets the events. Raises :class:`DataError` (no usable image), :class:`NoDevice`,
    ``tasks.engine.children.Stopped`` / ``artifacts.cache.locks.LockAborted`` (stopped), and what the stage's
    function raises.
    """
    with _turn(spec, emit, stop) as found:
        if found is None:
            with _hardware(spec, emit, stop) as accelerator, _alone(stop):
                found = _fit(spec, Hardware(accelerator, 1, 0, spec.threads), emit, stop)
            assert found is not None, "the only rank is the first"
        emit(_done(found))
        return found


_generators = threading.Lock()


@contextlib.contextmanager
def _alone(stop: Stop | None) -> Iterator[None]:
    """One fit at a time in one process: threads share the global generators and torch's settings."""
    while not _generators.acquire(timeout=0.1):
        if stop is not None and stop.is_set():
            raise Stopped("stopped while another fit of this process was under way")
    try:
        yield
    finally:
        _generators.release()


@contextlib.contextmanager
def _turn(spec: FitSpec, emit: Emit, stop: Stop | None) -> Iterator[Publication | None]:
    """Hold the fit's lock; gives the publication if there is one (perhaps by the process that held it before)."""
    store = FitStore(Path(spec.cache))

    def on_wait(holder: str) -> None:
        emit({"event": "waiting", "for": f"the same fit by {holder}"})

    with store.lock(spec.address, spec.stamp, stop=stop, on_wait=on_wait, on_missing=_warner(emit)):
        yield store.published(spec.address, spec.stamp, newer_than=spec.newer_than)


def _warner(emit: Emit) -> Callable[[str], None]:
    return lambda message: emit({"event": "warning", "message": message})


@contextlib.contextmanager
def _hardware(spec: FitSpec, emit: Emit, stop: Stop | None) -> Iterator[str]:
    """``"cpu"`` or ``"cuda"``, with the locks of the GPUs held and only these visible."""
    if spec.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={spec.device!r} must be auto, cpu or cuda")

    def on_wait(holder: str) -> None:
        emit({"event": "waiting", "for": holder})

    with (
        hold_gpus(spec.device, spec.devices, here=True, stop=stop, on_wait=on_wait) as taken,
        only_visible(taken),
    ):
        yield "cuda" if taken else "cpu"


def _fit(spec: FitSpec, hardware: Hardware, emit: Emit, stop: Stop | None) -> Publication | None:
    """The fit itself; the caller holds the locks. ``None`` from all ranks but the first."""
    import torch
    from safetensors.torch import save

    from tasks.training import rng

    if hardware.accelerator == "cuda" and not torch.cuda.is_available():
        raise NoDevice(
            f"device={spec.device}: there is a GPU, but torch {torch.__version__} cannot use it (its CUDA "
            f"{torch.version.cuda}, the driver too old?); set device=cpu, or install a torch that fits the driver"
        )
    store = FitStore(Path(spec.cache))
    work = store.work(spec.address, spec.stamp)
    started = time.monotonic()
    context = FitContext(spec, work=work, hardware=hardware, emit=emit, stop=stop)
    # On CPUs a fit is the same to the last bit; on GPUs it is not worth the slower kernels.
    with torch_settings(hardware.threads, deterministic=hardware.accelerator == "cpu"), rng.preserved():
        rng.seed_all(spec.seed, "init")
        tensors = resolve(spec.function)(context)
        _leave(context)
    if not context.is_main:
        return None
    for name in [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor.float()).all())]:
        raise ValueError(f"{spec.label}: {name} holds values that are not finite; nothing was published")
    info = {
        **spec.info,
        "label": spec.label,
        "seed": spec.seed,
        "params_type": spec.params_type,
        "params": spec.params,
        "classes": list(spec.classes),
        "iterations": context.iterations,
        "seconds": round(context.seconds + time.monotonic() - started, 3),
        "threads": hardware.threads,
        "device": hardware.accelerator,
        "devices": hardware.devices,
        "libraries": library_versions(),
        "skips": [[skip.key, skip.path, skip.reason, skip.permanent] for skip in context.skips],
    }
    return store.publish(
        spec.address,
        spec.stamp,
        save(tensors),
        members=[(task.key, task.stamp) for task in spec.train],
        lineage=spec.lineage,
        info=info,
        files=_pictures(context),
    )


def _leave(context: FitContext) -> None:
    """Wait for the other ranks and end the process group."""
    if context.hardware.devices > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def _pictures(context: FitContext) -> dict[str, bytes]:
    """``metrics.jsonl`` and its curve. A picture that cannot be drawn costs a warning, never a fit."""
    if not context.work.metrics.exists():
        return {}
    files = {METRICS: context.work.metrics.read_bytes()}
    path = context.folder / CURVE
    try:
        from artifacts.report import curve_png

        curve_png(read_metrics(context.work.metrics), path)
        files[CURVE] = path.read_bytes()
    except Exception as error:  # any error of the drawing library
        context.warn(f"the curve was not drawn: {type(error).__name__}: {error}")
    return files


def _done(publication: Publication) -> Event:
    return {
        "event": "done",
        "address": publication.address,
        "stamp": publication.stamp,
        "number": publication.number,
        "digest": publication.digest,
        "path": str(publication.weights),
    }


# -- a process of its own --------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m tasks.training.fit_process SPEC.json [--parent PID]``; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tasks.training.fit_process", description="run one fit")
    parser.add_argument("spec", type=Path, help="JSON file that the Runner wrote")
    parser.add_argument("--parent", type=int, default=0, help="pid of the starting process, with which this one dies")
    options = parser.parse_args(arguments)
    if options.parent:
        die_with_parent(options.parent)
    _end_at_once_when_told()
    # Read when torch is loaded: threads that sleep while they wait leave a busy machine's cores to those who work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    emit = _events(1)
    try:
        spec = FitSpec.read(options.spec)
    except DataError as error:
        return _failed(emit, error, EXIT_USAGE)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        emit = _clean_stdout()
        return _guarded(emit, lambda: _joined(spec, emit))
    if spec.devices > 1:
        return _guarded(emit, lambda: _run_agent(spec, emit))
    emit = _clean_stdout()
    return _guarded(emit, lambda: _one(spec, emit))


def _one(spec: FitSpec, emit: Emit) -> int:
    run_spec(spec, emit)
    return 0


SMALLER = "lower batch or crop in the fit's section of params, or choose a smaller network"
"""What helps a fit that memory does not hold."""


def _guarded(emit: Emit, work: Callable[[], int]) -> int:
    """Exit code of ``work``; an exception becomes an event, and a traceback on stderr."""
    try:
        return work()
    except NoDevice as error:
        return _failed(emit, error, EXIT_NO_DEVICE)
    except Exception as error:
        traceback.print_exc()
        return _failed(emit, error, EXIT_FAILED, out_of_memory(error, SMALLER) or f"{error}{_where(error)}")


def _end_at_once_when_told() -> None:
    """A fit may be killed anywhere, so the default action is right: it ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _failed(emit: Emit, error: Exception, code: int, message: str = "") -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    emit({"event": "error", "type": type(error).__name__, "message": message or str(error), "code": code})
    return code


def _where(error: Exception) -> str:
    """The place of an error that is no message of ours (a bug in a stage, say)."""
    if type(error).__module__ != "builtins" or isinstance(error, (OSError, MemoryError)):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({type(error).__name__} at {frame.filename}:{frame.lineno} in {frame.name}: {frame.line})"


def _events(descriptor: int) -> Emit:
    """Events as JSON lines on a descriptor. A reader that is gone is no reason to stop."""

    def emit(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, (json.dumps(event, ensure_ascii=False) + "\n").encode())

    return emit


def _clean_stdout() -> Emit:
    """Events to what stdout was; whatever libraries print from now on goes to stderr."""
    emit = _events(os.dup(1))
    sys.stdout.flush()
    os.dup2(2, 1)
    return emit


# -- several ranks ---------------------------------------------------------------------------------------------------


def _run_agent(spec: FitSpec, emit: Emit) -> int:
    """Hold the locks and be torchrun's agent for ``spec.devices`` ranks on this machine."""
    with _turn(spec, emit, None) as found:
        if found is not None:
            emit(_done(found))
            return 0
        with _hardware(spec, emit, None) as accelerator:
            return _torchrun(spec, accelerator)


def _torchrun(spec: FitSpec, accelerator: str) -> int:
    import uuid

    # The ranks are forks of this process: what they need is imported once, ten seconds of one core instead of
    # of each rank's. Nothing here may touch a GPU or start a thread of torch's before they are forked.
    import lightning_fabric  # noqa: F401
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from tasks.training import loop  # noqa: F401

    resolve(spec.function)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=spec.devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, _rank)(spec, accelerator, os.getpid())
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return EXIT_NO_DEVICE if EXIT_NO_DEVICE in codes else EXIT_FAILED
    return 0


def _rank(spec: FitSpec, accelerator: str, agent: int) -> None:
    """One of several ranks. The agent holds the locks; the first rank reports and publishes."""
    die_with_parent(agent)
    _end_at_once_when_told()
    index, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hardware = Hardware(accelerator, world, index, max(1, spec.threads // world), place=index)
    emit = _clean_stdout()

    def work() -> int:
        publication = _fit(spec, hardware, emit, None)
        if publication is not None:
            emit(_done(publication))
        return 0

    if code := _guarded(emit, work):
        sys.exit(code)


def _joined(spec: FitSpec, emit: Emit) -> int:
    """One of the ranks that torchrun has started, on one machine or several."""
    from tasks.training.joined_rank import join

    publication = join(spec, lambda hardware: _fit(spec, hardware, emit, None), on_missing=_warner(emit))
    if publication is not None:
        emit(_done(publication))
    return 0


if __name__ == "__main__":
    # The classes must be those of the imported module, not of __main__.
    from tasks.training.fit_process import main as entry

    sys.exit(entry(sys.argv[1:]))
