"""Does every kind of image file become the picture that a person sees, and every broken one a clear error?"""

from __future__ import annotations

import io
import os
import re
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from artifacts import images, keys
from artifacts.images import ImageDigests, ImageError, decode_image_rgb, image_size_hw, read_image_rgb
from artifacts.records import DataError

ORIENTATION = 0x0112
# What a viewer does to the stored rows for each EXIF orientation, written out by hand (TIFF 6.0, tag 274).
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def picture(height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """Smooth, so that JPEG keeps it, and different in every corner and channel."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 5, 255 - x * 2 - y], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(**options: object) -> bytes:
    return encoded(Image.fromarray(picture()), "JPEG", quality=95, **options)


# --- HEIC, of telephones


def test_heic_is_read_as_it_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    assert "HEIF" in images.readable()
    path = tmp_path / "a.heic"
    exif = Image.Exif()
    for orientation in (1, 6, 3):  # written as HEIC's own rotation; its EXIF repeats it and does not count twice
        exif[ORIENTATION] = orientation
        Image.fromarray(picture()).save(path, "HEIF", quality=95, exif=exif.tobytes())
        found = read_image_rgb(path)
        wanted = TURNS[orientation](picture())
        assert found.shape == wanted.shape and image_size_hw(path) == wanted.shape[:2]
        assert np.abs(found.astype(int) - wanted).mean() < 3
    with pytest.raises(ImageError, match="it is HEIC, cut or damaged: copy it again"):
        decode_image_rgb(path.read_bytes()[:200], "a.jpg")


def test_without_its_package_heic_says_how_under_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "readable", lambda: tuple(name for name in images.FORMATS if name != "HEIF"))
    for name in ("a.heic", "a.jpg"):
        with pytest.raises(ImageError, match=re.escape("pip install maskmill[heif]")):
            decode_image_rgb(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf", name)


# --- what comes out


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_format(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    path = tmp_path / "a b ü.jpg"  # the suffix does not decide
    path.write_bytes(encoded(Image.fromarray(picture()), form, exif=exif, **options))
    got = read_image_rgb(path)
    want = TURNS[orientation](picture())
    assert got.shape == want.shape and got.dtype == np.uint8
    assert np.abs(got.astype(int) - want).mean() < 3
    assert image_size_hw(path) == want.shape[:2]


def test_the_fast_path_gives_what_pillow_gives() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"optimize": True}):
        data = jpeg(**options)
        assert np.array_equal(decode_image_rgb(data, "a"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_palette_bilevel_and_cmyk_become_rgb() -> None:
    image = Image.fromarray(picture())
    grey = np.asarray(image.convert("L"))
    for form in ("PNG", "JPEG"):
        got = decode_image_rgb(encoded(image.convert("L"), form), "a")
        assert got.shape == (40, 56, 3) and (got == got[..., :1]).all()
        assert np.abs(got[..., 0].astype(int) - grey).max() <= (0 if form == "PNG" else 12)
    palette = image.quantize(16)
    assert np.array_equal(decode_image_rgb(encoded(palette, "PNG"), "a"), np.asarray(palette.convert("RGB")))
    bilevel = decode_image_rgb(encoded(image.convert("1"), "PNG"), "a")
    assert set(np.unique(bilevel)) == {0, 255}
    cmyk = decode_image_rgb(encoded(image.convert("CMYK"), "JPEG", quality=95), "a")
    assert np.abs(cmyk.astype(int) - picture()).mean() < 4, "an inverted CMYK would be far off"


def test_sixteen_bits_are_scaled_from_the_full_range() -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        got = decode_image_rgb(encoded(Image.fromarray(values), form), "a")
        assert got[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 128, 255)]
    colour = cv2.imencode(".png", np.full((2, 2, 3), (65535, 256 * 7, 0), np.uint16))[1].tobytes()  # BGR
    assert decode_image_rgb(colour, "a")[0, 0].tolist() == [0, 7, 255]


def test_transparency_shows_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 255, 51)
    got = decode_image_rgb(encoded(Image.fromarray(rgba), "PNG"), "a")
    assert got[0, :, 0].tolist() == [255, 0, 204]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    got = decode_image_rgb(encoded(palette, "PNG", transparency=0), "a")
    assert got[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_floating_point_pixels_are_refused_with_the_fix() -> None:
    data = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(ImageError, match=r"x\.tif: 32-bit pixels \(Pillow mode F\).*8 or 16 bits"):
        decode_image_rgb(data, "x.tif")


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image_rgb(data, "a")[0, 0].tolist() == [250, 0, 0]


# --- what is refused


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_an_error(progressive: bool) -> None:
    data = jpeg(progressive=progressive)
    header = data.index(b"\xff\xda") + 20
    for cut in [*range(header), *range(header, len(data), 41), len(data) - 1]:
        with pytest.raises(ImageError, match="cut.jpg"):
            decode_image_rgb(data[:cut], "cut.jpg")


@given(position=st.integers(3, 900), replacement=st.binary(min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_damaged_jpeg_is_an_image_or_an_image_error(position: int, replacement: bytes) -> None:
    data = bytearray(jpeg())
    data[position : position + len(replacement)] = replacement
    try:
        assert decode_image_rgb(bytes(data), "damaged.jpg").ndim == 3
    except ImageError as error:
        assert str(error).startswith("damaged.jpg: ")


def test_a_jpeg_cut_behind_its_thumbnail_is_an_error() -> None:
    """The thumbnail's end mark must not pass for the image's."""
    thumbnail = jpeg()
    data = jpeg()
    comment = b"\xff\xfe" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + comment + data[2:]
    assert decode_image_rgb(whole, "a").shape == (40, 56, 3)
    with pytest.raises(ImageError):
        decode_image_rgb(whole[:-200], "a")


def test_opencv_failing_to_notice_a_cut_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some OpenCV releases fill what is missing with grey; the end mark is looked for before they decode."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((40, 56, 3), 128, np.uint8))
    with pytest.raises(ImageError, match="truncated"):
        decode_image_rgb(jpeg()[:-100], "a")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"these are not pixels\n", "not an image file.*these are not"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "image"),
    ],
    ids=["zero bytes", "text", "jpeg header only"],
)
def test_what_is_no_image_is_a_permanent_error_with_path_and_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (read_image_rgb, image_size_hw):
        with pytest.raises(ImageError, match=f"{path}: .*{reason}") as caught:
            read(path)
        assert isinstance(caught.value, DataError)


def test_every_single_broken_png_is_an_error_or_an_image() -> None:
    data = encoded(Image.fromarray(picture()), "PNG")
    for cut in range(0, len(data) - 12, 37):
        with pytest.raises(ImageError):
            decode_image_rgb(data[:cut], "a.png")
    for position in range(0, len(data), 53):
        broken = bytearray(data)
        broken[position] ^= 0x5A
        try:
            decode_image_rgb(bytes(broken), "a.png")
        except ImageError as error:
            assert str(error).startswith("a.png: ")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_decompression_bomb_is_refused_by_its_header(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("L", (600, 500)), form))
    for read in (read_image_rgb, image_size_hw):
        with pytest.raises(
            ImageError, match=r"600 x 500 = 300,000 pixels, more than 299,999.*MASKMILL_MAX_PIXELS=300000"
        ):
            read(path, max_pixels=299_999)
    assert read_image_rgb(path, max_pixels=300_000).shape == (500, 600, 3)
    monkeypatch.setenv("MASKMILL_MAX_PIXELS", "1000")
    with pytest.raises(ImageError, match="more than 1,000"):
        read_image_rgb(path)
    monkeypatch.setenv("MASKMILL_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="MASKMILL_MAX_PIXELS must be a positive whole number, not 'many'"):
        read_image_rgb(path)


def test_the_default_bound_refuses_a_real_bomb_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    header = encoded(Image.new("1", (8, 8)), "PNG")
    size = (60_000).to_bytes(4, "big") * 2 + header[24:29]
    chunk = b"IHDR" + size
    path.write_bytes(header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + header[33:])
    with pytest.raises(ImageError, match="3,600,000,000 pixels, more than 178,956,970"):
        read_image_rgb(path)


def test_a_file_that_cannot_be_read_is_no_image_error(tmp_path: Path) -> None:
    for read in (read_image_rgb, image_size_hw):
        with pytest.raises(FileNotFoundError) as caught:
            read(tmp_path / "gone.jpg")
        assert not isinstance(caught.value, ImageError)
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


# --- digests


def aged(path: Path, data: bytes, age_s: float = 100.0) -> Path:
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns() - int(age_s * 1e9),) * 2)
    return path


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    reads: list[Path] = []
    real = keys.digest_file

    def digest_file(path: Path) -> str:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(keys, "digest_file", digest_file)
    return reads


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counting(monkeypatch)
    path = aged(tmp_path / "a b ü\udcff.jpg", b"one")
    first = ImageDigests(tmp_path / "cache")
    assert first.digest(path) == keys.digest_bytes(b"one") == first.digest(path)
    first.save()
    assert ImageDigests(tmp_path / "cache").digest(path) == keys.digest_bytes(b"one")
    assert len(reads) == 1


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = aged(tmp_path / "a.jpg", b"one")
    digests = ImageDigests(tmp_path / "cache")
    digests.digest(path)
    aged(path, b"two", age_s=50)
    assert digests.digest(path) == keys.digest_bytes(b"two")
    aged(path, b"three", age_s=50)
    assert digests.digest(path) == keys.digest_bytes(b"three")


def test_a_file_just_written_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same size, same time stamp, other content: only the racy guard can tell."""
    reads = counting(monkeypatch)
    path = aged(tmp_path / "a.jpg", b"one", age_s=0.5)
    stamp = path.stat().st_mtime_ns
    digests = ImageDigests(tmp_path / "cache")
    digests.digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp, stamp))
    assert digests.digest(path) == keys.digest_bytes(b"two")
    digests.save()
    assert len(reads) == 2 and not digests.path.exists(), "nothing was worth remembering"


