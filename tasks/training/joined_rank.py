"""One of several ranks that torchrun has started, on one machine or on several that see the cache (docs/engines.md).

The environment says which rank this is. The first holds the fit's lock, reports, and publishes; every rank holds the
lock of its GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from artifacts.cache import locks
from artifacts.cache.fit_store import FitStore, Publication
from tasks.engine.fit_spec import FitSpec
from tasks.engine.gpus import NoDevice, check_device, has_gpu, visible_gpus
from tasks.training.context import Hardware


class Busy(RuntimeError):
    """This fit is under way, or was just published, by somebody else."""


def join(
    spec: FitSpec, fit: Callable[[Hardware], Publication | None], *, on_missing: Callable[[str], None]
) -> Publication | None:
    """Do this rank's part of ``spec``: ``fit`` is given what it runs on. The publication; ``None`` but from the first.

    Raises :class:`Busy` where the first rank cannot have the fit: the others are past that question by then, and
    torchrun ends them. Raises :class:`NoDevice` where ranks and visible GPUs of a machine are not as many.
    """
    index, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    store = FitStore(Path(spec.cache))
    found = store.published(spec.address, spec.stamp, newer_than=spec.newer_than)
    if found is not None:
        return found if index == 0 else None
    with contextlib.ExitStack() as stack:
        if index == 0:
            try:
                stack.enter_context(store.lock(spec.address, spec.stamp, stop=_DoNotWait(), on_missing=on_missing))
            except locks.LockAborted as error:
                raise Busy(f"the same fit is under way: {error}") from error
            if store.published(spec.address, spec.stamp, newer_than=spec.newer_than) is not None:
                raise Busy("this fit was published just now; start again, and it is found")
        accelerator = stack.enter_context(_gpu(spec, place, here))
        return fit(Hardware(accelerator, world, index, max(1, spec.threads // here), place, world // here))


class _DoNotWait:
    """Ends the wait for a lock before it begins."""

    def is_set(self) -> bool:
        """Always."""
        return True


@contextlib.contextmanager
def _gpu(spec: FitSpec, place: int, here: int) -> Iterator[str]:
    """``"cpu"``, or ``"cuda"`` with the lock of the GPU at ``place`` held. All that a machine shows are used."""
    check_device(spec.device)
    uuids = visible_gpus() if spec.device != "cpu" and has_gpu() else []
    if not uuids:
        yield "cpu"
        return
    if len(uuids) != here:
        raise NoDevice(
            f"torchrun has started {here} ranks on this machine, where {len(uuids)} GPUs are visible: set"
            " --nproc-per-node, or CUDA_VISIBLE_DEVICES"
        )
    with locks.hold(locks.gpu_lock_path(uuids[place]), wait=False):
        yield "cuda"
