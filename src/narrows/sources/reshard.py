"""Any source rewritten as Parquet that streams well: row groups of some MB, which a shuffle can take in any order.

    giant row groups, CSV, JSON lines, arrays, images  ->  part-00000.parquet: | 16 MB | 16 MB | ...   part-00001 ...

With `shuffle` the rows also come in one random order, as wide as the data, by two passes over a copy on the disk:

    rows -> buckets by the first bits of a hash of the row's id -> each bucket sorted by the hash -> row groups

That takes memory for a bucket or two (64 MB each), whatever the data, and room on the disk for the data twice. Columns
keep their Arrow types, but for seconds of times and time stamps, which Parquet does not know (they come back as
milliseconds), and what the source knows of them. Rows are written as they were read: windows of a series as windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from narrows.errors import DataError, SettingError
from narrows.files import atomic, atomic_folder
from narrows.sources.shuffle import wide_codes, widened
from narrows.sources.source import Source, naming, open_source
from narrows.sources.split import mix64

GROUP_BYTES = 16 << 20  # in memory: eight such row groups are read side by side
FILE_BYTES = 512 << 20
_BITS = 6  # 64 buckets: fewer open files than any system allows
_BUCKET_BYTES = 64 << 20  # a larger one is scattered once more
_SALT = 0x2E5A4D  # splits and samples are hashes of the same ids: this order must know nothing of them

Batches = Iterator[pa.RecordBatch]
Progress = Callable[[int, int | None], None]


def reshard(
    data: Any,
    out: str | Path,
    *,
    rows_per_group: int = 65_536,
    shuffle: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> int:
    """Write rows anew, and return their number.

    Args:
        data: a source, or anything that `open_source` takes.
        out: a name that ends in .parquet is one file, replaced if it exists; any other is a folder, new or empty, of
            files of about 512 MB. It is there once all rows are written, or not at all.
        rows_per_group: at most; wide rows make smaller groups, of about 16 MB.
        shuffle: put all rows into one random order, which the source and the seed decide; else they keep their own.
        seed: of that order.
        progress: called with the rows read so far and the number of all, where known.

    Raises:
        SettingError: for less than one row in a group.
        DataError: for rows that cannot be read, or columns that Parquet cannot hold.
        NarrowsError: the output cannot be written, stands in the way, or there is no space left.
    """
    if rows_per_group < 1:
        raise SettingError(f"rows_per_group={rows_per_group}", "at least 1")
    source = open_source(data)
    schema = wide_codes(source.schema)
    with naming(source), _output(out, schema) as files:
        rows = _told(source, schema, progress)
        if not shuffle:
            return files.write(_cut((batch for _, batch in rows), rows_per_group, GROUP_BYTES))
        with TemporaryDirectory(prefix=".reshard.", dir=Path(out).resolve().parent) as scratch:
            return files.write(_cut(_shuffled(rows, seed, Path(scratch)), rows_per_group, GROUP_BYTES))


def _told(source: Source, schema: pa.Schema, progress: Progress | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of a source, with all that it knows of the columns."""
    done = 0
    for row_id, batch in source.batches():
        yield row_id, widened(batch, schema)
        done += batch.num_rows
        if progress:
            progress(done, source.rows)


