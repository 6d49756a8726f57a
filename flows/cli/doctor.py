"""``maskmill doctor``: what this machine and a cache's folder have of what Maskmill needs, each with its fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json as json_format
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from artifacts.cache.file_system import Check, check_folder
from flows.cli.terminal import terminal

ANSWER_S = 5.0


def doctor(
    path: Annotated[Path, Parameter(help="folder of the mask cache, there or to be")] = Path("maskmill-cache"),
    /,
    *,
    json: Annotated[bool, Parameter(help="as JSON, for programs", negative=())] = False,
) -> int:
    """Check the file system, the compiled parts, GPU, weights, Prefect server and engines. Exit code 1 on a problem."""
    checks = [*check_folder(path), *_machine()]
    if json:
        print(json_format.dumps([asdict(check) for check in checks], indent=2))
    else:
        console = terminal(highlight=False, soft_wrap=True)
        for check in checks:
            state = "[green]ok[/]     " if check.ok else "[red]problem[/]"
            console.print(f"{state} {check.name}: {escape(check.found)}")
            if check.fix:
                console.print(f"        fix: {escape(check.fix)}")
    return int(not all(check.ok for check in checks))


def _machine() -> Iterator[Check]:
    yield _compiled()
    yield _gpu()
    yield _weights()
    yield _prefect()
    yield _engines()


def _compiled() -> Check:
    """The CRF is compiled when Maskmill is installed; a compiler is needed then only."""
    if importlib.util.find_spec("models.crf._lattice") is not None:
        return Check("compiled parts", True, "models.crf._lattice")
    compiler = shutil.which("g++")
    fix = "pip install -e . in the clone" if compiler else "install g++ and Python's headers, then pip install -e ."
    return Check("compiled parts", False, "models.crf._lattice is missing", fix)


def _gpu() -> Check:
    from tasks.engine.gpus import has_gpu, visible_gpus

    if not has_gpu():
        return Check("GPU", True, "none: networks run on the CPU")
    names = visible_gpus()
    if not names:
        fix = "see nvidia-smi and CUDA_VISIBLE_DEVICES"
        return Check("GPU", False, "there is a driver, but no GPU is visible", fix)
    import torch

    if not torch.cuda.is_available():
        fix = f"install a torch that fits the driver, or set device=cpu (torch {torch.__version__})"
        return Check("GPU", False, f"{len(names)} GPUs, which torch cannot use", fix)
    return Check("GPU", True, f"{len(names)}, with torch {torch.__version__}")


def _weights() -> Check:
    """Weights that are not here are no problem before a run names them; damaged ones are."""
    from tasks.training.weights import table
    from tasks.training.weights.here import look

    found = {row: here for row in table.ROWS if (here := look(row)) is not None}
    broken = [f"{here.path} {here.problem}" for here in found.values() if here.problem]
    if broken:
        fix = "; ".join(f"{row.name}: {row.remedy}" for row, here in found.items() if here.problem)
        return Check("weights", False, "; ".join(broken), fix)
    names = ", ".join(row.name for row in found) or "none"
    return Check("weights", True, f"here: {names} (`maskmill weights` lists all)")


def _prefect() -> Check:
    from flows.server.environment import api_configured

    if not api_configured():
        return Check("Prefect server", True, "none is named, and none is needed")
    from prefect.settings import get_current_settings

    url = str(get_current_settings().api.url)
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_S):
            return Check("Prefect server", True, url)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it answers: the password is the run's matter
            return Check("Prefect server", True, f"{url} (asks for a password)")
        problem = f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "reason", error))
    fix = "start it, or unset PREFECT_API_URL: a run needs no server"
    return Check("Prefect server", False, f"{url} does not answer ({problem})", fix)


def _engines() -> Check:
    from tasks.engine.cluster_pool import EXTRAS

    words = []
    for name, library in EXTRAS.items():
        try:
            words.append(f"{name} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            words.append(f"no {name} (pip install 'maskmill[{name}]')")
    return Check("engines", True, f"local ({len(os.sched_getaffinity(0))} cores), {', '.join(words)}")
