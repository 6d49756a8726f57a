"""Which GPUs a fit (or a map stage) takes, and the operating system's lock on each.

No torch: it is loaded after the GPUs are chosen. One fit or map stage at a time on one GPU. The lock is named by the
GPU's UUID, so that two users, two caches or two values of ``CUDA_VISIBLE_DEVICES`` mean the same card.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from artifacts.cache import locks


class NoDevice(RuntimeError):
    """A GPU was requested and there is none; the message names the option to change."""


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that this process may use, in the order of ``CUDA_VISIBLE_DEVICES``; empty without a driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    table = [line.split(",") for line in done.stdout.splitlines() if "," in line]
    return _chosen({index.strip(): uuid.strip() for index, uuid in table}, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _chosen(uuids: dict[str, str], visible: str | None) -> list[str]:
    """Those of ``uuids`` (index -> UUID) that ``CUDA_VISIBLE_DEVICES`` names, as the driver reads it."""
    if visible is None:
        return list(uuids.values())
    chosen: list[str] = []
    for token in (part.strip() for part in visible.split(",")):
        if token.startswith("MIG-"):
            chosen.append(token)
            continue
        match = [uuid for index, uuid in uuids.items() if token == index or (token and uuid.startswith(token))]
        if len(match) != 1:
            break  # the driver, too, ignores what follows a name that it does not know
        chosen += match
    return chosen


def has_gpu() -> bool:
    """Whether there is a driver with a GPU, cheaply."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/gpus").exists() or Path("/dev/dxg").exists()


def check_device(wanted: str) -> None:
    """Raises :class:`NoDevice` if a GPU is requested and there is none. Called before any work."""
    if wanted == "cuda" and not (has_gpu() and visible_gpus()):
        raise NoDevice(
            "device=cuda, but no GPU is visible (nvidia-smi lists none, or CUDA_VISIBLE_DEVICES hides them); "
            "set device=cpu or device=auto, or run where there is one"
        )


@contextlib.contextmanager
def hold_gpus(
    wanted: str, count: int, *, here: bool, stop: locks.Stop | None, on_wait: Callable[[str], None]
) -> Iterator[list[str]]:
    """UUIDs of ``count`` GPUs for ``cuda`` or ``auto``, their locks held meanwhile; empty where the CPU computes.

    ``here``: for this process, which may be bound to its GPUs already; otherwise for a child that will see only them
    (:func:`environment`). Raises :class:`NoDevice`, or ``LockAborted`` if ``stop`` is set while all are busy.
    """
    check_device(wanted)
    uuids = visible_gpus() if wanted != "cpu" and has_gpu() else []
    if not uuids:
        yield []
        return
    if here and _cuda_in_use():
        uuids = list(_bound) or uuids[:count]
    with take_gpus(uuids, count, stop=stop, on_wait=on_wait) as taken:
        yield taken


def environment(uuids: list[str]) -> dict[str, str]:
    """What makes a process see only these GPUs, in this order whatever their speed."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@contextlib.contextmanager
def only_visible(uuids: list[str]) -> Iterator[None]:
    """This process (and its forks) sees only these GPUs; nothing is done where there are none in the list.

    CUDA reads the environment once, when it is first used: from then on the process is bound to these GPUs.
    """
    if not uuids:
        yield
        return
    before = {name: os.environ.get(name) for name in environment(uuids)}
    if not _cuda_in_use():
        _bound[:] = uuids
    os.environ.update(environment(uuids))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


_bound: list[str] = []
"""GPUs that this process saw when CUDA was first used in it."""


def _cuda_in_use() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


@contextlib.contextmanager
def take_gpus(
    uuids: list[str], count: int, *, stop: locks.Stop | None, on_wait: Callable[[str], None]
) -> Iterator[list[str]]:
    """Hold the locks of ``count`` of these GPUs, any that are free; waits until there are enough.

    Raises :class:`NoDevice` if there are fewer in all.
    """
    if len(uuids) < count:
        raise NoDevice(
            f"devices={count} GPUs were requested, {len(uuids)} are visible (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}); lower devices= or set device=cpu"
        )
    announced = False
    while True:
        with contextlib.ExitStack() as stack:
            taken: list[str] = []
            for uuid in uuids:
                if len(taken) < count:
                    with contextlib.suppress(locks.LockTaken):
                        stack.enter_context(locks.hold(locks.gpu_lock_path(uuid), wait=False))
                        taken.append(uuid)
            if len(taken) == count:
                yield taken
                return
        # Free ones are released while waiting, or two fits could wait for each other.
        if not announced:
            announced = True
            busy = next(uuid for uuid in uuids if uuid not in taken)
            on_wait(f"GPU {busy}, held by {locks.holder(locks.gpu_lock_path(busy))}")
        if stop is not None and stop.is_set():
            raise locks.LockAborted("stopped while waiting for a GPU")
        time.sleep(locks.POLL_S)
