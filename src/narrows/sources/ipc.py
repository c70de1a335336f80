"""Arrow's own files, which is also what Feather is: the file format with a footer, and the stream without one.

A file's pieces are its record batches, found by the footer and, on a local disk, mapped, not read. A stream must be
read from its beginning, so it is one piece. How large a batch is chose the writer: a giant one is read in order, and
where it is compressed takes its memory. What the bytes claim is checked before anything looks at the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from narrows.sources.paths import File, reading
from narrows.sources.source import BATCH_BYTES, Source, checked_names, numbered

_MAGIC = b"ARROW1"


class IpcFile(Source):
    """A file with a footer; opening reads that and, of each batch, how many rows it has."""

    def __init__(self, file: File) -> None:
        self._file, self.name = file, file.name
        one_column = ipc.IpcReadOptions(included_fields=[0])
        with reading(file.name), _bytes(file) as raw:
            self.schema = checked_names(ipc.open_file(raw).schema, file.name)
            opened = ipc.open_file(raw, options=one_column)
            self._rows = [int(opened.get_batch(index).num_rows) for index in range(opened.num_record_batches)]
            self.open_bytes = max(BATCH_BYTES, raw.size() // max(1, len(self._rows)))
        self.pieces = tuple(index for index, rows in enumerate(self._rows) if rows > 0)

    def rows_of(self, piece: int) -> int:
        """Rows of a record batch."""
        return self._rows[piece]

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        with reading(self.name), _bytes(self._file) as raw:
            batch = _checked(ipc.open_file(raw).get_batch(piece), self.schema)
        yield from numbered(piece, skip, [batch.slice(skip)])


class IpcStream(Source):
    """A stream, read from its beginning each time."""

    def __init__(self, file: File) -> None:
        self._file, self.name = file, file.name
        with reading(file.name), _in_order(file) as raw, ipc.open_stream(raw) as opened:
            self.schema = checked_names(opened.schema, file.name)
        self.pieces = (0,)

    def rows_of(self, piece: int) -> None:
        """Not known: a stream does not say how long it is."""
        return

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._batches(skip))

    def _batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        row = 0
        with reading(self.name), _in_order(self._file) as raw, ipc.open_stream(raw) as opened:
            for batch in opened:
                start = min(batch.num_rows, max(0, skip - row))
                row += batch.num_rows
                if start < batch.num_rows:
                    yield _checked(batch, self.schema).slice(start)


def open_ipc(file: File) -> Source:
    """A source of the rows of an Arrow IPC file (.arrow, .feather) or stream.

    Raises:
        DataError: it is damaged.
    """
    with reading(file.name), file.stream() as stream:
        whole = stream.read(len(_MAGIC)) == _MAGIC
    return IpcFile(file) if whole else IpcStream(file)


def _bytes(file: File) -> Any:
    """All bytes of a file, seekable: mapped where it lies on a disk as it is; unpacked where it is compressed."""
    if file.compressed:
        with file.stream() as stream:
            return pa.BufferReader(stream.read())
    return pa.memory_map(file.path) if file.local else file.open()


def _in_order(file: File) -> Any:
    """The bytes from the first on; mapped ones are not copied, and none are made room for that are not there."""
    return file.stream() if file.compressed or not file.local else pa.memory_map(file.path)


def _checked(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    batch.validate(full=True)  # what offsets and lengths claim may lie outside the bytes
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)
