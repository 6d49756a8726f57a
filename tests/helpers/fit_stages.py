"""Small fits for the tests: importable, so that processes of their own can run them."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from artifacts import keys
from artifacts.cache.codec import to_plain
from artifacts.records import DataError, Record, Skip
from tasks.engine.fit_spec import FitSpec, plain_params
from tasks.engine.image_task import ImageTask
from tasks.stage import SkipImage

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.training.fit_process import FitContext

DIE = "FIT_TEST_DIE"
"""``STEP:raise`` or ``STEP:kill``: what happens in that step (0-based)."""


@dataclass(frozen=True)
class TinyParams:
    """A convolution, batch norm and dropout: everything that a resumed fit could get wrong."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    iterations: int = 12
    batch: int = 4
    lr: float = 0.05
    optimizer: Literal["sgd", "adam"] = "sgd"
    monitor_every: int = 0
    log_every: int = 4
    step_s: float = 0.0
    precision: Literal["32", "bf16", "fp16"] = "32"
    clip_norm: float | None = None
    norm: bool = True
    dropout: float = 0.3
    labelled: bool = False
    """Also learn label maps, of which the later images have ever fewer decided pixels."""
    refuse: tuple[str, ...] = ()
    """Keys that the sample function declines."""


class Died(RuntimeError):
    """Raised where a real kill would be."""


def fit(context: FitContext) -> dict[str, Tensor]:
    import torch
    from torch import nn
    from torch.nn import functional as F

    from models.losses import segmentation_loss
    from tasks.training.loop import poly, train_loop

    params: TinyParams = context.params
    print("what a library prints")
    os.write(1, b"even from C\n")
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3)]
    layers += [nn.BatchNorm2d(4)] if params.norm else []
    net = nn.Sequential(*layers, nn.ReLU(), nn.Dropout(params.dropout), nn.Conv2d(4, 1, 3))
    optimizer: Any
    if params.optimizer == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=params.lr, momentum=0.9, weight_decay=1e-3)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=params.lr)

    def sample(index: int, epoch: int, generator: np.random.Generator) -> dict[str, Tensor]:
        item = context.train.item(index)
        if item.key in params.refuse:
            raise SkipImage("refused")
        assert item.image_rgb is not None
        image = torch.from_numpy(item.image_rgb.transpose(2, 0, 1).astype(np.float32) / 255)
        # All four generators that a sample may use.
        noise = torch.rand(()) + float(generator.random()) + float(np.random.random()) + __import__("random").random()
        labels = (image[0] > 0.5).to(torch.uint8)
        labels[:index] = 255
        return {"image": image + 0.01 * noise, "target": image.mean(), "labels": labels}

    def step(nets: Mapping[str, Any], batch: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        die(index)
        time.sleep(params.step_s)
        predicted = nets["net"](batch["image"]).mean((1, 2, 3))
        loss = F.mse_loss(predicted, batch["target"])
        if params.labelled:
            scores = nets["net"](batch["image"])
            loss = loss + segmentation_loss(torch.cat([scores, -scores], 1), batch["labels"])
        return {"loss": loss, "extra": predicted.detach().mean()}

    def monitor() -> dict[str, float]:
        assert not net.training
        torch.rand(7)
        np.random.random(3)
        return {"val": float(net(torch.rand(2, 3, 8, 8)).mean())}

    tensors = train_loop(
        context,
        modules={"net": net},
        optimizers={"net": optimizer},
        sample=sample,
        step=step,
        iterations=params.iterations,
        batch_size=params.batch,
        schedule=poly(params.iterations),
        precision=params.precision,
        monitor=monitor if params.monitor_every else None,
        monitor_every=params.monitor_every,
        clip_norm=params.clip_norm,
        log_every=params.log_every,
    )
    if context.hardware.devices > 1:
        parameters = b"".join(parameter.detach().numpy().tobytes() for parameter in net.parameters())
        (context.folder / f"rank-{context.hardware.rank}").write_text(hashlib.sha256(parameters).hexdigest())
        (context.folder.parent / f"rank-{context.hardware.rank}").write_text(hashlib.sha256(parameters).hexdigest())
    return tensors


def die(index: int) -> None:
    when, _, how = os.environ.get(DIE, "-1:").partition(":")
    if index != int(when):
        return
    if how == "raise":
        raise Died(f"at step {index}")
    os.kill(os.getpid(), signal.SIGKILL)


def scribbled(context: FitContext) -> dict[str, Tensor]:
    """Learns where scribbles are: each end of a stroke must be a pixel of the image."""
    import torch

    seen = []
    for index in range(len(context.train)):
        try:
            item = context.train.item(index)
        except DataError as error:
            context.skip(Skip(context.train.key(index), item_path(context, index), str(error), True, context.label))
            continue
        assert item.image_rgb is not None and item.record.scribbles is not None
        seen += [float(item.image_rgb[int(y), int(x)].mean()) for s in item.record.scribbles for x, y in s.points_xy]
    return {"seen": torch.tensor(seen)}


def watched(context: FitContext) -> dict[str, Tensor]:
    """Counts what the monitor may not see."""
    import torch

    assert context.monitor is not None
    refused = 0
    for index in range(len(context.monitor)):
        try:
            context.monitor.item(index)
        except DataError:
            refused += 1
    return {"refused": torch.tensor([refused])}


def targets(context: FitContext) -> dict[str, Tensor]:
    """The first value of each target, in the members' order."""
    import torch

    return {"targets": torch.tensor([int(item.up["target"]["mask_hw"][0, 0]) for item in context.train.items()])}


def item_path(context: FitContext, index: int) -> str:
    return context.train.record(index).image


def broken(context: FitContext) -> dict[str, Tensor]:
    raise ValueError("a stage that cannot work")


def hungry(context: FitContext) -> dict[str, Tensor]:
    import torch

    return {"w": torch.empty(2**50)}


def write_images(folder: Path, count: int = 7) -> tuple[ImageTask, ...]:
    """Members with an 8x8 picture each."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    image_tasks = []
    for number in range(count):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), generator.integers(0, 256, (8, 8, 3), np.uint8))
        image_tasks.append(ImageTask(f"d/{number}", f"digest-{number}", Record(str(number), str(path))))
    return tuple(image_tasks)


def make_spec(cache: Path, train: tuple[ImageTask, ...], params: TinyParams | None = None, **changes: Any) -> FitSpec:
    """A spec as the Runner makes one."""
    name, plain = plain_params(params or TinyParams())
    stamp = keys.digest([[job.key for job in train], to_plain(params)])
    values: dict[str, Any] = {
        "cache": str(cache),
        "label": "tiny",
        "address": "tiny-0",
        "stamp": stamp,
        "function": "fit_stages:fit",
        "params_type": name,
        "params": plain,
        "train": train,
        "classes": ("cat",),
        "reads": ("image",),
        "device": "cpu",
        "lineage": "l",
        **changes,
    }
    return FitSpec(**values)


if __name__ == "__main__":
    sys.exit("this module is imported")
