"""Image files to ``(H, W, 3) uint8`` RGB as displayed, and the digests that identify images.

The result for every kind of file:

* EXIF orientation is applied (boxes and masks are in the rotated frame); HEIC's own rotation instead of it in HEIC;
* grey becomes three equal channels, palettes are looked up, CMYK and YCbCr are converted (no ICC profile is applied);
* 16 bits become 8 by ``round(v / 257)``, the full range to the full range (16-bit colour PNGs: their high byte);
* transparency is composited on white, which is what a viewer shows;
* of several frames, the first.

A file whose content is not a whole image raises :class:`ImageError`, which is permanent: trying again does not help.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from artifacts import keys
from artifacts.cache import sealed
from artifacts.cache.atomic import write_bytes_atomic
from artifacts.inputs import open_input, read_input
from artifacts.records import DataError, ImageRGB

FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
        "PNG": (".png",),
        "BMP": (".bmp",),
        "TIFF": (".tif", ".tiff"),
        "WEBP": (".webp",),
        "GIF": (".gif",),
        "PPM": (".ppm", ".pgm"),
        "JPEG2000": (".jp2",),
        "AVIF": (".avif",),
        "HEIF": (".heic", ".heif"),
    }
)
"""Every format of Pillow that is read, and its endings. No other plug-in is asked: one of them runs Ghostscript."""
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Endings, in lower case, by which a file counts as a picture: the one list of the project."""
NOT_EVERYWHERE = MappingProxyType(
    {"AVIF": "this Pillow was built without AVIF; install a newer one", "HEIF": "pip install maskmill[heif]"}
)
"""Format -> what reads it where it is not read."""

MAX_PIXELS = 178_956_970
"""Most pixels that an image may have (Pillow's own bound for a decompression bomb: 0.5 GB as RGB)."""
MAX_PIXELS_VARIABLE = "MASKMILL_MAX_PIXELS"
"""Environment variable that sets another bound, for all processes of a run."""

STRIP_ROWS = 256
"""Rows that are composed on white at once."""

# The bound is checked here, on the header, before any pixel is decoded. Pillow's own check would warn at half of it and
# refuse what the variable allows.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd metadata (EXIF, palettes with transparency); none of it changes the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# FF00 is a stuffed byte and FFD0-FFD7 are restart marks: inside the scan FFD9 can only be the end of the image.
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_SOF_MARKERS = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: what both decoders know
_SOS_MARKER = 0xDA

