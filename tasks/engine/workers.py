"""The worker processes of a run: one supervisor that starts every child, the pools of map stages, one STOP for all.

A Runner makes its own and closes them, unless it is lent some: runs one after the other then share their workers,
of which each would otherwise import torch again (ten seconds of a core). What a worker keeps of a run is identified by
the files themselves (networks, segments' indexes); module path, environment and folder are those of its start.

    with Workers() as workers:
        for options in several:
            with Runner(options, workers=workers) as run:
                ...
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from tasks.engine.children import Supervisor
from tasks.engine.cluster_pool import ClusterPool, connect
from tasks.engine.gpus import environment, hold_gpus, only_visible
from tasks.engine.options import RunParams
from tasks.engine.pool import Pool


class Workers:
    """Workers and fits of one run at a time. Nothing is started before it is needed.

    ``stop``: once set, every child ends within about two seconds and nothing is started any more. A run that fails or
    is stopped sets it, as its work may still be in progress: those that come after it need new workers.
    """

    def __init__(self, *, env: Mapping[str, str] | None = None) -> None:
        """``env``: added to the environment of the workers of map stages."""
        self.stop = threading.Event()
        self._env = dict(env or {})
        self._lock = threading.RLock()  # units of a cluster come in several threads
        self._supervisor: Supervisor | None = None
        self._pools: dict[tuple[bool, int, float], Pool] = {}
        self._clusters: dict[tuple[str, str, float], ClusterPool] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every child, and leave the clusters."""
        with self._lock:
            ending: list[Pool | ClusterPool] = [*self._clusters.values(), *self._pools.values()]
            self._clusters.clear()
            self._pools.clear()
            supervisor, self._supervisor = self._supervisor, None
        for pool in ending:
            pool.close()
        if supervisor is not None:
            supervisor.stop_all()

    @property
    def supervisor(self) -> Supervisor:
        """The one thread that starts children, itself started on first use."""
        with self._lock:
            if self._supervisor is None:
                self._supervisor = Supervisor(self.stop)
            return self._supervisor

    @contextlib.contextmanager
    def pool(
        self, options: RunParams, *, uses_torch: bool, on_wait: Callable[[str], None]
    ) -> Iterator[tuple[Pool | ClusterPool, str]]:
        """Who does a map stage, and on which device. Workers on a GPU end with the stage, and then its lock.

        A cluster's workers choose the device where they are.

        Others are kept, apart by what ``options`` decides of them; those of stages without torch never import it.
        The waiting is done here (``on_wait`` is called with the GPU's holder): a waiting worker would be taken for one
        that hangs, and could not be stopped.
        """
        if options.engine != "local":
            yield self._cluster(options), "cpu"
            return
        workers = options.worker_count
        wanted = options.device if uses_torch else "cpu"
        with hold_gpus(wanted, 1, here=not workers, stop=self.stop, on_wait=on_wait) as taken:
            if not taken:
                yield self._kept(uses_torch, workers, options.image_timeout_s), "cpu"
                return
            with (
                only_visible([] if workers else taken),
                Pool(
                    min(workers, 1),
                    supervisor=self.supervisor,
                    stop=self.stop,
                    image_timeout_s=options.image_timeout_s,
                    env={**self._env, **environment(taken)},
                ) as pool,
            ):
                yield pool, "cuda"

    def _kept(self, uses_torch: bool, workers: int, image_timeout_s: float) -> Pool:
        """The pool of this kind; a new one if there is none, or if a fault of its own has ended it."""
        kind = (uses_torch, workers, image_timeout_s)
        with self._lock:
            pool = self._pools.get(kind)
            if pool is None or pool.closed:
                pool = Pool(
                    workers,
                    supervisor=self.supervisor,
                    stop=self.stop,
                    image_timeout_s=image_timeout_s,
                    env=self._env,
                )
                self._pools[kind] = pool
            return pool

    def _cluster(self, options: RunParams) -> ClusterPool:
        """The cluster that ``options.engine`` names, looked at before it gets work."""
        kind = (options.engine, options.device, options.image_timeout_s)
        with self._lock:
            pool = self._clusters.get(kind)
            if pool is None or pool.closed:
                pool = ClusterPool(connect(options), options, stop=self.stop)
                self._clusters[kind] = pool
        pool.check(options)
        return pool
