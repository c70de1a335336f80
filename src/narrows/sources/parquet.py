"""Parquet files: a piece is a row group, read in batches, never whole.

A row group is the smallest unit that Parquet can find: reading from its middle decodes it from its start. A file of
one giant row group is read in order, so only the shuffle's window mixes it; `reshard` writes it anew with smaller ones.
Files are not memory-mapped: one that is cut short while it is read would end the process.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from narrows.errors import DataError
from narrows.sources.paths import File, reading
from narrows.sources.source import Source, checked_names, numbered

_BUFFER = 1 << 16  # bytes of a column read ahead; without it pyarrow reads a row group as a whole
_COLUMN_BYTES = 3 << 20  # memory for a column while its row group is read in batches: a page, a dictionary, values
# Of eight row groups of 32 floats read side by side, batches of 16 MB took 200 MB, of 4 MB 121, of 1 MB 65.
_BATCH_ROWS, _BATCH_BYTES = 32_768, 4 << 20


class ParquetSource(Source):
    """One Parquet file; opening reads its footer only."""

    def __init__(self, file: File) -> None:
        self._file, self.name = file, file.name
        # Far away, one large request beats many small ones, whatever the memory.
        self._options = {"pre_buffer": False, "buffer_size": _BUFFER} if file.local else {"pre_buffer": True}
        with reading(self.name), file.open() as raw, pq.ParquetFile(raw) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
            groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
            self._rows = [int(group.num_rows) for group in groups]
            sizes = [int(group.total_byte_size) for group in groups]
        self.schema = checked_names(schema, self.name)
        self.pieces = tuple(index for index, rows in enumerate(self._rows) if rows > 0)
        self.open_bytes = max(1 << 20, min(max(sizes, default=0), len(schema.names) * _COLUMN_BYTES))
        self._step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * sum(self._rows) // max(1, sum(sizes))))

    def rows_of(self, piece: int) -> int:
        """Rows in a row group, as the footer says."""
        return self._rows[piece]

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._batches(piece, skip))

    def _batches(self, piece: int, skip: int) -> Iterator[pa.RecordBatch]:
        row = 0
        with reading(self.name), self._file.open() as raw, pq.ParquetFile(raw, **self._options) as opened:
            # one thread: two took as much work, and changed places with those of training 4,000 times a second
            for batch in opened.iter_batches(batch_size=self._step, row_groups=[piece], use_threads=False):
                batch.validate(full=True)  # damaged pages can hold texts that are none
                start = max(0, skip - row)
                row += batch.num_rows
                if start < batch.num_rows:
                    yield batch.slice(start).replace_schema_metadata(None)
        if row != self._rows[piece]:
            raise DataError(f"{self.name} row group {piece} has {row} rows", f"{self._rows[piece]}, as its footer says")
