"""A fit as a process: one at a time, killed anywhere, never in two minds, and clear about what it lacks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parents[2] / "helpers"
sys.path[:0] = [str(HERE), str(HERE.parent)]
from fit_stages import TinyParams, make_spec, write_images  # noqa: E402
from tagged_scenes import painted, tags_of  # noqa: E402
from zygote import Zygote  # noqa: E402

from artifacts.cache import locks, sealed  # noqa: E402
from artifacts.cache.fit_store import FitStore  # noqa: E402
from artifacts.cache.store import StoreError  # noqa: E402
from artifacts.records import DataError, Record  # noqa: E402
from tasks.engine import gpus  # noqa: E402
from tasks.engine.fit_spec import FitSpec  # noqa: E402
from tasks.engine.gpus import NoDevice  # noqa: E402
from tasks.engine.image_task import ImageTask  # noqa: E402
from tasks.rrm import stages as rrm  # noqa: E402
from tasks.training.fit_process import (  # noqa: E402
    EXIT_FAILED,
    EXIT_NO_DEVICE,
    EXIT_USAGE,
    main,
    plain_params,
    run_spec,
)

pytestmark = pytest.mark.kills


@pytest.fixture(scope="module", autouse=True)  # it imports while the first tests run
def zygote() -> Iterator[Zygote]:
    with Zygote(["cv2", "lightning_fabric", "tasks.training.fit_process", "tasks.training.loop"], [HERE]) as made:
        yield made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageTask, ...]:
    return write_images(tmp_path_factory.mktemp("images"))


class Process:
    """A fit started in a process of its own."""

    def __init__(self, zygote: Zygote, spec: FitSpec, name: str = "fit", **env: str) -> None:
        self.cache = Path(spec.cache)
        self.cache.mkdir(exist_ok=True)
        path = self.cache / f"{name}.json"
        spec.write(path)
        self.zygote, self.output = zygote, self.cache / name
        self.pid = zygote.start("tasks.training.fit_process:main", [str(path)], env=env, output=self.output)

    def events(self) -> list[dict[str, Any]]:
        """Each line of stdout so far is one event: anything else fails here."""
        file = self.output.with_name(self.output.name + ".out")
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def errors(self) -> str:
        return self.output.with_name(self.output.name + ".err").read_text()

    def until(self, condition: Callable[[list[dict[str, Any]]], bool], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition(self.events()):
            assert time.monotonic() < deadline, f"{self.events()[-3:]} {self.errors[-3000:]}"
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        self.until(lambda events: any(e["event"] == "progress" and e["step"] >= step for e in events))

    def wait(self, timeout_s: float = 60.0) -> int:
        return self.zygote.wait(self.pid, timeout_s)


def descendants(pid: int) -> set[int]:
    """All living processes below ``pid``."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone_within(pids: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def work_files(spec: FitSpec) -> list[str]:
    return sorted(
        path.name for path in (FitStore(Path(spec.cache)).folder(spec.address, spec.stamp) / "work").iterdir()
    )


def silent(event: dict[str, Any]) -> None:
    """Nobody listens."""


# -- in this process -------------------------------------------------------------------------------------------------


