"""DeepLab's fit: a segmenter learns from label maps. Imports torch.

The network is :mod:`tasks.deeplab.build`'s; what it gives for an image is :mod:`tasks.deeplab.inference`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.deeplab import MultiScaleInputs
from models.lgsa_deeplab import LGSADeepLab
from models.network import Segmenter
from models.normalise import Normalisation
from tasks.deeplab.build import build_network
from tasks.deeplab.inference import val_miou
from tasks.deeplab.lgsa import warmed_up
from tasks.deeplab.stages import DeepLabFitParams
from tasks.stage import image_of
from tasks.training import rng
from tasks.training.augment import Augmentation, augment, check_labels
from tasks.training.context import FitContext, FitData
from tasks.training.loop import Batch, Nets, poly, train_loop
from tasks.training.networks import fill_rgb, initial_network
from tasks.training.optim import make_optimizer
from tasks.training.sampling import Sample, first_samples


def train(context: FitContext) -> dict[str, Tensor]:
    """Learn from the label maps of role ``target``; returns the network's tensors, its normalisation among them.

    Raises ``DataError`` naming the image whose label map does not fit it or holds a class that does not exist.
    """
    params: DeepLabFitParams = context.params

    def build(normalisation: Normalisation) -> Segmenter:
        outputs = len(context.classes) + 1
        learning: dict[str, Any] = {"loss_at": params.loss_at, "guidance": params.lgsa}
        learning |= {"batch_norm": params.batch_norm, "head_multipliers": params.head_multipliers}
        return build_network(params, outputs, normalisation, **learning)

    network = initial_network(context, params, build, key="params.deeplab.weights")
    sample = sampler(context.train, params, fill_rgb(network))
    if isinstance(network, LGSADeepLab):
        images = [one["image"] for one in first_samples(sample, len(context.train), 8)]
        with rng.preserved():
            if images:
                network.train().scale_attention(torch.stack(images).float())
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    model = MultiScaleInputs(network, params.output_stride) if params.multi_scale_inputs else network
    iterations = params.total_iterations(len(context.train))
    schedule = poly(iterations, params.poly_power)
    if params.lgsa is not None:
        schedule = warmed_up(schedule, params.lgsa, len(context.train), params.batch)

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        images: Tensor = batch["image"]
        if params.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return network.losses(nets["deeplab"](images, batch["labels"]), batch)

    tensors = train_loop(
        context,
        modules={"deeplab": model.train()},
        optimizers={"deeplab": make_optimizer(network, params)},
        sample=sample,
        step=step,
        iterations=iterations,
        batch_size=params.batch,
        schedule=schedule,
        precision=params.precision,
        monitor=val_miou(network, context.monitor),
        monitor_every=params.monitor_every,
        compile=params.compile,
    )
    return {name.removeprefix("network."): tensor for name, tensor in tensors.items()}


def sampler(data: FitData, params: DeepLabFitParams, fill: tuple[int, int, int]) -> Sample:
    """``(index, epoch, generator) -> {"image": (3, crop, crop) uint8, "labels": (crop, crop) uint8}``.

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
        drawn = augment(transform, image_rgb, labels, seed=int(generator.integers(2**62)))
        return {"image": drawn.image, **drawn.labels}

    return sample
