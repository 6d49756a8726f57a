"""The work folder of one fit: checkpoints that resume it, and the metrics of its curve.

Only the holder of the fit's lock writes here (:mod:`artifacts.cache.fit_store`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.cache.atomic import TEMPORARY_PREFIX, fsync_folder, kill_point, naming, write_atomic
from artifacts.cache.segments import StoreError

log = logging.getLogger("maskmill")

METRICS = "metrics.jsonl"
KEEP_CHECKPOINTS = 2
"""The newest, and one to fall back on if the disk damaged it."""


class Work:
    """A fit's work folder: checkpoints, and metrics that are cut back to where the fit resumes."""

    MAGIC = b"maskmill checkpoint 2\n"

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        remove_temporaries(path)

    @property
    def metrics(self) -> Path:
        """``metrics.jsonl``."""
        return self.path / METRICS

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted(self.path.glob("step-*.ckpt"))

    def save(self, step: int, payload: bytes) -> Path:
        """Write the checkpoint of ``step`` (iterations done) atomically; older ones but one are removed."""
        path = self.path / f"step-{step:09d}.ckpt"
        head = self.MAGIC + self._checksum(payload) + b"\n"
        half = len(payload) // 2

        def write(file: Any) -> None:
            file.write(head)
            file.write(memoryview(payload)[:half])
            file.flush()
            kill_point("fit.mid_checkpoint")
            file.write(memoryview(payload)[half:])

        write_atomic(path, write)
        for old in self.checkpoints()[:-KEEP_CHECKPOINTS]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[int, bytes] | None:
        """``(step, payload)`` of the newest whole checkpoint; a damaged one is removed with a warning.

        One that cannot be read now is kept: it may be readable later. Raises ``StoreError`` if there are only
        such ones, rather than start from the beginning.
        """
        unread: StoreError | None = None
        for path in reversed(self.checkpoints()):
            try:
                return int(path.stem.removeprefix("step-")), self._read(path)
            except ValueError as error:
                log.warning("%s: %s; the checkpoint before it is used, if there is one", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
            except OSError as error:
                log.warning("%s: %s; the checkpoint before it is used, if there is one", path, error)
                unread = unread or StoreError(
                    f"{path} cannot be read ({error.strerror or error}); run again when it can, or delete it and the"
                    " fit starts from the beginning"
                )
        if unread is not None:
            raise unread
        return None

    def _read(self, path: Path) -> bytes:
        data = path.read_bytes()
        head = len(self.MAGIC) + 65
        if not data.startswith(self.MAGIC):
            raise ValueError("no checkpoint of this version")
        payload = data[head:]
        if self._checksum(payload) != data[len(self.MAGIC) : head - 1]:
            raise ValueError(
                f"cut short, changed, or of another fit ({len(payload)} bytes of state do not match their checksum)"
            )
        return payload

    def _checksum(self, payload: bytes) -> bytes:
        """Of the state and of the fit that it belongs to: a checkpoint copied into another fit is none."""
        state = hashlib.sha256(f"{self.path.parent.parent.name}/{self.path.parent.name}\n".encode())
        state.update(payload)
        return state.hexdigest().encode()

    def cut_metrics(self, step: int) -> None:
        """Keep the lines up to ``step``: what a killed run wrote beyond its checkpoint is going to be written again."""
        kept = [line for line, at in _metric_lines(self.metrics) if at <= step]
        write_atomic(self.metrics, lambda file: file.write("".join(kept).encode()), durable=False)

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add one line; ``values`` has ``step``."""
        with naming(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; one cut in the middle is left out, a missing file is empty."""
    return [json.loads(line) for line, _ in _metric_lines(path)]


def _metric_lines(path: Path) -> Iterator[tuple[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield line, int(json.loads(line)["step"])


def remove_temporaries(folder: Path) -> None:
    """Remove temporaries of killed writers: the caller holds the lock, so there is no other writer."""
    for entry in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if folder.is_dir():
            fsync_folder(folder)
