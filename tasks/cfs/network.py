"""CFS's network at work: one sample per object, the fit, and the probabilities of one image's boxes. Torch lives here.

Equation numbers are those of Xie et al. 2020; the crops (1, 2) are :mod:`tasks.cfs.box_crop`'s, the loss (3) is
:func:`models.unet.cfs_loss`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifacts.objects import pack_objects, paste_object, unpack_objects
from artifacts.records import Box, DataError, ImageRGB
from models import unet
from models.deeplab import check_same_keys
from models.groups import parameter_groups
from models.normalise import NORMALISATIONS
from tasks.boxes import paint, pixel_window, usable_boxes
from tasks.cfs.box_crop import BoxCrop
from tasks.cfs.stages import CFSParams, CFSPredictParams, learnable, rate_factor, total_iterations
from tasks.stage import Arrays, Item, SkipImage
from tasks.training import rng
from tasks.training import weights as weights_files
from tasks.training.augment import Augmentation, augment
from tasks.training.context import FitContext, FitData
from tasks.training.loop import Batch, Nets, train_loop
from tasks.training.sampling import Sample

log = logging.getLogger("maskmill")

FILL_RGB = (124, 116, 104)
"""What lies outside the image: ImageNet's mean, so that a normalised network sees zeros."""
CPU_BATCH = 8
"""Crops looked at together on a CPU, at most: more leave its caches (ResNet-50 at 224 px: 16 take 15 % longer)."""


# --- the fit --------------------------------------------------------------------------------------------------------


class ObjectData(FitData):
    """A fit's data with one member per object to learn from: two references each, whatever an image weighs.

    The members are the images' jobs again and again, so that order, skips and stamps mean what they mean elsewhere.
    """

    def __init__(self, data: FitData, params: CFSParams) -> None:
        pairs = [(job, box) for job in data.members for box in job.record.boxes or () if learnable(box, params)]
        super().__init__(data.cache, [job for job, _ in pairs], data.reads, data.classes)
        self.boxes: Sequence[Box] = [box for _, box in pairs]


def train(context: FitContext) -> dict[str, Tensor]:
    """Learn from the objects of role ``coarse``; returns the network's tensors, its normalisation among them.

    Every object is one sample an epoch, large images with many boxes or not. Raises ``DataError`` where no box is
    large enough to learn from, and names the image whose masks lack one.
    """
    params: CFSParams = context.params
    images = len(context.train)
    boxes = sum(len(job.record.boxes or ()) for job in context.train.members)
    # The loop draws members of context.train: objects here.
    context.train = objects = ObjectData(context.train, params)
    if not len(objects):
        raise DataError(
            f"{context.label}: none of {images} training images has a box to learn from (both sides at least"
            f" {params.min_side:g} px, no crowd); lower params.cfs.min_side"
        )
    if 2 * len(objects) < boxes:
        context.warn(
            f"learns from {len(objects)} of {boxes} boxes; the others have a side under {params.min_side:g} px"
            " (params.cfs.min_side), are crowds, or are difficult and not asked for"
        )
    network = initial_network(context)
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    iterations = total_iterations(params, len(objects))
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
        sample=sampler(objects, params),
        step=step,
        iterations=iterations,
        batch_size=params.batch,
        schedule=lambda index: rate_factor(params, index, iterations),
        precision=params.precision,
        compile=params.compile,
    )


def initial_network(context: FitContext) -> unet.UNet:
    """The network to train: the fit's ``init`` if it has one, else the weights that ``params.weights`` names.

    Random weights come from the seed alone; the global generator is left as it was.
    """
    params: CFSParams = context.params
    weights = weights_files.parse(params.weights)
    with rng.preserved():
        rng.seed_all(context.seed, "weights")
        network = unet.build(
            params.network,
            len(context.classes),
            class_channel=params.class_channel,
            deep_refeed=params.deep_refeed,
            batch_norm=params.batch_norm,
            normalisation=NORMALISATIONS[weights.normalisation],
            width=params.width,
        )
    if (state := context.initial_weights()) is not None:
        load_into(network, state, str(context.init))
    elif weights.kind == "imagenet":
        state = weights_files.imagenet_state(params.network, "params.cfs.weights")
        load_into(network, state, f"torchvision's {params.network}")
    elif weights.kind == "file":
        load_into(network, context.input_weights("weights"), context.inputs["weights"])
    elif params.batch_norm == "frozen" and params.network != "tiny":
        context.warn(
            f"{params.network} starts from random weights although its batch norms are frozen, and will learn badly; "
            "set params.cfs.weights=imagenet or to a file, or params.cfs.batch_norm=trained"
        )
    return network


def load_into(network: unet.UNet, state: dict[str, Tensor], source: str) -> None:
    """Load an ImageNet encoder, or a whole CFS network that Maskmill wrote, into ``network``.

    Raises :class:`tasks.training.weights.WeightsError` naming ``source`` and the first keys or shapes that differ.
    """
    try:
        if any(name.startswith("encoder.") for name in state):
            check_same_keys(network.state_dict(), state, set(), source)
            network.load_state_dict(state)
        else:
            unet.load_encoder(network, state, source=source)
    except ValueError as error:
        raise weights_files.WeightsError(str(error)) from error


