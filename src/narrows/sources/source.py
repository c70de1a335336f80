"""What a source is: raw rows in pieces that can be read on their own, and `open_source`, which makes one of any data.

    data, path or URL -> open_source -> Source -> read(piece) -> (row id, record batch), (row id, record batch), ...

Every row has an id that stays the same however the source is sharded, shuffled or cut into batches; splits and
samples are functions of it. The price is that pieces are numbered once, when the source is opened: files that are
added or changed later are not noticed. Knows nothing of what columns mean, and keeps every Arrow type as it comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from narrows.errors import DataError, SettingError
from narrows.sources.reading import KIND, Reading, fact, modeled

BATCH_ROWS = 65_536
BATCH_BYTES = 16 << 20  # a shuffle holds a batch of several pieces at once
PIECE_BITS = 40  # a piece of 2^40 rows is longer than any file; 2^23 pieces are left below the sign bit

FILES = (
    "a .parquet, .csv, .tsv, .txt, .jsonl (also .gz), .npy, .npz, .arrow, IDX, image or sound file, a glob, folder or "
    ".zip of such files, a URL, or the word 'digits'"
)
ACCEPTED = f"an array or tensor of 2 or more dimensions, a DataFrame, an Arrow table or stream, or the path of {FILES}"


class Source(ABC):
    """Rows of one schema, in pieces.

    Attributes:
        name: for messages: the file, or the kind of object.
        schema: of every batch; what the source knows of a column stands in its field's metadata (see `reading.field`).
        pieces: ids of the units that can be read on their own, in order: row groups of Parquet files, slabs of an
            array, a whole CSV file.
        open_bytes: memory that a piece takes while it is read, about.
        keys: columns that `key=value` folders gave, not the files themselves.
        reading: how it was asked to read its data, so that new data can be read the same way.
    """

    name: str
    schema: pa.Schema
    pieces: tuple[int, ...]
    open_bytes: int = BATCH_BYTES
    keys: tuple[str, ...] = ()
    reading: Reading = Reading()

    @property
    def stretches(self) -> list[tuple[str, tuple[int, ...]]]:
        """Runs of pieces whose rows follow each other, as those of one file do, each with a name for messages."""
        return [(self.name, self.pieces)]

    @abstractmethod
    def rows_of(self, piece: int) -> int | None:
        """Rows in a piece, where known without reading it."""

    @abstractmethod
    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of a piece in order, each with the id of its first row: `piece << 40 | row in the piece`.

        Args:
            piece: one of `pieces`.
            skip: rows of the piece to leave out at its start; beyond its end nothing is read.

        Yields:
            At most 65,536 rows and about 16 MB at a time, never 0 rows; ids rise by 1 from row to row of a batch.

        Raises:
            DataError: the bytes are damaged, or a cell does not fit its column.
        """

    def settled(self, asked: Reading) -> Reading:
        """What a model keeps of how its data was read: what was asked for, and what opening has found out."""
        return asked

    @property
    def rows(self) -> int | None:
        """Rows of all pieces, where known without reading everything."""
        counts = [self.rows_of(piece) for piece in self.pieces]
        return None if None in counts else sum(count or 0 for count in counts)

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """All pieces in order, each batch with the id of its first row."""
        for piece in self.pieces:
            yield from self.read(piece)

    def shard(self, rank: int, size: int) -> Source:
        """The rows that fall to one of `size` readers, with their ids; together the shards are the whole.

        Every size-th piece; where there are fewer pieces than readers, every size-th block of rows of each piece,
        which all readers must then read through where rows cannot be skipped (CSV).
        """
        if not 0 <= rank < size:
            raise SettingError(f"rank {rank} of {size}", f"a rank from 0 to {size - 1}" if size > 0 else "size >= 1")
        return self if size == 1 else Shard(self, rank, size)

    def stretch(self, rank: int, size: int) -> Source:
        """As `shard`, but rows that follow each other, so that answers put behind each other are in the rows' order.

        Where rows are not counted without reading, they are read once to be counted.
        """
        return self if size == 1 else Stretch(self, rank, size)


