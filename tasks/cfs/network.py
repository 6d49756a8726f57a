"""CFS's network: one sample per object, the fit, and the probabilities of one image's boxes. Imports torch.

Equation numbers are those of Xie et al. 2020; the crops (1, 2) are :mod:`tasks.cfs.box_crop`'s, the loss (3) is
:func:`models.unet.cfs_loss`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifacts.objects import pack_objects, paste_object, unpack_objects
from artifacts.records import Box, DataError, ImageRGB, size_of
from models import unet
from models.backbones import BatchNorm
from models.normalise import IMAGENET, Normalisation
from tasks.boxes import paint, pixel_window, usable_boxes
from tasks.cfs.box_crop import BoxCrop
from tasks.cfs.stages import CFSParams, CFSPredictParams, learnable, rate_factor
from tasks.stage import Arrays, Item, SkipImage, image_of
from tasks.training import rng
from tasks.training.augment import Augmentation, augment
from tasks.training.context import FitContext, FitData
from tasks.training.loop import Batch, Nets, train_loop
from tasks.training.networks import fill_rgb, initial_network, load_network
from tasks.training.optim import make_optimizer
from tasks.training.sampling import Sample

log = logging.getLogger("maskmill")

CPU_BATCH = 8
"""Most crops in one batch on a CPU: more do not fit its caches (ResNet-50 at 224 px: 16 take 15 % longer)."""


# --- the fit --------------------------------------------------------------------------------------------------------


class ObjectData(FitData):
    """A fit's data with one member per object to learn from: two references each, however large the image is.

    The same image task is repeated for its objects, so that order, skips and stamps keep their usual meaning.
    """

    def __init__(self, data: FitData, params: CFSParams) -> None:
        pairs = [(task, box) for task in data.members for box in task.record.boxes or () if learnable(box, params)]
        super().__init__(data.cache, [task for task, _ in pairs], data.reads, data.classes)
        self.boxes: Sequence[Box] = [box for _, box in pairs]


def train(context: FitContext) -> dict[str, Tensor]:
    """Learn from the objects of role ``coarse``; returns the network's tensors, its normalisation among them.

    Every object is one sample an epoch, however many boxes its image has. Raises ``DataError`` where no box is
    large enough to learn from, and names the image whose masks lack one.
    """
    params: CFSParams = context.params
    images = len(context.train)
    boxes = sum(len(task.record.boxes or ()) for task in context.train.members)
    objects = ObjectData(context.train, params)
    if not len(objects):
        raise DataError(
            f"{context.label}: none of {images} training images has a box to learn from (both sides at least"
            f" {params.min_side:g} px, no crowd); lower params.cfs.min_side"
        )
    if 2 * len(objects) < boxes:
        context.warn(
            f"learns from {len(objects)} of {boxes} boxes; the others have a side under {params.min_side:g} px"
            " (params.cfs.min_side), are crowds, or are difficult and excluded"
        )

    def build(normalisation: Normalisation) -> unet.UNet:
        return build_network(params, len(context.classes), normalisation, batch_norm=params.batch_norm)

    network = initial_network(context, params, build, key="params.cfs.weights")
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    iterations = params.total_iterations(len(objects))
    log.info("%s: %d objects of %d images, %d iterations", context.label, len(objects), images, iterations)

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        pictures = batch["image"]
        if params.channels_last:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        return {"loss": unet.cfs_loss(nets["cfs"](pictures, batch["box"], batch["class"]), batch["target"])}

    return train_loop(
        context,
        modules={"cfs": network.train()},
        optimizers={"cfs": make_optimizer(network, params)},
        data=objects,
        sample=sampler(objects, params, fill_rgb(network)),
        step=step,
        iterations=iterations,
        batch_size=params.batch,
        schedule=lambda index: rate_factor(params, index, iterations),
        precision=params.precision,
        compile=params.compile,
    )


class NetworkParams(Protocol):
    """The part of a params class that decides the architecture."""

    @property
    def network(self) -> str: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def class_channel(self) -> bool: ...  # noqa: D102
    @property
    def deep_refeed(self) -> bool: ...  # noqa: D102


def build_network(
    params: NetworkParams,
    classes: int,
    normalisation: Normalisation = IMAGENET,
    *,
    batch_norm: BatchNorm = "trained",
) -> unet.UNet:
    """The network that ``params`` describe, randomly initialised from torch's global generator.

    ``batch_norm`` matters for training only.
    """
    return unet.build(
        params.network,
        classes,
        class_channel=params.class_channel,
        deep_refeed=params.deep_refeed,
        batch_norm=batch_norm,
        normalisation=normalisation,
        width=params.width,
    )


def sampler(data: ObjectData, params: CFSParams, fill: tuple[int, int, int]) -> Sample:
    """``(index, epoch, generator) -> {"image": (3, side, side), "box", "target": (side, side), all uint8; "class"}``.

    ``index`` counts objects. Draws depend on seed, epoch, image and object alone. ``fill`` is the colour of what lies
    outside the image.
    """
    transform = Augmentation(params.crop, (1.0, 1.0), params.flip, params.colour_jitter, fill).build()

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Any]:
        box = data.boxes[index]
        # The generator is the image's: draw for each object, or all would be mirrored alike.
        own = rng.generator(int(generator.integers(2**62)), box.id)
        item = data.item(index)
        seen, box_hw, target_hw = object_sample(item, box, params, own, fill)
        masks = {"box": box_hw.astype(np.uint8), "target": target_hw}
        drawn = augment(transform, seen, masks, seed=int(own.integers(2**62)))
        return {"image": drawn.image, **drawn.labels, "class": box.class_id}

    return sample


def object_sample(
    item: Item, box: Box, params: CFSParams, generator: np.random.Generator, fill: tuple[int, int, int]
) -> tuple[ImageRGB, NDArray[np.bool_], NDArray[np.uint8]]:
    """Image, box and target of one object's crop, before flip and colours: I_exp, B_exp and M_exp of section 3.2."""
    image_rgb = image_of(item)
    window_xyxy = pixel_window(box.xyxy, size_of(image_rgb))
    x0, y0, x1, y1 = window_xyxy
    if x0 == x1:
        raise SkipImage(f"{item.key}: box {box.id} lies outside the image; it is not used for training")
    found = next((one for one in unpack_objects(item.up["coarse"]) if one.id == box.id), None)
    if found is None:
        raise DataError(
            f"{item.key}: no coarse mask of object {box.id}; the stage behind role 'coarse' must cover the same boxes"
            " (difficult= alike in both)"
        )
    ox0, oy0, ox1, oy1 = found.window_xyxy
    mask_hw = paste_object(found.mask_hw, (ox0 - x0, oy0 - y0, ox1 - x0, oy1 - y0), (y1 - y0, x1 - x0))
    left, top, right, bottom = 1.0 + params.margin_jitter * generator.uniform(-1.0, 1.0, 4)
    crop = BoxCrop.around(window_xyxy, params.context, params.crop, (left, top, right, bottom))
    return crop.image(image_rgb, fill), crop.box(), crop.target(mask_hw)


