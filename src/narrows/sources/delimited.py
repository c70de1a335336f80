"""Text tables: fields between commas, semicolons, tabs or bars; header, delimiter and types found by looking.

A file is one piece, read from its beginning each time: rows that are skipped are split but not converted. It is read
twice, the first time (up to 256 MB) to find types that hold every row. Dates are ISO 8601 only, numbers have a decimal
point; fields may be quoted, and quotes carry no meaning of their own, so `"7"` is a number and `""` is missing.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import string
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa
import pyarrow.csv as pacsv

from narrows.errors import DataError, DataWarning
from narrows.sources.inference import MISSING, convert, first_misfit, joined_type, looks_like_value, widened
from narrows.sources.paths import File, reading
from narrows.sources.source import Source, checked_names, numbered

SNIFFED_BYTES = 256 << 20
_SAMPLE_BYTES = 1 << 20
_SAMPLE_ROWS = 1000
_BLOCK_BYTES = 4 << 20
_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_DELIMITERS = "\t;|,"  # a comma is the one most often found inside fields, so it comes last among equals


@dataclass(frozen=True)
class Layout:
    """How the lines of a text file are to be split.

    Args:
        delimiter: between fields.
        header: whether the first line names the columns.
        names: of the columns; `c0`, `c1`, ... without a header.
        blank: empty lines before the first row.
        encoding: `utf-8`, or what else the bytes are.
    """

    delimiter: str
    header: bool
    names: tuple[str, ...]
    blank: int = 0
    encoding: str = "utf-8"


class DelimitedSource(Source):
    """One text file, its layout and the types of its columns known."""

    def __init__(self, file: File, layout: Layout, types: Sequence[pa.DataType], rows: int | None) -> None:
        self._file, self._layout, self._rows = file, layout, rows
        self.name = file.name
        self.schema = checked_names(pa.schema(list(zip(layout.names, types, strict=True))), file.name)
        self.pieces = (0,)

    def rows_of(self, piece: int) -> int | None:
        """Rows of the file, where all of it was sniffed."""
        return self._rows

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._batches(skip))

    def _batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        row = 0
        for texts in split_rows(self._file, self._layout):
            start = max(0, skip - row)
            if start < texts.num_rows:
                yield self._converted(texts.slice(start), row + start)
            row += texts.num_rows

    def _converted(self, texts: pa.RecordBatch, row: int) -> pa.RecordBatch:
        columns = []
        for field, values in zip(self.schema, texts.columns, strict=True):
            try:
                columns.append(convert(values, field.type))
            except pa.ArrowInvalid as error:
                at, value = first_misfit(values, field.type)
                got = f"{self.name} row {row + at + 1}, column {field.name!r}: {value!r}"
                hint = f"the first {SNIFFED_BYTES >> 20} MB decided the type: mend the row, or put the like before it"
                raise DataError(got, f"{field.type}, as in the rows before", hint) from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def open_delimited(files: list[File], header: bool | None, texts: Collection[str] = ()) -> list[Source]:
    """Sources of text files that share columns and types; a type is widened until it holds the rows of all files.

    Raises:
        DataError: a file has no rows, rows of differing length, or other columns than the first.
    """
    layouts: list[Layout] = []
    types: list[pa.DataType] = []
    counts: list[int | None] = []
    budget = SNIFFED_BYTES
    for file in files:
        layout = _layout(file, header)
        header = layout.header  # a short file of texts may not show what the first one shows
        layout, found, rows, size = _sniff_or_latin(file, layout, budget)
        if layouts and layout.names != layouts[0].names:
            raise DataError(
                f"{file.name} has columns {list(layout.names)}", f"{list(layouts[0].names)}, as in the first"
            )
        types = [joined_type(pair) for pair in zip(types or found, found, strict=True)]
        layouts.append(layout)
        counts.append(rows)
        budget = max(0, budget - size)
    types = [pa.string() if name in texts else type for name, type in zip(layouts[0].names, types, strict=True)]
    found_of = zip(files, layouts, counts, strict=True)
    return [DelimitedSource(file, layout, types, rows) for file, layout, rows in found_of]


def split_rows(file: File, layout: Layout) -> Iterator[pa.RecordBatch]:
    """All rows as texts, missing markers as nulls, in batches of about 4 MB.

    Raises:
        DataError: a row has too few or too many fields, or the bytes are damaged.
    """
    with reading(file.name):
        try:
            yield from _open_rows(file, layout, threads=True)
        except pa.ArrowInvalid as error:
            _refuse_ragged(file, layout)
            if "straddl" in str(error):
                raise _open_row(file, layout) from error
            raise


def _open_rows(file: File, layout: Layout, threads: bool) -> Iterator[pa.RecordBatch]:
    read = pacsv.ReadOptions(
        use_threads=threads,
        column_names=list(layout.names),
        skip_rows=layout.blank,
        skip_rows_after_names=int(layout.header),
        block_size=_BLOCK_BYTES,
        encoding=layout.encoding,
    )
    parse = pacsv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True)
    texts = pacsv.ConvertOptions(
        column_types=dict.fromkeys(layout.names, pa.string()),
        null_values=MISSING,
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    with file.stream() as stream, pacsv.open_csv(stream, read, parse, texts) as reader:
        yield from reader


def _refuse_ragged(file: File, layout: Layout) -> None:
    """Read again with one thread, for only so does pyarrow count rows, and refuse the first ragged one by number."""
    try:
        for _ in _open_rows(file, layout, threads=False):
            pass
    except pa.ArrowInvalid as error:
        if found := _RAGGED.search(str(error)):
            row, wanted, got = map(int, found.groups())
            got_fields = f"{file.name} row {row - layout.header} has {got} fields between {layout.delimiter!r}"
            hint = "quotes around fields that hold the delimiter, or form text (--form text) for lines of running text"
            raise DataError(got_fields, f"{wanted}, as in the first row", hint) from error


def _open_row(file: File, layout: Layout) -> DataError:
    """What to say of a file whose last row does not end."""
    begins, ended = 1, 0
    with file.stream() as stream, suppress(csv.Error):  # of a field beyond what Python's reader takes
        rows = csv.reader(io.TextIOWrapper(stream, layout.encoding, "replace", newline=""), delimiter=layout.delimiter)
        for _ in rows:
            begins, ended = ended + 1, rows.line_num
        ended = begins - 1
    got = f"{file.name} line {ended + 1} begins a row that does not end: perhaps it opens a quote that is never closed"
    wanted = f"quotes in pairs, and rows of less than {_BLOCK_BYTES >> 20} MB"
    return DataError(got, wanted, "doubling a quote that is part of a text, and quoting the text")


def _sniff_or_latin(file: File, layout: Layout, budget: int) -> tuple[Layout, list[pa.DataType], int | None, int]:
    """`_sniff`, again as Latin-1 where bytes are no UTF-8: those always decode, if not always to what was meant."""
    try:
        return layout, *_sniff(file, layout, budget)
    except DataError as error:
        if layout.encoding != "utf-8" or "UTF8" not in str(error):
            raise
    _warn_of_latin(file)
    layout = replace(layout, encoding="latin-1")
    return layout, *_sniff(file, layout, budget)


def _warn_of_latin(file: File) -> None:
    warnings.warn(f"{file.name} is not UTF-8 text; read as Latin-1", DataWarning, stacklevel=2)


def _sniff(file: File, layout: Layout, budget: int) -> tuple[list[pa.DataType], int | None, int]:
    """Types of the columns, the number of rows if the budget reached to the end, and the bytes looked at."""
    types = [pa.null()] * len(layout.names)
    rows = size = 0
    for texts in split_rows(file, layout):
        if size > 0 and size >= budget:
            return types, None, size
        types = [widened(type, column) for type, column in zip(types, texts.columns, strict=True)]
        rows += texts.num_rows
        size += texts.nbytes
    if rows == 0:
        hint = "saying that it has no header (--no-header, or header=False), if the first line is a row"
        raise DataError(f"{file.name} has a header and no rows", "at least one row", hint)
    _check_quotes(file, layout, texts.column(texts.num_columns - 1)[-1].as_py())
    return types, rows, size


def _check_quotes(file: File, layout: Layout, last: str | None) -> None:
    """Refuse a file whose last field has swallowed the lines below a quote that nothing closes."""
    if not last or "\n" not in last or layout.encoding == "utf-16":
        return
    with reading(file.name), file.stream() as stream:
        quotes = sum(block.count(b'"') for block in iter(lambda: stream.read(_BLOCK_BYTES), b""))
    if quotes % 2:
        raise _open_row(file, layout)


def _layout(file: File, header: bool | None) -> Layout:
    """Judge the first megabyte of a file."""
    with reading(file.name), file.stream() as stream:
        head = stream.read(_SAMPLE_BYTES)
    encoding, text = _decoded(file, head)
    lines = list(io.StringIO(text, newline=""))
    if len(head) == _SAMPLE_BYTES and len(lines) > 1:
        lines.pop()  # cut short
    blank = next((index for index, line in enumerate(lines) if line.strip("\r\n")), len(lines))
    delimiter = _delimiter(lines[blank : blank + 100])
    rows = _fields(lines[blank:], delimiter)
    if not rows:
        raise DataError(f"{file.name} has no rows", "at least one")
    _check_spaced(file, rows)
    header = _is_header(rows[0], rows[1:]) if header is None else header
    names = [field.strip(string.whitespace) or f"c{index}" for index, field in enumerate(rows[0])]
    names = names if header else [f"c{index}" for index in range(len(rows[0]))]
    checked_names(pa.schema([(name, pa.null()) for name in names]), file.name)
    return Layout(delimiter, header, tuple(names), blank, encoding)


def _decoded(file: File, head: bytes) -> tuple[str, str]:
    """The encoding of a file that begins like this, and the beginning as text without a byte order mark."""
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ["utf-16"] if marked else ["utf-8", "latin-1"]:
        with suppress(UnicodeDecodeError):  # an incremental decoder, as the last character may be cut
            text = codecs.getincrementaldecoder(encoding)().decode(head)
            if encoding == "latin-1":
                _warn_of_latin(file)
            return encoding, text.removeprefix("\ufeff")
    raise DataError(f"{file.name} is no UTF-16 text, though it begins like one", "UTF-8")


def _delimiter(lines: list[str]) -> str:
    """The delimiter that cuts most lines into the same number of fields, more than one."""
    shares = {}
    for delimiter in _DELIMITERS:
        counts = Counter(len(row) for row in _fields(lines, delimiter))
        fields, rows = counts.most_common(1)[0] if counts else (1, 0)
        shares[delimiter] = rows / max(1, counts.total()) if fields > 1 else 0.0
    best = max(shares, key=lambda delimiter: shares[delimiter])
    return best if shares[best] > 0 else ","


def _fields(lines: list[str], delimiter: str) -> list[list[str]]:
    """Up to 1,000 rows of the sample as fields; what Python's reader cannot split ends it."""
    rows: list[list[str]] = []
    with suppress(csv.Error):
        rows.extend(row for row in islice(csv.reader(lines, delimiter=delimiter), _SAMPLE_ROWS) if row)
    return rows


def _is_header(first: list[str], below: list[list[str]]) -> bool:
    """Whether a row names columns: it holds no number or date, but rows below do, or none repeats its texts."""
    if any(looks_like_value(field) for field in first):
        return False
    columns = [
        [
            row[i].strip(string.whitespace)
            for row in below
            if i < len(row) and row[i].strip(string.whitespace) not in MISSING
        ]
        for i in range(len(first))
    ]
    if any(column and all(map(looks_like_value, column)) for column in columns):
        return True
    if len(set(first)) < len(first):
        return False
    return all(field.strip(string.whitespace) not in column for field, column in zip(first, columns, strict=True))


def _check_spaced(file: File, rows: list[list[str]]) -> None:
    parts = rows[-1][0].split()
    if len(rows[-1]) > 1 or len(parts) < 2:
        return
    try:
        list(map(float, parts))
    except ValueError:  # a text, or a date with its time
        return
    hint = "numpy.loadtxt, and passing the array"
    raise DataError(f"{file.name} has fields between spaces", "commas, semicolons, tabs or bars", hint)
