"""RRM's fit, and what its trained head makes of an image. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models import rrm
from models.losses import UNDECIDED
from models.normalise import IMAGENET, Normalisation
from models.rrm import LossWeights
from tasks.cam.network import images_of, tagged_sampler, warn_of_crops, warn_of_tags
from tasks.deeplab import inference
from tasks.deeplab.inference import val_miou
from tasks.deeplab.stages import PredictParams
from tasks.rrm.mining import Miner, threads_of
from tasks.rrm.stages import RRMParams
from tasks.stage import Arrays, Item, SkipImage, by_size
from tasks.training.context import FitContext
from tasks.training.loop import Batch, Diverged, Nets, poly, train_loop
from tasks.training.networks import fill_rgb, initial_network
from tasks.training.optim import make_optimizer


def train(context: FitContext) -> dict[str, Tensor]:
    """Learn both branches from tags; returns the network's tensors, its normalisation among them.

    Logged beside the losses: ``labelled``, the share of the picture's pixels that have a reliable label.
    """
    params: RRMParams = context.params

    def build(normalisation: Normalisation) -> rrm.RRM:
        classes = len(context.classes)
        return rrm.build(params.network, classes, normalisation=normalisation, **params.backbone_options)

    network = initial_network(context, params, build, key="params.rrm.weights")
    if context.init is None:  # else its classifier has said so
        warn_of_tags(context)
    warn_of_crops(context, params)
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    network.weights = loss_weights(params)
    iterations = params.total_iterations(len(context.train))
    warm = math.ceil(params.warmup_epochs * len(context.train) / params.batch)
    online = params.mining == "online"
    watch = RegionWatch(context)

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        if index < warm:
            return warm_up(nets["rrm"](images_of(batch, params), batch["inside"]), batch, network)
        pending = miner.start(batch) if online else None
        output = nets["rrm"](images_of(batch, params), batch["inside"])
        check_finite(output, context.label, index)  # before CRF and energy refuse numbers that are none
        if pending is not None:
            batch["labels"] = pending()
        inside = batch["inside"]
        known = ((batch["labels"] != UNDECIDED) & inside).sum() / inside.sum().clamp(min=1)
        watch.add(index, known)
        return {**network.losses(output, batch), "labelled": known}

    with Miner(network, params.reliable, params.mining_scales, params.mining_threads, params.precision) as miner:
        return train_loop(
            context,
            modules={"rrm": network.train()},
            optimizers={"rrm": make_optimizer(network, params)},
            sample=tagged_sampler(context.train, params, fill_rgb(network), target=not online),
            step=step,
            iterations=iterations,
            batch_size=params.batch,
            schedule=poly(iterations, params.poly_power),
            precision=params.precision,
            monitor=val_miou(network, context.monitor),
            monitor_every=params.monitor_every,
            compile=params.compile,
        )


class RegionWatch:
    """Says once where mining finds next to nothing: the losses look small then, and the masks are worthless."""

    STEPS = 20
    LEAST = 1e-3
    """Share of the pixels, over so many steps. Sound fits have .1 to .4."""

    def __init__(self, context: FitContext) -> None:
        self.context, self.said = context, False
        self.shares: list[Tensor] = []

    def add(self, index: int, share: Tensor) -> None:
        """Take the labelled share of step ``index``; warn if those of the last steps are too small together."""
        if self.said:
            return
        self.shares.append(share)
        if len(self.shares) < self.STEPS:
            return
        mean = float(torch.stack(self.shares).mean())
        self.shares.clear()
        if mean < self.LEAST:
            self.said = True
            self.context.warn(
                f"step {index + 1}: in the last {self.STEPS} steps {100 * mean:.2g} % of the pixels had a label."
                " Maps and CRF agree nowhere, and nothing is learnt of where things are. The classifier was undone"
                " (its loss has risen): lower params.rrm.lr, or train one before with params.start=classifier"
            )


def check_finite(output: rrm.Output, label: str, index: int) -> None:
    """Raises :class:`tasks.training.loop.Diverged` where either branch says NaN or infinity at step ``index``."""
    if not all(bool(part.isfinite().all()) for part in output):
        raise Diverged.at(label, "the network's output is no number", index)


def warm_up(output: rrm.Output, batch: Batch, network: rrm.RRM) -> dict[str, Tensor]:
    """The classifier's loss alone; the parts are the same as later, so that a window of the log may hold both.

    The head stays in the graph with a gradient of zero: ranks wait for every parameter's.
    """
    labels = torch.full_like(batch["inside"], UNDECIDED, dtype=torch.uint8)
    weights = LossWeights(network.weights.classes, network.weights.labels, 0.0)
    found = rrm.joint_losses(output, {**batch, "labels": labels}, weights)
    nothing = torch.zeros_like(found["ce"])
    return found | {"labelled": nothing} | ({"energy": nothing} if network.weights.energy else {})


def loss_weights(params: RRMParams) -> LossWeights:
    """The params' losses."""
    return LossWeights(
        params.class_weight,
        params.label_weight,
        params.energy_weight,
        params.sigma_xy,
        params.sigma_rgb,
        params.energy_scale,
        threads_of(params.mining_threads),
    )


def build_network(params: PredictParams, outputs: int, normalisation: Normalisation = IMAGENET) -> rrm.RRM:
    """The network of a checkpoint, for :func:`tasks.training.networks.load_network`."""
    return rrm.build(
        params.network,
        outputs - 1,
        normalisation=normalisation,
        atrous=params.atrous,
        width=params.width,
        output_stride=params.output_stride,
    )


def predict_items(items: Sequence[Item], params: PredictParams) -> list[Arrays]:
    """Map function of :func:`tasks.rrm.stages.predict`."""
    return inference.predict_items(items, params, build_network)


def masks_items(items: Sequence[Item], params: PredictParams) -> list[Arrays]:
    """Map function of :func:`tasks.rrm.stages.masks`. Raises ``SkipImage`` where the tags are not known."""
    for item in items:
        if item.record.tags is None:
            raise SkipImage(f"{item.key}: no tags are known for this image, so its classes are unknown")

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        scores = inference.scores_of(part, params, build_network)
        pairs = zip(part, scores, strict=True)
        return [inference.mask_among(i, i.record.tags or (), one, params) for i, one in pairs]

    return by_size(items, of_one_size)
