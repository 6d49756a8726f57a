"""Ray's workers, by its client library: imported only where ``options.engine`` says ``ray``."""

from __future__ import annotations

import contextlib
import logging
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tasks.engine.cluster_pool import ClusterError, remote_runner, source_of_probe

# Read when Ray is imported: nothing is reported to anybody, and a token that is there is shown to the head, which asks
# for it where there is one; a client shows it only if told to.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or (Path.home() / ".ray" / "auth_token").exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOST_WORKERS = 3
"""Workers that a unit may cost, as with Dask."""
LOOK_S = 120.0


class RayCluster:
    """A head and its nodes; without an address, ``workers`` slots on this machine for as long as it is open."""

    def __init__(self, address: str, workers: int) -> None:
        self.name = f"ray:{address}" if address else "ray"
        self._joined = ray.is_initialized()
        if not self._joined:
            here = {} if address else {"num_cpus": workers, "include_dashboard": False}
            try:
                ray.init(
                    address=address or "local",
                    configure_logging=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **here,
                )
            except Exception as error:  # of all kinds, a bare Exception among them
                if not address:
                    raise ClusterError(f"Ray does not start here: {error}") from error
                raise ClusterError(
                    f"no Ray head answers at {address} ({error}): start one with `ray start --head`, and name its"
                    " address: --set options.engine=ray:HOST:6379"
                ) from error
        self._source = source_of_probe()
        self._run = ray.remote(remote_runner())
        self._refs: dict[Any, None] = {}

    def slots(self) -> int:
        """CPUs of all nodes, as Ray counts them."""
        return int(ray.cluster_resources().get("CPU", 0))

    def look(self, *arguments: Any) -> dict[str, Any]:
        """See :class:`tasks.engine.cluster_pool.Cluster`; once on each node, beside what its workers do."""
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        refs = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            on_node = self._run.options(num_cpus=0, scheduling_strategy=there, max_retries=0)
            refs[f"node {node[:8]}"] = on_node.remote(self._source, "look", arguments)
        found: dict[str, Any] = {}
        for name, ref in refs.items():
            try:
                found[name] = ray.get(ref, timeout=LOOK_S)
            except Exception as error:
                found[name] = error
        return found

    def submit(self, *arguments: Any) -> Future[bytes]:
        """See :class:`tasks.engine.cluster_pool.Cluster`."""
        ref = self._run.options(num_cpus=1, max_retries=LOST_WORKERS).remote(self._source, "call", arguments)
        self._refs[ref] = None
        answer: Future[bytes] = ref.future()
        answer.add_done_callback(lambda _: self._refs.pop(ref, None))
        return answer

    def end(self, run: str) -> None:
        """See :class:`tasks.engine.cluster_pool.Cluster`. What is at work gets a KeyboardInterrupt, and ends itself."""
        for ref in list(self._refs):
            with contextlib.suppress(Exception):
                ray.cancel(ref)

    def close(self) -> None:
        """See :class:`tasks.engine.cluster_pool.Cluster`. Ray ends this run's workers with it."""
        if not self._joined:
            ray.shutdown()