def test_a_spec_comes_back_from_its_file(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    spec = make_spec(tmp_path, images, TinyParams(refuse=("a",)), monitor=images[:2], inputs={"w": "/x"}, info={"a": 1})
    spec.write(tmp_path / "spec.json")
    assert FitSpec.read(tmp_path / "spec.json") == spec
    assert spec.typed_params == TinyParams(refuse=("a",))


def test_a_published_fit_is_found_not_done(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    spec = make_spec(tmp_path, images, info={"dataset": "d"})
    first = run_spec(spec, silent)
    assert (first.number, first.lineage, first.info["dataset"], first.info["iterations"]) == (1, "l", "d", 12)
    assert first.members == tuple((job.key, job.stamp) for job in images)
    assert first.info["threads"] == 1 and "torch" in first.info["libraries"]
    events: list[dict[str, Any]] = []
    assert run_spec(spec, events.append) == first
    assert [event["event"] for event in events] == ["done"]
    again = run_spec(make_spec(tmp_path, images, newer_than=1), silent)
    assert (again.number, again.digest) == (2, first.digest)
    assert again.weights.read_bytes() == first.weights.read_bytes()


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, images: tuple[ImageTask, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tmp_path, images, TinyParams(iterations=2))

    def fail(number: int) -> Callable[..., None]:
        def raising(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return raising

    with monkeypatch.context() as patch:
        patch.setattr("artifacts.cache.locks.os.open", fail(errno.EROFS))
        with pytest.raises(StoreError, match=r"lock cannot be written: Read-only file system; .*name a writable cache"):
            run_spec(spec, silent)
    with monkeypatch.context() as patch:
        patch.setattr("artifacts.cache.fit_store.publish_folder", fail(errno.ENOSPC))
        with pytest.raises(StoreError, match="cannot be published in: No space left on device; .*free space"):
            run_spec(spec, silent)
    folder = FitStore(tmp_path).folder(spec.address, spec.stamp)
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "work"], "nothing half-written"
    assert run_spec(spec, silent).number == 1


def test_init_and_inputs_by_prefix(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    from safetensors.numpy import save

    from artifacts.cache.fit_work import Work
    from tasks.training.context import FitContext, Hardware

    path = tmp_path / "two.safetensors"
    path.write_bytes(save({"a.w": np.ones(2, np.float32), "b.w": np.zeros(2, np.float32)}))
    prefixes = {"init": "a.", "net": "c."}
    spec = make_spec(tmp_path, images, init=str(path), inputs={"net": str(path)}, prefixes=prefixes)
    context = FitContext(spec, work=Work(tmp_path / "w"), hardware=Hardware(), emit=silent)
    weights = context.initial_weights()
    assert weights is not None and list(weights) == ["w"] and weights["w"].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"two\.safetensors: no tensor's name begins with 'c\.'; the first are a\.w"):
        context.input_weights("net")


# -- what it lacks ---------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there(
    tmp_path: Path, images: tuple[ImageTask, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.engine.gpus.has_gpu", lambda: False)
    spec = make_spec(tmp_path, images, device="cuda")
    with pytest.raises(NoDevice, match=r"device=cuda, but no GPU is visible .*set device=cpu or device=auto"):
        run_spec(spec, silent)
    assert run_spec(make_spec(tmp_path, images, device="auto"), silent).info["device"] == "cpu"
    with pytest.raises(ValueError, match="device='tpu' must be auto, cpu or cuda"):
        run_spec(make_spec(tmp_path / "other", images, device="tpu"), silent)


def test_exit_codes_and_the_error_event(zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    env = {"CUDA_VISIBLE_DEVICES": ""}
    wanted = {
        "gpu": (make_spec(tmp_path, images, device="cuda"), EXIT_NO_DEVICE, "NoDevice", "set device=cpu"),
        "bug": (make_spec(tmp_path, images, function="fit_stages:broken"), EXIT_FAILED, "ValueError", "cannot work"),
        "full": (make_spec(tmp_path, images, function="fit_stages:hungry"), EXIT_FAILED, "RuntimeError", "lower batch"),
        "none": (make_spec(tmp_path, ()), EXIT_FAILED, "DataError", "no training images"),
    }
    started = {name: Process(zygote, spec, name, **env) for name, (spec, *_) in wanted.items()}
    for name, (_, code, kind, message) in wanted.items():
        process = started[name]
        assert process.wait() == code
        assert (process.events()[-1]["event"], process.events()[-1]["type"]) == ("error", kind)
        assert message in process.events()[-1]["message"]
    assert 'raise ValueError("a stage that cannot work")' in started["bug"].errors


def test_a_spec_that_is_wrong(tmp_path: Path, images: tuple[ImageTask, ...], zygote: Zygote) -> None:
    process = Process(zygote, make_spec(tmp_path, images))
    process.wait()
    path = tmp_path / "fit.json"
    path.write_bytes(sealed.seal({**sealed.unseal(path.read_bytes()), "seed": "0"}))
    with pytest.raises(DataError, match=r"fit specification .*fit\.json: spec\.seed: expected int, not str '0'"):
        FitSpec.read(path)
    pid = zygote.start("tasks.training.fit_process:main", [str(path)], output=tmp_path / "bad")
    assert zygote.wait(pid) == EXIT_USAGE
    with pytest.raises(DataError, match=r"absent\.json: No such file"):
        FitSpec.read(tmp_path / "absent.json")
    path.write_text(path.read_text().replace('"seed": "0"', '"seed": "1"'))
    with pytest.raises(DataError, match=r"fit\.json: its checksum differs"):
        FitSpec.read(path)


# -- kills -----------------------------------------------------------------------------------------------------------


def test_killed_at_every_point_and_the_same_to_the_byte(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]
) -> None:
    """One chain on one cache: mid checkpoint, in a step, mid publish; the last run finishes."""
    expected = run_spec(make_spec(tmp_path / "undisturbed", images, TinyParams(monitor_every=5)), silent)
    params = TinyParams(monitor_every=5)
    spec = make_spec(tmp_path, images, params, checkpoint_every_s=0.0, loader_workers=1)
    kills = [{"MASKMILL_KILL_AT": "fit.mid_checkpoint:4"}, {"FIT_TEST_DIE": "7:kill"}]
    kills += [{"MASKMILL_KILL_AT": "fit.mid_publish"}]
    left = []
    for number, env in enumerate(kills):
        process = Process(zygote, spec, f"kill-{number}", **env)
        assert process.wait() == -signal.SIGKILL, process.errors
        left.append(work_files(spec)[-2:])
    assert left == [
        ["step-000000002.ckpt", "step-000000003.ckpt"],
        ["step-000000006.ckpt", "step-000000007.ckpt"],
        ["step-000000010.ckpt", "step-000000011.ckpt"],
    ]
    last = Process(zygote, spec, "last")
    assert last.wait() == 0, last.errors
    made = FitStore(tmp_path).published(spec.address, spec.stamp)
    assert made is not None
    assert made.weights.read_bytes() == expected.weights.read_bytes()
    assert made.metrics.read_text() == expected.metrics.read_text()
    assert last.events()[-1] == {**last.events()[-1], "event": "done", "digest": expected.digest}
    assert "what a library prints" in last.errors and "even from C" in last.errors
    folder = FitStore(tmp_path).folder(spec.address, spec.stamp)
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "pub-0001"]


def test_low_precision_through_fabric_resumes_too(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]
) -> None:
    params = TinyParams(precision="bf16", clip_norm=0.5)
    undisturbed = make_spec(tmp_path / "undisturbed", images, params)
    spec = make_spec(tmp_path / "killed", images, params, checkpoint_every_s=0.0)
    killed = Process(zygote, spec, "killed", FIT_TEST_DIE="7:kill")
    whole = Process(zygote, undisturbed)
    assert (killed.wait(), whole.wait()) == (-signal.SIGKILL, 0)
    assert Process(zygote, spec).wait() == 0
    found = [FitStore(Path(one.cache)).published(one.address, one.stamp) for one in (spec, undisturbed)]
    assert found[0] is not None and found[1] is not None and found[0].digest == found[1].digest
    full = run_spec(make_spec(tmp_path / "full", images, TinyParams(clip_norm=0.5)), silent)
    assert full.digest != found[0].digest, "bf16 was to make a difference"
    for name, tensor in load_file(full.weights).items():
        np.testing.assert_allclose(load_file(found[0].weights)[name], tensor, atol=0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_at_once_with_its_loader_workers_and_its_lock(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...], number: signal.Signals
) -> None:
    spec = make_spec(tmp_path, images, TinyParams(iterations=10_000, step_s=0.01), loader_workers=2)
    process = Process(zygote, spec)
    process.until_step(3)
    family = {process.pid, *descendants(process.pid)}
    assert len(family) >= 3, "two loader workers were to be there"
    os.kill(process.pid, number)
    assert gone_within(family, 1.0)
    assert process.wait() == -number
    with FitStore(tmp_path).lock(spec.address, spec.stamp, stop=_AlreadySet()):
        """Free at once."""


class _AlreadySet:
    def is_set(self) -> bool:
        return True


def test_it_dies_with_the_process_that_started_it(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]
) -> None:
    spec = make_spec(tmp_path, images)
    spec.write(tmp_path / "spec.json")
    # The zygote is its parent, this process is not: as if the parent had died before the first act.
    pid = zygote.start(
        "tasks.training.fit_process:main",
        [str(tmp_path / "spec.json"), "--parent", str(os.getpid())],
        output=tmp_path / "o",
    )
    assert zygote.wait(pid) == -signal.SIGKILL


