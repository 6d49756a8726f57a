"""The classifier's fit and its maps. Imports torch. The network and the equations are :mod:`models.cam`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from artifacts.images import image_size_hw
from artifacts.records import DataError, ImageRGB, size_of
from models import cam
from models.network import BackboneNetwork
from models.normalise import IMAGENET, Normalisation
from models.resample import MIN_SIDE, extend
from tasks.cam.stages import CamNet, CamParams, MapParams
from tasks.stage import Arrays, Item, SkipImage, by_size, image_of
from tasks.training.augment import Augmentation, augment, check_labels
from tasks.training.backbone import BackboneParams
from tasks.training.context import FitContext, FitData
from tasks.training.loop import Batch, Nets, poly, train_loop
from tasks.training.networks import fill_rgb, initial_network, load_network
from tasks.training.optim import make_optimizer
from tasks.training.sampling import Sample


def train(context: FitContext) -> dict[str, Tensor]:
    """Learn the tags of images; returns the network's tensors, its normalisation among them."""
    params: CamParams = context.params

    def build(normalisation: Normalisation) -> cam.CamNet:
        classes = len(context.classes)
        return cam.build(params.network, classes, normalisation=normalisation, **params.backbone_options)

    network = initial_network(context, params, build, key="params.cam.weights")
    warn_of_tags(context)
    warn_of_crops(context, params)
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    iterations = params.total_iterations(len(context.train))

    def step(nets: Nets, batch: Batch, index: int) -> Mapping[str, Tensor]:
        scores = nets["cam"](images_of(batch, params), batch["inside"])
        return {"loss": cam.multilabel_soft_margin(scores, batch["tags"])}

    return train_loop(
        context,
        modules={"cam": network.train()},
        optimizers={"cam": make_optimizer(network, params)},
        sample=tagged_sampler(context.train, params, fill_rgb(network)),
        step=step,
        iterations=iterations,
        batch_size=params.batch,
        schedule=poly(iterations, params.poly_power),
        precision=params.precision,
        compile=params.compile,
    )


LEAST_SHOWN = 0.25
"""Share of a picture that a crop should show: it is taught all of the picture's tags."""
LOOKED_AT = 16


def warn_of_tags(context: FitContext) -> None:
    """Say which tags all training pictures have: nothing tells a classifier which part of them such a tag is."""
    tags = [context.train.record(index).tags for index in range(len(context.train))]
    known = [set(one) for one in tags if one is not None]
    counts = Counter(tag for one in known for tag in one)
    if always := [name for number, name in enumerate(context.classes, 1) if known and counts[number] == len(known)]:
        context.warn(
            f"all {len(known)} training pictures have the tag {', '.join(always)}: nothing tells the classifier where"
            " it is in them, and its maps lie on what is conspicuous. Add pictures without it (an empty tag is enough)"
        )


