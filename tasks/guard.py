"""``python tasks/guard.py PARENT_PID COMMAND ...``: become COMMAND, which dies with PARENT_PID.

For commands that cannot ask for their parent-death signal themselves (torchrun, a shell); the wish survives
``exec``. Run by path, in an isolated interpreter without site packages, so that it costs some 15 ms.
"""

from __future__ import annotations

import os
import signal
import sys


def main(arguments: list[str]) -> None:
    """Become the command. Exit code 127: it cannot be started."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from tasks.deathwatch import die_with_parent

    die_with_parent(int(arguments[0]))
    # Python ignores these two at its start, and what is ignored stays so through exec.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(arguments[1], arguments[1:])
    except OSError as error:
        print(f"cannot start {arguments[1]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
