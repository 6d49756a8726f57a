"""Inference of a trained segmenter: label maps, probabilities, attention. Imports torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifacts.records import DataError, ImageRGB
from models.lgsa_deeplab import LGSADeepLab
from models.network import Segmenter
from models.resample import MIN_SIDE, extend, resize, scale_images
from tasks.boxes import usable_boxes
from tasks.crf.dense_crf import dense_crf, from_probabilities, stage_device
from tasks.deeplab.build import build_network
from tasks.deeplab.stages import Keep, PredictParams
from tasks.evaluate.score import confusion, read_as_wrong
from tasks.stage import CRF_MASK, LABEL_PROB, Arrays, Item, SkipImage, by_size, image_of
from tasks.training.context import FitData
from tasks.training.loop import Monitor
from tasks.training.networks import load_network

log = logging.getLogger("maskmill")

Build = Callable[[PredictParams, int], Segmenter]
"""Params and number of outputs -> network."""


def predict_items(items: Sequence[Item], params: PredictParams, build: Build = build_network) -> list[Arrays]:
    """Map function of :func:`tasks.deeplab.stages.predict`: images of one size go through the network together.

    ``mask_hw (H, W) uint8`` of each image at its own size: arg max of the fused probabilities, never 255. With
    ``params.crf`` also ``mask_crf_hw``, the arg max of the CRF's marginals. ``build`` makes the network; it is a
    function of a module.
    """

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        return [masks_of(*one, params) for one in zip(part, scores_of(part, params, build), strict=True)]

    return by_size(items, of_one_size)


def masks_of(item: Item, scores: Tensor, params: PredictParams) -> Arrays:
    """``mask_hw`` of scores ``(K+1, H, W)``; with ``params.crf`` also ``mask_crf_hw``."""
    arrays = {"mask_hw": scores.argmax(0).to("cpu").numpy().astype(np.uint8)}
    if params.crf is not None:
        unary = from_probabilities(probabilities_of(scores, params).to("cpu").numpy(), params.floor)
        device = stage_device(params.crf, item.device)
        arrays[CRF_MASK] = dense_crf(image_of(item), unary, params.crf, device=device).argmax(0).astype(np.uint8)
    return arrays


def mask_among(item: Item, classes: Iterable[int], scores: Tensor, params: PredictParams) -> Arrays:
    """``mask_hw`` of background and ``classes`` alone, by a CRF on their probabilities if there is one.

    With ``params.confidence`` also ``label_prob_hw``: the label's share of these classes' probabilities (with a CRF,
    its marginal), in 255ths.
    """
    own = np.array([0, *sorted(set(classes) - {0})], np.uint8)
    probs = probabilities_of(scores, params)[torch.from_numpy(own.astype(np.int64)).to(scores.device)]
    found_chw = probs.cpu().numpy()
    if params.crf is not None:
        unary = from_probabilities(found_chw, params.floor)
        found_chw = dense_crf(image_of(item), unary, params.crf, device=stage_device(params.crf, item.device))
    arrays: Arrays = {"mask_hw": np.asarray(own[found_chw.argmax(0)], np.uint8)}
    if params.confidence:
        share_hw = found_chw.max(0) / np.maximum(found_chw.sum(0), np.finfo(np.float32).tiny)
        arrays[LABEL_PROB] = np.round(255 * share_hw).astype(np.uint8)
    return arrays


def probs_items(items: Sequence[Item], params: PredictParams) -> list[Arrays]:
    """Map function of :func:`tasks.deeplab.stages.predict_probs`: ``probs_chw`` and ``classes_c`` of each image.

    Raises ``SkipImage`` where an image's classes are not known.
    """

    def of_one_size(part: Sequence[Item]) -> list[Arrays]:
        return [_probs(*one, params) for one in zip(part, scores_of(part, params, at_grid=True), strict=True)]

    for item in items:
        kept_classes(item, params.keep)
    return by_size(items, of_one_size)


def kept_classes(item: Item, keep: Keep) -> list[int]:
    """Class numbers, background first. Raises ``SkipImage`` where the image's own are not known."""
    if keep == "all":
        return list(range(len(item.classes) + 1))
    if keep == "boxes":
        return [0, *sorted({box.class_id for box in usable_boxes(item.record, difficult=True)})]
    if item.record.tags is None:
        raise SkipImage(f"{item.key}: no tags are known for this image, so the classes to keep are unknown")
    return [0, *sorted(set(item.record.tags))]


