"""Logs of users and items, as one row for each user: the bag of the items.

    user, item, value            user (aside), items
    a,    x,    1                a, {x: 1, y: 2}
    b,    x,    3        ->      b, {x: 3}
    a,    y,    2

A table is grouped in memory, as a user's lines may stand anywhere: 12 bytes a line while it is read, some 64 while it
is sorted, and 8 for each user and item in the end. Lists (`user item item ...`, a line each) are streamed. Knows
nothing of when things happened, and takes every item for known.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from narrows.errors import DataError
from narrows.sources.arrays import flat
from narrows.sources.paths import File
from narrows.sources.reading import Reading, field
from narrows.sources.source import Source, row_in_piece
from narrows.sources.sparse import BagSource, Rows
from narrows.sources.text import TextFiles, split_lines

_LISTS = "a user and item numbers between spaces, such as `17 4 251 9`"


def open_log(table: Source, reading: Reading) -> Source:
    """One row for each user of a log: `items`, a bag, and `user` aside; users in the order of their first lines.

    Args:
        table: a line for each user and item; read here, once.
        reading: its columns `user` and `item` (texts or whole numbers), and `value` (numbers from 0 up; else each line
            counts 1). Lines of the same user and item are summed; an item whose sum is 0 is left out.

    Raises:
        DataError: a column is not there or of another type, or a value is missing or negative; names the row.
    """
    wanted = [name for name in (reading.user, reading.item, reading.value) if name is not None]
    missing = [name for name in wanted if name not in table.schema.names]
    if missing or not wanted:
        had = f"{table.name} has columns {', '.join(table.schema.names)}"
        raise DataError(f"{had}, and no {missing[0]!r}" if missing else had, "users and items", "user= and item=")
    log = _Log(table, wanted[0], wanted[1], reading.value)
    for row_id, rows in table.batches():
        log.add(row_in_piece(row_id), rows)
    return log.grouped()


class _Log:
    """The lines of a log as numbers of users and items."""

    def __init__(self, table: Source, user: str, item: str, value: str | None) -> None:
        self._name, self._columns, self._value = table.name, (user, item), value
        self._types = [_key_type(table, name) for name in self._columns]
        self._keys: tuple[list[pa.Array], list[pa.Array]] = ([], [])
        self._values: list[NDArray[np.float32]] = []

    def add(self, row: int, rows: pa.RecordBatch) -> None:
        """Take lines, the first of which is row `row` of its piece."""
        for name, kind, keys in zip(self._columns, self._types, self._keys, strict=True):
            column = rows.column(name)
            self._refuse(_missing(column), column, row, name)
            column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            keys.append(column.cast(kind).dictionary_encode())
        self._values.append(self._counted(rows, row))

    def grouped(self) -> Source:
        """The source of all users."""
        if not self._values:
            raise DataError(f"{self._name} has no rows", "a line for each user and item")
        (users, user), (items, item) = (_unified(keys) for keys in self._keys)
        bags = Rows.of_entries(users, items, np.concatenate(self._values), len(user))
        return BagSource(bags, self._name, column="items", keys=item, aside={"user": user})

    def _counted(self, rows: pa.RecordBatch, row: int) -> NDArray[np.float32]:
        name = self._value
        if name is None:
            return np.ones(rows.num_rows, np.float32)
        column = rows.column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(f"{self._name} column {name!r} is {column.type}", "numbers, how often or how much")
        self._refuse(_missing(column), column, row, name)
        values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        self._refuse((values < 0) | (values > np.finfo(np.float32).max), column, row, name)
        return values.astype(np.float32)

    def _refuse(self, wrong: NDArray[np.bool_], column: pa.Array, row: int, name: str) -> None:
        """Refuse the first line that is wrong."""
        if wrong.any():
            at = int(wrong.argmax())
            value = column[at].as_py()
            got = f"{self._name} row {row + at + 1}, column {name!r}: {'missing' if value is None else value}"
            raise DataError(got, "a number from 0 up" if name == self._value else "a value in every row")


def _missing(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))


def _key_type(table: Source, name: str) -> pa.DataType:
    """int64 for whole numbers (uint64 as it is, as hashes often are), else text."""
    kind = table.schema.field(name).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(value):
        return value if pa.types.is_uint64(value) else pa.int64()
    if pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value):
        return pa.string()
    raise DataError(f"{table.name} column {name!r} is {kind}", "whole numbers or texts, in every row")


def _unified(batches: list[pa.Array]) -> tuple[NDArray[np.int32], pa.Array]:
    """The number of each value, and the values, in the order of their first appearance."""
    chunks = pa.chunked_array(batches).unify_dictionaries().chunks
    numbers = [np.asarray(chunk.indices.to_numpy(zero_copy_only=False)) for chunk in chunks]
    return np.concatenate(numbers), chunks[-1].dictionary


def open_lists(files: list[File]) -> Source:
    """A row for each line of `user item item ...`: `items`, a bag of numbers that count 1 each, and `user` aside.

    Raises:
        DataError: an item is no whole number from 0 up (when read; names file and line).
    """
    return Lists(files)


class Lists(TextFiles):
    """Files of lists; a piece is a file, read from its beginning each time."""

    def __init__(self, files: list[File]) -> None:
        bags = field("items", pa.map_(pa.int64(), pa.float32()), kind="bag")
        super().__init__(files, pa.schema([bags, field("user", pa.string(), aside=True)]))

    def _batches(self, file: File, skip: int) -> Iterator[pa.RecordBatch]:
        for lines, texts in split_lines(file, skip):
            words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
            lengths = np.asarray(pc.list_value_length(words).to_numpy(zero_copy_only=False))
            row = np.repeat(np.arange(len(lines)), lengths)
            place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            said = words.flatten().take(flat(np.flatnonzero(place > 0)))
            items, row = _whole_numbers(said, file, lines[row[place > 0]]), row[place > 0]
            known, codes = np.unique(items, return_inverse=True)
            bags = Rows.of_entries(row, codes, np.ones(len(items)), len(lines))
            column = pa.MapArray.from_arrays(
                flat(bags.offsets.astype(np.int32)), flat(known[bags.items]), flat(bags.values)
            )
            users = words.flatten().take(flat(np.flatnonzero(place == 0)))
            yield pa.RecordBatch.from_arrays([column, users], schema=self.schema)


def _whole_numbers(words: pa.Array, file: File, lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Items as numbers; `lines` are those that the words stand in."""
    wrong = ~np.asarray(
        pc.match_substring_regex(words, r"^[0-9]{1,18}$").to_numpy(zero_copy_only=False), dtype=np.bool_
    )
    if wrong.any():
        at = int(wrong.argmax())
        got = f"{file.name} line {lines[at]}: item {words[at].as_py()!r}"
        raise DataError(got, _LISTS, "user= and item= for a table with named columns")
    return np.asarray(words.cast(pa.int64()).to_numpy(zero_copy_only=False))