class Shard(Source):
    """One reader's share of a source; see `Source.shard`."""

    def __init__(self, whole: Source, rank: int, size: int) -> None:
        self._whole, self._rank, self._size = whole, rank, size
        self._by_piece = len(whole.pieces) >= size
        self.name, self.schema, self.open_bytes = whole.name, whole.schema, whole.open_bytes
        self.pieces = whole.pieces[rank::size] if self._by_piece else whole.pieces

    def rows_of(self, piece: int) -> int | None:
        """Rows of the piece that are in the shard."""
        rows = self._whole.rows_of(piece)
        if self._by_piece or rows is None:
            return rows
        return sum(stop - start for start, stop in self._blocks(piece, 0, rows))

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """As of the whole source; `skip` counts the rows of the whole piece."""
        if self._by_piece:
            yield from self._whole.read(piece, skip)
            return
        for row_id, batch in self._whole.read(piece, skip):
            first = row_in_piece(row_id)
            for start, stop in self._blocks(piece, first, first + batch.num_rows):
                yield row_id + start - first, batch.slice(start - first, stop - start)

    def shard(self, rank: int, size: int) -> Source:
        """Refused for more than one reader: shard the whole source instead."""
        if size == 1:
            return self
        raise SettingError(f"{self.name} is a shard already", hint="sharding the whole source once")

    def _blocks(self, piece: int, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """The shard's row ranges among rows `first` to `stop` of a piece."""
        rows = self._whole.rows_of(piece)
        # Sixteen turns each balance the readers and mix sorted data; blocks of few rows would only cost time.
        block = BATCH_ROWS if rows is None else max(1, min(BATCH_ROWS, -(-rows // (16 * self._size))))
        shift = self.pieces.index(piece)
        for number in range(first // block, -(-stop // block)):
            if (number + shift) % self._size == self._rank:
                yield max(first, number * block), min(stop, (number + 1) * block)


class Stretch(Source):
    """Rows of a source that follow each other; see `Source.stretch`."""

    def __init__(self, whole: Source, rank: int, size: int) -> None:
        self._whole = whole
        self.name, self.schema, self.open_bytes = whole.name, whole.schema, whole.open_bytes
        self.reading = whole.reading
        counts = {piece: _counted(whole, piece) for piece in whole.pieces}
        total, begun = sum(counts.values()), 0
        self._ranges: dict[int, tuple[int, int]] = {}
        for piece, rows in counts.items():
            first, stop = (min(max(total * place // size - begun, 0), rows) for place in (rank, rank + 1))
            if first < stop:
                self._ranges[piece] = first, stop
            begun += rows
        self.pieces = tuple(self._ranges)

    def rows_of(self, piece: int) -> int | None:
        """Rows of the piece that are in the stretch."""
        first, stop = self._ranges[piece]
        return stop - first

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """As of the whole source; `skip` counts the rows of the stretch."""
        first, stop = self._ranges[piece]
        for row_id, batch in self._whole.read(piece, first + skip):
            left = stop - row_in_piece(row_id)
            if left <= 0:
                return
            yield row_id, batch.slice(0, left)


def _counted(source: Source, piece: int) -> int:
    rows = source.rows_of(piece)
    return sum(len(batch) for _, batch in source.read(piece)) if rows is None else rows


def row_in_piece(row_id: int) -> int:
    """The part of a row id that counts rows within the piece."""
    return row_id & ((1 << PIECE_BITS) - 1)


def numbered(piece: int, row: int, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Consecutive batches of a piece from row `row` on, cut to size and with their row ids."""
    for batch in batches:
        step = max(1, min(BATCH_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, step):
            yield piece << PIECE_BITS | row + start, batch.slice(start, step)
        row += batch.num_rows


def checked_names(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema without metadata.

    Raises:
        DataError: there is no column, or two share a name.
    """
    if not schema.names:
        raise DataError(f"{name} has no columns", "at least one")
    twice = sorted(column for column, count in Counter(schema.names).items() if count > 1)
    if twice:
        raise DataError(f"{name} has more than one column named {', '.join(map(repr, twice))}", "distinct names")
    return schema.remove_metadata()


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Put a source's name before what is found to be wrong with its rows."""
    try:
        yield
    except DataError as error:
        if source.name in error.got:
            raise
        raise DataError(f"{source.name}: {error.got}", error.wanted, error.hint) from error


def open_source(data: Any, *, reading: Reading | None = None, texts: Collection[str] = ()) -> Source:
    """Make a source of any data that Narrows reads.

    Args:
        data: a Source (returned as it is); an ndarray or tensor (rows first: one column `x` of fixed-shape tensors;
            object, text and date arrays: columns `x0`, `x1`, ...; structured arrays: a column a field); a pandas
            DataFrame (its index is dropped); anything with `__arrow_c_stream__`, such as a pyarrow or polars table
            (a reader that gives its rows once is read into memory); a path, glob, folder (with `key=value` folders
            too), .zip, URL or list of paths of Parquet, Arrow IPC, CSV, JSON-lines, text, .npy, .npz, IDX, image or
            sound files of one kind; or the word 'digits', the 1,797 small images of scikit-learn. Images and sounds
            are known by their suffixes, other files by their first bytes.
        reading: how to read it, where that is not plain.
        texts: columns of text files that are texts, whatever their values look like: a file of one row cannot show
            that `True` or `1.50` stood beside words when a model was trained.

    Raises:
        DataError: there is no such file, it is empty or damaged, or the object is none of these.
        SettingError: for settings of the reading that contradict each other or the data.
    """
    if isinstance(data, Source):
        return data
    reading = reading or Reading()
    reading.check()
    source = _recut(_open(data, reading, texts), reading)
    source.reading = source.settled(reading)
    return source


def _open(data: Any, reading: Reading, texts: Collection[str]) -> Source:
    """The source of the data as it stands."""
    # The openers import the contract above, and each brings readers that other data does not need.
    from narrows.sources.arrays import open_object
    from narrows.sources.joined import open_files
    from narrows.sources.paths import find

    if isinstance(data, str) and data == "digits":
        from narrows.sources.arrayfiles import open_digits

        return open_digits()
    paths = list(data) if isinstance(data, (list, tuple)) else [data]
    if paths and all(isinstance(path, (str, Path)) for path in paths):
        return open_files([file for path in paths for file in find(path)], reading, texts)
    return open_object(data, reading)


def _grouped(schema: pa.Schema, reading: Reading) -> bool:
    """Whether rows are bags already, not lines of a log."""
    return reading.user not in schema.names and any(pa.types.is_map(entry.type) for entry in modeled(schema))


def _cut(schema: pa.Schema, reading: Reading) -> bool:
    """Whether rows are cut as asked already: windows of steps with channels, or whole series, as models give back."""
    columns = modeled(schema)
    if len(columns) != 1:
        return False
    kind, series = columns[0].type, fact(columns[0], KIND) == "series"
    if not isinstance(kind, pa.FixedShapeTensorType):
        return series and reading.window is None
    return kind.shape[0] == reading.window and (series or len(kind.shape) == 2)


def _recut(source: Source, reading: Reading) -> Source:
    """A table of consecutive rows as windows, or a log as a bag for each user, where the reading says so."""
    kinds = {fact(entry, KIND) for entry in modeled(source.schema)} - {""}
    log = (reading.user is not None or reading.form == "log") and not _grouped(source.schema, reading)
    # sounds and texts were cut into windows as they were read
    series = reading.form == "series" or (reading.window is not None and not kinds & {"audio", "tokens"})
    if not log and (not series or _cut(source.schema, reading)):
        return source
    if kinds:
        got = f"{source.name} holds {', '.join(sorted(kinds))}"
        raise SettingError(got, "a table of users and items" if log else "a table of numbers, to be cut as a series")
    if log:
        from narrows.sources.interactions import open_log

        return open_log(source, reading)
    from narrows.sources.windows import open_windows

    return open_windows(source, reading)
