"""YOLO segmentation: a polygon a line in ``labels/``, ``images/``, ``data.yaml``, and back.

The polygons are exact where they are read by pixel centres; holes are joined to the outline by a cut. What the format
cannot hold is counted: undecided pixels (they become background), and an object in several parts is several.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.splits import read_text
from artifacts.datasets.yolo_tree import declared
from artifacts.export.items import Source
from artifacts.export.regions import Drawn, Layer, MaskBool, PolygonLoss, copy_image, fill_polygon, refuse, regions
from artifacts.records import UNDECIDED, DataError

ENDINGS = frozenset({"avif", "bmp", "heic", "heif", "jp2", "jpeg", "jpg", "png", "tif", "tiff", "webp"})
"""Of pictures that Ultralytics reads, among those that Maskmill reads."""


def write_yolo_seg(folder: Path, source: Source) -> dict[str, int]:
    """``images/<split>/``, ``labels/<split>/<image id>.txt`` and ``data.yaml``. Equal masks give equal bytes."""
    loss = PolygonLoss()
    images = undecided = lines_written = parts = lost = 0
    for image in source:
        height, width = image.mask_hw.shape
        copy_image(folder / "images" / source.split, image, source)
        # A trainer finds a picture's labels by putting `labels` for the last `images` of its path.
        lost += image.image.suffix.lower()[1:] not in ENDINGS or "images" in image.image_id.split("/")[:-1]
        lines = []
        for region in regions(image):
            if region.class_id == UNDECIDED:
                undecided += int(region.mask_hw.sum())
                continue
            polygons_xy = loss.outlines(region, 0.0)
            parts += len(polygons_xy) > 1
            for points_xy in polygons_xy:
                share = (points_xy / np.array([width, height])).ravel().tolist()
                lines.append(f"{region.class_id - 1} " + " ".join(f"{value:.6f}" for value in share))
        path = folder / "labels" / source.split / f"{image.image_id}.txt"
        write_text_atomic(path, "".join(f"{line}\n" for line in lines), durable=False)
        images += 1
        lines_written += len(lines)
    write_data_yaml(folder, source, source)  # trainers ask for both
    return {
        "images": images,
        "polygons": lines_written,
        "regions_in_several_parts": parts,
        "undecided_pixels_as_background": undecided,
        "images_that_ultralytics_does_not_find": lost,
        **loss.counts(),
    }


def write_data_yaml(folder: Path, train: Source, val: Source) -> None:
    """The table of splits and classes; one split stands for both where there is no other.

    Without ``path`` trainers take the file's own folder; ``path: .`` would be the folder that they are started in.
    """
    table = {
        "train": f"images/{train.split}",
        "val": f"images/{val.split}",
        "task": "segment",  # all lines of one length might be keypoints
        "names": dict(enumerate(train.classes)),
    }
    write_text_atomic(folder / "data.yaml", yaml.safe_dump(table, sort_keys=False, allow_unicode=True))


def read_yolo_seg(folder: Path) -> Iterator[Drawn]:
    """Pictures of a folder with ``labels/`` and ``data.yaml``. Raises :class:`DataError` where a file is none."""
    config = folder / "data.yaml"
    try:
        names = declared(folder).names
    except (OSError, DataError) as error:
        raise DataError(f"{config}: no readable class names ({error}); YOLO's numbers mean nothing without") from error
    table = {str(number): name for number, name in enumerate(names)}
    root = folder / "labels"
    for path in sorted(root.rglob("*.txt")):
        relative = path.relative_to(root).with_suffix("").as_posix()
        called = [relative, relative.partition("/")[2]]
        try:
            lines = read_text(path).splitlines()
        except (OSError, DataError) as error:
            yield Drawn(called, (), fault=str(error))
            continue
        layers: list[tuple[str | None, Layer]] = []
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words:
                continue
            where = f"{path}, line {number}"
            name = table.get(words[0].lstrip("0") or words[0][:1])
            if name is None:
                layers.append((None, partial(refuse, f"{where}: {words[0]!r} is no class number of {config}")))
            else:
                layers.append((name, partial(_draw, words[1:], where)))
        yield Drawn(called, layers, sort_by_area=True)


def _draw(words: list[str], where: str, size_hw: tuple[int, int]) -> MaskBool:
    try:
        share_xy = np.array(list(map(float, words)), np.float64).reshape(-1, 2)
        return fill_polygon(share_xy * np.array([size_hw[1], size_hw[0]]), size_hw)
    except (ValueError, DataError) as error:
        raise DataError(f"{where}: a polygon of x, y in shares of the picture is expected ({error})") from error
