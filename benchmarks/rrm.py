"""RRM's own costs: the share of mining in a training step, images a second of maps, and the CRF at half the size.

    python -m benchmarks.rrm step [--crop 216] [--batch 8] [--scales 1 1.5]
    python -m benchmarks.rrm maps
    python -m benchmarks.rrm regions --data voc:PATH [--images 40]

Without a name: all three, on the demo data. Networks are EfficientNet-Lite0 at output stride 16 from its ImageNet
weights. On a CPU times are CPU time, which other processes do not change: a part's share of it is its share of a step
on cores that are all busy. On a GPU they are wall time. ``regions`` has maps of a linear head on the network's pooled
features, learnt from the tags of all training pictures (no network is trained), and scores against their truth.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifacts.datasets import DataParams, read_split
from artifacts.images import read_image_rgb
from artifacts.records import UNDECIDED, ImageRGB, MaskHW, RecordSet
from benchmarks import results
from models import cam, rrm
from models.network import BackboneNetwork
from tasks.reliable import ReliableParams, reliable_regions
from tasks.rrm.mining import Miner, threads_of
from tasks.training.networks import load_into
from tasks.training.weights import resolve

N = TypeVar("N", bound=BackboneNetwork)
STRIDE = 16
SCALES = (0.5, 1.0, 1.5, 2.0)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["step", "maps", "regions"], help="default: all")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--images", type=int, default=40, help="of regions")
    parser.add_argument("--crop", type=int, default=216)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5], help="of mining")
    parser.add_argument("--view", type=float, nargs="+", default=list(SCALES), help="scales of the maps of regions")
    parser.add_argument("--gamma", type=float, nargs="+", default=[4.0])
    parser.add_argument("--name", default="", help="keep the figures as benchmarks/results/NAME.json")
    args = parser.parse_args(given)
    torch.set_num_threads(1)  # threads that wait for each other cost CPU time, too
    figures = {}
    if args.what in (None, "step"):
        figures["step"] = step_shares(args.crop, args.batch, args.scales)
    if args.what in (None, "maps"):
        figures["maps"] = map_rate()
    if args.what in (None, "regions"):
        figures["regions"] = regions(args.data, args.images, args.view, args.gamma)
    if args.name:
        print(results.save(args.name, figures))
    return 0


def loaded(network: N) -> N:
    """The network with ImageNet's Lite0."""
    source = resolve("imagenet", "lite0", "weights")
    load_into(network, source.state(), source.description)
    return network


def cost(work: Callable[[], object], repetitions: int = 3) -> float:
    """Seconds of one call, warm: CPU time of all threads, or wall time with a GPU."""
    gpu = torch.cuda.is_available()
    clock = time.perf_counter if gpu else time.process_time
    work()
    started = clock()
    for _ in range(repetitions):
        work()
        if gpu:
            torch.cuda.synchronize()
    return (clock() - started) / repetitions


class _Known(Miner):
    """Makes its maps once: what is left is the rules and the CRFs."""

    known: Tensor | None = None

    def maps(self, images_nchw: Tensor) -> Tensor:
        """As :meth:`Miner.maps`, of the first images."""
        if self.known is None:
            self.known = super().maps(images_nchw)
        return self.known


def step_shares(crop: int, batch: int, scales: Sequence[float]) -> dict[str, float]:
    """Seconds of the parts of a step of joint training, and the share of mining: maps, and CRFs at both sizes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = loaded(rrm.build("lite0", 5, output_stride=STRIDE)).to(device).train()
    network.weights = dataclasses.replace(network.weights, threads=threads_of(0))
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, crop // 24 + 2, crop // 24 + 2, generator=generator) * 255
    images = torch.nn.functional.interpolate(coarse, size=(crop, crop), mode="bicubic").clamp(0, 255)
    images += torch.randn(images.shape, generator=generator) * 6
    made = {
        "image": images.clamp(0, 255).to(torch.uint8).to(device),
        "inside": torch.ones(batch, crop, crop, dtype=torch.bool, device=device),
        "tags": (torch.arange(5)[None] < 1 + torch.arange(batch)[:, None] % 2).float().to(device),
    }
    labels = torch.full((batch, crop, crop), UNDECIDED, dtype=torch.uint8, device=device)
    labels[:, : crop // 4], labels[:, -crop // 4 :] = 0, 1

    def learn() -> None:
        network.zero_grad()
        output = network(made["image"], made["inside"])
        network.losses(output, {**made, "labels": labels})["loss"].backward()

    found = {"network and losses": cost(learn)}
    for crf_scale in (1.0, 0.5):
        with _Known(network, ReliableParams(crf_scale=crf_scale), scales) as miner:
            if "maps" not in found:
                found["maps"] = cost(lambda: Miner.maps(miner, made["image"]))
            found[f"CRFs at {crf_scale:g}"] = cost(lambda: miner.start(made)())
    whole = {name: sum(found[part] for part in ("network and losses", "maps", name)) for name in list(found)[2:]}
    print(f"a step of {batch} crops of {crop} pixels, maps at {', '.join(f'{scale:g}' for scale in scales)}:")
    for name, seconds in found.items():
        print(f"  {name:20} {1000 * seconds:7.0f} ms")
    for name, seconds in whole.items():
        maps, crfs = found["maps"] / seconds, found[name] / seconds
        found |= {f"share of maps, {name}": maps, f"share of {name}": crfs}
        print(f"  with {name}: maps are {100 * maps:.0f} %, CRFs {100 * crfs:.1f} %")
    return found


def map_rate(size_hw: tuple[int, int] = (375, 500)) -> dict[str, float]:
    """Pictures a second whose maps at the paper's scales one core makes, as a worker process does."""
    network = loaded(cam.build("lite0", 20, output_stride=STRIDE)).eval()
    image = torch.randint(0, 256, (1, 3, *size_hw), dtype=torch.uint8)
    with torch.inference_mode():
        seconds = cost(lambda: network.maps(image, network.grid((2 * size_hw[0], 2 * size_hw[1])), SCALES))
    rate, cores = 1 / seconds, threads_of(0)
    print(f"maps of a {size_hw[1]} x {size_hw[0]} picture: {rate:.2f} a second and core, {cores * rate:.2f} on {cores}")
    return {"images a second and core": rate, "cores": cores}


