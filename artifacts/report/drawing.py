"""What all pictures of the report share: fonts, colours, PNG bytes that do not change from run to run."""

from __future__ import annotations

import colorsys
import functools
import importlib.util
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from artifacts.cache.atomic import write_bytes_atomic

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
"""``(H, W, 3) uint8`` RGB."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK: Colour = (28, 32, 44)
MUTED: Colour = (104, 112, 128)
LINE: Colour = (222, 226, 232)
PAPER: Colour = (255, 255, 255)
UNDECIDED_GREY: Colour = (150, 154, 162)

_FIRST_COLOURS: tuple[Colour, ...] = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 114, 178),
    (204, 121, 167),
    (0, 158, 115),
    (150, 46, 254),
    (98, 46, 20),
    (176, 228, 124),
    (20, 254, 202),
    (46, 46, 150),
    (150, 20, 98),
    (250, 10, 85),
    (145, 115, 250),
    (160, 235, 250),
    (220, 175, 55),
    (10, 10, 250),
    (85, 115, 55),
    (70, 40, 115),
    (190, 190, 145),
)
"""Six of Okabe and Ito's (2008), then those that are farthest from them, in colour-blind eyes, too."""


@functools.cache
def class_colour(number: int) -> Colour:
    """Colour of class ``number`` (from 1): twenty chosen ones, then ever new hues, a golden angle apart."""
    if number <= len(_FIRST_COLOURS):
        return _FIRST_COLOURS[number - 1]
    lightness, saturation = (0.5, 0.65, 0.38)[number % 3], (0.75, 0.55)[number % 2]
    red, green, blue = colorsys.hls_to_rgb(number * 137.508 % 360 / 360, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


@functools.cache
def font(size: int, *, bold: bool = False) -> Font:
    """DejaVu Sans from matplotlib's folder (found, not imported); Pillow's own face where that is missing."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.exists():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


class Sheet:
    """A page to draw on: pictures pasted, text and boxes by Pillow."""

    def __init__(self, width: int, height: int, paper: Colour = PAPER) -> None:
        self.image = Image.new("RGB", (width, height), paper)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 14,
        bold: bool = False,
        colour: Colour = INK,
        anchor: str = "la",
    ) -> None:
        """Write one line; ``anchor`` as Pillow's (``la`` = left, top of the line)."""
        self.draw.text((x, y), text, font=font(size, bold=bold), fill=colour, anchor=anchor)

    def paste(self, picture: Picture, x: int, y: int, *, radius: int = 6) -> None:
        """Put a picture with rounded corners at ``(x, y)``."""
        tile = Image.fromarray(picture)
        if not radius:
            self.image.paste(tile, (x, y))
            return
        mask = Image.new("L", (tile.width * 2, tile.height * 2), 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, tile.width * 2 - 1, tile.height * 2 - 1), radius * 2, fill=255)
        self.image.paste(tile, (x, y), mask.resize(tile.size, Image.Resampling.BOX))

    def pixels(self) -> Picture:
        """The page as an array."""
        return np.asarray(self.image).copy()

    def save(self, path: Path) -> None:
        """Write the page as PNG; the same page gives the same bytes."""
        save_png(path, self.image)


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Width of a line in pixels."""
    return float(font(size, bold=bold).getlength(text))


def fit_text(text: str, size: int, width: float, *, bold: bool = False) -> str:
    """``text``, its middle left out if it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if text_width(text, size, bold=bold) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head = (kept + 1) // 2
        short = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
        if text_width(short, size, bold=bold) <= width:
            return short
    return "…"


def wrap_text(text: str, size: int, width: float, *, bold: bool = False) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words, and inside one that is wider than a line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if text_width(longer, size, bold=bold) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, size, bold=bold) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG without any metadata, whole or not at all."""
    buffer = io.BytesIO()
    # Level 6 takes more than twice the time for 3 % fewer bytes.
    image.save(buffer, format="PNG", compress_level=4)
    write_bytes_atomic(path, buffer.getvalue(), durable=False)


def polyline(picture: Picture, points_xy: NDArray[Any], colour: Colour, width: int, *, closed: bool = False) -> None:
    """A smooth-edged line through points in pixels (centres at integers); drawn in place."""
    fine = np.round(np.asarray(points_xy, dtype=np.float64) * 16).astype(np.int32)
    cv2.polylines(picture, [fine.reshape(-1, 1, 2)], closed, colour, width, cv2.LINE_AA, 4)
