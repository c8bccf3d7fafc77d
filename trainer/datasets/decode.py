"""One image file to 8-bit pixels: first frame, turned by EXIF, alpha on white, 16-bit grey scaled, resized and cropped.

Knows nothing of archives and data sets. Pillow does the work; only raster formats that it reads in-process are allowed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".bmp",
        ".dib",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
    }
)
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # a quarter of a GiB at 24 bits, where Pillow starts to suspect a bomb
_ORIENTATION, _SIDEWAYS = 0x0112, {5, 6, 7, 8}
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_DRAFT = 3  # a JPEG may be decoded at a fraction of its size, but at this many times the wanted size at least


class Unreadable(ValueError):
    """This file is no image that can be read."""


@dataclass(frozen=True)
class Header:
    """What an image's header says, after turning: pixels, and whether it has no colour."""

    width: int
    height: int
    grey: bool


@contextmanager
def quiet_images() -> Iterator[None]:
    """Within it, Pillow's warnings about odd files are silent. Not for threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(file: BinaryIO) -> Image.Image:
    """Open one of the allowed formats, as far as this build of Pillow has them (JPEG brings MPO with it)."""
    Image.init()
    image = Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels")
    return image


def read_header(file: BinaryIO) -> Header:
    """Size and colour of the image without decoding its pixels. Raises ``Unreadable``."""
    try:
        with _open(file) as image:
            width, height = image.size
            if _orientation(image, file) in _SIDEWAYS:
                width, height = height, width
            return Header(width, height, _is_grey(image))
    except Exception as error:  # a damaged file can raise nearly anything
        raise Unreadable(str(error)) from error


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    """The EXIF orientation still to be applied. Asking a PNG decodes it, so only where there is one; TIFF turns itself."""
    if image.format == "TIFF":
        return 1
    if image.format == "PNG":
        file.seek(0)
        if b"eXIf" not in (data := file.read()) and b"xmp" not in data and b"Raw profile" not in data:
            return 1
        file.seek(0)
        with _open(file) as again:
            return int(again.getexif().get(_ORIENTATION, 1))
    return int(image.getexif().get(_ORIENTATION, 1))


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GREY_MODES


def decode(file: BinaryIO, *, grey: bool, height: int, width: int) -> NDArray[np.uint8]:
    """The pixels as [C, height, width], C = 1 if ``grey`` else 3.

    Another size is resized (bilinear, antialiased) so that it just covers the wanted one, and cropped in the middle.
    Raises ``Unreadable``.
    """
    try:
        with _open(file) as image:
            image.draft(None, (_DRAFT * max(width, height),) * 2)
            plain = _flat(ImageOps.exif_transpose(image)).convert("L" if grey else "RGB")
        if plain.size != (width, height):
            plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(plain)
    except Exception as error:  # a damaged file can raise nearly anything
        raise Unreadable(str(error)) from error
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _flat(image: Image.Image) -> Image.Image:
    """8 bits a channel and no transparency: 16-bit grey scaled by 255 / 65,535, alpha laid on white."""
    if image.mode in _DEEP_MODES:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise Unreadable("grey values beyond 16 bits")
        return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))
    if image.mode == "F":
        raise Unreadable("fractional grey values")
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")
