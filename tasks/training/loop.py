"""The one training loop of all methods: resumable to the bit, on one device or several.

Nothing in it depends on where a run was interrupted. The state of a fit is its weights, optimizers, gradient scaler
and iteration number; the schedule, the order of the samples and every random number are functions of the iteration
(:mod:`tasks.training.rng`), so generators of torch, numpy, Python, CUDA and the loader workers are restored by
counting.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from artifacts.records import DataError, Skip
from tasks.training import rng
from tasks.training.context import FitContext
from tasks.training.fabric import Precision, scaler_of
from tasks.training.sampling import Collate, Sample, SampleData, batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batch = dict[str, Any]
Nets = Mapping[str, Any]
"""Name -> module, wrapped for the device (and for several ranks): call these, not the modules themselves."""
Step = Callable[[Nets, Batch, int], Mapping[str, Tensor]]
Schedule = Callable[[int], float]
Monitor = Callable[[], Mapping[str, float]]

log = logging.getLogger("maskmill")


class Diverged(ArithmeticError):
    """The loss is NaN or infinite."""

    @classmethod
    def at(cls, label: str, what: str, index: int) -> Diverged:
        """The error that names the fit, ``what`` is wrong, the step (0-based ``index``) and what to change."""
        return cls(
            f"{label}: {what} at step {index + 1}; lower the learning rate, clip gradients, or use precision bf16 or 32"
            " instead of fp16. The last checkpoint is from before"
        )


def poly(total: int, power: float = 0.9) -> Schedule:
    """DeepLab's learning rate factor ``(1 - step / total) ** power`` (Chen et al., DeepLab v2, Sec. 4.1)."""
    return lambda step: (1.0 - min(step, total) / total) ** power


def constant(step: int) -> float:
    """Factor 1 at every step."""
    return 1.0


