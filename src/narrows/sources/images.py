"""Images as rows: a file is a row, decoded when it is read, a batch at a time.

Opening reads headers alone (20 microseconds a file on a local disk) and learns from them the one size and whether there
is color. What no header tells, that the pixels behind it are damaged, is found when they are read: such a row is left
out of every reading alike and the others keep their ids, the places of their files. The price is that `rows_of` counts
it. Needs Pillow (the extra `image`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import DataError, DataWarning
from narrows.sources.arrays import flat
from narrows.sources.paths import File
from narrows.sources.pixels import Header, decoded, header_of, ignoring_pillow
from narrows.sources.reading import Reading, field
from narrows.sources.source import BATCH_BYTES, PIECE_BITS, Source

PIECE_FILES = 256  # folders of millions stay few pieces, sorted folders of thousands still mix
_REMOTE_THREADS = 16  # each waits for its file most of the time
_LARGE = 1 << 16  # bytes of pixels from which decoding in several threads is worth their overhead


class ImageSource(Source):
    """Image files of one size.

    Args:
        files: at least one, each with a header that can be read.
        channels: 1 or 3.
        shape: height and width.
        reading: whether to scale, and whether a broken image ends it all.
    """

    def __init__(self, files: Sequence[File], channels: int, shape: tuple[int, int], reading: Reading) -> None:
        self._files, self._channels, self._strict = files, channels, reading.strict
        self._size = shape if reading.size else None
        self._shape = (*shape, 3) if channels == 3 else shape
        self._threads = _threads(files, int(np.prod(self._shape)))
        self._broken = set[str]()
        self._told = 0
        self.name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        self._labels = labels_of(files)
        self._type = pa.fixed_shape_tensor(pa.uint8(), self._shape)
        asides = [field(name, pa.string(), aside=True) for name in ("path", *(["label"] if self._labels else []))]
        self.schema = pa.schema([field("image", self._type, kind="image"), *asides])
        self.pieces = tuple(range(-(-len(files) // PIECE_FILES)))
        self._step = max(1, min(PIECE_FILES, BATCH_BYTES // int(np.prod(self._shape))))
        self.open_bytes = 2 * self._step * int(np.prod(self._shape))

    def settled(self, asked: Reading) -> Reading:
        """New images are read in as many channels as these, whatever their files hold."""
        return replace(asked, channels=self._channels)

    def rows_of(self, piece: int) -> int:
        """Files in a piece, those among them that turn out to be broken."""
        return min(PIECE_FILES, len(self._files) - piece * PIECE_FILES)

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`; a batch ends before a broken image."""
        first = piece * PIECE_FILES
        stop = first + self.rows_of(piece)
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(first + skip, stop, self._step):
                places, pixels = self._decoded(pool, range(start, min(start + self._step, stop)))
                cuts = [0, *(np.flatnonzero(np.diff(places) > 1) + 1).tolist(), len(places)]
                for low, high in pairwise(cuts):
                    if high > low:
                        rows = self._rows(places[low:high], pixels[low:high])
                        yield piece << PIECE_BITS | places[low] - first, rows
        self._tell()

    def _decoded(self, pool: ThreadPoolExecutor, places: range) -> tuple[list[int], NDArray[np.uint8]]:
        """The places that hold whole images, and these."""
        whole = list[int]()
        pixels = np.empty((len(places), *self._shape), np.uint8)
        run = pool.map if self._threads > 1 else map
        with ignoring_pillow():
            for place, image in zip(places, run(self._image, places), strict=True):
                if image is not None:
                    pixels[len(whole)] = image
                    whole.append(place)
        return whole, pixels[: len(whole)]

    def _image(self, place: int) -> NDArray[np.uint8] | None:
        """The pixels of a file; None where it is broken."""
        file = self._files[place]
        try:
            pixels = decoded(file, self._channels, self._size)
            if pixels.shape != self._shape:
                raise DataError(f"{file.name} unpacks to {pixels.shape}", f"{self._shape}, as its header says")
        except DataError:
            if self._strict:
                raise
            self._broken.add(file.name)
            return None
        return pixels

    def _rows(self, places: list[int], pixels: NDArray[np.uint8]) -> pa.RecordBatch:
        storage = pa.FixedSizeListArray.from_arrays(flat(pixels), pixels[0].size)
        columns = [pa.ExtensionArray.from_storage(self._type, storage)]
        columns.append(pa.array([self._files[place].name for place in places], pa.string()))
        if self._labels:
            columns.append(pa.array([self._labels[place] for place in places], pa.string()))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _tell(self) -> None:
        """Warn of images found broken: of the first, and again when they are ten times as many."""
        count = len(self._broken)
        if count == len(self._files):
            raise DataError(f"all {count} images of {self.name} are broken", "at least one that is whole")
        if count > 10 * self._told:
            self._told = count
            _warn_left_out(count, len(self._files), min(self._broken))


def open_images(files: Sequence[File], reading: Reading) -> Source:
    """One source of image files: a column `image` of uint8, (H, W) where all are gray, else (H, W, 3).

    Beside it stand `path` and, where the files lie in several folders, `label`, the name of the folder above each.

    Raises:
        DataError: the images are of several sizes and the reading gives none; none can be read; or, with
            `reading.strict`, one cannot.
        SettingError: Pillow is not installed.
    """
    found = _headers(files, reading.strict)
    whole = [(file, header) for file, header in zip(files, found, strict=True) if isinstance(header, Header)]
    broken = [error for error in found if isinstance(error, DataError)]
    if not whole:
        every = f"{broken[0].got}" if len(files) == 1 else f"all {len(files)} images are broken, as {broken[0].got}"
        raise DataError(every, broken[0].wanted, broken[0].hint) from broken[0]
    if broken:
        _warn_left_out(len(broken), len(files), broken[0].got)
    _warn_of_depth([file for file, header in whole if header.deep])
    channels = reading.channels or (1 if all(header.gray for _, header in whole) else 3)
    shape = reading.size or _one_size(whole)
    return ImageSource([file for file, _ in whole], channels, shape, reading)


def labels_of(files: Sequence[File]) -> list[str]:
    """The name of the folder above each file; none where all lie in one."""
    folders = [file.path.rpartition("/")[0] for file in files]
    return [folder.rpartition("/")[2] for folder in folders] if len(set(folders)) > 1 else []


def _headers(files: Sequence[File], strict: bool) -> list[Header | DataError]:
    def look(file: File) -> Header | DataError:
        try:
            return header_of(file)
        except DataError as error:
            if strict:
                raise
            return error

    with ignoring_pillow():
        if all(file.local for file in files):  # several threads would only wait for each other
            return [look(file) for file in files]
        with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
            return list(pool.map(look, files))


def _one_size(whole: Sequence[tuple[File, Header]]) -> tuple[int, int]:
    """Height and width of all images."""
    first, wanted = whole[0]
    for file, header in whole:
        if (header.height, header.width) != (wanted.height, wanted.width):
            got = f"{file.name} has {header.height} x {header.width} pixels"
            want = f"{wanted.height} x {wanted.width}, as {first.name}"
            raise DataError(got, want, "scaling all to one height and width: size= (--size)")
    return wanted.height, wanted.width


def _threads(files: Sequence[File], pixels: int) -> int:
    if not all(file.local for file in files):
        return _REMOTE_THREADS
    return min(8, os.cpu_count() or 1) if pixels >= _LARGE else 1


def _warn_left_out(count: int, total: int, first: str) -> None:
    said = f"{count} of {total} images cannot be read and are left out, the first: {first}"
    warnings.warn(said, DataWarning, stacklevel=4)


def _warn_of_depth(deep: list[File]) -> None:
    if deep:
        said = f"{len(deep)} images have 16 bits a pixel, read as 8 (value / 257), the first: {deep[0].name}"
        warnings.warn(said, DataWarning, stacklevel=4)
