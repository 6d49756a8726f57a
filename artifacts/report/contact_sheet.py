"""The contact sheet: image and weak label, every stage's masks and heat maps, truth, predictions, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from artifacts.records import UNDECIDED, Box, ImageRGB, MaskHW, Scribble
from artifacts.report import drawing
from artifacts.report.drawing import Colour, Picture, Sheet
from artifacts.report.heat_sheet import class_heat, heat_overlay, heat_scale

TRUTH = "truth"
WEAK_LABEL = "image, weak label"
MARGIN = 28
GAP = 12
CAPTION = 30
HEADER = 30
NAME_LINE = 18
LINES_PER_PAGE = 16
"""Of a sheet whose images take several lines."""


@dataclass(frozen=True)
class Panel:
    """One stage's result for one image: a mask, or a heat map (edges, CAMs, probabilities) where it is of floats."""

    name: str
    array: MaskHW | NDArray[np.floating[Any]]
    """(H, W) uint8 mask of the image's size; or (h, w) or (c, h, w) float >= 0, of any size over the whole image."""
    iou: float | None = None
    """Of a mask: the image's own mean IoU, 0..1; ``None`` without truth."""
    classes: Sequence[int] = ()
    """Of a (c, h, w) heat map: class number of each channel, for its colour. Without, the largest channel is drawn."""

    @property
    def is_heat_map(self) -> bool:
        """Kind of panel: by the array's type."""
        return self.array.dtype.kind == "f"

    @property
    def has_class_channels(self) -> bool:
        """Whether it is drawn in class colours: there is a channel that is not background."""
        return self.array.ndim == 3 and len(self.array) == len(self.classes) and any(self.classes)


@dataclass(frozen=True)
class SheetRow:
    """One image of the sheet."""

    title: str
    image_rgb: ImageRGB
    panels: Sequence[Panel]
    truth: MaskHW | None = None
    boxes: Sequence[Box] = ()
    scribbles: Sequence[Scribble] = ()
    tags: Sequence[int] = ()


def contact_sheet(
    rows: Sequence[SheetRow],
    classes: Sequence[str],
    path: Path,
    *,
    title: str = "",
    width: int = 216,
    rows_per_page: int = 8,
    last: Sequence[str] = (),
    most_columns: int = 0,
) -> list[Path]:
    """Draw the sheet; returns its pages: ``path``, then ``<stem>-2.png``, ... (pages of an older, longer sheet go).

    Args:
        rows: the images, one a row. A mask of another size than its image is not drawn; its place shows the error.
            A heat map is shown from 0 to 1, or to its largest value where that is above 1.
        classes: name of class ``i + 1``.
        path: PNG file of the first page.
        title: heading.
        width: width of a panel in pixels.
        rows_per_page: images on a page.
        last: the panels that stand right of the truth.
        most_columns: panels side by side; an image with more of them takes several lines, each with its names above,
            and a page holds fewer images. 0: one line, however wide.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    cells = [WEAK_LABEL, *_columns(rows, last)]
    most = most_columns or len(cells)
    lines = [cells[start : start + most] for start in range(0, len(cells), most)]
    if len(lines) > 1:
        rows_per_page = max(1, LINES_PER_PAGE // len(lines))
    pages = [rows[start : start + rows_per_page] for start in range(0, len(rows), rows_per_page)]
    paths = [path if page == 0 else _page_path(path, page + 1) for page in range(len(pages))]
    for number, (page_rows, page_path) in enumerate(zip(pages, paths, strict=True), 1):
        heading = title if len(pages) == 1 else f"{title or path.stem} · page {number} of {len(pages)}"
        _draw_page(page_rows, classes, lines, heading, width).save(page_path)
    stale = len(pages) + 1
    while _page_path(path, stale).exists():
        _page_path(path, stale).unlink()
        stale += 1
    return paths


def sheet_pages(path: Path) -> list[Path]:
    """The pages that :func:`contact_sheet` wrote for ``path``."""
    pages = [path] if path.exists() else []
    while _page_path(path, len(pages) + 1).exists() and pages:
        pages.append(_page_path(path, len(pages) + 1))
    return pages


def _page_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _columns(rows: Sequence[SheetRow], last: Sequence[str]) -> list[str]:
    """Names of all panels in order of first appearance, truth before ``last``."""
    names = list(dict.fromkeys(panel.name for row in rows for panel in row.panels))
    truth = [TRUTH] if any(row.truth is not None for row in rows) else []
    return [*(n for n in names if n not in last), *truth, *(n for n in names if n in last)]


def _panel_hw(row: SheetRow, width: int) -> tuple[int, int]:
    """The image fitted into ``width`` x 1.25 ``width``."""
    height, wide = row.image_rgb.shape[:2]
    scale = min(width / wide, 1.25 * width / height)
    return max(1, round(height * scale)), max(1, round(wide * scale))


def _draw_page(
    rows: Sequence[SheetRow], classes: Sequence[str], lines: Sequence[Sequence[str]], title: str, width: int
) -> Sheet:
    page_width = 2 * MARGIN + len(lines[0]) * (width + GAP) - GAP
    legend = _legend_rows(_legend_entries(rows, classes), page_width - 2 * MARGIN)
    top = MARGIN + (34 if title else 0) + len(legend) * 26 + 10
    names = [[_name_lines(name, width, 3 if len(lines) > 1 else 1) for name in line] for line in lines]
    heads = [HEADER + NAME_LINE * (max(map(len, one)) - 1) for one in names]
    heights = [_panel_hw(row, width)[0] + CAPTION for row in rows]
    # One line an image: the names stand once, on top. Several: above each line.
    each = 0 if len(lines) == 1 else sum(heads)
    total = sum(height * len(lines) + each for height in heights) + GAP * (len(rows) * len(lines) - 1)
    sheet = Sheet(page_width, top + total + (0 if each else heads[0]) + MARGIN - 8)
    if title:
        shown = drawing.fit_text(title, 21, page_width - 2 * MARGIN, bold=True)
        sheet.text(MARGIN, MARGIN - 8, shown, size=21, bold=True)
    _draw_legend(sheet, legend, MARGIN + (34 if title else 0) - 4)
    y = top
    for place, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for line, shown_names, head in zip(lines, names, heads, strict=True):
            if each or not place:
                for column, parts in enumerate(shown_names):
                    for depth, part in enumerate(parts):
                        left = MARGIN + column * (width + GAP)
                        sheet.text(left, y + 4 + depth * NAME_LINE, part, size=14, bold=True)
                y += head
            _draw_row(sheet, row, classes, line, y, width)
            y += height + GAP
    return sheet


def _name_lines(name: str, width: int, most: int) -> list[str]:
    """A panel's name in up to ``most`` lines, the middle of the last left out where it does not fit."""
    parts = drawing.wrap_text(name, 14, width, bold=True) if most > 1 else [name]
    return [*parts[: most - 1], drawing.fit_text(" ".join(parts[most - 1 :]), 14, width, bold=True)][: len(parts)]