def warn_of_crops(context: FitContext, params: BackboneParams) -> None:
    """Say where the median of some training pictures is so large that a crop shows little of it."""
    scale = sum(params.scale_range) / 2
    found = []
    for index in range(0, len(context.train), max(1, len(context.train) // LOOKED_AT)):
        record = context.train.record(index)
        try:
            height, width = record.size_hw or image_size_hw(Path(record.image))
        except (DataError, OSError):
            continue  # the training itself says so
        shown = min(1.0, params.crop / (scale * height)) * min(1.0, params.crop / (scale * width))
        found.append((shown, width, height))
    if not found:
        return
    shown, width, height = sorted(found)[len(found) // 2]
    if shown < LEAST_SHOWN:
        side = round(1.5 * params.crop / scale)
        context.warn(
            f"a crop of {params.crop} pixels shows {100 * shown:.1f} % of a picture of {width} x {height} pixels at"
            f" scale {scale:g}, but is taught all of its tags. Make the pictures smaller, {side} pixels at the longer"
            f" side say, or lower params.{params.NAME}.scale_range, and the scales of maps and test with it"
        )


def images_of(batch: Batch, params: BackboneParams) -> Tensor:
    """The batch's images in the memory format that the params name."""
    images: Tensor = batch["image"]
    return images.contiguous(memory_format=torch.channels_last) if params.channels_last else images


def tagged_sampler(data: FitData, params: BackboneParams, fill: tuple[int, int, int], target: bool = False) -> Sample:
    """``(index, epoch, generator) -> {"image", "inside", "tags"}`` of a random crop.

    ``image`` ``(3, crop, crop)`` uint8; ``inside`` ``(crop, crop)`` bool, False on padding, whose colour is ``fill``;
    ``tags`` ``(K,)`` float32: 1 for the image's own. ``target``: also ``labels`` ``(crop, crop)`` uint8, the label map
    that role ``target`` gives, 255 on padding. Raises ``SkipImage`` for an image whose tags are not known.
    """
    transform = Augmentation(
        params.crop, params.scale_range, params.flip, params.colour_jitter, fill, params.output_stride
    ).build()

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Tensor]:
        item = data.item(index)
        image, tags = image_of(item), tag_vector(item)
        labels = {}
        if target:
            labels["labels"] = item.up["target"]["mask_hw"]
            check_labels(labels["labels"], image, len(item.classes), item.key)
        drawn = augment(transform, image, labels, seed=int(generator.integers(2**62)))
        return {"image": drawn.image, "inside": drawn.inside, "tags": torch.from_numpy(tags), **drawn.labels}

    return sample


def tag_vector(item: Item) -> NDArray[np.float32]:
    """``(K,)`` float32, 1 for each tag of the image: class c is at c - 1.

    Raises ``SkipImage`` where the tags are not known, ``DataError`` for one that is no class.
    """
    if item.record.tags is None:
        raise SkipImage(f"{item.key}: no tags are known for this image")
    k = len(item.classes)
    found = np.zeros(k, np.float32)
    for tag in item.record.tags:
        if not 1 <= tag <= k:
            raise DataError(f"{item.key}: tag {tag} is no class; classes are 1..{k}")
        found[tag - 1] = 1
    return found


def maps_items(items: Sequence[Item], params: CamNet) -> list[Arrays]:
    """Map function of :func:`tasks.cam.stages.maps`: images of one size go through the network together.

    Raises ``SkipImage`` where the tags are not known.
    """
    tags = {item.key: tag_vector(item) for item in items}

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        first = part[0]
        prefix = first.prefixes.get("net", "")
        network = load_network(first.nets["net"], build_network, params, len(first.classes), first.device, prefix)
        images = np.stack([image_of(item) for item in part]).transpose(0, 3, 1, 2)
        tags_nk = torch.from_numpy(np.stack([tags[item.key] for item in part])).to(first.device)
        with torch.inference_mode():
            found = finest_maps(network, torch.from_numpy(images).to(first.device), tags_nk, params)
        return [_stored(*one) for one in zip(found.cpu().numpy(), tags_nk.cpu().numpy(), strict=True)]

    return by_size(items, of_one_size)


def finest_maps(network: cam.CamNet, images_nchw: Tensor, tags_nk: Tensor, params: CamNet) -> Tensor:
    """Eq. 1 to 3 at the output grid of the largest scale: ``(N, K, h, w)`` in 0..1."""
    height, width = images_nchw.shape[2:]
    largest = max(1.0, *params.maps.scales)
    grid = network.grid((round(height * largest), round(width * largest)))
    return cam.normalised(network.maps(images_nchw, grid, params.maps.scales, params.maps.flip), tags_nk)


def class_map(
    network: BackboneNetwork, image_rgb: ImageRGB, number: int, params: MapParams
) -> tuple[NDArray[np.float32], float]:
    """Where and how surely a classifier sees class ``number`` (from 1): eq. 1 to 3 of one picture, as a tag of it.

    ``(H, W)`` in 0..1, its maximum 1 (or 0 everywhere), and the probability, the logistic function of its score. The
    network is any with a ``classifier``: RRM's, too.
    """
    classifier = network.classifier
    assert isinstance(classifier, nn.Conv2d)
    images = torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))[None]
    size_hw = size_of(image_rgb)
    tags_nk = torch.zeros(1, classifier.out_channels)
    tags_nk[0, number - 1] = 1
    with torch.inference_mode():
        maps = cam.multi_scale_maps(network, classifier, images, size_hw, params.scales, params.flip)
        score = cam.class_scores(classifier, network.features(extend(images.float(), MIN_SIDE)))[0, number - 1]
        return cam.normalised(maps, tags_nk)[0, number - 1].numpy(), float(score.sigmoid())


def _stored(maps_khw: NDArray[np.float32], tags_k: NDArray[np.float32]) -> Arrays:
    (own,) = np.nonzero(tags_k)
    return {"probs_chw": maps_khw[own].astype(np.float16), "classes_c": (own + 1).astype(np.uint8)}


def build_network(params: CamNet, classes: int, normalisation: Normalisation = IMAGENET) -> cam.CamNet:
    """The network of a checkpoint, for :func:`tasks.training.networks.load_network`."""
    return cam.build(
        params.network,
        classes,
        normalisation=normalisation,
        atrous=params.atrous,
        width=params.width,
        output_stride=params.output_stride,
    )