def test_verify_reads_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged(tmp_path / "a.jpg", b"one")
    stamp = path.stat().st_mtime_ns
    digests = ImageDigests(tmp_path / "cache")
    digests.digest(path)
    digests.save()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp, stamp))
    reads = counting(monkeypatch)
    assert ImageDigests(tmp_path / "cache").digest(path) == keys.digest_bytes(b"one"), "by time stamp it is unchanged"
    verifying = ImageDigests(tmp_path / "cache", verify=True)
    assert verifying.digest(path) == verifying.digest(path) == keys.digest_bytes(b"two")
    assert len(reads) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1, "files": {"a": 3}}', b'{"version": 2}', b"\xff"]
)
def test_a_broken_memory_counts_as_none(content: bytes, tmp_path: Path) -> None:
    path = aged(tmp_path / "a.jpg", b"one")
    digests = ImageDigests(tmp_path / "cache")
    digests.path.parent.mkdir(parents=True)
    digests.path.write_bytes(content)
    digests = ImageDigests(tmp_path / "cache")
    assert digests.digest(path) == keys.digest_bytes(b"one")
    digests.save()
    assert ImageDigests(tmp_path / "cache").digest(path) == keys.digest_bytes(b"one")


def test_ten_thousand_look_ups_take_well_under_a_second(tmp_path: Path) -> None:
    digests = ImageDigests(tmp_path / "cache")
    paths = [aged(tmp_path / f"{i}.jpg", b"x") for i in range(1000)]
    for path in paths:
        digests.digest(path)
    digests.save()
    start = time.process_time()
    again = ImageDigests(tmp_path / "cache")
    for _ in range(10):
        for path in paths:
            again.digest(path)
    assert time.process_time() - start < 1.0


def test_names_of_removed_files_are_forgotten_in_the_end(tmp_path: Path) -> None:
    digests = ImageDigests(tmp_path / "cache")
    digests._remembered = {f"/gone/{i}": (1, 1, "0") for i in range(10_050)}
    kept = aged(tmp_path / "a.jpg", b"one")
    digests.digest(kept)
    digests.save()
    assert list(ImageDigests(tmp_path / "cache")._remembered) == [str(kept)]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composed_strip_by_strip_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (23, 7, 4)).astype(np.uint8)
    image = Image.fromarray(noise)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        rgba = opened.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    monkeypatch.setattr(images, "STRIP_ROWS", 5)
    np.testing.assert_array_equal(read_image_rgb(tmp_path / "a.png"), np.asarray(whole))
