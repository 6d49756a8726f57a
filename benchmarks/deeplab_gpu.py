"""DeepLab-ResNet-101 training steps at 321 x 321 on a GPU: images/s, and the share of the bf16 peak.

``python -m benchmarks.deeplab_gpu [--batch 10] [--iterations 30] [--compile]``. The peak is measured in the same run
(a large bf16 matrix product), beside the maker's figure where it is known; the network's work is counted by torch's
own FLOP counter (forward and backward). The step is timed on data that lies on the GPU, then the network alone
(without loss and optimizer) and the same steps fed from host memory: which of them is the limit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import deeplab
from models.groups import parameter_groups
from models.losses import segmentation_loss
from tasks.training.augment import Augmentation, augment

DENSE_BF16_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40": 181, "4090": 165, "A10": 125}
"""Makers' dense bf16 figures, by a part of the device's name."""


def timed(work: Callable[[], object], repetitions: int) -> float:
    """Seconds per call, warm."""
    for _ in range(5):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repetitions):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repetitions


def measured_peak() -> float:
    """bf16 TFLOP/s of an 8192 x 8192 x 8192 product."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / timed(lambda: a @ a, 20) / 1e12


def host_samples_per_second(seconds: float = 3.0) -> float:
    """Augmented 321 x 321 crops of a 375 x 500 image that ONE loader worker makes a second, decoding left out."""
    image = torch.randint(0, 256, (375, 500, 3), dtype=torch.uint8).numpy()
    mask = torch.randint(0, 21, (375, 500), dtype=torch.uint8).numpy()
    transform = Augmentation(321, (0.5, 1.5)).build()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        augment(transform, image, mask, count)
        count += 1
    torch.set_num_threads(threads)
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here")
        return
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    network = deeplab.build("resnet101", 21).cuda().train().to(memory_format=torch.channels_last)
    with torch.no_grad():  # frozen statistics of random weights make activations explode: keep the numbers finite
        for name, parameter in network.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(0.1)
    groups = parameter_groups(network, network.rules, lr=2.5e-4, weight_decay=5e-4).groups
    optimizer = torch.optim.SGD([{k: v for k, v in g.items() if k != "names"} for g in groups], momentum=0.9)
    images = torch.randint(0, 256, (options.batch, 3, 321, 321), dtype=torch.uint8, device="cuda")
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 21, (options.batch, 321, 321), dtype=torch.uint8, device="cuda")
    model = torch.compile(network) if options.compile else network

    def step(source: torch.Tensor = images) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(source)
        segmentation_loss(logits, labels).backward()
        optimizer.step()

    def network_only() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(images)
        logits.backward(torch.ones_like(logits))
        optimizer.zero_grad(set_to_none=True)

    on_host = images.cpu().pin_memory()
    with FlopCounterMode(display=False) as counter, torch.autocast("cuda", torch.bfloat16):
        segmentation_loss(network(images), labels).backward()
    flops = counter.get_total_flops()
    seconds = timed(step, options.iterations)
    without_loss = timed(network_only, options.iterations)
    fed = timed(lambda: step(on_host.to("cuda", non_blocking=True)), options.iterations)
    achieved, peak = flops / seconds / 1e12, measured_peak()
    name = torch.cuda.get_device_name()
    stated = next((value for part, value in DENSE_BF16_TFLOPS.items() if part in name), None)
    rate = options.batch / seconds
    per_worker = host_samples_per_second()
    result = {
        "device": name,
        "torch": torch.__version__,
        "batch": options.batch,
        "compile": options.compile,
        "images_per_s": round(rate, 1),
        "ms_per_step": round(seconds * 1e3, 2),
        "ms_network_without_loss_and_optimizer": round(without_loss * 1e3, 2),
        "ms_per_step_fed_from_host": round(fed * 1e3, 2),
        "tflop_per_image": round(flops / options.batch / 1e12, 4),
        "achieved_tflops": round(achieved, 1),
        "measured_peak_tflops": round(peak, 1),
        "share_of_measured_peak": round(achieved / peak, 3),
        "share_of_stated_peak": None if stated is None else round(achieved / stated, 3),
        "loader_workers_needed": round(rate / per_worker, 2),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
