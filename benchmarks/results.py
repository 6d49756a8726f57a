"""Figures of a benchmark as JSON, with commit, machine and time: ``benchmarks/results/<name>.json``."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import write_text_atomic
from artifacts.cache.runs import library_versions

FOLDER = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on, as far as it can be read; load is the mean number of runnable processes."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}


def commit() -> str:
    """The commit measured, with ``+`` if anything was changed since."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(FOLDER.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def path_of(name: str) -> Path:
    """Where the figures of one benchmark are kept."""
    return FOLDER / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """What is kept of one benchmark, as :func:`save` wrote it; empty where there is none, or nothing readable."""
    try:
        record = json.loads(path_of(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def save(name: str, figures: Mapping[str, Any]) -> Path:
    """Write (or replace) the figures of one benchmark."""
    path = path_of(name)
    record = {
        "benchmark": name,
        "commit": commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "libraries": library_versions(),
        "figures": dict(figures),
    }
    write_text_atomic(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
