"""``pictures.json``: score and suspicion of every picture of a run, beside the report that shows a few of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from artifacts.cache.atomic import write_atomic

PICTURES = "pictures.json"
PictureRow = tuple[str, float | None, float | None]
"""Image id, mIoU of its own, suspicion; ``None`` where it is not known."""


def write_picture_list(path: Path, rows: Mapping[str, Sequence[PictureRow]]) -> None:
    """Write name of the masks -> a line ``image, score, suspicion`` a picture.

    Line by line: as one text, a million pictures would take more memory than all the rest of a run.
    """

    def write(file: BinaryIO) -> None:
        file.write(b"{")
        for number, name in enumerate(sorted(rows)):
            file.write(f"{',' * (number > 0)}\n {json.dumps(name, ensure_ascii=False)}: [".encode())
            for place, (image, score, suspicion) in enumerate(rows[name]):
                row = {"image": image, "score": _number(score), "suspicion": _number(suspicion)}
                line = json.dumps(row, ensure_ascii=False, allow_nan=False)
                file.write(f"{',' * (place > 0)}\n  {line}".encode())
            file.write(b"\n ]")
        file.write(b"\n}\n")

    write_atomic(path, write)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
