"""Any image that a user gives, as an upright 8-bit RGB image, or one line that says why not.

Legend: H, W pixels; levels are 0 (black) to 255 (white).
"""

import base64
import contextlib
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

ImageSource = str | Path | bytes | Image.Image
MAX_PIXELS = 89_478_485
"""The most pixels that are decoded (268 MB as RGB); Pillow itself warns of decompression bombs above this."""

# Said by an error of our own, or of no use to a user.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of damaged EXIF data and TIFF tags

# Formats that Pillow decodes by itself: EPS would start Ghostscript, and others take nearly any bytes for theirs.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "QOI", "AVIF", "HEIF")
# What users try besides, by the first bytes of the file.
_UNREAD = (
    (b"#?RADIANCE", "a Radiance HDR"),
    (b"#?RGBE", "a Radiance HDR"),
    (b"\x76\x2f\x31\x01", "an OpenEXR"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL"),
    (b"8BPS", "a Photoshop"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an XML"),
)
_BRANDS = {b"avif": "an AVIF", b"avis": "an AVIF"} | dict.fromkeys((b"heic", b"heix", b"mif1", b"msf1"), "a HEIC")
_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(
    source: ImageSource,
    say: Callable[[str], None] | None = None,
    max_pixels: int = MAX_PIXELS,
    still: bool = False,
) -> Image.Image:
    """An image file (a path or its bytes) or a Pillow image as RGB.

    It is upright as its EXIF data say, what is transparent is white, 16 bits are scaled to 8, and of several frames
    the first is taken. Colors are not managed: embedded profiles are ignored, as in training.

    Args:
        say: gets a line when the file holds more than the image that is returned.
        max_pixels: refuse larger images, before they are decoded.
        still: refuse a file of several images.

    Raises:
        ValueError: it can't be read, is no image, is damaged, too large, or holds values that have no place between
            black and white; the message begins with the path, if there is one.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, max_pixels)
    name = "" if isinstance(source, bytes) else f"{source}: "
    try:
        with _stream(source) as stream, _opened(stream) as opened:
            if (say is not None or still) and _is_animated(opened):
                if still:
                    raise ValueError("is animated or holds several images; a still image is needed")
                assert say is not None
                say(f"{name}holds several images; the first is taken")
            return _upright_rgb(opened, max_pixels)
    except ValueError as error:
        raise ValueError(f"{name}{error}") from None


def from_base64(text: str) -> bytes:
    """The bytes of a file as base64, with line breaks or without, or as a data URL.

    Raises:
        ValueError: it is not base64.
    """
    head, comma, data = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    if head and not (comma and head.lower().endswith(";base64")):
        raise ValueError(f"not base64: a data URL of an image is data:image/...;base64,..., this one is {head[:40]}...")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError as error:  # of characters that are not ASCII, too
        raise ValueError(f"not base64: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB version of any Pillow image, see :func:`open_image`; its orientation stays.

    Raises:
        ValueError: its values have no place between black and white.
    """
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(_levels(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _levels(values_HW: np.ndarray) -> np.ndarray:
    """Whole numbers of 16 bits, or floats up to 1 or 255, as levels, uint8 [H, W]."""
    low, high = values_HW.min(), values_HW.max()
    if values_HW.dtype.kind == "f":
        white = 1 if high <= 1 else 255  # Pillow writes 8-bit levels as floats up to 255
        kind = "floats, which must be from 0 to 1 (or to 255)"
    else:
        white, kind = 65535, "whole numbers of more than 16 bits"
    if not 0 <= low <= high <= white:  # NaN fails, too
        raise ValueError(f"holds {kind}: they are from {low:g} to {high:g}; save it with 8 bits a channel")
    return np.rint(values_HW * (255.0 / white)).astype(np.uint8)


def _stream(source: str | Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return Path(source).expanduser().open("rb")
    except IsADirectoryError:
        raise ValueError("is a folder, an image file is needed") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        if re.match("https?:", str(source)):
            raise ValueError("is an address; download the image and give the file") from None
        raise ValueError(getattr(error, "strerror", None) or str(error)) from None


def _opened(stream: BinaryIO) -> Image.Image:
    """The image with its header read, nothing decoded."""
    Image.init()  # registers the formats that this Pillow has
    start = stream.read(256)
    if not start:
        raise ValueError("is empty, no image")
    stream.seek(0)
    try:
        return Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"has more than the {MAX_PIXELS:,} pixels that are read") from None
    except Exception:  # decoders raise whatever they stumble over; Pillow's words name an object's address
        raise ValueError(_what_instead(start)) from None


def _what_instead(start: bytes) -> str:
    kind = next((kind for magic, kind in _UNREAD if start.lstrip().startswith(magic)), None)
    if start[4:8] == b"ftyp":
        kind = _BRANDS.get(start[8:12], "a video")
    if kind is None:
        return "is no image that can be read, or is damaged at its beginning (PNG, JPEG, WebP, TIFF, ... are read)"
    return f"is {kind} file, which is not read: save it as PNG or JPEG"


def _is_animated(opened: Image.Image) -> bool:
    with contextlib.suppress(Exception):  # a damaged second frame
        return opened.format != "MPO" and getattr(opened, "is_animated", False)  # MPO: a photo and its previews
    return False


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    if not 0 < image.width * image.height <= max_pixels:
        raise ValueError(f"has {image.width}x{image.height} pixels; from 1 to {max_pixels:,} are read")
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"is damaged or cut off ({' '.join(str(error).split()) or type(error).__name__})") from None
    orientation: Any = None
    with contextlib.suppress(Exception):  # damaged EXIF data: the image is as good as without them
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    rgb = to_rgb(image)
    rgb = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb.copy()
    rgb.info = {}  # else its orientation would count again
    return rgb