def test_a_second_run_waits_and_finds_it_published(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]
) -> None:
    spec = make_spec(tmp_path, images, TinyParams(step_s=0.05))
    first = Process(zygote, spec, "first")
    first.until_step(1)
    second = Process(zygote, spec, "second")
    second.until(lambda events: any(event["event"] == "waiting" for event in events))
    assert [second.wait(), first.wait()] == [0, 0]
    assert [event["event"] for event in second.events()] == ["waiting", "done"]
    assert second.events()[0]["for"] == f"the same fit by pid {first.pid} on {os.uname().nodename}"
    assert second.events()[-1] == first.events()[-1]
    assert len(FitStore(tmp_path).publications(spec.address, spec.stamp)) == 1


# -- several ranks ---------------------------------------------------------------------------------------------------


def test_two_ranks_learn_what_one_learns(zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    """Without batch norm and dropout, whose statistics and draws are each rank's own, the gradient is the same.

    Also where one rank's images have more decided pixels than the other's.
    """
    params = TinyParams(norm=False, dropout=0.0, batch=4, labelled=True)
    alone = run_spec(make_spec(tmp_path / "alone", images, params), silent)
    spec = make_spec(tmp_path, images, params, devices=2, threads=2, loader_workers=1, checkpoint_every_s=0.0)
    process = Process(zygote, spec)
    assert process.wait(100) == 0, process.errors[-3000:]
    folder = FitStore(tmp_path).folder(spec.address, spec.stamp)
    ranks = [(folder / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1], "both ranks end with equal weights"
    made = FitStore(tmp_path).published(spec.address, spec.stamp)
    assert made is not None and made.number == 1 and made.info["devices"] == 2
    assert [line["step"] for line in process.events() if line["event"] == "log"] == [4, 8, 12], "one rank speaks"
    one, two = load_file(alone.weights), load_file(made.weights)
    start = run_spec(
        make_spec(tmp_path / "start", images, TinyParams(norm=False, dropout=0.0, labelled=True, lr=1e-12)), silent
    )
    for name, begun in load_file(start.weights).items():
        assert np.abs(one[name] - begun).max() > 1e-3, "the test shows nothing if nothing was learnt"
        np.testing.assert_allclose(two[name], one[name], atol=1e-6)


def test_two_ranks_learn_rrm_as_one_does(zygote: Zygote, tmp_path: Path) -> None:
    """Both branches and online mining, on a backbone whose batch norms are frozen: each rank mines its own images."""
    small = {"crop": 32, "batch": 4, "iterations": 3, "scale_range": (1.0, 1.0), "mining_scales": (1.0,)}
    backbone = {"network": "timm:test_resnet.r160_in1k", "weights": "none", "lr": 1e-2}
    params = rrm.RRMParams(mining_threads=1, **backbone, **small)  # type: ignore[arg-type]
    images = []
    for seed in range(4):
        path = tmp_path / f"{seed}.png"
        cv2.imwrite(str(path), painted(seed)[0][:40, :48, ::-1])
        images.append(ImageTask(f"d/{seed}", str(seed), Record(str(seed), str(path), tags=tags_of(seed))))
    made = []
    for name, changes in (("start", {"lr": 1e-9, "iterations": 1}), ("alone", {}), ("two", {})):
        stage = rrm.fit(dataclasses.replace(params, **changes))
        params_type, plain = plain_params(stage.params)
        fields: dict[str, Any] = {"label": "rrm", "function": stage.function, "reads": stage.reads}
        fields |= {"params_type": params_type, "params": plain, "classes": ("disc", "bar")}
        if name == "two":
            spec = make_spec(tmp_path / name, tuple(images), devices=2, threads=2, **fields)
            process = Process(zygote, spec)
            assert process.wait(100) == 0, process.errors[-3000:]
            published = FitStore(tmp_path / name).published(spec.address, spec.stamp)
            assert published is not None
        else:
            published = run_spec(make_spec(tmp_path / name, tuple(images), **fields), silent)
        made.append(load_file(published.weights))
    start, one, two = made
    for part in ("backbone.", "classifier.", "head."):
        names = [name for name in start if name.startswith(part)]
        moved, apart = (max(float(np.abs(a[n] - b[n]).max()) for n in names) for a, b in ((one, start), (one, two)))
        assert moved > 1e-4 and apart < 0.05 * moved, (part, moved, apart)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_two_ranks_and_their_loader_workers_end_with_their_agent(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...], number: signal.Signals
) -> None:
    params = TinyParams(iterations=10_000, step_s=0.01)
    spec = make_spec(tmp_path, images, params, devices=2, loader_workers=1, checkpoint_every_s=0.0)
    process = Process(zygote, spec)
    process.until_step(3)
    family = {process.pid, *descendants(process.pid)}
    assert len(family) >= 5, "an agent, two ranks, two loader workers"
    os.kill(process.pid, number)
    assert gone_within(family, 2.0)
    assert process.wait() != 0
    with FitStore(tmp_path).lock(spec.address, spec.stamp, stop=_AlreadySet()):
        """Free at once."""
    again = Process(zygote, spec, "again")
    again.until_step(1)
    os.kill(again.pid, signal.SIGKILL)
    assert min(e["step"] for e in again.events() if e["event"] == "progress") > 3, "it was to resume"


def as_torchrun_says(rank: int, port: int) -> dict[str, str]:
    """The environment of rank 0 or 1, each alone on its machine."""
    said = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": rank}
    said |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}
    return {name: str(value) for name, value in said.items()}