# -- one row ---------------------------------------------------------------------------------------------------------


def _draw_row(sheet: Sheet, row: SheetRow, classes: Sequence[str], columns: Sequence[str], y: int, width: int) -> None:
    size_hw = _panel_hw(row, width)
    image = _resize(row.image_rgb, size_hw)
    below = y + size_hw[0] + 6
    panels = {panel.name: panel for panel in row.panels}
    if row.truth is not None:
        panels[TRUTH] = Panel(TRUTH, row.truth)
    for place, name in enumerate(columns):
        x = MARGIN + place * (width + GAP)
        left = x + (width - size_hw[1]) // 2
        panel = panels.get(name)
        if name == WEAK_LABEL:
            sheet.paste(weak_labels(image, row, classes), left, y)
            sheet.text(x, below, drawing.fit_text(row.title, 13, width), size=13, colour=drawing.MUTED)
        elif panel is None or not panel.array.size:
            _draw_missing(sheet, left, y, size_hw, "no result")
        elif panel.is_heat_map:
            sheet.paste(_heat(image, panel), left, y)
            _draw_scale(sheet, x, below, width, panel)
        elif panel.array.shape != row.image_rgb.shape[:2]:
            shown = " x ".join(str(side) for side in panel.array.shape[::-1])
            _draw_missing(sheet, left, y, size_hw, f"wrong size: {shown}")
        else:
            sheet.paste(overlay(image, np.asarray(panel.array, np.uint8)), left, y)
            if panel.iou is not None:
                _draw_iou(sheet, x, below, width, panel.iou)


def _heat(image: Picture, panel: Panel) -> Picture:
    """A heat map over the panel's image: in class colours where its channels are classes."""
    maps = _maps(panel)
    if panel.has_class_channels:
        return class_heat(image, maps, [_colour(number) if number else None for number in panel.classes])
    return heat_overlay(image, maps.max(axis=0) if maps.ndim == 3 else maps, heat_scale(maps))


def _maps(panel: Panel) -> NDArray[np.float32]:
    """Values below 0 and NaN as 0: the picture is drawn at the end of a long run, and must not fail it."""
    return np.nan_to_num(np.asarray(panel.array, np.float32), posinf=0.0).clip(0)


