"""One image file to pixels, through Pillow (the extra `image`).

Whatever a file holds becomes 8 bits, gray or RGB: 16-bit gray is divided by 257, what is transparent lies on white,
palettes are looked up, a photograph is turned as its EXIF orientation says, an animation gives its first frame.
Files are hostile: a decoder's failure, of whatever class, is a DataError, and what would unpack to more than 89
million pixels is refused before it is unpacked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from narrows.errors import DataError, NarrowsError, SettingError
from narrows.sources.paths import File

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte of 24-bit pixels
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_ORIENTATION = 0x0112
_SIDEWAYS = range(5, 9)  # orientations that swap height and width
_GRAY = ("1", "L", "LA", "La")


@dataclass(frozen=True)
class Header:
    """What an image file says before its pixels.

    Args:
        height: in pixels, as the image is to be looked at.
        width: likewise.
        gray: whether it has no colors.
        deep: whether a pixel has 16 bits.
    """

    height: int
    width: int
    gray: bool
    deep: bool


def header_of(file: File) -> Header:
    """The header of an image file; pixels are read only where there is a palette, to find whether it is gray.

    Raises:
        DataError: it is damaged, no image, claims too many pixels, or its values have no bounds (32-bit TIFF).
        SettingError: Pillow is not installed.
    """
    with _opened(file) as image:
        height, width = image.height, image.width
        if _turned(image):
            height, width = width, height
        return Header(height, width, _is_gray(image), image.mode.startswith("I;16"))


def decoded(file: File, channels: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file: (H, W) for one channel, (H, W, 3) for three.

    Args:
        file: the file.
        channels: 1 for gray, by the luma of ITU-R BT.601 where it has color; 3 for RGB.
        size: height and width to scale it to, by Lanczos' filter over all pixels that become one; by default its own.

    Raises:
        DataError: as `header_of`, and where pixels are missing or damaged.
        SettingError: Pillow is not installed.
    """
    with _opened(file) as image:
        if size is not None:  # a photograph that shrinks is unpacked at a fraction of its size, never below twice ours
            image.draft(None, (2 * max(size), 2 * max(size)))
        flat = _flat(_upright(image), "L" if channels == 1 else "RGB")
        if size is not None and flat.size != size[::-1]:
            from PIL.Image import Resampling

            flat = flat.resize(size[::-1], Resampling.LANCZOS)
        return np.asarray(flat)


@contextmanager
def ignoring_pillow() -> Iterator[None]:
    """Silence Pillow's own warnings (odd metadata, large images); ours name the file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextmanager
def _opened(file: File) -> Iterator[Image]:
    """The image of a file, its pixels not read yet; whatever fails in the body is the file's fault."""
    try:
        from PIL import Image
    except ImportError as error:
        raise SettingError(f"{file.name}: images need Pillow", hint="pip install 'narrows[image]'") from error
    try:
        with file.open() as raw, Image.open(raw, formats=_FORMATS) as image:
            _check(file, image)
            yield image
    except NarrowsError:
        raise
    except Exception as error:  # decoders of damaged bytes fail in any way
        reason = str(error).partition("\n")[0].partition(" <")[0] or type(error).__name__  # without our own stream
        raise DataError(f"{file.name} is no whole image: {reason}", hint="checking that the file is whole") from error


def _check(file: File, image: Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        got = f"{file.name} claims {image.height} x {image.width} pixels"
        raise DataError(got, f"{MOST_PIXELS:,} or fewer", "a smaller copy")
    if image.mode == "F" or (image.mode.startswith("I") and not image.mode.startswith("I;16")):
        raise DataError(f"{file.name} has 32-bit values without bounds", "8 or 16 bits a pixel", "an .npy file")


def _turned(image: Image) -> bool:
    """Whether the EXIF orientation swaps height and width; Pillow itself turns TIFF."""
    if image.format == "TIFF" or "exif" not in image.info:
        return False
    return image.getexif().get(_ORIENTATION) in _SIDEWAYS


def _upright(image: Image) -> Image:
    from PIL.ImageOps import exif_transpose

    known = image.format != "TIFF" and "exif" in image.info  # only what the header could tell
    image.load()
    return exif_transpose(image) if known else image


def _is_gray(image: Image) -> bool:
    if image.mode != "P":
        return image.mode in _GRAY or image.mode.startswith("I;16")
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _flat(image: Image, mode: str) -> Image:
    """The image in a mode of 8 bits without alpha."""
    from PIL import Image as pillow

    if image.mode.startswith("I;16"):
        image = pillow.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
