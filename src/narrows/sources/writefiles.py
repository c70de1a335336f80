"""Rows back to files of their own kind: a folder with one PNG, WAV or text file for each row.

A file is called as the one its row came from, where the column `path` says so, else by the number of its row. Pixels
are written exactly; samples are rounded to 16 bits. The folder appears once all its files are written.
"""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import DataError, SettingError
from narrows.files import atomic_folder
from narrows.sources.plain import shape_of
from narrows.sources.reading import ASIDE, KIND, RATE, fact, modeled

_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')
_STEM = 150  # characters of a name that are kept
_OVERSHOOT = 0.5  # what a model says of pixels in [0, 1] may lie beyond; pixels in [0, 255] would lie far beyond


def write_files(out: str | Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
    """Write each row's image, sound or text as a file of a new folder, and return their number.

    Args:
        out: the folder; it must not exist, or be empty.
        batches: of that schema.
        schema: with one column that does not stand aside: an image (uint8 tensor, or floats in [0, 1]), a sound with
            its rate (int16, or floats in [-1, 1]) or a text.

    Raises:
        SettingError: the columns are others, or Pillow is missing.
        DataError: a row has no value, or one out of bounds; nothing is left behind.
        NarrowsError: the folder cannot be written.
    """
    entry, suffix, encode = _shown(out, schema)
    stems, count = _Stems(), 0
    with atomic_folder(out) as folder:
        for batch in batches:
            paths = _paths(batch, schema)
            for value, path in zip(_values(entry, batch.column(entry.name), count), paths, strict=True):
                stem = stems.fresh(f"{count:06d}" if path is None else PurePosixPath(path).stem)
                (folder / f"{stem}{suffix}").write_bytes(encode(value))
                count += 1
    return count


def _shown(out: str | Path, schema: pa.Schema) -> tuple[pa.Field, str, Callable[[Any], bytes]]:
    """The column to write, the suffix of its files, and what makes the bytes of one."""
    entries = modeled(schema)
    entry = entries[0] if len(entries) == 1 else pa.field("rows", pa.null())
    kind = fact(entry, KIND) or _kind_of_shape(entry)
    if kind == "image" and shape_of(entry) is not None:
        return entry, ".png", lambda image: _png(entry.name, image)
    if kind == "audio":
        rate = int(fact(entry, RATE) or 0)
        if not rate:
            raise SettingError(f"column {entry.name!r} does not say its samples per second", hint="a .npy file")
        return entry, ".wav", lambda sound: _wav(entry.name, sound, rate)
    if pa.types.is_string(entry.type) or pa.types.is_large_string(entry.type):
        return entry, ".txt", str.encode
    said = ", ".join(f"{field.name} {field.type}" for field in entries[:5]) + (" and more" if len(entries) > 5 else "")
    hint = "a name that ends in .parquet, .csv, .jsonl or .npy"
    raise SettingError(f"{out} is a folder, the rows are {said}", "one column: an image, a sound or a text", hint)


def _kind_of_shape(entry: pa.Field) -> str:
    shape = shape_of(entry) or ()
    return "image" if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)) else ""


def _paths(batch: pa.RecordBatch, schema: pa.Schema) -> list[str | None]:
    """Where each row came from."""
    if "path" in schema.names and fact(schema.field("path"), ASIDE):
        return list(batch.column("path").to_pylist())
    return [None] * batch.num_rows


def _values(entry: pa.Field, column: pa.Array, first: int) -> Iterator[Any]:
    """Each row's value: an array, or a text."""
    for row, value in enumerate(column, first + 1):
        if not value.is_valid:
            raise DataError(f"row {row} has no {entry.name}", "a value in each row", "a .parquet file")
        if isinstance(column, pa.FixedShapeTensorArray):
            yield value.to_numpy()
        elif pa.types.is_nested(entry.type):
            yield _samples(value.values)
        else:
            yield value.as_py()


def _samples(values: pa.Array) -> NDArray[Any]:
    """A list of samples (T,), or of samples of each channel (T, channels)."""
    if pa.types.is_fixed_size_list(values.type):
        return _samples(values.flatten()).reshape(-1, values.type.list_size)
    samples: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return samples


def _png(name: str, image: NDArray[Any]) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise SettingError("images are written by Pillow", hint="pip install 'narrows[image]'") from error
    pixels = _eight_bits(name, image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise DataError(f"column {name!r} of shape {image.shape}", "height, width and 1 or 3 channels", "a .npy file")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _eight_bits(name: str, image: NDArray[Any]) -> NDArray[np.uint8]:
    whole = image.dtype.kind in "iu"
    low, high = (0, 255) if whole else (-_OVERSHOOT, 1 + _OVERSHOOT)
    if not (image.min() >= low and image.max() <= high):
        got = f"column {name!r} has pixels from {image.min()} to {image.max()}"
        raise DataError(got, "0 to 255 in whole numbers, or 0 to 1", "a .npy file")
    return (image if whole else np.rint(image.clip(0, 1) * 255)).astype(np.uint8)


def _wav(name: str, sound: NDArray[Any], rate: int) -> bytes:
    if sound.dtype != np.int16:
        if not np.isfinite(sound).all():
            raise DataError(f"column {name!r} has samples that are missing or infinite", "numbers", "a .npy file")
        sound = np.rint(sound * 32768.0).clip(-32768, 32767)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(sound.shape[1] if sound.ndim == 2 else 1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.astype("<i2").tobytes())
    return buffer.getvalue()


class _Stems:
    """Names without suffix, each given once, also where the file system does not tell cases apart."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def fresh(self, wish: str) -> str:
        """The name, with the next number behind it where it was given before."""
        wish = _UNSAFE.sub("_", wish)[:_STEM] or "_"
        name = wish
        while name.casefold() in self._given:
            self._given[wish.casefold()] = self._given.get(wish.casefold(), 1) + 1
            name = f"{wish}-{self._given[wish.casefold()]}"
        self._given[name.casefold()] = 1
        return name
