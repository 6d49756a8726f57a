"""What every segmenter needs: build it from params, train it, ask it at the image's own size. Torch lives here."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from artifacts.records import UNDECIDED, DataError
from models import deeplab, lgsa_deeplab
from models.deeplab import DeepLab
from models.groups import parameter_groups
from models.lgsa import log_probability
from models.lgsa_deeplab import LGSADeepLab
from models.losses import summed_loss
from models.normalise import NORMALISATIONS
from models.resample import resize, scale_images
from tasks.deeplab.lgsa import AttentionNet, warmed_up
from tasks.deeplab.stages import AttentionFitParams, DeepLabParams, attention_of
from tasks.evaluate.score import confusion, read_as_wrong
from tasks.training import rng
from tasks.training import weights as weights_files
from tasks.training.augment import Augmentation, augment
from tasks.training.context import FitContext, FitData
from tasks.training.loop import Batch, Monitor, Nets, Step, poly, train_loop
from tasks.training.sampling import Sample

log = logging.getLogger("maskmill")
Segmenter = DeepLab | LGSADeepLab

MIN_SIDE = 16
"""Smallest side that a network is shown; a thinner image is extended by its border and the result cut back."""


class NetworkParams(Protocol):
    """The part of a params class that decides the architecture."""

    @property
    def network(self) -> deeplab.NetworkName: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def output_stride(self) -> Literal[4, 8]: ...  # noqa: D102
    @property
    def atrous(self) -> Literal["paper", "exact"]: ...  # noqa: D102


def build_network(params: NetworkParams, outputs: int, normalisation: str = "imagenet") -> Segmenter:
    """The network that ``params`` describe, randomly initialised from torch's global generator.

    Backbone and head are the same numbers with self-attention and without.
    """
    guided = params.lgsa.guided if isinstance(params, AttentionFitParams) else "all"
    return _build(shape_of(params), outputs, normalisation, guided)


Shape = tuple[deeplab.NetworkName, int, Literal[4, 8], Literal["paper", "exact"], AttentionNet | None]
"""Name, width, output stride, atrous, self-attention."""


def shape_of(params: NetworkParams) -> Shape:
    """What of the params decides the architecture, hashable."""
    return params.network, params.width, params.output_stride, params.atrous, attention_of(params)


def _build(
    shape: Shape, outputs: int, normalisation: str = "imagenet", guided: lgsa_deeplab.Guided = "all"
) -> Segmenter:
    name, width, output_stride, atrous, attention = shape
    numbers = NORMALISATIONS[normalisation]
    if attention is None:
        return deeplab.build(
            name, outputs, normalisation=numbers, atrous=atrous, width=width, output_stride=output_stride
        )
    return lgsa_deeplab.build(
        name,
        outputs,
        modules=attention.modules,
        embedding=attention.embedding or None,
        walk=attention.walk,
        guided=guided,
        normalisation=numbers,
        atrous=atrous,
        width=width,
        output_stride=output_stride,
    )


def load_network(path: str, params: NetworkParams, outputs: int, device: str, prefix: str = "") -> Segmenter:
    """The trained network of a checkpoint, in eval mode on ``device``; kept for the process's next images.

    ``prefix``: the beginning of its tensors' names where the checkpoint holds several networks.

    Raises :class:`tasks.training.weights.WeightsError` if the file is cut short or of another network.
    """
    file = Path(weights_files.require_file(Path(path), "the run's fit")).stat()
    return _load(path, file.st_mtime_ns, file.st_size, shape_of(params), outputs, device, prefix)


@functools.lru_cache(maxsize=2)
def _load(path: str, mtime_ns: int, size: int, shape: Shape, outputs: int, device: str, prefix: str) -> Segmenter:
    if device == "cpu":
        # One process per core does the work already; more threads would only wait for each other.
        torch.set_num_threads(1)
    with torch.device("meta"):
        network = _build(shape, outputs)
    network.to_empty(device="cpu")
    weights_files.load_into(network, weights_files.read_part(Path(path), prefix), path)
    network = network.eval().requires_grad_(False).to(device)
    return network.to(memory_format=torch.channels_last)


def train(context: FitContext) -> dict[str, Tensor]:
    """Learn from the label maps of role ``target``; returns the network's tensors, its normalisation among them.

    Raises ``DataError`` naming the image whose label map does not fit it or holds a class that does not exist.
    """
    params: DeepLabParams = context.params
    network = initial_network(context)
    if params.channels_last:
        network = network.to(memory_format=torch.channels_last)
    model = deeplab.MultiScaleInputs(network) if params.multi_scale_inputs else network
    schedule = poly(params.iterations, params.poly_power)
    if isinstance(params, AttentionFitParams):
        schedule = warmed_up(schedule, params.lgsa, len(context.train), params.batch)
    tensors = train_loop(
        context,
        modules={"deeplab": model.train()},
        optimizers={"deeplab": make_optimizer(network, params)},
        sample=sampler(context.train, params, network.normalise.mean),
        step=_step(network, params),
        iterations=params.iterations,
        batch_size=params.batch,
        schedule=schedule,
        precision=params.precision,
        monitor=val_miou(network, context.monitor),
        monitor_every=params.monitor_every,
        compile=params.compile,
    )
    return {name.removeprefix("network."): tensor for name, tensor in tensors.items()}


def _step(network: Segmenter, params: DeepLabParams) -> Step:
    """What one batch costs: cross entropy; with self-attention equation 10's L_seg + alpha L_att (Xie et al.)."""

    def images_of(batch: Batch) -> Tensor:
        images: Tensor = batch["image"]
        return images.contiguous(memory_format=torch.channels_last) if params.channels_last else images

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        return {"loss": summed_loss(nets["deeplab"](images_of(batch)), batch["labels"], params.loss_at)}

    if not (isinstance(network, LGSADeepLab) and isinstance(params, AttentionFitParams)):
        return step
    lgsa, alpha = params.lgsa, params.lgsa.alpha or 0.0

    def guided_step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        labels = batch["labels"]
        # Without a weight no N x N error need be worked out.
        output = nets["deeplab"](images_of(batch), labels if alpha else None)
        return network.losses(output, labels, alpha, scaled=lgsa.alpha_scaled, at=params.loss_at)

    return guided_step


