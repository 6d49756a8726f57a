"""Random numbers that depend on the work alone, never on the process or on earlier work.

Every draw of a fit comes from a seed that is a hash of names: (fit's seed, "sample", epoch, image id), (fit's seed,
"step", iteration, rank). So there is no generator state to carry over a kill, and 0, 1 or 8 loader workers give the
same samples. The data set's name is in none of them: a copy under another name gives the same fit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_of(*names: object) -> int:
    """A 63-bit seed from names (ints and text), the same on every machine."""
    text = repr([(type(name).__name__, str(name)) for name in names])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*names: object) -> np.random.Generator:
    """A fresh numpy generator for these names."""
    return np.random.Generator(np.random.PCG64(seed_of(*names)))


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The order ``(length,) int64`` of the members in an epoch."""
    return generator(seed, "order", epoch).permutation(length)


def gpus_in_use() -> bool:
    """Whether this process has begun to use a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def seed_all(*names: object) -> None:
    """Seed every global generator: torch (CPU, and GPUs once they are in use), numpy's old one, Python's."""
    seed = seed_of(*names)
    # torch.manual_seed would also format a stack trace for GPUs that are not in use: too slow for every step.
    torch.default_generator.manual_seed(seed)
    if gpus_in_use():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


@contextlib.contextmanager
def preserved(*, gpus: bool = True) -> Iterator[None]:
    """Leave every global generator as it was found."""
    python, old, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if gpus and gpus_in_use() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(old)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def sample_generators(*names: object) -> Iterator[np.random.Generator]:
    """For one sample: a numpy generator, and the global CPU generators seeded alike, put back afterwards.

    The GPU's generator is left alone (``torch.manual_seed`` would reset it, and dropout with it).
    """
    seed = seed_of(*names)
    with preserved(gpus=False):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        random.seed(seed)
        yield np.random.Generator(np.random.PCG64(seed))
