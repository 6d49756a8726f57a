"""Units for the pool's tests: importable, so that workers can load them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HOARD: list[bytearray] = []
INITIALIZED: list[int] = []


def initialize() -> None:
    INITIALIZED.append(os.getpid())


def initialize_badly() -> None:
    raise RuntimeError("no such device")


class Odd(Exception):
    """Cannot be loaded by pickle: its constructor wants more than its args."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"odd {a} {b}")


@dataclass(frozen=True)
class Deeds:
    """Each image does what ``deeds`` says for its key; ``log`` gets a line ``pid unit-size key`` per try."""

    keys: tuple[str, ...]
    deeds: Mapping[str, str] = field(default_factory=dict)
    log: str = ""
    label: str = "deeds"
    seconds: float = 0.0
    before: str = ""
    after: str = ""

    def only(self, key: str) -> Deeds:
        return replace(self, keys=(key,))

    def run(self, report: Callable[[str], None], poisoned: Mapping[str, str]) -> dict[str, Any]:
        do(self.before)
        results: dict[str, Any] = {}
        for key in self.keys:
            report(key)
            if key in poisoned:
                results[key] = f"skip: {poisoned[key]}"
                continue
            if self.log:
                with open(self.log, "a") as file:
                    file.write(f"{os.getpid()} {len(self.keys)} {key}\n")
            results[key] = do(self.deeds.get(key, ""))
            time.sleep(self.seconds)
        report("")
        do(self.after)
        return results


def do(deed: str) -> Any:
    verb, _, rest = deed.partition(":")
    return VERBS[verb](rest)


def _raise(text: str) -> None:
    raise ValueError(text)


def _raise_odd(text: str) -> None:
    raise Odd(1, 2)


def _abort_once(path: str) -> str:
    """Die once, by kill -9, as if the machine had run out of memory in that moment."""
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


def _hoard(megabytes: str) -> int:
    HOARD.append(bytearray(os.urandom(1)) * (int(megabytes) << 20))
    return os.getpid()


def _descriptors(_: str) -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return links


def _cv2_threads(_: str) -> int:
    import cv2

    return int(cv2.getNumThreads())


def _die_abruptly(code: str) -> None:
    os._exit(int(code))


VERBS: dict[str, Callable[[str], Any]] = {
    "": lambda _: os.getpid(),
    "abort": lambda _: os.abort(),
    "segfault": lambda _: ctypes.string_at(0),
    "exit": _die_abruptly,
    "sysexit": lambda code: sys.exit(int(code)),
    "raise": _raise,
    "raise-odd": _raise_odd,
    "hang": lambda _: time.sleep(3600),
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "die-once": _abort_once,
    "unpicklable": lambda _: lambda: None,
    "modules": lambda _: sorted(sys.modules),
    "environ": lambda name: os.environ.get(name),
    "initialized": lambda _: list(INITIALIZED),
    "hoard": _hoard,
    "descriptors": _descriptors,
    "cv2-threads": _cv2_threads,
    "log": lambda text: logging.getLogger("maskmill.deeds").warning("%s %s", text, object()),
    "close-output": lambda _: os.closerange(1, 3),
}
