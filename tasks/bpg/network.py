"""BPG's fit, and what its network makes of an image. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from artifacts.records import UNDECIDED
from models import bpg
from models.bpg import Refinement, Regression
from models.normalise import IMAGENET, Normalisation
from tasks.bpg.stages import BOUNDARY, BPGParams, BPGPredictParams, PartsParams
from tasks.deeplab import inference
from tasks.deeplab.inference import val_miou
from tasks.deeplab.stages import PredictParams
from tasks.stage import Arrays, Item, by_size, image_of
from tasks.training.augment import Augmentation, augment, check_labels
from tasks.training.context import FitContext, FitData
from tasks.training.loop import Batch, Nets, poly, train_loop
from tasks.training.networks import fill_rgb, initial_network
from tasks.training.optim import make_optimizer
from tasks.training.sampling import Sample, first_samples


def train(context: FitContext) -> dict[str, Tensor]:
    """Learn from the scribbles of role ``target`` and, with BRN, the edges of role ``edges``.

    Logged beside the losses: ``edge``, the mean squared error of the boundaries, and ``labelled``, the share of the
    picture's pixels that are scribbled on.
    """
    params: BPGParams = context.params

    def build(normalisation: Normalisation) -> bpg.BPG:
        outputs = len(context.classes) + 1
        added = parts_of(params.parts)
        return bpg.build(params.network, outputs, normalisation=normalisation, **added, **params.backbone_options)

    network = initial_network(context, params, build, key="params.bpg.weights")
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    network.boundary_weight = params.boundary_weight
    sample = sampler(context.train, params, fill_rgb(network))
    network.least_share = least_share(first_samples(sample, len(context.train), 64))
    iterations = params.total_iterations(len(context.train))

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        images: Tensor = batch["image"]
        if params.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labelled = (batch["labels"] != UNDECIDED).sum() / batch["inside"].sum().clamp(min=1)
        return {**network.losses(nets["bpg"](images), batch), "labelled": labelled}

    return train_loop(
        context,
        modules={"bpg": network.train()},
        optimizers={"bpg": make_optimizer(network, params)},
        sample=sample,
        step=step,
        iterations=iterations,
        batch_size=params.batch,
        schedule=poly(iterations, params.poly_power),
        precision=params.precision,
        monitor=val_miou(network, context.monitor),
        monitor_every=params.monitor_every,
        compile=params.compile,
    )


def least_share(samples: Sequence[Mapping[str, Tensor]]) -> float:
    """Of the picture's pixels: :data:`models.bpg.LEAST_SHARE`, or a tenth of what the samples have scribbled on."""
    labelled = sum(int((one["labels"] != UNDECIDED).sum()) for one in samples)
    inside = sum(int(one["inside"].sum()) for one in samples)
    return min(bpg.LEAST_SHARE, max(labelled / max(1, inside) / 10, 1e-6))


def sampler(data: FitData, params: BPGParams, fill: tuple[int, int, int]) -> Sample:
    """Samples: ``image (3, crop, crop) uint8``, ``labels`` and ``inside (crop, crop)``; with BRN ``edges``, 0..1.

    ``fill`` is the colour that smaller images are padded with.
    """
    transform = Augmentation(
        params.crop, params.scale_range, params.flip, params.colour_jitter, fill, params.output_stride
    ).build()

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Tensor]:
        item = data.item(index)
        image_rgb = image_of(item)
        labels = {"labels": item.up["target"]["mask_hw"]}
        check_labels(labels["labels"], image_rgb, len(item.classes), item.key)
        soft = {"edges": item.up["edges"]["edges_hw"] / np.float32(255)} if params.learns_edges else {}
        drawn = augment(transform, image_rgb, labels, soft, seed=int(generator.integers(2**62)))
        return {"image": drawn.image, "inside": drawn.inside, **drawn.labels, **drawn.soft}

    return sample


def parts_of(parts: PartsParams) -> dict[str, Any]:
    """The params' PRN and BRN, for :func:`models.bpg.build`."""
    refinement = Refinement(parts.prn_width, parts.prn_depth, parts.prn_grouped, parts.low_width, parts.low_shared)
    regression = None if parts.brn == "off" else Regression(parts.brn, parts.brn_width, parts.brn_depth)
    return {"refinement": refinement if parts.prn else None, "regression": regression}


def build_network(params: PredictParams, outputs: int) -> bpg.BPG:
    """The network of a checkpoint, for :func:`tasks.training.networks.load_network`; its last map is the boundary."""
    assert isinstance(params, BPGPredictParams)
    network = bpg.build(
        params.network,
        outputs,
        normalisation=IMAGENET,
        atrous=params.atrous,
        width=params.width,
        output_stride=params.output_stride,
        **parts_of(params.parts),
    )
    network.boundary_last = True
    return network


def predict_items(items: Sequence[Item], params: BPGPredictParams) -> list[Arrays]:
    """Map function of :func:`tasks.bpg.stages.predict`."""

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        found = zip(part, maps_of(part, params), strict=True)
        return [{**inference.masks_of(item, scores, params), **edge} for item, (scores, edge) in found]

    return by_size(items, of_one_size)


def masks_items(items: Sequence[Item], params: BPGPredictParams) -> list[Arrays]:
    """Map function of :func:`tasks.bpg.stages.masks`."""

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        found = []
        for item, (scores, edge) in zip(part, maps_of(part, params), strict=True):
            known = set(np.unique(item.up["known"]["mask_hw"]).tolist()) - {UNDECIDED}
            found.append({**inference.mask_among(item, known, scores, params), **edge})
        return found

    return by_size(items, of_one_size)


def maps_of(items: Sequence[Item], params: BPGPredictParams) -> list[tuple[Tensor, Arrays]]:
    """Of each of the images, which are of one size: scores ``(K+1, H, W)``, and with BRN ``boundary_hw``."""
    maps = inference.scores_of(items, params, build_network)
    if params.parts.brn == "off":
        return [(scores, {}) for scores in maps]
    logits = params.test.fusion == "max"
    boundary = maps[:, -1].sigmoid() if logits else maps[:, -1]
    edges = (255 * boundary).round().to(torch.uint8).cpu().numpy()
    return [(one[:-1], {BOUNDARY: edge}) for one, edge in zip(maps, edges, strict=True)]
