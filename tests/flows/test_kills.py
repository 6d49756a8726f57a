"""Killed anywhere, run again, the same to the byte; and a killed flow leaves no process behind."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flow_runs import HERE, Done, Runs, Started, copy_of, end_all, figure_of, maskmill, stack
from zygote import Zygote

from artifacts.cache import locks
from artifacts.cache.run_status import status
from artifacts.cache.store import MaskStore
from artifacts.export.voc import DEVKIT
from benchmarks.soak_kill import differences, fingerprint, gone, survivors
from flows.registry import FLOWS, SHIPPED

pytestmark = pytest.mark.kills
EACH_STEP = ("--set", "options.checkpoint_every_s=0")
FIT = "tasks.training.fit_process"
OWN_PROCESS = ("--set", "options.loader_workers=1", "--workers", "0")


@pytest.fixture(scope="module", autouse=True)  # it imports while the undisturbed run is made
def zygote() -> Iterator[Zygote]:
    with Zygote(stack()) as made:
        yield made
    end_all()


def masks_stored(out: Path) -> int:
    store = MaskStore(out / "cache", readonly=True)
    return sum(len(store.entries(address)) for address in store.addresses())


def checkpoints(out: Path) -> list[int]:
    """Steps after which a checkpoint of an unfinished fit was written, and kept."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in (out / "cache" / "fits").glob("*/*/work/*.ckpt"))


def published(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "cache" / "fits").glob("*/*/pub-*"))