def train_loop(
    context: FitContext,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    sample: Sample,
    step: Step,
    iterations: int,
    batch_size: int,
    data: SampleData | None = None,
    schedule: Schedule = constant,
    precision: Precision = "32",
    monitor: Monitor | None = None,
    monitor_every: int = 0,
    clip_norm: float | None = None,
    log_every: int = 20,
    compile: bool = False,
    collate: Collate | None = None,
) -> dict[str, Tensor]:
    """Train ``modules`` for ``iterations`` steps, from the last checkpoint if there is one.

    Args:
        context: the fit; gives data order, seed, device, ranks, checkpoints, log.
        modules: name -> network, with the training flags that it is to have (frozen BN in eval, say).
        optimizers: name -> optimizer over parameters of ``modules``, with the learning rates of factor 1.
        sample: ``(index, epoch, generator) -> {name: Tensor}``, one sample of member ``index`` of ``data``;
            runs in loader workers. The numpy generator, and torch's, numpy's and Python's global ones, are
            seeded by (seed, epoch, image id). It may raise ``SkipImage``.
        step: ``(nets, batch, step) -> {"loss": scalar, ...}``. The batch holds this rank's part of the global batch,
            on the device. ``"loss"`` is backpropagated, everything is logged. Averaging over ranks is by gradient:
            the loss should be a mean over the batch (over labelled pixels: :func:`models.losses.rank_share`).
        iterations: steps in all.
        batch_size: samples a step over all ranks.
        data: what the samples are made of, ``context.train``'s images by default; a member need not be an image.
        schedule: step (0-based) -> factor of all learning rates.
        precision: ``32``, ``bf16``, ``fp16`` (GPU; one optimizer).
        monitor: called after every ``monitor_every`` steps and at the end, on the main rank, with the modules in eval
            mode, without gradients; its numbers are logged; they choose nothing, and no generator is changed.
            It calls the modules themselves, not ``nets``.
        monitor_every: 0 for only at the end.
        clip_norm: L2 norm to which each optimizer's gradients are clipped.
        log_every: steps between two lines of ``metrics.jsonl`` (means over the steps between).
        compile: ``torch.compile`` the networks.
        collate: list of samples -> batch, if they cannot simply be stacked.

    Returns:
        The weights on the CPU, ready to be published: a network's own tensor names if there is one network,
        else with ``<name>.`` before them.

    Raises:
        DataError: no usable training image.
        Diverged: the loss is NaN or infinite; names the step.
    """
    _check(context, optimizers, iterations, batch_size, precision, log_every)
    fabric = context.fabric(precision)
    nets = {name: fabric.setup_module(_compiled(net) if compile else net) for name, net in modules.items()}
    wrapped: dict[str, Any] = {name: fabric.setup_optimizers(optimizer) for name, optimizer in optimizers.items()}
    state = _State(context, fabric, modules, optimizers)
    start = state.resume()
    if start and context.is_main:
        log.info("%s: resumes after step %d of %d", context.label, start, iterations)
    observe = _Observer(context, modules, monitor, monitor_every, iterations)
    window = _Window(context, fabric, log_every, state.window)
    network = next(iter(nets.values()))
    members = context.train if data is None else data
    loader = batches(context, fabric, members, sample, start, iterations, batch_size, collate)
    with contextlib.closing(loader):
        for done, batch in enumerate(loader, start + 1):
            context.check_stop()
            index = done - 1
            state.set_rates(schedule(index))
            rng.seed_all(context.seed, "step", index, fabric.global_rank)
            losses = step(nets, batch, index)
            fabric.backward(_loss(losses))
            for name, optimizer in wrapped.items():
                if clip_norm is not None:
                    fabric.clip_gradients(network, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
                optimizer.step()
                optimizers[name].zero_grad(set_to_none=True)
            window.add(index, losses)
            if done % log_every == 0 or done == iterations:
                window.log(done, state.rate)
            observe(done)
            if state.due() and done < iterations:
                window.collect()
                with context.insured("a checkpoint was not written"):
                    state.save(done, window.totals())
            context.progress(done, iterations, **window.last)
    context.iterations = iterations
    return published_tensors(modules)


def published_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copies of all parameters and buffers on the CPU, each with memory of its own."""
    prefixes = {name: f"{name}." if len(modules) > 1 else "" for name in modules}
    return {
        prefixes[name] + key: tensor.detach().cpu().contiguous().clone()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def _check(
    context: FitContext,
    optimizers: Mapping[str, Optimizer],
    iterations: int,
    batch_size: int,
    precision: str,
    log_every: int,
) -> None:
    ranks = context.hardware.devices
    if iterations < 1 or batch_size < 1 or log_every < 1:
        raise ValueError(
            f"iterations={iterations}, batch_size={batch_size} and log_every={log_every} must all be at least 1"
        )
    if batch_size % ranks:
        raise ValueError(
            f"a batch of {batch_size} cannot be split evenly over {ranks} devices; change batch or devices"
        )
    if precision == "fp16" and len(optimizers) > 1:
        raise ValueError("precision='fp16' scales the gradients of one optimizer; use bf16 with several")


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network)  # type: ignore[return-value, unused-ignore]


def _loss(losses: Mapping[str, Tensor]) -> Tensor:
    if "loss" not in losses:
        raise ValueError(f"the step gave {sorted(losses)}, but no 'loss' to be backpropagated")
    return losses["loss"]


class _State:
    """What a checkpoint holds."""

    def __init__(
        self,
        context: FitContext,
        fabric: Fabric,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
    ) -> None:
        self._context = context
        self._fabric = fabric
        self._modules = modules
        self._optimizers = optimizers
        self._rates = {name: [group["lr"] for group in opt.param_groups] for name, opt in optimizers.items()}
        self._started = self._saved = time.monotonic()
        self._earlier_s = 0.0
        self.window: dict[str, float] = {}
        """Sums of the losses since the last logged line."""

    @property
    def rate(self) -> float:
        """Learning rate of the first group."""
        return float(next(iter(self._optimizers.values())).param_groups[0]["lr"])

    def set_rates(self, factor: float) -> None:
        """Learning rates = those of factor 1, times ``factor``."""
        for name, optimizer in self._optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor

    def due(self) -> bool:
        """Whether it is time for a checkpoint (main rank only; the others have the same weights)."""
        elapsed = time.monotonic() - self._saved
        return self._context.is_main and elapsed >= self._context.checkpoint_every_s

    def save(self, step: int, window: Mapping[str, float]) -> None:
        """Write the checkpoint of ``step`` iterations."""
        scaler = scaler_of(self._fabric)
        content = {
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "seconds": self._seconds(),
            "skips": [(s.key, s.path, s.reason, s.permanent, s.stage) for s in self._context.skips],
            "window": dict(window),
        }
        file = io.BytesIO()
        torch.save(content, file)
        self._saved = time.monotonic()
        self._context.work.save(step, file.getvalue())

    def resume(self) -> int:
        """Take up the newest whole checkpoint; returns the iterations done (0: from the start)."""
        found = self._context.work.load()
        step = 0
        if found is not None:
            step, payload = found
            try:
                self._restore(torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True))
            except (RuntimeError, KeyError, ValueError, TypeError) as error:
                raise DataError(
                    f"{self._context.folder}: the checkpoint of step {step} is of another network or version "
                    f"({str(error).splitlines()[0]}); delete that folder to fit from the start"
                ) from error
        self._fabric.barrier()  # nobody writes before all have read
        if self._context.is_main:
            self._context.work.cut_metrics(step)
        self._context.seconds = self._earlier_s
        return step

    def _restore(self, content: Mapping[str, Any]) -> None:
        for name, module in self._modules.items():
            module.load_state_dict(content["modules"][name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
        if (scaler := scaler_of(self._fabric)) is not None:
            scaler.load_state_dict(content["scaler"])
        self._earlier_s = content["seconds"]
        self.window = content["window"]
        for skip in content["skips"]:
            self._context.skip(Skip(*skip))

    def _seconds(self) -> float:
        return self._earlier_s + time.monotonic() - self._started


class _Window:
    """Losses since the last line of the log. On a GPU they are read in bulk, so that no step waits for it."""

    def __init__(self, context: FitContext, fabric: Fabric, every: int, sums: Mapping[str, float]) -> None:
        self._context = context
        self._fabric = fabric
        self._at_once = fabric.device.type == "cpu"
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._sums = dict(sums)
        self._every = every
        self.last: dict[str, float] = {}
        """The newest known loss, for the progress bar."""

    def add(self, index: int, losses: Mapping[str, Tensor]) -> None:
        """Remember the losses of step ``index``."""
        self._pending.append((index, {name: value.detach().float() for name, value in losses.items()}))
        if self._at_once or len(self._pending) >= self._every:
            self.collect()

    def collect(self) -> None:
        """Add the pending losses to the sums. Raises :class:`Diverged` for the first that is not finite."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        values = torch.stack([torch.stack([losses[name] for name in names]) for _, losses in self._pending]).tolist()
        for (index, _), row in zip(self._pending, values, strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise Diverged.at(self._context.label, f"{name} is {value}", index)
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._sums["_steps"] = self._sums.get("_steps", 0.0) + 1
        self.last = {"loss": values[-1][names.index("loss")]}
        self._pending.clear()

    def totals(self) -> dict[str, float]:
        """The sums, for a checkpoint."""
        return dict(self._sums)

    def log(self, done: int, rate: float) -> None:
        """Write the means over steps and ranks, and reset the sums. Called by every rank at the same steps."""
        self.collect()
        steps = self._sums.pop("_steps")
        names = sorted(self._sums)
        means = torch.tensor([self._sums[name] / steps for name in names], device=self._fabric.device)
        if self._fabric.world_size > 1:
            means = cast(Tensor, self._fabric.all_reduce(means, reduce_op="mean"))
        self._context.log(done, **dict(zip(names, means.tolist(), strict=True)), lr=rate)
        self._sums.clear()


class _Observer:
    """Calls the monitor without any effect on training."""

    def __init__(
        self,
        context: FitContext,
        modules: Mapping[str, nn.Module],
        monitor: Monitor | None,
        every: int,
        iterations: int,
    ) -> None:
        self._context = context
        self._modules = modules
        self._monitor = monitor if context.is_main else None
        self._every = every or iterations
        self._iterations = iterations

    def __call__(self, done: int) -> None:
        if self._monitor is None or (done % self._every and done != self._iterations):
            return
        with rng.preserved(), evaluating(self._modules), torch.no_grad():
            values = self._monitor()
        self._context.log(done, **dict(values))


@contextlib.contextmanager
def evaluating(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """All modules in eval mode; afterwards each part has the flag that it had."""
    flags = {part: part.training for module in modules.values() for part in module.modules()}
    for module in modules.values():
        module.eval()
    try:
        yield
    finally:
        for part, training in flags.items():
            part.training = training
