"""All benchmarks, one after the other, each in a process of its own. `python -m benchmarks [--only NAME ...]`.

A benchmark is a module of this package with a ``main()``. Exit status 1 if one of them misses its bar or fails.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "../shared/data/voc-mini"
APART = ("soak_kill", "claims", "nights", "suspicion", "confidence", "corrections", "scale")
"""No benchmarks of speed: they run long (`make soak-kill`, `make claims-cfs`), or look at runs that they are given."""


def names() -> list[str]:
    """Modules here that define ``main`` (read, not imported: some need torch)."""
    found = []
    for path in sorted(HERE.glob("*.py")):
        functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        if "main" in functions and path.stem not in (*APART, "__main__"):
            found.append(path.stem)
    return found


def arguments() -> Mapping[str, Sequence[str]]:
    """Arguments where a benchmark's defaults do not do: the real pictures, if they lie beside the clone."""
    data = f"voc:{REAL.resolve()}" if REAL.is_dir() else "demo"
    split = ["--split", "train"] if data == "demo" else []
    return {"grabcut": ["speed", "--data", data, *split]}


def main(given: list[str] | None = None) -> int:
    """Run them; prints one line for each at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names(), default=names(), help=", ".join(names()))
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    options = parser.parse_args(given)
    if options.list:
        print(*names(), sep="\n")
        return 0
    codes = {}
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in options.only:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="maskmill-bench-") as folder:
            command = [sys.executable, "-m", f"benchmarks.{name}", *arguments().get(name, ())]
            codes[name] = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}).returncode
        print(f"   {time.monotonic() - started:.0f} s, exit status {codes[name]}\n", flush=True)
    if missed := [name for name, code in codes.items() if code]:
        print(f"below the bar, or failed: {', '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
