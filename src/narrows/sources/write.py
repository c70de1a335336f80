"""Record batches to a file: .parquet, .csv, .npy, .jsonl or .txt, streamed, and there whole or not at all.

Parquet keeps every type. The others keep values: CSV and JSON lines flatten or nest tensor columns and write dates as
text, .npy holds one array of numbers, .txt one text a line. In CSV, as in most CSV files, an empty text and a missing
one look the same. Images, sounds and texts may also become a folder of files: see `writefiles`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from narrows.errors import DataError, SettingError
from narrows.files import atomic
from narrows.sources.plain import as_json, as_text, shape_of
from narrows.sources.reading import modeled
from narrows.sources.source import checked_names

GROUP_ROWS = 131_072  # rows of a Parquet row group, the unit that a shuffle of the file moves about
GROUP_BYTES = 64 << 20


def write_rows(path: str | Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
    """Write rows to a file whose suffix says the format, and return their number.

    Args:
        path: ends in .parquet, .csv, .npy, .jsonl or .txt; a file there is replaced once all rows are written. Without
            a suffix it is a folder, to which each row's image, sound or text is written as a file.
        batches: of that schema; may be none.
        schema: a tensor column `x` becomes `x0`, `x1`, ... in CSV and nested lists in JSON lines. An .npy takes one
            tensor column (n, *shape), or scalar columns of numbers (n, d); a missing number becomes NaN. A .txt takes
            one column of texts without line breaks.

    Raises:
        SettingError: an unknown suffix.
        DataError: a type or value that the format cannot hold; nothing is left behind.
        NarrowsError: the file cannot be written, or there is no space left.
    """
    checked_names(schema, str(path))
    suffix = Path(path).suffix.lower()
    if not suffix:
        from narrows.sources.writefiles import write_files

        return write_files(path, _checked(batches, schema), schema)
    if suffix not in _WRITERS:
        raise SettingError(f"{path} ends in {suffix}", f"one of {', '.join(_WRITERS)}, or a folder")
    with atomic(path) as temporary, temporary.open("wb") as file:
        return _WRITERS[suffix](file, _checked(batches, schema), schema)


def _checked(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.schema.names != schema.names or batch.schema.types != schema.types:
            raise DataError(f"rows of schema {_said(batch.schema)}", _said(schema))
        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _write_parquet(file: BinaryIO, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> int:
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        for group in _grouped(batches):
            writer.write_table(group, row_group_size=GROUP_ROWS)
            count += group.num_rows
    return count


def _grouped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of about `GROUP_ROWS` rows or `GROUP_BYTES`: pyarrow makes a row group of all it is handed at once."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _write_csv(file: BinaryIO, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> int:
    names = [name for field in schema for name in _flat_names(field)]
    checked_names(pa.schema([(name, pa.null()) for name in names]), "the flattened table")
    file.write((",".join(_quoted(pa.array(names)).to_pylist()) + "\n").encode())
    count = 0
    for batch in batches:
        flat = [part for field, column in zip(schema, batch.columns, strict=True) for part in _flattened(field, column)]
        # A line without anything is no row to most readers, so the one empty cell of a row is written as "".
        texts = [
            _text(name, part).fill_null('""' if len(flat) == 1 else "") for name, part in zip(names, flat, strict=True)
        ]
        lines = pc.binary_join_element_wise(
            *(text.cast(pa.large_string()) for text in texts), pa.scalar(",", pa.large_string())
        )
        file.write("".join(f"{line}\n" for line in lines.to_pylist()).encode())
        count += batch.num_rows
    return count


def _flat_names(field: pa.Field) -> list[str]:
    shape = shape_of(field)
    return [field.name] if shape is None else [f"{field.name}{i}" for i in range(int(np.prod(shape)))]


def _flattened(field: pa.Field, column: pa.Array) -> list[pa.Array]:
    """The cells of a tensor column as columns of their own."""
    shape = shape_of(field)
    return [column] if shape is None else [pc.list_element(column.storage, i) for i in range(int(np.prod(shape)))]


def _text(name: str, column: pa.Array) -> pa.Array:
    """Cells as they stand in a CSV file; a missing one is null, and so is NaN."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _text(name, column.dictionary_decode())
    if pa.types.is_floating(kind):
        texts = pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
        # A point keeps the column a float one when it is read again.
        return pc.replace_substring_regex(texts, r"^(-?\d+)$", r"\1.0")
    if pa.types.is_duration(kind):
        return column.cast(pa.int64()).cast(pa.string())
    return _quoted(as_text(name, column))


