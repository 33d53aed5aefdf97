"""Any image that a user gives, as upright 8-bit RGB."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from irg.image_files import MAX_PIXELS, open_image, to_rgb

RAMP = np.arange(256, dtype=np.uint16)[None] * 257  # 16-bit grey: level i as 257 i


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, pixels: bytes, more: bytes = b"") -> bytes:
    """A PNG file chunk by chunk: what Pillow can't write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "TIFF"),
        encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF"),
        b"P5 256 1 65535\n" + RAMP.astype(">u2").tobytes(),
        png(256, 1, 16, 2, b"\0" + RAMP.repeat(3, axis=0).T.astype(">u2").tobytes()),
    ],
    ids=["png16", "tiff16", "tiff32", "float to 1", "float to 255", "pgm16", "png48"],
)
def test_more_than_eight_bits_are_scaled(data: bytes) -> None:
    image = open_image(data)
    assert image.mode == "RGB"
    assert np.asarray(image).tolist() == [[[i, i, i] for i in range(256)]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (0, (4, 2), (0, 0)),
        (1, (4, 2), (0, 0)),
        (2, (4, 2), (3, 0)),
        (3, (4, 2), (3, 1)),
        (4, (4, 2), (0, 1)),
        (5, (2, 4), (0, 0)),
        (6, (2, 4), (1, 0)),
        (7, (2, 4), (1, 3)),
        (8, (2, 4), (0, 3)),
        (9, (4, 2), (0, 0)),
    ],
)
def test_images_are_upright(form: str, orientation: int, size: tuple[int, int], corner: tuple[int, int]) -> None:
    image, exif = Image.new("RGB", (4, 2), (255, 0, 0)), Image.Exif()
    image.putpixel((0, 0), (0, 0, 255))
    exif[0x112] = orientation
    upright = open_image(encoded(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {})))
    assert upright.size == size and upright.getpixel(corner) == (0, 0, 255)
    assert open_image(upright).getpixel(corner) == (0, 0, 255)  # not turned again
    assert open_image(upright).size == size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_count_for_nothing() -> None:
    data = encoded(Image.new("RGB", (4, 2)), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff\x01")
    assert open_image(data).size == (4, 2)


GRAY_KEY = chunk(b"tRNS", struct.pack(">H", 9))
RGB_KEY = chunk(b"tRNS", struct.pack(">HHH", 9, 9, 9))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "PNG"),
        encoded(Image.new("LA", (1, 1), (9, 0)), "PNG"),
        encoded(Image.new("P", (1, 1), 0), "PNG", transparency=0),
        encoded(Image.new("P", (1, 1), 0), "GIF", transparency=0),
        png(1, 1, 8, 0, b"\0\x09", GRAY_KEY),
        png(1, 1, 8, 2, b"\0\x09\x09\x09", RGB_KEY),
        encoded(Image.new("1", (1, 1), 1), "PNG"),  # no alpha, white
    ],
    ids=["RGBA", "LA", "palette", "gif", "grey key", "color key", "one bit"],
)
def test_what_is_transparent_is_white(data: bytes) -> None:
    assert open_image(data).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_is_half_white() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])  # JPEG: inverted, with Adobe's marker, as Photoshop writes it
def test_cmyk(form: str) -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form)
    assert (form == "JPEG") == (b"Adobe" in data)
    assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_with_a_word(form: str, tmp_path: Path) -> None:
    path = tmp_path / "two"
    second = Image.new("RGB", (4, 4), (0, 0, 255))
    path.write_bytes(encoded(Image.new("RGB", (4, 4), (255, 0, 0)), form, save_all=True, append_images=[second]))
    told: list[str] = []
    red = open_image(path, told.append).getpixel((0, 0))
    assert isinstance(red, tuple) and red[0] > 250 and red[2] < 5
    assert told == [f"{path}: holds several images; the first is taken"]


def test_one_frame_or_a_photo_with_previews_needs_no_word() -> None:
    preview = Image.new("RGB", (2, 2))
    for data in (
        encoded(Image.new("RGB", (4, 4)), "GIF"),
        encoded(Image.new("RGB", (4, 4)), "MPO", save_all=True, append_images=[preview]),
    ):
        open_image(data, pytest.fail)


NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is empty, no image"),
        (b"prompt\na cat\n" * 99, r"is no image that can be read"),
        (NOISE[:30], "damaged at its beginning"),
        (NOISE[: len(NOISE) // 2], r"is damaged or cut off \(image file is truncated"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:60], "is damaged or cut off"),
        (png(60_000, 60_000, 8, 2, b""), "has more than the 89,478,485 pixels"),
        (png(10_000, 9_000, 8, 2, b""), "has 10000x9000 pixels; from 1 to 89,478,485 are read"),
        (png(2**31 - 1, 2**31 - 1, 8, 2, b""), "has more than the 89,478,485 pixels"),
        (encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "holds floats.*from nan to nan"),
        (encoded(Image.fromarray(np.full((2, 2), 300, np.float32)), "TIFF"), r"must be from 0 to 1 .*300 to 300"),
        (encoded(Image.fromarray(np.full((2, 2), -5, np.int32)), "TIFF"), "more than 16 bits: they are from -5 to -5"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "is a Radiance HDR file, which is not read: save it as PNG"),
        (b"\x76\x2f\x31\x01" + bytes(99), "is an OpenEXR file"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(99), "is a HEIC file"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(99), "is a video file"),
        (b"\n<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG file"),
        (encoded(Image.new("RGB", (2, 2)), "EPS"), "is a PostScript file"),  # Pillow would start Ghostscript
    ],
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_what_is_refused_in_one_line(data: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(data)
    for source, start in ((path, f"{path}: "), (data, "")):
        with pytest.raises(ValueError, match=complaint) as caught:
            open_image(source)
        message = str(caught.value)
        assert message.startswith(start) and "\n" not in message and " at 0x" not in message


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, complaint in ((tmp_path / "x.png", "No such file"), (tmp_path, "is a folder"), ("a\0b", "null")):
        with pytest.raises(ValueError, match=complaint):
            open_image(name)


def test_avif() -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    red = open_image(encoded(Image.new("RGB", (16, 16), (255, 0, 0)), "AVIF")).getpixel((8, 8))
    assert isinstance(red, tuple) and red[0] > 250 and red[1] < 5


def test_the_given_image_stays_as_it_is() -> None:
    given = Image.new("RGB", (2, 2), (1, 2, 3))
    given.info["note"] = "mine"
    opened = open_image(given)
    opened.putpixel((0, 0), (9, 9, 9))
    assert given.getpixel((0, 0)) == (1, 2, 3) and given.info == {"note": "mine"} and opened.info == {}


def test_the_limit_is_the_one_that_pillow_warns_at() -> None:
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS
