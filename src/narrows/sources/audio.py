"""Sound files as rows: whole files, or windows of samples; float32 in [-1, 1], whatever the files hold.

Opening reads headers alone. Sounds that turn out to be damaged when they are read are left out of every reading alike,
from the damage on, and the others keep their ids; the price is that `rows_of` counts them. A WAV file that was cut
short is read as far as it goes. Memory: a file, where rows are whole files, else 16 MB of windows. Needs soundfile (the
extra `audio`). Knows nothing of spectra, and never resamples.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import DataError, DataWarning, SettingError
from narrows.sources.arrays import flat
from narrows.sources.images import labels_of
from narrows.sources.paths import File, reading
from narrows.sources.reading import Reading, field
from narrows.sources.source import BATCH_BYTES, PIECE_BITS, Source, numbered

PIECE_FILES = 256  # as for images: sorted folders of thousands still mix
_PIECE_SAMPLES = 1 << 22  # nine minutes at 8 kHz: long recordings are a piece each
_BLOCK = 1 << 20  # samples to read at once, so that a header cannot claim memory
_MERGED_BYTES = 1 << 20  # short sounds travel together


@dataclass(frozen=True)
class Sound:
    """A sound file and what its header says: samples of each channel, channels, and samples per second."""

    file: File
    samples: int
    channels: int
    rate: int


def open_sounds(files: Sequence[File], reading: Reading) -> Source:
    """One source of sound files: column `sound` of kind audio, with its rate.

    Without a window a row is a file, a list of samples (of several channels: lists of them); with one, a row is
    `reading.window` samples every `reading.stride`, a tensor (T,) or (T, channels). What is left at the end of a file
    is dropped, with a warning. Beside it stand `path`, `label` (the folder above, where files lie in several) and,
    with a window, `start` (samples before it). Sounds of mixed channels become mono, with a warning.

    Raises:
        DataError: rates differ; no sound is as long as a window; none can be read; or, with `reading.strict`, one
            cannot or channels are mixed.
        SettingError: soundfile is not installed.
    """
    found = [_header(file, reading.strict) for file in files]
    sounds = [sound for sound in found if isinstance(sound, Sound)]
    broken = [error for error in found if isinstance(error, DataError)]
    if not sounds:
        every = broken[0].got if len(files) == 1 else f"all {len(files)} sounds are broken, as {broken[0].got}"
        raise DataError(every, broken[0].wanted, broken[0].hint) from broken[0]
    if broken:
        _warn_left_out(len(broken), len(files), broken[0].got)
    for sound in sounds:
        if sound.rate != sounds[0].rate:
            got = f"{sound.file.name} has {sound.rate:,} samples a second"
            raise DataError(got, f"{sounds[0].rate:,}, as {sounds[0].file.name}", "resampling them to one rate")
    return Sounds(sounds, _channels(sounds, reading), reading)


class Sounds(Source):
    """Sound files of one rate.

    Args:
        sounds: at least one.
        channels: of the rows; mono is the mean of a file's channels.
        reading: the window and stride, and whether damage ends it all.
    """

    def __init__(self, sounds: Sequence[Sound], channels: int, reading: Reading) -> None:
        self._sounds, self._channels, self._strict = sounds, channels, reading.strict
        self._window, self._stride = reading.window, reading.stride or reading.window or 1
        self._labels = labels_of([sound.file for sound in sounds])
        self._counts = [self._windows(sound.samples) for sound in sounds]
        self._broken = set[str]()
        self._told = 0
        self.name = sounds[0].file.name if len(sounds) == 1 else f"{sounds[0].file.name} and {len(sounds) - 1} more"
        self._check_lengths()
        self.schema = self._schema(sounds[0].rate)
        self._starts = _cut([sound.samples * sound.channels for sound in sounds])
        self.pieces = tuple(piece for piece in range(len(self._starts) - 1) if self.rows_of(piece))

    def settled(self, asked: Reading) -> Reading:
        """Where these are mono, new sounds are mixed down, whatever their files hold."""
        return replace(asked, channels=1) if self._channels == 1 else asked

    def rows_of(self, piece: int) -> int:
        """Rows as the headers say."""
        return sum(self._counts[self._starts[piece] : self._starts[piece + 1]])

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`; a batch ends before damage."""
        waiting: list[pa.RecordBatch] = []
        row = size = 0
        for at, rows in self._runs(piece, skip):
            if waiting and (size + rows.nbytes > _MERGED_BYTES or at != row):
                yield from numbered(piece, row - sum(map(len, waiting)), [pa.concat_batches(waiting)])
                waiting, size = [], 0
            waiting.append(rows)
            row, size = at + len(rows), size + rows.nbytes
        if waiting:
            yield from numbered(piece, row - sum(map(len, waiting)), [pa.concat_batches(waiting)])
        self._tell()

    def _runs(self, piece: int, skip: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Rows of one file after the other, as far as each can be read, and the place of the first in the piece."""
        row = 0
        for place in range(self._starts[piece], self._starts[piece + 1]):
            dropped = min(max(0, skip - row), self._counts[place])
            if dropped < self._counts[place]:
                try:
                    for first, rows in self._of_file(place, dropped):
                        yield row + first, rows
                except DataError:
                    if self._strict:
                        raise
                    self._broken.add(self._sounds[place].file.name)
            row += self._counts[place]

    def _of_file(self, place: int, first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows of a file from one on."""
        sound, window = self._sounds[place], self._window
        with _opened(sound.file) as opened:
            if window is None:
                yield 0, self._rows(place, self._samples(opened, sound, 0, sound.samples)[None], 0)
                return
            step = max(1, BATCH_BYTES // (4 * max(window, self._stride) * sound.channels))
            for start in range(first, self._counts[place], step):
                count = min(step, self._counts[place] - start)
                span = self._samples(opened, sound, start * self._stride, (count - 1) * self._stride + window)
                views = np.lib.stride_tricks.sliding_window_view(span, window, axis=0)[:: self._stride]
                yield start, self._rows(place, views.transpose(0, 2, 1), start)

    def _samples(self, opened: Any, sound: Sound, start: int, count: int) -> NDArray[np.float32]:
        """(count, channels) samples of a file from one on."""
        opened.seek(start)
        blocks, left = [], count
        while left:
            block = opened.read(min(left, _BLOCK), dtype="float32", always_2d=True)
            if not len(block):
                got = f"{sound.file.name} ends {left:,} samples early"
                raise DataError(got, f"{sound.samples:,}, as its header says", "checking that the file is whole")
            blocks.append(block)
            left -= len(block)
        samples = np.concatenate(blocks)
        if sound.channels == self._channels:
            return samples
        mixed: NDArray[np.float32] = samples.mean(axis=1, keepdims=True)
        return mixed

    def _rows(self, place: int, values: NDArray[np.float32], first: int) -> pa.RecordBatch:
        """Rows of samples (rows, T, channels), the first of which is row `first` of the file."""
        count = len(values)
        columns = [self._cells(values), pa.repeat(self._sounds[place].file.name, count)]
        if self._labels:
            columns.append(pa.repeat(self._labels[place], count))
        if self._window is not None:
            columns.append(flat(np.arange(first, first + count) * self._stride))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _cells(self, values: NDArray[np.float32]) -> pa.Array:
        cells, kind = flat(values), self.schema.field("sound").type
        if self._window is not None:
            storage = pa.FixedSizeListArray.from_arrays(cells, self._window * self._channels)
            return pa.ExtensionArray.from_storage(kind, storage)
        if self._channels > 1:
            cells = pa.FixedSizeListArray.from_arrays(cells, self._channels)
        return pa.ListArray.from_arrays(flat(np.array([0, values.shape[1]], dtype=np.int32)), cells)

    def _schema(self, rate: int) -> pa.Schema:
        many = () if self._channels == 1 else (self._channels,)
        if self._window is None:
            kind = pa.list_(pa.list_(pa.float32(), *many) if many else pa.float32())
        else:
            kind = pa.fixed_shape_tensor(pa.float32(), (self._window, *many))
        asides = [("path", pa.string()), *([("label", pa.string())] if self._labels else [])]
        asides += [("start", pa.int64())] if self._window is not None else []
        return pa.schema([field("sound", kind, kind="audio", rate=rate), *(field(*a, aside=True) for a in asides)])

    def _windows(self, samples: int) -> int:
        """Rows of a file."""
        return 1 if self._window is None else max(0, (samples - self._window) // self._stride + 1)

    def _check_lengths(self) -> None:
        """Refuse sounds that fill no window, and say how many samples are left out at the ends."""
        if self._window is None:
            return
        if not any(self._counts):
            longest = max(sound.samples for sound in self._sounds)
            got = f"{self.name}: no sound has more than {longest:,} samples"
            raise DataError(got, f"{self._window:,}, a window", "a smaller window")
        gap = max(0, self._stride - self._window)
        pairs = zip(self._sounds, self._counts, strict=True)
        lost = [s.samples - ((n - 1) * self._stride + self._window + gap if n else 0) for s, n in pairs]
        left = [count for count in lost if count > 0]
        if left:
            said = f"{self.name}: {sum(left):,} samples at the ends of {len(left):,} sounds are left out"
            warnings.warn(f"{said}, as they fill no window of {self._window:,}", DataWarning, stacklevel=5)

    def _tell(self) -> None:
        """Warn of sounds found broken: of the first, and again when they are ten times as many."""
        count = len(self._broken)
        if count == len(self._sounds):
            raise DataError(f"all {count} sounds of {self.name} are broken", "at least one that is whole")
        if count > 10 * self._told:
            self._told = count
            _warn_left_out(count, len(self._sounds), min(self._broken))


def _header(file: File, strict: bool) -> Sound | DataError:
    """What the header of a file says, or what is wrong with it."""
    try:
        with _opened(file) as opened:
            sound = Sound(file, int(opened.frames), int(opened.channels), int(opened.samplerate))
        if not 0 < sound.samples < 1 << PIECE_BITS:
            raise DataError(f"{file.name} has {'no samples' if not sound.samples else 'no known length'}", "a sound")
    except DataError as error:
        if strict:
            raise
        return error
    return sound


@contextmanager
def _opened(file: File) -> Iterator[Any]:
    """A file opened by soundfile; whatever goes wrong with it is a DataError that names it."""
    try:
        soundfile = importlib.import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError where libsndfile itself is missing
        raise SettingError("sounds, without soundfile", hint="pip install 'narrows[audio]'") from error
    with reading(file.name), file.open() as raw:
        try:
            with soundfile.SoundFile(raw) as opened:
                yield opened
        except soundfile.LibsndfileError as error:
            got = f"{file.name} cannot be read: {error.error_string}"
            raise DataError(got, hint="checking that the file is whole") from error


def _channels(sounds: Sequence[Sound], reading: Reading) -> int:
    """Channels of the rows: those of the files, or mono where they differ or the reading says so."""
    if reading.channels not in (None, 1):
        raise SettingError(f"channels={reading.channels} for sounds", "1, which mixes them down to mono")
    first = sounds[0]
    odd = next((sound for sound in sounds if sound.channels != first.channels), None)
    if odd is not None and reading.channels is None:
        got = f"{odd.file.name} has {odd.channels} channels, {first.file.name} has {first.channels}"
        if reading.strict:
            raise DataError(got, "the same in all", "channels=1 (--channels 1), which mixes them down to mono")
        warnings.warn(f"{got}: all are mixed down to mono", DataWarning, stacklevel=4)
    return 1 if odd is not None or reading.channels == 1 else first.channels


def _cut(sizes: list[int]) -> list[int]:
    """The first file of each piece, and behind the last one the number of files."""
    starts, files, size = [0], 0, 0
    for place, samples in enumerate(sizes):
        if files and (files == PIECE_FILES or size + samples > _PIECE_SAMPLES):
            starts.append(place)
            files = size = 0
        files, size = files + 1, size + samples
    return [*starts, len(sizes)]


def _warn_left_out(count: int, total: int, first: str) -> None:
    said = f"{count} of {total} sounds cannot be read and are left out, the first: {first}"
    warnings.warn(said, DataWarning, stacklevel=4)
