"""Label Studio: ``tasks.json`` with a prediction for each picture, brush strokes (exact) or polygons, and back.

Give Label Studio ``config.xml`` as the labelling interface and import ``tasks.json``. It takes the images from the
folder that ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`` names, which is this export (``images/``).

Brush masks are coded as Label Studio's brush has them (thi.ng's rle-pack, over RGBA pixels): the number of elements
(32 bits), the bits of an element less one (5), four widths less one (4 each); then runs: 1 and the width's number (2
bits), the length less one in that width, the element; or 0, width and length alike, and so many elements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.voc_writer import voc_palette, xml_text
from artifacts.export.items import Source
from artifacts.export.regions import (
    EDITABLE,
    Drawn,
    Layer,
    MaskBool,
    PolygonLoss,
    class_labels,
    copy_image,
    fill_polygon,
    refuse,
    regions,
    stated_size,
)
from artifacts.records import DataError

WIDTHS = (3, 4, 8, 16)
"""Bits of a run's length, as Label Studio's own converter writes them."""
CHANNELS = 4
TASKS = "tasks.json"


def encode_brush(mask_hw: MaskBool) -> list[int]:
    """An ``(H, W) bool`` mask as the bytes of a brush: RGBA pixels of 255 or 0, row by row."""
    flat = np.asarray(mask_hw, np.bool_).ravel()
    ends = np.flatnonzero(np.append(flat[1:] != flat[:-1], True)) + 1 if flat.size else np.zeros(0, np.int64)
    parts = [f"{CHANNELS * flat.size:032b}", f"{8 - 1:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    longest = 1 << WIDTHS[-1]
    start = 0
    for end in ends.tolist():
        element = "11111111" if flat[start] else "00000000"
        left = CHANNELS * (end - start)
        start = end
        while left:
            length = min(left, longest)
            left -= length
            code = next(place for place, width in enumerate(WIDTHS) if length <= 1 << width)
            parts.append(f"1{code:02b}{length - 1:0{WIDTHS[code]}b}{element}")
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def decode_brush(code: list[int], size_hw: tuple[int, int]) -> MaskBool:
    """The pixels that a brush has painted (alpha above 0), ``(H, W) bool``.

    Raises :class:`DataError` for a code that is no brush's, is cut off, or is of another size.
    """
    try:
        bits = np.unpackbits(np.frombuffer(bytes(code), np.uint8))
    except (TypeError, ValueError) as error:
        raise DataError(f"brush: the code must be a list of bytes ({error})") from error
    text = (bits + ord("0")).tobytes().decode("ascii")
    place = 0

    def read(width: int) -> int:
        nonlocal place
        place += width
        if place > len(text):
            raise DataError("brush: the code is cut off")
        return int(text[place - width : place], 2)

    total, element_bits = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in WIDTHS]
    if total != CHANNELS * math.prod(size_hw) or element_bits != 8:
        raise DataError(
            f"brush: {total} elements of {element_bits} bits, expected {CHANNELS} x {size_hw[0]} x {size_hw[1]} of 8"
        )
    out = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        is_run = read(1)
        length = read(widths[read(2)]) + 1
        if done + length > total:
            raise DataError("brush: the runs are longer than the picture")
        if is_run:
            out[done : done + length] = read(8)
        else:
            out[done : done + length] = [read(8) for _ in range(length)]
        done += length
    return np.asarray(out.reshape(*size_hw, CHANNELS)[..., CHANNELS - 1] > 0)


def write_label_studio(folder: Path, source: Source, *, polygons: bool = False) -> dict[str, int]:
    """``tasks.json``, ``config.xml``, ``images/``. Equal masks give equal bytes."""
    labels = class_labels(source.classes)
    kind, control = ("polygonlabels", "polygon") if polygons else ("brushlabels", "brush")
    loss = PolygonLoss()
    tasks: list[dict[str, Any]] = []
    count = 0
    for image in source:
        height, width = image.mask_hw.shape
        results: list[dict[str, Any]] = []
        for region in regions(image):
            values: list[dict[str, Any]] = []
            if polygons:
                scale = np.array([100 / width, 100 / height])
                values += [
                    {"points": np.round(points_xy * scale, 6).tolist(), "closed": True}
                    for points_xy in loss.outlines(region, EDITABLE)
                ]
            else:
                values.append({"format": "rle", "rle": encode_brush(region.mask_hw)})
            for value in values:
                results.append(
                    {
                        "id": f"{len(tasks)}-{len(results)}",
                        "type": kind,
                        "from_name": control,
                        "to_name": "image",
                        "original_width": width,
                        "original_height": height,
                        "image_rotation": 0,
                        "value": {**value, kind: [labels[region.class_id]]},
                    }
                )
            count += 1
        name = copy_image(folder / "images", image, source)
        data = {"image": f"/data/local-files/?d={quote(f'images/{name}')}", "image_id": image.image_id}
        tasks.append({"data": data, "predictions": [{"model_version": "maskmill", "result": results}]})
    write_text_atomic(folder / TASKS, json.dumps(tasks, ensure_ascii=False, separators=(",", ":")) + "\n")
    write_text_atomic(folder / "config.xml", _config(labels, polygons))
    return {"images": len(tasks), "regions": count, **(loss.counts() if polygons else {})}


def _config(labels: Mapping[int, str], polygons: bool) -> str:
    """The labelling interface: a label for each class, in VOC's colours."""
    tag, control = ("PolygonLabels", "polygon") if polygons else ("BrushLabels", "brush")
    colours = voc_palette()
    lines = [
        "<View>",
        '  <Image name="image" value="$image" zoom="true"/>',
        f'  <{tag} name="{control}" toName="image">',
    ]
    for number, name in labels.items():
        colour = "#{:02x}{:02x}{:02x}".format(*colours[number])
        value = xml_text(name).replace('"', "&quot;")
        lines.append(f'    <Label value="{value}" background="{colour}"/>')
    return "\n".join([*lines, f"  </{tag}>", "</View>", ""])


