"""Prefect's settings as environment variables: what every use of Prefect here wants. Loading it imports no Prefect.

The environment is the one place that reaches all of Prefect's processes (server, runner, flow runs), and it has to be
filled before Prefect is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SERVED_BY = "MASKMILL_SERVED_BY"
"""Process id of the runner that starts flow runs: they die with it (see ``flows/server/serve_runner.py``)."""

PRIVATE: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    # Should an exception be stored after all, then as text: a pickle runs code when it is read.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
}
"""No telemetry is sent, nothing is pickled."""

QUIET: Mapping[str, str] = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # A temporary server on a busy machine: 12 s were seen on an idle one, the default is 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
"""For a terminal: only the progress bar is shown."""

SERVED: Mapping[str, str] = {
    **PRIVATE,
    # Progress lines reach the server's log; elsewhere they are not wanted.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "maskmill",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # OpenMP threads that spin while they wait are 20 times slower on cores that others use too.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""For flow runs without a terminal."""


def set_defaults(*settings: Mapping[str, str]) -> None:
    """Put settings into this process's environment, unless the user has set them."""
    for mapping in settings:
        for name, value in mapping.items():
            os.environ.setdefault(name, value)


def server_settings(home: str, port: int, auth: str) -> dict[str, str]:
    """Settings of a server for this machine's own user: loopback only, with a password, one allowed origin.

    Leases lie in files: leases in memory are lost when the server restarts, and a run whose lease is lost is ended.
    """
    url = f"http://127.0.0.1:{port}"
    return {
        **PRIVATE,
        "PREFECT_HOME": home,
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{url},http://localhost:{port}",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def api_configured() -> bool:
    """Whether a Prefect API is set, by the environment or by the active profile."""
    from prefect.settings import get_current_settings

    return bool(get_current_settings().api.url)
