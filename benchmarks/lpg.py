"""LPG's E-step on this machine: samples a second, and the share of them that is reading and augmenting.

A sample reads a JPEG, its truth mask and the segmenter's stored probabilities from the cache; nothing is inferred. Both
parts are measured as CPU time of one thread, on drawn pictures of 384 x 384: `python -m benchmarks.lpg`. The bar: at
most a fifth of the time is not the generator's.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from artifacts.cache.store import MaskStore
from artifacts.demo.data import DemoParams, make_sample
from artifacts.records import Box, Record
from benchmarks import results
from models import hourglass
from models.losses import segmentation_loss
from tasks.engine.image_task import ImageTask
from tasks.lpg.network import ClassData, sampler
from tasks.lpg.stages import GeneratorParams
from tasks.training import rng
from tasks.training.context import FitData
from tasks.training.networks import fill_rgb

BAR = 0.2
SIZE = 384


def members(folder: Path, count: int) -> tuple[list[ImageTask], tuple[str, ...]]:
    """Pictures on disk, truth and probabilities (a grid of stride 8) in a cache."""
    params = DemoParams(train=count, size=SIZE, family="auxiliary")
    store, tasks = MaskStore(folder), []
    for index in range(count):
        drawn = make_sample(params, "train", index)
        path = folder / f"{drawn.image_id}.jpg"
        buffer = io.BytesIO()
        Image.fromarray(drawn.image_rgb).save(buffer, format="JPEG", quality=90)
        path.write_bytes(buffer.getvalue())
        numbers = [params.classes.index(name) + 1 for name in drawn.classes]
        boxes = tuple(Box(i, numbers[i], *xyxy) for i, xyxy in enumerate(drawn.boxes_xyxy))
        own = np.array([0, *sorted(set(numbers))], np.uint8)
        probs = np.random.default_rng(index).random((len(own), SIZE // 8, SIZE // 8)).astype(np.float16)
        key, stamp = f"bench/{drawn.image_id}", f"s{index}"
        store.write_segment("truth-0", [(key, stamp, {"mask_hw": drawn.mask_hw})], meta={})
        store.write_segment("probs-0", [(key, stamp, {"probs_chw": probs, "classes_c": own})], meta={})
        up = {"target": ("truth-0", stamp), "probs": ("probs-0", stamp)}
        tasks.append(ImageTask(key, stamp, Record(drawn.image_id, str(path), boxes=boxes), up))
    return tasks, params.classes


def main(given: list[str] | None = None) -> int:
    """Measure, print, keep; exit status 1 below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="hourglass")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    params = replace(GeneratorParams(), network=args.network, crop=args.crop, batch=args.batch)
    network = hourglass.build(args.network).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters())
    reading, learning = 0.0, 0.0
    with tempfile.TemporaryDirectory(prefix="maskmill-bench-") as folder:
        tasks, classes = members(Path(folder), 8)
        data = ClassData(FitData(folder, tasks, ("image", "boxes"), classes), difficult=True)
        sample = sampler(data, params, fill_rgb(network))
        for step in range(args.steps + 1):  # the first one warms up
            started = time.process_time()
            drawn = [sample((step * args.batch + i) % len(data), 0, rng.generator(step, i)) for i in range(args.batch)]
            batch = torch.utils.data.default_collate(drawn)
            read = time.process_time()
            segmentation_loss(network(batch["image"], batch["box"], batch["prob"]), batch["target"]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step:
                reading += read - started
                learning += time.process_time() - read
    share = reading / (reading + learning)
    rate = args.steps * args.batch / (reading + learning)
    print(
        f"{args.network}, crop {args.crop}, batch {args.batch}: {rate:.2f} samples/s of one thread;"
        f" {1000 * reading / args.steps / args.batch:.1f} ms of a sample in the loader, {share:.1%} (bar {BAR:.0%})"
    )
    results.save("lpg", {**vars(args), "samples_per_s": rate, "loader_share": share})
    return int(share > BAR)


if __name__ == "__main__":
    sys.exit(main())