def until(condition: Callable[[], bool], run: Started, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, run.printed
        time.sleep(0.02)


def free(lock: Path) -> bool:
    with contextlib.suppress(locks.LockTaken), locks.hold(lock, wait=False):
        return True
    return False


def processes_of(mark: str, *words: str) -> list[int]:
    """Processes of the run whose command line holds all ``words``."""
    found = []
    for pid in survivors(mark):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if all(word in line for word in words):
                found.append(pid)
    return found


def stages_before_fit(run: Done) -> list[dict[str, Any]]:
    """A run's map stages before the first fit."""
    kinds = [stage["kind"] for stage in run.manifest["stages"]]
    return run.manifest["stages"][: kinds.index("fit")]


def tiny_fit(run: Done) -> str:
    """Label of a run's first fit."""
    return next(str(stage["label"]) for stage in run.manifest["stages"] if stage["kind"] == "fit")


def before_fit(run: Done) -> int:
    """Images that these stages work on."""
    return sum(int(stage["total"]) for stage in stages_before_fit(run))


def check_what_was_left(out: Path, tiny: Done, to: Path) -> None:
    """The flow was killed in its first fit and wrote no last word; still its masks are exported, if it has any yet."""
    (newest,) = status(out / "cache").killed[:1]
    assert (newest.outcome, newest.stage) == ("killed", tiny_fit(tiny)) and newest.process
    assert Path(newest.fit_logs[newest.stage]).stat().st_size, "what a person needs"
    done = stages_before_fit(tiny)
    if done:  # a manifest is written after every stage
        manifest = Done(out, 0, "", "").manifest
        assert (manifest["status"], [stage["label"] for stage in manifest["stages"]]) == (
            "running",
            [stage["label"] for stage in done],
        )
    masks = [stage for stage in done if stage["set"] == "train" and "mask_hw" in stage["outputs"]]
    exported = maskmill(out, "export", "--cache", str(out / "cache"), "--to", str(to))
    if not masks:
        assert exported.code == 2
        return
    assert exported.code == 0, exported.printed
    assert f"is running, or was killed: taking {masks[-1]['label']!r}" in exported.printed
    counts = json.loads((to / "maskmill-export.json").read_text())["counts"]
    assert counts["images"] == masks[-1]["total"] - masks[-1]["skipped"] and counts["val"]["masks"]["truth"]
    assert len(list((to / DEVKIT / "SegmentationClass").iterdir())) == counts["images"] + counts["val"]["images"]


def fits(run: Done) -> list[str]:
    """Addresses of a run's fits."""
    return [stage["address"] for stage in run.manifest["stages"] if stage["kind"] == "fit"]


def stored_when_a_worker_is_killed(flow: str, zygote: Zygote, out: Path) -> int:
    """A pool worker, at its second segment, and the run with it: the first segments are there, and whole."""
    run = Started(zygote, flow, out, ["--workers", "2"], {"MASKMILL_KILL_AT": "store.before_rename:2"})
    assert run.wait() == -signal.SIGKILL, run.printed
    assert gone(run.mark, 2.0), "a worker outlived its run"
    return masks_stored(out)


@pytest.mark.parametrize("flow", [entry.name for entry in SHIPPED], indirect=True)
def test_a_chain_of_kills_ends_like_an_undisturbed_run(flow: str, zygote: Zygote, runs: Runs, tmp_path: Path) -> None:
    """In a worker between write and rename, with two ranks, mid checkpoint, mid publish, mid export; then whole."""
    out, tiny = tmp_path / "run", runs.tiny(flow)

    if before_fit(tiny):
        assert 1 <= stored_when_a_worker_is_killed(flow, zygote, out) < before_fit(tiny)
        assert published(out) == checkpoints(out) == []

    # kill -9 of the flow alone, while all ranks with a loader worker each are fitting; no checkpoint is due.
    ranks = FLOWS[flow].ranks
    run = Started(zygote, flow, out, [*OWN_PROCESS, "--set", f"options.devices={ranks}"])
    locked = (out / "cache" / "fits").glob
    processes = 2 * ranks + (ranks > 1)
    # The lock, too: a process that is being forked counts as another one of its parent's command line.
    until(lambda: any(locked("*/*/lock")) and len(processes_of(run.mark, FIT)) >= processes, run)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert gone(run.mark, 2.0), f"{survivors(run.mark)}: a fit outlived its run"
    assert masks_stored(out) == before_fit(tiny)
    assert published(out) == checkpoints(out) == []
    check_what_was_left(out, tiny, tmp_path / "masks")
    (lock,) = locked("*/*/lock")
    # A killed process counts as dead when its first thread is; its files close with the last one.
    until(lambda: free(lock), run, 1.0)

    # The fit's own process, half a checkpoint written: flow and loader worker go with it.
    run = Started(zygote, flow, out, [*OWN_PROCESS, *EACH_STEP], {"MASKMILL_KILL_AT": "fit.mid_checkpoint:5"})
    assert run.wait() == -signal.SIGKILL, run.printed
    assert gone(run.mark, 2.0), f"{survivors(run.mark)}: a fit outlived its run"
    assert checkpoints(out) == [3, 4]

    # The same fit in the run's process: it goes on at step 5, whoever wrote the checkpoint.
    run = Started(zygote, flow, out, [*HERE, *EACH_STEP], {"MASKMILL_KILL_AT": "fit.mid_publish"})
    assert run.wait() == -signal.SIGKILL, run.printed
    first, last = checkpoints(out)
    assert 4 < first == last - 1
    assert published(out) == []

    if not before_fit(tiny):  # a flow that begins with a fit: its workers start when that is done
        assert 1 <= stored_when_a_worker_is_killed(flow, zygote, out) < masks_stored(tiny.out)
        assert published(out) == ["pub-0001"]

    run = Started(zygote, flow, out, [*HERE, *EACH_STEP], {"MASKMILL_KILL_AT": "export.mid_export"})
    assert run.wait() == -signal.SIGKILL, run.printed
    assert published(out) == ["pub-0001"] * len(fits(tiny))
    assert not (out / "dataset-voc").exists(), "no half export under its name"

    run = Started(zygote, flow, out, [*HERE])
    assert run.wait() == 0, run.printed
    expected = fingerprint(tiny.out)
    kinds = {name.split()[0] for name in expected}
    assert kinds == {"fit", "export", *(s["address"] for s in tiny.manifest["stages"] if s["kind"] == "map")}
    assert differences(fingerprint(out), expected) == []
    done = Done(out, 0, "", "")
    assert done.computed == dict.fromkeys(tiny.computed, 0), "everything but the export was done"
    assert done.manifest["scores"] == tiny.manifest["scores"]


@pytest.mark.parametrize("flow", [name for name, entry in FLOWS.items() if entry.figure])
def test_killed_in_the_figures_first_fit_it_goes_on_there(
    flow: str, zygote: Zygote, runs: Runs, tmp_path: Path
) -> None:
    """The tiny run's stages are there: the first fit that is not is killed half a checkpoint written, and goes on."""
    tiny, whole = runs.tiny(flow), runs.whole(flow)
    (first, *_) = [address for address in fits(whole) if address not in fits(tiny)]
    out = copy_of(tiny, tmp_path / "run")
    given = [*figure_of(flow), *HERE]
    run = Started(zygote, flow, out, [*given, *EACH_STEP], {"MASKMILL_KILL_AT": "fit.mid_checkpoint:5"})
    assert run.wait() == -signal.SIGKILL, run.printed
    assert gone(run.mark, 2.0), f"{survivors(run.mark)}: something outlived its run"
    assert checkpoints(out) == [3, 4]
    assert {path.parts[-4] for path in (out / "cache" / "fits").glob("*/*/work/*.ckpt")} == {first}

    run = Started(zygote, flow, out, given)
    assert run.wait() == 0, run.printed
    assert differences(fingerprint(out), fingerprint(whole.out)) == []
    last = Done(out, 0, "", "")
    assert (last.computed, last.manifest["scores"]) == (whole.computed, whole.manifest["scores"])