def _cut(batches: Batches, rows: int, size: int) -> Iterator[pa.Table]:
    """The same rows in tables of so many rows or bytes."""
    waiting: list[pa.RecordBatch] = []
    held = taken = 0
    for batch in batches:
        each = max(1, _bytes(batch) // max(1, batch.num_rows))
        while batch.num_rows:
            part = batch.slice(0, max(1, min(rows - taken, (size - held) // each)))
            batch = batch.slice(part.num_rows)
            waiting.append(part)
            taken, held = taken + part.num_rows, held + part.num_rows * each
            if taken >= rows or held + each > size:
                yield pa.Table.from_batches(waiting)
                waiting, held, taken = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the rows; a dictionary is not theirs, however few of them use it."""
    columns = [column.indices if pa.types.is_dictionary(column.type) else column for column in batch.columns]
    return sum(column.nbytes for column in columns)


class _Files:
    """Parquet files that are written one after the other.

    Args:
        paths: of the files, as many as it takes.
        schema: of the rows.
        most: bytes of memory that rows of one file take.
    """

    def __init__(self, paths: Iterator[Path], schema: pa.Schema, most: float) -> None:
        self._paths, self._schema, self._most = paths, schema, most
        self._compact = _compact(schema)

    def write(self, groups: Iterable[pa.Table]) -> int:
        """Each table as a row group; the number of rows."""
        rows, group = 0, next(iterator := iter(groups), self._schema.empty_table())
        while group is not None:
            size = 0
            with pq.ParquetWriter(next(self._paths), self._schema, use_dictionary=self._compact) as writer:
                while group is not None and size < self._most:
                    writer.write_table(group, row_group_size=max(1, group.num_rows))
                    rows, size = rows + group.num_rows, size + group.nbytes
                    group = next(iterator, None)
        return rows


@contextmanager
def _output(out: str | Path, schema: pa.Schema) -> Iterator[_Files]:
    """The one file, or the files of the folder, that rows go to."""
    if Path(out).suffix.lower() == ".parquet":
        with atomic(out) as file:
            yield _Files(iter([file]), schema, inf)
    else:
        with atomic_folder(out) as folder:
            yield _Files((folder / f"part-{number:05}.parquet" for number in count()), schema, FILE_BYTES)


def _compact(schema: pa.Schema) -> list[str]:
    """The columns, and parts of columns, that Parquet shall try to write as a dictionary and codes: all but floats.

    Of floats, which seldom repeat, it would write a row group's first values so and the rest plain: a tenth more bytes,
    and 57 ns a row instead of 35 to read 32 of them.

    Raises:
        DataError: for a column that Parquet cannot hold.
    """
    empty = BytesIO()
    for field in schema:
        try:
            pq.write_table(pa.schema([field]).empty_table(), BytesIO())
        except pa.ArrowException as error:
            raise DataError(f"column {field.name!r} of type {field.type} does not go into Parquet: {error}") from error
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.ParquetFile(empty).schema
    return [leaf.path for leaf in map(leaves.column, range(len(leaves))) if leaf.physical_type not in _FLOATS]


_FLOATS = ("FLOAT", "DOUBLE")


def _shuffled(rows: Iterator[tuple[int, pa.RecordBatch]], seed: int, scratch: Path) -> Batches:
    """All rows in the order of a hash of their ids."""

    def hashed() -> Batches:
        for row_id, batch in rows:
            keys = mix64(np.arange(row_id, row_id + batch.num_rows), seed ^ _SALT)
            fields = [*batch.schema, pa.field("", pa.uint64())]  # the last column, whatever names there are
            yield pa.RecordBatch.from_arrays([*batch.columns, pa.array(keys)], schema=pa.schema(fields))

    return _sorted(hashed(), scratch, 64 - _BITS)


def _sorted(batches: Batches, scratch: Path, shift: int) -> Batches:
    """Rows in the order of the hash in their last column, which agrees in the bits above `shift + _BITS`."""
    for path in _scattered(batches, scratch, shift):
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as bucket:
            if path.stat().st_size > _BUCKET_BYTES and shift >= _BITS:
                deeper = path.with_suffix("")
                deeper.mkdir()
                yield from _sorted(iter(bucket), deeper, shift - _BITS)
            else:
                yield from _in_order(bucket.read_all())
        path.unlink()


def _in_order(table: pa.Table) -> Batches:
    order = np.argsort(table.column(table.num_columns - 1).to_numpy())
    rows = table.remove_column(table.num_columns - 1).unify_dictionaries().take(pa.array(order))
    yield from rows.combine_chunks().to_batches()


def _scattered(batches: Batches, scratch: Path, shift: int) -> list[Path]:
    """Files of the rows whose hashes have the same bits from `shift` on, in the order of those bits."""
    writers: dict[int, tuple[Path, pa.ipc.RecordBatchStreamWriter]] = {}
    try:
        for table in _cut(batches, 1 << 40, _BUCKET_BYTES):
            keys = table.column(table.num_columns - 1).to_numpy() >> np.uint64(shift) & np.uint64((1 << _BITS) - 1)
            rows = table.unify_dictionaries().take(pa.array(np.argsort(keys, kind="stable")))
            ends = np.cumsum(np.bincount(keys.astype(np.intp), minlength=1 << _BITS))
            for bucket in np.unique(keys).tolist():
                if bucket not in writers:
                    path = scratch / f"{bucket:02}.arrows"
                    writers[bucket] = path, pa.ipc.new_stream(str(path), table.schema)
                start = int(ends[bucket - 1]) if bucket else 0
                writers[bucket][1].write_table(rows.slice(start, int(ends[bucket]) - start))
    finally:
        for _, writer in writers.values():
            writer.close()
    return [path for _, (path, _) in sorted(writers.items())]