def _probs(item: Item, scores: Tensor, params: PredictParams) -> Arrays:
    classes_c = np.array(kept_classes(item, params.keep), np.uint8)
    probs_chw = probabilities_of(scores, params)[torch.from_numpy(classes_c.astype(np.int64)).to(scores.device)]
    return {"probs_chw": probs_chw.to("cpu").numpy().astype(np.float16), "classes_c": classes_c}


def scores_of(
    items: Sequence[Item], params: PredictParams, build: Build = build_network, *, at_grid: bool = False
) -> Tensor:
    """Fused scores ``(N, K+1, H, W)`` by the network of role ``net``, of images of one size."""
    first, test = items[0], params.test
    prefix = first.prefixes.get("net", "")
    network = load_network(first.nets["net"], build, params, len(first.classes) + 1, first.device, prefix)
    images = np.stack([image_of(item) for item in items])
    return batch_scores(network, images, test.scales, test.flip, test.fusion, at_grid=at_grid)


def probabilities_of(scores: Tensor, params: PredictParams) -> Tensor:
    """Maxima of logits are no probabilities yet; means of probabilities are."""
    return scores.softmax(0) if params.test.fusion == "max" else scores


def val_miou(network: Segmenter, data: FitData | None) -> Monitor | None:
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
    network: Segmenter,
    image_rgb: ImageRGB,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fusion: Literal["mean", "max"] = "mean",
    *,
    at_grid: bool = False,
) -> Tensor:
    """Scores ``(K+1, H, W) float32`` of one image ``(H, W, 3) uint8``: :func:`batch_scores`."""
    return batch_scores(network, image_rgb[None], scales, flip, fusion, at_grid=at_grid)[0]


def batch_scores(
    network: Segmenter,
    images_nhwc: NDArray[np.uint8],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fusion: Literal["mean", "max"] = "mean",
    *,
    at_grid: bool = False,
) -> Tensor:
    """Scores ``(N, K+1, H, W) float32`` at the images' own size, which is never cropped.

    For each scale (and mirror image) the network's scores are brought to the images' size, then fused: ``mean``
    averages probabilities, ``max`` takes the larger logit (DeepLab v2's fusion). ``at_grid``: at the network's output
    grid for the images instead.
    """
    device = next(network.parameters()).device
    height, width = images_nhwc.shape[1:3]
    images = torch.from_numpy(np.ascontiguousarray(images_nhwc.transpose(0, 3, 1, 2))).to(device).float()
    images = extend(images, math.ceil(MIN_SIDE / min(1.0, *scales)))
    size = (images.shape[2], images.shape[3])
    if at_grid:
        size, (height, width) = network.grid(size), network.grid((height, width))
    scores_of = network.logits if fusion == "max" else network.probabilities
    fused: Tensor | None = None
    count = 0
    with torch.inference_mode():
        for scale in scales:
            scaled = scale_images(images, scale)
            for mirrored in (False, True) if flip else (False,):
                scores = scores_of(scaled.flip(3), size).flip(3) if mirrored else scores_of(scaled, size)
                count += 1
                if fused is None:
                    fused = scores
                else:
                    fused = torch.maximum(fused, scores) if fusion == "max" else fused.add_(scores)
    if fused is None:
        raise ValueError("inference needs at least one scale")
    fused = fused[:, :, :height, :width]
    return fused if fusion == "max" else fused / count


def attention_maps(network: Segmenter, image_rgb: ImageRGB, xy: tuple[float, float]) -> list[NDArray[np.float32]]:
    """Of each self-attention module, W's row of the cell under pixel ``x, y``: ``(h, w) float32`` over the image.

    A row sums to 1, what falls on the image's extension to whole cells included. ``ValueError`` for a network without
    modules, or a pixel outside the image.
    """
    if not isinstance(network, LGSADeepLab):
        raise ValueError("this network has no self-attention")
    device = next(network.parameters()).device
    image = torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))[None].to(device).float()
    with torch.inference_mode():
        rows = network.attention_rows(image, (xy[1], xy[0]))
        _, share = network.whole(image)
        return [resize(row[None], (row.shape[1], row.shape[2]), share)[0, 0].cpu().numpy() for row in rows]
