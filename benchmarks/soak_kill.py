"""Kill the demo at its most sensitive points, run it again, and compare all its files byte for byte.

    python -m benchmarks.soak_kill [--flow FLOW] [--random 20] [--seed 0] [--only POINT ...]      (make soak-kill)

One undisturbed run of the flow on ``demo-tiny`` is the reference. Then, each on a fresh folder: one kill at every named
kill point (``artifacts.cache.atomic.KILL_POINTS``), wherever it is reached (a pool worker, the fit's process, the run
itself), and kills of the run's process group at random instants. After each kill no process of the run may be alive,
and the same command run again must end with the same arrays under every (address, key, stamp), the same checkpoint
and the same exported files as the reference. Exit status 1 on any difference.

The fit works in a process of its own, with a loader worker, and writes a checkpoint after each step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from artifacts import keys
from artifacts.cache.atomic import KILL_POINTS
from artifacts.cache.store import MaskStore
from flows.registry import FLOWS, SHIPPED

ROOT = Path(__file__).resolve().parents[1]
MARK = "MASKMILL_SOAK_RUN"
"""Environment variable that marks all processes of one run, whatever their parent is now."""
SOAK_OPTIONS = ("options.loader_workers=1", "options.checkpoint_every_s=0")
GONE_WITHIN_S = 5.0
RUN_LIMIT_S = 600.0

# -- what a run left -------------------------------------------------------------------------------------------------


def fingerprint(out: Path) -> dict[str, str]:
    """What -> digest: every stored array, every published checkpoint and curve, every exported file of ``out``."""
    found: dict[str, str] = {}
    store = MaskStore(out / "cache", readonly=True)
    for address in store.addresses():
        for (key, stamp), entry in store.entries(address).items():
            what = f"{address} {key} {stamp}"
            if entry.output is None:
                found[what] = f"skipped: {entry.reason}"
                continue
            arrays = store.read(address, key, stamp)
            found |= {f"{what} {name}": keys.digest_array(array) for name, array in arrays.items()}
    for path in sorted((out / "cache" / "fits").glob("*/*/pub-*/*")):
        if path.name in ("weights.safetensors", "metrics.jsonl"):
            found["fit " + path.relative_to(out / "cache" / "fits").as_posix()] = keys.digest_file(path)
    for path in sorted(out.glob("dataset-*/**/*")):
        if path.is_file():
            found["export " + path.relative_to(out).as_posix()] = keys.digest_file(path)
    return found


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """As text: what is missing, too much, or other than expected."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"too much: {name}" for name in found if name not in expected]
    return lines + [f"other: {name}" for name in expected if name in found and found[name] != expected[name]]


def left(out: Path) -> str:
    """How far a killed run was."""
    cache = out / "cache"
    counts = {
        "segments": len(list((cache / "maps").glob("*/*.h5"))),
        "checkpoints": len(list((cache / "fits").glob("*/*/work/*.ckpt"))),
        "published": len(list((cache / "fits").glob("*/*/pub-*"))),
        "exported": len(list(out.glob("dataset-*"))),
    }
    return " ".join(f"{name} {count}" for name, count in counts.items() if count) or "nothing"


# -- processes -------------------------------------------------------------------------------------------------------


def flow_main(arguments: Sequence[str]) -> int:
    """``maskmill`` in this process, a group leader: what reaches a kill point takes the whole group with it."""
    os.environ["MASKMILL_RUN_PGID"] = str(os.getpid())
    from flows.cli.main import main

    return main(list(arguments))


def survivors(mark: str) -> list[int]:
    """Living processes that were started with ``MASKMILL_SOAK_RUN=mark`` in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found.append(int(name))
    return found


def gone(mark: str, within_s: float = GONE_WITHIN_S) -> bool:
    """Whether all processes of the run end within a few seconds."""
    deadline = time.monotonic() + within_s
    while survivors(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@dataclass
class Run:
    """One ``maskmill`` command in a session of its own."""

    flow: str
    out: Path
    env: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = self.out / "log.txt"
        arguments = [self.flow, "--config", FLOWS[self.flow].tiny, "--export", "voc", "--quiet", "--workers", "2"]
        arguments += ["--out", str(self.out), *(f"--set={option}" for option in SOAK_OPTIONS)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.soak_kill", "--run", *arguments],
                cwd=ROOT,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **self.env, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> int:
        """Exit code; negative is the signal that ended it."""
        return self.process.wait(RUN_LIMIT_S)

    def wait_for_work(self) -> None:
        """Until it has begun to write: imports are a good part of its time, and nothing can be hurt in them."""
        while self.process.poll() is None and not (self.out / "cache").exists():
            time.sleep(0.005)

    def kill_group(self) -> None:
        """``kill -9`` of the run's process group; workers and fits lead groups of their own and must follow."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