_HEIC = frozenset({b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1"})
"""Bytes 4 to 12 of a HEIF file."""

_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_SIXTEEN_BIT_IN_32 = frozenset({"PNG", "PPM"})  # formats whose 16-bit grey Pillow opens as mode I


class ImageError(DataError):
    """An image file whose content cannot be used. The message is ``path: reason``."""

    permanent = True
    """Whether trying again is useless while the file is the same."""


class TooManyPixels(ImageError):
    """More pixels than the limit, which the user may raise."""

    permanent = False


def read_image_rgb(path: Path, *, max_pixels: int | None = None) -> ImageRGB:
    """Decode ``path`` to ``(H, W, 3) uint8`` RGB, EXIF-rotated.

    Args:
        path: the file; its suffix does not matter.
        max_pixels: most pixels allowed; default ``$MASKMILL_MAX_PIXELS``, else :data:`MAX_PIXELS`.

    Raises:
        ImageError: the content is not a whole image, or a larger one than allowed (permanent).
        OSError: the file cannot be read (may work next time).
    """
    return decode_image_rgb(read_input(path), str(path), max_pixels=max_pixels)


def decode_image_rgb(data: bytes, name: str, *, max_pixels: int | None = None) -> ImageRGB:
    """:func:`read_image_rgb` of bytes in memory; ``name`` is their name in errors."""
    limit = max_pixels if max_pixels is not None else pixel_limit()
    size_hw = _plain_jpeg_size(data)
    if size_hw is not None and size_hw[0] * size_hw[1] <= limit:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if decoded is not None and decoded.shape == (*size_hw, 3):
            return np.asarray(decoded, np.uint8)
    return _decode_by_pillow(data, name, limit)


def image_size_hw(path: Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """Height and width after EXIF rotation, from the header alone. Raises as :func:`read_image_rgb`."""
    limit = max_pixels if max_pixels is not None else pixel_limit()
    with open_input(path) as file:
        try:
            with Image.open(file, formats=readable()) as image:
                _check_size(image, str(path), limit)
                width, height = image.size
                turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise _translated(error, str(path), lambda: _head(file)) from error
    return (width, height) if turned else (height, width)


def exif_orientation(path: Path) -> int:
    """How the file says that it is to be shown: EXIF's number, 1 (as stored) to 8; 1 where it says nothing."""
    try:
        with open_input(path) as file, Image.open(file, formats=readable()) as image:
            found = image.getexif().get(ExifTags.Base.Orientation, 1) if image.format != "TIFF" else 1
    except Exception:  # whatever is wrong with the file, who decodes it says so
        return 1
    return found if found in range(1, 9) else 1


@functools.cache
def readable() -> tuple[str, ...]:
    """The names of :data:`FORMATS` that this installation reads, as ``Image.open`` takes them."""
    missing = set()
    if not features.check("avif"):
        missing.add("AVIF")
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        missing.add("HEIF")
    return tuple(name for name in FORMATS if name not in missing)


def unreadable_suffixes() -> dict[str, str]:
    """Ending -> what to do, of the pictures that this installation cannot read."""
    return {suffix: how for name, how in NOT_EVERYWHERE.items() if name not in readable() for suffix in FORMATS[name]}


def _head(file: Any) -> bytes:
    file.seek(0)
    return bytes(file.read(16))


def pixel_limit() -> int:
    """Most pixels of an image: ``$MASKMILL_MAX_PIXELS``, else :data:`MAX_PIXELS`."""
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"{MAX_PIXELS_VARIABLE} must be a positive whole number, not {text!r}")
    return int(text)


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """``(H, W)`` of a whole 8-bit grey or colour JPEG without EXIF; ``None`` for everything else.

    Only those go to OpenCV, twice as fast as Pillow and the same to the bit. Whole means: an end mark after the
    start of the scan; some OpenCV releases decode a truncated file to grey stripes and only warn on stderr.
    """
    if not data.startswith(_JPEG_START):
        return None
    position, size_hw = 2, None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = position + 4
        if marker == 0xE1 and data[body : body + 4] in (b"Exif", b"http"):  # EXIF or XMP: may hold an orientation
            return None
        if marker == 0xEE:  # Adobe: may hold a colour transform that decoders read differently
            return None
        if marker in _SOF_MARKERS:
            if body + 6 > len(data) or data[body] != 8 or data[body + 5] not in (1, 3):
                return None
            size_hw = int.from_bytes(data[body + 1 : body + 3], "big"), int.from_bytes(data[body + 3 : body + 5], "big")
        elif marker == _SOS_MARKER:
            return size_hw if data.find(_JPEG_END, body) >= 0 else None
        elif marker == 0xFF or length < 2:
            return None
        position += 2 + length
    return None


def _decode_by_pillow(data: bytes, name: str, limit: int) -> ImageRGB:
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes); copy it again")
    try:
        with Image.open(io.BytesIO(data), formats=readable()) as image:
            _check_size(image, name, limit)
            image.load()
            file_format = image.format or ""
            ImageOps.exif_transpose(image, in_place=True)  # a copy of 64 million pixels is 0.3 GB
            return _to_rgb(image, file_format, name)
    except Exception as error:
        raise _translated(error, name, lambda: data[:16]) from error


def _to_rgb(image: Image.Image, file_format: str, name: str) -> ImageRGB:
    if image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and file_format in _SIXTEEN_BIT_IN_32):
        values = np.asarray(image).astype(np.uint32)
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name}: 32-bit pixels (Pillow mode {image.mode}) have no known range; save it with 8 or 16 bits"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    return np.array(image.convert("RGB"), np.uint8)