# --- one image ------------------------------------------------------------------------------------------------------


def predict_item(item: Item, params: CFSPredictParams) -> Arrays:
    """Foreground probabilities of every usable box of one image, packed, and their label map.

    A box outside the image has no pixels, so an empty map. Raises ``SkipImage`` where no boxes are known.
    """
    image_rgb = image_of(item)
    size_hw = size_of(image_rgb)
    boxes = usable_boxes(item.record, difficult=params.difficult)
    windows = [pixel_window(box.xyxy, size_hw) for box in boxes]
    network = load_network(
        item.nets["net"],
        build_network,
        params,
        len(item.classes),
        item.device,
        item.prefixes.get("net", ""),
        channels_last=params.channels_last,
    )
    seen = {
        i: BoxCrop.around(window, params.context, params.crop)
        for i, window in enumerate(windows)
        if window[0] < window[2]
    }
    classes = [boxes[i].class_id for i in seen]
    found = dict(zip(seen, box_probabilities(network, image_rgb, list(seen.values()), classes, params), strict=True))
    probs = [found.get(i, np.zeros((0, 0), np.float16)) for i in range(len(boxes))]
    arrays = pack_objects([box.id for box in boxes], windows, probs)
    arrays["objects_flat"] = arrays["objects_flat"].astype(np.float16, copy=False)  # also for no box at all
    return {
        "mask_hw": paint(unpack_objects(arrays), boxes, size_hw),
        "object_classes_n": np.array([box.class_id for box in boxes], np.uint8),
        **arrays,
    }


def box_probabilities(
    network: unet.UNet,
    image_rgb: ImageRGB,
    crops: Sequence[BoxCrop],
    classes: Sequence[int],
    params: CFSPredictParams,
) -> list[NDArray[np.float16]]:
    """Foreground probability in each box's pixels, ``(h_i, w_i) float16``; ``predict_batch`` crops at a time.

    Crops in one batch change only the last bits of each other.
    """
    found: list[NDArray[np.float16]] = []
    on_cpu = next(network.parameters()).device.type == "cpu"
    batch = min(params.predict_batch, CPU_BATCH) if on_cpu else params.predict_batch
    fill = fill_rgb(network)
    for start in range(0, len(crops), batch):
        part = crops[start : start + batch]
        pictures = np.stack([crop.image(image_rgb, fill) for crop in part])
        masks = np.stack([crop.box() for crop in part])
        probs_nhw = crop_probabilities(network, pictures, masks, classes[start : start + len(part)], params)
        found += [crop.back(prob).astype(np.float16) for crop, prob in zip(part, probs_nhw, strict=True)]
    return found


def crop_probabilities(
    network: unet.UNet,
    pictures_nhwc: NDArray[np.uint8],
    boxes_nhw: NDArray[np.bool_],
    classes: Sequence[int],
    params: CFSPredictParams,
) -> NDArray[np.float32]:
    """Foreground probability of a batch of crops: ``(N, S, S, 3)``, ``(N, S, S)``, N classes -> ``(N, S, S)``."""
    device = next(network.parameters()).device
    pictures = torch.from_numpy(pictures_nhwc).to(device).permute(0, 3, 1, 2)
    if not params.channels_last:
        pictures = pictures.contiguous()
    boxes = torch.from_numpy(boxes_nhw).to(device)
    labels = torch.tensor(list(classes), dtype=torch.int64, device=device)
    with torch.inference_mode():
        probs = unet.foreground_probability(network(pictures, boxes, labels))
        if params.test_flip:
            mirrored = unet.foreground_probability(network(pictures.flip(3), boxes.flip(2), labels))
            probs = (probs + mirrored.flip(2)) / 2
    result: NDArray[np.float32] = probs.cpu().numpy()
    return result
