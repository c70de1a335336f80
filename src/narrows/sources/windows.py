"""Rows that follow each other in time, cut into windows: `window` consecutive rows become one row for a model.

    t, a, b                x (T, 2), series, start, t
    .......  window T  ->  ..........................
    .......  stride        every window lies within one file, and within one series where a column tells them apart

A piece holds the windows that begin in one piece of the table, so series shuffle and shard as their tables do; the
rows that a window has in the next piece are read twice. Knows nothing of gaps in time: an hour that is missing from
hourly rows is not noticed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import DataError, DataWarning
from narrows.sources.arrays import flat
from narrows.sources.reading import Reading, field
from narrows.sources.source import BATCH_BYTES, BATCH_ROWS, Source, numbered
from narrows.sources.survey import Roles, Stretch, decoded, survey

_OURS = ("x", "series", "start")


def open_windows(table: Source, reading: Reading) -> Source:
    """Windows of `reading.window` rows every `reading.stride`; without a window, each series whole.

    Columns: `x`, fixed-shape tensors (T, channels) of kind series (whole series: lists of rows of channels), float32
    where that holds every number, else float64; missing numbers are NaN. Beside it stand `series` (its value, or the
    file's name where there are several), `start` (the row of its series that a window begins with, from 0), and the
    stamp and folder keys of that row. Rows at the end of a series that fill no window are left out, with a warning.

    Args:
        table: rows in the order of time; its number columns become channels, named in the metadata of `x`.
        reading: the window, its stride, and the columns `stamp` and `series`.

    Raises:
        DataError: no series is as long as a window, columns are no numbers, stamps do not rise within a series.
    """
    return Windows(table, reading)


class Windows(Source):
    """Windows of a table's rows; see `open_windows`. A batch of 16 MB of them is copied at a time."""

    def __init__(self, table: Source, reading: Reading) -> None:
        self._table, self._roles, self._length = table, Roles.of(table, reading), reading.window
        self.name, self.keys, self.open_bytes = table.name, table.keys, table.open_bytes + BATCH_BYTES
        stretches = survey(table, self._roles)
        cuts = [Cuts(stretch, reading.window, reading.stride or reading.window or 1) for stretch in stretches]
        self._several = len(cuts) > 1
        self._cuts = {piece: cut for cut in cuts for piece in cut.stretch.offsets}
        self._check_lengths(cuts)
        self.schema = self._schema()
        self.pieces = tuple(piece for piece in table.pieces if self.rows_of(piece))

    def rows_of(self, piece: int) -> int:
        """Windows that begin in a piece of the table."""
        first, last = self._cuts[piece].of_piece(piece)
        return last - first

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._batches(piece, skip))

    def _batches(self, piece: int, skip: int) -> Iterator[pa.RecordBatch]:
        cuts = self._cuts[piece]
        number, last = cuts.of_piece(piece)
        number += skip
        if number >= last:
            return
        buffer = _Buffer(int(cuts.begin(number)[0]))
        for rows in self._rows(cuts.stretch, piece, buffer.stop, int(cuts.end(last - 1)[0])):
            buffer.append(self._roles.values(rows), rows.select([f.name for f in self._roles.carried]))
            ready = min(last, cuts.complete(buffer.stop))
            if ready > number:
                buffer.merge()
            while number < ready:
                step = min(ready, number + self._step)
                yield self._cut(cuts, buffer, number, step)
                number = step
            if number < last and cuts.begin(number)[0] > buffer.first:
                buffer.forget(int(cuts.begin(number)[0]))

    @property
    def _step(self) -> int:
        """Windows to copy at once; whole series are not copied."""
        if self._length is None:
            return BATCH_ROWS
        width = self._length * len(self._roles.names) * self._roles.dtype.itemsize
        return max(1, min(BATCH_ROWS, BATCH_BYTES // width))

    def _rows(self, stretch: Stretch, piece: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows `start` to before `stop` of a file, from the piece on in which they begin."""
        for place in list(stretch.offsets)[list(stretch.offsets).index(piece) :]:
            first, behind = stretch.offsets[place]
            if start >= stop:
                return
            if start >= behind:
                continue
            for _, rows in self._table.read(place, start - first):
                yield rows.slice(0, stop - start)
                start += rows.num_rows
                if start >= stop:
                    return

    def _cut(self, cuts: Cuts, buffer: _Buffer, number: int, last: int) -> pa.RecordBatch:
        """Windows `number` to before `last`, whose rows are all in the buffer."""
        begins, series = cuts.begin(np.arange(number, last)), cuts.series(np.arange(number, last))
        columns = [self._x(buffer, begins, cuts.end(np.arange(number, last)))]
        if cuts.stretch.labels is not None:
            columns.append(cuts.stretch.labels.take(flat(series)))
        elif self._several:
            columns.append(pa.repeat(cuts.stretch.name, last - number))
        places = flat(begins - buffer.first)
        columns.append(flat(begins - cuts.stretch.starts[series]))
        columns += [column.take(places) for column in buffer.carried.columns]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _x(self, buffer: _Buffer, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> pa.Array:
        values, channels = buffer.values, len(self._roles.names)
        if self._length is None:
            rows = flat(values[begins[0] - buffer.first : ends[-1] - buffer.first])
            offsets = flat((np.append(begins, ends[-1]) - begins[0]).astype(np.int32))
            return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(rows, channels))
        views = np.lib.stride_tricks.sliding_window_view(values, self._length, axis=0)
        windows = np.ascontiguousarray(views[begins - buffer.first].transpose(0, 2, 1))
        storage = pa.FixedSizeListArray.from_arrays(flat(windows), self._length * channels)
        return pa.ExtensionArray.from_storage(self.schema.field("x").type, storage)

    def _schema(self) -> pa.Schema:
        value, channels = pa.from_numpy_dtype(self._roles.dtype), self._roles.names
        tensor = None if self._length is None else pa.fixed_shape_tensor(value, (self._length, len(channels)))
        fields = [field("x", tensor or pa.list_(pa.list_(value, len(channels))), kind="series", channels=channels)]
        if self._roles.series is not None:
            fields.append(field("series", decoded(self._table.schema.field(self._roles.series).type), aside=True))
        elif self._several:
            fields.append(field("series", pa.string(), aside=True))
        fields.append(field("start", pa.int64(), aside=True))
        taken = [entry.name for entry in self._roles.carried if entry.name in _OURS]
        if taken:
            got = f"{self.name} has a column {taken[0]!r} beside the series"
            raise DataError(got, f"another name than {', '.join(_OURS)}", "renaming it")
        return pa.schema([*fields, *(field(f.name, f.type, aside=True) for f in self._roles.carried)])

    def _check_lengths(self, cuts: list[Cuts]) -> None:
        """Refuse rows that fill no window, and say how many are left out at the ends."""
        if self._length is None:
            return
        if not any(cut.total for cut in cuts):
            longest = max((int(cut.lengths.max(initial=0)) for cut in cuts), default=0)
            got = f"{self.name}: no series has more than {longest:,} rows"
            raise DataError(got, f"{self._length:,}, a window", "a smaller window")
        lost = sum(cut.lost for cut in cuts)
        if lost:
            text = f"{self.name}: {lost:,} rows at the ends of series are left out, as they fill no window"
            warnings.warn(f"{text} of {self._length:,} rows", DataWarning, stacklevel=2)


class Cuts:
    """Where the windows of a file begin and end; they are numbered from 0 on through all its series.

    Args:
        stretch: the file.
        length: rows of a window; None: each series is one.
        step: rows from one window's beginning to the next's.
    """

    def __init__(self, stretch: Stretch, length: int | None, step: int) -> None:
        self.stretch, self._length, self._step = stretch, length, step
        self.lengths = stretch.stops - stretch.starts
        whole = (self.lengths > 0).astype(np.int64)
        self._counts = whole if length is None else np.maximum(0, (self.lengths - length) // step + 1)
        self._firsts = np.append(0, np.cumsum(self._counts))
        self.total = int(self._firsts[-1])

    @property
    def lost(self) -> int:
        """Rows at the ends of series that fill no window; not those that a stride leaves out between windows."""
        length = self._length or 0
        left = self.lengths - np.where(self._counts > 0, (self._counts - 1) * self._step + length, 0)
        gap = np.where(self._counts > 0, max(0, self._step - length), 0)
        return int(np.maximum(0, left - gap).sum())

    def of_piece(self, piece: int) -> tuple[int, int]:
        """The first of the windows that begin in a piece, and one past the last."""
        low, high = self.stretch.offsets[piece]
        return self._before(low), self._before(high)

    def complete(self, row: int) -> int:
        """Windows that end at or before a row."""
        if self._length is None:
            return int(self._firsts[np.searchsorted(self.stretch.stops, row, "right")])
        return self._before(max(0, row - self._length + 1))

    def series(self, number: Any) -> NDArray[np.int64]:
        """The series of windows."""
        return np.searchsorted(self._firsts, np.atleast_1d(number), "right") - 1

    def begin(self, number: Any) -> NDArray[np.int64]:
        """First rows of windows."""
        series = self.series(number)
        first: NDArray[np.int64] = self.stretch.starts[series] + (number - self._firsts[series]) * self._step
        return first

    def end(self, number: Any) -> NDArray[np.int64]:
        """One past the last rows of windows."""
        return self.stretch.stops[self.series(number)] if self._length is None else self.begin(number) + self._length

    def _before(self, row: int) -> int:
        """Windows that begin before a row."""
        series = int(np.searchsorted(self.stretch.starts, row)) - 1
        if series < 0:
            return 0
        reach = -(-(row - int(self.stretch.starts[series])) // self._step)
        return int(self._firsts[series]) + min(reach, int(self._counts[series]))


class _Buffer:
    """Rows that windows still need: from row `first` to before row `stop` of a file."""

    def __init__(self, first: int) -> None:
        self.first = self.stop = first
        self._values: list[NDArray[Any]] = []
        self._carried: list[pa.RecordBatch] = []

    def append(self, values: NDArray[Any], carried: pa.RecordBatch) -> None:
        """Take the next rows."""
        self._values.append(values)
        self._carried.append(carried)
        self.stop += len(values)

    def forget(self, row: int) -> None:
        """Drop rows before one that is no longer needed; where that is still to come, all of them."""
        self.merge()
        drop = min(row, self.stop) - self.first
        self._values, self._carried = [self.values[drop:]], [self.carried.slice(drop)]
        self.first += drop

    def merge(self) -> None:
        """Put the rows that were taken into one piece; a copy, so not until a window is complete."""
        if len(self._values) > 1:
            self._values = [np.concatenate(self._values)]
            self._carried = [pa.concat_batches(self._carried)]

    @property
    def values(self) -> NDArray[Any]:
        """(rows, channels) of all rows, once merged."""
        return self._values[0]

    @property
    def carried(self) -> pa.RecordBatch:
        """The carried columns of all rows, once merged."""
        return self._carried[0]