def _on_white(image: Image.Image) -> ImageRGB:
    """``image`` on white, strip by strip: composed whole, 64 million pixels take 1.9 GB."""
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, STRIP_ROWS):
        strip = image.crop((0, top, width, min(top + STRIP_ROWS, height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        rgb[top : top + STRIP_ROWS] = np.asarray(Image.alpha_composite(white, strip).convert("RGB"))
    return rgb


def _check_size(image: Image.Image, name: str, limit: int) -> None:
    width, height = image.size
    if width * height > limit:
        raise TooManyPixels(
            f"{name}: {width} x {height} = {width * height:,} pixels, more than {limit:,}; a decompression bomb?"
            f" Scale it down, or set {MAX_PIXELS_VARIABLE}={width * height} if you trust it"
        )


def _translated(error: Exception, name: str, head: Any) -> Exception:
    """The error to raise for a decoder's exception. Bytes in memory cannot have an I/O error."""
    if isinstance(error, (ImageError, MemoryError)):
        return error
    if isinstance(error, UnidentifiedImageError):
        first = bytes(head())
        if not first:
            return ImageError(f"{name}: the file is empty (0 bytes); copy it again")
        how = unreadable_suffixes().get(os.path.splitext(name)[1].lower())
        if first[4:12] in _HEIC:  # telephones' pictures under another name, or cut
            how = unreadable_suffixes().get(".heic", "it is HEIC, cut or damaged: copy it again")
        known = how or f"the formats are {', '.join(readable())}"
        return ImageError(f"{name}: not an image file that Pillow knows (it begins with {first!r}); {known}")
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return ImageError(f"{name}: broken image file ({type(error).__name__}: {error}); copy it again")


class ImageDigests:
    """Digests of image files, remembered by path, size and modification time as git's index does.

    A file changed within :data:`RACY_NS` of the moment at which it was read is not remembered: a second change in the
    same tick of the file system's clock would go unseen (git's racy guard). One file in the cache holds them all; two
    processes may both write it: the last one wins, and the other's digests are computed again.
    """

    RACY_NS = 2_000_000_000
    VERSION = 1

    def __init__(self, cache_root: Path, verify: bool = False) -> None:
        self.path = Path(cache_root) / "digests" / "images.json"
        self._verify = verify
        self._remembered = self._load()
        self._seen: set[str] = set()
        self._changed = False

    def digest(self, path: Path | str) -> str:
        """Digest of the bytes of ``path``. ``verify=True`` reads them in any case (once each). Raises ``OSError``."""
        # A name that is known is absolute, and kept once: not another text of it for each picture.
        name = path if isinstance(path, str) and path in self._remembered else os.path.abspath(path)
        status = os.stat(name)
        known = self._remembered.get(name)
        trusted = not self._verify or name in self._seen
        self._seen.add(name)
        if known is not None and trusted and known[0] == status.st_size and known[1] == status.st_mtime_ns:
            return known[2]
        found = keys.digest_file(Path(name))
        after = os.stat(name)
        whole = (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        if whole and time.time_ns() - after.st_mtime_ns > self.RACY_NS:
            entry = (after.st_size, after.st_mtime_ns, found)
            self._changed |= known != entry
            self._remembered[name] = entry
        return found

    def save(self) -> None:
        """Write new digests, atomically; without any, nothing is written."""
        if not self._changed:
            return
        self._forget_removed_files()
        content = {"version": self.VERSION, "files": self._remembered}
        write_bytes_atomic(self.path, sealed.seal(content), durable=False)
        self._changed = False

    def _load(self) -> dict[str, tuple[int, int, str]]:
        """What is on disk; anything odd counts as nothing, since all of it can be computed again."""
        try:
            stored = sealed.unseal(self.path.read_bytes())
            if stored["version"] != self.VERSION:
                return {}
            return {
                str(name): (int(size), int(mtime), str(text)) for name, (size, mtime, text) in stored["files"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _forget_removed_files(self) -> None:
        """Keep the file from growing for ever where a nightly run meets new names every day."""
        unseen = self._remembered.keys() - self._seen
        if len(unseen) > len(self._seen) + 10_000:
            for name in unseen:
                if not os.path.exists(name):
                    del self._remembered[name]