# -- the soak --------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """One kill and its outcome."""

    kill: str
    faults: list[str]
    left: str
    again_s: float

    def __str__(self) -> str:
        verdict = "identical" if not self.faults else f"{len(self.faults)} FAULTS: {'; '.join(self.faults[:3])}"
        return f"{self.kill:28} {self.left:48} {self.again_s:6.1f} s  {verdict}"


def killed_at_point(flow: str, out: Path, point: str) -> tuple[Run, list[str]]:
    """A run that dies where ``point`` is first reached."""
    run = Run(flow, out, {"MASKMILL_KILL_AT": point})
    code = run.wait()
    return run, [] if code == -signal.SIGKILL else [f"the point was not reached: exit code {code}, see {run.log}"]


def killed_at_instant(flow: str, out: Path, after_s: float) -> tuple[Run, list[str]]:
    """A run whose process group is killed ``after_s`` seconds after it began to write."""
    run = Run(flow, out)
    run.wait_for_work()
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.process.wait(after_s)
    run.kill_group()
    run.wait()
    return run, []


def aftermath(kill: str, run: Run, faults: list[str], expected: Mapping[str, str]) -> Line:
    """No process survives, and the same command gives the same files."""
    if not gone(run.mark):
        faults.append(f"processes {survivors(run.mark)} survived")
    state = left(run.out)
    started = time.monotonic()
    again = Run(run.flow, run.out)
    if code := again.wait():
        faults.append(f"the run after it ended with exit code {code}, see {again.log}")
    else:
        faults += differences(fingerprint(run.out), expected)
    if not gone(again.mark):
        faults.append(f"processes {survivors(again.mark)} outlived the run after it")
    return Line(kill, faults, state, time.monotonic() - started)


def soak(flow: str, folder: Path, points: Sequence[str], kills: int, seed: int) -> list[Line]:
    """All kills, one after the other; prints a line for each."""
    reference = Run(flow, folder / "reference")
    reference.wait_for_work()
    started = time.monotonic()
    if code := reference.wait():
        raise SystemExit(f"the undisturbed run ended with exit code {code}:\n{reference.log.read_text()[-3000:]}")
    works_s = time.monotonic() - started
    expected = fingerprint(reference.out)
    print(f"undisturbed: {left(reference.out)}, {len(expected)} arrays and files, {works_s:.1f} s of work", flush=True)
    chance = random.Random(seed)
    lines = []
    plans = [(point, -1.0) for point in points]
    plans += [(f"random, {after:.2f} s", after) for after in (chance.uniform(0, works_s) for _ in range(kills))]
    for number, (name, after_s) in enumerate(plans):
        out = folder / f"kill-{number:02d}"
        run, faults = killed_at_point(flow, out, name) if after_s < 0 else killed_at_instant(flow, out, after_s)
        lines.append(aftermath(name, run, faults, expected))
        print(lines[-1], flush=True)
        if not lines[-1].faults:
            shutil.rmtree(out)
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; exit status 1 if anything was lost, other, or alive."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--run"]:
        return flow_main(given[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flow", choices=list(FLOWS), default=SHIPPED[0].name)
    parser.add_argument("--random", type=int, default=20, help="kills at random instants")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants")
    parser.add_argument("--only", nargs="*", choices=KILL_POINTS, default=KILL_POINTS, help="kill points")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    options = parser.parse_args(given)
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maskmill-soak-")))
        lines = soak(options.flow, folder, options.only, options.random, options.seed)
        faulty = [line for line in lines if line.faults]
        for line in faulty:
            print(f"\n{line.kill}:", *line.faults[:20], sep="\n  ")
    print(f"{len(lines)} kills, {len(faulty)} with a fault")
    return int(bool(faulty))


if __name__ == "__main__":
    sys.exit(main())