def regions(source: str, count: int, scales: Sequence[float], gammas: Sequence[float]) -> dict[str, float]:
    """Regions of training pictures with the CRF at full and at half size: how many pixels differ, and the scores."""
    data = DataParams(source)
    records = read_split(data, data.train)
    network = loaded(cam.build("lite0", len(records.classes), output_stride=STRIDE)).eval()
    learn_head(network, records)
    chosen = [record for record in records if record.tags and record.truth is not None][:count]
    pictures = [read_image_rgb(Path(record.image)) for record in chosen]
    truth = [record.truth.load() for record in chosen if record.truth is not None]
    tags = [sorted(record.tags or ()) for record in chosen]
    maps = [maps_of(network, picture, numbers, scales) for picture, numbers in zip(pictures, tags, strict=True)]
    found: dict[str, float] = {"pictures": len(chosen)}
    for gamma in gammas:
        made: dict[float, list[MaskHW]] = {}
        for crf_scale in (1.0, 0.5):
            params = ReliableParams(gamma=gamma, crf_scale=crf_scale)
            started = time.process_time()
            made[crf_scale] = [reliable_regions(*one, params) for one in zip(pictures, maps, tags, strict=True)]
            seconds = (time.process_time() - started) / len(chosen)
            said = {f"ms, CRF at {crf_scale:g}": 1000 * seconds, **quality(made[crf_scale], truth)}
            print(f"gamma {gamma:g}, CRF at {crf_scale:g}: {', '.join(f'{n} {v:.1f}' for n, v in said.items())}")
            found |= {f"gamma {gamma:g}, {crf_scale:g}: {name}": value for name, value in said.items()}
        differing = float(np.mean([(a != b).mean() for a, b in zip(made[1.0], made[0.5], strict=True)]))
        found[f"gamma {gamma:g}: pixels that differ"] = differing
        print(f"gamma {gamma:g}: {100 * differing:.2f} % of the pixels have another label at half the size")
    return found


def learn_head(network: cam.CamNet, records: RecordSet, side: int = 224, iterations: int = 200) -> None:
    """Logistic regression of the tags on the pooled features of all pictures, each seen once at ``side`` squared."""
    pooled, tags = [], []
    with torch.inference_mode():
        for record in records:
            if record.tags is None:
                continue
            image = as_tensor(read_image_rgb(Path(record.image)))
            image = torch.nn.functional.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
            pooled.append(cam.average_inside(network.features(image))[0])
            tags.append(torch.tensor([float(number in record.tags) for number in range(1, len(records.classes) + 1)]))
    x, y = torch.stack(pooled).clone(), torch.stack(tags)
    weight = network.classifier.weight.detach()[:, :, 0, 0].zero_().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cam.multilabel_soft_margin(x @ weight.T, y) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        network.classifier.weight.copy_(weight[:, :, None, None])


def maps_of(
    network: cam.CamNet, image_rgb: ImageRGB, numbers: Sequence[int], scales: Sequence[float]
) -> NDArray[np.float32]:
    """Maps of some classes at the picture's size, before eq. 3."""
    with torch.inference_mode():
        maps = network.maps(as_tensor(image_rgb), (image_rgb.shape[0], image_rgb.shape[1]), scales)[0]
    return np.asarray(maps[[number - 1 for number in numbers]].numpy(), np.float32)


def quality(labels: Sequence[MaskHW], truth: Sequence[MaskHW]) -> dict[str, float]:
    """Per cent: share of labelled pixels, and how many of those of background and of objects are right."""
    right, made, decided, known = np.zeros(2), np.zeros(2), 0, 0
    for found, true in zip(labels, truth, strict=True):
        there = true != UNDECIDED
        known += int(there.sum())
        there &= found != UNDECIDED
        decided += int(there.sum())
        for half, of_half in enumerate((found == 0, found != 0)):
            made[half] += int((there & of_half).sum())
            right[half] += int((there & of_half & (found == true)).sum())
    background, objects = 100 * right / np.maximum(made, 1)
    return {"coverage": 100 * decided / max(known, 1), "background right": background, "objects right": objects}


def as_tensor(image_rgb: ImageRGB) -> Tensor:
    """``(1, 3, H, W)`` float."""
    return torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))[None].float()


if __name__ == "__main__":
    sys.exit(main())
