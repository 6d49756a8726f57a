"""A training step of Lite0 with quick depthwise gradients, over torch's own. `python -m benchmarks.lite0_step`.

DeepLab as in the configuration photo (crop 224, batch 8, output stride 16) in float32 and in bfloat16. The networks
take turns, so that whatever else the machine does slows all alike. Bar: in neither precision slower than torch's own.
bfloat16 pays on CPUs with AMX alone (``lscpu`` shows ``amx_bf16``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import results
from models import deeplab
from models.depthwise import Pair

BAR = 1.0
CROP, BATCH, OUTPUTS = 224, 8, 7


def torchs_own(x: Tensor, weight: Tensor, stride: int, padding: Pair, dilation: int) -> Tensor:
    """The peer."""
    return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))


def make_step(precision: str, *, own: bool) -> Callable[[], None]:
    """One training step of a network of its own."""
    torch.manual_seed(0)
    network = deeplab.build("lite0", OUTPUTS, output_stride=16).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    images = torch.randint(0, 256, (BATCH, 3, CROP, CROP), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, OUTPUTS, (BATCH, CROP, CROP), dtype=torch.uint8)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = network.losses(network(images), {"labels": labels})["loss"]
        loss.backward()
        optimizer.step()

    def peer() -> None:
        with mock.patch("models.backbones.depthwise_conv2d", torchs_own):
            step()

    return peer if own else step


def seconds_of(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/lite0_step.json")
    options = parser.parse_args()
    steps = {(precision, own): make_step(precision, own=own) for precision in ("32", "bf16") for own in (True, False)}
    for _ in range(2):
        for step in steps.values():
            step()
    turns = [{kind: seconds_of(step) for kind, step in steps.items()} for _ in range(options.turns)]
    seconds = {kind: statistics.median(turn[kind] for turn in turns) for kind in steps}
    ratios = {p: round(statistics.median(t[p, True] / t[p, False] for t in turns), 2) for p in ("32", "bf16")}
    figures = {
        "threads": torch.get_num_threads(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "seconds_a_step": {f"{p}{', torch' if own else ''}": round(found, 3) for (p, own), found in seconds.items()},
        "torchs_time_over_ours": ratios,
        "float32_over_bf16": round(statistics.median(turn["32", False] / turn["bf16", False] for turn in turns), 2),
    }
    print(figures)
    if options.save:
        print(results.save("lite0_step", figures))
    if min(ratios.values()) < BAR:
        print(f"slower than torch's own gradients: {ratios}")
        sys.exit(1)


if __name__ == "__main__":
    main()