def read_label_studio(tasks: list[Any], path: Path) -> Iterator[Drawn | None]:
    """Pictures of an export in the format JSON; ``None`` for a task that nobody has submitted an annotation for.

    Of several annotations the last one counts. Raises :class:`DataError` where no task of the file is one.
    """
    form = "no data and annotations; export from Label Studio in the format JSON"
    if tasks and not any(isinstance(task, dict) and ("predictions" in task or _whole(task)) for task in tasks):
        raise DataError(f"{path}: task 0: {form}")
    for number, task in enumerate(tasks):
        names = _names(task)
        if not _whole(task):
            waiting = isinstance(task, dict) and "annotations" not in task and "predictions" in task
            yield None if waiting else Drawn(names, (), fault=f"task {number}: {form}")
            continue
        done = [one for one in task["annotations"] if not one.get("was_cancelled")]
        if not done:
            yield None
            continue
        results = done[-1].get("result", [])
        if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
            yield Drawn(names, (), fault=f"task {number}: 'result' must be a list of what was drawn, not {results!r}")
            continue
        results = [one for one in results if one.get("type") != "choices"]
        try:
            stated = {stated_size(one.get("original_height"), one.get("original_width")) for one in results}
        except DataError as error:
            yield Drawn(names, (), fault=f"task {number}: {error}")
            continue
        yield Drawn(names, [_layer(one) for one in results], stated.pop() if len(stated) == 1 else None)


def _whole(task: Any) -> bool:
    """Whether it is a task with a list of annotations, looked at or not."""
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        return False
    annotations = task.get("annotations")
    return isinstance(annotations, list) and all(isinstance(one, dict) for one in annotations)


def _names(task: Any) -> list[str]:
    """What a task calls its picture; nothing where it is no task."""
    if not isinstance(task, dict) or not isinstance(data := task.get("data"), dict):
        return []
    names = [str(data["image_id"])] if "image_id" in data else []
    return names + [_path_of(value) for value in (data.get("image"), task.get("file_upload")) if isinstance(value, str)]


def _path_of(address: str) -> str:
    """The path in an image's address: ``/data/local-files/?d=images/a.jpg`` means ``images/a.jpg``."""
    try:
        parts = urlsplit(address)
    except ValueError:  # a bracket that is no IPv6 address's
        return address
    inner = parse_qs(parts.query).get("d")
    return inner[0] if inner else unquote(parts.path)


def _layer(result: Mapping[str, Any]) -> tuple[str | None, Layer]:
    kind, value = str(result.get("type")), result.get("value") or {}
    if not isinstance(value, dict) or not isinstance(value.get(kind) or [], list):
        return None, partial(refuse, f"{kind!r}: 'value' must hold what was drawn and the list of its labels")
    named = value.get(kind) or ("",)
    if result.get("image_rotation"):
        return str(named[0]), partial(refuse, "the picture was turned in Label Studio; turn it back and export again")
    if kind == "brushlabels":
        return str(named[0]), partial(decode_brush, value.get("rle") or [])
    if kind == "polygonlabels":
        return str(named[0]), partial(_polygon, value.get("points"))
    return str(named[0]), partial(refuse, f"{kind!r} is no mask; draw with brush or polygon")


def _polygon(points: Any, size_hw: tuple[int, int]) -> MaskBool:
    """Points in per cent of width and height."""
    try:
        share_xy = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"polygon: points must be pairs of numbers ({error})") from error
    return fill_polygon(share_xy * np.array([size_hw[1] / 100, size_hw[0] / 100]), size_hw)