def _draw_scale(sheet: Sheet, x: int, y: int, width: int, panel: Panel) -> None:
    """``0``, the colours between, and the value of the brightest."""
    top = f"{heat_scale(_maps(panel)):.3g}"
    sheet.text(x, y, "0", size=12, colour=drawing.MUTED)
    right = x + width - 8 - round(drawing.text_width(top, 12))
    ramp = np.linspace(0, 1, right - x - 14, dtype=np.float32)[None].repeat(6, axis=0)
    if panel.has_class_channels:
        bar = class_heat(np.full((*ramp.shape, 3), 255, np.uint8), ramp[None], [drawing.MUTED])
    else:
        bar = heat_overlay(np.full((*ramp.shape, 3), 128, np.uint8), ramp, 1.0)
    sheet.paste(bar, x + 14, y + 5)
    sheet.text(x + width - 2 - drawing.text_width(top, 12), y, top, size=12, colour=drawing.MUTED)


def _draw_iou(sheet: Sheet, x: int, y: int, width: int, iou: float) -> None:
    """``mIoU 71.3`` and a bar of that length."""
    sheet.text(x, y, "mIoU", size=12, colour=drawing.MUTED)
    sheet.text(x + 40, y - 1, f"{100 * iou:.1f}", size=13, bold=True)
    left, right = x + 82, x + width - 2
    sheet.draw.rounded_rectangle((left, y + 5, right, y + 10), 3, fill=drawing.LINE)
    filled = left + round((right - left) * min(max(iou, 0.0), 1.0))
    if filled > left + 3:
        sheet.draw.rounded_rectangle((left, y + 5, filled, y + 10), 3, fill=(84, 110, 160))


def _draw_missing(sheet: Sheet, x: int, y: int, size_hw: tuple[int, int], why: str) -> None:
    height, width = size_hw
    corners = (x, y, x + width - 1, y + height - 1)
    sheet.draw.rounded_rectangle(corners, 6, fill=(247, 248, 250), outline=drawing.LINE)
    sheet.text(x + width / 2, y + height / 2, why, size=13, colour=drawing.MUTED, anchor="mm")


def _resize(image_rgb: ImageRGB, size_hw: tuple[int, int]) -> Picture:
    shrinks = size_hw[0] < image_rgb.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image_rgb, (size_hw[1], size_hw[0]), interpolation=how), np.uint8)


def overlay(image_rgb: Picture, mask_hw: MaskHW, colours: NDArray[np.uint8] | None = None) -> Picture:
    """The mask in class colours over the image (of the panel's size), outlined; 255 hatched grey, the rest pale.

    Args:
        image_rgb: (H, W, 3) uint8, the panel.
        mask_hw: (h, w) uint8 of any size; pixels are enlarged, never mixed.
        colours: (256, 3) uint8, a palette whose entry i is class i's colour; default: the report's colours.
    """
    height, width = image_rgb.shape[:2]
    mask = np.asarray(cv2.resize(mask_hw, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    table = np.zeros((256, 3), np.float32)
    for number in np.unique(mask):
        own = drawing.class_colour(int(number)) if colours is None else colours[number]
        table[number] = own if 0 < number < UNDECIDED else drawing.UNDECIDED_GREY
    image = image_rgb.astype(np.float32)
    grey = image.mean(axis=2, keepdims=True)
    pale = 0.62 * (0.35 * image + 0.65 * grey) + 0.38 * 255
    tinted = 0.42 * (0.4 * image + 0.6 * grey) + 0.58 * table[mask]
    hatched = 0.35 * grey + 0.65 * np.where(_hatch(height, width), 232.0, 158.0)[..., None]
    found = np.where((mask == UNDECIDED)[..., None], hatched, np.where((mask > 0)[..., None], tinted, pale))
    _outline(found, mask, table)
    return np.asarray(np.clip(np.round(found), 0, 255), np.uint8)


def _hatch(height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    lines: NDArray[np.bool_] = (x + y) % 8 < 3
    return lines


def _outline(picture: NDArray[np.float32], mask: MaskHW, table: NDArray[np.float32]) -> None:
    """A white line just inside every class's edge, on its own colour darkened; drawn in place."""
    for number in np.unique(mask):
        if number in (0, UNDECIDED):
            continue
        region = (mask == number).astype(np.uint8)
        contours, _ = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        line = np.zeros(mask.shape, np.uint8)
        cv2.drawContours(line, contours, -1, 255, 1, cv2.LINE_AA)
        strength = np.minimum(line * region, 255)[..., None].astype(np.float32) / 255
        picture += (0.25 * table[number] + 0.75 * 255 - picture) * strength


def weak_labels(image: Picture, row: SheetRow, classes: Sequence[str]) -> Picture:
    """Boxes, strokes, and the names of tags where there is nothing else, over ``image``, the row's in any size."""
    picture = np.ascontiguousarray(image)
    if picture is image:
        picture = image.copy()
    scale = np.array([picture.shape[1] / row.image_rgb.shape[1], picture.shape[0] / row.image_rgb.shape[0]])
    for box in sorted(row.boxes, key=lambda b: -b.area):
        corners = np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)]) * scale - 0.5
        corners = np.clip(corners, 1, np.array([picture.shape[1], picture.shape[0]]) - 2)
        drawing.polyline(picture, corners, (20, 20, 26), 4, closed=True)
        drawing.polyline(picture, corners, _colour(box.class_id), 2, closed=True)
    for stroke in row.scribbles:
        points = (np.array(stroke.points_xy, dtype=np.float64).reshape(-1, 2) + 0.5) * scale - 0.5
        drawing.polyline(picture, points, (20, 20, 26), 5)
        drawing.polyline(picture, points, _colour(stroke.class_id), 3)
    if row.tags and not row.boxes and not row.scribbles:
        picture = _draw_tags(picture, row.tags, classes)
    return picture