def test_two_machines_learn_what_two_ranks_of_one_learn(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]
) -> None:
    """gloo on loopback; each process knows the spec alone, and has a folder of its own."""
    params = TinyParams(iterations=4, norm=False, dropout=0.0)
    one = make_spec(tmp_path / "one", images, params, devices=2, threads=2)
    alone = Process(zygote, one)
    assert alone.wait(100) == 0, alone.errors[-3000:]
    spec = make_spec(tmp_path / "two", images, params)  # as many ranks as torchrun says
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [Process(zygote, spec, f"rank{rank}", **as_torchrun_says(rank, port)) for rank in (0, 1)]
    for rank in ranks:
        assert rank.wait(100) == 0, rank.errors[-3000:]
    assert [event["event"] for event in ranks[1].events()] == [], "one rank speaks"
    assert ranks[0].events()[-1]["event"] == "done"
    made = [FitStore(Path(s.cache)).published(s.address, s.stamp) for s in (one, spec)]
    assert made[1] is not None and made[1].info["devices"] == 2
    first, second = (load_file(publication.weights) for publication in made if publication is not None)
    for name, weights in first.items():
        np.testing.assert_array_equal(second[name], weights)
    again = Process(zygote, spec, "again", **as_torchrun_says(0, port))
    assert again.wait() == 0 and [event["event"] for event in again.events()] == ["done"]