def make_optimizer(network: unet.UNet, params: CFSParams) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over the network's declared groups."""
    found = parameter_groups(network, network.rules, lr=params.lr, weight_decay=params.weight_decay)
    groups = [{k: v for k, v in group.items() if k != "names"} for group in found.groups]
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=params.lr)
    return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum)


def sampler(data: ObjectData, params: CFSParams) -> Sample:
    """``(index, epoch, generator) -> {"image": (3, side, side), "box", "target": (side, side), all uint8; "class"}``.

    ``index`` counts objects. Draws depend on seed, epoch, image and object alone.
    """
    transform = Augmentation(params.crop, (1.0, 1.0), params.flip, params.colour_jitter, FILL_RGB).build()

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Any]:
        box = data.boxes[index]
        # The generator is the image's; its objects are not to be mirrored alike.
        own = rng.generator(int(generator.integers(2**62)), box.id)
        item = data.item(index)
        seen, box_hw, target_hw = object_sample(item, box, params, own)
        masks_hw = (target_hw + 2 * box_hw).astype(np.uint8)
        image, masks = augment(transform, seen, masks_hw, int(own.integers(2**62)))
        return {"image": image, "box": masks >> 1, "target": masks & 1, "class": box.class_id}

    return sample


def object_sample(
    item: Item, box: Box, params: CFSParams, generator: np.random.Generator
) -> tuple[ImageRGB, NDArray[np.bool_], NDArray[np.uint8]]:
    """Image, box and target of one object's crop, before flip and colours: I_exp, B_exp and M_exp of section 3.2."""
    if item.image_rgb is None:
        raise ValueError(f"{item.key}: the fit of cfs must declare reads=('image', 'boxes')")
    window_xyxy = pixel_window(box.xyxy, (item.image_rgb.shape[0], item.image_rgb.shape[1]))
    x0, y0, x1, y1 = window_xyxy
    if x0 == x1:
        raise SkipImage(f"{item.key}: box {box.id} lies outside the image; nothing was learnt from it")
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
    return crop.image(item.image_rgb, FILL_RGB), crop.box(), crop.target(mask_hw)


# --- one image ------------------------------------------------------------------------------------------------------


def predict_item(item: Item, params: CFSPredictParams) -> Arrays:
    """Foreground probabilities of every usable box of one image, packed, and their label map.

    A box outside the image has no pixels, so an empty map. Raises ``SkipImage`` where no boxes are known.
    """
    if item.image_rgb is None:
        raise ValueError(f"{item.key}: cfs-predict needs the image, but it was not handed over")
    image_rgb = item.image_rgb
    size_hw = (image_rgb.shape[0], image_rgb.shape[1])
    boxes = usable_boxes(item.record, difficult=params.difficult)
    windows = [pixel_window(box.xyxy, size_hw) for box in boxes]
    network = load_network(item.nets["net"], params, len(item.classes), item.device, item.prefixes.get("net", ""))
    seen = {
        i: BoxCrop.around(window, params.context, params.crop)
        for i, window in enumerate(windows)
        if window[0] < window[2]
    }
    classes = [boxes[i].class_id for i in seen]
    found = dict(zip(seen, box_probabilities(network, image_rgb, list(seen.values()), classes, params), strict=True))
    probs = [found.get(i, np.zeros((0, 0), np.float16)) for i in range(len(boxes))]
    arrays = pack_objects([box.id for box in boxes], windows, probs)
    arrays["objects_flat"] = arrays["objects_flat"].astype(np.float16, copy=False)  # also where there is none
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

    Crops that make a batch together change nothing but the last bits of each other.
    """
    found: list[NDArray[np.float16]] = []
    on_cpu = next(network.parameters()).device.type == "cpu"
    batch = min(params.predict_batch, CPU_BATCH) if on_cpu else params.predict_batch
    for start in range(0, len(crops), batch):
        part = crops[start : start + batch]
        pictures = np.stack([crop.image(image_rgb, FILL_RGB) for crop in part])
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


def load_network(path: str, params: CFSPredictParams, classes: int, device: str, prefix: str = "") -> unet.UNet:
    """The trained network of a checkpoint, in eval mode on ``device``; kept for the process's next images.

    ``prefix``: the beginning of its tensors' names where the checkpoint holds several networks.
    Raises :class:`tasks.training.weights.WeightsError` if the file is cut short or of another network.
    """
    file = Path(weights_files.require_file(Path(path), "the run's fit")).stat()
    shape = (params.network, params.width, params.class_channel, params.deep_refeed, params.channels_last)
    return _load(path, file.st_mtime_ns, file.st_size, shape, classes, device, prefix)


@functools.lru_cache(maxsize=2)
def _load(
    path: str, mtime_ns: int, size: int, shape: tuple[Any, ...], classes: int, device: str, prefix: str
) -> unet.UNet:
    name, width, class_channel, deep_refeed, channels_last = shape
    if device == "cpu":
        # One process per core does the work already; more threads would only wait for each other.
        torch.set_num_threads(1)
    with torch.device("meta"):
        network = unet.build(name, classes, class_channel=class_channel, deep_refeed=deep_refeed, width=width)
    network.to_empty(device="cpu")
    load_into(network, weights_files.read_part(Path(path), prefix), path)
    network = network.eval().requires_grad_(False).to(device)
    return network.to(memory_format=torch.channels_last) if channels_last else network
