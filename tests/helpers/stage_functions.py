"""Stage functions for tests: importable by name in worker processes, which is how stages name them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.stage import Item, SkipImage


def threshold(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Bright pixels are class 1."""
    _count("threshold", item.key)
    assert item.image_rgb is not None
    return {"mask_hw": (item.image_rgb.mean(2) > params.level).astype(np.uint8)}


def invert(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """1 where the upstream mask is 0."""
    _count("invert", item.key)
    return {"mask_hw": 1 - item.up["source"]["mask_hw"]}


def touchy(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Does to the image named in its id what the id says."""
    name = item.key
    if "abort" in name:
        os.abort()
    if "hang" in name:
        time.sleep(600)
    if "nap" in name:
        time.sleep(0.6)
    if "skip" in name:
        raise SkipImage("nothing to see")
    if "memory" in name:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory\nframe #0")
    if "fault" in name:
        raise ZeroDivisionError("a fault of the stage")
    return {"mask_hw": np.full((2, 2), 1, np.uint8)}


def at_once(items: list[Item], params: Any) -> list[dict[str, NDArray[Any]]]:
    """:func:`touchy_threshold` of several images. Of ``short`` ones together the last result is left out."""
    _count("at_once", " ".join(item.key for item in items))
    results = [touchy_threshold(item, params) for item in items]
    return results[:-1] if len(items) > 1 and any("short" in item.key for item in items) else results


def touchy_threshold(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """:func:`threshold`, except for the images that :func:`touchy` minds."""
    touchy(item, params)
    return threshold(item, params)


def sleepy(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Takes its time."""
    _count("sleepy", item.key)
    time.sleep(params.level / 1000)
    return {"mask_hw": np.zeros((4, 4), np.uint8)}


def level(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """The parameter as a mask."""
    return {"mask_hw": np.full((2, 3), params.level, np.uint8)}


def twice(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Twice the upstream mask."""
    return {"mask_hw": 2 * item.up["source"]["mask_hw"]}


def worker_pid(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Who has done it."""
    return {"mask_hw": np.full((1, 1), os.getpid(), np.int32)}


def seen_gpus(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Device and visible GPUs, as text in an array."""
    text = f"{item.device} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ.get('CUDA_DEVICE_ORDER')}"
    return {"mask_hw": np.frombuffer(text.encode(), np.uint8)[None]}


def first_weight(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """The number ``w`` of the network that is meant."""
    from safetensors.numpy import load_file

    value = load_file(item.nets["net"])[item.prefixes.get("net", "") + "w"]
    return {"mask_hw": np.full((3, 3), value, np.uint8)}


def first_axis_only(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Returns an array that its stage does not declare."""
    return {"mask": np.zeros((2, 2), np.uint8)}


def edges(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Brightness, as if it were an edge map."""
    assert item.image_rgb is not None
    return {"edges_hw": item.image_rgb.mean(2).astype(np.uint8)}


def cams(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """A channel for class 1, on a grid of its own."""
    return {"cams_chw": np.full((1, 2, 2), params.level, np.float32), "classes_c": np.array([1], np.uint8)}


def both_masks(item: Item, params: Any) -> dict[str, NDArray[Any]]:
    """Everything is class 1 without a CRF, background with one."""
    assert item.image_rgb is not None
    mask_hw = np.ones(item.image_rgb.shape[:2], np.uint8)
    return {"mask_hw": mask_hw, "mask_crf_hw": 0 * mask_hw}


def _count(stage: str, key: str) -> None:
    """One line per image worked on, whichever process does it."""
    if path := os.environ.get("MASKMILL_TEST_COUNT"):
        with Path(path).open("a") as file:
            file.write(f"{stage} {key}\n")
