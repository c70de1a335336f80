"""JSON lines: an object a line, its fields the columns; see `jsontypes` for what becomes of them.

A file is one piece, read from its beginning each time, in blocks of about 4 MB cut between lines. The types are agreed
over the first 64 MB of all files; a later value that is none of its column's ends the reading with its line. pyarrow
parses blocks that hold plain values and lists, Python's own parser all others and whatever pyarrow stumbles over: it
takes ten times as long, but it can say which line is wrong. Must be UTF-8, and a line no longer than 64 MB.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from narrows.errors import DataError
from narrows.sources.jsontypes import BAG, JsonColumn, Seen, finished, parsed, raw_type
from narrows.sources.paths import File, reading
from narrows.sources.source import Source, checked_names, numbered

SNIFFED_BYTES = 64 << 20
MOST_COLUMNS = 10_000
_BLOCK_BYTES = 4 << 20
_LINE_BYTES = 64 << 20
_MISFITS = (pa.ArrowException, ValueError, TypeError, OverflowError)
_HINT = 'a line for each row, such as {"a": 1, "b": "x"}'


class JsonLines(Source):
    """One file whose columns are known."""

    def __init__(self, file: File, seen: Seen, columns: Sequence[JsonColumn], rows: int | None) -> None:
        self._file, self._seen, self._columns, self._rows = file, seen, columns, rows
        self.name = file.name
        self.schema = checked_names(pa.schema([(column.name, column.type) for column in columns]), file.name)
        self.pieces = (0,)
        raw = pa.schema([(column.name, raw_type(column.type)) for column in columns])
        plain = all(column.type != BAG and not column.written for column in columns)
        nested = any(field.record for field in seen.fields.values())
        self._parse = pajson.ParseOptions(raw, unexpected_field_behavior="error") if plain and not nested else None

    def rows_of(self, piece: int) -> int | None:
        """Rows of the file, where all of it was sniffed."""
        return self._rows

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._batches(skip))

    def _batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        row = 0
        for line, block in _blocks(self._file):
            count = _count_rows(block)
            start = max(0, skip - row)
            row += count
            if start < count:
                yield self._parsed(line, block, count).slice(start)

    def _parsed(self, line: int, block: bytes, count: int) -> pa.RecordBatch:
        """The rows of a block whose first line has this number."""
        if self._parse is not None:
            try:
                return self._quickly(block, count)
            except pa.ArrowException:
                pass  # Python's parser may read it, or will say what is wrong
        lines, rows = [], []
        for number, row in _objects(self._file, line, block):
            lines.append(number)
            rows.append(self._flat(row, number))
        columns = [self._column(column, [row.get(column.name) for row in rows], lines) for column in self._columns]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _quickly(self, block: bytes, count: int) -> pa.RecordBatch:
        whole = pajson.ReadOptions(use_threads=False, block_size=len(block) + 1)
        table = pajson.read_json(pa.BufferReader(block), whole, self._parse)
        table.validate(full=True)  # it does not look whether texts are UTF-8
        if table.num_rows != count:
            raise pa.ArrowInvalid("several objects on a line")
        (batch,) = table.combine_chunks().to_batches()
        columns = [finished(raw, column.type) for raw, column in zip(batch.columns, self._columns, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _flat(self, row: dict[str, Any], line: int) -> dict[str, Any]:
        """The values of a row by column."""
        flat = dict[str, Any]()
        waiting: list[tuple[str, Seen, Any]] = [("", self._seen, row)]
        while waiting:
            name, seen, value = waiting.pop()
            if not (seen.record and isinstance(value, dict)):
                flat[name] = value
                continue
            for key, inner in value.items():
                path = f"{name}.{key}" if name else key
                if key not in seen.fields:
                    hint = f"columns are those of the first {SNIFFED_BYTES >> 20} MB: put such a line there"
                    raise DataError(f"{self.name} line {line} has a column {path!r} that no line before has", hint=hint)
                waiting.append((path, seen.fields[key], inner))
        return flat

    def _column(self, column: JsonColumn, values: list[Any], lines: list[int]) -> pa.Array:
        try:
            return parsed(values, column)
        except _MISFITS:
            for line, value in zip(lines, values, strict=True):
                try:
                    parsed([value], column)
                except _MISFITS as error:
                    got = f"{self.name} line {line}, column {column.name!r}: {_short(value)}"
                    raise DataError(got, f"{column.type}, as in the lines before") from error
            raise


def open_jsonlines(files: Sequence[File], texts: Collection[str] = ()) -> list[Source]:
    """Sources of files of JSON lines that share columns and types.

    Args:
        files: each decompressed where it is gzip or Zstandard. A column that some lines lack is missing there.
        texts: columns that are texts, whatever their values look like.

    Raises:
        DataError: a line is no object or no UTF-8, there are no lines, or more than 10,000 columns.
    """
    seen, counts, budget = Seen(bag=False), list[int | None](), SNIFFED_BYTES
    for file in files:
        rows, size = _sniff(file, seen, budget)
        counts.append(rows)
        budget -= size
    columns = [_as_text(column) if column.name in texts else column for column in seen.columns("")]
    if len(columns) > MOST_COLUMNS:
        raise DataError(f"{files[0].name} has {len(columns):,} columns", f"{MOST_COLUMNS:,} or fewer")
    return [JsonLines(file, seen, columns, rows) for file, rows in zip(files, counts, strict=True)]


def _as_text(column: JsonColumn) -> JsonColumn:
    texts = pa.types.is_string(column.type) or pa.types.is_temporal(column.type)
    return JsonColumn(column.name, pa.string(), column.written or not texts)


def _sniff(file: File, seen: Seen, budget: int) -> tuple[int | None, int]:
    """Look at a file's rows; their number, if the budget reached to the end, and the bytes looked at."""
    rows = size = 0
    for line, block in _blocks(file):
        if rows and size >= budget:
            return None, size
        for number, row in _objects(file, line, block):
            rows += 1
            try:
                seen.add(row)
            except UnicodeEncodeError as error:
                raise DataError(f"{file.name} line {number} has a column whose name is no text") from error
        seen.settle()
        size += len(block)
    if not rows:
        raise DataError(f"{file.name} has no rows", "at least one", _HINT)
    return rows, size


