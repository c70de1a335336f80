"""Rows that are in memory already: arrays, tensors, DataFrames and Arrow tables.

Numbers are not copied: an array becomes Arrow tensors that look into its memory, slab by slab. Arrays of objects,
texts and dates are converted as a whole when opened, to find a type for each column. Never imports torch or pandas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import DataError
from narrows.sources.reading import Reading
from narrows.sources.source import ACCEPTED, BATCH_BYTES, BATCH_ROWS, Source, checked_names, numbered

PIECE_ROWS = 131_072  # short enough to shuffle a sorted array well, long enough that pieces stay few


class ArraySource(Source):
    """An array of numbers (n, *shape) as one column.

    Args:
        array: rows first; read slab by slab, so it may be memory-mapped. One dimension makes a scalar column.
        name: for messages.
        column: the column's name.
    """

    def __init__(self, array: NDArray[Any], name: str, column: str = "x") -> None:
        self._array, self._stored = array, _stored_type(array.dtype, name)
        if 0 in array.shape[1:]:
            raise DataError(f"{name} has shape {array.shape}: no columns", "at least one")
        value = pa.from_numpy_dtype(self._stored)
        self._type = pa.fixed_shape_tensor(value, array.shape[1:]) if array.ndim > 1 else value
        self.name, self.schema = name, pa.schema([pa.field(column, self._type)])
        self.pieces = tuple(range(-(-len(array) // PIECE_ROWS)))

    def rows_of(self, piece: int) -> int:
        """Rows in a piece."""
        return min(PIECE_ROWS, len(self._array) - piece * PIECE_ROWS)

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._slabs(piece * PIECE_ROWS + skip, piece * PIECE_ROWS + self.rows_of(piece)))

    def _slabs(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        width = self._stored.itemsize * int(np.prod(self._array.shape[1:]))
        step = max(1, min(BATCH_ROWS, BATCH_BYTES // width))
        for first in range(start, stop, step):
            slab = np.require(self._array[first : min(first + step, stop)], self._stored, ["C", "ALIGNED"])
            column = flat(slab)
            if slab.ndim > 1:
                storage = pa.FixedSizeListArray.from_arrays(column, slab[0].size)
                column = pa.ExtensionArray.from_storage(self._type, storage)
            yield pa.RecordBatch.from_arrays([column], schema=self.schema)


def flat(values: NDArray[Any]) -> pa.Array:
    """All values of an array as Arrow numbers, not copied where they stand in order."""
    values = np.ascontiguousarray(values)
    # Not pa.array, which would import pandas wherever that is installed.
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(values)])


class TableSource(Source):
    """An Arrow table in memory; dictionaries of text views, polars' categories, become dictionaries of text."""

    def __init__(self, table: pa.Table, name: str) -> None:
        checked_names(table.schema, name)
        columns = [_without_views(column) for column in table.columns]
        pairs = zip(table.schema, columns, strict=True)
        schema = pa.schema(
            [entry.with_type(column.type) for entry, column in pairs]
        )  # with what sources say of columns
        table = pa.table(columns, schema=schema)
        self.name, self.schema = name, schema
        self._table, self._rows = table.replace_schema_metadata(None), int(table.num_rows)
        self.pieces = tuple(range(-(-self._rows // PIECE_ROWS)))

    def rows_of(self, piece: int) -> int:
        """Rows in a piece."""
        return min(PIECE_ROWS, self._rows - piece * PIECE_ROWS)

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        rows = self._table.slice(piece * PIECE_ROWS + skip, max(0, self.rows_of(piece) - skip))
        return numbered(piece, skip, rows.to_batches(max_chunksize=BATCH_ROWS))


def _without_views(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column that pyarrow can decode, cast and write, which it cannot do with dictionaries of text views."""
    kind = column.type
    if not (pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type)):
        return column
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string()), ordered=kind.ordered)
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.dictionary(kind.index_type, pa.large_string(), kind.ordered))


def open_object(data: Any, reading: Reading) -> Source:
    """A source of rows that are in memory; see `open_source` for what is accepted."""
    module = type(data).__module__.partition(".")[0]
    if isinstance(data, np.ndarray):
        return open_array(data, "ndarray", reading)
    if module == "torch" and hasattr(data, "detach"):
        return open_array(tensor_to_array(data), "tensor", reading)
    if module == "scipy" and hasattr(data, "tocsr"):
        from narrows.sources.sparse import open_sparse

        return open_sparse(data)
    if module == "pandas" and hasattr(data, "columns"):
        return TableSource(_table_of_frame(data), "DataFrame")
    if isinstance(data, pa.RecordBatch):
        return TableSource(pa.Table.from_batches([data]), "RecordBatch")
    if hasattr(data, "__arrow_c_stream__"):
        return TableSource(_table_of_stream(data), type(data).__name__)
    raise DataError(f"data of type {type(data).__name__}", ACCEPTED)


def open_array(array: NDArray[Any], name: str, reading: Reading | None = None) -> Source:
    """A source of an array's rows; `name` is for messages. One dimension is enough where the reading says series."""
    if array.dtype.names is not None and array.ndim == 1:
        return TableSource(_table_of_columns([(field, array[field]) for field in array.dtype.names], name), name)
    if array.ndim == 1 and reading is not None and (reading.form == "series" or reading.window is not None):
        array = array.reshape(-1, 1)
    if array.ndim < 2:
        hint = "array.reshape(-1, 1) for one column, array.reshape(1, -1) for one row"
        raise DataError(f"{name} of {array.ndim} dimensions, shape {array.shape}", "rows and columns (n, d)", hint)
    if isinstance(array, np.ma.MaskedArray):
        array = filled(array)
    if array.dtype.kind in "biuf":
        return ArraySource(array, name)
    if array.dtype.kind not in "OUSTMm" or array.ndim > 2:
        hint = "its real and imaginary parts as columns" if array.dtype.kind == "c" else ""
        raise DataError(f"{name} of dtype {array.dtype}, shape {array.shape}", "numbers, texts or dates (n, d)", hint)
    return TableSource(_table_of_columns([(f"x{i}", array[:, i]) for i in range(array.shape[1])], name), name)


def _stored_type(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The dtype that Arrow holds the numbers in: native order, 32 or 64 bits for floats, uint8 for booleans."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind in "iu":
        return dtype.newbyteorder("=")
    if dtype.kind == "f":
        return np.dtype(np.float64 if dtype.itemsize >= 8 else np.float32)
    raise DataError(f"{name} of dtype {dtype}", "an array of numbers")


def filled(array: np.ma.MaskedArray[Any, Any]) -> NDArray[Any]:
    """A masked array as floats with NaN where it is masked."""
    return np.asarray(np.ma.filled(array.astype(np.result_type(array.dtype, np.float32)), np.nan))


def tensor_to_array(tensor: Any) -> NDArray[Any]:
    """A tensor of torch as an array; bfloat16, which numpy has not, as float32.

    Raises:
        DataError: for sparse tensors.
    """
    if str(tensor.layout) != "torch.strided":
        raise DataError(f"a tensor of layout {tensor.layout}", "a dense tensor", "tensor.to_dense()")
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # NumPy has no such type
        tensor = tensor.float()
    array: NDArray[Any] = tensor.numpy()
    return array


def _table_of_columns(columns: list[tuple[str, NDArray[Any]]], name: str) -> pa.Table:
    arrays = []
    for column, values in columns:
        if values.ndim > 1:
            batches = [batch for _, batch in ArraySource(values, f"{name} field {column!r}").batches()]
            arrays.append(pa.Table.from_batches(batches).column(0))
        else:
            arrays.append(_sniffed(values, f"{name} column {column!r}"))
    return pa.table(arrays, names=[column for column, _ in columns])


def _sniffed(values: NDArray[Any], name: str) -> pa.Array:
    """One column of objects, texts, dates or numbers as Arrow values; None and NaN among objects are missing."""
    if values.dtype.kind in "SO":
        values = np.array([_text_of(value) for value in values.tolist()], dtype=object)
    if values.dtype.kind == "f":
        values = values.astype(_stored_type(values.dtype, name))
    try:
        return pa.array(np.ascontiguousarray(values), from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name} mixes kinds of values: {error}", "one kind a column") from error


def _text_of(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _table_of_frame(frame: Any) -> pa.Table:
    names = [str(column) for column in frame.columns]
    checked_names(pa.schema([(column, pa.null()) for column in names]), "DataFrame")
    arrays = []
    for position, column in enumerate(names):
        try:
            arrays.append(pa.array(frame.iloc[:, position], from_pandas=True))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"DataFrame column {column!r} mixes kinds of values: {error}", "one kind") from error
    return pa.table(arrays, names=names)


def _table_of_stream(data: Any) -> pa.Table:
    try:
        return pa.RecordBatchReader.from_stream(data).read_all()
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"data of type {type(data).__name__} gave no table: {error}", ACCEPTED) from error
