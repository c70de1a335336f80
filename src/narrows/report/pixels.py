"""Arrays of pixels -> PNG images inside a page.

Writes the smallest useful PNG (8 bits, gray or RGB, one compressed block) with the standard library; large images are
averaged down first, since a page shows thumbnails. Reads nothing.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
THUMBNAIL = 112  # pixels of the longer side: sharp on a phone, and 40 KB at most in color


def as_image(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(h, w) or (h, w, 3) of an image in any usual layout.

    Takes (h, w), channels last or channels first; of other stacks of planes, the first one.
    """
    if values.ndim == 2:
        return values
    values = values.reshape(*values.shape[:2], -1) if values.ndim > 3 else values
    first = values.shape[0] in (1, 3) and values.shape[2] not in (1, 3)
    planes = np.moveaxis(values, 0, -1) if first else values
    return planes if planes.shape[2] == 3 else planes[..., 0]


def shrunk(image: npt.NDArray[np.float64], side: int = THUMBNAIL) -> npt.NDArray[np.float64]:
    """The image with no side longer than about `side`, by averaging whole blocks of pixels."""
    step = -(-max(image.shape[:2]) // side)
    if step == 1:
        return image
    steps = [min(step, size) for size in image.shape[:2]]
    height, width = (size // by for size, by in zip(image.shape[:2], steps, strict=True))
    blocks = image[: height * steps[0], : width * steps[1]].reshape(height, steps[0], width, steps[1], -1)
    means: npt.NDArray[np.float64] = blocks.mean((1, 3)).reshape(height, width, *image.shape[2:])
    return means


def to_bytes(image: npt.NDArray[np.float64]) -> Pixels:
    """Pixels of an image in [0, 1]; what lies outside is cut off, NaN is black."""
    clipped = np.nan_to_num(image, nan=0.0).clip(0.0, 1.0)
    return np.asarray(np.rint(clipped * 255), dtype=np.uint8)


def png(pixels: Pixels) -> bytes:
    """A PNG file of (h, w) gray or (h, w, 3) RGB pixels (ISO/IEC 15948)."""
    height, width = pixels.shape[:2]
    color = 2 if pixels.ndim == 3 else 0
    lines = pixels.reshape(height, -1)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1)  # filter 0 before each line
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def data_uri(image: npt.NDArray[np.float64], side: int = THUMBNAIL) -> str:
    """An image in [0, 1], (h, w) or (h, w, 3), as the address of an <img>, no side longer than about `side`."""
    encoded = base64.b64encode(png(to_bytes(shrunk(image, side)))).decode("ascii")
    return f"data:image/png;base64,{encoded}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
