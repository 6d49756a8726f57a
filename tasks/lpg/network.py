"""LPG's generator at work: one sample per image and class, the fit, the masks of one image. Imports torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from artifacts.export.bundle import part_name
from artifacts.objects import pack_objects
from artifacts.records import DataError, size_of
from models import hourglass
from models.hourglass import Generator
from models.losses import segmentation_loss
from models.normalise import IMAGENET, Normalisation
from models.resample import MIN_SIDE, extend, resize, sample_labels, scale_images, whole_cells
from tasks.boxes import pixel_window
from tasks.lpg.merge import box_map, boxes_by_class, class_mask, merge, object_target
from tasks.lpg.stages import GenerateStageParams, GeneratorNet, GeneratorParams
from tasks.stage import Arrays, Item, image_of
from tasks.training import rng
from tasks.training.augment import Augmentation, augment, check_labels
from tasks.training.context import FitContext, FitData
from tasks.training.loop import Batch, Nets, poly, train_loop
from tasks.training.networks import fill_rgb, initial_network, load_network
from tasks.training.optim import make_optimizer
from tasks.training.sampling import Sample

log = logging.getLogger("maskmill")


# --- the fit --------------------------------------------------------------------------------------------------------


class ClassData(FitData):
    """A fit's data with one member per image and class that it has boxes of: two references each.

    The same image task is repeated for its classes, so that order, skips and stamps keep their usual meaning.
    """

    def __init__(self, data: FitData, *, difficult: bool) -> None:
        pairs = [
            (task, class_id)
            for task in data.members
            if task.record.boxes is not None
            for class_id in boxes_by_class(task.record, difficult=difficult)
        ]
        super().__init__(data.cache, [task for task, _ in pairs], data.reads, data.classes)
        self.class_ids: Sequence[int] = [class_id for _, class_id in pairs]


def train(context: FitContext) -> dict[str, Tensor]:
    """The E-step, eq. 6: cross entropy of g(y^b, x; f(x); w) against y^p, for each class of each image by itself.

    Returns the network's tensors, its normalisation among them. Raises ``DataError`` where there is no box at all.
    """
    params: GeneratorParams = context.params
    data = ClassData(context.train, difficult=params.difficult)
    if not len(data):
        raise DataError(
            f"{context.label}: none of {len(context.train)} auxiliary images has a box to learn from (crowds do not"
            " count); give an auxiliary set with boxes and masks"
        )

    def build(normalisation: Normalisation) -> Generator:
        return hourglass.build(
            params.network, width=params.width, batch_norm=params.batch_norm, normalisation=normalisation
        )

    network = initial_network(context, params, build, key="params.generator.weights")
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    iterations = params.total_iterations(len(data))
    log.info("%s: %d masks of %d images, %d iterations", context.label, len(data), len(context.train), iterations)

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        images = batch["image"]
        if params.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return {"loss": segmentation_loss(nets["generator"](images, batch["box"], batch["prob"]), batch["target"])}

    return train_loop(
        context,
        modules={"generator": network.train()},
        optimizers={"generator": make_optimizer(network, params)},
        data=data,
        sample=sampler(data, params, fill_rgb(network)),
        step=step,
        iterations=iterations,
        batch_size=params.batch,
        schedule=poly(iterations, params.poly_power),
        precision=params.precision,
        compile=params.compile,
    )


def sampler(data: ClassData, params: GeneratorParams, fill: tuple[int, int, int]) -> Sample:
    """``(index, epoch, generator) -> {"image": (3, crop, crop) uint8, "box", "target": uint8, "prob": float32}``.

    ``index`` counts images' classes. Nothing is inferred here: the probability is a stage's stored array. ``fill`` is
    the colour that smaller images are padded with; padding has no box, no probability, and no target (255).
    """
    transform = Augmentation(params.crop, params.scale_range, params.flip, params.colour_jitter, fill).build()

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Tensor]:
        class_id = data.class_ids[index]
        # The generator is the image's: draw for each class, or all would be cropped alike.
        own = rng.generator(int(generator.integers(2**62)), class_id)
        item = data.item(index)
        labels, prob_hw = class_sample(item, class_id, difficult=params.difficult)
        seed = int(own.integers(2**62))
        drawn = augment(transform, image_of(item), labels, {"prob": prob_hw}, seed=seed)
        box = (drawn.labels["box"] == 1).to(torch.uint8)
        return {"image": drawn.image, "box": box, "target": drawn.labels["target"], "prob": drawn.soft["prob"]}

    return sample


def class_sample(
    item: Item, class_id: int, *, difficult: bool
) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.float32]]:
    """``box`` and ``target``, ``(H, W) uint8``, and the probability ``(H, W) float32`` of one class of an image.

    Raises ``DataError`` naming an image whose truth mask does not fit it.
    """
    image_rgb = image_of(item)
    size_hw = size_of(image_rgb)
    truth_hw = item.up["target"]["mask_hw"]
    check_labels(truth_hw, image_rgb, len(item.classes), item.key)
    inside_hw = box_map(boxes_by_class(item.record, difficult=difficult)[class_id], size_hw)
    labels = {"box": inside_hw.astype(np.uint8), "target": object_target(truth_hw, class_id, inside_hw)}
    return labels, class_probs(item, [class_id], size_hw)[0].numpy()


def class_probs(item: Item, class_ids: Sequence[int], size_hw: tuple[int, int]) -> Tensor:
    """The segmenter's probabilities of these classes, ``(n, H, W) float32`` on the CPU, of role ``probs``.

    Raises ``DataError`` where the stage behind that role has not kept one of them.
    """
    stored = item.up["probs"]
    places = {int(number): place for place, number in enumerate(stored["classes_c"])}
    if missing := [class_id for class_id in class_ids if class_id not in places]:
        raise DataError(
            f"{item.key}: no probabilities of {', '.join(item.classes[one - 1] for one in missing)}; the stage behind"
            " role 'probs' must keep the classes of all boxes (keep=boxes)"
        )
    grid_nhw = stored["probs_chw"][[places[class_id] for class_id in class_ids]].astype(np.float32)
    return resize(torch.from_numpy(grid_nhw)[None], size_hw)[0]


# --- one image ------------------------------------------------------------------------------------------------------


def check_generators(path: Path, net: GeneratorNet, rounds: int) -> None:
    """Raises ``ValueError`` where the file does not hold ``rounds`` generators of that network, tensor for tensor."""
    with torch.device("meta"):
        network = hourglass.build(net.network, width=net.width)
    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    whole = {f"{part_name(one)}.{name}": shape for one in range(1, rounds + 1) for name, shape in wanted.items()}
    if wrong := sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)):
        raise ValueError(
            f"{len(wrong)} tensors are not those of {rounds} networks {net.network} of width {net.width}, the first:"
            f" {wrong[0]}"
        )


def build_network(params: GenerateStageParams, outputs: int, normalisation: Normalisation = IMAGENET) -> Generator:
    """The network of a checkpoint, for :func:`tasks.training.networks.load_network`; it always has 2 outputs."""
    return hourglass.build(params.network, width=params.width, normalisation=normalisation)


def generate_item(item: Item, params: GenerateStageParams) -> Arrays:
    """Map function of :func:`tasks.lpg.stages.generate`, eq. 3 and 7. Raises ``SkipImage`` where no boxes are known."""
    image_rgb = image_of(item)
    size_hw = size_of(image_rgb)
    own = boxes_by_class(item.record, difficult=params.difficult)
    inside = {class_id: box_map(boxes, size_hw) for class_id, boxes in own.items()}
    foreground = dict(zip(own, foregrounds(item, list(own), list(inside.values()), params), strict=True))
    masks = {class_id: class_mask(foreground[class_id], inside[class_id]) for class_id in own}
    names = {class_id: item.classes[class_id - 1] for class_id in own}
    mask_hw = merge(masks, foreground, names, size_hw)
    boxes = [box for each in own.values() for box in each]
    windows = [pixel_window(box.xyxy, size_hw) for box in boxes]
    objects = [masks[box.class_id][y0:y1, x0:x1] for box, (x0, y0, x1, y1) in zip(boxes, windows, strict=True)]
    classes_n = np.array([box.class_id for box in boxes], np.uint8)
    return {
        "mask_hw": mask_hw,
        "object_classes_n": classes_n,
        **pack_objects([box.id for box in boxes], windows, objects),
    }


def foregrounds(
    item: Item, class_ids: Sequence[int], inside: Sequence[NDArray[np.bool_]], params: GenerateStageParams
) -> list[NDArray[np.float32]]:
    """Eq. 3: the generator's probability of each class's object, ``(H, W) float32``, at the image's own size."""
    if not class_ids:
        return []
    network = load_network(
        item.nets["net"],
        build_network,
        params,
        2,
        item.device,
        item.prefixes.get("net", ""),
        channels_last=params.channels_last,
    )
    image_rgb = image_of(item)
    height, width = image_rgb.shape[:2]
    device = torch.device(item.device)
    image = torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))[None].to(device).float()
    scale = min(1.0, params.longest / max(height, width)) if params.longest else 1.0
    image = scale_images(image, scale)
    working = (image.shape[2], image.shape[3])
    boxes = sample_labels(torch.from_numpy(np.stack(inside)).to(torch.uint8), working).float()
    probs = class_probs(item, class_ids, working)
    image, _ = whole_cells(extend(image, MIN_SIDE), hourglass.CELL)
    priors, _ = whole_cells(extend(torch.stack([boxes, probs], 1).to(device), MIN_SIDE), hourglass.CELL)
    found: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(class_ids), params.predict_batch):
            part = priors[start : start + params.predict_batch]
            given = (image.expand(len(part), -1, -1, -1), part[:, 0], part[:, 1])
            values = _probability(network, *given)
            if params.flip:
                values = (values + _probability(network, *(one.flip(-1) for one in given)).flip(-1)) / 2
            values = resize(values[:, None, : working[0], : working[1]], (height, width))[:, 0]
            found += list(values.cpu().numpy())
    return found


def _probability(network: Generator, images: Tensor, boxes: Tensor, probs: Tensor) -> Tensor:
    """Of the object, ``(N, h, w)`` at the images' size: logits are resized, then the softmax is taken."""
    logits = network(images, boxes, probs)
    return hourglass.foreground(resize(logits.float(), (images.shape[2], images.shape[3])))