def initial_network(context: FitContext) -> Segmenter:
    """The network to train: the fit's ``init`` if it has one, else the weights that ``params.weights`` names.

    Random weights come from the seed alone; the global generator is left as it was.
    """
    params: DeepLabParams = context.params
    weights = weights_files.parse(params.weights)
    with rng.preserved():
        rng.seed_all(context.seed, "weights")
        network = build_network(params, len(context.classes) + 1, weights.normalisation)
    if (state := context.initial_weights()) is not None:
        weights_files.load_into(network, _with_attention(network, state), str(context.init))
    elif weights.kind == "imagenet":
        state = weights_files.imagenet_state(params.network, "params.deeplab.weights")
        weights_files.load_into(network, state, f"torchvision's {params.network}")
    elif weights.kind == "file":
        state = _with_attention(network, context.input_weights("weights"))
        weights_files.load_into(network, state, context.inputs["weights"])
    elif params.network.startswith("resnet"):
        context.warn(
            f"{params.network} starts from random weights although its batch norms are frozen, and will learn badly; "
            "set params.deeplab.weights=imagenet or to a file"
        )
    return network


def _with_attention(network: Segmenter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state``, and the network's own new modules where it is a whole DeepLab without any: they start as nothing."""
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("attention.")}
    whole = any(name.startswith("backbone.") for name in state)
    return {**(own if whole and not own.keys() & state.keys() else {}), **state}


def make_optimizer(network: Segmenter, params: DeepLabParams) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over the network's declared groups; every frozen parameter is logged by name."""
    found = parameter_groups(network, network.rules, lr=params.lr, weight_decay=params.weight_decay)
    for group in found.groups:
        log.debug("group %(name)s: lr %(lr)g, decay %(weight_decay)g, %(names)s", group)
    log.debug("frozen: %s", ", ".join(found.frozen) or "nothing")
    groups = [{k: v for k, v in group.items() if k != "names"} for group in found.groups]
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=params.lr)
    return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum)


def sampler(data: FitData, params: DeepLabParams, mean_rgb: Tensor) -> Sample:
    """``(index, epoch, generator) -> {"image": (3, crop, crop) uint8, "labels": (crop, crop) uint8}``.

    ``mean_rgb`` (three values on 0..255) is what smaller images are padded with: a normalised network sees zeros.
    """
    red, green, blue = (round(value) for value in mean_rgb.flatten().tolist())
    fill = (red, green, blue)
    transform = Augmentation(params.crop, params.scale_range, params.flip, params.colour_jitter, fill).build()

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Tensor]:
        item = data.item(index)
        if item.image_rgb is None:
            raise ValueError(f"{item.key}: a segmenter's fit must declare reads=('image',)")
        labels = item.up["target"]["mask_hw"]
        check_labels(labels, item.image_rgb, len(item.classes), item.key)
        image, target = augment(transform, item.image_rgb, labels, int(generator.integers(2**62)))
        return {"image": image, "labels": target}

    return sample


