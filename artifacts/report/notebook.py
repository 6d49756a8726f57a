"""How records, masks, scores and runs show themselves in Jupyter: small pictures and tables, without any script.

The objects call these functions by name (``artifacts.records.shown``), so that nothing below knows of pictures.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from artifacts.cache.runs import RunFolder
from artifacts.images import read_image_rgb
from artifacts.objects import Object
from artifacts.records import DataError, ImageRGB, MaskHW, MaskRef, Record, RecordSet
from artifacts.report import drawing
from artifacts.report.contact_sheet import SheetRow, overlay, weak_labels
from artifacts.report.html import duration
from artifacts.report.pictures import region_names
from artifacts.report.score_lines import number_of, percent, summary_lines

SIDE = 360
"""Longest side of a picture, in pixels."""
SHOWN = 6
"""Records of a set that are shown."""


# -- pictures --------------------------------------------------------------------------------------------------------


def mask_png(mask_hw: MaskHW, image_rgb: ImageRGB | None = None, classes: Sequence[str] = ()) -> bytes:
    """A mask in class colours, named at its regions, over its image (or on grey) as PNG bytes.

    Args:
        mask_hw: (H, W) uint8.
        image_rgb: (H, W, 3) uint8.
        classes: name of class ``i + 1``; numbers where there are none.
    """
    height, width = mask_hw.shape
    image = np.full((height, width, 3), 160, np.uint8) if image_rgb is None else image_rgb
    small = _small(image)
    sheet = drawing.Sheet(small.shape[1], small.shape[0])
    sheet.paste(overlay(small, mask_hw), 0, 0, radius=0)
    for name, left, top in region_names(mask_hw, classes):
        place = left / 100 * small.shape[1], top / 100 * small.shape[0]
        shown = drawing.fit_text(name, 12, small.shape[1], bold=True)
        half = drawing.text_width(shown, 12, bold=True) / 2 + 4
        box = (place[0] - half, place[1] - 9, place[0] + half, place[1] + 9)
        sheet.draw.rounded_rectangle(box, 4, fill=(20, 22, 30))
        sheet.text(*place, shown, size=12, bold=True, colour=(255, 255, 255), anchor="mm")
    return _png(sheet.pixels())


def mask_ref_png(ref: MaskRef) -> bytes:
    """The mask that a reference stands for; of object masks, each in a colour of its own."""
    found = ref.load()
    if not isinstance(found, tuple):
        return mask_png(found)
    mask_hw = np.zeros(found[0].shape[1:], np.uint8)
    for number, one in enumerate(found[0][:254], 1):
        mask_hw[one] = number
    return mask_png(mask_hw)


def object_png(one: Object) -> bytes:
    """An object's mask in its window."""
    return mask_png(one.mask_hw.astype(np.uint8), classes=[f"object {one.id}"])


def record_html(record: Record, classes: Sequence[str] = ()) -> str:
    """The picture with its weak labels, and in words what else is known of it."""
    kinds = ("tags", "boxes", "scribbles", "truth", "truth_objects", "corrected")
    known = [_counted(kind, getattr(record, kind)) for kind in kinds if getattr(record, kind) is not None]
    text = f"<b>{html.escape(record.image_id)}</b><br>{html.escape(', '.join(known) or 'no labels')}"
    try:
        image_rgb = read_image_rgb(Path(record.image))
    except (DataError, OSError) as error:
        return f"<div>{text}<br>{html.escape(str(error))}</div>"
    row = SheetRow(
        record.image_id,
        image_rgb,
        (),
        boxes=record.boxes or (),
        scribbles=record.strokes,
        tags=record.tags or (),
    )
    return f"<div>{_img(_png(weak_labels(_small(image_rgb), row, classes)), record.image_id)}<br>{text}</div>"


def records_html(records: RecordSet) -> str:
    """What a set holds, and its first records."""
    text = (
        f"<p><b>{html.escape(records.dataset)}</b>, {html.escape(records.split)}: {len(records):,} pictures, classes"
        f" {html.escape(', '.join(records.classes))}</p>"
    )
    cells = "".join(
        f'<div style="max-width:200px">{record_html(one, records.classes)}</div>'
        for one in itertools.islice(records, SHOWN)
    )
    return f'{text}<div style="display:flex;flex-wrap:wrap;gap:12px">{cells}</div>'


# -- numbers ---------------------------------------------------------------------------------------------------------


def scores_html(scores: Mapping[str, Any]) -> str:
    """The means and the classes' IoU of one set of masks (``Scores.as_dict``), per cent."""
    rows = [(label, value) for label, value, _ in summary_lines(scores)]
    rows += [(str(name), percent(number_of(value))) for name, value in (scores.get("per_class") or {}).items()]
    return _table(("per cent", ""), rows)


def run_html(run: RunFolder) -> str:
    """A run's scores and what its stages did, by its manifest."""
    try:
        return manifest_html(run.manifest())
    except DataError as error:
        return f"<p>{html.escape(str(error))}</p>"


def manifest_html(manifest: Mapping[str, Any]) -> str:
    """The same of a manifest."""
    head = ", ".join(str(manifest.get(key, "")) for key in ("flow", "run", "status"))
    scores = [(name, percent(number_of(one.get("miou")))) for name, one in (manifest.get("scores") or {}).items()]
    stages = [
        (one["label"], str(one["computed"]), str(one["cached"]), duration(one["seconds"]))
        for one in manifest.get("stages", ())
    ]
    return (
        f"<p>{html.escape(head)}</p>{_table(('masks', 'mIoU, per cent'), scores)}"
        f"{_table(('stage', 'computed', 'cached', 'time'), stages)}"
    )


# -- parts -----------------------------------------------------------------------------------------------------------


def _small(image_rgb: ImageRGB) -> ImageRGB:
    """The image with its longest side at :data:`SIDE`; a small one is enlarged, so that names fit on it."""
    height, width = image_rgb.shape[:2]
    scale = SIDE / max(height, width)
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image_rgb, size_wh, interpolation=how), np.uint8)


def _png(picture: ImageRGB) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _img(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img style="max-width:100%" src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'


def _counted(kind: str, value: Any) -> str:
    return f"{len(value)} {kind}" if isinstance(value, tuple) else kind.replace("_", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