def _blocks(file: File) -> Iterator[tuple[int, bytes]]:
    """The file in blocks of whole lines, each with the number of its first line."""
    line, rest = 1, b""
    with reading(file.name), file.stream() as stream:
        rest = stream.read(_BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        while True:
            block = stream.read(_BLOCK_BYTES)
            end = rest.rfind(b"\n") + 1
            if end or not block:
                head, rest = (rest[:end], rest[end:]) if block else (rest, b"")
                yield line, head
                line += head.count(b"\n")
            if not block:
                return
            rest += block
            if len(rest) > _LINE_BYTES:
                raise DataError(f"{file.name} line {line} is longer than {_LINE_BYTES >> 20} MB", "a row a line")


def _count_rows(block: bytes) -> int:
    return sum(1 for text in block.split(b"\n") if text and not text.isspace())


def _objects(file: File, line: int, block: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a block, each with the number of its line."""
    for number, text in enumerate(block.split(b"\n"), line):
        if not text or text.isspace():
            continue
        try:
            row = json.loads(text.decode())
        except UnicodeDecodeError as error:
            raise DataError(f"{file.name} line {number} is no UTF-8 text", "UTF-8") from error
        except (ValueError, RecursionError) as error:
            at = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)
            reason = "nested too deeply" if isinstance(error, RecursionError) else at
            raise DataError(f"{file.name} line {number} is no JSON: {reason}", "an object a line", _HINT) from error
        if not isinstance(row, dict):
            raise DataError(f"{file.name} line {number} is no object: {_short(row)}", "an object a line", _HINT)
        yield number, row


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 40 else f"{text[:37]}..."