def _draw_tags(picture: Picture, tags: Sequence[int], classes: Sequence[str]) -> Picture:
    page = Sheet(picture.shape[1], picture.shape[0])
    page.paste(picture, 0, 0, radius=0)
    y = 7
    for tag in tags:
        name = drawing.fit_text(_name(tag, classes), 12, picture.shape[1] - 40, bold=True)
        wide = drawing.text_width(name, 12, bold=True) + 24
        page.draw.rounded_rectangle((7, y, 7 + wide, y + 20), 10, fill=(20, 22, 30))
        page.draw.ellipse((12, y + 6, 20, y + 14), fill=_colour(tag))
        page.text(24, y + 10, name, size=12, bold=True, colour=(255, 255, 255), anchor="lm")
        y += 24
    return page.pixels()


def _colour(class_id: int) -> Colour:
    return drawing.class_colour(class_id) if 0 < class_id < UNDECIDED else (245, 245, 245)


def _name(class_id: int, classes: Sequence[str]) -> str:
    return classes[class_id - 1] if 0 < class_id <= len(classes) else f"class {class_id}"


# -- legend ----------------------------------------------------------------------------------------------------------

MANY_CLASSES = 24
"""Longer class tables show only what is on the page."""


def _legend_entries(rows: Sequence[SheetRow], classes: Sequence[str]) -> list[tuple[int, str]]:
    seen: set[int] = set()
    for row in rows:
        for panel in row.panels:
            numbers = panel.classes if panel.is_heat_map else np.unique(panel.array)
            seen |= {int(number) for number in numbers}
        if row.truth is not None:
            seen |= {int(number) for number in np.unique(row.truth)}
        seen |= {b.class_id for b in row.boxes} | {s.class_id for s in row.scribbles} | set(row.tags)
    listed = set(seen) - {0, UNDECIDED}
    if len(classes) <= MANY_CLASSES:
        listed |= set(range(1, len(classes) + 1))
    entries = [(number, _name(number, classes)) for number in sorted(listed)]
    return entries + ([(UNDECIDED, "undecided")] if UNDECIDED in seen else [])


def _legend_rows(entries: list[tuple[int, str]], width: int) -> list[list[tuple[int, str, int]]]:
    """Entries with their place, broken into lines of at most ``width`` pixels."""
    lines: list[list[tuple[int, str, int]]] = [[]]
    x = 0
    for number, name in entries:
        name = drawing.fit_text(name, 13, 220)
        wide = 22 + round(drawing.text_width(name, 13)) + 20
        if x and x + wide - 20 > width:
            lines.append([])
            x = 0
        lines[-1].append((number, name, x))
        x += wide
    return lines


def _draw_legend(sheet: Sheet, lines: list[list[tuple[int, str, int]]], y: int) -> None:
    for line in lines:
        for number, name, x in line:
            left = MARGIN + x
            if number == UNDECIDED:
                patch = np.where(_hatch(15, 15), 232, 158).astype(np.uint8)
                sheet.paste(np.repeat(patch[..., None], 3, axis=2), left, y + 2, radius=4)
            else:
                sheet.draw.rounded_rectangle((left, y + 2, left + 14, y + 16), 4, fill=_colour(number))
            sheet.text(left + 21, y + 9, name, size=13, anchor="lm")
        y += 26
