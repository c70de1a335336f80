"""Running text: a row for each line, or for each piece of so many characters.

A file is one piece, decoded from its beginning each time, a megabyte at once; a line is in memory as a whole, however
long it is. UTF-8 only: nothing is guessed, and nothing replaced. Knows nothing of words or tokens.
"""

from __future__ import annotations

import codecs
from abc import abstractmethod
from collections.abc import Iterator
from itertools import count

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import DataError
from narrows.sources.arrays import flat
from narrows.sources.paths import File, reading
from narrows.sources.reading import Reading, field
from narrows.sources.source import BATCH_BYTES, BATCH_ROWS, Source, numbered

_BLOCK_BYTES = 1 << 20


def open_text(files: list[File], reading: Reading) -> Source:
    """Texts of files, plain or compressed: column `text` of kind tokens.

    Without a window a row is a line without its line end, and `line` stands aside (from 1, as editors count); blank
    lines are left out. With one, a row is `reading.window` characters of a file, line ends among them, every
    `reading.stride`, and `start` stands aside (characters before it); the last piece of a file may be shorter, so that
    nothing is lost. Where files are several, `path` stands aside too.

    Raises:
        DataError: bytes are no UTF-8 (when read; names file and line).
    """
    return Texts(files, reading)


class TextFiles(Source):
    """Text files, each a piece whose rows are not counted until it is read.

    Args:
        files: at least one.
        schema: of their rows.
    """

    def __init__(self, files: list[File], schema: pa.Schema) -> None:
        self._files, self.schema = files, schema
        self.name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        self.pieces = tuple(range(len(files)))

    @abstractmethod
    def _batches(self, file: File, skip: int) -> Iterator[pa.RecordBatch]:
        """The rows of a file behind the first `skip`."""

    def rows_of(self, piece: int) -> int | None:
        """Unknown until a file is read."""
        return None

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._batches(self._files[piece], skip))


class Texts(TextFiles):
    """Text files; see `open_text`."""

    def __init__(self, files: list[File], reading: Reading) -> None:
        self._window, self._stride = reading.window, reading.stride or reading.window
        place = "line" if reading.window is None else "start"
        fields = [field("text", pa.string(), kind="tokens"), field(place, pa.int64(), aside=True)]
        if len(files) > 1:
            fields.append(field("path", pa.string(), aside=True))
        super().__init__(files, pa.schema(fields))

    def _batches(self, file: File, skip: int) -> Iterator[pa.RecordBatch]:
        if self._window is None or self._stride is None:
            rows = split_lines(file, skip)
        else:
            rows = _cut(file, self._window, self._stride, skip)
        for places, texts in rows:
            path = [pa.repeat(file.name, len(texts))] if len(self._files) > 1 else []
            yield pa.RecordBatch.from_arrays([texts, flat(places), *path], schema=self.schema)


def split_lines(file: File, skip: int = 0) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
    """The lines of a file that are not blank, without the first `skip` of them: their numbers from 1, and texts.

    Raises:
        DataError: bytes are no UTF-8.
    """
    before = 0
    for lines in _lines(file):
        found = [(before + place, line) for place, line in enumerate(lines, 1) if line.strip()]
        before += len(lines)
        kept = found[skip:]
        skip -= len(found) - len(kept)
        if kept:
            texts = [line.removesuffix("\r") for _, line in kept]
            yield np.array([place for place, _ in kept], dtype=np.int64), pa.array(texts, pa.string())


def _lines(file: File) -> Iterator[list[str]]:
    """All lines, a block at a time; only `\\n` ends one."""
    rest: list[str] = []  # parts of a line that has not ended yet
    for text in _decoded(file):
        *ended, last = text.split("\n")
        if ended:
            yield ["".join([*rest, ended[0]]), *ended[1:]]
            rest = []
        rest.append(last)
    yield ["".join(rest)]


def _cut(file: File, window: int, stride: int, skip: int) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
    """Pieces of a text, without the first `skip` of them: the characters before each, and the characters."""
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // window))
    text, base, start = "", 0, skip * stride  # the characters from `base` on; where the next piece starts
    covered = start - stride + window if skip else 0
    for block in _decoded(file):
        text += block
        starts = np.arange(start, base + len(text) - window + 1, stride)
        for some in (starts[at : at + step] for at in range(0, len(starts), step)):
            yield some, pa.array([text[at - base : at - base + window] for at in some.tolist()], pa.string())
            start, covered = int(some[-1]) + stride, int(some[-1]) + window
        drop = min(start - base, len(text))
        text, base = text[drop:], base + drop
    if text and covered < base + len(text):
        yield np.array([start]), pa.array([text], pa.string())


def _decoded(file: File) -> Iterator[str]:
    """The characters of a file, about a megabyte at a time, without a byte order mark."""
    rest, offset, line = b"", 0, 1
    with reading(file.name), file.stream() as stream:
        for number in count():
            block = stream.read(_BLOCK_BYTES)
            data = rest + block
            try:
                text, used = codecs.utf_8_decode(data, "strict", not block)
            except UnicodeDecodeError as error:
                line += data.count(b"\n", 0, error.start)
                where = f"line {line}, byte {offset + error.start}"
                got = f"{file.name} {where}: 0x{data[error.start]:02x} is no UTF-8"
                raise DataError(got, "UTF-8 text", "converting it, as iconv does") from None
            rest, offset, line = data[used:], offset + used, line + text.count("\n")
            if text:
                yield text.removeprefix("\ufeff") if number == 0 else text
            if not block:
                return
