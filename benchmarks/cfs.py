"""CFS inference: crops per second at batch, against a loop of single crops. `python -m benchmarks.cfs [--preset ...]`.

Both sides decode the same JPEGs, crop, run the same network and paste back. The loop is one process with one thread
that predicts one crop after the other, as a first version would be written. The stage runs through the Runner, with a
worker process for each core, or one on a GPU, all boxes of an image together, and stores its arrays; the workers'
start is left out. The two take turns. `network` is the network alone on crops that are there already, by batch size.

Bars: 2 times the loop on two cores, 10 times on a GPU. The network's weights are random: the time is the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from artifacts.images import read_image_rgb
from artifacts.records import Box, Record, RecordSet
from benchmarks import results
from models import unet
from tasks.boxes import pixel_window
from tasks.cfs import network as cfs_net
from tasks.cfs import stages as cfs
from tasks.cfs.box_crop import BoxCrop
from tasks.cfs.stages import PRESETS, CFSParams
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.stage import FitHandle
from tasks.training.networks import load_network

SIZE = (375, 500)
CLASSES = tuple(f"class {i}" for i in range(20))
BATCHES = (1, 4, 8, 32, 64)
BARS = {"cpu": 2.0, "cuda": 10.0}


def make_images(folder: Path, images: int, boxes: int) -> RecordSet:
    """Smooth JPEGs with ``boxes`` boxes each, of 30 to 300 pixels a side."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(images):
        path = folder / f"{number:04d}.jpg"
        coarse = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC))
        found = []
        for i in range(boxes):
            w, h = (int(v) for v in rng.integers(30, 300, 2))
            x, y = int(rng.integers(0, SIZE[1] - w)), int(rng.integers(0, SIZE[0] - h))
            found.append(Box(i, 1 + i % len(CLASSES), x, y, x + w, y + h))
        records.append(Record(path.stem, str(path), boxes=tuple(found)))
    return RecordSet("bench", "train", CLASSES, tuple(records))


def load(weights: Path, params: cfs.CFSPredictParams, device: str) -> unet.UNet:
    """The network of a checkpoint, in the params' memory format."""
    last = params.channels_last
    return load_network(str(weights), cfs_net.build_network, params, len(CLASSES), device, channels_last=last)


def single_crops(network: unet.UNet, records: RecordSet, params: cfs.CFSPredictParams) -> None:
    """The obvious loop: box by box."""
    for record in records:
        image_rgb = read_image_rgb(Path(record.image))
        for box in record.boxes or ():
            crop = BoxCrop.around(pixel_window(box.xyxy, SIZE), params.context, params.crop)
            cfs_net.box_probabilities(network, image_rgb, [crop], [box.class_id], params)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def network_alone(network: unet.UNet, params: cfs.CFSPredictParams, seconds: float = 2.0) -> dict[str, float]:
    """batch -> crops per second, crops in memory and probabilities brought back."""
    side, found = params.crop, {}
    for batch in BATCHES if next(network.parameters()).is_cuda else BATCHES[:-1]:
        pictures = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        boxes, classes = np.ones((batch, side, side), np.bool_), [1] * batch
        cfs_net.crop_probabilities(network, pictures, boxes, classes, params)
        done, started = 0, time.perf_counter()
        while done < 2 or time.perf_counter() - started < seconds:
            cfs_net.crop_probabilities(network, pictures, boxes, classes, params)
            done += 1
        found[str(batch)] = done * batch / (time.perf_counter() - started)
    return found


def stage_seconds(records: RecordSet, params: CFSParams, net: FitHandle, device: str, cache: Path) -> float:
    """Seconds of the stage over all records, without its workers' start.

    On CPUs the workers are there and have the network: another stage has used them. On a GPU they end with each
    stage, so the time of a few images is taken off.
    """
    options = RunParams(cache=str(cache), device=device, progress=False)  # type: ignore[arg-type]
    first = records.only([record.image_id for record in records][: max(1, options.worker_count)])
    with Runner(options) as run:
        start_up = timed(lambda: run.map(cfs.predict(params, name="start"), first, net=net))
        whole = timed(lambda: run.map(cfs.predict(params), records, net=net))
    return whole if device == "cpu" else whole - start_up


def turn(
    records: RecordSet, params: CFSParams, net: FitHandle, device: str, loop_net: unet.UNet, cache: Path
) -> tuple[float, float]:
    """Seconds of the loop, and of the stage."""
    # The loop has the plain memory format, like the code that it stands for.
    plain = dataclasses.replace(cfs.predict(params).params, channels_last=False)
    torch.set_num_threads(1)
    loop = timed(lambda: single_crops(loop_net, records, plain))
    return loop, stage_seconds(records, params, net, device, cache)


def measure(name: str, params: CFSParams, device: str, images: int, boxes: int, turns: int) -> dict[str, Any]:
    """Crops per second of loop and stage, and their ratio (median over the turns)."""
    predict_params = cfs.predict(params).params
    params = dataclasses.replace(params, weights="none")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        records = make_images(folder, images, boxes)
        weights = folder / "weights.safetensors"
        save_file(unet.build(params.network, len(CLASSES), width=params.width).state_dict(), weights)
        net = FitHandle("cfs", cfs.fit(params), "bench", "0", "0", str(weights))
        plain = dataclasses.replace(predict_params, channels_last=False)
        loop_net = load(weights, plain, device)
        single_crops(loop_net, records.only([records.records[0].image_id]), plain)
        taken = [turn(records, params, net, device, loop_net, folder / f"cache-{i}") for i in range(turns)]
        alone = network_alone(load(weights, predict_params, device), predict_params)
    loop, stage = (images * boxes / statistics.median(seconds) for seconds in zip(*taken, strict=True))
    ratio = statistics.median(one / whole for one, whole in taken)
    print(f"{name} on {device}: {params.network}, {params.crop} px, {boxes} boxes an image")
    print(f"  loop of single crops    {loop:8.1f} crops/s")
    print(f"  stage                   {stage:8.1f}   ratio {ratio:.2f} (bar {BARS[device]:g})")
    print("  network, by batch      ", ", ".join(f"{batch}: {rate:.1f}" for batch, rate in alone.items()))
    return {
        "network": params.network,
        "crop": params.crop,
        "boxes_per_image": boxes,
        "loop_crops_per_s": loop,
        "stage_crops_per_s": stage,
        "ratio": ratio,
        "network_crops_per_s_by_batch": alone,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=["voc", "demo"], default=["demo", "voc"])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--images", type=int, default=0, help="default: some seconds' worth")
    parser.add_argument("--boxes", type=int, default=0, help="boxes an image; default: 8, on a GPU 64")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/cfs.json")
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    boxes = options.boxes or (64 if device == "cuda" else 8)
    figures: dict[str, Any] = {}
    for name in options.preset:
        images = options.images or (32 if device == "cuda" else {"voc": 6, "demo": 120}[name])
        figures[name] = measure(name, PRESETS[name], device, images, boxes, options.turns)
    if options.save:
        print(results.save("cfs" if device == "cpu" else "cfs_gpu", {"device": device, **figures}))
    missed = [name for name, one in figures.items() if one["ratio"] < BARS[device]]
    if missed:
        print(f"below the bar: {', '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
