"""Running out of memory, whichever library says it. No torch."""

from __future__ import annotations

import errno

SAID = ("DefaultCPUAllocator", "not enough memory", "out of memory", "Insufficient memory", "bad_alloc", "ALLOC_FAILED")
"""What torch (CPU, CUDA), OpenCV and C++ say; only numpy and Python itself raise a ``MemoryError``."""
REMEDY = "make the picture smaller, or do fewer at once (fewer workers or threads)"


def out_of_memory(error: BaseException, remedy: str = REMEDY) -> str:
    """What happened and what to do, where memory ran out; empty for every other error."""
    system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    # OpenCV's error is an Exception of its own.
    told = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    if not (isinstance(error, MemoryError) or system or (told and any(word in str(error) for word in SAID))):
        return ""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"not enough memory ({first}); {remedy}"