def test_a_rank_does_not_wait_for_the_same_fit_elsewhere(
    zygote: Zygote, tmp_path: Path, images: tuple[ImageTask, ...]
) -> None:
    spec = make_spec(tmp_path, images)
    with FitStore(tmp_path).lock(spec.address, spec.stamp):
        rank = Process(zygote, spec, **as_torchrun_says(0, 1))
        assert rank.wait() == EXIT_FAILED
    assert "the same fit is under way" in rank.events()[-1]["message"]


def test_a_file_system_without_locks_is_said_and_the_fit_is_done(
    tmp_path: Path, images: tuple[ImageTask, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("artifacts.cache.locks.fcntl.flock", none)
    events: list[dict[str, Any]] = []
    run_spec(make_spec(tmp_path, images, TinyParams(iterations=1), device="cpu"), events.append)
    (said,) = [event["message"] for event in events if event["event"] == "warning"]
    assert "has no locks" in said and "never let two runs fit the same" in said


# -- GPUs and their locks --------------------------------------------------------------------------------------------


@pytest.fixture
def lock_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKMILL_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, ["GPU-aa", "GPU-ab", "GPU-b"]),
        ("", []),
        ("-1", []),
        ("2,0", ["GPU-b", "GPU-aa"]),
        ("GPU-b", ["GPU-b"]),
        ("GPU-a", []),
        ("1,7,0", ["GPU-ab"]),
        ("MIG-x", ["MIG-x"]),
    ],
)
def test_visible_devices_are_read_as_the_driver_reads_them(visible: str | None, chosen: list[str]) -> None:
    assert gpus._chosen({"0": "GPU-aa", "1": "GPU-ab", "2": "GPU-b"}, visible) == chosen


def test_a_free_gpu_is_taken_and_a_busy_one_waited_for(lock_folder: Path) -> None:
    holders: list[str] = []
    with gpus.take_gpus(["a", "b"], 1, stop=None, on_wait=holders.append) as first:
        with gpus.take_gpus(["a", "b"], 1, stop=None, on_wait=holders.append) as second:
            assert (first, second) == (["a"], ["b"])
            assert not holders
        with pytest.raises(locks.LockAborted):
            gpus.take_gpus(["a", "b"], 2, stop=_AlreadySet(), on_wait=holders.append).__enter__()
        assert holders == [f"GPU a, held by pid {os.getpid()} on {os.uname().nodename}"]
        with locks.hold(locks.gpu_lock_path("b"), wait=False):
            """A fit that waits for two holds none."""
    with pytest.raises(NoDevice, match="devices=3 GPUs were requested, 2 are visible"):
        gpus.take_gpus(["a", "b"], 3, stop=None, on_wait=holders.append).__enter__()


def test_main_needs_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == EXIT_USAGE
