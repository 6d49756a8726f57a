"""The ``maskmill`` command, forked from the zygote."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Sequence

from prefect.context import refresh_global_settings_context

from flows.cli.main import main


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
