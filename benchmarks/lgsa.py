"""LGSA's cost over plain DeepLab: time of a training step, and memory on a GPU. `python -m benchmarks.lgsa [...]`.

ResNet-101 at crop 321 (maps of 41 x 41) without a module, with two non-local ones, and with two LGSA modules (guided by
the labels, walk in the loss). Forward, backward and optimizer; the networks take turns, so that whatever else the
machine does slows all alike. Bar: two LGSA modules take at most a quarter more time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results
from models import deeplab, lgsa_deeplab
from models.groups import parameter_groups
from models.network import Segmenter

BAR = 1.25
CLASSES = 21
ALPHA = 10_000.0


def make_step(kind: str, modules: int, batch: int, crop: int, device: str) -> Callable[[], None]:
    """One training step of a network of its own, on data that lies on the device."""
    torch.manual_seed(0)
    network: Segmenter
    if kind == "plain":
        network = deeplab.build("resnet101", CLASSES)
    else:
        walk: lgsa_deeplab.Walk = "probabilities" if kind == "lgsa" else "off"
        alpha = ALPHA if kind == "lgsa" else 0.0
        network = lgsa_deeplab.build("resnet101", CLASSES, modules=modules, walk=walk, alpha=alpha)
    with torch.no_grad():  # frozen statistics of random weights make activations explode: keep the numbers finite
        for name, parameter in network.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(0.1)
    network = network.to(device).train().to(memory_format=torch.channels_last)
    groups = parameter_groups(network, network.rules, lr=2.5e-4, weight_decay=5e-4).groups
    optimizer = torch.optim.SGD([{k: v for k, v in g.items() if k != "names"} for g in groups], momentum=0.9)
    images = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    coarse = torch.randint(0, CLASSES, (batch, 4, 4), dtype=torch.uint8, device=device)
    side = -(-crop // 4)
    labels = coarse.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :crop, :crop]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            output = network(images, labels)
        network.losses(output, {"labels": labels})["loss"].backward()
        optimizer.step()

    return step


def products(kind: str, modules: int, crop: int) -> float:
    """Operations of an image's forward and backward pass by torch's counter (matrix products and convolutions)."""
    build: dict[str, Callable[[], torch.nn.Module]] = {
        "plain": lambda: deeplab.build("resnet101", CLASSES),
        "nonlocal": lambda: lgsa_deeplab.build("resnet101", CLASSES, modules=modules, walk="off"),
        "lgsa": lambda: lgsa_deeplab.build("resnet101", CLASSES, modules=modules),
    }
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:  # shapes only: no memory, no work
        output = build[kind]()(torch.zeros(1, 3, crop, crop))
        maps = output if isinstance(output, torch.Tensor) else output.walked_bkhw
        (output.logits_bkhw if maps is None else maps).sum().backward()
    return float(counter.get_total_flops())


def seconds_of(step: Callable[[], None], device: str, repetitions: int) -> float:
    started = time.perf_counter()
    for _ in range(repetitions):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repetitions


def peak_gib(kind: str, options: argparse.Namespace) -> float:
    """Most memory that one step of a network takes on a GPU, alone there."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = make_step(kind, options.modules, options.batch, options.crop, "cuda")
    step()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=0, help="default: 10 on a GPU, 1 on a CPU")
    parser.add_argument("--crop", type=int, default=321)
    parser.add_argument("--modules", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/lgsa.json")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.batch = options.batch or (10 if device == "cuda" else 1)
    kinds = ("plain", "nonlocal", "lgsa")
    figures: dict[str, object] = {"device": device, "batch": options.batch, "crop": options.crop}
    work = {kind: products(kind, options.modules, options.crop) for kind in kinds}
    figures["operations_over_plain"] = {kind: round(work[kind] / work["plain"], 3) for kind in kinds[1:]}
    if device == "cuda":
        figures["peak_gib"] = {kind: round(peak_gib(kind, options), 2) for kind in kinds}
    steps = {kind: make_step(kind, options.modules, options.batch, options.crop, device) for kind in kinds}
    for step in steps.values():
        step()
    repetitions = 20 if device == "cuda" else 1
    turns = [{kind: seconds_of(steps[kind], device, repetitions) for kind in kinds} for _ in range(options.turns)]
    figures["seconds_a_step"] = {kind: round(statistics.median(turn[kind] for turn in turns), 4) for kind in kinds}
    ratios = {kind: statistics.median(turn[kind] / turn["plain"] for turn in turns) for kind in kinds[1:]}
    figures["time_over_plain"] = {kind: round(ratio, 3) for kind, ratio in ratios.items()}
    print(figures)
    if options.save:
        print(results.save("lgsa", figures))
    if options.crop == 321 and options.modules == 2 and ratios["lgsa"] > BAR:
        print(f"LGSA takes {ratios['lgsa']:.2f} times the plain network's time; the bar is {BAR}")
        sys.exit(1)


if __name__ == "__main__":
    main()