def _quoted(texts: pa.Array) -> pa.Array:
    """Texts with quotes where they would be read as something else without."""
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(texts, '"', '""'), '"', "")
    return pc.if_else(pc.match_substring_regex(texts, r'[",;|\t\r\n]|^$|^\s|\s$'), quoted, texts)


def _write_npy(file: BinaryIO, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> int:
    shape, dtype = _array_type(schema)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (0, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    start, count = file.tell(), 0
    for batch in batches:
        file.write(_block(batch, dtype).tobytes())
        count += batch.num_rows
    file.seek(0)
    # NumPy leaves room in the header for the first length to grow, so it can be told afterwards.
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, *shape)})
    if file.tell() != start:
        raise DataError(f"an array of shape {(count, *shape)}", hint="a .parquet file")
    return count


def _array_type(schema: pa.Schema) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape of a row and dtype of the one array that holds all columns."""
    shapes = [shape_of(field) for field in schema]
    types = [
        field.type if shape is None else field.type.value_type for field, shape in zip(schema, shapes, strict=True)
    ]
    for field, kind in zip(schema, types, strict=True):
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise DataError(
                f"column {field.name!r} of type {field.type} in an .npy file", "numbers", ".parquet or .csv"
            )
    if len(schema) > 1 and any(shape is not None for shape in shapes):
        raise DataError("a tensor column beside others in an .npy file", "one tensor column, or scalars", ".parquet")
    dtype = np.result_type(*(np.uint8 if pa.types.is_boolean(kind) else kind.to_pandas_dtype() for kind in types))
    return shapes[0] if shapes[0] is not None else (len(schema),), np.dtype(dtype)


def _block(batch: pa.RecordBatch, dtype: np.dtype[Any]) -> NDArray[Any]:
    """All columns of a batch as one array, rows first."""
    columns = [_numbers(field, column, dtype) for field, column in zip(batch.schema, batch.columns, strict=True)]
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


def _numbers(field: pa.Field, column: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    shape = shape_of(field)
    values = column if shape is None else column.storage.flatten()
    if (column.null_count or values.null_count) and dtype.kind != "f":
        hint = "a .parquet file, or a column of floats"
        raise DataError(f"column {field.name!r} has missing cells, which an .npy of {dtype} cannot hold", hint=hint)
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False).astype(dtype)
    if shape is None or column.null_count == 0:
        return array
    rows = np.full((len(column), int(np.prod(shape))), np.nan, dtype)
    rows[column.is_valid().to_numpy(zero_copy_only=False)] = array.reshape(-1, rows.shape[1])
    return rows


def _write_jsonl(file: BinaryIO, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> int:
    count = 0
    for batch in batches:
        columns = [as_json(field, column) for field, column in zip(schema, batch.columns, strict=True)]
        for row in zip(*columns, strict=True):
            cells = dict(zip(schema.names, row, strict=True))
            file.write(json.dumps(cells, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        count += batch.num_rows
    return count


def _write_txt(file: BinaryIO, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> int:
    texts = [
        field for field in modeled(schema) if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if len(texts) != 1 or len(modeled(schema)) != 1:
        raise DataError(f"columns {_said(schema)} in a .txt file", "one column of texts", ".csv or .jsonl")
    count = 0
    for batch in batches:
        for text in batch.column(texts[0].name).to_pylist():
            if text and ("\n" in text or "\r" in text):
                got = f"row {count + 1}: a text of several lines in a .txt file"
                raise DataError(got, "a line for each text", ".jsonl, or a folder with a file for each text")
            file.write(f"{text or ''}\n".encode())
            count += 1
    return count


_WRITERS: dict[str, Callable[[BinaryIO, Iterator[pa.RecordBatch], pa.Schema], int]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".jsonl": _write_jsonl,
    ".txt": _write_txt,
}
