"""Online mining: reliable regions of a training batch, from the network's own maps as they are now. Imports torch.

RRM, Algorithm 1, lines 2 to 7. The maps are made without gradient; the rest is numpy and the CRF, an image a thread,
while the network works on the batch: the CRF lets go of Python's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifacts.records import UNDECIDED, MaskHW
from models.rrm import RRM
from tasks.reliable import ReliableParams, reliable_regions
from tasks.training.fabric import Precision
from tasks.training.loop import Batch

Pending = Callable[[], Tensor]
"""Waits for the labels ``(N, H, W)`` uint8 of a batch, on its device."""


class Miner:
    """Mines batch after batch; a context manager, whose end stops its threads."""

    def __init__(
        self,
        network: RRM,
        params: ReliableParams,
        scales: Sequence[float],
        threads: int = 0,
        precision: Precision = "32",
    ) -> None:
        self._network = network
        self._params = params
        self._scales = tuple(scales)
        self._dtype = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._pool = ThreadPoolExecutor(threads_of(threads), thread_name_prefix="mining")

    def __enter__(self) -> Miner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, batch: Batch) -> Pending:
        """Labels of ``image`` ``(N, 3, H, W)`` with ``tags`` ``(N, K)``, where ``inside`` ``(N, H, W)``; 255 elsewhere.

        The same for any number of threads. The network keeps its mode, its numbers and its gradients.
        """
        images, tags_nk, inside = batch["image"], batch["tags"].cpu().numpy(), batch["inside"].cpu().numpy()
        maps = self.maps(images).cpu().numpy()
        pictures = images.cpu().numpy().transpose(0, 2, 3, 1)
        jobs = [
            self._pool.submit(mine, pictures[n], maps[n], tags_nk[n], inside[n], self._params)
            for n in range(len(pictures))
        ]
        return lambda: torch.from_numpy(np.stack([job.result() for job in jobs])).to(images.device)

    def maps(self, images_nchw: Tensor) -> Tensor:
        """The classifier's maps at the crop's size ``(N, K, H, W)`` float32 before eq. 3, without dropout."""
        network, training = self._network, self._network.training
        size = (images_nchw.shape[2], images_nchw.shape[3])
        network.eval()
        try:
            with (
                torch.no_grad(),
                torch.autocast(images_nchw.device.type, self._dtype, enabled=self._dtype is not None),
            ):
                return network.maps(images_nchw, size, self._scales).float()
        finally:
            network.train(training)


def mine(
    image_rgb: NDArray[np.uint8],
    maps_khw: NDArray[np.float32],
    tags_k: NDArray[np.float32],
    inside_hw: NDArray[np.bool_],
    params: ReliableParams,
) -> MaskHW:
    """Reliable regions ``(H, W)`` uint8 of one crop: eq. 3 to 7 on the picture in it alone, 255 on its padding.

    ``maps_khw`` are those of all classes, class c at c - 1. The picture is a rectangle of the crop.
    """
    labels_hw = np.full(inside_hw.shape, UNDECIDED, np.uint8)
    rows, columns = (np.flatnonzero(inside_hw.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return labels_hw
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    (own,) = np.nonzero(tags_k)
    picture = np.ascontiguousarray(image_rgb[part])
    labels_hw[part] = reliable_regions(picture, maps_khw[own][:, *part], (own + 1).tolist(), params)
    return labels_hw


def threads_of(wanted: int) -> int:
    """``wanted``, or for 0 the cores that this process may use."""
    return wanted or len(os.sched_getaffinity(0))
