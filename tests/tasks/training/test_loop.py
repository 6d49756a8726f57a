"""The training loop: what it computes, and that nothing but the spec decides it."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import multiprocessing
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from safetensors.numpy import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parents[2] / "helpers"
from fit_stages import DIE, Died, TinyParams, make_spec, write_images  # noqa: E402

from artifacts.cache.fit_store import FitStore, Publication  # noqa: E402
from artifacts.cache.fit_work import Work, read_metrics  # noqa: E402
from artifacts.images import read_image_rgb  # noqa: E402
from artifacts.records import DataError, Record  # noqa: E402
from tasks.engine.children import Stopped  # noqa: E402
from tasks.engine.fit_spec import FitSpec  # noqa: E402
from tasks.engine.image_task import ImageTask  # noqa: E402
from tasks.stage import SkipImage  # noqa: E402
from tasks.training import rng  # noqa: E402
from tasks.training.context import FitContext, Hardware  # noqa: E402
from tasks.training.fit_process import run_spec  # noqa: E402
from tasks.training.loop import Diverged, evaluating, poly, train_loop  # noqa: E402
from tasks.training.sampling import batches  # noqa: E402

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageTask, ...]:
    return write_images(tmp_path_factory.mktemp("images"))


def run(spec: FitSpec, events: Events | None = None, stop: threading.Event | None = None) -> Publication:
    return run_spec(spec, (events if events is not None else []).append, stop)


def work_of(spec: FitSpec) -> Work:
    return FitStore(Path(spec.cache)).work(spec.address, spec.stamp)


def context_of(spec: FitSpec, events: Events | None = None, **hardware: Any) -> FitContext:
    emit = (events if events is not None else []).append
    return FitContext(spec, work=work_of(spec), hardware=Hardware(**hardware), emit=emit)


# -- what it computes ------------------------------------------------------------------------------------------------


def test_poly_by_hand() -> None:
    factor = poly(100)
    assert [factor(0), factor(50), factor(99), factor(100), factor(101)] == pytest.approx(
        [1.0, 0.5**0.9, 0.01**0.9, 0.0, 0.0]
    )
    assert poly(4, 2.0)(1) == pytest.approx(0.5625)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_against_a_loop_written_out_in_numpy(tmp_path: Path, clip_norm: float | None) -> None:
    """Linear regression by SGD with momentum and poly rates, 2 epochs and a bit; order and gradients by hand."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(5, 2)).astype(np.float32), generator.normal(size=5).astype(np.float32)
    members = tuple(ImageTask(f"d/{i}", "x", Record(str(i), "none")) for i in range(5))
    context = context_of(make_spec(tmp_path, members, seed=3))
    net = nn.Linear(2, 1, bias=False)
    nn.init.constant_(net.weight, 0.5)
    tensors = train_loop(
        context,
        modules={"net": net},
        optimizers={"net": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)},
        sample=lambda index, epoch, _: {"x": torch.from_numpy(x[index]), "y": torch.tensor(y[index])},
        step=lambda nets, batch, _: {"loss": ((nets["net"](batch["x"])[:, 0] - batch["y"]) ** 2).mean()},
        iterations=6,
        batch_size=2,
        schedule=poly(6),
        clip_norm=clip_norm,
        log_every=3,
    )
    weight, velocity, losses = np.full(2, 0.5), np.zeros(2), []
    for step in range(6):
        chosen = [int(rng.permutation(3, p // 5, 5)[p % 5]) for p in (2 * step, 2 * step + 1)]
        residual = x[chosen] @ weight - y[chosen]
        losses.append(float((residual**2).mean()))
        gradient = 2 * residual @ x[chosen] / 2
        if clip_norm is not None:
            gradient *= min(1.0, clip_norm / np.linalg.norm(gradient))
        velocity = 0.9 * velocity + gradient
        weight = weight - 0.1 * (1 - step / 6) ** 0.9 * velocity
    assert tensors["weight"].numpy()[0] == pytest.approx(weight, abs=1e-5)
    lines = read_metrics(context.work.metrics)
    assert [line["step"] for line in lines] == [3, 6]
    assert [line["loss"] for line in lines] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-5)
    assert [line["lr"] for line in lines] == pytest.approx([0.1 * (1 - 2 / 6) ** 0.9, 0.1 * (1 - 5 / 6) ** 0.9])


def test_a_member_need_not_be_an_image(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    """Three of each image, say: an epoch has them all, and a skip names the image that it came from."""
    context = context_of(make_spec(tmp_path, images[:2]))
    before, seen = context.train, []

    class Threes:
        def __len__(self) -> int:
            return 6

        def key(self, index: int) -> str:
            return before.key(index // 3)

        def record(self, index: int) -> Record:
            return before.record(index // 3)

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Tensor]:
        if index == 5:
            raise SkipImage("declined")
        seen.append(index)
        return {"x": torch.ones(1)}

    net = nn.Linear(1, 1)
    train_loop(
        context,
        modules={"net": net},
        optimizers={"net": torch.optim.SGD(net.parameters(), lr=0.1)},
        sample=sample,
        step=lambda nets, batch, _: {"loss": nets["net"](batch["x"]).mean()},
        iterations=3,
        batch_size=2,
        data=Threes(),
    )
    assert set(seen) == {0, 1, 2, 3, 4} and len(seen) == 6, "another takes the place of what was declined"
    assert [(skip.key, skip.path) for skip in context.skips] == [("d/1", images[1].record.image)]
    assert context.train is before


def test_several_networks_are_name_prefixes(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    nets = {"generator": nn.Linear(1, 1), "critic": nn.Linear(1, 1)}
    tensors = train_loop(
        context_of(make_spec(tmp_path, images)),
        modules=nets,
        optimizers={name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in nets.items()},
        sample=lambda index, epoch, _: {"x": torch.ones(1)},
        step=lambda nets, batch, _: {"loss": nets["critic"](nets["generator"](batch["x"])).mean()},
        iterations=2,
        batch_size=2,
    )
    assert sorted(tensors) == ["critic.bias", "critic.weight", "generator.bias", "generator.weight"]
    assert all(torch.equal(tensors[f"{name}.weight"], net.weight) for name, net in nets.items())


def test_a_flag_of_a_frozen_part_survives_the_monitor() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
    with evaluating({"net": net}):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == [True, False, True]


# -- nothing but the spec decides ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: tuple[ImageTask, ...]) -> Callable[..., Publication]:
    """Publications of undisturbed fits, one per params."""
    done: dict[TinyParams, Publication] = {}

    def get(params: TinyParams) -> Publication:
        if params not in done:
            done[params] = run(make_spec(tmp_path_factory.mktemp("cache"), images, params, checkpoint_every_s=1e9))
        return done[params]

    return get


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("step", [1, 6, 11])
def test_after_a_death_the_same_weights_and_the_same_curve(
    tmp_path: Path,
    images: tuple[ImageTask, ...],
    undisturbed: Callable[..., Publication],
    monkeypatch: pytest.MonkeyPatch,
    optimizer: Any,
    step: int,
) -> None:
    params = TinyParams(optimizer=optimizer, monitor_every=5)
    expected = undisturbed(params)
    spec = make_spec(tmp_path, images, params, checkpoint_every_s=0.0)
    monkeypatch.setenv(DIE, f"{step}:raise")
    with pytest.raises(Died):
        run(spec)
    assert len(work_of(spec).checkpoints()) == min(step, 2), "it was to resume"
    monkeypatch.delenv(DIE)
    events: Events = []
    made = run(spec, events)
    assert [e["step"] for e in events if e["event"] == "progress"][:1] == [step + 1]
    assert made.weights.read_bytes() == expected.weights.read_bytes()
    assert made.metrics.read_text() == expected.metrics.read_text()


class _Scaling(Fabric):
    """A CPU with a gradient scaler, as Fabric keeps one for a GPU."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
        super().__init__(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", self.scaler)])
        self.launch()


def test_the_gradient_scaler_resumes(
    tmp_path: Path, images: tuple[ImageTask, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fabrics: list[_Scaling] = []
    monkeypatch.setattr("tasks.training.fabric.make_fabric", lambda *_, **__: fabrics.append(_Scaling()) or fabrics[-1])
    expected = run(make_spec(tmp_path / "undisturbed", images))
    spec = make_spec(tmp_path, images, checkpoint_every_s=0.0)
    monkeypatch.setenv(DIE, "7:raise")
    with pytest.raises(Died):
        run(spec)
    monkeypatch.delenv(DIE)
    assert run(spec).weights.read_bytes() == expected.weights.read_bytes()
    states = [fabric.scaler.state_dict() for fabric in fabrics]
    assert states[0] == states[2] != states[1]
    assert states[0]["scale"] == 2.0**12, "twelve steps, grown after five and ten"


def test_resuming_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path,
    images: tuple[ImageTask, ...],
    undisturbed: Callable[..., Publication],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = TinyParams(log_every=3)
    spec = make_spec(tmp_path, images, params, checkpoint_every_s=0.0)
    monkeypatch.setenv(DIE, "9:raise")
    with pytest.raises(Died):
        run(spec)
    monkeypatch.delenv(DIE)
    newest = work_of(spec).checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert [line["step"] for line in read_metrics(work_of(spec).metrics)] == [3, 6, 9], "beyond the checkpoint of 8"
    made = run(spec)
    assert made.weights.read_bytes() == undisturbed(params).weights.read_bytes()
    assert made.metrics.read_text() == undisturbed(params).metrics.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_nothing(
    tmp_path: Path, images: tuple[ImageTask, ...], undisturbed: Callable[..., Publication], workers: int
) -> None:
    made = run(make_spec(tmp_path, images, TinyParams(), loader_workers=workers))
    assert made.weights.read_bytes() == undisturbed(TinyParams()).weights.read_bytes()
    assert not multiprocessing.active_children()


def test_the_monitor_changes_nothing(images: tuple[ImageTask, ...], undisturbed: Callable[..., Publication]) -> None:
    seen = undisturbed(TinyParams(monitor_every=5))
    assert [line["step"] for line in read_metrics(seen.metrics) if "val" in line] == [5, 10, 12]
    assert seen.weights.read_bytes() == undisturbed(TinyParams()).weights.read_bytes()


def test_a_seed_changes_everything(
    tmp_path: Path, images: tuple[ImageTask, ...], undisturbed: Callable[..., Publication]
) -> None:
    made = run(make_spec(tmp_path, images, TinyParams(), seed=1))
    assert made.digest != undisturbed(TinyParams()).digest


def test_the_callers_generators_are_left_alone(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(2).tolist(), np.random.random(2).tolist(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    run(make_spec(tmp_path, images, TinyParams(iterations=2, monitor_every=1)))
    assert (torch.rand(2).tolist(), np.random.random(2).tolist(), random.random()) == expected


class _Rank:
    device = torch.device("cpu")

    def __init__(self, rank: int, world: int) -> None:
        self.global_rank, self.world_size = rank, world


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_very_same_batches(tmp_path: Path, images: tuple[ImageTask, ...], world: int) -> None:
    context = context_of(make_spec(tmp_path, images))

    def draw(rank: int, world: int) -> Tensor:
        def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Tensor]:
            return {"x": torch.tensor([index, epoch, generator.random()])}

        fabric: Any = _Rank(rank, world)
        return torch.stack([batch["x"] for batch in batches(context, fabric, context.train, sample, 3, 8, 8, None)])

    whole = draw(0, 1)
    assert torch.equal(torch.cat([draw(rank, world) for rank in range(world)], dim=1), whole)
    assert len(set(whole[:, :, 2].flatten().tolist())) == 40, "each image of each epoch has random numbers of its own"
    epochs = whole[:, :, 1].flatten()
    for epoch in (4, 5, 6, 7):  # positions 24..64 of epochs of 7
        assert sorted(whole[:, :, 0].flatten()[epochs == epoch].tolist()) == [0, 1, 2, 3, 4, 5, 6]


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_a_recorded_skip_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    images = write_images(tmp_path / "images")
    path = Path(images[2].record.image)
    path.write_text("not an image")
    events: Events = []
    made = run(make_spec(tmp_path, images, loader_workers=workers), events)
    skips = [event for event in events if event["event"] == "skip"]
    assert [(skip["key"], skip["path"]) for skip in skips] == [("d/2", str(path))], "once, not every epoch"
    assert [skip[:2] for skip in made.info["skips"]] == [["d/2", str(path)]]
    again = make_spec(tmp_path / "again", images, checkpoint_every_s=0.0)
    monkeypatch.setenv(DIE, "8:raise")
    with pytest.raises(Died):
        run(again)
    monkeypatch.delenv(DIE)
    resumed = run(again)
    assert resumed.weights.read_bytes() == made.weights.read_bytes(), "the replacement is the same ever"
    assert resumed.info["skips"] == made.info["skips"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_fit_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Left out, it would be missing for ever from what is published under the stamp of the whole set."""
    images = write_images(tmp_path / "images")
    expected = run(make_spec(tmp_path / "undisturbed", images))
    spec = make_spec(tmp_path, images, checkpoint_every_s=0.0, loader_workers=workers)
    monkeypatch.setattr("tasks.training.sampling.RETRY_S", 0.0)
    sick = _Sick(images[2].record.image, tmp_path / "reads", first=2, last=10**9)
    monkeypatch.setattr("tasks.engine.image_task.read_image_rgb", sick)
    with pytest.raises(DataError, match=r"tiny: d/2 cannot be read \(Input/output error: .*2\.png; tried 3 times\)"):
        run(spec)
    assert FitStore(tmp_path).published(spec.address, spec.stamp) is None
    assert work_of(spec).checkpoints(), "it was to resume"
    # A hiccup that costs two tries costs nothing else.
    monkeypatch.setattr("tasks.engine.image_task.read_image_rgb", _Sick(sick.path, tmp_path / "more", first=1, last=2))
    made = run(spec)
    assert (made.digest, made.info["skips"]) == (expected.digest, [])


class _Sick:
    """Reads images; the ``first`` to ``last`` read of one of them (from 1, over all processes) is an I/O error."""

    def __init__(self, path: str, count: Path, first: int, last: int) -> None:
        self.path, self.count, self.first, self.last = path, count, first, last

    def __call__(self, path: Path) -> Any:
        if str(path) == self.path:
            with self.count.open("ab") as file:
                file.write(b".")
            if self.first <= self.count.stat().st_size <= self.last:
                raise OSError(errno.EIO, "Input/output error", str(path))
        return read_image_rgb(path)


def test_a_sample_function_may_decline_an_image(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    made = run(make_spec(tmp_path, images, TinyParams(refuse=("d/1", "d/3"))))
    assert sorted(skip[0] for skip in made.info["skips"]) == ["d/1", "d/3"]
    assert {skip[2] for skip in made.info["skips"]} == {"refused"}


@pytest.mark.parametrize("workers", [0, 1])
def test_all_images_broken(tmp_path: Path, workers: int) -> None:
    images = write_images(tmp_path / "images", 3)
    for job in images:
        Path(job.record.image).write_bytes(b"")
    spec = make_spec(tmp_path, images, loader_workers=workers)
    with pytest.raises(DataError, match=r"^tiny: no training images: all 3 are broken; the first: .*png"):
        run(spec)
    assert FitStore(tmp_path).published(spec.address, spec.stamp) is None


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny: no training images: the split is empty.*check data\.train"):
        run(make_spec(tmp_path, ()))


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_loss_that_is_no_number_names_the_step(tmp_path: Path, images: tuple[ImageTask, ...], kind: str) -> None:
    context = context_of(make_spec(tmp_path, images, checkpoint_every_s=0.0))
    net = nn.Linear(1, 1)
    with pytest.raises(Diverged, match=f"tiny: loss is -?{kind} at step 4; lower the learning rate"):
        train_loop(
            context,
            modules={"net": net},
            optimizers={"net": torch.optim.SGD(net.parameters(), lr=0.1)},
            sample=lambda index, epoch, _: {"x": torch.ones(1)},
            step=lambda nets, batch, i: {"loss": nets["net"](batch["x"]).mean() * (float(kind) if i == 3 else 1)},
            iterations=9,
            batch_size=1,
        )
    found = context.work.load()
    assert found is not None and found[0] == 3, "no checkpoint of weights that are no numbers"


def test_a_full_disk_costs_checkpoints_and_not_the_fit(
    tmp_path: Path,
    images: tuple[ImageTask, ...],
    undisturbed: Callable[..., Publication],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Work, "save", full)
    events: Events = []
    made = run(make_spec(tmp_path, images, checkpoint_every_s=0.0), events)
    assert made.digest == undisturbed(TinyParams()).digest
    work = FitStore(tmp_path).folder(made.address, made.stamp) / "work"
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert [text for text in warnings if "checkpoint" in text] == [
        f"a checkpoint was not written (No space left on device: {work}); the fit goes on"
    ]


def test_a_checkpoint_of_another_network_says_what_to_delete(
    tmp_path: Path, images: tuple[ImageTask, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tmp_path, images, checkpoint_every_s=0.0)
    monkeypatch.setenv(DIE, "3:raise")
    with pytest.raises(Died):
        run(spec)
    monkeypatch.delenv(DIE)
    other = dataclasses.replace(spec, params={**spec.params, "norm": False})
    with pytest.raises(DataError, match=r"work: the checkpoint of step 3 is of another network.*delete that folder"):
        run(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3, "devices": 2}, "batch of 3 cannot be split evenly over 2 devices"),
        ({"iterations": 0}, "iterations=0"),
        ({"precision": "fp16"}, "fp16' needs a GPU"),
        ({"precision": "half"}, "precision 'half' must be one of 32, bf16, fp16"),
    ],
)
def test_what_cannot_work_is_said_first(
    tmp_path: Path, images: tuple[ImageTask, ...], changes: dict[str, Any], message: str
) -> None:
    context = context_of(make_spec(tmp_path, images), devices=changes.pop("devices", 1))
    net = nn.Linear(1, 1)
    values: dict[str, Any] = {"iterations": 1, "batch_size": 1, **changes}
    with pytest.raises(ValueError, match=message):
        train_loop(
            context,
            modules={"net": net},
            optimizers={"net": torch.optim.SGD(net.parameters(), lr=0.1)},
            sample=lambda *_: {},
            step=lambda *_: {},
            **values,
        )


def test_a_step_without_a_loss(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"the step gave \['los'\], but no 'loss'"):
        train_loop(
            context_of(make_spec(tmp_path, images)),
            modules={"net": net},
            optimizers={"net": torch.optim.SGD(net.parameters(), lr=0.1)},
            sample=lambda *_: {"x": torch.ones(1)},
            step=lambda nets, batch, _: {"los": nets["net"](batch["x"]).mean()},
            iterations=1,
            batch_size=1,
        )


def test_inline_fits_of_two_threads_do_not_mix(
    tmp_path: Path, images: tuple[ImageTask, ...], undisturbed: Callable[..., Publication]
) -> None:
    params = TinyParams(step_s=0.002)
    specs = [make_spec(tmp_path / name, images, params) for name in "ab"]
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(run, specs))
    assert [one.digest for one in made] == [undisturbed(TinyParams()).digest] * 2


def test_stop_ends_an_inline_fit_between_steps(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    stop = threading.Event()

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] >= 3:
            stop.set()

    spec = make_spec(tmp_path, images, progress_every_s=0.0, checkpoint_every_s=0.0)
    with pytest.raises(Stopped, match="tiny was stopped"):
        run_spec(spec, emit, stop)
    assert work_of(spec).checkpoints()[-1].name == "step-000000003.ckpt"


# -- random numbers --------------------------------------------------------------------------------------------------


def test_seeds_are_the_same_on_every_machine_and_depend_on_every_name() -> None:
    assert rng.seed_of(0, "sample", 3, "d/1") == 1048942771993869322
    assert len({rng.seed_of(*names) for names in ((1, 2), (12,), ("1", 2), (1, "2"), ("1\0int:2",))}) == 5


def test_a_samples_generators_leave_no_trace() -> None:
    rng.seed_all("test")
    expected = torch.rand(()).item(), np.random.random(), random.random()
    rng.seed_all("test")
    drawn = []
    for _ in range(2):
        with rng.sample_generators(1, "k") as generator:
            drawn.append((generator.random(), torch.rand(()).item(), np.random.random(), random.random()))
    assert drawn[0] == drawn[1]
    assert (torch.rand(()).item(), np.random.random(), random.random()) == expected


def test_progress_and_log_events(tmp_path: Path, images: tuple[ImageTask, ...]) -> None:
    events: Events = []
    made = run(make_spec(tmp_path, images, TinyParams(log_every=5), progress_every_s=0.0), events)
    assert [(e["step"], e["total"]) for e in events if e["event"] == "progress"] == [(i, 12) for i in range(1, 13)]
    logs = [{k: v for k, v in e.items() if k != "event"} for e in events if e["event"] == "log"]
    assert [line["step"] for line in logs] == [5, 10, 12]
    assert all(math.isfinite(line["loss"]) and {"extra", "lr"} < set(line) for line in logs)
    assert logs == [json.loads(line) for line in made.metrics.read_text().splitlines()]
    assert events[-1]["event"] == "done"
    assert set(load_file(events[-1]["path"])) == {
        *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"),
        *("4.weight", "4.bias"),
    }
    assert dataclasses.asdict(TinyParams(log_every=5)) | {"refuse": []} == made.info["params"]
