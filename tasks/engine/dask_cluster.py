"""Dask's workers, by its client library ``distributed``: imported only where ``options.engine`` says ``dask``."""

from __future__ import annotations

import contextlib
import functools
import logging
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any

from distributed import Client, LocalCluster
from distributed import Future as DaskFuture

from tasks.engine.cluster_pool import ClusterError, remote_runner, source_of_probe

CONNECT_S = 30.0


class DaskCluster:
    """A scheduler and its workers; without an address, ``workers`` slots on this machine for as long as it is open."""

    def __init__(self, address: str, workers: int) -> None:
        self.name = f"dask:{address}" if address else "dask"
        self._own: LocalCluster | None = None
        for noisy in ("distributed", "distributed.worker", "distributed.scheduler", "distributed.nanny"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        try:
            if not address:
                # The workers' threads only wait for processes of our own.
                self._own = LocalCluster(
                    n_workers=1,
                    threads_per_worker=workers,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.ERROR,
                )
            self._client = Client(self._own or address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            if not address:
                raise ClusterError(f"Dask does not start here: {error}") from error
            raise ClusterError(
                f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler`,"
                " and name its address: --set options.engine=dask:tcp://HOST:8786"
            ) from error
        self._source = source_of_probe()
        self._run = remote_runner()
        self._futures: dict[str, DaskFuture] = {}

    def slots(self) -> int:
        """Threads of all workers."""
        return sum(self._client.nthreads().values())

    def look(self, *arguments: Any) -> dict[str, Any]:
        """See :class:`tasks.engine.cluster_pool.Cluster`."""
        found: dict[str, Any] = self._client.run(self._run, self._source, "look", arguments, on_error="return")
        return found

    def submit(self, *arguments: Any) -> Future[bytes]:
        """See :class:`tasks.engine.cluster_pool.Cluster`. ``pure=False``: a key of its own, never an old result."""
        future = self._client.submit(self._run, self._source, "call", arguments, pure=False)
        self._futures[future.key] = future
        answer: Future[bytes] = Future()
        future.add_done_callback(functools.partial(self._done, answer))
        return answer

    def _done(self, answer: Future[bytes], future: DaskFuture) -> None:
        self._futures.pop(future.key, None)  # the last reference here: the cluster then forgets the result
        with contextlib.suppress(InvalidStateError):
            try:
                answer.set_result(future.result())
            except BaseException as error:
                answer.set_exception(CancelledError() if future.cancelled() else error)

    def end(self, run: str) -> None:
        """See :class:`tasks.engine.cluster_pool.Cluster`."""
        self._client.cancel(list(self._futures.values()), force=True)
        self._client.run(self._run, self._source, "end", (run,), on_error="ignore")

    def close(self) -> None:
        """See :class:`tasks.engine.cluster_pool.Cluster`."""
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)
        if self._own is not None:
            with contextlib.suppress(Exception):
                self._own.close(timeout=5)
