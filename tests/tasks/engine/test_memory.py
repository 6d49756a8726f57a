"""Is running out of memory known, whichever library says it, and is nothing else taken for it?"""

from __future__ import annotations

import errno
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import stage_functions
import torch

from artifacts.records import Record
from tasks.engine.memory import REMEDY, out_of_memory
from tasks.stage import Item

TOO_MUCH = 1 << 60


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def opencv() -> None:
    raise cv2.error("OpenCV(4.11.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 99 bytes in 'x'")


def system() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def stage() -> None:
    stage_functions.touchy(Item("d/memory", Record("memory", "memory.png"), (), None), None)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),  # what this torch really says
        lambda: np.empty(TOO_MUCH, np.uint8),
        lambda: bytearray(TOO_MUCH),
        cuda,
        opencv,
        system,
        stage,
    ],
)
def test_it_says_what_to_do(allocate: Callable[[], object]) -> None:
    with pytest.raises(Exception) as caught:
        allocate()
    said = out_of_memory(caught.value)
    assert said.startswith("not enough memory (") and said.endswith(f"); {REMEDY}") and "\n" not in said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes (3, 4) and (5, 6) do not fit"),
        ValueError("a box out of memory of the table"),
        OSError(errno.ENOSPC, "No space left on device"),
        cv2.error("error: (-215:Assertion failed) !ssize.empty()"),
    ],
)
def test_other_errors_are_other_errors(error: Exception) -> None:
    assert out_of_memory(error) == ""