def check_labels(mask_hw: NDArray[np.uint8], image_rgb: NDArray[np.uint8], k: int, key: str) -> None:
    """Raise ``DataError`` naming ``key`` if the label map has another size, or a value that is no class and not 255.

    On a GPU a label out of range is an assertion without a name that takes the process along.
    """
    if mask_hw.shape != image_rgb.shape[:2]:
        raise DataError(f"{key}: label map is {mask_hw.shape}, its image {image_rgb.shape[:2]} (height, width)")
    foreign = (mask_hw > k) & (mask_hw != UNDECIDED)
    if foreign.any():
        y, x = np.argwhere(foreign)[0]
        raise DataError(f"{key}: label {mask_hw[y, x]} at x={x}, y={y}, but classes are 0..{k} and {UNDECIDED}")


def val_miou(network: nn.Module, data: FitData | None) -> Monitor | None:
    """A monitor: mIoU (as wrong) of single-scale predictions on the records that have truth; ``None`` without any."""
    if data is None:
        return None
    scored = [index for index in range(len(data)) if data.record(index).truth is not None]
    if not scored:
        return None

    def monitor() -> dict[str, float]:
        k = len(data.classes)
        matrix = np.zeros((k + 1, k + 2), np.int64)
        for index in scored:
            try:
                item = data.item(index)
                truth = item.record.truth
                if item.image_rgb is None or truth is None:
                    continue
                predicted = predict_scores(network, item.image_rgb).argmax(0).to("cpu").numpy().astype(np.uint8)
                matrix += confusion(predicted, truth.load(), k, where=item.key)
            except (DataError, OSError) as error:
                log.warning("not in val mIoU: %s", error)
        miou = read_as_wrong(matrix).miou
        return {} if miou is None else {"val_miou": miou}

    return monitor


def predict_scores(
    network: nn.Module,
    image_rgb: NDArray[np.uint8],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fusion: Literal["mean", "max"] = "mean",
) -> Tensor:
    """Scores ``(K+1, H, W) float32`` at the image's own size, which is never cropped.

    For each scale (and mirror image) the resized image's logits are brought to the image's size, then fused:
    ``mean`` averages probabilities, ``max`` takes the larger logit (DeepLab v2's fusion). A network with a random walk
    gives probabilities; their logarithms stand for logits.
    """
    device = next(network.parameters()).device
    height, width = image_rgb.shape[:2]
    image = torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))[None].to(device).float()
    image = _extend(image, math.ceil(MIN_SIDE / min(1.0, *scales)))
    size = (image.shape[2], image.shape[3])
    fused: Tensor | None = None
    count = 0
    with torch.inference_mode():
        for scale in scales:
            scaled = scale_images(image, scale)
            for mirrored in (False, True) if flip else (False,):
                scores = _scores(network, scaled, size, mirrored, fusion)
                count += 1
                if fused is None:
                    fused = scores
                else:
                    fused = torch.maximum(fused, scores) if fusion == "max" else fused.add_(scores)
    if fused is None:
        raise ValueError("predict_scores needs at least one scale")
    fused = fused[0, :, :height, :width]
    return fused if fusion == "max" else fused / count


def _scores(
    network: nn.Module, images_nchw: Tensor, size_hw: tuple[int, int], mirrored: bool, fusion: Literal["mean", "max"]
) -> Tensor:
    """Scores of one scale, ``(N, K+1, H, W)`` at ``size_hw``, turned back if the mirror image was asked."""
    output = network(images_nchw.flip(3) if mirrored else images_nchw)
    if isinstance(network, LGSADeepLab):
        probabilities = network.probabilities(output, size_hw)
        probabilities = probabilities.flip(3) if mirrored else probabilities
        return log_probability(probabilities) if fusion == "max" else probabilities
    logits = output.float()
    logits = resize(logits.flip(3) if mirrored else logits, size_hw)
    return logits if fusion == "max" else logits.softmax(1)


def attention_maps(
    network: nn.Module, image_rgb: NDArray[np.uint8], xy: tuple[float, float]
) -> list[NDArray[np.float32]]:
    """Of each self-attention module, W's row of the cell under pixel ``x, y``: ``(h, w) float32`` that sums to 1.

    ``ValueError`` for a network without modules, or a pixel outside the image.
    """
    if not isinstance(network, LGSADeepLab):
        raise ValueError("this network has no self-attention")
    device = next(network.parameters()).device
    image = torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))[None].to(device).float()
    with torch.inference_mode():
        return [row[0].cpu().numpy() for row in network.attention_rows(image, (xy[1], xy[0]))]


def _extend(image_nchw: Tensor, side: int) -> Tensor:
    below = max(0, side - image_nchw.shape[2])
    right = max(0, side - image_nchw.shape[3])
    return F.pad(image_nchw, (0, right, 0, below), mode="replicate") if below or right else image_nchw
