"""The ``maskmill`` command with one more flow, ``slow``; forked from the zygote, or a program of its own."""

from __future__ import annotations

import atexit
import signal
import sys
import threading
from collections.abc import Sequence

from prefect.context import refresh_global_settings_context

from flows.cli import flow_command as command
from flows.cli.main import app, main

command.FLOWS["slow"] = ("slow_flow", "SlowParams")


@app.command
def slow(*, config: str, prefect: bool = False) -> int:
    return command.run_flow_command(
        "slow",
        data=None,
        config=config,
        sets=(),
        options={"progress": False},
        dry_run=False,
        show_config=False,
        prefect=prefect,
    )


def forked(arguments: Sequence[str]) -> int:
    """``main`` as in a fresh process, to its very end: Prefect sends what is left from exit handlers."""
    # A shell's background job ignores SIGINT, and so does everything that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    refresh_global_settings_context()
    try:
        return main(arguments)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


if __name__ == "__main__":
    sys.exit(main())
