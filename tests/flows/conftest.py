"""Fixtures of the flow tests: flows forked from one zygote, and ONE Prefect server for the whole suite."""

from __future__ import annotations

from flow_servers import server, start, write_config, zygote

__all__ = ["server", "start", "write_config", "zygote"]
