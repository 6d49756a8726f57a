"""A toy method, file 2 of 3: its network, two fits and two inferences. Torch lives here, imported when a stage runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toy_stage import ToyNet, ToyParams

from artifacts.records import UNDECIDED
from models.groups import GroupRule
from models.losses import segmentation_loss
from models.network import Network
from models.normalise import IMAGENET, Normalisation, Normalise
from tasks.stage import Arrays, Item
from tasks.training.augment import Augmentation, augment, check_labels
from tasks.training.context import FitContext
from tasks.training.loop import Batch, Nets, poly, train_loop
from tasks.training.networks import fill_rgb, initial_network, load_network
from tasks.training.optim import make_optimizer


class Toy(Network):
    """Three convolutions: ``(N, 3, H, W)`` RGB 0..255 -> ``(N, outputs, H, W)`` logits."""

    PRETRAINED = "features."

    def __init__(self, width: int, outputs: int, normalisation: Normalisation = IMAGENET) -> None:
        super().__init__()
        self.normalise = Normalise(normalisation)
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=4, dilation=4), nn.ReLU()
        )
        self.head = nn.Conv2d(width, outputs, 1)
        self.rules: Sequence[GroupRule] = (
            GroupRule("features", lambda name: name.startswith("features."), 1.0),
            GroupRule("head", lambda name: name.startswith("head."), 10.0, decay=False),
        )

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits at the images' size."""
        logits: Tensor = self.head(self.features(self.normalise(images_nchw)))
        return logits


def build(params: ToyNet | ToyParams, outputs: int, normalisation: Normalisation = IMAGENET) -> Toy:
    """The network that ``params`` describe."""
    return Toy(params.width, outputs, normalisation)


def train_prior(context: FitContext) -> dict[str, Tensor]:
    """Object or not, from masks of whatever classes."""

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        labels = batch["target"]
        objects = torch.where(labels == UNDECIDED, labels, (labels > 0).to(labels.dtype))
        return {"loss": segmentation_loss(nets["toy"](batch["image"]), objects)}

    return learn(context, 2, step)


def train_segmenter(context: FitContext) -> dict[str, Tensor]:
    """Labels where there are any; everywhere inside the picture, object or not as the soft target has it."""
    params: ToyParams = context.params

    def step(nets: Nets, batch: Batch, index: int) -> dict[str, Tensor]:
        logits = nets["toy"](batch["image"])
        hard = segmentation_loss(logits, batch["target"])
        objects = 1.0 - logits.softmax(1)[:, 0]
        soft = ((objects - batch["soft"]).square() * batch["inside"]).mean()
        return {"loss": hard + params.soft_weight * soft, "hard": hard.detach(), "soft": soft.detach()}

    return learn(context, len(context.classes) + 1, step)


def learn(
    context: FitContext, outputs: int, step: Callable[[Nets, Batch, int], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What both fits have in common."""
    params: ToyParams = context.params
    network = initial_network(context, params, lambda n: build(params, outputs, n), key="params.toy.weights")
    transform = Augmentation(params.crop, (0.75, 1.25), fill_rgb=fill_rgb(network)).build()

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Any]:
        item = context.train.item(index)
        assert item.image_rgb is not None
        soft = {"soft": item.up["soft"]["object_hw"]} if "soft" in item.up else {}
        target = {"target": item.up["target"]["mask_hw"]}
        check_labels(target["target"], item.image_rgb, len(item.classes), item.key)
        drawn = augment(transform, item.image_rgb, target, soft, seed=int(generator.integers(2**62)))
        return {"image": drawn.image, "inside": drawn.inside, **drawn.labels, **drawn.soft}

    iterations = params.total_iterations(len(context.train))
    return train_loop(
        context,
        modules={"toy": network.train()},
        optimizers={"toy": make_optimizer(network, params)},
        sample=sample,
        step=step,
        iterations=iterations,
        batch_size=params.batch,
        schedule=poly(iterations),
        precision=params.precision,
    )


def objectness_item(item: Item, params: ToyNet) -> Arrays:
    """Map function of :func:`toy_stage.objectness`."""
    return {"object_hw": probabilities(item, params, 2)[1].astype(np.float16)}


def predict_item(item: Item, params: ToyNet) -> Arrays:
    """Map function of :func:`toy_stage.predict`."""
    return {"mask_hw": probabilities(item, params, len(item.classes) + 1).argmax(0).astype(np.uint8)}


def probabilities(item: Item, params: ToyNet, outputs: int) -> NDArray[np.float32]:
    """``(outputs, H, W)`` of one image."""
    assert item.image_rgb is not None
    network = load_network(item.nets["net"], build, params, outputs, item.device, item.prefixes.get("net", ""))
    image = torch.from_numpy(np.ascontiguousarray(item.image_rgb.transpose(2, 0, 1)))[None].to(item.device)
    with torch.inference_mode():
        found: NDArray[np.float32] = network(image)[0].softmax(0).cpu().numpy()
    return found
