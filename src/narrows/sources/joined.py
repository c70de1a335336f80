"""Many files as one source: pieces of all files in order, partition folders as columns.

Files must agree in columns and types; for text files the types are widened until they hold every file. Opening costs
a look into every file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa

from narrows.errors import DataError
from narrows.sources.formats import format_of, names_json
from narrows.sources.paths import File
from narrows.sources.reading import Reading
from narrows.sources.source import PIECE_BITS, Source, checked_names, row_in_piece


class Joined(Source):
    """Sources of one schema, one after the other.

    Args:
        sources: at least one.
        keys: for each source, values of further columns, the same in all its rows.
    """

    def __init__(self, sources: Sequence[Source], keys: Sequence[dict[str, str | None]]) -> None:
        first = sources[0]
        for source, names in zip(sources, keys, strict=True):
            _check_agrees(source, first)
            if names.keys() != keys[0].keys():
                raise DataError(f"{source.name} lies in folders {sorted(names)}", f"{sorted(keys[0])} as {first.name}")
        types = {key: _key_type([names[key] for names in keys]) for key in keys[0]}
        extra = [pa.field(key, type) for key, type in types.items()]
        self.name = first.name if len(sources) == 1 else f"{first.name} and {len(sources) - 1} more"
        self.schema = checked_names(pa.schema([*first.schema, *extra]), self.name)
        self._extra = [[pa.scalar(_parsed(names[f.name], f.type), f.type) for f in extra] for names in keys]
        self._sources, self.keys = sources, tuple(types)
        self.open_bytes = max(source.open_bytes for source in sources)
        self._places = [(index, piece) for index, source in enumerate(sources) for piece in source.pieces]
        self.pieces = tuple(range(len(self._places)))

    @property
    def stretches(self) -> list[tuple[str, tuple[int, ...]]]:
        """The pieces of each file."""
        pieces: list[list[int]] = [[] for _ in self._sources]
        for piece, (index, _) in enumerate(self._places):
            pieces[index].append(piece)
        return [(source.name, tuple(its)) for source, its in zip(self._sources, pieces, strict=True)]

    def rows_of(self, piece: int) -> int | None:
        """Rows in a piece, where known."""
        index, inner = self._places[piece]
        return self._sources[index].rows_of(inner)

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        index, inner = self._places[piece]
        for row_id, batch in self._sources[index].read(inner, skip):
            constant = [pa.repeat(value, batch.num_rows) for value in self._extra[index]]
            rows = pa.RecordBatch.from_arrays([*batch.columns, *constant], schema=self.schema)
            yield piece << PIECE_BITS | row_in_piece(row_id), rows


def open_files(files: list[File], reading: Reading, texts: Collection[str] = ()) -> Source:
    """One source of all files, which must be of one format; see `open_source`."""
    formats = [format_of(file) for file in files]
    for file, format in zip(files, formats, strict=True):
        if format != formats[0]:
            raise DataError(f"{file.name} is {format}, {files[0].name} is {formats[0]}", "files of one format")
    opened = _open_all(files, formats[0], reading, texts)
    if isinstance(opened, Source):
        return opened
    if len(opened) == 1 and not files[0].keys:
        return opened[0]
    return Joined(opened, [file.keys for file in files])


def _open_all(files: list[File], format: str, reading: Reading, texts: Collection[str]) -> Source | Sequence[Source]:
    """One source of all files, or one for each."""
    if format == "image":
        from narrows.sources.images import open_images

        return open_images(files, reading)
    if format == "sound":
        from narrows.sources.audio import open_sounds

        return open_sounds(files, reading)
    if format in ("text", "jsonl"):
        return _open_lines(files, format, reading, texts)
    if format == "parquet":
        from narrows.sources.parquet import ParquetSource

        return [ParquetSource(file) for file in files]
    if format == "ipc":
        from narrows.sources.ipc import open_ipc

        return [open_ipc(file) for file in files]
    from narrows.sources.arrayfiles import open_array_file

    return [open_array_file(file, format, reading) for file in files]


def _open_lines(files: list[File], format: str, reading: Reading, texts: Collection[str]) -> Source | Sequence[Source]:
    """Sources of text files, whose lines are rows, objects, texts or lists."""
    if reading.form == "text" and not all(names_json(file) for file in files):
        from narrows.sources.text import open_text

        return open_text(files, reading)
    if format == "jsonl":
        from narrows.sources.jsonlines import open_jsonlines

        return open_jsonlines(files, texts)
    if reading.form == "log" and reading.user is None:
        from narrows.sources.interactions import open_lists

        return open_lists(files)
    from narrows.sources.delimited import open_delimited

    return open_delimited(files, reading.header, texts)


def _check_agrees(source: Source, first: Source) -> None:
    ours, wanted = source.schema, first.schema
    if ours.names != wanted.names:
        differ = sorted(set(ours.names) ^ set(wanted.names)) or "other order"
        raise DataError(f"{source.name} has other columns than {first.name}: {differ}", "the same in all files")
    for field, want in zip(ours, wanted, strict=True):
        if field.type != want.type:
            got = f"{source.name} column {field.name!r} is {field.type}"
            raise DataError(got, f"{want.type}, as in {first.name}")


def _key_type(values: list[str | None]) -> pa.DataType:
    """Whole numbers where every value is one and is written as one; else text, as `007` is."""
    return pa.int64() if all(v is None or _whole(v) for v in values) and any(values) else pa.string()


def _whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 19 and text == str(int(text))


def _parsed(text: str | None, type: pa.DataType) -> int | str | None:
    return int(text) if text is not None and type == pa.int64() else text
